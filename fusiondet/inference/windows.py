"""Which windows a scene is predicted in, and how far they overlap."""

import math
from collections.abc import Iterator

from fusiondet.errors import InputError

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

# A smaller window is about a cell of the coarsest feature maps, and shows no building.
SMALLEST_WINDOW_PX = 16
# Of 1024 px with little overlap, so many cover a country; a scene that has more was given a slip of the keyboard.
MAX_WINDOWS = 1_000_000


def check_windows(window_px: int, overlap_px: int) -> None:
    """InputError when windows of `window_px` that overlap by `overlap_px` do not cover a scene."""
    if not 0 <= overlap_px < window_px:
        raise InputError(
            f"`overlap_px` is {overlap_px}, `window_px` is {window_px}: expected 0 <= `overlap_px` < `window_px`."
        )


def scene_windows(width: int, height: int, side: int, overlap: int) -> Iterator[tuple[tuple, tuple]]:
    """Windows (x0, y0, width, height) that cover width x height px to the last row and column, each with its core.

    The cores (x0, y0, x1, y1) tile the plane: neighbours meet in the middle of their overlap.

    Raises:
        InputError: more than MAX_WINDOWS.
    """
    count = _count(width, side, overlap) * _count(height, side, overlap)
    if count > MAX_WINDOWS:
        raise InputError(
            f"`window_px` is {side}, `overlap_px` is {overlap}: {width} x {height} px would take {count} windows, more "
            f"than {MAX_WINDOWS}. Pass a larger `window_px`, or a smaller `overlap_px`."
        )
    columns, rows = _intervals(width, side, overlap), _intervals(height, side, overlap)
    for y0, y1, core_y0, core_y1 in rows:
        for x0, x1, core_x0, core_x1 in columns:
            yield (x0, y0, x1 - x0, y1 - y0), (core_x0, core_y0, core_x1, core_y1)


def _count(length: int, side: int, overlap: int) -> int:
    return 1 if length <= side else math.ceil((length - overlap) / (side - overlap))


def _intervals(length: int, side: int, overlap: int) -> list[tuple[int, int, float, float]]:
    if length <= side:
        return [(0, length, -math.inf, math.inf)]
    count = _count(length, side, overlap)
    starts = [round(i * (length - side) / (count - 1)) for i in range(count)]
    cuts = [(a + side + b) / 2 for a, b in zip(starts, starts[1:])]
    return [(s, s + side, lo, hi) for s, lo, hi in zip(starts, [-math.inf, *cuts], [*cuts, math.inf])]


def windows_near(windows: list[tuple[tuple, tuple]], area_px: BaseGeometry, margin_px: float) -> list[int]:
    """Numbers of the `windows` of `scene_windows` that come within `margin_px` of an area in the scene's pixels."""
    corners = np.array([window for window, _ in windows], dtype=float)
    boxes = shapely.box(*corners[:, :2].T, *(corners[:, :2] + corners[:, 2:]).T)
    near = area_px.buffer(margin_px)
    shapely.prepare(near)
    return np.flatnonzero(shapely.intersects(near, boxes)).tolist()
