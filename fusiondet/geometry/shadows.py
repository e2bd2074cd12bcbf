"""What a light source or a radar antenna sees of a height raster: shadows, and the line of sight of an oblique view.

Pure functions on arrays; the synthetic city renders with them, the doctor checks real tiles with them.
"""

import math

import numpy as np

WALL_STEP_M = 0.3  # a smaller step than this between two pixels is slope or roughness, not a wall


def shadow_mask(height_m: np.ndarray, azimuth_deg: float, elevation_deg: float, gsd_m: float) -> np.ndarray:
    """(H, W) bool: pixels from which the light source is hidden. See `shadow_depth_m`."""
    return shadow_depth_m(height_m, azimuth_deg, elevation_deg, gsd_m) > 0


def shadow_depth_m(
    height_m: np.ndarray, azimuth_deg: float, elevation_deg: float, gsd_m: float
) -> np.ndarray:
    """How high the shadow stands above each pixel: light source at (`azimuth_deg`, `elevation_deg`).

    A running maximum along the rays finds the highest ray that any obstacle stops. Works for a radar as well: the
    source is then at (look + 180, 90 - incidence).

    Args:
        height_m: (H, W) metres above ground; north up.
        azimuth_deg: direction *to* the source, clockwise from grid north. elevation_deg: in (0, 90].
        gsd_m: metres per pixel.

    Returns:
        (H, W) float32 metres, 0 where the source is seen; nothing outside the array casts a shadow.
    """
    if elevation_deg >= 90:
        return np.zeros(height_m.shape, np.float32)
    fall = math.tan(math.radians(elevation_deg)) * gsd_m

    def depth_m(sheared: np.ndarray, stretch: float) -> tuple[np.ndarray]:
        # A ray that leaves the top of row i arrives at height z - (distance) * tan(elevation) further on. It leaves
        # the middle of the pixel, but behind a wall its far edge: else every shadow would be half a pixel short.
        fall_m = fall * stretch
        walls = np.zeros(sheared.shape, bool)
        walls[:-1] = sheared[:-1] - sheared[1:] > fall_m + WALL_STEP_M
        sheared = sheared + fall_m * np.arange(len(sheared), dtype=np.float32)[:, None]
        reach = np.maximum.accumulate(sheared + np.float32(fall_m / 2) * walls, axis=0)
        depth = np.zeros(sheared.shape, np.float32)
        depth[1:] = np.where(reach[:-1] > sheared[1:] + 1e-3, reach[:-1] - sheared[1:], 0)
        return (depth,)

    return _along_rays(depth_m, (height_m.astype(np.float32, copy=False),), azimuth_deg)[0]


def line_of_sight(
    height_m: np.ndarray, azimuth_deg: float, off_nadir_deg: float, gsd_m: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a far sensor at (`azimuth_deg`, `off_nadir_deg`), seen from the ground, sees over each ground pixel.

    The picture is projected onto the ground along the line of sight: what is z metres high appears z tan(off-nadir)
    away from the sensor. A running maximum from the sensor's side finds what stands in front.

    Args:
        height_m: (H, W) metres above ground; north up. off_nadir_deg: in (0, 90). gsd_m: metres per pixel.

    Returns:
        (H, W) arrays: flat index of the pixel that is seen; height in metres where its wall is seen instead of its top,
        NaN elsewhere; flat index of the pixel at the foot of that wall.
    """
    lean = math.tan(math.radians(off_nadir_deg)) / gsd_m
    index = np.arange(height_m.size, dtype=np.int32).reshape(height_m.shape)

    def sight(sheared: np.ndarray, index: np.ndarray, stretch: float):
        # Row i spans [i, i + 1] on the ground, from the sensor on, and appears `moved` rows further. The ray that
        # ends in the middle of row j meets the first row whose far edge appears beyond it.
        rows, columns = sheared.shape
        middle = np.arange(rows, dtype=np.float32)[:, None] + np.float32(0.5)
        moved = sheared * np.float32(lean / stretch)
        edge = np.maximum.accumulate(middle + np.float32(0.5) + moved, axis=0)
        first = np.minimum(np.ceil(edge - np.float32(0.5)).astype(np.int64), rows)
        hidden = np.bincount((first * columns + np.arange(columns)).ravel(), minlength=(rows + 1) * columns)
        hit = np.cumsum(hidden.reshape(rows + 1, columns)[:rows], axis=0)
        column = np.arange(columns)
        foot = np.maximum(hit - 1, 0)
        above = (middle - hit) * np.float32(
            stretch / lean
        )  # height of the ray over the near edge of that row
        top, low = sheared[hit, column], sheared[foot, column]
        wall = (above < top) & (top - low > WALL_STEP_M)
        return index[hit, column], np.where(wall, above, np.float32(np.nan)), index[foot, column]

    return _along_rays(sight, (height_m, index), azimuth_deg)


def _along_rays(function, rasters: tuple[np.ndarray, ...], azimuth_deg: float) -> tuple[np.ndarray, ...]:
    """`function(*sheared, stretch)` of (H, W) rasters in a frame in which rays from (`azimuth_deg`) run down columns.

    The rasters are sheared by whole pixels: exact along image axes and diagonals, within half a pixel elsewhere.
    `stretch` is the length of a row's step along the ray in pixels. The function's rasters are sheared back.
    """
    toward_x, toward_y = math.sin(math.radians(azimuth_deg)), -math.cos(math.radians(azimuth_deg))
    if abs(toward_x) > abs(toward_y):  # walk along columns instead of rows
        turned = _down_columns(function, tuple(r.T for r in rasters), toward_y, toward_x)
        return tuple(r.T for r in turned)
    return _down_columns(function, rasters, toward_x, toward_y)


def _down_columns(function, rasters, toward_x: float, toward_y: float) -> tuple[np.ndarray, ...]:
    """`_along_rays` for a source whose direction has |toward_y| >= |toward_x| (pixel axes, unit vector)."""
    if toward_y > 0:  # rays run from the first row to the last
        flipped = _down_columns(function, tuple(r[::-1] for r in rasters), toward_x, -toward_y)
        return tuple(r[::-1] for r in flipped)
    rows, columns = rasters[0].shape
    shift = np.round(np.arange(rows) * (-toward_x / toward_y)).astype(int)
    shift -= shift.min()
    sheared = [np.zeros((rows, columns + shift.max()), r.dtype) for r in rasters]
    for source, target in zip(rasters, sheared, strict=True):
        for i, s in enumerate(shift):
            target[i, s : s + columns] = source[i]
    results = function(*sheared, stretch=1 / abs(toward_y))
    return tuple(np.stack([r[i, s : s + columns] for i, s in enumerate(shift)]) for r in results)
