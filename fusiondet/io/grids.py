"""Where pixels lie: pixel sizes in metres, and the way from one grid to another."""

import math

from fusiondet.errors import InputError
from fusiondet.io.crs import GEOREFERENCE, transformer

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS as ProjCRS
from pyproj import Geod, Transformer
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject

# Two grids that nowhere differ by more than this are one grid: a tenth of a pixel is far below the accuracy of any
# optical-SAR registration, and resampling would smooth the speckle for nothing.
SAME_GRID_PX = 0.1

# Sides of a footprint are cut into so many parts at least where they bend on another map.
_FOOTPRINT_PARTS = 100

# Map units without a CRS are metres in the plane; any projected CRS serves to say "the same on both sides".
_PLAIN_CRS = CRS.from_epsg(3857)


def metric_crs(crs: str, x: float, y: float) -> str:
    """A CRS near the point (x, y) of `crs` in which a metre is a metre within 1 %.

    `crs` itself if it is projected, in metres, and true to scale there (Web Mercator is not); else the UTM zone.
    """
    try:
        projected = ProjCRS.from_user_input(crs)
        to_degrees = Transformer.from_crs(projected, "EPSG:4326", always_xy=True)
        lon, lat = to_degrees.transform(x, y)
    except ProjError as error:
        raise InputError(
            f"the CRS {crs[:80]!r} cannot be placed on earth ({error}). Assign the right one."
        ) from None
    if not (abs(lon) <= 360 and abs(lat) <= 90):  # NaN and infinity neither
        raise InputError(f"the point ({x}, {y}) is not a place in {projected.name}. Is the CRS right?")
    if projected.is_projected and all(axis.unit_conversion_factor == 1 for axis in projected.axis_info[:2]):
        lons, lats = to_degrees.transform([x - 50, x + 50, x, x], [y, y, y - 50, y + 50])
        _, _, metres = Geod(ellps="WGS84").inv(lons[::2], lats[::2], lons[1::2], lats[1::2])
        if max(abs(m / 100 - 1) for m in metres) < 0.01:
            return crs
    zone = min(60, max(1, int((lon + 180) // 6) + 1))
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"


def axis_gsd_m(transform, crs: str | None, width: int, height: int) -> tuple[float, float]:
    """Ground distance of one column and of one row step at the raster's centre, metres; see `gsd_m_of`."""
    affine = Affine(*tuple(transform)[:6])
    if crs is None:
        if affine.is_identity:
            raise InputError(f"it has neither a CRS nor a pixel size. Georeference it: {GEOREFERENCE}")
        return math.hypot(affine.a, affine.d), math.hypot(affine.b, affine.e)
    points = [affine * (width / 2 + dx, height / 2 + dy) for dx, dy in ((0, 0), (1, 0), (0, 1))]
    metric = metric_crs(crs, *points[0])
    if metric != crs:
        convert = transformer(crs, metric)
        points = [convert.transform(*p) for p in points]
    (x, y), *steps = points
    return tuple(math.hypot(px - x, py - y) for px, py in steps)


def gsd_m_of(transform, crs: str | None, width: int, height: int) -> float:
    """Metres per pixel at the raster's centre, geometric mean of both directions.

    Degrees, feet and Web Mercator go through the local UTM zone. Without a CRS, map units are taken as metres.

    Raises:
        InputError: neither CRS nor pixel size.
    """
    return math.sqrt(math.prod(axis_gsd_m(transform, crs, width, height)))


def warp_valid(values, valid, transform, crs, to_transform, to_crs, shape):
    """Warp bands onto another grid without letting invalid pixels bleed into valid ones.

    Args:
        values: (n, h, w) float32 in units that may be averaged. valid: (h, w) bool.
        transform, crs, to_transform, to_crs: the two grids (CRS None on both sides: plain pixels or map units).
        shape: (H, W) of the result.

    Returns:
        (n, H, W) float32, and (H, W) bool: the nearest source pixel exists and is valid. Bilinear where pixels get
        smaller or stay, area-weighted average where they get larger (no aliasing).
    """
    crs, to_crs = crs or _PLAIN_CRS, to_crs or _PLAIN_CRS
    grids = {"src_transform": transform, "src_crs": crs, "dst_transform": to_transform, "dst_crs": to_crs}
    # XSCALE/YSCALE fixed: GDAL would derive the kernel's width from the window, and neighbouring windows would differ.
    exact = {"init_dest_nodata": False, "tolerance": 0, "XSCALE": 1, "YSCALE": 1}
    nearest = np.zeros(shape, np.uint8)
    reproject(valid.astype(np.uint8), nearest, resampling=Resampling.nearest, **grids, **exact)
    if _pixel_area_ratio(transform, crs, to_transform, to_crs, shape) > 1.05:
        exact = {**exact, "resampling": Resampling.average}
        del exact["XSCALE"], exact["YSCALE"]
    else:
        exact["resampling"] = Resampling.bilinear
    weighted = np.concatenate([np.where(valid, values, 0), valid[None]]).astype(np.float32)
    warped = np.zeros((len(weighted), *shape), np.float32)
    reproject(weighted, warped, **grids, **exact)
    inside = (nearest > 0) & (warped[-1] > 1e-6)
    return warped[:-1] / np.where(inside, warped[-1], 1), inside


def north_up(transform: Affine, width: int, height: int) -> tuple[tuple[bool, bool], Affine]:
    """Which of (columns, rows) of a raster to count from the other end to have it north-up, and its transform then.

    East comes to the right and north up as far as that goes: a picture is never mirrored after it, but may be turned
    by up to 90 degrees.
    """
    flip_x, flip_y = transform.a < 0, transform.e > 0
    if (transform.determinant > 0) != (
        flip_x != flip_y
    ):  # turned by 90 degrees, so that a and e are no more than noise
        flip_y = not flip_y
    if flip_x:
        transform = transform * Affine(-1, 0, width, 0, 1, 0)
    if flip_y:
        transform = transform * Affine(1, 0, 0, 0, -1, height)
    return (flip_x, flip_y), transform


def footprint_px(file_shape, file_transform, file_crs, transform, crs, shape):
    """The part of a grid of `shape` (H, W) that a file covers, as a polygon in the grid's pixels; empty for none.

    Args:
        file_shape: (H, W). file_transform, file_crs, transform, crs: of file and grid, CRS None on both sides or none.
    """
    (file_height, file_width), (height, width) = file_shape, shape
    there = back = None
    if file_crs != crs:
        there, back = transformer(crs, file_crs).transform, transformer(file_crs, crs).transform
    # There and back: what is far from the grid may have no place in its CRS, what is inside of it has.
    grid = _moved(shapely.box(0, 0, width, height), transform, there, ~file_transform)
    common = grid.intersection(shapely.box(0, 0, file_width, file_height))
    if common.area == 0:
        return shapely.Polygon()
    return _moved(common, file_transform, back, ~transform).intersection(shapely.box(0, 0, width, height))


def _moved(polygon, transform: Affine, convert, to_pixels: Affine):
    """`polygon` from the pixels of one grid to those of another one; straight sides bend as CRS differ."""
    x0, y0, x1, y1 = polygon.bounds
    fine = shapely.segmentize(polygon, max(x1 - x0, y1 - y0) / _FOOTPRINT_PARTS) if convert else polygon
    rings = []
    for part in shapely.get_parts(fine):
        x, y = transform * tuple(np.array(part.exterior.coords).T)
        x, y = convert(x, y) if convert else (x, y)
        known = np.isfinite(x) & np.isfinite(y)
        if known.sum() > 2:
            rings.append(shapely.Polygon(np.column_stack(to_pixels * (x[known], y[known]))))
    return shapely.make_valid(shapely.union_all(rings))


def grid_in_pixels_of(part, transform, crs, window, steps: int = 21):
    """Finite pixel coordinates x, y in `part`'s file of a lattice over `window` of the grid (transform, crs)."""
    x0, y0, width, height = window
    u, v = (
        a.ravel()
        for a in np.meshgrid(np.linspace(x0, x0 + width, steps), np.linspace(y0, y0 + height, steps))
    )
    x, y = transform * (u, v)
    if part.crs != crs:
        convert = transformer(crs, part.crs)
        x, y = convert.transform(x, y)
    finite = np.isfinite(x) & np.isfinite(y)
    return ~part.transform * (x[finite], y[finite])


def whole_pixel_offset(part, transform, crs, shape) -> tuple[int, int] | None:
    """(dx, dy) such that grid pixel (x, y) is the file's (x + dx, y + dy) everywhere; None if it has to be warped."""
    if part.crs != crs:
        return None
    height, width = shape
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height)], float)
    there = np.array([~part.transform * (transform * tuple(c)) for c in corners])
    shift = there - corners
    offset = np.round(shift.mean(axis=0))
    if np.abs(shift - offset).max() > SAME_GRID_PX:
        return None
    return int(offset[0]), int(offset[1])


