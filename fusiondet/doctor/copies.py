"""The same picture in two splits, whatever its file name, format and georeference say."""

from fusiondet.doctor.findings import MAX_CASES, Case, Finding, counted
from fusiondet.doctor.split_source import Split
from fusiondet.errors import InputError
from fusiondet.io.tile_rasters import read_tile

import cv2
import numpy as np

# Side of the middle of each tile that is compared, and of the blur that is taken off, so that only detail counts.
_WINDOW_PX = 48
_BLUR_PX = 9
# Two pictures of different ground have detail that correlates by less than 0.1; a copy saved as JPEG by more than
# 0.9.
_SAME = 0.9
# Windows with less detail than this (in the band's own spread) are clouds, water or border.
_MIN_DETAIL = 1e-3
MAX_TILES = 4000


def check_copies(splits: list[Split], max_tiles: int = MAX_TILES) -> Finding:
    """Compare the middles of all tiles of different splits; of more than `max_tiles`, of evenly spread ones."""
    name = "copies of tiles"
    if len(splits) < 2:
        return Finding(name, "n/a", "There is one split only.")
    tiles = [(split, tile) for split in splits for tile in split.dataset.tiles]
    step = max(1, -(-len(tiles) // max_tiles))
    prints, kept = [], []
    for split, tile in tiles[::step]:
        detail = _detail(split, tile)
        if detail is not None:
            prints.append(detail)
            kept.append((split.name, tile))
    numbers = {"compared": len(kept), "tiles": len(tiles)}
    if len({split for split, _ in kept}) < 2:
        return Finding(name, "n/a", "No two splits have tiles with detail to compare.", "", numbers)
    pairs = _same(np.array(prints), [split for split, _ in kept])
    numbers["pairs"] = len(pairs)
    if not pairs:
        return Finding(name, "ok", f"None among {counted(len(kept), 'tile')} compared.", "", numbers)
    cases = tuple(
        Case(kept[a][0], kept[a][1].file_name, f"also in {kept[b][0]}: {kept[b][1].file_name}")
        for a, b in pairs[:MAX_CASES]
    )
    detail = f"{counted(len(pairs), 'pair')} of tiles in different splits show the same picture."
    remedy = "What is learned is also what is scored: remove the copies from all splits but one."
    return Finding(name, "FAIL", detail, remedy, numbers, cases)


def _detail(split: Split, tile) -> np.ndarray | None:
    """(n,) float32 of unit length: fine detail in the middle of the first band; None where there is none to compare."""
    width, height = min(_WINDOW_PX, tile.width), min(_WINDOW_PX, tile.height)
    window = ((tile.width - width) // 2, (tile.height - height) // 2, width, height)
    bands = split.dataset.bands
    bands = bands.select(bands.optical[:1], ()) if bands.optical else bands.select((), bands.sar[:1])
    try:
        band = read_tile(split.dataset, tile, bands, window)[0]
    except InputError:
        return None
    known = np.isfinite(band)
    if known.mean() < 0.5:
        return None
    band = np.where(known, band, np.median(band[known])).astype(np.float32)
    detail = band - cv2.blur(band, (_BLUR_PX, _BLUR_PX))
    if detail.std() <= _MIN_DETAIL * max(float(np.abs(band).max()), 1e-9):
        return None
    full = np.zeros((_WINDOW_PX, _WINDOW_PX), np.float32)
    full[:height, :width] = detail
    return (full / np.linalg.norm(full)).ravel()


def _same(prints: np.ndarray, splits: list[str]) -> list[tuple[int, int]]:
    """(a, b), a < b, of tiles of different splits with the same detail."""
    _, number = np.unique(splits, return_inverse=True)
    found = []
    for start in range(0, len(prints), 512):  # a block at a time: the table of all pairs may not fit
        alike = prints[start : start + 512] @ prints.T > _SAME
        a, b = np.nonzero(alike)
        a += start
        wanted = (a < b) & (number[a] != number[b])
        found += zip(a[wanted].tolist(), b[wanted].tolist(), strict=True)
    return found
