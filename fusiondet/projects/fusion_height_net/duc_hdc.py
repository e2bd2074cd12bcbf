"""DUC-HDC (Wang et al. 2018, "Understanding convolution for semantic segmentation"), a baseline of FusionHeightNet."""

from fusiondet.modeling.dense_nets import DENSE_NET_REGISTRY
from fusiondet.projects.fusion_height_net.two_task_head import StackedNet

import fvcore.nn.weight_init as weight_init
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

# Dilations of the blocks of ResNet-50's stages. Those of one stage have no common factor above 1, so that together they
# leave no pixel out (hybrid dilated convolution); plain dilation (2, 2, ...) would leave a grid.
_DILATIONS = ((1, 1, 1), (1, 1, 1, 1), (1, 2, 5, 9, 1, 2), (5, 9, 17))
# Of the stages. The two last ones keep the size, and dilate instead.
_STRIDES = (1, 2, 1, 1)
_STRIDE = 8


def _body(bands: int, width: int, out_channels: int) -> nn.Sequential:
    """(N, bands, H, W) -> (N, out_channels, H, W), by way of H/8 x W/8."""
    stem = nn.Conv2d(bands, width, 7, stride=2, padding=3, bias=False)
    weight_init.c2_msra_fill(stem)
    layers = [stem, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)]
    channels = width
    for i, (dilations, stride) in enumerate(zip(_DILATIONS, _STRIDES)):
        inner = width * 2**i
        for j, dilation in enumerate(dilations):
            layers.append(
                BottleneckBlock(
                    channels,
                    4 * inner,
                    bottleneck_channels=inner,
                    stride=stride if j == 0 else 1,
                    norm="BN",
                    dilation=dilation,
                )
            )
            channels = 4 * inner
    # Dense upsampling convolution: a cell says all of its 8 x 8 pixels, each by filters of its own.
    dense = nn.Conv2d(channels, out_channels * _STRIDE**2, 3, padding=1, bias=False)
    weight_init.c2_msra_fill(dense)
    layers += [dense, nn.BatchNorm2d(dense.out_channels), nn.ReLU(inplace=True), nn.PixelShuffle(_STRIDE)]
    return nn.Sequential(*layers)


@DENSE_NET_REGISTRY.register()
class DUCHDC(StackedNet):
    """ResNet-50 of hybrid dilated convolutions and a dense upsampling convolution to the feature maps of the head.

    MODEL.DENSE_NET.WIDTH is the inner width of the first stage, 64 in ResNet-50; the head has a quarter of it, 8 at
    least. The original ends in as many channels as classes; here the head that all networks are given comes after.
    """

    stride = _STRIDE

    def build_body(self, cfg, bands: int) -> tuple[nn.Module, int, bool]:
        """See `StackedNet.build_body`."""
        width = cfg.MODEL.DENSE_NET.WIDTH
        out_channels = max(8, width // 4)
        return _body(bands, width, out_channels), out_channels, False
