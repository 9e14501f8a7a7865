"""A decision becomes deliveries."""
