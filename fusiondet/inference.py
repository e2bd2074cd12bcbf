"""From a checkpoint and rasters to buildings with heights in map coordinates.

A checkpoint is enough: it carries the config, the bands with their statistics, and the range of ground sampling
distances seen in training.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet import __version__
from fusiondet.buildings import Building, building_to_map, clean_polygon
from fusiondet.cli import progress
from fusiondet.config import config_from_yaml_text
from fusiondet.data.bands import SAR_SCALES, BandSpec
from fusiondet.data.coco import mask_to_polygon
from fusiondet.data.imagery import Scene, SceneReader, open_raster
from fusiondet.engine.checkpoint import load_model, read_checkpoint
from fusiondet.errors import InputError, unknown_name
from fusiondet.export import check_output, write_buildings
from fusiondet.modeling.height_head import HEIGHT_FIELDS
from fusiondet.polygons.contour import mask_to_polygon_px

import numpy as np
import shapely
import torch
from detectron2.modeling import build_model

# A raster this much coarser or finer than any training image is resampled; this much, and it is refused.
RESAMPLE_FACTOR = 1.25
REFUSE_FACTOR = 4.0
# Outlines lose vertices that move them less than this; the mask is not sharper.
SIMPLIFY_PX = 0.1
# Two outlines of one building from neighbouring windows overlap by more than this.
DUPLICATE_IOU = 0.3


@dataclass
class ScenePrediction:
    """Buildings of a scene in the map coordinates of `crs`, and what was decided on the way (`notes`)."""

    buildings: list[Building]
    crs: str | None
    gsd_m: float
    notes: list[str] = field(default_factory=list)
    metadata: dict = field(default_factory=dict)


class Predictor:
    """A trained network, rebuilt from its checkpoint alone.

    Attributes:
        cfg: the config it was trained with. bands: the channels it takes. gsd_range_m: (finest, coarsest) GSD of its
        training images. device: torch device.
    """

    def __init__(self, weights: str | Path, device: str | None = None, score_threshold: float | None = None):
        """Load `weights`.

        Args:
            device: "cpu", "cuda", "cuda:1"; None takes a GPU if there is one.
            score_threshold: detections below it are dropped; None keeps the checkpoint's.

        Raises:
            InputError: not a checkpoint of fusiondet, or its config and tensors do not fit; no such device.
        """
        checkpoint = read_checkpoint(weights)
        cfg = config_from_yaml_text(checkpoint["config_yaml"], str(weights))
        cfg.MODEL.DEVICE = _device_name(device)
        if score_threshold is not None:
            if not 0 <= score_threshold <= 1:
                raise InputError(f"--score-threshold is {score_threshold}, expected 0 to 1.")
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(score_threshold)
        self.cfg = cfg
        self.bands = BandSpec(cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS, cfg.INPUT.SAR_SCALE)
        self.gsd_range_m = tuple(cfg.INPUT.GSD_RANGE_M)
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.weights = Path(weights)
        self.model = build_model(cfg).eval()
        load_model(self.model, checkpoint["model"], weights)

    @torch.no_grad()
    def predict(self, image: np.ndarray, gsd_m: float, sensor: dict | None = None) -> list[Building]:
        """Buildings of one image, in its pixels, best first.

        Args:
            image: (C, H, W) float32 in the units of `bands`; NaN = no data. Nothing is predicted where all bands are.
            gsd_m: metres per pixel. sensor: fields of SensorGeometry, degrees.
        """
        nodata = np.isnan(image).all(axis=0)
        if nodata.all():
            return []
        x = {"image": torch.from_numpy(np.ascontiguousarray(image)), "gsd_m": gsd_m, "sensor": sensor or {}}
        raw = self.model.inference([x], do_postprocess=False)[0].to("cpu")
        buildings = buildings_from_instances(raw)
        kept = [_on_data(b, nodata) for b in buildings]
        return [b for b in kept if b is not None]


def _device_name(wanted: str | None) -> str:
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(
            f"--device {wanted}: not on this machine, which has cpu and {torch.cuda.device_count()} CUDA GPUs."
        ) from None
    return wanted


def buildings_from_instances(instances) -> list[Building]:
    """Buildings in image pixels from raw network output: `pred_boxes` and box-sized `pred_masks` (R, 1, M, M).

    Outlines come from the mask probabilities at their own resolution, never from a full-size mask; an instance whose
    mask stays below one half is left out. A network without a mask head predicts its boxes.
    """
    boxes, scores = instances.pred_boxes.tensor.numpy(), instances.scores.numpy()
    masks = instances.pred_masks[:, 0].float().numpy() if instances.has("pred_masks") else None
    has_heights = instances.has("pred_heights")
    buildings = []
    for i in np.argsort(-scores, kind="stable"):
        if masks is None:
            polygon = clean_polygon(shapely.box(*boxes[i].tolist()))
        else:
            polygon = mask_to_polygon_px(masks[i], boxes[i], tolerance_px=SIMPLIFY_PX)
        if polygon is None:
            continue
        p16_m, median_m, p84_m = (float(instances.get(f)[i]) if has_heights else None for f in HEIGHT_FIELDS)
        facts = _height_facts(has_heights)
        buildings.append(Building(polygon, median_m, p16_m, p84_m, score=float(scores[i]), **facts))
    return buildings


def _height_facts(has_heights: bool) -> dict:
    return (
        {"height_source": "predicted", "height_stat": "median", "height_datum": "ground"}
        if has_heights
        else {}
    )


def _on_data(building: Building, nodata: np.ndarray) -> Building | None:
    """`building` cut to the image and to its valid pixels; None when less than half of it is left."""
    height, width = nodata.shape
    polygon = clean_polygon(building.polygon.intersection(shapely.box(0, 0, width, height)))
    if polygon is None:
        return None
    x0, y0 = (max(0, math.floor(v)) for v in polygon.bounds[:2])
    x1, y1 = (math.ceil(v) for v in polygon.bounds[2:])
    hidden = nodata[y0:y1, x0:x1]
    if hidden.any():
        holes = shapely.affinity.translate(mask_to_polygon(hidden), x0, y0)
        polygon = clean_polygon(polygon.difference(holes))
    if polygon is None or polygon.area < building.polygon.area / 2:
        return None
    building.polygon = polygon
    return building


def predict_scene(
    predictor: Predictor,
    rgb_path: Path | None,
    sar_path: Path | None = None,
    *,
    window_px: int = 1024,
    overlap_px: int = 192,
    force_gsd: bool = False,
    **reader_options,
) -> ScenePrediction:
    """Buildings of a raster pair, read and predicted window by window.

    A building belongs to the window in whose core its box's centre lies, so one that is smaller than the overlap is
    seen whole and once.

    Args:
        window_px: side of a window; a scene up to this size is one window.
        overlap_px: how far neighbouring windows overlap.
        force_gsd: predict even though the pixel size is more than four times off what the network was trained on.
        reader_options: rgb_bands, sar_bands, sar_scale, nodata, gsd_m of `SceneReader`.

    Raises:
        InputError: from the reader; or the pixel size is too far from that of the training.
    """
    if not 0 <= overlap_px < window_px:
        raise InputError(
            f"an overlap of {overlap_px} px does not fit windows of {window_px} px: expected 0 <= overlap < window."
        )
    if sar_path is None and not predictor.bands.optical:
        raise InputError(
            f"{predictor.weights}: takes SAR only ({', '.join(predictor.bands.sar)}). Pass --sar."
        )
    _check_sar_scale(predictor, reader_options.get("sar_scale"))
    notes = _missing_modalities(predictor, rgb_path, sar_path)
    target_gsd_m = _target_gsd(predictor, rgb_path, sar_path, force_gsd, reader_options)
    with SceneReader(
        rgb_path, sar_path, predictor.bands, target_gsd_m=target_gsd_m, **reader_options
    ) as reader:
        windows = list(scene_windows(reader.width, reader.height, window_px, overlap_px))
        buildings, has_data = [], False
        for window, core in progress(windows, label="predicting", unit="window"):
            scene = reader.read(window)
            has_data |= not np.isnan(scene.image).all()
            buildings += _predict_window(predictor, scene, window, core)
        notes += reader.notes
        if not has_data:
            notes.append(f"{rgb_path or sar_path}: all of it is no data, so there is nothing to predict.")
        buildings = drop_duplicates(buildings) if len(windows) > 1 else buildings
        buildings = [building_to_map(b, reader.transform) for b in buildings]
        metadata = {"weights": str(predictor.weights.name), "fusiondet": __version__, "gsd_m": reader.gsd_m}
        return ScenePrediction(buildings, reader.crs, reader.gsd_m, notes, metadata)


def predict_to_file(
    weights: Path,
    rgb_path,
    sar_path,
    out: Path,
    *,
    score_threshold=None,
    device=None,
    overwrite: bool = False,
    **options,
) -> ScenePrediction:
    """`predict_scene` with a fresh Predictor, written to `out`; see `fusiondet.export.write_buildings` for formats.

    Everything that can be wrong with `out` or the rasters is found before the network is built.

    Raises:
        InputError: see `predict_scene` and `write_buildings`; also when the scene has no CRS.
    """
    check_output(out, overwrite)
    for path in (rgb_path, sar_path):
        if path is not None:
            with open_raster(path, allow_vrt=True) as raster:
                if raster.crs is None and path == (rgb_path or sar_path):
                    raise InputError(
                        f"{path}: has no CRS, so its buildings have no place on the map. "
                        "Set it with `rio edit-info --crs EPSG:n FILE`."
                    )
    predictor = Predictor(weights, device, score_threshold)
    result = predict_scene(predictor, rgb_path, sar_path, **options)
    write_buildings(result.buildings, result.crs, out, metadata=result.metadata, overwrite=overwrite)
    return result


def scene_windows(width: int, height: int, side: int, overlap: int) -> Iterator[tuple[tuple, tuple]]:
    """Windows (x0, y0, width, height) that cover width x height px to the last row and column, each with its core.

    The cores (x0, y0, x1, y1) tile the plane: neighbours meet in the middle of their overlap.
    """
    columns, rows = _intervals(width, side, overlap), _intervals(height, side, overlap)
    for y0, y1, core_y0, core_y1 in rows:
        for x0, x1, core_x0, core_x1 in columns:
            yield (x0, y0, x1 - x0, y1 - y0), (core_x0, core_y0, core_x1, core_y1)


def _intervals(length: int, side: int, overlap: int) -> list[tuple[int, int, float, float]]:
    if length <= side:
        return [(0, length, -math.inf, math.inf)]
    count = math.ceil((length - overlap) / (side - overlap))
    starts = [round(i * (length - side) / (count - 1)) for i in range(count)]
    cuts = [(a + side + b) / 2 for a, b in zip(starts, starts[1:])]
    return [(s, s + side, lo, hi) for s, lo, hi in zip(starts, [-math.inf, *cuts], [*cuts, math.inf])]


def drop_duplicates(buildings: list[Building]) -> list[Building]:
    """`buildings` without those that overlap a better scored one by more than DUPLICATE_IOU."""
    polygons = [b.polygon for b in buildings]
    tree = shapely.STRtree(polygons)
    dropped = set()
    for i in sorted(range(len(buildings)), key=lambda i: -buildings[i].score):
        if i in dropped:
            continue
        for j in tree.query(polygons[i], predicate="intersects"):
            if j != i and buildings[j].score <= buildings[i].score and j not in dropped:
                shared = polygons[i].intersection(polygons[j]).area
                if shared > DUPLICATE_IOU * (polygons[i].area + polygons[j].area - shared):
                    dropped.add(j)
    return [b for i, b in enumerate(buildings) if i not in dropped]


def _predict_window(predictor: Predictor, scene: Scene, window, core) -> list[Building]:
    """Buildings of a window whose box is centred in its core, in the pixels of the whole scene."""
    kept = []
    for building in predictor.predict(scene.image, scene.gsd_m):
        building.polygon = shapely.affinity.translate(building.polygon, window[0], window[1])
        x0, y0, x1, y1 = building.polygon.bounds
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        if core[0] <= x < core[2] and core[1] <= y < core[3]:
            kept.append(building)
    return kept


def _missing_modalities(predictor: Predictor, rgb_path, sar_path) -> list[str]:
    missing = []
    if predictor.bands.optical and rgb_path is None:
        missing.append("--rgb")
    if predictor.bands.sar and sar_path is None:
        missing.append("--sar")
    if missing == ["--rgb", "--sar"]:
        raise InputError("no raster given. Pass --rgb, and --sar if the network takes both.")
    used = "optical and SAR" if predictor.bands.sar and predictor.bands.optical else ""
    return [f"{predictor.weights.name} was trained on {used}; without {m} expect less." for m in missing]


def _check_sar_scale(predictor: Predictor, scale: str | None) -> None:
    """Power, amplitude and dB all reach the network as dB; a display stretch is something else."""
    trained = predictor.bands.sar_scale
    if scale is None or not trained:
        return
    if scale not in SAR_SCALES:
        raise unknown_name("--sar-scale", scale, SAR_SCALES)
    if (scale == "stretched_uint8") != (trained == "stretched_uint8"):
        raise InputError(
            f"--sar-scale {scale}: {predictor.weights.name} was trained on {trained}; a display stretch and dB "
            "cannot be turned into each other."
        )


def _target_gsd(predictor: Predictor, rgb_path, sar_path, force_gsd: bool, options: dict) -> float | None:
    """GSD to resample the scene to, or None where it fits the training."""
    with SceneReader(rgb_path, sar_path, predictor.bands, **options) as reader:
        gsd_m, name = reader.gsd_m, rgb_path or sar_path
    if not predictor.gsd_range_m:
        return None
    finest, coarsest = predictor.gsd_range_m
    nearest = min(max(gsd_m, finest), coarsest)
    trained = f"{finest:.3g}" if finest == coarsest else f"{finest:.3g} to {coarsest:.3g}"
    factor = max(gsd_m / nearest, nearest / gsd_m)
    if factor > REFUSE_FACTOR and not force_gsd:
        raise InputError(
            f"{name}: {gsd_m:.3g} m per pixel, but {predictor.weights.name} was trained on {trained} m: "
            "buildings look too different to expect a result. Pass --force-gsd to try all the same."
        )
    return nearest if factor > RESAMPLE_FACTOR else None
