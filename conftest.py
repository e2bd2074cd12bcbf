"""Fixtures for all tests: those in tests/ and those that lie beside each project."""

pytest_plugins = ["tests.support.fixtures", "tests.support.networks"]
