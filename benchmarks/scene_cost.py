"""What scene prediction costs beside the network: time and memory, as scenes grow, and against the usual way.

The network is a stand-in that finds the same buildings in every window, some of them cut by its borders, and takes a
given time for it, in which it does nothing: as a GPU does as far as this machine is concerned. Every run is a process
of its own, see `benchmarks.conversion_cost`; contestants take turns in rounds. Outside of the network means: from
the open checkpoint to the whole layer, less the time that the stand-in took.
"""

import dataclasses
import importlib.util
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from benchmarks.conversion_cost import run_fresh, write_mosaic
from benchmarks.plain_prediction import slice_and_unite
from fusiondet.analysis.timing import paired_ratio, verdict
from fusiondet.cli import progress
from fusiondet.config import config_file
from fusiondet.config_loading import load_config
from fusiondet.engine.checkpoint import FusionCheckpointer
from fusiondet.errors import InputError
from fusiondet.files import write_json
from fusiondet.inference import Predictor, predict_to_file
from fusiondet.io.layers import read_buildings

import geopandas
import numpy as np
import rasterio
import shapely
import torch
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

# Windows are a whole number of these apart, so that all of them show the same buildings.
PITCH_PX = (64, 112)
# Half the size of a building, an L.
HALF_PX = (18.0, 14.0)
MASK_SIDE = 28
# What has to hold.
LIMITS = {"outside": 0.2, "memory": 1.1, "speed": 1 / 10, "less_memory": 1 / 5}


@dataclass(frozen=True)
class SceneSettings:
    """What is measured.

    Attributes:
        size_px: about the side of the scene for time. small_px, large_px: for memory as scenes grow.
        window_px: side of the windows for time; model_ms: what the stand-in takes for one.
        growth_window_px: side of the windows for memory.
        batch: windows that the network sees at a time. rounds: each contestant runs once in each.
        folder: for inputs and results; None: a temporary one.

    Raises:
        InputError: a number is too small.
    """

    size_px: int = 12_000
    small_px: int = 4_000
    large_px: int = 40_000
    window_px: int = 512
    growth_window_px: int = 1024
    model_ms: float = 25.0
    batch: int = 1
    rounds: int = 3
    seed: int = 0
    folder: Path | None = None

    def __post_init__(self):
        lowest = {"window_px": 256, "growth_window_px": 256, "model_ms": 0}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name not in ("seed", "folder") and value < lowest.get(f.name, 1):
                raise InputError(
                    f"benchmark: {f.name} is {value}, expected at least {lowest.get(f.name, 1)}."
                )


class StandIn:
    """A network that sees buildings on a lattice, takes its time, and counts it."""

    def __init__(self, window_px: int, seconds: float):
        """`seconds`: for one window of `window_px` a side."""
        self._seconds, self.seconds_taken = seconds, 0.0
        self._found = lattice(window_px)

    def outputs(self, inputs: list[dict], do_postprocess: bool = False) -> list[dict]:
        """As `FusionRCNN.outputs`."""
        start = time.perf_counter()
        if self._seconds:
            time.sleep(self._seconds * len(inputs))
        self.seconds_taken += time.perf_counter() - start
        return [{"instances": self._found} for _ in inputs]

    def predict(self, tile: np.ndarray) -> Instances:
        """As Detectron2's DefaultPredictor: masks of the size of the image."""
        image = torch.from_numpy(tile.astype(np.float32).transpose(2, 0, 1))
        raw = self.outputs([{"image": image}])[0]["instances"]
        return detector_postprocess(raw, *tile.shape[:2])


