"""CityJSON and CityJSONSeq: surfaces, parts, footprints, and files that are not what they say."""

import json

from fusiondet.errors import InputError
from fusiondet.io.cityjson_reader import open_cityjson, read_cityjson
from fusiondet.io.vectors import read_layer
from tests.support.messages import raises_naming

import pytest
import shapely
from shapely.geometry import Polygon, box

RD = "https://www.opengis.net/def/crs/EPSG/0/7415"


def block(x0, y0, x1, y1, low, high, start=0):
    """Vertices and faces (ground, roof, south wall) of a box, in quantised units."""
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    vertices = [[x, y, z] for z in (low, high) for x, y in corners]
    ground, roof, wall = [3, 2, 1, 0], [4, 5, 6, 7], [0, 1, 5, 4]
    return vertices, [[[i + start for i in ring]] for ring in (ground, roof, wall)]


def solid(faces, lod="2.2", values=(0, 1, 2)):
    kinds = [{"type": "GroundSurface"}, {"type": "RoofSurface"}, {"type": "WallSurface"}]
    return {
        "type": "Solid",
        "lod": lod,
        "boundaries": [faces],
        "semantics": {"surfaces": kinds, "values": [list(values)]},
    }


def city(objects, vertices, **changes):
    return {
        "type": "CityJSON",
        "version": "2.0",
        "CityObjects": objects,
        "vertices": vertices,
        "transform": {"scale": [0.1, 0.1, 0.1], "translate": [100_000, 400_000, 5]},
        "metadata": {"referenceSystem": RD},
        **changes,
    }


def write(tmp_path, document, name="a.city.json"):
    (tmp_path / name).write_text(json.dumps(document))
    return tmp_path / name


def two_parts():
    first, faces = block(0, 0, 100, 50, 0, 30)
    second, more = block(100, 0, 150, 50, 0, 60, start=len(first))
    objects = {
        "house": {
            "type": "Building",
            "attributes": {"b3_h_70p": 9.0, "b3_h_maaiveld": 5.0},
            "children": ["a", "b"],
        },
        "a": {
            "type": "BuildingPart",
            "parents": ["house"],
            "geometry": [solid(faces)],
            "attributes": {"b3_h_70p": 1.0},
        },
        "b": {"type": "BuildingPart", "parents": ["house"], "geometry": [solid(more)]},
        "tree": {"type": "SolitaryVegetationObject", "geometry": []},
    }
    return objects, first + second


def test_parts_make_one_building_in_map_coordinates(tmp_path):
    model = read_cityjson(write(tmp_path, city(*two_parts())))
    (building,) = model.buildings
    assert model.crs == "EPSG:28992"  # the horizontal part of EPSG:7415
    assert building.footprint().equals(box(100_000, 400_000, 100_015, 400_005))
    assert building.attributes == {"b3_h_70p": 9.0, "b3_h_maaiveld": 5.0}
    roofs = building.roof_surfaces()
    assert [r.polygon().area for r in roofs] == [pytest.approx(50), pytest.approx(25)]
    assert [set(r.rings[0][:, 2]) for r in roofs] == [{8.0}, {11.0}]


def test_lod_0_is_the_footprint_and_the_highest_lod_the_roof(tmp_path):
    vertices, faces = block(0, 0, 10, 10, 0, 30)
    wide = [[-10, -10, 0], [20, -10, 0], [20, 20, 0], [-10, 20, 0]]
    low = solid(faces, "1.2")
    flat = {"type": "MultiSurface", "lod": "0", "boundaries": [[[8, 9, 10, 11]]]}
    objects = {"h": {"type": "Building", "geometry": [low, flat, solid(faces[1:2], "2.2", [1])]}}
    (building,) = read_cityjson(write(tmp_path, city(objects, vertices + wide))).buildings
    assert building.footprint().area == pytest.approx(9)
    assert [r.lod for r in building.roof_surfaces()] == ["2.2"]


def test_courtyard(tmp_path):
    ring = [[0, 0, 0], [90, 0, 0], [90, 90, 0], [0, 90, 0]]
    hole = [[30, 30, 0], [60, 30, 0], [60, 60, 0], [30, 60, 0]]
    flat = {"type": "MultiSurface", "lod": "0", "boundaries": [[[0, 1, 2, 3], [4, 5, 6, 7]]]}
    model = read_cityjson(write(tmp_path, city({"h": {"type": "Building", "geometry": [flat]}}, ring + hole)))
    footprint = model.buildings[0].footprint()
    assert footprint.area == pytest.approx(81 - 9) and len(footprint.interiors) == 1


