"""Cities out of nothing: layouts, heights, materials.

Layout and heights come from two generators: the same layout seed with another height seed is the same ground plan with
other heights, which is what a proof that heights are physical needs. Heights depend neither on area nor on material.
"""

import math
from dataclasses import dataclass, field, replace

from fusiondet.synthetic.city import (
    GRASS,
    GROUND_ALBEDO,
    GROUND_SIGMA0_DB,
    PAVED,
    ROAD,
    ROOF_ALBEDO,
    SOIL,
    WATER,
    City,
    CityBuilding,
    Part,
    Plan,
    Road,
    RoofPiece,
    roof_height_m,
)
from fusiondet.synthetic.presets import Preset

import numpy as np
import shapely
from shapely import STRtree
from shapely.geometry import Polygon


@dataclass
class Layout:
    """What stands where, before heights and materials. `trees` as in `City`, beside those planted at random."""

    plans: list[Plan] = field(default_factory=list)
    ground: list[tuple[Polygon, int]] = field(default_factory=list)
    roads: list[Road] = field(default_factory=list)
    trees: list[tuple[float, float, float, float]] = field(default_factory=list)


def make_city(
    preset: Preset,
    bounds: tuple[float, float, float, float],
    layout_rng: np.random.Generator,
    height_rng: np.random.Generator,
) -> City:
    """A procedural city that covers `bounds` (x0, y0, x1, y1) in metres."""
    layout = {"isolated": _isolated, "blocks": _blocks}[preset.layout]
    plan = layout(preset, bounds, layout_rng)
    buildings = []
    for i, height_m in enumerate(_draw_heights(plan.plans, preset, height_rng)):
        roof = plan.plans[i].roof(height_m)
        label_m = round(roof_height_m(roof), 3)
        roof += _rooftop(plan.plans[i], height_m, preset, layout_rng)
        building = CityBuilding(plan.plans[i].footprint(), roof, label_m, id=i)
        buildings.append(dress(building, preset, layout_rng, plan.plans[i].material))
    albedo, sigma0_db = ground_materials(preset, layout_rng)
    trees = plant_trees(buildings, plan.roads, preset.tree_per_ha, bounds, layout_rng)
    if plan.trees:
        trees = np.concatenate([trees, plan.trees])
    return City(buildings, plan.ground, trees, _park_cars(plan.roads, layout_rng), albedo, sigma0_db)


def _rooftop(plan: Plan, height_m: float, preset: Preset, rng: np.random.Generator) -> list[RoofPiece]:
    """Machine rooms and the like on flat roofs: seen by both sensors, not part of the label's height."""
    pieces = []
    for part in plan.parts if preset.rooftop_per_100_m2 > 0 else ():
        area_m2 = (part.u1 - part.u0) * (part.v1 - part.v0)
        for _ in range(rng.poisson(preset.rooftop_per_100_m2 * area_m2 / 100)):
            u, v = rng.uniform(part.u0, part.u1), rng.uniform(part.v0, part.v1)
            w, d, rise_m = *rng.uniform(0.6, 1.6, 2), rng.uniform(0.7, 2.5)
            inside = part.u0 < u - w and u + w < part.u1 and part.v0 < v - d and v + d < part.v1
            if part.roof == "flat" and inside:
                small = replace(plan, parts=(Part(u - w, v - d, u + w, v + d, factor=part.factor),))
                pieces += small.roof(height_m, rise_m)
    return pieces


def dress(
    building: CityBuilding, preset: Preset, rng: np.random.Generator, material: int | None = None
) -> CityBuilding:
    """`building` with colours and backscatter drawn independently of its size and height."""
    material = int(rng.integers(len(ROOF_ALBEDO))) if material is None else material
    albedo = ROOF_ALBEDO[material] * rng.uniform(0.7, 1.3) * rng.uniform(0.94, 1.06, 3)
    mean, std = preset.roof_sigma0_db
    return replace(
        building,
        albedo=tuple(np.clip(albedo, 0.03, 0.9)),
        roof_sigma0_db=float(rng.normal(mean, std)),
        wall_sigma0_db=float(rng.normal(-7.0, 2.0)),
        corner_sigma0_db=float(rng.normal(-3.0, 2.0)),
    )


