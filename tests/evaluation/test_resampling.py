"""Per-tile counts give the scores of whole data sets, regions are told apart, tiles drawn again give intervals."""

import time

from fusiondet.buildings import Building, Tile
from fusiondet.errors import InputError
from fusiondet.evaluation.dense import DenseCounts, DenseScores
from fusiondet.evaluation.instances import evaluate_instances
from fusiondet.evaluation.regions import Region
from fusiondet.evaluation.resampling import (
    MAP_SCORES,
    TileScores,
    difference,
    differences_table,
    paired_bootstrap,
    resampled,
    summarize,
    tile_scores,
)
from fusiondet.files import write_json
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from tests.support.messages import raises_naming
from tests.support.square_houses import LEFT, RIGHT, SIZE, city, found, record

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box


def random_city(seed, n_tiles=5, digits=1):
    """Tiles with squares, some of unknown height, and predictions that are shifted, missing, doubled or made up."""
    rng = np.random.default_rng(seed)
    tiles, records = [], []
    for n in range(n_tiles):
        corners = rng.permutation([(x, y) for x in range(2, 36, 12) for y in range(2, 36, 12)])[
            : rng.integers(0, 7)
        ]
        heights_m = rng.uniform(3, 20, len(corners))
        known = rng.random(len(corners)) < 0.8
        houses = [
            Building(box(x, y, x + 9, y + 8), float(h) if k else None)
            for (x, y), h, k in zip(corners.tolist(), heights_m, known, strict=True)
        ]
        # Ids run against the order of the tiles.
        tiles.append(Tile("a.tif", SIZE, SIZE, 0.5, buildings=houses, id=n_tiles - n))
        for (x, y), h in zip(corners.tolist(), heights_m, strict=True):
            for _ in range(rng.integers(0, 3)):
                dx, dy = rng.integers(-3, 4, 2).tolist()
                shape = box(max(x + dx, 0), max(y + dy, 0), x + dx + 9, y + dy + 8)
                guess = float(h * rng.uniform(0.7, 1.4))
                records.append(
                    record(n_tiles - n, round(rng.random(), digits), shape, (guess - 1, guess, guess + 2))
                )
        if rng.random() < 0.5:
            records.append(
                record(n_tiles - n, round(rng.random(), digits), box(20, 20, 24, 30), (2.0, 3.0, 4.0))
            )
    return Dataset(tiles, BandSpec()), records


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_counts_of_tiles_give_the_scores_of_the_whole(seed):
    dataset, records = random_city(seed)
    whole, ours = evaluate_instances(dataset, records), summarize(tile_scores(dataset, records))
    shared = whole.keys() & ours.keys()
    assert {"segm/AP50", "joint/AP50", "height/mae_m", "height/skill", "height/interval_coverage"} <= shared
    for key in shared:
        assert ours[key] == (None if whole[key] is None else pytest.approx(whole[key], abs=1e-9)), key


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_weight_of_two_is_the_tile_twice(seed):
    # Among equal scores the order decides, and that of copies is another one.
    tiles = tile_scores(*random_city(seed, digits=12))
    weights = np.random.default_rng(seed).integers(0, 4, len(tiles))
    copies = [tile for tile, n in zip(tiles, weights, strict=True) for _ in range(n)]
    weighted, copied = summarize(tiles, weights), summarize(copies)
    for key, value in copied.items():
        if "_norm" in key or "normalizer" in key:
            continue  # a fact of all tiles: that of those that weigh nothing, too
        assert weighted[key] == (None if value is None else pytest.approx(value, abs=1e-9)), key


