"""The SAR picture: slant-range geometry projected to ground range, in linear power. Pure functions on arrays.

The scene is resampled once into a *radar frame*: rows are independent looks, columns run in ground range away from the
sensor. There every facet and every lit piece of wall is an interval of apparent ground range `g - z cot(incidence)`
with an energy (power times metres); intervals are added up exactly, so nothing depends on a step size. All facets obey
"constant gamma": energy is backscatter times the area seen by the sensor, scaled so that level ground of sigma nought
s and width w has the energy s w. A wall of height h then has s_wall h tan(incidence).
"""

import math
from dataclasses import dataclass

from fusiondet.buildings import SensorGeometry
from fusiondet.geometry.shadows import WALL_STEP_M, shadow_mask
from fusiondet.synthetic.surfaces import Scene, Surfaces

import cv2
import numpy as np

CORNER_WIDTH_DEG = 12.0  # the double bounce has fallen to a half at this angle from the wall's normal
FLOOR_DB = -40.0


@dataclass
class RadarFrame:
    """The scene along the look direction, (rows, columns) = (along track, ground range).

    Attributes:
        height_m: float32. surface: int32. wall_angle_deg: float32, between a wall's normal and the look; nan: no wall.
        slope: float32, dz per metre of ground range.
        spacing_m: between samples, both ways.
        to_scene: 2 x 3 matrix, (column, row) of this frame -> (column, row) of the scene's rasters, pixel centres.
    """

    height_m: np.ndarray
    surface: np.ndarray
    wall_angle_deg: np.ndarray
    slope: np.ndarray
    spacing_m: float
    to_scene: np.ndarray


