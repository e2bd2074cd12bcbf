import copy
import math

from fusiondet.errors import InputError
from fusiondet.modeling.task_weighting import (
    GradNormWeighting,
    TaskWeighting,
    UncertaintyWeighting,
    build_task_weighting,
    task_of,
)

import pytest
import torch

TWO = ["instances", "footprint"]


def linear(features, a=3.0, b=4.0):
    """Losses of two tasks that are linear in `features`, so that their gradients there are all a, and all b."""
    return {"loss_mask": features.mean() * a, "loss_footprint": features.mean() * b}


def shared(*values):
    """A feature map with one cell per value, which a backbone could have made."""
    return torch.tensor([list(values)], dtype=torch.float32, requires_grad=True)[:, :, None, None]


def see(module, *batches, **weights):
    """Let `module` see micro-batches, then update it."""
    for features in batches:
        module(linear(features, **weights), [features])
    return module.update()


@pytest.mark.parametrize(
    ("loss", "task"),
    [
        ("loss_rpn_cls", "instances"),
        ("loss_mask", "instances"),
        ("loss_height", "height"),
        ("optical/loss_height", "height"),
        ("sar/loss_box_reg", "instances"),
        ("loss_dense_height", "dense_height"),
        ("loss_footprint", "footprint"),
        ("loss_reconstruction", "reconstruction"),
    ],
)
def test_every_loss_has_a_task(loss, task):
    assert task_of(loss) == task


def test_fixed_weights_change_nothing_and_keep_no_tensor():
    module, features = TaskWeighting(TWO), shared(1.0, 2.0)
    losses = linear(features)
    weighted = module(losses, [features])
    assert {k: v.item() for k, v in weighted.items()} == {k: v.item() for k, v in losses.items()}
    assert not module.state_dict(), "a checkpoint from before there were weightings fits"
    assert module.update() == {
        **{"task_weight/instances": 1, "task_weight/footprint": 1},
        **{"task_loss/instances": 4.5, "task_loss/footprint": 6},
    }


def test_the_losses_of_a_task_are_added_and_micro_batches_averaged():
    module = TaskWeighting(["instances"])
    for a in (1.0, 3.0):
        module({"optical/loss_mask": torch.tensor(a), "sar/loss_rpn_cls": torch.tensor(1.0)}, [])
    assert module.update()["task_loss/instances"] == 3
    assert module.update() == {}, "nothing was seen since"


def test_a_task_without_a_loss_is_not_averaged_in():
    module = TaskWeighting(TWO)
    for footprint in (5.0, 0.0):  # 0: no pixel of the micro-batch is labelled
        module({"loss_mask": torch.tensor(1.0), "loss_footprint": torch.tensor(footprint)}, [])
    assert module.update()["task_loss/footprint"] == 5
    module({"loss_mask": torch.tensor(1.0)}, [])
    assert "task_loss/footprint" not in module.update()


# ---- uncertainty ----


def test_uncertainty_starts_as_fixed_weights():
    module, features = UncertaintyWeighting(TWO), shared(1.0)
    weighted = module(linear(features), [features])
    assert {k: v.item() for k, v in weighted.items()} == {
        **{"loss_mask": 3, "loss_footprint": 4, "loss_task_uncertainty": 0}
    }


def test_uncertainty_learns_the_log_of_the_loss():
    module = UncertaintyWeighting(TWO)
    losses = {"loss_mask": torch.tensor(2.0), "loss_footprint": torch.tensor(0.25)}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        sum(module(losses, []).values()).backward()
        optimizer.step()
    assert module.task_log_scales.tolist() == pytest.approx([math.log(2), math.log(0.25)], abs=1e-4)
    weighted = module(losses, [])
    assert weighted["loss_mask"].item() == pytest.approx(1, abs=1e-4), "all tasks then count alike"
    assert weighted["loss_footprint"].item() == pytest.approx(1, abs=1e-4)
    assert module.update()["task_weight/footprint"] == pytest.approx(4, abs=1e-3)


def test_a_likelihood_below_zero_has_no_scale_of_its_own():
    module = UncertaintyWeighting(["instances", "height"])
    assert module.learned == ["instances"]
    losses = {"loss_mask": torch.tensor(2.0), "loss_height": torch.tensor(-0.5)}
    assert module(losses, [])["loss_height"] == -0.5
    assert module.update()["task_loss/height"] == -0.5


