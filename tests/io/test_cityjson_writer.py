"""City models: what cjio, our reader and the rules for solids make of them, and what they stand on."""

import importlib.util
import json
import subprocess
import sys

from fusiondet.buildings import Building, clean_polygon
from fusiondet.errors import InputError
from fusiondet.geometry.solids import check_solid, solid_volume
from fusiondet.io.cityjson_reader import read_cityjson
from fusiondet.io.layer_writer import BuildingWriter, write_buildings
from fusiondet.io.layers import check_output, read_buildings
from fusiondet.io.vectors import read_layer
from tests.support.messages import missing_facts, raises_naming

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import CRS, Transformer
from pyproj.crs import CompoundCRS
from shapely.affinity import rotate
from shapely.geometry import Polygon, box

RD = "EPSG:28992"
X, Y = 120_000.0, 487_000.0
SUFFIXES = [".city.json", ".city.jsonl"]


def at(x0, y0, x1, y1):
    return box(X + x0, Y + y0, X + x1, Y + y1)


def some_buildings():
    """A house, one with a courtyard, one in two pieces, one of unknown height."""
    return [
        Building(at(0, 0, 10.5, 20), 6.5, 5.0, 8.25, 0.875, height_stat="max", id="Müllerstr. 1"),
        Building(at(30, 0, 50, 20).difference(at(35, 5, 45, 15)), 12.0, height_stat="p70", id="b"),
        Building(at(0, 40, 10, 50).union(at(20, 40, 30, 50)), 3.0, id="c"),
        Building(at(40, 40, 50, 50).difference(at(44, 44, 46, 46)), score=0.5, id="d"),
    ]


