"""Buildings as a raster of heights."""

from fusiondet.buildings import Building

import numpy as np


def paint_heights(buildings_px: list[Building], shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 metres above ground, NaN where no building of known height covers the pixel's centre.

    Args:
        buildings_px: outlines in the raster's pixels; where two overlap the better-scored one is on top.
        shape: (H, W).
    """
    from rasterio.features import rasterize

    known = sorted((b for b in buildings_px if b.height_m is not None), key=lambda b: b.score or 0.0)
    if not known:
        return np.full(shape, np.nan, np.float32)
    return rasterize([(b.polygon, b.height_m) for b in known], shape, fill=np.nan, dtype="float32")
