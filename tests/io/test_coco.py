"""The annotations on disk: round trips, plain COCO tools, and refusal of what cannot be trusted."""

import contextlib
import dataclasses
import io
import json
import math

from fusiondet.buildings import Building, SensorGeometry, Tile
from fusiondet.errors import InputError
from fusiondet.files import read_json, write_json
from fusiondet.geometry.painting import mask_to_polygon, polygon_to_mask
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import (
    CocoWriter,
    Dataset,
    _runs,
    checked_rings,
    checked_rle,
    coco_document,
    decode_rle,
    encode_rle,
    is_number,
    of_classes,
    polygon_from_segmentation,
    prediction_record,
    read_coco,
    read_predictions,
    segmentation_from_polygon,
    tile_from_records,
    tile_records,
    write_coco,
)
from tests.support.messages import raises_naming

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from shapely.geometry import MultiPolygon, Polygon, box

COURTYARD = Polygon(box(10, 10, 30, 30).exterior, [box(15, 15, 20, 20).exterior])
TWO_PARTS = MultiPolygon([box(40, 2, 44, 6), box(46, 2, 50, 6)])


def dataset():
    buildings = [
        Building(
            box(1, 2, 5, 8),
            6.25,
            height_source="roof - ground",
            height_stat="p70",
            height_datum="ground",
            id="a",
        ),
        Building(COURTYARD, None, outline="roof", id=7),
        Building(TWO_PARTS, 3.0),
    ]
    sensor = SensorGeometry(sun_azimuth_deg=150.0, sun_elevation_deg=40.0, sar_incidence_deg=35.0)
    full = Tile(
        "rgb/a.tif",
        64,
        48,
        0.5,
        "sar/a.tif",
        None,
        None,
        "EPSG:32631",
        (0.5, 0, 10, 0, -0.5, 20),
        sensor,
        buildings,
        cloud_file_name="cloud/a.tif",
    )
    bare = Tile("rgb/b.tif", 32, 32, 0.5)
    return Dataset([full, bare], BandSpec(sar=("HH",), sar_scale="db"), {"licence": "CC BY 4.0"}, nodata=0.0)


def test_round_trip(tmp_path):
    written = dataset()
    path = tmp_path / "set" / "annotations" / "train.json"
    write_coco(written, path)
    read = read_coco(path)
    assert (read.bands, read.info, read.nodata) == (written.bands, written.info, 0.0)
    assert read.root == (tmp_path / "set").resolve()
    assert [t.id for t in read.tiles] == [1, 2] and read.tiles[1].buildings == []
    tile, original = read.tiles[0], written.tiles[0]
    for name in (
        "file_name",
        "sar_file_name",
        "ndsm_file_name",
        "cloud_file_name",
        "width",
        "height",
        "gsd_m",
        "crs",
        "transform",
        "sensor",
    ):
        assert getattr(tile, name) == getattr(original, name), name
    assert read.tiles[1].cloud_file_name is None
    images = json.loads(path.read_text())["images"]
    assert ["cloud_file_name" in image for image in images] == [True, False]
    for found, expected in zip(tile.buildings, original.buildings, strict=True):
        assert found.polygon.equals(expected.polygon)  # holes and parts survive exactly
        for name in ("height_m", "height_source", "height_stat", "height_datum", "outline", "id"):
            assert getattr(found, name) == getattr(expected, name), name


def test_plain_coco_tools_read_it(tmp_path):
    write_coco(dataset(), tmp_path / "train.json")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "train.json"))
    records = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert [int(coco.annToMask(r).sum()) for r in records] == [24, 375, 32]
    assert [r["area"] for r in records] == [24, 375, 32]
    assert records[0]["bbox"] == [1, 2, 4, 6] and records[1]["height_m"] is None
    assert coco.getAnnIds(imgIds=[2]) == []


