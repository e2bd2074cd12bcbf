"""The score of the SpaceNet building challenges: F1 of outlines, true positives of all tiles pooled.

The rules are those of the published evaluator (CosmiQ/solaris, solaris/eval/base.py): proposals in the order of their
confidence, each takes the true outline of highest IoU among those that are left, and is right where that IoU is above
0.5 (0.5 itself is not); its truth is then gone. Small outlines do not count: a true one needs at least `min_area_px`, a
proposal more than that. IoU is that of the polygons.

What is its own here: a predicted mask becomes the outer borders of its pixels, stair-cased, with holes, as SpaceNet's
own tools make polygons of masks; one of several parts (pixels touching by a corner are such) stays one proposal.
Annotated outlines are taken as they are, repaired where they cross themselves; crowds are no truth.
"""

from collections.abc import Sequence
from pathlib import Path

from fusiondet.cli import progress
from fusiondet.errors import InputError
from fusiondet.evaluation.instances import scored_images
from fusiondet.evaluation.matching import NOTHING, match_greedily
from fusiondet.io.coco import Dataset, polygon_from_segmentation, read_coco

import numpy as np
import shapely
from shapely import STRtree
from shapely.geometry.base import BaseGeometry

# Of SpaceNet 6; the challenges before it take 20.
MIN_AREA_PX = 80.0
MIN_IOU = 0.5
# From this score on an instance is a proposal; the challenges leave the choice to those who submit.
MIN_SCORE = 0.5
# Each proposal is matched as an outline; no tile has so many buildings.
_MOST_PROPOSALS = 10_000


def evaluate_spacenet(
    dataset: Dataset | Path,
    records: list[dict] | Path,
    min_area_px: float = MIN_AREA_PX,
    score_threshold: float = MIN_SCORE,
    classes: Sequence[str] = (),
) -> dict[str, float | int | None]:
    """Score COCO results as the SpaceNet challenges do.

    Args:
        dataset: truth, or the path of its COCO JSON.
        records: COCO results, or the path of their JSON.
        min_area_px: smallest area of a true outline, px²; proposals need more than that.
        score_threshold: instances from this score on are proposals.
        classes: of a path, the annotated classes that are buildings; see `of_classes`.

    Returns:
        `spacenet/f1, precision, recall` in [0, 1], None where not defined (the challenges say 0 there);
        `spacenet/tp, fp, fn, min_area_px, score_threshold`.

    Raises:
        InputError: as `evaluate_instances`; or an area or a score that is none.
    """
    if not 0 <= min_area_px < float("inf"):
        raise InputError(f"smallest area is {min_area_px}, expected square pixels, 0 or more.")
    if not 0 <= score_threshold <= 1:
        raise InputError(f"score threshold is {score_threshold}, expected a number in [0, 1].")
    dataset = dataset if isinstance(dataset, Dataset) else read_coco(dataset, classes)
    proposals = _proposals(dataset, records, score_threshold)
    counts = np.zeros(3, int)
    for tile in progress(dataset.tiles, label="match outlines"):
        truth = [building.polygon for building in tile.buildings]
        counts += spacenet_counts(truth, proposals.get(tile.id, []), min_area_px)
    tp, fp, fn = (int(n) for n in counts)
    return {
        "spacenet/f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        "spacenet/precision": tp / (tp + fp) if tp + fp else None,
        "spacenet/recall": tp / (tp + fn) if tp + fn else None,
        "spacenet/tp": tp,
        "spacenet/fp": fp,
        "spacenet/fn": fn,
        "spacenet/min_area_px": min_area_px,
        "spacenet/score_threshold": score_threshold,
    }


def spacenet_table(numbers: dict) -> str:
    """A readable line for the numbers of `evaluate_spacenet`; "-" where one is not defined."""

    def share(name: str) -> str:
        value = numbers[f"spacenet/{name}"]
        return "-" if value is None else f"{value:.3f}"

    counts = ", ".join(f"{numbers[f'spacenet/{name}']} {name}" for name in ("tp", "fp", "fn"))
    return (
        f"spacenet: F1 {share('f1')}, precision {share('precision')}, recall {share('recall')} ({counts}; outlines of "
        f"{numbers['spacenet/min_area_px']:g} px² and more, scores of {numbers['spacenet/score_threshold']:g} and more)"
    )


def spacenet_counts(
    truth: Sequence[BaseGeometry],
    proposals: Sequence[BaseGeometry],
    min_area_px: float = 0.0,
    min_iou: float = MIN_IOU,
) -> tuple[int, int, int]:
    """True positives, false positives and false negatives of one tile.

    Args:
        truth: valid polygons; one without area is none.
        proposals: valid polygons by descending confidence; of equal ones the earlier is served first.
        min_area_px: see `evaluate_spacenet`. min_iou: a pair has more than that.
    """
    truth = np.array([p for p in truth if p.area >= min_area_px and p.area > 0], dtype=object)
    proposals = np.array([p for p in proposals if p.area > min_area_px], dtype=object)
    iou = np.zeros((len(proposals), len(truth)))
    if iou.size:
        i, j = STRtree(truth).query(proposals, predicate="intersects")
        shared = shapely.area(shapely.intersection(proposals[i], truth[j]))
        iou[i, j] = shared / shapely.area(shapely.union(proposals[i], truth[j]))
    # Of two truths with the same IoU the earlier one goes; `match_greedily` takes the later: hence backwards. It also
    # takes an IoU of exactly the threshold: hence the next number above.
    match = match_greedily(iou[:, ::-1], [np.nextafter(min_iou, 1.0)])[0]
    tp = int(np.count_nonzero(match != NOTHING))
    return tp, len(proposals) - tp, len(truth) - tp


def _proposals(dataset: Dataset, records: list[dict] | Path, score_threshold: float) -> dict:
    """Image id -> outlines of its instances by descending score."""
    document = {
        "images": [{"id": t.id, "width": t.width, "height": t.height} for t in dataset.tiles],
        "annotations": [],
    }
    outlines = {}
    for image in scored_images(document, records, max_detections=_MOST_PROPOSALS + 1):
        shown = [r["segmentation"] for r in image.records if r["score"] >= score_threshold]
        if len(shown) > _MOST_PROPOSALS:
            raise InputError(
                f"image {image.image_id!r} has over {_MOST_PROPOSALS} instances from score {score_threshold:g} on: "
                "too many to match. Give a higher `score_threshold`."
            )
        polygons = (polygon_from_segmentation(mask, *image.size) for mask in shown)
        outlines[image.image_id] = [p for p in polygons if p is not None]
    return outlines
