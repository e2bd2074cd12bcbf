#!/usr/bin/env python3
"""Turn an RGB + SAR raster pair into a GIS layer of buildings with heights, a raster of heights or classes."""

import argparse
from dataclasses import fields
from pathlib import Path

from fusiondet import cli
from fusiondet.io.bands import band_number

# Options that hold the fields of a SensorGeometry.
ANGLES = {
    "--sun-azimuth": ("sun_azimuth_deg", "direction to the sun, clockwise from grid north"),
    "--sun-elevation": ("sun_elevation_deg", "sun above the horizon"),
    "--look-azimuth": (
        "sar_look_azimuth_deg",
        "direction in which the SAR antenna looks, clockwise from grid north",
    ),
    "--incidence": ("sar_incidence_deg", "SAR incidence from the vertical"),
    "--view-azimuth": (
        "view_azimuth_deg",
        "direction from the ground to the optical sensor, clockwise from grid north",
    ),
    "--off-nadir": ("view_off_nadir_deg", "optical view from the vertical"),
}


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
        "--scenes",
        type=Path,
        metavar="CSV",
        help="many scenes instead of --rgb and --sar: a table with columns rgb, sar, name (paths beside it; several "
        "files of one image separated by ;); outputs need {name} in their names. A mosaic is better one VRT: --rgb",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="layer to write: .gpkg, .geojson, .fgb, .parquet or .city.json; required where the network finds "
        "buildings",
    )
    parser.add_argument(
        "--height-raster",
        dest="height_path",
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
        "--class-raster",
        dest="class_path",
        type=Path,
        metavar="TIF",
        help="write the class of each pixel as GeoTIFF with colours and names, 255 = no data: of a network that tells "
        "classes, or background and building of one that tells footprints per pixel",
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
        type=band_number,
        nargs="+",
        metavar="N",
        help="1-based bands of --sar in training order; 1+4 is the mean power of two",
    )
    parser.add_argument(
        "--optical-scale",
        type=float,
        metavar="F",
        help="what the values of --rgb are multiplied by to be in the unit of the training (1, and another unit is "
        "refused)",
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
    parser.add_argument(
        "--nodata",
        type=float,
        help="number that means no data in rasters that declare none (as in the training; -9999 and large areas of 0 "
        "at the border are recognised)",
    )
    parser.add_argument(
        "--gsd",
        dest="gsd_m",
        type=float,
        metavar="M",
        help="metres per pixel of images without georeference (that of the training)",
    )
    parser.add_argument(
        "--force-gsd", action="store_true", help="predict however far the pixel size is from training"
    )
    parser.add_argument(
        "--window",
        dest="window_px",
        type=int,
        default=1024,
        metavar="PX",
        help="side of the windows that are predicted",
    )
    parser.add_argument(
        "--overlap",
        dest="overlap_px",
        type=int,
        default=argparse.SUPPRESS,
        metavar="PX",
        help="overlap of neighbouring windows (default: a building of 60 m and what the height head sees around it, "
        "at most half a window); what several windows see is merged",
    )
    parser.add_argument(
        "--batch",
        type=cli.positive,
        default=argparse.SUPPRESS,
        metavar="N",
        help="windows that the network sees at a time (default: 1 on a CPU, 4 on a GPU)",
    )
    parser.add_argument(
        "--aoi",
        type=Path,
        metavar="FILE",
        help="area of interest: polygons in any CRS; only windows near it are read, only buildings with a point "
        "inside of them (representative point) in it are kept",
    )
    parser.add_argument(
        "--extent",
        choices=("intersection", "optical"),
        default=argparse.SUPPRESS,
        help="where --rgb and --sar cover different ground: predict where both are, or also where SAR is missing "
        "(default: intersection, as a network expects what it was trained with; optical for one that copes, trained "
        "with SAR missing or of two detectors)",
    )
    parser.add_argument(
        "--regularize",
        dest="regularize_m",
        type=float,
        metavar="M",
        help="set walls straight and square within so many metres (outlines stay as the masks have them if absent)",
    )
    parser.add_argument(
        "--max-overlap",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="leave out outlines of which others with better scores cover more than this share: they show the same "
        "building (1 keeps all)",
    )
    parser.add_argument(
        "--dtm", type=Path, metavar="TIF", help="elevations that the blocks of a .city.json stand on, metres"
    )
    parser.add_argument("--style", action="store_true", help="write a QGIS style by height beside --out")
    parser.add_argument(
        "--report", type=Path, metavar="HTML", help="write a page with maps, 3-D view, charts"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where a run with the same options was stopped: finished parts are in .OUT.parts beside --out",
    )
    parser.add_argument(
        "--skip-invalid",
        action="store_true",
        help="take pixels that cannot be read for no data, and leave out --scenes that cannot be used; both counted",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="predict on N processes, each with a network of its own, on GPUs in turn (0: on this one)",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="predict on the workers of a dask scheduler, e.g. tls://host:8786; they read the same paths. Messages "
        "are pickles: use tcp:// on localhost only",
    )
    for option, (angle, what) in ANGLES.items():
        help_text = f"{what}, degrees (unknown if absent)"
        parser.add_argument(option, dest=angle, type=float, metavar="DEG", help=help_text)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    return cli.parse(parser, others=_other_options)


def _other_options() -> dict[str, cli.Option]:
    from fusiondet.converters.prepare import source_options

    return source_options() | {"eval_only": cli.Option("--eval-only", is_switch=True)}  # of train_net.py


def main():
    args = parse_args()
    from fusiondet.buildings import SensorGeometry
    from fusiondet.errors import InputError
    from fusiondet.inference import SceneOptions, predict_scenes, predict_to_file, read_scenes

    options = {f.name: getattr(args, f.name) for f in fields(SceneOptions) if hasattr(args, f.name)}
    options["sensor"] = SensorGeometry(**{angle: getattr(args, angle) for angle, _ in ANGLES.values()})
    if args.report is not None:
        from fusiondet.visualization.report import write_layer_report  # brings Plotly along

        options["write_report"] = write_layer_report
    if args.scenes is None:
        result = predict_to_file(args.weights, args.rgb, args.sar, args.out, tell=_print_notes, **options)
        _print_outputs(result, args.out, args.height_path, args.class_path, args.report)
        return
    if args.rgb or args.sar:
        raise InputError("--scenes lists the rasters of each scene: leave out --rgb and --sar.")
    scenes, counts = read_scenes(args.scenes), {"buildings": 0, "there": 0}

    def on_done(scene, result):
        print(f"scene {scene.name}{'' if result else ': is there already'}", flush=True)
        if result is None:
            counts["there"] += 1
            return
        counts["buildings"] += result.count
        paths = (args.out, args.height_path, args.class_path, args.report)
        _print_notes(result.notes)
        _print_outputs(result, *(p and Path(str(p).replace("{name}", scene.name)) for p in paths))

    left_out = predict_scenes(args.weights, scenes, args.out, on_done, **options)
    for reason in left_out:
        cli.say(f"left out: {reason}")
    print(
        f"wrote {len(scenes) - len(left_out) - counts['there']} of {len(scenes)} scenes, {counts['buildings']} "
        f"buildings; {counts['there']} were there already, {len(left_out)} were left out"
    )


def _print_notes(notes):
    for note in notes:
        cli.note(note)


def _print_outputs(result, out, height_path, class_path, report):
    if out:
        print(
            f"wrote {out}: {result.count} buildings, {result.with_heights} with heights, {result.crs or 'no CRS'}"
        )
    if height_path:
        print(f"wrote {height_path}: metres above ground, {result.crs or 'no CRS'}")
    if class_path:
        print(f"wrote {class_path}: classes, {result.crs or 'no CRS'}")
    if report:
        print(f"wrote {report}")


if __name__ == "__main__":
    cli.run(main)
