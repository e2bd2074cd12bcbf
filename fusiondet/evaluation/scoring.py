"""Scores of files, as numbers and as a table in text: COCO results, GIS layers, and submissions to DFC2023."""

from collections.abc import Sequence
from pathlib import Path

from fusiondet.errors import InputError, unknown_name
from fusiondet.evaluation import dfc2023_scoring as dfc2023
from fusiondet.evaluation import dfc2023_submission as zips
from fusiondet.evaluation import resampling
from fusiondet.evaluation.dense import dense_metrics, require_instances
from fusiondet.evaluation.instances import METRICS, evaluate_instances
from fusiondet.evaluation.layer_scores import evaluate_vectors
from fusiondet.evaluation.regions import region_by_name
from fusiondet.evaluation.spacenet_f1 import evaluate_spacenet, spacenet_table
from fusiondet.evaluation.table import metrics_table
from fusiondet.files import read_json, require_new
from fusiondet.io.coco import Dataset, are_roofs, category_names, read_coco, read_predictions
from fusiondet.io.vectors import Layer

_OF_FILES = ("dense", "spacenet")


def score_instances(
    annotations: Path,
    predictions: Path,
    *,
    metrics: Sequence[str] = METRICS,
    max_detections: int | None = None,
    score_threshold: float = 0.5,
    height_labels: str | None = None,
    min_area_px: float = 80.0,
    region: str | None = None,
    compare: Path | None = None,
    draws: int = 1000,
    seed: int = 0,
    classes: Sequence[str] = (),
) -> tuple[dict, str]:
    """Score COCO results against COCO annotations: (numbers, table).

    Args:
        metrics: any of those of `evaluate_instances`, "dense" for maps and "spacenet" for F1 of outlines. With `region`
            or `compare`, scores at IoU 0.5 of each tile take their place.
        max_detections, height_labels, score_threshold: as in `tile_scores`. min_area_px: as in `evaluate_spacenet`.
        region: score this part of the tiles, see `REGIONS`.
        compare: other results of the same tiles: differences with intervals, of `draws` draws, see `paired_bootstrap`.
        classes: the annotated classes that are buildings; see `of_classes`. Of predictions of several classes, those of
            the same ids count.

    Raises:
        InputError: an unknown metric or region; files that cannot be scored.
    """
    per_tile = {
        "max_detections": max_detections,
        "height_labels": height_labels,
        "score_threshold": score_threshold,
    }
    if region or compare:
        dataset = read_coco(annotations, classes)
        files = [_of_classes(annotations, path, classes) for path in (predictions, compare) if path]
        return _score_tiles(dataset, files, region, per_tile, draws, seed)
    for name in metrics:
        if name not in (*METRICS, *_OF_FILES):
            raise unknown_name("metric", name, (*METRICS, *_OF_FILES))
    if set(metrics) != {"dense"}:
        require_instances(predictions)
    predictions = _of_classes(annotations, predictions, classes)
    numbers = {}
    of_instances = tuple(name for name in metrics if name not in _OF_FILES)
    if of_instances or not metrics:
        numbers = evaluate_instances(annotations, predictions, max_detections, of_instances, classes)
    if "dense" in metrics:
        numbers |= _score_maps(read_coco(annotations, classes), predictions, per_tile)
    tables = [metrics_table(numbers)] if numbers else []
    if "spacenet" in metrics:
        outlines = evaluate_spacenet(annotations, predictions, min_area_px, score_threshold, classes)
        numbers |= outlines
        tables.append(spacenet_table(outlines))
    return numbers, "\n".join(tables)


def _of_classes(annotations: Path, predictions: Path, classes: Sequence[str]) -> Path | list[dict]:
    """The file `predictions`, or, where it holds several classes, its records of the classes that are buildings."""
    records = read_predictions(predictions)
    found = {r.get("category_id") for r in records if isinstance(r.get("category_id"), int | str)}
    if len(found) < 2:
        return predictions
    names = category_names(read_json(annotations))
    wanted = {number for number in found if names.get(number) in classes}
    if not classes and not are_roofs([names.get(number, "") for number in found]):
        raise InputError(
            f"{predictions}: predictions of several classes ({', '.join(sorted(map(str, found))[:8])}), and all "
            "of them would count as buildings. Choose with `classes` those that are, by their names in the annotations."
        )
    return [r for r in records if not classes or r.get("category_id") in wanted]


