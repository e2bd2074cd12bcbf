"""Outlines with the walls of buildings: straight, at right angles where the building has them, shared with neighbours.

Four steps, on a whole layer:

    directions   every building has one direction (and the one across); neighbours that differ by less than the
                 tolerance at their corners take a common one.
    edges        the cheapest way to cut the outline into edges along, across, or, dearer, free. An edge costs, and so
                 does the square of the distance between it and the outline: that smooths wriggles and rounded corners
                 away, and keeps a step that is as deep as the tolerance. The optimum, by dynamic programming.
    walls        edges of neighbours that are closer than the tolerance are put on one line; so are fronts in a row.
    corners      where edges meet. What still overlaps is cut from one of both, what gapes is filled.

An outline that would lose too much stays as it was, and so do round ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fusiondet.buildings import clean_polygon

import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

# An edge costs this times tolerance³: as much as a wall four tolerances long that lies this deep in the outline.
EDGE_COST = 0.4
# A free one costs so many times more.
FREE_FACTOR = 8.0
# Candidates for corners are the outline's vertices that matter at this share of the tolerance.
CANDIDATE_SHARE = 0.15
# Edges span at most so many candidates: keeps long, wriggled outlines linear.
MAX_SPAN = 64
# Round is what a circle describes better than edges do, with a radius of at least so many tolerances...
ROUND_RADIUS = 3.0
# ... or whose edges are free over this share of its length.
FREE_SHARE = 0.5
# What is tried in turn where an outline is not like the given one, as shares of the tolerance.
FALLBACK_SHARES = (1.0, 0.6, 0.35)
# Walls of neighbours are parallel up to this, degrees.
PARALLEL_DEG = 15.0
# Two edges that meet at a smaller angle have no sharp corner, degrees.
FLAT_DEG = 12.0
# Corners closer than this to a neighbour's wall are on it, metres.
SNAP_M = 1e-3
# Where outlines are cut and joined, points lie on a grid as fine as this, metres.
GRID_M = 1e-4
# Less overlap than this is none, m².
NOTHING_M2 = 1e-6


def regularize(
    polygons: Sequence[BaseGeometry], tolerance_m: float, min_iou: float = 0.9
) -> list[BaseGeometry]:
    """Outlines of a layer with straight walls, right angles and shared walls.

    Args:
        polygons: Polygons and MultiPolygons, valid, of a whole layer, in metres of a map.
        tolerance_m: detail that may go: steps, wriggles and gaps between neighbours up to about this size.
        min_iou: an outline whose intersection over union with the given one falls below it stays as given.

    Returns:
        As many, in the same order, valid, each with the holes and parts it had. Outlines that stay as given may lose or
        gain a neighbour's overlap or gap, never beyond `min_iou`.
    """
    if tolerance_m <= 0 or not polygons:
        return list(polygons)
    centre = np.floor(np.add(*np.split(np.array(shapely.total_bounds(polygons)), 2)) / 2)
    raw = [_moved(p, -centre) for p in polygons]
    pairs = _neighbours(raw, tolerance_m)
    angles, block = _directions(raw, pairs, tolerance_m)
    plans = [
        _plan(outline, angle, number, tolerance_m, min_iou)
        for outline, angle, number in zip(raw, angles, block)
    ]
    _share_walls(plans, pairs, tolerance_m)
    result = [_accepted(plan, outline, min_iou) for plan, outline in zip(plans, raw)]
    _Layer(result, raw, pairs, tolerance_m, min_iou).settle()
    return [_valid(_moved(p, centre), given) for p, given in zip(result, polygons)]


def _moved(polygon: BaseGeometry, by: np.ndarray) -> BaseGeometry:
    return shapely.transform(polygon, lambda points: points + by)


def _iou(a: BaseGeometry, b: BaseGeometry) -> float:
    shared = a.intersection(b).area
    return shared / (a.area + b.area - shared)


def _neighbours(polygons: list[BaseGeometry], within_m: float) -> np.ndarray:
    """(k, 2) indices i < j of outlines that are closer than `within_m`."""
    pairs = shapely.STRtree(polygons).query(polygons, predicate="dwithin", distance=within_m).T
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    return pairs[np.lexsort(pairs.T[::-1])]


# --- directions ----------------------------------------------------------------------------------------------------


def _directions(polygons, pairs: np.ndarray, tolerance_m: float) -> tuple[np.ndarray, np.ndarray]:
    """(n,) direction of each building in radians, modulo a right angle, and the number of the block that shares it."""
    angles = np.array([_dominant_angle(p, tolerance_m) for p in polygons])
    bounds = shapely.bounds(polygons)
    reach_m = np.hypot(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1]) / 2
    turn = np.minimum(tolerance_m / 2 / reach_m, math.radians(PARALLEL_DEG) / 2)
    weights = shapely.area(polygons)
    # Blocks as trees (union-find). Each knows its mean, its weight, and which means all of its members can bear.
    root, mean, weight = np.arange(len(angles)), angles.copy(), weights.copy()
    low, high = angles - turn, angles + turn

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    difference = _quarter(angles[pairs[:, 0]] - angles[pairs[:, 1]])
    for i, j in pairs[np.argsort(np.abs(difference), kind="stable")]:
        a, b = find(i), find(j)
        if a == b:
            continue
        shift = mean[a] + _quarter(mean[b] - mean[a]) - mean[b]
        both = (weight[a] * mean[a] + weight[b] * (mean[b] + shift)) / (weight[a] + weight[b])
        lowest, highest = max(low[a], low[b] + shift), min(high[a], high[b] + shift)
        if lowest <= both <= highest:
            root[b], mean[a], weight[a], low[a], high[a] = a, both, weight[a] + weight[b], lowest, highest
    block = np.array([find(i) for i in range(len(angles))], dtype=int)
    return mean[block], block


def _quarter(angle):
    """`angle` (radians) in [-pi/4, pi/4) by quarter turns."""
    return (angle + math.pi / 4) % (math.pi / 2) - math.pi / 4


def _dominant_angle(polygon: BaseGeometry, tolerance_m: float) -> float:
    """The direction that most of the outline runs along or across."""
    steps = []
    for ring in _rings(shapely.simplify(polygon, tolerance_m / 3)):
        steps.append(np.diff(ring, axis=0))
    steps = np.concatenate(steps)
    length = np.hypot(*steps.T)
    angle = np.arctan2(steps[:, 1], steps[:, 0])
    # Four times the angle: directions a quarter turn apart are one. Long edges say more about it.
    away = _quarter(angle[:, None] - np.arange(0, 90, 2) * math.pi / 180)
    votes = (length[:, None] ** 1.5 * np.exp(-((away / math.radians(4)) ** 2))).sum(axis=0)
    peak = math.radians(2 * int(votes.argmax()))
    for _ in range(2):
        near = length**2 * np.exp(-((_quarter(angle - peak) / math.radians(6)) ** 2))
        peak += float(np.average(_quarter(angle - peak), weights=near + 1e-12))
    return peak % (math.pi / 2)


def _rings(polygon: BaseGeometry) -> list[np.ndarray]:
    """(n + 1, 2) closed rings, outer ones against the clock, holes with it; in the order of `_assembled`."""
    rings = []
    for part in getattr(polygon, "geoms", [polygon]):
        part = shapely.orient_polygons(part) if hasattr(shapely, "orient_polygons") else _oriented(part)
        rings += [np.asarray(r.coords)[:, :2] for r in (part.exterior, *part.interiors)]
    return rings


def _oriented(part: Polygon) -> Polygon:
    return shapely.geometry.polygon.orient(part)


def _assembled(like: BaseGeometry, rings: list[np.ndarray]) -> BaseGeometry | None:
    """The polygon of `rings`, which replace those of `like`; None where they cross or vanish."""
    rings = iter(rings)
    parts = []
    for part in getattr(like, "geoms", [like]):
        shell = next(rings)
        parts.append(Polygon(shell, [next(rings) for _ in part.interiors]))
    polygon = parts[0] if len(parts) == 1 else MultiPolygon(parts)
    return polygon if polygon.is_valid and polygon.area > 0 else None


# --- edges ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Edge:
    """A straight wall.

    Attributes:
        kind: 0 along the building's direction, 1 across, 2 free.
        normal, offset: its line is `normal @ p == offset`.
        start, end: where the outline enters and leaves it, put on the line.
    """

    kind: int
    normal: np.ndarray
    offset: float
    start: np.ndarray
    end: np.ndarray
    block: int
    own_line: tuple | None = None

    @property
    def length(self) -> float:
        return float(np.hypot(*(self.end - self.start)))


def _plan(polygon: BaseGeometry, angle: float, block: int, tolerance_m: float, min_iou: float) -> "_Plan":
    """The edges of a building, with a smaller tolerance where those of the wanted one are not like it."""
    for share in FALLBACK_SHARES:
        plan = _Plan(polygon, angle, block, share * tolerance_m)
        outline = plan.outline()
        if outline is not None and _iou(outline, polygon) >= min_iou:
            break
    return plan


class _Plan:
    """The edges of one building, ring by ring; None for a ring that stays as it is."""

    def __init__(self, polygon: BaseGeometry, angle: float, block: int, tolerance_m: float):
        self.polygon = polygon
        self.raw_rings = _rings(polygon)
        self.rings = [_edges(ring, angle, block, tolerance_m) for ring in self.raw_rings]
        # A ring that stays may still shed vertices that nobody sees.
        self.kept = [
            None if edges else _thinned(ring, tolerance_m) for edges, ring in zip(self.rings, self.raw_rings)
        ]

    def edges(self) -> list[_Edge]:
        return [edge for ring in self.rings if ring for edge in ring]

    def outline(self) -> BaseGeometry | None:
        """The polygon of its edges; None where they make none."""
        rings = [_corners(edges) if edges else kept for edges, kept in zip(self.rings, self.kept)]
        return None if any(r is None for r in rings) else _assembled(self.polygon, rings)

    def forget_neighbours(self) -> None:
        for edge in self.edges():
            if edge.own_line is not None:
                edge.normal, edge.offset = edge.own_line


def _thinned(ring: np.ndarray, tolerance_m: float) -> np.ndarray:
    thin = np.asarray(shapely.simplify(Polygon(ring), CANDIDATE_SHARE * tolerance_m).exterior.coords)
    return thin if len(thin) >= 4 else ring


def _edges(ring: np.ndarray, angle: float, block: int, tolerance_m: float) -> list[_Edge] | None:
    """The cheapest edges of a closed ring; None where it is round or too small for any."""
    along = np.array([math.cos(angle), math.sin(angle)])
    turn = np.array([along, [-along[1], along[0]]])
    centre = ring[:-1].mean(axis=0)
    points = (ring[:-1] - centre) @ turn.T
    # Begin at a corner for sure: the point furthest from the middle.
    points = np.roll(points, -int(np.hypot(*points.T).argmax()), axis=0)
    points = np.concatenate([points, points[:1]])
    corners = _candidates(points, CANDIDATE_SHARE * tolerance_m)
    if len(corners) < 4:
        return None
    sums = _prefix_sums(points)[corners]
    sections = _cheapest(sums, EDGE_COST * tolerance_m**3)
    lines = _lines(sums, sections)
    if _is_round(points, lines, tolerance_m) or len(lines) < 3:
        return None
    edges = []
    for (i, j, kind), normal, middle in lines:
        start, end = points[corners[i]], points[corners[j % (len(corners) - 1)]]
        start, end = (p - normal * (normal @ (p - middle)) for p in (start, end))
        normal, middle = normal @ turn, middle @ turn + centre
        edges.append(
            _Edge(
                kind, normal, float(normal @ middle), start @ turn + centre, end @ turn + centre, block
            )
        )
    return edges


def _candidates(points: np.ndarray, tolerance_m: float) -> np.ndarray:
    """Indices of the vertices of a closed ring that a simplification keeps, first and last included."""
    line = shapely.simplify(shapely.LineString(points), tolerance_m, preserve_topology=False)
    kept = shapely.get_coordinates(line)
    indices, at = [], 0
    for x, y in kept:
        while points[at, 0] != x or points[at, 1] != y:
            at += 1
        indices.append(at)
        at += 1
    return np.array(indices)


def _prefix_sums(points: np.ndarray) -> np.ndarray:
    """(n, 6) integrals of 1, x, y, xx, xy, yy along the line from its first point to each."""
    a, b = points[:-1], points[1:]
    length = np.hypot(*(b - a).T)
    first = length[:, None] * (a + b) / 2
    (ax, ay), (bx, by) = a.T, b.T
    xx = length * (ax * ax + ax * bx + bx * bx) / 3
    yy = length * (ay * ay + ay * by + by * by) / 3
    xy = length * (2 * ax * ay + 2 * bx * by + ax * by + bx * ay) / 6
    steps = np.column_stack([length, first, xx, xy, yy])
    return np.concatenate([np.zeros((1, 6)), np.cumsum(steps, axis=0)])


def _scatter(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integrals of (x - mean)², (x - mean)(y - mean), (y - mean)² from integrals of 1, x, y, xx, xy, yy."""
    length = np.maximum(sums[..., 0], 1e-12)
    x, y = sums[..., 1], sums[..., 2]
    return (
        np.maximum(sums[..., 3] - x * x / length, 0),
        sums[..., 4] - x * y / length,
        np.maximum(sums[..., 5] - y * y / length, 0),
    )


