"""The height head: frames, likelihood, unknown heights."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.modeling.height_head import (
    ContextHeightHead,
    HeightDistribution,
    context_boxes,
    resample_masks,
)
from fusiondet.modeling.sensor_geometry import FACTS, GeometryBranch

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage


def distribution(medians_m, scales, range_m=(1.0, 200.0)):
    return HeightDistribution(torch.tensor(medians_m).log(), torch.tensor(scales).log(), range_m)


def test_quantiles_are_those_of_a_laplace_in_log_height():
    low, median, high = distribution([10.0], [0.2]).heights_m()
    laplace = torch.distributions.Laplace(torch.tensor(math.log(10.0)), torch.tensor(0.2))
    assert median.item() == pytest.approx(10.0)
    assert low.item() == pytest.approx(laplace.icdf(torch.tensor(0.16)).exp().item(), rel=1e-4)
    assert high.item() == pytest.approx(laplace.icdf(torch.tensor(0.84)).exp().item(), rel=1e-4)


def test_heights_leave_in_the_configured_range():
    low, median, high = distribution([0.01, 5000.0], [0.2, 0.2], (2.0, 100.0)).heights_m()
    assert [h.tolist() for h in (low, median, high)] == [[2.0, 100.0]] * 3


def test_a_wider_interval_leaves_median_and_likelihood_alone():
    narrow, wide = distribution([10.0], [0.2]), distribution([10.0], [0.2])
    wide.width = 2.0
    low, median, high = wide.heights_m()
    assert median.item() == pytest.approx(10.0)
    assert math.log(high.item() / 10) == pytest.approx(
        2 * math.log(narrow.heights_m()[2].item() / 10), rel=1e-4
    )
    truth_m = torch.tensor([12.0])
    assert wide.negative_log_likelihood(truth_m) == narrow.negative_log_likelihood(truth_m)


def test_likelihood_is_that_of_a_laplace_up_to_a_constant():
    predicted = distribution([10.0, 4.0], [0.2, 0.7])
    truth_m = torch.tensor([12.0, 3.0])
    laplace = torch.distributions.Laplace(predicted.location, predicted.log_scale.exp())
    expected = -laplace.log_prob(truth_m.log()) - math.log(2)
    torch.testing.assert_close(predicted.negative_log_likelihood(truth_m), expected)


def test_the_best_scale_is_the_mean_absolute_error_of_the_log():
    truth_m = torch.tensor([8.0, 12.0, 10.0, 9.0])
    errors = (truth_m.log() - math.log(10.0)).abs()
    losses = [distribution([10.0] * 4, [s] * 4).negative_log_likelihood(truth_m).mean() for s in (0.05, 0.3)]
    best = distribution([10.0] * 4, [errors.mean().item()] * 4).negative_log_likelihood(truth_m).mean()
    assert best < min(losses)


def test_context_is_a_square_with_the_margin_on_the_longer_side():
    boxes = torch.tensor([[100.0, 100.0, 140.0, 120.0]])
    assert context_boxes(boxes, torch.tensor([80.0])).tolist() == [[20.0, 10.0, 220.0, 210.0]]


def test_the_margin_is_in_metres(small_head):
    """At half the GSD the context reaches twice as many pixels."""
    seen = []
    small_head.context_pooler = lambda features, boxes: (
        seen.append(boxes[0].tensor.clone()) or torch.zeros(len(boxes[0]), 8, 8, 8)
    )
    box = Boxes(torch.tensor([[60.0, 60.0, 80.0, 80.0]]))
    for gsd_m in (0.5, 1.0):
        small_head(features(), [box], None, torch.tensor([[gsd_m]]))
    sides = [(b[0, 2] - b[0, 0]).item() for b in seen]
    assert sides == [20 + 2 * 40 / 0.5, 20 + 2 * 40 / 1.0]


def test_a_mask_seen_in_its_own_frame_is_itself():
    masks = torch.rand(3, 1, 14, 14)
    boxes = torch.tensor([[3.0, 4.0, 20.0, 30.0], [0.0, 0.0, 5.0, 5.0], [7.5, 7.5, 100.0, 8.5]])
    torch.testing.assert_close(resample_masks(masks, boxes, boxes, 14), masks, atol=2e-4, rtol=0)


def test_a_mask_seen_from_a_wider_frame_covers_its_box_only():
    seen = resample_masks(torch.ones(1, 1, 28, 28), torch.tensor([[20.0, 30.0, 60.0, 50.0]]),
                          torch.tensor([[0.0, 0.0, 80.0, 80.0]]), 8)  # fmt: skip
    expected = torch.zeros(8, 8)
    expected[3:5, 2:6] = 1  # cells of 10 px: rows 30-50, columns 20-60
    torch.testing.assert_close(seen[0, 0], expected)


@pytest.fixture
def small_head():
    return make_head()


def make_head(geometry=None, prior_pooler=None):
    def pool(resolution):
        return lambda features, boxes: (
            features[0].mean() + torch.zeros(sum(map(len, boxes)), 8, resolution, resolution)
        )

    torch.manual_seed(0)
    return ContextHeightHead(
        geometry=geometry, prior_pooler=prior_pooler,
        in_features=["p2"], pooler=pool(6), context_pooler=pool(8), in_channels=8, resolution=6, context_resolution=8,
        context_m=40.0, conv_dim=16, num_conv=2, fc_dim=16, num_fc=1, norm="", prior_median_m=6.0, prior_log_scale=0.5,
    )  # fmt: skip


def features():
    return {"p2": torch.zeros(1, 8, 4, 4, requires_grad=True)}


def test_the_untrained_head_predicts_the_prior(small_head):
    boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 90.0, 40.0]]))
    predicted = small_head(features(), [boxes], torch.ones(2, 1, 4, 4), torch.full((2, 1), 0.5))
    torch.testing.assert_close(predicted.heights_m()[1], torch.full((2,), 6.0), rtol=0.05, atol=0)


def test_no_known_height_gives_zero_loss_and_finite_gradients_everywhere(small_head):
    predicted = small_head(features(), [Boxes(torch.zeros(0, 4))], torch.zeros(0, 1, 4, 4), torch.zeros(0, 1))
    loss = small_head.losses(predicted, torch.zeros(0))["loss_height"]
    loss.backward()
    assert loss.item() == 0
    for name, parameter in small_head.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_an_unknown_gsd_does_not_spoil_the_prediction(small_head):
    boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]))
    predicted = small_head(features(), [boxes], None, torch.tensor([[float("nan")]]))
    assert torch.isfinite(predicted.location).all()


def test_the_head_learns_heights_that_the_features_tell(small_head):
    """Three boxes of different sizes and heights: the size is enough to overfit."""
    boxes = Boxes(torch.tensor([[0.0, 0.0, s, s] for s in (10.0, 30.0, 90.0)]))
    truth_m = torch.tensor([3.0, 9.0, 27.0])
    optimizer = torch.optim.Adam(small_head.parameters(), lr=0.01)
    with EventStorage():
        for _ in range(150):
            optimizer.zero_grad()
            predicted = small_head(features(), [boxes], None, torch.full((3, 1), 0.5))
            small_head.losses(predicted, truth_m)["loss_height"].backward()
            optimizer.step()
    torch.testing.assert_close(predicted.heights_m()[1], truth_m, rtol=0.1, atol=0)


def test_a_head_that_is_told_nothing_has_the_tensors_it_always_had(small_head):
    parts = {name.split(".")[0] for name in small_head.state_dict()}
    assert parts == {"interval_width", "convs", "context_convs", "fcs", "predictor"}


def test_a_head_with_geometry_starts_at_the_prior_and_hides_facts_in_training_alone():
    head = make_head(GeometryBranch(["gsd", "sun_azimuth", "sun_elevation"], 8, 4, dropout=0.9))
    boxes = [Boxes(torch.tensor([[1.0, 1.0, 9.0, 9.0], [3.0, 3.0, 15.0, 9.0]]))]
    sensor = torch.tensor([[0.5, 150.0, 40.0] + [math.nan] * 4]).expand(2, -1)

    def medians_m():
        return head(features(), boxes, None, sensor).heights_m()[1]

    torch.testing.assert_close(medians_m(), torch.full((2,), 6.0), rtol=0.15, atol=0)
    assert not torch.equal(medians_m(), medians_m()), "another draw"
    head.eval()
    assert torch.equal(medians_m(), medians_m())


def test_geometry_of_nobody_gives_zero_loss_and_finite_gradients_everywhere():
    head = make_head(GeometryBranch(list(FACTS), 8, 4, dropout=0.5))
    predicted = head(features(), [Boxes(torch.zeros(0, 4))], torch.zeros(0, 1, 4, 4), torch.zeros(0, 7))
    loss = head.losses(predicted, torch.zeros(0))["loss_height"]
    loss.backward()
    assert loss.item() == 0
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def prior_head():
    from fusiondet.modeling.poolers import Float32Pooler

    from detectron2.modeling.poolers import ROIPooler

    return make_head(prior_pooler=Float32Pooler(ROIPooler(6, (1.0,), 0, "ROIAlignV2")))


def test_a_prior_is_pooled_in_the_box_and_its_mean_is_that_under_the_mask():
    head, seen = prior_head(), {}
    head.convs.register_forward_pre_hook(lambda module, args: seen.update(channels=args[0]))
    head.fcs.register_forward_pre_hook(lambda module, args: seen.update(numbers=args[0]))
    height_m = torch.zeros(1, 1, 40, 40)
    height_m[..., 16:24] = 20.0
    masks = torch.zeros(1, 1, 12, 12)
    masks[..., 8:] = 1
    box = Boxes(torch.tensor([[4.0, 4.0, 28.0, 28.0]]))
    head({**features(), "dense_height": height_m}, [box], masks, torch.full((1, 1), 0.5))
    columns = seen["channels"][0, -1].exp() - 1
    torch.testing.assert_close(
        columns, torch.tensor([0.0, 0, 0, 20, 20, 0]).expand(6, 6), atol=1e-4, rtol=1e-5
    )
    # Columns 4 and 5 are under the mask.
    torch.testing.assert_close(seen["numbers"][0, -1], torch.tensor(10.0).log1p(), atol=1e-3, rtol=0)


def test_with_a_prior_the_untrained_head_predicts_its_own_and_nobody_gives_finite_gradients():
    head = prior_head()
    shown = {**features(), "dense_height": torch.full((1, 1, 40, 40), 60.0)}
    box = Boxes(torch.tensor([[1.0, 1.0, 9.0, 9.0]]))
    median_m = head(shown, [box], None, torch.full((1, 1), 0.5)).heights_m()[1]
    torch.testing.assert_close(median_m, torch.full((1,), 6.0), rtol=0.05, atol=0)
    predicted = head(shown, [Boxes(torch.zeros(0, 4))], torch.zeros(0, 1, 4, 4), torch.zeros(0, 1))
    head.losses(predicted, torch.zeros(0))["loss_height"].backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
