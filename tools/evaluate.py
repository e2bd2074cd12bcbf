#!/usr/bin/env python3
"""Score predicted buildings: instances in tiles, or one GIS layer against another. `evaluate.py KIND --help`."""

import argparse
from pathlib import Path

from fusiondet.cli import parse, positive, run, seed_argument
from fusiondet.converters.prepare import source_options
from fusiondet.errors import InputError, unknown_name
from fusiondet.evaluation.table import metrics_table
from fusiondet.files import require_new, write_json


def main(argv: list[str] | None = None) -> None:
    args = parse(_parser(), argv, others=source_options)
    if args.out:
        require_new(args.out, args.overwrite)
    metrics, text = args.evaluate(args)
    print(text)
    if not metrics:
        return
    if args.out:
        write_json(metrics, args.out, indent=2)
        print(f"wrote {len(metrics)} numbers to {args.out}")
    else:
        print(f"computed {len(metrics)} numbers; nothing written (give --out metrics.json to keep them)")


def evaluate_instances(args) -> tuple[dict, str]:
    from fusiondet.evaluation.dense import require_instances
    from fusiondet.evaluation.instances import METRICS, evaluate_instances
    from fusiondet.evaluation.spacenet_f1 import evaluate_spacenet, spacenet_table

    if args.region or args.compare:
        return evaluate_by_tile(args)
    asked, others = [name.strip() for name in args.metrics.split(",") if name.strip()], ("dense", "spacenet")
    for name in asked:
        if name not in (*METRICS, *others):
            raise unknown_name("metric", name, (*METRICS, *others))
    metrics, numbers = tuple(name for name in asked if name not in others), {}
    if set(asked) != {"dense"}:
        require_instances(args.predictions)
    if metrics or not asked:
        numbers = evaluate_instances(args.annotations, args.predictions, args.max_detections, metrics)
    if "dense" in asked:
        numbers |= evaluate_maps(args)
    lines = [metrics_table(numbers)] if numbers else []
    if "spacenet" in asked:
        outlines = evaluate_spacenet(
            args.annotations, args.predictions, args.min_area_px, args.score_threshold
        )
        numbers |= outlines
        lines.append(spacenet_table(outlines))
    return numbers, "\n".join(lines)


def evaluate_maps(args) -> dict:
    from fusiondet.evaluation.dense import dense_metrics
    from fusiondet.evaluation.resampling import tile_scores
    from fusiondet.io.coco import read_coco

    tiles = tile_scores(read_coco(args.annotations), args.predictions, **_tile_options(args))
    numbers = dense_metrics([tile.dense for tile in tiles])
    if any(tile.painted is not tile.dense and tile.painted for tile in tiles):
        numbers |= dense_metrics([tile.painted for tile in tiles], prefix="painted")
    return numbers


def evaluate_by_tile(args) -> tuple[dict, str]:
    from fusiondet.evaluation import resampling
    from fusiondet.evaluation.regions import region_by_name
    from fusiondet.io.coco import read_coco

    dataset = read_coco(args.annotations)
    region = region_by_name(args.region, dataset) if args.region else None
    files = [path for path in (args.predictions, args.compare) if path]
    options = {"region": region, **_tile_options(args)}
    options["height_labels"] = resampling.common_height_labels(files, args.height_labels)
    tiles = resampling.tile_scores(dataset, args.predictions, **options)
    if not args.compare:
        scores = resampling.summarize(tiles)
        return scores, resampling.scores_table(scores)
    others = resampling.tile_scores(dataset, args.compare, **options)
    found = resampling.paired_bootstrap(others, tiles, draws=args.draws, seed=args.seed)
    numbers = {f"{key}/{name}": value for key, one in found.items() for name, value in vars(one).items()}
    return numbers, resampling.differences_table(found, "other", "predictions")


def _tile_options(args) -> dict:
    return {key: getattr(args, key) for key in ("max_detections", "height_labels", "score_threshold")}


