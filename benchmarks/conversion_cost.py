"""What a conversion costs: time and memory as tiles and buildings grow, and against a plain loop on the same input.

Every run is a process of its own, so that its peak memory is its own, and counts from its start. Contestants take turns
in rounds; each round gives one ratio per pair. Ratios are of processor time, user and system, all processes of a run
together: it is what a shared machine disturbs least. The inputs are made on the way, from a seed, and so are the plain
loop's results, which have to be the conversion's: the same tiles, outlines and pixels.
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fusiondet.analysis.timing import Ratio, paired_ratio, verdict
from fusiondet.buildings import pixel_to_map
from fusiondet.cli import progress
from fusiondet.errors import InputError
from fusiondet.io.coco import polygon_from_segmentation

import geopandas
import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.windows import Window

CRS = "EPSG:28992"
ORIGIN, GSD_M = (120_000.0, 480_000.0), 0.5
# Sparse rasters are as large as one likes and take no time to make or to read: for growth, not for comparisons.
GROWTH_TILE_PX = 128
# What both sides drop.
MIN_AREA_M2 = 2.0

# What has to hold, and of which ratio.
LIMITS = {"memory": 1.1, "growth": 11.0, "speed": 1 / 5}
FACTOR = 10


@dataclass(frozen=True)
class ConversionSettings:
    """What is measured.

    Attributes:
        mosaic_px, tile_px: sides of the mosaic, and of its tiles.
        buildings: footprints on the mosaic. city: buildings of the CityJSON.
        tiles: for the growth; ten times as many are the other point. grown_buildings: likewise.
        rounds: each contestant runs once in each.
        folder: for inputs and results, which take 3 bytes for each pixel of four mosaics; None: a temporary one.
        compress: GDAL's name of a compression of the mosaic, and so of the copied tiles; None: none.

    Raises:
        InputError: a number is too small.
    """

    mosaic_px: int = 20_000
    tile_px: int = 512
    buildings: int = 10_000
    city: int = 10_000
    tiles: int = 400
    grown_buildings: int = 2_000
    rounds: int = 3
    seed: int = 0
    folder: Path | None = None
    compress: str | None = None

    def __post_init__(self):
        lowest = {"mosaic_px": 64, "tile_px": 32, "rounds": 1, "tiles": 4}
        for name in ("mosaic_px", "tile_px", "buildings", "city", "tiles", "grown_buildings", "rounds"):
            if getattr(self, name) < lowest.get(name, 1):
                raise InputError(
                    f"benchmark: {name} is {getattr(self, name)}, expected at least {lowest.get(name, 1)}."
                )
        if self.tile_px > self.mosaic_px:
            raise InputError(f"benchmark: tiles of {self.tile_px} px in a mosaic of {self.mosaic_px} px.")


@dataclass
class Cost:
    """Of one run: seconds of the clock and of all processors, peak memory of the main process and of a worker, and what
    was written, links not counted.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    worker_bytes: int
    written_bytes: int


def benchmark_conversion(settings: ConversionSettings) -> dict:
    """Plain data for `format_table`: settings, the median cost of every contestant, growth and ratios with verdicts.

    Raises:
        InputError: the folder cannot be used, or a conversion refuses.
        RuntimeError: a plain loop's result is another than the conversion's.
    """
    with _folder(settings.folder) as folder:
        contestants = {
            **_growing_tiles(folder, settings),
            **_growing_buildings(folder, settings),
            **_on_mosaic(folder, settings),
        }
        costs = defaultdict(list)
        names = list(contestants)
        turns = [names[(i + k) % len(names)] for i in range(settings.rounds) for k in range(len(names))]
        for name in progress(turns, label="benchmark", unit="run"):
            costs[name].append(contestants[name]())
        contestants[LOOP]()
        checked = compare_results(folder)
    return {
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k != "folder"},
        "machine": f"CPU ({platform.machine()}), {os.cpu_count()} cores",
        "runs": {name: _typical(of_name) for name, of_name in costs.items()},
        "growth": _growth(costs, settings),
        "ratios": _ratios(costs),
        "same": checked,
    }


def _typical(costs: list[Cost]) -> dict:
    return {f.name: statistics.median(getattr(c, f.name) for c in costs) for f in dataclasses.fields(Cost)}


@contextlib.contextmanager
def _folder(folder: Path | None):
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="convert-", dir=folder) as made:
        yield Path(made)


# ---- Contestants -----------------------------------------------------------------------------------------

