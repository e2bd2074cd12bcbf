"""Scores of Track 2 of the 2023 IEEE GRSS Data Fusion Contest (DFC2023), as its scorer computes them.

The contest's score is the mean of AP50 of the instances and of delta1 of the heights per pixel. The rules are those of
the published scoring program (AICyberTeam/DFC2023-CodaLab, dfc_track2), oddities included:

- AP50 is pycocotools' at IoU 0.5 with the 1000 best instances of an image, rounded to three decimals; mAP has the 100
  best. An annotation whose id is 0 cannot be found. Without any building both are -1.
- Heights: a predicted 0 is 1e-5 m, a negative one 999 m; a true height of 0 or less is 1e-5 m. Every pixel counts:
  where both are 0 the prediction is right, and a ground of 1 cm is wrong wherever 0 was predicted. Rasters of whole
  numbers cannot hold 1e-5, so their zeros are wrong everywhere.
- delta1 is the mean over tiles, however many buildings they have, and only over the tiles that were submitted.
- Its averages of MAE, MSE and RMSE exchange their names: what it calls mae is RMSE, its mse is MAE, its rmse is MSE.

So a map of zeros scores the share of ground (`background_share`). The numbers under `dfc2023_strict/` cannot be had
that way: pixels of annotated buildings with a true height above 0, all tiles pooled, a missing one wrong everywhere.
"""

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path, PurePosixPath
from typing import Protocol

from fusiondet.cli import progress
from fusiondet.errors import InputError
from fusiondet.evaluation.average_precision import IOU_THRESHOLDS
from fusiondet.evaluation.dense import DenseCounts, dense_counts
from fusiondet.evaluation.dfc2023_submission import MAX_INSTANCES, Findings, read_plain_raster
from fusiondet.evaluation.height_metrics import RATIO
from fusiondet.evaluation.instances import compressed_rle
from fusiondet.files import read_json, safe_join
from fusiondet.io.coco import CATEGORIES, image_root, is_number, validate_coco

import numpy as np
from pycocotools import mask as mask_api

# What the scorer takes for the height of ground, metres; and for a negative one.
_ZERO_M, _NEGATIVE_M = 0.00001, 999
_HEIGHT_SCORES = ("delta1", "delta2", "delta3", "mae_m", "mse_m2", "rmse_m")
BUILDING = "building"
_IMAGE_SUFFIXES = (".tiff", ".png", ".jpg", ".jpeg", ".jp2")


class Submission(Protocol):
    """What is scored: `fusiondet.evaluation.dfc2023_submission.ZippedSubmission` or `PaintedSubmission`."""

    findings: Findings
    records: list
    height_names: list[str]

    def read_height(self, name: str, shape: tuple[int, int]) -> np.ndarray | None:
        """(H, W) heights of one tile, None where they cannot be used."""


