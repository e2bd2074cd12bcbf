"""Scores from per-tile counts, so that tiles can be drawn again: intervals of scores and of differences.

The tile is the unit that is drawn, because buildings of one tile share its light, speckle and clouds. A comparison
draws the same tiles for both sides (paired), which takes the difficulty of the tiles out of the difference. Tiles of
one acquisition share angles and weather, too, so that intervals over tiles are a little narrow: on 200 tiles of 40
acquisitions of the synthetic city, drawing acquisitions instead gave standard errors 1.1 times as large.
Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13 (percentile interval).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fusiondet.cli import progress
from fusiondet.errors import InputError
from fusiondet.evaluation import average_precision as ap
from fusiondet.evaluation.dense import (
    ALL_OF_IT,
    MAP_SCORE,
    DenseCounts,
    DensePool,
    DenseScores,
    dense_counts,
    painted,
    tile_truth,
)
from fusiondet.evaluation.height_metrics import height_errors
from fusiondet.evaluation.instances import (
    ScoredImage,
    judged_jointly,
    judged_masks,
    matched_columns,
    scored_images,
)
from fusiondet.evaluation.regions import Region
from fusiondet.geometry.painting import footprint_label
from fusiondet.io.coco import Dataset, coco_document, read_predictions

import numpy as np
from pycocotools import mask as mask_api

# The scores at which the map is tried for pixel/best_f1. The best one is chosen on the tiles that are scored, so this
# is a little too good for everyone.
MAP_SCORES = np.arange(1, 20) / 20
# Facts of the tiles, the same for all predictions.
FACTS = ("match/n_truth", "dense/normalizer_m", "painted/normalizer_m")


@dataclass
class TileScores:
    """All that the scores of `summarize` need to know of one tile, at mask IoU 0.5. D predictions, M matched.

    Attributes:
        image_id: id of the tile.
        scores: (D,) descending.
        true, left_out: (D,) bool by the mask alone, as segm/AP50 counts it.
        joint_true, joint_left_out: (D,) bool by mask and height, as joint/AP50 counts it.
        n_truth, n_known: buildings that count; those of them with a known height.
        heights_m: (M, 4) true height, predicted median, p16, p84; NaN where unknown or not predicted.
        pixels: (len(MAP_SCORES), 3) pixels of the union of all masks from that score on that are true positive, false
            positive, false negative; or (3,) where these are the same for all.
        painted: the map that the instances from MAP_SCORE on make; None without instances, or where it was not asked.
        dense: the map of the network's dense heads, where its scores lie beside the predictions; else `painted`.
        has_instances: False where the network predicts maps alone: what is about instances is then not defined.
    """

    image_id: int | str
    scores: np.ndarray
    true: np.ndarray
    left_out: np.ndarray
    joint_true: np.ndarray
    joint_left_out: np.ndarray
    n_truth: int
    n_known: int
    heights_m: np.ndarray
    pixels: np.ndarray
    painted: DenseCounts | None = None
    dense: DenseCounts | None = None
    has_instances: bool = True


@dataclass
class Difference:
    """Scores of `a` and `b`, `difference` = b - a, and its 95 % interval [low, high]; None where not defined."""

    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low is not None and (self.low > 0 or self.high < 0)


# ---- Counting --------------------------------------------------------------------------------------------


def tile_scores(
    dataset: Dataset,
    records: list[dict] | Path,
    *,
    region: Region | None = None,
    max_detections: int | None = None,
    height_labels: str | None = None,
    score_threshold: float = MAP_SCORE,
) -> list[TileScores]:
    """The counts of every tile, in the order of `dataset`.

    Args:
        dataset: truth.
        records: COCO results with heights, or the path of their JSON. Where the dense heads of the same network were
            scored, dense_scores.json beside predictions.json, their counts are taken in.
        region: the part of the tiles that is scored; None: all of it. A building of which less than half lies inside
            neither counts nor punishes, and a prediction of which less than half lies inside is left out unless it
            matches a building that counts. Of maps, the pixels inside count.
        max_detections: as in `evaluate_instances`.
        height_labels: what maps are scored against, as INPUT.HEIGHT_LABELS; None: what dense heads were scored against,
            else "auto".
        score_threshold: instances from here on are painted into the map of `dense/` and `painted/`.

    Raises:
        InputError: see `evaluate_instances` and `tile_truth`; `region` gives another size than the tile's; or the
            scores of dense heads are of other tiles, other labels, or do not know the region.
    """
    if not 0 <= score_threshold <= 1:
        raise InputError(f"score threshold {score_threshold}: expected a number in [0, 1].")
    document, heads = coco_document(dataset), None
    if isinstance(records, str | Path):
        height_labels = common_height_labels([records], height_labels)
        heads, records = DenseScores.beside(Path(records)), read_predictions(records)
    height_labels = height_labels or "auto"
    images = {image.image_id: image for image in scored_images(document, records, max_detections)}
    with_heights = not records or any(record.get("height_m") is not None for record in records)
    tiles = []
    for entry, tile in zip(document["images"], dataset.tiles, strict=True):
        image, inside = images[entry["id"]], None if region is None else region.inside(tile)
        if heads is not None and not heads.instances:
            scores = maps_alone(image.image_id)
        else:
            scores, truth = _tile_scores(image, inside), tile_truth(dataset, tile, height_labels)
            height_m, footprint = painted(image.records, image.size, score_threshold)
            scores.painted = dense_counts(
                height_m if with_heights else None, truth[0], footprint, truth[1], inside
            )
        part = region.name if region else ALL_OF_IT
        scores.dense = scores.painted
        if heads is not None:
            scores.dense = heads.counts(image.image_id, part, footprint_label(tile))
        tiles.append(scores)
    return tiles


def common_height_labels(predictions: Sequence[str | Path], asked: str | None = None) -> str:
    """What maps of all files of `predictions` can be scored against, as INPUT.HEIGHT_LABELS.

    Args:
        asked: what somebody wants; None: what dense heads beside the files were scored against, "auto" without any.

    Raises:
        InputError: dense heads of one of them were scored against something else.
    """
    for path in predictions:
        heads = DenseScores.beside(Path(path))
        if heads is not None and asked not in (None, heads.height_labels):
            raise InputError(
                f"{path}: dense heads were scored against {heads.height_labels!r} heights, not {asked!r}. Ask for the "
                "same, or evaluate the network again with INPUT.HEIGHT_LABELS."
            )
        asked = asked or (heads.height_labels if heads else None)
    return asked or "auto"


def _tile_scores(image: ScoredImage, inside: np.ndarray | None) -> TileScores:
    if inside is not None:
        image = _within(image, inside)
    by_mask, jointly = judged_masks(image, [0.5]), judged_jointly(image, [0.5])
    return TileScores(
        image.image_id,
        image.scores,
        *(by_mask.true[0], by_mask.left_out[0], jointly.true[0], jointly.left_out[0]),
        *(by_mask.n_truth, jointly.n_truth),
        matched_columns(image, by_mask),
        _pixel_counts(image, inside),
    )


def maps_alone(image_id: int | str, dense: DenseCounts | None = None) -> TileScores:
    """What is known of a tile of which a network says maps alone; `dense`: their counts."""
    nothing, flags = np.zeros(0), np.zeros(0, bool)
    counts = (0, 0, np.zeros((0, 4)), np.zeros(3, int))
    flags = (flags, flags, flags, flags)
    return TileScores(image_id, nothing, *flags, *counts, dense=dense, has_instances=False)


def _within(image: ScoredImage, inside: np.ndarray) -> ScoredImage:
    """`image` with everything left out that lies outside `inside` by more than half."""
    if inside.shape != image.size:
        raise InputError(
            f"image {image.image_id!r}: a region of {inside.shape[::-1]} px in a tile of {image.size[::-1]} px."
        )
    region = mask_api.encode(np.asfortranarray(inside, dtype=np.uint8))
    truth_outside = _share_inside(image.truth_rles, region) < 0.5
    outside = _share_inside([record["segmentation"] for record in image.records], region) < 0.5
    return replace(image, truth_left_out=image.truth_left_out | truth_outside, outside=outside)


def _share_inside(rles: list[dict], region: dict) -> np.ndarray:
    """(N,) share of each mask that lies in `region`; against a crowd, that is what pycocotools calls IoU."""
    return mask_api.iou(rles, [region], [1])[:, 0] if rles else np.zeros(0)


def _pixel_counts(image: ScoredImage, inside: np.ndarray | None) -> np.ndarray:
    pairs = list(zip(image.truth_rles, image.crowd, strict=True))
    true = _union([rle for rle, crowd in pairs if not crowd], image.size)
    scored = ~_union([rle for rle, crowd in pairs if crowd], image.size)
    if inside is not None:
        scored &= inside.astype(bool)
    n_true, counts = np.count_nonzero(true & scored), np.zeros((len(MAP_SCORES), 3), int)
    map_of_all, step = np.zeros(image.size, bool), np.searchsorted(MAP_SCORES, image.scores, side="right") - 1
    for k in reversed(range(len(MAP_SCORES))):
        added = [record["segmentation"] for record, at in zip(image.records, step, strict=True) if at == k]
        map_of_all |= _union(added, image.size)
        if added or k + 1 == len(MAP_SCORES):
            shown = map_of_all & scored
            n_found = np.count_nonzero(shown & true)
            latest = (n_found, np.count_nonzero(shown) - n_found, n_true - n_found)
        counts[k] = latest
    return counts


def _union(rles: list[dict], size: tuple[int, int]) -> np.ndarray:
    return mask_api.decode(mask_api.merge(rles)).astype(bool) if rles else np.zeros(size, bool)


# ---- Scores ----------------------------------------------------------------------------------------------


def summarize(
    tiles: Sequence[TileScores], weights: np.ndarray | None = None
) -> dict[str, float | int | None]:
    """Scores over `tiles`; those that `evaluate_instances` has too are equal to its own.

    Args:
        weights: (len(tiles),) how many times each tile counts, whole numbers; None: once.

    Returns:
        `SUMMARY_KEYS` -> number (see `fusiondet.evaluation`); None where it is not defined.
    """
    weights = np.ones(len(tiles)) if weights is None else np.asarray(weights)
    if len(weights) != len(tiles):
        raise ValueError(f"{len(weights)} weights for {len(tiles)} tiles")
    return _Pool(tiles).summary(weights)


class _Pool:
    """Tiles as flat arrays, sorted once, so that a draw costs sums only."""

    def __init__(self, tiles: Sequence[TileScores]):
        # AP breaks ties of the score by the order of ids, as pycocotools does.
        order = sorted(range(len(tiles)), key=lambda t: tiles[t].image_id)
        scores, self.tile = _flat([tiles[t].scores for t in order], order)
        ranked = np.argsort(-scores, kind="stable")
        self.scores, self.tile = scores[ranked], self.tile[ranked]
        names = ("true", "left_out", "joint_true", "joint_left_out")
        flags = {name: _flat([getattr(tiles[t], name) for t in order], order)[0] for name in names}
        self.true, self.left_out, self.joint_true, self.joint_left_out = (
            flags[name][ranked].astype(bool) for name in names
        )
        self.heights_m = np.concatenate([np.zeros((0, 4)), *(tile.heights_m for tile in tiles)])
        self.height_tile = np.repeat(np.arange(len(tiles)), [len(tile.heights_m) for tile in tiles])
        self.n_truth = np.array([tile.n_truth for tile in tiles], dtype=float)
        self.n_known = np.array([tile.n_known for tile in tiles], dtype=float)
        shape = (len(MAP_SCORES), 3)
        pixels = [np.broadcast_to(tile.pixels, shape) for tile in tiles]
        self.pixels = np.array(pixels, dtype=float).reshape(len(tiles), *shape)
        self.has_instances = not tiles or any(tile.has_instances for tile in tiles)
        self.dense = DensePool([tile.dense for tile in tiles])
        self.painted = DensePool([tile.painted for tile in tiles])

    def summary(self, counts: np.ndarray) -> dict[str, float | int | None]:
        scores = self._instances(counts)
        if not self.has_instances:
            scores = dict.fromkeys(scores)
        return scores | self.dense.metrics(counts, "dense") | self.painted.metrics(counts, "painted")

    def _instances(self, counts: np.ndarray) -> dict[str, float | int | None]:
        per_prediction = counts[self.tile]
        n_truth, n_known = float(counts @ self.n_truth), float(counts @ self.n_known)
        shown = per_prediction * (self.scores >= MAP_SCORE) * ~self.left_out
        found = float(shown @ self.true)
        pixels = np.tensordot(counts, self.pixels, axes=1)
        by_score = [_f1(*row) for row in pixels]
        matches = (found, float(shown.sum()) - found, n_truth - found)
        return {
            "segm/AP50": self._ap50(self.true, self.left_out, n_truth, per_prediction),
            "joint/AP50": self._ap50(self.joint_true, self.joint_left_out, n_known, per_prediction),
            **self._heights(counts, n_known),
            **_shares("pixel", *pixels[np.searchsorted(MAP_SCORES, MAP_SCORE)]),
            "pixel/best_f1": max((f1 for f1 in by_score if f1 is not None), default=None),
            **_shares("match", *matches),
            "match/best_f1": self._best_f1(n_truth, per_prediction),
            "match/n_truth": int(n_truth),
        }

    def _ap50(self, true, left_out, n_truth: float, weights) -> float | None:
        per_threshold = ap.average_precision(self.scores, true[None], left_out[None], n_truth, weights)
        return None if per_threshold is None else 100.0 * float(per_threshold[0])

    def _best_f1(self, n_truth: float, weights) -> float | None:
        """Largest match/f1 that any threshold of the score gives."""
        if n_truth == 0:
            return None
        counted = weights * ~self.left_out
        f1 = 2 * np.cumsum(counted * self.true) / (np.cumsum(counted) + n_truth)
        return float(f1.max(initial=0.0))

    def _heights(self, counts, n_known: float) -> dict[str, float | int | None]:
        rows = np.repeat(self.heights_m, counts[self.height_tile].astype(int), axis=0)
        truth_m, median_m, p16_m, p84_m = rows[np.isfinite(rows[:, :2]).all(axis=1)].T
        has_interval = (p16_m <= median_m) & (median_m <= p84_m)
        inside = (truth_m >= p16_m) & (truth_m <= p84_m)
        numbers = {
            "n": len(truth_m),
            "coverage": len(truth_m) / n_known if n_known else None,
            **height_errors(truth_m, median_m),
            "interval_coverage": float(inside[has_interval].mean()) if has_interval.any() else None,
        }
        return {f"height/{name}": value for name, value in numbers.items()}


def _flat(arrays: list[np.ndarray], order: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """All values in a row, and for each the tile that it comes from."""
    values = np.concatenate([np.zeros(0), *arrays])
    return values, np.repeat(np.array(order, dtype=int), [len(a) for a in arrays])


def _f1(true: float, false: float, missed: float) -> float | None:
    both = 2 * true + false + missed
    return 2 * true / both if both else None


def _shares(prefix: str, true: float, false: float, missed: float) -> dict[str, float | None]:
    return {
        f"{prefix}/f1": _f1(true, false, missed),
        f"{prefix}/precision": true / (true + false) if true + false else None,
        f"{prefix}/recall": true / (true + missed) if true + missed else None,
    }


SUMMARY_KEYS = tuple(summarize([]))
KEY_WIDTH = max(map(len, SUMMARY_KEYS))


# ---- Drawing tiles again ---------------------------------------------------------------------------------


def resampled(
    groups: Sequence[Sequence[TileScores]], *, draws: int = 1000, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Scores of each group over tiles drawn with replacement, in every draw the same tiles for all groups.

    Args:
        groups: scores of the same tiles, in the same order, by several predictions.

    Returns:
        Per group: key of `summarize` -> (draws,), NaN where a number is not defined.

    Raises:
        InputError: the groups are not about the same tiles, or about none.
    """
    ids = [[tile.image_id for tile in group] for group in groups]
    if not ids[0] or any(other != ids[0] for other in ids):
        raise InputError(
            f"expected scores of the same tiles, found {[len(i) for i in ids]} tiles or other ids."
        )
    rng, pools = np.random.default_rng(seed), [_Pool(group) for group in groups]
    rows: list[list[dict]] = [[] for _ in groups]
    for _ in progress(range(draws), label="drawing tiles", unit="draw"):
        counts = np.bincount(rng.integers(0, len(ids[0]), len(ids[0])), minlength=len(ids[0]))
        for pool, kept in zip(pools, rows, strict=True):
            kept.append(pool.summary(counts))
    return [{key: np.array([row[key] for row in kept], dtype=float) for key in kept[0]} for kept in rows]


def interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """2.5th and 97.5th percentile of the draws that are defined; None for both when fewer than half of them are."""
    defined = values[np.isfinite(values)]
    if 2 * len(defined) < len(values) or not len(defined):
        return None, None
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(low), float(high)


def paired_bootstrap(
    a: Sequence[TileScores], b: Sequence[TileScores], *, draws: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """What `b` scores more than `a` on the same tiles, for every key of `summarize`.

    Raises:
        InputError: see `resampled`.
    """
    drawn_a, drawn_b = resampled((a, b), draws=draws, seed=seed)
    scores_a, scores_b = summarize(a), summarize(b)
    return {
        key: difference(scores_a[key], scores_b[key], drawn_a[key], drawn_b[key])
        for key in scores_a
        if key not in FACTS
    }


def difference(a: float | None, b: float | None, drawn_a: np.ndarray, drawn_b: np.ndarray) -> Difference:
    """B - a with the interval of the draws (N,), NaN where undefined."""
    if a is None or b is None:
        return Difference(a, b, None, None, None)
    return Difference(a, b, b - a, *interval(drawn_b - drawn_a))


def scores_table(scores: dict[str, float | int | None]) -> str:
    """One line per score of `summarize`; "-" where it is not defined."""
    return "\n".join(f"  {key:{KEY_WIDTH}}{_text(value):>9}" for key, value in scores.items())


def differences_table(differences: dict[str, Difference], a: str = "A", b: str = "B") -> str:
    """One line per score: both values, b - a and its interval; "*" where that excludes 0."""
    width = max(9, len(a) + 2, len(b) + 2)
    lines = [f"  {'':{KEY_WIDTH}}{a:>{width}}{b:>{width}}{'difference':>12}   95 % interval"]
    for key, one in differences.items():
        line = f"  {key:{KEY_WIDTH}}{_text(one.a):>{width}}{_text(one.b):>{width}}{_text(one.difference, '+'):>12}"
        if one.low is not None:
            line += f"   [{one.low:+.3f}, {one.high:+.3f}]" + (" *" if one.excludes_zero else "")
        lines.append(line)
    return "\n".join(lines)


def _text(value: float | int | None, sign: str = "") -> str:
    if value is None or isinstance(value, int):
        return "-" if value is None else str(value)
    return format(value, f"{sign}.3f")
