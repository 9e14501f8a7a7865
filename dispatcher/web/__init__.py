"""The service's HTTP side: event intake, health and metrics pages, the console and its API."""
