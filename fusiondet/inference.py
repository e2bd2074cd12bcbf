"""From a checkpoint and rasters to buildings with heights in map coordinates, and to rasters of heights.

A checkpoint is enough: it carries the config, the bands with their statistics, and the range of ground sampling
distances seen in training.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet import __version__
from fusiondet.buildings import Building, SensorGeometry, building_to_map, clean_polygon
from fusiondet.cli import progress
from fusiondet.config import config_from_yaml_text
from fusiondet.data.bands import SAR_SCALES, BandSpec
from fusiondet.data.coco import TILTS_DEG, mask_to_polygon
from fusiondet.data.imagery import Scene, SceneReader, open_raster
from fusiondet.engine.checkpoint import load_model, read_checkpoint
from fusiondet.errors import InputError, unknown_name
from fusiondet.export import (
    HEIGHT_BANDS,
    check_height_raster,
    check_output,
    height_raster,
    write_buildings,
)
from fusiondet.modeling.height_head import HEIGHT_FIELDS
from fusiondet.modeling.sensor_geometry import FACTS
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
# Where the tool takes what a SensorGeometry holds.
SENSOR_OPTIONS = {
    "sun_azimuth_deg": "--sun-azimuth",
    "sun_elevation_deg": "--sun-elevation",
    "sar_look_azimuth_deg": "--look-azimuth",
    "sar_incidence_deg": "--incidence",
    "view_azimuth_deg": "--view-azimuth",
    "view_off_nadir_deg": "--off-nadir",
}


@dataclass
class ScenePrediction:
    """Buildings of a scene in the map coordinates of `crs`, and what was decided on the way (`notes`)."""

    buildings: list[Building]
    crs: str | None
    gsd_m: float
    notes: list[str] = field(default_factory=list)
    metadata: dict = field(default_factory=dict)


@dataclass
class ImagePrediction:
    """What a network says about one image; None where it has no head for it.

    Attributes:
        buildings: in the image's pixels, best first; none from a network that finds no instances.
        height_map_m: (H, W) float32 metres above ground, about 0 where no building is, NaN where the image has no data.
        footprint_map: (H, W) float32 probability of a building, NaN likewise.
    """

    buildings: list[Building]
    height_map_m: np.ndarray | None = None
    footprint_map: np.ndarray | None = None


class Predictor:
    """A trained network, rebuilt from its checkpoint alone.

    Attributes:
        cfg: the config it was trained with. bands: the channels it takes. channels: where those of a modality are.
        gsd_range_m: (finest, coarsest) GSD of its training images. device: torch device.
        has_instances: whether it finds buildings. height_sources: which of `HEIGHT_BANDS` it can fill.
    """

    def __init__(
        self, weights: str | Path, device: str | None = None, score_threshold: float | str | None = None
    ):
        """Load `weights`.

        Args:
            device: "cpu", "cuda", "cuda:1"; None takes a GPU if there is one.
            score_threshold: detections below it are dropped; None keeps the checkpoint's, which is for scoring; "layer"
                is for a layer of buildings: 0.5, or half of that for two detectors, where 0.5 would take a building
                that one of them is sure of, the one that sees under clouds say, for nothing.

        Raises:
            InputError: not a checkpoint of fusiondet, or its config and tensors do not fit; no such device.
        """
        checkpoint = read_checkpoint(weights)
        cfg = config_from_yaml_text(checkpoint["config_yaml"], str(weights))
        cfg.MODEL.DEVICE = device_name(device)
        if score_threshold == "layer":
            score_threshold = 0.25 if _has_two_detectors(cfg) else 0.5
        if score_threshold is not None:
            if not 0 <= score_threshold <= 1:
                raise InputError(f"--score-threshold is {score_threshold}, expected 0 to 1.")
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(score_threshold)
        self.cfg = cfg
        self.bands = BandSpec(cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS, cfg.INPUT.SAR_SCALE)
        optical = len(self.bands.optical)
        self.channels = {"optical": slice(0, optical), "sar": slice(optical, None)}
        self.gsd_range_m = tuple(cfg.INPUT.GSD_RANGE_M)
        self.has_instances = cfg.MODEL.META_ARCHITECTURE != "FusionDense"
        has = {
            "dense": "DenseHeight" in cfg.MODEL.DENSE_HEADS.NAMES,
            "instances": self.has_instances and cfg.MODEL.HEIGHT_ON,
        }
        self.height_sources = tuple(source for source in HEIGHT_BANDS if has[source])
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.weights = Path(weights)
        self.model = build_model(cfg).eval()
        load_model(self.model, checkpoint["model"], weights)

    def predict(self, image: np.ndarray, gsd_m: float, sensor: dict | None = None) -> list[Building]:
        """Buildings of one image, in its pixels, best first; for the arguments see `predict_image`."""
        return self.predict_image(image, gsd_m, sensor).buildings

    @torch.no_grad()
    def predict_image(self, image: np.ndarray, gsd_m: float, sensor: dict | None = None) -> ImagePrediction:
        """Buildings and maps of one image.

        Args:
            image: (C, H, W) float32 in the units of `bands`; NaN = no data. Nothing is predicted where all bands are.
                Where one modality has no data the network does with the other.
            gsd_m: metres per pixel.
            sensor: fields of SensorGeometry, degrees, azimuths clockwise from the image's upper edge; None: unknown.
        """
        nodata = np.isnan(image).all(axis=0)
        if nodata.all():
            heads = self.cfg.MODEL.DENSE_HEADS.NAMES
            nothing = np.full(nodata.shape, np.nan, np.float32)
            return ImagePrediction(
                [], *(nothing if h in heads else None for h in ("DenseHeight", "Footprint"))
            )
        x = {"image": torch.from_numpy(np.ascontiguousarray(image)), "gsd_m": gsd_m, "sensor": sensor or {}}
        if hasattr(self.model, "outputs"):
            output = self.model.outputs([x], do_postprocess=False)[0]
        else:  # Detectron2's own architectures
            output = {"instances": self.model.inference([x], do_postprocess=False)[0]}
        found = buildings_from_instances(output["instances"].to("cpu")) if "instances" in output else []
        kept = [_on_data(b, nodata) for b in found]
        maps = (_map_on_data(output.get(name), nodata) for name in ("height_map_m", "footprint_map"))
        return ImagePrediction([b for b in kept if b is not None], *maps)


def device_name(wanted: str | None) -> str:
    """`wanted`, or a GPU if there is one; InputError when this machine has no such device."""
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


def _map_on_data(values: torch.Tensor | None, nodata: np.ndarray) -> np.ndarray | None:
    """(H, W) float32 `values` with NaN where there are none."""
    return None if values is None else np.where(nodata, np.float32(np.nan), values.float().cpu().numpy())


def predict_scene(
    predictor: Predictor,
    rgb_path: Path | None,
    sar_path: Path | None = None,
    *,
    window_px: int = 1024,
    overlap_px: int = 192,
    force_gsd: bool = False,
    sensor: SensorGeometry | None = None,
    height_path: Path | None = None,
    height_source: str | None = None,
    **reader_options,
) -> ScenePrediction:
    """Buildings of a raster pair, read and predicted window by window, and on demand a raster of heights.

    A building belongs to the window in whose core its box's centre lies, so one that is smaller than the overlap is
    seen whole and once. A pixel of the height raster belongs to the window in whose core it lies.

    Args:
        window_px: side of a window; a scene up to this size is one window.
        overlap_px: how far neighbouring windows overlap.
        force_gsd: predict even though the pixel size is more than four times off what the network was trained on.
        sensor: where sun and sensors were, as far as known.
        height_path: GeoTIFF to write heights to, on the pixels of the optical raster (the SAR raster's without one),
            also where these are resampled for the network; see `fusiondet.export.rasters`. An existing one is replaced.
        height_source: "dense", "instances", "both" (a band each); None: the first of these that the network has.
        rgb_path, sar_path: a raster, or a list of rasters whose bands are those of one; None where there is none.
        reader_options: rgb_bands, sar_bands, sar_scale, sar_factor, nodata, gsd_m of `SceneReader`.

    Raises:
        InputError: from the reader; the pixel size is too far from that of the training; no raster of a modality that
            the network takes; angles that cannot be; heights from what the network does not have.
    """
    sources = _wanted_sources(predictor, height_source) if height_path else []
    if not 0 <= overlap_px < window_px:
        raise InputError(
            f"an overlap of {overlap_px} px does not fit windows of {window_px} px: expected 0 <= overlap < window."
        )
    _check_sar_scale(predictor, reader_options.get("sar_scale"))
    paths = {"optical": rgb_path, "sar": sar_path}
    sensor = sensor or SensorGeometry()
    notes = _modality_notes(predictor, paths) + _sensor_notes(predictor, sensor, paths)
    target_gsd_m = _target_gsd(predictor, rgb_path, sar_path, force_gsd, reader_options)
    with contextlib.ExitStack() as opened:
        reader = opened.enter_context(
            SceneReader(rgb_path, sar_path, predictor.bands, target_gsd_m=target_gsd_m, **reader_options)
        )
        metadata = {"weights": predictor.weights.name, "fusiondet": __version__, "gsd_m": reader.gsd_m}
        heights = None
        if height_path:
            with SceneReader(rgb_path, sar_path, predictor.bands, **reader_options) as own:
                heights = opened.enter_context(_height_raster(height_path, own, reader, sources, metadata))
        windows = list(scene_windows(reader.width, reader.height, window_px, overlap_px))
        sensor = sensor.in_image_axes(reader.transform)
        buildings, has_data = [], dict.fromkeys(paths, False)
        for window, core in progress(windows, label="predicting", unit="window"):
            scene = reader.read(window)
            _check_sar_values(predictor, scene, sar_path)
            for modality, channels in predictor.channels.items():
                has_data[modality] |= not np.isnan(scene.image[channels]).all()
            predicted = predictor.predict_image(scene.image, scene.gsd_m, sensor.to_dict())
            buildings += _in_core(predicted.buildings, window, core)
            if heights:
                heights.fill(_height_layers(predicted, scene), window, core)
        notes += reader.notes + _nodata_notes(predictor, paths, has_data)
        buildings = drop_duplicates(buildings) if len(windows) > 1 else buildings
        if "instances" in sources:
            heights.paint(buildings)
        buildings = [building_to_map(b, reader.transform) for b in buildings]
        return ScenePrediction(buildings, reader.crs, reader.gsd_m, notes, metadata)


def _wanted_sources(predictor: Predictor, wanted: str | None) -> list[str]:
    """Sources of the bands of a height raster; InputError when the network lacks what is `wanted`."""
    name, has = predictor.weights.name, predictor.height_sources
    if wanted is not None and wanted not in (*HEIGHT_BANDS, "both"):
        raise unknown_name("--height-source", wanted, (*HEIGHT_BANDS, "both"))
    if not has:
        raise InputError(f"{name}: predicts no heights, so there is nothing to write with --height-raster.")
    sources = list(HEIGHT_BANDS) if wanted == "both" else [wanted or has[0]]
    lacking = {
        "dense": 'has no head for heights per pixel ("DenseHeight" is not in its MODEL.DENSE_HEADS.NAMES)',
        "instances": "finds no buildings with heights, only heights per pixel",
    }
    for source in sources:
        if source not in has:
            raise InputError(
                f"{name}: {lacking[source]}, so --height-source {wanted} cannot be written. "
                f"Pass --height-source {has[0]}, or other weights."
            )
    return sources


def _height_raster(path: Path, own: SceneReader, grid: SceneReader, sources: list[str], metadata: dict):
    """`height_raster` on the pixels of `own` for heights that come in those of `grid`."""
    return height_raster(
        path,
        (own.height, own.width),
        own.transform,
        own.crs,
        sources,
        tags={name: str(value) for name, value in metadata.items()},
        grid_shape=(grid.height, grid.width),
    )


def _height_layers(predicted: ImagePrediction, scene: Scene) -> dict[str, np.ndarray]:
    """What a window has to say to a height raster before buildings are painted on it."""
    nodata = np.isnan(scene.image).all(axis=0)
    return {"dense": predicted.height_map_m, "instances": np.where(nodata, np.nan, 0.0)}


def predict_to_file(
    weights: Path,
    rgb_path,
    sar_path,
    out: Path | None,
    *,
    height_path: Path | None = None,
    score_threshold: float | str = "layer",
    device=None,
    overwrite: bool = False,
    **options,
) -> ScenePrediction:
    """`predict_scene` with a fresh Predictor, written to `out`; see `fusiondet.export.write_buildings` for formats.

    Everything that can be wrong with `out`, `height_path` or the rasters is found before the network is built.

    Args:
        out: layer of buildings; None for a network that finds none, which writes heights per pixel alone.

    Raises:
        InputError: see `predict_scene` and `write_buildings`; also when the scene has no CRS, or when `out` is missing
            for a network that finds buildings, or given for one that does not.
    """
    inputs = [*_files(rgb_path), *_files(sar_path)]
    _check_outputs(out, height_path, inputs, overwrite)
    if options.get("height_source") and height_path is None:
        raise InputError("--height-source says what is written with --height-raster, which is missing.")
    for path in inputs:
        with open_raster(path, allow_vrt=True) as raster:
            if raster.crs is None and path == inputs[0]:
                raise InputError(
                    f"{path}: has no CRS, so its buildings have no place on the map. "
                    "Set it with `rio edit-info --crs EPSG:n FILE`."
                )
    predictor = Predictor(weights, device, score_threshold)
    if out is None and predictor.has_instances:
        raise InputError(f"{weights}: finds buildings. Pass --out for them, with or without --height-raster.")
    if out is not None and not predictor.has_instances:
        heights = "only heights per pixel. Pass --height-raster instead of --out."
        nothing = "and says no heights: it can be trained on and scored, but has nothing to write."
        raise InputError(f"{weights}: finds no buildings, {heights if predictor.height_sources else nothing}")
    result = predict_scene(predictor, rgb_path, sar_path, height_path=height_path, **options)
    if out is not None:
        write_buildings(result.buildings, result.crs, out, metadata=result.metadata, overwrite=overwrite)
    return result


def _files(paths) -> list:
    """The rasters of a modality as a list: none, one, or several whose bands count as one's."""
    return [] if paths is None else list(paths) if isinstance(paths, list | tuple) else [paths]


def _check_outputs(out: Path | None, height_path: Path | None, inputs, overwrite: bool) -> None:
    if out is None and height_path is None:
        raise InputError("nothing to write. Pass --out for buildings, --height-raster for heights, or both.")
    if out is not None:
        check_output(out, overwrite)
    if height_path is not None:
        check_height_raster(height_path, overwrite)
        if any(Path(p).exists() and Path(p).resolve() == Path(height_path).resolve() for p in inputs):
            raise InputError(
                f"{height_path}: is an image to predict from, and not replaced. Choose another name."
            )


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


def _in_core(buildings: list[Building], window, core) -> list[Building]:
    """Those of a window's buildings whose box is centred in its core, in the pixels of the whole scene."""
    kept = []
    for building in buildings:
        building.polygon = shapely.affinity.translate(building.polygon, window[0], window[1])
        x0, y0, x1, y1 = building.polygon.bounds
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        if core[0] <= x < core[2] and core[1] <= y < core[3]:
            kept.append(building)
    return kept


_NAMES = {"optical": "optical", "sar": "SAR"}
_PATH_OPTIONS = {"optical": "--rgb", "sar": "--sar"}


def _modality_notes(predictor: Predictor, paths: dict[str, Path | None]) -> list[str]:
    """What is missing and what is not used; InputError when nothing is there that the network takes."""
    taken = {m: getattr(predictor.bands, m) for m in paths if getattr(predictor.bands, m)}
    if not any(paths.values()):
        raise InputError("no raster given. Pass --rgb, and --sar if the network takes both.")
    if not any(paths[m] for m in taken):
        ((modality, names),) = taken.items()
        raise InputError(
            f"{predictor.weights}: takes {_NAMES[modality]} only ({', '.join(names)}). Pass {_PATH_OPTIONS[modality]}."
        )
    notes = []
    for modality, path in paths.items():
        if modality in taken and path is None:
            notes.append(f"no {_PATH_OPTIONS[modality]}: {_what_to_expect_without(predictor, modality)}")
        elif modality not in taken and path is not None:
            notes.append(
                f"{path}: is not used, {predictor.weights.name} was trained without {_NAMES[modality]}."
            )
    threshold = predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    if _has_two_detectors(predictor.cfg) and all(paths.values()) and threshold >= 0.5:
        notes.append(
            f"{predictor.weights.name} has two detectors, and what only one of them finds has half its score at most: "
            f"pass a --score-threshold below 0.5 to see such buildings, under clouds say."
        )
    return notes


def _has_two_detectors(cfg) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "LateFusionRCNN"


def _nodata_notes(
    predictor: Predictor, paths: dict[str, Path | None], has_data: dict[str, bool]
) -> list[str]:
    if not any(has_data.values()):
        names = " and ".join(str(path) for m, path in paths.items() if path and getattr(predictor.bands, m))
        return [f"{names}: all of it is no data, so there is nothing to predict."]
    return [
        f"{path}: all of it is no data; {_what_to_expect_without(predictor, modality)}"
        for modality, path in paths.items()
        if path and getattr(predictor.bands, modality) and not has_data[modality]
    ]


def _what_to_expect_without(predictor: Predictor, modality: str) -> str:
    fusion, name, weights = predictor.cfg.MODEL.FUSION, _NAMES[modality], predictor.weights.name
    share = fusion.MODALITY_DROPOUT[modality]
    if share > 0:
        return f"predicted without {name}, as {share:.0%} of the images that {weights} was trained on were."
    if _has_two_detectors(predictor.cfg) and not any(fusion.EXCHANGE.values()):
        return f"predicted by the other detector of {weights} alone, which never sees {name}."
    return (
        f"{weights} was never trained without {name}, so expect much less of it; one trained with "
        f"MODEL.FUSION.MODALITY_DROPOUT.{modality} above 0 copes."
    )


def _sensor_notes(predictor: Predictor, sensor: SensorGeometry, paths: dict[str, Path | None]) -> list[str]:
    """What of `sensor` the network lacks, does not use, or was not trained on; InputError for angles that cannot be."""
    given = {name: value for name, value in sensor.to_dict().items() if value is not None}
    for name, value in given.items():
        possible, what = TILTS_DEG.get(name, (lambda v: 0 <= v <= 360, "from 0 to 360"))
        if not possible(value):
            raise InputError(f"{SENSOR_OPTIONS[name]} is {value}, expected {what} degrees.")
    cfg = predictor.cfg
    told = [FACTS[fact] for fact in cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY] if cfg.MODEL.HEIGHT_ON else []
    used = {fact.field for fact in told}
    # Without SAR nothing in the image depends on where its sensor was.
    lacking = [
        SENSOR_OPTIONS[f.field] for f in told if f.modality and f.field not in given and paths[f.modality]
    ]
    notes = []
    if lacking:
        notes.append(
            f"{predictor.weights.name} reads heights off with known angles; without {', '.join(lacking)} they are less "
            "certain."
        )
    idle = [SENSOR_OPTIONS[name] for name in given if name not in used]
    if idle:
        notes.append(
            f"{predictor.weights.name} makes no use of {', '.join(idle)} (its MODEL.ROI_HEIGHT_HEAD.GEOMETRY is "
            f"{list(cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY)})."
        )
    ranges = {
        "sun_elevation_deg": cfg.INPUT.SUN_ELEVATION_RANGE_DEG,
        "sar_incidence_deg": cfg.INPUT.SAR_INCIDENCE_RANGE_DEG,
    }
    for name, (low, high) in ((name, pair) for name, pair in ranges.items() if len(pair)):
        if name in given and not low <= given[name] <= high:
            notes.append(
                f"{SENSOR_OPTIONS[name]} {given[name]:g} is outside of what {predictor.weights.name} was trained on, "
                f"{low:g} to {high:g} degrees: its heights may be off."
            )
    return notes


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


# So many values of a calibrated image in dB are never all above 0; those of power and amplitude are.
_ENOUGH_SAR_PIXELS = 10_000


def _check_sar_values(predictor: Predictor, scene: Scene, sar_path) -> None:
    """InputError when SAR comes in other units than the dB that the network was trained on."""
    if sar_path is None or predictor.bands.sar_scale in ("", "stretched_uint8"):
        return
    values, trained = (
        part[predictor.channels["sar"]] for part in (scene.image, predictor.cfg.MODEL.PIXEL_MEAN)
    )
    known = values[np.isfinite(values)]
    if known.size >= _ENOUGH_SAR_PIXELS and max(trained) < 0 <= known.min():
        names = ", ".join(map(str, _files(sar_path)))
        raise InputError(
            f"{names}: its values, {known.min():.3g} to {known.max():.3g}, are not the dB that "
            f"{predictor.weights.name} was trained on (mean {max(trained):.3g}). Say what it holds with --sar-scale "
            "linear_power or amplitude, and calibrate it to backscatter if it is not."
        )


def _target_gsd(predictor: Predictor, rgb_path, sar_path, force_gsd: bool, options: dict) -> float | None:
    """GSD to resample the scene to, or None where it fits the training."""
    with SceneReader(rgb_path, sar_path, predictor.bands, **options) as reader:
        gsd_m, name = reader.gsd_m, (_files(rgb_path) or _files(sar_path))[0]
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
