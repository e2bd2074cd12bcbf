"""Elevation of the ground under a building, from a terrain model (DTM)."""

import math
from pathlib import Path

from fusiondet.buildings import map_to_pixel
from fusiondet.errors import InputError
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.crs import crs_text, transformer
from fusiondet.io.rasters import BandReader

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS

# Below the Dead Sea's shore and above Everest there is no ground: such a number is an undeclared no-data value.
LOWEST_M, HIGHEST_M = -500.0, 9000.0
# A footprint is read in at most so many pixels; a larger one on a coarser grid.
_MOST_PX = 1 << 22


class GroundRaster:
    """The median elevation of a DTM's pixels under outlines; a context manager that closes the file.

    Attributes:
        vertical_crs: "EPSG:n" or WKT of what its elevations count from; None where the file does not say, or says it
            in another unit than metres.
        notes: what was decided by what the file states, one sentence each, for the user.
    """

    def __init__(self, path: Path, crs: CRS):
        """`path`: elevations, band 1, in any unit that it states, else metres; `crs`: that of the outlines to come.

        Raises:
            InputError: cannot be read, has no CRS, or says that its unit is no length.
        """
        self._reader = BandReader(path, in_metres=True)
        self.notes = self._reader.notes
        if self._reader.crs is None:
            raise InputError(f"{path}: has no CRS. `rio edit-info --crs EPSG:n FILE` sets it.")
        own = CRS.from_user_input(self._reader.crs)
        vertical = next((part for part in own.sub_crs_list if part.is_vertical), None)
        # Elevations are in metres now: a system in feet is not theirs any more.
        in_metres = self._reader.unit is None or self._reader.unit.is_metre
        self.vertical_crs = crs_text(vertical) if in_metres else None
        self._to_raster = transformer(crs.to_2d(), own.to_2d())

    def __call__(self, polygons: np.ndarray) -> np.ndarray:
        """(N,) metres under N outlines in map coordinates; NaN where the file has no data."""
        here = shapely.transform(polygons, self._to_raster.transform, interleaved=False)
        return np.array([self._under(map_to_pixel(p, self._reader.transform)) for p in here], dtype=float)

    def _under(self, outline_px) -> float:
        if not np.isfinite(outline_px.bounds).all():
            return math.nan
        frame = shapely.box(0, 0, self._reader.width, self._reader.height)
        seen = shapely.intersection(outline_px.envelope, frame)
        if seen.area == 0:
            return math.nan
        x0, y0, x1, y1 = seen.bounds
        x0, y0, x1, y1 = math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
        step = max(1, math.ceil(math.sqrt((x1 - x0) * (y1 - y0) / _MOST_PX)))
        shape = math.ceil((y1 - y0) / step), math.ceil((x1 - x0) / step)
        transform = self._reader.transform * Affine.translation(x0, y0) * Affine.scale(step)
        elevation_m = self._reader.onto(transform, self._reader.crs, shape)
        outline = shapely.transform(outline_px, lambda xy: (xy - (x0, y0)) / step)
        inside = polygon_to_mask(outline, *shape)
        if not inside.any():  # smaller than a pixel
            point = shapely.point_on_surface(outline)
            inside[min(max(int(point.y), 0), shape[0] - 1), min(max(int(point.x), 0), shape[1] - 1)] = True
        known = elevation_m[inside & (elevation_m >= LOWEST_M) & (elevation_m <= HIGHEST_M)]
        return float(np.median(known)) if known.size else math.nan

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._reader.__exit__()
