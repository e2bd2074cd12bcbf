"""The city as vectors: buildings with roofs, trees, cars and ground, in metres. No rasters in here.

Frame: x east, y north, metres from `City.origin_map` (a point of the map CRS). Terrain is flat; z is height above it.
A roof is a set of planar pieces, so a procedural gable roof and a real LoD 2.2 roof are the same thing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import shapely
from shapely import STRtree
from shapely.affinity import affine_transform
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

HEIGHT_STAT = "p70"  # area-weighted 70th percentile of the roof above the ground, as in 3DBAG's b3_h_dak_70p
LOWEST_PART_M = 2.4
GRASS, PAVED, ROAD, WATER, SOIL = range(5)
# Reflectance (R, G, B) and mean backscatter in dB per ground class.
GROUND_ALBEDO = np.array(
    [[0.20, 0.27, 0.14], [0.42, 0.41, 0.39], [0.27, 0.27, 0.28], [0.07, 0.10, 0.12], [0.40, 0.33, 0.25]]
)
GROUND_SIGMA0_DB = np.array([-10.0, -11.0, -14.5, -23.0, -11.5])
ROOF_ALBEDO = np.array(
    [
        [0.55, 0.54, 0.52],
        [0.30, 0.29, 0.29],
        [0.52, 0.29, 0.22],
        [0.38, 0.26, 0.20],
        [0.72, 0.71, 0.69],
        [0.34, 0.37, 0.41],
    ]
)


@dataclass(frozen=True)
class RoofPiece:
    """A plane `z = a x + b y + c` over a polygon (metres; `plane` is (a, b, c))."""

    polygon: Polygon
    plane: tuple[float, float, float]


@dataclass
class CityBuilding:
    """A building: outline, roof, the height that labels it (HEIGHT_STAT, metres) and what it is made of."""

    footprint: BaseGeometry
    roof: list[RoofPiece]
    height_m: float
    id: str | int | None = None
    albedo: tuple[float, float, float] = (0.5, 0.5, 0.5)
    roof_sigma0_db: float = -8.0
    wall_sigma0_db: float = -8.0
    corner_sigma0_db: float = -3.0


@dataclass
class City:
    """A piece of world.

    Attributes:
        buildings: may share walls, never overlap.
        ground: (polygon, class) painted in order over grass.
        trees: (n, 4) x, y, crown radius, height; metres.
        cars: (n, 3) x, y, heading in radians.
        ground_albedo, ground_sigma0_db: (5, 3) and (5,), by ground class.
        origin_map: map coordinates of (0, 0). crs: of the map.
    """

    buildings: list[CityBuilding]
    ground: list[tuple[Polygon, int]] = field(default_factory=list)
    trees: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    cars: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    ground_albedo: np.ndarray = field(default_factory=lambda: GROUND_ALBEDO.copy())
    ground_sigma0_db: np.ndarray = field(default_factory=lambda: GROUND_SIGMA0_DB.copy())
    origin_map: tuple[float, float] = (500_000.0, 5_700_000.0)
    crs: str = "EPSG:32631"

    def __post_init__(self):
        """Index the outlines, for `near`."""
        self._index = STRtree([b.footprint for b in self.buildings])

    def within(self, other: "City", bounds: tuple[float, float, float, float]) -> "City":
        """This city, which covers `bounds` (x0, y0, x1, y1), with the buildings and trees of `other` around it."""
        inside = box(*bounds)
        around = [
            replace(b, id=f"around {b.id}")
            for b in other.buildings
            if not b.footprint.intersects(inside) and not self.near(b.footprint.bounds)
        ]
        trees = other.trees[~shapely.contains_xy(inside, other.trees[:, :2])]
        return replace(self, buildings=self.buildings + around, trees=np.concatenate([self.trees, trees]))

    def near(self, bounds: tuple[float, float, float, float]) -> list[CityBuilding]:
        """Buildings whose bounding box meets (x0, y0, x1, y1), in their order."""
        return [self.buildings[i] for i in sorted(self._index.query(box(*bounds)))]


# --- roofs ---------------------------------------------------------------------------------------------------------


def roof_piece(ring_xyz: np.ndarray, holes: Iterable[np.ndarray] = ()) -> RoofPiece | None:
    """The plane through a ring (n, 3), least squares; None when the ring has no area seen from above.

    A plane steeper than 80 degrees is levelled: it is a wall that its source calls a roof.
    """
    polygon = Polygon(ring_xyz[:, :2], [hole[:, :2] for hole in holes])
    if not polygon.is_valid:
        polygon = shapely.make_valid(polygon, method="structure", keep_collapsed=False)
    if polygon.area < 1e-3:
        return None
    centre = ring_xyz.mean(axis=0)
    a, b = np.linalg.lstsq((ring_xyz - centre)[:, :2], (ring_xyz - centre)[:, 2], rcond=None)[0]
    if math.hypot(a, b) > math.tan(math.radians(80)):
        a = b = 0.0
    return RoofPiece(polygon, (float(a), float(b), float(centre[2] - a * centre[0] - b * centre[1])))


def roof_height_m(roof: list[RoofPiece], quantile: float = 0.7) -> float:
    """Area-weighted quantile of the height of a roof, metres: exact for level pieces, sampled to ~1 cm for others."""
    heights, weights = [], []
    for piece in roof:
        z, area = _piece_heights(piece)
        heights.append(z)
        weights.append(np.full(len(z), area / len(z)))
    z, w = np.concatenate(heights), np.concatenate(weights)
    order = np.argsort(z)
    reached = np.cumsum(w[order]) >= quantile * w.sum() - 1e-9
    return float(z[order][np.argmax(reached)])


def roof_outline(building: CityBuilding, lean_xy: tuple[float, float]) -> BaseGeometry:
    """Where the roof appears when what is z metres high appears z times `lean_xy` aside (metres per metre, x and y).

    Parts of different height come apart where a wall shows between them. Boxes on a roof do not count.
    """
    dx, dy = lean_xy
    pieces = []
    for piece in building.roof:
        if any(piece is not other and other.polygon.contains(piece.polygon) for other in building.roof):
            continue
        a, b, c = piece.plane
        moved = (1 + dx * a, dx * b, dy * a, 1 + dy * b, dx * c, dy * c)
        pieces.append(shapely.make_valid(affine_transform(piece.polygon, moved)))
    return shapely.union_all(pieces, grid_size=1e-3)


def _piece_heights(piece: RoofPiece, samples: int = 24) -> tuple[np.ndarray, float]:
    a, b, c = piece.plane
    polygon = piece.polygon
    if abs(a) + abs(b) < 1e-6:
        x, y = (
            polygon.exterior.coords[0][:2] if polygon.geom_type == "Polygon" else polygon.centroid.coords[0]
        )
        return np.array([a * x + b * y + c]), polygon.area
    x0, y0, x1, y1 = polygon.bounds
    steps = (np.arange(samples) + 0.5) / samples
    x, y = (g.ravel() for g in np.meshgrid(x0 + steps * (x1 - x0), y0 + steps * (y1 - y0)))
    inside = shapely.contains_xy(polygon, x, y)
    if not inside.any():
        x, y, inside = *(np.array([v]) for v in polygon.representative_point().coords[0]), np.array([True])
    return a * x[inside] + b * y[inside] + c, polygon.area


@dataclass(frozen=True)
class Part:
    """A rectangle of a building's ground plan, in the plan's frame (metres).

    Attributes:
        roof: "flat", "gable" or "hip". ridge: direction of a gable, "long" (of the longer side), "u" or "v".
        factor: its height relative to the building's.
    """

    u0: float
    v0: float
    u1: float
    v1: float
    roof: str = "flat"
    factor: float = 1.0
    ridge: str = "long"


@dataclass(frozen=True)
class Plan:
    """A ground plan before it has a height: parts in a frame at `origin` turned by `angle` (radians, from x to y).

    Plans of one `row` (a terrace) share most of their height.
    """

    parts: tuple[Part, ...]
    origin: tuple[float, float]
    angle: float
    row: int | None = None
    material: int | None = None

    def footprint(self) -> Polygon:
        """Outline in city metres."""
        rings = [
            self.to_city(np.array([[p.u0, p.v0], [p.u1, p.v0], [p.u1, p.v1], [p.u0, p.v1]]))
            for p in self.parts
        ]
        if len(rings) == 1:
            return Polygon(rings[0])
        return shapely.union_all([Polygon(r) for r in rings], grid_size=1e-4)

    def to_city(self, uv: np.ndarray) -> np.ndarray:
        """(n, 2) own frame -> (n, 2) city metres."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return uv @ np.array([[c, s], [-s, c]]) + np.array(self.origin)

    def roof(self, height_m: float, raised_m: float = 0.0) -> list[RoofPiece]:
        """Roof pieces of this plan for the building height `height_m`, all of them `raised_m` higher than that."""
        pieces = []
        for part in self.parts:
            for ring in _part_rings(part, max(height_m * part.factor, LOWEST_PART_M) + raised_m):
                xyz = np.column_stack([self.to_city(ring[:, :2]), ring[:, 2]])
                pieces.append(roof_piece(xyz))
        return [p for p in pieces if p is not None]


