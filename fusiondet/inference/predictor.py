"""A trained network, rebuilt from its checkpoint, and what it says about images."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.buildings import Building, clean_polygon
from fusiondet.config_loading import config_from_yaml_text
from fusiondet.config_ranges import DEVICE
from fusiondet.engine.checkpoint import load_model, read_checkpoint
from fusiondet.errors import InputError
from fusiondet.evaluation.evaluator import FOOTPRINT_LIMIT
from fusiondet.geometry.contours import masks_to_polygons_px
from fusiondet.geometry.painting import mask_to_polygon
from fusiondet.io.bands import BandSpec
from fusiondet.io.height_rasters import HEIGHT_BANDS, NO_CLASS
from fusiondet.io.pixel_classes import FOOTPRINT_CLASSES
from fusiondet.jobs.hashing import file_sha256
from fusiondet.modeling.architecture import Architecture, architecture_of, build_network
from fusiondet.modeling.decision_fusion import BoxFusion
from fusiondet.modeling.height_head import HEIGHT_FIELDS

import numpy as np
import shapely
import torch
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

# Outlines lose vertices that move them less than this; the mask is not sharper.
SIMPLIFY_PX = 0.1
# A training's limits on proposals and detections are for its tiles, and would thin out buildings of a larger window:
# there is at least a proposal for every square of this side, px, and no fewer detections. A row house covers more.
PROPOSAL_PX = 16
# What every predicted height is.
HEIGHT_FACTS = {"height_source": "predicted", "height_stat": "median", "height_datum": "ground"}


@dataclass
class ImagePrediction:
    """What a network says about one image; None where it has no head for it.

    Attributes:
        buildings: in the image's pixels, best first; none from a network that finds no instances.
        height_map_m: (H, W) float32 metres above ground, about 0 where no building is, NaN where the image has no data.
        footprint_map: (H, W) float32 probability of a building, NaN likewise.
        class_map: (H, W) uint8 number of the most probable class, NO_CLASS where the image has no data.
    """

    buildings: list[Building]
    height_map_m: np.ndarray | None = None
    footprint_map: np.ndarray | None = None
    class_map: np.ndarray | None = None


class Predictor:
    """A trained network, rebuilt from its checkpoint alone.

    Attributes:
        cfg: the config it was trained with. config_yaml: the same as the checkpoint's text.
        bands: the channels it takes. channels: where those of a modality are.
        gsd_range_m: (finest, coarsest) GSD of its training images. device: torch device.
        has_instances: whether it finds buildings. height_sources: which of `HEIGHT_BANDS` it can fill.
        class_names: the classes that it tells, in order; `FOOTPRINT_CLASSES` where it says footprints, () for none.
        model: the network; None where it was not built.
    """

    def __init__(
        self,
        weights: str | Path,
        device: str | None = None,
        score_threshold: float | str | None = None,
        build: bool = True,
    ):
        """Load `weights`.

        Args:
            device: "cpu", "cuda", "cuda:1"; None takes a GPU if there is one.
            score_threshold: detections below it are dropped; None keeps the checkpoint's, which is for scoring; "layer"
                is for a layer of buildings: 0.5, or half of that for two detectors, where 0.5 would take a building
                that one of them is sure of, the one that sees under clouds say, for nothing.
            build: False where only what the checkpoint says of the network is wanted, and others predict.

        Raises:
            InputError: not a checkpoint of fusiondet, or of a network of patches; its config and tensors do not fit; no
                such device.
        """
        checkpoint = read_checkpoint(weights)
        cfg = config_from_yaml_text(checkpoint["config_yaml"], str(weights))
        architecture = architecture_of(cfg)
        if not architecture.predicts_scenes:
            raise InputError(
                f"{weights}: is a network of patches ({cfg.MODEL.META_ARCHITECTURE}), and draws no buildings or "
                "maps. Its predictions of a split are written by tools/train_net.py with `eval_only`."
            )
        cfg.MODEL.DEVICE = device_name(device)
        if score_threshold == "layer":
            score_threshold = 0.5 / architecture.detectors
        if score_threshold is not None:
            if not 0 <= score_threshold <= 1:
                raise InputError(f"`score_threshold` is {score_threshold}, expected 0 to 1.")
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(score_threshold)
        self.cfg, self.config_yaml = cfg, checkpoint["config_yaml"]
        self.bands = BandSpec(cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS, cfg.INPUT.SAR_SCALE)
        optical = len(self.bands.optical)
        self.channels = {"optical": slice(0, optical), "sar": slice(optical, None)}
        self.gsd_range_m = tuple(cfg.INPUT.GSD_RANGE_M)
        self.has_instances = architecture.finds_instances
        has = {
            "dense": "height" in architecture.pixel_tasks(cfg),
            "instances": self.has_instances and cfg.MODEL.HEIGHT_ON,
        }
        self.height_sources = tuple(source for source in HEIGHT_BANDS if has[source])
        tasks = architecture.pixel_tasks(cfg)
        self.class_names = FOOTPRINT_CLASSES if "footprint" in tasks else ()
        if "classes" in tasks:
            self.class_names = tuple(cfg.MODEL.DENSE_NET.CLASSES)
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.weights = Path(weights)
        self.model = None
        if build:
            self.model = build_network(cfg).eval()
            load_model(self.model, checkpoint["model"], weights)
            if not isinstance(self.model, Architecture):
                self.model = Detectron2Outputs(self.model)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the checkpoint's file, hexadecimal."""
        return file_sha256(self.weights)

    def predict(self, image: np.ndarray, gsd_m: float, sensor: dict | None = None) -> list[Building]:
        """Buildings of one image, in its pixels, best first; for the arguments see `predict_image`."""
        return self.predict_image(image, gsd_m, sensor).buildings

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
            return self.nothing(nodata.shape)
        return self.interpret(self.infer([image], gsd_m, sensor)[0], nodata)

    def nothing(self, shape: tuple[int, int]) -> ImagePrediction:
        """What is said about an image of (H, W) pixels none of which has data."""
        tasks, unknown = architecture_of(self.cfg).pixel_tasks(self.cfg), np.full(shape, np.nan, np.float32)
        classes = np.full(shape, NO_CLASS, np.uint8) if self.class_names else None
        maps = (unknown if task in tasks else None for task in ("height", "footprint"))
        return ImagePrediction([], *maps, classes)

    @torch.no_grad()
    def infer(self, images: list[np.ndarray], gsd_m: float, sensor: dict | None = None) -> list[dict]:
        """Raw output of the network for images of one scene that it sees at a time, in the CPU's memory."""
        batch = [
            {"image": torch.from_numpy(np.ascontiguousarray(image)), "gsd_m": gsd_m, "sensor": sensor or {}}
            for image in images
        ]
        if isinstance(self.model, torch.nn.Module):
            raise_limits(self.model, self.cfg, max(image[0].size for image in images))
        outputs = self.model.outputs(batch, do_postprocess=False)
        return [
            {name: None if value is None else value.to("cpu") for name, value in output.items()}
            for output in outputs
        ]

    def interpret(self, output: dict, nodata: np.ndarray) -> ImagePrediction:
        """Buildings and maps of `infer`'s output for an image without data where `nodata`, (H, W) bool."""
        found = buildings_from_instances(output["instances"]) if "instances" in output else []
        hidden = nodata if nodata.any() else None
        kept = [_on_data(b, nodata.shape, hidden) for b in found]
        maps = (_map_on_data(output.get(name), nodata) for name in ("height_map_m", "footprint_map"))
        numbers = _class_numbers(output)
        classes = None if numbers is None else np.where(nodata, np.uint8(NO_CLASS), numbers)
        return ImagePrediction([b for b in kept if b is not None], *maps, classes)