# Tiles that refer to their mosaic, and copies: one process unless the name says otherwise.
RECORDS, TWO, CUT = "records", "records, 2 workers", "cut"
NODATA, NODATA_TWO = "records, nodata declared", "records, nodata declared, 2 workers"
CITY, CITY_TWO = "records, CityJSON", "records, CityJSON, 2 workers"
LOOP, LOOP_LABELS, LOOP_STEPS = "plain loop", "plain loop, labels only", "plain loop, GeoJSON per tile"
# (ours, theirs, what both do)
PAIRS = (
    (RECORDS, LOOP, "tiles refer to the mosaic / are copied"),
    (RECORDS, LOOP_STEPS, "tiles refer to the mosaic / are copied, GeoJSON, then COCO"),
    (RECORDS, LOOP_LABELS, "labels only, no pixel copied by either"),
    (CUT, LOOP, "tiles are copied by both"),
    (CUT, LOOP_STEPS, "tiles are copied by both; GeoJSON, then COCO"),
)
_TILES = "{} tiles, {} buildings"


def _growing_tiles(folder: Path, s: ConversionSettings) -> dict[str, Callable[[], Cost]]:
    footprints = write_footprints(folder / "few.gpkg", 1, GROWTH_TILE_PX, s.seed)
    found = {}
    for count in (1, s.tiles, FACTOR * s.tiles):
        # Not a square: as many tiles as it says.
        columns = math.ceil(math.sqrt(count))
        while count % columns:
            columns += 1
        sides = columns * GROWTH_TILE_PX, count // columns * GROWTH_TILE_PX
        mosaic = write_mosaic(folder / f"sparse{count}.tif", *sides, sparse=True)
        found[_tiles_name(count)] = _conversion(folder, mosaic, footprints, GROWTH_TILE_PX)
    return found


def _growing_buildings(folder: Path, s: ConversionSettings) -> dict[str, Callable[[], Cost]]:
    found = {}
    side = 10 * GROWTH_TILE_PX
    mosaic = write_mosaic(folder / "hundred.tif", side, side, sparse=True)
    for count in (1, s.grown_buildings, FACTOR * s.grown_buildings):
        footprints = write_footprints(folder / f"buildings{count}.gpkg", count, side, s.seed)
        found[_buildings_name(count)] = _conversion(folder, mosaic, footprints, GROWTH_TILE_PX)
    return found


def _tiles_name(count: int) -> str:
    return _TILES.format(count, 1)


def _buildings_name(count: int) -> str:
    return _TILES.format(100, count)


def _on_mosaic(folder: Path, s: ConversionSettings) -> dict[str, Callable[[], Cost]]:
    side = s.mosaic_px
    mosaic = write_mosaic(folder / "mosaic.tif", side, side, seed=s.seed, compress=s.compress)
    with_nodata = write_mosaic(folder / "nodata.tif", side, side, seed=s.seed, compress=s.compress, nodata=0)
    footprints = write_footprints(folder / "footprints.gpkg", s.buildings, side, s.seed)
    city = write_city(folder / "city.city.json", s.city, side, s.seed)

    def ours(*args, **kwargs):
        return _conversion(folder, *args, s.tile_px, **kwargs)

    def loop(function, *options):
        words = [str(mosaic), str(footprints), s.tile_px, MIN_AREA_M2, *options]
        return _loop(folder, function, words)

    heights = ("--height-field", "height")
    return {
        RECORDS: ours(mosaic, footprints, *heights, name=RECORDS),
        TWO: ours(mosaic, footprints, *heights, "--workers", "2"),
        NODATA: ours(with_nodata, footprints, *heights),
        NODATA_TWO: ours(with_nodata, footprints, *heights, "--workers", "2"),
        CUT: ours(mosaic, footprints, *heights, "--cut", name=CUT),
        CITY: ours(mosaic, city),
        CITY_TWO: ours(mosaic, city, "--workers", "2"),
        LOOP: loop("one_pass", True),
        LOOP_LABELS: loop("one_pass", False),
        LOOP_STEPS: loop("two_steps"),
    }


def _conversion(folder: Path, mosaic: Path, footprints: Path, *options, name: str = "ours"):
    """A run of `prepare_dataset.py tiles`; the last of `options` may be the tile size."""
    numbers = [option for option in options if isinstance(option, int)]
    words = ["tiles", "--rgb", mosaic, "--footprints", footprints, "--tile-size", numbers[0]]
    words += [option for option in options if not isinstance(option, int)]
    out = folder / re.sub(r"\W+", "_", name)
    words += ["--min-area-m2", MIN_AREA_M2, "--out", out]
    code = "from fusiondet.converters.prepare import prepare; prepare(words)"
    return lambda: run_fresh(code, [str(word) for word in words], out)