def test_plain_coco_without_our_keys_is_read_and_written_again(tmp_path):
    document = {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 20, "height": 20}],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 3,
                "iscrowd": 0,
                "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]],
            },
            {"id": 2, "image_id": 5, "category_id": 3, "iscrowd": 0, "segmentation": [8, 8, 9, 8, 9, 9]},
            {"id": 3, "image_id": 5, "category_id": 3, "iscrowd": 0, "segmentation": [[1, 1, 2, 2]]},
            {
                "id": 4,
                "image_id": 5,
                "category_id": 3,
                "iscrowd": 1,
                "segmentation": {"size": [20, 20], "counts": [0, 400]},
            },
        ],
        "categories": [{"id": 3, "name": "house"}],
    }
    write_json(document, tmp_path / "a.json")
    plain = read_coco(tmp_path / "a.json")
    assert [b.polygon.area for b in plain.tiles[0].buildings] == [16, 0.5]
    assert plain.bands == BandSpec() and np.isnan(plain.tiles[0].gsd_m)
    write_coco(plain, tmp_path / "b.json")
    assert read_json(tmp_path / "b.json")["images"][0]["gsd_m"] is None


def test_real_sample_of_another_tool(shared_data):
    """Flat segmentations, float category names: 43 buildings all the same."""
    tile = read_coco(shared_data("solaris-sn4-atlanta-pan") / "coco_sample_2.json").tiles[0]
    assert len(tile.buildings) == 43 and all(b.height_m is None for b in tile.buildings)
    assert sum(b.polygon.area for b in tile.buildings) == pytest.approx(33_837.4, abs=0.1)


def test_ids_given_are_kept_and_numpy_ids_written(tmp_path):
    tiles = [
        Tile("a.tif", 8, 8, 1.0),
        Tile("b.tif", 8, 8, 1.0, id=1, buildings=[Building(box(0, 0, 2, 2), id=np.int64(3))]),
    ]
    write_coco(Dataset(tiles, BandSpec()), tmp_path / "a.json")
    read = read_coco(tmp_path / "a.json")
    assert [t.id for t in read.tiles] == [2, 1] and read.tiles[1].buildings[0].id == 3


class TestSegmentation:
    def test_polygons_or_rle_where_there_is_a_hole(self):
        assert segmentation_from_polygon(box(0, 0, 2, 3), 8, 8) == [[2, 0, 2, 3, 0, 3, 0, 0]]
        assert len(segmentation_from_polygon(TWO_PARTS, 64, 64)) == 2
        rle = segmentation_from_polygon(COURTYARD, 64, 64)
        assert decode_rle(rle, 64, 64).sum() == 375 and not decode_rle(rle, 64, 64)[16, 16]

    def test_mask_takes_pixel_centres(self):
        mask = polygon_to_mask(box(0.6, 0.4, 2.4, 1.4), 3, 4)
        assert mask.astype(int).tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
        assert polygon_to_mask(box(0.6, 0.6, 1.4, 1.4), 3, 3).sum() == 0

    @given(st.integers(0, 2**32 - 1))
    def test_mask_to_rle_and_to_polygon_and_back(self, seed):
        mask = np.random.default_rng(seed).random((9, 7)) < 0.4
        assert (decode_rle(encode_rle(mask), 9, 7) == mask).all()
        polygon = mask_to_polygon(mask)
        assert (polygon is None) == (not mask.any())
        if polygon is not None:
            assert polygon.area == mask.sum() and (polygon_to_mask(polygon, 9, 7) == mask).all()

    @given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 20), st.integers(1, 20), st.booleans())
    def test_polygon_survives_its_segmentation(self, x, y, width, height, hole):
        polygon = box(x, y, x + width, y + height)
        if hole and min(width, height) > 2:
            polygon = polygon.difference(box(x + 1, y + 1, x + width - 1, y + height - 1))
        back = polygon_from_segmentation(segmentation_from_polygon(polygon, 64, 64), 64, 64)
        assert back.equals(polygon)

    @pytest.mark.parametrize(
        ("segmentation", "message"),
        [
            ({"size": [4, 5], "counts": "0"}, r"RLE of size \[4, 5\] in an image of size \[4, 4\]"),
            ({"size": [4, 4], "counts": "ZZZZ"}, "damaged RLE"),
            ({"size": [4, 4], "counts": [3, 4]}, "counts add up to 7, not 16"),
            ([[0, 0, 1, 0, 1]], "odd number"),
            ([[0, 0, 1e9, 0, 1, 1]], "no pixels"),
            ([[0, 0, float("nan"), 0, 1, 1]], "no pixels"),
            ("0 0 1 0 1 1", "no pixels"),
        ],
    )
    def test_damaged(self, segmentation, message):
        with pytest.raises(InputError, match=message):
            polygon_from_segmentation(segmentation, 4, 4)


