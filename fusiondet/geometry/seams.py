"""Buildings that overlapping windows found, each once: no duplicates, no cuts, and terraced houses stay apart.

Two windows see the ground where they overlap twice. A building of one and a building of the other are the same where
they agree on that ground, whatever they look like beyond it. So pieces are compared clipped to the overlap, and only
pieces that reach into one need comparing at all.

    the same       the clipped outlines overlap by MATCH_IOU of their union. Parts that are apart on the shared ground
                   are compared one by one: a U of which one window sees the two legs is one building.
    never the same two pieces of one window, for its model told them apart; unless both are cut by its border and do
                   not touch, like those legs. Strong agreement counts before weak, so of terraced houses that
                   outlines a pixel off make overlap, each finds its own.
    a strip        what a window sees only within EDGE_PX of its border, while another one sees that ground from further
                   in, is too little to compare. It gives way to whatever they show within TOUCHING_PX of it. Where they
                   show nothing it stays if it may be most of a small building, which the others missed; a shred,
                   thinner than SHRED_PX or long and narrow along the border, is the end of something larger: dropped.
    leftovers      a piece that for the most part lies in a building which other windows found is a fragment: dropped.

The outline is that of the window that sees the building whole, from furthest inside. If all cut it, each window rules
up to the middle of its overlaps with the others, and the parts are united.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fusiondet.buildings import Building, clean_height_m, clean_polygon
from fusiondet.geometry.contours import simplify

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

# Outlines of one building, a pixel off in either window, share at least this on common ground; neighbours share less.
MATCH_IOU = 0.2
# Agreement of less than this thickness (2 area / perimeter, px) may be two walls that overlap by an outline's error...
MIN_THICKNESS_PX = 1.0
# ... unless both say the same.
SURE_IOU = 0.5
# A building of which another one covers this share is a fragment of that.
FRAGMENT_SHARE = 0.5
# Within this of a border, a window sees too little to say what stands there, px.
EDGE_PX = 6.0
# What is thinner there, px, or thinner than half its length along the border, is no building.
SHRED_PX = 3.0
# An outline that comes this close to a border is cut by it: masks end up to two pixels early.
CUT_PX = 2.0
# Pieces of one window with at most this between them touch, px; and so do a strip and what other windows show.
TOUCHING_PX = 3.0
# The outline of the window that sees a building whole has to hold this share of every other piece of it.
WHOLE_SHARE = 0.5
# Overlays of outlines that differ in their last digits may fail without a word; on a grid this fine they do not, px.
GRID_PX = 1e-6
# Smallest overlap for which seams are exact if the model is.
MIN_OVERLAP_PX = 32
_HEIGHTS = ("height_m", "height_p16_m", "height_p84_m")


def default_overlap_px(
    gsd_m: float, window_px: int, context_m: float = 40.0, largest_building_m: float = 60.0
) -> int:
    """Overlap of windows such that buildings up to `largest_building_m` are seen whole, with context, by one of them.

    Args:
        gsd_m: metres per pixel. window_px: side of a window; the overlap is at most half of it.
        context_m: how far around a building the network looks, metres, shared by both sides.

    Returns:
        Pixels, a multiple of 32 where half a window allows that; larger buildings are put together from their pieces.
    """
    wanted = max(MIN_OVERLAP_PX, math.ceil((context_m + largest_building_m) / gsd_m / 32) * 32)
    return min(wanted, window_px // 2)


class SeamMerger:
    """Buildings found in overlapping windows -> each building once. Streaming: what no later window can change is
    handed out, so that only pieces near borders of windows that are still to come stay in memory.

    The result does not depend on the order of the windows, but for the order in which it is handed out. Windows may
    come from several machines: each makes a merger of *all* windows of the scene and adds those of its block. What
    `add` returned there is final; what `take_open` returns goes, window by window, to `add` of one last merger of all
    windows, and the result is that of a single machine. Any number of blocks may be merged so, also in stages.
    """

    def __init__(self, windows: Sequence[tuple[int, int, int, int]]):
        """Windows (x0, y0, width, height) in pixels of one grid, in the order in which they will be numbered in `add`.

        Different windows; neighbours overlap by MIN_OVERLAP_PX or more, or buildings may stay in pieces.
        """
        self._rects = np.array(windows, dtype=float).reshape(-1, 4)
        if (self._rects[:, 2:] <= 0).any():
            raise ValueError("a window without area.")
        self._rects[:, 2:] += self._rects[:, :2]
        boxes = shapely.box(*self._rects.T)
        self._neighbours = _neighbours(boxes)
        self._inner = np.array([self._inner_sides(i) for i in range(len(boxes))]).reshape(-1, 4)
        self._added = np.zeros(len(boxes), bool)
        self._pieces: dict[int, _Pieces] = {}
        self._groups: dict[int, _Group] = {}

    def add(self, index: int, buildings: Sequence[Building]) -> list[Building]:
        """Buildings that are finished now that window `index` has been looked at.

        Args:
            index: of the window; each once. A window in which nothing is, or which is skipped, is added without any.
            buildings: found in it, outlines in pixels of the grid (not of the window). What lies beyond the window is
                cut off; outlines are made valid, those without area are left out, and heights that are none (see
                `clean_height_m`) are unknown.

        Returns:
            Finished buildings, outlines valid, in pixels of the grid.
        """
        if self._added[index]:
            raise ValueError(f"window {index} was added before.")
        self._added[index] = True
        pieces = self._new_pieces(index, buildings)
        alone = [p for p in pieces if not p.overlaps]
        pieces = [p for p in pieces if p.overlaps]
        for piece in pieces:
            piece.group = _Group([piece], open_windows=int((~self._added[piece.overlaps]).sum()))
            self._groups[id(piece.group)] = piece.group
        touched = {id(p.group): p.group for p in pieces}
        mine = _Pieces(pieces)
        for k in self._neighbours[index]:
            if self._added[k]:
                for group in self._meet(self._pieces[k], mine, index):
                    touched[id(group)] = group
        self._pieces[index] = mine
        for k in (index, *self._neighbours[index]):
            if self._added[k] and self._added[self._neighbours[k]].all():
                self._pieces[k] = _Pieces([])
        finished = [g for key, g in touched.items() if key in self._groups and g.open_windows == 0]
        return [p.building for p in alone] + self._hand_out(finished)

    def waiting(self) -> list[BaseGeometry]:
        """Outlines, in pixels of the grid, of what later windows may still change, as far as windows have shown it."""
        return [p.building.polygon for g in self._groups.values() for p in g.pieces if not p.gave_way]

    def finish(self) -> list[Building]:
        """The buildings that wait for windows which never came; nothing can be added after that."""
        rest = self._hand_out(list(self._groups.values()))
        self._added[:] = True
        self._pieces = {}
        return rest

    def take_open(self) -> dict[int, list[Building]]:
        """Instead of `finish`, on one of several machines: {window: pieces} that windows of others may still change.

        Pieces are as they came in `add`, cut to their window: to be added to a merger that sees those windows, too.
        """
        taken: dict[int, list[Building]] = {}
        for piece in sorted((p for g in self._groups.values() for p in g.pieces), key=lambda p: p.key):
            if not piece.gave_way:
                taken.setdefault(piece.window, []).append(piece.building)
        self._groups, self._pieces = {}, {}
        self._added[:] = True
        return taken

    def _new_pieces(self, index: int, buildings: Sequence[Building]) -> "list[_Piece]":
        """Pieces of window `index`, cut to it."""
        rect, neighbours = self._rects[index], np.array(self._neighbours[index], dtype=int)
        others = self._rects[neighbours]
        pieces = []
        for building in map(_clean, buildings):
            if building is None:
                continue
            bounds = np.array(building.polygon.bounds)
            if (bounds[:2] < rect[:2]).any() or (bounds[2:] > rect[2:]).any():
                polygon = clean_polygon(building.polygon.intersection(shapely.box(*rect)))
                if polygon is None:
                    continue
                building = dataclasses.replace(building, polygon=polygon)
                bounds = np.array(polygon.bounds)
            # Also of windows that it does not quite reach: a strip of theirs may touch it.
            low, high = bounds[:2] - 2 * TOUCHING_PX, bounds[2:] + 2 * TOUCHING_PX
            reached = (others[:, :2] < high).all(axis=1) & (others[:, 2:] > low).all(axis=1)
            inside = bounds - rect
            inside[2:] *= -1
            cut = self._inner[index] & (inside <= CUT_PX)
            # How far the piece reaches into the window, seen from each side.
            depth = np.array([bounds[2], bounds[3], bounds[0], bounds[1]]) - rect
            depth[2:] *= -1
            thin = cut & (depth <= EDGE_PX)
            strip = bool(thin.any()) and _seen_from_further_in(bounds, others[reached], thin)
            if strip:
                width, height = bounds[2:] - bounds[:2]
                length = np.array([height, width, height, width])
                if (depth < np.maximum(SHRED_PX, length / 2))[thin].any():
                    continue
            pieces.append(
                _Piece(
                    int(index),
                    building,
                    tuple(rect),
                    bounds,
                    cut=bool(cut.any()),
                    strip=strip,
                    margin_px=inside[self._inner[index]].min(initial=math.inf),
                    overlaps=neighbours[reached].tolist(),
                )
            )
        return pieces

    def _inner_sides(self, index: int) -> np.ndarray:
        """(4,) bool, left, top, right, bottom: does a neighbour see the ground beyond that side?"""
        rect, others = self._rects[index], self._rects[self._neighbours[index]]
        return np.concatenate([(others[:, :2] < rect[:2]).any(0), (others[:, 2:] > rect[2:]).any(0)])

    def _meet(self, old: "_Pieces", new: "_Pieces", index: int) -> "list[_Group]":
        """Join groups of pieces of an earlier window and of window `index` that may be the same; those that changed."""
        changed = []
        for piece in old.pieces:
            if index in piece.overlaps:
                piece.group.open_windows -= 1
                changed.append(piece.group)
        if not old.pieces or not new.pieces:
            return changed
        old.displace_strips_of(new)
        new.displace_strips_of(old)
        for i, j in zip(*old.tree.query([p.building.polygon for p in new.pieces], predicate="intersects")):
            first, second = sorted((new.pieces[i], old.pieces[j]), key=lambda p: p.key)
            if first.strip != second.strip:
                continue
            link = _link(first, second)
            if link is not None:
                changed.append(self._join(first.group, second.group, link))
        return changed

    def _join(self, a: "_Group", b: "_Group", link: "_Link") -> "_Group":
        if a is not b:
            a, b = (a, b) if len(a.pieces) >= len(b.pieces) else (b, a)
            for piece in b.pieces:
                piece.group = a
            a.pieces += b.pieces
            a.links += b.links
            a.open_windows += b.open_windows
            del self._groups[id(b)]
        a.links.append(link)
        return a

    def _hand_out(self, groups: "list[_Group]") -> list[Building]:
        for group in groups:
            del self._groups[id(group)]
        groups = sorted(groups, key=lambda g: min(p.key for p in g.pieces))
        return [building for group in groups for building in _resolve(group)]


def _clean(building: Building) -> Building | None:
    """`building` with what the rest relies on: a valid outline, and heights above 0 m; None without area."""
    polygon = building.polygon
    if polygon is None or not (polygon.is_valid and polygon.geom_type in ("Polygon", "MultiPolygon")):
        polygon = clean_polygon(polygon)
    if polygon is None or not polygon.area > 0:
        return None
    heights = {name: clean_height_m(getattr(building, name))[0] for name in _HEIGHTS}
    if heights["height_m"] is None:
        heights = dict.fromkeys(_HEIGHTS)
    same = polygon is building.polygon and all(getattr(building, k) == v for k, v in heights.items())
    return building if same else dataclasses.replace(building, polygon=polygon, **heights)


def _neighbours(boxes: np.ndarray) -> list[list[int]]:
    """Per window, the others that share ground with it."""
    found: list[list[int]] = [[] for _ in boxes]
    for i, j in zip(*shapely.STRtree(boxes).query(boxes, predicate="intersects")):
        shared = boxes[i].intersection(boxes[j]).area if i != j else 0
        if shared > 0:
            found[i].append(int(j))
    return [sorted(f) for f in found]


def _seen_from_further_in(bounds: np.ndarray, others: np.ndarray, sides: np.ndarray) -> bool:
    """Does a window of `others` (k, 4) hold the box and what is EDGE_PX beyond `sides` of it?"""
    grown = bounds + np.where(sides, [-EDGE_PX, -EDGE_PX, EDGE_PX, EDGE_PX], 0)
    return bool(((others[:, :2] <= grown[:2]) & (others[:, 2:] >= grown[2:])).all(axis=1).any())


@dataclass(eq=False)
class _Piece:
    """A building as one window shows it.

    Attributes:
        window: index. rect: its x0, y0, x1, y1. bounds: of the outline.
        cut: the outline reaches a border beyond which other windows see.
        strip: it is within EDGE_PX of such a border, and another window sees that ground from further in.
        margin_px: from the outline to the nearest such border.
        overlaps: other windows whose ground it reaches, or nearly.
        gave_way: a strip in whose place another window shows something.
    """

    window: int
    building: Building
    rect: tuple[float, ...]
    bounds: np.ndarray
    cut: bool
    strip: bool
    margin_px: float
    overlaps: list[int]
    gave_way: bool = False
    group: "_Group | None" = None

    def __post_init__(self):
        # By place, not by number: results must not depend on how windows are counted.
        self.key = (self.rect[1], self.rect[0], *self.rect[2:], *self.bounds, self.building.polygon.area)


class _Pieces:
    """Pieces of one window that reach into others, with an index of their outlines made when it is first needed."""

    def __init__(self, pieces: list[_Piece]):
        self.pieces = pieces
        self._tree: shapely.STRtree | None = None

    @property
    def tree(self) -> shapely.STRtree:
        if self._tree is None:
            self._tree = shapely.STRtree([p.building.polygon for p in self.pieces])
        return self._tree

    def displace_strips_of(self, other: "_Pieces") -> None:
        """Strips of `other`, the pieces of another window, give way to what is no strip here."""
        strips = [p for p in other.pieces if p.strip]
        outlines = [p.building.polygon for p in strips]
        if outlines:
            for i, j in zip(*self.tree.query(outlines, predicate="dwithin", distance=TOUCHING_PX)):
                strips[i].gave_way |= not self.pieces[j].strip


@dataclass(eq=False)
class _Link:
    """Two pieces of different windows that agree on common ground (`same`), or of which one lies in the other."""

    first: _Piece
    second: _Piece
    strength: float
    same: bool


@dataclass(eq=False)
class _Group:
    """Pieces connected by links; `open_windows` counts, over the pieces, windows they reach that are still to come."""

    pieces: list[_Piece]
    links: list[_Link] = field(default_factory=list)
    open_windows: int = 0


def _link(first: _Piece, second: _Piece) -> _Link | None:
    """How two pieces of different windows agree on the ground that both windows see; None where they do not."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = first.rect, second.rect
    common = shapely.box(max(ax0, bx0), max(ay0, by0), min(ax1, bx1), min(ay1, by1))
    a = first.building.polygon.intersection(common)
    b = second.building.polygon.intersection(common)
    a, b = _parts_that_meet(a, b), _parts_that_meet(b, a)
    both = a.intersection(b)
    if both.area < 0.01 * min(a.area, b.area):
        both = shapely.intersection(a, b, grid_size=GRID_PX)
    shared, area_a, area_b = both.area, a.area, b.area
    if shared <= 0:
        return None
    iou = shared / (area_a + area_b - shared)
    same = iou >= SURE_IOU or (iou >= MATCH_IOU and 2 * shared / both.length >= MIN_THICKNESS_PX)
    if not same and shared < FRAGMENT_SHARE * min(area_a, area_b):
        return None
    return _Link(first, second, iou * shared, same)


