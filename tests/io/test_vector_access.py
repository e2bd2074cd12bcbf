"""Vector files are opened without doing anything else: no link followed, no other file, no query without an end."""

import http.server
import json
import shutil
import sqlite3
import struct
import threading

from fusiondet.io import vector_access
from fusiondet.io.layers import format_of
from fusiondet.io.vector_access import (
    gdal_path,
    layer_info,
    list_layers,
    read_frame,
    seen_from_above,
    without_columns,
)
from fusiondet.io.vectors import read_layer
from tests.support.messages import raises_naming

import geopandas
import pandas
import pytest
import shapely


def house(x=5.0):
    return shapely.box(x, 52.0, x + 0.001, 52.001)


@pytest.fixture
def server():
    """(address, paths that were asked for) of a server on this machine."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"EPSG:28992")

        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}", asked
    served.shutdown()
    served.server_close()


LINKS = (
    '"crs": {"type": "link", "properties": {"href": "%s/a", "type": "proj4"}}',
    '"crs":{"properties":{"href":"%s/a"},"type":"LINK"}',
    '"CRS" : {"type": "url", "properties": {"url": "%s/a"}}',
    '"\\u0063rs": {"type": "li\\u006ek", "properties": {"href": "%s/a"}}',
    '"crs" /* a comment */ : {"type": "link", "properties": {"href": "%s/a"}}',
)


@pytest.mark.parametrize("crs", LINKS)
@pytest.mark.parametrize("at_end", [False, True])
def test_a_link_to_a_reference_system_is_never_followed(crs, at_end, server, tmp_path):
    address, asked = server
    feature = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(house())}
    members = [crs % address, f'"features": [{json.dumps(feature)}]']
    path = tmp_path / "town.geojson"
    path.write_text('{"type": "FeatureCollection", ' + ", ".join(members[::-1] if at_end else members) + "}")
    for read in (read_layer, list_layers, layer_info, read_frame):
        with raises_naming("town.geojson", "crs"):
            read(path)
    assert asked == []


def test_a_named_reference_system_and_a_column_called_crs_are_fine(tmp_path):
    path = tmp_path / "town.geojson"
    feature = {
        "type": "Feature",
        "properties": {"crs": "link"},
        "geometry": shapely.geometry.mapping(house()),
    }
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::28992"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    assert read_layer(path).crs == "EPSG:28992"


@pytest.mark.parametrize("name", ["a!b.gpkg", "a;b.gpkg", "town.zip"])
def test_a_name_that_means_another_file_to_the_library_is_refused(name, tmp_path):
    other = tmp_path / "b.gpkg"
    geopandas.GeoDataFrame(geometry=[house()], crs=4326).to_file(other, engine="pyogrio")
    before = other.read_bytes()
    shutil.copy(other, tmp_path / name)
    with raises_naming(name):
        read_layer(tmp_path / name)
    if name.endswith(".gpkg"):
        with raises_naming(name):
            format_of(tmp_path / name)
    assert other.read_bytes() == before


@pytest.mark.parametrize(
    "name", ["a?b.gpkg", "a#b.gpkg", "a%20b.gpkg", "http:b.gpkg", "zip:b.gpkg", "a b.gpkg", "ä.gpkg"]
)
def test_other_names_are_just_names(name, tmp_path, monkeypatch):
    frame = geopandas.GeoDataFrame(geometry=[house()], crs=4326)
    frame.to_file(tmp_path / "town.gpkg", engine="pyogrio")
    shutil.move(tmp_path / "town.gpkg", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read_layer(name).buildings) == 1
    assert gdal_path(name) == str(tmp_path / name)


def gpkg_with_view(path, query):
    frame = geopandas.GeoDataFrame(geometry=[house(), house(6.0)], crs=4326)
    frame.to_file(path, layer="towns", engine="pyogrio")
    database = sqlite3.connect(path)
    database.execute(f"CREATE VIEW endless AS {query}")
    columns = "table_name, data_type, identifier, srs_id"
    database.execute(f"INSERT INTO gpkg_contents ({columns}) VALUES ('endless', 'features', 'endless', 4326)")
    database.execute("INSERT INTO gpkg_geometry_columns VALUES ('endless', 'geom', 'POLYGON', 4326, 0, 0)")
    database.commit()
    database.close()


def test_a_stored_query_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_access, "VIEW_SECONDS", 0.3)
    monkeypatch.setattr(vector_access, "VIEW_ROWS", 10**12)
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS fid, NULL AS geom FROM n"
    )
    gpkg_with_view(tmp_path / "town.gpkg", endless)
    for layer in ("endless", "towns", None):  # GDAL looks at all of them
        with raises_naming("town.gpkg", "endless", "view"):
            read_layer(tmp_path / "town.gpkg", layer=layer)


def test_a_stored_query_that_ends_is_a_layer(tmp_path):
    gpkg_with_view(tmp_path / "town.gpkg", "SELECT fid, geom FROM towns WHERE fid = 1")
    assert len(read_layer(tmp_path / "town.gpkg", layer="endless").buildings) == 1


def test_too_many_rows_of_a_stored_query_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_access, "VIEW_ROWS", 1)
    gpkg_with_view(tmp_path / "town.gpkg", "SELECT fid, geom FROM towns")
    with raises_naming("town.gpkg", "endless", "1 rows"):
        read_layer(tmp_path / "town.gpkg", layer="endless")


class TestShapefile:
    @pytest.fixture
    def shp(self, tmp_path):
        path = tmp_path / "town.shp"
        frame = geopandas.GeoDataFrame({"height": [7.0]}, geometry=[house()], crs=4326)
        frame.to_file(path, engine="pyogrio")
        return path

    def test_without_its_columns_heights_cannot_be_asked_for(self, shp):
        shp.with_suffix(".dbf").unlink()
        assert without_columns(shp)
        with raises_naming("town.shp", "town.dbf", "height"):
            read_layer(shp, "height")
        layer = read_layer(shp)
        assert len(layer.buildings) == 1 and any("town.dbf" in note for note in layer.notes)

    def test_without_its_index(self, shp):
        shp.with_suffix(".shx").unlink()
        with raises_naming("town.shp", "town.shx"):
            read_layer(shp)

    def test_whole(self, shp):
        assert read_layer(shp, "height").buildings[0].height_m == 7 and not without_columns(shp)


def test_parquet_of_plain_wkb_is_read_without_a_crs(tmp_path):
    path = tmp_path / "export.parquet"
    pandas.DataFrame({"height": [3.0, 4.0], "geom": shapely.to_wkb([house(), house(6.0)])}).to_parquet(path)
    layer = read_layer(path, "height")
    assert [b.height_m for b in layer.buildings] == [3, 4] and layer.crs is None
    assert read_layer(path, crs="EPSG:4326").crs == "EPSG:4326"
    pandas.DataFrame({"height": [3.0]}).to_parquet(path)
    with raises_naming("export.parquet", "height", "geometry"):
        read_layer(path)


def wkb(kind, *parts):
    return struct.pack("<BII", 1, kind, len(parts)) + b"".join(parts)


def face(kind, *corners):
    corners = [*corners, corners[0]]
    ring = struct.pack("<I", len(corners)) + b"".join(struct.pack("<3d", *c) for c in corners)
    return struct.pack("<BII", 1, kind, 1) + ring


@pytest.mark.parametrize(
    ("surface", "triangle"), [(1015, 1003), (1016, 1017), (0x8000000F, 0x80000003), (0x80000010, 0x80000011)]
)
def test_a_surface_is_what_is_seen_of_it_from_above(surface, triangle):
    # A roof of two triangles over 4 x 2, and a wall, which is a line from above.
    roof = face(triangle, (0, 0, 5), (4, 0, 5), (4, 2, 6)), face(triangle, (0, 0, 5), (4, 2, 6), (0, 2, 6))
    wall = face(triangle, (0, 0, 0), (4, 0, 0), (4, 0, 5))
    seen = seen_from_above(wkb(surface, *roof, wall))
    assert seen.area == pytest.approx(8) and seen.bounds == (0, 0, 4, 2)
    assert seen_from_above(wkb(1007, wkb(surface, *roof, wall))).area == pytest.approx(8)


def test_what_has_no_face_is_none():
    for geometry in (shapely.Point(1, 2), shapely.LineString([(0, 0), (1, 1)]), shapely.Polygon()):
        assert seen_from_above(shapely.to_wkb(geometry)) is None
    whole = shapely.to_wkb(shapely.box(0, 0, 1, 1))
    assert seen_from_above(whole).area == 1
    for cut in range(1, len(whole)):
        assert seen_from_above(whole[:cut]) is None
