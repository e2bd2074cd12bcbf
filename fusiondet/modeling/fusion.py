"""What happens between the optical and the SAR stream: exchanges, joins, and what stands for pixels without data.

An *exchange* lets two streams of features learn from each other and leaves them two; a *join* makes one of them. A new
op is one class in this file and one line of YAML; whatever is in the registries is built and tested.

Legend: N images, C channels, H x W cells. `valid` is (N, 1, H, W) in [0, 1]: the share of a cell's pixels that
hold data of that modality; padding holds none.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from fusiondet.errors import unknown_name

import torch
from detectron2.utils.registry import Registry
from torch import Tensor, nn

MODALITIES = ("optical", "sar")

EXCHANGE_REGISTRY = Registry("EXCHANGE")
EXCHANGE_REGISTRY.__doc__ = """
Ops that let two streams learn from each other: subclasses of `Exchange`. Built as obj(cfg, optical: ShapeSpec,
sar: ShapeSpec), the shapes of the feature maps behind the stage.
"""

JOIN_REGISTRY = Registry("JOIN")
JOIN_REGISTRY.__doc__ = """
Ops that make one feature map of two: modules with `out_channels`, called as
join(optical, sar, optical_valid, sar_valid) with (N, C, H, W) each -> (N, out_channels, H, W). Built as
obj(cfg, optical: ShapeSpec, sar: ShapeSpec).
"""


class StandIn(nn.Module):
    """Puts a value per band where there is no data: 0, which is the band's mean, or one that is learned."""

    def __init__(self, bands: int, learned: bool):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(bands)) if learned else None

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) normalised, NaN = no data -> the same without NaN, and valid (N, 1, H, W): any band has data."""
        missing = torch.isnan(image)
        value = image.new_zeros(()) if self.value is None else self.value.to(image.dtype)[:, None, None]
        return torch.where(missing, value, image), (~missing.all(1, keepdim=True)).to(image.dtype)


class Exchange(nn.Module):
    """Base of exchanges: forward(optical, sar, optical_valid, sar_valid) -> (optical, sar), shapes unchanged.

    All that one stream gets to know of the other goes through `_tell`, so that it can be observed and cut off (P3).
    """

    def __init__(self):
        super().__init__()
        self._replaced: dict[str, Tensor] = {}
        self._listener = None

    def _tell(self, modality: str, message: Tensor) -> Tensor:
        """`message` (N, M, ...) of the stream `modality` to the other one; its mean where that is cut off."""
        if self._listener is not None:
            self._listener(modality, message.detach())
        mean = self._replaced.get(modality)
        if mean is None:
            return message
        return mean.to(message).reshape(1, -1, *[1] * (message.dim() - 2)).expand_as(message)


def exchanges(model: nn.Module) -> dict[str, Exchange]:
    """The exchanges in `model` by their names; {} for a network without."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Exchange)}


@contextmanager
def cut_off(model: nn.Module, means: dict[str, dict[str, Tensor]], modality: str) -> Iterator[None]:
    """Within it, every exchange hears the mean message of `modality` instead of the image's own (P3, cut-off).

    Args:
        means: exchange -> modality -> (M,), of `mean_messages`.
    """
    if modality not in MODALITIES:
        raise unknown_name("modality", modality, MODALITIES)
    ops = exchanges(model)
    for name, op in ops.items():
        op._replaced = {modality: means[name][modality]}
    try:
        yield
    finally:
        for op in ops.values():
            op._replaced = {}