def _parts_that_meet(a: BaseGeometry, b: BaseGeometry) -> BaseGeometry:
    """Of parts of `a` that are apart, those that overlap `b`."""
    if a.geom_type == "Polygon":
        return a
    parts = [p for p in getattr(a, "geoms", ()) if p.geom_type == "Polygon"]
    if len(parts) > 1 and shapely.area(a) > 0:
        shared = shapely.area(shapely.intersection(parts, b))
        parts = [p for p, s in zip(parts, shared) if s > 0]
    return shapely.MultiPolygon(parts)


def _resolve(group: _Group) -> list[Building]:
    """The buildings that the pieces of a group show."""
    pieces = [p for p in group.pieces if not p.gave_way]
    if len(pieces) <= 1:
        return [p.building for p in pieces]
    links = [n for n in group.links if not (n.first.gave_way or n.second.gave_way)]
    clusters = _clusters(pieces, links)
    fused = [_fuse(cluster) for cluster in clusters]
    return [b for b, fragment in zip(fused, _fragments(fused, clusters, links)) if not fragment]


def _clusters(pieces: list[_Piece], links: list[_Link]) -> list[list[_Piece]]:
    """Pieces of one building each, in order of place: the strongest agreement first, none against a window's word."""
    cluster_of = {id(p): [p] for p in pieces}
    links = [link for link in links if link.same]
    for link in sorted(links, key=lambda n: (-n.strength, n.first.key, n.second.key)):
        a, b = cluster_of[id(link.first)], cluster_of[id(link.second)]
        if a is not b and not any(_told_apart(p, q) for p in a for q in b if p.window == q.window):
            a, b = (a, b) if len(a) >= len(b) else (b, a)
            a += b
            for piece in b:
                cluster_of[id(piece)] = a
    clusters = list({id(c): sorted(c, key=lambda p: p.key) for c in cluster_of.values()}.values())
    return sorted(clusters, key=lambda c: c[0].key)


