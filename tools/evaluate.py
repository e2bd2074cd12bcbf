#!/usr/bin/env python3
"""Score predicted buildings: instances in tiles, or one GIS layer against another. `evaluate.py KIND --help`."""

import argparse
from pathlib import Path

from fusiondet.cli import Option, options_of, parse, positive, run, seed_argument
from fusiondet.converters.prepare import source_options
from fusiondet.errors import InputError
from fusiondet.files import write_json
from fusiondet.locks import new_files


def main(argv: list[str] | None = None) -> None:
    args = parse(_parser(), argv, others=_other_options)
    with new_files(args.out, getattr(args, "write_submission", None), overwrite=args.overwrite):
        _evaluate(args)


def _evaluate(args) -> None:
    metrics, text = args.evaluate(args)
    print(text)
    if not metrics:
        return
    if args.out:
        write_json(metrics, args.out, indent=2)
        print(f"wrote {len(metrics)} numbers to {args.out}")
    else:
        print(f"computed {len(metrics)} numbers; nothing written (give --out metrics.json to keep them)")


def _other_options() -> dict[str, Option]:
    # Messages of every kind refer to options of `instances`, and to those that the data were converted with.
    return source_options() | options_of(_parser(), argparse.Namespace(kind="instances"))


def evaluate_instances(args) -> tuple[dict, str]:
    from fusiondet.evaluation.scoring import score_instances

    names = (
        "max_detections",
        "score_threshold",
        "height_labels",
        "min_area_px",
        "region",
        "compare",
        "draws",
        "seed",
        "classes",
    )
    metrics = [name.strip() for name in args.metrics.split(",") if name.strip()]
    options = {name: getattr(args, name) for name in names}
    return score_instances(args.annotations, args.predictions, metrics=metrics, **options)


def evaluate_vectors(args) -> tuple[dict, str]:
    from fusiondet.evaluation.scoring import score_layers
    from fusiondet.io.vectors import read_layer

    if bool(args.truth_height) != bool(args.prediction_height):
        raise InputError(
            "heights of one layer alone cannot be compared: give both `truth_height` and `prediction_height`, or "
            "neither to compare outlines alone."
        )
    options = {"signed": True, "height_unit": args.height_unit}
    truth = read_layer(args.truth, args.truth_height, args.truth_ground, args.truth_layer, **options)
    fields = (args.prediction_height, args.prediction_ground, args.prediction_layer)
    predictions = read_layer(args.predictions, *fields, **options)
    return score_layers(truth, predictions, args.iou)


def evaluate_dfc2023(args) -> tuple[dict, str]:
    from fusiondet.evaluation.scoring import score_dfc2023

    names = (
        "heights",
        "submission",
        "predictions",
        "write_submission",
        "score_threshold",
        "strict",
        "overwrite",
    )
    return score_dfc2023(args.annotations, **{name: getattr(args, name) for name in names})


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
    instances.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="annotated classes that are buildings, of annotations with several (default: the only one)",
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
            metavar="FIELD",
            help=f"column of {what} heights, or of roof elevations with --{prefix}-ground (default: outlines alone are "
            "compared)",
        )
        vectors.add_argument(
            f"--{prefix}-ground",
            metavar="FIELD",
            help="column of ground elevations to subtract (default: none)",
        )
        vectors.add_argument(
            f"--{prefix}-layer", metavar="NAME", help="layer of a file with several (default: the only one)"
        )
    vectors.add_argument(
        "--height-unit",
        choices=("m", "ft", "us-ft"),
        help="of columns whose names state none, as height_m does (default: what the vertical axis of the CRS states, "
        "else metres, unless the coordinates are in feet)",
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
