"""Recorded Kafka messages of Flyte, one file each, and launch plans as Flyte prints them."""

from __future__ import annotations

import json
from pathlib import Path

from dispatcher.flyte.decode import Headers

FOLDER = Path(__file__).parent.parent / "samples"
LAUNCH_PLANS = FOLDER / "launch_plans"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


RECORDED = Path(__file__).parent.parent / "recorded"
"""Messages of flyteadmin and flytepropeller 1.16.8, one file each, as they were on Kafka."""


def sample(name: str, folder: Path = FOLDER) -> tuple[Headers, bytes]:
    """The headers and the value of one recorded message."""
    recorded = json.loads((folder / f"{name}.json").read_text())
    return [(key, value.encode()) for key, value in recorded["headers"]], recorded["value"].encode()
