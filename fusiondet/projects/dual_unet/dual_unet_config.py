"""Config keys of the dual U-Net."""

import fusiondet.compat  # noqa: F401  (before detectron2)

from detectron2.config import CfgNode as CN


def add_dual_unet_config(cfg: CN) -> None:
    """Add the section MODEL.DENSE_NET.DUAL_UNET."""
    # Settings of "DualUNet".
    cfg.MODEL.DENSE_NET.DUAL_UNET = CN()
    # Channels of the levels of each U-Net, finest first, in multiples of WIDTH.
    cfg.MODEL.DENSE_NET.DUAL_UNET.MULTIPLES = [1, 2, 2]
    # Of the Power Jaccard loss: 1 is the Jaccard loss; up to 2.
    cfg.MODEL.DENSE_NET.DUAL_UNET.POWER = 2.0