@pytest.mark.parametrize("losses", [{"loss_mask": 2.0}, {"loss_mask": 2.0, "loss_footprint": 0.0}])
def test_uncertainty_of_a_task_without_a_loss_stays(losses):
    module = UncertaintyWeighting(TWO)
    sum(module({k: torch.tensor(v) for k, v in losses.items()}, []).values()).backward()
    assert module.task_log_scales.grad.tolist() == [1 - 2, 0], "there is a gradient in every process"


# ---- gradnorm ----


def test_gradnorm_pulls_the_weaker_task_up_by_the_rate():
    module = GradNormWeighting(TWO, alpha=0.0, rate=0.5)
    logged = see(module, shared(1.0), a=1.0, b=4.0)
    # Norms 1 and 4, mean 2.5: factors sqrt(2.5) and sqrt(2.5 / 4), in the proportion 2 : 1.
    assert module.task_weights.tolist() == pytest.approx([4 / 3, 2 / 3])
    assert logged["task_weight/instances"] == 1 and logged["task_loss/footprint"] == 4
    weighted = module(linear(shared(1.0), a=1.0, b=4.0), [shared(1.0)])
    assert weighted["loss_mask"].item() == pytest.approx(4 / 3)


def test_gradnorm_makes_gradients_equal():
    module = GradNormWeighting(TWO, alpha=0.0, rate=0.2)
    for _ in range(60):
        see(module, shared(1.0, 2.0), a=1.0, b=9.0)
    assert module.task_weights.tolist() == pytest.approx([1.8, 0.2], rel=1e-4)


def test_gradnorm_pulls_the_slower_task_more():
    """Equal norms, but the one's loss has halved: its relative rate is 2/3, the other's 4/3."""
    module = GradNormWeighting(TWO, alpha=1.0, rate=1.0)
    module.first_losses.fill_(1.0), module.first_steps.fill_(10)
    features = shared(1.0)
    module({"loss_mask": features.sum() * 0.5, "loss_footprint": features.sum() * 0.5 + 0.5}, [features])
    module.update()
    assert module.task_weights.tolist() == pytest.approx([2 / 3, 4 / 3])


def test_the_height_likelihood_counts_by_its_difference():
    """Down by log 2 is an error half as large, also below 0."""
    module = GradNormWeighting(["instances", "height"], alpha=1.0, rate=1.0)
    module.first_losses.copy_(torch.tensor([1.0, 0.3])), module.first_steps.fill_(10)
    x = shared(0.5)
    loss_height = x.sum() * 1.0 - 0.5 + 0.3 - math.log(2)
    module({"loss_mask": x.sum() * 1.0 + 0.5, "loss_height": loss_height}, [x])
    module.update()
    assert module.task_weights.tolist() == pytest.approx([4 / 3, 2 / 3])


def test_first_losses_are_the_mean_of_ten_steps():
    module = GradNormWeighting(TWO)
    for value in range(1, 15):
        see(module, shared(float(value)), a=1.0, b=2.0)
    assert module.first_losses.tolist() == pytest.approx([5.5, 11]) and module.first_steps.tolist() == [
        10,
        10,
    ]


def test_weights_always_sum_to_the_number_of_tasks():
    module = GradNormWeighting(["instances", "footprint", "reconstruction"], alpha=1.5, rate=0.3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        x = shared(*torch.rand(4, generator=generator).tolist())
        losses = {**linear(x, *torch.rand(2, generator=generator)), "loss_reconstruction": (x**2).sum()}
        module(losses, [x])
        module.update()
        assert module.task_weights.sum().item() == pytest.approx(3) and (module.task_weights > 0).all()
    assert module.task_weights.std() > 0.1


def test_accumulated_micro_batches_update_as_one_batch():
    batch = torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))

    def seen(*parts):
        module = GradNormWeighting(TWO, rate=0.5)
        for part in parts:
            x = part.clone().requires_grad_()
            module({"loss_mask": (x**2).mean(), "loss_footprint": (x**3).mean()}, [x])
        module.update()
        return module.task_weights.tolist()

    assert seen(batch) == pytest.approx(seen(batch[:2], batch[2:]), rel=1e-5)
    assert seen(batch) != pytest.approx(seen(batch[:2]), rel=1e-3), "and not as a part of it"


def test_weights_do_not_change_between_updates():
    module = GradNormWeighting(TWO, rate=0.5)
    for _ in range(2):
        x = shared(1.0)
        assert module(linear(x), [x])["loss_footprint"].item() == 4


def test_measuring_leaves_the_gradients_of_training_alone():
    module, plain = GradNormWeighting(TWO), TaskWeighting(TWO)
    gradients = []
    for one in (module, plain):
        w = torch.tensor([2.0], requires_grad=True)
        x = (w * torch.ones(1, 3)).relu()
        sum(one(linear(x), [x]).values()).backward()
        gradients.append(w.grad)
    assert torch.equal(*gradients)