def load(path):
    """(head, name -> CityObject, function object -> [(vertices, faces)] of its solids in metres)."""
    lines = path.read_text("utf-8").splitlines()
    documents = (
        [json.loads(t) for t in lines] if path.suffix == ".jsonl" else [json.loads(path.read_text("utf-8"))]
    )
    transform, objects, places = documents[0]["transform"], {}, {}
    for document in documents:
        points = np.array(document["vertices"], dtype=int).reshape(-1, 3)
        for name, value in document["CityObjects"].items():
            assert name not in objects, "every name occurs once"
            objects[name], places[name] = value, points * transform["scale"] + transform["translate"]

    def solids(name):
        for geometry in objects[name].get("geometry", ()):
            if geometry["type"] == "Solid":
                assert geometry["lod"] == "1.2" and len(geometry["boundaries"]) == 1
                used = sorted({i for face in geometry["boundaries"][0] for ring in face for i in ring})
                number = {i: n for n, i in enumerate(used)}
                yield (
                    places[name][used],
                    [[[number[i] for i in r] for r in f] for f in geometry["boundaries"][0]],
                )

    return documents[0], objects, solids


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_document_is_what_the_standard_asks_for(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    notes = write_buildings(some_buildings(), RD, path, {"weights": "m.pth"})
    assert notes == ["1 of 4 buildings have no known height: written as outlines without a block."]
    head, objects, solids = load(path)
    assert (head["type"], head["version"]) == ("CityJSON", "2.0")
    metadata = head["metadata"]
    assert metadata["referenceSystem"] == "https://www.opengis.net/def/crs/EPSG/0/28992"
    assert metadata["geographicalExtent"] == [X, Y, 0.0, X + 50, Y + 50, 12.0]
    assert metadata["elevation"] == {"from": "relative", "vertical_crs": None}
    assert metadata["provenance"] == {"weights": "m.pth"}
    assert head["transform"] == {"scale": [0.001] * 3, "translate": [X, Y, 0.0]}
    assert list(objects) == ["Müllerstr. 1", "b", "c", "c#1", "c#2", "d"]
    first, unknown = objects["Müllerstr. 1"], objects["d"]
    assert first["type"] == "Building" and first["attributes"]["measuredHeight"] == 6.5
    assert first["attributes"]["height_stat"] == "max" and first["attributes"]["ground_m"] is None
    assert first["attributes"]["area_m2"] == pytest.approx(210, rel=1e-3)
    assert "measuredHeight" not in objects["b"]["attributes"], "a percentile is not CityGML's measured height"
    assert objects["c"]["children"] == ["c#1", "c#2"] and "geometry" not in objects["c"]
    assert objects["c#1"]["type"] == "BuildingPart" and objects["c#1"]["parents"] == ["c"]
    assert unknown["attributes"]["height_m"] is None
    (flat,) = unknown["geometry"]
    assert (flat["type"], flat["lod"]) == ("MultiSurface", "0") and len(flat["boundaries"][0]) == 2
    for name in ("Müllerstr. 1", "b", "c#1", "c#2"):
        ((vertices, faces),) = solids(name)
        assert check_solid(vertices, faces) == []
        kinds = objects[name]["geometry"][0]["semantics"]
        assert [s["type"] for s in kinds["surfaces"]] == ["GroundSurface", "RoofSurface", "WallSurface"]
        assert kinds["values"] == [[0, 1] + [2] * (len(faces) - 2)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_converters_read_it_back_equal(tmp_path, suffix):
    path, expected = tmp_path / f"a{suffix}", some_buildings()
    write_buildings(expected, RD, path)
    model = read_cityjson(path)
    assert model.crs == RD
    for got, wanted in zip(model.buildings, expected, strict=True):
        assert got.id == wanted.id and got.footprint().equals(wanted.polygon)
        roofs = {z for s in got.roof_surfaces() for ring in s.rings for z in ring[:, 2]}
        assert roofs == ({wanted.height_m} if wanted.height_m else set())
    layer = read_layer(path, height_field="height_m", height_datum="ground")
    assert [b.height_m for b in layer.buildings] == [6.5, 12.0, 3.0, None]
    got, crs = read_buildings(path)
    facts = ("id", "height_m", "height_p16_m", "height_p84_m", "score", "height_stat")
    assert crs == RD and all(
        [getattr(a, k) for k in facts] == [getattr(b, k) for k in facts] and a.polygon.equals(b.polygon)
        for a, b in zip(got, expected, strict=True)
    )


def random_outlines(count):
    """Turned houses, L-shapes, courtyards, some that touch a wall, terraces that share walls."""
    rng = np.random.default_rng(5)
    shapes = []
    for i in range(count):
        w, h = rng.uniform(4, 15, 2)
        shape = box(0, 0, w, h)
        if i % 4 == 1:
            shape = shape.difference(box(w / 2, h / 3, w + 1, h + 1))
        elif i % 4 == 2:
            shape = shape.difference(box(w / 4, h / 4, w / 2, h / 2))
        elif i % 4 == 3:
            shape = Polygon(shape.exterior, [[(0, h / 2), (w / 3, h / 4), (w / 3, h / 1.5)]])
        shapes.append(rotate(shape, rng.uniform(0, 360), origin=(0, 0)))
    placed = [
        shapely.transform(s, lambda xy, i=i: xy + (X + 40 * (i % 20) + 0.12345, Y + 40 * (i // 20)))
        for i, s in enumerate(shapes)
    ]
    terrace = [rotate(at(-100 + 6.1 * i, -50, -93.9 + 6.1 * i, -40), 33, origin=(X, Y)) for i in range(10)]
    return [clean_polygon(p) for p in placed + terrace]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_solid_of_a_city_is_one(tmp_path, suffix):
    outlines = random_outlines(80)
    heights = np.round(np.random.default_rng(1).uniform(2.5, 60, len(outlines)), 3)
    path = tmp_path / f"a{suffix}"
    assert (
        write_buildings([Building(p, float(h)) for p, h in zip(outlines, heights, strict=True)], RD, path)
        == []
    )
    head, objects, solids = load(path)
    names = [n for n, o in objects.items() if o["type"] == "Building"]
    assert names == [str(i + 1) for i in range(len(outlines))]
    for name, outline, height in zip(names, outlines, heights, strict=True):
        parts = objects[name].get("children", [name])
        blocks = [block for part in parts for block in solids(part)]
        assert len(blocks) == len(parts) and all(check_solid(*block) == [] for block in blocks)
        grounds = [Polygon(v[f[0][0]][:, :2], [v[r][:, :2] for r in f[0][1:]]) for v, f in blocks]
        footprint = shapely.unary_union(grounds)
        assert sum(solid_volume(*b) for b in blocks) == pytest.approx(footprint.area * height, rel=1e-6)
        assert shapely.hausdorff_distance(footprint.boundary, outline.boundary) < 0.0015
        assert footprint.area == pytest.approx(outline.area, abs=0.001 * outline.length)
    if suffix == ".city.json":
        vertices = json.loads(path.read_text())["vertices"]
        assert len({tuple(v) for v in vertices}) == len(vertices), "neighbours share vertices"


# In a process of its own: importing cjio makes the whole process write floats to JSON with six decimals.
CJIO = """
import json, sys
from cjio import cityjson
for path in sys.argv[1:]:
    model = cityjson.reader(open(path, encoding="utf-8"))
    facts = [model.get_version(), model.get_epsg(), model.number_city_objects_level1(), model.calculate_bbox()]
    facts += [model.remove_duplicate_vertices(), model.remove_orphan_vertices()]
    facts += [sorted(model.get_subset_ids(["c"]).j["CityObjects"])]
    print(json.dumps(facts))
"""


def test_cjio_reads_it(tmp_path):
    if not importlib.util.find_spec("cjio"):
        pytest.skip("cjio is not installed; it is in requirements-dev.txt")
    write_buildings(some_buildings(), RD, tmp_path / "a.city.json")
    write_buildings([], RD, tmp_path / "b.city.json")
    command = [sys.executable, "-c", CJIO, tmp_path / "a.city.json", tmp_path / "b.city.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    full, empty = map(json.loads, done.stdout.splitlines())
    assert full == ["2.0", 28992, 4, [X, Y, 0, X + 50, Y + 50, 12], 0, 0, ["c", "c#1", "c#2"]]
    assert empty[:3] == ["2.0", 28992, 0]


def test_a_sequence_and_a_document_say_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("fusiondet.io.layer_writer.BATCH", 3)
    buildings = [Building(p, 5.0, id=i) for i, p in enumerate(random_outlines(8))]
    for suffix in SUFFIXES:
        write_buildings(buildings, RD, tmp_path / f"a{suffix}")
    one, other = (load(tmp_path / f"a{suffix}") for suffix in SUFFIXES)
    assert one[0]["metadata"] == other[0]["metadata"] and list(one[1]) == list(other[1])
    for name in one[1]:
        for (v, f), (w, g) in zip(one[2](name), other[2](name), strict=True):
            assert sorted(map(tuple, v)) == sorted(map(tuple, w)) and len(f) == len(g)


@pytest.mark.parametrize(
    ("ids", "names", "attributes"),
    [
        (["a", "b"], ["a", "b"], ["a", "b"]),
        ([7, 9], ["7", "9"], [7, 9]),
        ([None, None], ["1", "2"], [1, 2]),
        (["a", "a"], ["1", "2"], ["a", "a"]),
        (["a", None], ["1", "2"], ["a", None]),
        (["", "a"], ["1", "2"], ["", "a"]),
        (["a", "a#1"], ["1", "2"], ["a", "a#1"]),
        (["</script>", '"\\'], ["</script>", '"\\'], ["</script>", '"\\']),
        (["\ud800", 10**30], ["?", str(10**30)], ["?", str(10**30)]),
    ],
)
def test_names_are_identifiers_where_those_are_names(tmp_path, ids, names, attributes):
    buildings = [Building(at(i, 0, i + 1, 1), 3.0, id=v) for i, v in enumerate(ids)]
    write_buildings(buildings, RD, tmp_path / "a.city.json")
    objects = load(tmp_path / "a.city.json")[1]
    assert list(objects) == names and [o["attributes"]["id"] for o in objects.values()] == attributes
    read = [b.id for b in read_buildings(tmp_path / "a.city.json")[0]]
    assert read == [name if a is None else a for name, a in zip(names, attributes, strict=True)]


def test_the_statistic_may_be_that_of_the_whole_layer(tmp_path):
    write_buildings([Building(at(0, 0, 1, 1), 3.0)], RD, tmp_path / "a.city.json", {"height_stat": "max"})
    attributes = load(tmp_path / "a.city.json")[1]["1"]["attributes"]
    assert attributes["height_stat"] == "max" and attributes["measuredHeight"] == 3.0


@pytest.mark.parametrize("height_m", [0.0001, 1000.0])
def test_no_height_is_without_a_volume(tmp_path, height_m):
    write_buildings([Building(at(0, 0, 2, 1), height_m)], RD, tmp_path / "a.city.json")
    ((vertices, faces),) = load(tmp_path / "a.city.json")[2]("1")
    assert check_solid(vertices, faces) == []
    assert solid_volume(vertices, faces) == pytest.approx(2 * max(height_m, 0.001))


def test_outlines_below_a_millimetre_are_said(tmp_path):
    buildings = [Building(at(0, 0, 1e-4, 1e-4), 3.0), Building(at(5, 5, 6, 6), 3.0)]
    notes = write_buildings(buildings, RD, tmp_path / "a.city.json")
    assert notes == ["1 of 2 buildings are smaller than a millimetre: no outline."]
    assert [b.id for b in read_buildings(tmp_path / "a.city.json")[0]] == [2]


TILTED = CompoundCRS("UTM 31N + EGM96", [CRS(32631), CRS(5773)])
FEET_UP = CompoundCRS("RD + feet", [CRS(28992), CRS(6360)])


@pytest.mark.parametrize(
    ("crs", "message"),
    [
        ("EPSG:4326", "needs metres.*longitude and latitude.*UTM zone.*gpkg"),
        ("EPSG:4979", "needs metres.*longitude and latitude"),
        ("EPSG:2229", "needs metres.*US survey foot.*gdalwarp"),
        (FEET_UP, "needs metres.*US survey foot"),
        ("EPSG:3857", "stretched.*gdalwarp"),
        ("+proj=eqearth +lon_0=5 +datum=WGS84", "EPSG code.*has none"),
        ('LOCAL_CS["site",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]', "needs metres.*has none"),
    ],
)
def test_reference_systems_without_metres_are_refused_before_the_work(tmp_path, crs, message):
    for refuse in (
        lambda: BuildingWriter(tmp_path / "a.city.json", crs),
        lambda: check_output(tmp_path / "a.city.json", crs=crs),
    ):
        with pytest.raises(InputError, match=message):
            refuse()
    assert list(tmp_path.iterdir()) == []
    assert check_output(tmp_path / "a.gpkg", crs=crs)


@pytest.mark.parametrize(
    ("crs", "vertical", "code", "described"),
    [
        (RD, "EPSG:5709", 7415, "EPSG:5709"),
        ("EPSG:7415", None, 7415, "EPSG:5709"),
        (RD, "EPSG:7415", 7415, "EPSG:5709"),
        (RD, None, 28992, None),
        ("EPSG:32631", "EPSG:5773", 32631, "EPSG:5773"),
        (TILTED, None, 32631, "EPSG:5773"),
    ],
)
def test_the_vertical_datum_is_named_only_where_it_is_known(tmp_path, crs, vertical, code, described):
    path = tmp_path / "a.city.json"
    building = Building(at(0, 0, 1, 1), 3.0)
    write_buildings([building], crs, path, dtm=lambda p: np.full(len(p), 2.0), vertical_crs=vertical)
    metadata = load(path)[0]["metadata"]
    assert metadata["referenceSystem"] == f"https://www.opengis.net/def/crs/EPSG/0/{code}"
    assert metadata["elevation"] == {"from": "dtm", "vertical_crs": described}
    assert read_buildings(path)[1] == f"EPSG:{32631 if code == 32631 else 28992}"
    write_buildings([building], crs, path, overwrite=True)
    metadata = load(path)[0]["metadata"]
    assert metadata["elevation"] == {"from": "relative", "vertical_crs": None}
    assert metadata["referenceSystem"].endswith("/32631" if code == 32631 else "/28992"), (
        "z = 0 is no elevation"
    )


@pytest.mark.parametrize("vertical", ["EPSG:28992", "EPSG:6360", "EPSG:5715", "up"])
def test_vertical_systems_that_are_none_are_refused(tmp_path, vertical):
    with raises_naming("vertical CRS"):
        BuildingWriter(tmp_path / "a.city.json", RD, dtm=lambda p: np.zeros(len(p)), vertical_crs=vertical)


def test_elevations_are_for_city_models(tmp_path):
    with pytest.raises(InputError, match="lie flat.*city.json"):
        BuildingWriter(tmp_path / "a.gpkg", RD, dtm="dtm.tif")
    with raises_naming("dtm"):
        BuildingWriter(tmp_path / "a.city.json", RD, vertical_crs="EPSG:5709")


def test_blocks_stand_on_the_ground_that_a_function_gives(tmp_path):
    path = tmp_path / "a.city.json"
    buildings = [Building(at(20 * i, 0, 20 * i + 10, 10), h) for i, h in enumerate((5.0, 4.0, None))]
    notes = write_buildings(buildings, RD, path, dtm=lambda p: np.array([-3.25, np.nan, 8.0]))
    assert notes == [
        "1 of 3 buildings have no known height: written as outlines without a block.",
        "1 of 3 buildings have no ground beneath them in the DTM: written as outlines without a block.",
    ]
    head, objects, solids = load(path)
    assert [o["attributes"]["ground_m"] for o in objects.values()] == [-3.25, None, 8.0]
    ((vertices, faces),) = solids("1")
    assert set(vertices[:, 2]) == {-3.25, 1.75} and check_solid(vertices, faces) == []
    assert head["metadata"]["geographicalExtent"][2::3] == [-3.25, 8.0]
    assert [o["geometry"][0]["lod"] for o in objects.values()] == ["1.2", "0", "0"]
    assert [b.height_m for b in read_buildings(path)[0]] == [5.0, 4.0, None]


def write_dtm(path, values, crs=RD, nodata=-9999, x=X, y=Y + 100, size=1.0, unit=None):
    height, width = values.shape
    place = {"transform": Affine(size, 0, x, 0, -size, y), "crs": crs, "nodata": nodata}
    with rasterio.open(path, "w", "GTiff", width, height, 1, dtype="float32", **place) as file:
        file.write(values.astype(np.float32), 1)
        if unit:
            file.units = [unit]
    return path


def ground_of(tmp_path, polygons, dtm, crs=RD, **options):
    write_buildings([Building(p, 5.0) for p in polygons], crs, tmp_path / "a.city.json", dtm=dtm, **options)
    head, objects, _ = load(tmp_path / "a.city.json")
    return head, [o["attributes"]["ground_m"] for o in objects.values() if "attributes" in o]


def test_the_ground_is_the_median_of_the_terrain_under_the_outline(tmp_path):
    rows = np.repeat(np.arange(100.0)[:, None], 100, axis=1)  # y = Y + 100 - row
    rows[:, 60:] = -9999
    rows[:, 58] = -32767  # not declared
    dtm = write_dtm(tmp_path / "dtm.tif", rows)
    courtyard = at(0, 40, 50, 51).difference(at(0, 46, 50, 51))
    polygons = [
        at(0, 0, 10, 11),  # rows 89 to 99
        courtyard,  # rows 54 to 59
        at(5.2, 50.2, 5.4, 50.4),  # within a pixel, away from its centre
        at(55, 10, 80, 11),  # half of it without data
        at(70, 10, 80, 20),
        at(500, 500, 510, 510),
    ]
    head, ground = ground_of(tmp_path, polygons, dtm)
    assert ground == [94.0, 56.5, 49.0, 89.0, None, None]
    assert head["metadata"]["elevation"] == {"from": "dtm", "vertical_crs": None}


def test_the_terrain_may_have_its_own_grid_and_says_its_datum(tmp_path):
    flat = write_dtm(
        tmp_path / "dtm.tif", np.full((60, 60), 7.5), crs="EPSG:7415", size=10, x=X - 100, y=Y + 300
    )
    head, ground = ground_of(tmp_path, [at(0, 0, 10, 10)], flat)
    assert ground == [7.5] and head["metadata"]["referenceSystem"].endswith("/7415")
    utm = "EPSG:32631"
    to_utm = Transformer.from_crs(RD, utm, always_xy=True).transform
    moved = shapely.transform(at(0, 0, 10, 10), to_utm, interleaved=False)
    assert ground_of(tmp_path / "utm", [moved], flat, crs=utm)[1] == [7.5]


def test_a_large_footprint_is_read_on_a_coarser_grid(tmp_path, monkeypatch):
    monkeypatch.setattr("fusiondet.io.terrain._MOST_PX", 100)
    slope = np.repeat(np.arange(100.0)[:, None], 100, axis=1)
    _, (ground,) = ground_of(tmp_path, [at(0, 0, 100, 100)], write_dtm(tmp_path / "dtm.tif", slope))
    assert ground == pytest.approx(49.5, abs=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crs": None}, "dtm.tif: has no CRS.*rio edit-info"),
        ({"unit": "dB"}, "dtm.tif: its band is in 'dB', which is no length"),
    ],
)
def test_terrain_that_cannot_be_used_is_refused_and_nothing_is_left(tmp_path, options, message):
    dtm = write_dtm(tmp_path / "dtm.tif", np.zeros((5, 5)), **options)
    with pytest.raises(InputError, match=message):
        write_buildings([], RD, tmp_path / "a.city.json", dtm=dtm)
    with pytest.raises(InputError, match="no such file"):
        write_buildings([], RD, tmp_path / "a.city.json", dtm=tmp_path / "nowhere.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["dtm.tif"]


def test_real_terrain(tmp_path, shared_data):
    folder = shared_data("alexandria-dsm-dtm-buildings")
    with rasterio.open(folder / "dtm.tif") as file:
        left, bottom, *_ = file.bounds
        outline = box(left + 100, bottom + 100, left + 130, bottom + 120)
        window = file.window(*outline.bounds).round()
        known = file.read(1, window=window, masked=True).compressed()
    _, (ground,) = ground_of(tmp_path, [outline], folder / "dtm.tif", crs="EPSG:26918")
    assert len(known) == 150 and ground == pytest.approx(np.median(known), abs=1e-4)


def test_real_terraces_become_solids_and_come_back(tmp_path, shared_data):
    layer = read_layer(shared_data("3dbag-b3-limburg") / "limburg.city.json")
    path = tmp_path / "a.city.json"
    assert write_buildings(layer.buildings, layer.crs, path) == []
    _, objects, solids = load(path)
    blocks = [block for name in objects for block in solids(name)]
    assert len(blocks) >= len(layer.buildings) and all(check_solid(*block) == [] for block in blocks)
    got, crs = read_buildings(path)
    assert crs == layer.crs
    for a, b in zip(got, layer.buildings, strict=True):
        assert (a.id, a.height_m) == (b.id, b.height_m)
        assert a.polygon.symmetric_difference(b.polygon).area < 0.0008 * b.polygon.length


def test_blocks_stand_on_the_ground_around_them_where_the_terrain_has_none_beneath(tmp_path):
    rows = np.full((100, 100), 3.0)
    rows[80:95, 5:25] = -9999
    dtm = write_dtm(tmp_path / "dtm.tif", rows)
    buildings = [Building(at(7, 7, 22, 18), 5.0), Building(at(50, 50, 60, 60), 5.0)]
    notes = write_buildings(buildings, RD, tmp_path / "a.city.json", dtm=dtm)
    assert missing_facts(" ".join(notes), "1 of 2 buildings", "around their outline") == []
    objects = json.loads((tmp_path / "a.city.json").read_text())["CityObjects"].values()
    assert [o["attributes"]["ground_m"] for o in objects] == [3.0, 3.0]