def _draw_heights(plans: list[Plan], preset: Preset, rng: np.random.Generator) -> list[float]:
    """One height per plan, metres; the draws depend on the order of plans alone, never on their size."""
    rows: dict[int, float] = {}
    heights = []
    for plan in plans:
        own, common = rng.normal(size=2)
        if plan.row is not None:
            own = rows.setdefault(plan.row, common) + (0.15 * own if plan.row % 4 else own)
        low, high = preset.height_range_m
        heights.append(
            float(np.clip(preset.height_median_m * math.exp(preset.height_log_sigma * own), low, high))
        )
    return heights


def ground_materials(preset: Preset, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(5, 3) albedo and (5,) sigma nought in dB of the ground classes, varied as from one acquisition to the next."""
    albedo = (
        GROUND_ALBEDO
        * rng.uniform(0.8, 1.2, (len(GROUND_ALBEDO), 1))
        * rng.uniform(0.92, 1.08, GROUND_ALBEDO.shape)
    )
    sigma0_db = GROUND_SIGMA0_DB + rng.normal(0, preset.ground_sigma0_spread_db, len(GROUND_SIGMA0_DB))
    return albedo, sigma0_db


def plant_trees(buildings, roads, per_ha: float, bounds, rng: np.random.Generator) -> np.ndarray:
    """(n, 4) trees at random where neither a building nor a road is within the crown (less half a metre)."""
    x0, y0, x1, y1 = bounds
    n = int(per_ha * (x1 - x0) * (y1 - y0) / 1e4)
    trees = np.column_stack(
        [rng.uniform(x0, x1, n), rng.uniform(y0, y1, n), rng.uniform(1.2, 4.5, n), rng.uniform(0.8, 1.3, n)]
    )
    trees[:, 3] *= 3.0 + 2.6 * trees[:, 2]
    obstacles = [b.footprint for b in buildings] + [r.polygon for r in roads]
    if not obstacles or not n:
        return trees
    points = shapely.points(trees[:, :2])
    hit = STRtree(obstacles).query(points, predicate="dwithin", distance=np.maximum(trees[:, 2] - 0.5, 0.1))[
        0
    ]
    keep = np.ones(n, bool)
    keep[hit] = False
    return trees[keep]


def _park_cars(roads: list[Road], rng: np.random.Generator, spacing_m: float = 14.0) -> np.ndarray:
    cars = []
    for road in roads:
        length = math.hypot(road.x1 - road.x0, road.y1 - road.y0)
        if length < spacing_m:
            continue
        along = rng.uniform(0, length, rng.poisson(length / spacing_m))
        side = rng.choice([-1, 1], len(along)) * (road.width_m / 2 - 1.3)
        c, s = (road.x1 - road.x0) / length, (road.y1 - road.y0) / length
        x, y = road.x0 + c * along - s * side, road.y0 + s * along + c * side
        cars.append(np.column_stack([x, y, np.full(len(along), math.atan2(s, c))]))
    return np.concatenate(cars) if cars else np.zeros((0, 3))


# --- layout "isolated" ---------------------------------------------------------------------------------------------


def _isolated(preset: Preset, bounds, rng: np.random.Generator) -> Layout:
    """Free-standing boxes and L shapes, at least 3 m apart, and a few roads."""
    x0, y0, x1, y1 = bounds
    turn = rng.uniform(0, math.pi / 2)
    roads = [_random_road(bounds, turn, rng) for _ in range(int((x1 - x0) * (y1 - y0) / 15000) + 1)]
    surfaces = [(road.polygon, ROAD) for road in roads]
    side = preset.building_spacing_m
    kept: list[Plan] = []
    taken = [polygon for polygon, _ in surfaces]
    for y in np.arange(y0, y1, side):
        for x in np.arange(x0, x1, side):
            for _ in range(3):
                centre = (x + rng.uniform(0.2, 0.8) * side, y + rng.uniform(0.2, 0.8) * side)
                angle = turn + rng.choice([0, math.pi / 2]) + rng.normal(0, 0.03)
                plan = Plan(_isolated_parts(preset, rng), centre, angle)
                outline = plan.footprint()
                if not shapely.dwithin(outline, taken, 3.0).any():
                    kept.append(plan)
                    taken.append(outline)
                    break
    return Layout(kept, ground_patches(bounds, rng) + surfaces, roads)


def _isolated_parts(preset: Preset, rng: np.random.Generator) -> tuple[Part, ...]:
    w, d = rng.uniform(9, 26), rng.uniform(8, 18)
    roof = str(rng.choice(["gable", "hip"])) if rng.random() < preset.tilted_roof_share else "flat"
    main = Part(-w / 2, -d / 2, w / 2, d / 2, roof)
    if roof != "flat" or rng.random() > 0.3:
        return (main,)
    wing = rng.uniform(5, 10)
    return main, Part(-w / 2, d / 2, -w / 2 + rng.uniform(0.35, 0.6) * w, d / 2 + wing)


def _random_road(bounds, turn: float, rng: np.random.Generator) -> Road:
    x0, y0, x1, y1 = bounds
    x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
    angle = turn + rng.choice([0, math.pi / 2])
    reach = rng.uniform(60, 250)
    c, s = reach * math.cos(angle), reach * math.sin(angle)
    return Road(x - c, y - s, x + c, y + s, rng.uniform(5, 9))


def ground_patches(bounds, rng: np.random.Generator, per_ha: float = 4.0) -> list[tuple[Polygon, int]]:
    """Rectangles of other ground, so that not everything between buildings is grass."""
    x0, y0, x1, y1 = bounds
    patches = []
    for _ in range(int(per_ha * (x1 - x0) * (y1 - y0) / 1e4)):
        x, y, w, h = rng.uniform(x0, x1), rng.uniform(y0, y1), *rng.uniform(8, 45, 2)
        polygon = Plan((Part(0, 0, w, h),), (x, y), rng.uniform(0, math.pi)).footprint()
        patches.append((polygon, int(rng.choice([PAVED, SOIL, GRASS]))))
    return patches


# --- layout "blocks" -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """The frame of a street grid: (u, v) metres from `centre`, turned by `angle`; streets run along u and v."""

    centre: tuple[float, float]
    angle: float

    def plan(self, *parts: Part, row: int | None = None, material: int | None = None) -> Plan:
        """A building whose parts are in grid coordinates."""
        return Plan(parts, self.centre, self.angle, row, material)

    def loose_plan(self, u: float, v: float, turn: float, *parts: Part) -> Plan:
        """A building whose parts are around (u, v), turned a little against the grid."""
        return Plan(parts, tuple(self.plan().to_city(np.array([[u, v]]))[0]), self.angle + turn)

    def area(self, u0: float, v0: float, u1: float, v1: float) -> Polygon:
        """A rectangle as a polygon in city metres."""
        return self.plan(Part(u0, v0, u1, v1)).footprint()

    def road(self, u0: float, v0: float, u1: float, v1: float, width_m: float) -> Road:
        """A road from (u0, v0) to (u1, v1)."""
        (x0, y0), (x1, y1) = self.plan().to_city(np.array([[u0, v0], [u1, v1]]))
        return Road(x0, y0, x1, y1, width_m)


def _blocks(preset: Preset, bounds, rng: np.random.Generator) -> Layout:
    """A street grid whose blocks are terraces, closed rows around a yard, houses, big buildings or parks."""
    x0, y0, x1, y1 = bounds
    grid = Grid(((x0 + x1) / 2, (y0 + y1) / 2), rng.uniform(0, math.pi / 2))
    reach = math.hypot(x1 - x0, y1 - y0) / 2
    columns, rows = _cuts(reach, (55, 110), rng), _cuts(reach, (42, 75), rng)
    area = shapely.box(*bounds)
    layout = Layout()
    kinds = (_terraces, _closed_block, _houses, _big_buildings, _park)
    for u0, u1, _ in columns:
        for v0, v1, _ in rows:
            kind = kinds[rng.choice(len(kinds), p=(0.3, 0.15, 0.27, 0.2, 0.08))]
            seed = rng.integers(2**32)  # blocks out of sight are skipped without a trace
            if grid.area(u0, v0, u1, v1).intersects(area):
                kind(preset, grid, (u0, v0, u1, v1), np.random.default_rng(seed), layout)
    for u, width_m in ((stop, width) for _, stop, width in columns):
        _street(grid.road(u + width_m / 2, -reach, u + width_m / 2, reach, width_m), area, rng, layout)
    for v, width_m in ((stop, width) for _, stop, width in rows):
        _street(grid.road(-reach, v + width_m / 2, reach, v + width_m / 2, width_m), area, rng, layout)
    visible = shapely.intersects(area, [plan.footprint() for plan in layout.plans]) if layout.plans else []
    layout.plans = [plan for plan, seen in zip(layout.plans, visible, strict=True) if seen]
    return layout


def _cuts(reach: float, lengths, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Blocks along an axis from -reach to reach: (start, stop, width of the street after it)."""
    cuts, at = [], -reach - rng.uniform(0, lengths[0])
    while at < reach:
        stop, width = at + rng.uniform(*lengths), rng.uniform(8, 15)
        cuts.append((at, stop, width))
        at = stop + width
    return cuts


def _street(road: Road, area: Polygon, rng: np.random.Generator, layout: Layout) -> None:
    """Pavement, carriageway, cars and trees; one street in ten is a canal."""
    canal, trees = rng.random() < 0.1, rng.random() < 0.5
    seen = shapely.intersection(
        shapely.LineString([(road.x0, road.y0), (road.x1, road.y1)]), area.buffer(road.width_m)
    )
    if seen.is_empty:
        return
    road = Road(*seen.coords[0], *seen.coords[-1], road.width_m)
    inner = replace(road, width_m=road.width_m - 3.5)
    layout.ground += [(road.polygon, PAVED), (inner.polygon, WATER if canal else ROAD)]
    if not canal:
        layout.roads.append(inner)
    if trees:
        length = math.hypot(road.x1 - road.x0, road.y1 - road.y0)
        c, s = (road.x1 - road.x0) / length, (road.y1 - road.y0) / length
        for along in np.arange(rng.uniform(4, 10), length, rng.uniform(9, 20)):
            side = rng.choice([-1, 1]) * (road.width_m / 2 - 1)
            radius = rng.uniform(1.2, 2.6)
            x, y = road.x0 + c * along - s * side, road.y0 + s * along + c * side
            layout.trees.append((x, y, radius, 3 + 2.6 * radius * rng.uniform(0.8, 1.3)))


def _terraces(preset: Preset, grid: Grid, block, rng: np.random.Generator, layout: Layout) -> None:
    """Two rows of narrow houses with shared walls, gardens between them."""
    u0, v0, u1, v1 = block
    depth, setback = rng.uniform(8, 11), rng.uniform(1.5, 4)
    for near, sign in ((v0 + setback, 1), (v1 - setback, -1)):
        _row(preset, grid, u0 + 2, u1 - 2, near, sign * depth, rng, layout)


def _row(
    preset: Preset, grid: Grid, start: float, stop: float, near: float, depth: float, rng, layout: Layout
) -> None:
    """Terraced houses from `start` to `stop` along u between v = near and near + depth, with gaps between rows."""
    tilted = rng.random() < preset.tilted_roof_share + 0.2
    extended = rng.random() < 0.4
    at = start
    while at < stop - 12:
        width, houses = rng.uniform(5.2, 8.0), int(rng.integers(3, 10))
        houses = min(houses, int((stop - at) / width))
        row, material = int(rng.integers(2**31)), int(rng.integers(len(ROOF_ALBEDO)))
        for house in range(houses):
            u = at + house * width
            own_material = material if rng.random() < 0.7 else None
            parts = [_part(u, near, u + width, near + depth, "gable" if tilted else "flat", ridge="u")]
            if extended and rng.random() < 0.7:
                back = near + depth * (1 + rng.uniform(0.25, 0.5))
                parts.append(_part(u, near + depth, u + width * rng.uniform(0.5, 1), back, factor=0.45))
            layout.plans.append(grid.plan(*parts, row=row, material=own_material))
        at += houses * width + rng.uniform(2, 7)


def _part(u0: float, v0: float, u1: float, v1: float, roof="flat", factor=1.0, ridge="long") -> Part:
    """A part from any two opposite corners."""
    return Part(min(u0, u1), min(v0, v1), max(u0, u1), max(v0, v1), roof, factor, ridge)


def _closed_block(preset: Preset, grid: Grid, block, rng: np.random.Generator, layout: Layout) -> None:
    """Buildings wall to wall around a paved yard."""
    u0, v0, u1, v1 = block
    u0, v0, u1, v1 = u0 + 0.5, v0 + 0.5, u1 - 0.5, v1 - 0.5
    depth = rng.uniform(10, 13)
    layout.ground.append((grid.area(u0, v0, u1, v1), PAVED if rng.random() < 0.6 else GRASS))
    roof = "gable" if rng.random() < preset.tilted_roof_share else "flat"
    row = int(rng.integers(2**31))
    sides = [(u0, u1, v0, v0 + depth, "u"), (u0, u1, v1 - depth, v1, "u")]
    sides += [(v0 + depth, v1 - depth, u0, u0 + depth, "v"), (v0 + depth, v1 - depth, u1 - depth, u1, "v")]
    for start, stop, low, high, along in sides:
        count = max(1, round((stop - start) / rng.uniform(10, 18)))
        for a, b in zip(*(np.linspace(start, stop, count + 1)[k : count + k] for k in (0, 1)), strict=True):
            corners = (a, low, b, high) if along == "u" else (low, a, high, b)
            if rng.random() < 0.93:  # some plots are empty
                layout.plans.append(grid.plan(_part(*corners, roof, ridge=along), row=row))


def _houses(preset: Preset, grid: Grid, block, rng: np.random.Generator, layout: Layout) -> None:
    """Detached houses on two rows of plots, some with a lower garage or wing."""
    u0, v0, u1, v1 = block
    plots = max(1, int((u1 - u0) / rng.uniform(14, 20)))
    step = (u1 - u0) / plots
    for k in range(plots):
        for v in (v0 + 9.5, v1 - 9.5):
            if rng.random() < 0.1:
                continue
            w, d = rng.uniform(7, min(12, step - 3)), rng.uniform(7, 11)
            roof = (
                str(rng.choice(["gable", "hip"])) if rng.random() < preset.tilted_roof_share + 0.2 else "flat"
            )
            parts = [Part(-w / 2, -d / 2, w / 2, d / 2, roof)]
            if rng.random() < 0.4:
                wing, side = rng.uniform(2.5, min(3.5, step - w)), rng.choice([-1, 1]) * w / 2
                parts.append(
                    _part(side, -d / 2, side + math.copysign(wing, side), rng.uniform(0, d / 2), factor=0.4)
                )
            u = u0 + (k + 0.5) * step
            layout.plans.append(grid.loose_plan(u, v, rng.normal(0, 0.04), *parts))
    if rng.random() < 0.4:
        layout.ground.append((grid.area(u0, (v0 + v1) / 2 - 2, u1, (v0 + v1) / 2 + 2), SOIL))


def _big_buildings(preset: Preset, grid: Grid, block, rng: np.random.Generator, layout: Layout) -> None:
    """Slabs, halls, L, U and courtyard buildings on paved ground, with parts of differing height."""
    u0, v0, u1, v1 = block
    layout.ground.append((grid.area(u0 + 1, v0 + 1, u1 - 1, v1 - 1), int(rng.choice([PAVED, PAVED, GRASS]))))
    count = max(1, round((u1 - u0) / rng.uniform(28, 55)))
    step = (u1 - u0) / count
    for k in range(count):
        w, d = rng.uniform(0.55, 0.85) * step, rng.uniform(0.45, 0.8) * (v1 - v0)
        u, v = u0 + (k + 0.5) * step - w / 2, (v0 + v1 - d) / 2
        shape = (_slab, _wings, _courtyard)[rng.choice(3, p=(0.45, 0.3, 0.25))]
        layout.plans.append(grid.plan(*shape(u, v, u + w, v + d, rng)))


def _slab(u0, v0, u1, v1, rng: np.random.Generator) -> list[Part]:
    """One block, or a tower beside a lower part."""
    if rng.random() < 0.5:
        return [Part(u0, v0, u1, v1)]
    cut = u0 + rng.uniform(0.3, 0.7) * (u1 - u0)
    low = rng.uniform(0.35, 0.7)
    return [Part(u0, v0, cut, v1), Part(cut, v0, u1, v1, factor=low)]


def _wings(u0, v0, u1, v1, rng: np.random.Generator) -> list[Part]:
    """An L or a U, the wings as high as the front or lower."""
    depth, factor = rng.uniform(0.35, 0.5) * (v1 - v0), float(rng.choice([1.0, 0.6]))
    wing = rng.uniform(0.25, 0.38) * (u1 - u0)
    parts = [Part(u0, v0, u1, v0 + depth), Part(u0, v0 + depth, u0 + wing, v1, factor=factor)]
    return [*parts, Part(u1 - wing, v0 + depth, u1, v1, factor=factor)] if rng.random() < 0.5 else parts


def _courtyard(u0, v0, u1, v1, rng: np.random.Generator) -> list[Part]:
    """Four wings around a yard, if there is room for one."""
    depth = rng.uniform(0.25, 0.34) * min(u1 - u0, v1 - v0)
    if depth < 4:
        return [Part(u0, v0, u1, v1)]
    factor = float(rng.choice([1.0, 0.7]))
    return [
        Part(u0, v0, u1, v0 + depth),
        Part(u0, v1 - depth, u1, v1, factor=factor),
        Part(u0, v0 + depth, u0 + depth, v1 - depth, factor=factor),
        Part(u1 - depth, v0 + depth, u1, v1 - depth),
    ]


def _park(preset: Preset, grid: Grid, block, rng: np.random.Generator, layout: Layout) -> None:
    """Paths, many trees, sometimes a pond."""
    u0, v0, u1, v1 = block
    layout.ground.append((grid.area(u0, (v0 + v1) / 2 - 1.5, u1, (v0 + v1) / 2 + 1.5), SOIL))
    pond = None
    if rng.random() < 0.6:
        u, v = rng.uniform(u0 + 15, u1 - 15), rng.uniform(v0 + 12, v1 - 12)
        pond = shapely.Point(*grid.plan().to_city(np.array([[u, v]]))[0]).buffer(rng.uniform(7, 14))
        layout.ground.append((pond, WATER))
    for _ in range(int((u1 - u0) * (v1 - v0) / 120)):
        uv = np.array([[rng.uniform(u0, u1), rng.uniform(v0, v1)]])
        x, y = grid.plan().to_city(uv)[0]
        radius = rng.uniform(1.5, 4.5)
        if pond is None or pond.distance(shapely.Point(x, y)) > 1:
            layout.trees.append((x, y, radius, (3 + 2.6 * radius) * rng.uniform(0.8, 1.3)))
