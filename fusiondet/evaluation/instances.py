"""Scores of predicted instances against annotated ones: COCO AP, heights of matched buildings, joint AP.

All instances are buildings: of truth with several classes, those that are have to be chosen.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusiondet.errors import InputError, unknown_name
from fusiondet.evaluation import average_precision as ap
from fusiondet.evaluation.height_metrics import RATIO, height_metrics, height_ratio
from fusiondet.evaluation.matching import NOTHING, mask_iou, match_greedily
from fusiondet.files import read_json
from fusiondet.io.coco import (
    HEIGHT_KEYS,
    Dataset,
    checked_rings,
    checked_rle,
    coco_document,
    of_classes,
    read_predictions,
    validate_coco,
    validate_prediction,
)

import numpy as np
from pycocotools import mask as mask_api

METRICS = ("coco", "height", "joint")


@dataclass
class ScoredImage:
    """Truth and best-scored predictions of one image, as arrays. What is left out neither counts nor punishes.

    Attributes:
        image_id, size: id in the truth, (height, width).
        truth_rles, crowd, truth_m: G masks, (G,) bool, (G,) metres or NaN.
        truth_left_out: (G,) bool, contains every crowd.
        records, heights_m, iou: D predictions by descending score, (D, 3) median, p16, p84 or NaN, (D, G).
        outside: (D,) bool, predictions that are left out unless they match a truth that counts.
    """

    image_id: int | str
    size: tuple[int, int]
    truth_rles: list[dict]
    crowd: np.ndarray
    truth_m: np.ndarray
    truth_left_out: np.ndarray
    records: list[dict]
    heights_m: np.ndarray
    iou: np.ndarray
    outside: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """(D,) descending."""
        return np.array([record["score"] for record in self.records], dtype=float)


@dataclass
class Judged:
    """Predictions of one image against its truth at T thresholds.

    Attributes:
        match: (T, D) truth of every prediction, or NOTHING.
        true, left_out: (T, D) bool; what is neither is a false positive.
        n_truth: truths that count.
    """

    match: np.ndarray
    true: np.ndarray
    left_out: np.ndarray
    n_truth: int


def evaluate_instances(
    dataset: Dataset | Path | dict,
    records: list[dict] | Path,
    max_detections: int | None = None,
    metrics: tuple[str, ...] = METRICS,
    classes: Sequence[str] = (),
) -> dict[str, float | int | None]:
    """Score COCO results against truth.

    Args:
        dataset: truth; a `Dataset`, the path of its JSON, or the JSON's content.
        records: COCO results with `height_m, height_p16_m, height_p84_m` (missing or None: no height predicted), or
            the path of their JSON.
        max_detections: best-scored predictions per image that count; None: twice the densest image's truth, at
            least 100.
        metrics: any of "coco", "height", "joint".
        classes: of a path, the annotated classes that are buildings; see `of_classes`.

    Returns:
        Flat dict with the keys of `fusiondet.evaluation`; None where a number is not defined.

    Raises:
        InputError: unknown metric, invalid truth, a record of an image that the truth does not list, a mask that is
            broken or has another size than its image, or a score that is not a number.
    """
    for name in metrics:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS)
    document, records, n_predictions, max_detections = _prepared(dataset, records, max_detections, classes)
    result = {
        "dataset/n_images": len(document["images"]),
        "dataset/n_buildings": sum(not a.get("iscrowd") for a in document["annotations"]),
        "dataset/n_predictions": n_predictions,
        "dataset/max_detections": max_detections,
    }
    if "coco" in metrics:
        for kind in ("bbox", "segm"):
            per_threshold = ap.coco_average_precision(document, records, kind, max_detections)
            result |= ap.summary(kind, per_threshold)
    if "height" in metrics or "joint" in metrics:
        images = _images(document, records, max_detections)
        result |= _matched_heights(images) if "height" in metrics else {}
        result |= ap.summary("joint", _joint_average_precision(images)) if "joint" in metrics else {}
    return result


def matched_heights(
    dataset: Dataset | Path | dict, records: list[dict] | Path, max_detections: int | None = None
) -> np.ndarray:
    """The pairs behind the `height/` numbers of `evaluate_instances`, for drawing; same arguments and errors.

    Returns:
        (N, 4) true height, predicted median, p16, p84, metres; NaN where unknown or not predicted.
    """
    return _matched_columns(scored_images(dataset, records, max_detections))


def scored_images(
    dataset: Dataset | Path | dict, records: list[dict] | Path, max_detections: int | None = None
) -> list[ScoredImage]:
    """What `evaluate_instances` judges, image by image in the order of their ids; same arguments and errors."""
    document, records, _, max_detections = _prepared(dataset, records, max_detections)
    return _images(document, records, max_detections)


def _prepared(
    dataset, records, max_detections: int | None, classes: Sequence[str] = ()
) -> tuple[dict, list[dict], int, int]:
    """Truth and the predictions that count, each as lists of records with compressed RLE masks; see `_one_class`,
    `_with_boxes`. The number of all predictions, and of those of an image that count at most.
    """
    named = f"{dataset}: " if isinstance(dataset, str | Path) else ""
    document = _one_class(_document(dataset, classes), named)
    records = read_predictions(records) if isinstance(records, str | Path) else records
    max_detections = max_detections or _max_detections(document)
    return document, _with_boxes(records, document, max_detections), len(records), max_detections


def _document(dataset: Dataset | Path | dict, classes: Sequence[str] = ()) -> dict:
    if isinstance(dataset, Dataset):
        return coco_document(dataset)
    if isinstance(dataset, dict):
        return dataset
    document = read_json(dataset)
    validate_coco(document, Path(dataset))
    return of_classes(document, Path(dataset), classes)


def _one_class(document: dict, named: str = "") -> dict:
    """`document` with compressed RLE masks and category 1 throughout, images in the order of their ids.

    Args:
        named: what its errors begin with.
    """
    images = sorted(document["images"], key=lambda image: image["id"])
    size = {image["id"]: (image["height"], image["width"]) for image in images}
    annotations = []
    for n, annotation in enumerate(document["annotations"], start=1):
        # COCO's evaluation takes an id of 0 for "unmatched": number anew.
        where = f"{named}annotation {annotation.get('id')!r}"
        rle = _named(where, annotation["segmentation"], *size[annotation["image_id"]])
        kept = {
            "id": n,
            "category_id": 1,
            "segmentation": rle,
            "iscrowd": int(annotation.get("iscrowd") or 0),
        }
        if annotation.get("area") is None:
            kept["area"] = float(mask_api.area(rle))
        if annotation.get("bbox") is None:
            kept["bbox"] = mask_api.toBbox(rle).tolist()
        annotations.append({**annotation, **kept})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "building"}]}


def _with_boxes(records: list[dict], document: dict, max_detections: int) -> list[dict]:
    """Copies of `records` with compressed RLE, category 1 and a box, without those of an image that do not count."""
    size = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    of_image = defaultdict(list)
    for i, record in enumerate(records):
        validate_prediction(record, f"prediction {i}")
        if record["image_id"] not in size:
            raise InputError(
                f"prediction {i} belongs to image {record['image_id']!r}, which the annotations do not list. "
                "Do both files belong to the same split?"
            )
        of_image[record["image_id"]].append(i)
    # Masks are looked at last: an image may have a hundred thousand predictions, of which a hundred count.
    counting = [i for of_one in of_image.values() for i in _best(of_one, records, max_detections)]
    complete = []
    for i in sorted(counting):
        record = records[i]
        rle = _named(f"prediction {i}", record["segmentation"], *size[record["image_id"]])
        box = record["bbox"] if record.get("bbox") is not None else mask_api.toBbox(rle).tolist()
        complete.append({**record, "category_id": 1, "segmentation": rle, "bbox": box})
    return complete


def _best(numbers: list[int], records: list[dict], most: int) -> list[int]:
    """Those of the `most` best-scored records; of equal ones, the earlier."""
    return sorted(numbers, key=lambda i: -records[i]["score"])[:most]


def _named(where: str, segmentation, height: int, width: int) -> dict:
    try:
        return compressed_rle(segmentation, height, width)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def compressed_rle(segmentation: list | dict, height: int, width: int) -> dict:
    """Compressed RLE of any COCO segmentation, rasterised the way pycocotools does.

    Raises:
        InputError: a mask of another size than (height, width), or a damaged one.
    """
    if isinstance(segmentation, dict):
        return checked_rle(segmentation, height, width)
    rings = [ring for ring in checked_rings(segmentation) if len(ring) >= 6]
    # pycocotools takes an empty list of rings for an empty list of masks.
    return mask_api.merge(mask_api.frPyObjects(rings or [[0.0] * 6], height, width))


def _max_detections(document: dict) -> int:
    per_image = defaultdict(int)
    for annotation in document["annotations"]:
        per_image[annotation["image_id"]] += 1
    return max(100, 2 * max(per_image.values(), default=0))


def _images(document: dict, records: list[dict], max_detections: int) -> list[ScoredImage]:
    truth, predictions = defaultdict(list), defaultdict(list)
    for annotation in document["annotations"]:
        truth[annotation["image_id"]].append(annotation)
    for record in records:
        predictions[record["image_id"]].append(record)
    return [_image(i, truth[i["id"]], predictions[i["id"]], max_detections) for i in document["images"]]


def _image(image: dict, annotations: list[dict], records: list[dict], max_detections: int) -> ScoredImage:
    order = np.argsort([-record["score"] for record in records], kind="stable")[:max_detections]
    records = [records[k] for k in order]
    crowd = np.array([bool(a["iscrowd"]) for a in annotations], dtype=bool)
    rles = [a["segmentation"] for a in annotations]
    return ScoredImage(
        image_id=image["id"],
        size=(image["height"], image["width"]),
        truth_rles=rles,
        crowd=crowd,
        truth_m=np.array([_number(a.get("height_m")) for a in annotations]),
        truth_left_out=crowd,
        records=records,
        heights_m=_height_columns(records),
        iou=mask_iou([r["segmentation"] for r in records], rles, crowd),
        outside=np.zeros(len(records), bool),
    )


def _height_columns(records: list[dict]) -> np.ndarray:
    """(N, 3) median, p16, p84 in metres; NaN where not predicted."""
    return np.array([[_number(r.get(key)) for key in HEIGHT_KEYS] for r in records], dtype=float).reshape(
        -1, 3
    )


def _number(value) -> float:
    return np.nan if value is None else float(value)


def _matched_heights(images: list[ScoredImage]) -> dict[str, float | int | None]:
    """Height numbers of the buildings matched at mask IoU >= 0.5, whatever their predicted height."""
    total = sum(int(np.isfinite(image.truth_m[~image.truth_left_out]).sum()) for image in images)
    return height_metrics(*_matched_columns(images).T, known_truth_total=total)


def _matched_columns(images: list[ScoredImage]) -> np.ndarray:
    return np.concatenate([np.zeros((0, 4)), *(matched_columns(i, judged_masks(i, [0.5])) for i in images)])


def matched_columns(image: ScoredImage, judged: Judged) -> np.ndarray:
    """(N, 4) true height, predicted median, p16, p84 of the true positives at the first threshold of `judged`."""
    kept = np.flatnonzero(judged.true[0])
    return np.column_stack([image.truth_m[judged.match[0, kept]], image.heights_m[kept]])


def judged_masks(image: ScoredImage, thresholds: Sequence[float]) -> Judged:
    """Right is what has mask IoU >= t with its truth, as in COCO's "segm"."""
    return _judged(image, thresholds, image.truth_left_out, None)


