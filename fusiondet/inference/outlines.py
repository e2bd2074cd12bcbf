"""Outlines that fit together, while buildings come in: no two of one building, and straight walls that are shared.

What becomes of an outline depends on those around it, so a block of buildings that stand together is looked at once
all of it is there.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.geometry.regularization import regularize

import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely.geometry.base import BaseGeometry

# Share of an outline that better ones may cover before it counts as one of theirs.
MAX_OVERLAP = 0.4
# Overlays of outlines that differ in their last digits may fail without a word; on a grid this fine they do not, px.
_GRID_PX = 1e-6


def check_max_overlap(max_overlap: float) -> None:
    """InputError when that is no share of an outline."""
    if not 0 < max_overlap <= 1:
        raise InputError(f"--max-overlap is {max_overlap}, expected a share above 0, up to 1 (keep all).")


class HeldBack:
    """Buildings that wait until all that stand next to them are there, too.

    Memory grows with the width of a scene, not with its height: windows come row by row.
    """

    def __init__(
        self,
        windows: Sequence[tuple[int, int, int, int]],
        margin_px: float,
        waiting: Callable[[], list[BaseGeometry]] = list,
    ):
        """For what to wait.

        Args:
            windows: in the order in which they come, row by row.
            margin_px: what counts as next to each other.
            waiting: gives the outlines, so far, of what has not come though windows have shown some of it: a building
                longer than windows overlap is finished after those that stand next to its upper end.
        """
        self._waiting = waiting
        self._tops = [y0 for _, y0, _, _ in windows]
        # A building that still grows starts above the next windows by no more than it is long: about an overlap.
        rows = sorted(set(self._tops))
        side = max((h for *_, h in windows), default=0)
        self._reach_px = max([0, *(a + side - b for a, b in zip(rows, rows[1:]))])
        self._margin_px = margin_px
        self._held: list[Building] = []

    def add(self, index: int, buildings_px: list[Building]) -> list[Building]:
        """Buildings that nothing that comes after window `index` can stand next to.

        Args:
            buildings_px: finished ones, in pixels of the grid.
        """
        self._held += buildings_px
        last = index + 1 == len(self._tops)
        if not self._held or last or self._tops[index + 1] == self._tops[index]:
            return []
        bottom = self._tops[index + 1] - self._reach_px - self._margin_px
        waiting = self._waiting()
        polygons = [*(b.polygon for b in self._held), *waiting]
        bounds = shapely.bounds(polygons).reshape(-1, 4)
        bounds[len(self._held) :, 3] = np.inf
        block = self._blocks(polygons)
        lowest = np.full(block.max(initial=-1) + 1, -np.inf)
        np.maximum.at(lowest, block, bounds[:, 3])
        ready = lowest[block[: len(self._held)]] < bottom
        done = [b for b, r in zip(self._held, ready, strict=True) if r]
        self._held = [b for b, r in zip(self._held, ready, strict=True) if not r]
        return done

    def finish(self, buildings_px: list[Building]) -> list[Building]:
        """The rest, after the last window."""
        done, self._held = self._held + buildings_px, []
        return done

    def _blocks(self, polygons: list[BaseGeometry]) -> np.ndarray:
        """(N,) number of the block of neighbours that each of `polygons` is in."""
        i, j = shapely.STRtree(polygons).query(polygons, predicate="dwithin", distance=self._margin_px)
        n = len(polygons)
        links = coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n))
        return connected_components(links, directed=False)[1]


def without_overlaps(buildings_px: list[Building], max_overlap: float = MAX_OVERLAP) -> list[Building]:
    """`buildings_px` without those that are for the most part covered by better ones, in their order.

    Buildings stand beside each other, so an outline that lies in others is another sight of the same building, or of a
    part of it. The best score goes first, the larger one of two that are equal.

    Args:
        buildings_px: all that stand together are among them.
        max_overlap: share of an outline's area that better ones may cover; 1 keeps all.
    """
    if max_overlap >= 1 or len(buildings_px) < 2:
        return buildings_px
    polygons = np.array([b.polygon for b in buildings_px], dtype=object)
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    first, second = first[first < second], second[first < second]
    shared = shapely.area(shapely.intersection(polygons[first], polygons[second], grid_size=_GRID_PX))
    area = shapely.area(polygons)
    meets: dict[int, list[int]] = {}
    for i, j in zip(first[shared > 0].tolist(), second[shared > 0].tolist()):
        meets.setdefault(i, []).append(j)
        meets.setdefault(j, []).append(i)
    bounds = shapely.bounds(polygons).tolist()
    order = sorted(meets, key=lambda i: (-(buildings_px[i].score or 0.0), -area[i], bounds[i]))
    rank, dropped = {i: n for n, i in enumerate(order)}, set()
    for i in order:
        better = [polygons[j] for j in meets[i] if rank[j] < rank[i] and j not in dropped]
        if better:
            cover = shapely.union_all(better, grid_size=_GRID_PX)
            covered = shapely.area(shapely.intersection(cover, polygons[i], grid_size=_GRID_PX))
            if covered > max_overlap * area[i]:
                dropped.add(i)
    return [b for i, b in enumerate(buildings_px) if i not in dropped]


class Regularizer:
    """Sets outlines of blocks of houses straight, as a whole where they share walls."""

    def __init__(self, pixel_m: tuple[float, float], **settings):
        """What counts as straight.

        Args:
            pixel_m: metres per pixel, (x, y).
            settings: tolerance_m and min_iou of `fusiondet.geometry.regularization`.

        Raises:
            InputError: a tolerance that is none.
        """
        if not 0 < settings["tolerance_m"] < math.inf:
            raise InputError(f"--regularize is {settings['tolerance_m']}, expected metres above 0.")
        self._scale, self._settings = np.array(pixel_m), settings
        # Outlines that are further apart have nothing to do with each other.
        self.margin_px = settings["tolerance_m"] / min(pixel_m)

    def regular(self, buildings_px: list[Building]) -> list[Building]:
        """Buildings, whole blocks of them, with regular outlines."""
        metres = shapely.transform([b.polygon for b in buildings_px], lambda xy: xy * self._scale)
        outlines = regularize(list(metres), **self._settings)
        return with_outlines(buildings_px, shapely.transform(outlines, lambda xy: xy / self._scale))


def with_outlines(buildings: list[Building], polygons: np.ndarray) -> list[Building]:
    """Copies of `buildings` with other outlines."""
    return [dataclasses.replace(b, polygon=p) for b, p in zip(buildings, polygons, strict=True)]


def buildings_to_map(buildings_px: list[Building], transform: Sequence[float]) -> list[Building]:
    """`building_to_map` of many, in a fraction of the time."""
    a, b, c, d, e, f = transform
    matrix, corner = np.array([[a, d], [b, e]]), np.array([c, f])
    polygons = shapely.transform([b.polygon for b in buildings_px], lambda xy: xy @ matrix + corner)
    return with_outlines(buildings_px, polygons)
