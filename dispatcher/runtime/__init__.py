"""The service: its wiring, its lifecycle and its event loop."""
