"""A window of the city as rasters, fine enough to be averaged down: what both sensors look at.

Rows run south, columns east; (0, 0) is the outer corner of the top-left pixel. The window is a tile plus a margin wide
enough for whatever stands outside and still reaches in: cast shadow, layover, radar shadow, lean.
"""

import math
from dataclasses import dataclass, replace

from fusiondet.buildings import SensorGeometry, map_to_pixel
from fusiondet.synthetic.city import GROUND_ALBEDO, City, CityBuilding, Part, Plan

import cv2
import numpy as np
import shapely
from affine import Affine
from rasterio.features import rasterize
from shapely.geometry import box

CAR_HEIGHT_M = 1.5
TREE_ALBEDO = np.array([0.13, 0.20, 0.09])
TREE_SIGMA0_DB = -8.5
NO_WALL = np.float32(np.nan)


@dataclass
class Surfaces:
    """What a pixel can belong to, one row each: row k describes the pixels whose `Scene.surface` is k.

    Attributes:
        slope: (n, 2) dz/dx, dz/dy with x right and y *down* the raster.
        albedo: (n, 3) RGB in [0, 1]. sigma0_db: (n,) backscatter seen from above.
        wall_sigma0_db, corner_sigma0_db: (n,) of the walls below it; -inf where it has none (ground).
        texture: (n,) relative amplitude of the small-scale variation of the albedo.
    """

    slope: np.ndarray
    albedo: np.ndarray
    sigma0_db: np.ndarray
    wall_sigma0_db: np.ndarray
    corner_sigma0_db: np.ndarray
    texture: np.ndarray


@dataclass
class Scene:
    """Rasters (H, W) of a window.

    Attributes:
        height_m: float32, metres above ground of everything.
        surface: int32, row of `surfaces`.
        wall_angle: float32, direction of the wall that passes here in radians modulo pi, clockwise from image right;
            nan where none is within 0.6 m.
        surfaces: materials.
        gsd_m: metres per pixel of these rasters. oversample: rasters' pixels per pixel of the tile.
        core: (row slice, column slice) of the tile in the rasters.
    """

    height_m: np.ndarray
    surface: np.ndarray
    wall_angle: np.ndarray
    surfaces: Surfaces
    gsd_m: float
    oversample: int
    core: tuple[slice, slice]

    def flipped_horizontally(self) -> "Scene":
        """The mirrored scene (left <-> right)."""
        rows, columns = self.core
        width = self.height_m.shape[1]
        return replace(
            self,
            height_m=np.ascontiguousarray(self.height_m[:, ::-1]),
            surface=np.ascontiguousarray(self.surface[:, ::-1]),
            wall_angle=np.ascontiguousarray((math.pi - self.wall_angle[:, ::-1]) % math.pi),
            surfaces=replace(self.surfaces, slope=self.surfaces.slope * [-1, 1]),
            core=(rows, slice(width - columns.stop, width - columns.start)),
        )


