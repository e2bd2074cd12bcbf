"""Detectors that are small everywhere but in the number of their layers, and files of pretrained weights for them."""

import collections

import fusiondet.compat  # noqa: F401
from fusiondet.config import add_fusiondet_config
from fusiondet.modeling import weights

import numpy as np
from detectron2.config import get_cfg

RGB = ("red", "green", "blue")
RGB_MEAN, RGB_STD = list(weights.IMAGENET_MEAN), list(weights.IMAGENET_STD)


def config(channels=4, depth=50, norm="FrozenBN", stride_in_1x1=True, **keys):
    """A detector that is small everywhere but in the number of its layers."""
    cfg = get_cfg()
    add_fusiondet_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "FusionRCNN"
    cfg.MODEL.BACKBONE.NAME = "build_early_fusion_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = stride_in_1x1
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    if depth < 50:
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "FusionROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.ROI_HEIGHT_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_HEIGHT_HEAD.FC_DIM = 8
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.PIXEL_MEAN = RGB_MEAN[:channels] + [-12.0] * (channels - 3)
    cfg.MODEL.PIXEL_STD = RGB_STD[:channels] + [6.0] * (channels - 3)
    cfg.merge_from_list([word for item in keys.items() for word in item])
    return cfg


def caffe2_blobs(resnet):
    """The ResNet as MSRA's files name it: batch norm fused to a scale and a bias, and a classifier."""
    blobs = collections.OrderedDict(fc1000_w=np.zeros((1000, 4), np.float32), conv1_b=np.zeros(8, np.float32))
    for name, tensor in resnet.state_dict().items():
        if "running" in name:
            continue
        name = (
            name.replace("stem.conv1.norm", "res.conv1_bn")
            .replace("stem.conv1", "conv1")
            .replace(".norm", "_bn")
        )
        for ours, theirs in {
            "shortcut": "branch1",
            "conv1": "branch2a",
            "conv2": "branch2b",
            "conv3": "branch2c",
        }.items():
            name = (
                name.replace(f".{ours}", f"_{theirs}")
                if name.startswith("res") and "res.conv1" not in name
                else name
            )
        leaf = ("s" if "_bn" in name else "w") if name.endswith("weight") else "b"
        blobs[name.rsplit(".", 1)[0].replace(".", "_") + "_" + leaf] = tensor.numpy()
    return blobs
