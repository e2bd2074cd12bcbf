"""Config keys of U-REC."""

import fusiondet.compat  # noqa: F401  (before detectron2)

from detectron2.config import CfgNode as CN


def add_u_rec_config(cfg: CN) -> None:
    """Add the section MODEL.DENSE_NET.U_REC."""
    # Settings of "UREC".
    cfg.MODEL.DENSE_NET.U_REC = CN()
    # Weight of the reconstruction's L1; the cross-entropy of the classes has 1 - W1. 0: a plain U-Net without it.
    cfg.MODEL.DENSE_NET.U_REC.W1 = 0.1
    # Of the L1: "mean" over pixels and bands, or "sum_per_image" as the paper's equation has it, where a W1 does what
    # n W1 / (n W1 + 1 - W1) does here, n numbers per image. See modeling/dense_nets/u_rec.py.
    cfg.MODEL.DENSE_NET.U_REC.REDUCTION = "mean"