def margins_m(sensor: SensorGeometry, height_m: float) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) metres beyond a tile within which something `height_m` high can affect its pixels."""
    cot = lambda deg: 1 / math.tan(math.radians(deg))  # noqa: E731
    reaches = [  # (azimuth from the tile to the culprit, distance)
        (sensor.sun_azimuth_deg, height_m * cot(sensor.sun_elevation_deg)),
        (sensor.sar_look_azimuth_deg, height_m * cot(sensor.sar_incidence_deg)),
        (sensor.sar_look_azimuth_deg + 180, height_m / cot(sensor.sar_incidence_deg)),
    ]
    if sensor.view_off_nadir_deg:
        reaches.append((sensor.view_azimuth_deg, height_m / cot(sensor.view_off_nadir_deg)))
    east = [d * math.sin(math.radians(a)) for a, d in reaches]
    north = [d * math.cos(math.radians(a)) for a, d in reaches]
    spare = 3.0  # point spread and the rounding of rays
    return tuple(spare + max(0.0, *side) for side in ([-e for e in east], north, east, [-n for n in north]))


def rasterize_scene(
    city: City,
    bounds: tuple[float, float, float, float],
    gsd_m: float,
    sensor: SensorGeometry,
    oversample: int = 2,
    walls: bool = True,
) -> Scene:
    """The tile `bounds` (x0, y0, x1, y1 in city metres) of `city` with the margin that `sensor` needs.

    Sides of `bounds` must be multiples of `gsd_m`; the scene's rasters are `oversample` times finer. Without `walls` no
    pixel knows the direction of its wall, which the radar alone asks for.
    """
    fine_m = gsd_m / oversample
    tallest_m = _tallest_m(city, bounds, sensor)
    left, top, right, bottom = (math.ceil(m / gsd_m) * oversample for m in margins_m(sensor, tallest_m))
    x0, y0, x1, y1 = bounds
    rows, columns = (round(side / fine_m) for side in (y1 - y0, x1 - x0))
    shape = (top + rows + bottom, left + columns + right)
    transform = Affine(fine_m, 0, x0 - left * fine_m, 0, -fine_m, y1 + top * fine_m)
    window = (transform.c, transform.f - shape[0] * fine_m, transform.c + shape[1] * fine_m, transform.f)
    shapes, planes, surfaces = _tables(city, window)
    surface = (
        rasterize(shapes, out_shape=shape, transform=transform, fill=0, dtype="int32")
        if shapes
        else np.zeros(shape, np.int32)
    )
    height_m = _plane_heights(surface, planes, transform)
    _stamp_trees(city.trees, transform, height_m, surface, len(planes) - 1)
    return Scene(
        height_m=height_m,
        surface=surface,
        wall_angle=_wall_angles(city.near(window) if walls else [], transform, shape),
        surfaces=surfaces,
        gsd_m=fine_m,
        oversample=oversample,
        core=(slice(top, top + rows), slice(left, left + columns)),
    )


def building_heights(buildings: list[CityBuilding], transform: Affine, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32: the label height of the building that each pixel centre lies in, metres; 0 outside buildings."""
    shapes = [(b.footprint, b.height_m) for b in buildings]
    if not shapes:
        return np.zeros(shape, np.float32)
    return rasterize(shapes, out_shape=shape, transform=transform, fill=0, dtype="float32")


def _tallest_m(city: City, bounds, sensor: SensorGeometry) -> float:
    """Height of the tallest thing near enough to matter, metres (one round of narrowing is enough)."""
    tallest_m = 0.0
    reach_m = 100.0
    for _ in range(2):
        x0, y0, x1, y1 = bounds
        near = city.near((x0 - reach_m, y0 - reach_m, x1 + reach_m, y1 + reach_m))
        tops = [ridge_m(b) for b in near]
        tallest_m = max([CAR_HEIGHT_M, *tops, *city.trees[:, 3]])
        reach_m = max(margins_m(sensor, tallest_m))
    return tallest_m


def ridge_m(building: CityBuilding) -> float:
    """The highest point of a building, metres."""
    return max(
        float((shapely.get_coordinates(p.polygon) @ p.plane[:2]).max() + p.plane[2]) for p in building.roof
    )


def _tables(city: City, window) -> tuple[list, np.ndarray, Surfaces]:
    """Polygons to burn in order, their planes (n, 3), and their materials. Row 0 is grass, the last row is tree."""
    shapes, planes = [], []
    albedo, sigma0, wall, corner, texture = [], [], [], [], []

    def add(polygon, plane, rgb, sigma0_db, wall_db, corner_db, amplitude):
        if polygon is not None:
            shapes.append((polygon, len(planes)))
        planes.append(plane)
        for column, value in zip(
            (albedo, sigma0, wall, corner, texture),
            (rgb, sigma0_db, wall_db, corner_db, amplitude),
            strict=True,
        ):
            column.append(value)

    flat, none = (0.0, 0.0, 0.0), -np.inf
    for kind in range(len(GROUND_ALBEDO)):
        add(
            None,
            flat,
            city.ground_albedo[kind],
            city.ground_sigma0_db[kind],
            none,
            none,
            0.25 if kind in (0, 4) else 0.1,
        )
    area = box(*window)
    for polygon, kind in city.ground:
        if polygon.intersects(area):
            shapes.append((polygon, kind))
    for x, y, heading in city.cars:
        if window[0] < x < window[2] and window[1] < y < window[3]:
            rgb = np.array([[0.6, 0.6, 0.6], [0.1, 0.1, 0.12], [0.5, 0.1, 0.1], [0.15, 0.2, 0.4]])[
                int(abs(x) * 7) % 4
            ]
            add(_car(x, y, heading), (0, 0, CAR_HEIGHT_M), rgb, -4.0, -4.0, none, 0.05)
    for b in city.near(window):
        for piece in b.roof:
            add(
                piece.polygon,
                piece.plane,
                b.albedo,
                b.roof_sigma0_db,
                b.wall_sigma0_db,
                b.corner_sigma0_db,
                0.06,
            )
    add(None, flat, TREE_ALBEDO, TREE_SIGMA0_DB, TREE_SIGMA0_DB, none, 0.5)
    planes = np.array(planes, dtype=np.float64)
    columns = (np.array(c, dtype=np.float32) for c in (albedo, sigma0, wall, corner, texture))
    return shapes, planes, Surfaces(planes[:, :2] * [1, -1], *columns)


