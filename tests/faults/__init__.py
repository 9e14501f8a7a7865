"""Fault tests: real processes and signals, Apache Kafka and PostgreSQL. `make test-faults` runs them.

Each test prints one line with its seed and results at the end of the run. FAULT_SEED=… repeats a run's random choices.
"""
