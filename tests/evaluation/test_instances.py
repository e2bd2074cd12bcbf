"""What evaluate_instances accepts: a Dataset, a path, a document; polygons and RLE; and what it refuses."""

import json
import time

from fusiondet.buildings import Building, Tile
from fusiondet.errors import InputError
from fusiondet.evaluation.instances import evaluate_instances, matched_heights
from fusiondet.files import write_json
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset, decode_rle, encode_rle, prediction_record, write_coco
from tests.support.messages import raises_naming

import numpy as np
import pytest
from pycocotools import mask as mask_api
from shapely.geometry import box

SIZE = 64


def courtyard():
    return box(30, 30, 50, 50).difference(box(36, 36, 44, 44))


def two_tiles():
    first = Tile(
        "a.tif", SIZE, SIZE, 0.5, buildings=[Building(box(2, 2, 12, 12), 6.0), Building(courtyard(), 9.0)]
    )
    second = Tile("b.tif", SIZE, SIZE, 0.5, buildings=[Building(box(5, 5, 25, 15))])
    return Dataset([first, second], BandSpec())


def perfect_records(dataset):
    records = []
    for image_id, tile in enumerate(dataset.tiles, start=1):
        for n, b in enumerate(tile.buildings):
            rle = encode_rle(polygon_to_mask(b.polygon, SIZE, SIZE))
            height_m = None if b.height_m is None else (b.height_m - 1, b.height_m + 0.5, b.height_m + 2)
            records.append(prediction_record(image_id, 0.9 - 0.1 * n, b.polygon.bounds, rle, height_m))
    return records


def test_dataset_path_and_document_give_the_same_scores(tmp_path):
    dataset = two_tiles()
    path = tmp_path / "annotations" / "val.json"
    write_coco(dataset, path)
    records = perfect_records(dataset)
    got = evaluate_instances(dataset, records)
    assert (
        got == evaluate_instances(path, records) == evaluate_instances(json.loads(path.read_text()), records)
    )
    assert got["segm/AP"] == got["bbox/AP"] == got["joint/AP"] == pytest.approx(100)
    assert (got["height/n"], got["height/coverage"], got["height/interval_coverage"]) == (2, 1.0, 1.0)
    assert got["height/bias_m"] == pytest.approx(0.5)
    json.dumps(got, allow_nan=False)


def test_matched_heights_are_the_pairs_behind_the_numbers():
    dataset = two_tiles()
    pairs = matched_heights(dataset, perfect_records(dataset))
    expected = [[6.0, 6.5, 5.0, 8.0], [9.0, 9.5, 8.0, 11.0], [np.nan] * 4]
    np.testing.assert_allclose(pairs, expected)
    assert matched_heights(dataset, []).shape == (0, 4)


def test_inputs_are_left_as_they_were():
    dataset = two_tiles()
    records = perfect_records(dataset)
    before = json.dumps(records)
    evaluate_instances(dataset, records)
    assert json.dumps(records) == before


def test_polygons_without_boxes_and_other_category_ids_are_accepted():
    ring = [2, 2, 12, 2, 12, 12, 2, 12]
    record = {"image_id": 1, "score": 0.9, "category_id": 7, "segmentation": [ring]}
    got = evaluate_instances(two_tiles(), [record], metrics=("coco",))
    assert got == evaluate_instances(two_tiles(), [record | {"segmentation": ring}], metrics=("coco",))
    assert got["segm/AP50"] == got["bbox/AP50"] == pytest.approx(100 * 34 / 101)
    assert "joint/AP" not in got and "height/n" not in got


def test_only_the_best_scored_predictions_of_an_image_count():
    dataset = two_tiles()
    records = perfect_records(dataset)
    got = evaluate_instances(dataset, records, max_detections=1)
    assert (got["height/n"], got["height/coverage"]) == (1, 0.5)
    assert evaluate_instances(dataset, records)["dataset/max_detections"] == 100


def test_the_default_cap_lies_above_the_densest_image():
    many = [Building(box(x, y, x + 3, y + 3), 5.0) for x in range(0, 60, 4) for y in range(0, 60, 4)]
    dataset = Dataset([Tile("a.tif", SIZE, SIZE, 0.5, buildings=many)], BandSpec())
    records = perfect_records(dataset)
    for n, record in enumerate(records):
        record["score"] = 1 - n / 1000
    got = evaluate_instances(dataset, records)
    assert len(many) == 225 and got["dataset/max_detections"] == 450
    assert got["segm/AP"] == got["joint/AP"] == pytest.approx(100)


def test_unknown_metric_lists_the_right_ones():
    with raises_naming("coco", "height", "joint"):
        evaluate_instances(two_tiles(), [], metrics=("heights",))


def test_records_of_another_split_are_refused():
    record = perfect_records(two_tiles())[0] | {"image_id": 77}
    with raises_naming("77"):
        evaluate_instances(two_tiles(), [record])


def test_a_mask_of_another_size_is_refused():
    rle = encode_rle(np.ones((8, 8), bool))
    with raises_naming("[8, 8]", "[64, 64]"):
        evaluate_instances(two_tiles(), [prediction_record(1, 0.5, (0, 0, 8, 8), rle, None)])


