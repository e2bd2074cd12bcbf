"""The plane that a page draws in: metres east and north of a point near the buildings."""

from dataclasses import dataclass

from fusiondet.io.crs import transformer

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS

# Far enough for a stable quotient, near enough for the scale to be that of the place.
_STEP_M, _STEP_DEG = 1000.0, 0.01


@dataclass(frozen=True)
class Frame:
    """Metres from `origin`, along the axes of `crs`: one scale per axis, the true one at `origin`.

    So a picture in `crs` needs no warping, heights and widths are to the same scale in Web Mercator and in degrees
    too, and far from `origin` a length is off by what the projection's scale changes on the way.

    Attributes:
        crs: whose axes these are; None: unknown, its units are taken to be metres.
        origin: coordinates in `crs`.
        scale: metres per unit of x and of y.
    """

    crs: CRS | None
    origin: tuple[float, float]
    scale: tuple[float, float]

    def to_metres(self, xy: np.ndarray) -> np.ndarray:
        """(N, 2) coordinates in `crs` -> metres."""
        return (np.asarray(xy, dtype=float) - self.origin) * self.scale

    def transform(self, to_crs: Affine) -> Affine:
        """Pixel -> metres, from pixel -> `crs`."""
        (x, y), (sx, sy) = self.origin, self.scale
        return Affine(sx, 0, -sx * x, 0, sy, -sy * y) * to_crs


def frame_at(crs: CRS | None, bounds: tuple[float, float, float, float]) -> Frame:
    """The frame of `crs` around the middle of `bounds` (left, bottom, right, top; in `crs`)."""
    left, bottom, right, top = bounds
    origin = (left + right) / 2, (bottom + top) / 2
    return Frame(crs, origin, _metres_per_unit(crs, *origin))


def in_crs(polygons: np.ndarray, source: CRS | None, target: CRS | None) -> np.ndarray:
    """(N,) outlines in `target`; as they are where either CRS is unknown. What cannot be expressed becomes None."""
    if source is None or target is None or source == target or not len(polygons):
        return polygons
    convert = transformer(source, target).transform
    moved = shapely.transform(polygons, convert, interleaved=False)
    moved[~np.isfinite(shapely.bounds(moved)).all(axis=1)] = None
    return moved


def bounds_of(polygons: np.ndarray) -> tuple[float, float, float, float] | None:
    """Bounds of all outlines; None without any."""
    if not len(polygons) or not shapely.get_num_coordinates(polygons).any():
        return None
    return tuple(float(v) for v in shapely.total_bounds(polygons))


def move(polygons: np.ndarray, frame: Frame) -> np.ndarray:
    """(N,) outlines in the frame's CRS -> metres."""
    return shapely.transform(polygons, frame.to_metres) if len(polygons) else polygons


def _metres_per_unit(crs: CRS | None, x: float, y: float) -> tuple[float, float]:
    if crs is None:
        return 1.0, 1.0
    unit = crs.axis_info[0].unit_conversion_factor
    geod = crs.get_geod()
    if geod is None or crs.geodetic_crs is None:
        return unit, unit
    step = _STEP_DEG if crs.is_geographic else _STEP_M / unit
    convert = transformer(crs, crs.geodetic_crs).transform
    half = step / 2
    lon, lat = convert(np.array([x - half, x + half, x, x]), np.array([y, y, y - half, y + half]))
    metres = geod.inv(lon[[0, 2]], lat[[0, 2]], lon[[1, 3]], lat[[1, 3]])[2] / step
    # At a pole, or outside of what the projection can express, there is no such scale.
    return tuple(metres.tolist()) if np.isfinite(metres).all() and (metres > 0).all() else (unit, unit)
