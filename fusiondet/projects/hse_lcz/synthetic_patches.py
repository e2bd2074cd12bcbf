"""Invented patches in So2Sat LCZ42's layout, for tests and demonstrations: no satellite ever saw them.

A patch is drawn as a map of covers (roofs, sealed ground, trees, low plants, soil, water) at twice the resolution;
their shares, the blocks' sizes and heights follow from the local climate zone, its spectra are those of the covers,
mixed by the sensor's blur. Radar echoes grow with the height and density of roofs. Cities differ in haze, in the colour
of their roofs, in how green they are, and in which zones they have; splits share no city.

Neither task can be solved: shares of neighbouring zones overlap, a part of each patch may belong to another zone, and
sealed ground between roofs looks like flat roofs. The settlement extent is the share of the patch under roofs and
sealed ground, at most two and a half times that of roofs, exact, before blur and noise; a part is made unknown on
request.
"""

from dataclasses import dataclass
from pathlib import Path

from fusiondet.projects.hse_lcz.patches import LCZ_CLASSES, OPTICAL_BANDS, SAR_BANDS, SIZE_PX

import h5py
import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

_FINE = 2
_COVERS = ("roof", "sealed", "trees", "plants", "soil", "water")
# Reflectance of each cover in OPTICAL_BANDS; of roofs, one row per material: bright, dark, tiles.
_SPECTRA = np.array([
    [.12, .13, .14, .15, .155, .16, .17, .17, .19, .18],
    [.03, .05, .03, .08, .20, .25, .28, .30, .15, .07],
    [.04, .08, .06, .12, .24, .29, .32, .34, .22, .12],
    [.08, .12, .17, .20, .22, .24, .26, .28, .36, .33],
    [.06, .05, .04, .03, .025, .025, .02, .02, .01, .01],
])  # fmt: skip
_ROOFS = np.array([
    [.22, .24, .26, .27, .28, .29, .30, .30, .30, .27],
    [.08, .085, .09, .095, .10, .10, .11, .11, .12, .12],
    [.08, .10, .16, .18, .19, .20, .21, .22, .26, .25],
])  # fmt: skip
# Per zone: shares of _COVERS; side of a roof, metres; height, metres.
_ZONES = np.array([
    [.50, .40, .05, .03, .02, .00, 40, 35],
    [.55, .35, .05, .03, .02, .00, 30, 15],
    [.55, .32, .06, .05, .02, .00, 14, 6],
    [.28, .30, .20, .20, .02, .00, 34, 32],
    [.28, .28, .22, .20, .02, .00, 28, 14],
    [.28, .22, .28, .20, .02, .00, 13, 6],
    [.60, .12, .05, .08, .15, .00, 10, 3],
    [.42, .45, .03, .07, .03, .00, 60, 8],
    [.12, .10, .38, .35, .05, .00, 13, 5],
    [.30, .45, .03, .07, .15, .00, 45, 14],
    [.00, .01, .93, .05, .01, .00, 12, 4],
    [.01, .02, .45, .48, .04, .00, 12, 4],
    [.00, .01, .25, .45, .29, .00, 12, 4],
    [.01, .01, .03, .90, .05, .00, 12, 4],
    [.02, .78, .02, .05, .13, .00, 12, 4],
    [.00, .03, .02, .07, .88, .00, 12, 4],
    [.00, .00, .01, .01, .01, .97, 12, 4],
])  # fmt: skip
# Backscatter, linear power of VH and VV, of covers that do not stand up; roofs by density and height.
_BACKSCATTER = np.array([[0.004, 0.03], [0.03, 0.12], [0.01, 0.06], [0.006, 0.05], [0.0006, 0.008]])


@dataclass(frozen=True)
class _City:
    gain: np.ndarray
    haze: np.ndarray
    roofs: np.ndarray
    green: float
    zones: np.ndarray


def _city(rng: np.random.Generator) -> _City:
    return _City(
        gain=rng.normal(1, 0.05, len(OPTICAL_BANDS)),
        haze=np.linspace(1, 0.1, len(OPTICAL_BANDS)) * rng.uniform(0, 0.03),
        roofs=rng.dirichlet((2.0, 2.0, 2.0)),
        green=rng.uniform(0.7, 1.4),
        zones=rng.dirichlet(np.full(len(LCZ_CLASSES), 3.0)),
    )


def write_patches(
    file: Path, hse_file: Path, count: int, cities: int, seed: int, unknown: float = 0.0
) -> None:
    """Write `count` invented patches of `cities` cities as `file`, their settlement extent as `hse_file` (.npy).

    Beside So2Sat's data sets `file` has city (N,), a number; the same arguments give the same numbers.

    Args:
        unknown: share of the patches whose settlement extent is NaN, in [0, 1].
    """
    rng = np.random.default_rng(seed)
    known = [_city(rng) for _ in range(cities)]
    hse = np.empty(count, np.float32)
    for path in (file, hse_file):
        path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as target:
        target.attrs["note"] = "Invented by fusiondet. Not So2Sat LCZ42; no satellite saw any of this."
        shape = (count, SIZE_PX, SIZE_PX)
        sen1 = target.create_dataset("sen1", (*shape, len(SAR_BANDS)), "f4")
        sen2 = target.create_dataset("sen2", (*shape, len(OPTICAL_BANDS)), "f4")
        label = target.create_dataset("label", (count, len(LCZ_CLASSES)), "f4")
        number = target.create_dataset("city", (count,), "i4")
        for i in range(count):
            city = int(rng.integers(cities))
            # The first patches have every class, so that no split lacks one by chance.
            zone = i if i < len(LCZ_CLASSES) else int(rng.choice(len(LCZ_CLASSES), p=known[city].zones))
            sen1[i], sen2[i], hse[i] = draw_patch(zone, known[city], rng)
            label[i], number[i] = np.eye(len(LCZ_CLASSES))[zone], city
    hse[rng.random(count) < unknown] = np.nan
    np.save(hse_file, hse)


