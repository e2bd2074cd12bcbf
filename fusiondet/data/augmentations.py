"""Changes of a training tile that keep image, outlines and metadata in agreement.

Geometry acts on all bands, on the outlines, *and on what is known about the acquisition*: a resize changes the GSD, a
flip or a turn changes where sun and antenna are, so that shadow and layover still point where the metadata says.
Photometry acts on one modality at a time. All functions return a new `Sample`; randomness comes in as a Generator.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fusiondet.buildings import SensorGeometry, clean_polygon

import numpy as np
import shapely
import torch
from shapely.geometry.base import BaseGeometry
from torch.nn.functional import interpolate

# An azimuth that the range encloses to the last bit must not fall out of it by a rounded turn.
_AZIMUTH_TOLERANCE_DEG = 1e-6


@dataclass
class Sample:
    """One tile on its way to the network.

    Attributes:
        image: (C, H, W) float32, NaN = no data; optical bands first, SAR after.
        outlines_px: one geometry per building, in the image's pixels; None where nothing of it is left in the image.
        gsd_m: metres per pixel; NaN when unknown.
        sensor: sun and look geometry.
        optical_channels: leading channels that are optical.
        sar_in_db: SAR channels are dB; False for a display stretch, which is taken as it is.
        rasters: further (H, W) float rasters on the same grid that geometry moves along, e.g. heights to be learned;
            NaN = unknown. Photometry leaves them alone.
    """

    image: np.ndarray
    outlines_px: list[BaseGeometry | None]
    gsd_m: float
    sensor: SensorGeometry
    optical_channels: int
    sar_in_db: bool = True
    rasters: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[1:]


def _moved(sample: Sample, arrays, matrix: Sequence[float], **facts) -> Sample:
    """`sample` with `arrays` applied to image and rasters, and outlines through matrix (a, b, d, e, xoff, yoff)."""
    outlines = _transformed(sample.outlines_px, matrix)
    rasters = {name: arrays(raster[None])[0] for name, raster in sample.rasters.items()}
    return dataclasses.replace(
        sample, image=arrays(sample.image), outlines_px=outlines, rasters=rasters, **facts
    )


def _transformed(
    outlines_px: list[BaseGeometry | None], matrix: Sequence[float]
) -> list[BaseGeometry | None]:
    """All outlines through matrix (a, b, d, e, xoff, yoff) at once, computed as shapely's `affine_transform` does."""
    a, b, d, e, xoff, yoff = matrix
    moved = shapely.transform(
        np.array(outlines_px, dtype=object),
        lambda x, y: (a * x + b * y + xoff, d * x + e * y + yoff),
        interleaved=False,
    )
    return moved.tolist()


def crop(sample: Sample, x0: int, y0: int, width: int, height: int) -> Sample:
    """The window of `width` x `height` pixels at column x0, row y0, which lies inside the image."""
    outlines = crop_outlines(sample.outlines_px, x0, y0, width, height)
    part = (..., slice(y0, y0 + height), slice(x0, x0 + width))
    rasters = {name: raster[part] for name, raster in sample.rasters.items()}
    return dataclasses.replace(sample, image=sample.image[part], outlines_px=outlines, rasters=rasters)


def crop_outlines(outlines_px: list[BaseGeometry | None], x0: int, y0: int, width: int, height: int) -> list:
    """Outlines cut at the border of a window, in its pixels; None where nothing is left."""
    frame = shapely.box(x0, y0, x0 + width, y0 + height)
    shapely.prepare(frame)
    cut = [
        outline if outline is None or inside else clean_polygon(outline.intersection(frame))
        for outline, inside in zip(outlines_px, shapely.covers(frame, outlines_px))
    ]
    return cut if (x0, y0) == (0, 0) else _transformed(cut, (1, 0, 0, 1, -x0, -y0))


def flip_horizontally(sample: Sample) -> Sample:
    """Left <-> right; azimuths are mirrored."""
    width = sample.size[1]
    facts = {"sensor": sample.sensor.flipped_horizontally()}
    return _moved(sample, lambda a: np.ascontiguousarray(a[..., ::-1]), (-1, 0, 0, 1, width, 0), **facts)


