"""Local stand-ins for the providers and FlyteAdmin, for the demo and the tests."""