@dataclass
class Truth:
    """Annotations and true heights of one split.

    Attributes:
        path, document: of the COCO JSON, the contest's own or ours.
        images: name of its height raster -> image record, every image.
        category_ids: those of buildings.
        heights: folder of true height rasters; None: where the JSON says.
    """

    path: Path
    document: dict
    images: dict[str, dict]
    category_ids: list[int]
    heights: Path | None = None

    @property
    def names(self) -> dict[int | str, str]:
        """Image id -> name of its height raster."""
        return {image["id"]: name for name, image in self.images.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Name of a height raster -> (H, W)."""
        return {name: (image["height"], image["width"]) for name, image in self.images.items()}

    @property
    def has_heights(self) -> bool:
        """Whether every image has, or says to have, a true height raster."""
        return self.heights is not None or all(i.get("ndsm_file_name") for i in self.images.values())


def read_truth(path: Path, heights: Path | None = None, scored: bool = True) -> Truth:
    """The truth of one split.

    Args:
        path: COCO JSON of the contest (`buildings_only_val.json`, polygons and RLE mixed) or of ours.
        heights: folder of true height rasters that are named as the images; None: `ndsm_file_name` of each image.
        scored: False takes a JSON that only lists images, as the contest's test split does.

    Raises:
        InputError: not COCO, no category "building", two images of one name, or images without a height raster.
    """
    path = Path(path)
    document = read_json(path)
    if not scored and isinstance(document, dict):
        document = {"annotations": [], "categories": CATEGORIES, **document}
    validate_coco(document, path)
    images: dict[str, dict] = {}
    for image in document["images"]:
        name = _height_name(image["file_name"])
        if name in images:
            raise InputError(
                f"{path}: images {images[name]['id']!r} and {image['id']!r} are both called {name}; a submission has "
                "one folder for all heights. Score the splits one by one, or rename the images."
            )
        images[name] = image
    if len({isinstance(image["id"], str) for image in document["images"]}) > 1:
        raise InputError(f"{path}: some ids of images are numbers, others text. Use one kind.")
    named = [(c.get("name"), c.get("id")) for c in document["categories"] if isinstance(c, dict)]
    categories = [number for name, number in named if name == BUILDING and isinstance(number, Integral)]
    if not categories:
        found = ", ".join(str(name) for name, _ in named[:20]) or "none"
        raise InputError(
            f"{path}: no category is called 'building' (found: {found}). Track 2 is scored against "
            "buildings_only_*.json, not against the roof types of Track 1."
        )
    truth = Truth(path, document, images, categories, None if heights is None else Path(heights))
    if heights is not None:
        _require_rasters(truth)
    elif scored and not truth.has_heights:
        raise InputError(
            f"{path}: its images have no ndsm_file_name. Give the folder of true heights with `heights`, e.g. "
            '`heights="val/height"`.'
        )
    return truth


def evaluate_dfc2023(truth: Truth, submission: Submission) -> dict[str, float | int | None]:
    """Score `submission`; what is wrong with it goes to its findings.

    Returns:
        Flat dict with the keys `dfc2023/` and `dfc2023_strict/` of `fusiondet.evaluation`.

    Raises:
        InputError: truth that cannot be used (a broken mask, a raster of another size than its image); with strict
            findings, the first one.
    """
    findings = submission.findings
    rles = _truth_rles(truth)
    records = _checked_records(truth, submission.records, findings)
    buildings = [a for a in rles if not a["iscrowd"]]
    mean_ap, ap50 = _average_precision(truth, rles, records)
    tiles, counts = _score_heights(truth, submission, _by_image(buildings))
    published = _published(tiles, mean_ap, ap50)
    strict = _strict(_honest_ap50(truth, rles, records, ap50) if buildings else None, counts)
    facts = {
        "n_images": len(truth.images),
        "n_buildings": len(buildings),
        "n_instances": len(records),
        "n_tiles_scored": len(tiles),
        **{f"found_{kind}": n for kind, n in findings.counts.items()},
    }
    numbers = {f"dfc2023/{key}": value for key, value in (published | facts).items()}
    numbers |= {f"dfc2023_strict/{key}": value for key, value in strict.items()}
    return {key: _plain(value) for key, value in numbers.items()}


def scores_txt(numbers: Mapping[str, float | None]) -> list[str]:
    """The lines of the contest's scores.txt: its numbers, cut (not rounded) to a few characters."""
    rows = (("mAP", "map", 5), ("AP_50", "ap50", 5), ("Delta_1", "delta1", 6), ("Delta_2", "delta2", 6))
    rows += (("Delta_3", "delta3", 6), ("Score", "score", 6))
    values = {key: numbers[f"dfc2023/{key}"] for _, key, _ in rows}
    return [f"{label}:{'nan' if values[key] is None else str(values[key])[:n]}" for label, key, n in rows]


def dfc2023_table(numbers: Mapping[str, float | int | None], findings: Findings) -> str:
    """Readable lines: findings, what the contest prints, how much of it is ground, and the strict numbers."""

    def text(key: str, spec: str = ".3f") -> str:
        value = numbers[key]
        return "-" if value is None else format(value, spec)

    lines = findings.lines()
    if findings.stops_scorer:
        lines.append(
            "the contest's scorer gives this submission no score; below: what it would give to the rest"
        )
    lines += [
        f"contest, {numbers['dfc2023/n_tiles_scored']} of {numbers['dfc2023/n_images']} tiles: "
        + ", ".join(scores_txt(numbers)),
        f"  {text('dfc2023/background_share')} of the true pixels have no height, so a map of zeros has that delta1; "
        f"{text('dfc2023/delta1_background')} of delta1 {text('dfc2023/delta1')} is right pixels there",
        f"strict, all tiles, pixels of buildings: score {text('dfc2023_strict/score')}, AP50 "
        f"{text('dfc2023_strict/ap50')}, delta1 {text('dfc2023_strict/delta1')}, delta2 "
        f"{text('dfc2023_strict/delta2')}, delta3 {text('dfc2023_strict/delta3')}, MAE "
        f"{text('dfc2023_strict/mae_m')} m, RMSE {text('dfc2023_strict/rmse_m')} m",
    ]
    return "\n".join(lines)


# ---- Heights ---------------------------------------------------------------------------------------------


def contest_heights(predicted_m: np.ndarray, truth_m: np.ndarray) -> dict[str, float]:
    """Scores of one tile by the rules of the contest, on arrays of one shape.

    Args:
        predicted_m: (H, W) as the file has them: integers stay integers.
        truth_m: (H, W) metres.

    Returns:
        delta1..3, mae_m, mse_m2, rmse_m; `background_share` of pixels whose true height is 0 or less;
        `delta1_background`, the part of delta1 that those pixels make. NaN where no pixel counts.
    """
    output, target = predicted_m.copy(), truth_m.astype(np.float32)
    background = target <= 0
    # In arrays of whole numbers the scorer's 0.00001 becomes 0 again, and its 999 what fits.
    output[output == 0] = np.asarray(_ZERO_M).astype(output.dtype)
    output[output < 0] = np.asarray(_NEGATIVE_M).astype(output.dtype)
    target[background] = _ZERO_M
    # Only where the truth is NaN and the prediction is NaN or a whole 0 does a pixel not count.
    counts = (target > 0) | (output > 0)
    output, target = output[counts], target[counts]
    if not len(target):
        return dict.fromkeys((*_HEIGHT_SCORES, "delta1_background"), math.nan) | {
            "background_share": float(background.mean())
        }
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        error = np.abs(output - target)
        ratio = np.maximum(output / target, target / output)
        squared = np.mean(error**2)
    right = ratio < RATIO
    return {
        "delta1": float(right.mean()),
        "delta2": float((ratio < RATIO**2).mean()),
        "delta3": float((ratio < RATIO**3).mean()),
        "mae_m": float(np.mean(error)),
        "mse_m2": float(squared),
        "rmse_m": float(np.sqrt(squared)),
        "background_share": float(background.mean()),
        "delta1_background": float((right & background[counts]).mean()),
    }


def _score_heights(
    truth: Truth, submission: Submission, buildings: dict
) -> tuple[list[dict], list[DenseCounts]]:
    """Contest scores of the submitted tiles, and counts on buildings of all tiles."""
    findings, tiles, counts = submission.findings, [], []
    shapes, submitted = truth.shapes, set(submission.height_names)
    for name in submission.height_names:
        if name not in truth.images:
            findings.add("unknown_tile", name)
    # By name: the scorer adds up in the order of its file system, which shows in the last digit.
    for name in progress(sorted(truth.images), label="score heights"):
        truth_m = _true_heights(truth, name)
        predicted_m = submission.read_height(name, shapes[name]) if name in submitted else None
        if name not in submitted:
            findings.add("missing_tile", name)
        elif predicted_m is not None:
            _look_at(predicted_m, name, findings)
            tiles.append(contest_heights(predicted_m, truth_m))
        counts.append(_on_buildings(predicted_m, truth_m, buildings.get(truth.images[name]["id"], [])))
    return tiles, counts


def _look_at(predicted_m: np.ndarray, name: str, findings: Findings) -> None:
    if predicted_m.dtype.kind in "iu":
        findings.add("whole_metres", f"{name} ({predicted_m.dtype})")
    if n := int(np.count_nonzero(~np.isfinite(predicted_m))):
        findings.add("nan_height", f"{name} ({n} px)")
    if n := int(np.count_nonzero(predicted_m < 0)):
        findings.add("negative_height", f"{name} ({n} px)")


def _on_buildings(predicted_m: np.ndarray | None, truth_m: np.ndarray, rles: list[dict]) -> DenseCounts:
    footprint = np.zeros(truth_m.shape, bool)
    if rles:
        footprint = mask_api.decode(mask_api.merge([a["segmentation"] for a in rles])).astype(bool)
    predicted_m = np.zeros(truth_m.shape, np.float32) if predicted_m is None else predicted_m.astype(float)
    return dense_counts(predicted_m, truth_m, None, footprint)


def _true_heights(truth: Truth, name: str) -> np.ndarray:
    """(H, W) float32 metres as the scorer reads them: the numbers of the file, whatever it declares as no data."""
    image = truth.images[name]
    shape = (image["height"], image["width"])
    if truth.heights is not None:
        path = truth.heights / name
    else:
        path = safe_join(image_root(truth.path), image["ndsm_file_name"])
    return read_plain_raster(path, shape, str(path)).astype(np.float32)


def _height_name(file_name: str) -> str:
    """Name of the height raster of an image: its own, as .tif. `GF2_Rio_-22.88_-43.21` has no suffix to replace."""
    name = PurePosixPath(file_name.replace("\\", "/"))
    return name.with_suffix(".tif").name if name.suffix.lower() in _IMAGE_SUFFIXES else name.name


def _require_rasters(truth: Truth) -> None:
    """Find out before the long computation which true heights are missing, and where they may be instead."""
    folder, names = truth.heights, list(truth.images)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected the true height rasters, named as the images.")
    there = {path.name for path in folder.iterdir()}
    missing = [name for name in names if name not in there]
    if not missing:
        return
    hint = ""
    if len(missing) == len(names):
        near = [
            *sorted(p for p in folder.iterdir() if p.is_dir()),
            folder.parent,
            *sorted(folder.parent.iterdir()),
        ]
        right = next((p for p in near if (p / names[0]).is_file()), None)
        hint = f" Did you mean {right}?" if right else ""
    raise InputError(
        f"{folder}: no height raster for {len(missing)} of {len(names)} images of {truth.path}: "
        f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}.{hint}"
    )