def _cheapest(sums: np.ndarray, edge_cost: float) -> list[tuple[int, int, int]]:
    """Sections (from, to, kind) between candidates whose costs add up to the least; neighbours differ in kind."""
    n = len(sums)
    xx, xy, yy = _scatter(sums[None, :] - sums[:, None])
    free = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    prices = edge_cost * np.array([1.0, 1.0, FREE_FACTOR])
    costs = np.stack([yy, xx, np.maximum(free, 0)], axis=1) + prices[None, :, None]  # (from, kind, to)
    best = np.full((n, 3), np.inf)  # cheapest way to a candidate whose last edge is of a kind
    before = np.zeros((n, 3))  # cheapest way to it that an edge of a kind may follow
    came = np.zeros((n, 3), dtype=int)
    for j in range(1, n):
        i0 = max(0, j - MAX_SPAN)
        total = before[i0:j] + costs[i0:j, :, j]
        at = total.argmin(axis=0)
        best[j], came[j] = total[at, (0, 1, 2)], i0 + at
        along, across, other = best[j]
        before[j] = min(across, other), min(along, other), best[j].min()
    sections, j, kind = [], n - 1, int(best[n - 1].argmin())
    while True:
        i = int(came[j, kind])
        sections.append((i, j, kind))
        if i == 0:
            break
        allowed = [k for k in range(3) if k == 2 or k != kind]
        j, kind = i, min(allowed, key=lambda k: best[i, k])
    sections.reverse()
    if len(sections) > 2 and sections[0][2] == sections[-1][2] != 2:
        # The start was no corner after all: one edge runs through it.
        (_, end, kind), (start, _, _) = sections[0], sections.pop()
        sections[0] = (start, end + n - 1, kind)
    return sections


