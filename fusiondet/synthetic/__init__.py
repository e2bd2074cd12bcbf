"""The synthetic city: physically rendered RGB and SAR tiles with exact outlines and heights.

`tools/prepare_dataset.py synthetic` is `add_arguments` + `main`. In here:

    presets                  frozen settings
    city                     the world as vectors: roofs, trees, ground
    procedural, footprints   invent such a world, or read its buildings from CityJSON
    scene                    a window of it as rasters
    clouds                   what stands between the optical sensor, the sun and the ground
    optical, sar             pictures of a scene: pure functions
    dataset                  tiles, labels and their faults, on disk
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from fusiondet.buildings import OUTLINES
from fusiondet.cli import seed_argument
from fusiondet.errors import InputError
from fusiondet.synthetic.presets import PRESETS, preset

_RANGES = {
    "sun_azimuth": ("sun_azimuth_deg", "direction to the sun, degrees clockwise from north"),
    "sun_elevation": ("sun_elevation_deg", "sun above the horizon, degrees"),
    "look_azimuth": ("sar_look_azimuth_deg", "direction the antenna looks, degrees clockwise from north"),
    "incidence": ("sar_incidence_deg", "SAR incidence from the vertical, degrees"),
}
_VIEW = {
    "off-nadir": "optical sensor from the vertical, degrees, 0 to 45: roofs lean away from it, and the walls on its "
    "side show (default: straight above)",
    "view-azimuth": "direction from the ground to the optical sensor, degrees clockwise from north (default: any)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `prepare_dataset.py synthetic`."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="directory to make")
    add("--preset", default="easy", help=f"one of {', '.join(PRESETS)} (default: %(default)s)")
    add(
        "--split",
        nargs="+",
        metavar="NAME=TILES",
        default=["train=300", "val=40", "test=40"],
        help="tiles per split (default: train=300 val=40 test=40)",
    )
    add("--size", type=int, default=256, metavar="PX", help="side of a tile, pixels (default: %(default)s)")
    add("--gsd", type=float, default=0.5, metavar="M", help="pixel size, metres (default: %(default)s)")
    seed_argument(parser)
    add(
        "--footprints",
        type=Path,
        metavar="FILE",
        help="real buildings from CityJSON(Seq), e.g. 3DBAG, instead of invented ones; LoD 2.2 roofs where present",
    )
    add(
        "--height-seed",
        type=int,
        help="draw the heights from this seed: same layout, other heights (default: --seed)",
    )
    add(
        "--strip-tiles", type=int, default=5, help="neighbouring tiles per acquisition (default: %(default)s)"
    )
    add(
        "--min-area-m2",
        type=float,
        default=6.0,
        help="smaller visible rests of buildings get no label (default: %(default)s)",
    )
    add(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes; no influence on the result (default: all cores)",
    )
    add("--overwrite", action="store_true", help="replace an existing --out")
    geometry = parser.add_argument_group("acquisition geometry (default: the preset's)")
    for flag, (_, text) in _RANGES.items():
        geometry.add_argument(
            f"--{flag.replace('_', '-')}", type=float, nargs=2, metavar=("LOW", "HIGH"), help=text
        )
    for flag, text in _VIEW.items():
        geometry.add_argument(f"--{flag}", type=float, nargs=2, metavar=("LOW", "HIGH"), help=text)
    geometry.add_argument(
        "--outline",
        choices=OUTLINES,
        default="footprint",
        help="what labels follow where the optical sensor looks aslant: the footprint on the ground, or the roof where "
        "it appears in the picture (default: %(default)s)",
    )
    _add_effects(parser.add_argument_group("sensors"))
    _add_faults(parser.add_argument_group("faults (label faults only in the split 'train')"))


def _add_effects(group) -> None:
    group.add_argument(
        "--looks",
        type=float,
        help="SAR looks per resolution cell: speckle variance 1/looks (default: the preset's)",
    )
    group.add_argument(
        "--clouds",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="mean share of the optical pixels under opaque cloud, 0 to 1; each tile then has a cloud raster. "
        "City, SAR and labels are those of the same --seed without clouds (default: %(default)s)",
    )
    group.add_argument("--no-shadow", action="store_true", help="neither sun nor radar shadow")
    group.add_argument("--no-layover", action="store_true", help="SAR roofs stay in place, walls unseen")
    group.add_argument("--no-double-bounce", action="store_true", help="no bright line at the foot of walls")


def _add_faults(group) -> None:
    group.add_argument(
        "--sar-shift-px",
        type=float,
        nargs="+",
        default=[0.0],
        metavar="PX",
        help="shift of SAR against RGB, pixels, in a random direction per acquisition: one number, at most this far; "
        "two, at least and at most (3 3: exactly 3)",
    )
    group.add_argument(
        "--footprint-offset-m",
        type=float,
        default=0.0,
        help="largest shift of the outlines, metres, per acquisition",
    )
    group.add_argument(
        "--missing-labels", type=float, default=0.0, help="share of the buildings without label, 0 to 1"
    )
    group.add_argument(
        "--extra-labels",
        type=float,
        default=0.0,
        help="labels without building, share of the buildings, 0 to 1",
    )
    group.add_argument(
        "--height-noise-m", type=float, default=0.0, help="standard deviation of the label heights, metres"
    )
    group.add_argument(
        "--shuffle-heights",
        action="store_true",
        help="control: label every building with another one's height, so that the pictures tell nothing",
    )
    group.add_argument(
        "--shuffle-angles",
        action="store_true",
        help="control: record every acquisition with the angles of sun and sensors of another one",
    )


def main(args: argparse.Namespace) -> None:
    """Make the data set that `args` of `add_arguments` describe, and say so in one line."""
    from fusiondet.synthetic.dataset import Faults, Recipe, write_dataset

    _check(args)
    faults = Faults(
        args.sar_shift_px[0] if len(args.sar_shift_px) == 1 else tuple(args.sar_shift_px),
        args.footprint_offset_m,
        args.missing_labels,
        args.extra_labels,
        args.height_noise_m,
        args.shuffle_heights,
    )
    recipe = Recipe(
        preset=_preset(args),
        size_px=args.size,
        gsd_m=args.gsd,
        seed=args.seed,
        height_seed=args.height_seed,
        strip_tiles=args.strip_tiles,
        min_area_m2=args.min_area_m2,
        shadow=not args.no_shadow,
        layover=not args.no_layover,
        double_bounce=not args.no_double_bounce,
        faults=faults,
        footprints=args.footprints,
        clouds=args.clouds,
        off_nadir_deg=None if args.off_nadir is None else tuple(args.off_nadir),
        view_azimuth_deg=tuple(args.view_azimuth or (0.0, 360.0)),
        outline=args.outline,
        shuffled_angles=args.shuffle_angles,
    )
    counts = write_dataset(recipe, _splits(args.split), args.out, args.workers, args.overwrite)
    parts = ", ".join(
        f"{split} {tiles} tiles with {buildings} buildings" for split, (tiles, buildings) in counts.items()
    )
    print(f"wrote {args.out}: {parts}.")


def _preset(args):
    changes = {"sar_looks": args.looks} if args.looks is not None else {}
    for flag, (key, _) in _RANGES.items():
        limits = getattr(args, flag)
        if limits is not None:
            changes[key] = (tuple(limits),) if key == "sar_look_azimuth_deg" else tuple(limits)
    return replace(preset(args.preset), **changes)


def _splits(texts: list[str]) -> dict[str, int]:
    splits = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not name.isidentifier() or not number.isdigit() or int(number) < 1 or name in splits:
            raise InputError(
                f"`split={text!r}`: expected NAME=TILES once per name, e.g. train=300 val=40 test=40."
            )
        splits[name] = int(number)
    return splits


def _check(args) -> None:
    """Limits that would otherwise fail deep inside, or fill memory."""
    if args.footprints is not None and args.height_seed is not None:
        raise InputError(
            "`height_seed` draws invented heights; `footprints` has real ones. Drop one of them."
        )
    limits = {
        "size": (16, 4096),
        "gsd": (0.1, 10),
        "strip_tiles": (1, 1000),
        "workers": (1, 512),
        "looks": (0.1, 1e4),
        "sar_shift_px": (0, 20),
        "footprint_offset_m": (0, 50),
        "missing_labels": (0, 1),
        "extra_labels": (0, 1),
        "height_noise_m": (0, 100),
        "min_area_m2": (0, 1e6),
        "clouds": (0, 1),
        "seed": (0, 2**63),
        "height_seed": (0, 2**63),
    }
    for name, (low, high) in limits.items():
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not low <= value <= high:
                raise InputError(f"`{name}={value}`: expected {low} to {high}.")
    shift_px = args.sar_shift_px
    if len(shift_px) > 2 or sorted(shift_px) != shift_px:
        raise InputError(f"`sar_shift_px={shift_px}`: expected one number, or two as LOW <= HIGH.")
    turn = (-360, 360)
    angles = {
        "sun_elevation": (5, 90),
        "incidence": (10, 75),
        "off_nadir": (0, 45),
        "sun_azimuth": turn,
        "look_azimuth": turn,
        "view_azimuth": turn,
    }
    for flag, (low, high) in angles.items():
        given = getattr(args, flag) or ()
        for value in given:
            if not low <= value <= high:
                raise InputError(f"`{flag}={value}`: expected {low} to {high} degrees.")
        if given and given[0] > given[1]:
            raise InputError(f"`{flag}={given}`: expected LOW <= HIGH.")
    if args.off_nadir is None and (args.view_azimuth is not None or args.outline == "roof"):
        raise InputError(
            '`view_azimuth` and `outline="roof"` say how the picture leans: give `off_nadir`, too.'
        )