def _part_rings(part: Part, height_m: float) -> list[np.ndarray]:
    """3-D rings (n, 3) of a part's roof, in the plan's frame."""
    u0, v0, u1, v1 = part.u0, part.v0, part.u1, part.v1
    along_v = part.ridge == "v" or (part.ridge == "long" and u1 - u0 < v1 - v0)
    if along_v and part.roof != "flat":
        turned = _part_rings(replace(part, u0=v0, v0=u0, u1=v1, v1=u1, ridge="u"), height_m)
        return [ring[:, [1, 0, 2]] for ring in turned]
    half = (v1 - v0) / 2
    rise = min(half * math.tan(math.radians(38)), 0.45 * height_m)
    eave, ridge, vm = height_m - 0.7 * rise, height_m + 0.3 * rise, (v0 + v1) / 2
    if part.roof == "gable":
        return [
            np.array([[u0, v0, eave], [u1, v0, eave], [u1, vm, ridge], [u0, vm, ridge]]),
            np.array([[u0, vm, ridge], [u1, vm, ridge], [u1, v1, eave], [u0, v1, eave]]),
        ]
    if part.roof == "hip":
        a, b = (u0 + half, vm, ridge), (u1 - half, vm, ridge)
        c00, c10, c11, c01 = (u0, v0, eave), (u1, v0, eave), (u1, v1, eave), (u0, v1, eave)
        rings = [(c00, c10, b, a), (c11, c01, a, b), (c10, c11, b), (c01, c00, a)]
        return [np.array(r) for r in rings]
    return [np.array([[u0, v0, height_m], [u1, v0, height_m], [u1, v1, height_m], [u0, v1, height_m]])]


@dataclass(frozen=True)
class Road:
    """A straight road (or canal) along (x0, y0)-(x1, y1), metres wide."""

    x0: float
    y0: float
    x1: float
    y1: float
    width_m: float

    @property
    def polygon(self) -> Polygon:
        """Its surface."""
        return shapely.buffer(
            shapely.linestrings([[self.x0, self.y0], [self.x1, self.y1]]), self.width_m / 2, cap_style="flat"
        )