def _lines(sums: np.ndarray, sections) -> list[tuple[tuple[int, int, int], np.ndarray, np.ndarray]]:
    """(section, normal, a point on it) of the best line through every section."""
    n, lines = len(sums), []
    for i, j, kind in sections:
        part = sums[j] - sums[i] if j < n else sums[-1] - sums[i] + sums[j - n + 1]
        middle = part[1:3] / max(part[0], 1e-12)
        normal = np.array([[0.0, 1.0], [1.0, 0.0]][kind]) if kind < 2 else _normal(part)
        lines.append(((i, j, kind), normal, middle))
    return lines


def _normal(part: np.ndarray) -> np.ndarray:
    xx, xy, yy = _scatter(part)
    direction = 0.5 * math.atan2(2 * xy, xx - yy)
    return np.array([-math.sin(direction), math.cos(direction)])


def _is_round(points: np.ndarray, lines, tolerance_m: float) -> bool:
    lengths = np.hypot(*np.diff(points, axis=0).T)
    total = lengths.sum()
    at = np.concatenate([[0], np.cumsum(lengths)])
    even = np.linspace(0, total, 64, endpoint=False)
    even = np.column_stack([np.interp(even, at, points[:, k]) for k in (0, 1)])
    # Circle by least squares: x² + y² = 2 a x + 2 b y + c.
    design = np.column_stack([2 * even, np.ones(len(even))])
    (a, b, c), *_ = np.linalg.lstsq(design, (even**2).sum(axis=1), rcond=None)
    radius = math.sqrt(max(c + a * a + b * b, 0))
    off = float(np.std(np.hypot(even[:, 0] - a, even[:, 1] - b) - radius))
    if radius >= ROUND_RADIUS * tolerance_m and off < 0.25 * tolerance_m and off < 0.03 * radius:
        return True
    free = [(i, j) for (i, j, kind), _, _ in lines if kind == 2]
    return len(free) >= 4 and len(free) / len(lines) > FREE_SHARE


