"""The service: wiring, start and stop, and its event loop."""
