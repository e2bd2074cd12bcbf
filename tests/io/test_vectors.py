"""Layers in: every format, every kind of bad height and geometry."""

import json
import math
from collections import Counter

from fusiondet.errors import InputError
from fusiondet.io.vectors import read_layer, settle_parts, transform_layer
from tests.support.messages import missing_facts, raises_naming

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box

SQUARES = [box(10 * i, 0, 10 * i + 5, 5) for i in range(3)]


def frame(geometry=SQUARES, crs="EPSG:28992", **columns):
    return geopandas.GeoDataFrame(columns, geometry=list(geometry), crs=crs)


def save(gdf, path):
    gdf.to_parquet(path) if path.suffix == ".parquet" else gdf.to_file(path)
    return path


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb", ".parquet"])
def test_every_format(tmp_path, suffix):
    crs = "EPSG:4326" if suffix == ".geojson" else "EPSG:28992"
    path = save(
        frame(crs=crs, id=["a", "b", "c"], top=[7.0, 8.5, np.nan], ground=[1.0, 9.0, 1.0]),
        tmp_path / f"a{suffix}",
    )
    layer = read_layer(path, "top", "ground", height_stat="max")
    order = np.argsort([b.polygon.bounds[0] for b in layer.buildings])  # FlatGeobuf sorts by place
    buildings = [layer.buildings[i] for i in order]
    assert layer.crs == crs and [b.id for b in buildings] == ["a", "b", "c"]
    assert [b.height_m for b in buildings] == [6.0, None, None]
    assert layer.reasons == Counter({"negative": 1, "missing": 1})
    assert all(
        b.polygon.equals_exact(s, 1e-9) or b.polygon.equals(s)
        for b, s in zip(buildings, SQUARES, strict=True)
    )
    first = buildings[0]
    assert (first.height_source, first.height_stat, first.height_datum) == ("top - ground", "max", "ground")


def test_number_without_ground_is_unverified_unless_told(tmp_path):
    path = save(frame(h=[3.0, 4.0, 5.0]), tmp_path / "a.gpkg")
    assert {b.height_datum for b in read_layer(path, "h").buildings} == {"unverified"}
    assert {b.height_datum for b in read_layer(path, "h", height_datum="ground").buildings} == {"ground"}
    assert {b.height_m for b in read_layer(path).buildings} == {None}
    assert read_layer(path).reasons == Counter()


def test_bad_heights_are_unknown_with_a_counted_reason(tmp_path):
    values = ["7.5", "7.5 m", "12 ft", "-3", "0", "9999", "", None, "nan", "inf"]
    path = save(frame([box(9 * i, 0, 9 * i + 5, 5) for i in range(10)], h=values), tmp_path / "a.gpkg")
    layer = read_layer(path, "h")
    assert [b.height_m for b in layer.buildings] == [7.5] + [None] * 9
    expected = {"not a number": 2, "negative": 1, "zero": 1, "absurd": 2, "missing": 3}
    assert layer.reasons == Counter(expected)


def test_elevations_may_be_negative_and_sentinels_are_not_heights(tmp_path):
    path = save(frame(top=[-1.0, -999.0, 5.0], ground=[-4.0, 1.0, -9999.0]), tmp_path / "a.gpkg")
    layer = read_layer(path, "top", "ground")
    assert [b.height_m for b in layer.buildings] == [3.0, None, None]
    assert layer.reasons == Counter({"negative": 1, "absurd": 1})


def test_missing_ground_and_integer_columns(tmp_path):
    path = save(frame(top=[9, 8, 7], ground=[1.0, None, 2.0]), tmp_path / "a.gpkg")
    layer = read_layer(path, "top", "ground")
    assert [b.height_m for b in layer.buildings] == [8.0, None, 5.0] and layer.reasons == Counter(
        {"no ground": 1}
    )


def test_bad_geometry_is_repaired_or_left_out_and_counted(tmp_path):
    bowtie = Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    solid = Polygon([(0, 0, 9), (1, 0, 9), (1, 1, 9)])
    parts = MultiPolygon([box(0, 0, 1, 1), box(3, 0, 4, 1)])
    shapes = [bowtie, solid, parts, None, Polygon(), Point(0, 0), LineString([(0, 0), (1, 1)])]
    layer = read_layer(save(frame(shapes, n=range(7)), tmp_path / "a.parquet"))
    assert [b.polygon.area for b in layer.buildings] == [2.0, 0.5, 2.0]
    assert all(b.polygon.is_valid and not b.polygon.has_z for b in layer.buildings)
    assert layer.buildings[2].polygon.geom_type == "MultiPolygon"  # one feature is one building
    assert layer.geometry == Counter({"repaired": 1, "no geometry": 2, "no area": 2})


