"""Parts of a building that are rows of their own -> one building."""

import dataclasses
from collections.abc import Sequence

from fusiondet.buildings import Building, clean_polygon

import numpy as np
import shapely


def join_buildings(parts: Sequence[Building]) -> Building:
    """The parts of one building as one: the union of their outlines, and their heights weighted by area.

    Of heights that are the highest or the lowest of a roof ("max", "min"), the highest or lowest stays. Where the
    heights of the larger share of the area are unknown, so is the building's.
    """
    if len(parts) == 1:
        return parts[0]
    polygon = clean_polygon(shapely.union_all([part.polygon for part in parts]))
    known = [part for part in parts if part.height_m is not None]
    area, known_area = (sum(p.polygon.area for p in group) for group in (parts, known))
    if known_area * 2 < area:
        unknown = max((p for p in parts if p.height_m is None), key=lambda p: p.polygon.area)
        return dataclasses.replace(unknown, polygon=polygon)
    heights, weights = [p.height_m for p in known], [p.polygon.area for p in known]
    height_m = combine_parts(heights, weights, known[0].height_stat)
    return dataclasses.replace(known[0], polygon=polygon, height_m=height_m)


def combine_parts(values: Sequence[float], weights: Sequence[float], stat: str | None) -> float:
    """One number for several parts of a roof: the highest of "max", the lowest of "min", else the weighted mean."""
    if stat in ("max", "min"):
        return float(max(values) if stat == "max" else min(values))
    return float(np.average(values, weights=weights))
