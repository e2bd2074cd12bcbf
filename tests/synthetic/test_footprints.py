"""A real city out of CityJSON, and its ground shared out among splits."""

import json

from fusiondet.synthetic.city import City, CityBuilding, RoofPiece
from fusiondet.synthetic.footprints import dressed, read_city, spatial_split
from fusiondet.synthetic.presets import preset
from tests.support.messages import raises_naming

import numpy as np
import pytest
from shapely.geometry import box

RD = "https://www.opengis.net/def/crs/EPSG/0/7415"


def document(crs=RD, attributes=None, surface="GroundSurface", places=((100_000, 400_000),)):
    """CityJSON of level ground surfaces of 10 x 10 m at 2 m, one per place."""
    vertices, objects = [], {}
    for i, (x, y) in enumerate(places):
        vertices += [[x, y, 2], [x + 10, y, 2], [x + 10, y + 10, 2], [x, y + 10, 2]]
        geometry = {
            "type": "MultiSurface",
            "lod": "2.2",
            "boundaries": [[[4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3]]],
            "semantics": {"surfaces": [{"type": surface}], "values": [0]},
        }
        objects[f"house{i}"] = {"type": "Building", "attributes": attributes or {}, "geometry": [geometry]}
    metadata = {"referenceSystem": crs} if crs else {}
    head = {"type": "CityJSON", "version": "1.1", "metadata": metadata}
    return json.dumps({**head, "CityObjects": objects, "vertices": vertices})


@pytest.fixture
def write(tmp_path):
    """write(name, **document): path of a file that no other test has read."""

    def to(name, **options):
        path = tmp_path / name
        path.write_text(document(**options))
        return path

    return to


def test_a_building_without_a_roof_is_a_block_above_its_ground(write):
    city = read_city(write("a.city.json", attributes={"b3_h_70p": 9.5, "b3_h_maaiveld": 2.0}))
    (building,) = city.buildings
    assert building.height_m == 7.5 and building.footprint.area == 100 and building.id == "house0"
    assert city.origin_map == (100_000, 400_000)
    assert building.footprint.bounds == (0, 0, 10, 10), "metres from the city's own corner"


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"crs": None}, ["CRS", "crs_assign"]),
        ({"crs": "https://www.opengis.net/def/crs/EPSG/0/4326"}, ["EPSG:4326", "crs_reproject"]),
        ({}, ["height"]),
        ({"attributes": {"b3_h_70p": 1.0, "b3_h_maaiveld": 2.0}}, ["height"]),
    ],
    ids=["no CRS", "degrees", "no height", "below the ground"],
)
def test_cities_that_cannot_be_rendered_are_refused_by_name(write, options, facts):
    with raises_naming("b.city.json", *facts):
        read_city(write("b.city.json", **options))


@pytest.mark.parametrize(("top_m", "count"), [(12, 2), (80_002, 1)])
def test_a_roof_higher_than_anything_stands_is_left_out(tmp_path, top_m, count):
    city = json.loads(document(places=((0, 0), (50, 0))))
    for name, first, z in (("house0", 0, 9), ("house1", 4, top_m)):
        city["vertices"] += [[x, y, z] for x, y, _ in city["vertices"][first : first + 4]]
        (geometry,) = city["CityObjects"][name]["geometry"]
        last = len(city["vertices"])
        geometry["boundaries"].append([[*range(last - 4, last)]])
        geometry["semantics"] = {
            "surfaces": [{"type": "GroundSurface"}, {"type": "RoofSurface"}],
            "values": [0, 1],
        }
    (tmp_path / "roofs.city.json").write_text(json.dumps(city))
    heights_m = [building.height_m for building in read_city(tmp_path / "roofs.city.json").buildings]
    assert heights_m == [7, 10][:count]


def blocks(places):
    """A city of 8 m blocks at these corners."""
    houses = []
    for i, (x, y) in enumerate(places):
        footprint = box(x, y, x + 8, y + 8)
        houses.append(CityBuilding(footprint, [RoofPiece(footprint, (0.0, 0.0, 6.0))], 6.0, id=str(i)))
    return City(houses)


def test_splits_share_no_tile_and_each_tile_has_a_building():
    rng = np.random.default_rng(0)
    city = blocks(rng.uniform(0, 640, (60, 2)).tolist())
    split = spatial_split(city, {"train": 3, "val": 1}, 32.0, rng)
    tiles = [tile for tiles in split.values() for tile in tiles]
    assert len(tiles) == len(set(tiles)) and len(split["train"]) > len(split["val"]) > 0
    points = [b.footprint.representative_point() for b in city.buildings]
    for x0, y0, x1, y1 in tiles:
        assert (x1 - x0, y1 - y0) == (32, 32)
        assert any(x0 <= p.x <= x1 and y0 <= p.y <= y1 for p in points)


def test_blocks_of_tiles_go_to_one_split_whole():
    city = blocks([(x, y) for x in range(4, 320, 32) for y in range(4, 320, 32)])
    split = spatial_split(city, {"train": 1, "val": 1}, 32.0, np.random.default_rng(1))
    owners = {}
    for name, tiles in split.items():
        for x0, y0, *_ in tiles:
            owners.setdefault((x0 // 64, y0 // 64), set()).add(name)
    assert len(owners) == 25 and all(len(names) == 1 for names in owners.values())
    assert abs(len(split["train"]) - len(split["val"])) <= 4


def test_too_little_ground_for_the_splits():
    with raises_naming(1, "64 m", 2):
        spatial_split(blocks([(0, 0)]), {"train": 1, "val": 1}, 32.0, np.random.default_rng(0))


def test_dressing_keeps_footprints_and_heights_and_the_seed_decides_the_rest():
    city = blocks([(0, 0), (40, 0), (5000, 0)])
    first, again = (dressed(city, (0, 0, 64, 64), preset("easy"), np.random.default_rng(3)) for _ in range(2))
    assert [b.id for b in first.buildings] == ["0", "1"], "the third is far away"
    assert [b.height_m for b in first.buildings] == [6.0, 6.0]
    assert len(first.ground) > 0 and str(first.ground_albedo) == str(again.ground_albedo)


def test_a_layer_of_outlines_is_told_what_is_taken(tmp_path):
    (tmp_path / "town.gpkg").write_bytes(b"SQLite format 3\0")
    with raises_naming("town.gpkg", "CityJSON"):
        read_city(tmp_path / "town.gpkg")


def test_a_building_of_kilometres_is_refused(tmp_path):
    broken = json.loads(document())
    broken["vertices"][1][0] += 10**9
    (tmp_path / "wide.city.json").write_text(json.dumps(broken))
    with raises_naming("wide.city.json", "5 km"):
        read_city(tmp_path / "wide.city.json")
