"""Helpers that several channels share: HTTP, TLS, secrets, the SSRF guard. This package knows no channel."""