def _change(*keys, value):
    def change(document):
        target = document
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("images"), "with a list 'images'"),
        (_change("images", 0, value="a.tif"), r"images\[0\] is str, expected an object"),
        (_change("images", 0, "file_name", value=None), "image 1: 'file_name' is missing"),
        (_change("images", 0, "file_name", value="../a.tif"), "points outside its folder"),
        (_change("images", 0, "sar_file_name", value="/vsicurl/http://h/a.tif"), "points outside its folder"),
        (_change("images", 0, "ndsm_file_name", value="/etc/a.tif"), "points outside its folder"),
        (_change("images", 0, "cloud_file_name", value="../cloud.tif"), "points outside its folder"),
        (_change("images", 0, "cloud_file_name", value=1), "'cloud_file_name' is 1, expected a file name"),
        (_change("images", 1, "id", value=1), "image 1: this id occurs twice"),
        (_change("images", 0, "width", value=10**9), "'width' is 1000000000, expected pixels"),
        (_change("images", 0, "height", value="48"), "'height' is '48', expected pixels"),
        (_change("images", 0, "id", value=[1]), "expected a number or text as id"),
        (_change("images", 0, "file_name", value=["a.tif"]), "expected a file name"),
        (_change("images", 0, "gsd_m", value="0.5 m"), "gsd_m is '0.5 m', expected metres per pixel"),
        (_change("images", 0, "gsd_m", value=-0.5), "gsd_m is -0.5, expected metres per pixel"),
        (_change("images", 0, "transform", value=[1, 2]), "expected six numbers"),
        (_change("images", 0, "sensor", value=[1]), "expected degrees by name"),
        (_change("images", 0, "sensor", value={"sun_azimuth_deg": "S"}), "expected degrees by name"),
        (
            _change("images", 0, "sensor", value={"sun_elevation_deg": 0}),
            "sun_elevation_deg is 0, expected above 0 and at most 90 degrees",
        ),
        (_change("images", 0, "sensor", value={"sar_incidence_deg": 90}), "expected above 0 and below 90"),
        (
            _change("images", 0, "sensor", value={"view_off_nadir_deg": -1}),
            "expected at least 0 and below 90",
        ),
        (_change("nodata", value="none"), "'nodata' is 'none'"),
        (_change("info", value="mine"), "'info' is 'mine'"),
        (_change("bands", value=[1]), r"'bands' is '\[1\]'"),
        (_change("bands", "optical", value=5), "optical bands are 5, expected a list of names"),
        (_change("annotations", 0, "image_id", value=[1]), r"belongs to image \[1\]"),
        (_change("annotations", 0, "image_id", value=9), "belongs to image 9, which the file does not list"),
        (_change("annotations", 0, "segmentation", value=None), "neither polygons nor RLE"),
        (_change("annotations", 0, "segmentation", value=[["a"] * 6]), "annotation 1: "),
        (_change("annotations", 0, "height_m", value=-1), "height_m is -1, expected metres"),
        (_change("annotations", 0, "height_m", value=0), "height_m is 0, expected metres"),
        (_change("annotations", 0, "height_m", value=9999), "height_m is 9999, expected metres"),
        (_change("annotations", 0, "height_m", value="6 m"), "height_m is '6 m', expected metres"),
        (_change("annotations", 0, "height_m", value="6"), "height_m is '6', expected metres"),
        (_change("bands", "sar_scale", value="power"), "unknown SAR scale 'power'"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, change, message):
    path = tmp_path / "train.json"
    write_coco(dataset(), path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        read_coco(path)


@pytest.mark.parametrize("height_m", [float("inf"), -2.0, 9999.0])
def test_bad_heights_are_not_written(tmp_path, height_m):
    tile = Tile("a.tif", 8, 8, 1.0, buildings=[Building(box(0, 0, 2, 2), height_m)])
    with pytest.raises(InputError, match="height_m is"):
        write_coco(Dataset([tile], BandSpec()), tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_predictions(tmp_path):
    rle = encode_rle(np.ones((4, 4), bool))
    records = [
        prediction_record(1, 0.5, (0, 1, 2, 4), rle, (4.0, 5.0, 7.0)),
        prediction_record(1, 0.5, (0, 1, 2, 4), rle, None),
    ]
    write_json(records, tmp_path / "p.json")
    first, second = read_predictions(tmp_path / "p.json")
    assert first["bbox"] == [0, 1, 2, 3]
    assert [first[k] for k in ("height_p16_m", "height_m", "height_p84_m")] == [4, 5, 7]
    assert second["height_m"] is None
    for bad, message in (
        ({}, "expected a list"),
        ([{"image_id": 1}], "record 0 has no 'score'"),
        ([1], "record 0 has no"),
    ):
        write_json(bad, tmp_path / "bad.json")
        with pytest.raises(InputError, match=message):
            read_predictions(tmp_path / "bad.json")


def test_outline_of_a_building_with_holes_is_kept_beside_its_rle(tmp_path):
    ring = shapely.Point(20, 20).buffer(9.3).difference(shapely.Point(20, 20).buffer(4.1))
    write_coco(
        Dataset([Tile("a.tif", 64, 64, 0.5, buildings=[Building(ring)])], BandSpec()), tmp_path / "a.json"
    )
    assert read_coco(tmp_path / "a.json").tiles[0].buildings[0].polygon.equals(ring)


class TestParts:
    """Tiles that are windows of larger rasters."""

    tile = Tile("a.tif", 8, 6, 1.0, sar_file_name="s.tif", window=(10, 20, 8, 6), sar_window=(0, 0, 8, 6))

    def test_round_trip(self, tmp_path):
        tile = dataclasses.replace(self.tile, indexes=(5, 3, 2), sar_indexes=(4,), id=1)
        spec = BandSpec(sar=("HH",), sar_scale="db")
        write_coco(Dataset([tile, Tile("b.tif", 8, 6, 1.0, id=2)], spec), tmp_path / "t.json")
        assert read_coco(tmp_path / "t.json").tiles == [tile, Tile("b.tif", 8, 6, 1.0, id=2)]
        whole = read_json(tmp_path / "t.json")["images"][1]
        assert not {"window", "sar_window", "indexes", "sar_indexes"} & set(whole)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"window": (10, 20, 9, 6)}, "window is .10, 20, 9, 6., expected .* own size, 8 x 6"),
            ({"window": (-1, 0, 8, 6)}, "window is"),
            ({"sar_window": (0, 0, 8)}, "sar_window is"),
            ({"sar_window": (0.5, 0, 8, 6)}, "sar_window is"),
            ({"indexes": (0, 1, 2)}, "indexes is .0, 1, 2., expected numbers of bands, from 1"),
            ({"sar_indexes": ()}, "sar_indexes is"),
        ],
    )
    def test_impossible_ones_are_refused(self, tmp_path, change, message):
        with pytest.raises(InputError, match=message):
            write_coco(Dataset([dataclasses.replace(self.tile, **change)], BandSpec()), tmp_path / "t.json")
        assert list(tmp_path.iterdir()) == []


