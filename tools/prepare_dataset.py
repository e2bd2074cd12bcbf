#!/usr/bin/env python3
"""Make a data set: COCO annotations with heights beside RGB and SAR rasters. `prepare_dataset.py SOURCE --help`."""

import argparse

from fusiondet.cli import run

SOURCES = {
    "synthetic": ("fusiondet.data.synthetic", "physically rendered city, exact outlines and heights"),
    "tiles": (
        "fusiondet.data.converters.tiles",
        "your own RGB (and SAR) rasters with footprints, heights where known",
    ),
}


def main() -> None:
    import importlib

    parser = argparse.ArgumentParser(description=__doc__)
    subparsers = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    modules = {}
    for name, (module, text) in SOURCES.items():
        modules[name] = importlib.import_module(module)
        modules[name].add_arguments(subparsers.add_parser(name, help=text, description=text))
    args = parser.parse_args()
    modules[args.source].main(args)


if __name__ == "__main__":
    run(main)
