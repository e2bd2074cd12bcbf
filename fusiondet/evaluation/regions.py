"""Parts of tiles that are scored apart: what clouds hide, and the rest."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fusiondet.buildings import Tile
from fusiondet.errors import InputError, unknown_name
from fusiondet.files import safe_join
from fusiondet.io.coco import Dataset
from fusiondet.io.rasters import open_raster

import numpy as np

# In a cloud raster (0 clear .. 255 opaque), from here on the ground is taken as hidden.
OPAQUE = 128


@dataclass(frozen=True)
class Region:
    """A part of every tile: its name, and tile -> (H, W) bool."""

    name: str
    inside: Callable[[Tile], np.ndarray]


def under_cloud(root: Path) -> Region:
    """Region of what clouds hide: at least 128 in the tile's cloud raster under `root`; nothing where it has none."""
    return Region("under_cloud", lambda tile: _cloud(root, tile) >= OPAQUE)


def in_the_clear(root: Path) -> Region:
    """Region of what no cloud hides, the complement of `under_cloud`; all of a tile without a cloud raster.

    A building covered to exactly one half is scored in both.
    """
    return Region("in_the_clear", lambda tile: _cloud(root, tile) < OPAQUE)


REGIONS = {"under_cloud": under_cloud, "in_the_clear": in_the_clear}


def region_by_name(name: str, dataset: Dataset) -> Region:
    """The region of `REGIONS` for the tiles of `dataset`.

    Raises:
        InputError: an unknown name, or no tile has a cloud raster.
    """
    if name not in REGIONS:
        raise unknown_name("region", name, REGIONS)
    if not has_clouds(dataset):
        raise InputError(
            f"region {name}: no tile of {dataset.root} has a cloud raster (images[].cloud_file_name). "
            "tools/prepare_dataset.py synthetic writes them with `clouds=SHARE`."
        )
    return REGIONS[name](dataset.root)


def has_clouds(dataset: Dataset) -> bool:
    """Whether any tile of `dataset` names a cloud raster."""
    return any(tile.cloud_file_name is not None for tile in dataset.tiles)


def _cloud(root: Path, tile: Tile) -> np.ndarray:
    if tile.cloud_file_name is None:
        return np.zeros((tile.height, tile.width), np.uint8)
    with open_raster(safe_join(root, tile.cloud_file_name)) as raster:
        return raster.read(1)
