"""Kafka: the source of events, and a publisher for test events."""
