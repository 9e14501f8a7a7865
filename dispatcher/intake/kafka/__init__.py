"""Kafka as a source of events, and as a destination for test events."""
