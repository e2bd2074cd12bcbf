"""Images with a class per pixel, and the layout of ISPRS Vaihingen: windows, splits, colours, and what goes wrong."""

from fusiondet.converters.class_rasters import parse_classes
from fusiondet.converters.prepare import prepare
from fusiondet.errors import InputError
from fusiondet.io.coco import read_coco
from fusiondet.io.pixel_classes import UNKNOWN, ClassList, class_list, tile_classes
from fusiondet.io.tile_rasters import read_tile
from fusiondet.projects.u_rec.vaihingen import CLASSES, SPLITS, parts

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

COLOURS = np.array(CLASSES.values, np.uint8)
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": len(image), "height": image.shape[1], "width": image.shape[2]}
    with rasterio.open(path, "w", driver="GTiff", dtype=image.dtype, **shape, **options) as f:
        f.write(image)
    return path


def coloured(numbers):
    return np.moveaxis(COLOURS[numbers], -1, 0)


def area(number, height=72, width=96):
    """(h, w) classes of an area: blocks of 8 px; red in its image is 40 times the class, so that a shift shows."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, len(COLOURS), (height // 8, width // 8))
    return np.kron(blocks, np.ones((8, 8), int))


def picture(numbers):
    return np.stack([30 + 0 * numbers, 40 * numbers, 90 + 0 * numbers]).astype(np.uint8)


def replica(root, areas=(1, 15, 2), labels="gts_for_participants", suffix=""):
    """The published layout with small areas."""
    for number in areas:
        name = f"top_mosaic_09cm_area{number}"
        write(root / "top" / f"{name}.tif", picture(area(number)))
        write(root / labels / f"{name}{suffix}.tif", coloured(area(number)))
    return root


def vaihingen(root, *words, out="out"):
    small = ["--tile-size", "32", "--overlap", "16", "--eval-tile-size", "48"]
    prepare(["vaihingen", "--root", str(root), "--out", str(root / out), *small, *map(str, words)])
    return root / out


def assert_in_place(dataset):
    for tile in dataset.tiles:
        truth = tile_classes(dataset, tile, CLASSES.names)
        image = read_tile(dataset, tile)
        known = truth != UNKNOWN
        assert truth.shape == image.shape[1:] and (truth[known] * 40 == image[1][known]).all()


# ---- Vaihingen -------------------------------------------------------------------------------------------


def test_published_areas_and_those_of_the_paper():
    listed = [number for areas in SPLITS.values() for number in areas]
    assert [len(areas) for areas in SPLITS.values()] == [14, 2, 17]
    assert len({*listed}) == 33
    assert sorted(SPLITS["train"] + SPLITS["val"]) == [
        1,
        3,
        5,
        7,
        11,
        13,
        15,
        17,
        21,
        23,
        26,
        28,
        30,
        32,
        34,
        37,
    ]


@pytest.mark.parametrize("cut", [[], ["--cut"]], ids=["windows", "cut"])
def test_layout_becomes_three_splits_of_windows(tmp_path, cut):
    out = vaihingen(replica(tmp_path), *cut)
    train, val, test = (read_coco(out / "annotations" / f"{s}.json") for s in ("train", "val", "test"))
    assert len(train.tiles) == 4 * 5, "every 16 px, along both"
    assert [(t.width, t.height) for t in val.tiles] == [(48, 36)] * 4, "an area in equal parts, none twice"
    assert train.bands.optical == ("nir", "red", "green") and train.tiles[0].gsd_m == 0.09
    for dataset in (train, val, test):
        assert class_list(dataset) == CLASSES
        assert_in_place(dataset)
    assert not any(tile.buildings for tile in train.tiles)
    links = {t.class_file_name for t in train.tiles}
    assert links == {"classes/area1.tif"} if not cut else len(links) == 20
    pixels = train.info["more"]["pixels"]
    assert sum(pixels.values()) == 20 * 32 * 32 + 2 * 72 * 96
    assert COCO(str(out / "annotations" / "val.json")).getImgIds() == [1, 2, 3, 4]


def test_whole_areas_to_score(tmp_path):
    out = vaihingen(replica(tmp_path), "--eval-tile-size", 0)
    assert [(t.width, t.height) for t in read_coco(out / "annotations/val.json").tiles] == [(96, 72)]


def test_areas_whose_labels_are_not_published_are_named_and_left_out(tmp_path, capsys):
    root = replica(tmp_path, (1, 15))
    write(root / "top/top_mosaic_09cm_area2.tif", picture(area(2)))
    out = vaihingen(root)
    assert sorted(p.stem for p in (out / "annotations").iterdir()) == ["train", "val"]
    text = capsys.readouterr().out
    assert "1 areas without labels" in text and "area 2: without labels. It is left out." in text
    assert "30 areas without an image" in text


def test_eroded_labels_to_score_and_others_to_train_on(tmp_path):
    root, eroded = replica(tmp_path), tmp_path / "eroded"
    for number in (15, 2):
        colours = coloured(area(number))
        colours[:, ::8] = 0
        write(eroded / f"top_mosaic_09cm_area{number}_noBoundary.tif", colours)
    out = vaihingen(root, "--eval-labels", eroded)
    train, val = (read_coco(out / "annotations" / f"{s}.json") for s in ("train", "val"))
    assert not any((tile_classes(train, t, CLASSES.names) == UNKNOWN).any() for t in train.tiles)
    truth = tile_classes(val, val.tiles[0], CLASSES.names)
    assert (truth[::8] == UNKNOWN).all() and (truth[1:8] != UNKNOWN).all()
    assert_in_place(val)
    assert val.info["more"]["pixels"]["not labelled"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train", 1, "--val", 1], "area 1 is listed twice"),
        (["--split", "train=1"], "areas have their splits"),
        (["--eval-tile-size", 8], "--eval-tile-size 8: expected 32"),
        (["--overlap", 40], "--overlap 40: expected 0 to 31"),
        (["--labels", "nowhere"], "nowhere: expected top_mosaic_09cm_area1.tif"),
    ],
)
def test_what_vaihingen_does_not_take(tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        vaihingen(replica(tmp_path), *words)


def test_two_kinds_of_labels_in_one_folder(tmp_path):
    root = replica(tmp_path)
    replica(root, (1,), suffix="_noBoundary")
    with pytest.raises(InputError, match="are both area 1"):
        vaihingen(root)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_parts_share_a_raster(width, height, size):
    seen = np.zeros((height, width), int)
    for x, y, w, h in parts(width, height, size):
        assert 0 < w <= size and 0 < h <= size
        seen[y : y + h, x : x + w] += 1
    assert (seen == 1).all()


# ---- Any colours or codes --------------------------------------------------------------------------------


def classes(folder, *words, labels="labels/*"):
    files = ["--images", str(folder / "images/*"), "--labels", str(folder / labels)]
    prepare(["classes", *files, "--out", str(folder / "out"), "--tile-size", "32", *map(str, words)])
    return folder / "out"


def coded(folder, numbers, **options):
    write(folder / "images/a.tif", picture(numbers))
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
    with pytest.raises(InputError) as error:
        classes(coded(tmp_path, numbers), *THREE)
    assert "a.tif: code of no class: 7 in 8 pixels. The classes are water 0, field 1, road 2" in str(
        error.value
    )
    assert not (tmp_path / "out").exists()
    dataset = read_coco(classes(tmp_path, *THREE, "--ignore", 7) / "annotations/train.json")
    assert (tile_classes(dataset, dataset.tiles[-1], ("water", "field", "road"))[-1, -8:] == UNKNOWN).all()


def test_a_colour_that_is_nearly_one_is_none(tmp_path):
    colours = coloured(area(1))
    colours[:, 0, 0] = (254, 255, 255)
    root = replica(tmp_path)
    write(root / "gts_for_participants/top_mosaic_09cm_area1.tif", colours)
    with pytest.raises(InputError, match=r"area1.tif: colour of no class: \(254, 255, 255\) in 1 pixels"):
        vaihingen(root)
    out = vaihingen(root, "--skip-invalid", "--train", 1, 2, "--test")
    assert len(read_coco(out / "annotations/train.json").tiles) == 20, "area 2 alone"


def test_a_class_without_pixels_is_named(tmp_path, capsys):
    classes(coded(tmp_path, area(5, 32, 32) % 2), *THREE)
    assert "no pixel of class road" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((1, 32, 40), np.uint8), "32 x 32 px, but its mask .* has 40 x 32 px"),
        (np.zeros((3, 32, 32), np.uint8), "has 3 bands, expected 1 of codes"),
        (np.zeros((2, 32, 32), np.uint8), "labels have 1, 3"),
        (np.full((1, 32, 32), 0.5, np.float32), "code of no class"),
        (np.full((1, 32, 32), np.nan, np.float32), "code of no class"),
    ],
    ids=["size", "colours", "two bands", "halves", "nan"],
)
def test_labels_that_are_none(tmp_path, labels, message):
    coded(tmp_path, np.zeros((32, 32), int))
    write(tmp_path / "labels/a.tif", labels)
    with pytest.raises(InputError, match=message):
        classes(tmp_path, *THREE)


@pytest.mark.parametrize(
    ("words", "ignored", "message"),
    [
        (["tree"], [], "expected NAME=CODE"),
        (["tree=green", "b=1"], [], "--class green: expected a code"),
        (["tree=1"], [], "1 classes, expected 2"),
        (["tree=1", "road=1"], [], "class value 1 stands for two things"),
        (["tree=1", "road=2"], ["2"], "class value 2 stands for two things"),
        (["tree=1", "tree=2"], [], "expected different names"),
        (["tree=1", "road=0,0,1"], [], "the same kind for all"),
        (["tree=0,0,0", "road=0,0,256"], [], "from 0 to 255"),
        (["tree=-1", "road=0"], [], "from 0 to"),
    ],
)
def test_lists_that_are_none(words, ignored, message):
    with pytest.raises(InputError, match=message):
        parse_classes(words, ignored)


def test_a_list_as_words_and_as_info():
    found = parse_classes(["a=b=0,0,1", "c=4,5,6"], ["0,0,0"])
    assert found == ClassList(("a=b", "c"), ((0, 0, 1), (4, 5, 6)), ((0, 0, 0),))
    assert str(found) == "a=b (0, 0, 1), c (4, 5, 6); not labelled (0, 0, 0)"
    assert ClassList.from_info(found.to_info()) == found
    codes = parse_classes(["a=1", "b=0"])
    assert ClassList.from_info(codes.to_info()) == codes and codes.to_info()["classes"][0]["code"] == 1
