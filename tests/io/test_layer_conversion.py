"""Layers from format to format, and back."""

from fusiondet.buildings import Building
from fusiondet.io.layer_conversion import convert_layer
from fusiondet.io.layer_writer import write_buildings
from fusiondet.io.layers import FORMATS, read_buildings, read_metadata, read_vertical_crs
from tests.support.messages import missing_facts, raises_naming

import numpy as np
import pytest
from shapely.geometry import Polygon, box

X, Y = 155_000, 463_000
BUILDINGS = [
    Building(box(X, Y, X + 10, Y + 8), 7.25, 6.5, 8.0, 0.9, height_stat="p70", id="a"),
    Building(
        Polygon(box(X + 20, Y, X + 40, Y + 20).exterior, [box(X + 25, Y + 5, X + 30, Y + 9).exterior]), id="b"
    ),
]


def key(building):
    return building.id, building.score, building.height_m, building.height_p16_m, building.height_p84_m


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("first", [".gpkg", ".city.json"])
def test_there_and_back(tmp_path, first, suffix):
    start, middle, end = (tmp_path / f"{name}{s}" for name, s in (("a", first), ("b", suffix), ("c", first)))
    write_buildings(BUILDINGS, "EPSG:28992", start, {"weights": "w.pth", "height_stat": "p70"})
    convert_layer(start, middle)
    if suffix != ".geojson":  # which is longitude and latitude
        convert_layer(middle, end)
    got, crs = read_buildings(end if end.exists() else middle)
    assert crs == ("EPSG:28992" if suffix != ".geojson" else "EPSG:4326")
    got = sorted(got, key=lambda b: b.id)  # FlatGeobuf sorts by place
    assert [key(b) for b in got] == [key(b) for b in BUILDINGS]
    assert read_metadata(middle) == {"weights": "w.pth", "height_stat": "p70"}
    if end.exists():
        for a, b in zip(got, BUILDINGS, strict=True):
            assert a.polygon.symmetric_difference(b.polygon).area < 0.1


def test_the_ground_of_a_city_model_is_kept(tmp_path):
    a, b, c = (tmp_path / name for name in ("a.city.json", "b.city.jsonl", "c.gpkg"))
    grounds = np.array([3.5, -1.25])
    write_buildings(BUILDINGS, "EPSG:28992", a, dtm=lambda p: grounds[: len(p)], vertical_crs="EPSG:5709")
    convert_layer(a, b)
    assert [x.attributes for x in read_buildings(b)[0]] == [{"ground_m": 3.5}, {"ground_m": -1.25}]
    assert read_vertical_crs(b) == "EPSG:5709" == read_vertical_crs(a)
    notes = convert_layer(b, c)
    assert missing_facts(notes[-1], "1 of 2", "height_m") == [] and read_metadata(c)["height_stat"] == "p70"


def test_what_cannot_be_converted(tmp_path):
    a = tmp_path / "a.gpkg"
    write_buildings(BUILDINGS, "EPSG:28992", a)
    before = a.read_bytes()
    with raises_naming("a.gpkg", "is what is read"):
        convert_layer(a, a, overwrite=True)
    with raises_naming("b.shp", "shapefile"):
        convert_layer(a, tmp_path / "b.shp")
    with raises_naming("b.gpkg", "flat"):
        convert_layer(a, tmp_path / "b.gpkg", dtm=tmp_path / "dtm.tif")
    with raises_naming("none.gpkg"):
        convert_layer(tmp_path / "none.gpkg", tmp_path / "b.fgb")
    assert a.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.gpkg"]
