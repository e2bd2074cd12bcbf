"""Layers read back equal in every format, appear whole or not at all, and hold the documented columns."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys

from fusiondet.buildings import Building, clean_polygon
from fusiondet.errors import InputError
from fusiondet.io.layer_writer import BuildingWriter, write_buildings
from fusiondet.io.layers import FORMATS, areas_m2, check_output, read_buildings, read_metadata
from tests.support.messages import raises_naming

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from pyproj import CRS, Proj
from shapely.geometry import box
from shapely.geometry.polygon import orient

SUFFIXES = sorted(FORMATS)
TABLES = [".fgb", ".geojson", ".gpkg", ".parquet"]
COLUMNS = ["id", "score", "height_m", "height_p16_m", "height_p84_m", "area_m2", "volume_m3"]
UTM = "EPSG:32631"
CUSTOM = CRS.from_proj4("+proj=eqearth +lon_0=5 +datum=WGS84").to_wkt()


def buildings(x=500_000.0, y=5_800_000.0, unit=1.0):
    """A house, a house of unknown height with a courtyard, and one of two parts; `unit` map units per metre."""

    def rectangle(x0, y0, x1, y1):
        return box(x + x0 * unit, y + y0 * unit, x + x1 * unit, y + y1 * unit)

    return [
        Building(rectangle(0, 0, 10, 20), 6.5, 5.0, 8.25, 0.875, id=11),
        Building(rectangle(30, 0, 50, 20).difference(rectangle(35, 5, 45, 15)), score=0.5, id=7),
        Building(rectangle(0, 40, 10, 50).union(rectangle(20, 40, 30, 50)), 3.0, score=0.25, id=-3),
    ]


def by_id(items):
    return {b.id: b for b in items}


def assert_equal(got, expected, tolerance):
    assert by_id(got).keys() == by_id(expected).keys() and len(got) == len(expected)
    for b in expected:
        other = by_id(got)[b.id]
        assert (other.score, other.height_m) == (b.score, b.height_m)
        assert (other.height_p16_m, other.height_p84_m) == (b.height_p16_m, b.height_p84_m)
        assert other.polygon.geom_type == b.polygon.geom_type
        assert other.polygon.normalize().equals_exact(b.polygon.normalize(), tolerance)


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet"])
@pytest.mark.parametrize(
    ("crs", "x", "y", "unit"), [(UTM, 5e5, 5.8e6, 1), ("EPSG:4326", 5.1, 52.2, 1e-5), (CUSTOM, 0, 5e6, 1)]
)
def test_what_is_written_is_read_back(tmp_path, suffix, crs, x, y, unit):
    path = tmp_path / f"city{suffix}"
    expected = buildings(x, y, unit)
    write_buildings(expected, crs, path)
    got, got_crs = read_buildings(path)
    assert_equal(got, expected, 0)
    assert CRS(got_crs) == CRS(crs)
    assert got_crs == crs or crs == CUSTOM


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326"])
def test_geojson_is_longitude_and_latitude(tmp_path, crs):
    path = tmp_path / "city.geojson"
    here = buildings() if crs == UTM else buildings(3.0, 52.35, 1e-5)
    write_buildings(here, crs, path)
    got, got_crs = read_buildings(path)
    assert got_crs == "EPSG:4326"
    places = geopandas.GeoSeries([b.polygon for b in here], crs=crs).to_crs(4326)
    assert_equal(got, [Building(p, **_facts(b)) for p, b in zip(places, here, strict=True)], 1e-7)
    document = json.loads(path.read_text())
    assert "crs" not in document
    lon, lat = document["features"][0]["geometry"]["coordinates"][0][0]
    assert (round(lon), round(lat)) == (3, 52)


def _facts(b):
    return {k: getattr(b, k) for k in ("height_m", "height_p16_m", "height_p84_m", "score", "id")}


@pytest.mark.parametrize("suffix", TABLES)
def test_columns_are_the_documented_ones_and_unknown_is_null(tmp_path, suffix):
    path = tmp_path / f"city{suffix}"
    write_buildings(buildings(), UTM, path)
    frame = geopandas.read_parquet(path) if suffix == ".parquet" else pyogrio.read_dataframe(path)
    assert [c for c in frame.columns if c != "geometry"] == COLUMNS
    frame = frame.set_index("id")
    # The plane of the UTM zone's middle is drawn 0.04 % too small in length.
    assert frame.area_m2[11] == pytest.approx(200 / 0.9996**2, rel=1e-5)
    assert frame.area_m2[7] == pytest.approx(300 / 0.9996**2, rel=1e-5)
    assert frame.volume_m3[11] == pytest.approx(frame.area_m2[11] * 6.5)
    assert frame.loc[7, ["height_m", "height_p16_m", "height_p84_m", "volume_m3"]].isna().all()
    assert frame.score.notna().all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_identifiers_are_not_cut_at_a_nul_and_what_no_file_keeps_is_told(tmp_path, suffix):
    ids = ["a\0b", "a\0c", "\ud800d", "\u0001", "line\nbreak", "Straße"]
    path = tmp_path / f"city{suffix}"
    city = [Building(box(20 * i, 0, 20 * i + 10, 10), 5.0, id=name) for i, name in enumerate(ids)]
    notes = write_buildings(city, UTM, path)
    assert [n for n in notes if "3 identifiers hold characters that no file keeps" in n] == notes != []
    assert {b.id for b in read_buildings(path)[0]} == {"a?b", "a?c", "?d", *ids[3:]}
    assert write_buildings(city[3:], UTM, path, overwrite=True) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_buildings_are_an_empty_layer(tmp_path, suffix):
    path = tmp_path / f"city{suffix}"
    write_buildings([], UTM, path)
    got, crs = read_buildings(path)
    assert got == [] and crs == ("EPSG:4326" if suffix == ".geojson" else UTM)
    if suffix in (".gpkg", ".fgb"):
        assert list(pyogrio.read_info(path)["fields"]) == COLUMNS
    if suffix == ".parquet":
        assert [c for c in geopandas.read_parquet(path).columns if c != "geometry"] == COLUMNS


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326", "EPSG:3857", "EPSG:2229", "EPSG:28992"])
def test_areas_are_square_metres_in_every_crs(tmp_path, crs):
    # The same 100 m square drawn in metres on the ground near the middle of a local projection.
    centre = (-118.0, 34.0) if crs == "EPSG:2229" else (5.4, 52.15)
    local = CRS.from_proj4(f"+proj=laea +lon_0={centre[0]} +lat_0={centre[1]} +datum=WGS84")
    place = geopandas.GeoSeries([box(-50, -50, 50, 50).segmentize(5)], crs=local).to_crs(crs)
    write_buildings([Building(place[0], 10.0)], crs, tmp_path / "a.gpkg")
    frame = pyogrio.read_dataframe(tmp_path / "a.gpkg")
    assert frame.area_m2[0] == pytest.approx(10_000, rel=1e-4)
    assert frame.volume_m3[0] == pytest.approx(100_000, rel=1e-4)


@pytest.mark.parametrize("place", [(5, 52), (179.9, -17), (-180, 70), (-70, 0), (20, 89)])
def test_areas_together_are_those_along_geodesics_one_by_one(place):
    degrees, rng = CRS("EPSG:4326"), np.random.default_rng(0)
    geod = degrees.get_geod()
    outlines = []
    # Sheds to airports, up to 300 km apart, one of them with a courtyard.
    for away_m, size_m in zip(rng.uniform(0, 150_000, 200), np.geomspace(10, 2000, 200)):
        x, y, _ = geod.fwd(*place, rng.uniform(0, 360), away_m)
        turns = np.sort(rng.uniform(0, 360, 7))
        ring = np.column_stack(
            geod.fwd(*np.full((7, 2), [x, y]).T, turns, size_m * rng.uniform(0.3, 1, 7))[:2]
        )
        outlines.append(clean_polygon(shapely.Polygon(ring)))
    outlines.append(outlines[-1].difference(shapely.affinity.scale(outlines[-1], 0.2, 0.2)))
    alone = [
        sum(abs(geod.geometry_area_perimeter(orient(q))[0]) for q in shapely.get_parts(p)) for p in outlines
    ]
    # The geodesic formula rounds.
    np.testing.assert_allclose(areas_m2(np.array(outlines), degrees), alone, rtol=1e-6, atol=1e-4)


def test_areas_of_small_buildings_are_exact_where_the_geodesic_formula_rounds():
    corner = np.random.default_rng(0).uniform([300_000, 5_600_000], [330_000, 5_630_000], (300, 2))
    outlines = shapely.box(*corner.T, *(corner + 2).T)
    plane = Proj(UTM)
    scale = plane.get_factors(*plane(*(corner + 1).T, inverse=True)).areal_scale
    np.testing.assert_allclose(areas_m2(outlines, CRS(UTM)), 4 / scale, rtol=1e-8)


def test_outlines_beyond_what_the_crs_maps_and_none_at_all_have_no_area():
    far = shapely.box(1e9, 1e9, 2e9, 2e9)
    near = shapely.box(500_000, 5_800_000, 500_010, 5_800_010)
    assert np.isfinite(areas_m2(np.array([near, far]), CRS(UTM))).tolist() == [True, False]
    assert areas_m2(np.array([], dtype=object), CRS(UTM)).tolist() == []


def test_a_local_grid_has_plane_areas(tmp_path):
    grid = 'LOCAL_CS["site",UNIT["foot",0.3048],AXIS["x",EAST],AXIS["y",NORTH]]'
    write_buildings([Building(box(0, 0, 10, 10))], grid, tmp_path / "a.parquet")
    assert geopandas.read_parquet(tmp_path / "a.parquet").area_m2[0] == pytest.approx(100 * 0.3048**2)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([None, None], [1, 2]),
        (["NL.1", "NL.2"], ["NL.1", "NL.2"]),
        ([5, "a"], ["5", "a"]),
        ([None, "a"], [None, "a"]),
    ],
)
def test_identifiers_are_kept_or_numbered(tmp_path, ids, expected):
    write_buildings(
        [Building(box(i, 0, i + 1, 1), id=v) for i, v in enumerate(ids)], UTM, tmp_path / "a.gpkg"
    )
    assert [b.id for b in read_buildings(tmp_path / "a.gpkg")[0]] == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_travels_with_the_layer(tmp_path, suffix):
    path = tmp_path / f"city{suffix}"
    metadata = {"model": "Gebäude </script>.pth", "gsd_m": 0.5, "acquired": {"sar": None}}
    write_buildings(buildings(), UTM, path, metadata)
    assert read_metadata(path) == metadata
    if suffix == ".parquet":
        import pyarrow.parquet as parquet

        assert json.loads(parquet.read_schema(path).metadata[b"description"]) == metadata
    elif suffix in TABLES:
        assert json.loads(pyogrio.read_info(path)["layer_metadata"]["DESCRIPTION"]) == metadata
    assert len(read_buildings(path)[0]) == 3
    write_buildings([], UTM, path, overwrite=True)
    assert read_metadata(path) == {}


def test_metadata_of_others_are_none_of_ours(tmp_path):
    frame = geopandas.GeoDataFrame({"h": [1.0]}, geometry=[box(0, 0, 1, 1)], crs=UTM)
    for description in ("drawn by hand", "[1, 2]"):
        frame.to_file(tmp_path / "a.gpkg", layer_options={"DESCRIPTION": description}, engine="pyogrio")
        assert read_metadata(tmp_path / "a.gpkg") == {}
    frame.to_parquet(tmp_path / "a.parquet")
    assert read_metadata(tmp_path / "a.parquet") == {}
    (tmp_path / "a.gpkg").write_bytes(b"SQLite format 3\0 and then nothing")
    for read in (read_metadata, read_buildings):
        with raises_naming("a.gpkg", "damaged"):
            read(tmp_path / "a.gpkg")
        with raises_naming("b.gpkg"):
            read(tmp_path / "b.gpkg")
    (tmp_path / "a.city.jsonl").write_text('{"type": ')
    with raises_naming("line 1", "JSON"):
        read_metadata(tmp_path / "a.city.jsonl")


@pytest.mark.parametrize("bad", [{"a": float("nan")}, {"a": object()}])
def test_metadata_that_cannot_be_stored_are_found_before_the_work(tmp_path, bad):
    with pytest.raises((ValueError, TypeError)):
        BuildingWriter(tmp_path / "a.gpkg", UTM, bad)


@pytest.mark.parametrize("crs", [None, ""])
def test_a_missing_crs_is_refused_with_the_way_out(tmp_path, crs):
    with raises_naming("CRS", "gdal_edit"):
        write_buildings(buildings(), crs, tmp_path / "a.gpkg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet"])
def test_coordinates_in_a_plane_of_their_own_have_no_crs(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_buildings([Building(box(0, 0, 20, 10), 6.0)], None, path, unit_m=0.5)
    (building,), crs = read_buildings(path)
    assert crs is None and building.polygon.bounds == (0, 0, 20, 10)
    frame = geopandas.read_parquet(path) if suffix == ".parquet" else geopandas.read_file(path)
    assert frame.crs is None and frame.area_m2.tolist() == [50] and frame.volume_m3.tolist() == [300]


@pytest.mark.parametrize("suffix", [".geojson", ".city.json"])
def test_formats_whose_coordinates_are_always_on_earth_refuse_others(tmp_path, suffix):
    with raises_naming("no CRS", ".gpkg", "rio edit-info"):
        write_buildings(buildings(), None, tmp_path / f"a{suffix}", unit_m=1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "crs", "message"),
    [
        ("a.shp", UTM, "shapefile.*10 characters.*gpkg"),
        ("a.kml", UTM, ".gpkg, .geojson, .fgb, .parquet, .city.json, .city.jsonl"),
        ("a.json", UTM, "suffix '.json' is not known.*.city.json"),
        ("a", UTM, ".gpkg, .geojson, .fgb, .parquet, .city.json, .city.jsonl"),
        ("a.gpkg", "EPSG:99999999", "CRS 'EPSG:99999999' is not understood"),
        ("a.gpkg", "somewhere", "CRS 'somewhere' is not understood"),
    ],
)
def test_bad_targets_are_refused(tmp_path, name, crs, message):
    with pytest.raises(InputError, match=message):
        write_buildings(buildings(), crs, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("polygon", [None, shapely.Polygon(), box(0, 0, np.inf, 1), shapely.Point(1, 1)])
def test_an_outline_without_area_is_refused_by_name(tmp_path, polygon):
    with raises_naming("'x7'"):
        write_buildings([Building(polygon, id="x7")], UTM, tmp_path / "a.gpkg")


def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path):
    path = tmp_path / "a.gpkg"
    write_buildings(buildings(), UTM, path)
    with raises_naming("overwrite"):
        write_buildings([], UTM, path)
    assert len(read_buildings(path)[0]) == 3
    write_buildings([], UTM, path, overwrite=True)
    assert read_buildings(path)[0] == []


def test_a_bad_target_is_found_before_the_work(tmp_path):
    with pytest.raises(InputError, match="not known"):
        check_output(tmp_path / "a.kml")
    (tmp_path / "a.gpkg").touch()
    with raises_naming("overwrite"):
        check_output(tmp_path / "a.gpkg")
    assert check_output(tmp_path / "a.gpkg", overwrite=True) is FORMATS[".gpkg"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.gpkg"
    write_buildings(buildings(), UTM, path)

    def half(_, target, **__):
        with open(target, "wb") as f:
            f.write(b"SQLite format 3\0 and then")
        raise pyogrio.errors.DataSourceError("database or disk is full")

    monkeypatch.setattr(pyogrio.raw, "write_arrow", half)
    with pytest.raises(OSError, match="a.gpkg") as caught:
        write_buildings([], UTM, path, overwrite=True)
    assert "disk is full" in caught.value.strerror
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a.gpkg"] and len(read_buildings(path)[0]) == 3


def circles(n, x=1000.0):
    return [Building(shapely.Point(x + 20 * i, 5e6).buffer(8), 5.0, id=i) for i in range(n)]


@contextlib.contextmanager
def largest_file(size_bytes):
    """A limit on file size fails the same system calls as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("late", [False, True])
