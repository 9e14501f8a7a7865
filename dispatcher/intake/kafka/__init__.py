"""Reads Flyte's events from Kafka, and publishes test events to Kafka."""
