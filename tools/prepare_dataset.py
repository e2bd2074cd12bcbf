#!/usr/bin/env python3
"""Make a data set: COCO annotations with heights beside RGB and SAR rasters. `prepare_dataset.py SOURCE --help`."""

from fusiondet.cli import run


def main() -> None:
    from fusiondet.converters.prepare import prepare

    prepare(description=__doc__)


if __name__ == "__main__":
    run(main)
