"""Blocks (LoD1): an outline with holes drawn up between two heights, and what makes a solid one.

A solid is a list of vertices and its faces: each a list of rings of vertex numbers, not closed, the outer ring first,
then holes; seen from outside the outer ring runs counter-clockwise, holes clockwise.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from shapely.geometry.polygon import orient

GROUND, ROOF, WALL = range(3)
# How often an outline is cut before a hole that still touches something is filled.
_MOST_CUTS = 16


@dataclass
class Solid:
    """`vertices`: (N, 3) numbers, each place once; `faces`: see the module; `kinds`: GROUND, ROOF or WALL of each."""

    vertices: list[tuple]
    faces: list[list[list[int]]]
    kinds: list[int]


def extrude(polygon: shapely.Polygon, low: float, high: float) -> Solid:
    """The block over `polygon` from z = `low` to `high` > `low`, in the outline's own unit and numbers.

    Args:
        polygon: valid, its rings apart from each other; see `apart`.
    """
    polygon = orient(polygon)
    vertices, floor, ceiling, walls = [], [], [], []
    for ring in (polygon.exterior, *polygon.interiors):
        corners = ring.coords[:-1]
        n, start = len(corners), len(vertices)
        vertices += [(x, y, low) for x, y in corners] + [(x, y, high) for x, y in corners]
        below, above = list(range(start, start + n)), list(range(start + n, start + 2 * n))
        floor.append(below[::-1])
        ceiling.append(above)
        # The interior lies to the left of every ring, so that a wall along it looks to the right, outwards.
        walls += [[[below[i - 1], below[i], above[i], above[i - 1]]] for i in range(n)]
    return Solid(vertices, [floor, ceiling, *walls], [GROUND, ROOF] + [WALL] * len(walls))


def apart(polygon: shapely.Polygon, grid: float) -> list[shapely.Polygon]:
    """Polygons that make up `polygon` and whose rings touch nowhere.

    Where a courtyard touches the outer wall, or another courtyard, in one point, the wall's edge there would belong to
    four faces, and a solid has two at every edge. The outline is cut through the middle of such a courtyard.

    Args:
        grid: coordinates are multiples of it, and stay so.
    """
    todo, done = [(polygon, 0)], []
    while todo:
        part, cuts = todo.pop()
        holes = list(part.interiors)
        touching = next((h for i, h in enumerate(holes) if _touches(h, [part.exterior, *holes[:i]])), None)
        if touching is None:
            done.append(part)
        elif cuts == _MOST_CUTS:  # a courtyard as narrow as the grid
            todo.append((shapely.Polygon(part.exterior, [h for h in holes if h is not touching]), cuts))
        else:
            todo += [(half, cuts + 1) for half in _halves(part, touching, grid)]
    return done


def _touches(ring, others) -> bool:
    return any(ring.intersects(other) for other in others)


def _halves(polygon, hole, grid: float) -> list[shapely.Polygon]:
    x0, y0, x1, y1 = polygon.bounds
    left, bottom, right, top = hole.bounds
    # Across the hole's longer side, on the grid, so that both halves get the same corners.
    if right - left > top - bottom:
        middle = round((left + right) / 2 / grid) * grid
        boxes = shapely.box(x0 - 1, y0 - 1, middle, y1 + 1), shapely.box(middle, y0 - 1, x1 + 1, y1 + 1)
    else:
        middle = round((bottom + top) / 2 / grid) * grid
        boxes = shapely.box(x0 - 1, y0 - 1, x1 + 1, middle), shapely.box(x0 - 1, middle, x1 + 1, y1 + 1)
    halves = [shapely.intersection(polygon, box, grid_size=grid) for box in boxes]
    return [p for half in halves for p in shapely.get_parts(half) if p.geom_type == "Polygon" and p.area > 0]


def check_solid(vertices, faces: Sequence, tolerance: float = 1e-6) -> list[str]:
    """What keeps this from being a solid, as sentences; [] when it is one.

    Looked for: places that occur twice, rings with fewer than three corners, edges that are not shared by exactly two
    faces in opposite directions, faces that are not planar, that cross themselves or whose holes run the wrong way,
    several pieces, and faces that look inwards.

    Args:
        vertices: (N, 3). faces: rings of vertex numbers, see the module.
        tolerance: how far a corner may be from its face's plane, in the unit of `vertices`.
    """
    points = np.asarray(vertices, dtype=float).reshape(-1, 3)
    points = points - points.min(axis=0, initial=np.inf) if len(points) else points
    short = [ring for rings in faces for ring in rings if len(set(ring)) < 3 or len(set(ring)) < len(ring)]
    if not faces or short:
        return [f"{len(short)} rings without three different corners" if faces else "no face"]
    problems = []
    used = sorted({i for rings in faces for ring in rings for i in ring})
    if len(np.unique(points[used], axis=0)) < len(used):
        problems.append(
            f"{len(used) - len(np.unique(points[used], axis=0))} vertices at the place of another"
        )
    edges = Counter(edge for rings in faces for ring in rings for edge in zip(ring, ring[1:] + ring[:1]))
    wrong = sum(count != 1 or edges[b, a] != 1 for (a, b), count in list(edges.items()))
    if wrong:
        problems.append(f"{wrong} edges that are not shared by two faces in opposite directions")
    for number, rings in enumerate(faces):
        problems += [f"face {number} {problem}" for problem in _face_problems(points, rings, tolerance)]
    if (pieces := _pieces(faces)) > 1:
        problems.append(f"{pieces} pieces that do not hang together")
    if not problems and solid_volume(points, faces) <= 0:
        problems.append("its faces look inwards")
    return problems


def solid_volume(vertices, faces: Sequence) -> float:
    """Volume in the cubed unit of `vertices`; negative where the faces of a closed solid look inwards."""
    points = np.asarray(vertices, dtype=float)
    points = points - points.min(axis=0)  # far from the origin products lose their last digits
    return sum(float(points[rings[0][0]] @ _area_vector(points, rings)) for rings in faces) / 3


def _area_vector(points: np.ndarray, rings) -> np.ndarray:
    """(3,) normal of a face, as long as its area; holes count against the outer ring by their direction."""
    total = np.zeros(3)
    for ring in rings:
        corners = points[ring] - points[ring[0]]
        total += np.cross(corners, np.roll(corners, -1, axis=0)).sum(axis=0) / 2
    return total


def _face_problems(points: np.ndarray, rings, tolerance: float) -> list[str]:
    vector = _area_vector(points, rings)
    area = np.linalg.norm(vector)
    if area == 0:
        return ["has no area"]
    normal, corners = vector / area, points[[i for ring in rings for i in ring]]
    if np.abs((corners - corners[0]) @ normal).max() > tolerance:
        return ["is not planar"]
    problems = []
    flat = np.delete(points, np.abs(normal).argmax(), axis=1)
    if not shapely.Polygon(flat[rings[0]], [flat[ring] for ring in rings[1:]]).is_valid:
        problems.append("crosses itself, or its holes do not lie inside")
    signs = [_area_vector(points, [ring]) @ normal > 0 for ring in rings]
    if signs != [True] + [False] * (len(rings) - 1):
        problems.append("has a hole that runs the same way as its outer ring")
    return problems


def _pieces(faces: Sequence) -> int:
    above: dict[int, int] = {}

    def top(i: int) -> int:
        while above.setdefault(i, i) != i:
            above[i] = i = above[above[i]]
        return i

    for rings in faces:
        first = top(rings[0][0])
        for ring in rings:
            for i in ring:
                above[top(i)] = first
    return len({top(i) for i in list(above)})
