"""The head for two tasks: its layers, refinement, losses by hand."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.modeling.dense_heads import DenseMaps, DenseTargets
from fusiondet.projects.fusion_height_net.two_task_head import TwoTaskHead

import pytest
import torch
from torch import nn

NAN = math.nan


def head(channels=6, **kwargs):
    torch.manual_seed(0)
    return TwoTaskHead(channels, channels, **{"height_scale_m": 50.0, **kwargs})


def said_as_given(**kwargs):
    """A head without layers: two logits, and the logit of the share, are what it is given."""
    bare = head(**kwargs)
    bare.footprint, bare.height = nn.Identity(), nn.Identity()
    return bare


def targets(height_m=None, footprint=None):
    return DenseTargets(*(None if t is None else torch.tensor([[t]]) for t in (height_m, footprint)), None)


def test_layers_are_the_papers():
    two = head(channels=6)
    for part, channels in ((two.footprint, 2), (two.height, 1)):
        kinds = [type(layer) for layer in part]
        assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d]
        assert part[0].kernel_size == (3, 3) and part[0].out_channels == 6
        assert part[3].kernel_size == (1, 1) and part[3].out_channels == channels


def test_heights_are_shares_of_the_scale():
    share_logits = torch.tensor([[[[0.0, math.log(4.0), 50.0, -200.0]]]])
    maps = said_as_given(refine=False)(torch.zeros(1, 2, 1, 4), share_logits)
    torch.testing.assert_close(maps.height_m, torch.tensor([[[[25.0, 40.0, 50.0, 0.0]]]]))


def test_the_footprint_is_the_logit_of_building_against_ground():
    logits = torch.tensor([[[[1.0, 0.5]], [[3.0, 0.5]]]])
    maps = said_as_given()(logits, torch.zeros(1, 1, 1, 2))
    assert maps.footprint.tolist() == [[[[2.0, 0.0]]]]
    torch.testing.assert_close(maps.footprint.sigmoid(), logits.softmax(1)[:, 1:])


def test_refined_heights_are_0_where_ground_is_as_likely_or_more():
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 1, 0] = torch.tensor([-1.0, 0.0, 1e-6, 9.0])
    maps = said_as_given()(logits, torch.zeros(1, 1, 1, 4))
    assert maps.height_m.flatten().tolist() == [0.0, 0.0, 25.0, 25.0]


def test_refinement_is_the_whole_difference():
    """And holds for maps of any numbers: 0 where the footprint's logit is 0 or less, elsewhere as without."""
    features = torch.randn(2, 6, 16, 16)
    refined, plain = head().eval()(features, features), head(refine=False).eval()(features, features)
    building = refined.footprint > 0
    assert 0.05 < building.float().mean() < 0.95
    assert torch.equal(refined.footprint, plain.footprint) and (plain.height_m > 0).all()
    assert torch.equal(refined.height_m, torch.where(building, plain.height_m, 0.0))


def test_no_gradient_of_heights_reaches_footprints():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    shares = torch.zeros(1, 1, 4, 4, requires_grad=True)
    maps = said_as_given()(logits, shares)
    said_as_given().losses(DenseMaps(height_m=maps.height_m), targets([[9.0] * 4] * 4))[
        "loss_dense_height"
    ].backward()
    assert logits.grad is None
    # And where refinement says 0, there is nothing to be learned of heights.
    assert torch.equal(shares.grad != 0, maps.footprint > 0)


def test_loss_of_heights_by_hand():
    """Differences of shares .5, 0, .2 and 2 (a truth above the scale): (.125 + 0 + .02 + 1.5) / 4."""
    maps = DenseMaps(height_m=torch.tensor([[[[30.0, 50.0, 10.0, 50.0, 7.0]]]]))
    losses = head(height_weight=0.5).losses(maps, targets([[5.0, 50.0, 0.0, 150.0, NAN]]))
    assert losses.keys() == {"loss_dense_height"}
    assert losses["loss_dense_height"].item() == pytest.approx(0.5 * (0.125 + 0 + 0.02 + 1.5) / 4)


def test_loss_of_footprints_by_hand():
    """Probabilities 3/4 and 1/2 on a building pixel and one beside it, twice the weight."""
    maps = DenseMaps(footprint=torch.tensor([[[[math.log(3.0), 0.0, 9.0]]]]))
    losses = head(footprint_weight=2.0).losses(maps, targets(footprint=[[1.0, 0.0, NAN]]))
    entropy = (math.log(4 / 3) + math.log(2)) / 2
    dice = (2 * 0.75 + 1) / (0.75 + 0.5 + 1 + 1)
    assert losses["loss_footprint"].item() == pytest.approx(2 * (entropy + 1 - dice))


def test_the_footprints_entropy_is_that_of_two_classes():
    logits, truth = torch.randn(1, 2, 5, 5), (torch.rand(1, 1, 5, 5) < 0.4).float()
    maps = said_as_given()(logits, torch.zeros(1, 1, 5, 5))
    loss = said_as_given().losses(maps, DenseTargets(torch.full((1, 1, 5, 5), NAN), truth, None))
    probability = logits.softmax(1)[:, 1:]
    dice = (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)
    expected = nn.functional.cross_entropy(logits, truth[:, 0].long()) + 1 - dice
    torch.testing.assert_close(loss["loss_footprint"], expected)
    assert loss["loss_dense_height"] == 0


def test_nothing_known_is_a_zero_loss_with_zero_gradients():
    two = head()
    features = torch.randn(2, 6, 8, 8)
    unknown = torch.full((2, 1, 8, 8), NAN)
    losses = two.losses(two(features, features), DenseTargets(unknown, unknown, None))
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(losses, 0.0)
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in two.parameters())


@pytest.mark.parametrize("task", ["footprint", "height"])
def test_one_task_alone(task):
    one = head(tasks=(task,))
    features = {"footprint": None, "height": None, task: torch.randn(2, 6, 8, 8)}
    maps = one(features["footprint"], features["height"])
    assert (maps.footprint is None) == (task == "height") and (maps.height_m is None) == (task == "footprint")
    if task == "height":
        # Without footprints nothing can be refined, and everything has some height.
        assert not one.refine and (maps.height_m > 0).all()
    names = {"footprint": "loss_footprint", "height": "loss_dense_height"}
    zeros = torch.zeros(2, 1, 8, 8)
    assert one.losses(maps, DenseTargets(zeros, zeros, None)).keys() == {names[task]}


def test_the_untrained_head_says_a_twentieth_of_the_scale():
    features = torch.randn(4, 6, 32, 32)
    height_m = head(refine=False).train()(features, features).height_m
    assert height_m.median().item() == pytest.approx(2.5, rel=0.3)
