"""Whatever happens, in whatever order: no message is lost, doubled, or held longer than its reason lasts.

`tests/faults/test_holding.py` goes through more and longer stories.
"""

from __future__ import annotations

from tests.support.holding_machine import compare_with_model


def test_every_message_becomes_what_the_model_says() -> None:
    compare_with_model(stories=12, steps=25)
