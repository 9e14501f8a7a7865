"""Helpers that several channels share: HTTP, TLS, secrets, the SSRF guard. This package imports no channel."""
