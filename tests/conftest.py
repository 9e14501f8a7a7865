"""What every test may use; the fixtures themselves live in tests/support."""

pytest_plugins = ["tests.support.postgres", "tests.support.brokers.fixtures"]