def _car(x: float, y: float, heading: float):
    return Plan((Part(-2.2, -0.9, 2.2, 0.9),), (x, y), heading).footprint()


def _plane_heights(surface: np.ndarray, planes: np.ndarray, transform: Affine) -> np.ndarray:
    a, b, c = planes.astype(np.float32).T
    x = (transform.c + (np.arange(surface.shape[1]) + 0.5) * transform.a).astype(np.float32)
    y = (transform.f + (np.arange(surface.shape[0]) + 0.5) * transform.e).astype(np.float32)
    return np.maximum(a[surface] * x + b[surface] * y[:, None] + c[surface], 0)


def _stamp_trees(
    trees: np.ndarray, transform: Affine, height_m: np.ndarray, surface: np.ndarray, row: int
) -> None:
    """Raise domes for the trees in place; where a tree is the highest, the surface is tree."""
    size = transform.a
    x1, y0 = transform.c + height_m.shape[1] * size, transform.f - height_m.shape[0] * size
    x, y, radius = trees[:, :3].T
    near = (x > transform.c - radius) & (x < x1 + radius) & (y > y0 - radius) & (y < transform.f + radius)
    for x, y, radius, top in trees[near]:
        j, i, r = (x - transform.c) / size, (transform.f - y) / size, radius / size
        j0, i0 = max(int(j - r), 0), max(int(i - r), 0)
        patch = (slice(i0, max(int(i + r) + 2, 0)), slice(j0, max(int(j + r) + 2, 0)))
        under = height_m[patch]
        if under.size == 0:
            continue
        di = (np.arange(under.shape[0]) + (i0 + 0.5 - i))[:, None]
        dj = np.arange(under.shape[1]) + (j0 + 0.5 - j)
        bulge = 1 - (di * di + dj * dj) / (r * r)
        crown = np.where(bulge > 0, top * (0.6 + 0.4 * np.sqrt(np.maximum(bulge, 0))), 0).astype(np.float32)
        wins = crown > under
        under[wins] = crown[wins]
        surface[patch][wins] = row


def _wall_angles(buildings: list[CityBuilding], transform: Affine, shape: tuple[int, int]) -> np.ndarray:
    """Draw every roof edge, then every outline edge (which may bear a wall on its whole length), with its direction."""
    canvas = np.full(shape, NO_WALL, np.float32)
    width = max(3, round(1.2 / transform.a) | 1)
    for polygon in [p.polygon for b in buildings for p in b.roof] + [b.footprint for b in buildings]:
        for ring in shapely.get_rings(polygon):
            xy = shapely.get_coordinates(map_to_pixel(ring, transform))
            steps = np.diff(xy, axis=0)
            angles = np.arctan2(steps[:, 1], steps[:, 0]) % math.pi
            ends = np.round((xy - 0.5) * 16).astype(int)
            for start, end, angle in zip(ends[:-1], ends[1:], angles, strict=True):
                cv2.line(canvas, start.tolist(), end.tolist(), float(angle), width, cv2.LINE_8, 4)
    return canvas