class TestWriter:
    def test_writes_what_write_coco_writes(self, tmp_path):
        data = dataset()
        write_coco(data, tmp_path / "a.json")
        with CocoWriter(tmp_path / "b.json", data.bands, data.info, data.nodata) as writer:
            for tile in data.tiles:
                writer.add(*tile_records(tile))
            assert not (tmp_path / "b.json").exists()
        assert read_json(tmp_path / "a.json") == read_json(tmp_path / "b.json")

    def test_info_may_come_last(self, tmp_path):
        info = {}
        with CocoWriter(tmp_path / "a.json", BandSpec(), info):
            info["tiles"] = 0
        assert read_coco(tmp_path / "a.json").info == {"tiles": 0}

    def test_given_ids_are_kept_and_others_are_numbered_around_them(self, tmp_path):
        with CocoWriter(tmp_path / "a.json", BandSpec()) as writer:
            ids = [
                writer.add({**tile_records(Tile("x.tif", 4, 4, 1.0))[0], "id": i}, [])
                for i in (2, None, 7, None)
            ]
            with raises_naming("image 7", "twice"):
                writer.add({**tile_records(Tile("x.tif", 4, 4, 1.0))[0], "id": 7}, [])
        assert ids == [2, 1, 7, 3]

    def test_an_error_leaves_nothing(self, tmp_path):
        with pytest.raises(RuntimeError), CocoWriter(tmp_path / "a.json", BandSpec()) as writer:
            writer.add(*tile_records(Tile("x.tif", 4, 4, 1.0)))
            raise RuntimeError
        assert list(tmp_path.iterdir()) == []

    def test_records_and_tiles_are_inverse(self):
        for tile in dataset().tiles:
            again = tile_from_records(*tile_records(tile))
            assert dataclasses.replace(again, buildings=[]) == dataclasses.replace(tile, buildings=[])
            for a, b in zip(again.buildings, tile.buildings, strict=True):
                assert a.polygon.equals(b.polygon) and (a.height_m, a.id) == (b.height_m, b.id)


