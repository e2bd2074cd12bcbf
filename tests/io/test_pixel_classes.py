"""Classes per pixel from file to tensor: round trip, geometry, what is unknown, and data sets that disagree."""

import json
import logging

import fusiondet.compat  # noqa: F401
from fusiondet.buildings import Building, Tile
from fusiondet.config_loading import load_config
from fusiondet.data import catalog
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.engine.complete_config import complete_config
from fusiondet.engine.trainer import training_records
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import read_coco
from fusiondet.io.pixel_classes import (
    FOOTPRINT_CLASSES,
    UNKNOWN,
    ClassList,
    absent_classes,
    class_list,
    class_names,
    read_classes,
    tile_classes,
)
from fusiondet.io.tile_rasters import TileRaster
from tests.support.messages import raises_naming
from tests.support.projects import needs_network
from tests.support.tiny_city import ROOT, write_raster, write_split, write_tiles

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapely.geometry import box

NAMES = ("water", "building", "road", "field")
CODES = ClassList(NAMES, ((0,), (1,), (2,), (3,)), ((9,),))
RGB = BandSpec()
# 5 x 6 pixels, no two rows or columns alike; one is not labelled.
NUMBERS = np.array(
    [[0, 1, 2, 3, 0, 1], [1, 1, 3, 2, 0, 0], [2, 0, 9, 1, 3, 3], [3, 2, 1, 0, 1, 2], [0, 3, 0, 3, 2, 1]]
)
LABEL = np.where(NUMBERS == 9, np.nan, NUMBERS).astype(np.float32)


def town(root, numbers=NUMBERS, split="train", classes=CODES, window=None, size=None, buildings=(), **facts):
    """A split of one tile whose green is ten times its class."""
    numbers = np.asarray(numbers, np.uint8)
    write_raster(root / f"{split}.tif", np.stack([200 + 0 * numbers, 10 * numbers, 7 + 0 * numbers]))
    write_raster(root / f"{split}_classes.tif", numbers[None])
    height, width = size or numbers.shape
    tile = Tile(f"{split}.tif", width, height, 0.5, buildings=list(buildings), window=window)
    tile.class_file_name = f"{split}_classes.tif"
    return write_tiles(root, split, [tile], RGB, info=classes.to_info() if classes else {}, **facts)


def record_of(path):
    return catalog.records(catalog.load_split(str(path)))[0]


def mapper(**options):
    names = {"optical_bands": RGB.optical, "sar_bands": (), "class_names": NAMES}
    return FusionDatasetMapper(True, **{**names, **options})


def same(found, expected):
    np.testing.assert_array_equal(found.numpy() if torch.is_tensor(found) else found, expected)


# ---- Files -----------------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    dataset = read_coco(town(tmp_path))
    assert dataset.tiles[0].class_file_name == "train_classes.tif"
    assert class_list(dataset) == CODES and class_names(dataset) == NAMES
    truth = tile_classes(dataset, dataset.tiles[0], NAMES)
    assert truth.dtype == np.int16
    same(truth, np.where(NUMBERS == 9, UNKNOWN, NUMBERS))
    assert "class_file_name" not in json.loads(write_split(tmp_path / "other").read_text())["images"][0]


def test_a_name_that_leaves_the_folder_is_refused(tmp_path):
    path = town(tmp_path)
    path.write_text(path.read_text().replace("train_classes.tif", "../../secret.tif"))
    with raises_naming("secret.tif"):
        read_coco(path)


def test_footprints_tell_two_classes_where_there_is_no_raster(tmp_path):
    dataset = read_coco(write_split(tmp_path, counts=(1, 0)))
    assert class_names(dataset) == FOOTPRINT_CLASSES
    first, second = (tile_classes(dataset, tile, ["building", "background"]) for tile in dataset.tiles)
    x0, y0, x1, y1 = map(int, dataset.tiles[0].buildings[0].polygon.bounds)
    expected = np.ones((64, 64))
    expected[y0:y1, x0:x1] = 0
    same(first, expected)
    assert (second == 1).all()
    with raises_naming("background, building"):
        tile_classes(dataset, dataset.tiles[0], NAMES)


