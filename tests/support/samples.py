"""Messages that flyteadmin and flytepropeller 1.16.8 wrote to Kafka, one file each, and launch plans as Flyte prints them."""

from __future__ import annotations

import json
from pathlib import Path

import orjson

from dispatcher.flyte.decode import Headers

FOLDER = Path(__file__).parent.parent / "recorded"
LAUNCH_PLANS = Path(__file__).parent.parent / "launch_plans"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def sample(name: str) -> tuple[Headers, bytes]:
    """The headers and the value of one recorded message."""
    recorded = json.loads((FOLDER / f"{name}.json").read_text())
    return [(key, value.encode()) for key, value in recorded["headers"]], recorded["value"].encode()


def structured(name: str) -> tuple[Headers, bytes]:
    """The same message in structured mode, which flyteadmin does not use and bridges do."""
    headers, value = sample(name)
    attributes = {key.removeprefix("ce_"): text.decode() for key, text in headers if key.startswith("ce_")}
    envelope = {**attributes, "datacontenttype": "application/json", "data": orjson.loads(value)}
    return [("content-type", b"application/cloudevents+json; charset=UTF-8")], orjson.dumps(envelope)


def rules_for_any_version(folder: Path) -> str:
    """Write the rules of launch plan train.daily to a file, for every version, and return the file's path."""
    plan = json.loads((LAUNCH_PLANS / "train.daily.launch_plan.json").read_text())
    del plan["id"]["version"]
    file = folder / "train.daily.json"
    file.write_text(json.dumps(plan))
    return str(file)
