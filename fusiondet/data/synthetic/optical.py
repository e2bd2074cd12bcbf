"""The optical picture: facet shading, cast shadows, haze, point spread. Pure functions on arrays."""

import math
from dataclasses import dataclass

from fusiondet.buildings import SensorGeometry
from fusiondet.data.synthetic.clouds import CloudCover
from fusiondet.data.synthetic.scene import Scene

import cv2
import numpy as np

SKY_SHARE = np.array(
    [0.30, 0.34, 0.40]
)  # diffuse light per band where the sun gives 1 on a facet that faces it
WALL_STEP_M = 0.3  # a smaller step than this between two pixels is slope or roughness, not a wall
# Walls seen aslant: their colour, and how much of the sky light on level ground they get (half a sky, and what the
# ground reflects).
PLASTER_ALBEDO = np.array([0.52, 0.48, 0.42])
WALL_SKY = 0.6
HAZE_RGB = np.array([0.62, 0.68, 0.76])


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


def render_optical(
    scene: Scene,
    sensor: SensorGeometry,
    rng: np.random.Generator | None = None,
    psf_fwhm_m: float = 0.7,
    haze: float = 0.0,
    noise: float = 0.01,
    shadow: bool = True,
    clouds: CloudCover | None = None,
) -> np.ndarray:
    """RGB picture of the tile, seen from straight above or, where `sensor` has an off-nadir angle, aslant.

    Args:
        rng: texture and noise; None gives neither.
        psf_fwhm_m: full width at half maximum of the point spread. haze: share of the light that is haze, [0, 1).
        noise: standard deviation on the [0, 1] scale. shadow: cast shadows (facets are shaded either way), of
            clouds too.
        clouds: over the tile; outside them and their shadows the picture is what it is without.

    Returns:
        (H, W, 3) uint8.
    """
    hit = _what_is_seen(scene, sensor)
    surface = hit.of(scene.surface)
    direct = _facing_sun(scene, sensor)[surface]
    depth_m = np.zeros(scene.height_m.shape, np.float32)
    if shadow:
        depth_m = shadow_depth_m(
            scene.height_m, sensor.sun_azimuth_deg, sensor.sun_elevation_deg, scene.gsd_m
        )
        direct = np.where(hit.of(depth_m) > 0, 0, direct)
    albedo = scene.surfaces.albedo
    # Sky light is coloured per surface first, so that the big arrays meet only one multiply-add.
    radiance = (albedo * SKY_SHARE.astype(np.float32))[surface]
    sun = (albedo * (1 - SKY_SHARE * 0.5).astype(np.float32))[surface]
    if hit.walls is not None:
        wall_albedo = _wall_albedo(scene)[surface[hit.walls]]
        radiance[hit.walls] = wall_albedo * (WALL_SKY * SKY_SHARE).astype(np.float32)
        sun[hit.walls] = wall_albedo * (1 - SKY_SHARE * 0.5).astype(np.float32)
        direct[hit.walls] = _wall_light(scene, sensor, hit, depth_m)
    if shadow and clouds is not None:
        direct = direct * clouds.sunlight
    radiance += sun * direct[..., None]
    if rng is not None:
        radiance *= (1 + scene.surfaces.texture[surface] * _texture(surface.shape, rng))[..., None]
    return _expose(radiance, scene, rng, psf_fwhm_m, haze, noise, clouds)


@dataclass(frozen=True)
class _Seen:
    """What the (h, w) pixels of the tile show.

    Attributes:
        top: (h, w) flat indices into the scene's rasters of the surface in the line of sight, or of the top of the wall
            that is; slices where nothing leans.
        walls: (h, w) bool, a wall is seen; None: nowhere. wall_m, foot: (n,) height on those walls,
            flat index of their foot.
    """

    top: np.ndarray | tuple[slice, slice]
    walls: np.ndarray | None = None
    wall_m: np.ndarray | None = None
    foot: np.ndarray | None = None

    def of(self, raster: np.ndarray) -> np.ndarray:
        """(h, w): the values of one of the scene's rasters."""
        return raster[self.top] if isinstance(self.top, tuple) else raster.ravel()[self.top]


