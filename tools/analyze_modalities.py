#!/usr/bin/env python3
"""How much a trained network uses each of its two modalities: drop sensitivity, and conditional utilisation (P3)."""

import argparse
from pathlib import Path

from fusiondet import cli
from fusiondet.converters.prepare import source_options


def parse_args(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--weights",
        required=True,
        type=Path,
        help="checkpoint written by tools/train_net.py, of two modalities",
    )
    parser.add_argument(
        "--dataset", required=True, help="data set to score on, e.g. synthcity_test, or a COCO file"
    )
    parser.add_argument(
        "--calibration",
        metavar="DATASET",
        help="for networks whose branches exchange features: data set of the mean messages that the cut-off puts in "
        "(default: the one it was trained on)",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="directory for utilization.json, .md and .png"
    )
    parser.add_argument(
        "--limit",
        type=cli.positive,
        metavar="N",
        help="only the first N tiles of each data set (default: all)",
    )
    parser.add_argument(
        "--draws",
        type=cli.positive,
        default=1000,
        metavar="N",
        help="draws of the tiles behind the 95 %% intervals (default: %(default)s)",
    )
    cli.seed_argument(parser)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    return cli.parse(parser, argv, others=source_options)


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    from fusiondet.analysis.utilization import analyze_to_dir, text_table

    result = analyze_to_dir(
        args.weights,
        args.dataset,
        args.out,
        overwrite=args.overwrite,
        calibration=args.calibration,
        limit=args.limit,
        draws=args.draws,
        seed=args.seed,
        device=args.device,
    )
    print(text_table(result))
    print(f"wrote {args.out}: utilization.json, utilization.md, utilization.png")


if __name__ == "__main__":
    cli.run(main)
