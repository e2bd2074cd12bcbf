"""The Detectron2 evaluator of buildings: collects predictions of all processes and scores them once."""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet import plugins
from fusiondet.buildings import Tile
from fusiondet.data import catalog
from fusiondet.errors import InputError
from fusiondet.evaluation.classification import ConfusionMatrix, class_metrics
from fusiondet.evaluation.dense import (
    ALL_OF_IT,
    DENSE_SCORES_FILE,
    PREDICTIONS_FILE,
    DenseCounts,
    DenseScores,
    dense_counts,
    dense_metrics,
    painted,
    tile_truth,
)
from fusiondet.evaluation.height_metrics import height_metrics
from fusiondet.evaluation.instances import METRICS, evaluate_instances
from fusiondet.evaluation.regions import REGIONS, has_clouds
from fusiondet.evaluation.table import worse_than_constant
from fusiondet.files import write_json
from fusiondet.io.coco import Dataset, encode_rle, prediction_record
from fusiondet.io.pixel_classes import tile_classes
from fusiondet.modeling.height_head import HEIGHT_FIELDS

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import nn

_log = logging.getLogger(__name__)
# The numbers that a reader looks for first, in this order.
HEADLINES = (
    "segm/AP50", "segm/AP", "bbox/AP50", "joint/AP50", "height/mae_m", "height/delta1", "height/skill",
    "height/bias_m", "height/interval_coverage", "height/coverage", "height_gt_boxes/mae_m", "height_gt_boxes/skill",
    "dense/dice", "dense/delta1_building", "dense/mae_m_building", "dense/skill",
    "classes/oa", "classes/mean_f1", "classes/miou", "classes/kappa",
)  # fmt: skip


# From this probability on, a pixel is part of a building.
FOOTPRINT_LIMIT = 0.5