class Detectron2Outputs(torch.nn.Module):
    """One of Detectron2's own detectors with the `outputs` of an architecture of fusiondet."""

    def __init__(self, detector: torch.nn.Module):
        super().__init__()
        self.detector = detector

    def outputs(self, batched_inputs: list[dict], do_postprocess: bool = True) -> list[dict]:
        """As `FusionRCNN.outputs`."""
        if do_postprocess:
            return self.detector(batched_inputs)
        return [{"instances": x} for x in self.detector.inference(batched_inputs, do_postprocess=False)]


def _class_numbers(output: dict) -> np.ndarray | None:
    """(H, W) uint8 number of the class of each pixel, as `Predictor.class_names`; None where there are no classes."""
    if output.get("class_map") is not None:
        return output["class_map"].argmax(dim=0).to(torch.uint8).numpy()
    footprint = output.get("footprint_map")
    return None if footprint is None else (footprint >= FOOTPRINT_LIMIT).to(torch.uint8).numpy()


def raise_limits(model: torch.nn.Module, cfg, area_px: int) -> None:
    """Let a detector of `cfg` find as many buildings as an image of `area_px` pixels may hold; see PROPOSAL_PX."""
    wanted = math.ceil(area_px / PROPOSAL_PX**2)
    most_proposals = max(cfg.MODEL.RPN.POST_NMS_TOPK_TEST, wanted)
    # As many more before NMS as there were in training.
    ratio = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST / cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    most_before_nms = max(cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, math.ceil(ratio * wanted))
    most_detections = max(cfg.TEST.DETECTIONS_PER_IMAGE, wanted)
    for module in model.modules():
        if isinstance(module, RPN):
            module.post_nms_topk[False] = most_proposals
            module.pre_nms_topk[False] = most_before_nms
        elif isinstance(module, FastRCNNOutputLayers):
            module.test_topk_per_image = most_detections
        elif isinstance(module, BoxFusion):
            module.max_detections = most_detections


