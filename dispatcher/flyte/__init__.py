"""Flyte's formats: event payloads, event files, and FlyteAdmin's gRPC API."""
