"""Python's garbage collector, told what kind of process this is."""

from __future__ import annotations

import gc


def settle_in() -> None:
    """Call once, when everything is loaded: what is there by now stays as long as the process.

    The hot path makes many short-lived objects and few cycles; looking through all that start-up made, again and
    again, costs intake an eighth of its speed (bench/intake.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
