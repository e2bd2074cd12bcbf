"""The layer against its truth: who is whose, and what follows for heights and for scores."""

from dataclasses import dataclass

from fusiondet.buildings import Building
from fusiondet.evaluation.average_precision import average_precision
from fusiondet.evaluation.height_metrics import height_metrics
from fusiondet.evaluation.layer_scores import evaluate_vectors, match_polygons
from fusiondet.io.vectors import Layer, transform_layer

import numpy as np

IOU_THRESHOLD = 0.5
_CURVE_POINTS = 1000


@dataclass
class TruthComparison:
    """What `compare` found.

    Attributes:
        numbers: of `evaluate_vectors`, and of the intervals of matched buildings; "ap50" in 0-100, None without scores.
        truth_of: (N,) index of each building's true one, or -1.
        truth_m, error_m: (N,) true height and prediction minus truth, metres; NaN where not known.
        missed: true buildings that nothing matched, in the layer's CRS.
        recall, precision, score: (P,) the curve, from the highest score down; empty without scores.
    """

    numbers: dict
    truth_of: np.ndarray
    truth_m: np.ndarray
    error_m: np.ndarray
    missed: list[Building]
    recall: np.ndarray
    precision: np.ndarray
    score: np.ndarray


def compare(buildings: list[Building], crs: str | None, truth: Layer) -> TruthComparison:
    """Match at IoU 0.5, one-to-one, best overlap first, as `tools/evaluate.py vectors` does.

    Raises:
        InputError: only one of the layers has a CRS.
    """
    numbers = evaluate_vectors(truth, Layer(buildings, crs), IOU_THRESHOLD)
    n_truth = len(truth.buildings)
    true = (truth if truth.crs is None else transform_layer(truth, crs)).buildings
    pairs, _ = match_polygons([b.polygon for b in true], [b.polygon for b in buildings], IOU_THRESHOLD)
    truth_of = np.full(len(buildings), -1)
    truth_of[pairs[:, 1]] = pairs[:, 0]
    true_m, predicted_m, p16_m, p84_m, score = (
        np.array([getattr(b, name) for b in who], dtype=float)
        for who, name in (
            (true, "height_m"),
            *((buildings, name) for name in ("height_m", "height_p16_m", "height_p84_m", "score")),
        )
    )
    truth_m = np.full(len(buildings), np.nan)
    truth_m[pairs[:, 1]] = true_m[pairs[:, 0]]
    with_intervals = height_metrics(truth_m, predicted_m, p16_m, p84_m)
    numbers["height/interval_coverage"] = with_intervals["height/interval_coverage"]
    recall, precision, thresholds, numbers["ap50"] = _curve(score, truth_of >= 0, n_truth)
    found = set(pairs[:, 0].tolist())
    missed = [b for i, b in enumerate(true) if i not in found]
    return TruthComparison(
        numbers, truth_of, truth_m, predicted_m - truth_m, missed, recall, precision, thresholds
    )


def _curve(score, true, n_truth: int):
    """Recall, precision and score at each distinct score, and the AP in 0-100; nothing where a score is unknown."""
    nothing = np.zeros(0)
    if not len(score) or not n_truth or not np.isfinite(score).all():
        return nothing, nothing, nothing, None
    ap = average_precision(score, true[None], np.zeros((1, len(true)), dtype=bool), n_truth)
    order = np.argsort(-score, kind="stable")
    hits, ranked = np.cumsum(true[order]), score[order]
    # Buildings of one score come together: no threshold keeps some of them only.
    at = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    if len(at) > _CURVE_POINTS:
        at = at[np.unique(np.linspace(0, len(at) - 1, _CURVE_POINTS).round().astype(int))]
    return hits[at] / n_truth, hits[at] / (at + 1), ranked[at], 100.0 * float(ap[0])