def rotate_quarters(sample: Sample, quarters: int) -> Sample:
    """Turned clockwise by `quarters` times 90 degrees; azimuths grow by as much."""
    quarters %= 4
    height, width = sample.size
    # (x, y) -> (H - y, x) for one quarter; x' = a x + b y + xoff, y' = d x + e y + yoff.
    matrix = {
        0: (1, 0, 0, 1, 0, 0),
        1: (0, -1, 1, 0, height, 0),
        2: (-1, 0, 0, -1, width, height),
        3: (0, 1, -1, 0, 0, width),
    }[quarters]
    facts = {"sensor": sample.sensor.rotated(90.0 * quarters)}
    return _moved(sample, lambda a: np.ascontiguousarray(np.rot90(a, -quarters, (1, 2))), matrix, **facts)


def resize(sample: Sample, height: int, width: int) -> Sample:
    """Resampled to `height` x `width`; the GSD changes as much as the pixels do.

    SAR in dB is resampled in linear power. Bilinear, averaging when shrinking; invalid pixels give nothing to their
    neighbours, and a pixel is invalid where its nearest source pixel is. Further rasters take their nearest pixel: the
    mean of a roof and of the ground beside it is the height of nothing.
    """
    old_height, old_width = sample.size
    if (height, width) == (old_height, old_width):
        return sample
    y, x = height / old_height, width / old_width
    # A filter that averages power must see power; decibels come back afterwards.
    linear = dataclasses.replace(sample, image=_sar_power(sample.image, sample), rasters={})
    moved = _moved(linear, lambda a: resize_valid(a, height, width), (x, 0, 0, y, 0, 0))
    return dataclasses.replace(
        moved,
        image=_sar_db(moved.image, sample),
        gsd_m=sample.gsd_m / math.sqrt(x * y),
        rasters={name: _resize_nearest(raster, height, width) for name, raster in sample.rasters.items()},
    )


def _resize_nearest(raster: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip((height, width), raster.shape, strict=True)
    )
    return raster[np.ix_(rows, columns)]