def render_sar(
    scene: Scene,
    sensor: SensorGeometry,
    rng: np.random.Generator | None = None,
    looks: float = 4.0,
    resolution_m: float = 1.0,
    noise_floor_db: float = -24.0,
    shift_px: tuple[float, float] = (0.0, 0.0),
    shadow: bool = True,
    layover: bool = True,
    double_bounce: bool = True,
) -> np.ndarray:
    """SAR picture of the tile in dB, ground range, one polarisation.

    Args:
        rng: speckle; None gives none.
        looks: independent looks per resolution cell. resolution_m: also the spacing of independent speckle.
        noise_floor_db: added power. shift_px: (right, down) error of the registration, in tile pixels.
        shadow, layover, double_bounce: effects to keep; without layover roofs stay in place and walls are not seen.

    Returns:
        (H, W) float32, at least FLOOR_DB.
    """
    spacing_m = scene.gsd_m * scene.oversample
    frame = radar_frame(scene, sensor, spacing_m)
    power = ground_range_power(
        frame, scene.surfaces, sensor.sar_incidence_deg, shadow, layover, double_bounce
    )
    power = cv2.GaussianBlur(power.astype(np.float32), (0, 0), max(resolution_m / 2.355 / spacing_m, 0.1))
    step = max(1.0, resolution_m / spacing_m)
    size = (math.ceil(power.shape[1] / step), math.ceil(power.shape[0] / step))
    sampling = np.array([[1 / step, 0, 0.5 / step - 0.5], [0, 1 / step, 0.5 / step - 0.5]])
    if step > 1:
        power = cv2.warpAffine(power, sampling, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    power = power + 10 ** (noise_floor_db / 10)
    if rng is not None:
        power = speckle(power, looks, rng)
    return _to_tile(power, frame, scene, sampling, shift_px)


def radar_shadow_mask(
    height_m: np.ndarray, look_azimuth_deg: float, incidence_deg: float, gsd_m: float
) -> np.ndarray:
    """Pixels of the (H, W) `height_m` that the antenna cannot see; conventions of `SensorGeometry`, north up."""
    return shadow_mask(height_m, look_azimuth_deg + 180.0, 90.0 - incidence_deg, gsd_m)


def speckle(power: np.ndarray, looks: float, rng: np.random.Generator) -> np.ndarray:
    """`power` (linear) times gamma noise of mean 1 and variance 1 / `looks`."""
    return power * rng.standard_gamma(looks, power.shape, dtype=np.float32) / np.float32(looks)


def radar_frame(scene: Scene, sensor: SensorGeometry, spacing_m: float) -> RadarFrame:
    """Sample `scene` along the look direction at `spacing_m`, over the tile and what reaches into it."""
    look = math.radians(sensor.sar_look_azimuth_deg)
    away = np.array([math.sin(look), -math.cos(look)])  # ground range, in (x right, y down)
    along = np.array([-away[1], away[0]])
    rows, columns = scene.core
    centre = np.array([columns.start + columns.stop, rows.start + rows.stop]) / 2
    corners = (
        np.array([[x, y] for x in (columns.start, columns.stop) for y in (rows.start, rows.stop)]) - centre
    )
    reach = np.abs(corners @ np.column_stack([away, along])).max(axis=0) * scene.gsd_m / spacing_m
    tallest_m, cot = float(scene.height_m.max()), 1 / math.tan(math.radians(sensor.sar_incidence_deg))
    spare = 4
    near, far = (math.ceil(reach[0] + d / spacing_m) + spare for d in (tallest_m / cot, tallest_m * cot))
    half = math.ceil(reach[1]) + spare
    ratio = spacing_m / scene.gsd_m
    matrix = np.column_stack([away, along]) * ratio
    origin = centre - 0.5 - matrix @ [near, half] + matrix @ [0.5, 0.5]
    to_scene = np.column_stack([matrix, origin])
    index, inside = _nearest(to_scene, (2 * half, near + far), scene.height_m.shape)
    surface = np.where(inside, scene.surface.ravel()[index], 0)
    normal = scene.wall_angle.ravel()[index] + math.pi / 2 - math.atan2(away[1], away[0])
    slope = (scene.surfaces.slope @ away).astype(np.float32)[surface]
    return RadarFrame(
        height_m=np.where(inside, scene.height_m.ravel()[index], 0),
        surface=surface,
        wall_angle_deg=np.degrees(np.abs((normal + math.pi / 2) % math.pi - math.pi / 2)),
        slope=slope,
        spacing_m=spacing_m,
        to_scene=to_scene,
    )


def _nearest(matrix: np.ndarray, shape: tuple[int, int], source_shape: tuple[int, int]):
    """Flat indices into the source of the pixels nearest to matrix @ (column, row, 1), and which of them exist."""
    (a, b, c), (d, e, f) = matrix.astype(np.float32)
    column, row = np.arange(shape[1], dtype=np.float32), np.arange(shape[0], dtype=np.float32)[:, None]
    x, y = np.rint(a * column + (b * row + c)), np.rint(d * column + (e * row + f))
    inside = (x >= 0) & (y >= 0) & (x < source_shape[1]) & (y < source_shape[0])
    np.clip(x, 0, source_shape[1] - 1, out=x)
    np.clip(y, 0, source_shape[0] - 1, out=y)
    return y.astype(np.int32) * source_shape[1] + x.astype(np.int32), inside


def ground_range_power(
    frame: RadarFrame,
    surfaces: Surfaces,
    incidence_deg: float,
    shadow: bool = True,
    layover: bool = True,
    double_bounce: bool = True,
) -> np.ndarray:
    """Noiseless power in ground range, (rows, columns) of `frame`, float64; level ground has its sigma nought."""
    tan, cot = math.tan(math.radians(incidence_deg)), 1 / math.tan(math.radians(incidence_deg))
    step_m = frame.spacing_m
    z, slope = frame.height_m, frame.slope
    lit, ray_m = lit_share(z, slope, cot, step_m, shadow)
    materials = _linear(surfaces)
    lift = cot if layover else 0.0
    edges = np.arange(z.shape[1] + 1, dtype=np.float32) * step_m
    # Level and tilted facets: constant gamma, so tilting towards the sensor adds and tilting away removes area.
    energy = materials["sigma0"][frame.surface] * np.maximum(1 + slope * tan, 0) * step_m * lit
    half_m = slope * (step_m / 2)
    start, stop = edges[:-1] - (z - half_m) * lift, edges[1:] - (z + half_m) * lift
    intervals = [(np.broadcast_to(np.arange(len(z))[:, None], z.shape), start, stop, energy)]
    if layover:
        intervals.append(_walls(frame, ray_m, tan, cot, materials))
    if double_bounce:
        intervals.append(_corners(frame, lit, ray_m, tan, lift, materials))
    return add_intervals(intervals, z.shape, step_m)


def lit_share(height_m, slope, cot: float, step_m: float, shadow: bool = True):
    """Share of each cell that the sensor sees, and the height of the lowest free ray at each cell's near edge.

    Args:
        height_m, slope: (rows, columns), ground range along columns; cot: of the incidence angle.

    Returns:
        (share in [0, 1], ray_m): below `ray_m` metres the near edge of the cell is in radar shadow; -inf when nothing
        is in front or `shadow` is false.
    """
    columns = np.arange(height_m.shape[1], dtype=np.float32) * (step_m * cot)
    rise_m = step_m * cot
    half_m = slope * (step_m / 2)
    # Each cell blocks with its far edge, and with its near edge when it tilts more steeply away than the ray.
    top_m = np.maximum(height_m + half_m + rise_m, height_m - half_m) + columns
    blocked_m = np.maximum.accumulate(top_m, axis=1)
    ray_m = np.full(height_m.shape, -np.inf, np.float32)
    ray_m[:, 1:] = blocked_m[:, :-1] - columns[1:]
    if not shadow:
        ray_m[:] = -np.inf
    far_m = height_m + half_m + rise_m
    gain_m = np.maximum(rise_m + slope * step_m, 1e-6)
    share = np.clip((far_m - ray_m) / gain_m, 0, 1)
    return np.where(rise_m + slope * step_m <= 0, 0, share).astype(np.float32), ray_m


def _linear(surfaces: Surfaces) -> dict[str, np.ndarray]:
    tables = (
        ("sigma0", surfaces.sigma0_db),
        ("wall", surfaces.wall_sigma0_db),
        ("corner", surfaces.corner_sigma0_db),
    )
    return {name: (10 ** (db / 10)).astype(np.float32) for name, db in tables}


def _steps(frame: RadarFrame):
    """(row, column) of cells with a wall towards the sensor at their near edge, the wall's foot and top in metres."""
    z, half_m = frame.height_m, frame.slope * (frame.spacing_m / 2)
    foot_m, top_m = (z + half_m)[:, :-1], (z - half_m)[:, 1:]
    changes = (frame.surface[:, 1:] != frame.surface[:, :-1]) | (np.abs(top_m - foot_m) > 4 * WALL_STEP_M)
    row, column = np.nonzero(changes & (top_m - foot_m > WALL_STEP_M))
    return row, column + 1, foot_m[row, column], top_m[row, column]


def _walls(frame: RadarFrame, ray_m, tan: float, cot: float, materials):
    """Intervals of the lit part of every wall that faces the sensor."""
    row, column, foot_m, top_m = _steps(frame)
    edge_m = column * np.float32(frame.spacing_m)
    low_m = np.clip(ray_m[row, column], foot_m, top_m)
    energy = materials["wall"][frame.surface[row, column]] * (top_m - low_m) * tan
    return row, edge_m - low_m * cot, edge_m - top_m * cot, energy


def corner_response(angle_deg):
    """Relative strength of the double bounce at `angle_deg` between wall normal and look: 1, 1/2 at 12, 1/40 at 30."""
    return 1 / (1 + (np.asarray(angle_deg) / CORNER_WIDTH_DEG) ** 4)


def _corners(frame: RadarFrame, lit, ray_m, tan: float, lift: float, materials):
    """Intervals of the double bounce between a wall and the level surface in front of it.

    A ray that meets the ground at a distance d < h tan(incidence) in front of a wall of height h comes back by way of
    the wall, and all such rays arrive at the range of the wall's foot. So the energy is proportional to the length of
    that strip which is lit and at the level of the foot: obstacles and shadows take their share away.
    """
    row, column, foot_m, top_m = _steps(frame)
    step_m = frame.spacing_m
    length = np.minimum(np.floor((top_m - foot_m) * tan / step_m + 0.5).astype(int), column)
    level = lit * 1.0
    seen = np.zeros((lit.shape[0], lit.shape[1] + 1))
    np.cumsum(level, axis=1, out=seen[:, 1:])
    # The strip ends where the surface in front is no longer at the foot's level: find it by the last change.
    change = np.abs(np.diff(frame.height_m, axis=1, prepend=0)) > WALL_STEP_M
    last = np.maximum.accumulate(np.where(change, np.arange(lit.shape[1]), 0), axis=1)
    first = np.maximum(column - length, last[row, column - 1])
    free_m = (seen[row, column] - seen[row, first]) * step_m
    angle = frame.wall_angle_deg[row, column]
    angle = np.where(np.isnan(angle), frame.wall_angle_deg[row, column - 1], angle)
    strength = corner_response(np.where(np.isnan(angle), 90.0, angle))
    energy = materials["corner"][frame.surface[row, column]] * strength * free_m
    at_m = column * step_m - foot_m * lift
    return row, at_m - step_m / 2, at_m + step_m / 2, energy


def add_intervals(intervals, shape: tuple[int, int], step_m: float) -> np.ndarray:
    """Power of cells `step_m` wide that receive energies spread evenly over intervals.

    Args:
        intervals: tuples (row, start_m, stop_m, energy) of arrays; ends in any order; energy in power times metres.
            What lies outside the cells is lost.

    Returns:
        (rows, columns) float64: sums over a row times `step_m` equal the energies inside it.
    """
    rows, columns = shape
    pad = 2  # guard cells take what falls outside
    width = columns + 2 * pad
    slopes = np.zeros(rows * width)
    for row, start_m, stop_m, energy in intervals:
        row, start_m, stop_m, energy = (np.ravel(v) for v in (row, start_m, stop_m, energy))
        keep = energy > 0
        row, energy = row[keep], energy[keep].astype(np.float64)
        ends = np.sort(np.stack([start_m[keep], stop_m[keep]]), axis=0) / step_m
        centre, halfwidth = ends.mean(axis=0), np.maximum(np.diff(ends, axis=0)[0] / 2, 0.05)
        density = energy / (2 * halfwidth * step_m)
        for position, sign in ((centre - halfwidth, 1), (centre + halfwidth, -1)):
            position = np.clip(position, -1, columns + 1) + pad
            cell = position.astype(np.int64)
            part = position - cell
            flat = row * width + cell
            # A box that starts inside a cell fills 1 - part of it and all of the next ones.
            slopes += np.bincount(flat, sign * density * (1 - part), len(slopes))
            slopes += np.bincount(flat + 1, sign * density * part, len(slopes))[: len(slopes)]
    power = np.cumsum(slopes.reshape(rows, width), axis=1)[:, pad : pad + columns]
    return np.maximum(power, 0)


def _to_tile(power, frame: RadarFrame, scene: Scene, sampling, shift_px) -> np.ndarray:
    """Resample power from the (decimated) radar frame onto the tile's pixels, linearly, and turn it into dB."""
    rows, columns = scene.core
    n = scene.oversample
    tile_to_scene = np.array(
        [
            [n, 0, columns.start + n / 2 - 0.5 - n * shift_px[0]],
            [0, n, rows.start + n / 2 - 0.5 - n * shift_px[1]],
        ]
    )
    to_power = _compose(sampling, _compose(_invert(frame.to_scene), tile_to_scene))
    size = ((columns.stop - columns.start) // n, (rows.stop - rows.start) // n)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    tile = cv2.warpAffine(
        power.astype(np.float32), to_power, size, flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return np.maximum(10 * np.log10(np.maximum(tile, 1e-9)), FLOOR_DB).astype(np.float32)


def _compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """2 x 3 matrix of `outer` after `inner`."""
    return np.column_stack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2] + outer[:, 2]])


def _invert(matrix: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(matrix[:, :2])
    return np.column_stack([inverse, -inverse @ matrix[:, 2]])
