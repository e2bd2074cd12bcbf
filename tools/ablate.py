#!/usr/bin/env python3
"""Compare networks: train every row of a specification, score it under every condition, write one table of results.

A run that was stopped goes on where it was. fusiondet/analysis/ablation/spec.py describes the specification.
"""

import argparse
from pathlib import Path

from fusiondet import cli
from fusiondet.converters.prepare import source_options


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("spec", type=Path, help="specification, e.g. configs/ablation/fusion.yaml")
    top.add_argument(
        "--out", type=Path, required=True, help="directory of the ablation, new or to go on with"
    )
    top.add_argument(
        "--rows", nargs="+", default=[], metavar="ROW", help="work on these alone (default: all)"
    )
    top.add_argument("--seeds", nargs="+", type=int, metavar="N", help="instead of the specification's")
    top.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings side by side (default: 1)")
    top.add_argument("--dry-run", action="store_true", help="say what is finished and what is left, and stop")
    top.add_argument(
        "--overwrite",
        action="store_true",
        help="train rows anew whose settings differ from those that --out was begun with",
    )
    top.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="config overrides for all rows, behind SPEC or behind an option that takes one word: SOLVER.MAX_ITER 100",
    )
    return top


def main(argv: list[str] | None = None) -> None:
    args = cli.parse(parser(), argv, others=source_options, intermixed=True)
    from fusiondet.analysis.ablation import describe, read_spec, run_ablation

    spec = read_spec(args.spec, args.opts, args.seeds)
    if args.dry_run:
        print(describe(spec, args.out, args.rows))
        return
    path = run_ablation(spec, args.out, rows=args.rows, jobs=args.jobs, overwrite=args.overwrite)
    print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
