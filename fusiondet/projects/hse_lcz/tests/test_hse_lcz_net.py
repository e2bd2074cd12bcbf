"""The network of settlement extent and zone: shapes, gradients, what the prior does, and what is not known."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import load_config
from fusiondet.errors import InputError
from fusiondet.projects.hse_lcz.hse_lcz_net import N_ZONES, ExtentPrior

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn


def config(leaf="hse_lcz", *overrides):
    words = ("MODEL.PIXEL_MEAN", "[0.5, 0.5, 0.5]", "MODEL.PIXEL_STD", "[0.25, 0.25, 0.25]")
    small = ("MODEL.HSE_LCZ.WIDTHS", "[8, 16]", "MODEL.HSE_LCZ.CONV_DIM", "16")
    return load_config(f"so2sat/{leaf}.yaml", [*words, *small, *overrides])


def network(leaf="hse_lcz", *overrides):
    torch.manual_seed(0)
    return build_model(config(leaf, *overrides))


def inputs(n=6, size=32, bands=3, hse=None, lcz=None):
    torch.manual_seed(1)
    return [
        {
            "image": torch.rand(bands, size, size),
            "hse": (i + 1) / (n + 1) if hse is None else hse[i],
            "lcz": i % N_ZONES if lcz is None else lcz[i],
            "file_name": f"a.h5[{i}]",
            "image_id": i,
        }
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("leaf", "tasks"),
    [("hse_lcz", ["hse", "lcz"]), ("hse", ["hse"]), ("lcz", ["lcz"]), ("hse_lcz_no_prior", None)],
)
def test_what_is_said_of_each_patch(leaf, tasks):
    outputs = network(leaf).eval()(inputs(3))
    assert len(outputs) == 3
    for output in outputs:
        assert list(output) == (tasks or ["hse", "lcz"])
        if "hse" in output:
            assert output["hse"].shape == () and 0 < output["hse"] < 1
        if "lcz" in output:
            assert output["lcz"].shape == (17,) and output["lcz"].sum().item() == pytest.approx(1)


def test_maps_halve_between_blocks_and_not_before():
    model = network("hse_lcz", "MODEL.HSE_LCZ.WIDTHS", "[4, 8, 12, 16]").eval()
    seen = []
    for block in model.backbone:
        block.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    model(inputs(2))
    assert seen == [(4, 32, 32), (8, 16, 16), (12, 8, 8), (16, 4, 4)] and model.stride == 8


@pytest.mark.parametrize("leaf", ["hse_lcz", "hse_lcz_no_prior", "hse_lcz_uncertainty", "hse", "lcz"])
def test_every_parameter_has_a_finite_gradient(leaf):
    model = network(leaf).train()
    sum(model(inputs()).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    # What starts at 0 (the attentions' last layers) blocks the gradient of what is before it in the first step alone.
    silent = [n for n, p in model.named_parameters() if not p.grad.any() and "attention.squeeze" not in n]
    assert silent == []


def test_gradnorm_and_accumulated_weights_go_through():
    model = network("hse_lcz", "MODEL.TASK_WEIGHTING.NAME", "gradnorm").train()
    for _ in range(2):
        losses = model(inputs())
        sum(losses.values()).backward()
        logged = model.task_weighting.update()
    assert set(logged) >= {"task_weight/hse", "task_weight/lcz", "task_loss/hse", "task_loss/lcz"}
    assert logged["task_weight/hse"] != logged["task_weight/lcz"]


# ---- the prior ----


def loud(model):
    """`model` with a prior that says a lot, as after training."""
    nn.init.normal_(model.prior.out.weight, std=2.0)
    return model


def test_the_extent_changes_the_zone_through_the_prior_alone():
    told, untold = loud(network("hse_lcz")).eval(), network("hse_lcz_no_prior").eval()
    for model, differs in ((told, True), (untold, False)):
        before = model(inputs(2))
        with torch.no_grad():
            model.branches["hse"].predictor.bias += 2.0
        after = model(inputs(2))
        assert after[0]["hse"] > before[0]["hse"]
        assert torch.equal(before[0]["lcz"], after[0]["lcz"]) != differs


def test_the_prior_adds_what_the_predicted_extent_says():
    model = loud(network("hse_lcz")).eval()
    image, valid = model._batch(inputs(4))
    shared = model.shared_features(image)
    said = model.predictions(shared, valid)
    alone = model.branches["lcz"](shared, valid)
    torch.testing.assert_close(said["lcz"], alone + model.prior(said["hse"]))


@pytest.mark.parametrize(("prior", "leaks"), [("detached", False), ("joint", True)])
def test_the_zone_teaches_the_extent_only_where_that_is_wanted(prior, leaks):
    model = loud(network("hse_lcz", "MODEL.HSE_LCZ.PRIOR", prior)).train()
    model(inputs())["loss_lcz"].backward()
    gradients = [p.grad for p in model.branches["hse"].parameters()]
    assert any(g is not None and g.any() for g in gradients) == leaks
    assert model.prior.out.weight.grad.any()


def test_the_prior_bends_everywhere_in_its_range():
    prior = ExtentPrior(True)
    hidden = prior.hidden(torch.linspace(0, 1, 101)[:, None])
    crossings = ((hidden[:-1] > 0) != (hidden[1:] > 0)).any(dim=0)
    assert crossings.sum() >= 28, "a hinge that never bends is lost"


# ---- what is not known ----


def test_unknown_truth_is_left_out_of_the_mean():
    model = network("hse_lcz").eval()
    said = {"hse": torch.tensor([0.5, 0.5, 0.9]), "lcz": torch.zeros(3, 17)}
    batch = inputs(3, hse=[0.7, math.nan, 0.85], lcz=[3, -1, 4])
    losses = model.losses(said, batch)
    # Beyond 0.1 the error less half of that, below it its square over twice that.
    by_hand = ((0.2 - 0.05) + 0.05**2 / 0.2) / 2
    assert float(losses["loss_hse"]) == pytest.approx(10 * by_hand, rel=1e-5)
    assert float(losses["loss_lcz"]) == pytest.approx(math.log(17), rel=1e-5)


def test_nothing_known_is_a_loss_of_zero_that_is_attached():
    model = network("hse_lcz").train()
    losses = model(inputs(4, hse=[math.nan] * 4, lcz=[-1] * 4))
    assert {k: float(v.detach()) for k, v in losses.items()} == {"loss_hse": 0.0, "loss_lcz": 0.0}
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_pixels_without_data_are_the_mean_and_extreme_ones_are_limited():
    model = network("hse_lcz").eval()
    (x,) = inputs(1)
    x["image"][:, :4] = math.nan
    x["image"][0, 9, 9] = 1e9
    image, valid = model._batch([x])
    assert (image[0, :, :4] == 0).all() and image[0, 0, 9, 9] == 10 and torch.isfinite(image).all()
    assert (valid[0, 0, :4] == 0).all() and (valid[0, 0, 4:] == 1).all()
    filled = {**x, "image": x["image"].nan_to_num(nan=0.5)}
    plain = network("hse_lcz", "MODEL.TASK_ATTENTION", "False").eval()
    assert torch.equal(plain([x])[0]["lcz"], plain([filled])[0]["lcz"])
    x["image"][:] = math.nan
    assert torch.isfinite(model([x])[0]["hse"])


def test_a_patch_is_said_the_same_of_whatever_its_batch():
    model = network("hse_lcz").eval()
    together, alone = model(inputs(5)), [model([x])[0] for x in inputs(5)]
    for a, b in zip(together, alone):
        torch.testing.assert_close(a["lcz"], b["lcz"])
        torch.testing.assert_close(a["hse"], b["hse"])


def test_other_bands_and_patches_too_small_are_bad_input():
    model = network("hse_lcz").eval()
    with pytest.raises(InputError, match=r"a.h5\[0\]: 4 bands, but the network takes 3"):
        model(inputs(1, bands=4))
    deep = network("hse_lcz", "MODEL.HSE_LCZ.WIDTHS", "[4, 4, 4]").eval()
    with pytest.raises(InputError, match=r"3 x 3 px, but the network halves its maps down to 1/4"):
        deep(inputs(1, size=3))


def test_statistics_have_to_be_there():
    with pytest.raises(InputError, match="PIXEL_MEAN has 0 .*computed from the training data"):
        network("hse_lcz", "MODEL.PIXEL_MEAN", "[]")