def _pixel_area_ratio(transform, crs, to_transform, to_crs, shape) -> float:
    """Area of a target pixel in source pixels, at the target's centre."""
    (a, b), (c, d) = _pixel_steps(transform, crs, to_transform, to_crs, shape)
    return abs(a * d - b * c)


def pixel_ratio(transform, crs, to_transform, to_crs, shape) -> tuple[float, float]:
    """(x, y) how many of the source's columns and rows a target pixel reaches over, at the target's centre.

    The grids are given as for `warp_valid`. However they are turned, the numbers are those of grids that are not.
    """
    steps = _pixel_steps(transform, crs or _PLAIN_CRS, to_transform, to_crs or _PLAIN_CRS, shape)
    return tuple(math.hypot(*along) for along in zip(*steps, strict=True))


def _pixel_steps(transform, crs, to_transform, to_crs, shape):
    """((x, y), (x, y)) source pixels of one column and of one row step of the target, at its centre."""
    points = [to_transform * (shape[1] / 2 + dx, shape[0] / 2 + dy) for dx, dy in ((0, 0), (1, 0), (0, 1))]
    if crs != to_crs:
        convert = transformer(to_crs, crs)
        points = [convert.transform(*p) for p in points]
    (x, y), *ends = (~transform * p for p in points)
    return tuple((end_x - x, end_y - y) for end_x, end_y in ends)