def test_no_footprint_is_none(tmp_path):
    model = read_cityjson(write(tmp_path, city({"h": {"type": "Building"}}, [])))
    assert model.buildings[0].footprint() is None and model.buildings[0].roof_surfaces() == []


def test_without_transform_or_crs(tmp_path):
    vertices, faces = block(0, 0, 10, 10, 0, 30)
    document = city(
        {"h": {"type": "Building", "geometry": [solid(faces)]}}, vertices, transform=None, metadata=None
    )
    model = read_cityjson(write(tmp_path, document))
    assert model.crs is None and model.buildings[0].footprint().equals(box(0, 0, 10, 10))


@pytest.mark.parametrize(
    ("reference", "crs"),
    [("urn:ogc:def:crs:EPSG::7415", "EPSG:28992"), ("EPSG:28992", "EPSG:28992"),
     ("http://www.opengis.net/def/crs/EPSG/0/4979", "EPSG:4326")],
)  # fmt: skip
def test_horizontal_crs(tmp_path, reference, crs):
    document = city({}, [], metadata={"referenceSystem": reference})
    assert read_cityjson(write(tmp_path, document)).crs == crs


def test_sequence(tmp_path):
    objects, vertices = two_parts()
    head = city({}, [])
    one, _ = block(0, 0, 10, 10, 0, 30)
    lines = [
        head,
        {"type": "CityJSONFeature", "id": "house", "CityObjects": objects, "vertices": vertices},
        {"type": "CityJSONFeature", "id": "n", "CityObjects": {"n": {"type": "Building"}}, "vertices": one},
    ]
    path = tmp_path / "a.city.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    model = read_cityjson(path)
    assert [b.id for b in model.buildings] == ["house", "n"] and model.crs == "EPSG:28992"
    assert model.buildings[0].footprint().area == pytest.approx(75)
    path.write_text(path.read_text()[:-40])
    with raises_naming("line 3", "JSON"):
        read_cityjson(path)


def test_a_sequence_is_read_line_by_line(tmp_path):
    path = tmp_path / "a.city.jsonl"
    feature = {
        "type": "CityJSONFeature",
        "id": "h",
        "CityObjects": {"h": {"type": "Building"}},
        "vertices": [],
    }
    path.write_text("\n".join([json.dumps(city({}, [])), json.dumps(feature), '{"type": "CityJSONFe']))
    with open_cityjson(path) as model:
        assert next(model.buildings).id == "h"  # before the end of the file was looked at
        with raises_naming("line 3", "JSON"):
            next(model.buildings)


def test_outlines_alone_are_the_same_outlines(tmp_path):
    path = write(tmp_path, city(*two_parts()))
    with open_cityjson(path, outlines_only=lambda attributes: True) as model:
        (building,) = model.buildings
    assert [s.kind for s in building.surfaces] == ["GroundSurface"] * 2
    assert building.footprint().equals(read_cityjson(path).buildings[0].footprint())


def test_version_of_the_data(tmp_path):
    document = city({}, [], metadata={"version": "v2024.04.20", "title": "3DBAG"})
    assert read_cityjson(write(tmp_path, document)).release == "v2024.04.20"


def test_version_1_0(tmp_path):
    vertices, faces = block(0, 0, 100, 50, 0, 30)
    old = {**solid(faces), "lod": 2.2}  # a number then
    metadata = {"referenceSystem": "urn:ogc:def:crs:EPSG::7415"}
    document = city(
        {"h": {"type": "Building", "geometry": [old]}}, vertices, version="1.0", metadata=metadata
    )
    (building,) = read_cityjson(write(tmp_path, document)).buildings
    assert building.footprint().area == pytest.approx(50) and building.roof_surfaces()[0].lod == "2.2"