def test_repeated_identifiers_are_not_merged(tmp_path):
    layer = read_layer(save(frame(id=["x", "x", "y"]), tmp_path / "a.gpkg"))
    assert [b.id for b in layer.buildings] == ["x", "x", "y"]


def test_empty_layer_misses_no_column(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text('{"type": "FeatureCollection", "features": []}')
    assert read_layer(path, "height").buildings == []


def test_3dbag_columns_are_found_and_the_ground_subtracted(tmp_path):
    columns = {"b3_h_70p": [7.0, 8.0, None], "b3_h_max": [9.0, 9.0, 9.0], "b3_h_maaiveld": [-1.0, 2.0, 2.0]}
    path = save(frame(**columns), tmp_path / "pand.gpkg")
    layer = read_layer(path)
    assert [b.height_m for b in layer.buildings] == [8.0, 6.0, None]
    assert (
        layer.buildings[0].height_source == "b3_h_70p - b3_h_maaiveld"
        and layer.buildings[0].height_stat == "p70"
    )
    assert read_layer(path, statistic="max").buildings[0].height_m == 10.0
    assert read_layer(path, "b3_h_max").buildings[1].height_m == 7.0


def test_unknown_column_and_layer_list_the_right_ones(tmp_path):
    path = save(frame(height=[1.0, 2.0, 3.0]), tmp_path / "a.gpkg")
    with raises_naming("a.gpkg", "'hight'", "'height'"):
        read_layer(path, "hight")
    with raises_naming("'z'", "height"):
        read_layer(path, "height", "z")
    with pytest.raises(InputError, match="without a height field"):
        read_layer(path, ground_field="height")
    with raises_naming("a.gpkg", "'b'", "Known: a"):
        read_layer(path, layer="b")


def test_several_layers_need_a_name(tmp_path):
    path = tmp_path / "a.gpkg"
    frame().to_file(path, layer="one")
    frame(SQUARES[:1]).to_file(path, layer="two")
    with raises_naming("one, two", "layer"):
        read_layer(path)
    assert len(read_layer(path, layer="two").buildings) == 1


def test_extent_reads_only_what_is_near(tmp_path):
    path = save(frame([box(0, 0, 5, 5), box(5000, 0, 5005, 5)], n=[0, 1]), tmp_path / "a.gpkg")
    assert len(read_layer(path, extent=((0, 0, 10, 10), "EPSG:28992")).buildings) == 1


def test_table_without_geometry(tmp_path):
    pyogrio.write_dataframe(geopandas.pd.DataFrame({"a": [1]}), tmp_path / "a.gpkg")
    with pytest.raises(InputError, match="without geometry"):
        read_layer(tmp_path / "a.gpkg")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.gpkg", b"no database"), ("a.geojson", b"<OGRVRTDataSource/>"), ("a.shp", b"x"), ("a.fgb", b"\0" * 100),
        ("a.csv", b"WKT,h\nPOINT (0 0),1\n"),
    ],
)  # fmt: skip
def test_not_a_vector_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="not a vector file that is read here"):
        read_layer(tmp_path / name)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"{name}: is empty"):
        read_layer(tmp_path / name)


def test_other_kinds_of_json_and_damage(tmp_path):
    (tmp_path / "a.json").write_text('{"type": "Topology", "objects": {}, "arcs": []}')
    (tmp_path / "b.json").write_text('{"type": "FeatureCollection", "features": [')
    (tmp_path / "c.geojson").write_text('{"type": "FeatureCollection", "features": [')
    for name in "abc":
        with pytest.raises(InputError, match=name + r"\.(geo)?json: "):
            read_layer(next(tmp_path.glob(f"{name}.*")))
    path = save(frame(), tmp_path / "d.parquet")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="damaged, or not a Parquet file"):
        read_layer(path)
    with pytest.raises(InputError, match="no such file"):
        read_layer(tmp_path / "e.gpkg")
    with pytest.raises(InputError, match="is a directory"):
        read_layer(tmp_path)


def test_vrt_that_points_elsewhere_is_not_opened(tmp_path):
    secret = save(frame(), tmp_path / "secret.gpkg")
    source = f"<SrcDataSource>{secret}</SrcDataSource>"
    vrt = f"<OGRVRTDataSource><OGRVRTLayer name='secret'>{source}</OGRVRTLayer></OGRVRTDataSource>"
    for name in ("a.vrt", "a.geojson", "a.json"):
        (tmp_path / name).write_text(vrt)
        with pytest.raises(InputError, match="not a vector file that is read here"):
            read_layer(tmp_path / name)


