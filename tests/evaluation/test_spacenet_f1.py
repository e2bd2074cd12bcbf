"""F1 of the SpaceNet challenges: the counts that the published evaluator gives, and masks on the way to outlines."""

import json
from pathlib import Path

from fusiondet.buildings import Building, Tile
from fusiondet.errors import InputError
from fusiondet.evaluation.spacenet_f1 import evaluate_spacenet, spacenet_counts, spacenet_table
from fusiondet.files import write_json
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset, encode_rle, prediction_record, write_coco
from tests.support.messages import raises_naming
from tests.support.spacenet_cases import CASES

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Polygon, box

PUBLISHED = json.loads(Path(__file__).with_name("published_scores.json").read_text())["spacenet"]["cases"]
SIZE = 64


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_the_published_evaluator(name):
    challenge = CASES[name]()
    counts = np.zeros(3, int)
    for tile, truth in challenge.truth.items():
        counts += spacenet_counts(truth, challenge.sorted_proposals(tile), challenge.min_area_px)
    assert dict(zip(("tp", "fp", "fn"), counts.tolist(), strict=True)) == PUBLISHED[name]


def test_every_published_number_is_compared():
    assert set(PUBLISHED) == set(CASES) and len(CASES) >= 20


def slow_counts(truth, proposals, min_area):
    """The rules in plain words."""
    left, right, wrong = [t for t in truth if t.area >= min_area], 0, 0
    for proposal in (p for p in proposals if p.area > min_area):
        ious = [proposal.intersection(t).area / proposal.union(t).area for t in left]
        if ious and max(ious) > 0.5:
            left.pop(ious.index(max(ious)))
            right += 1
        else:
            wrong += 1
    return right, wrong, len(left)


rectangles = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 8), st.integers(1, 8)), max_size=8
).map(lambda boxes: [box(x, y, x + w, y + h) for x, y, w, h in boxes])


@given(rectangles, rectangles, st.sampled_from([0, 6, 16]))
def test_counts_follow_the_rules_on_whole_numbers_where_ties_abound(truth, proposals, min_area):
    assert spacenet_counts(truth, proposals, min_area) == slow_counts(truth, proposals, min_area)


def record(polygon, score: float, image_id: int = 1, height_m=None) -> dict:
    x0, y0, x1, y1 = polygon.bounds
    rle = encode_rle(polygon_to_mask(polygon, SIZE, SIZE))
    return prediction_record(image_id, score, (x0, y0, x1, y1), rle, height_m)


def dataset(*tiles) -> Dataset:
    made = [
        Tile(f"{n}.tif", SIZE, SIZE, 0.5, id=n, buildings=[Building(p) for p in outlines])
        for n, outlines in enumerate(tiles, 1)
    ]
    return Dataset(made, BandSpec())


def test_tiles_are_pooled_and_not_averaged():
    house = box(4, 4, 20, 20)
    truth = dataset([house], [box(x, y, x + 12, y + 12) for x in (0, 16, 32) for y in (0, 16, 32)])
    numbers = evaluate_spacenet(truth, [record(house, 0.9), record(box(0, 0, 12, 12), 0.6, 2)])
    assert (numbers["spacenet/tp"], numbers["spacenet/fp"], numbers["spacenet/fn"]) == (2, 0, 8)
    assert numbers["spacenet/f1"] == pytest.approx(4 / 12)  # a mean of tiles would say (1 + 0.2) / 2
    assert (numbers["spacenet/precision"], numbers["spacenet/recall"]) == (1, 0.2)
    assert "F1 0.333, precision 1.000, recall 0.200 (2 tp, 0 fp, 8 fn" in spacenet_table(numbers)


def test_a_mask_becomes_the_borders_of_its_pixels():
    # 10 x 10 pixels against 10 x 20: IoU is exactly 0.5, not more. A mask outlined through the centres of its pixels
    # would be 9 x 9; one more row makes it right.
    truth = dataset([box(10, 10, 20, 30)])
    half, more = record(box(10, 10, 20, 20), 0.9), record(box(10, 10, 20, 21), 0.9)
    assert evaluate_spacenet(truth, [half])["spacenet/tp"] == 0
    assert evaluate_spacenet(truth, [more])["spacenet/tp"] == 1
    assert evaluate_spacenet(truth, [more], min_area_px=109)["spacenet/tp"] == 1
    assert evaluate_spacenet(truth, [more], min_area_px=110)["spacenet/fn"] == 1


def test_a_mask_keeps_its_hole_and_its_parts():
    ring = Polygon(box(2, 2, 42, 42).exterior, [box(6, 6, 38, 38).exterior])
    assert evaluate_spacenet(dataset([ring]), [record(ring, 0.9)])["spacenet/tp"] == 1
    assert evaluate_spacenet(dataset([ring]), [record(box(2, 2, 42, 42), 0.9)])["spacenet/tp"] == 0
    mask = np.zeros((SIZE, SIZE), bool)
    mask[0:10, 0:10] = mask[10:20, 10:20] = True  # touch by a corner
    corner = prediction_record(1, 0.9, (0, 0, 20, 20), encode_rle(mask), None)
    numbers = evaluate_spacenet(dataset([box(0, 0, 10, 10)]), [corner])
    assert (numbers["spacenet/tp"], numbers["spacenet/fp"]) == (0, 1)


def test_scores_choose_the_proposals_and_their_order():
    house, beside = box(4, 4, 20, 20), box(30, 30, 50, 50)
    records = [record(beside, 0.3), record(house, 0.5), record(house, 0.49)]
    few = evaluate_spacenet(dataset([house]), records)
    assert (few["spacenet/tp"], few["spacenet/fp"]) == (1, 0)
    all_of_them = evaluate_spacenet(dataset([house]), records, score_threshold=0)
    assert (all_of_them["spacenet/tp"], all_of_them["spacenet/fp"]) == (1, 2)


def test_no_cap_on_the_number_of_proposals():
    house = box(4, 4, 20, 20)
    records = [record(box(40, 40, 52, 52), 0.9)] * 150 + [record(house, 0.6)]
    numbers = evaluate_spacenet(dataset([house]), records)
    assert (numbers["spacenet/tp"], numbers["spacenet/fp"]) == (1, 150)


def test_nothing_is_not_defined():
    numbers = evaluate_spacenet(dataset([]), [])
    assert [numbers[f"spacenet/{key}"] for key in ("f1", "precision", "recall", "tp", "fn")] == [
        None,
        None,
        None,
        0,
        0,
    ]
    assert "F1 -, precision -" in spacenet_table(numbers)
    missed = evaluate_spacenet(dataset([box(0, 0, 20, 20)]), [])
    assert (missed["spacenet/f1"], missed["spacenet/precision"], missed["spacenet/recall"]) == (0, None, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_area_px": -1}, "smallest area is -1"),
        ({"min_area_px": float("nan")}, "smallest area is nan"),
        ({"score_threshold": 50}, r"score threshold is 50, expected a number in \[0, 1\]"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        evaluate_spacenet(dataset([]), [], **options)


def test_files_and_errors_are_those_of_instances(tmp_path):
    write_coco(dataset([box(4, 4, 20, 20)]), tmp_path / "truth.json")
    write_json([record(box(4, 4, 20, 20), 0.9)], tmp_path / "found.json")
    assert evaluate_spacenet(tmp_path / "truth.json", tmp_path / "found.json")["spacenet/f1"] == 1
    with raises_naming("image 7"):
        evaluate_spacenet(tmp_path / "truth.json", [record(box(4, 4, 20, 20), 0.9, image_id=7)])
