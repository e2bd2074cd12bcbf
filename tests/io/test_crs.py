"""Names of coordinate reference systems, and those that a city model can be written in."""

from pathlib import Path

from fusiondet.io.crs import check_crs, crs_text, not_in_metres
from tests.support.messages import raises_naming

import pytest
from pyproj import CRS


@pytest.mark.parametrize("code", ["EPSG:4326", "EPSG:32631", "EPSG:28992", "EPSG:7415"])
def test_codes_stay_codes(code):
    assert crs_text(CRS(code)) == code


def test_what_has_no_code_is_wkt_that_reads_back():
    own = CRS.from_proj4("+proj=tmerc +lon_0=7.3 +k=0.9 +ellps=GRS80 +units=m")
    assert CRS.from_wkt(crs_text(own)) == own
    assert crs_text(None) is None


@pytest.mark.parametrize(
    ("code", "horizontal"), [("EPSG:32631", 32631), ("EPSG:28992", 28992), ("EPSG:7415", 28992)]
)
def test_projected_metres_are_accepted_and_heights_dropped(code, horizontal):
    assert check_crs(CRS(code), Path("out.city.json")).to_epsg() == horizontal


@pytest.mark.parametrize(
    ("crs", "facts"),
    [
        ("EPSG:4326", ["WGS 84", "longitude and latitude"]),
        ("EPSG:2263", ["US survey foot"]),
        ("EPSG:3857", ["Pseudo-Mercator"]),
        ("EPSG:6551+6360", ["US survey foot"]),
        ("+proj=tmerc +lon_0=7.3 +k=0.9 +ellps=GRS80 +units=m", ["EPSG"]),
    ],
)
def test_others_are_refused_with_a_way_out(crs, facts):
    with raises_naming("out.city.json", "gdalwarp", ".gpkg", *facts):
        check_crs(CRS.from_user_input(crs), Path("out.city.json"))


def test_units_of_axes():
    assert [not_in_metres(axis) for axis in CRS("EPSG:2263").axis_info] == [True, True]
    assert not any(not_in_metres(axis) for axis in CRS("EPSG:28992").axis_info)
