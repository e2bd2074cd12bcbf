"""SegNet (Badrinarayanan, Kendall, Cipolla 2017), a baseline of FusionHeightNet: unpooling by remembered places."""

from fusiondet.modeling.dense_nets import DENSE_NET_REGISTRY
from fusiondet.projects.fusion_height_net.two_task_head import StackedNet

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from torch import Tensor, nn

# Convolutions of each level, and its channels over those of the first: VGG-16's.
_LEVELS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


class _Body(nn.Module):
    """Encoder of VGG-16 without its linear layers, and the same backwards; no skips but where each maximum was."""

    def __init__(self, bands: int, width: int):
        super().__init__()
        widths = [width * times for _, times in _LEVELS]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for (convolutions, _), before, own in zip(_LEVELS, [bands, *widths], widths):
            self.down.append(_convolutions([before] + [own] * convolutions))
            # Backwards, the last convolution has the channels of the level above; at the top those stay.
            above = before if len(self.up) else own
            self.up.append(_convolutions([own] * convolutions + [above]))

    def forward(self, x: Tensor) -> Tensor:
        """(N, bands, H, W) -> (N, width, H, W)."""
        places = []
        for level in self.down:
            x = level(x)
            # Plain numbers also where operations are counted, which traces sizes as tensors.
            size = [int(side) for side in x.shape]
            x, indices = F.max_pool2d(x, 2, return_indices=True)
            places.append((indices, size))
        for level, (indices, size) in zip(reversed(self.up), reversed(places)):
            x = level(F.max_unpool2d(x, indices, 2, output_size=size))
        return x


def _convolutions(channels: list[int]) -> nn.Sequential:
    """3 x 3 convolutions from each of `channels` to the next, with batch norm and ReLU."""
    layers = []
    for before, after in zip(channels, channels[1:]):
        conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        weight_init.c2_msra_fill(conv)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@DENSE_NET_REGISTRY.register()
class SegNet(StackedNet):
    """SegNet with MODEL.DENSE_NET.WIDTH channels at the first of its five levels; 64 are the original's."""

    stride = 2 ** len(_LEVELS)

    def build_body(self, cfg, bands: int) -> tuple[nn.Module, int, bool]:
        """See `StackedNet.build_body`."""
        width = cfg.MODEL.DENSE_NET.WIDTH
        return _Body(bands, width), width, False
