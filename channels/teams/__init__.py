"""The Microsoft Teams channel: posts Adaptive Cards to the webhooks of Power Automate workflows."""
