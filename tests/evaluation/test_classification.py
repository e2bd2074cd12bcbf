"""Confusion matrices and their scores, against numbers worked out by hand and against the definitions, written out."""

from fusiondet.errors import InputError
from fusiondet.evaluation.classification import ConfusionMatrix, class_metrics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

NAMES = ["road", "roof", "tree"]


def matrix(rows):
    return ConfusionMatrix(len(rows), np.array(rows))


def test_counts_pairs_and_leaves_out_what_is_unknown():
    counted = ConfusionMatrix(3)
    counted.add(np.array([[0, 1, -1], [2, 2, -1]]), np.array([[0, 2, 2], [2, 0, 17]]))
    assert counted.counts.tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 1]]
    assert counted.total == 4 and counted.n_classes == 3


def test_adding_in_parts_and_merging_is_adding_at_once():
    rng = np.random.default_rng(0)
    truth, said = rng.integers(-1, 5, 400), rng.integers(0, 5, 400)
    at_once = ConfusionMatrix(5).add(truth, said)
    parts = (
        ConfusionMatrix(5).add(truth[:150], said[:150]).merge(ConfusionMatrix(5).add(truth[150:], said[150:]))
    )
    assert (at_once.counts == parts.counts).all() and at_once.total == (truth >= 0).sum()


def test_scores_by_hand():
    # 10 roads, 8 of them found; 5 roofs, 4 found; trees are predicted once and never true.
    numbers = class_metrics(matrix([[8, 2, 0], [0, 4, 1], [0, 0, 0]]), NAMES, "lcz")
    assert numbers["lcz/n"] == 15
    assert numbers["lcz/oa"] == pytest.approx(12 / 15)
    assert numbers["lcz/aa"] == pytest.approx((0.8 + 0.8) / 2)  # the mean is over classes that are true
    chance = (10 * 8 + 5 * 6 + 0 * 1) / 15**2
    assert numbers["lcz/kappa"] == pytest.approx((0.8 - chance) / (1 - chance))
    assert numbers["lcz/f1/road"] == pytest.approx(2 * 8 / 18)
    assert numbers["lcz/f1/roof"] == pytest.approx(2 * 4 / 11)
    assert numbers["lcz/f1/tree"] == 0.0  # said where it is not
    assert numbers["lcz/mean_f1"] == pytest.approx((16 / 18 + 8 / 11 + 0) / 3)
    assert numbers["lcz/iou/road"] == pytest.approx(8 / 10)
    assert numbers["lcz/iou/roof"] == pytest.approx(4 / 7)
    assert numbers["lcz/miou"] == pytest.approx((0.8 + 4 / 7 + 0) / 3)


def test_a_class_that_is_nowhere_has_no_score_and_no_part_in_means():
    numbers = class_metrics(matrix([[3, 1, 0], [1, 3, 0], [0, 0, 0]]), NAMES, "x")
    assert numbers["x/f1/tree"] is None and numbers["x/iou/tree"] is None
    assert numbers["x/mean_f1"] == pytest.approx(0.75) and numbers["x/miou"] == pytest.approx(0.6)
    assert numbers["x/kappa"] == pytest.approx(0.5)


def test_nothing_counted_has_no_score_at_all():
    numbers = class_metrics(ConfusionMatrix(3), NAMES, "x")
    assert numbers.pop("x/n") == 0 and {*numbers.values()} == {None}


def test_kappa_of_a_single_class_is_not_defined_and_of_guessing_is_zero():
    assert class_metrics(matrix([[7, 0], [0, 0]]), NAMES[:2])["classes/kappa"] is None
    assert class_metrics(matrix([[4, 4], [4, 4]]), NAMES[:2])["classes/kappa"] == pytest.approx(0)
    assert class_metrics(matrix([[0, 5], [5, 0]]), NAMES[:2])["classes/kappa"] == pytest.approx(-1)


def test_everything_right_is_one_everywhere():
    numbers = class_metrics(matrix(np.diag([3, 1, 9])), NAMES)
    assert numbers.pop("classes/n") == 13
    assert {*numbers.values()} == {1.0}


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_order_of_classes_does_not_matter_and_all_is_within_bounds(k, seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 6, (k, k)) * rng.integers(0, 2, (k, k))
    order = rng.permutation(k)
    names = [f"c{i}" for i in range(k)]
    straight = class_metrics(matrix(counts), names)
    turned = class_metrics(matrix(counts[np.ix_(order, order)]), [names[i] for i in order])
    assert straight.keys() == turned.keys()
    for key, value in straight.items():
        assert (value is None) == (turned[key] is None)
        if value is not None:
            assert value == pytest.approx(turned[key])
            if not key.endswith(("/n", "/kappa")):
                assert 0 <= value <= 1
    for name in names:
        f1, iou = straight[f"classes/f1/{name}"], straight[f"classes/iou/{name}"]
        assert (f1 is None) == (iou is None)
        if f1 is not None:
            assert f1 == pytest.approx(2 * iou / (1 + iou))


@pytest.mark.parametrize(
    ("truth", "said", "message"),
    [
        ([0, 17], [0, 0], "true class 17, expected 0 to 2"),
        ([0, 1], [0, -1], "predicted class -1, expected 0 to 2"),
    ],
)
def test_labels_outside_the_list_of_classes_are_refused(truth, said, message):
    with pytest.raises(InputError, match=message):
        ConfusionMatrix(3).add(np.array(truth), np.array(said))


def test_wrong_arrays_are_errors_of_the_caller():
    with pytest.raises(ValueError, match="shape"):
        ConfusionMatrix(2).add(np.zeros(3, int), np.zeros(4, int))
    with pytest.raises(ValueError, match="integers"):
        ConfusionMatrix(2).add(np.zeros(3), np.zeros(3, int))
    with pytest.raises(ValueError, match="counts of 0 or more"):
        ConfusionMatrix(2).merge(np.zeros((3, 3), int))
    with pytest.raises(ValueError, match="1 or more"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="2 different"):
        class_metrics(ConfusionMatrix(3), ["a", "b", "b"])
