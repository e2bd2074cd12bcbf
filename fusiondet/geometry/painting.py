"""Outlines to masks and rasters, and back: pure functions on arrays and shapes, in pixels."""

from fusiondet.buildings import Building, Tile, clean_polygon

import numpy as np
import shapely
import shapely.geometry
from affine import Affine
from rasterio.features import rasterize, shapes
from shapely.geometry.base import BaseGeometry


def polygon_to_mask(polygon_px: BaseGeometry, height: int, width: int) -> np.ndarray:
    """(H, W) bool: pixels whose centre lies inside `polygon_px` (holes are outside)."""
    return rasterize([(polygon_px, 1)], out_shape=(height, width), fill=0, dtype="uint8").astype(bool)


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
