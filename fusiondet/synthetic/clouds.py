"""Opaque clouds over an acquisition, and where their shadows fall. Pure functions on arrays.

A cloud layer is a flat sheet at one height whose opacity is a smooth random field of the city's coordinates: a sum of
plane waves. It has no grid and no edge, so neighbouring tiles fit, and what hides a place (the sheet seen along the
view) and what shades it (the sheet seen towards the sun) are the same field looked up at two displaced places.
"""

import math
from dataclasses import dataclass, replace

from fusiondet.buildings import SensorGeometry

import cv2
import numpy as np

LONGEST_WAVE_M, SHORTEST_WAVE_M = 700.0, 14.0  # far larger than a building, down to the frayed edge
BASE_M = (300.0, 1500.0)  # height of the sheet above ground
EDGE_M = 3.0  # typical width over which a cloud's edge goes from clear to opaque
SUN_DIAMETER = math.radians(0.53)  # a shadow's edge is as wide as the sun seen through the cloud's edge
SHADE = 0.88  # share of the direct light that an opaque cloud keeps from the ground
CLOUD_RGB = np.array([0.97, 0.98, 1.0])


@dataclass(frozen=True)
class CloudLayer:
    """The clouds of one acquisition.

    Attributes:
        waves: (k, 2) radians per metre east and north. amplitude, phase: (k,); the field has about unit variance.
        threshold: the field's value at which the opacity is one half.
        base_m: height of the layer above ground.
    """

    waves: np.ndarray
    amplitude: np.ndarray
    phase: np.ndarray
    threshold: float
    base_m: float

    def field(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The random field at all pairs of (w,) eastings and (h,) northings -> (h, w) float32."""
        # cos(a + b) = Re(e^ia e^ib): the waves are summed by one matrix product instead of one picture each.
        east = np.exp(1j * (np.outer(self.waves[:, 0], x) + self.phase[:, None])) * self.amplitude[:, None]
        north = np.exp(1j * np.outer(y, self.waves[:, 1]))
        east, north = east.astype(np.complex64), north.astype(np.complex64)
        return north.real @ east.real - north.imag @ east.imag

    @property
    def steepness(self) -> float:
        """Root mean square of the field's gradient, per metre."""
        return math.sqrt(float(np.sum((self.waves**2).sum(axis=1) * self.amplitude**2)) / 2)

    def opacity(self, field: np.ndarray, edge_m: float = EDGE_M) -> np.ndarray:
        """Share of light in [0, 1] that the layer stops where its field is `field`; edges typically `edge_m` wide."""
        ramp = np.clip((field - self.threshold) / (edge_m * self.steepness) + 0.5, 0, 1)
        return ramp * ramp * (3 - 2 * ramp)


@dataclass(frozen=True)
class CloudCover:
    """What the clouds do to the picture of a tile.

    Attributes:
        opacity: (h, w) float32 in [0, 1], at the tile's pixels. brightness: (h, w, 3) reflectance of the cloud there.
        sunlight: (H, W) float32 in [0, 1], share of the direct light that reaches the ground, at the scene's pixels.
    """

    opacity: np.ndarray
    brightness: np.ndarray
    sunlight: np.ndarray


def share_of(index: int, mean_share: float) -> float:
    """The cloud share in [0, 1] of acquisition number `index`: from clear to overcast, `mean_share` on average.

    The shares follow u ** (1 / mean - 1) with u uniform, but u is the golden-ratio sequence and no draw, so that eight
    acquisitions already have the mean within 0.03. It starts where the first ones come closest.
    """
    if mean_share <= 0:
        return 0.0
    return ((0.7 + index * (math.sqrt(5) - 1) / 2) % 1.0) ** (1 / mean_share - 1)


def draw_layer(
    share: float, bounds: list[tuple], sensor: SensorGeometry, rng: np.random.Generator, waves: int = 160
) -> CloudLayer:
    """Clouds that hide `share` of the tiles `bounds` (x0, y0, x1, y1 in city metres) from the optical sensor."""
    length_m = np.exp(rng.uniform(math.log(SHORTEST_WAVE_M), math.log(LONGEST_WAVE_M), waves))
    angle = rng.uniform(0, 2 * math.pi, waves)
    amplitude = length_m**1.2  # long waves make the cloud, short ones fray it
    amplitude *= math.sqrt(2 / np.sum(amplitude**2))
    vectors = (2 * math.pi / length_m)[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    nowhere = float(np.abs(amplitude).sum()) + 1  # higher than the field can rise
    base_m, phase = rng.uniform(*BASE_M), rng.uniform(0, 2 * math.pi, waves)
    layer = CloudLayer(vectors, amplitude, phase, nowhere, base_m)
    if 0 < share < 1:
        samples = [layer.field(*_axes(tile, (48, 48), layer, _view(sensor))) for tile in bounds]
        return replace(layer, threshold=float(np.quantile(samples, 1 - share)))
    return replace(layer, threshold=nowhere if share <= 0 else -nowhere)


def cloud_cover(
    layer: CloudLayer,
    bounds: tuple[float, float, float, float],
    size_px: tuple[int, int],
    oversample: int,
    sensor: SensorGeometry,
) -> CloudCover:
    """The clouds over the tile `bounds` of `size_px` (height, width) pixels; sunlight is `oversample` times finer."""
    fine = (size_px[0] * oversample, size_px[1] * oversample)
    seen = layer.field(*_axes(bounds, fine, layer, _view(sensor)))
    toward_sun = (sensor.sun_azimuth_deg, 90 - sensor.sun_elevation_deg)
    shading = layer.field(*_axes(bounds, fine, layer, toward_sun))
    # The sun is no point: the higher the cloud, the softer its shadow.
    blur_m = layer.base_m * SUN_DIAMETER / math.sin(math.radians(sensor.sun_elevation_deg)) ** 2
    gsd_m = (bounds[2] - bounds[0]) / size_px[1]
    seen_px = cv2.resize(seen, size_px[::-1], interpolation=cv2.INTER_AREA)
    return CloudCover(
        cv2.resize(layer.opacity(seen), size_px[::-1], interpolation=cv2.INTER_AREA),
        _brightness((seen_px - layer.threshold) / layer.steepness, gsd_m, sensor),
        1 - SHADE * layer.opacity(shading, EDGE_M + blur_m),
    )


def _brightness(depth_m: np.ndarray, gsd_m: float, sensor: SensorGeometry) -> np.ndarray:
    """(h, w, 3) reflectance of a cloud whose surface rises about as steeply as 1:1 from its edge at 0: whiter where
    it bulges and on the side of the sun, greyer at the edge.
    """
    azimuth = math.radians(sensor.sun_azimuth_deg)
    down, right = np.gradient(depth_m, gsd_m)
    relief = down * math.cos(azimuth) - right * math.sin(azimuth)
    light = 0.86 + 0.05 * np.clip(depth_m / 10, -1, 1) + 0.06 * np.tanh(relief)
    return light[..., None] * CLOUD_RGB.astype(np.float32)


def _view(sensor: SensorGeometry) -> tuple[float, float]:
    """(azimuth, angle from the vertical) of the optical sensor seen from the ground; overhead where unknown."""
    return sensor.view_azimuth_deg or 0.0, sensor.view_off_nadir_deg or 0.0


def _axes(bounds, shape: tuple[int, int], layer: CloudLayer, toward: tuple[float, float]):
    """(w,) x and (h,) y where lines from the pixels of `bounds` towards (azimuth, angle from the vertical) meet it."""
    x0, y0, x1, y1 = bounds
    azimuth, reach_m = math.radians(toward[0]), layer.base_m * math.tan(math.radians(toward[1]))
    x = x0 + (np.arange(shape[1]) + 0.5) * (x1 - x0) / shape[1]
    y = y1 - (np.arange(shape[0]) + 0.5) * (y1 - y0) / shape[0]
    return x + reach_m * math.sin(azimuth), y + reach_m * math.cos(azimuth)