def test_what_other_people_keep_in_info_does_not_matter(tmp_path):
    path = write_tiles(tmp_path, "train", [Tile("a.tif", 4, 4, 0.5)], RGB, info={"classes": "many"})
    assert class_list(read_coco(path)) is None


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({}, "do not list the classes"),
        ({"classes": "many"}, "expected lists"),
        ({"classes": [1, 2]}, "expected lists"),
        ({"classes": [{"name": "a"}, {"name": "b"}]}, "has the value 'None'"),
        ({"classes": [{"name": "a", "code": 1.5}, {"name": "b", "code": 1}]}, "has the value '1.5'"),
        ({"classes": [{"name": "a", "code": 1}, {"name": "a", "code": 2}]}, "different names"),
        ({"classes": [{"name": "a", "code": 1}, {"name": "b", "colour": [1, 2]}]}, "the same kind"),
        ({"classes": [{"name": ["a"], "code": 1}, {"name": "b", "code": 2}]}, "expected different names"),
    ],
)
def test_lists_that_are_none(tmp_path, info, message):
    path = town(tmp_path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "info": info}))
    with pytest.raises(InputError, match=message):
        catalog.records(read_coco(path))


def test_a_raster_that_does_not_cover_its_tile(tmp_path):
    town(tmp_path)
    raster = TileRaster(tmp_path / "train_classes.tif", (4, 0, 4, 4))
    with raises_naming("6 x 5"):
        read_classes(raster, CODES, (4, 4))
    same(read_classes(TileRaster(raster.path, (2, 1, 4, 4)), CODES, (4, 4), (1, 0, 2, 3)), NUMBERS[1:4, 3:5])


@given(
    st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=3, max_size=12, unique=True),
    arrays(np.int64, (7, 9), elements=st.integers(0, 10**6)),
)
def test_any_colours_are_told_apart(tmp_path_factory, colours, drawn):
    path = tmp_path_factory.mktemp("colours") / "classes.tif"
    *values, ignored = colours
    numbers = drawn % len(colours)
    write_raster(path, np.moveaxis(np.array(colours, np.uint8)[numbers], -1, 0))
    classes = ClassList(tuple(f"class {i}" for i in range(len(values))), tuple(values), (ignored,))
    same(
        read_classes(TileRaster(path), classes, (7, 9), (2, 1, 6, 5)),
        np.where(numbers == len(values), UNKNOWN, numbers)[1:6, 2:8],
    )
    fewer = ClassList(classes.names, classes.values)
    if (numbers == len(values)).any():
        with pytest.raises(InputError, match=f"in {(numbers == len(values)).sum()} pixels"):
            read_classes(TileRaster(path), fewer, (7, 9))


# ---- The mapper ------------------------------------------------------------------------------------------


def test_classes_are_those_of_the_pixels(tmp_path):
    item = mapper()(record_of(town(tmp_path)))
    assert item["classes"].dtype == torch.float32
    same(item["classes"], LABEL)
    assert "classes" not in FusionDatasetMapper(False, optical_bands=RGB.optical, sar_bands=())(
        record_of(tmp_path / "annotations/train.json")
    )


def test_classes_are_numbered_as_the_network_does(tmp_path):
    order = ("field", "road", "building", "water")
    same(mapper(class_names=order)(record_of(town(tmp_path)))["classes"], 3 - LABEL)
    with raises_naming("water, building, road, field", "a, b"):
        mapper(class_names=("a", "b"))(record_of(tmp_path / "annotations/train.json"))


def test_a_window_of_a_mosaic(tmp_path):
    same(
        mapper()(record_of(town(tmp_path, window=(2, 1, 4, 3), size=(3, 4))))["classes"],
        LABEL[1:4, 2:6],
    )


def test_crops_flips_and_turns_take_them_along(tmp_path):
    record = record_of(town(tmp_path, window=(1, 0, 5, 5), size=(5, 5)))
    seen = set()
    for counter in range(40):
        item = mapper(crop=("absolute", (3, 4)), dihedral=True)(record, counter)
        assert item["classes"].shape == item["image"].shape[1:]
        green = item["image"][1].round().numpy()
        same(item["classes"], np.where(green == 90, np.nan, green / 10))
        seen.add(item["classes"].numpy().tobytes())
    assert len(seen) > 20


def test_resizing_takes_the_nearest(tmp_path):
    item = mapper(scale_range=(2.0, 2.0))(record_of(town(tmp_path)))
    same(item["classes"], np.kron(LABEL, np.ones((2, 2), np.float32)))
    item = mapper(scale_range=(0.5, 0.5))(
        record_of(town(tmp_path / "b", np.kron(NUMBERS, np.ones((4, 4), int))))
    )
    same(item["classes"], np.kron(LABEL, np.ones((2, 2), np.float32)))


def test_where_no_band_has_data_nothing_is_known(tmp_path):
    path = town(tmp_path, nodata=0)
    image = np.full((3, 5, 6), 50, np.uint8)
    image[:, 0] = 0
    write_raster(tmp_path / "train.tif", image)
    found = mapper()(record_of(path))["classes"]
    assert torch.isnan(found[0]).all()
    same(found[1:], LABEL[1:])


