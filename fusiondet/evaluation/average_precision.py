"""Average precision by COCO's conventions: 101 recall points, precision made monotone, IoU .50:.05:.95."""

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)


def average_precision(
    scores: np.ndarray,
    true: np.ndarray,
    ignored: np.ndarray,
    n_truth: int,
    weights: np.ndarray | None = None,
) -> np.ndarray | None:
    """AP of predictions already judged.

    Args:
        scores: (N,) of all images, in the order of the images' ids; ties keep that order, as in pycocotools.
        true: (T, N) bool, true positive at each of T thresholds.
        ignored: (T, N) bool, left out altogether (matched a truth that does not count).
        n_truth: number of truths that count.
        weights: (N,) how many times each prediction is there, 0 for not at all; None: once. `n_truth` has to count
            in the same way.

    Returns:
        (T,) in [0, 1]; None when there is no truth to find (recall is not defined).
    """
    if n_truth == 0:
        return None
    order = np.argsort(-np.asarray(scores, dtype=float), kind="stable")
    weights = np.ones(len(order)) if weights is None else np.asarray(weights, dtype=float)
    return np.array(
        [
            _one_threshold(t[order], weights[order] * ~i[order], n_truth)
            for t, i in zip(true, ignored, strict=True)
        ]
    )


def _one_threshold(true: np.ndarray, weights: np.ndarray, n_truth: int) -> float:
    # Copies of one prediction side by side: all of them true, precision only rises over them; all false, none of them
    # is where a recall is first reached. So one step of their number gives what single steps would.
    true_positives, seen = np.cumsum(true * weights), np.cumsum(weights)
    precision = true_positives / np.maximum(seen, 1.0)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(true_positives / n_truth, RECALL_POINTS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(at, len(precision))].mean())


def summary(prefix: str, per_threshold: np.ndarray | None) -> dict[str, float | None]:
    """`prefix/AP`, `prefix/AP50`, `prefix/AP75` in 0-100 from (10,) AP in [0, 1]; None for all when it is None."""
    names = ("AP", "AP50", "AP75")
    if per_threshold is None:
        return {f"{prefix}/{name}": None for name in names}
    values = (per_threshold.mean(), per_threshold[0], per_threshold[5])
    return {f"{prefix}/{name}": 100.0 * float(value) for name, value in zip(names, values, strict=True)}


def coco_average_precision(
    document: dict, records: list[dict], kind: str, max_detections: int
) -> np.ndarray | None:
    """AP at the ten COCO thresholds by faster-coco-eval (equal to pycocotools, several times faster).

    Args:
        document: COCO truth (images, annotations, categories).
        records: COCO results.
        kind: "bbox" or "segm".
        max_detections: best-scored predictions per image that count.

    Returns:
        (10,) in [0, 1]; None when there is no truth (crowds do not count).
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if not any(not a.get("iscrowd") for a in document["annotations"]):
        return None
    if not records:
        return np.zeros(len(IOU_THRESHOLDS))
    # The library writes into the records it is given: hand it copies of what it needs, and numbers of images that it
    # can count with, in the order of the document's.
    number = {image["id"]: n for n, image in enumerate(document["images"])}
    images = [{**image, "id": number[image["id"]]} for image in document["images"]]
    annotations = [{**a, "image_id": number[a["image_id"]]} for a in document["annotations"]]
    truth = COCO({**document, "images": images, "annotations": annotations})
    keys = ("category_id", "score", "bbox", "segmentation")
    results = truth.loadRes(
        [{"image_id": number[r["image_id"]], **{key: r[key] for key in keys}} for r in records]
    )
    evaluation = COCOeval_faster(truth, results, kind)
    evaluation.params.maxDets = [max_detections]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    # The summary assumes maxDets of [1, 10, 100]; the array does not. Axes: threshold, recall, class, area, maxDets.
    return np.asarray(evaluation.eval["precision"])[:, :, 0, 0, 0].mean(axis=1)
