"""The QGIS style: XML whose rules put every height, and no height, into one class."""

import re
import warnings
from xml.etree import ElementTree

from fusiondet.buildings import Building
from fusiondet.io.layer_writer import write_buildings
from fusiondet.io.qgis_style import BREAKS_M, check_style, height_style, write_style
from tests.support.messages import raises_naming

import pyogrio
import pytest
from shapely.geometry import box

HEIGHTS_M = [None, 0.5, 3.0, 3.001, 6, 10, 13, 17, 25, 40, 80, 100, 101, 999]


def rules(text):
    return ElementTree.fromstring(text).findall("renderer-v2/rules/rule")


def test_every_height_is_in_one_class_and_the_legend_says_metres(tmp_path):
    # SQLite understands the filters as QGIS does.
    path = tmp_path / "a.gpkg"
    write_buildings([Building(box(i, 0, i + 1, 1), h) for i, h in enumerate(HEIGHTS_M)], "EPSG:32631", path)
    found = {}
    for rule in rules(height_style()):
        frame = pyogrio.read_dataframe(path, where=rule.get("filter"))
        found |= {i: found.get(i, []) + [rule.get("label")] for i in frame.id}
    labels = [found[i + 1] for i in range(len(HEIGHTS_M))]
    assert all(len(label) == 1 for label in labels)
    assert [label for (label,) in labels][:5] == [
        "height unknown",
        "up to 3 m",
        "up to 3 m",
        "3 – 6 m",
        "3 – 6 m",
    ]
    assert labels[-3:] == [["50 – 100 m"], ["above 100 m"], ["above 100 m"]]


def test_each_class_has_its_colour(tmp_path):
    document = ElementTree.fromstring(height_style())
    assert document.tag == "qgis" and document.find("layerGeometryType").text == "2"
    symbols = {s.get("name"): s for s in document.findall("renderer-v2/symbols/symbol")}
    assert [r.get("symbol") for r in rules(height_style())] == list(symbols)
    assert len(symbols) == len(BREAKS_M) + 2
    colours = [s.find("layer/Option/Option[@name='color']").get("value") for s in symbols.values()]
    assert len(set(colours)) == len(colours) and all(re.fullmatch(r"(\d+,){3}217", c) for c in colours)
    for symbol in symbols.values():
        assert symbol.find("layer/prop[@k='color']").get("v") in colours, "for older releases too"


@pytest.mark.parametrize("column", ['a"b', "<h> & 'm'", "Höhe"])
def test_names_of_columns_are_escaped(column):
    text = height_style(column)
    quoted = '"' + column.replace('"', '""') + '"'
    assert rules(text)[0].get("filter") == f"{quoted} <= 3"


def test_it_lies_beside_the_layer_and_the_users_own_stays(tmp_path):
    path = tmp_path / "city.qml"
    (note,) = write_style(tmp_path / "city.gpkg")
    assert note.startswith(f"{path}: written") and path.read_text("utf-8") == height_style()
    assert path.read_text("utf-8").startswith("<!DOCTYPE qgis")
    path.write_text("mine")
    (note,) = write_style(tmp_path / "city.gpkg")
    assert note.startswith(f"{path}: is there already") and path.read_text() == "mine"


@pytest.mark.parametrize("name", ["b.city.json", "b.city.jsonl", "b.CITY.json"])
def test_a_city_model_has_no_style(tmp_path, name):
    for refuse in (check_style, write_style):
        with raises_naming("style", "city model"):
            refuse(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_layer_stays_the_only_one_of_its_geopackage(tmp_path):
    path = tmp_path / "a.gpkg"
    write_buildings([Building(box(0, 0, 1, 1), 5.0)], "EPSG:32631", path)
    write_style(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that there are several
        assert len(pyogrio.read_dataframe(path)) == len(pyogrio.list_layers(path)) == 1
