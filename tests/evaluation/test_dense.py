"""Scores of maps: by hand on six pixels, of the truth itself, of nothing at all, and sums against plain numpy."""

import dataclasses

from fusiondet.buildings import Building, Tile
from fusiondet.errors import InputError
from fusiondet.evaluation.dense import (
    DOMAINS,
    FOOTPRINT_SCORES,
    HEIGHT_SCORES,
    DenseCounts,
    DenseScores,
    building_delta1,
    dense_counts,
    dense_metrics,
    painted,
    tile_truth,
)
from fusiondet.files import read_json
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset, encode_rle
from tests.support.messages import raises_naming

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box

# Six pixels: three of a building, one of a building of unknown height, two of ground.
TRUTH_M = np.array([[10, 10, 10], [np.nan, 0, 0]], np.float32)
OUTLINES = np.array([[1, 1, 1], [1, 0, 0]], bool)
# 1.2 times too high, half as high, not seen; whatever; ground but for 0.5 m, and a false alarm of 4 m.
HEIGHT_M = np.array([[12, 5, 0], [7, 0.5, 4]], np.float32)
FOOTPRINT = np.array([[1, 1, 0], [1, 0, 1]], bool)


def six_pixels(**changes):
    maps = {"height_m": HEIGHT_M, "truth_m": TRUTH_M, "footprint": FOOTPRINT, "truth_footprint": OUTLINES}
    return dense_counts(**{**maps, **changes})


def test_footprints_by_hand():
    scores = dense_metrics([six_pixels()])
    counts = six_pixels()
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (3, 1, 1, 1)
    assert scores["dense/dice"] == scores["dense/f1"] == 6 / 8
    assert (scores["dense/iou"], scores["dense/accuracy"]) == (3 / 5, 4 / 6)
    assert (scores["dense/precision"], scores["dense/recall"]) == (3 / 4, 3 / 4)


def test_heights_on_building_pixels_by_hand():
    # Errors 2, 5 and 10 m; ratios 1.2, 2 and infinite: below 1.25, above 1.25^3 = 1.95, never.
    scores = dense_metrics([six_pixels()])
    assert scores["dense/mae_m_building"] == pytest.approx(17 / 3)
    assert scores["dense/mse_m2_building"] == pytest.approx((4 + 25 + 100) / 3)
    assert scores["dense/rmse_m_building"] == pytest.approx((129 / 3) ** 0.5)
    assert [scores[f"dense/delta{k}_building"] for k in (1, 2, 3)] == [1 / 3, 1 / 3, 1 / 3]


def test_heights_on_all_pixels_by_hand():
    # Beside those: ground at 0.5 m, right as it is below the limit, and a false alarm of 4 m.
    scores = dense_metrics([six_pixels()])
    assert scores["dense/mae_m_all"] == pytest.approx((17 + 0.5 + 4) / 5)
    assert scores["dense/mse_m2_all"] == pytest.approx((129 + 0.25 + 16) / 5)
    assert scores["dense/rmse_m_all"] == pytest.approx((145.25 / 5) ** 0.5)
    assert [scores[f"dense/delta{k}_all"] for k in (1, 2, 3)] == [2 / 5] * 3


def test_the_three_deltas_by_hand():
    ratios = np.array([[1.2, 1.25, 1.5], [1.9, 1.96, 1 / 1.2]])
    truth_m, everywhere = np.full((2, 3), 8.0), np.ones((2, 3), bool)
    scores = dense_metrics([dense_counts(truth_m * ratios, truth_m, everywhere, everywhere)])
    assert [scores[f"dense/delta{k}_building"] for k in (1, 2, 3)] == [2 / 6, 4 / 6, 5 / 6]


def test_normalised_heights_are_those_over_the_tallest_truth_or_what_was_asked_for():
    scores = dense_metrics([six_pixels()])
    assert scores["dense/normalizer_m"] == 10
    assert scores["dense/mae_norm_building"] == pytest.approx(1.7 / 3)
    assert scores["dense/mse_norm_all"] == pytest.approx(1.4525 / 5)
    assert scores["dense/rmse_norm_building"] == pytest.approx((1.29 / 3) ** 0.5)
    halved = dense_metrics([six_pixels()], normalizer_m=20.0)
    assert halved["dense/mae_norm_all"] == pytest.approx(scores["dense/mae_norm_all"] / 2)
    assert halved["dense/mae_m_all"] == scores["dense/mae_m_all"]


