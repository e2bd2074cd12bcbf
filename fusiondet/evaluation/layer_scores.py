"""One building layer against another: who is whose by overlap, and how far the heights are apart.

Features stay features: nothing is merged, identifiers are not looked at, and every feature has at most one partner.
"""

from fusiondet.errors import InputError
from fusiondet.evaluation.height_metrics import height_metrics
from fusiondet.io.vectors import Layer, transform_layer

import numpy as np
import shapely
from pyproj import CRS
from shapely import STRtree


def evaluate_vectors(
    truth: Layer, predictions: Layer, iou_threshold: float = 0.5
) -> dict[str, float | int | None]:
    """Scores of `predictions` against `truth`. Predictions are brought into the truth's CRS.

    Args:
        truth, predictions: read with `read_layer(..., signed=True)`: roofs measured below the ground count too.
        iou_threshold: smallest overlap of a pair, in (0, 1].

    Returns:
        `match/n, n_truth, n_predictions, precision, recall, f1, mean_iou, iou_threshold` and the `height/` keys of
        `fusiondet.evaluation`, where the error is prediction - truth. None where a number is not defined.

    Raises:
        InputError: only one of the layers has a CRS, or the threshold is not in (0, 1].
    """
    if not 0 < iou_threshold <= 1:
        raise InputError(f"IoU threshold is {iou_threshold}, expected a number in (0, 1].")
    # Counted before some may turn out to lie outside what the truth's CRS can express: those match nothing.
    n_truth, n_predictions = len(truth.buildings), len(predictions.buildings)
    predictions = _in_crs_of(truth, predictions)
    outlines = ([b.polygon for b in layer.buildings] for layer in (truth, predictions))
    pairs, iou = match_polygons(*outlines, iou_threshold)
    truth_m, predicted_m = (
        np.array([b.height_m for b in layer.buildings], dtype=float) for layer in (truth, predictions)
    )
    n = len(pairs)
    return {
        "match/n": n,
        "match/n_truth": n_truth,
        "match/n_predictions": n_predictions,
        "match/precision": n / n_predictions if n_predictions else None,
        "match/recall": n / n_truth if n_truth else None,
        "match/f1": 2 * n / (n_truth + n_predictions) if n_truth + n_predictions else None,
        "match/mean_iou": float(iou.mean()) if n else None,
        "match/iou_threshold": iou_threshold,
        **height_metrics(
            truth_m[pairs[:, 0]],
            predicted_m[pairs[:, 1]],
            known_truth_total=int(np.isfinite(truth_m).sum()),
        ),
    }


def match_polygons(truth: list, predictions: list, iou_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """One-to-one pairs of valid polygons, best overlap first; of equal overlaps the earlier features win.

    Returns:
        (N, 2) int, indices into truth and predictions; (N,) their IoU, all >= `iou_threshold`.
    """
    truth, predictions = (np.array(p, dtype=object) for p in (truth, predictions))
    prediction_index, truth_index = STRtree(truth).query(predictions, predicate="intersects")
    left, right = truth[truth_index], predictions[prediction_index]
    shared = shapely.area(shapely.intersection(left, right))
    iou = shared / (shapely.area(left) + shapely.area(right) - shared)
    order = np.lexsort((prediction_index, truth_index, -iou))
    taken_truth, taken_predictions, kept = set(), set(), []
    for k in order[iou[order] >= iou_threshold]:
        t, p = int(truth_index[k]), int(prediction_index[k])
        if t not in taken_truth and p not in taken_predictions:
            taken_truth.add(t)
            taken_predictions.add(p)
            kept.append(k)
    kept = np.array(kept, dtype=int)
    return np.stack([truth_index[kept], prediction_index[kept]], axis=1), iou[kept]


def _in_crs_of(truth: Layer, predictions: Layer) -> Layer:
    if (truth.crs is None) != (predictions.crs is None):
        bare = "truth" if truth.crs is None else "prediction"
        raise InputError(
            f"the {bare} layer has no CRS but the other one has. Give it one, e.g. "
            "`ogr2ogr -a_srs EPSG:28992 out.gpkg in.shp`."
        )
    if truth.crs is None or CRS(truth.crs) == CRS(predictions.crs):
        return predictions
    return transform_layer(predictions, truth.crs)
