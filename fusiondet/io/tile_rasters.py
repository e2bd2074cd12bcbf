"""The stacked image of a tile of a dataset, and what its bands are like on average."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusiondet.buildings import Tile
from fusiondet.errors import InputError
from fusiondet.files import safe_join
from fusiondet.io.bands import BandSpec, band_numbers
from fusiondet.io.coco import Dataset
from fusiondet.io.rasters import Bands, PixelWindow, band_names, open_raster

import numpy as np


@dataclass(frozen=True)
class TileRaster:
    """A raster of a tile, and what of it is the tile.

    Attributes:
        path: the file.
        window: (x0, y0, width, height) in its pixels; None: all of it.
        indexes: numbers of the dataset's bands of its modality, from 1; None: the first ones, in order.
    """

    path: Path
    window: PixelWindow | None = None
    indexes: tuple[int, ...] | None = None

    def part(self, window: PixelWindow | None) -> PixelWindow | None:
        """`window` of the tile in the raster's pixels; both None for all of it."""
        if self.window is None or window is None:
            return window or self.window
        x0, y0, width, height = window
        if x0 < 0 or y0 < 0 or x0 + width > self.window[2] or y0 + height > self.window[3]:
            raise InputError(f"{self.path}: window {window} is not inside the tile {self.window}.")
        return self.window[0] + x0, self.window[1] + y0, width, height


def tile_rasters(dataset: Dataset, tile: Tile) -> tuple[TileRaster | None, TileRaster | None]:
    """(optical, SAR) raster of a tile, None where it has none; names are joined safely to the dataset's root."""

    def raster(name, window, indexes):
        return None if name is None else TileRaster(safe_join(dataset.root, name), window, indexes)

    first = raster(tile.file_name, tile.window, tile.indexes)
    if not dataset.bands.optical and tile.sar_file_name is None:
        return None, first
    return first, raster(tile.sar_file_name, tile.sar_window, tile.sar_indexes)


def read_tile(dataset: Dataset, tile: Tile, bands: BandSpec | None = None, window: PixelWindow | None = None):
    """`read_tile_image` of one tile of a dataset."""
    rasters = tile_rasters(dataset, tile)
    return read_tile_image(*rasters, bands or dataset.bands, dataset.bands, dataset.nodata, window)


def read_tile_image(
    optical: TileRaster | Path | None,
    sar: TileRaster | Path | None,
    bands: BandSpec,
    file_bands: BandSpec,
    nodata: float | None = None,
    window: PixelWindow | None = None,
) -> np.ndarray:
    """The stacked image of one tile whose rasters are on one grid.

    Args:
        optical, sar: a path is all of that file; None when the tile lacks that modality: its channels are NaN.
        bands: the bands wanted, in channel order; a mean of polarisations, "HH+VV", is made of its members.
        file_bands: the bands that the files hold, in the files' order; its `sar_scale` says how to get to dB.
        nodata: number that means "no data" in files that declare none.
        window: (x0, y0, width, height) in pixels inside the tile; None for all of it.

    Returns:
        (C, H, W) float32, C = len(bands), NaN = no data.

    Raises:
        InputError: a file is missing, damaged, has fewer bands than `file_bands` names or another size than the other
            file; or a wanted band is not in `file_bands`.
    """
    file_bands.select(bands.optical, bands.sar)
    parts = []
    for raster, wanted, known, scale in (
        (optical, bands.optical, file_bands.optical, None),
        (sar, bands.sar, file_bands.sar, file_bands.sar_scale),
    ):
        if raster is None or not wanted:
            parts.append((None, len(wanted), None))
            continue
        raster = raster if isinstance(raster, TileRaster) else TileRaster(raster)
        with open_raster(raster.path) as source:
            indexes = raster.indexes or range(1, len(known) + 1)
            _check_band_count(source, known, indexes, raster.path)
            numbers = band_numbers(wanted, known, "optical" if scale is None else "SAR")
            numbers = [
                indexes[n - 1] if isinstance(n, int) else tuple(indexes[i - 1] for i in n) for n in numbers
            ]
            band = Bands(source, numbers, nodata, scale)
            parts.append((raster.path, len(wanted), band.read_final(raster.part(window))))
    return _stack_tile(parts)


def _stack_tile(parts) -> np.ndarray:
    read = [(path, image) for path, _, image in parts if image is not None]
    if not read:
        raise InputError("a tile needs an optical or a SAR raster for the wanted bands; both are missing.")
    shape = read[0][1].shape[1:]
    if read[-1][1].shape[1:] != shape:
        (path_a, a), (path_b, b) = read
        raise InputError(
            f"{path_b}: {b.shape[2]} x {b.shape[1]} px, but {path_a} has {a.shape[2]} x {a.shape[1]} px. Tiles must be "
            "on one grid: make them with tools/prepare_dataset.py tiles, which warps SAR onto the optical grid."
        )
    images = [np.full((n, *shape), np.nan, np.float32) if image is None else image for _, n, image in parts]
    return np.concatenate(images)


def band_statistics(dataset: Dataset, bands: BandSpec | None = None, max_tiles: int = 200):
    """Mean and standard deviation per band over the valid pixels of up to `max_tiles` evenly spread tiles.

    Returns:
        (mean (C,), std (C,)) float64, in the image's units (SAR: dB); a constant band has std 1.

    Raises:
        InputError: a band has no valid pixel in any of them.
    """
    bands = bands or dataset.bands
    step = max(1, math.ceil(len(dataset.tiles) / max_tiles))
    count, total, squares = (np.zeros(len(bands)) for _ in range(3))
    for tile in dataset.tiles[::step]:
        image = read_tile(dataset, tile, bands).astype(np.float64)
        count += np.isfinite(image).sum(axis=(1, 2))
        total += np.nansum(image, axis=(1, 2))
        squares += np.nansum(image**2, axis=(1, 2))
    if not count.all():
        name = bands.names[int(np.argmin(count))]
        raise InputError(
            f"{dataset.root}: band {name!r} has no valid pixel in {len(dataset.tiles[::step])} tiles."
        )
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean, np.where(std > 1e-6, std, 1.0)


def _check_band_count(source, known: Sequence[str], indexes: Sequence[int], path) -> None:
    if len(indexes) != len(known):
        raise InputError(
            f"{path}: the dataset has the bands {', '.join(known)}, but {len(indexes)} numbers of bands for this file."
        )
    if source.count < max(indexes, default=0):
        raise InputError(
            f"{path}: has {source.count} band{'s' * (source.count != 1)} ({band_names(source)}), but the dataset says "
            f"{len(known)}: {', '.join(known)}."
        )