def test_without_a_footprint_it_is_where_a_metre_or_more_stands():
    counts = six_pixels(footprint=None, height_m=np.array([[1.0, 0.99, 5], [0, 0, 1.5]], np.float32))
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (2, 1, 2, 1)


def test_without_heights_their_scores_are_not_defined():
    scores = dense_metrics([six_pixels(height_m=None)])
    assert scores["dense/dice"] == 6 / 8
    assert all(scores[f"dense/{name}_{where}"] is None for name in HEIGHT_SCORES for where in DOMAINS)
    with pytest.raises(ValueError, match="neither"):
        six_pixels(height_m=None, footprint=None)


def test_a_part_of_a_tile_counts_its_own_pixels():
    inside = np.array([[1, 0, 0], [0, 1, 1]], bool)
    counts = six_pixels(inside=inside)
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (1, 1, 0, 1)
    assert (counts.building_n, counts.building_abs_m, counts.all_n, counts.all_abs_m) == (1, 2, 3, 6.5)
    whole, rest = six_pixels(), six_pixels(inside=~inside)
    for field in dataclasses.fields(DenseCounts):
        a, b, both = (getattr(c, field.name) for c in (counts, rest, whole))
        assert both == (max(a, b) if field.name == "tallest_m" else pytest.approx(a + b)), field.name


def test_the_truth_itself_scores_perfectly():
    known = np.nan_to_num(TRUTH_M)
    scores = dense_metrics([six_pixels(height_m=known, footprint=OUTLINES)])
    right = [f"dense/{n}{end}" for n in FOOTPRINT_SCORES for end in ("", "_tile_mean")]
    right += [f"dense/delta{k}_{where}" for k in (1, 2, 3) for where in DOMAINS]
    wrong = [f"dense/{n}_{where}" for n in HEIGHT_SCORES if "delta" not in n for where in DOMAINS]
    assert all(scores[key] == 1 for key in right) and all(scores[key] == 0 for key in wrong)
    assert len(right) + len(wrong) + 1 == len(scores)


def test_a_map_of_zeros_is_right_about_the_ground_only():
    scores = dense_metrics([six_pixels(height_m=np.zeros((2, 3)), footprint=None)])
    assert scores["dense/delta1_all"] == 2 / 5 and scores["dense/delta3_building"] == 0
    assert scores["dense/mae_m_building"] == 10 and scores["dense/mae_norm_building"] == 1
    assert (scores["dense/recall"], scores["dense/dice"], scores["dense/precision"]) == (0, 0, None)
    assert scores["dense/accuracy"] == 2 / 6


def test_a_number_that_is_none_counts_as_zero():
    broken = np.where(HEIGHT_M == 12, np.nan, np.where(HEIGHT_M == 5, np.inf, HEIGHT_M))
    zero = np.where((HEIGHT_M == 12) | (HEIGHT_M == 5), 0, HEIGHT_M)
    assert six_pixels(height_m=broken, footprint=None) == six_pixels(height_m=zero, footprint=None)


def test_an_outline_over_ground_has_no_height_to_be_right_about():
    # A raster that lies a little off its outlines: what is 0 inside one is ground for heights.
    scores = dense_metrics([six_pixels(truth_m=np.zeros((2, 3)), height_m=np.zeros((2, 3)))])
    assert scores["dense/delta1_building"] is scores["dense/mae_norm_all"] is None
    assert scores["dense/delta1_all"] == 1 and scores["dense/recall"] == 3 / 4


