"""Long stories of silences, quiet hours, digests and restarts, compared with a model after every step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from tests.support.holding_machine import compare_with_model

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

STORIES, STEPS = int(os.environ.get("FAULT_STORIES", "40")), 60


def test_every_message_of_long_stories_becomes_what_the_model_says(seed: int, figures: Callable[[str], None]) -> None:
    began = time.monotonic()
    compare_with_model(stories=STORIES, steps=STEPS, chosen_by=seed)
    figures(f"{STORIES} stories of {STEPS} steps; {time.monotonic() - began:.0f} s")
