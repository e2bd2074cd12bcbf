"""Keys of whole networks that mean nothing."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import check_tasks
from fusiondet.config_text import set_key
from fusiondet.engine.checkpoint import network_differences
from fusiondet.errors import InputError
from tests.support.projects import needs_network

import pytest

pytestmark = needs_network("FusionHeightNet")
NAN = math.nan


def narrow(cfg, name):
    """`cfg` with network `name` of few channels."""
    net = cfg.MODEL.DENSE_NET
    net.NAME, net.WIDTH = name, 4
    if name in ("DeepLabV3Plus", "ResUNet", "UPerNet", "PSPNet"):
        net.SMP.ENCODER, net.WIDTH = "resnet18", 8
    if name == "FusionHeightNet":
        net.FUSION_HEIGHT_NET.DEPTH = 1


def test_what_shapes_a_network_is_told_apart(dense_cfg):
    narrow(dense_cfg, "FusionHeightNet")
    stored, now = dense_cfg, dense_cfg.clone()
    now.MODEL.DENSE_NET.FUSION_HEIGHT_NET.DEPTH, now.MODEL.DENSE_NET.SMP.ENCODER = 3, "resnet34"
    now.MODEL.DENSE_NET.HEIGHT.LOSS_WEIGHT = 3.0
    (depth, encoder) = network_differences(stored, now)
    assert depth == "MODEL.DENSE_NET.FUSION_HEIGHT_NET.DEPTH (stored 1, now 3)"
    assert encoder.startswith("MODEL.DENSE_NET.SMP.ENCODER")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DENSE_NET.NAME", "SegNett", "DENSE_NET.NAME 'SegNett'.*Did you mean 'SegNet'"),
        ("DENSE_NET.SMP.ENCODER", "resnet34", "SMP.ENCODER is resnet34, but SegNet does not read it"),
        ("DENSE_NET.FUSION_HEIGHT_NET.DEPTH", 2, "FUSION_HEIGHT_NET.DEPTH is 2, but SegNet does not read it"),
        ("FUSION.JOIN", "ConcatJoin", "FUSION.JOIN is ConcatJoin, but"),
        ("DENSE_NET.TASKS", [], r"TASKS is \[\], expected names"),
        ("DENSE_NET.TASKS", ["height", "height"], "expected names, each once"),
        ("DENSE_NET.TASKS", ["classes"], "TASKS entry of SegNet 'classes'.*Known: footprint, height"),
        ("DENSE_NET.HEIGHT.LOSS_WEIGHT", -1.0, "HEIGHT.LOSS_WEIGHT is -1.0, expected 0 or more"),
        ("DENSE_NET.FOOTPRINT.LOSS_WEIGHT", NAN, "FOOTPRINT.LOSS_WEIGHT is nan, expected 0 or more"),
        ("DENSE_HEADS.NAMES", ["Footprint"], "FusionDenseNet has the heads of its own"),
        ("TASK_WEIGHTING.NAME", "gradnorm", "no feature maps that all its tasks share"),
        ("TASK_ATTENTION", True, "TASK_ATTENTION is True, but .* no feature maps that all its tasks share"),
        ("BACKBONE.NAME", "build_intermediate_fusion_resnet_fpn_backbone", "SegNet is a whole network"),
        ("HEIGHT_ON", True, "FusionDenseNet finds no instances"),
        ("META_ARCHITECTURE", "FusionDense", "DENSE_NET.NAME is SegNet, but .* FusionDense"),
    ],
)
def test_keys_that_mean_nothing(dense_cfg, key, value, message):
    narrow(dense_cfg, "SegNet")
    check_tasks(dense_cfg)
    set_key(dense_cfg.MODEL, key, value)
    with pytest.raises(InputError, match=message):
        check_tasks(dense_cfg)


@pytest.mark.parametrize(
    ("tasks", "key", "value", "message"),
    [
        (
            ["footprint"],
            "HEIGHT.LOSS_WEIGHT",
            2.0,
            r"HEIGHT.LOSS_WEIGHT is 2.0, but .*TASKS is \['footprint'\].* add height",
        ),
        (["height"], "FOOTPRINT.LOSS_WEIGHT", 2.0, "Leave it at 1.0, or add footprint"),
        (["height"], "HEIGHT.REFINE", False, "REFINE is False, but .* add footprint"),
    ],
)
def test_keys_of_a_task_that_it_does_not_have(dense_cfg, tasks, key, value, message):
    narrow(dense_cfg, "SegNet")
    set_key(dense_cfg.MODEL.DENSE_NET, key, value)
    check_tasks(dense_cfg)
    dense_cfg.MODEL.DENSE_NET.TASKS = tasks
    with pytest.raises(InputError, match=message):
        check_tasks(dense_cfg)


def test_what_needs_more_tasks_says_where_to_add_one(dense_cfg):
    narrow(dense_cfg, "SegNet")
    dense_cfg.DATALOADER.UNLABELLED_PER_BATCH = 1
    with pytest.raises(InputError, match="SegNet as configured says no reconstruction. Leave .* at 0"):
        check_tasks(dense_cfg)
    dense_cfg.DATALOADER.UNLABELLED_PER_BATCH = 0
    dense_cfg.MODEL.DENSE_NET.TASKS, dense_cfg.MODEL.TASK_WEIGHTING.NAME = ["height"], "uncertainty"
    with pytest.raises(InputError, match="a single task. Add one to MODEL.DENSE_NET.TASKS"):
        check_tasks(dense_cfg)