class TestOtherJson:
    """Whether a file is CityJSON is told by its own type, wherever that stands."""

    def test_type_at_the_very_end_of_a_long_file(self, tmp_path):
        document = city(*two_parts(), padding="x" * (3 << 20))
        document["type"] = document.pop("type")
        assert len(read_layer(write(tmp_path, document)).buildings) == 1

    @pytest.mark.parametrize("cut", range((1 << 20) - 22, (1 << 20) + 3, 4))
    def test_type_across_the_border_of_what_is_looked_at_in_one_go(self, tmp_path, cut):
        text = json.dumps({**city({}, []), "type": None}).replace('"type": null, ', "")
        start = '{"padding": "' + "x" * (cut - 15) + '", '
        path = tmp_path / "a.json"
        path.write_text(start + '"type": "CityJSON", ' + text[1:])
        assert read_layer(path).crs == "EPSG:28992"

    def test_geojson_that_speaks_of_cityjson(self, tmp_path):
        ring = [[5.0, 52.0], [5.1, 52.0], [5.1, 52.1], [5.0, 52.0]]
        properties = {"type": "CityJSON", "h": 5.0}
        feature = {
            "type": "Feature",
            "properties": properties,
            "geometry": {"type": "Polygon", "coordinates": [ring]},
        }
        path = write(tmp_path, {"type": "FeatureCollection", "features": [feature]}, "a.json")
        assert read_layer(path, "h").buildings[0].height_m == 5.0

    def test_feature_without_the_head_of_its_file(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"type": "CityJSONFeature", "CityObjects": {}, "vertices": []}\n')
        with raises_naming("CityJSON", "'CityJSONFeature'"):
            read_layer(tmp_path / "a.jsonl")

    def test_cut_off(self, tmp_path):
        path = write(tmp_path, city(*two_parts()))
        path.write_text(path.read_text()[:-30])
        with raises_naming("JSON"):
            read_layer(path)


def test_two_buildings_with_one_identifier(tmp_path):
    objects, vertices = two_parts()
    objects["annex"] = {**objects["house"], "children": ["b"]}
    objects["house"]["children"] = ["a"]
    for name in ("house", "annex"):
        objects[name]["attributes"] = {"identificatie": "p", "b3_h_70p": 9.0, "b3_h_maaiveld": 5.0}
    path = write(tmp_path, city(objects, vertices))
    layer = read_layer(path)
    assert [b.id for b in layer.buildings] == ["p", "p"] and "p (2)" in layer.notes[0]
    (joined,) = read_layer(path, join_parts=True).buildings
    assert joined.polygon.area == pytest.approx(75) and joined.height_m == 4.0


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"type": "FeatureCollection"}, "expected CityJSON.*found 'FeatureCollection'"),
        ([1], "found 'list'"),
        (city({"h": {"type": "Building", "children": ["gone"]}}, []), "building 'h' is broken"),
        (
            city({"h": {"type": "Building", "geometry": [solid([[[0, 1, 2]]], values=[0])]}}, [[0, 0, 0]]),
            "'h' is broken",
        ),
        (
            city({"h": {"type": "Building", "geometry": [solid([[[0, -1, 0]]], values=[0])]}}, [[0, 0, 0]]),
            "'h' is broken",
        ),
        (
            city(
                {"h": {"type": "Building", "geometry": [solid([[[0, 1, 2]]], values=[-1])]}}, [[0, 0, 0]] * 3
            ),
            "'h' is broken.*semantic value -1",
        ),
        (city({"h": {"type": "Building", "attributes": [1]}}, []), "'h' is broken"),
        (city({}, [[0, 0]]), "vertices, its transform or its CityObjects are broken"),
        (city({}, [[0, 0, 0]], transform={"scale": [1, 1, 1]}), "its transform .* broken"),
        (city([1], []), "its CityObjects are broken"),
        (city({}, [[0, 0, float("nan")]]), "a coordinate is NaN or infinite"),
        (
            city({"h": {"type": "Building", "geometry": [solid([[]], values=[0])]}}, [[0, 0, 0]]),
            "'h' is broken.*a surface without a ring",
        ),
        (city({}, [], metadata={"referenceSystem": "EPSG:999999"}), "EPSG:999999"),
    ],
)
def test_broken_files(tmp_path, document, message):
    with pytest.raises(InputError, match=message):
        read_cityjson(write(tmp_path, document))


def test_real_city(shared_data):
    model = read_cityjson(shared_data("3dbag-b3-limburg") / "limburg.city.json")
    assert len(model.buildings) == 840 and model.crs == "EPSG:28992"
    building = model.buildings[0]
    assert building.footprint().area == pytest.approx(building.attributes["b3_opp_grond"], rel=0.02)
    roof = building.roof_surfaces()
    top = max(surface.rings[0][:, 2].max() for surface in roof)
    assert building.attributes["b3_h_dak_70p"] < top < building.attributes["b3_h_dak_max"] + 0.5
    assert isinstance(roof[0].polygon(), Polygon)
    with open_cityjson(
        shared_data("3dbag-b3-limburg") / "limburg.city.json", outlines_only=lambda attributes: True
    ) as quick:
        outlines = [b.footprint() for b in quick.buildings]
    assert all(a.equals(b.footprint()) for a, b in zip(outlines, model.buildings, strict=True))


