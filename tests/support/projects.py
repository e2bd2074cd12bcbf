"""Tests that need a project's network are skipped, and say so, where the project's folder was deleted."""

from fusiondet import plugins

import pytest


def needs_network(name: str):
    """Mark of tests that need MODEL.DENSE_NET.NAME `name`."""
    missing = name not in plugins.merged("dense_networks")
    return pytest.mark.skipif(missing, reason=f"the project of {name} is not in fusiondet/projects")
