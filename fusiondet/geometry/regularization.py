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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fusiondet.buildings import clean_polygon

import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely.errors import GEOSException
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

# An edge costs this times tolerance³: as much as a wall four tolerances long that lies this deep in the outline.
EDGE_COST = 0.4
# Of longer walls, the mean square counts as that of so many tolerances: else wriggles of long walls would be steps.
LONGEST = 16.0
# A free one costs so many times more.
FREE_FACTOR = 4.5
# Candidates for corners are the outline's vertices that matter at this share of the tolerance.
CANDIDATE_SHARE = 0.15
# The direction comes from edges between the vertices that matter at this share.
DIRECTION_SHARE = 0.85
# Edges span at most so many candidates: keeps long, wriggled outlines linear.
MAX_SPAN = 64
# Round is an outline of at least so large a radius, in tolerances ...
ROUND_RADIUS = 3.0
# ... whose distance from the middle varies by less than this, relative (a square's varies by 0.11) ...
ROUND_SPREAD = 0.06
# ... or one of whose edges at least so many, and more than this share, are free.
BENT_EDGES = 6
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
# A gap is filled if less than this share of its outline is open.
OPEN_SHARE = 0.3
# An outline that overlaps more others than this by more than a sliver has no walls in common with anything.
CROWD = 6
# So many others are looked at first to find that out.
SAMPLE = 16
# Outlines whose neighbours are looked for together.
CHUNK = 2000
# About so many buildings are looked at together.
BATCH = 500
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
    extent = np.array(shapely.total_bounds(polygons))
    if np.isnan(extent).any():
        return list(polygons)
    centre = np.floor(np.add(*np.split(extent, 2)) / 2)
    moved = [_moved(p, -centre) for p in polygons]
    # Empty ones, and those too small to survive the move, have no walls.
    usable = np.nonzero(shapely.is_valid(moved) & (shapely.area(moved) > 0))[0]
    raw = [moved[i] for i in usable]
    result = list(polygons)
    for members, pairs in _batches(len(raw), _neighbours(raw, tolerance_m)):
        found = _regularized([raw[i] for i in members], pairs, tolerance_m, min_iou)
        for k, outline in zip(members, found):
            if outline is not raw[k]:
                result[usable[k]] = _valid(_moved(outline, centre), polygons[usable[k]])
    return result


def _regularized(
    raw: list[BaseGeometry], pairs: np.ndarray, tolerance_m: float, min_iou: float
) -> list[BaseGeometry]:
    angles, block = _directions(raw, pairs, tolerance_m)
    plans = [
        _plan(outline, angle, number, tolerance_m, min_iou)
        for outline, angle, number in zip(raw, angles, block)
    ]
    _share_walls(plans, pairs, tolerance_m)
    result = [_accepted(plan, outline, min_iou) for plan, outline in zip(plans, raw)]
    _Layer(result, raw, pairs, tolerance_m, min_iou).settle()
    return result


