"""Backbones that take stacked RGB + SAR images.

Legend: N images, C channels (optical first, SAR after), H x W pixels.
"""

from fusiondet.errors import InputError

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool


def fill_nodata(image: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) normalised image with NaN (no data) replaced by 0, which is the mean of every band."""
    return torch.where(torch.isnan(image), torch.zeros_like(image), image)


class EarlyFusionResNet(Backbone):
    """Early fusion: one ResNet over all bands stacked (P1, early fusion), any number of them.

    Pixels without data arrive as NaN and take the band's mean before the first convolution.
    """

    def __init__(self, resnet: Backbone):
        super().__init__()
        self.resnet = resnet

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, C, H, W) normalised, NaN = no data -> {"res2": (N, C2, H/4, W/4), ...}."""
        return self.resnet(fill_nodata(image))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the feature maps, those of the ResNet."""
        return self.resnet.output_shape()


@BACKBONE_REGISTRY.register()
def build_early_fusion_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet-FPN over `input_shape.channels` stacked bands: RGB + SAR, RGB only and SAR only are the same code.

    ResNet-18, 34, 50 and 101 by MODEL.RESNETS.DEPTH. The FPN is Detectron2's own.
    """
    if cfg.MODEL.RESNETS.DEPTH in (18, 34) and cfg.MODEL.RESNETS.RES2_OUT_CHANNELS != 64:
        raise InputError(
            f"MODEL.RESNETS.DEPTH {cfg.MODEL.RESNETS.DEPTH} needs MODEL.RESNETS.RES2_OUT_CHANNELS 64, "
            f"found {cfg.MODEL.RESNETS.RES2_OUT_CHANNELS}."
        )
    return FPN(
        bottom_up=EarlyFusionResNet(build_resnet_backbone(cfg, input_shape)),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
