"""Outlines that show one building twice: of two that overlap for the most part, the better one stays."""

from collections.abc import Sequence

from fusiondet.buildings import Building
from fusiondet.errors import InputError

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

# Share of an outline that better ones may cover before it counts as one of theirs.
MAX_OVERLAP = 0.4
# Share of an outline that lies in a larger one before it counts as inside: parts are drawn a little over the edge.
INSIDE_SHARE = 0.9
# Overlays of outlines that differ in their last digits may fail without a word; on a grid this fine they do not, px.
_GRID_PX = 1e-6


def check_max_overlap(max_overlap: float) -> None:
    """Raise InputError for a number that is not a share of an outline."""
    if not 0 < max_overlap <= 1:
        raise InputError(f"`max_overlap` is {max_overlap}, expected a share above 0, up to 1 (keep all).")


def without_overlaps(buildings_px: list[Building], max_overlap: float = MAX_OVERLAP) -> list[Building]:
    """Return `buildings_px` without those that are for the most part covered by better ones, in their order.

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


def enclosing(polygons: Sequence[BaseGeometry]) -> np.ndarray:
    """Return for each outline which other one it lies inside, the smallest of several; -1 for none.

    Inside is an outline of which `INSIDE_SHARE` lies in a larger one, or in an equally large one that comes before it.
    One that stands in the courtyard of another is beside it. No two are inside of each other.

    Returns:
        (N,) int.
    """
    polygons = np.array(polygons, dtype=object)
    found = np.full(len(polygons), -1)
    if len(polygons) < 2:
        return found
    inner, outer = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    area, bounds = shapely.area(polygons), shapely.bounds(polygons)
    larger = (area[outer] > area[inner]) | ((area[outer] == area[inner]) & (outer < inner))
    inner, outer = inner[larger], outer[larger]
    # What two outlines share lies in what their frames share: neighbours along a wall need no overlay.
    low = np.maximum(bounds[inner, :2], bounds[outer, :2])
    high = np.minimum(bounds[inner, 2:], bounds[outer, 2:])
    near = (high > low).all(axis=1) & (np.prod(high - low, axis=1) >= INSIDE_SHARE * area[inner])
    inner, outer = inner[near], outer[near]

    shapely.prepare(polygons[outer])
    inside = shapely.covers(polygons[outer], polygons[inner])
    rest = np.flatnonzero(~inside)
    shared = shapely.area(shapely.intersection(polygons[inner[rest]], polygons[outer[rest]]))
    inside[rest] = shared >= INSIDE_SHARE * area[inner[rest]]
    inner, outer = inner[inside], outer[inside]
    # The smallest last, and of equal ones the latest: it is what stays.
    order = np.lexsort((outer, -area[outer]))
    found[inner[order]] = outer[order]
    return found
