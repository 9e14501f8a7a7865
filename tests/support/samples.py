"""Recorded Kafka messages of Flyte, one file each, and launch plans as Flyte prints them."""

from __future__ import annotations

import json
from pathlib import Path

from dispatcher.flyte.decode import Headers

FOLDER = Path(__file__).parent.parent / "samples"
LAUNCH_PLANS = FOLDER / "launch_plans"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def sample(name: str) -> tuple[Headers, bytes]:
    """The headers and the value of one recorded message."""
    recorded = json.loads((FOLDER / f"{name}.json").read_text())
    return [(key, value.encode()) for key, value in recorded["headers"]], recorded["value"].encode()
