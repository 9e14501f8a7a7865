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
    "test_whole_way.py",
    "docs/test_blocks.py",
    "flyte_admin/test_intake.py",
    "kafka/test_traps.py",
    "ledger/test_trouble.py",
    "kafka/test_kafka.py",
    "ledger/test_upgrade.py",
    "web/test_console.py",
    "web/test_hostile.py",
    "flyte_admin/test_reconcile.py",
    "cli/test_explain.py",
    "web/test_api.py",
    "cli/test_workbench.py",
    "docs/test_tutorial.py",
)
"""The files that take longest, as `--durations` tells."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a worker that began one of them late would end the run late."""
    places = {Path(__file__).parent / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
