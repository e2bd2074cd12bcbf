"""One building layer against another: who is whose by overlap, and how far the heights are apart.

Features stay features: nothing is merged, identifiers are not looked at, and every feature has at most one partner.
"""

from fusiondet.errors import InputError
from fusiondet.evaluation.height_metrics import height_metrics
from fusiondet.io.crs import transformer
from fusiondet.io.vectors import Layer, transform_layer

import numpy as np
import shapely
from pyproj import CRS, Proj
from shapely import STRtree
from shapely.geometry.base import BaseGeometry


def evaluate_vectors(
    truth: Layer, predictions: Layer, iou_threshold: float = 0.5
) -> dict[str, float | int | None]:
    """Scores of `predictions` against `truth`. Predictions are brought into the truth's CRS.

    Args:
        truth, predictions: read with `read_layer(..., signed=True)`: roofs measured below the ground count too.
        iou_threshold: smallest overlap of a pair, in (0, 1].

    Returns:
        `match/n, n_truth, n_predictions, precision, recall, f1, mean_iou, iou_threshold, polis_m`, and, unless outlines
        alone are given, the `height/` keys of `fusiondet.evaluation`, where the error is prediction - truth. `polis_m`
        is the mean of `polis` over the pairs, in metres on the ground; None without a CRS. None where a number is not
        defined.

    Raises:
        InputError: only one of the layers has a CRS, or the threshold is not in (0, 1].
    """
    if not 0 < iou_threshold <= 1:
        raise InputError(f"IoU threshold is {iou_threshold}, expected a number in (0, 1].")
    # Counted before some may turn out to lie outside what the truth's CRS can express: those match nothing.
    n_truth, n_predictions = len(truth.buildings), len(predictions.buildings)
    predictions = _in_crs_of(truth, predictions)
    outlines = [[b.polygon for b in layer.buildings] for layer in (truth, predictions)]
    pairs, iou = match_polygons(*outlines, iou_threshold)
    truth_m, predicted_m = (
        np.array([b.height_m for b in layer.buildings], dtype=float) for layer in (truth, predictions)
    )
    n = len(pairs)
    heights = {}
    if truth.height_field or predictions.height_field or any(b.height_m is not None for b in truth.buildings):
        heights = height_metrics(
            truth_m[pairs[:, 0]],
            predicted_m[pairs[:, 1]],
            known_truth_total=int(np.isfinite(truth_m).sum()),
        )
    return {
        "match/n": n,
        "match/n_truth": n_truth,
        "match/n_predictions": n_predictions,
        "match/precision": n / n_predictions if n_predictions else None,
        "match/recall": n / n_truth if n_truth else None,
        "match/f1": 2 * n / (n_truth + n_predictions) if n_truth + n_predictions else None,
        "match/mean_iou": float(iou.mean()) if n else None,
        "match/iou_threshold": iou_threshold,
        "match/polis_m": _mean_polis_m(*outlines, pairs, truth.crs),
        **heights,
    }


def polis(a: BaseGeometry, b: BaseGeometry) -> float:
    """Return the mean distance of the vertices of either outline to the other one, in the unit of the coordinates.

    Avbelj et al., "A Metric for Polygon Comparison and Building Extraction Evaluation", GRSL 2015.
    """
    return sum(
        float(np.mean(shapely.distance(shapely.points(_vertices(p)), shapely.boundary(q)))) / 2
        for p, q in ((a, b), (b, a))
    )


def _vertices(polygon: BaseGeometry) -> np.ndarray:
    """Of each ring, without its last one, which is its first."""
    rings = shapely.get_rings(shapely.get_parts(polygon))
    return np.concatenate([shapely.get_coordinates(ring)[:-1] for ring in rings])


def _mean_polis_m(truth: list, predictions: list, pairs: np.ndarray, crs: str | None) -> float | None:
    if crs is None or not len(pairs):
        return None
    # On a plane of metres around the middle: coordinates may be degrees or feet.
    outlines = [
        np.array([p[i] for i in pairs[:, k]], dtype=object) for k, p in enumerate((truth, predictions))
    ]
    own = CRS.from_user_input(crs)
    if own.geodetic_crs is None:
        outlines = [
            shapely.transform(p, lambda xy: xy * own.axis_info[0].unit_conversion_factor) for p in outlines
        ]
    else:
        to_degrees = transformer(own, own.geodetic_crs)
        degrees = [shapely.transform(p, to_degrees.transform, interleaved=False) for p in outlines]
        low, high = shapely.total_bounds(degrees[0])[:2], shapely.total_bounds(degrees[0])[2:]
        geod = own.get_geod()
        (lon, lat) = (low + high) / 2
        plane = Proj(proj="laea", lon_0=lon, lat_0=lat, a=geod.a, b=geod.b)
        outlines = [shapely.transform(p, plane, interleaved=False) for p in degrees]
    return float(np.mean([polis(a, b) for a, b in zip(*outlines, strict=True)]))


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
