"""Scores of maps, pixel by pixel: is there a building, and how high is it.

A tile is counted once into a few sums (`DenseCounts`); pooled scores, means over tiles and tiles drawn again all follow
from those. Rules, which are part of the names of the scores:

- `_building`: true building pixels of known height, that is inside an annotated outline with a true height above 0. A
  predicted 0 there is no height, fails every delta and counts with its full error. Pixels of buildings that the
  prediction missed are among them, so that a score cannot be raised by saying less.
- `_all`: every pixel of known truth, the ground too. On the ground a ratio says nothing: where truth and prediction are
  both below `GROUND_M`, delta counts the pixel as right, else the ratio decides, so that a height on open ground is
  wrong. The DFC2023 contest takes 1e-5 m instead of `GROUND_M`: there a ground of 1 cm is wrong everywhere. Ground is
  most of a map: a map of zeros has a delta1_all of the share of ground.
- delta k: max(p / g, g / p) < 1.25^k.
- `_norm`: heights divided by `normalizer_m`, by default the greatest true height among the tiles, which takes truth to
  [0, 1]. Papers that publish errors of normalised heights seldom say by what they divided (FusionHeightNet does not).
- `_tile_mean`: mean over the tiles for which the score is defined; dice, iou, precision, recall and f1 of a tile
  without any building, true or predicted, are not. Without this ending, pixels of all tiles are pooled.

Dice and F1 of one class are the same number; both names are in use.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusiondet.buildings import Tile
from fusiondet.errors import InputError
from fusiondet.evaluation.height_metrics import RATIO, height_ratio
from fusiondet.files import read_json, write_json
from fusiondet.geometry.painting import footprint_label
from fusiondet.io.coco import Dataset
from fusiondet.io.labels import tile_height_label

import numpy as np
from pycocotools import mask as mask_api

# Below this a height says that there is no building: lower than any building that people stand in.
GROUND_M = 1.0
# From this score on a prediction is part of the map.
MAP_SCORE = 0.5
FOOTPRINT_SCORES = ("dice", "iou", "accuracy", "precision", "recall", "f1")
HEIGHT_SCORES = (
    "mae_m",
    "rmse_m",
    "mse_m2",
    "delta1",
    "delta2",
    "delta3",
    "mae_norm",
    "rmse_norm",
    "mse_norm",
)
DOMAINS = ("building", "all")
# What a network's dense heads scored, tile by tile; beside the file of its instances, which has this name.
DENSE_SCORES_FILE, PREDICTIONS_FILE = "dense_scores.json", "predictions.json"
ALL_OF_IT = "all"


@dataclass(frozen=True)
class DenseCounts:
    """One tile, or a part of it, as sums. All but `tallest_m` add up over tiles.

    Attributes:
        tp, fp, fn, tn: pixels by footprint.
        building_n, building_abs_m, building_sq_m2, building_delta1, ..2, ..3: pixels, sum of |e| in metres, sum of e^2,
            pixels that are right; over `_building` pixels. all_...: over `_all` pixels. All 0 without a height map.
        building_true_m, building_true_m2: sums of the true height and of its square, metres, over `_building` pixels; 0
            in files of versions before 0.6.
        tallest_m: greatest true height of the whole tile, 0 where there is none.
    """

    tp: int
    fp: int
    fn: int
    tn: int
    building_n: int = 0
    building_abs_m: float = 0.0
    building_sq_m2: float = 0.0
    building_delta1: int = 0
    building_delta2: int = 0
    building_delta3: int = 0
    all_n: int = 0
    all_abs_m: float = 0.0
    all_sq_m2: float = 0.0
    all_delta1: int = 0
    all_delta2: int = 0
    all_delta3: int = 0
    building_true_m: float = 0.0
    building_true_m2: float = 0.0
    tallest_m: float = 0.0


# ---- Counting --------------------------------------------------------------------------------------------


def dense_counts(
    height_m: np.ndarray | None,
    truth_m: np.ndarray,
    footprint: np.ndarray | None,
    truth_footprint: np.ndarray,
    inside: np.ndarray | None = None,
) -> DenseCounts:
    """Count the maps of one tile, all of them (H, W).

    Args:
        height_m: predicted metres above ground, 0 where no building is seen; what is not finite counts as 0. None: no
            heights were predicted, their scores are not defined.
        truth_m: metres, 0 outside buildings, NaN where unknown.
        footprint: bool; None: wherever `height_m` is at least `GROUND_M`.
        truth_footprint: bool.
        inside: bool, the pixels that count; None: all.

    Raises:
        InputError: maps of different sizes. ValueError: neither a height map nor a footprint.
    """
    if height_m is None and footprint is None:
        raise ValueError("neither heights nor footprints to score")
    maps = [truth_m, height_m, footprint, truth_footprint, inside]
    if len(shapes := {m.shape for m in maps if m is not None}) > 1:
        raise InputError(f"maps of one tile have different sizes (height, width): {sorted(shapes)}.")
    if height_m is not None:
        height_m = np.nan_to_num(height_m, posinf=0.0, neginf=0.0)
    inside = np.ones(truth_m.shape, bool) if inside is None else inside.astype(bool)
    footprint = height_m >= GROUND_M if footprint is None else footprint.astype(bool)
    truth_footprint = truth_footprint.astype(bool)
    n, true, shown, tp = (
        int(np.count_nonzero(inside & m))
        for m in (True, truth_footprint, footprint, footprint & truth_footprint)
    )
    sums = {} if height_m is None else _height_sums(height_m, truth_m, truth_footprint, inside)
    tallest_m = float(truth_m[np.isfinite(truth_m)].max(initial=0.0))
    return DenseCounts(tp, shown - tp, true - tp, n - shown - true + tp, **sums, tallest_m=tallest_m)


def _height_sums(height_m, truth_m, truth_footprint, inside) -> dict[str, int | float]:
    known = inside & np.isfinite(truth_m)
    # Ratios are needed, and slow, only where something stands up.
    ground = known & (height_m < GROUND_M) & (truth_m < GROUND_M) & ~truth_footprint
    standing = known & ~ground
    pred, true = height_m[standing].astype(float), truth_m[standing].astype(float)
    error, ratio = np.abs(pred - true), height_ratio(pred, true)
    flat = np.abs(height_m[ground] - truth_m[ground]).astype(float)
    building = truth_footprint[standing] & (true > 0)
    low = (pred < GROUND_M) & (true < GROUND_M)
    names = ("n", "abs_m", "sq_m2", "delta1", "delta2", "delta3")
    on_building = (building.sum(), error[building].sum(), (error[building] ** 2).sum())
    on_building += tuple((ratio[building] < RATIO**k).sum() for k in (1, 2, 3))
    on_all = (len(error) + len(flat), error.sum() + flat.sum(), (error**2).sum() + (flat**2).sum())
    on_all += tuple(((ratio < RATIO**k) | low).sum() + len(flat) for k in (1, 2, 3))
    return {
        f"{domain}_{name}": np.asarray(value).item()
        for domain, values in zip(DOMAINS, (on_building, on_all), strict=True)
        for name, value in zip(names, values, strict=True)
    } | {
        "building_true_m": true[building].sum().item(),
        "building_true_m2": (true[building] ** 2).sum().item(),
    }


def tile_truth(dataset: Dataset, tile: Tile, height_labels: str = "auto") -> tuple[np.ndarray, np.ndarray]:
    """What maps of `tile` are scored against: (H, W) metres, 0 outside buildings, NaN unknown; (H, W) bool outlines.

    Args:
        height_labels: as INPUT.HEIGHT_LABELS; see `fusiondet.io.labels`.

    Raises:
        InputError: no such source, or a raster that cannot be read.
    """
    try:
        return tile_height_label(dataset, tile, height_labels), footprint_label(tile)
    except InputError as error:
        advice = 'INPUT.HEIGHT_LABELS instances or `height_labels="instances"` needs no raster.'
        raise InputError(f"{error} Maps are scored against it; {advice}") from None


def painted(
    records: Sequence[dict], size: tuple[int, int], score_threshold: float = MAP_SCORE
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted instances of a tile as maps: (H, W) float32 metres, 0 where there is none, and (H, W) bool.

    Where two overlap, the better-scored one is on top. An instance without a height covers its pixels with 0.

    Args:
        records: COCO results, masks as compressed RLE.
        size: (H, W).
        score_threshold: instances below it are not shown.
    """
    height_m, footprint = np.zeros(size, np.float32), np.zeros(size, bool)
    shown = (record for record in records if record["score"] >= score_threshold)
    for record in sorted(shown, key=lambda record: record["score"]):
        x, y, width, height = mask_api.toBbox(record["segmentation"]).astype(int)
        window = np.s_[y : y + height, x : x + width]
        mask = mask_api.decode(record["segmentation"])[window].astype(bool)
        footprint[window] |= mask
        height_m[window][mask] = record.get("height_m") or 0.0
    return height_m, footprint