class BuildingEvaluator(DatasetEvaluator):
    """Boxes, masks, heights and maps of one data set; the numbers are those of `fusiondet.evaluation`.

    Takes what the networks of this project say about a tile: `instances`, `height_map_m` and `footprint_map` (H, W),
    `class_map` (K, H, W), or some of these. Maps of dense heads are scored as `dense/`, the instances beside them,
    painted, as `painted/`; without dense heads the painted instances are `dense/`. Classes are scored as `classes/`,
    against rasters of classes, where pixels that are not labelled do not count, else against footprints. A tile with
    such a raster need not have outlines: of a network that tells classes, it is scored by these alone.

    Writes `predictions.json` (COCO results with heights; none from a network without instances), `metrics.json` (flat
    keys, null where not defined), where there are dense heads, `dense_scores.json` (`DenseScores`), and, of classes,
    `confusion.json` (names, and counts of true by predicted class) and, with `draw_confusion`, `confusion.png` into
    `output_dir`.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | Path | None = None,
        max_detections: int | None = None,
        metrics: tuple[str, ...] = METRICS,
        model: nn.Module | None = None,
        height_labels: str = "auto",
        class_names: Sequence[str] = (),
        draw_confusion: Callable[[np.ndarray, Sequence[str], str, Path], None] | None = None,
    ):
        """What to score, and how.

        Args:
            max_detections: per image that count.
            metrics: of instances, see `evaluate_instances`.
            model: score its `heights_on_truth` too; None: do not.
            height_labels: what maps are scored against, as INPUT.HEIGHT_LABELS.
            class_names: of the channels of `class_map`.
            draw_confusion: writes confusion.png; see `fusiondet.visualization.training`. None: there is none.
        """
        self.dataset_name = catalog.ensure_registered(dataset_name)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.max_detections, self.metrics, self.model = max_detections, metrics, model
        self.height_labels, self.class_names = height_labels, list(class_names)
        self.draw_confusion = draw_confusion
        self.reset()

    def reset(self) -> None:
        """Forget what was processed."""
        self._records: list[dict] = []
        self._heights_m: list[np.ndarray] = []
        self._maps: list[_TileMaps] = []
        self._truth: _Truth | None = None

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in what the model made of `inputs`; their `instances` are needed for the heights on truth only."""
        if self._truth is None:
            dataset = catalog.load_split(self.dataset_name)
            self._truth = _Truth(dataset, self.height_labels, self.class_names)
        for one, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu") if "instances" in output else None
            records = [] if instances is None else prediction_records(one, instances)
            self._records += records
            self._maps.append(self._truth.scored(one["image_id"], instances, records, output))
        if self.model is None:
            return
        with torch.no_grad():
            results = self.model.heights_on_truth(inputs)
        for one, result in zip(inputs, results, strict=True):
            columns = [one["instances"].gt_heights, *(result.get(name) for name in HEIGHT_FIELDS)]
            self._heights_m.append(np.stack([c.detach().float().cpu().numpy() for c in columns], axis=1))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Gather from all processes and score on the main one.

        Returns:
            {task: {metric: number}} without undefined numbers, on the main process; {} on the others.
        """
        records = list(itertools.chain.from_iterable(comm.all_gather(self._records)))
        heights_m = list(itertools.chain.from_iterable(comm.all_gather(self._heights_m)))
        maps = list(itertools.chain.from_iterable(comm.all_gather(self._maps)))
        if not comm.is_main_process():
            return {}
        dataset = catalog.load_split(self.dataset_name)
        has_instances = not maps or any(tile.has_instances for tile in maps)
        if has_instances:
            if not records:
                _log.warning("%s: the network predicted nothing at all", self.dataset_name)
            numbers = evaluate_instances(dataset, records, self._limit(dataset), self.metrics)
        else:
            n_buildings = sum(len(tile.buildings) for tile in dataset.tiles)
            numbers = {"dataset/n_images": len(dataset.tiles), "dataset/n_buildings": n_buildings}
        if self.model is not None:
            truth_m, p16_m, median_m, p84_m = np.concatenate([np.zeros((0, 4)), *heights_m]).T
            numbers |= height_metrics(truth_m, median_m, p16_m, p84_m, prefix="height_gt_boxes")
        numbers |= _map_metrics(maps)
        matrix = _pooled_classes(maps, len(self.class_names))
        if matrix is not None:
            numbers |= class_metrics(matrix, self.class_names)
        if self.output_dir is not None:
            write_json(records, self.output_dir / PREDICTIONS_FILE)
            write_json(numbers, self.output_dir / "metrics.json", indent=1)
            self._write_dense_scores(maps, has_instances)
            self._write_confusion(matrix)
        return nested(numbers)

    def _write_dense_scores(self, maps: "list[_TileMaps]", has_instances: bool) -> None:
        # What another network left here would be taken for this one's.
        (self.output_dir / DENSE_SCORES_FILE).unlink(missing_ok=True)
        tiles = {tile.image_id: tile.heads for tile in maps if tile.heads}
        if tiles or not has_instances:
            DenseScores(self.height_labels, has_instances, tiles).write(self.output_dir / DENSE_SCORES_FILE)

    def _write_confusion(self, matrix: ConfusionMatrix | None) -> None:
        numbers, image = self.output_dir / "confusion.json", self.output_dir / "confusion.png"
        numbers.unlink(missing_ok=True)
        image.unlink(missing_ok=True)
        if matrix is None:
            return
        write_json({"classes": self.class_names, "counts": matrix.counts.tolist()}, numbers)
        if self.draw_confusion is not None:
            title = f"{catalog.folder_name(self.dataset_name)}, pixels"
            self.draw_confusion(matrix.counts, self.class_names, title, image)

    def _limit(self, dataset) -> int | None:
        """Detections per image that count: never fewer than the densest tile has buildings."""
        if self.max_detections is None:
            return None
        return max(self.max_detections, *(len(tile.buildings) for tile in dataset.tiles), 1)


@dataclass
class _TileMaps:
    """What the maps of a tile scored: its instances painted, of dense heads part of the tile -> counts, if any, and of
    classes the counts (K, K) of true by predicted.
    """

    image_id: int | str
    has_instances: bool
    painted: DenseCounts | None
    heads: dict[str, DenseCounts]
    classes: np.ndarray | None = None


class _Truth:
    """True maps of the tiles of one data set, and what predicted ones score against them."""

    def __init__(self, dataset: Dataset, height_labels: str, class_names: list[str]):
        self._dataset, self._height_labels, self._class_names = dataset, height_labels, class_names
        self._tiles = {tile.id: tile for tile in dataset.tiles}
        self._regions = [make(dataset.root) for make in REGIONS.values()] if has_clouds(dataset) else []
        self._readable = True

    def scored(self, image_id, instances: Instances | None, records: list[dict], output: dict) -> _TileMaps:
        tile, maps = self._tiles[image_id], predicted_maps(output)
        result = _TileMaps(image_id, instances is not None, None, {})
        if output.get("class_map") is not None:
            result.classes = self._class_counts(tile, output["class_map"])
            if tile.class_file_name is not None:
                return result
        truth = self._read(tile, needed=maps is not None)
        if truth is None:
            return result
        if instances is not None:
            height_m, footprint = painted(records, truth[0].shape)
            with_heights = all(instances.has(name) for name in HEIGHT_FIELDS)
            result.painted = _counts((height_m if with_heights else None, footprint), truth)
        if maps is not None:
            result.heads[ALL_OF_IT] = _counts(maps, truth)
            result.heads |= {r.name: _counts(maps, truth, r.inside(tile)) for r in self._regions}
        return result

    def _class_counts(self, tile: Tile, probabilities: torch.Tensor) -> np.ndarray:
        predicted = probabilities.argmax(dim=0).cpu().numpy()
        truth = tile_classes(self._dataset, tile, self._class_names)
        if predicted.shape != truth.shape:
            raise InputError(
                f"{tile.file_name}: a map of classes of {predicted.shape} px in a tile of {truth.shape} px."
            )
        return ConfusionMatrix(len(self._class_names)).add(truth, predicted).counts

    def _read(self, tile: Tile, needed: bool):
        """`tile_truth`; None where it cannot be read and only a detector is scored, which did not need it so far."""
        if not (self._readable or needed):
            return None
        try:
            return tile_truth(self._dataset, tile, self._height_labels)
        except InputError as error:
            if needed:
                raise
            _log.warning("dense/ scores are left out: %s", error)
            self._readable = False
            return None


def _counts(maps, truth, inside: np.ndarray | None = None) -> DenseCounts:
    return dense_counts(maps[0], truth[0], maps[1], truth[1], inside)


def predicted_maps(output: dict) -> tuple[np.ndarray | None, np.ndarray | None] | None:
    """(H, W) metres and (H, W) bool of an output, None for what it does not hold; None if it holds neither."""
    maps = [output.get(name) for name in ("height_map_m", "footprint_map")]
    if all(m is None for m in maps):
        return None
    height_m, probability = (None if m is None else m.detach().float().cpu().numpy() for m in maps)
    return height_m, None if probability is None else probability >= FOOTPRINT_LIMIT


def _map_metrics(maps: list[_TileMaps]) -> dict[str, float | None]:
    heads, of_instances = [tile.heads.get(ALL_OF_IT) for tile in maps], [tile.painted for tile in maps]
    # A score over the tiles that could be counted would be one of other tiles than all the rest.
    painted_too = bool(maps) and all(of_instances)
    if not any(heads):
        return dense_metrics(of_instances) if painted_too else {}
    return dense_metrics(heads) | (dense_metrics(of_instances, prefix="painted") if painted_too else {})


def _pooled_classes(maps: list[_TileMaps], n_classes: int) -> ConfusionMatrix | None:
    """What the classes of all tiles scored; None where there are none."""
    counts = [tile.classes for tile in maps if tile.classes is not None]
    return ConfusionMatrix(n_classes, np.sum(counts, axis=0)) if counts else None


def prediction_records(inputs: dict, instances: Instances) -> list[dict]:
    """COCO results of one image's `instances` (CPU): pred_boxes, scores, pred_masks (N, H, W), and heights if there."""
    boxes = instances.pred_boxes.tensor.tolist()
    scores = instances.scores.tolist()
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    heights_m = [None] * len(scores)
    if all(instances.has(name) for name in HEIGHT_FIELDS):
        heights_m = list(zip(*(instances.get(name).tolist() for name in HEIGHT_FIELDS), strict=True))
    return [
        prediction_record(
            inputs["image_id"], scores[i], boxes[i], _rle(masks, i, boxes[i], inputs), heights_m[i]
        )
        for i in range(len(scores))
    ]