def _loop(folder: Path, function: str, words: list):
    out = folder / "loop"
    # By its path: the package would bring torch along.
    script = Path(__file__).with_name("plain_conversion.py")
    code = f"import runpy; runpy.run_path({str(script)!r})[{function!r}](*words)"
    return lambda: run_fresh(code, [*words[:2], str(out), *words[2:]], out)


# The peak is that of this process's own memory: ru_maxrss begins with that of the process that started it.
_MEASURED = """
import json, os, resource, sys, time
start, report, words = time.perf_counter(), sys.argv[1], json.loads(sys.argv[2])
{code}
def peak():
    try:
        with open("/proc/self/status") as f:
            return 1024 * next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
with open(report, "w") as f:
    json.dump({{"wall_s": time.perf_counter() - start, "cpu_s": sum(os.times()[:4]), "peak_bytes": peak(),
               "worker_bytes": children}}, f)
"""


def run_fresh(code: str, words: list, out: Path) -> Cost:
    """The cost of `code`, which finds `words`, in a new Python process; `out`, which it makes, is removed before.

    Raises:
        InputError: it fails; the last line that it said.
    """
    shutil.rmtree(out, ignore_errors=True)
    report = out.with_name("cost.json")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        _MEASURED.format(code=code),
        str(report),
        json.dumps(words),
    ]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall_s = time.perf_counter() - start
    if done.returncode:
        raise InputError(f"benchmark: {words} failed: {done.stderr.strip().splitlines()[-1:]}")
    cost = json.loads(report.read_text())
    files = (path for path in out.rglob("*") if path.is_file() and not path.is_symlink())
    return Cost(**{**cost, "wall_s": wall_s}, written_bytes=sum(path.stat().st_size for path in files))


# ---- What comes out --------------------------------------------------------------------------------------


def _growth(costs: dict[str, list[Cost]], s: ConversionSettings) -> dict[str, dict]:
    """Ten times as much / as much: memory as it is; time without that of starting up, which is the run with one."""
    few, many = _tiles_name(s.tiles), _tiles_name(FACTOR * s.tiles)
    found = {
        "peak memory, 10x the tiles": (
            paired_ratio([c.peak_bytes for c in costs[many]], [c.peak_bytes for c in costs[few]]),
            LIMITS["memory"],
        )
    }
    for what, name, count in (
        ("tiles", _tiles_name, s.tiles),
        ("buildings", _buildings_name, s.grown_buildings),
    ):
        one, few, many = (np.array([c.cpu_s for c in costs[name(n)]]) for n in (1, count, FACTOR * count))
        found[f"time, 10x the {what}"] = (paired_ratio(many, few), LIMITS["growth"])
        # A clock of 10 ms: below, there is nothing to divide by.
        added = np.maximum(few - one, 0.01)
        found[f"time without start-up, 10x the {what}"] = (paired_ratio(many - one, added), LIMITS["growth"])
    state = costs[_tiles_name(FACTOR * s.tiles)], costs[_tiles_name(s.tiles)]
    added = np.median([a.peak_bytes - b.peak_bytes for a, b in zip(*state, strict=True)])
    return {
        "bytes_per_tile": float(added) / ((FACTOR - 1) * s.tiles),
        **{name: _judged(ratio, limit) for name, (ratio, limit) in found.items()},
    }


def _judged(ratio: Ratio, limit: float) -> dict:
    return {**dataclasses.asdict(ratio), "limit": limit, "verdict": verdict(ratio, limit)}


def _ratios(costs: dict[str, list[Cost]]) -> list[dict]:
    """Of processor time, ours / theirs."""
    return [
        {
            "ours": ours,
            "theirs": theirs,
            "what": what,
            **_judged(
                paired_ratio([c.cpu_s for c in costs[ours]], [c.cpu_s for c in costs[theirs]]),
                LIMITS["speed"],
            ),
        }
        for ours, theirs, what in PAIRS
    ]