# ---- Instances -------------------------------------------------------------------------------------------


def _truth_rles(truth: Truth) -> list[dict]:
    """Annotations of buildings with the keys that pycocotools reads, masks as compressed RLE, ids as they are."""
    annotations, ids = [], set()
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.document["images"]}
    for annotation in truth.document["annotations"]:
        where = f"{truth.path}: annotation {annotation.get('id')!r}"
        number = annotation.get("id")
        if not isinstance(number, Integral) or number in ids:
            raise InputError(f"{where}: expected ids that are whole numbers, each of them once.")
        ids.add(number)
        if annotation.get("category_id") not in truth.category_ids:
            continue
        try:
            rle = compressed_rle(annotation["segmentation"], *sizes[annotation["image_id"]])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        annotations.append(
            {
                "id": int(number),
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "iscrowd": int(bool(annotation.get("iscrowd"))),
                "area": float(mask_api.area(rle)),
                "segmentation": rle,
            }
        )
    return annotations


def _checked_records(truth: Truth, records: list, findings: Findings) -> list[dict]:
    """Results that can be scored, with usable masks; an unusable one becomes an empty mask, which matches nothing."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.document["images"]}
    checked = []
    for i, record in enumerate(records):
        name = f"record {i}"
        keys = ("image_id", "category_id", "score", "segmentation")
        if (
            not isinstance(record, dict)
            or not all(key in record for key in keys)
            or not isinstance(record["image_id"], Integral | str)
            or not is_number(record["score"])
            or not isinstance(record["segmentation"], dict | list)
        ):
            findings.add("broken_record", name)
        elif record["image_id"] not in sizes:
            findings.add("unknown_image", f"{name} (image {record['image_id']!r})")
        elif record["category_id"] not in truth.category_ids:
            findings.add("other_category", f"{name} (category {record['category_id']!r})")
        else:
            rle = _usable_mask(record["segmentation"], sizes[record["image_id"]], name, findings)
            kept = {key: record[key] for key in ("image_id", "category_id", "score")}
            checked.append({**kept, "segmentation": rle})
    return checked


def _usable_mask(segmentation: dict | list, size: tuple[int, int], name: str, findings: Findings) -> dict:
    if isinstance(segmentation, list) or isinstance(segmentation.get("counts"), list):
        findings.add("uncompressed_mask", name)
    elif segmentation.get("size") not in (list(size), tuple(size)):
        findings.add("mask_size", f"{name} ({segmentation.get('size')}, expected {list(size)})")
        return compressed_rle([], *size)
    try:
        return compressed_rle(segmentation, *size)
    except InputError as error:
        findings.add("broken_mask", f"{name} ({error})")
        return compressed_rle([], *size)


def _average_precision(truth: Truth, annotations: list[dict], records: list[dict]) -> tuple[float, float]:
    """(mAP at 100 instances per image, AP50 at 1000), in [0, 1]; -1 without any building.

    By pycocotools itself, as the scorer, since what it makes of odd ids belongs to the score.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not records:
        # The library cannot be given an empty list.
        return (0.0, 0.0) if any(not a["iscrowd"] for a in annotations) else (-1.0, -1.0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": truth.document["images"],
            "categories": [{"id": number, "name": BUILDING} for number in truth.category_ids],
            "annotations": [dict(a) for a in annotations],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(r) for r in records]), "segm")
        evaluation.params.catIds = truth.category_ids
        evaluation.params.iouThrs = IOU_THRESHOLDS
        evaluation.params.maxDets = [100, MAX_INSTANCES]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # Axes: threshold, recall, class, area, maxDets; -1 where there is no truth.
    precision = evaluation.eval["precision"]
    parts = (precision[..., 0], precision[0, ..., 1])
    return tuple(float(p[p > -1].mean()) if (p > -1).any() else -1.0 for p in parts)


