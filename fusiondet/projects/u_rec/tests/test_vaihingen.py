"""The layout of ISPRS Vaihingen: areas, splits, windows, eroded labels, and input that is refused."""

from fusiondet.converters.prepare import StrictParser, prepare
from fusiondet.errors import InputError
from fusiondet.io.coco import read_coco
from fusiondet.io.pixel_classes import UNKNOWN, class_list, tile_classes
from fusiondet.io.tile_rasters import read_tile
from fusiondet.projects.u_rec.tests.vaihingen_replica import coloured, replica
from fusiondet.projects.u_rec.vaihingen import CLASSES, SPLITS, parts
from tests.support.class_rasters import area, image_of, write
from tests.support.messages import missing_facts, raises_naming

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO


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
    write(root / "top/top_mosaic_09cm_area2.tif", image_of(area(2)))
    out = vaihingen(root)
    assert sorted(p.stem for p in (out / "annotations").iterdir()) == ["train", "val"]
    text = capsys.readouterr().out
    assert missing_facts(text, "area 2", "1 areas without labels", "30 areas without an image") == []
    # The absent ones are in one line below their count.
    assert text.count("without an image") == 2 and "areas 3, 5, 7, " in text


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
    ("words", "facts"),
    [
        (["--train", 1, "--val", 1], ["area 1", "twice"]),
        (["--split", "train=1"], ["split", "train"]),
        (["--eval-tile-size", 8], ["eval_tile_size", 8, 32]),
        (["--overlap", 40], ["overlap", 40, 0, 31]),
        (["--labels", "nowhere"], ["nowhere", "top_mosaic_09cm_area1.tif"]),
    ],
)
def test_what_vaihingen_does_not_take(tmp_path, words, facts):
    with raises_naming(*facts):
        vaihingen(replica(tmp_path), *words)


def test_two_kinds_of_labels_in_one_folder(tmp_path):
    root = replica(tmp_path)
    replica(root, (1,), suffix="_noBoundary")
    with raises_naming("area 1", "_noBoundary"):
        vaihingen(root)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_parts_share_a_raster(width, height, size):
    seen = np.zeros((height, width), int)
    for x, y, w, h in parts(width, height, size):
        assert 0 < w <= size and 0 < h <= size
        seen[y : y + h, x : x + w] += 1
    assert (seen == 1).all()


def test_a_colour_that_is_nearly_one_is_none(tmp_path):
    colours = coloured(area(1))
    colours[:, 0, 0] = (254, 255, 255)
    root = replica(tmp_path)
    write(root / "gts_for_participants/top_mosaic_09cm_area1.tif", colours)
    with raises_naming("area1.tif", "(254, 255, 255)", 1):
        vaihingen(root)
    out = vaihingen(root, "--skip-invalid", "--train", 1, 2, "--test")
    assert len(read_coco(out / "annotations/train.json").tiles) == 20, "area 2 alone"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--eval-tile-size 8", "--eval-tile-size 8: expected 32 to 8192, or 0"),
        ("--tile-size 8", "--tile-size 8: expected 32 to 8192"),
        ("--split train=1", "--split, --block-m: .* Use --train, --val and --test"),
        ("--train 1 --val 1", "area 1 is listed twice in --train, --val and --test"),
    ],
)
def test_the_command_is_refused_in_its_own_words(words, message):
    with pytest.raises(InputError, match=message):
        prepare(f"vaihingen --root a --out b {words}".split(), parser=StrictParser)
