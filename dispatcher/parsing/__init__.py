"""Readers of text that people and programs write: YAML with line numbers, durations, CloudEvents, validation errors."""
