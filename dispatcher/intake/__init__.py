"""From messages to recorded deliveries: sources, the intake pipeline, reconciliation."""
