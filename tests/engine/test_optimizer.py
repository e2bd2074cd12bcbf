"""Groups of parameters, their rates and their decay."""

import fusiondet.compat  # noqa: F401
from fusiondet.engine.optimizer import build_optimizer
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError
from fusiondet.modeling.task_weighting import UncertaintyWeighting
from tests.support.tiny_city import (
    completed_config,
    tiny_config,
)

import pytest
import torch
from torch import nn


@pytest.mark.parametrize(("name", "kind"), [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_normalisation_does_not_decay_and_groups_are_few(root, name, kind):
    cfg = tiny_config(root, "SOLVER.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY", "0.25", "SOLVER.BASE_LR", "0.5")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.GroupNorm(1, 2))
    optimizer = build_optimizer(cfg, model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert isinstance(optimizer, kind) and len(optimizer.param_groups) == 2
    assert [decay[id(model[i].weight)] for i in range(4)] == [0.25, 0, 0.25, 0]
    assert decay[id(model[0].bias)] == 0.25, "biases decay as weights do, in every version of Detectron2"
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_learned_scales_of_tasks_do_not_decay_and_have_a_pace_of_their_own(root):
    cfg = tiny_config(root, "SOLVER.WEIGHT_DECAY", "0.25", "SOLVER.BASE_LR", "0.5")
    weighting = UncertaintyWeighting(["instances", "footprint"])
    optimizer = build_optimizer(cfg, nn.Sequential(nn.Linear(1, 1), weighting))
    (group,) = [g for g in optimizer.param_groups if any(p is weighting.task_log_scales for p in g["params"])]
    assert (len(group["params"]), group["weight_decay"], group["lr"]) == (1, 0, 0.01)


STREAMS = ("SOLVER.BASE_LR", "0.5", "SOLVER.OPTICAL_LR_FACTOR", "2.0", "SOLVER.SAR_LR_FACTOR", "0.5")
INTERMEDIATE = ("MODEL.BACKBONE.NAME", "build_intermediate_fusion_resnet_fpn_backbone")


def rates(root, *overrides):
    """{name of a parameter: learning rate} of a network."""
    cfg = completed_config(root, *STREAMS, *overrides, test="")
    model = FusionTrainer.build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {*rate.values()} <= {1.0, 0.5, 0.25} and len(optimizer.param_groups) <= 6
    return {name: rate[id(p)] for name, p in model.named_parameters()}


def test_each_stream_learns_at_its_own_rate(root):
    exchange = ("MODEL.FUSION.EXCHANGE.res4", "MMTM", "MODEL.FUSION.MODALITY_DROPOUT.sar", "0.1")
    rate = rates(root, *INTERMEDIATE, *exchange)
    for name, value in rate.items():
        parts = name.split(".")
        both = "exchanges" in parts or "joins" in parts
        assert value == (0.5 if both else 1.0 if "optical" in parts else 0.25 if "sar" in parts else 0.5), (
            name
        )
    assert rate["backbone.bottom_up.sar.res5.1.conv2.weight"] == 0.25
    assert rate["backbone.bottom_up.exchanges.res4.sar.weight"] == 0.5


def test_stages_of_both_streams_learn_at_the_common_rate(root):
    rate = rates(root, *INTERMEDIATE, "MODEL.FUSION.SHARE_WEIGHTS", "True")
    assert rate["backbone.bottom_up.optical.stem.conv1.weight"] == 1.0
    assert rate["backbone.bottom_up.sar.stem.conv1.weight"] == 0.25
    assert rate["backbone.bottom_up.optical.res4.0.conv1.weight"] == 0.5


def test_branches_of_late_fusion_learn_at_their_own_rate(root):
    two = ("MODEL.META_ARCHITECTURE", "LateFusionRCNN", "MODEL.BACKBONE.NAME")
    rate = rates(root, *two, "build_two_pyramids_resnet_fpn_backbone")
    assert all(
        v == (1.0 if "optical" in name.split(".") else 0.25) for name, v in rate.items() if "fpn" in name
    )
    assert {v for name, v in rate.items() if name.startswith("roi_heads.sar.")} == {0.25}


def test_a_rate_for_a_stream_that_is_not_there_is_an_error(root):
    cfg = completed_config(root, "SOLVER.SAR_LR_FACTOR", "0.5", test="")
    with pytest.raises(InputError, match=r"SAR_LR_FACTOR is 0.5, .*build_early_fusion.*Leave it at 1.0"):
        build_optimizer(cfg, FusionTrainer.build_model(cfg))


@pytest.mark.parametrize("trunk", ["resnet", "timm"])
def test_what_is_far_from_the_heads_learns_more_slowly(root, trunk):
    overrides = ["SOLVER.BASE_LR", "1.0", "SOLVER.LAYER_DECAY", "0.5"]
    if trunk == "timm":
        overrides += ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "resnet10t"]
    cfg = completed_config(root, *overrides, test="")
    model = FusionTrainer.build_model(cfg)
    rate = {id(p): group["lr"] for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    expected = {"stem": 1 / 32, "res2": 1 / 16, "res3": 1 / 8, "res4": 1 / 4, "res5": 1 / 2}
    for name, parameter in model.named_parameters():
        piece = name.removeprefix("backbone.bottom_up.resnet.").split(".")[0]
        assert rate[id(parameter)] == expected.get(piece, 1.0), name


def test_gradients_are_clipped_as_detectron2_does(root):
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5")
    cfg = tiny_config(
        root, "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "1.0", "SOLVER.MOMENTUM", "0.0", *clip
    )
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    optimizer = build_optimizer(cfg, model)
    model.weight.grad = torch.tensor([[100.0]])
    optimizer.step()
    assert model.weight.item() == 1.5