def test_a_tile_without_buildings_has_no_dice_and_does_not_count_in_its_mean():
    empty = dense_counts(np.zeros((2, 3)), np.zeros((2, 3)), None, np.zeros((2, 3), bool))
    alone, both = dense_metrics([empty]), dense_metrics([empty, six_pixels()])
    assert alone["dense/dice"] is alone["dense/iou_tile_mean"] is alone["dense/delta1_building"] is None
    assert (alone["dense/accuracy"], alone["dense/delta1_all"], alone["dense/normalizer_m"]) == (1, 1, None)
    assert both["dense/dice_tile_mean"] == 6 / 8
    assert both["dense/accuracy_tile_mean"] == pytest.approx((1 + 4 / 6) / 2)


def test_a_mean_over_tiles_is_not_the_pooled_score():
    full = np.ones((2, 3), bool)
    tiles = [dense_counts(None, TRUTH_M, full, t) for t in (full, np.array([[1, 0, 0], [0, 0, 0]], bool))]
    scores = dense_metrics(tiles)
    assert scores["dense/precision"] == 7 / 12
    assert scores["dense/precision_tile_mean"] == pytest.approx((1 + 1 / 6) / 2)


def test_no_tile_at_all_has_no_score():
    assert set(dense_metrics([]).values()) == set(dense_metrics([None, None]).values()) == {None}
    assert dense_metrics([None, six_pixels()]) == dense_metrics([six_pixels()])


def test_maps_of_different_sizes_are_refused():
    with raises_naming("(2, 3), (3, 2)"):
        six_pixels(height_m=HEIGHT_M.T)


# ---- Sums against plain numpy ------------------------------------------------------------------------------


def random_tile(rng):
    outlines = rng.random((2, 3)) < 0.6
    truth_m = np.where(outlines, rng.uniform(2, 20, (2, 3)), 0)
    truth_m[rng.random((2, 3)) < 0.2] = np.nan
    height_m = np.where(rng.random((2, 3)) < 0.5, 0, rng.uniform(0, 20, (2, 3)))
    return height_m, truth_m, rng.random((2, 3)) < 0.5, outlines


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_sums_of_tiles_give_the_scores_of_all_pixels(seed):
    rng = np.random.default_rng(seed)
    maps = [random_tile(rng) for _ in range(4)]
    weights = rng.integers(0, 3, 4)
    scores = dense_metrics([dense_counts(*m) for m in maps], weights)
    drawn = [m for m, n in zip(maps, weights, strict=True) for _ in range(n)]
    height_m, truth_m, footprint, outlines = np.array(drawn or np.zeros((0, 4, 2, 3))).swapaxes(0, 1)
    tp, either = (footprint * outlines).sum(), np.maximum(footprint, outlines).sum()
    assert scores["dense/iou"] == (pytest.approx(tp / either) if either else None)
    known = np.isfinite(truth_m)
    for where, chosen in (("building", known & (outlines > 0)), ("all", known)):
        pred, true = height_m[chosen], truth_m[chosen]
        if not len(true):
            assert scores[f"dense/rmse_m_{where}"] is None
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            right = np.maximum(pred / true, true / pred) < 1.25**2
        right |= (pred < 1) & (true < 1)
        assert scores[f"dense/rmse_m_{where}"] == pytest.approx(np.sqrt(((pred - true) ** 2).mean()))
        assert scores[f"dense/delta2_{where}"] == pytest.approx(right.mean())
        assert scores[f"dense/mae_m_{where}"] == pytest.approx(np.abs(pred - true).mean())


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_means_over_tiles_are_those_of_the_tiles_one_by_one(seed):
    rng = np.random.default_rng(seed)
    tiles = [dense_counts(*random_tile(rng)) for _ in range(3)]
    together, alone = dense_metrics(tiles), [dense_metrics([tile]) for tile in tiles]
    for name in FOOTPRINT_SCORES:
        values = [one[f"dense/{name}"] for one in alone if one[f"dense/{name}"] is not None]
        expected = pytest.approx(np.mean(values)) if values else None
        assert together[f"dense/{name}_tile_mean"] == expected, name


# ---- Instances painted, truth of a tile, and the file -------------------------------------------------------


def instance(mask, score, height_m):
    return {"score": score, "height_m": height_m, "segmentation": encode_rle(np.array(mask, bool))}