def resize_valid(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(C, H, W) with NaN = no data -> (C, height, width) by normalised bilinear interpolation; see `resize`."""
    values = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
    valid = torch.isfinite(values)
    shrinks = height < values.shape[2] or width < values.shape[3]
    options = {"size": (height, width), "mode": "bilinear", "align_corners": False, "antialias": shrinks}
    if valid.all():
        return interpolate(values, **options)[0].numpy()
    weight = valid.float()
    total = interpolate(values.nan_to_num(0.0, 0.0, 0.0), **options)
    share = interpolate(weight, **options)
    keep = interpolate(weight, size=(height, width), mode="nearest-exact") > 0.5
    result = torch.where(keep & (share > 0), total / share.clamp(min=1e-6), torch.nan)
    return result[0].numpy()


def _sar_power(image: np.ndarray, sample: Sample) -> np.ndarray:
    return _on_sar(image, sample, lambda db: np.power(np.float32(10.0), db / 10))


def _sar_db(image: np.ndarray, sample: Sample) -> np.ndarray:
    return _on_sar(image, sample, lambda power: 10 * np.log10(np.maximum(power, np.float32(1e-30))))


def _on_sar(image, sample: Sample, change) -> np.ndarray:
    n = sample.optical_channels
    if not sample.sar_in_db or n == len(image):
        return image
    return np.concatenate([image[:n], change(image[n:]).astype(np.float32)])


def allowed_dihedral(
    sensor: SensorGeometry,
    sar_look_range_deg: Sequence[float] = (),
    sun_range_deg: Sequence[float] = (),
    quarter_turns: bool = True,
) -> list[tuple[bool, int]]:
    """(mirror first, clockwise quarter turns) that keep the azimuths in their ranges; the identity is always in.

    Args:
        sar_look_range_deg, sun_range_deg: (from, to) clockwise; () allows any. An unknown azimuth is not restricted.
        quarter_turns: False leaves out what turns east to north, so that mirrors and half turns remain.
    """
    kept = [(False, 0)]
    for mirror in (False, True):
        for quarters in range(4):
            turned = (sensor.flipped_horizontally() if mirror else sensor).rotated(90.0 * quarters)
            inside = in_range_deg(turned.sar_look_azimuth_deg, sar_look_range_deg) and in_range_deg(
                turned.sun_azimuth_deg, sun_range_deg
            )
            if quarters % 2 and not quarter_turns:
                continue
            if inside and (mirror, quarters) != (False, 0):
                kept.append((mirror, quarters))
    return kept


def in_range_deg(azimuth_deg: float | None, range_deg: Sequence[float]) -> bool:
    """Whether going clockwise from range_deg[0] to range_deg[1] passes the azimuth; True when either is unknown."""
    if azimuth_deg is None or math.isnan(azimuth_deg) or not len(range_deg):
        return True
    start, end = range_deg
    if end - start >= 360:
        return True
    turn = (azimuth_deg - start + _AZIMUTH_TOLERANCE_DEG) % 360.0
    return turn <= (end - start) % 360.0 + 2 * _AZIMUTH_TOLERANCE_DEG


def dihedral(sample: Sample, mirror: bool, quarters: int) -> Sample:
    """Mirrored left <-> right if asked, then turned clockwise by quarters."""
    sample = flip_horizontally(sample) if mirror else sample
    return rotate_quarters(sample, quarters) if quarters % 4 else sample


def jitter_optical(sample: Sample, rng: np.random.Generator, brightness: float, contrast: float) -> Sample:
    """Optical channels times a factor in [1 - brightness, 1 + brightness]; contrast about their mean likewise."""
    n = sample.optical_channels
    gain, slope = rng.uniform(1 - brightness, 1 + brightness), rng.uniform(1 - contrast, 1 + contrast)
    if n == 0 or (brightness == 0 and contrast == 0):
        return sample
    optical = sample.image[:n] * np.float32(gain)
    valid = np.isfinite(optical)
    mean = optical[valid].mean() if valid.any() else np.float32(0)
    optical = (optical - mean) * np.float32(slope) + mean
    return dataclasses.replace(sample, image=np.concatenate([optical, sample.image[n:]]))


def jitter_sar(sample: Sample, rng: np.random.Generator, gain_db: float, speckle_looks: float) -> Sample:
    """SAR channels with a random gain (normal, `gain_db` standard deviation) and gamma speckle of that many looks.

    In linear power; a display stretch is taken for an amplitude. 0 switches either off.
    """
    n = sample.optical_channels
    sar = sample.image[n:]
    change_db = np.float32(rng.normal(0.0, gain_db) if gain_db > 0 else 0.0)
    if speckle_looks > 0:
        speckle = rng.gamma(speckle_looks, 1 / speckle_looks, sar.shape)
        change_db = change_db + 10 * np.log10(np.maximum(speckle, 1e-6))
    if len(sar) == 0 or (gain_db <= 0 and speckle_looks <= 0):
        return sample
    sar = sar + change_db if sample.sar_in_db else sar * np.power(10.0, change_db / 20)
    return dataclasses.replace(sample, image=np.concatenate([sample.image[:n], sar.astype(np.float32)]))


def crop_size(
    kind: str, size: Sequence[float], height: int, width: int, rng: np.random.Generator
) -> tuple[int, int]:
    """(height, width) of a random crop as Detectron2's INPUT.CROP.TYPE and SIZE mean it; at most the image."""
    if kind == "absolute":
        wanted = size
    elif kind == "absolute_range":
        wanted = [rng.integers(min(size[0], n), min(size[1], n), endpoint=True) for n in (height, width)]
    elif kind == "relative":
        wanted = [height * size[0], width * size[1]]
    else:
        wanted = [height * rng.uniform(size[0], 1), width * rng.uniform(size[1], 1)]
    return tuple(max(1, min(int(round(w)), n)) for w, n in zip(wanted, (height, width), strict=True))


CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")
