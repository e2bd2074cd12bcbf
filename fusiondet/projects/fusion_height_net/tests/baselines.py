"""Small baselines of FusionHeightNet, and an input for them."""

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.modeling.dense_nets import Picture, dense_net_named

import torch


def network(cfg, name, optical=3, sar=1, width=8, encoder="resnet18"):
    """The network `name`, always with the same weights."""
    cfg.MODEL.DENSE_NET.WIDTH, cfg.MODEL.DENSE_NET.SMP.ENCODER = width, encoder
    torch.manual_seed(0)
    return dense_net_named(name)(cfg, optical, sar)


def picture(n=2, height=64, width=96, optical=3, sar=1):
    """Random bands, valid everywhere."""
    generator = torch.Generator().manual_seed(1)
    bands = torch.randn(n, optical + sar, height, width, generator=generator)
    valid = torch.ones(n, 1, height, width)
    return Picture(bands[:, :optical], bands[:, optical:], valid, valid, bands)
