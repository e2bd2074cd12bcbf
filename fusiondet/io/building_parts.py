"""Parts of a building that are rows of their own -> one building."""

import dataclasses
from collections.abc import Sequence

from fusiondet.buildings import Building, clean_polygon

import numpy as np
import shapely


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
