"""Heads that predict per pixel from the pyramid of the detector: heights of buildings, footprints, the image itself.

Legend: N images, C bands, H x W pixels of the padded batch, D channels. Heights are metres above ground.
"""

from dataclasses import dataclass

from detectron2.utils.registry import Registry
from torch import Tensor

DENSE_HEAD_REGISTRY = Registry("DENSE_HEAD")
DENSE_HEAD_REGISTRY.__doc__ = """
Heads named in MODEL.DENSE_HEADS.NAMES. What a head is asked for is the contract of `DenseHeads`.
"""


@dataclass
class DenseMaps:
    """What the dense heads say; None where there is no such head.

    Attributes:
        height_m: (N, 1, H, W) metres, 0 or more; 0 is no building.
        footprint: (N, 1, H, W) logits.
        reconstruction: (N, C, H, W) normalised bands.
    """

    height_m: Tensor | None = None
    footprint: Tensor | None = None
    reconstruction: Tensor | None = None


@dataclass
class DenseTargets:
    """What they should say; NaN where nothing is known, on tiles without labels and in the padding.

    Attributes:
        height_m: (N, 1, H, W) metres above ground, 0 outside buildings, NaN also in buildings of unknown height.
        footprint: (N, 1, H, W) 0 or 1.
        image: (N, C, H, W) normalised bands, NaN = no data.
    """

    height_m: Tensor
    footprint: Tensor
    image: Tensor
