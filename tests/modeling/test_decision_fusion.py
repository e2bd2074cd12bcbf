"""Boxes and heights of two detectors, on numbers one can check by hand."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.modeling.decision_fusion import BoxFusion, combine_heights, fuse_boxes, valid_shares
from fusiondet.modeling.height_head import HeightDistribution

import pytest
import torch
from detectron2.structures import Boxes, Instances

NAN = float("nan")


def found(boxes, scores, classes=None):
    """Detections, and their shares when both modalities have data everywhere."""
    instances = Instances((100, 100), pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.tensor(classes or [0] * len(scores), dtype=torch.long)
    return instances, torch.ones(len(scores), 2)


def fused(optical, sar, match_iou=0.5):
    return fuse_boxes(optical[0], sar[0], optical[1], sar[1], match_iou)


def test_boxes_of_both_are_averaged_by_score_and_scores_plainly():
    result = fused(found([[0.0, 0, 10, 10]], [0.9]), found([[0.0, 0, 10, 12]], [0.3]))
    torch.testing.assert_close(result.pred_boxes.tensor, torch.tensor([[0.0, 0, 10, 10.5]]))
    torch.testing.assert_close(result.scores, torch.tensor([0.6]))


def test_a_box_that_only_one_of_two_finds_keeps_half_its_score():
    optical = found([[0.0, 0, 10, 10], [50.0, 50, 60, 60]], [0.6, 0.9])
    result = fused(optical, found([[0.0, 0, 10, 10]], [0.8]))
    torch.testing.assert_close(result.scores, torch.tensor([0.7, 0.45]))
    torch.testing.assert_close(result.pred_boxes.tensor, torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 60, 60]]))


def test_a_modality_without_data_has_no_say():
    optical = found([[0.0, 0, 10, 10]], [0.9])
    optical[1][:, 1] = 0
    result = fused(optical, found([], []))
    assert torch.equal(result.scores, optical[0].scores)


def test_half_the_data_has_half_the_weight():
    optical, sar = found([[0.0, 0, 10, 10]], [0.9]), found([[0.0, 0, 10, 13]], [0.9])
    optical[1][:, 1] = sar[1][:, 1] = 0.5
    result = fused(optical, sar)
    torch.testing.assert_close(result.pred_boxes.tensor, torch.tensor([[0.0, 0, 10, 11]]))
    torch.testing.assert_close(result.scores, torch.tensor([0.9]))
    assert fused(optical, found([], [])).scores.item() == pytest.approx(0.6)


def test_the_better_scored_box_takes_its_best_partner_and_only_one():
    optical = found([[0.0, 0, 10, 10], [0.0, 0, 10, 14]], [0.9, 0.5])
    result = fused(optical, found([[0.0, 0, 10, 11], [0.0, 0, 10, 13.5]], [0.8, 0.4]))
    assert len(result) == 2
    torch.testing.assert_close(result.scores, torch.tensor([0.85, 0.45]))


@pytest.mark.parametrize(("iou", "count"), [(0.49, 1), (0.51, 2)])
def test_boxes_merge_above_the_threshold_only(iou, count):
    assert len(fused(found([[0.0, 0, 10, 10]], [0.9]), found([[0.0, 0, 10, 5]], [0.9]), iou)) == count


def test_other_classes_are_other_things():
    result = fused(found([[0.0, 0, 10, 10]], [0.9]), found([[0.0, 0, 10, 10]], [0.8], [1]))
    assert result.pred_classes.tolist() == [0, 1]


def test_nothing_and_nothing_is_nothing():
    assert len(fused(found([], []), found([], []))) == 0


@pytest.mark.parametrize(
    ("box", "share"),
    [
        ([0.0, 0, 4, 4], 0.0),
        ([4.0, 0, 8, 4], 1.0),
        ([2.0, 0, 6, 4], 0.5),
        ([4.2, 0.0, 4.8, 1.0], 1.0),
        ([20.0, 20, 30, 30], 0.0),
        ([6.0, 6, 6, 6], 0.0),
        ([0.0, -5, 8, 20], 0.5),
    ],
)
def test_share_of_a_box_with_data(box, share):
    image = torch.zeros(2, 10, 8)
    image[:, :, :4] = NAN
    image[0] = NAN
    assert valid_shares(image, torch.tensor([box])).item() == pytest.approx(share)


def heights(median_m, scale, range_m=(1.0, 200.0)):
    return HeightDistribution(
        torch.tensor(median_m).log(), torch.tensor(scale).log(), range_m, torch.tensor(7.0)
    )


def test_heights_are_weighted_by_inverse_variance_of_the_log():
    # Variances 1 : 4, weights 0.8 and 0.2: exp(0.8 ln 10 + 0.2 ln 20).
    result = combine_heights([heights([10.0], [0.1]), heights([20.0], [0.2])], torch.ones(1, 2))
    assert result.location.exp().item() == pytest.approx(10 * 2**0.2, rel=1e-5)
    median = math.log(10 * 2**0.2)
    variance = 0.8 * (0.02 + (math.log(10) - median) ** 2) + 0.2 * (0.08 + (math.log(20) - median) ** 2)
    assert result.log_scale.exp().item() == pytest.approx(math.sqrt(variance / 2), rel=1e-5)


def test_agreement_makes_no_branch_surer_than_the_best_and_disagreement_less_sure():
    same = combine_heights([heights([10.0], [0.1]), heights([10.0], [0.1])], torch.ones(1, 2))
    apart = combine_heights([heights([8.0], [0.1]), heights([12.5], [0.1])], torch.ones(1, 2))
    assert same.log_scale.exp().item() == pytest.approx(0.1, rel=1e-5)
    assert apart.location.exp().item() == pytest.approx(10, rel=1e-5)
    assert apart.log_scale.exp().item() > 0.18


def test_without_data_of_one_the_height_is_the_others_and_the_width_is_common():
    shares = torch.tensor([[1.0, 0.0], [0.0, 0.3], [0.0, 0.0]])
    parts = [heights([10.0] * 3, [0.1] * 3), heights([40.0] * 3, [0.1] * 3)]
    result = combine_heights(parts, shares, torch.tensor(1.5))
    assert result.location.exp().tolist() == pytest.approx([10, 40, 20], rel=1e-5)
    assert result.log_scale.exp()[:2].tolist() == pytest.approx([0.1, 0.1], rel=1e-5)
    low, median, high = result.heights_m()
    assert math.log(high[0] / median[0]) == pytest.approx(1.5 * 0.1 * math.log(1 / 0.32), rel=1e-5)
    assert math.log(median[0] / low[0]) == pytest.approx(1.5 * 0.1 * math.log(1 / 0.32), rel=1e-5)


def test_merged_boxes_above_the_threshold_are_kept_best_first_up_to_a_number():
    boxes = [[20.0 * i, 0, 20 * i + 10, 10] for i in range(3)]
    pairs = {"optical": found(boxes, [0.9, 0.3, 0.7]), "sar": found(boxes, [0.9, 0.3, 0.9])}
    instances = {m: [pair[0]] for m, pair in pairs.items()}
    shares = {m: [pair[1]] for m, pair in pairs.items()}
    (kept,) = BoxFusion(match_iou=0.5, score_threshold=0.5)(instances, shares)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.8])
    (best,) = BoxFusion(score_threshold=0.5, max_detections=1)(instances, shares)
    assert best.scores.tolist() == pytest.approx([0.9])
