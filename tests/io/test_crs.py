"""Names of coordinate reference systems, and those that a city model can be written in."""

from pathlib import Path

from fusiondet.io.crs import (
    check_crs,
    crs_text,
    file_crs_text,
    not_in_metres,
    parse_crs,
    raster_crs_text,
    transformer,
)
from tests.support.messages import raises_naming

import pytest
import rasterio.crs
from pyproj import CRS


@pytest.mark.parametrize("code", ["EPSG:4326", "EPSG:32631", "EPSG:28992", "EPSG:7415"])
def test_codes_stay_codes(code):
    assert crs_text(CRS(code)) == file_crs_text(CRS(code)) == code
    assert raster_crs_text(rasterio.crs.CRS.from_string(code)) == code


def test_what_has_no_code_is_wkt_that_reads_back():
    own = CRS.from_proj4("+proj=tmerc +lon_0=7.3 +k=0.9 +ellps=GRS80 +units=m")
    assert CRS.from_wkt(crs_text(own)) == own
    assert CRS.from_wkt(file_crs_text(own)) == own


@pytest.mark.parametrize("text_of", [crs_text, raster_crs_text, file_crs_text])
def test_no_crs_has_no_name(text_of):
    assert text_of(None) is None


def test_description_by_proj_is_a_code_only_where_a_probable_one_is_enough():
    described = CRS.from_proj4("+proj=utm +zone=31 +datum=WGS84 +units=m")
    assert file_crs_text(described) == "EPSG:32631"
    assert crs_text(described).startswith("PROJCRS[") and CRS(crs_text(described)) == described


def test_raster_without_code_keeps_gdals_wkt():
    own = rasterio.crs.CRS.from_string("+proj=tmerc +lon_0=7.123 +ellps=GRS80 +units=m")
    assert raster_crs_text(own) == own.to_wkt()


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


def test_crs_that_is_not_understood_is_named_with_its_owner():
    assert parse_crs("EPSG:28992", "a CRS").to_epsg() == 28992
    with raises_naming("b.gpkg: CRS", "somewhere", "EPSG:n"):
        parse_crs("somewhere", "b.gpkg: CRS")


SITE = 'LOCAL_CS["site",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'
MOON = "+proj=longlat +R=1737400 +no_defs +type=crs"


@pytest.mark.parametrize("crs", ["EPSG:28992", CRS(28992), rasterio.crs.CRS.from_epsg(28992)])
def test_conversions_take_any_kind_of_crs_x_first(crs):
    x, y = transformer("EPSG:4326", crs).transform(5.387, 52.155)
    assert (x, y) == pytest.approx((155_000, 463_000), abs=100)


@pytest.mark.parametrize(("crs", "name"), [(SITE, "site"), (MOON, "unknown"), ("EPSG:5773", "EGM96 height")])
def test_a_crs_without_a_place_on_earth_is_refused_by_name(crs, name):
    for pair in ((crs, "EPSG:32631"), ("EPSG:32631", crs)):
        with raises_naming(name, "UTM zone 31N", "rio edit-info --crs"):
            transformer(*pair)


def test_a_crs_that_is_none_is_refused():
    with raises_naming("not understood", "EPSG:n"):
        transformer("EPSG:4326", "EPSG:99999999")
