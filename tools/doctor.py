#!/usr/bin/env python3
"""Check the environment, or with `data DIR` a data set; what works, what does not, and what to do where not.

Without arguments: versions, device, and whether the operations fusiondet needs work. Exit status: 0 everything works, 1
something does not, 2 bad input.
"""

import argparse
import sys
from pathlib import Path

# To report a package that is not installed, the tool must not need it to be: not even fusiondet itself.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fusiondet.cli import parse, positive, run
from fusiondet.errors import InputError

_DATA = "check a data set: labels, heights, pixels, registration, splits"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    data = commands.add_parser("data", help=_DATA, description=_DATA)
    data.add_argument("dir", type=Path, help="folder with annotations/*.json, or one COCO file")
    data.add_argument("--out", type=Path, metavar="FILE", help="also write the findings as JSON")
    data.add_argument("--html", type=Path, metavar="FILE", help="also write one page with the worst tiles")
    data.add_argument(
        "--max-detections",
        type=positive,
        default=100,
        metavar="N",
        help="TEST.DETECTIONS_PER_IMAGE of the network (default: %(default)s)",
    )
    data.add_argument(
        "--samples",
        type=positive,
        default=64,
        metavar="N",
        help="tiles whose pixels are looked at (default: %(default)s)",
    )
    data.add_argument("--overwrite", action="store_true", help="replace existing reports")
    args = parse(parser, others=_source_options)
    return _environment() if args.command is None else _data(args)


def _source_options():
    from fusiondet.converters.prepare import source_options

    return source_options()


def _environment() -> int:
    from fusiondet.doctor.environment import diagnose, report

    checks = diagnose()
    print(report(checks))
    return 0 if all(check.ok for check in checks) else 1


def _data(args: argparse.Namespace) -> int:
    try:
        from fusiondet.doctor.examination import report_data
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise InputError(
            f"{missing} is not installed. Run `make setup`; `doctor.py` alone checks all."
        ) from None
    return report_data(args.dir, args.out, args.html, args.max_detections, args.samples, args.overwrite)


if __name__ == "__main__":
    run(main)