def _honest_ap50(truth: Truth, annotations: list[dict], records: list[dict], ap50: float) -> float:
    """AP50 where the annotation of id 0 can be found, too."""
    if all(a["id"] != 0 for a in annotations):
        return ap50
    return _average_precision(truth, [{**a, "id": n} for n, a in enumerate(annotations, 1)], records)[1]


def _by_image(annotations: list[dict]) -> dict:
    by_image: dict = {}
    for annotation in annotations:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    return by_image


# ---- Summaries -------------------------------------------------------------------------------------------


def _published(tiles: list[dict], mean_ap: float, ap50: float) -> dict[str, float]:
    mean_ap, ap50 = (float(f"{value:.3f}") for value in (mean_ap, ap50))
    keys = (*_HEIGHT_SCORES, "background_share", "delta1_background")
    # A running sum, as the scorer's: numpy's own would differ in the last digit, which the cut text can show.
    means = {key: sum(tile[key] for tile in tiles) / len(tiles) if tiles else math.nan for key in keys}
    return {
        "score": (ap50 + means["delta1"]) / 2.0,
        "ap50": ap50,
        "map": mean_ap,
        **means,
        "labelled_mae": means["rmse_m"],
        "labelled_mse": means["mae_m"],
        "labelled_rmse": means["mse_m2"],
    }


def _strict(ap50: float | None, counts: list[DenseCounts]) -> dict[str, float | int | None]:
    n = sum(tile.building_n for tile in counts)
    ap50 = math.nan if ap50 is None else ap50

    def mean(name: str) -> float:
        return sum(getattr(tile, f"building_{name}") for tile in counts) / n if n else math.nan

    deltas = {key: mean(key) for key in ("delta1", "delta2", "delta3")}
    return {
        "score": (ap50 + deltas["delta1"]) / 2,
        "ap50": ap50,
        **deltas,
        "mae_m": mean("abs_m"),
        "rmse_m": math.sqrt(mean("sq_m2")),
        "n_tiles": len(counts),
        "n_building_pixels": n,
    }


def _plain(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None