def _what_is_seen(scene: Scene, sensor: SensorGeometry) -> _Seen:
    if not sensor.view_off_nadir_deg:
        return _Seen(scene.core)
    sight = line_of_sight(scene.height_m, sensor.view_azimuth_deg, sensor.view_off_nadir_deg, scene.gsd_m)
    top, wall_m, foot = (raster[scene.core] for raster in sight)
    walls = ~np.isnan(wall_m)
    return _Seen(top, walls, wall_m[walls], foot[walls])


def _facing_sun(scene: Scene, sensor: SensorGeometry) -> np.ndarray:
    """(n,) float32 in [0, 1.4]: light on the facets of each surface relative to level ground."""
    elevation, azimuth = math.radians(sensor.sun_elevation_deg), math.radians(sensor.sun_azimuth_deg)
    sun_x, sun_y = math.sin(azimuth) / math.tan(elevation), -math.cos(azimuth) / math.tan(elevation)
    slope_x, slope_y = scene.surfaces.slope.T
    light = (1 - slope_x * sun_x - slope_y * sun_y) / np.sqrt(1 + slope_x**2 + slope_y**2)
    return np.clip(light, 0, 1.4).astype(np.float32)


def _wall_albedo(scene: Scene) -> np.ndarray:
    """(n, 3) of the sides of each surface: buildings are plastered, all else is the same all round."""
    albedo, built = scene.surfaces.albedo, np.isfinite(scene.surfaces.corner_sigma0_db)
    return np.where(built[:, None], 0.35 * albedo + 0.65 * PLASTER_ALBEDO, albedo).astype(np.float32)


def _wall_light(scene: Scene, sensor: SensorGeometry, hit: _Seen, depth_m: np.ndarray) -> np.ndarray:
    """(n,) float32 in [0, 1.4]: direct light on the pixels that show a wall relative to level ground."""
    # A wall faces down the slope of the smoothed heights.
    right, down = (cv2.Sobel(scene.height_m, cv2.CV_32F, *axis, ksize=5) for axis in ((1, 0), (0, 1)))
    right, down = right.ravel()[hit.foot], down.ravel()[hit.foot]
    azimuth = math.radians(sensor.sun_azimuth_deg)
    facing = (down * math.cos(azimuth) - right * math.sin(azimuth)) / np.maximum(np.hypot(right, down), 1e-6)
    lit = hit.wall_m > scene.height_m.ravel()[hit.foot] + depth_m.ravel()[hit.foot]
    light = facing / math.tan(math.radians(sensor.sun_elevation_deg))
    return np.where(lit, np.clip(light, 0, 1.4), 0)


def _texture(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(h, w) float32 of about unit variance, a mix of three scales."""
    total = np.zeros(shape, np.float32)
    for cell, weight in ((48, 0.6), (12, 0.5), (3, 0.6)):
        coarse = rng.standard_normal((shape[0] // cell + 2, shape[1] // cell + 2), dtype=np.float32)
        total += weight * cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR)
    return total


def _expose(radiance, scene: Scene, rng, psf_fwhm_m: float, haze: float, noise: float, clouds) -> np.ndarray:
    """Blur, average down to the tile's pixels, add haze, clouds and noise, and quantise."""
    sigma_px = psf_fwhm_m / 2.355 / scene.gsd_m
    if sigma_px > 0.2:
        radiance = cv2.GaussianBlur(radiance, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT_101)
    n = scene.oversample
    height, width = radiance.shape[0] // n, radiance.shape[1] // n
    picture = cv2.resize(radiance, (width, height), interpolation=cv2.INTER_AREA)
    picture = picture * (1 - haze) + (haze * HAZE_RGB).astype(np.float32)
    if clouds is not None:
        picture += clouds.opacity[..., None] * (clouds.brightness - picture)
    if rng is not None and noise > 0:
        picture += noise * rng.standard_normal(picture.shape, dtype=np.float32)
    # Display gamma: dark values are spread, as in delivered imagery.
    return (255 * np.clip(picture, 0, 1) ** (1 / 1.4) + 0.5).astype(np.uint8)
