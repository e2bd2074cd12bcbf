"""Units of length: their names, axes of reference systems, factors to metres."""

from fusiondet.errors import InputError
from fusiondet.io.units import (
    FOOT,
    METRE,
    US_SURVEY_FOOT,
    height_unit_of,
    horizontal_unit,
    is_depth,
    length_unit,
    required_length_unit,
    vertical_unit,
)

import pytest
from pyproj import CRS


@pytest.mark.parametrize(
    ("names", "unit"),
    [
        (("m", "metre", "Meters", " METRES "), METRE),
        (("ft", "foot", "Feet", "International foot", "foot (international)"), FOOT),
        (("us-ft", "US survey foot", "U.S. survey feet", "Foot_US", "ftUS", "ft_us"), US_SURVEY_FOOT),
    ],
)
def test_units_are_found_by_the_spellings_of_gdal_proj_and_esri(names, unit):
    assert {length_unit(name) for name in names} == {unit}


def test_survey_foot_and_foot_differ_by_two_millionths():
    assert 1e-6 < US_SURVEY_FOOT.metres / FOOT.metres - 1 < 3e-6


@pytest.mark.parametrize(
    ("name", "metres"), [("cm", 0.01), ("decimetre", 0.1), ("mm", 0.001), ("fathom", 1.8288)]
)
def test_other_lengths_have_their_factor(name, metres):
    assert length_unit(name).metres == pytest.approx(metres, rel=1e-12)


@pytest.mark.parametrize("name", [None, "", "dB", "degree", "reflectance"])
def test_what_is_no_length_has_no_unit(name):
    assert length_unit(name) is None


def test_a_unit_that_the_user_states_must_be_one():
    assert required_length_unit("us-ft", "height_unit") is US_SURVEY_FOOT
    with pytest.raises(InputError, match="`height_unit` is 'dB'.*m, ft, us-ft"):
        required_length_unit("dB", "height_unit")


@pytest.mark.parametrize(
    ("crs", "vertical", "horizontal"),
    [
        ("EPSG:2263", None, US_SURVEY_FOOT),
        ("EPSG:2263+6360", US_SURVEY_FOOT, US_SURVEY_FOOT),
        ("EPSG:2263+5703", METRE, US_SURVEY_FOOT),
        ("EPSG:32631", None, METRE),
        ("EPSG:8228", FOOT, None),
        ("EPSG:4326", None, None),
        ("EPSG:4979", METRE, None),
        (
            "+proj=utm +zone=32 +ellps=GRS80 +towgs84=0,0,0 +units=us-ft +vunits=ft +type=crs",
            FOOT,
            US_SURVEY_FOOT,
        ),
    ],
)
def test_axes_of_a_reference_system_state_their_units(crs, vertical, horizontal):
    crs = CRS.from_user_input(crs)
    assert (vertical_unit(crs), horizontal_unit(crs)) == (vertical, horizontal)


def test_depths_are_recognised():
    assert is_depth(CRS.from_epsg(5715))
    assert not is_depth(CRS.from_epsg(5703))


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("m above ground", METRE),
        ("US survey feet (NAVD88)", US_SURVEY_FOOT),
        ("ft, NAVD88", FOOT),
        ("", US_SURVEY_FOOT),
        (None, US_SURVEY_FOOT),
    ],
)
def test_the_unit_of_a_band_goes_before_that_of_the_vertical_axis(text, unit):
    assert height_unit_of(text, CRS.from_user_input("EPSG:2263+6360")) == unit


def test_heights_of_no_stated_unit_have_none():
    assert height_unit_of(None, CRS.from_epsg(2263)) is None
    assert height_unit_of("", None) is None