def _batches(count: int, pairs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Buildings together with all that they are neighbours of, over any number of others: members, pairs of these.

    What is not connected does not matter to each other, and a layer at once would fill memory with its edges.
    """
    links = coo_array((np.ones(len(pairs)), pairs.T), shape=(count, count))
    _, label = connected_components(links, directed=False)
    by_label = np.argsort(label, kind="stable")
    sizes = np.bincount(label)
    batch_of_label = np.cumsum(sizes) // BATCH
    ends = np.cumsum(np.bincount(batch_of_label, weights=sizes).astype(int))
    pairs_batch = batch_of_label[label[pairs[:, 0]]] if len(pairs) else np.zeros(0, int)
    by_batch = np.argsort(pairs_batch, kind="stable")
    pair_ends = np.searchsorted(pairs_batch[by_batch], np.arange(len(ends)), side="right")
    place = np.empty(count, dtype=int)
    for start, end, first, last in zip([0, *ends[:-1]], ends, [0, *pair_ends[:-1]], pair_ends):
        members = np.sort(by_label[start:end])
        if len(members):
            place[members] = np.arange(len(members))
            yield members, place[pairs[by_batch[first:last]]]


def _moved(polygon: BaseGeometry, by: np.ndarray) -> BaseGeometry:
    return shapely.transform(polygon, lambda points: points + by)


def _iou(a: BaseGeometry, b: BaseGeometry) -> float:
    shared = a.intersection(b).area
    return shared / (a.area + b.area - shared)


def _neighbours(polygons: list[BaseGeometry], tolerance_m: float) -> np.ndarray:
    """(k, 2) indices i < j of outlines that are closer than the tolerance and may have walls in common.

    Buildings of a map do not lie on each other. Of a heap of guesses, every pair would be cut, filled and stitched,
    each time against all that either of both touches. So what lies on more than `CROWD` others has no neighbours.
    """
    outlines = np.array(polygons, dtype=object)
    tree = shapely.STRtree(outlines)
    margin = tolerance_m * np.array([-1, -1, 1, 1])
    boxes = shapely.box(*(shapely.bounds(outlines).reshape(-1, 4) + margin).T)

    # In chunks, as the boxes of a heap are each near all others.
    chunks = [slice(start, start + CHUNK) for start in range(0, len(boxes), CHUNK)]
    crowded = np.zeros(len(outlines), dtype=bool)
    for chunk in chunks:
        i, j = tree.query(boxes[chunk])
        others = i + chunk.start != j
        crowded[chunk] = _crowded(outlines[chunk], i[others], outlines, j[others], tolerance_m)
    pairs = [np.zeros((0, 2), dtype=int)]
    for chunk in chunks:
        i, j = tree.query(boxes[chunk])
        i = i + chunk.start
        wanted = (i < j) & ~crowded[i] & ~crowded[j]
        i, j = i[wanted], j[wanted]
        pairs.append(np.column_stack([i, j])[shapely.dwithin(outlines[i], outlines[j], tolerance_m)])
    pairs = np.concatenate(pairs)
    return pairs[np.lexsort(pairs.T[::-1])]


def _crowded(some: np.ndarray, i: np.ndarray, outlines: np.ndarray, j: np.ndarray, tolerance_m) -> np.ndarray:
    """(n,) which of `some` lie on more than `CROWD` of `outlines`; i, j: what is near what, sorted by `i`."""
    count = len(some)
    degree, lies_on = np.bincount(i, minlength=count), np.zeros(count, dtype=int)
    place = np.arange(len(i)) - (np.cumsum(degree) - degree)[i]
    # A few of the others are enough to tell for most: looking at all of them would take the square of the time.
    first, last = 0, SAMPLE
    open_ = degree[i] > CROWD
    while (open_ & (place >= first)).any():
        look = open_ & (place >= first) & (place < last)
        thick = _is_thick(shapely.intersection(some[i[look]], outlines[j[look]]), tolerance_m)
        lies_on += np.bincount(i[look][thick], minlength=count)
        open_ &= lies_on[i] <= CROWD
        first, last = last, 2 * last
    return lies_on > CROWD


def _is_thick(shared, tolerance_m: float):
    """Whether what two outlines share is more than a sliver along a wall: wider than the tolerance."""
    area_m2 = shapely.area(shared)
    return (area_m2 > NOTHING_M2) & (2 * area_m2 >= tolerance_m * shapely.length(shared))


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
    scatter, length, angle = [], [], []
    for ring in _rings(polygon):
        ring = ring - ring[0]
        corners = _candidates(ring, tolerance_m * DIRECTION_SHARE)
        step = np.diff(ring[corners], axis=0)
        length.append(np.hypot(*step.T))
        angle.append(np.arctan2(step[:, 1], step[:, 0]))
        scatter.append(np.stack(_scatter(np.diff(_prefix_sums(ring)[corners], axis=0))))
    length, angle = np.concatenate(length), np.concatenate(angle)
    # Directions a quarter turn apart are one. Long edges say more about it.
    away = _quarter(angle[:, None] - np.arange(0, 90, 2) * math.pi / 180)
    votes = (length[:, None] ** 2 * np.exp(-((away / math.radians(4)) ** 2))).sum(axis=0)
    peak = math.radians(2 * int(votes.argmax()))
    # The turn that puts what runs near it closest to straight lines, each through the middle of its part.
    xx, xy, yy = np.concatenate(scatter, axis=1)
    near = np.exp(-((_quarter(angle - peak) / math.radians(8)) ** 2))
    turned = np.round((angle - peak) / (math.pi / 2)).astype(int) % 2 == 1
    xx, xy, yy = (
        np.where(turned, yy, xx) @ near,
        np.where(turned, -xy, xy) @ near,
        np.where(turned, xx, yy) @ near,
    )
    best = 0.5 * math.atan2(2 * xy, xx - yy)
    return (peak + float(_quarter(best - peak))) % (math.pi / 2)


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
        shared: on a line of a neighbour, not its own.
    """

    kind: int
    normal: np.ndarray
    offset: float
    start: np.ndarray
    end: np.ndarray
    block: int
    shared: bool = False

    @property
    def length(self) -> float:
        return float(np.hypot(*(self.end - self.start)))


def _plan(polygon: BaseGeometry, angle: float, block: int, tolerance_m: float, min_iou: float) -> "_Plan":
    """The edges of a building, with a smaller tolerance where those of the wanted one are not like it."""
    for share in FALLBACK_SHARES:
        plan = _Plan(polygon, angle, block, share * tolerance_m)
        plan.own_outline = plan.outline()
        if plan.own_outline is not None and _iou(plan.own_outline, polygon) >= min_iou:
            return plan
    plan.own_outline = None
    return plan


class _Plan:
    """The edges of one building, ring by ring; None for a ring that stays as it is.

    Attributes:
        own_outline: what its edges make before they are put on lines of neighbours; None where that is not like it.
    """

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

    def shares_walls(self) -> bool:
        return any(edge.shared for edge in self.edges())


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
    sections = _cheapest(sums, EDGE_COST * tolerance_m**3, LONGEST * tolerance_m)
    lines = _lines(sums, sections)
    if _is_round(points, lines, tolerance_m) or len(lines) < 3:
        return None
    edges = []
    for (i, j, kind), normal, middle in lines:
        start, end = points[corners[i]], points[corners[j % (len(corners) - 1)]]
        start, end = (p - normal * (normal @ (p - middle)) for p in (start, end))
        normal, middle = normal @ turn, middle @ turn + centre
        edges.append(
            _Edge(kind, normal, float(normal @ middle), start @ turn + centre, end @ turn + centre, block)
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


def _cheapest(sums: np.ndarray, edge_cost: float, longest_m: float) -> list[tuple[int, int, int]]:
    """Sections (from, to, kind) between candidates whose costs add up to the least; neighbours differ in kind."""
    n = len(sums)
    between = sums[None, :] - sums[:, None]
    xx, xy, yy = np.stack(_scatter(between)) * np.minimum(1, longest_m / np.maximum(between[..., 0], 1e-12))
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
    """Is a closed ring a circle or an ellipse, or bent otherwise, so that edges would spoil it?"""
    free = sum(kind == 2 for (_, _, kind), _, _ in lines)
    if free >= BENT_EDGES and free > FREE_SHARE * len(lines):
        return True
    at = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    even = np.linspace(0, at[-1], 64, endpoint=False)
    even = np.column_stack([np.interp(even, at, points[:, k]) for k in (0, 1)])
    even -= even.mean(axis=0)
    # An ellipse is a circle, and a rectangle a square, in units of its own extent.
    extent, axes = np.linalg.eigh(even.T @ even / len(even))
    if math.sqrt(2 * max(extent[0], 0)) < ROUND_RADIUS * tolerance_m:
        return False
    radius = np.hypot(*(even @ axes / np.sqrt(extent)).T)
    return float(radius.std() / radius.mean()) < ROUND_SPREAD


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
    return _tidy(np.array(points))


def _tidy(points: np.ndarray) -> np.ndarray | None:
    """(n + 1, 2) closed ring of (m, 2) points without those where nothing bends, or where it turns back on itself."""
    while len(points) >= 3:
        step = np.roll(points, -1, axis=0) - points
        length = np.hypot(*step.T)
        before, long = np.roll(step, 1, axis=0), np.roll(length, 1)
        cross = np.abs(before[:, 0] * step[:, 1] - before[:, 1] * step[:, 0])
        idle = np.nonzero((length <= SNAP_M) | (cross <= 1e-3 * long * length))[0]
        if not len(idle):
            return np.concatenate([points, points[:1]])
        # One at a time of those side by side: the next one may bend without it.
        idle = idle[np.concatenate([[True], np.diff(idle) > 1])]
        points = np.delete(points, idle, axis=0)
    return None


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
            edges[j].normal, edges[j].offset, edges[j].shared = edges[i].normal, edges[i].offset, True


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
        self.count = [1] * len(edges)
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
        self.count[a] += self.count[b]
        return True

    def apply(self) -> None:
        for i, edge in enumerate(self.edges):
            leader = self.find(i)
            if self.count[leader] > 1:
                edge.normal, edge.offset = self.edges[leader].normal, self.offset[leader]
                edge.shared = True


# --- corners -------------------------------------------------------------------------------------------------------


def _accepted(plan: _Plan, raw: BaseGeometry, min_iou: float) -> BaseGeometry:
    """The outline of a plan, with shared walls if they do it no harm; the raw one if it is not like it."""
    if plan.shares_walls():
        outline = plan.outline()
        if outline is not None and _iou(outline, raw) >= min_iou:
            return outline
    return raw if plan.own_outline is None else plan.own_outline


class _Layer:
    """Outlines of a layer that are made to meet, one pair of neighbours at a time; none ever falls below `min_iou`."""

    def __init__(
        self, outlines: list[BaseGeometry], raw: list[BaseGeometry], pairs, tolerance_m: float, min_iou
    ):
        self.outlines, self.raw = outlines, raw
        self.straight = [outline is not given for outline, given in zip(outlines, raw)]
        self.tolerance_m, self.min_iou = tolerance_m, min_iou
        # Outlines that cannot give way to all of their neighbours, which need not be tried for each of these again.
        self.firm: set[int] = set()
        self.pairs = pairs.tolist()
        self.near: dict[int, list[int]] = {}
        for i, j in self.pairs:
            self.near.setdefault(i, []).append(j)
            self.near.setdefault(j, []).append(i)

    def settle(self) -> None:
        """Overlaps thinner than the tolerance go to one of both, and so do gaps; corners of one are corners of both."""
        for step in (self._cut, self._fill):
            for i, j in self.pairs:
                try:
                    step(i, j)
                except GEOSException:
                    # In rare cases overlays of valid outlines fail: this pair stays as it is, the layer goes on.
                    pass
        # Twice: the second outline's corners go to the first one's, then the first one's walls pass through them.
        for order in (1, -1):
            for pair in self.pairs:
                onto, moved = pair[::order]
                self._replace(moved, _stitched(self.outlines[moved], self.outlines[onto]))

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
        if shared.area > NOTHING_M2 and not _is_thick(shared, self.tolerance_m):
            for k, other in self._givers(i, j):
                if self._replace(
                    k, shapely.difference(self.outlines[k], self.outlines[other], grid_size=GRID_M)
                ):
                    return
            # Straight walls that are as far off as they may be leave no room: the outline as it was may.
            for k, _ in self._givers(i, j):
                if k in self.firm:
                    continue
                others = shapely.union_all([self.outlines[n] for n in self.near[k]])
                if self._replace(k, shapely.difference(self.raw[k], others, grid_size=GRID_M)):
                    return
                self.firm.add(k)

    def _fill(self, i: int, j: int) -> None:
        a, b, reach = self.outlines[i], self.outlines[j], self.tolerance_m / 2
        # Mitred buffers are not always valid, and then overlays fail.
        wide = [clean_polygon(p) for p in shapely.buffer([a, b], reach, join_style="mitre")]
        if None in wide:
            return
        between = shapely.intersection(*wide)
        if between.area <= NOTHING_M2:
            return
        closed = clean_polygon(shapely.union(*wide).buffer(-reach, join_style="mitre"))
        if closed is None:
            return
        gap = shapely.difference(closed, shapely.union_all([a, b]), grid_size=GRID_M).intersection(between)
        if gap.area <= NOTHING_M2:
            return
        shapely.prepare(gap)
        others = [self.outlines[k] for k in sorted({*self.near[i], *self.near[j]} - {i, j})]
        # The union of all of them, for each pair, would be most of the time where many touch.
        others = [p for p in others if gap.intersects(p)]
        gap = gap.difference(shapely.union_all(others)) if others else gap
        # What has walls nearly all around, not the corner that two buildings turn to each other.
        slits = [g for g in shapely.get_parts(gap) if g.geom_type == "Polygon" and g.area > NOTHING_M2]
        walls = shapely.union_all([a, b]).buffer(SNAP_M) if slits else None
        slits = [g for g in slits if g.boundary.difference(walls).length < OPEN_SHARE * g.length]
        if slits:
            for k, _ in self._givers(i, j):
                if self._replace(k, shapely.union_all([self.outlines[k], *slits], grid_size=GRID_M)):
                    return


def _stitched(polygon: BaseGeometry, onto: BaseGeometry) -> BaseGeometry:
    """`polygon` with its vertices on those of `onto` that are within SNAP_M, and with those of `onto` on its walls."""
    corners = np.unique(_within(shapely.get_coordinates(onto), polygon.bounds), axis=0)
    if not len(corners):
        return polygon
    rings = [_stitched_ring(ring, corners) for ring in _rings(polygon)]
    return _assembled(polygon, rings) or polygon


def _within(points: np.ndarray, bounds) -> np.ndarray:
    """Those of (n, 2) points that are in the box `bounds`, or within SNAP_M of it."""
    low, high = np.array(bounds[:2]) - SNAP_M, np.array(bounds[2:]) + SNAP_M
    return points[((points >= low) & (points <= high)).all(axis=1)]


def _stitched_ring(given: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """(n + 1, 2) ring with (m, 2) `corners` put in; the given one where these leave nothing of it, as of a speck."""
    corners = _within(corners, (*given.min(axis=0), *given.max(axis=0)))
    if not len(corners):
        return given
    away = np.hypot(*(given[:, None] - corners[None]).transpose(2, 0, 1))
    nearest = away.argmin(axis=1)
    ring = np.where((away.min(axis=1) <= SNAP_M)[:, None], corners[nearest], given)
    step = np.diff(ring, axis=0)
    length = np.maximum(np.hypot(*step.T), 1e-12)
    from_start = corners[None] - ring[:-1, None]
    along = (from_start * step[:, None]).sum(axis=2) / length[:, None]
    across = np.abs(from_start[..., 0] * step[:, None, 1] - from_start[..., 1] * step[:, None, 0])
    on_wall = (across / length[:, None] <= SNAP_M) & (along > 0) & (along < length[:, None])
    on_wall &= ~(corners[None, :] == ring[:, None]).all(axis=2).any(axis=0)
    points = []
    for i in range(len(step)):
        points.append(ring[i])
        found = np.nonzero(on_wall[i])[0]
        points += list(corners[found[np.argsort(along[i, found])]])
    points.append(ring[-1])
    keep = [k for k in range(len(points)) if k == 0 or (points[k] != points[k - 1]).any()]
    return np.array([points[k] for k in keep]) if len(keep) >= 4 else given


def _holes(polygon: BaseGeometry) -> int:
    return sum(len(part.interiors) for part in getattr(polygon, "geoms", [polygon]))


def _valid(polygon: BaseGeometry, given: BaseGeometry) -> BaseGeometry:
    """Far from the origin numbers are coarser: what collapses there stays as given."""
    return polygon if polygon.is_valid and polygon.area > 0 else given