def stride_px(window_px: int) -> int:
    """How far the windows of that side are apart: whole lattices, and an overlap of 1/8 of a window or more."""
    lattice_px = math.lcm(*PITCH_PX)
    return max(lattice_px, window_px * 7 // 8 // lattice_px * lattice_px)


def scene_side_px(wanted_px: int, window_px: int) -> int:
    """The side of a scene, `wanted_px` or more, that windows of that side cover at equal distances."""
    return window_px + stride_px(window_px) * math.ceil(max(0, wanted_px - window_px) / stride_px(window_px))


def lattice(window_px: int) -> Instances:
    """What is seen in every window: L-shaped buildings around the points of the lattice, cut by the window."""
    centres = [
        (x, y) for y in range(0, window_px + 1, PITCH_PX[1]) for x in range(0, window_px + 1, PITCH_PX[0])
    ]
    boxes, masks = [], []
    for x, y in centres:
        box = np.array([x - HALF_PX[0], y - HALF_PX[1], x + HALF_PX[0], y + HALF_PX[1]])
        box = box.clip(0, window_px)
        mask = _mask(box, x, y) if min(box[2:] - box[:2]) >= 4 else np.zeros(1)
        if mask.max() > 0.5:  # there is something of it in the window
            boxes.append(box)
            masks.append(mask)
    found = Instances(
        (window_px, window_px), pred_boxes=Boxes(torch.tensor(np.array(boxes), dtype=torch.float32))
    )
    found.pred_masks = torch.tensor(np.array(masks), dtype=torch.float32)[:, None]
    found.scores = torch.linspace(0.95, 0.6, len(boxes))
    found.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
    found.pred_heights = torch.linspace(4.0, 20.0, len(boxes))
    found.pred_height_p16, found.pred_height_p84 = 0.8 * found.pred_heights, 1.2 * found.pred_heights
    return found


def _mask(box: np.ndarray, x: float, y: float) -> np.ndarray:
    """(MASK_SIDE, MASK_SIDE) probabilities of an L around (x, y), in the cells of its box: soft over two pixels."""
    cells = (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE
    u, v = np.meshgrid(box[0] + cells * (box[2] - box[0]) - x, box[1] + cells * (box[3] - box[1]) - y)

    def inside(x0, y0, x1, y1):
        return np.minimum.reduce([u - x0, x1 - u, v - y0, y1 - v])

    a, b = HALF_PX[0] - 1, HALF_PX[1] - 1
    return 1 / (1 + np.exp(-2 * np.maximum(inside(-a, -b, a, 0), inside(-a, -b, 0, b))))


def benchmark_scene(settings: SceneSettings) -> dict:
    """Plain data for `format_table`: settings, the median cost of every contestant, ratios with verdicts.

    Raises:
        InputError: the folder cannot be used.
        RuntimeError: the usual way finds other buildings.
    """
    s = settings
    if s.folder is not None:
        Path(s.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scene-", dir=s.folder) as made:
        folder = Path(made)
        weights = write_weights(folder)
        side = scene_side_px(s.size_px, s.window_px)
        scene = write_mosaic(folder / "scene.tif", side, side, seed=s.seed, compress="deflate")
        small, large = (scene_side_px(n, s.growth_window_px) for n in (s.small_px, s.large_px))
        empty = {n: write_mosaic(folder / f"sparse{n}.tif", n, n, sparse=True) for n in (small, large)}
        timed = (s.window_px, s.model_ms, s.batch)
        contestants = {
            START: ("idle", scene, timed),
            OURS: ("ours", scene, timed),
            USUAL: ("usual", scene, timed),
            **({SAHI: ("sahi", scene, timed)} if has_sahi() else {}),
            f"{GROWN} {small} px": ("grown", empty[small], (s.growth_window_px, 0, s.batch)),
            f"{GROWN} {large} px": ("grown", empty[large], (s.growth_window_px, 0, s.batch)),
        }
        runs, names = defaultdict(list), list(contestants)
        turns = [names[(i + k) % len(names)] for i in range(s.rounds) for k in range(len(names))]
        for name in progress(turns, label="benchmark", unit="run"):
            runs[name].append(_run(folder, weights, *contestants[name]))
        same = _compare_results(folder)
    grown = [runs[f"{GROWN} {n} px"] for n in (small, large)]
    return {
        "settings": {k: v for k, v in dataclasses.asdict(s).items() if k != "folder"},
        "machine": f"CPU ({platform.machine()}), {os.cpu_count()} cores",
        "scene_px": side,
        "runs": {name: _typical(of_name) for name, of_name in runs.items()},
        "ratios": _ratios(runs, *grown),
        "same": same,
    }


# Contestants.
START, OURS, GROWN = "start-up alone", "fusiondet", "fusiondet, no stand-in time,"
USUAL, SAHI = "slice, paste, union", "SAHI, its Detectron2 adapter"


def has_sahi() -> bool:
    """Whether SAHI is installed; it is no requirement (`pip install --no-deps sahi` will do)."""
    return importlib.util.find_spec("sahi") is not None


def write_weights(folder: Path) -> Path:
    """A checkpoint of a small network, for all that is read from one but the network itself."""
    cfg = load_config(
        config_file("synthetic/rgb_r18_small.yaml"),
        ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"],
    )
    cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.GSD_RANGE_M = ["red", "green", "blue"], [0.5, 0.5]
    cfg.INPUT.MODALITIES = ["optical"]
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0] * 3, [50.0] * 3
    FusionCheckpointer(build_model(cfg), str(folder), config_yaml=cfg.dump()).save("model")
    return folder / "model.pth"


def _run(folder: Path, weights: Path, kind: str, scene: Path, how: tuple) -> dict:
    out = folder / kind
    code = "from benchmarks.scene_cost import run; run(*words)"
    cost = run_fresh(code, [kind, str(weights), str(scene), str(out), *how], out)
    return {**dataclasses.asdict(cost), **json.loads((out / "times.json").read_text())}


def run(kind: str, weights: str, scene: str, out: str, window_px: int, model_ms: float, batch: int) -> None:
    """One contestant: a layer, and what it took from here on, in the folder `out`; "idle" makes no layer."""
    torch.set_num_threads(1)
    folder, overlap_px = Path(out), window_px - stride_px(window_px)
    folder.mkdir(parents=True)
    predictor = Predictor(weights, "cpu", "layer", build=False)
    predictor.model = model = StandIn(window_px, model_ms / 1000)
    start, count = time.perf_counter(), 0
    if kind in ("ours", "grown"):
        options = {"window_px": window_px, "overlap_px": overlap_px, "batch": batch, "predictor": predictor}
        count = predict_to_file(weights, Path(scene), None, folder / "buildings.gpkg", **options).count
    elif kind == "usual":
        count = slice_and_unite(scene, str(folder / "buildings.gpkg"), model.predict, window_px, overlap_px)
    elif kind == "sahi":
        count = sahi_prediction(scene, folder / "buildings.gpkg", model, window_px, overlap_px)
    times = {"predict_s": time.perf_counter() - start, "model_s": model.seconds_taken, "buildings": count}
    write_json(times, folder / "times.json")


def sahi_prediction(scene: str, out: Path, model: StandIn, window_px: int, overlap_px: int) -> int:
    """The same scene by SAHI's sliced prediction with its own adapter for Detectron2; how many buildings it finds."""
    from sahi.models.detectron2 import Detectron2DetectionModel
    from sahi.predict import get_sliced_prediction

    class Adapter(Detectron2DetectionModel):
        def check_dependencies(self, *_, **__):
            pass

        def load_model(self):
            self.model, self.category_names = model, ["building"]

        def perform_inference(self, image):
            self._original_predictions = {"instances": model.predict(image)}

    with rasterio.open(scene) as source:
        pixels, transform, crs = source.read().transpose(1, 2, 0), source.transform, source.crs
    adapter = Adapter(
        model_path="-", device="cpu", category_mapping={"0": "building"}, confidence_threshold=0.3
    )
    sides = {
        "slice_height": window_px,
        "slice_width": window_px,
        "overlap_height_ratio": overlap_px / window_px,
        "overlap_width_ratio": overlap_px / window_px,
    }
    found = get_sliced_prediction(pixels, adapter, verbose=0, **sides).object_prediction_list
    rings = [np.reshape(max(f.mask.segmentation, key=len), (-1, 2)) for f in found if f.mask.segmentation]
    outlines = [shapely.Polygon(np.column_stack(transform * ring.T)) for ring in rings if len(ring) > 2]
    geopandas.GeoDataFrame(geometry=outlines, crs=crs).to_file(out, driver="GPKG")
    return len(outlines)


def _typical(runs: list[dict]) -> dict:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def _compare_results(folder: Path) -> dict:
    layers = [read_buildings(folder / kind / "buildings.gpkg")[0] for kind in ("ours", "usual")]
    areas = [sum(b.polygon.area for b in layer) for layer in layers]
    # Outlines of pixels against outlines between them: as many buildings, and about as large.
    if len(layers[0]) != len(layers[1]) or abs(areas[0] / areas[1] - 1) > 0.05:
        raise RuntimeError(
            f"scene prediction finds {len(layers[0])} buildings of {areas[0]:.0f} m², the usual way {len(layers[1])} "
            f"of {areas[1]:.0f} m²"
        )
    return {"buildings": len(layers[0]), "area_ratio": areas[0] / areas[1]}


def _ratios(runs: dict, small: list[dict], large: list[dict]) -> dict[str, dict]:
    """Each with what has to hold; memory of the usual way and ours is what is added to a process that has started."""

    def outside(name):
        return [r["predict_s"] - r["model_s"] for r in runs[name]]

    def added(name):
        return [r["peak_bytes"] - s["peak_bytes"] for r, s in zip(runs[name], runs[START], strict=True)]

    ours = runs[OURS]
    pairs = {
        "wall time outside the network / wall time": (outside(OURS), [r["predict_s"] for r in ours], LIMITS["outside"]),
        "time outside the network, ours / usual": (outside(OURS), outside(USUAL), LIMITS["speed"]),
        "memory beyond start-up, ours / usual": (added(OURS), added(USUAL), LIMITS["less_memory"]),
        "peak memory, ours / usual, start-up included": (
            [r["peak_bytes"] for r in ours], [r["peak_bytes"] for r in runs[USUAL]], None,
        ),
        "peak memory, large scene / small": (
            [r["peak_bytes"] for r in large], [r["peak_bytes"] for r in small], LIMITS["memory"],
        ),
    }  # fmt: skip
    if SAHI in runs:
        pairs["time outside the network, ours / SAHI"] = (outside(OURS), outside(SAHI), LIMITS["speed"])
        pairs["memory beyond start-up, ours / SAHI"] = (added(OURS), added(SAHI), LIMITS["less_memory"])
    judged = {}
    for name, (top, bottom, limit) in pairs.items():
        ratio = paired_ratio(top, bottom)
        judged[name] = {
            **dataclasses.asdict(ratio),
            "limit": limit,
            "verdict": verdict(ratio, limit) if limit else "-",
        }
    return judged


def format_table(result: dict) -> str:
    """`benchmark_scene`'s result as text."""
    s, width = result["settings"], max(map(len, result["runs"]))
    lines = [
        f"scene of {result['scene_px']} px, windows of {s['window_px']} px, a stand-in of {s['model_ms']:g} ms for "
        f"each, {result['machine']}, {s['rounds']} rounds",
        f"{'':{width}} {'predict s':>9} {'model s':>8} {'CPU s':>8} {'peak MB':>8} {'buildings':>9}",
    ]
    for name, run in result["runs"].items():
        lines.append(
            f"{name:{width}} {run['predict_s']:9.2f} {run['model_s']:8.2f} {run['cpu_s']:8.2f} "
            f"{run['peak_bytes'] / 1e6:8.1f} {run['buildings']:9.0f}"
        )
    if SAHI not in result["runs"]:
        lines.append("SAHI is not installed, so it was not measured")
    lines += ["", f"same {result['same']['buildings']} buildings from both"]
    for name, of in result["ratios"].items():
        limit = f" <= {of['limit']:g}: {of['verdict']}" if of["limit"] else ""
        lines.append(f"{name}: {of['median']:.3f} ({of['low']:.3f} .. {of['high']:.3f}){limit}")
    return "\n".join(lines)
