"""Images with a class per pixel: colours, codes, windows, and labels that are refused."""

from fusiondet.converters.class_rasters import parse_classes
from fusiondet.converters.prepare import prepare
from fusiondet.io.coco import read_coco
from fusiondet.io.pixel_classes import UNKNOWN, ClassList, tile_classes
from tests.support.class_rasters import area, image_of, write
from tests.support.messages import missing_facts, raises_naming

import numpy as np
import pytest
import rasterio


def classes(folder, *words, labels="labels/*"):
    files = ["--images", str(folder / "images/*"), "--labels", str(folder / labels)]
    prepare(["classes", *files, "--out", str(folder / "out"), "--tile-size", "32", *map(str, words)])
    return folder / "out"


def coded(folder, numbers, **options):
    write(folder / "images/a.tif", image_of(numbers))
    write(folder / "labels/a.tif", numbers[None].astype(options.pop("dtype", np.uint8)), **options)
    return folder


THREE = ["--class", "water=0", "field=1", "road=2"]


@pytest.mark.parametrize("cut", [[], ["--cut"]], ids=["windows", "cut"])
def test_codes_and_what_is_declared_as_no_data(tmp_path, cut):
    numbers = area(5, 40, 48) % 3
    raw = numbers.copy()
    raw[:8, :8] = 255
    coded(tmp_path, numbers)
    write(tmp_path / "labels/a.tif", raw[None].astype(np.uint8), nodata=255)
    dataset = read_coco(classes(tmp_path, *THREE, *cut) / "annotations/train.json")
    first, truth = dataset.tiles[0], tile_classes(dataset, dataset.tiles[0], ("water", "field", "road"))
    assert (first.window is None) == bool(cut) and first.width == 32
    assert (truth[:8, :8] == UNKNOWN).all()
    np.testing.assert_array_equal(truth[8:, 8:], numbers[8:32, 8:32])
    turned = tile_classes(dataset, first, ("road", "field", "water"))
    np.testing.assert_array_equal(turned[8:, 8:], 2 - numbers[8:32, 8:32])


def test_a_palette_tells_colours_and_codes(tmp_path):
    numbers = area(6, 32, 32) % 2
    coded(tmp_path, numbers)
    with rasterio.open(tmp_path / "labels/a.tif", "r+") as f:
        f.write_colormap(1, {0: (1, 2, 3), 1: (9, 8, 7)})
    for values in (("a=9,8,7", "b=1,2,3"), ("a=1", "b=0")):
        out = classes(tmp_path, "--class", *values, "--overwrite")
        dataset = read_coco(out / "annotations/train.json")
        np.testing.assert_array_equal(tile_classes(dataset, dataset.tiles[0], ("a", "b")), 1 - numbers)


def test_values_of_no_class_are_named_and_counted_for_the_whole_file(tmp_path):
    numbers = area(5, 40, 48) % 3
    numbers[39, 40:] = 7
    with raises_naming("a.tif", 7, "8 pixels", "water 0", "field 1", "road 2", "class", "ignore"):
        classes(coded(tmp_path, numbers), *THREE)
    assert not (tmp_path / "out").exists()
    dataset = read_coco(classes(tmp_path, *THREE, "--ignore", 7) / "annotations/train.json")
    assert (tile_classes(dataset, dataset.tiles[-1], ("water", "field", "road"))[-1, -8:] == UNKNOWN).all()


def test_a_class_without_pixels_is_named(tmp_path, capsys):
    classes(coded(tmp_path, area(5, 32, 32) % 2), *THREE)
    notes = [line for line in capsys.readouterr().out.splitlines() if "no pixel" in line]
    assert len(notes) == 1 and missing_facts(notes[0], "road") == []


@pytest.mark.parametrize(
    ("labels", "facts"),
    [
        (np.zeros((1, 32, 40), np.uint8), ["32 x 32", "40 x 32"]),
        (np.zeros((3, 32, 32), np.uint8), ["3 bands", 1]),
        (np.zeros((2, 32, 32), np.uint8), [2, "1, 3"]),
        (np.full((1, 32, 32), 0.5, np.float32), ["1024 pixels", "water 0"]),
        (np.full((1, 32, 32), np.nan, np.float32), ["1024 pixels", "water 0"]),
    ],
    ids=["size", "colours", "two bands", "halves", "nan"],
)
def test_labels_that_are_none(tmp_path, labels, facts):
    coded(tmp_path, np.zeros((32, 32), int))
    write(tmp_path / "labels/a.tif", labels)
    with raises_naming("a.tif", *facts):
        classes(tmp_path, *THREE)


@pytest.mark.parametrize(
    ("words", "ignored", "facts"),
    [
        (["tree"], [], ["tree", "NAME=CODE"]),
        (["tree=green", "b=1"], [], ["classes", "green"]),
        (["tree=1"], [], [1, 2]),
        (["tree=1", "road=1"], [], [1, "two"]),
        (["tree=1", "road=2"], ["2"], [2, "two"]),
        (["tree=1", "tree=2"], [], ["tree", "names"]),
        (["tree=1", "road=0,0,1"], [], ["kind"]),
        (["tree=0,0,0", "road=0,0,256"], [], [256, 0, 255]),
        (["tree=-1", "road=0"], [], [-1, 0]),
    ],
)
def test_lists_that_are_none(words, ignored, facts):
    with raises_naming(*facts):
        parse_classes(words, ignored)


def test_a_list_as_words_and_as_info():
    found = parse_classes(["a=b=0,0,1", "c=4,5,6"], ["0,0,0"])
    assert found == ClassList(("a=b", "c"), ((0, 0, 1), (4, 5, 6)), ((0, 0, 0),))
    assert str(found) == "a=b (0, 0, 1), c (4, 5, 6); not labelled (0, 0, 0)"
    assert ClassList.from_info(found.to_info()) == found
    codes = parse_classes(["a=1", "b=0"])
    assert ClassList.from_info(codes.to_info()) == codes and codes.to_info()["classes"][0]["code"] == 1