def test_instances_are_painted_the_better_scored_one_on_top():
    records = [
        instance([[1, 1, 0], [0, 0, 0]], 0.9, 6.0),
        instance([[0, 1, 1], [0, 0, 0]], 0.5, 9.0),
        instance([[0, 0, 0], [1, 0, 0]], 0.7, None),
        instance([[0, 0, 0], [0, 0, 1]], 0.49, 3.0),
    ]
    height_m, footprint = painted(records, (2, 3))
    np.testing.assert_array_equal(height_m, [[6, 6, 9], [0, 0, 0]])
    np.testing.assert_array_equal(footprint, [[1, 1, 1], [1, 0, 0]])
    assert painted(records, (2, 3), score_threshold=0.8)[1].sum() == 2
    assert painted(records, (2, 3), score_threshold=0.1)[1].sum() == 5
    assert not painted([], (2, 3))[0].any()


def test_the_truth_of_a_tile_is_its_outlines_and_their_heights():
    houses = [Building(box(0, 0, 2, 1), 6.0), Building(box(2, 0, 3, 1))]
    tile = Tile("a.tif", 3, 2, 0.5, buildings=houses)
    truth_m, outlines = tile_truth(Dataset([tile], BandSpec()), tile)
    np.testing.assert_array_equal(truth_m, [[6, 6, np.nan], [0, 0, 0]])
    np.testing.assert_array_equal(outlines, [[1, 1, 1], [0, 0, 0]])


def test_a_missing_raster_of_heights_is_named_with_the_way_out(tmp_path):
    tile = Tile("a.tif", 3, 2, 0.5, building_height_file_name="heights.tif")
    with raises_naming("heights.tif", "height_labels"):
        tile_truth(Dataset([tile], BandSpec(), root=tmp_path), tile)


def test_scores_of_heads_come_back_from_their_file(tmp_path):
    scores = DenseScores("ndsm", False, {7: {"all": six_pixels(), "under_cloud": DenseCounts(0, 0, 0, 6)}})
    scores.write(tmp_path / "dense_scores.json")
    again = DenseScores.beside(tmp_path / "predictions.json")
    assert again == scores and again.counts(7, "all", OUTLINES) == six_pixels()
    assert read_json(tmp_path / "dense_scores.json")["tiles"][0]["parts"]["all"]["building_abs_m"] == 17
    assert DenseScores.beside(tmp_path / "others.json") is None
    for image_id, part in ((8, "all"), (7, "in_the_clear")):
        with pytest.raises(InputError, match=f"no counts of image {image_id}, {part}"):
            again.counts(image_id, part, OUTLINES)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"height_labels": "auto", "instances": true, "tiles": [{"image_id": 1}]}']
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "dense_scores.json").write_text(content)
    with raises_naming("dense_scores.json"):
        DenseScores.beside(tmp_path / "predictions.json")


def test_delta1_of_one_tile():
    assert building_delta1(six_pixels()) == 1 / 3
    assert np.isnan(building_delta1(None)) and np.isnan(building_delta1(DenseCounts(0, 0, 0, 6)))


def test_skill_compares_with_the_best_constant_over_building_pixels():
    truth_m, everywhere = np.array([[4.0, 8.0, 12.0, np.nan]]), np.ones((1, 4), bool)

    def skill(height_m):
        return dense_metrics([dense_counts(np.full((1, 4), height_m), truth_m, everywhere, everywhere)])[
            "dense/skill"
        ]

    assert dense_metrics([dense_counts(truth_m, truth_m, everywhere, everywhere)])["dense/skill"] == 1
    assert skill(8.0) == pytest.approx(0)
    # Squared errors of 16, 64 and 144 over those of the mean, 16, 0 and 16.
    assert skill(0.0) == pytest.approx(1 - (224 / 32) ** 0.5)
    equal = np.full((1, 4), 7.3)
    assert dense_metrics([dense_counts(equal, equal, everywhere, everywhere)]).get("dense/skill") is None
    before = DenseCounts(3, 0, 0, 0, building_n=3, building_sq_m2=5.0)
    assert "dense/skill" not in dense_metrics([before]), "of a file of an earlier version"