def _told_apart(p: _Piece, q: _Piece) -> bool:
    """Are two pieces of one window different buildings for sure?"""
    return not (p.cut and q.cut) or p.building.polygon.distance(q.building.polygon) <= TOUCHING_PX


def _fragments(fused: list[Building], clusters: list[list[_Piece]], links: list[_Link]) -> list[bool]:
    """Which buildings lie, for the most part, in larger ones that other windows found."""
    number = {id(piece): i for i, cluster in enumerate(clusters) for piece in cluster}
    rivals: dict[int, set[int]] = {}
    for link in links:
        i, j = number[id(link.first)], number[id(link.second)]
        if i != j:
            rivals.setdefault(i, set()).add(j)
            rivals.setdefault(j, set()).add(i)
    dropped = [False] * len(fused)
    rank = {i: n for n, i in enumerate(sorted(rivals, key=lambda i: (-fused[i].polygon.area, i)))}
    for i in rank:
        larger = [fused[j].polygon for j in sorted(rivals[i]) if rank[j] < rank[i] and not dropped[j]]
        if larger:
            shared = shapely.intersection(larger, fused[i].polygon, grid_size=GRID_PX)
            covered = float(shapely.area(shared).sum())
            dropped[i] = covered >= FRAGMENT_SHARE * fused[i].polygon.area
    return dropped