def test_footprints_in_another_crs(tmp_path):
    path = save(frame([box(190_000, 343_000, 190_010, 343_010)], n=[1]).to_crs(4326), tmp_path / "a.geojson")
    moved = transform_layer(read_layer(path), "EPSG:28992")
    assert moved.crs == "EPSG:28992"
    assert (
        shapely.hausdorff_distance(moved.buildings[0].polygon, box(190_000, 343_000, 190_010, 343_010)) < 0.01
    )


def test_footprints_without_or_outside_the_crs(tmp_path):
    layer = read_layer(save(frame(crs=None), tmp_path / "a.parquet"))
    assert layer.crs is None
    with pytest.raises(InputError, match="footprints have no CRS"):
        transform_layer(layer, "EPSG:28992")
    polar = read_layer(
        save(frame([box(10, 10, 11, 11), box(0, 89, 1, 90)], "EPSG:4326", n=[0, 1]), tmp_path / "b.gpkg")
    )
    moved = transform_layer(polar, "EPSG:3857")
    assert len(moved.buildings) + moved.geometry["outside the CRS"] == 2


def test_geojson_that_names_no_crs_is_degrees_only_where_it_can_be(tmp_path):
    for name, (x, y), crs in (("utm", (600_000, 5_750_000), None), ("degrees", (3.0, 51.0), "EPSG:4326")):
        ring = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y]]
        feature = {
            "type": "Feature",
            "properties": {},
            "geometry": {"type": "Polygon", "coordinates": [ring]},
        }
        path = tmp_path / f"{name}.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
        assert read_layer(path).crs == crs