# ---- Scores ----------------------------------------------------------------------------------------------


def dense_metrics(
    tiles: Sequence[DenseCounts | None],
    weights: np.ndarray | None = None,
    prefix: str = "dense",
    normalizer_m: float | None = None,
) -> dict[str, float | None]:
    """Scores over `tiles` under the names in `fusiondet.evaluation`; None where one is not defined.

    Args:
        tiles: a None counts for nothing.
        weights: (len(tiles),) how many times each tile counts; None: once.
        normalizer_m: metres that are 1 in `_norm` scores; None: the greatest true height of all `tiles`.
    """
    weights = np.ones(len(tiles)) if weights is None else np.asarray(weights)
    return DensePool(tiles, normalizer_m).metrics(weights, prefix)


class DensePool:
    """Tiles as one array of sums, so that scoring a draw of tiles costs a product; arguments of `dense_metrics`."""

    def __init__(self, tiles: Sequence[DenseCounts | None], normalizer_m: float | None = None):
        nothing = DenseCounts(0, 0, 0, 0)
        rows = [dataclasses.astuple(nothing if tile is None else tile) for tile in tiles]
        table = np.array(rows, dtype=float).reshape(len(tiles), len(dataclasses.fields(DenseCounts)))
        self._sums, tallest_m = table[:, :-1], float(table[:, -1].max(initial=0.0))
        self._normalizer_m = normalizer_m if normalizer_m is not None else tallest_m or None
        whole = self._sums.sum(axis=0)
        # Of files of versions before 0.6, and of equal heights, there is none in any draw.
        self._has_skill = bool(np.isfinite(_skill(whole[4], whole[6], *whole[16:18])))
        per_tile = np.stack([*_footprint_scores(*self._sums[:, :4].T).values()], axis=1)
        self._defined = np.isfinite(per_tile).astype(float)
        self._per_tile = np.nan_to_num(per_tile)

    def metrics(self, weights: np.ndarray, prefix: str) -> dict[str, float | None]:
        """See `dense_metrics`."""
        sums = weights @ self._sums
        numbers = _footprint_scores(*sums[:4])
        means = _ratio(weights @ self._per_tile, weights @ self._defined)
        numbers |= {f"{name}_tile_mean": mean for name, mean in zip(FOOTPRINT_SCORES, means, strict=True)}
        for domain, part in zip(DOMAINS, (sums[4:10], sums[10:16]), strict=True):
            scores = _height_scores(*part, np.nan if self._normalizer_m is None else self._normalizer_m)
            numbers |= {f"{name}_{domain}": value for name, value in scores.items()}
        if self._has_skill:
            numbers["skill"] = _skill(sums[4], sums[6], *sums[16:18])
        numbers["normalizer_m"] = np.nan if self._normalizer_m is None else self._normalizer_m
        return {f"{prefix}/{k}": float(v) if np.isfinite(v) else None for k, v in numbers.items()}