def _corners(edges: list[_Edge]) -> np.ndarray | None:
    """(n + 1, 2) closed ring of the points where neighbouring edges meet; None where there is no area."""
    points = []
    for before, after in zip([edges[-1], *edges[:-1]], edges):
        (a, b), (c, d) = before.normal, after.normal
        cross = a * d - b * c
        if abs(cross) >= math.sin(math.radians(FLAT_DEG)):
            u, v = before.offset, after.offset
            points.append([(d * u - b * v) / cross, (a * v - c * u) / cross])
        else:
            for edge, point in ((before, before.end), (after, after.start)):
                points.append(point - edge.normal * (edge.normal @ point - edge.offset))
    return np.array([*points, points[0]]) if len(points) >= 3 else None


# --- walls ---------------------------------------------------------------------------------------------------------


def _share_walls(plans: list[_Plan], pairs: np.ndarray, tolerance_m: float) -> None:
    """Put edges of neighbours that are closer than the tolerance on one line."""
    edges = [edge for plan in plans for edge in plan.edges()]
    first = np.concatenate([[0], np.cumsum([len(plan.edges()) for plan in plans])])
    if not edges:
        return
    table = _Table(edges)
    party, fronts = [], []
    for a, b in pairs:
        i, j, is_party, apart = table.facing(slice(*first[a : a + 2]), slice(*first[b : b + 2]), tolerance_m)
        party += zip(apart[is_party], i[is_party], j[is_party])
        fronts += zip(apart[~is_party], i[~is_party], j[~is_party])
    lines = _Lines(edges, tolerance_m)
    strangers = []
    for _, i, j in sorted(party) + sorted(fronts):
        if not lines.join(i, j):
            strangers.append((i, j))
    lines.apply()
    wall = {(i, j) for _, i, j in party}
    for i, j in strangers:
        # Two buildings of different directions share a wall: the shorter one follows.
        if (i, j) in wall and not lines.same_family(i, j):
            i, j = (i, j) if edges[i].length >= edges[j].length else (j, i)
            edges[j].own_line = edges[j].own_line or (edges[j].normal, edges[j].offset)
            edges[j].normal, edges[j].offset = edges[i].normal, edges[i].offset


