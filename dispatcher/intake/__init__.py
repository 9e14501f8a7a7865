"""Turns incoming messages into recorded deliveries: sources, the intake pipeline, reconciliation."""