def _footprint_scores(tp, fp, fn, tn) -> dict:
    dice = _ratio(2 * tp, 2 * tp + fp + fn)
    values = (dice, _ratio(tp, tp + fp + fn), _ratio(tp + tn, tp + fp + fn + tn))
    return dict(zip(FOOTPRINT_SCORES, (*values, _ratio(tp, tp + fp), _ratio(tp, tp + fn), dice), strict=True))


def _height_scores(n, abs_m, sq_m2, delta1, delta2, delta3, normalizer_m) -> dict:
    mae_m, mse_m2, *deltas = (_ratio(value, n) for value in (abs_m, sq_m2, delta1, delta2, delta3))
    rmse_m = np.sqrt(mse_m2)
    normalised = (mae_m / normalizer_m, rmse_m / normalizer_m, mse_m2 / normalizer_m**2)
    return dict(zip(HEIGHT_SCORES, (mae_m, rmse_m, mse_m2, *deltas, *normalised), strict=True))


def _skill(n, sq_m2, true_m, true_m2) -> float:
    """1 - RMSE / RMSE of the best constant, which is the mean of the truth; NaN where all truth is equal or unknown."""
    if not true_m > 0:
        return np.nan
    variance_m2 = true_m2 / n - (true_m / n) ** 2
    # Rounding leaves a little of equal heights.
    return 1 - np.sqrt(sq_m2 / n / variance_m2) if variance_m2 > 1e-9 * true_m2 / n else np.nan


