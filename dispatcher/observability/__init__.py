"""Metrics, logs, the watchdog and the canary."""
