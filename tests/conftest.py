"""Setup for all tests; the fixtures are defined in tests/support."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A slow machine must not fail a test: pytest's own timeout stops a hanging test.
settings.register_profile("no_deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no_deadline")

pytest_plugins = ["tests.support.postgres", "tests.support.ledgers", "tests.support.brokers.fixtures"]

SLOWEST = (
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
"""The slowest test files, by `--durations`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first: if a worker started one of them last, the whole run would finish late."""
    order = {Path(__file__).parent / file: index for index, file in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))
