"""Outlines as arrays for the views: vertices, the rings they make, and the triangles of the roofs."""

from dataclasses import dataclass

import numpy as np
import shapely

# About a million triangles on the screen; more detail than that is lost on it, and outlines are simplified.
MAX_VERTICES = 700_000
_TOLERANCES_M = (0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass
class Shapes:
    """All outlines of a layer.

    Attributes:
        xy: (V, 2) float32 metres; ring after ring, without the point that closes it.
        ring_size: (R,) uint32 vertices of each ring.
        ring_owner: (R,) uint32 index of the building that each ring belongs to.
        triangles: (T, 3) uint32 indices of vertices; together they cover the buildings without their courtyards.
        tolerance_m: how far outlines may be from what they were; 0: as they were.
    """

    xy: np.ndarray
    ring_size: np.ndarray
    ring_owner: np.ndarray
    triangles: np.ndarray
    tolerance_m: float = 0.0


def shapes_of(polygons: np.ndarray, max_vertices: int = MAX_VERTICES) -> Shapes:
    """Arrays of (N,) valid outlines in metres; None among them has no ring and no triangle.

    Outlines are simplified, as little as needed but by 2 m at most, where there are more than `max_vertices` vertices.
    """
    tolerance_m = 0.0
    thinner = polygons
    for step_m in _TOLERANCES_M:
        if shapely.get_num_coordinates(thinner).sum() <= max_vertices:
            break
        tolerance_m = step_m
        thinner = shapely.simplify(polygons, tolerance_m, preserve_topology=True)
    parts, part_owner = shapely.get_parts(thinner, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    xy, point_ring = shapely.get_coordinates(rings, return_index=True)
    is_last = np.append(point_ring[1:] != point_ring[:-1], True)[: len(point_ring)]
    xy, point_ring = xy[~is_last], point_ring[~is_last]
    return Shapes(
        xy.astype(np.float32).reshape(-1, 2),
        np.bincount(point_ring, minlength=len(rings)).astype(np.uint32),
        part_owner[ring_part].astype(np.uint32),
        _triangles(parts, xy, ring_part[point_ring]),
        tolerance_m,
    )


def _triangles(parts: np.ndarray, xy: np.ndarray, point_part: np.ndarray) -> np.ndarray:
    """(T, 3) indices into `xy`: triangulations add no points, so each corner is one of the part's own."""
    if not len(parts):
        return np.zeros((0, 3), dtype=np.uint32)
    found, part = shapely.get_parts(shapely.constrained_delaunay_triangles(parts), return_index=True)
    # Triangles come closed: four points each.
    corners = shapely.get_coordinates(found).reshape(-1, 4, 2)[:, :3].reshape(-1, 2)
    # One number for each different (part, x, y).
    columns = [
        np.concatenate([of_point, of_corner])
        for of_point, of_corner in (
            (point_part, np.repeat(part, 3)),
            (xy[:, 0], corners[:, 0]),
            (xy[:, 1], corners[:, 1]),
        )
    ]
    order = np.lexsort(columns)
    is_new = np.zeros(len(order), dtype=bool)
    for values in columns:
        is_new[1:] |= values[order[1:]] != values[order[:-1]]
    same = np.empty(len(order), dtype=np.int64)
    same[order] = np.cumsum(is_new)
    vertex = np.zeros(same.max() + 1, dtype=np.uint32)
    vertex[same[: len(xy)]] = np.arange(len(xy), dtype=np.uint32)
    return vertex[same[len(xy) :]].reshape(-1, 3)