def test_whole_numbers_beyond_any_float_are_no_pixels():
    assert is_number(3) and is_number(np.float32(2.5))
    assert not any(map(is_number, (10**400, math.inf, math.nan, True, "3", None)))


# ---- Files of strangers ----------------------------------------------------------------------------------

# What a key of JSON may hold, whatever it should: huge numbers, other types, something within something.
HUGE = (10**400, 10**309, 2**63, 2**32, -1, 1e400, math.nan)
ODD = st.recursive(
    st.sampled_from([*HUGE, None, True, "", "a", "\ud800", 0, 0.5]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["size", "counts", "a"]), inner)
    ),
    max_leaves=6,
)
IMAGE_KEYS = (
    "id",
    "file_name",
    "width",
    "height",
    "crs",
    "transform",
    "gsd_m",
    "sensor",
    "window",
    "indexes",
)
ANNOTATION_KEYS = (
    "id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "height_m", "height_source",
    "outline", "outline_px", "source_id",
)  # fmt: skip
PREDICTION_KEYS = ("image_id", "category_id", "score", "bbox", "segmentation", "height_m", "height_p16_m")


def read_or_refuse(read, path):
    with contextlib.suppress(InputError):
        read(path)


class TestHostileFiles:
    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_annotations_are_read_or_refused(self, tmp_path_factory, data):
        path = tmp_path_factory.mktemp("fuzz") / "train.json"
        document = coco_document(dataset())
        for section, keys in (("images", IMAGE_KEYS), ("annotations", ANNOTATION_KEYS)):
            record = data.draw(st.sampled_from(document[section]))
            record[data.draw(st.sampled_from(keys))] = data.draw(ODD)
        document[data.draw(st.sampled_from(["info", "bands", "nodata", "categories"]))] = data.draw(ODD)
        path.write_text(json.dumps(document))
        read_or_refuse(read_coco, path)

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(PREDICTION_KEYS), ODD)
    def test_predictions_are_read_or_refused(self, tmp_path_factory, key, value):
        path = tmp_path_factory.mktemp("fuzz") / "predictions.json"
        record = prediction_record(1, 0.5, (0, 0, 4, 4), encode_rle(np.ones((8, 8), bool)), (1, 2, 3))
        path.write_text(json.dumps([record | {key: value}]))
        read_or_refuse(read_predictions, path)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("crs", 4326, "crs is 4326, expected text"),
            ("width", 10**400, "'width' is inf, expected pixels"),
            ("width", True, "'width' is True, expected pixels"),
            ("gsd_m", "1" + "0" * 5000, "gsd_m is inf"),
        ],
    )
    def test_values_of_images_are_named(self, tmp_path, key, value, message):
        path = tmp_path / "train.json"
        document = coco_document(dataset())
        document["images"][0][key] = "VALUE"
        text = value if isinstance(value, str) else json.dumps(value)
        path.write_text(json.dumps(document).replace('"VALUE"', text))
        with pytest.raises(InputError, match=message):
            read_coco(path)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("bbox", [1, 2, 3], "bbox is"),
            ("bbox", [0, 0, 1e9, 5], "bbox is"),
            ("iscrowd", [], "iscrowd is"),
            ("height_source", 5, "height_source is 5, expected text"),
            ("outline_px", 7, "outline_px is 7, expected text"),
            ("outline_px", "[" * 100_000, "outline_px is no polygon of GeoJSON"),
            ("outline_px", '{"type": "Polygon", "coordinates": [[["a", 1]]]}', "outline_px is no polygon"),
            ("outline_px", '{"type": "Point", "coordinates": [1, 1]}', "outline_px is no polygon"),
            ("segmentation", [[0, 0, 10**400, 4, 5, 5]], "no pixels"),
        ],
    )
    def test_values_of_annotations_are_named(self, tmp_path, key, value, message):
        path = tmp_path / "train.json"
        document = coco_document(dataset())
        document["annotations"][0][key] = value
        path.write_text(json.dumps(document))
        with pytest.raises(InputError, match=f"annotation 1: .*{message}"):
            read_coco(path)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("score", 92, r"score is 92, expected a number in \[0, 1\]"),
            ("score", math.nan, "score is nan"),
            ("bbox", [0, 0, 1e9, 1e9], "bbox is"),
            ("bbox", [0, 0, math.nan, 4], "bbox is"),
            ("segmentation", 5, "neither polygons nor RLE"),
            ("image_id", [1], "image_id is"),
        ],
    )
    def test_values_of_predictions_are_named(self, tmp_path, key, value, message):
        path = tmp_path / "predictions.json"
        record = prediction_record(1, 0.5, (0, 0, 4, 4), encode_rle(np.ones((8, 8), bool)), (1, 2, 3))
        path.write_text(json.dumps([record, record | {key: value}]))
        with pytest.raises(InputError, match=f"record 1.*{message}"):
            read_predictions(path)


