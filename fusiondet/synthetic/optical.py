"""The optical picture: facet shading, cast shadows, haze, point spread. Pure functions on arrays."""

import math
from dataclasses import dataclass

from fusiondet.buildings import SensorGeometry
from fusiondet.geometry.shadows import line_of_sight, shadow_depth_m
from fusiondet.synthetic.clouds import CloudCover
from fusiondet.synthetic.surfaces import Scene

import cv2
import numpy as np

SKY_SHARE = np.array(
    [0.30, 0.34, 0.40]
)  # diffuse light per band where the sun gives 1 on a facet that faces it
# Walls seen aslant: their colour, and how much of the sky light on level ground they get (half a sky, and what the
# ground reflects).
PLASTER_ALBEDO = np.array([0.52, 0.48, 0.42])
WALL_SKY = 0.6
HAZE_RGB = np.array([0.62, 0.68, 0.76])


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