def evaluate_vectors(args) -> tuple[dict, str]:
    from fusiondet.evaluation.layer_scores import evaluate_vectors
    from fusiondet.io.vectors import read_layer

    truth = read_layer(args.truth, args.truth_height, args.truth_ground, args.truth_layer, signed=True)
    predictions = read_layer(
        args.predictions, args.prediction_height, args.prediction_ground, args.prediction_layer, signed=True
    )
    for name, layer in (("truth", truth), ("predictions", predictions)):
        for count in (layer.geometry, layer.reasons):
            if count:
                print(f"{name}: " + ", ".join(f"{n} {what}" for what, n in sorted(count.items())))
    numbers = evaluate_vectors(truth, predictions, args.iou)
    return numbers, metrics_table(numbers)


def evaluate_dfc2023(args) -> tuple[dict, str]:
    from fusiondet.evaluation import dfc2023_scoring as dfc2023
    from fusiondet.evaluation import dfc2023_submission as zips
    from fusiondet.evaluation.dense import require_instances
    from fusiondet.io.coco import read_predictions

    if (args.submission is None) == (args.predictions is None):
        raise InputError("give either --submission, a zip, or --predictions, COCO results with height_m.")
    if args.write_submission and not args.predictions:
        raise InputError(
            "--write-submission makes a zip of --predictions; give those instead of --submission."
        )
    if args.write_submission:
        require_new(args.write_submission, args.overwrite)
    # The contest's test split has neither outlines nor heights: there is a zip to write, and nothing to score.
    truth = dfc2023.read_truth(args.annotations, args.heights, scored=not args.write_submission)
    findings, notes = zips.Findings(str(args.submission or args.predictions), args.strict), []
    if args.submission:
        with zips.ZippedSubmission(args.submission, findings) as submission:
            numbers = dfc2023.evaluate_dfc2023(truth, submission)
        return numbers, dfc2023.dfc2023_table(numbers, findings)
    require_instances(args.predictions)
    records = read_predictions(args.predictions)
    submission = zips.PaintedSubmission(
        truth.document, records, truth.names, findings, truth.category_ids[0], args.score_threshold
    )
    if submission.without_height:
        notes.append(f"{submission.without_height} instances have no height and are painted as 0")
    if args.write_submission:
        zips.write_submission(submission, truth.shapes, args.write_submission)
        what = f"{len(truth.images)} tiles and {len(submission.records)} instances"
        notes.append(f"wrote {what} to {args.write_submission}")
        if not submission.records:
            notes.append("the contest's scorer gives no score where there is no instance at all")
        if not (truth.has_heights and truth.document["annotations"]):
            return {}, "\n".join([*notes, "not scored: the annotations have no buildings or no true heights"])
    numbers = dfc2023.evaluate_dfc2023(truth, submission)
    return numbers, "\n".join([*notes, dfc2023.dfc2023_table(numbers, findings)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    text = "COCO results against annotations: AP, heights of matched buildings, joint AP"
    instances = kinds.add_parser("instances", help=text, description=text)
    instances.set_defaults(evaluate=evaluate_instances)
    instances.add_argument(
        "--annotations", required=True, type=Path, metavar="JSON", help="COCO annotations (truth)"
    )
    instances.add_argument(
        "--predictions", required=True, type=Path, metavar="JSON", help="COCO results with height_m"
    )
    instances.add_argument(
        "--metrics",
        default="coco,height,joint",
        help="any of coco,height,joint,dense,spacenet; dense: of maps per pixel, those of the network's dense heads "
        "where dense_scores.json lies beside predictions.json, else the painted instances; spacenet: F1 of outlines as "
        "the SpaceNet challenges count it (default: %(default)s)",
    )
    instances.add_argument(
        "--min-area-px",
        type=float,
        default=80.0,
        metavar="A",
        help="smaller outlines do not count in spacenet, square pixels; SpaceNet 6 takes 80, the earlier ones 20 "
        "(default: %(default)g)",
    )
    instances.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        metavar="S",
        help="instances from this score on are painted into the map of dense, and are the proposals of spacenet "
        "(default: %(default)s)",
    )
    instances.add_argument(
        "--height-labels",
        metavar="SOURCE",
        help="true heights of maps: building_height, ndsm, instances, or auto, the first that a tile has "
        "(default: what dense heads were scored against, else auto)",
    )
    instances.add_argument(
        "--max-detections",
        type=positive,
        metavar="N",
        help="best-scored predictions per tile that count (default: twice the densest tile, at least 100)",
    )
    instances.add_argument(
        "--region",
        metavar="NAME",
        help="score a part of the tiles: under_cloud or in_the_clear, by their cloud rasters (default: all of them); "
        "at IoU 0.5 only, --metrics is left aside",
    )
    instances.add_argument(
        "--compare",
        type=Path,
        metavar="JSON",
        help="other COCO results of the same tiles: what --predictions score more than these, with 95 %% intervals "
        "over tiles (paired bootstrap); at IoU 0.5 only, --metrics is left aside",
    )
    instances.add_argument(
        "--draws", type=positive, default=1000, metavar="N", help="draws of --compare (default: %(default)s)"
    )
    seed_argument(instances)

    text = "one layer against another, one-to-one by overlap, whatever their CRS; features are never merged"
    vectors = kinds.add_parser("vectors", help=text, description=text)
    vectors.set_defaults(evaluate=evaluate_vectors)
    for side, prefix, what in (("truth", "truth", "true"), ("predictions", "prediction", "predicted")):
        vectors.add_argument(
            f"--{side}", required=True, type=Path, metavar="FILE", help=f"layer of {what} buildings"
        )
        vectors.add_argument(
            f"--{prefix}-height",
            required=True,
            metavar="FIELD",
            help=f"column of {what} heights in metres, or of roof elevations with --{prefix}-ground",
        )
        vectors.add_argument(
            f"--{prefix}-ground",
            metavar="FIELD",
            help="column of ground elevations to subtract, metres (default: none)",
        )
        vectors.add_argument(
            f"--{prefix}-layer", metavar="NAME", help="layer of a file with several (default: the only one)"
        )
    vectors.add_argument(
        "--iou", type=float, default=0.5, help="smallest overlap of a pair, (0, 1] (default: %(default)s)"
    )

    text = "Track 2 of the DFC2023 contest: AP50 and delta1 as its scorer computes them, and honest ones beside them"
    contest = kinds.add_parser("dfc2023", help=text, description=text)
    contest.set_defaults(evaluate=evaluate_dfc2023)
    contest.add_argument(
        "--annotations",
        required=True,
        type=Path,
        metavar="JSON",
        help="COCO annotations (truth): buildings_only_*.json of the contest, or ours",
    )
    contest.add_argument(
        "--heights",
        type=Path,
        metavar="DIR",
        help="true height rasters, named as the images (default: ndsm_file_name of the annotations)",
    )
    contest.add_argument(
        "--submission", type=Path, metavar="ZIP", help="seg_results.json and height/<name of image>.tif"
    )
    contest.add_argument(
        "--predictions",
        type=Path,
        metavar="JSON",
        help="COCO results with height_m instead: every instance is painted with its height, 0 elsewhere",
    )
    contest.add_argument(
        "--write-submission",
        type=Path,
        metavar="ZIP",
        help="write --predictions as a zip for the contest, too",
    )
    contest.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        metavar="S",
        help="predictions from this score on are painted; all are listed (default: %(default)s)",
    )
    contest.add_argument(
        "--strict",
        action="store_true",
        help="refuse a submission with missing tiles, wrong names or anything else amiss (default: count it, name it, "
        "score the rest)",
    )

    for command in (instances, vectors, contest):
        command.add_argument(
            "--out", type=Path, metavar="JSON", help="where to write the numbers (default: nowhere)"
        )
        command.add_argument("--overwrite", action="store_true", help="replace what is written if it exists")
    return parser


if __name__ == "__main__":
    run(main)