def inside_left_half(_):
    region = np.zeros((SIZE, SIZE), bool)
    region[:, : SIZE // 2] = True
    return region


left_half = Region("left_half", inside_left_half)


def test_outside_the_region_nothing_counts_and_nothing_punishes():
    dataset = city(Building(LEFT, 6.0), Building(RIGHT, 9.0))
    all_of_it = summarize(tile_scores(dataset, [found(LEFT)]))
    inside = summarize(
        tile_scores(dataset, [found(LEFT), found(RIGHT), found(box(30, 20, 40, 30))], region=left_half)
    )
    assert all_of_it["match/recall"] == 0.5
    assert inside["segm/AP50"] == inside["joint/AP50"] == pytest.approx(100)
    assert (inside["match/recall"], inside["match/precision"], inside["match/n_truth"]) == (1, 1, 1)
    assert (inside["height/n"], inside["height/coverage"], inside["pixel/f1"]) == (1, 1, 1)


def test_what_matches_a_building_inside_counts_wherever_it_lies():
    house, guess = box(16, 2, 32, 12), box(20, 2, 32, 12)
    scores = summarize(tile_scores(city(Building(house, 6.0)), [found(guess)], region=left_half))
    assert scores["segm/AP50"] == pytest.approx(100)


def test_a_false_alarm_inside_the_region_punishes():
    alarm = found(box(2, 30, 12, 40), score=0.95)
    scores = summarize(tile_scores(city(Building(LEFT, 6.0)), [found(LEFT), alarm], region=left_half))
    assert scores["segm/AP50"] == pytest.approx(50)
    assert scores["match/precision"] == scores["pixel/precision"] == 0.5


def test_a_region_without_buildings_has_no_scores():
    scores = summarize(tile_scores(city(Building(RIGHT, 6.0)), [found(RIGHT)], region=left_half))
    assert scores["segm/AP50"] is scores["joint/AP50"] is scores["pixel/f1"] is scores["height/mae_m"] is None


def test_only_predictions_of_the_map_make_pixels_and_matches():
    dataset = city(Building(LEFT, 6.0))
    scores = summarize(tile_scores(dataset, [found(LEFT, score=0.4)]))
    assert scores["segm/AP50"] == pytest.approx(100)
    assert (scores["match/recall"], scores["pixel/f1"], scores["match/precision"]) == (0, 0, None)
    overlap = [found(LEFT), found(box(2, 2, 12, 22), 0.8)]
    pixels = tile_scores(dataset, overlap)[0].pixels
    np.testing.assert_array_equal(pixels[MAP_SCORES <= 0.8], [[100, 100, 0]] * 16)
    np.testing.assert_array_equal(pixels[MAP_SCORES > 0.8], [[100, 0, 0]] * 2 + [[0, 0, 100]])
    assert summarize(tile_scores(dataset, overlap))["pixel/best_f1"] == 1


def test_the_best_limit_of_the_score_is_found_whatever_the_scale():
    dataset, shapes = city(Building(LEFT, 6.0)), (LEFT, box(30, 20, 40, 30))
    for right, wrong in ((0.9, 0.8), (0.3, 0.2), (0.05, 0.01)):
        records = [found(shape, score) for shape, score in zip(shapes, (right, wrong), strict=True)]
        scores = summarize(tile_scores(dataset, records))
        assert scores["pixel/best_f1"] == scores["match/best_f1"] == 1
    assert scores["pixel/f1"] == 0


def test_the_map_of_instances_is_painted_from_half_on_and_counts_pixels_inside():
    dataset = city(Building(LEFT, 6.0), Building(RIGHT, 9.0))
    records = [found(LEFT, height_m=7.0), found(RIGHT, score=0.4, height_m=9.0)]
    (whole,), (half,) = (tile_scores(dataset, records, region=r) for r in (None, left_half))
    assert whole.dense == whole.painted and (whole.dense.tp, whole.dense.fn) == (100, 100)
    assert (whole.dense.building_n, whole.dense.building_abs_m, whole.dense.tallest_m) == (200, 1000, 9)
    assert (half.dense.tp, half.dense.fn, half.dense.building_abs_m, half.dense.tallest_m) == (100, 0, 100, 9)
    scores = summarize([whole])
    assert (scores["dense/recall"], scores["painted/delta1_building"]) == (0.5, 0.5)
    everything = tile_scores(dataset, records, score_threshold=0.4)
    assert summarize(everything)["dense/recall"] == 1 and summarize(everything)["match/recall"] == 0.5


def test_instances_without_heights_have_footprints_alone():
    records = [found(LEFT) | {"height_m": None, "height_p16_m": None, "height_p84_m": None}]
    scores = summarize(tile_scores(city(Building(LEFT, 6.0)), records))
    assert scores["dense/dice"] == 1 and scores["dense/mae_m_all"] is None
    nothing = summarize(tile_scores(city(Building(LEFT, 6.0)), []))
    assert nothing["dense/recall"] == 0 and nothing["dense/mae_m_building"] == 6


def test_counts_of_dense_heads_lie_beside_the_predictions(tmp_path):
    dataset, counts = city(Building(LEFT, 6.0)), DenseCounts(90, 10, 10, 2194, 100, 50.0, 25.0, 80, 90, 95)
    write_json([found(LEFT)], tmp_path / "predictions.json")
    DenseScores("auto", True, {1: {"all": counts}}).write(tmp_path / "dense_scores.json")
    (one,) = tile_scores(dataset, tmp_path / "predictions.json")
    assert one.dense == counts and one.painted.tp == 100
    drawn = paired_bootstrap(tile_scores(dataset, [found(LEFT)]), [one], draws=5)
    assert drawn["dense/dice"].difference == drawn["dense/dice"].low == pytest.approx(-0.1)
    assert drawn["painted/dice"].difference == 0 and "dense/normalizer_m" not in drawn
    with raises_naming("image 1", "left_half"):
        tile_scores(dataset, tmp_path / "predictions.json", region=left_half)
    another = city(Building(LEFT, 6.0), Building(RIGHT, 6.0))  # of another split, whose ids begin at 1 too
    with raises_naming("image 1", "100 of 2304", "200 of"):
        tile_scores(another, tmp_path / "predictions.json")


def test_a_network_without_instances_has_no_scores_of_them(tmp_path):
    counts = DenseCounts(90, 10, 10, 2194, 100, 50.0, 25.0, 80, 90, 95)
    write_json([], tmp_path / "predictions.json")
    DenseScores("auto", False, {1: {"all": counts}}).write(tmp_path / "dense_scores.json")
    scores = summarize(tile_scores(city(Building(LEFT, 6.0)), tmp_path / "predictions.json"))
    assert scores["dense/delta1_building"] == 0.8
    assert {v for k, v in scores.items() if not k.startswith("dense/")} == {None}


def tile(image_id, hit, missed=0):
    """A tile of one-pixel buildings: `hit` found, `missed` not."""
    true, no = np.ones(hit, bool), np.zeros(hit, bool)
    heights_m = np.tile([5.0, 6.0, 5.0, 7.0], (hit, 1))
    counts = (hit + missed, hit + missed, heights_m, np.array([hit, 0, missed]))
    return TileScores(image_id, np.full(hit, 0.9), true, no, true, no, *counts)


def test_the_same_predictions_differ_by_exactly_nothing():
    tiles = [tile(n, n % 3 + 1, n % 2) for n in range(12)]
    for one in paired_bootstrap(tiles, tiles, draws=50).values():
        assert one.difference is None or one.difference == one.low == one.high == 0
        assert not one.excludes_zero


def test_the_same_shift_on_every_tile_has_no_spread():
    a, b = [tile(n, 3, 1) for n in range(8)], [tile(n, 4) for n in range(8)]
    recall = paired_bootstrap(a, b, draws=50)["match/recall"]
    assert (recall.a, recall.b, recall.difference, recall.low, recall.high) == (0.75, 1, 0.25, 0.25, 0.25)
    assert recall.excludes_zero


def test_intervals_have_the_width_of_the_standard_error():
    # 400 tiles of one building, found in half of them: the standard error of the recall is 0.5 / 20.
    drawn = resampled([[tile(n, n % 2, 1 - n % 2) for n in range(400)]], draws=1000)[0]["match/recall"]
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert high - low == pytest.approx(2 * 1.96 * 0.025, rel=0.1)


def test_a_seed_gives_the_same_interval_again():
    a, b = [tile(n, n % 3, 1) for n in range(9)], [tile(n, (n + 1) % 3, 1) for n in range(9)]
    assert paired_bootstrap(a, b, draws=40, seed=3) == paired_bootstrap(a, b, draws=40, seed=3)
    assert paired_bootstrap(a, b, draws=40, seed=3) != paired_bootstrap(a, b, draws=40, seed=4)


def test_undefined_numbers_have_no_difference_and_rarely_defined_ones_no_interval():
    nothing = difference(None, 1.0, np.full(4, np.nan), np.ones(4))
    assert (nothing.difference, nothing.low) == (None, None)
    rare = difference(0.0, 1.0, np.zeros(4), np.array([1.0, np.nan, np.nan, np.nan]))
    assert (rare.difference, rare.low, rare.high) == (1.0, None, None)


@pytest.mark.parametrize("other", [[], [tile(1, 1)], [tile(2, 1), tile(1, 1)]])
def test_other_tiles_cannot_be_compared(other):
    with pytest.raises(InputError, match="same tiles"):
        paired_bootstrap([tile(1, 1), tile(2, 1)], other)


def test_the_table_shows_what_excludes_zero():
    a, b = [tile(n, 3, 1) for n in range(8)], [tile(n, 4) for n in range(8)]
    lines = differences_table(paired_bootstrap(a, b, draws=20), "rgb", "fused").splitlines()
    assert lines[0].split()[:3] == ["rgb", "fused", "difference"]
    row = next(line for line in lines if "match/recall" in line)
    assert row.split() == ["match/recall", "0.750", "1.000", "+0.250", "[+0.250,", "+0.250]", "*"]


def test_a_thousand_draws_take_seconds():
    rng = np.random.default_rng(0)
    tiles = []
    for n in range(300):
        true = rng.random(33) < 0.6
        scores = np.sort(rng.random(33))[::-1]
        rows = np.column_stack([rng.uniform(3, 30, (20, 2)), np.full(20, 2.0), np.full(20, 40.0)])
        no = np.zeros(33, bool)
        tiles.append(TileScores(n, scores, true, no, true, no, 25, 25, rows, np.array([9, 1, 1])))
    start = time.process_time()
    paired_bootstrap(tiles, tiles, draws=100)
    assert time.process_time() - start < 1.0
