"""From messages to recorded deliveries: sources, the pipeline, reconciliation."""