class _Table:
    """Edges as arrays, to compare those of two buildings at once."""

    def __init__(self, edges: list[_Edge]):
        self.start = np.array([e.start for e in edges])
        self.end = np.array([e.end for e in edges])
        self.middle = (self.start + self.end) / 2
        self.length = np.maximum(np.hypot(*(self.end - self.start).T), 1e-9)
        self.direction = (self.end - self.start) / self.length[:, None]
        self.normal = np.array([e.normal for e in edges])
        self.offset = np.array([e.offset for e in edges])

    def facing(self, a: slice, b: slice, tolerance_m: float):
        """Pairs of edges of buildings `a` and `b` that are one wall (party), or fronts in a row.

        Returns:
            i, j, whether it is a wall, and how far apart they are, metres.
        """
        dot = self.direction[a] @ self.direction[b].T
        apart = np.minimum(
            np.abs(self.middle[a] @ self.normal[b].T - self.offset[b]),
            np.abs((self.middle[b] @ self.normal[a].T - self.offset[a]).T),
        )
        t0 = (self.start[b][None] - self.start[a][:, None]) @ self.direction[a][:, :, None]
        t1 = (self.end[b][None] - self.start[a][:, None]) @ self.direction[a][:, :, None]
        low, high = np.minimum(t0, t1)[..., 0], np.maximum(t0, t1)[..., 0]
        common = np.minimum(high, self.length[a][:, None]) - np.maximum(low, 0)
        shorter = np.minimum(self.length[a][:, None], self.length[b][None])
        parallel = math.cos(math.radians(PARALLEL_DEG))
        is_party = (dot < -parallel) & (apart < tolerance_m) & (common > 0.3 * shorter)
        in_row = (dot > parallel) & (apart < tolerance_m / 2) & (np.abs(common) < tolerance_m)
        i, j = np.nonzero(is_party | in_row)
        return i + a.start, j + b.start, is_party[i, j], apart[i, j]