def _rle(masks: np.ndarray | None, i: int, box_xyxy: list[float], inputs: dict) -> dict:
    if masks is not None:
        return encode_rle(masks[i])
    # A network without a mask head predicts its boxes.
    filled = np.zeros((inputs["height"], inputs["width"]), bool)
    x0, y0, x1, y1 = (round(v) for v in box_xyxy)
    filled[max(y0, 0) : y1, max(x0, 0) : x1] = True
    return encode_rle(filled)


def nested(numbers: dict[str, float | None]) -> dict[str, dict[str, float]]:
    """{"segm/AP50": 80, ...} -> {"segm": {"AP50": 80, ...}, ...}, Detectron2's form, without undefined numbers."""
    tasks: dict[str, dict[str, float]] = {}
    for key, value in numbers.items():
        task, _, metric = key.partition("/")
        if value is not None and np.isfinite(value):
            tasks.setdefault(task, {})[metric] = float(value)
    return tasks


def table(results: dict[str, dict[str, float]]) -> str:
    """The headline numbers of `evaluate`'s result, one per line."""
    rows = []
    for key in (*HEADLINES, *plugins.listed("headlines")):
        task, _, metric = key.partition("/")
        if metric in results.get(task, {}):
            rows.append(f"  {key:<26} {results[task][metric]:9.3f}")
    known = {f"{task}/{name}": value for task, scores in results.items() for name, value in scores.items()}
    rows += [f"  {note}" for note in worse_than_constant(known)]
    return "\n".join(rows) or "  no number is defined"
