"""Outlines to masks and rasters, and back: pure functions on arrays and shapes, in pixels."""

from collections.abc import Sequence

from fusiondet.buildings import Building, Tile, clean_polygon

import numpy as np
import shapely
import shapely.geometry
from affine import Affine
from rasterio.env import env_ctx_if_needed
from rasterio.features import rasterize, shapes
from shapely.geometry.base import BaseGeometry


def polygon_to_mask(polygon_px: BaseGeometry, height: int, width: int) -> np.ndarray:
    """(H, W) bool: pixels whose centre lies inside `polygon_px` (holes are outside)."""
    return rasterize([(polygon_px, 1)], out_shape=(height, width), fill=0, dtype="uint8").astype(bool)


def polygons_to_masks(polygons_px: Sequence[BaseGeometry | None], height: int, width: int) -> np.ndarray:
    """(N, H, W) bool: `polygon_to_mask` of each of N outlines, which may overlap; all False for None.

    Outlines whose boxes do not meet are rasterised together, since setting up GDAL takes longer than filling a
    building. Their coordinates stay as they are, so that masks are equal bit by bit to those made one by one.
    """
    masks = np.zeros((len(polygons_px), height, width), bool)
    known = [i for i, polygon in enumerate(polygons_px) if polygon is not None]
    if not known:
        return masks

    # Whole pixels around each outline, inside the raster.
    bounds = shapely.bounds([polygons_px[i] for i in known])
    x0, y0 = np.floor(bounds[:, :2]).clip(0, (width, height)).astype(int).T
    x1, y1 = np.ceil(bounds[:, 2:]).clip(0, (width, height)).astype(int).T

    layers: dict[int, list[int]] = {}
    for i, layer in enumerate(_layers(shapely.box(x0, y0, x1, y1))):
        layers.setdefault(layer, []).append(i)
    with env_ctx_if_needed():
        for members in layers.values():
            values = [(polygons_px[known[i]], i + 1) for i in members]
            numbers = rasterize(values, out_shape=(height, width), fill=0, dtype="int32")
            for i in members:
                box = slice(y0[i], y1[i]), slice(x0[i], x1[i])
                masks[known[i]][box] = numbers[box] == i + 1
    return masks


def _layers(boxes: np.ndarray) -> list[int]:
    """A number for each box, the smallest that no earlier box has which it touches or overlaps."""
    later, earlier = shapely.STRtree(boxes).query(boxes)
    meets: list[list[int]] = [[] for _ in boxes]
    for i, j in zip(later.tolist(), earlier.tolist()):
        if j < i:
            meets[i].append(j)

    layers: list[int] = []
    for neighbours in meets:
        taken = {layers[j] for j in neighbours}
        layers.append(next(layer for layer in range(len(taken) + 1) if layer not in taken))
    return layers


def mask_to_polygon(mask: np.ndarray) -> BaseGeometry | None:
    """Union of the true pixels' squares of (H, W) `mask`, in its pixels; None when there is none."""
    rings = shapes(mask.astype(np.uint8), mask=mask.astype(bool), connectivity=4)
    return clean_polygon(shapely.unary_union([shapely.geometry.shape(g) for g, _ in rings]))


def footprint_label(tile: Tile) -> np.ndarray:
    """(H, W) bool: pixels whose centre lies in an annotated outline of `tile`."""
    outlines = [(building.polygon, 1) for building in tile.buildings]
    if not outlines:
        return np.zeros((tile.height, tile.width), bool)
    return rasterize(outlines, (tile.height, tile.width), fill=0, dtype="uint8").astype(bool)


def paint_heights(
    buildings_px: list[Building], shape: tuple[int, int], origin_px: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """(H, W) float32 metres above ground, NaN where no building of known height covers the pixel's centre.

    Args:
        buildings_px: outlines in the raster's pixels; where two overlap the better-scored one is on top.
        shape: (H, W).
        origin_px: (x, y) of the upper left corner of what is painted, for a part of a raster.
    """
    known = sorted((b for b in buildings_px if b.height_m is not None), key=lambda b: b.score or 0.0)
    if not known:
        return np.full(shape, np.nan, np.float32)
    values = [(b.polygon, b.height_m) for b in known]
    return rasterize(
        values, shape, fill=np.nan, dtype="float32", transform=Affine.translation(*map(float, origin_px))
    )
