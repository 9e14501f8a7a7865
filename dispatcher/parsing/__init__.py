"""YAML and JSON with line numbers, durations, CloudEvents, and the text of validation errors."""