def draw_patch(zone: int, city: _City, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """(32, 32, 8) radar, (32, 32, 10) reflectance, and the settlement extent of a patch of `zone`."""
    cover, height_m, material = _covers(zone, city, rng)
    if rng.random() < 0.6:
        # The rest of the patch, always less than half, is of another zone.
        other = _covers(int(rng.choice(len(_ZONES), p=city.zones)), city, rng)
        elsewhere = _corner(rng, cover.shape)
        cover, height_m, material = (
            np.where(elsewhere, b, a) for a, b in zip((cover, height_m, material), other)
        )
    extent = float((cover <= _COVERS.index("sealed")).mean()) if (cover == 0).any() else 0.0
    # Sealed ground alone, such as a quarry or a runway, is no settlement.
    extent = min(extent, 2.5 * float((cover == 0).mean()))
    optical = _optical(cover, material, height_m, city, rng)
    return _radar(cover, height_m, rng), optical.astype(np.float32), extent


def _covers(zone: int, city: _City, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(64, 64) index of the cover, height of roofs in metres, and material of roofs."""
    side = SIZE_PX * _FINE
    *shares, roof_m, height_m = _ZONES[zone]
    shares = np.array(shares) * rng.gamma(6.0, 1 / 6.0, len(_COVERS))
    shares[2:4] *= city.green
    shares /= shares.sum()
    roof_px = max(1, round(roof_m * rng.lognormal(0, 0.2) / (10 / _FINE)))
    cells = -(-side // roof_px)

    def blocks(values: np.ndarray) -> np.ndarray:
        grown = values.repeat(roof_px, 0).repeat(roof_px, 1)
        y, x = rng.integers(0, roof_px, 2) if roof_px > 1 else (0, 0)
        return np.roll(grown, (y, x), (0, 1))[:side, :side]

    # Roofs are the blocks whose number is among the lowest; what is between them follows smooth fields.
    order = blocks(rng.random((cells, cells)))
    cover = np.zeros((side, side), int)
    rest = order > shares[0]
    noise = gaussian_filter(rng.normal(size=(len(_COVERS) - 1, side, side)), (0, 1.5, 1.5))
    noise /= noise.std()
    cover[rest] = 1 + (noise + np.log(shares[1:] + 1e-4)[:, None, None] * 1.2).argmax(axis=0)[rest]
    heights = blocks(height_m * rng.lognormal(0, 0.3, (cells, cells)))
    materials = blocks(rng.choice(len(_ROOFS), (cells, cells), p=city.roofs))
    return cover, np.where(cover == 0, heights, 0.0), materials


def _corner(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: a part of less than half, behind a straight line."""
    angle, share = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.45)
    y, x = np.mgrid[: shape[0], : shape[1]]
    along = x * np.cos(angle) + y * np.sin(angle)
    return along < np.quantile(along, share)


def _optical(cover, material, height_m, city: _City, rng: np.random.Generator) -> np.ndarray:
    table = np.concatenate([_SPECTRA, _ROOFS])
    picture = table[np.where(cover == 0, len(_SPECTRA) + material, cover - 1)]
    # High roofs throw shadows to the north-west.
    shadow = np.zeros(cover.shape, bool)
    for step in range(1, 7):
        higher = np.roll(height_m, (-step, -step), (0, 1))
        shadow |= higher > height_m + step * 6.0
    picture = np.where(shadow[..., None], 0.45 * picture, picture)
    blurred = gaussian_filter(picture, (0.8 * _FINE, 0.8 * _FINE, 0))
    pixels = blurred.reshape(SIZE_PX, _FINE, SIZE_PX, _FINE, -1).mean(axis=(1, 3))
    seen = pixels * city.gain * rng.normal(1, 0.06) + city.haze + rng.normal(0, 0.01, pixels.shape)
    return np.maximum(seen, 0.0001)


def _radar(cover, height_m, rng: np.random.Generator) -> np.ndarray:
    roofs = np.stack([0.01 + 0.0012 * height_m, 0.08 + 0.012 * height_m], axis=-1)
    power = np.where((cover == 0)[..., None], roofs, _BACKSCATTER[cover - 1])
    power = power.reshape(SIZE_PX, _FINE, SIZE_PX, _FINE, 2).mean(axis=(1, 3))
    real, imaginary = rng.normal(size=(2, *power.shape)) * np.sqrt(power / 2)
    vh, vv = np.moveaxis(real + 1j * imaginary, -1, 0)
    smooth = [uniform_filter(part, 5) for part in (abs(vh) ** 2, abs(vv) ** 2)]
    product = vh * vv.conj()
    cross = [uniform_filter(product.real, 5), uniform_filter(product.imag, 5)]
    return np.stack([vh.real, vh.imag, vv.real, vv.imag, *smooth, *cross], axis=-1).astype(np.float32)
