"""Dense heads alone."""

import fusiondet.compat  # noqa: F401
from fusiondet.errors import InputError
from tests.support.networks import assert_all_gradients_finite, losses_of

import pytest
import torch
from detectron2.modeling import build_model

DENSE_LOSSES = {"loss_dense_height", "loss_footprint", "loss_reconstruction"}


@pytest.fixture
def dense_cfg(small_cfg):
    small_cfg.MODEL.META_ARCHITECTURE = "FusionDense"
    small_cfg.MODEL.MASK_ON = small_cfg.MODEL.HEIGHT_ON = False
    small_cfg.MODEL.DENSE_HEADS.NAMES = ["Footprint", "DenseHeight", "Reconstruction"]
    small_cfg.MODEL.DENSE_HEADS.CONV_DIM = 8
    return small_cfg


def built(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def test_dense_heads_alone(dense_cfg, make_tile):
    dense_cfg.MODEL.META_ARCHITECTURE = "FusionDense"
    dense_cfg.MODEL.MASK_ON = dense_cfg.MODEL.HEIGHT_ON = False
    dense_cfg.MODEL.TASK_ATTENTION, dense_cfg.MODEL.TASK_WEIGHTING.NAME = True, "uncertainty"
    model = built(dense_cfg)
    losses = losses_of(model, [make_tile(2), make_tile(1) | {"labelled": False}])
    assert losses.keys() == DENSE_LOSSES | {"loss_task_uncertainty"}
    sum(losses.values()).backward()
    # Nothing reads the coarsest level, which has no weights of its own.
    assert_all_gradients_finite(model)
    assert losses_of(model, [make_tile(2) | {"labelled": False}])["loss_footprint"].item() == 0
    model.eval()
    with torch.no_grad():
        one, other = model([make_tile(2), make_tile(0, side=64)])
    assert one.keys() == {"height_map_m", "footprint_map"} and one["height_map_m"].shape == (96, 96)
    assert other["footprint_map"].shape == (64, 64) and (one["height_map_m"] >= 0).all()
    assert model.interval_width is None


def test_dense_heads_alone_need_one(dense_cfg):
    dense_cfg.MODEL.META_ARCHITECTURE, dense_cfg.MODEL.DENSE_HEADS.NAMES = "FusionDense", []
    with pytest.raises(InputError, match="MODEL.DENSE_HEADS.NAMES is empty"):
        build_model(dense_cfg)
