"""Scores of numbers against numbers worked out by hand."""

from fusiondet.evaluation import is_error
from fusiondet.projects.hse_lcz.regression import regression_metrics

import numpy as np
import pytest


def test_scores_by_hand():
    truth = np.array([0.0, 0.5, 1.0, np.nan])
    numbers = regression_metrics(truth, np.array([0.1, 0.5, 0.7, 99.0]), "hse")
    assert numbers == {
        "hse/mae": pytest.approx(0.4 / 3),
        "hse/rmse": pytest.approx((0.10 / 3) ** 0.5),
        "hse/bias": pytest.approx(-0.2 / 3),
        "hse/r2": pytest.approx(1 - 0.10 / 0.5),
        "hse/n": 3,
    }


def test_the_mean_scores_zero_and_worse_is_below():
    truth = np.array([0.2, 0.4, 0.9])
    assert regression_metrics(truth, np.full(3, 0.5))["regression/r2"] == pytest.approx(0)
    assert regression_metrics(truth, 1 - truth)["regression/r2"] < 0


@pytest.mark.parametrize("value", [0.1, 0.7])
def test_r2_of_equal_truth_is_not_defined(value):
    numbers = regression_metrics(np.full(7, value), np.full(7, 0.3), "hse")
    assert numbers["hse/r2"] is None and numbers["hse/mae"] == pytest.approx(abs(value - 0.3))


def test_without_truth_nothing_is_defined():
    numbers = regression_metrics(np.full(2, np.nan), np.zeros(2), "hse")
    assert numbers == {"hse/mae": None, "hse/rmse": None, "hse/bias": None, "hse/r2": None, "hse/n": 0}


def test_a_prediction_that_is_no_number_is_not_hidden():
    assert np.isnan(regression_metrics(np.zeros(2), np.array([0.0, np.nan]))["regression/mae"])


def test_wrong_shapes_are_errors_of_the_caller():
    with pytest.raises(ValueError, match="one length"):
        regression_metrics(np.zeros(2), np.zeros(3))


def test_errors_are_better_when_smaller_and_shares_when_larger():
    assert is_error("hse/mae") and is_error("hse/rmse") and is_error("height/mae_m")
    assert not is_error("hse/r2") and not is_error("lcz/oa") and not is_error("lcz/mean_f1")
