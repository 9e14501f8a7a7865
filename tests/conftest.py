"""What every test may use; the fixtures themselves live in tests/support."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure: pytest's own time-out ends what hangs.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

pytest_plugins = ["tests.support.postgres", "tests.support.brokers.fixtures"]

LONGEST = (
    "packaging/test_wheel.py",
    "cli/test_commands.py",
    "end_to_end/test_whole_way.py",
    "docs/test_blocks.py",
    "flyte/admin/test_intake.py",
    "intake/kafka/test_traps.py",
    "ledger/test_engine.py",
    "intake/kafka/test_consumer.py",
    "ledger/test_upgrade.py",
    "web/test_console.py",
    "web/test_hostile.py",
    "intake/test_reconcile.py",
    "cli/test_explain.py",
    "web/test_api.py",
    "workbench/test_server.py",
    "docs/test_tutorial.py",
)
"""The files that take longest, as `--durations` tells."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a worker that began one of them late would end the run late."""
    places = {Path(__file__).parent / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
