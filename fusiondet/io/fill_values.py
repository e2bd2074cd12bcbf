"""Fill of rasters that declare no nodata value: large areas of one exact value at the border, and values such as -9999.

Images of a modality are looked at as they are in the file, before scales: a fill value is a number of the file. All of
a small image is read; of a large one small patches on a lattice are, so that the cost does not grow with it.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.ndimage

# An image of at most so many pixels is read whole.
WHOLE_PX = 1 << 20
# Larger ones: patches of this side on a lattice of so many rows and columns, those at the border included.
PATCH_PX, LATTICE = 16, 24
# Values that files without a nodata declaration use for it, and that no image or backscatter has.
SENTINELS = (-9999.0, -99999.0, -32768.0, -32767.0)
# Beyond it a float is a fill value, whichever (the lowest float32, netCDF's 9.97e36).
_HUGE = 1e20
# Sampled pixels that have to have one of SENTINELS: noise has none exactly.
_FEW_PX = 16
# Smallest share of an image that a border area of one value has to cover to be worth a word; and of the image, and of
# the length of its border, to be a fill value without doubt. A shadow or a clipped roof is less.
WORTH_A_NOTE, CERTAIN_AREA, CERTAIN_BORDER = 0.01, 0.02, 0.08

# Largest share of the rest of an image that is as flat: in a drawn one, areas of one value are what it shows.
_MOST_FLAT = 0.5


@dataclass(frozen=True)
class Fill:
    """A value that stands for no data in a raster that does not declare it.

    Attributes:
        value: in the numbers of the file, the same in all bands.
        share: of the pixels that were looked at.
        certain: False where an image may have such an area, clipped water or snow say.
    """

    value: float
    share: float
    certain: bool


def find_fill(cells: np.ndarray) -> Fill | None:
    """Return the fill value of an image, None where there is none.

    Args:
        cells: (n, R, C, p, p) numbers of n bands in patches of p x p px on a lattice that reaches to the border of the
            image; p is 1 where it was read whole. Pixels that are known to be no data are NaN.
    """
    return _sentinel(cells) or border_fill(cells)


def border_fill(cells: np.ndarray) -> Fill | None:
    """Return the value that fills connected areas at the border of an image; see `find_fill` for `cells`.

    0 is `Fill.certain` in areas that are large in themselves and along the border. Other values never are, as 255 may
    be snow or cloud, and count in such large areas only. An image without texture has no fill value.
    """
    cells = np.asarray(cells)
    first = cells[:, :, :, 0, 0]
    constant = (cells == first[..., None, None]).all(axis=(0, 3, 4)) & (first == first[0]).all(axis=0)
    border = np.ones(constant.shape, bool)
    border[1:-1, 1:-1] = False
    values, counts = np.unique(first[0][constant & border], return_counts=True)
    if not values.size or not border.any():
        return None
    value = values[counts.argmax()]
    labels, _ = scipy.ndimage.label(constant & (first[0] == value), np.ones((3, 3)))
    at_border = np.unique(labels[border])
    filled = np.isin(labels, at_border[at_border > 0])
    share = float(filled.mean())
    if not _is_textured(cells[0], ~filled & np.isfinite(first[0])):
        return None
    is_large = share >= CERTAIN_AREA and filled[border].mean() >= CERTAIN_BORDER
    if share < WORTH_A_NOTE or not (is_large or value == 0):
        return None
    return Fill(float(value), share, bool(is_large and value == 0))


def _is_textured(band: np.ndarray, rest: np.ndarray) -> bool:
    """Return whether a band (R, C, p, p) varies in most patches of `rest`, (R, C) bool, or from pixel to pixel."""
    if band.shape[-1] > 1:
        flat = (band == band[:, :, :1, :1]).all(axis=(2, 3))[rest]
    else:
        pixels = band[:, :, 0, 0]
        flat = (pixels[:, 1:] == pixels[:, :-1])[rest[:, 1:] & rest[:, :-1]]
    return bool(flat.size and flat.mean() <= _MOST_FLAT)


def _sentinel(cells: np.ndarray) -> Fill | None:
    """Return the value no image has that occurs most often in all bands at once."""
    same = cells[0][(cells == cells[:1]).all(axis=0)]
    known = same[np.isin(same, SENTINELS) | ((np.abs(same) >= _HUGE) & np.isfinite(same))]
    values, counts = np.unique(known, return_counts=True)
    if not values.size or counts.max() < _FEW_PX:
        return None
    most = counts.argmax()
    return Fill(float(values[most]), float(counts[most] / cells[0].size), True)


def lattice_starts(length: int) -> list[int]:
    """Return where patches of PATCH_PX start along a side of `length` px: evenly spread, the last one at the end."""
    count = min(LATTICE, math.ceil(length / PATCH_PX))
    return np.linspace(0, max(length - PATCH_PX, 0), count).round().astype(int).tolist()


def fill_words(name: str, fill: Fill) -> str:
    """Return a sentence on what counts as no data in the raster `name`, or what might."""
    share = f"{100 * fill.share:.0f} %" if fill.share >= 0.01 else "less than 1 %"
    found = f"{name}: declares no nodata value, but about {share} of it is exactly {fill.value:g}"
    if fill.certain:
        return f"{found}; that counts as no data. `nodata` sets another value."
    return f"{found}, at its border. If that is no data, pass `nodata={fill.value:g}`."
