"""The PagerDuty channel: opens and resolves incidents through the Events API v2."""