def _ratio(a, b):
    """A / b, NaN where b is 0; numbers or arrays."""
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=np.asarray(b) > 0)


def building_delta1(tile: DenseCounts | None) -> float:
    """`delta1_building` of one tile; NaN where it is not defined."""
    return float(_ratio(tile.building_delta1, tile.building_n)) if tile else float("nan")


# ---- What a network's heads scored, on disk ---------------------------------------------------------------


@dataclass
class DenseScores:
    """What the dense heads of a network scored.

    Attributes:
        height_labels: what they were scored against, as INPUT.HEIGHT_LABELS.
        instances: whether the network predicts instances too.
        tiles: image id -> part of the tile ("all", or the name of a region) -> counts.
    """

    height_labels: str
    instances: bool
    tiles: Mapping[int | str, Mapping[str, DenseCounts]]

    def counts(self, image_id: int | str, part: str, truth_footprint: np.ndarray) -> DenseCounts:
        """Those of one tile or a part of it; InputError if it was not scored, or the id was another tile's.

        Args:
            truth_footprint: (H, W) bool of the whole tile. Ids of another split are the same, its buildings are not.
        """
        parts, again = self.tiles.get(image_id, {}), "Evaluate the network again on these very tiles."
        if part not in parts:
            raise InputError(f"{DENSE_SCORES_FILE} has no counts of image {image_id!r}, {part}. {again}")
        whole, expected = parts.get(ALL_OF_IT), (int(truth_footprint.sum()), truth_footprint.size)
        if whole and (found := (whole.tp + whole.fn, whole.tp + whole.fn + whole.fp + whole.tn)) != expected:
            raise InputError(
                f"{DENSE_SCORES_FILE} is of other tiles: in image {image_id!r} it counted {found[0]} of {found[1]} "
                f"pixels as buildings, the annotations have {expected[0]} of {expected[1]}. {again}"
            )
        return parts[part]

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        tiles = [
            {"image_id": i, "parts": {name: dataclasses.asdict(counts) for name, counts in parts.items()}}
            for i, parts in self.tiles.items()
        ]
        write_json({**vars(self), "tiles": tiles}, path)

    @classmethod
    def beside(cls, predictions: Path) -> "DenseScores | None":
        """Those of the network that wrote the file `predictions`, from the file beside it; None if there is none.

        Raises:
            InputError: a damaged file.
        """
        path = Path(predictions).with_name(DENSE_SCORES_FILE)
        if Path(predictions).name != PREDICTIONS_FILE or not path.exists():
            return None
        try:
            content = read_json(path)
            tiles = {
                tile["image_id"]: {name: DenseCounts(**counts) for name, counts in tile["parts"].items()}
                for tile in content["tiles"]
            }
            numbers = [
                n for parts in tiles.values() for counts in parts.values() for n in vars(counts).values()
            ]
            if not all(n is None or isinstance(n, bool | int | float) for n in numbers):
                raise TypeError("counts that are no numbers")
            return cls(content["height_labels"], content["instances"], tiles)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: not the scores of dense heads as this version writes them ({error!r}). "
                "Evaluate the network again."
            ) from None


def require_instances(predictions: Path) -> None:
    """InputError where the network that wrote the file `predictions` finds no instances: it would count as blind."""
    heads = DenseScores.beside(predictions)
    if heads is not None and not heads.instances:
        raise InputError(
            f"{predictions}: of a network that predicts maps and no instances. "
            'Its maps are scored by tools/evaluate.py instances, with `metrics="dense"`.'
        )
