"""Benchmarks. Each result is a ratio to a baseline of the same run, as the median of several rounds."""
