"""Config keys of FusionHeightNet and of its baselines."""

import fusiondet.compat  # noqa: F401  (before detectron2)

from detectron2.config import CfgNode as CN


def add_fusion_height_net_config(cfg: CN) -> None:
    """Add the sections MODEL.DENSE_NET.FUSION_HEIGHT_NET and SMP."""
    # Settings of "FusionHeightNet".
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET = CN()
    # Blocks of each Transformer, heads of all attention, expansion of the MLPs.
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET.DEPTH = 4
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET.HEADS = 8
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET.MLP_RATIO = 4.0
    # Learned positions per side, one for each 16 pixels of the training tiles; other tiles see them resized.
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET.POSITIONS = 32
    # How optical and SAR meet: "cross" (cross-fusion before and behind the Transformers) or "concat" (at the end).
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET.FUSION = "cross"
    # One encoder for both modalities; stems stay apart, as their bands differ.
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET.SHARE_WEIGHTS = False
    # Settings of "DeepLabV3Plus", "ResUNet", "UPerNet" and "PSPNet".
    cfg.MODEL.DENSE_NET.SMP = CN()
    # Their ResNet, with random weights: resnet18, resnet34, resnet50, resnet101.
    cfg.MODEL.DENSE_NET.SMP.ENCODER = "resnet50"
