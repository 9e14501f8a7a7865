"""Events, notifications, deliveries, retries, rate limits and circuit breakers: values and pure functions, no I/O."""
