"""RoIAlign in float32, whatever precision the network runs in."""

import torch
from detectron2.structures import Boxes
from torch import nn


class Float32Pooler(nn.Module):
    """A ROIPooler that computes in float32 whatever the autocast: 16-bit rounding moves boxes by 0.6 px."""

    def __init__(self, pooler: nn.Module):
        super().__init__()
        self.pooler = pooler

    def forward(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """As `ROIPooler.forward`: per-level (N, C, H, W) and N Boxes -> (R, C, S, S) float32."""
        with torch.autocast(features[0].device.type, enabled=False):
            return self.pooler([f.float() for f in features], boxes)