def compare_results(folder: Path) -> dict:
    """How many tiles and outlines the plain loop and our conversions agree on.

    Args:
        folder: with the results of `LOOP`, `RECORDS` and `CUT`, as their last runs left them.

    Raises:
        RuntimeError: they do not agree.
    """
    theirs = _outlines(folder / "loop" / "annotations.json")
    for name in (RECORDS, CUT):
        ours = _outlines(folder / re.sub(r"\W+", "_", name) / "annotations" / "train.json")
        if ours.keys() != theirs.keys():
            raise RuntimeError(f"{name}: {len(ours.keys() ^ theirs.keys())} outlines are in one result only")
        for key, outline in ours.items():
            apart_m2 = shapely.symmetric_difference(outline, theirs[key]).area
            # Ours are rounded to a thousandth of a pixel.
            if apart_m2 > 0.001 * GSD_M * outline.length:
                raise RuntimeError(f"{name}: outlines differ by {apart_m2:.3f} m2")
    tiles = sorted((folder / "loop" / "rgb").iterdir())
    for path in tiles[:: max(1, len(tiles) // 20)]:
        with rasterio.open(path) as a, rasterio.open(folder / CUT / "rgb" / path.name) as b:
            if a.transform != b.transform or not np.array_equal(a.read(), b.read()):
                raise RuntimeError(f"{path.name}: the copies differ")
    return {"tiles": len(tiles), "outlines": len(theirs)}


def _outlines(path: Path) -> dict[tuple, shapely.Geometry]:
    """(place of the tile, building) -> outline on the map."""
    document = json.loads(path.read_text())
    images = {image["id"]: image for image in document["images"]}
    found = {}
    for annotation in document["annotations"]:
        image = images[annotation["image_id"]]
        outline = polygon_from_segmentation(annotation["segmentation"], image["height"], image["width"])
        key = (*image["transform"][2::3], annotation["source_id"])
        found[key] = pixel_to_map(outline, image["transform"])
    return found


def format_table(result: dict) -> str:
    """`benchmark_conversion`'s result as text."""
    s, growth = result["settings"], result["growth"]
    width = max(map(len, result["runs"]))
    lines = [
        f"mosaic of {s['mosaic_px']} px with {s['buildings']} footprints, CityJSON of {s['city']} buildings, tiles of "
        f"{s['tile_px']} px, {result['machine']}, {s['rounds']} rounds; start-up included",
        f"{'':{width}} {'CPU s':>8} {'wall s':>8} {'peak MB':>8} {'worker MB':>9} {'written MB':>10}",
    ]
    for name, run in result["runs"].items():
        lines.append(
            f"{name:{width}} {run['cpu_s']:8.2f} {run['wall_s']:8.2f} {run['peak_bytes'] / 1e6:8.1f} "
            f"{run['worker_bytes'] / 1e6:9.1f} {run['written_bytes'] / 1e6:10.2f}"
        )
    lines += ["", f"growth (state: {growth['bytes_per_tile']:.0f} bytes per tile)"]
    for name, of in growth.items():
        if isinstance(of, dict):
            lines.append(
                f"{name}: {of['median']:.2f} ({of['low']:.2f} .. {of['high']:.2f}) <= {of['limit']:g}: {of['verdict']}"
            )
    same = result["same"]
    lines += [
        "",
        f"processor time, theirs / ours; same {same['tiles']} tiles and {same['outlines']} outlines",
    ]
    for of in result["ratios"]:
        low, high = 1 / of["high"], 1 / of["low"]
        lines.append(
            f"{of['theirs']} / {of['ours']}: {1 / of['median']:.1f} ({low:.1f} .. {high:.1f}) >= "
            f"{1 / of['limit']:g}: {of['verdict']}  [{of['what']}]"
        )
    return "\n".join(lines)


# ---- Inputs ----------------------------------------------------------------------------------------------


def write_mosaic(
    path: Path, width: int, height: int, *, sparse=False, seed=0, compress=None, nodata=None
) -> Path:
    """RGB GeoTIFF of uint8 in blocks of 512 px, with pixels that do not compress to nothing; sparse: with none."""
    profile = {
        "driver": "GTiff",
        "width": width,
        "height": height,
        "count": 3,
        "dtype": "uint8",
        "crs": CRS,
        "transform": Affine(GSD_M, 0, ORIGIN[0], 0, -GSD_M, ORIGIN[1]),
        "photometric": "RGB",
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "nodata": nodata,
        "sparse_ok": sparse,
        **({"compress": compress, "predictor": 2} if compress else {}),
    }
    rng = np.random.default_rng(seed)
    # Smooth shapes with some noise, as photographs have; each block is another cut-out of it.
    coarse = rng.integers(30, 200, (3, 32, 32)).repeat(32, axis=1).repeat(32, axis=2)
    texture = (coarse + rng.integers(0, 24, (3, 1024, 1024))).astype(np.uint8)
    with rasterio.open(path, "w", **profile) as target:
        for y in () if sparse else range(0, height, 512):
            for x in range(0, width, 512):
                h, w = min(512, height - y), min(512, width - x)
                v, u = rng.integers(0, 512, 2)
                target.write(texture[:, v : v + h, u : u + w], window=Window(x, y, w, h))
    return path


def outlines(count: int, side_px: int, seed: int) -> list[shapely.Polygon]:
    """That many outlines on the map of a mosaic, rectangles and L-shapes of up to 20 m, turned; they do not overlap."""
    rng = np.random.default_rng(seed)
    across = math.ceil(math.sqrt(count))
    cell_m = side_px * GSD_M / across
    block = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    angle = np.array([(-1, -1), (1, -1), (1, 0), (0, 0), (0, 1), (-1, 1)])
    made = []
    for i in range(count):
        half_m = rng.uniform(0.3, 1, 2) * min(10, 0.3 * cell_m)
        turn = rng.uniform(0, math.pi / 2)
        matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        centre = ORIGIN + np.array([(i % across + 0.5), -(i // across + 0.5)]) * cell_m
        corners = (block if rng.random() < 0.5 else angle) * half_m
        made.append(shapely.Polygon(corners @ matrix + centre))
    return made


def write_footprints(path: Path, count: int, side_px: int, seed: int) -> Path:
    """A GeoPackage of `outlines` with "id" and "height" in metres."""
    heights_m = np.random.default_rng(seed).uniform(3, 30, count).round(2)
    columns = {"id": np.arange(count), "height": heights_m}
    geopandas.GeoDataFrame(columns, geometry=outlines(count, side_px, seed), crs=CRS).to_file(path)
    return path


def write_city(path: Path, count: int, side_px: int, seed: int) -> Path:
    """A CityJSON in the layout of 3DBAG: per building LoD 0 and one part with LoD 1.2, 1.3 and 2.2, all blocks."""
    rng = np.random.default_rng(seed)
    objects, vertices = {}, []
    for number, outline in enumerate(outlines(count, side_px, seed)):
        ring = np.asarray(outline.exterior.coords)[:-1] - ORIGIN
        n, first = len(ring), len(vertices)
        ground_m, height_m = rng.uniform(-2, 5), rng.uniform(3, 30)
        for z in (ground_m, ground_m + height_m):
            vertices += np.rint(np.column_stack([ring, np.full(n, z)]) * 1000).astype(int).tolist()
        low, high = list(range(first, first + n)), list(range(first + n, first + 2 * n))
        walls = [[[low[i], low[i - 1], high[i - 1], high[i]]] for i in range(n)]
        kinds = ("GroundSurface", "RoofSurface", "WallSurface")
        solids = [
            {
                "type": "Solid",
                "lod": lod,
                "boundaries": [[[low[::-1]], [high], *walls]],
                "semantics": {
                    "surfaces": [{"type": kind} for kind in kinds],
                    "values": [[0, 1] + [2] * n],
                },
            }
            for lod in ("1.2", "1.3", "2.2")
        ]
        name = f"NL.IMBAG.Pand.{number:016d}"
        statistics_m = {"min": 0.8, "50p": 0.95, "70p": 1.0, "max": 1.1}
        objects[name] = {
            "type": "Building",
            "children": [f"{name}-0"],
            "attributes": {
                "identificatie": name,
                **{f"b3_h_dak_{key}": ground_m + share * height_m for key, share in statistics_m.items()},
                "b3_h_maaiveld": ground_m,
                "b3_dak_type": "horizontal",
                "b3_kas_warenhuis": False,
                "b3_pw_bron": "AHN4",
                "b3_pw_datum": 2020,
                "oorspronkelijkbouwjaar": 1970,
                "status": "Pand in gebruik",
                **{f"b3_rmse_lod{lod}": 0.1 for lod in (12, 13, 22)},
                **{f"b3_val3dity_lod{lod}": "[]" for lod in (12, 13, 22)},
                **{f"b3_volume_lod{lod}": outline.area * height_m for lod in (12, 13, 22)},
            },
            "geometry": [{"type": "MultiSurface", "lod": "0", "boundaries": [[low]]}],
        }
        objects[f"{name}-0"] = {
            "type": "BuildingPart",
            "parents": [name],
            "attributes": {},
            "geometry": solids,
        }
    document = {
        "type": "CityJSON",
        "version": "1.1",
        "transform": {"scale": [0.001] * 3, "translate": [*ORIGIN, 0.0]},
        "metadata": {"referenceSystem": "https://www.opengis.net/def/crs/EPSG/0/7415"},
        "CityObjects": objects,
        "vertices": vertices,
    }
    path.write_text(json.dumps(document))
    return path
