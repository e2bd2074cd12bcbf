"""The stacked image of a tile of a dataset, and what its bands are like on average."""

import math
from collections.abc import Sequence
from pathlib import Path

from fusiondet.buildings import Tile
from fusiondet.data.bands import BandSpec
from fusiondet.data.coco import Dataset
from fusiondet.data.imagery.rasters import Bands, PixelWindow, band_names, open_raster
from fusiondet.errors import InputError
from fusiondet.files import safe_join

import numpy as np


def read_tile(dataset: Dataset, tile: Tile, bands: BandSpec | None = None, window: PixelWindow | None = None):
    """`read_tile_image` of one tile of a dataset, its names joined safely to the dataset's root."""

    def path(name):
        return None if name is None else safe_join(dataset.root, name)

    optical, sar = path(tile.file_name), path(tile.sar_file_name)
    if not dataset.bands.optical and sar is None:
        optical, sar = None, optical
    return read_tile_image(optical, sar, bands or dataset.bands, dataset.bands, dataset.nodata, window)


def read_tile_image(
    optical_path: Path | None,
    sar_path: Path | None,
    bands: BandSpec,
    file_bands: BandSpec,
    nodata: float | None = None,
    window: PixelWindow | None = None,
) -> np.ndarray:
    """The stacked image of one tile whose files are on one grid.

    Args:
        optical_path, sar_path: None when the tile lacks that modality: its channels are NaN.
        bands: the bands wanted, in channel order.
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
    for path, wanted, known, scale in (
        (optical_path, bands.optical, file_bands.optical, None),
        (sar_path, bands.sar, file_bands.sar, file_bands.sar_scale),
    ):
        if path is None or not wanted:
            parts.append((path, len(wanted), None))
            continue
        with open_raster(path) as source:
            _check_band_count(source, known, path)
            band = Bands(source, [known.index(name) + 1 for name in wanted], nodata, scale)
            parts.append((path, len(wanted), band.read_final(window)))
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


def _check_band_count(source, known: Sequence[str], path) -> None:
    if source.count < len(known):
        raise InputError(
            f"{path}: has {source.count} band{'s' * (source.count != 1)} ({band_names(source)}), but the dataset says "
            f"{len(known)}: {', '.join(known)}."
        )
