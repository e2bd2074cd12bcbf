"""Faults planted in an annotation file are counted and the images that have them named."""

from fusiondet.buildings import Building
from fusiondet.doctor.annotations import check_annotations
from fusiondet.files import write_json
from fusiondet.io.coco import encode_rle
from tests.support.doctor_cases import found, squares, tile
from tests.support.tiny_city import courtyard, write_tiles

import numpy as np


def test_counts_and_density(tmp_path):
    write_tiles(tmp_path, "train", [tile("a.tif", buildings=squares(90)), tile("b.tif")])
    write_tiles(tmp_path, "val", [tile("c.tif", buildings=squares(3))])
    result = found(check_annotations, tmp_path, 50)
    assert result["images and buildings"].numbers == {
        "train": {"images": 2, "buildings": 90, "empty_images": 1},
        "val": {"images": 1, "buildings": 3, "empty_images": 0},
    }
    density = result["density"]
    assert (
        density.verdict == "warn" and density.numbers["suggested_max_detections"] == 150
    )  # 1.25 * 90, in fifties
    assert density.numbers["images_above_max_detections"] == 1 and density.cases[0].image == "a.tif"
    assert found(check_annotations, tmp_path, 100)["density"].verdict == "ok"


def test_a_split_without_buildings_fails(tmp_path):
    write_tiles(tmp_path, "train", [tile("a.tif")])
    assert found(check_annotations, tmp_path)["images and buildings"].verdict == "FAIL"


def test_classes_of_pixels_are_labels_without_any_building(tmp_path):
    labelled, more = tile("a.tif"), tile("b.tif")
    labelled.class_file_name = "a_classes.tif"
    write_tiles(tmp_path, "train", [labelled, more])
    finding = found(check_annotations, tmp_path)["images and buildings"]
    assert finding.verdict == "ok" and finding.numbers["train"]["images_with_classes"] == 1
    assert "0 buildings, 2 empty, 1 with a class of each pixel" in finding.detail
    write_tiles(tmp_path, "val", [tile("c.tif")])
    finding = found(check_annotations, tmp_path)["images and buildings"]
    assert finding.verdict == "FAIL" and finding.remedy.startswith("val has no building")


def test_small_buildings(tmp_path):
    write_tiles(tmp_path, "train", [tile(buildings=squares(10) + squares(30, side=1.5)[10:])])
    sizes = found(check_annotations, tmp_path)["sizes of buildings"]
    assert sizes.verdict == "warn" and sizes.numbers["tiny"] == 20
    assert sizes.cases[0].note == "20 below 4 px²"


def write_document(root, images, annotations, split="train"):
    (root / "annotations").mkdir(exist_ok=True)
    categories = [{"id": 1, "name": "building"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    write_json(document, root / "annotations" / f"{split}.json")


def annotation(number, segmentation, image_id=1, **more):
    return {"id": number, "image_id": image_id, "category_id": 1, "segmentation": segmentation, **more}


IMAGE = {"id": 1, "file_name": "a.tif", "width": 100, "height": 100}


SQUARE = [10, 10, 20, 10, 20, 20, 10, 20]


def test_faults_of_outlines_are_counted_as_they_stand_in_the_file(tmp_path):
    bow_tie = [30, 30, 40, 40, 40, 30, 30, 40]
    outside = [90, 90, 120, 90, 120, 95, 90, 95]
    rings = [[SQUARE], [SQUARE], [bow_tie], [outside], [[50, 50, 60, 60, 70, 70]], [[1, 1, 2, 2]], []]
    write_document(tmp_path, [IMAGE], [annotation(i, ring) for i, ring in enumerate(rings)])
    outlines = found(check_annotations, tmp_path)["outlines"]
    assert outlines.verdict == "FAIL"
    assert outlines.numbers["faults"] == {
        "drawn twice": 1,
        "crossing themselves": 2,  # a line back and forth is no valid ring either
        "outside the image": 1,
        "with fewer than 3 corners": 1,
        "without a ring": 1,
    }


def test_polygons_beside_rle_and_crowds(tmp_path):
    mask = np.zeros((100, 100), bool)
    mask[50:60, 50:60] = True
    both = [annotation(1, [SQUARE]), annotation(2, encode_rle(mask))]
    write_document(tmp_path, [IMAGE], both)
    kinds = found(check_annotations, tmp_path)["kinds of outlines"]
    assert kinds.verdict == "warn" and "bitmask" in kinds.remedy
    write_document(tmp_path, [IMAGE], [annotation(1, [SQUARE]), annotation(2, [SQUARE], iscrowd=1)])
    kinds = found(check_annotations, tmp_path)["kinds of outlines"]
    assert kinds.numbers["crowd"] == 1 and "iscrowd" in kinds.remedy


def test_courtyards_as_rle_are_no_mixture(tmp_path):
    write_tiles(tmp_path, "train", [tile(buildings=[*squares(3), Building(courtyard(60, 60))])])
    kinds = found(check_annotations, tmp_path)["kinds of outlines"]
    assert kinds.verdict == "ok" and kinds.numbers["RLE"] == 1


def test_windows_of_one_raster_are_different_images(tmp_path):
    left, right = tile("big.tif"), tile("big.tif", at=(600050.0, 5800000.0))
    left.window, right.window = (0, 0, 100, 100), (100, 0, 100, 100)
    write_tiles(tmp_path, "train", [left])
    write_tiles(tmp_path, "val", [right])
    assert found(check_annotations, tmp_path)["file names"].verdict == "ok"
    write_tiles(tmp_path, "val", [left])
    assert found(check_annotations, tmp_path)["file names"].verdict == "FAIL"


def test_a_clean_data_set_raises_nothing(tmp_path):
    write_tiles(tmp_path, "train", [tile("a.tif", buildings=squares(9)), tile("b.tif", buildings=squares(1))])
    assert {finding.verdict for finding in found(check_annotations, tmp_path).values()} == {"ok"}


def test_a_split_without_any_image_is_counted_and_not_divided_by(tmp_path):
    write_document(tmp_path, [], [])
    result = found(check_annotations, tmp_path)
    assert result["images and buildings"].numbers["train"] == {"images": 0, "buildings": 0, "empty_images": 0}
    assert result["density"].verdict == result["sizes of buildings"].verdict == "n/a"


def test_the_same_image_twice_in_a_split(tmp_path):
    write_tiles(tmp_path, "train", [tile("a.tif"), tile("b.tif"), tile("a.tif")])
    names = found(check_annotations, tmp_path)["file names"]
    assert names.verdict == "warn" and names.numbers == {
        "names_in_two_splits": 0,
        "names_twice_in_a_split": 1,
    }
    assert [case.image for case in names.cases] == ["a.tif"]
