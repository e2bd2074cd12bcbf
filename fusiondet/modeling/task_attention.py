"""Attention of one task to shared feature maps (P4)."""

from fusiondet.modeling.backbone import valid_at
from fusiondet.modeling.fusion import valid_mean

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TaskAttention(nn.Module):
    """Gate a shared feature map for one task: a gate per channel times a gate per cell.

    The channel gate sees the mean over cells with data, the spatial one the 3 x 3 cells around. Both are
    2 sigmoid(z) with z = 0 before training, so that an untrained attention is the identity.
    """

    def __init__(self, channels: int):
        super().__init__()
        width = max(8, channels // 4)
        self.squeeze, self.excite = nn.Linear(channels, width), nn.Linear(width, channels)
        self.spatial = nn.Conv2d(channels, 1, kernel_size=3, padding=1)
        for layer in (self.excite, self.spatial):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, valid: Tensor) -> Tensor:
        """Features (N, channels, h, w), valid (N, 1, H, W) of the pixels -> the features, gated."""
        mean = valid_mean(features, valid_at(valid, features))
        channel = self.excite(F.relu(self.squeeze(mean.to(features.dtype))))
        return features * (4 * channel.sigmoid()[:, :, None, None] * self.spatial(features).sigmoid())


class InstanceAttention(nn.Module):
    """Attention of the instance heads to the shared pyramid: a `TaskAttention` per level."""

    def __init__(self, channels: dict[str, int]):
        """`channels` of the feature maps that are gated, by name; any others pass unchanged."""
        super().__init__()
        self.levels = nn.ModuleDict({name: TaskAttention(n) for name, n in channels.items()})

    @classmethod
    def of_config(cls, cfg, shapes: dict):
        """For the maps that instance heads of `cfg` read: a gate on any other would never get a gradient."""
        model = cfg.MODEL
        read = {*model.RPN.IN_FEATURES, *model.ROI_HEADS.IN_FEATURES}
        read |= {*model.ROI_HEIGHT_HEAD.IN_FEATURES} if model.HEIGHT_ON else set()
        return cls({name: shape.channels for name, shape in shapes.items() if name in read})

    def forward(self, features: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        """Feature maps by name, and the image (N, C, H, W), NaN = no data -> the same maps, gated."""
        valid = (~torch.isnan(image)).any(dim=1, keepdim=True).to(image.dtype)
        return {**features, **{name: gate(features[name], valid) for name, gate in self.levels.items()}}
