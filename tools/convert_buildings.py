#!/usr/bin/env python3
"""Convert a layer of buildings into another format, told by its suffix: convert_buildings.py city.gpkg city.city.json.

Both are among .gpkg, .geojson, .fgb, .parquet, .city.json and .city.jsonl, with the columns that predict_scene.py
writes; other columns are left out.
"""

import argparse
from pathlib import Path

from fusiondet.cli import note, parse, run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="FILE", help="layer to read")
    parser.add_argument("target", type=Path, metavar="OUT", help="layer to write")
    parser.add_argument(
        "--dtm",
        type=Path,
        metavar="FILE",
        help="elevations that the blocks of CityJSON stand on (default: those of a city model that is read, else 0)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parse(parser, argv)

    from fusiondet.io.layer_conversion import convert_layer

    for line in convert_layer(args.source, args.target, args.dtm, args.overwrite):
        note(line)
    print(f"wrote {args.target}")


if __name__ == "__main__":
    run(main)
