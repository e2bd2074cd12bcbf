"""The tiles whose pixels are looked at: evenly spread over the splits, read one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from fusiondet.buildings import Tile, clean_polygon
from fusiondet.doctor.split_source import Split
from fusiondet.errors import InputError
from fusiondet.geometry.painting import footprint_label
from fusiondet.io.coco import Dataset
from fusiondet.io.rasters import PixelWindow
from fusiondet.io.tile_rasters import read_tile

import numpy as np
from affine import Affine
from shapely.affinity import translate
from shapely.geometry import box

# A tile may be a whole mosaic: this much of it is enough to look at.
MAX_SIDE_PX = 2048


@dataclass
class Sample:
    """One tile with its pixels.

    Attributes:
        split: name of its split. dataset, tile: where it is from.
        image: (C, H, W) float32, optical bands then SAR bands in dB (or stretched), NaN = no data; None when it cannot
            be read, and `error` then says why.
    """

    split: str
    dataset: Dataset
    tile: Tile
    image: np.ndarray | None
    error: str | None = None

    @property
    def optical(self) -> np.ndarray:
        """(C_optical, H, W)."""
        return self.image[: len(self.dataset.bands.optical)]

    @property
    def sar(self) -> np.ndarray:
        """(C_sar, H, W)."""
        return self.image[len(self.dataset.bands.optical) :]

    @cached_property
    def footprint(self) -> np.ndarray:
        """(H, W) bool: pixels of annotated buildings."""
        return footprint_label(self.tile)


def chosen_tiles(splits: list[Split], samples: int) -> list[tuple[Split, Tile]]:
    """About `samples` tiles: of each split its share, at least an eighth of `samples`, at even steps.

    Tiles with buildings go first: the others tell nothing about labels.
    """
    total = sum(len(split.dataset.tiles) for split in splits)
    chosen = []
    for split in splits:
        tiles = split.dataset.tiles
        n = min(len(tiles), max(round(samples * len(tiles) / max(total, 1)), samples // 8, 1))
        built = [i for i, tile in enumerate(tiles) if tile.buildings]
        indexes = _evenly(built, n)
        if len(indexes) < n:
            rest = sorted(set(range(len(tiles))) - set(indexes))
            indexes = sorted(indexes + _evenly(rest, n - len(indexes)))
        chosen += [(split, tiles[i]) for i in indexes]
    return chosen


def _evenly(items: list[int], n: int) -> list[int]:
    if len(items) <= n:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, n).round().astype(int))]


def read_samples(chosen: list[tuple[Split, Tile]]) -> Iterator[Sample]:
    """The pixels of `chosen`, one tile after the other; of one that is larger than `MAX_SIDE_PX`, its middle."""
    for split, tile in chosen:
        window = _middle_window(tile)
        part = tile if window is None else _cut(tile, window)
        try:
            image, error = read_tile(split.dataset, tile, window=window), None
            if image.shape[1:] != (part.height, part.width):
                found = f"{image.shape[2]} x {image.shape[1]} px"
                image, error = None, f"{found}, but the annotations say {tile.width} x {tile.height} px."
        except InputError as found:
            image, error = None, str(found)
        yield Sample(split.name, split.dataset, part, image, error)


def _middle_window(tile: Tile) -> PixelWindow | None:
    width, height = min(tile.width, MAX_SIDE_PX), min(tile.height, MAX_SIDE_PX)
    if (width, height) == (tile.width, tile.height):
        return None
    return (tile.width - width) // 2, (tile.height - height) // 2, width, height


def _cut(tile: Tile, window: PixelWindow) -> Tile:
    """What lies in a window of `tile`, in pixels of the window."""
    x0, y0, width, height = window
    frame, buildings = box(0, 0, width, height), []
    for building in tile.buildings:
        polygon = clean_polygon(translate(building.polygon, -x0, -y0).intersection(frame))
        if polygon is not None:
            buildings.append(replace(building, polygon=polygon))
    place = tile.transform and tuple(Affine(*tile.transform[:6]) * Affine.translation(x0, y0))[:6]
    return replace(tile, width=width, height=height, buildings=buildings, transform=place)
