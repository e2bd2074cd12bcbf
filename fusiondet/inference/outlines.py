"""Regular outlines while buildings come in: a block of houses that share walls is set straight as a whole."""

import dataclasses
import math
from collections.abc import Sequence

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.polygons.regularize import regularize

import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


class Regularizer:
    """Holds buildings back until all that stand next to them are there, too, and gives them regular outlines.

    Memory grows with the width of a scene, not with its height: windows come row by row.
    """

    def __init__(
        self, windows: Sequence[tuple[int, int, int, int]], pixel_m: tuple[float, float], **settings
    ):
        """How long to wait, and for what.

        Args:
            windows: in the order in which they come, row by row.
            pixel_m: metres per pixel, (x, y).
            settings: tolerance_m and min_iou of `fusiondet.polygons.regularize`.

        Raises:
            InputError: a tolerance that is none.
        """
        if not 0 < settings["tolerance_m"] < math.inf:
            raise InputError(f"--regularize is {settings['tolerance_m']}, expected metres above 0.")
        self._tops = [y0 for _, y0, _, _ in windows]
        # A building that still grows starts above the next windows by no more than it is long: about an overlap.
        rows = sorted(set(self._tops))
        side = max((h for *_, h in windows), default=0)
        self._reach_px = max([0, *(a + side - b for a, b in zip(rows, rows[1:]))])
        self._scale, self._settings = np.array(pixel_m), settings
        self._margin_px = settings["tolerance_m"] / min(pixel_m)
        self._held: list[Building] = []

    def add(self, index: int, buildings_px: list[Building]) -> list[Building]:
        """Buildings, with regular outlines, that nothing that comes after window `index` can stand next to.

        Args:
            buildings_px: finished ones, in pixels of the grid.
        """
        self._held += buildings_px
        last = index + 1 == len(self._tops)
        if not self._held or last or self._tops[index + 1] == self._tops[index]:
            return []
        bottom = self._tops[index + 1] - self._reach_px - self._margin_px
        bounds = shapely.bounds([b.polygon for b in self._held]).reshape(-1, 4)
        block = self._blocks()
        lowest = np.full(block.max(initial=-1) + 1, -np.inf)
        np.maximum.at(lowest, block, bounds[:, 3])
        ready = lowest[block] < bottom
        done = [b for b, r in zip(self._held, ready, strict=True) if r]
        self._held = [b for b, r in zip(self._held, ready, strict=True) if not r]
        return self._regular(done)

    def finish(self, buildings_px: list[Building]) -> list[Building]:
        """The rest, after the last window."""
        done, self._held = self._held + buildings_px, []
        return self._regular(done)

    def _blocks(self) -> np.ndarray:
        """(N,) number of the block of neighbours that each of the held buildings is in."""
        polygons = [b.polygon for b in self._held]
        i, j = shapely.STRtree(polygons).query(polygons, predicate="dwithin", distance=self._margin_px)
        n = len(polygons)
        return connected_components(coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n)), directed=False)[
            1
        ]

    def _regular(self, buildings: list[Building]) -> list[Building]:
        metres = shapely.transform([b.polygon for b in buildings], lambda xy: xy * self._scale)
        outlines = regularize(list(metres), **self._settings)
        return with_outlines(buildings, shapely.transform(outlines, lambda xy: xy / self._scale))


def with_outlines(buildings: list[Building], polygons: np.ndarray) -> list[Building]:
    """Copies of `buildings` with other outlines."""
    return [dataclasses.replace(b, polygon=p) for b, p in zip(buildings, polygons, strict=True)]


def buildings_to_map(buildings_px: list[Building], transform: Sequence[float]) -> list[Building]:
    """`building_to_map` of many, in a fraction of the time."""
    a, b, c, d, e, f = transform
    matrix, corner = np.array([[a, d], [b, e]]), np.array([c, f])
    polygons = shapely.transform([b.polygon for b in buildings_px], lambda xy: xy @ matrix + corner)
    return with_outlines(buildings_px, polygons)