def _fuse(cluster: list[_Piece]) -> Building:
    """One building of its pieces: outline, and heights and scores weighted by the area that each window saw."""
    if len(cluster) == 1:
        return cluster[0].building
    buildings = [p.building for p in cluster]
    area_px2 = np.array([b.polygon.area for b in buildings])
    main = buildings[int(area_px2.argmax())]
    height_m, p16_m, p84_m = _fused_height(buildings, area_px2)
    scored = [i for i, b in enumerate(buildings) if b.score is not None]
    score = None
    if scored:
        score = float(np.average([buildings[i].score for i in scored], weights=area_px2[scored]))
        score = min(1.0, max(0.0, score))
    return dataclasses.replace(
        main,
        polygon=_outline(cluster),
        height_m=height_m,
        height_p16_m=p16_m,
        height_p84_m=p84_m,
        score=score,
    )


def _fused_height(buildings: list[Building], area_px2: np.ndarray) -> tuple[float | None, ...]:
    """Median, p16 and p84 in metres.

    The height head is normal in the logarithm, so that is where weights area / variance apply. The variance is that of
    the mixture: views of one building share their errors, so it does not shrink with their number, and grows where they
    disagree. Without an interval for every height, the weights are the areas, and there is none.
    """
    known = [i for i, b in enumerate(buildings) if b.height_m is not None]
    if not known:
        return None, None, None
    weights = area_px2[known]
    log_m = np.log([buildings[i].height_m for i in known])
    intervals = [(buildings[i].height_p16_m, buildings[i].height_p84_m) for i in known]
    if any(None in interval for interval in intervals):
        return float(np.exp(np.average(log_m, weights=weights))), None, None
    # Half the distance from p16 to p84; its factor to the standard deviation cancels out everywhere below.
    spread = np.maximum(np.log([p84 / p16 for p16, p84 in intervals]) / 2, 1e-6)
    weights = weights / spread**2
    median = np.average(log_m, weights=weights)
    mixed = math.sqrt(np.average(spread**2 + (log_m - median) ** 2, weights=weights))
    return tuple(float(np.exp(median + k * mixed)) for k in (0, -1, 1))