def _score_maps(dataset: Dataset, predictions: Path | list[dict], per_tile: dict) -> dict:
    tiles = resampling.tile_scores(dataset, predictions, **per_tile)
    numbers = dense_metrics([tile.dense for tile in tiles])
    if any(tile.painted is not tile.dense and tile.painted for tile in tiles):
        numbers |= dense_metrics([tile.painted for tile in tiles], prefix="painted")
    return numbers


def _score_tiles(
    dataset: Dataset,
    files: list[Path | list[dict]],
    region: str | None,
    per_tile: dict,
    draws: int,
    seed: int,
) -> tuple[dict, str]:
    options = {**per_tile, "region": region_by_name(region, dataset) if region else None}
    # Both files against the same truth, else a difference would be of the truths.
    paths = [path for path in files if isinstance(path, Path)]
    options["height_labels"] = resampling.common_height_labels(paths, per_tile["height_labels"])
    tiles = resampling.tile_scores(dataset, files[0], **options)
    if len(files) == 1:
        scores = resampling.summarize(tiles)
        return scores, resampling.scores_table(scores)
    others = resampling.tile_scores(dataset, files[1], **options)
    found = resampling.paired_bootstrap(others, tiles, draws=draws, seed=seed)
    numbers = {f"{key}/{name}": value for key, one in found.items() for name, value in vars(one).items()}
    return numbers, resampling.differences_table(found, "other", "predictions")


def score_layers(truth: Layer, predictions: Layer, iou: float = 0.5) -> tuple[dict, str]:
    """Score one layer against another: (numbers, table, headed by what of either layer does not count)."""
    lines = []
    for name, layer in (("truth", truth), ("predictions", predictions)):
        for count in (layer.geometry, layer.reasons):
            if count:
                lines.append(f"{name}: " + ", ".join(f"{n} {what}" for what, n in sorted(count.items())))
        lines += [f"{name}: {note}" for note in layer.notes]
    numbers = evaluate_vectors(truth, predictions, iou)
    return numbers, "\n".join([*lines, metrics_table(numbers)])


def score_dfc2023(
    annotations: Path,
    *,
    heights: Path | None = None,
    submission: Path | None = None,
    predictions: Path | None = None,
    write_submission: Path | None = None,
    score_threshold: float = 0.5,
    strict: bool = False,
    overwrite: bool = False,
) -> tuple[dict, str]:
    """Score a submission to Track 2 of DFC2023, or COCO results painted as one: (numbers, notes and table).

    Args:
        heights: folder of true height rasters; None: those of the annotations.
        submission: a zip. predictions: COCO results instead.
        write_submission: write `predictions` as a zip. Without truth that is all, and there are no numbers.
        score_threshold: predictions from this score on are painted.
        strict: refuse a submission in which anything is wrong. overwrite: replace `write_submission` if it exists.

    Raises:
        InputError: not exactly one of `submission` and `predictions`; files that cannot be scored.
    """
    if (submission is None) == (predictions is None):
        raise InputError("give either `submission`, a zip, or `predictions`, COCO results with height_m.")
    if write_submission and not predictions:
        raise InputError(
            "`write_submission` makes a zip of `predictions`; give those instead of `submission`."
        )
    if write_submission:
        require_new(write_submission, overwrite)
    # The contest's test split has neither outlines nor heights: there is a zip to write, and nothing to score.
    truth = dfc2023.read_truth(annotations, heights, scored=not write_submission)
    findings = zips.Findings(str(submission or predictions), strict)
    if submission:
        with zips.ZippedSubmission(submission, findings) as zipped:
            numbers = dfc2023.evaluate_dfc2023(truth, zipped)
        return numbers, dfc2023.dfc2023_table(numbers, findings)
    require_instances(predictions)
    painted = zips.PaintedSubmission(
        truth.document,
        read_predictions(predictions),
        truth.names,
        findings,
        truth.category_ids[0],
        score_threshold,
    )
    notes = []
    if painted.without_height:
        notes.append(f"{painted.without_height} instances have no height and are painted as 0")
    # Scored first: what refuses the truth leaves no zip behind.
    scored = not write_submission or (truth.has_heights and truth.document["annotations"])
    numbers = dfc2023.evaluate_dfc2023(truth, painted) if scored else {}
    if write_submission:
        zips.write_submission(painted, truth.shapes, write_submission)
        what = f"{len(truth.images)} tiles and {len(painted.records)} instances"
        notes.append(f"wrote {what} to {write_submission}")
        if not painted.records:
            notes.append("the contest's scorer gives no score where there is no instance at all")
        if not scored:
            return {}, "\n".join([*notes, "not scored: the annotations have no buildings or no true heights"])
    return numbers, "\n".join([*notes, dfc2023.dfc2023_table(numbers, findings)])
