#!/usr/bin/env python
"""Pictures of a dataset, or of predictions against its truth; a layer of buildings as one interactive page."""

import argparse
from pathlib import Path

from fusiondet.cli import parse, run
from fusiondet.converters.prepare import source_options
from fusiondet.evaluation.dense import building_delta1, require_instances
from fusiondet.evaluation.instances import matched_heights
from fusiondet.evaluation.resampling import tile_scores
from fusiondet.io.coco import read_coco, read_predictions
from fusiondet.io.labels import HEIGHT_SOURCES
from fusiondet.locks import new_files
from fusiondet.visualization import (
    MAX_TILES,
    dataset_overview,
    height_scatter,
    prediction_overview,
    save_figure,
    tile_map_figure,
)


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    dataset = commands.add_parser(
        "dataset",
        help="image panels and true buildings -> overview.png",
        formatter_class=parser.formatter_class,
    )
    predictions = commands.add_parser(
        "predictions",
        help="truth beside predictions -> overview.png, height scatter -> heights.png",
        formatter_class=parser.formatter_class,
    )
    delta1 = commands.add_parser(
        "delta1",
        help="share of right heights on the building pixels of every tile, on the map -> delta1.png",
        description="Each tile at its place, in the colour of its dense/delta1_building: of the dense heads where "
        "dense_scores.json lies beside predictions.json, else of the instances from a score of 0.5 on, painted.",
        formatter_class=parser.formatter_class,
    )
    for command in (dataset, predictions, delta1):
        command.add_argument(
            "--annotations", type=Path, required=True, metavar="A.json", help="COCO file of the split"
        )
        command.add_argument("--overwrite", action="store_true", help="replace existing pictures")
    drawn = "draw heights per pixel instead of outlines: true ones from this source, predicted ones painted"
    scored = "true heights that count (default: what dense heads were scored against, else auto)"
    for command, what in ((dataset, drawn), (predictions, drawn), (delta1, scored)):
        command.add_argument("--height-labels", choices=("auto", *HEIGHT_SOURCES), help=what)
    for command, tiles in ((dataset, 6), (predictions, 4)):
        command.add_argument(
            "--tiles", type=int, default=tiles, metavar="N", help=f"tiles to draw, 1 to {MAX_TILES}"
        )
        command.add_argument("--image", metavar="NAME", help="draw only the tile with this file name, large")
    for command in (dataset, delta1):
        command.add_argument(
            "--out", type=Path, required=True, metavar="DIR|PNG", help="folder, or the picture itself"
        )
    predictions.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for both pictures"
    )
    for command in (predictions, delta1):
        command.add_argument(
            "--predictions", type=Path, required=True, metavar="P.json", help="COCO results with height_m"
        )
    predictions.add_argument(
        "--min-score", type=float, default=0.5, metavar="S",
        help="draw predictions from this score in [0, 1] on; the scatter takes all, as the evaluation does",
    )  # fmt: skip
    report = commands.add_parser(
        "report",
        help="a layer of buildings as one HTML page: maps, 3-D view, charts, comparison with the truth",
        description="A page that needs no network: outlines over a picture, buildings in 3-D coloured by height (a "
        "click tells the numbers of one), histograms and uncertainty, and with --truth the errors.",
        formatter_class=parser.formatter_class,
    )
    report.add_argument(
        "--buildings", type=Path, required=True, metavar="LAYER",
        help="layer to report: of fusiondet, with its scores and intervals, or any other",
    )  # fmt: skip
    report.add_argument("--out", type=Path, required=True, metavar="HTML", help="page to write")
    report.add_argument(
        "--image", type=Path, metavar="TIF", help="raster to lay under the buildings, in any CRS"
    )
    report.add_argument(
        "--truth", type=Path, metavar="LAYER", help="layer of true buildings, in any CRS, to compare with"
    )
    for prefix, what in (("", "--buildings"), ("truth-", "--truth")):
        report.add_argument(
            f"--{prefix}height", metavar="FIELD",
            help=f"column of heights of {what} in metres, or of roof elevations with --{prefix}ground; without it, the "
            "columns of fusiondet or of 3DBAG",
        )  # fmt: skip
        report.add_argument(
            f"--{prefix}ground", metavar="FIELD", help="column of ground elevations to subtract, metres"
        )
        report.add_argument(
            f"--{prefix}layer", metavar="NAME", help=f"layer of {what} where the file has several"
        )
    report.add_argument("--overwrite", action="store_true", help="replace an existing page")
    return parse(parser, argv, others=source_options)


# What is drawn -> names of pictures in the folder `out`.
_PICTURES = {
    "dataset": ["overview.png"],
    "predictions": ["overview.png", "heights.png"],
    "delta1": ["delta1.png"],
}


def outputs(arguments) -> list[Path]:
    """Return the files that are written."""
    names = _PICTURES.get(arguments.command)
    if names is None or (len(names) == 1 and arguments.out.suffix.lower() == ".png"):
        return [arguments.out]
    return [arguments.out / name for name in names]


def write_page(arguments) -> list[Path]:
    from fusiondet.io.vectors import Layer
    from fusiondet.visualization.report import read_reported, write_report

    fields = arguments.height, arguments.ground, arguments.layer
    buildings, crs, metadata = read_reported(arguments.buildings, *fields)
    truth = None
    if arguments.truth:
        fields = arguments.truth_height, arguments.truth_ground, arguments.truth_layer
        truth = Layer(*read_reported(arguments.truth, *fields)[:2])
    write_report(
        buildings,
        crs,
        arguments.out,
        image=arguments.image,
        truth=truth,
        metadata={"layer": arguments.buildings.name, **metadata},
        overwrite=arguments.overwrite,
    )
    return [arguments.out]


def draw_dataset(arguments) -> list[Path]:
    (out,) = outputs(arguments)
    dataset = read_coco(arguments.annotations)
    figure = dataset_overview(dataset, arguments.tiles, arguments.image, arguments.height_labels)
    save_figure(figure, out)
    return [out]


def draw_delta1(arguments) -> list[Path]:
    (out,), dataset = outputs(arguments), read_coco(arguments.annotations)
    scores = [
        building_delta1(tile.dense)
        for tile in tile_scores(dataset, arguments.predictions, height_labels=arguments.height_labels)
    ]
    save_figure(tile_map_figure(dataset.tiles, scores, "δ1 of heights on building pixels"), out)
    return [out]


def draw_predictions(arguments) -> list[Path]:
    overview, heights = outputs(arguments)
    dataset, records = read_coco(arguments.annotations), read_predictions(arguments.predictions)
    require_instances(arguments.predictions)
    scatter = height_scatter(*matched_heights(dataset, records).T)
    chosen = arguments.tiles, arguments.image, arguments.min_score, arguments.height_labels
    save_figure(prediction_overview(dataset, records, *chosen), overview)
    save_figure(scatter, heights)
    return [overview, heights]


def main(argv=None) -> int:
    arguments = parse_arguments(argv)
    draw = {
        "dataset": draw_dataset,
        "predictions": draw_predictions,
        "delta1": draw_delta1,
        "report": write_page,
    }[arguments.command]
    with new_files(*outputs(arguments), overwrite=arguments.overwrite):
        print("wrote " + ", ".join(str(path) for path in draw(arguments)))
    return 0


if __name__ == "__main__":
    run(main)
