"""Measurements: each a ratio against a baseline of the same run, medians of several rounds."""