def compressed(runs: list[int]) -> str:
    """Counts of any runs as COCO compresses them, right or not (cocoapi, common/maskApi.c, rleToString)."""
    text = ""
    for i, run in enumerate(runs):
        x = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            digit, x = x & 31, x >> 5
            more = x != -1 if digit & 16 else x != 0
            text += chr((digit | 32 if more else digit) + 48)
    return text


class TestRunsThatWouldOverrunMemory:
    @pytest.mark.parametrize(
        "runs",
        [
            [0] * 16 + [16],  # 17 runs are the most that 16 pixels have: see below for one more
            [0] * 17 + [16],
            [2**32 + 16],
            [2**32 - 8, 8, 16],
            [2**33, 1, 2],
            [1] * 16 + [0] * 200,
            [],
        ],
    )
    @pytest.mark.parametrize("form", [list, compressed])
    def test_what_is_handed_on_has_at_most_one_run_more_than_pixels(self, runs, form):
        try:
            rle = checked_rle({"size": [4, 4], "counts": form(runs)}, 4, 4)
        except InputError as error:
            assert "damaged RLE" in str(error) and (len(runs) > 17 or sum(runs) != 16)
        else:
            assert sum(runs) == 16 and len(runs) <= 17
            assert len(_runs(rle["counts"])) <= 2 and mask_api.area(rle) in (0, 16)

    @pytest.mark.parametrize("form", [list, compressed])
    def test_empty_runs_within_a_mask_are_merged(self, form):
        rle = checked_rle({"size": [4, 4], "counts": form([3, 0, 2, 4, 0, 0, 1, 6, 0])}, 4, 4)
        assert _runs(rle["counts"]).tolist() == [5, 4, 1, 6]
        assert mask_api.decode(rle).ravel(order="F").tolist() == [0] * 5 + [1] * 4 + [0] + [1] * 6

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(st.integers(0, 6) | st.sampled_from([2**31, 2**32, 2**32 - 1, 2**34]), max_size=24),
        st.sampled_from([list, compressed]),
        st.integers(0, 40),
    )
    def test_any_runs_are_decoded_or_refused(self, runs, form, cut):
        counts = form(runs)[: max(1, len(form(runs)) - cut)] if cut > 30 else form(runs)
        try:
            mask = decode_rle({"size": [5, 4], "counts": counts}, 5, 4)
        except InputError:
            return
        expected = np.repeat(np.arange(len(runs)) % 2, runs) if cut <= 30 else None
        assert mask.shape == (5, 4)
        assert expected is None or mask.ravel(order="F").tolist() == expected.astype(bool).tolist()

    def test_edges_longer_than_any_building_are_refused(self):
        ring = [0, 0, 65000, 65000] * 200
        with pytest.raises(InputError, match="edges of 2.6e.07 px together"):
            checked_rings([ring])


