"""Greedy matching by IoU, on matrices one can match by hand, and against pycocotools' rule for ties."""

from fusiondet.evaluation.matching import NOTHING, mask_iou, match_greedily
from fusiondet.io.coco import encode_rle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st


def matched(iou, threshold=0.5, **options):
    return match_greedily(np.array(iou, float), [threshold], **options)[0].tolist()


@pytest.mark.parametrize(
    ("iou", "expected"),
    [
        (np.zeros((0, 0)), []),
        (np.zeros((2, 0)), [NOTHING, NOTHING]),
        (np.zeros((0, 2)), []),
        ([[0.5]], [0]),
        ([[0.49]], [NOTHING]),
        ([[0.6, 0.9]], [1]),  # the larger overlap
        ([[0.6, 0.9], [0.55, 0.95]], [1, 0]),  # the first takes what the second would like better
        ([[0.9], [0.95]], [0, NOTHING]),  # a truth is taken once
        ([[0.7, 0.7]], [1]),  # of equals the later one, as in pycocotools
    ],
)
def test_matching_by_hand(iou, expected):
    assert matched(iou) == expected


def test_each_threshold_is_matched_by_itself():
    rows = match_greedily(np.array([[0.6, 0.9], [0.8, 0.0]]), [0.5, 0.7, 0.95])
    assert rows.tolist() == [[1, 0], [1, 0], [NOTHING, NOTHING]]


def test_ignored_truth_is_taken_last_and_a_crowd_by_many():
    ignored = np.array([True, False])
    assert matched([[0.9, 0.6]], ignored=ignored) == [1]
    assert matched([[0.9, 0.6], [0.9, 0.6]], ignored=ignored) == [1, 0]
    crowd = np.array([True, False])
    assert matched([[0.9, 0], [0.8, 0], [0.7, 0.6]], ignored=ignored, crowd=crowd) == [0, 0, 1]


def test_pairs_that_are_not_allowed_never_match():
    allowed = np.array([[True, False]])
    assert matched([[0.6, 0.9]], allowed=allowed) == [0]
    assert matched([[0.6, 0.9]], allowed=np.zeros((1, 2), bool)) == [NOTHING]


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 10_000))
def test_matches_are_one_to_one_and_maximal(predictions, truths, seed):
    iou = np.random.default_rng(seed).random((predictions, truths))
    row = matched(iou)
    taken = [truth for truth in row if truth != NOTHING]
    assert len(taken) == len(set(taken))
    assert all(iou[i, truth] >= 0.5 for i, truth in enumerate(row) if truth != NOTHING)
    free = [g for g in range(truths) if g not in taken]
    assert not any(iou[i, g] >= 0.5 for i, truth in enumerate(row) if truth == NOTHING for g in free)


def test_iou_of_masks_and_of_crowds():
    left, both = np.zeros((4, 8), bool), np.ones((4, 8), bool)
    left[:, :4] = True
    rles = [encode_rle(left), encode_rle(both)]
    assert mask_iou(rles, rles, np.array([False, False])) == pytest.approx(np.array([[1, 0.5], [0.5, 1]]))
    assert mask_iou(rles[:1], rles[1:], np.array([True])) == pytest.approx(np.array([[1.0]]))
    assert mask_iou([], rles, np.zeros(2)).shape == (0, 2) and mask_iou(rles, [], np.zeros(0)).shape == (2, 0)
