"""What every test may use; the fixtures themselves live in tests/support."""

from hypothesis import HealthCheck, settings

# A busy machine is no failure: pytest's own time-out ends what hangs.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

pytest_plugins = ["tests.support.postgres", "tests.support.brokers.fixtures"]
