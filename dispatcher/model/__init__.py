"""Values and state machines: events, notifications, deliveries, retry, rate limits. No I/O and no asyncio."""
