"""Height of a building from a raster: a statistic of the pixels whose centres lie inside its outline."""

import math
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from fusiondet.buildings import clean_height_m, map_to_pixel
from fusiondet.errors import InputError, unknown_name
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.crs import raster_crs_text
from fusiondet.io.grids import gsd_m_of
from fusiondet.io.rasters import BandReader
from fusiondet.io.terrain import GROUND_RINGS_M, ground_around
from fusiondet.io.units import HEIGHT_UNITS

import numpy as np
import shapely
from affine import Affine
from shapely.geometry.base import BaseGeometry

# Share of an outline's pixels that must hold a number: less, and the statistic describes a corner of the building.
MIN_VALID = 0.5
NO_DATA = "height raster has no data"


def statistic(name: str) -> Callable[[np.ndarray], float]:
    """Function of an array for "median", "mean", "min", "max" or a percentile such as "p70".

    Raises:
        InputError: any other name.
    """
    known = {"median": np.median, "mean": np.mean, "min": np.min, "max": np.max}
    percentile = re.fullmatch(r"p(\d{1,2})", name)
    if percentile:
        return lambda values: np.percentile(values, int(percentile.group(1)))
    if name not in known:
        raise unknown_name("statistic", name, [*known, "p70"])
    return known[name]


def zonal_height(heights_m: np.ndarray, outline_px: BaseGeometry, measure: Callable[[np.ndarray], float]):
    """(height in metres, None) of an outline, or (None, why it is unknown).

    Reasons are those of `buildings.clean_height_m`, "no height pixel" (no pixel centre inside) and "height raster has
    no data" (on half of the outline or more).

    Args:
        heights_m: (H, W) metres above ground, NaN = no data.
        outline_px: in its pixels; what is beyond it does not count.
        measure: see `statistic`.
    """
    x0, y0, x1, y1 = outline_px.bounds
    x0, y0 = max(0, math.floor(x0)), max(0, math.floor(y0))
    heights_m = heights_m[y0 : max(y0, math.ceil(y1)), x0 : max(x0, math.ceil(x1))]
    if not heights_m.size:
        return None, "no height pixel"
    inside_m = heights_m[polygon_to_mask(shapely.affinity.translate(outline_px, -x0, -y0), *heights_m.shape)]
    if not inside_m.size:
        return None, "no height pixel"
    known_m = inside_m[np.isfinite(inside_m)]
    if known_m.size < MIN_VALID * inside_m.size:
        return None, NO_DATA
    return clean_height_m(float(measure(known_m)))


class HeightRaster:
    """Heights above ground from an nDSM, or from a surface model minus a terrain model, on any grid.

    Attributes:
        source: "ndsm" or "dsm - dtm", as recorded with the buildings.
        crs: of the raster's own grid, that of the DSM when there are two.
        notes: what was decided by what the files state, one sentence each, for the user.
    """

    def __init__(
        self,
        ndsm: Path | None = None,
        dsm: Path | None = None,
        dtm: Path | None = None,
        nodata=None,
        height_unit: str | None = None,
    ):
        """Open the file(s); a context manager that closes them.

        Args:
            height_unit: m, ft or us-ft, of heights in files that state no unit; None: metres.

        Raises:
            InputError: not exactly an nDSM, or a DSM and a DTM; a file that cannot be read; or one in a map in feet
                that states no unit of its heights, without `height_unit`.
        """
        if (ndsm is None) == (dsm is None) or (dsm is None) != (dtm is None):
            raise InputError("heights come either from `ndsm`, or from `dsm` and `dtm` together.")
        self.source = "ndsm" if ndsm else "dsm - dtm"
        reading = {"nodata": nodata, "in_metres": True, "height_unit": height_unit}
        with ExitStack() as files:
            self._surface = files.enter_context(BandReader(ndsm or dsm, **reading))
            self._terrain = files.enter_context(BandReader(dtm, **reading)) if dtm else None
            for path, file in ((ndsm or dsm, self._surface), (dtm, self._terrain)):
                if file is not None and file.hints_at_feet:
                    raise InputError(
                        f"{path}: its coordinates are in feet, and nothing says whether its heights are in feet, too. "
                        f"Pass `height_unit`: {', '.join(HEIGHT_UNITS)}."
                    )
            self._files = files.pop_all()
        self.crs = self._surface.crs
        self.notes = self._surface.notes + (self._terrain.notes if self._terrain else [])

    def onto(
        self,
        transform: Affine,
        crs,
        shape: tuple[int, int],
        grounds: Sequence[tuple[BaseGeometry, float]] = (),
    ) -> np.ndarray:
        """(H, W) float32 metres above ground on another grid; NaN = no data.

        Args:
            grounds: (outline in pixels of that grid, its ground in metres): what to subtract inside where the terrain
                has no data, see `ground_around`.
        """
        heights_m = self._surface.onto(transform, crs, shape)
        if self._terrain is None:
            return heights_m
        terrain_m = self._terrain.onto(transform, crs, shape)
        for outline_px, ground_m in grounds:
            terrain_m[polygon_to_mask(outline_px, *shape) & np.isnan(terrain_m)] = ground_m
        return heights_m - terrain_m

    def of(
        self, polygon: BaseGeometry, measure: Callable[[np.ndarray], float], ground_m: float | None = None
    ):
        """(height in metres, None) of `polygon` (in this raster's CRS), or (None, why it is unknown).

        Reasons are "outside the height raster" and those of `zonal_height`.

        Args:
            ground_m: of the building, where the terrain has no data; None: pixels without terrain have no height.
        """
        window = self._window(polygon, 0)
        if window is None:
            return None, "outside the height raster"
        transform, shape, outline_px = window
        grounds = [] if ground_m is None else [(outline_px, ground_m)]
        return zonal_height(self.onto(transform, self.crs, shape, grounds), outline_px, measure)

    def ground_around(self, polygon: BaseGeometry) -> float | None:
        """Elevation of the terrain around `polygon` (in this raster's CRS), metres; None: none near, or no terrain.

        For what stands where the terrain has no data: most models leave out what buildings cover, some leave it empty.
        """
        if self._terrain is None:
            return None
        text = raster_crs_text(self.crs)
        gsd_m = gsd_m_of(self._surface.transform, text, self._surface.width, self._surface.height)
        window = self._window(polygon, math.ceil(GROUND_RINGS_M[-1] / gsd_m) + 2)
        if window is None:
            return None
        transform, shape, outline_px = window
        return ground_around(outline_px, self._terrain.onto(transform, self.crs, shape), gsd_m)

    def _window(self, polygon: BaseGeometry, margin_px: int):
        """(transform, shape, outline in its pixels) of the part that shows `polygon`; None where it is outside."""
        outline_px = map_to_pixel(polygon, self._surface.transform)
        frame = shapely.box(0, 0, self._surface.width, self._surface.height)
        if not outline_px.intersects(frame):
            return None
        seen = shapely.intersection(outline_px.envelope, frame)
        x0, y0, x1, y1 = seen.bounds
        x0, y0, x1, y1 = math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
        x0, y0, x1, y1 = x0 - margin_px, y0 - margin_px, x1 + margin_px, y1 + margin_px
        transform = self._surface.transform * Affine.translation(x0, y0)
        shape = max(1, y1 - y0), max(1, x1 - x0)
        return transform, shape, shapely.affinity.translate(outline_px, -x0, -y0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._files.close()