def has_two_detectors(cfg) -> bool:
    """Return whether a network of `cfg` is one detector per modality, whose scores are averaged."""
    return architecture_of(cfg).detectors == 2


def device_name(wanted: str | None) -> str:
    """`wanted`, or a GPU if there is one; InputError when this machine has no such device."""
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if not DEVICE.fullmatch(wanted):
            raise RuntimeError
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(
            f"`device={wanted}`: not on this machine, which has cpu and {torch.cuda.device_count()} CUDA GPUs."
        ) from None
    return wanted


def buildings_from_instances(instances) -> list[Building]:
    """Buildings in image pixels from raw network output: `pred_boxes` and box-sized `pred_masks` (R, 1, M, M).

    Outlines come from the mask probabilities at their own resolution, never from a full-size mask; an instance whose
    mask stays below one half is left out. A network without a mask head predicts its boxes.
    """
    order = np.argsort(-instances.scores.numpy(), kind="stable")
    boxes, scores = instances.pred_boxes.tensor.numpy()[order], instances.scores.numpy()[order].tolist()
    if instances.has("pred_masks"):
        masks = instances.pred_masks[:, 0].float().numpy()[order]
        polygons = masks_to_polygons_px(masks, boxes, tolerance_px=SIMPLIFY_PX)
    else:
        polygons = [clean_polygon(shapely.box(*box)) for box in boxes.tolist()]
    heights_m, facts = [(None, None, None)] * len(order), {}
    if instances.has("pred_heights"):
        columns = [instances.get(name).numpy()[order].astype(float).tolist() for name in HEIGHT_FIELDS]
        heights_m, facts = list(zip(*columns, strict=True)), HEIGHT_FACTS
    return [
        Building(polygon, median_m, p16_m, p84_m, score=score, **facts)
        for polygon, score, (p16_m, median_m, p84_m) in zip(polygons, scores, heights_m, strict=True)
        if polygon is not None
    ]


def _on_data(building: Building, shape: tuple[int, int], nodata: np.ndarray | None) -> Building | None:
    """`building` cut to an image of (H, W) pixels and to its valid ones; None when less than half of it is left.

    Args:
        nodata: (H, W) bool; None where all pixels are valid.
    """
    height, width = shape
    x0, y0, x1, y1 = building.polygon.bounds
    inside = x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height
    if inside and nodata is None:
        return building
    polygon = clean_polygon(building.polygon.intersection(shapely.box(0, 0, width, height)))
    if polygon is None:
        return None
    if nodata is not None:
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
    return None if values is None else np.where(nodata, np.float32(np.nan), values.float().numpy())
