"""The presets of the synthetic city are complete, plausible, and found by name."""

import dataclasses

from fusiondet.synthetic.presets import PRESETS, preset
from tests.support.messages import raises_naming

import pytest


def test_an_unknown_preset_names_the_known_ones():
    with raises_naming("realistik", *PRESETS):
        preset("realistik")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_by_its_own_name_and_cannot_be_changed(name):
    assert preset(name) is PRESETS[name] and preset(name).name == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset(name).version = 2


@pytest.mark.parametrize("name", PRESETS)
def test_ranges_run_from_low_to_high(name):
    ranges = [value for value in dataclasses.astuple(preset(name)) if isinstance(value, tuple)]
    pairs = [pair for value in ranges for pair in (value if isinstance(value[0], tuple) else [value])]
    spread = {preset(name).roof_sigma0_db}  # (mean, standard deviation)
    assert all(low <= high for low, high in pairs if (low, high) not in spread)
