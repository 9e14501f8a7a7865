"""The proofs: real processes, real signals, real Apache Kafka and PostgreSQL. `make test-faults` runs them.

Each prints its seed and its figures on one line at the end of the run; FAULT_SEED repeats a run's dice.
"""
