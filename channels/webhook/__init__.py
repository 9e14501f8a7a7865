"""The webhook channel: posts JSON or CloudEvents to targets from the settings, or to URLs in rules."""