def test_polygon_of_random_vertices_is_refused_at_once():
    ring = np.random.default_rng(0).uniform(0, 256, 20_000).tolist()
    with pytest.raises(InputError, match="cross each other"):
        polygon_from_segmentation([ring], 256, 256)


# ---- Classes ---------------------------------------------------------------------------------------------


def classed(**counts: int) -> dict:
    """A plain COCO document with so many squares of each class, and a group that none belongs to."""
    names = [name for name, n in counts.items() for _ in range(n)]
    ids = {name: number for number, name in enumerate(counts, start=1)}
    return {
        "images": [{"id": 1, "file_name": "a.tif", "width": 100, "height": 100}],
        "categories": [{"id": 0, "name": "group"}, *({"id": n, "name": name} for name, n in ids.items())],
        "annotations": [
            {
                "id": i,
                "image_id": 1,
                "category_id": ids[name],
                "segmentation": [[i, 0, i + 1, 0, i + 1, 9, i, 9]],
            }
            for i, name in enumerate(names, start=1)
        ],
    }


class TestClasses:
    def test_several_annotated_classes_are_refused_unless_chosen(self, tmp_path):
        path = tmp_path / "a.json"
        write_json(classed(building=3, tree=2, car=1), path)
        with raises_naming(path, "building (3), tree (2), car (1)", "`classes`", "INPUT.CLASSES"):
            read_coco(path)
        assert len(read_coco(path, ["building"]).tiles[0].buildings) == 3
        assert len(read_coco(path, ["building", "car"]).tiles[0].buildings) == 4
        assert read_coco(path, ["group"]).tiles[0].buildings == []
        with raises_naming(path, "unknown class 'hous'", "tree"):
            read_coco(path, ["hous"])

    @pytest.mark.parametrize(
        "counts",
        [{"house": 2}, {"flat_roof": 2, "gable_roof": 1, "dome": 1, "other": 1}, {"building": 1, "tree": 0}],
    )
    def test_one_class_unused_groups_and_kinds_of_roofs_need_no_choice(self, tmp_path, counts):
        document = classed(**counts)
        assert of_classes(document, tmp_path) is document

    def test_other_and_dome_alone_are_no_roofs(self, tmp_path):
        with raises_naming("dome (1), other (1)"):
            of_classes(classed(dome=1, other=1), tmp_path)
