"""Parts of a building that are rows of their own, or outlines inside its outline -> one building."""

import dataclasses
from collections.abc import Sequence

from fusiondet.buildings import Building, clean_polygon

import numpy as np
import shapely

# What to do with outlines that lie inside another one: all are buildings; they are left out; they are left out, and
# the building around them gets their heights.
PARTS_INSIDE = ("keep", "drop", "heights")


def join_buildings(parts: Sequence[Building]) -> Building:
    """The parts of one building as one: the union of their outlines, and their heights as `combine_parts` does it."""
    if len(parts) == 1:
        return parts[0]
    polygon = clean_polygon(shapely.union_all([part.polygon for part in parts]))
    stat = next((part.height_stat for part in parts if part.height_m is not None), None)
    height_m = combine_parts([part.height_m for part in parts], [part.polygon.area for part in parts], stat)
    # All else, also why the height is unknown, is that of the largest part whose height is known, or is not.
    alike = [part for part in parts if (part.height_m is None) == (height_m is None)]
    largest = max(alike, key=lambda part: part.polygon.area)
    return dataclasses.replace(largest, polygon=polygon, height_m=height_m)


def combine_parts(values: Sequence[float | None], areas: Sequence[float], stat: str | None) -> float | None:
    """One height, or elevation, for the parts of a building, of which some may be unknown.

    Args:
        values: metres; None where unknown.
        areas: of the parts' outlines.
        stat: what the values are of a part's roof. The highest of "max" and the lowest of "min" are the building's; of
            all others it is their mean, weighted by area.

    Returns:
        None where the larger share of the area is unknown.
    """
    known = [(value, area) for value, area in zip(values, areas, strict=True) if value is not None]
    if not known or 2 * sum(area for _, area in known) < sum(areas):
        return None
    values, areas = zip(*known, strict=True)
    if stat in ("max", "min"):
        return float(max(values) if stat == "max" else min(values))
    return float(np.average(values, weights=areas)) if sum(areas) else None


def without_parts(buildings: Sequence[Building], inside: np.ndarray, heights: bool) -> list[Building]:
    """The buildings that lie in no other one.

    Args:
        inside: (N,) of `fusiondet.geometry.overlaps.enclosing`.
        heights: give them the heights of what lies inside, combined as `combine_parts` does it; a building has its own
            height where no part lies, and where those of its parts are unknown.
    """
    kept = np.flatnonzero(inside < 0)
    if not heights:
        return [buildings[i] for i in kept]
    area = np.array([b.polygon.area for b in buildings])
    own_area, values = area.copy(), [b.height_m for b in buildings]
    parts: dict[int, list[int]] = {}
    # From the outermost on, so that what is around a part is settled before it.
    for i in np.lexsort((np.arange(len(area)), -area)).tolist():
        root, parent = i, int(inside[i])
        if parent >= 0:
            own_area[parent] -= area[i]
            values[i] = values[parent] if values[i] is None else values[i]
            while inside[root] >= 0:
                root = int(inside[root])
        parts.setdefault(root, []).append(i)
    own_area = np.maximum(own_area, 0.0)
    return [
        _with_heights([buildings[i] for i in parts[k]], own_area[parts[k]], [values[i] for i in parts[k]])
        for k in kept
    ]


def _with_heights(parts: list[Building], areas: np.ndarray, values: list[float | None]) -> Building:
    """The first of `parts`, the whole, with the heights of all of them."""
    whole = parts[0]
    known = next((part for part in parts if part.height_m is not None), None)
    if len(parts) == 1 or known is None:
        return whole
    # Where parts cover all of the whole, what is said of it as a whole does not count, not even as the highest.
    seen = areas > 1e-9 * whole.polygon.area
    stat = known.height_stat
    height_m = combine_parts([v for v, s in zip(values, seen, strict=True) if s], areas[seen], stat)
    if height_m is None:
        return whole
    facts = {name: getattr(known, name) for name in ("height_source", "height_stat", "height_datum")}
    return dataclasses.replace(whole, height_m=height_m, **facts)
