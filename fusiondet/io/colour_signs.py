"""Signs in an image of red, green and blue of whether red and blue are in their places."""

import numpy as np


def without_clouds(pixels: np.ndarray) -> np.ndarray:
    """(3, n) pixels less those as bright as clouds and as colourless: they hide what the rest says."""
    top = np.percentile(pixels, 99.5) if pixels.size else 0
    colour = pixels.max(axis=0) - pixels.min(axis=0)
    return pixels[:, ~((pixels.min(axis=0) > 0.6 * top) & (colour < 0.12 * top))]


def logs_of(pixels: np.ndarray) -> np.ndarray:
    """(3, n) logarithms; dark pixels are lifted, so that noise in them does not count as colour."""
    return np.log(pixels + 0.05 * np.percentile(pixels, 90) + 1e-6)


def colour_signs(logs: np.ndarray) -> np.ndarray:
    """(3,) in [-1, 1], each above 0 where red and blue are in their places, and the opposite where exchanged."""
    red, green, blue = logs
    light = logs.mean(axis=0)
    dark, lit = light < np.percentile(light, 10), light > np.percentile(light, 40)
    shadows = _middle((blue - red)[dark]) - _middle((blue - red)[lit])
    reddest, bluest = (np.percentile(v, 98) - np.median(v) for v in (red - green, blue - green))
    strongest = (reddest - bluest) / max(reddest + bluest, 0.05)
    excess = 2 * green - red - blue
    green_most, least = excess > np.percentile(excess, 95), excess < np.percentile(excess, 70)
    plants = _middle((red - blue)[green_most]) - _middle((red - blue)[least])
    # Without a pixel on one side of a difference there is no sign: NaN.
    return np.nan_to_num(np.clip([shadows / 0.08, strongest / 0.12, plants / 0.08], -1, 1))


def _middle(values: np.ndarray) -> float:
    """Median, NaN of nothing."""
    return float(np.median(values)) if values.size else float("nan")
