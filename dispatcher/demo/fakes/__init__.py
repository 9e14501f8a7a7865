"""Local fakes of the providers and of FlyteAdmin, for the demo and the tests."""