def test_a_tile_without_its_raster_among_others_with_one_is_not_labelled(tmp_path):
    path = town(tmp_path)
    document = json.loads(path.read_text())
    other = {**document["images"][0], "id": 2}
    del other["class_file_name"]
    path.write_text(json.dumps({**document, "images": [*document["images"], other]}))
    _, second = catalog.records(catalog.load_split(str(path)))
    assert torch.isnan(mapper()(second)["classes"]).all()


def test_a_tile_whose_labels_are_not_used_has_none(tmp_path):
    record = {**record_of(town(tmp_path)), "labelled": False, "annotations": []}
    item = mapper()(record)
    assert "classes" not in item and item["labelled"] is False


def test_footprints_of_any_data_are_classes(tmp_path):
    outline = box(1, 1, 4, 3)
    path = town(tmp_path, buildings=[Building(outline)])
    document = json.loads(path.read_text())
    del document["images"][0]["class_file_name"]
    path.write_text(json.dumps(document))
    expected = np.zeros((5, 6))
    expected[1:3, 1:4] = 1
    same(mapper(class_names=FOOTPRINT_CLASSES)(record_of(path))["classes"], expected)
    same(mapper(class_names=FOOTPRINT_CLASSES[::-1])(record_of(path))["classes"], 1 - expected)
    with pytest.raises(InputError, match="which footprints tell"):
        mapper()(record_of(path))


def test_a_code_that_appears_later_is_named(tmp_path):
    path = town(tmp_path)
    write_raster(tmp_path / "train_classes.tif", np.full((1, 5, 6), 77, np.uint8))
    with raises_naming("train_classes.tif", "77", "30 pixels"):
        mapper()(record_of(path))


# ---- What the config takes from the data -----------------------------------------------------------------


def config(train, *words, test=()):
    small = ("MODEL.DENSE_NET.WIDTH", "4", "MODEL.DEVICE", "cpu", "INPUT.MODALITIES", "['optical']")
    names = ("DATASETS.TRAIN", str([str(train)]), "DATASETS.TEST", str([str(path) for path in test]))
    return load_config(ROOT / "configs/synthetic/u_rec_small.yaml", [*small, *names, *words])


@needs_network("UREC")
def test_names_come_from_the_training_data(tmp_path):
    cfg = config(town(tmp_path))
    complete_config(cfg)
    assert cfg.MODEL.DENSE_NET.CLASSES == list(NAMES)
    footprints = config(write_split(tmp_path / "other"))
    complete_config(footprints)
    assert footprints.MODEL.DENSE_NET.CLASSES == list(FOOTPRINT_CLASSES)


@needs_network("UREC")
def test_an_order_of_the_config_stays(tmp_path):
    cfg = config(town(tmp_path), "MODEL.DENSE_NET.CLASSES", str(list(NAMES[::-1])))
    complete_config(cfg)
    assert cfg.MODEL.DENSE_NET.CLASSES == list(NAMES[::-1])


@needs_network("UREC")
def test_test_data_of_other_classes_are_refused(tmp_path):
    other = ClassList(("water", "roof", "road", "field"), CODES.values, CODES.ignored)
    cfg = config(town(tmp_path), test=[town(tmp_path, split="val", classes=other)])
    with raises_naming("val.json", "water, roof, road, field", "water, building"):
        complete_config(cfg)
    cfg = config(town(tmp_path), test=[write_split(tmp_path / "other", "val")])
    with raises_naming("background, building", "water"):
        complete_config(cfg)


@needs_network("UREC")
def test_a_class_that_is_nowhere_is_named(tmp_path, caplog):
    lacking = np.where(NUMBERS == 2, 0, NUMBERS)
    cfg = config(town(tmp_path), test=[town(tmp_path, lacking, split="val")])
    with caplog.at_level(logging.WARNING):
        complete_config(cfg)
    assert [r.getMessage() for r in caplog.records if "no pixel of" in r.getMessage()] == [
        f"data set {tmp_path}/annotations/val.json: no pixel of road in the 1 tiles looked at"
    ]
    dataset = read_coco(tmp_path / "annotations/val.json")
    assert absent_classes(dataset, NAMES) == (["road"], 1)


@needs_network("UREC")
def test_tiles_without_buildings_are_learned_from(tmp_path):
    cfg = config(town(tmp_path), "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True")
    assert len(training_records(cfg)) == 1