@pytest.mark.parametrize(
    "counts", [[3, 500], [-1, 4097], ["a"], "0P", "zzzz", "", "P", "oooooooo", "o" * 40 + "0", "é", None, 5]
)
def test_broken_masks_in_a_file_are_refused(tmp_path, counts):
    record = perfect_records(two_tiles())[0]
    record["segmentation"] = {"size": [SIZE, SIZE], "counts": counts}
    write_json([record], tmp_path / "predictions.json")
    with raises_naming("prediction 0", "RLE"):
        evaluate_instances(two_tiles(), tmp_path / "predictions.json")


@pytest.mark.parametrize("seed", range(5))
def test_runs_of_compressed_masks_are_read_as_pycocotools_writes_them(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((int(rng.integers(1, 700)), int(rng.integers(1, 700)))) < rng.choice([0, 0.001, 0.5, 1])
    rle = encode_rle(mask)
    assert (decode_rle(rle, *mask.shape) == mask).all()
    wrong = rle | {"size": [mask.shape[0] + 1, mask.shape[1]]}
    with pytest.raises(InputError, match="add up to"):
        decode_rle(wrong, *wrong["size"])


def test_predictions_may_come_as_a_file(tmp_path):
    dataset, path = two_tiles(), tmp_path / "predictions.json"
    write_json(perfect_records(dataset), path)
    assert evaluate_instances(dataset, path) == evaluate_instances(dataset, perfect_records(dataset))


def test_a_polygon_with_half_a_point_is_refused():
    record = {"image_id": 1, "score": 0.9, "segmentation": [[2, 2, 12, 2, 12, 12, 2]]}
    with raises_naming("prediction 0", "odd"):
        evaluate_instances(two_tiles(), [record])


@pytest.mark.parametrize("ring", [["a", 0, 9, 0, 9, 9], [0, 0, 1e9, 0, 9, 9], 7])
def test_a_polygon_that_is_no_pixels_is_refused(ring):
    record = {"image_id": 1, "score": 0.9, "segmentation": [[0, 0, 9, 0, 9, 9], ring]}
    with raises_naming("prediction 0", "pixels"):
        evaluate_instances(two_tiles(), [record])


@pytest.mark.parametrize(
    ("key", "value"), [("height_m", "12 m"), ("height_p16_m", True), ("height_p84_m", [3])]
)
def test_heights_that_are_no_numbers_are_refused(key, value):
    with pytest.raises(InputError, match=f"prediction 0: {key} is .*expected metres or null"):
        evaluate_instances(two_tiles(), [perfect_records(two_tiles())[0] | {key: value}])


def test_an_image_id_that_is_a_list_is_refused():
    with raises_naming("prediction 0", "[1]"):
        evaluate_instances(two_tiles(), [perfect_records(two_tiles())[0] | {"image_id": [1]}])


@pytest.mark.parametrize("score", [None, "0.5", True, float("nan")])
def test_a_score_that_is_no_number_is_refused(score):
    with raises_naming("prediction 0", "score"):
        evaluate_instances(two_tiles(), [perfect_records(two_tiles())[0] | {"score": score}])


def dense_scene(n_images):
    """441 houses and as many predictions per image of 512 x 512."""
    rng = np.random.default_rng(0)
    corners = [(x, y) for x in range(0, 500, 24) for y in range(0, 500, 24)]
    masks = np.zeros((512, 512, len(corners)), np.uint8, order="F")
    for n, (x, y) in enumerate(corners):
        masks[y : y + 15, x : x + 16, n] = 1
    rles = mask_api.encode(masks)
    tiles, records = [], []
    for image_id in range(1, n_images + 1):
        houses = [Building(box(x, y, x + 16, y + 16), 8.0) for x, y in corners]
        tiles.append(Tile("a.tif", 512, 512, 0.5, buildings=houses))
        for (x, y), rle in zip(corners, rles, strict=True):
            records.append(prediction_record(image_id, rng.random(), (x, y, x + 16, y + 15), rle, (7, 8, 9)))
    return Dataset(tiles, BandSpec()), records


def test_dense_images_take_milliseconds_each():
    dataset, records = dense_scene(8)
    start = time.perf_counter()
    got = evaluate_instances(dataset, records)
    assert got["joint/AP50"] == pytest.approx(100) and len(records) == 8 * 441
    assert (time.perf_counter() - start) / 8 < 0.5


def test_a_broken_polygon_is_named_with_its_file(tmp_path):
    path = tmp_path / "truth.json"
    write_coco(two_tiles(), path)
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentation"] = [[0, 0, 9, 0, 9]]
    path.write_text(json.dumps(document))
    with raises_naming("truth.json", "odd number"):
        evaluate_instances(path, [])


@pytest.mark.parametrize("numbers", [(-2, 0), (0, 2**62), (7, 3)])
def test_any_whole_number_may_be_an_image(numbers, tmp_path):
    path = tmp_path / "truth.json"
    write_coco(two_tiles(), path)
    document, records = json.loads(path.read_text()), perfect_records(two_tiles())
    for image in document["images"]:
        image["id"] = numbers[image["id"] - 1]
    for record in (*document["annotations"], *records):
        record["image_id"] = numbers[record["image_id"] - 1]
    assert evaluate_instances(document, records)["segm/AP50"] == 100