class _Lines:
    """Parallel edges of a block that are put on common lines, each moved by no more than the tolerance."""

    def __init__(self, edges: list[_Edge], tolerance_m: float):
        self.edges = edges
        self.root = list(range(len(edges)))
        self.offset = [e.offset for e in edges]
        self.weight = [max(e.length, 1e-9) for e in edges]
        self.low = [e.offset - tolerance_m for e in edges]
        self.high = [e.offset + tolerance_m for e in edges]

    def find(self, i: int) -> int:
        while self.root[i] != i:
            self.root[i] = self.root[self.root[i]]
            i = self.root[i]
        return i

    def same_family(self, i: int, j: int) -> bool:
        a, b = self.edges[i], self.edges[j]
        return a.kind < 2 and b.kind < 2 and a.block == b.block and abs(a.normal @ b.normal) > 0.99

    def join(self, i: int, j: int) -> bool:
        """Put both on one line, if they are of one direction and none of those on it moves too far."""
        if not self.same_family(i, j):
            return False
        # Directions of a block differ by quarter turns: of one line, normals may point to either side.
        a, b = self.find(i), self.find(j)
        if a == b:
            return True
        sign = 1.0 if self.edges[a].normal @ self.edges[b].normal > 0 else -1.0
        low, high = sorted((sign * self.low[b], sign * self.high[b]))
        weight = self.weight[a] + self.weight[b]
        offset = (self.weight[a] * self.offset[a] + self.weight[b] * sign * self.offset[b]) / weight
        low, high = max(self.low[a], low), min(self.high[a], high)
        if not low <= offset <= high:
            return False
        self.root[b], self.offset[a], self.weight[a] = a, offset, weight
        self.low[a], self.high[a] = low, high
        return True

    def apply(self) -> None:
        for i, edge in enumerate(self.edges):
            leader = self.find(i)
            edge.own_line = (edge.normal, edge.offset)
            edge.normal, edge.offset = self.edges[leader].normal, self.offset[leader]


# --- corners -------------------------------------------------------------------------------------------------------


def _accepted(plan: _Plan, raw: BaseGeometry, min_iou: float) -> BaseGeometry:
    """The outline of a plan, with shared walls if they do it no harm; the raw one if it is not like it."""
    outline = plan.outline()
    if outline is None or _iou(outline, raw) < min_iou:
        plan.forget_neighbours()
        outline = plan.outline()
    return raw if outline is None or _iou(outline, raw) < min_iou else outline


