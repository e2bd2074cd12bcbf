"""Elevation of the ground under a building, from a terrain model (DTM)."""

import math
from collections.abc import Sequence
from pathlib import Path

from fusiondet.buildings import map_to_pixel
from fusiondet.errors import InputError
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.crs import crs_text, raster_crs_text, transformer
from fusiondet.io.grids import gsd_m_of
from fusiondet.io.rasters import BandReader

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

# Below the Dead Sea's shore and above Everest there is no ground: such a number is an undeclared no-data value.
LOWEST_M, HIGHEST_M = -500.0, 9000.0
# Where a terrain model has no data under a building, as the Dutch AHN, its ground is that around its outline: as near
# as 3DBAG takes it, else a little farther. Metres; farther away it would be another place's.
GROUND_RINGS_M = (4.0, 8.0)
# A ring is at least so wide, whatever the size of the pixels.
_LEAST_PX = 1.5
# A footprint is read in at most so many pixels; a larger one on a coarser grid.
_MOST_PX = 1 << 22


def ground_around(
    outline_px: BaseGeometry,
    elevation_m: np.ndarray,
    gsd_m: float,
    rings_m: Sequence[float] = GROUND_RINGS_M,
) -> float | None:
    """Median elevation of the ground inside an outline and within the first of `rings_m` around it that has any.

    Args:
        outline_px: in pixels of `elevation_m`, (H, W) metres, NaN = no data.
        gsd_m: metres per pixel.

    Returns:
        Metres; None where there is no ground that near.
    """
    plausible = (elevation_m >= LOWEST_M) & (elevation_m <= HIGHEST_M)
    for ring_m in rings_m:
        ring_px = outline_px.buffer(max(ring_m / gsd_m, _LEAST_PX))
        x0, y0, x1, y1 = (int(v) for v in ring_px.bounds)
        part = slice(max(0, y0), max(0, y1 + 1)), slice(max(0, x0), max(0, x1 + 1))
        if not elevation_m[part].size:
            continue
        corner = (-part[1].start, -part[0].start)
        inside = polygon_to_mask(translate(ring_px, *corner), *elevation_m[part].shape)
        known_m = elevation_m[part][inside & plausible[part]]
        if known_m.size:
            return float(np.median(known_m))
    return None


class GroundRaster:
    """The median elevation of a DTM's pixels under outlines; a context manager that closes the file.

    Attributes:
        from_around: how many outlines have no data under them, so that their ground is that around them.
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
        self.notes = list(self._reader.notes)
        if self._reader.hints_at_feet:
            self.notes.append(
                f"{path}: its coordinates are in feet and nothing states the unit of its elevations, which are taken "
                "as metres. Set it where that is wrong: `rio edit-info --bidx 1 --units us-ft FILE`."
            )
        if self._reader.crs is None:
            raise InputError(f"{path}: has no CRS. `rio edit-info --crs EPSG:n FILE` sets it.")
        own = CRS.from_user_input(self._reader.crs)
        vertical = next((part for part in own.sub_crs_list if part.is_vertical), None)
        # Elevations are in metres now: a system in feet is not theirs any more.
        in_metres = self._reader.unit is None or self._reader.unit.is_metre
        self.vertical_crs = crs_text(vertical) if in_metres else None
        self._gsd_m = gsd_m_of(
            self._reader.transform, raster_crs_text(self._reader.crs), self._reader.width, self._reader.height
        )
        self.from_around = 0
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
        elevation_m, outline, _ = self._read(seen, outline_px)
        shape = elevation_m.shape
        inside = polygon_to_mask(outline, *shape)
        if not inside.any():  # smaller than a pixel
            point = shapely.point_on_surface(outline)
            inside[min(max(int(point.y), 0), shape[0] - 1), min(max(int(point.x), 0), shape[1] - 1)] = True
        known = elevation_m[inside & (elevation_m >= LOWEST_M) & (elevation_m <= HIGHEST_M)]
        if known.size:
            return float(np.median(known))

        reach_px = max(GROUND_RINGS_M[-1] / self._gsd_m, _LEAST_PX)
        around = shapely.intersection(outline_px.buffer(reach_px).envelope, frame)
        elevation_m, outline, step = self._read(around, outline_px)
        ground_m = ground_around(outline, elevation_m, self._gsd_m * step)
        self.from_around += ground_m is not None
        return math.nan if ground_m is None else ground_m

    def _read(self, frame_px, outline_px) -> tuple[np.ndarray, BaseGeometry, int]:
        """(elevations of the pixels in a frame, the outline in these, how many of the file's are one of them)."""
        x0, y0, x1, y1 = frame_px.bounds
        x0, y0, x1, y1 = math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
        step = max(1, math.ceil(math.sqrt((x1 - x0) * (y1 - y0) / _MOST_PX)))
        shape = math.ceil((y1 - y0) / step), math.ceil((x1 - x0) / step)
        transform = self._reader.transform * Affine.translation(x0, y0) * Affine.scale(step)
        elevation_m = self._reader.onto(transform, self._reader.crs, shape)
        return elevation_m, shapely.transform(outline_px, lambda xy: (xy - (x0, y0)) / step), step

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._reader.__exit__()