def test_a_full_disk_leaves_no_file(tmp_path, suffix, late):
    """While buildings are taken, and while the final file is made of them."""
    with pytest.raises(OSError, match="Is the disk full") as caught, contextlib.ExitStack() as limits:
        with BuildingWriter(tmp_path / f"a{suffix}", UTM) as writer:
            writer.write(circles(1000))
            if late:
                writer._flush()
            limits.enter_context(largest_file(150_000))
            writer.write([] if late else circles(1000))
    assert caught.value.filename == str(tmp_path / f"a{suffix}") and list(tmp_path.iterdir()) == []


CHILD = """
import os, signal, sys
sys.path.insert(0, {root!r})
import pyogrio
from shapely.geometry import box
from fusiondet.buildings import Building, clean_polygon
from fusiondet.io.layer_writer import write_buildings
real = pyogrio.raw.write_arrow
def write(rows, path, **arguments):
    real(rows, path, **arguments)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)
pyogrio.raw.write_arrow = write
write_buildings([Building(box(0, 0, 1, 1))], "EPSG:32631", {path!r})
"""
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def test_a_killed_process_leaves_no_file_under_the_name(tmp_path):
    code = CHILD.format(root=ROOT, path=str(tmp_path / "a.gpkg"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "a.gpkg").exists()
    assert all(p.name.startswith(".a.gpkg.") for p in tmp_path.iterdir())


def test_files_that_are_not_layers_are_refused(tmp_path):
    layer = '<OGRVRTLayer name="a"><SrcDataSource>/etc/passwd</SrcDataSource></OGRVRTLayer>'
    (tmp_path / "a.gpkg").write_text(f"<OGRVRTDataSource>{layer}</OGRVRTDataSource>")
    (tmp_path / "b.fgb").write_bytes(b"fgb\x03fgb\0 and then nothing")
    (tmp_path / "c.geojson").write_text("{")
    for name, message in (
        ("a.gpkg", "content is not"),
        ("b.fgb", "damaged"),
        ("c.geojson", "damaged|without geometry"),
        ("d.gpkg", "no such file"),
        ("e.shp", "shapefile"),
    ):
        with pytest.raises(InputError, match=message):
            read_buildings(tmp_path / name)