def judged_jointly(image: ScoredImage, thresholds: Sequence[float]) -> Judged:
    """Right is what has IoU >= t *and* a height within a factor of 1.25 of the truth.

    A prediction with a wrong height cannot match, so it is a false positive and leaves its truth to others. Truth of
    unknown height, like a crowd, is ignored: what matches only that is left out.
    """
    unscored = image.truth_left_out | ~np.isfinite(image.truth_m)
    right = height_ratio(image.heights_m[:, :1], image.truth_m[None, :]) < RATIO
    return _judged(image, thresholds, unscored, right | unscored[None, :])


def _judged(image: ScoredImage, thresholds, unscored: np.ndarray, allowed: np.ndarray | None) -> Judged:
    match = match_greedily(image.iou, thresholds, unscored, image.crowd, allowed)
    on_unscored = np.append(unscored, False)[match]
    free = match == NOTHING
    return Judged(
        match, ~free & ~on_unscored, on_unscored | (free & image.outside[None, :]), int((~unscored).sum())
    )


def _joint_average_precision(images: list[ScoredImage]) -> np.ndarray | None:
    judged = [judged_jointly(image, ap.IOU_THRESHOLDS) for image in images]
    empty = np.zeros((len(ap.IOU_THRESHOLDS), 0), bool)
    return ap.average_precision(
        np.concatenate([np.zeros(0), *(image.scores for image in images)]),
        np.hstack([empty, *(j.true for j in judged)]),
        np.hstack([empty, *(j.left_out for j in judged)]),
        sum(j.n_truth for j in judged),
    )
