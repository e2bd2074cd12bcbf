"""The optical picture: facet shading, cast shadows, haze, point spread. Pure functions on arrays."""

import math

from fusiondet.buildings import SensorGeometry
from fusiondet.data.synthetic.clouds import CloudCover
from fusiondet.data.synthetic.scene import Scene

import cv2
import numpy as np

SKY_SHARE = np.array(
    [0.30, 0.34, 0.40]
)  # diffuse light per band where the sun gives 1 on a facet that faces it
WALL_STEP_M = 0.3  # a smaller step than this between two pixels is slope or roughness, not a wall
HAZE_RGB = np.array([0.62, 0.68, 0.76])


def shadow_mask(height_m: np.ndarray, azimuth_deg: float, elevation_deg: float, gsd_m: float) -> np.ndarray:
    """Pixels from which the light source at (`azimuth_deg`, `elevation_deg`) is hidden.

    The image is sheared so that rays run along an axis; a running maximum then finds the highest ray from any
    obstacle. Exact along image axes and diagonals, within half a pixel elsewhere. Works for a radar as well: the
    source is then at (look + 180, 90 - incidence).

    Args:
        height_m: (H, W) metres above ground; north up.
        azimuth_deg: direction *to* the source, clockwise from grid north. elevation_deg: in (0, 90].
        gsd_m: metres per pixel.

    Returns:
        (H, W) bool; nothing outside the array casts a shadow.
    """
    toward_x, toward_y = math.sin(math.radians(azimuth_deg)), -math.cos(math.radians(azimuth_deg))
    if elevation_deg >= 90:
        return np.zeros(height_m.shape, bool)
    if abs(toward_x) > abs(toward_y):  # walk along columns instead of rows
        return _shadow_along_rows(height_m.T, toward_y, toward_x, elevation_deg, gsd_m).T
    return _shadow_along_rows(height_m, toward_x, toward_y, elevation_deg, gsd_m)


def _shadow_along_rows(
    height_m, toward_x: float, toward_y: float, elevation_deg: float, gsd_m: float
) -> np.ndarray:
    """Shadow mask for a source whose direction has |toward_y| >= |toward_x| (pixel axes, unit vector)."""
    if toward_y > 0:  # light travels from the first row to the last
        return _shadow_along_rows(height_m[::-1], toward_x, -toward_y, elevation_deg, gsd_m)[::-1]
    rows, columns = height_m.shape
    shift = np.round(np.arange(rows) * (-toward_x / toward_y)).astype(int)
    shift -= shift.min()
    sheared = np.zeros((rows, columns + shift.max()), np.float32)
    for i, s in enumerate(shift):
        sheared[i, s : s + columns] = height_m[i]
    # A ray that leaves the top of row i arrives at height z - (distance) * tan(elevation) further on. It leaves the
    # middle of the pixel, but behind a wall its far edge: else every shadow would be half a pixel short.
    fall_m = math.tan(math.radians(elevation_deg)) * gsd_m / abs(toward_y)
    walls = np.zeros(sheared.shape, bool)
    walls[:-1] = sheared[:-1] - sheared[1:] > fall_m + WALL_STEP_M
    sheared += fall_m * np.arange(rows, dtype=np.float32)[:, None]
    reach = np.maximum.accumulate(sheared + np.float32(fall_m / 2) * walls, axis=0)
    hidden = np.zeros(sheared.shape, bool)
    hidden[1:] = reach[:-1] > sheared[1:] + 1e-3
    return np.stack([hidden[i, s : s + columns] for i, s in enumerate(shift)])


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
    """RGB picture of the tile, seen from straight above.

    Args:
        rng: texture and noise; None gives neither.
        psf_fwhm_m: full width at half maximum of the point spread. haze: share of the light that is haze, [0, 1).
        noise: standard deviation on the [0, 1] scale. shadow: cast shadows (facets are shaded either way), of
            clouds too.
        clouds: over the tile; outside them and their shadows the picture is what it is without.

    Returns:
        (H, W, 3) uint8.
    """
    surface = scene.surface[scene.core]
    direct = _facing_sun(scene, sensor)
    if shadow:
        hidden = shadow_mask(scene.height_m, sensor.sun_azimuth_deg, sensor.sun_elevation_deg, scene.gsd_m)
        direct = np.where(hidden[scene.core], 0, direct)
        if clouds is not None:
            direct = direct * clouds.sunlight
    albedo = scene.surfaces.albedo
    # Sky light is coloured per surface first, so that the big arrays meet only one multiply-add.
    radiance = (albedo * SKY_SHARE.astype(np.float32))[surface]
    radiance += (albedo * (1 - SKY_SHARE * 0.5).astype(np.float32))[surface] * direct[..., None]
    if rng is not None:
        radiance *= (1 + scene.surfaces.texture[surface] * _texture(surface.shape, rng))[..., None]
    return _expose(radiance, scene, rng, psf_fwhm_m, haze, noise, clouds)


def _facing_sun(scene: Scene, sensor: SensorGeometry) -> np.ndarray:
    """(h, w) float32 in [0, 1.4]: light on each facet of the tile relative to level ground."""
    elevation, azimuth = math.radians(sensor.sun_elevation_deg), math.radians(sensor.sun_azimuth_deg)
    sun_x, sun_y = math.sin(azimuth) / math.tan(elevation), -math.cos(azimuth) / math.tan(elevation)
    slope_x, slope_y = scene.surfaces.slope.T
    light = (1 - slope_x * sun_x - slope_y * sun_y) / np.sqrt(1 + slope_x**2 + slope_y**2)
    return np.clip(light, 0, 1.4).astype(np.float32)[scene.surface[scene.core]]


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
