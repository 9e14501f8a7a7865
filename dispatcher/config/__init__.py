"""Settings, and their import from flyteadmin's configuration."""
