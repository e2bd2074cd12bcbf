"""Outlines that fit together, while buildings come in: no two of one building, and straight walls that are shared.

What becomes of an outline depends on those around it, so a block of buildings that stand together is looked at once
all of it is there.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.geometry.overlaps import MAX_OVERLAP, without_overlaps
from fusiondet.geometry.regularization import regularize
from fusiondet.geometry.seams import SeamMerger
from fusiondet.inference.pipeline import WindowResult
from fusiondet.inference.plan import ScenePlan

import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely.geometry.base import BaseGeometry


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
            raise InputError(f"`regularize_m` is {settings['tolerance_m']}, expected metres above 0.")
        self._scale, self._settings = np.array(pixel_m), settings
        # Outlines that are further apart have nothing to do with each other.
        self.margin_px = settings["tolerance_m"] / min(pixel_m)

    def regular(self, buildings_px: list[Building]) -> list[Building]:
        """Buildings, whole blocks of them, with regular outlines."""
        metres = shapely.transform([b.polygon for b in buildings_px], lambda xy: xy * self._scale)
        outlines = regularize(list(metres), **self._settings)
        return with_outlines(buildings_px, shapely.transform(outlines, lambda xy: xy / self._scale))


class OutlineFinisher:
    """Windows in, finished outlines out: merged across seams, duplicates suppressed, set straight, in the area.

    Attributes:
        covered: outlines so far that were suppressed because better ones cover them.
    """

    def __init__(self, plan: ScenePlan, regularize_m: float | None = None, max_overlap: float = MAX_OVERLAP):
        """For the arguments see `SceneOptions`."""
        windows = [window for window, _ in plan.windows]
        self._aoi_px, self._max_overlap, self.covered = plan.aoi_px, max_overlap, 0
        self._merger = SeamMerger(windows)
        self._regularizer = self._held = None
        if regularize_m is not None:
            self._regularizer = Regularizer(plan.pixel_m, tolerance_m=regularize_m)
        if self._regularizer or max_overlap < 1:
            margin_px = self._regularizer.margin_px if self._regularizer else 0.0
            self._held = HeldBack(windows, margin_px, self._merger.waiting)

    def add(self, result: WindowResult) -> list[Building]:
        """Return the buildings, in pixels of the grid, that this window, the next in order, finishes."""
        found = self._merger.add(result.index, result.buildings)
        return self._shaped(self._held.add(result.index, found) if self._held else found)

    def finish(self) -> list[Building]:
        """Return the rest, after the last window."""
        found = self._merger.finish()
        return self._shaped(self._held.finish(found) if self._held else found)

    def _shaped(self, buildings: list[Building]) -> list[Building]:
        kept = without_overlaps(buildings, self._max_overlap)
        self.covered += len(buildings) - len(kept)
        # Before those outside of the area go: walls are shared with them, too.
        regular = self._regularizer.regular(kept) if self._regularizer else kept
        if self._aoi_px is None:
            return regular
        inside = [self._aoi_px.intersects(b.polygon.representative_point()) for b in kept]
        return [b for b, i in zip(regular, inside, strict=True) if i]


def with_outlines(buildings: list[Building], polygons: np.ndarray) -> list[Building]:
    """Copies of `buildings` with other outlines."""
    return [dataclasses.replace(b, polygon=p) for b, p in zip(buildings, polygons, strict=True)]


def buildings_to_map(buildings_px: list[Building], transform: Sequence[float]) -> list[Building]:
    """`building_to_map` of many, in a fraction of the time."""
    a, b, c, d, e, f = transform
    matrix, corner = np.array([[a, d], [b, e]]), np.array([c, f])
    polygons = shapely.transform([b.polygon for b in buildings_px], lambda xy: xy @ matrix + corner)
    return with_outlines(buildings_px, polygons)
