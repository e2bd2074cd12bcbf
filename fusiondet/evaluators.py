"""The Detectron2 evaluator of buildings: collects predictions of all processes and scores them once."""

import itertools
import logging
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.data import catalog
from fusiondet.data.coco import encode_rle, prediction_record
from fusiondet.evaluation.heights import height_metrics
from fusiondet.evaluation.instances import METRICS, evaluate_instances
from fusiondet.files import write_json
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
)  # fmt: skip


class BuildingEvaluator(DatasetEvaluator):
    """Boxes, masks and heights of one data set; the numbers are those of `fusiondet.evaluation`.

    Writes `predictions.json` (COCO results with heights) and `metrics.json` (flat keys, null where not defined) into
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
    ):
        """Args: `max_detections` per image that count; `model`: score its `heights_on_truth` too; None: do not."""
        self.dataset_name = catalog.ensure_registered(dataset_name)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.max_detections, self.metrics, self.model = max_detections, metrics, model
        self.reset()

    def reset(self) -> None:
        """Forget what was processed."""
        self._records: list[dict] = []
        self._heights_m: list[np.ndarray] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in what the model made of `inputs`; their `instances` are needed for the heights on truth only."""
        for one, output in zip(inputs, outputs, strict=True):
            self._records += prediction_records(one, output["instances"].to("cpu"))
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
        if not comm.is_main_process():
            return {}
        if not records:
            _log.warning("%s: the network predicted nothing at all", self.dataset_name)
        dataset = catalog.load_split(self.dataset_name)
        numbers = evaluate_instances(dataset, records, self._limit(dataset), self.metrics)
        if self.model is not None:
            truth_m, p16_m, median_m, p84_m = np.concatenate([np.zeros((0, 4)), *heights_m]).T
            numbers |= height_metrics(truth_m, median_m, p16_m, p84_m, prefix="height_gt_boxes")
        if self.output_dir is not None:
            write_json(records, self.output_dir / "predictions.json")
            write_json(numbers, self.output_dir / "metrics.json", indent=1)
        return nested(numbers)

    def _limit(self, dataset) -> int | None:
        """Detections per image that count: never fewer than the densest tile has buildings."""
        if self.max_detections is None:
            return None
        return max(self.max_detections, *(len(tile.buildings) for tile in dataset.tiles), 1)


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
    for key in HEADLINES:
        task, _, metric = key.partition("/")
        if metric in results.get(task, {}):
            rows.append(f"  {key:<26} {results[task][metric]:9.3f}")
    return "\n".join(rows) or "  no number is defined"