def test_a_map_that_a_task_does_not_use_and_a_loss_without_gradient_count_nothing():
    module = GradNormWeighting(["instances", "footprint", "reconstruction"], alpha=0.0, rate=1.0)
    p2, p5 = shared(1.0), shared(1.0)
    losses = {"loss_mask": p2.sum() + p5.sum(), "loss_footprint": p5.sum() * math.sqrt(2)}
    module({**losses, "loss_reconstruction": torch.tensor(7.0)}, [p2, p5])
    module.update()
    assert module.task_weights.tolist() == pytest.approx([1, 1, 1]), "norms sqrt(2), sqrt(2), none"


def test_a_task_that_is_alone_or_silent_keeps_its_weight():
    module = GradNormWeighting(TWO, rate=1.0)
    x = shared(1.0)
    module({"loss_mask": x.sum()}, [x])
    module.update()
    assert module.task_weights.tolist() == [1, 1]


def test_passes_without_gradients_are_not_seen():
    for module in (GradNormWeighting(TWO), TaskWeighting(TWO)):
        with torch.no_grad():
            module(linear(shared(1.0)), [shared(1.0)])
        assert module.update() == {}


@pytest.mark.parametrize(
    ("dtype", "gradient"),
    [
        pytest.param(torch.float16, 1e-8, id="0 in float16 unless it is scaled"),
        pytest.param(torch.float16, 20.0, id="infinite in float16 when it is scaled"),
        pytest.param(torch.bfloat16, 1e-20, id="bfloat16 needs no scaling"),
    ],
)
def test_gradients_of_any_size_are_measured_in_half_precision(dtype, gradient):
    """Per cell, and three times as large of the other task."""
    module = GradNormWeighting(TWO, alpha=0.0, rate=1.0)
    x = torch.ones(1, 4, 1, 1, dtype=dtype, requires_grad=True)
    module({"loss_mask": x.float().sum() * gradient, "loss_footprint": x.float().sum() * 3 * gradient}, [x])
    module.update()
    assert module.task_weights.tolist() == pytest.approx([1.5, 0.5], rel=1e-2)


def test_a_gradient_that_is_not_finite_is_left_out():
    module = GradNormWeighting(TWO, alpha=0.0, rate=1.0)
    x, zero = shared(1.0), shared(0.0)
    module({"loss_mask": zero.sqrt().sum() + 1, "loss_footprint": zero.sum() + 1}, [zero])
    assert module.update()["task_loss/instances"] == 1 and module.task_weights.tolist() == [1, 1]
    module(linear(x, 1.0, 3.0), [x])
    module({"loss_mask": zero.sqrt().sum() + 1, "loss_footprint": zero.sum() * 3 + 1}, [zero])
    module.update()
    assert module.task_weights.tolist() == pytest.approx([1.5, 0.5]), "the other micro-batch decides"


def test_features_that_are_not_trained_are_an_error():
    x = torch.ones(1, 1, 1, 1)
    with pytest.raises(InputError, match="gradnorm, but no shared feature map is trained"):
        GradNormWeighting(TWO)({"loss_mask": x.sum()}, [x])


def test_the_state_is_in_the_model():
    module = GradNormWeighting(TWO, rate=0.5)
    see(module, shared(1.0))
    other = GradNormWeighting(TWO, rate=0.5)
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    for one in (module, other):
        see(one, shared(3.0), a=0.3)
    assert torch.equal(module.task_weights, other.task_weights) and module.task_weights[0] != 1


# ---- built from the config ----


@pytest.mark.parametrize(
    ("name", "kind"),
    [("fixed", TaskWeighting), ("uncertainty", UncertaintyWeighting), ("gradnorm", GradNormWeighting)],
)
def test_the_config_names_it(small_cfg, name, kind):
    small_cfg.MODEL.TASK_WEIGHTING.NAME = name
    small_cfg.MODEL.TASK_WEIGHTING.ALPHA = 0.5
    module = build_task_weighting(small_cfg, TWO)
    assert type(module) is kind and module.tasks == TWO
    assert name != "gradnorm" or (module.alpha, module.rate) == (0.5, 0.05)


def test_an_unknown_name_is_an_error(small_cfg):
    small_cfg.MODEL.TASK_WEIGHTING.NAME = "pcgrad"
    with pytest.raises(InputError, match=r"TASK_WEIGHTING.NAME.*pcgrad.*gradnorm"):
        build_task_weighting(small_cfg, TWO)
