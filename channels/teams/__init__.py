"""The Microsoft Teams channel: posts Adaptive Cards to webhook URLs of Power Automate workflows."""
