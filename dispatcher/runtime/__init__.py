"""Builds, starts and stops the service, and chooses its event loop."""
