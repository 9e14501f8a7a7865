"""Holding back: what keeps a delivery from going out for now, and what becomes of it at the end. Pure: does no I/O.

`ledger/holds.py` has the tables, and `delivering/releaser.py` releases what has been held long enough.
"""
