"""Height numbers by hand, and the CRPS against its defining integral."""

from fusiondet.evaluation.height_metrics import Z84, crps_log_normal, height_metrics, height_ratio

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr


def test_numbers_one_can_check_in_the_head():
    truth_m = np.array([2.0, 4.0, 10.0, 30.0, np.nan, 5.0])
    median_m = np.array([2.0, 5.0, 8.0, 60.0, 7.0, np.nan])
    got = height_metrics(truth_m, median_m, known_truth_total=10)
    assert (got["height/n"], got["height/coverage"]) == (4, 0.4)
    assert got["height/mae_m"] == pytest.approx((0 + 1 + 2 + 30) / 4)
    assert got["height/rmse_m"] == pytest.approx(np.sqrt((0 + 1 + 4 + 900) / 4))
    assert got["height/bias_m"] == pytest.approx((0 + 1 - 2 + 30) / 4)
    assert got["height/median_error_m"] == pytest.approx(0.5)
    assert got["height/nmad_m"] == pytest.approx(1.4826 * np.median([0.5, 0.5, 2.5, 29.5]))
    # Ratios 1, 1.25, 1.25, 2: "within a factor of 1.25" leaves the factor itself out.
    assert (got["height/delta1"], got["height/delta2"], got["height/delta3"]) == (0.25, 0.75, 0.75)
    assert got["height/skill"] == pytest.approx(1 - 8.25 / ((5 + 3 + 3 + 23) / 4))
    assert (got["height/bin_0_3_m/n"], got["height/bin_3_6_m/n"], got["height/bin_6_12_m/n"]) == (1, 1, 1)
    assert got["height/bin_24_50_m/mae_m"] == 30 and got["height/bin_6_12_m/bias_m"] == -2
    assert got["height/bin_50_inf_m/n"] == 0 and got["height/bin_50_inf_m/mae_m"] is None
    assert got["height/interval_coverage"] is None and got["height/crps_m"] is None


def test_nothing_gives_every_key_with_none_or_zero():
    empty = height_metrics(np.zeros(0), np.zeros(0), known_truth_total=0, prefix="height_gt_boxes")
    full = height_metrics(*np.full((4, 8), 3.0), prefix="height_gt_boxes")
    assert set(empty) == set(full)
    assert {v for k, v in empty.items() if k.endswith("/n")} == {0}
    assert {v for k, v in empty.items() if not k.endswith("/n")} == {None}


def test_the_best_constant_has_no_skill_and_equal_heights_have_none_to_gain():
    truth_m = np.array([2.0, 4.0, 9.0])
    assert height_metrics(truth_m, np.full(3, 4.0))["height/skill"] == 0
    assert height_metrics(truth_m, truth_m)["height/skill"] == 1
    assert height_metrics(np.full(3, 4.0), np.full(3, 4.0))["height/skill"] is None


def test_the_slope_says_how_far_predictions_follow_the_truth():
    truth_m = np.array([2.0, 4.0, 9.0])
    assert height_metrics(truth_m, 1 + 0.5 * truth_m)["height/slope"] == pytest.approx(0.5)
    assert height_metrics(truth_m, np.full(3, 4.0))["height/slope"] == pytest.approx(0.0)
    assert height_metrics(np.full(3, 4.0), truth_m)["height/slope"] is None


def test_a_height_that_is_no_height_is_never_close():
    assert height_ratio([5.0, 0.0, -2.0, np.nan], [5.0, 5.0, -2.0, 5.0]).tolist() == [
        1,
        np.inf,
        np.inf,
        np.inf,
    ]


@pytest.mark.parametrize("truth_m", [0.5, 6.0, 25.0])
@pytest.mark.parametrize(("median_m", "sigma"), [(6.0, 0.1), (6.0, 0.6), (12.0, 1.0)])
def test_crps_is_the_integral_that_defines_it(truth_m, median_m, sigma):
    def squared(x):
        return (ndtr(np.log(x / median_m) / sigma) - (x >= truth_m)) ** 2

    inner = sorted({truth_m, median_m * np.exp(-3 * sigma), median_m, median_m * np.exp(3 * sigma)})
    edges = [1e-12, *inner, 4000.0]
    expected = sum(quad(squared, a, b, limit=200)[0] for a, b in zip(edges, edges[1:], strict=False))
    assert crps_log_normal(truth_m, median_m, sigma) == pytest.approx(expected, rel=1e-5)


def test_crps_of_a_certain_prediction_is_its_error():
    assert crps_log_normal([5.0, 5.0], [5.0, 8.0], np.zeros(2)) == pytest.approx([0, 3], abs=1e-4)


def sample(seed=0, n=4000):
    """Truth drawn from the predicted distributions themselves: log-normal, with sigma from 0.05 to 0.5."""
    rng = np.random.default_rng(seed)
    median_m, sigma = np.exp(rng.normal(2, 0.6, n)), rng.uniform(0.05, 0.5, n)
    truth_m = median_m * np.exp(sigma * rng.normal(size=n))
    return truth_m, median_m, median_m * np.exp(-Z84 * sigma), median_m * np.exp(Z84 * sigma)


def test_honest_intervals_cover_two_thirds_and_beat_one_width_for_all():
    got = height_metrics(*sample())
    assert got["height/interval_coverage"] == pytest.approx(0.68, abs=0.02)
    assert got["height/crps_m"] < 0.97 * min(
        got["height/crps_constant_width_m"], got["height/crps_constant_ratio_m"]
    )
    mae = [got[f"height/width_q{k}/mae_m"] for k in (1, 2, 3, 4)]
    assert mae == sorted(mae) and sum(got[f"height/width_q{k}/n"] for k in (1, 2, 3, 4)) == 4000


def test_shuffled_widths_lose_against_one_width_for_all():
    truth_m, median_m, p16_m, _ = sample()
    ratio = np.random.default_rng(1).permutation(median_m / p16_m)
    got = height_metrics(truth_m, median_m, median_m / ratio, median_m * ratio)
    assert got["height/crps_m"] > got["height/crps_constant_ratio_m"]


def test_one_width_for_all_is_beaten_by_no_other_width():
    truth_m, median_m, p16_m, p84_m = sample(n=300)
    got = height_metrics(truth_m, median_m, p16_m, p84_m)
    for width_m in np.geomspace(0.1, 50, 40):
        sigma = np.arcsinh(width_m / (2 * median_m)) / Z84
        low, high = median_m * np.exp(-Z84 * sigma), median_m * np.exp(Z84 * sigma)
        assert high - low == pytest.approx(np.full(300, width_m))
        constant = height_metrics(truth_m, median_m, low, high)["height/crps_m"]
        assert constant >= got["height/crps_constant_width_m"] - 1e-6
