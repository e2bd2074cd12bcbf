"""Units of columns, from their names, their axes or the user; and columns of identifiers."""

from fusiondet.io.height_columns import refuse_identifier, unit_of_name
from fusiondet.io.vectors import read_layer
from tests.support.messages import missing_facts, raises_naming

import geopandas
import pytest
from shapely.geometry import box

US_FOOT_M = 1200 / 3937
# New York's grid in US survey feet, without and with elevations in such feet; UTM with elevations in metres.
FEET, FEET_UP, METRES = "EPSG:2263", "EPSG:2263+6360", "EPSG:32618"


@pytest.fixture
def layer(tmp_path):
    """Read one house of the columns' values in a CRS."""

    def read(crs, height_unit=None, ground=None, **columns):
        names = [name.replace("__", " ") for name in columns]
        values = {name: [value] for name, value in zip(names, columns.values(), strict=True)}
        frame = geopandas.GeoDataFrame(values, geometry=[box(985000, 210000, 985050, 210040)], crs=crs)
        frame.to_file(tmp_path / "a.gpkg")
        return read_layer(tmp_path / "a.gpkg", names[0], ground, height_unit=height_unit)

    return read


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("HEIGHT_FT", "ft"),
        ("roofHeightFeet", "ft"),
        ("top (m)", "m"),
        ("h us-ft", "us-ft"),
        ("height_cm", "cm"),
    ]
    + [("heightroof", None), ("m", None), ("b3_h_dak_70p", None), ("roof_ch", None), ("ground", None)],
)
def test_names(name, unit):
    found = unit_of_name(name)
    assert (found and found.name) == unit


def test_a_vertical_axis_in_feet_is_applied_and_said(layer):
    found = layer(FEET_UP, heightroof=100.0)
    assert found.buildings[0].height_m == pytest.approx(100 * US_FOOT_M, abs=1e-9)
    assert missing_facts(found.notes[-1], "heightroof", "us-ft") == []


def test_coordinates_in_feet_are_a_hint_that_is_asked_about(layer):
    with raises_naming("a.gpkg", "heightroof", "height_unit", "us-ft"):
        layer(FEET, heightroof=100.0)
    heights_m = {
        unit: layer(FEET, unit, heightroof=100.0).buildings[0].height_m for unit in ("m", "ft", "us-ft")
    }
    assert heights_m == pytest.approx({"m": 100, "ft": 30.48, "us-ft": 100 * US_FOOT_M}, rel=1e-12)
    with raises_naming("height_unit", "furlongs", "us-ft"):
        layer(FEET, "furlongs", heightroof=100.0)


def test_a_name_says_more_than_a_crs_or_an_option(layer):
    assert layer(FEET, height_m=10.0).buildings[0].height_m == 10
    assert layer(FEET_UP, height_m=10.0).buildings[0].height_m == 10
    assert layer(METRES, height_ft=10.0).buildings[0].height_m == pytest.approx(3.048)
    found = layer(FEET, "ft", height_m=10.0)
    assert (
        found.buildings[0].height_m == 10 and missing_facts(found.notes[-1], "height_m", "by its name") == []
    )


def test_metres_and_no_crs_stay_as_they_are(layer):
    for crs in (METRES, "EPSG:4326", None):
        found = layer(crs, h=10.0)
        assert found.buildings[0].height_m == 10 and found.notes == []


def test_the_ground_has_its_unit_too(layer):
    assert layer(FEET, "ft", ground="base_m", top=100.0, base_m=10.0).buildings[0].height_m == pytest.approx(
        20.48
    )
    assert layer(FEET, "ft", ground="base", top=100.0, base=10.0).buildings[0].height_m == pytest.approx(
        27.432
    )


def test_1000_metres_are_judged_in_metres(layer):
    assert layer(METRES, "ft", h=1500.0).buildings[0].height_m == pytest.approx(457.2)
    assert layer(METRES, "ft", h="12 ft").reasons == {"not a number": 1}


class TestIdentifiers:
    @pytest.mark.parametrize(
        "name", ["id", "OBJECTID", "osm_id", "parcel-id", "BuildingId", "houseID", "fid"]
    )
    def test_names(self, tmp_path, name):
        with raises_naming("a.gpkg", name, "identifier"):
            refuse_identifier(tmp_path / "a.gpkg", name, [3.0, 7.5])

    @pytest.mark.parametrize(
        "values", [range(1, 26), [float(i) for i in range(40)], [str(8000000 + 7 * i) for i in range(25)]]
    )
    def test_numbers_that_count(self, tmp_path, values):
        with raises_naming("number", "identifier"):
            refuse_identifier(tmp_path / "a.gpkg", "number", list(values))

    @pytest.mark.parametrize(
        "values",
        [
            range(1, 10),
            [*range(1, 25), None],
            [3, 9] * 20,
            [i + 0.5 for i in range(40)],
            [9999] * 30,
            ["a"] * 30,
            [],
        ],
    )
    def test_heights(self, tmp_path, values):
        for name in ("height", "solid", "h_paid"):
            refuse_identifier(tmp_path / "a.gpkg", name, list(values))
