"""Spatial splits: whole blocks of ground go to one split, and no ground is in two of them."""

import math

from fusiondet.errors import InputError
from fusiondet.io.rasters import PixelWindow

import numpy as np
import shapely

# A block is this many tiles wide if that leaves enough blocks to choose from, else less.
BLOCK_TILES = 4
_MIN_BLOCKS_PER_SPLIT = 3
# Shared ground that is rounding, as a share of a tile.
_ROUNDING = 1e-9


def parse_split(words: list[str] | None) -> dict[str, float]:
    """["train=80", "val=20"] -> shares that add up to 1, in the order given; {"train": 1.0} for none.

    Raises:
        InputError: not name=number, a number that is not positive, a name twice or not fit for a file name.
    """
    shares: dict[str, float] = {}
    for word in words or ["train=1"]:
        name, _, number = word.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not name.isidentifier() or name in shares or not 0 < share < float("inf"):
            raise InputError(
                f"`split={word!r}`: expected NAME=SHARE, positive, e.g. train=80 val=10 test=10."
            )
        shares[name] = share
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def assign_blocks(
    grounds: np.ndarray, shares: dict[str, float], tile_side: float, block_side: float | None, seed: int
) -> np.ndarray:
    """(N,) index of each tile's split.

    Blocks are squares on the ground; a tile belongs to the block of its centre. Blocks are drawn at random, and each
    goes to the split that lacks most of its share. Tiles of different blocks may still share ground: see `conflicts`.

    Args:
        grounds: (N,) outlines of the tiles on the ground, all in one CRS.
        shares: split -> share.
        tile_side: side of a tile in that CRS's units. block_side: of a block; None: BLOCK_TILES tiles, or as few fewer
            as leave three blocks per split.
    """
    wanted = np.array(list(shares.values()))
    blocks = _blocks(grounds, tile_side, block_side, len(shares) * _MIN_BLOCKS_PER_SPLIT)
    sizes = np.bincount(blocks)
    lacking = wanted * len(grounds)
    owner = np.empty(len(sizes), int)
    for block in np.random.default_rng(seed).permutation(len(sizes)):
        owner[block] = np.argmax(lacking / wanted)
        lacking[owner[block]] -= sizes[block]
    return owner[blocks]


def conflicts(grounds: np.ndarray, split: np.ndarray) -> dict[int, list[int]]:
    """Tile -> the tiles of later splits that it shares ground with, and has to give way to.

    The split that is named first (train) gives way, so that the evaluation splits stay whole. -1 in `split`: no split.
    """
    found: dict[int, list[int]] = {}
    for a, b, _ in _shared(grounds, split):
        first, later = (a, b) if split[a] < split[b] else (b, a)
        found.setdefault(first, []).append(later)
    return found


def leaked_area(grounds: np.ndarray, split: np.ndarray) -> float:
    """Ground that tiles of two different splits share, in the CRS's square units."""
    return float(sum(area for _, _, area in _shared(grounds, split)))


def clear_of(window: PixelWindow, others: list[shapely.Polygon], min_side_px: int) -> PixelWindow | None:
    """The largest window left of `window` by cutting off sides until it shares no ground with `others`.

    Args:
        window: (x0, y0, width, height) in pixels of an image. others: outlines in pixels of that image.
        min_side_px: None is returned when it would be narrower.
    """
    left, top = window[:2]
    right, bottom = left + window[2], top + window[3]
    for other in others:
        shared = other.intersection(shapely.box(left, top, right, bottom))
        if shared.area < 1e-3:
            continue
        a, b, c, d = shared.bounds
        a, b, c, d = math.floor(a + 1e-3), math.floor(b + 1e-3), math.ceil(c - 1e-3), math.ceil(d - 1e-3)
        choices = [
            (c, top, right, bottom),
            (left, top, a, bottom),
            (left, d, right, bottom),
            (left, top, right, b),
        ]
        left, top, right, bottom = max(choices, key=lambda r: max(0, r[2] - r[0]) * max(0, r[3] - r[1]))
        if right - left < min_side_px or bottom - top < min_side_px:
            return None
    return left, top, right - left, bottom - top


def _blocks(grounds, tile_side, block_side, wanted: int) -> np.ndarray:
    centres = shapely.get_coordinates(shapely.centroid(grounds))
    origin = shapely.total_bounds(grounds)[:2]
    for side in [block_side] if block_side else [n * tile_side for n in range(BLOCK_TILES, 0, -1)]:
        _, blocks = np.unique(np.floor((centres - origin) / side), axis=0, return_inverse=True)
        blocks = blocks.ravel()
        if blocks.max() + 1 >= wanted:
            break
    return blocks


def _shared(grounds, split):
    """(a, b, area), a < b, of tiles of different splits that share more ground than rounding makes."""
    left, right = shapely.STRtree(grounds).query(grounds, predicate="intersects")
    wanted = (left < right) & (split[left] != split[right]) & (split[left] >= 0) & (split[right] >= 0)
    left, right = left[wanted], right[wanted]
    area = shapely.area(shapely.intersection(grounds[left], grounds[right]))
    large = area > _ROUNDING * shapely.area(grounds[left])
    return list(zip(left[large].tolist(), right[large].tolist(), area[large].tolist(), strict=True))
