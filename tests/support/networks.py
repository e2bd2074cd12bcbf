"""A network small enough to build and run in a test, and inputs for it."""

import pytest
import torch


def losses_of(model, inputs):
    """Losses of `model` in training mode or not, as it is, with a place for what it logs."""
    from detectron2.utils.events import EventStorage

    with EventStorage():
        return model(inputs)


def assert_all_gradients_finite(model):
    """Every parameter has a gradient, and it is finite."""
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.fixture
def small_cfg():
    """Config of a shrunken FusionRCNN for 3 optical and 1 SAR band."""
    from fusiondet.config import add_fusiondet_config

    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_fusiondet_config(cfg)
    model = cfg.MODEL
    model.DEVICE = "cpu"
    model.META_ARCHITECTURE = "FusionRCNN"
    model.PIXEL_MEAN, model.PIXEL_STD = [100.0, 100.0, 100.0, -10.0], [50.0, 50.0, 50.0, 5.0]
    model.MASK_ON = True
    model.BACKBONE.NAME, model.BACKBONE.FREEZE_AT = "build_early_fusion_resnet_fpn_backbone", 0
    model.RESNETS.DEPTH, model.RESNETS.RES2_OUT_CHANNELS, model.RESNETS.NORM = 18, 64, "BN"
    model.RESNETS.OUT_FEATURES = model.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model.FPN.OUT_CHANNELS = 16
    model.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 20
    model.ROI_HEADS.NAME, model.ROI_HEADS.NUM_CLASSES = "FusionROIHeads", 1
    model.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    model.ROI_BOX_HEAD.NAME, model.ROI_BOX_HEAD.NUM_FC, model.ROI_BOX_HEAD.FC_DIM = (
        "FastRCNNConvFCHead",
        1,
        32,
    )
    model.ROI_MASK_HEAD.NAME, model.ROI_MASK_HEAD.NUM_CONV = "MaskRCNNConvUpsampleHead", 1
    model.ROI_MASK_HEAD.CONV_DIM = 16
    model.ROI_HEIGHT_HEAD.CONV_DIM, model.ROI_HEIGHT_HEAD.FC_DIM = 32, 32
    return cfg


@pytest.fixture
def make_input():
    """make_input(n_buildings, channels=4, side=96) -> an input dict of FusionRCNN with n square buildings."""
    from detectron2.structures import BitMasks, Boxes, Instances

    def make(n_buildings, channels=4, side=96, heights_m=None):
        generator = torch.Generator().manual_seed(n_buildings)
        image = torch.rand(channels, side, side, generator=generator) * 100
        instances = Instances((side, side))
        corners = torch.rand(n_buildings, 2, generator=generator) * (side - 30)
        instances.gt_boxes = Boxes(torch.cat([corners, corners + 24], dim=1))
        instances.gt_classes = torch.zeros(n_buildings, dtype=torch.long)
        masks = torch.zeros(n_buildings, side, side, dtype=torch.bool)
        for mask, (x, y) in zip(masks, corners.round().long()):
            mask[y : y + 24, x : x + 24] = True
        instances.gt_masks = BitMasks(masks)
        heights_m = [8.0] * n_buildings if heights_m is None else heights_m
        instances.gt_heights = torch.tensor(heights_m, dtype=torch.float32)
        return {"image": image, "instances": instances, "gsd_m": 0.5, "height": side, "width": side}

    return make


@pytest.fixture
def dense_cfg(small_cfg):
    """`small_cfg` of a FusionDenseNet for 3 optical and 1 SAR band, heights in units of 50 m."""
    model = small_cfg.MODEL
    model.META_ARCHITECTURE, model.MASK_ON, model.HEIGHT_ON = "FusionDenseNet", False, False
    model.FUSION.OPTICAL_CHANNELS, model.DENSE_NET.HEIGHT_SCALE_M = 3, 50.0
    small_cfg.TEST.BEST_METRIC = "dense/dice"
    return small_cfg


@pytest.fixture
def make_tile(make_input):
    """make_input with labels per pixel: buildings of 8 m."""

    def make(n_buildings, **options):
        x = make_input(n_buildings, **options)
        x["footprint"] = x["instances"].gt_masks.tensor.any(0).float()
        x["building_height_m"] = x["footprint"] * 8
        return x

    return make