def cube(x, y, base, height, first):
    """Vertices of a block of 10 x 10, and the shell of its faces, which point outwards."""
    corners = [(x, y), (x + 10, y), (x + 10, y + 10), (x, y + 10)]
    vertices = [[*c, base] for c in corners] + [[*c, base + height] for c in corners]
    faces = [[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]]
    return vertices, [[[i + first for i in face]] for face in faces]


OUTER = [0, 1, 2, 2, 2, 2]
SEMANTICS = [{"type": "GroundSurface"}, {"type": "RoofSurface"}, {"type": "WallSurface"}]


def shells_with(shells, values=None, **attributes):
    geometry = {"type": "Solid", "lod": "2", "boundaries": shells}
    if values is not None:
        geometry["semantics"] = {"surfaces": SEMANTICS, "values": values}
    return {"h": {"type": "Building", "attributes": attributes, "geometry": [geometry]}}


@pytest.mark.parametrize(
    "values",
    [
        [[0, 1, 2, 2, 2, 2], None],
        [[0, 1, 2, 2, 2, 2], [None] * 6],
        [[0, 1, 2, 2, 2, 2], [2, None, 2, 2, 2, 2]],
    ],
)
def test_null_for_the_semantics_of_a_shell_goes_down_to_its_faces(values, tmp_path):
    (vertices, shell), (more, inner) = cube(0, 0, 5, 7, 0), cube(2, 2, 6, 1, 8)
    document = city(shells_with([shell, inner], values), vertices + more, transform=None)
    (building,) = read_cityjson(write(tmp_path, document)).buildings
    assert building.footprint().area == 100 and len(building.roof_surfaces()) == 1


def test_a_solid_without_semantics_is_what_is_seen_of_it_from_above(tmp_path):
    vertices, shell = cube(0, 0, 5, 7, 0)
    path = write(tmp_path, city(shells_with([shell]), vertices, transform=None))
    with open_cityjson(path, lambda attributes: True) as model:
        (building,) = model.buildings
    assert building.footprint().equals(shapely.box(0, 0, 10, 10)) and building.roof_height_m() is None


@pytest.mark.parametrize(
    ("reference", "crs"),
    [
        ("urn:ogc:def:crs,crs:EPSG::28992,crs:EPSG::5709", "EPSG:28992"),
        ("EPSG:25832+7837", "EPSG:25832"),
        ("urn:adv:crs:ETRS89_UTM32*DE_DHHN2016_NH", "EPSG:25832"),
        ("urn:adv:crs:DE_DHDN_3GK3", "EPSG:31467"),
        (
            ["https://www.opengis.net/def/crs/EPSG/0/25832", "https://www.opengis.net/def/crs/EPSG/0/7837"],
            "EPSG:25832",
        ),
        ("https://www.opengis.net/def/crs/EPSG/0/7415", "EPSG:28992"),
    ],
)
def test_of_a_compound_the_horizontal_part_counts(reference, crs, tmp_path):
    path = write(tmp_path, city({}, [], metadata={"referenceSystem": reference}))
    assert read_cityjson(path).crs == crs


def test_a_given_reference_system_wins_over_one_that_is_not_understood(tmp_path):
    path = write(tmp_path, city({}, [], metadata={"referenceSystem": "urn:nobody:knows"}))
    with open_cityjson(path, crs="EPSG:28992") as model:
        assert model.crs == "EPSG:28992"


def test_heights_follow_from_the_faces(tmp_path):
    vertices, shell = cube(0, 0, 5, 7, 0)
    for corner in (6, 7):  # the roof rises by 2 towards the north
        vertices[corner][2] += 2
    values = [[0, 1, 2, 2, 2, 2]]
    (building,) = read_cityjson(
        write(tmp_path, city(shells_with([shell], values), vertices, transform=None))
    ).buildings
    assert building.roof_height_m() == pytest.approx(8) and building.roof_height_m(
        ground_m=4
    ) == pytest.approx(9)
