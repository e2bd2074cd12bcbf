"""Profiles along shadow and layover: a mark of one height is in one place, whatever the angles."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.buildings import SensorGeometry
from fusiondet.errors import InputError
from fusiondet.modeling.meta_arch import sensor_rows
from fusiondet.modeling.sensor_geometry import (
    FACTS,
    MARKS,
    SENSOR_FIELDS,
    GeometryBranch,
    check_facts,
    far_edges,
    mark_place,
    sample_profiles,
)

import pytest
import torch


def row(gsd_m=0.5, **angles):
    """(1, F) as the meta architecture makes it; angles by their names in SensorGeometry."""
    return sensor_rows([{"gsd_m": gsd_m, "sensor": angles}], "cpu")


def test_a_row_has_the_gsd_and_the_fields_of_the_metadata():
    assert SENSOR_FIELDS == ("gsd_m", *SensorGeometry().to_dict())
    assert {fact.field for fact in FACTS.values()} == set(SENSOR_FIELDS)
