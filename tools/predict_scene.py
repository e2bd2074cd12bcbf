#!/usr/bin/env python3
"""Turn an RGB + SAR raster pair into a GIS layer of buildings with heights, a raster of heights, or both."""

import argparse
from pathlib import Path

from fusiondet import cli


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--weights", required=True, type=Path, help="checkpoint written by tools/train_net.py"
    )
    parser.add_argument(
        "--rgb",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="optical raster, or one for each band; the (first) one's grid and CRS are those of the result",
    )
    parser.add_argument(
        "--sar",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="SAR raster, or one for each polarisation; warped onto the optical grid if it has another one",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="layer to write: .gpkg, .geojson, .fgb or .parquet; required where the network finds buildings",
    )
    parser.add_argument(
        "--height-raster",
        type=Path,
        metavar="TIF",
        help="also write heights as GeoTIFF: metres above ground on the pixels of --rgb, 0 = no building "
        "(about 0 where heights come per pixel), NaN = no data",
    )
    parser.add_argument(
        "--height-source",
        choices=("dense", "instances", "both"),
        default=argparse.SUPPRESS,
        help="heights per pixel, or of the buildings found, or a band each (default: dense if the network has it)",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=argparse.SUPPRESS,
        help="drop detections below this score (default: 0.5, or 0.25 for two detectors, whose scores are averaged)",
    )
    parser.add_argument(
        "--rgb-bands", type=int, nargs="+", metavar="N", help="1-based bands of --rgb in training order"
    )
    parser.add_argument(
        "--sar-bands",
        type=cli.band_number,
        nargs="+",
        metavar="N",
        help="1-based bands of --sar in training order; 1+4 is the mean power of two",
    )
    parser.add_argument(
        "--sar-scale",
        help="what --sar holds: linear_power, amplitude, db, complex, stretched_uint8 (as trained)",
    )
    parser.add_argument(
        "--sar-factor",
        type=float,
        metavar="F",
        help="calibration: amplitudes and complex numbers are multiplied by it (what the file states, else 1)",
    )
    parser.add_argument("--nodata", type=float, help="number that means no data in rasters that declare none")
    parser.add_argument(
        "--force-gsd", action="store_true", help="predict however far the pixel size is from training"
    )
    parser.add_argument(
        "--window", type=int, default=1024, metavar="PX", help="side of the windows that are predicted"
    )
    parser.add_argument(
        "--overlap", type=int, default=192, metavar="PX", help="overlap of neighbouring windows"
    )
    for option, what in {
        "--sun-azimuth": "direction to the sun, clockwise from grid north",
        "--sun-elevation": "sun above the horizon",
        "--look-azimuth": "direction in which the SAR antenna looks, clockwise from grid north",
        "--incidence": "SAR incidence from the vertical",
        "--view-azimuth": "direction from the ground to the optical sensor, clockwise from grid north",
        "--off-nadir": "optical view from the vertical",
    }.items():
        parser.add_argument(option, type=float, metavar="DEG", help=f"{what}, degrees (unknown if absent)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    return parser.parse_args()


def main():
    args = parse_args()
    from fusiondet.buildings import SensorGeometry
    from fusiondet.inference import SENSOR_OPTIONS, predict_to_file

    sensor = {name: getattr(args, option[2:].replace("-", "_")) for name, option in SENSOR_OPTIONS.items()}

    result = predict_to_file(
        args.weights,
        args.rgb,
        args.sar,
        args.out,
        height_path=args.height_raster,
        height_source=getattr(args, "height_source", None),
        score_threshold=getattr(args, "score_threshold", "layer"),
        device=args.device,
        overwrite=args.overwrite,
        window_px=args.window,
        overlap_px=args.overlap,
        force_gsd=args.force_gsd,
        rgb_bands=args.rgb_bands,
        sar_bands=args.sar_bands,
        sar_scale=args.sar_scale,
        sar_factor=args.sar_factor,
        nodata=args.nodata,
        sensor=SensorGeometry(**sensor),
    )
    for note in result.notes:
        print(f"note: {note}")
    if args.out:
        known = sum(b.height_m is not None for b in result.buildings)
        print(f"wrote {args.out}: {len(result.buildings)} buildings, {known} with heights, {result.crs}")
    if args.height_raster:
        print(f"wrote {args.height_raster}: metres above ground, {result.crs}")


if __name__ == "__main__":
    cli.run(main)
