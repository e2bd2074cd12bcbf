"""Dense labels of a batch, and dense predictions in the size of the output."""

from fusiondet.modeling.dense_heads import DenseTargets

import torch
from detectron2.structures import ImageList
from torch import Tensor
from torch.nn import functional as F


def has_labels(x: dict) -> bool:
    """Return whether the tile of input `x` is labelled; tiles are unless they state otherwise."""
    return x.get("labelled", True)


def dense_targets(batched_inputs: list[dict], image: Tensor) -> DenseTargets:
    """Stack the labels per pixel of a batch; NaN in padding, on tiles without labels, and where an input has none.

    Args:
        image: (N, C, H, W) normalised and padded, NaN = no data: the target of a reconstruction.
    """

    def stacked(key: str) -> Tensor:
        maps = image.new_full((len(image), 1, *image.shape[-2:]), torch.nan)
        for row, x in zip(maps, batched_inputs):
            if has_labels(x) and x.get(key) is not None:
                height, width = x[key].shape
                row[0, :height, :width] = x[key].to(image)
        return maps

    labels = (stacked(key) for key in ("building_height_m", "footprint"))
    return DenseTargets(*labels, image, stacked("classes"))


def output_sizes(batched_inputs: list[dict], images: ImageList) -> list[tuple[int, int]]:
    """(height, width) of the output of each input: its own "height" and "width", else those of the image."""
    return [(x.get("height", h), x.get("width", w)) for x, (h, w) in zip(batched_inputs, images.image_sizes)]


def add_maps(
    outputs: list[dict], maps: dict[str, Tensor], images: ImageList, sizes: list[tuple[int, int]]
) -> list[dict]:
    """Add the maps of each image to its output: cut from the padding and resized, bilinearly, to `sizes`.

    Args:
        outputs: a dict per image, changed in place.
        maps: of `DenseMaps.output_maps`, (N, K, H, W) of the padded batch.
        sizes: (height, width) of each output.

    Returns:
        `outputs`; maps of one channel are (height, width), "class_map" is (K, height, width).
    """
    for name, values in maps.items():
        for output, one, (height, width), size in zip(outputs, values, images.image_sizes, sizes):
            one = one[None, :, :height, :width]
            if size != (height, width):
                one = F.interpolate(one, size, mode="bilinear", align_corners=False)
            output[name] = one[0] if name == "class_map" else one[0, 0]
    return outputs


def map_outputs(maps: dict[str, Tensor], images: ImageList, sizes: list[tuple[int, int]]) -> list[dict]:
    """Return outputs that hold these maps and nothing else; arguments as of `add_maps`."""
    return add_maps([{} for _ in sizes], maps, images, sizes)
