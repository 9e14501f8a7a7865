"""The webhook channel: posts JSON or CloudEvents to named targets, or to URLs that rules name."""
