"""Vector files by their first bytes, layers by name, CityJSON by its claim, and rows with the columns wanted."""

import json

from fusiondet.io.vector_records import Records, read_records
from tests.support.messages import raises_naming

import geopandas
import pytest
from shapely.geometry import box


def everything(_):
    return True


def no_fields(_):
    return None, None


def read(path, layer=None, wanted=everything, extent=None) -> Records:
    return read_records(path, layer, wanted, no_fields, extent)


@pytest.fixture
def frame():
    """Two squares with a name and a height."""
    squares = [box(0, 0, 10, 10), box(20, 0, 30, 10)]
    return geopandas.GeoDataFrame(
        {"name": ["a", "b"], "height": [3.0, 4.5]}, geometry=squares, crs="EPSG:28992"
    )


WRITERS = {
    ".gpkg": lambda frame, path: frame.to_file(path, driver="GPKG"),
    ".fgb": lambda frame, path: frame.to_file(path, driver="FlatGeobuf"),
    ".shp": lambda frame, path: frame.to_file(path),
    ".parquet": lambda frame, path: frame.to_parquet(path),
    ".data": lambda frame, path: frame.to_file(path, driver="GPKG"),  # the name decides nothing
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_come_back_from_every_format(frame, tmp_path, suffix):
    path = tmp_path / f"squares{suffix}"
    WRITERS[suffix](frame, path)
    found = read(path)
    assert sorted((row["name"], row["height"], shape.area) for shape, row in found.rows) == [
        ("a", 3.0, 100.0),
        ("b", 4.5, 100.0),
    ]
    assert found.crs == "EPSG:28992" and {*found.columns} == {"name", "height"} and found.is_table


def test_only_wanted_columns_are_read_and_all_are_named(frame, tmp_path):
    frame.to_file(tmp_path / "a.gpkg")
    found = read(tmp_path / "a.gpkg", wanted=lambda name: name == "height")
    assert [row for _, row in found.rows] == [{"height": 3.0}, {"height": 4.5}]
    assert {*found.columns} == {"name", "height"}


def test_an_extent_leaves_out_what_is_beyond(frame, tmp_path):
    frame.to_file(tmp_path / "a.gpkg")
    found = read(tmp_path / "a.gpkg", extent=((-1, -1, 11, 11), "EPSG:28992"))
    assert [row["name"] for _, row in found.rows] == ["a"]


def test_an_identifier_is_found_by_its_name(frame, tmp_path):
    frame.assign(osm_id=[7, 8]).to_file(tmp_path / "a.gpkg")
    assert read(tmp_path / "a.gpkg").id_field == "osm_id"
    frame.to_file(tmp_path / "b.gpkg")
    assert read(tmp_path / "b.gpkg").id_field is None


def test_geojson_that_cannot_be_degrees_has_no_crs(frame, tmp_path):
    features = json.loads(frame.set_crs(None, allow_override=True).translate(150_000, 450_000).to_json())
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    assert read(tmp_path / "a.geojson").crs is None


def test_several_layers_need_a_name(frame, tmp_path):
    path = tmp_path / "a.gpkg"
    for layer in ("first", "second"):
        frame.to_file(path, layer=layer)
    with raises_naming("a.gpkg", "first, second", "layer"):
        read(path)
    with raises_naming("a.gpkg", "'secnd'", "second"):
        read(path, "secnd")
    assert len(read(path, "second").rows) == 2


def test_cityjson_is_told_by_what_it_claims(tmp_path):
    city = {
        "type": "CityJSON",
        "version": "1.1",
        "metadata": {"referenceSystem": "https://www.opengis.net/def/crs/EPSG/0/7415"},
        "CityObjects": {
            "one": {
                "type": "Building",
                "attributes": {"year": 1950},
                "geometry": [{"type": "MultiSurface", "lod": "0", "boundaries": [[[0, 1, 2, 3]]]}],
            }
        },
        "vertices": [[0, 0, 0], [10, 0, 0], [10, 10, 0], [0, 10, 0]],
    }
    (tmp_path / "a.json").write_text(json.dumps(city))
    found = read(tmp_path / "a.json")
    ((shape, row),) = found.rows
    assert shape.area == 100 and row == {"year": 1950, "id": "one"} and not found.is_table


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", ["empty"]),
        (b"PK\x03\x04 a zip", ["GeoPackage", "CityJSON"]),
        (b"SQLite format 3\0 and then nothing", ["GPKG"]),
        (b"PAR1 and then nothing", ["Parquet"]),
        (b"{", ["GeoJSON"]),
    ],
)
def test_what_is_no_vector_file_is_refused_by_name(tmp_path, content, facts):
    (tmp_path / "a.file").write_bytes(content)
    with raises_naming("a.file", *facts):
        read(tmp_path / "a.file")