@pytest.mark.filterwarnings("error")
def test_text_and_numbers_in_one_column_are_read_without_a_warning(tmp_path):
    ring = [[3.0, 51.0], [3.1, 51.0], [3.1, 51.1], [3.0, 51.0]]
    features = [
        {"type": "Feature", "properties": {"h": h}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
        for h in ("12 m", 7.5, -3, None)
    ]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    layer = read_layer(tmp_path / "a.geojson", "h")
    assert [b.height_m for b in layer.buildings] == [None, 7.5, None, None]
    assert layer.reasons == {"not a number": 1, "negative": 1, "missing": 1}


@pytest.mark.parametrize("suffix", [".parquet", ".geojson"])
def test_lists_in_a_column_are_no_heights_and_no_trouble(tmp_path, suffix):
    columns = {"id": [[1], [2, 3], []], "h": [[7.0, 8.0], [], None], "b3_val3dity_lod22": [[302], [], None]}
    crs = "EPSG:4326" if suffix == ".geojson" else "EPSG:28992"
    layer = read_layer(save(frame(crs=crs, **columns), tmp_path / f"a{suffix}"), "h")
    assert [b.height_m for b in layer.buildings] == [None] * 3
    assert layer.reasons == {"not a number": 2, "missing": 1} and layer.checks == {"invalid": 1}


class TestRealLayers:
    def test_limburg(self, shared_data):
        layer = read_layer(shared_data("3dbag-b3-limburg") / "limburg.city.json")
        heights = np.array([b.height_m for b in layer.buildings])
        assert len(heights) == 840 and layer.reasons == Counter() and layer.crs == "EPSG:28992"
        assert [round(float(f(heights)), 2) for f in (np.min, np.median, np.max)] == [1.62, 5.52, 9.46]

    def test_sequence(self, shared_data):
        layer = read_layer(shared_data("3dbag-b3-small") / "small.city.jsonl")
        assert [round(b.height_m, 2) for b in layer.buildings] == [2.71, 2.71, 8.55]
        assert [round(b.polygon.area, 1) for b in layer.buildings] == [7.2, 10.3, 99.2]

    def test_wageningen_keeps_every_feature(self, shared_data):
        folder = shared_data("3dbag-wageningen-heights")
        truth = read_layer(folder / "downtown_clipped_buildings_real.shp", "dd_h_dak_7", "h_maaiveld")
        other = read_layer(folder / "downtown_wageningen_estimated.json", "MeanValue")
        assert len(truth.buildings) == len(other.buildings) == 2462
        assert (truth.crs, other.crs) == ("EPSG:28992", "EPSG:4326")
        assert sum(truth.reasons.values()) == 128 and other.reasons == Counter({"missing": 10})

    def test_one_spacenet_label(self, shared_data):
        path = shared_data("sn6-psrgb-3721") / "derived_tile_3721_one_building.geojson"
        (building,) = read_layer(path, "roof_075median").buildings
        assert building.id == 15568 and math.isclose(building.height_m, 9.96, abs_tol=1e-6)
        assert not building.polygon.has_z


class TestPartsInside:
    @pytest.fixture
    def parts(self, tmp_path):
        """Three houses of 5 m; the first has two halves of 4 m and 2 m inside, the second one of unknown height."""
        halves = [box(0, 0, 5, 2.5), box(0, 2.5, 5, 5), box(10, 0, 15, 5).buffer(-1)]
        return save(
            frame([*SQUARES, *halves], h=[5.0, 5.0, None, 4.0, 2.0, None], id=list("abcdef")),
            tmp_path / "a.gpkg",
        )

    def test_kept_and_counted(self, parts):
        layer = settle_parts(read_layer(parts, "h"), "keep")
        assert len(layer.buildings) == 6 and layer.counts["inside another outline"] == 3
        assert missing_facts(layer.notes[-1], "3 of 6", "parts_inside") == []

    @pytest.mark.parametrize(("parts_inside", "heights"), [("drop", [5, 5, None]), ("heights", [3, 5, None])])
    def test_left_out(self, parts, parts_inside, heights):
        layer = settle_parts(read_layer(parts, "h"), parts_inside)
        assert [b.id for b in layer.buildings] == list("abc")
        assert [b.height_m for b in layer.buildings] == heights
        assert layer.counts["dropped: inside another outline"] == 3 and layer.reasons == Counter(
            {"missing": 1}
        )

    def test_a_layer_without_any_is_given_back(self, tmp_path):
        layer = read_layer(save(frame(), tmp_path / "a.gpkg"))
        assert settle_parts(layer, "drop") is layer
        with raises_naming("parts_inside", "drop", "merge"):
            settle_parts(layer, "merge")


class TestHeightsOfCityModels:
    """Without a height field: measuredHeight, else the roof surfaces above TerrainHeight or the lowest face."""

    def read(self, tmp_path, crs="EPSG:28992", swap=False, **attributes):
        corners = [(0, 0), (10, 0), (10, 10), (0, 10)]
        x0, y0 = (5.0, 52.0) if crs == "EPSG:4258" else (100000.0, 400000.0)
        scale = 1e-5 if crs == "EPSG:4258" else 1
        vertices = [[x0 + x * scale, y0 + y * scale, z] for z in (3.0, 10.0) for x, y in corners]
        vertices = [[y, x, z] for x, y, z in vertices] if swap else vertices
        faces = [[[0, 3, 2, 1]], [[4, 5, 6, 7]]]
        surfaces = [{"type": "GroundSurface"}, {"type": "RoofSurface"}]
        semantics = {"surfaces": surfaces, "values": [0, 1]}
        geometry = {"type": "MultiSurface", "lod": "2", "boundaries": faces, "semantics": semantics}
        house = {"type": "Building", "attributes": attributes, "geometry": [geometry]}
        document = {"type": "CityJSON", "version": "2.0", "CityObjects": {"h": house}, "vertices": vertices}
        path = tmp_path / "town.city.json"
        path.write_text(json.dumps({**document, "metadata": {"referenceSystem": crs}}))
        return read_layer(path)

    @pytest.mark.parametrize(
        ("attributes", "height_m", "stat"),
        [({"measuredHeight": 8.5}, 8.5, "max"), ({"TerrainHeight": 2.0}, 8.0, "mean"), ({}, 7.0, "mean")],
    )
    def test_order(self, tmp_path, attributes, height_m, stat):
        (building,) = self.read(tmp_path, **attributes).buildings
        assert (building.height_m, building.height_stat, building.height_datum) == (height_m, stat, "ground")

    def test_3dbag_comes_first(self, tmp_path):
        (building,) = self.read(tmp_path, measuredHeight=8.5, b3_h_dak_70p=9.0, b3_h_maaiveld=3.0).buildings
        assert building.height_m == 6

    def test_latitude_first_is_put_right_and_said(self, tmp_path):
        plain, swapped = (self.read(tmp_path, "EPSG:4258", swap=swap) for swap in (False, True))
        assert swapped.buildings[0].polygon.equals(plain.buildings[0].polygon)
        assert any("swapped" in note for note in swapped.notes) and not any(
            "swapped" in n for n in plain.notes
        )
