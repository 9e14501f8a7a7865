"""The settings, and the import of flyteadmin's configuration."""
