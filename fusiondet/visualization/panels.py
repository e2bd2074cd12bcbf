"""Arrays as pictures: true colour or grey for optical, dB grey or a composite for SAR, maps in the colours of a scale.

No data is hatched grey.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable

# Two greys of the hatch that marks pixels without data: no roof and no shadow looks like it.
NODATA_GREYS = (214, 190)
# A picture darker than this on average is brightened to it.
_MEAN_BRIGHTNESS = 0.36


def optical_panel(image: np.ndarray, bands: Sequence[str] = ()) -> np.ndarray:
    """Optical bands as a picture: true colour where red, green and blue can be told, grey for one or two bands.

    Stretched between the 1st and the 99th percentile with one gain for all bands, so hues stay what they are, and
    brightened when dark. Raw counts or reflectances (anything outside 0-255) also lose their haze: each band starts
    at its own 1st percentile.

    Args:
        image: (C, H, W) float, any C >= 1 and any linear unit; NaN or infinite = no data.
        bands: names of the channels; without "red", "green", "blue" among them the first three are taken.

    Returns:
        (H, W, 3) uint8; pixels without data in a shown band are hatched grey.
    """
    shown = np.asarray(image, dtype=np.float32)[rgb_indexes(len(image), bands)]
    valid = np.isfinite(shown).all(axis=0)
    if not valid.any():
        return _on_hatch(shown[:, valid], valid)
    values = shown[:, valid]
    low, high = np.percentile(values, (1.0, 99.0), axis=1)
    if values.min() >= 0 and 1 < values.max() <= 255:  # an 8-bit picture: somebody balanced its colours
        low[:] = low.min()
    return _on_hatch(_brightened(_stretch(values, low, np.full_like(low, (high - low).max()))), valid)


def sar_panel(image: np.ndarray, bands: Sequence[str] = ()) -> np.ndarray:
    """SAR bands in dB (or stretched) as a picture: grey for one polarisation, a composite for several.

    Two polarisations: red = co, green = cross, blue = co - cross. Three or more: red, green, blue = HH, HV (or VH), VV
    as far as they are there. Channels are stretched one by one between their 1st and 99.5th percentile.

    Args:
        image: (C, H, W) float, C >= 1; NaN or infinite = no data.
        bands: names of the channels, e.g. ("VV", "VH"); () takes them in order.

    Returns:
        (H, W, 3) uint8; pixels without data are hatched grey.
    """
    shown = np.asarray(image, dtype=np.float32)[polarisation_indexes(len(image), bands)]
    valid = np.isfinite(shown).all(axis=0)
    values = shown[:, valid]
    if len(values) == 2:
        values = np.stack([*values, values[0] - values[1]])
    if not valid.any():
        return _on_hatch(values, valid)
    low, high = np.percentile(values, (1.0, 99.5), axis=1)
    return _on_hatch(_stretch(values, low, high - low), valid)


def map_panel(values: np.ndarray, colours: ScalarMappable) -> np.ndarray:
    """A map in the colours of its scale.

    Args:
        values: (H, W) float; NaN or infinite = unknown.
        colours: scale of `height_colours` or `error_colours`, say.

    Returns:
        (H, W, 3) uint8; unknown pixels are hatched grey.
    """
    valid = np.isfinite(values)
    return _on_hatch(colours.to_rgba(values[valid])[:, :3].T, valid)


def class_panel(numbers: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Classes in their colours.

    Args:
        numbers: (H, W) int, which of `colours` a pixel has; below 0 = not labelled.
        colours: (red, green, blue) in 0 ... 255.

    Returns:
        (H, W, 3) uint8; pixels that are not labelled are hatched grey.
    """
    valid = numbers >= 0
    return _on_hatch(np.array(colours, np.float32)[numbers[valid]].T / 255, valid)


def faded(picture: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """(H, W, 3) `picture` as a quiet grey background, so that the only colours on it are those of the heights.

    `keep` (H, W) bool: pixels left as they are (the hatch).
    """
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    quiet = np.repeat((40.0 + 0.55 * grey)[:, :, None], 3, axis=2).astype(np.uint8)
    quiet[keep] = picture[keep]
    return quiet


def rgb_indexes(count: int, bands: Sequence[str]) -> list[int]:
    """Channels that `optical_panel` shows: three as red, green, blue, or one as grey."""
    names = [str(name).lower() for name in bands]
    if all(name in names for name in ("red", "green", "blue")):
        return [names.index(name) for name in ("red", "green", "blue")]
    return [0, 1, 2] if count >= 3 else [0]


def polarisation_indexes(count: int, bands: Sequence[str]) -> list[int]:
    """Channels that `sar_panel` shows: three as red, green, blue; co and cross; or one as grey."""
    names = [str(name).upper() for name in bands]
    if count == 1:
        return [0]
    if count == 2:
        return [1, 0] if names[:1] and names[0] in ("HV", "VH") and names[1] in ("HH", "VV") else [0, 1]
    cross = "HV" if "HV" in names else "VH"
    if all(name in names for name in ("HH", cross, "VV")):
        return [names.index(name) for name in ("HH", cross, "VV")]
    return [0, 1, 2]


def _stretch(values: np.ndarray, low: np.ndarray, span: np.ndarray) -> np.ndarray:
    """(C, N) in [0, 1]. A band without contrast becomes mid grey: black would read as shadow."""
    flat = span <= 0
    scaled = (values - low[:, None]) / np.where(flat, 1.0, span)[:, None] + np.where(flat, 0.5, 0.0)[:, None]
    return np.clip(scaled, 0.0, 1.0)


def _brightened(values: np.ndarray) -> np.ndarray:
    """Gamma that lifts the mean of dark pictures; raw counts are linear in light, the eye is not."""
    mean = float(values.mean())
    if not 0.0 < mean < _MEAN_BRIGHTNESS:
        return values
    return values ** max(math.log(_MEAN_BRIGHTNESS) / math.log(mean), 0.45)


def _on_hatch(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(1 or 3, N) in [0, 1] of the `valid` pixels -> (H, W, 3) uint8 with diagonal stripes elsewhere."""
    height, width = valid.shape
    stripe_px = max(2, min(height, width) // 40)
    rows, columns = np.indices(valid.shape)
    light, dark = NODATA_GREYS
    grey = np.where((rows + columns) // stripe_px % 2 == 0, light, dark).astype(np.uint8)
    picture = np.repeat(grey[:, :, None], 3, axis=2)
    if values.size:
        picture[valid] = np.round(255.0 * values).T
    return picture