def _outline(cluster: list[_Piece]) -> BaseGeometry:
    outlines = [p.building.polygon for p in cluster]
    for whole in sorted((p for p in cluster if not p.cut), key=lambda p: (-p.margin_px, p.key)):
        held = shapely.area(shapely.intersection(outlines, whole.building.polygon, grid_size=GRID_PX))
        if (held >= WHOLE_SHARE * shapely.area(outlines)).all():
            return whole.building.polygon
    united = clean_polygon(shapely.union_all(outlines, grid_size=GRID_PX))
    ruled = [p.building.polygon.intersection(_realm(p, cluster)) for p in cluster]
    ruled = clean_polygon(shapely.union_all(ruled, grid_size=GRID_PX))
    # Windows that are no grid may leave ground to nobody, and a narrow neck may break where outlines are a pixel off.
    if (
        ruled is None
        or _count(ruled) > _count(united)
        or ruled.area < WHOLE_SHARE * max(o.area for o in outlines)
    ):
        ruled = united
    return simplify(ruled, 0)


def _count(polygon: BaseGeometry) -> int:
    return len(getattr(polygon, "geoms", (polygon,)))


def _realm(piece: _Piece, cluster: list[_Piece]) -> BaseGeometry:
    """The ground of its window on which a piece has the say: up to the middle of every overlap with the others'."""
    x0, y0, x1, y1 = piece.rect
    for other in cluster:
        a, b = piece.rect, other.rect
        if a == b:
            continue
        # Overlaps are long along a border and narrow across it: halved across, where the windows differ most.
        axis = 0 if abs(a[0] + a[2] - b[0] - b[2]) >= abs(a[1] + a[3] - b[1] - b[3]) else 1
        middle = (max(a[axis], b[axis]) + min(a[axis + 2], b[axis + 2])) / 2
        before = a[axis] + a[axis + 2] < b[axis] + b[axis + 2]
        if axis == 0:
            x0, x1 = (x0, min(x1, middle)) if before else (max(x0, middle), x1)
        else:
            y0, y1 = (y0, min(y1, middle)) if before else (max(y0, middle), y1)
    return shapely.box(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else shapely.Polygon()
