"""The parts of a U-Net, which several systems are made of (dual U-Net, U-REC)."""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DoubleConv(nn.Sequential):
    """Twice: 3 x 3 convolution, batch norm (with `norm`), ReLU; the size stays."""

    def __init__(self, in_channels: int, channels: int, norm: bool = True):
        layers = []
        for width in (in_channels, channels):
            conv = nn.Conv2d(width, channels, 3, padding=1, bias=not norm)
            weight_init.c2_msra_fill(conv)
            layers += [conv, *([nn.BatchNorm2d(channels)] if norm else []), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UNetEncoder(nn.Module):
    """`DoubleConv` at full resolution, then as often as there are further widths: max-pooling by 2, `DoubleConv`.

    Attributes:
        levels: ModuleList of the convolutions, finest first. Call them one by one (`level`) where something happens
            between levels, or all at once.
    """

    def __init__(self, in_channels: int, widths: list[int]):
        super().__init__()
        self.levels = nn.ModuleList(
            DoubleConv(before, width) for before, width in zip((in_channels, *widths), widths)
        )

    def level(self, i: int, x: Tensor) -> Tensor:
        """Level `i` of the map of the level above (or of the image, for 0)."""
        return self.levels[i](F.max_pool2d(x, 2) if i else x)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) -> the maps of all levels, finest first: (N, widths[i], H / 2^i, W / 2^i)."""
        maps = []
        for i in range(len(self.levels)):
            x = self.level(i, x)
            maps.append(x)
        return maps


class UNetDecoder(nn.Module):
    """From the coarsest map to the finest: bilinear doubling, the encoder's map beside it (`skips`), `DoubleConv`."""

    def __init__(
        self,
        widths: list[int],
        skips: bool = True,
        *,
        skip_widths: list[int] | None = None,
        norm: bool = True,
    ):
        """A decoder whose result has widths[0] channels.

        Args:
            widths: of the encoder, finest first.
            skip_widths: channels of the maps beside, finest first; None: those of `widths`.
            norm: batch norm in the convolutions.
        """
        super().__init__()
        self.skips = skips
        self.steps = nn.ModuleList(
            DoubleConv(below + beside * skips, width, norm)
            for width, below, beside in zip(widths, widths[1:], skip_widths or widths)
        )

    def step(self, i: int, x: Tensor, skip: Tensor) -> Tensor:
        """The map of level `i` from that of level i + 1; of `skip` without skips only the size counts."""
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.steps[i](torch.cat([skip, x], dim=1) if self.skips else x)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The encoder's maps, finest first -> (N, widths[0], H, W)."""
        x = maps[-1]
        for i in reversed(range(len(self.steps))):
            x = self.step(i, x, maps[i])
        return x
