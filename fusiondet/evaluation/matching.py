"""Which prediction belongs to which truth: COCO's greedy rule on an IoU matrix, and the IoU of masks."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_api

NOTHING = -1


def match_greedily(
    iou: np.ndarray,
    thresholds: Sequence[float],
    ignored: np.ndarray | None = None,
    crowd: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """COCO's matching: in descending score each prediction takes the free truth with the largest IoU >= threshold.

    An ignored truth is taken only when no other one can be; a crowd may be taken by many. Of two truths with the same
    IoU the later one is taken, as in pycocotools.

    Args:
        iou: (D, G) between predictions, **sorted by descending score**, and truths.
        thresholds: T IoU thresholds in (0, 1).
        ignored: (G,) bool, truth that neither counts nor punishes; default none. Contains every crowd.
        crowd: (G,) bool; default none.
        allowed: (D, G) bool, pairs that may match at all (for example: the height is right too); default all.

    Returns:
        (T, D) int, the truth of every prediction or `NOTHING` (-1).
    """
    n_predictions, n_truth = iou.shape
    ignored = np.zeros(n_truth, bool) if ignored is None else np.asarray(ignored, bool)
    crowd = np.zeros(n_truth, bool) if crowd is None else np.asarray(crowd, bool)
    candidates = _ranked_candidates(iou, min(thresholds), ignored, allowed)
    matches = np.full((len(thresholds), n_predictions), NOTHING)
    for row, threshold in zip(matches, thresholds, strict=True):
        taken = set()
        for prediction, ranked in candidates:
            for truth, overlap in ranked:
                if overlap >= threshold and truth not in taken:
                    row[prediction] = truth
                    if not crowd[truth]:
                        taken.add(truth)
                    break
    return matches


def _ranked_candidates(iou, threshold, ignored, allowed) -> list[tuple[int, list[tuple[int, float]]]]:
    """Per prediction with any possible truth: its truths, best first. Few, as IoU >= 0.5 is rare: hence plain lists."""
    possible = iou >= threshold
    if allowed is not None:
        possible &= allowed
    candidates = []
    for prediction in np.flatnonzero(possible.any(axis=1)):
        truths = np.flatnonzero(possible[prediction])
        if len(truths) > 1:
            truths = truths[np.lexsort((-truths, -iou[prediction, truths], ignored[truths]))]
        candidates.append((prediction, [(int(g), float(iou[prediction, g])) for g in truths]))
    return candidates


def mask_iou(prediction_rles: list[dict], truth_rles: list[dict], crowd: np.ndarray) -> np.ndarray:
    """(D, G) IoU of compressed RLEs of one image; against a crowd, the share of the prediction inside it."""
    if not prediction_rles or not truth_rles:
        return np.zeros((len(prediction_rles), len(truth_rles)))
    return np.asarray(mask_api.iou(prediction_rles, truth_rles, [int(c) for c in crowd]), dtype=float)
