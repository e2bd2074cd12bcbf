"""Layers written piece by piece: the same as at once, in linear time and constant memory."""

import json
import time
import tracemalloc

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.io.layer_writer import BuildingWriter, write_buildings
from fusiondet.io.layers import FORMATS, read_buildings, read_metadata
from tests.support.messages import raises_naming

import geopandas
import numpy as np
import pyarrow.parquet as parquet
import pyogrio
import pytest
import shapely
from shapely.geometry import box

UTM = "EPSG:32631"
X, Y = 500_000.0, 5_800_000.0
SUFFIXES = sorted(FORMATS)


def houses(count, first=0):
    return [
        Building(box(X + 20 * i, Y, X + 20 * i + 10, Y + 10), 3.0 + i % 7 if i % 5 else None, score=0.5)
        for i in range(first, first + count)
    ]


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr("fusiondet.io.layer_writer.BATCH", 4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_buildings_give_the_same_bytes_at_any_time(tmp_path, suffix):
    files = [tmp_path / folder / f"a{suffix}" for folder in ("now", "later")]
    for path in files:
        write_buildings(houses(5), UTM, path, {"gsd_m": 0.5})
        time.sleep(0.02)  # GeoPackages tell milliseconds
    assert files[0].read_bytes() == files[1].read_bytes()
    assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") is None, "others' files have their dates"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pieces_give_the_layer_that_the_whole_gives(tmp_path, suffix, small_batches):
    piecewise, whole = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    twin = Building(box(X, Y + 50, X + 5, Y + 60).union(box(X + 7, Y + 50, X + 9, Y + 60)), 4.0)
    buildings = [*houses(10), twin]
    with BuildingWriter(piecewise, UTM, {"gsd_m": 0.5}) as writer:
        for start, stop in ((0, 1), (1, 1), (1, 7), (7, 11)):
            writer.write(buildings[start:stop])
        assert writer.count == 11 and not piecewise.exists()
        writer.metadata["windows"] = 3
    assert read_metadata(piecewise) == {"gsd_m": 0.5, "windows": 3}
    write_buildings(buildings, UTM, whole)
    (got, _), (expected, _) = read_buildings(piecewise), read_buildings(whole)
    assert sorted(b.id for b in got) == list(range(1, 12)), "numbered through"
    order = {b.id: b for b in got}
    for b in expected:
        assert order[b.id].polygon.equals(b.polygon) and order[b.id].height_m == b.height_m
    if suffix in (".gpkg", ".fgb"):
        assert pyogrio.read_info(piecewise)["geometry_type"] == "MultiPolygon"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([[1, 2], [3]], [1, 2, 3]),
        ([[1, 2], ["x"]], ["1", "2", "x"]),
        ([[None, None], [7]], [None, None, "7"]),
        ([["x"], [None]], ["x", None]),
        ([[1], [2**70]], ["1", str(2**70)]),
    ],
)
def test_the_type_of_identifiers_is_that_of_all(tmp_path, pieces, expected):
    with BuildingWriter(tmp_path / "a.gpkg", UTM) as writer:
        for piece in pieces:
            writer.write([Building(box(X, Y, X + 1, Y + 1), id=i) for i in piece])
    assert [b.id for b in read_buildings(tmp_path / "a.gpkg")[0]] == expected


def test_text_of_any_script_comes_back(tmp_path):
    ids = ["Straße 5", "東京", "a'b\"c", "</script>", "🏠", "new\nline"]
    for suffix in SUFFIXES:
        write_buildings(
            [Building(box(X + i, Y, X + i + 1, Y + 1), id=v) for i, v in enumerate(ids)],
            UTM,
            tmp_path / f"a{suffix}",
        )
        assert sorted(b.id for b in read_buildings(tmp_path / f"a{suffix}")[0]) == sorted(ids)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_error_inside_leaves_what_was_there(tmp_path, suffix, small_batches):
    path = tmp_path / f"a{suffix}"
    write_buildings(houses(2), UTM, path)
    with pytest.raises(KeyboardInterrupt), BuildingWriter(path, UTM, overwrite=True) as writer:
        writer.write(houses(9))
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="no outline"), BuildingWriter(path, UTM, overwrite=True) as writer:
        writer.write([*houses(9), Building(shapely.Polygon())])
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and len(read_buildings(path)[0]) == 2
    with raises_naming("overwrite"):
        BuildingWriter(path, UTM)


def test_geoparquet_tells_where_its_row_groups_are(tmp_path, small_batches):
    path = tmp_path / "a.parquet"
    write_buildings(houses(10), UTM, path)
    with parquet.ParquetFile(path) as file:
        assert file.num_row_groups == 3
        geo = json.loads(file.schema_arrow.metadata[b"geo"])
        statistics = file.metadata.row_group(1).to_dict()["columns"]
    column = geo["columns"]["geometry"]
    assert geo["version"] == "1.1.0" and geo["primary_column"] == "geometry"
    assert column["encoding"] == "WKB" and column["geometry_types"] == ["Polygon"]
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32631}
    assert column["bbox"] == [X, Y, X + 190, Y + 10]
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    xmin = next(c["statistics"] for c in statistics if c["path_in_schema"] == "bbox.xmin")
    assert (xmin["min"], xmin["max"]) == (X + 80, X + 140), "of the buildings 4 to 7"
    near = geopandas.read_parquet(path, bbox=(X + 85, Y, X + 105, Y + 5))
    assert list(near.id) == [5, 6] and "bbox" not in near.columns
    write_buildings([], UTM, path, overwrite=True)
    geo = json.loads(parquet.read_schema(path).metadata[b"geo"])
    assert "bbox" not in geo["columns"]["geometry"]


def filled(path, count):
    """Seconds of the processor for writing `count` buildings in pieces of 250."""
    pieces = [houses(250, start) for start in range(0, count, 250)]
    start = time.process_time()
    with BuildingWriter(path, UTM, overwrite=True) as writer:
        for piece in pieces:
            writer.write(piece)
    return time.process_time() - start


@pytest.mark.parametrize("suffix", [".gpkg", ".city.json"])
def test_ten_times_the_buildings_take_ten_times_the_time(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("fusiondet.io.layer_writer.BATCH", 250)
    path = tmp_path / f"a{suffix}"
    few, many = min(filled(path, 500) for _ in range(3)), filled(path, 5000)
    assert many < 16 * few, "linear: a quadratic step would make it 100"
    assert len(read_buildings(path)[0]) == 5000


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".city.json"])
def test_memory_does_not_grow_with_the_layer(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("fusiondet.io.layer_writer.BATCH", 50)
    peaks = []
    for count in (300, 900):
        tracemalloc.start()
        with BuildingWriter(tmp_path / f"a{suffix}", UTM, overwrite=True) as writer:
            for start in range(0, count, 50):
                writer.write(houses(50, start))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 150_000, "held at once, 600 buildings would be 400 kB and more"


def test_no_number_is_null_and_no_null_a_number(tmp_path):
    for suffix in (".gpkg", ".parquet", ".fgb", ".geojson"):
        write_buildings(houses(6), UTM, tmp_path / f"a{suffix}")
        path = tmp_path / f"a{suffix}"
        frame = geopandas.read_parquet(path) if suffix == ".parquet" else pyogrio.read_dataframe(path)
        assert frame.set_index("id").sort_index().height_m.isna().tolist() == [True] + [False] * 4 + [True]
        assert np.isnan(frame.set_index("id").sort_index().height_p16_m.astype(float)).all()
