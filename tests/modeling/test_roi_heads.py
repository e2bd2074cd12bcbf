"""Which regions the height head is shown, and to whom its heights go."""

import math

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.modeling.height_head import DEFAULT_LOG_SCALE, DEFAULT_MEDIAN_M, HeightDistribution
from fusiondet.modeling.roi_heads import attach_sensor, set_heights
from fusiondet.modeling.sensor_geometry import SENSOR_FIELDS

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

NAN = math.nan
SIDE = 64
FEATURES = {f"p{i}": torch.ones(2, 16, SIDE // 2**i, SIDE // 2**i) for i in range(2, 6)}
SENSOR = torch.arange(2 * len(SENSOR_FIELDS), dtype=torch.float32).reshape(2, -1) + 1


@pytest.fixture
def build(small_cfg):
    """build(key, value, ...) -> ROI heads, and a list of what their height head is given: (boxes, masks, sensor)."""

    def build(*overrides):
        small_cfg.merge_from_list(list(overrides))
        shapes = {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in range(2, 6)}
        torch.manual_seed(0)
        heads, given = build_roi_heads(small_cfg, shapes), []
        if heads.height_head is not None:
            # An untrained head, exactly at its prior.
            torch.nn.init.zeros_(heads.height_head.predictor.weight)
            heads.height_head.register_forward_pre_hook(lambda _, arguments: given.append(arguments[1:]))
        return heads, given

    return build


def boxes_at(*left):
    """Boxes of 8 x 8 px whose left sides are at `left`."""
    return Boxes(torch.tensor([[x, 4.0, x + 8.0, 12.0] for x in left]).reshape(-1, 4))


def instances(**fields):
    found = Instances((SIDE, SIDE))
    for name, values in fields.items():
        found.set(name, values)
    return found


def positives(left, heights_m):
    return instances(proposal_boxes=boxes_at(*left), gt_heights=torch.tensor(heights_m))


def test_heights_of_the_batch_go_to_their_images():
    """Medians 2 to 5 m; intervals of a Laplace of scale 0.5: the median times and over 0.32 ** -0.5."""
    medians_m = torch.tensor([2.0, 3.0, 4.0, 5.0])
    predicted = HeightDistribution(medians_m.log(), torch.full((4,), math.log(0.5)), (1.0, 200.0))
    batch = [instances(scores=torch.zeros(n)) for n in (1, 0, 3)]
    set_heights(batch, predicted)
    assert [len(x.pred_heights) for x in batch] == [1, 0, 3]
    torch.testing.assert_close(torch.cat([x.pred_heights for x in batch]), medians_m)
    factor = 0.32**-0.5
    torch.testing.assert_close(batch[2].pred_height_p84, medians_m[1:] * factor)
    torch.testing.assert_close(batch[2].pred_height_p16, medians_m[1:] / factor)


def test_heights_go_by_lengths_where_they_are_given():
    predicted = HeightDistribution(torch.tensor([2.0, 3.0, 4.0]).log(), torch.zeros(3), (1.0, 200.0))
    batch = [Instances((SIDE, SIDE)), Instances((SIDE, SIDE))]
    set_heights(batch, predicted, lengths=[2, 1])
    torch.testing.assert_close(batch[0].pred_heights, torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(batch[1].pred_heights, torch.tensor([4.0]))


def test_every_region_knows_the_sensor_of_its_image():
    batch = [instances(scores=torch.zeros(n)) for n in (2, 0)]
    attach_sensor(batch, SENSOR)
    assert torch.equal(batch[0].sensor, SENSOR[[0, 0]])
    assert batch[1].sensor.shape == (0, len(SENSOR_FIELDS))


def test_heights_are_trained_on_known_ones_with_the_masks_of_the_same_regions(build):
    """Regions 0, 2 and 3 of the first image are known and two are taken; of the second it is region 1, the sixth."""
    heads, given = build("MODEL.ROI_HEIGHT_HEAD.MAX_POSITIVES_PER_IMAGE", 2)
    batch = [positives((0, 10, 20, 30), [6.0, NAN, 9.0, 12.0]), positives((40, 50), [NAN, 16.0])]
    attach_sensor(batch, SENSOR)
    masks = torch.arange(6.0)[:, None, None, None].expand(6, 1, 28, 28)
    with EventStorage():
        losses = heads._train_heights(FEATURES, batch, masks)
    [(boxes, seen, sensor)] = given
    assert [b.tensor[:, 0].tolist() for b in boxes] == [[0, 20], [50]]
    assert seen[:, 0, 0, 0].tolist() == [0, 2, 5]
    assert torch.equal(sensor, SENSOR[[0, 0, 1]])
    # |log h - log of the prior's median| / scale + log scale, the mean of the three.
    errors = [abs(math.log(h / DEFAULT_MEDIAN_M)) for h in (6.0, 9.0, 16.0)]
    expected = sum(errors) / 3 / DEFAULT_LOG_SCALE + math.log(DEFAULT_LOG_SCALE)
    assert losses["loss_height"].item() == pytest.approx(expected, rel=1e-5)


def test_images_without_truth_train_no_height_and_still_reach_the_head(build):
    heads, _ = build()
    # Detectron2 gives regions of such images no gt_heights at all.
    batch = [instances(proposal_boxes=boxes_at()), positives((4,), [NAN])]
    attach_sensor(batch, SENSOR)
    loss = heads._train_heights(FEATURES, batch, torch.zeros(1, 1, 28, 28))["loss_height"]
    loss.backward()
    assert loss.item() == 0 and heads.height_head.predictor.bias.grad.tolist() == [0, 0]


@torch.no_grad()
def test_given_boxes_learn_masks_and_heights_and_forget_the_sensor(build):
    heads, given = build()
    heads.eval()
    classes = {n: torch.zeros(n, dtype=torch.int64) for n in (2, 1)}
    batch = [
        instances(pred_boxes=boxes_at(*left), pred_classes=classes[len(left)]) for left in ((0, 20), (40,))
    ]
    attach_sensor(batch, SENSOR)
    found = heads.forward_with_given_boxes(FEATURES, batch)
    [(_, masks, sensor)] = given
    assert torch.equal(masks, torch.cat([x.pred_masks for x in found])) and torch.equal(
        sensor, SENSOR[[0, 0, 1]]
    )
    assert [x.has("sensor") for x in found] == [False, False]
    assert found[0].pred_heights.tolist() == pytest.approx([DEFAULT_MEDIAN_M] * 2, rel=1e-5)
    factor = 0.32**-DEFAULT_LOG_SCALE
    assert found[1].pred_height_p84.item() == pytest.approx(DEFAULT_MEDIAN_M * factor, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mask_on", [True, False])
def test_true_masks_are_shown_in_the_frame_of_their_boxes(build, mask_on):
    """A building on the left half of its box and around it; a network without a mask head is shown none."""
    heads, given = build("MODEL.MASK_ON", mask_on)
    bitmap = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    bitmap[0, :, :20] = True
    truth = [
        instances(gt_boxes=boxes_at(16), gt_masks=BitMasks(bitmap)),
        instances(gt_boxes=boxes_at(), gt_masks=BitMasks(torch.zeros(0, SIDE, SIDE))),
    ]
    heights = heads.heights_of_truth(FEATURES, truth, SENSOR)
    assert heights.location.tolist() == pytest.approx([math.log(DEFAULT_MEDIAN_M)])
    [(_, masks, sensor)] = given
    assert torch.equal(sensor, SENSOR[:1])
    if mask_on:
        assert masks.shape == (1, 1, 28, 28)
        assert (masks[..., :14] == 1).all() and (masks[..., 14:] == 0).all()
    else:
        assert masks is None


@torch.no_grad()
def test_without_a_height_head_there_are_masks_alone(build):
    heads, _ = build("MODEL.HEIGHT_ON", False)
    heads.eval()
    batch = [instances(pred_boxes=boxes_at(8), pred_classes=torch.zeros(1, dtype=torch.int64))]
    one = {name: feature[:1] for name, feature in FEATURES.items()}
    assert heads.interval_width is None and heads.heights_of_truth(one, batch, SENSOR) is None
    masks, heights = heads.masks_and_heights(one, batch)
    assert masks.shape == (1, 1, 28, 28) and heights is None
    [found] = heads.forward_with_given_boxes(one, batch)
    assert found.has("pred_masks") and not found.has("pred_heights")


def test_the_width_of_the_intervals_is_that_of_the_height_head(build):
    heads, _ = build()
    heads.height_head.interval_width.fill_(1.5)
    assert heads.interval_width.item() == 1.5
