"""The service's HTTP server: event intake, health and metrics pages, the console and its API."""
