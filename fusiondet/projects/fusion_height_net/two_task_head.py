"""The head for two tasks of FusionHeightNet, which its baselines are given, too, and the bases of all of them."""

import math

from fusiondet.modeling.dense_heads import DenseMaps, DenseTargets, footprint_loss, known_pixels
from fusiondet.modeling.dense_nets import DenseNet, Picture

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from torch import Tensor, nn

# Height that the untrained head says everywhere, as a share of the scale: most pixels are ground.
_UNTRAINED_SHARE = 0.05


class TwoTaskHead(nn.Module):
    """Footprint and height of each pixel, or one of them, from the last feature maps of a network (P2).

    Footprint: 3 x 3 convolution + batch norm, 1 x 1 convolution + batch norm, 2 classes. Height: the same with one
    channel and a sigmoid, which is the share of `height_scale_m`; with `refine` it is multiplied by argmax(footprint),
    0 or 1, before the loss (P2, equation 16). Losses (equations 17 to 20): `footprint_weight` (cross-entropy + Dice) +
    `height_weight` smooth L1 (beta = 1) of the shares, mean over the pixels of known truth, the ground among them.

    Assumptions, as the paper does not say it: a ReLU follows the first batch norm; no gradient of the height's loss
    reaches the footprint (argmax has none); an untrained head says 5 % of the scale.
    """

    def __init__(
        self,
        footprint_channels: int,
        height_channels: int,
        *,
        tasks: tuple[str, ...] = ("footprint", "height"),
        height_scale_m: float,
        refine: bool = True,
        footprint_weight: float = 1.0,
        height_weight: float = 0.5,
    ):
        """For feature maps of these channels; `tasks` of "footprint", "height"."""
        super().__init__()
        self.footprint = _head(footprint_channels, 2) if "footprint" in tasks else None
        self.height = _head(height_channels, 1) if "height" in tasks else None
        if self.height is not None:
            nn.init.constant_(self.height[-1].bias, math.log(_UNTRAINED_SHARE / (1 - _UNTRAINED_SHARE)))
        self.height_scale_m, self.refine = height_scale_m, refine and self.footprint is not None
        self.footprint_weight, self.height_weight = footprint_weight, height_weight

    @staticmethod
    def arguments(cfg) -> dict:
        """The keyword arguments that MODEL.DENSE_NET says."""
        keys = cfg.MODEL.DENSE_NET
        return {
            "tasks": tuple(keys.TASKS),
            "height_scale_m": keys.HEIGHT_SCALE_M,
            "refine": keys.HEIGHT.REFINE,
            "footprint_weight": keys.FOOTPRINT.LOSS_WEIGHT,
            "height_weight": keys.HEIGHT.LOSS_WEIGHT,
        }

    def forward(self, footprint_features: Tensor, height_features: Tensor) -> DenseMaps:
        """(N, channels, H, W) each, of full resolution; the one that no task needs is not looked at."""
        maps = DenseMaps()
        if self.footprint is not None:
            logits = self.footprint(footprint_features).float()
            # The logit of one class against the other is all that softmax, cross-entropy and argmax know of two.
            maps.footprint = logits[:, 1:] - logits[:, :1]
        if self.height is not None:
            share = self.height(height_features).float().sigmoid()
            if self.refine:
                share = share * (maps.footprint.detach() > 0)
            maps.height_m = share * self.height_scale_m
        return maps

    def losses(self, maps: DenseMaps, targets: DenseTargets) -> dict[str, Tensor]:
        """See `DenseNet.losses`."""
        losses = {}
        if maps.footprint is not None:
            losses["loss_footprint"] = self.footprint_weight * footprint_loss(
                maps.footprint, targets.footprint
            )
        if maps.height_m is not None:
            predicted_m, truth_m = known_pixels(maps.height_m, targets.height_m)
            total = F.smooth_l1_loss(
                predicted_m / self.height_scale_m, truth_m / self.height_scale_m, reduction="sum"
            )
            losses["loss_dense_height"] = self.height_weight * total / max(1, truth_m.numel())
        return losses


def _head(in_channels: int, channels: int) -> nn.Sequential:
    head = nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    )
    weight_init.c2_msra_fill(head[0])
    weight_init.c2_msra_fill(head[3])
    return head


class TwoTaskNet(DenseNet):
    """Base of the networks that end in a `TwoTaskHead`, as attribute `head`."""

    sections = ("WIDTH", "FOOTPRINT", "HEIGHT")

    def losses(self, maps: DenseMaps, targets: DenseTargets) -> dict[str, Tensor]:
        """See `DenseNet.losses`."""
        return self.head.losses(maps, targets)


class StackedNet(TwoTaskNet):
    """Base of P2's baselines: all bands stacked at the input (early fusion), one map that both tasks look at.

    A body whose map is smaller than the image is followed by a 1 x 1 convolution to MODEL.DENSE_NET.WIDTH channels and
    a bilinear resize; the head then is at full resolution in every network.
    """

    # Below, the coarsest map is a single cell, of which batch norm cannot train on a single image.
    least_size_px = 64

    def __init__(self, cfg, optical_channels: int, sar_channels: int):
        """See `DENSE_NET_REGISTRY`."""
        super().__init__()
        self.body, channels, shrinks = self.build_body(cfg, optical_channels + sar_channels)
        self.project = nn.Identity()
        if shrinks:
            self.project = nn.Conv2d(channels, cfg.MODEL.DENSE_NET.WIDTH, 1)
            weight_init.c2_xavier_fill(self.project)
            channels = self.project.out_channels
        self.head = TwoTaskHead(channels, channels, **TwoTaskHead.arguments(cfg))

    def build_body(self, cfg, bands: int) -> tuple[nn.Module, int, bool]:
        """Module (N, bands, H, W) -> (N, channels, h, w), its channels, whether h x w is smaller than H x W."""
        raise NotImplementedError

    def forward(self, picture: Picture) -> DenseMaps:
        """See `DenseNet.forward`."""
        features = self.project(self.body(picture.stacked))
        size = picture.valid.shape[-2:]
        if features.shape[-2:] != size:
            features = F.interpolate(features, size, mode="bilinear", align_corners=False)
        return self.head(features, features)
