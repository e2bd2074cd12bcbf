"""What regular outlines are worth: ours, buildingregulariser's and plain simplification against the truth.

Footprints whose outline is known become mask probabilities as a network's mask head gives them: 28 x 28 in a box that
is a little off, blurred, with errors that hang together over some pixels. These become outlines, and the contestants
make buildings of them. Merging across seams and regularising are then timed on layers of one and of ten times the size.
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusiondet.buildings import Building, clean_polygon
from fusiondet.cli import progress
from fusiondet.errors import InputError
from fusiondet.evaluation.layer_scores import polis
from fusiondet.geometry.contours import mask_to_polygon_px, simplify
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.geometry.regularization import regularize
from fusiondet.geometry.seams import SeamMerger

import geopandas
import numpy as np
import shapely
from scipy.ndimage import gaussian_filter
from shapely.affinity import affine_transform, scale, translate
from shapely.geometry.base import BaseGeometry

MASK_SIZE = 28
# Samples per mask cell and direction when the truth is drawn.
FINE = 8
# What the pipeline does to outlines in any case, px.
SIMPLIFY_PX = 0.1
# Neighbours share a wall of at least this length, metres.
SHARED_WALL_M = 2.0


# Seams are timed with windows and overlaps like these, px: so many that borders of the layer do not count.
WINDOW_PX, OVERLAP_PX = 512, 96
FACTOR = 10
# What has to hold of the growth.
GROWTH_LIMIT = 11.0


@dataclass(frozen=True)
class PolygonSettings:
    """What is measured.

    Attributes:
        buildings: how many at most. footprints: CityJSON to take them from; None: a city of the preset "realistic".
        gsd_m: metres per pixel of the picture that the masks come from.
        noise: standard deviation of the errors of the mask's probabilities, before the threshold.
        tolerance_m, min_iou: of `regularize`.
        grown: buildings of the smaller layer of the growth, the larger one has ten times as many; 0: no growth.
        seed: of city and noise.

    Raises:
        InputError: a number is too small or too large.
    """

    buildings: int = 1000
    footprints: Path | None = None
    gsd_m: float = 0.5
    noise: float = 0.15
    tolerance_m: float = 1.0
    min_iou: float = 0.9
    grown: int = 10_000
    seed: int = 0

    def __post_init__(self):
        limits = {
            "buildings": (1, 1e6),
            "gsd_m": (0.05, 10),
            "noise": (0, 1),
            "tolerance_m": (0.01, 20),
            "min_iou": (0, 1),
            "grown": (0, 1e6),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(
                    f"{name.replace('_', '-')} is {getattr(self, name)}, expected {low:g} to {high:g}."
                )


def benchmark_polygons(settings: PolygonSettings) -> dict:
    """Quality and time of every contestant, and growth; see `quality` for the numbers.

    Returns:
        {"settings", "contestants": {name: numbers with "seconds_per_1000"}, "growth": {name: {"seconds": [2],
        "ratio"}}, "notes"}. Seconds are of the processor.
    """
    truth, outlines = noisy_layer(true_footprints(settings), settings)
    contestants, notes = _contestants(settings)
    result = {}
    for name, run in progress(list(contestants.items()), label="regularising", unit="contestant"):
        start = time.process_time()
        found = run(outlines)
        seconds = time.process_time() - start
        result[name] = quality(found, truth) | {"seconds_per_1000": 1000 * seconds / len(outlines)}
    return {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()},
        "measured": len(truth),
        "contestants": result,
        "growth": _growth(outlines, settings) if settings.grown else {},
        "notes": notes,
    }


def format_table(result: dict) -> str:
    """The result for a terminal."""
    columns = {
        "iou": "IoU",
        "polis_m": "PoLiS m",
        "hausdorff_m": "Hausd. m",
        "vertices": "vertices",
        "right_angles": "right",
        "invalid": "invalid",
        "overlap_m2": "overlap m²",
        "gap_m2": "gap m²",
        "shared": "shared",
        "seconds_per_1000": "s/1000",
    }
    lines = [f"{result['measured']} buildings", " " * 30 + "".join(f"{c:>11}" for c in columns.values())]
    for name, numbers in result["contestants"].items():
        cells = "".join(
            f"{numbers[k]:>11d}" if isinstance(numbers[k], int) else f"{numbers[k]:>11.3f}" for k in columns
        )
        lines.append(f"{name:<30}{cells}")
    for name, grown in result["growth"].items():
        held = "holds" if grown["ratio"] <= GROWTH_LIMIT else "DOES NOT HOLD"
        small, large = grown["seconds"]
        lines.append(
            f"{name}: {grown['buildings']} buildings {small:.2f} s, {FACTOR} times as many {large:.2f} s: "
            f"x {grown['ratio']:.1f}, at most {GROWTH_LIMIT:g} {held}"
        )
    return "\n".join([*lines, *result["notes"]])


def _contestants(settings: PolygonSettings) -> tuple[dict[str, Callable], list[str]]:
    contestants: dict[str, Callable] = {
        "given outlines": list,
        "simplified": lambda outlines: [simplify(p, settings.tolerance_m / 2) for p in outlines],
        "fusiondet": lambda outlines: regularize(outlines, settings.tolerance_m, settings.min_iou),
    }
    try:
        import buildingregulariser  # noqa: F401
    except ImportError:
        return contestants, ["buildingregulariser is not installed: pip install buildingregulariser"]
    # Its defaults are for outlines like these; half the tolerance is what they are at 1 m.
    common = {"parallel_threshold": settings.tolerance_m, "num_cores": 1}
    half, whole = settings.tolerance_m / 2, settings.tolerance_m
    variants = {
        "buildingregulariser": {"simplify_tolerance": half},
        "  coarser": {"simplify_tolerance": whole},
        "  neighbours aligned": {"simplify_tolerance": half, "neighbor_alignment": True},
    }
    for name, options in variants.items():
        contestants[name] = lambda outlines, options=options: _by_library(outlines, **common, **options)
    return contestants, []


def _by_library(outlines: Sequence[BaseGeometry], **options) -> list[BaseGeometry]:
    """Outlines by buildingregulariser; those it drops stay as given."""
    from buildingregulariser import regularize_geodataframe

    # Far from the origin, as maps are: its frame has to be a projected one.
    frame = geopandas.GeoDataFrame(
        {"number": range(len(outlines))},
        geometry=[translate(p, 500_000, 5_700_000) for p in outlines],
        crs="EPSG:32631",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        regular = regularize_geodataframe(frame, **options)
    found = list(outlines)
    for number, polygon in zip(regular["number"], regular.geometry):
        found[number] = translate(polygon, -500_000, -5_700_000)
    return found


def _growth(outlines: Sequence[BaseGeometry], settings: PolygonSettings) -> dict[str, dict]:
    seconds: dict[str, list[float]] = {"merging across seams": [], "regularising": []}
    for count in (settings.grown, FACTOR * settings.grown):
        layer = _tiled(outlines, count)
        windows, answers = _cut_by_windows(layer, settings.gsd_m)
        start = time.process_time()
        merger = SeamMerger(windows)
        merged = [b for i, answer in enumerate(answers) for b in merger.add(i, answer)] + merger.finish()
        seconds["merging across seams"].append(time.process_time() - start)
        del merged, answers
        start = time.process_time()
        regularize(layer, settings.tolerance_m, settings.min_iou)
        seconds["regularising"].append(time.process_time() - start)
    return {
        name: {"buildings": settings.grown, "seconds": pair, "ratio": pair[1] / pair[0]}
        for name, pair in seconds.items()
    }


def _tiled(outlines: Sequence[BaseGeometry], count: int) -> list[BaseGeometry]:
    """`count` outlines: the layer side by side with itself."""
    x0, y0, x1, y1 = shapely.total_bounds(list(outlines))
    copies = math.ceil(count / len(outlines))
    columns = math.ceil(math.sqrt(copies))
    tiled = []
    for k in range(copies):
        dx, dy = k % columns * (x1 - x0 + 10) - x0, k // columns * (y1 - y0 + 10) - y0
        tiled += [translate(p, dx, dy) for p in outlines]
    return tiled[:count]


def _cut_by_windows(layer: Sequence[BaseGeometry], gsd_m: float) -> tuple[list[tuple], list[list[Building]]]:
    """Windows over the whole layer, in pixels, and what a perfect network sees in each."""
    outlines = [scale(p, 1 / gsd_m, 1 / gsd_m, origin=(0, 0)) for p in layer]
    _, _, x1, y1 = shapely.total_bounds(outlines)
    step = WINDOW_PX - OVERLAP_PX
    windows = [
        (x, y, WINDOW_PX, WINDOW_PX)
        for y in range(0, math.ceil(y1), step)
        for x in range(0, math.ceil(x1), step)
    ]
    tree, answers = shapely.STRtree(outlines), []
    for x, y, width, height in windows:
        view = shapely.box(x, y, x + width, y + height)
        seen = (clean_polygon(outlines[i].intersection(view)) for i in sorted(tree.query(view)))
        answers.append([Building(p, 9.0, 8.0, 10.0, 0.9) for p in seen if p is not None])
    return windows, answers


def true_footprints(settings: PolygonSettings) -> list[BaseGeometry]:
    """Single-part footprints in metres, neighbours beside each other."""
    # Imported here: the city brings matplotlib's and pyproj's weight, which the functions on shapes do not need.
    from fusiondet.synthetic.footprints import read_city
    from fusiondet.synthetic.presets import preset
    from fusiondet.synthetic.procedural import make_city

    if settings.footprints is not None:
        buildings = read_city(settings.footprints).buildings
    else:
        side_m = 40.0 * np.sqrt(settings.buildings / 2.5)
        rngs = (np.random.default_rng([settings.seed, i]) for i in range(2))
        buildings = make_city(preset("realistic"), (0, 0, side_m, side_m), *rngs).buildings
    parts = [p for b in buildings for p in getattr(b.footprint, "geoms", [b.footprint])]
    return parts[: settings.buildings]


def noisy_outline(
    true_px: BaseGeometry, rng: np.random.Generator, noise: float = 0.15
) -> BaseGeometry | None:
    """What a network would give for a footprint in pixels: outline of a mask with its usual errors."""
    x0, y0, x1, y1 = true_px.bounds
    box = (
        np.array([x0, y0, x1, y1])
        + rng.normal(0, 0.03, 4) * np.array([x1 - x0, y1 - y0] * 2)
        + [-1, -1, 1, 1]
    )
    n, size = MASK_SIZE * FINE, box[2:] - box[:2]
    to_mask = [n / size[0], 0, 0, n / size[1], -box[0] * n / size[0], -box[1] * n / size[1]]
    inside = polygon_to_mask(affine_transform(true_px, to_mask), n, n).astype(np.float32)
    # Pictures are blurred by a pixel or so, and masks by a cell.
    cell_px = size / MASK_SIZE
    sigma = np.hypot(0.7, 0.7 * cell_px) / cell_px * FINE
    prob = (
        gaussian_filter(inside, sigma[::-1], mode="constant")
        .reshape(MASK_SIZE, FINE, MASK_SIZE, FINE)
        .mean((1, 3))
    )
    errors = gaussian_filter(rng.normal(size=prob.shape), 1.5 / cell_px[::-1])
    prob = prob + noise * errors / max(errors.std(), 1e-9)
    return mask_to_polygon_px(np.clip(prob, 0, 1), box, tolerance_px=SIMPLIFY_PX)


def noisy_layer(truth: Sequence[BaseGeometry], settings: PolygonSettings) -> tuple[list, list]:
    """(truth, outlines), both in metres, of the footprints of which a mask shows anything."""
    rng = np.random.default_rng([settings.seed, 2])
    kept, outlines = [], []
    for true in truth:
        true_px = scale(true, 1 / settings.gsd_m, 1 / settings.gsd_m, origin=(0, 0))
        outline = noisy_outline(true_px, rng, settings.noise)
        if outline is not None:
            kept.append(true)
            outlines.append(scale(outline, settings.gsd_m, settings.gsd_m, origin=(0, 0)))
    return kept, outlines


def quality(found: Sequence[BaseGeometry], truth: Sequence[BaseGeometry]) -> dict[str, float]:
    """How `found` follow `truth`, one by one, and whether neighbours meet.

    Returns:
        iou: mean. polis_m, hausdorff_m: means; PoLiS is the mean distance of the vertices of either to the other's
        outline. vertices: per building. right_angles: share of corners within 1 degree of 90. invalid: how many.
        overlap_m2, gap_m2: per pair of neighbours that truly share a wall. shared: share of these pairs that have at
        least half of that wall in common, to a millimetre.
    """
    found, truth = np.array(found), np.array(truth)
    valid = shapely.is_valid(found)
    usable = np.where(valid, found, shapely.make_valid(found))
    both = shapely.area(shapely.intersection(usable, truth))
    numbers = {
        "iou": float(np.mean(both / (shapely.area(usable) + shapely.area(truth) - both))),
        "polis_m": float(np.mean([polis(a, b) for a, b in zip(usable, truth)])),
        "hausdorff_m": float(
            np.mean(shapely.hausdorff_distance(shapely.boundary(usable), shapely.boundary(truth)))
        ),
        "vertices": float(np.mean(shapely.get_num_coordinates(usable) - [_rings(p) for p in usable])),
        "right_angles": _right_angles(usable),
        "invalid": int((~valid).sum()),
    }
    return numbers | _neighbours(usable, truth)


def _rings(polygon: BaseGeometry) -> int:
    return sum(1 + len(p.interiors) for p in getattr(polygon, "geoms", [polygon]) if p.geom_type == "Polygon")


def _right_angles(polygons) -> float:
    corners = right = 0
    for ring in shapely.get_rings(shapely.get_parts(polygons)):
        steps = np.diff(shapely.get_coordinates(ring), axis=0)
        steps /= np.maximum(np.hypot(*steps.T), 1e-12)[:, None]
        bend = np.abs((steps * np.roll(steps, 1, axis=0)).sum(axis=1))
        # A point of a neighbour's corner on a straight wall is no corner.
        bends = bend < np.cos(np.radians(1))
        corners += int(bends.sum())
        right += int((bend[bends] < np.sin(np.radians(1))).sum())
    return right / max(corners, 1)


def _neighbours(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    i, j = shapely.STRtree(truth).query(truth, predicate="dwithin", distance=0.01)
    i, j = i[i < j], j[i < j]
    wall_m = np.array([_common_wall(a, b) for a, b in zip(truth[i], truth[j])])
    long = wall_m >= SHARED_WALL_M
    i, j, wall_m = i[long], j[long], wall_m[long]
    if not len(i):
        return dict.fromkeys(("overlap_m2", "gap_m2", "shared"), 0.0) | {"pairs": 0}
    overlap_m2 = shapely.area(shapely.intersection(found[i], found[j]))
    shared = np.array([_common_wall(a, b) for a, b in zip(found[i], found[j])]) >= wall_m / 2
    # What lies within a metre of both, between them, and belongs to nobody.
    around = shapely.union_all(found)
    shapely.prepare(around)
    between = shapely.intersection(
        shapely.buffer(found[i], 0.75, join_style="mitre"), shapely.buffer(found[j], 0.75, join_style="mitre")
    )
    closed = shapely.buffer(
        shapely.buffer(shapely.union(found[i], found[j]), 0.75, join_style="mitre"), -0.75, join_style="mitre"
    )
    gap_m2 = shapely.area(shapely.difference(shapely.intersection(between, closed), around))
    return {
        "overlap_m2": float(overlap_m2.mean()),
        "gap_m2": float(gap_m2.mean()),
        "shared": float(shared.mean()),
        "pairs": len(i),
    }


def _common_wall(a: BaseGeometry, b: BaseGeometry) -> float:
    """Length of the outline of `a` that lies on that of `b`, to a millimetre."""
    return a.boundary.intersection(b.boundary.buffer(1e-3)).length