class _Layer:
    """Outlines of a layer that are made to meet, one pair of neighbours at a time; none ever falls below `min_iou`."""

    def __init__(self, outlines: list[BaseGeometry], raw: list[BaseGeometry], pairs, tolerance_m: float, min_iou):
        self.outlines, self.raw = outlines, raw
        self.straight = [outline is not given for outline, given in zip(outlines, raw)]
        self.tolerance_m, self.min_iou = tolerance_m, min_iou
        self.pairs = pairs.tolist()
        self.near: dict[int, list[int]] = {}
        for i, j in self.pairs:
            self.near.setdefault(i, []).append(j)
            self.near.setdefault(j, []).append(i)

    def settle(self) -> None:
        """Overlaps thinner than the tolerance go to one of both, and so do gaps; corners of one are corners of both."""
        for i, j in self.pairs:
            self._cut(i, j)
        for i, j in self.pairs:
            self._fill(i, j)
        # Twice: the second outline's corners go to the first one's, then the first one's walls pass through them.
        for order in (1, -1):
            for pair in self.pairs:
                onto, moved = pair[::order]
                self._replace(moved, shapely.snap(self.outlines[moved], self.outlines[onto], SNAP_M))

    def _replace(self, i: int, polygon: BaseGeometry) -> bool:
        if polygon is self.outlines[i]:
            return True
        polygon, raw = clean_polygon(polygon), self.raw[i]
        if polygon is None or polygon.geom_type != raw.geom_type or _holes(polygon) != _holes(raw):
            return False
        if _iou(polygon, raw) < self.min_iou:
            return False
        self.outlines[i] = polygon
        return True

    def _givers(self, i: int, j: int) -> list[tuple[int, int]]:
        """Who is to change, first choice first: the one that is not straight anyway, the larger one."""
        order = sorted((i, j), key=lambda k: (self.straight[k], -self.outlines[k].area, k))
        return [tuple(order), tuple(order[::-1])]

    def _cut(self, i: int, j: int) -> None:
        shared = self.outlines[i].intersection(self.outlines[j])
        if shared.area > NOTHING_M2 and 2 * shared.area / shared.length < self.tolerance_m:
            for k, other in self._givers(i, j):
                if self._replace(
                    k, shapely.difference(self.outlines[k], self.outlines[other], grid_size=GRID_M)
                ):
                    return

    def _fill(self, i: int, j: int) -> None:
        a, b, reach = self.outlines[i], self.outlines[j], self.tolerance_m / 2
        wide = shapely.buffer([a, b], reach, join_style="mitre")
        between = wide[0].intersection(wide[1])
        if between.area <= NOTHING_M2:
            return
        closed = shapely.union(*wide).buffer(-reach, join_style="mitre")
        gap = closed.intersection(between).difference(shapely.union_all([a, b]))
        if gap.area <= NOTHING_M2:
            return
        others = [self.outlines[k] for n in (i, j) for k in self.near[n] if k not in (i, j)]
        gap = gap.difference(shapely.union_all(others)) if others else gap
        # Slits between walls, not the corner that two buildings turn to each other.
        slits = [g for g in shapely.get_parts(gap) if g.geom_type == "Polygon" and g.area > NOTHING_M2]
        slits = [g for g in slits if g.length / 2 >= self.tolerance_m]
        if slits:
            for k, _ in self._givers(i, j):
                if self._replace(k, shapely.union_all([self.outlines[k], *slits], grid_size=GRID_M)):
                    return


def _holes(polygon: BaseGeometry) -> int:
    return sum(len(part.interiors) for part in getattr(polygon, "geoms", [polygon]))


def _valid(polygon: BaseGeometry, given: BaseGeometry) -> BaseGeometry:
    """Far from the origin numbers are coarser: what collapses there stays as given."""
    return polygon if polygon.is_valid and polygon.area > 0 else given
