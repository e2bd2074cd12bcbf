"""ISPRS Vaihingen, 2-D semantic labelling: `tools/prepare_dataset.py vaihingen`, six classes of 33 areas, 9 cm.

Layout, as published: `top/top_mosaic_09cm_area1.tif` (near infrared, red, green) and
`gts_for_participants/top_mosaic_09cm_area1.tif` (colours) for 16 areas. The labels of the other 17, which the contest
scored, came later (`..._ground_truth_COMPLETE`), and so did labels with black borders between classes
(`..._ground_truth_eroded_COMPLETE`, `top_mosaic_09cm_area1_noBoundary.tif`), which the contest's F1 is of: black is not
labelled. The surface models are not read.

Areas and patches are by default those of U-REC's paper: 14 areas to train on in patches of 256 px at a step of 64, 2
for validation, 17 to test on. There tiles do not overlap, so that every pixel is scored once.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.converters import conversion, reports
from fusiondet.converters.class_rasters import (
    ClassPairs,
    add_tile_arguments,
    check_tile_arguments,
    parse_classes,
)
from fusiondet.converters.masks import Pair
from fusiondet.converters.reports import Problems
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.io.rasters import PixelWindow

import numpy as np

GSD_M = 0.09
CLASSES = parse_classes(
    [
        "impervious=255,255,255",
        "building=0,0,255",
        "low vegetation=0,255,255",
        "tree=0,255,0",
        "car=255,255,0",
        "clutter=255,0,0",
    ],
    ["0,0,0"],
)
# Of U-REC's paper; train and val are the areas whose labels were published first, test are those of the contest.
SPLITS = {
    "train": (1, 3, 5, 7, 11, 13, 21, 23, 26, 28, 30, 32, 34, 37),
    "val": (15, 17),
    "test": (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38),
}


@dataclass
class Areas(ClassPairs):
    """The areas as a `conversion.Source`.

    Attributes:
        areas: split -> numbers of its areas.
        eval_size: largest side of a tile outside train, pixels; 0: an area is a tile.
    """

    areas: dict[str, tuple[int, ...]] = field(default_factory=dict)
    eval_size: int = 512

    def _matched_pairs(self, problems: Problems) -> list[Pair]:
        images, labels = _by_area(self.images), _by_area(self.masks)
        pairs, absent = [], {"labels": [], "an image": []}
        for area in (area for areas in self.areas.values() for area in areas):
            if area in images and area in labels:
                pairs.append(Pair(f"area{area}", images[area], labels[area]))
                continue
            absent["labels" if area in images else "an image"].append(area)
        for lacking, areas in absent.items():
            if areas:
                names = f"area{'s' if len(areas) > 1 else ''} {', '.join(map(str, areas))}"
                problems.add(f"areas without {lacking}", f"{names}: without {lacking}, left out.", len(areas))
        return pairs

    def _split_of(self, pair: Pair) -> str | None:
        area = int(pair.stem.removeprefix("area"))
        return next(split for split, areas in self.areas.items() if area in areas)

    def _windows_of(self, pair: Pair, width: int, height: int) -> list[PixelWindow]:
        if self._split_of(pair) == "train":
            return super()._windows_of(pair, width, height)
        return parts(width, height, self.eval_size)

    def info(self) -> dict:
        """The classes, and where the data come from."""
        return {**super().info(), "description": "ISPRS 2-D semantic labelling, Vaihingen"}


def parts(width: int, height: int, size: int) -> list[PixelWindow]:
    """(x0, y0, w, h) that share a raster among them, of nearly equal sides of `size` at most; 0: one."""

    def edges(length: int) -> list[int]:
        count = -(-length // size) if size else 1
        return np.linspace(0, length, count + 1).round().astype(int).tolist()

    xs, ys = edges(width), edges(height)
    return [
        (x, y, right - x, below - y)
        for y, below in zip(ys, ys[1:], strict=False)
        for x, right in zip(xs, xs[1:], strict=False)
    ]


def _by_area(paths: list[Path]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in paths:
        number = re.search(r"area(\d+)", path.stem)
        if number and int(number[1]) in found:
            raise InputError(
                f"{path} and {found[int(number[1])]} are both area {number[1]}. Keep one kind of labels in a folder."
            )
        if number:
            found[int(number[1])] = path
    return found


def add_arguments(parser) -> None:
    """Options of `prepare_dataset.py vaihingen`."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder that holds top/")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="DIR",
        help="folder of labels (default: gts_for_participants in --root)",
    )
    parser.add_argument(
        "--eval-labels",
        type=Path,
        metavar="DIR",
        help="folder of other labels for val and test, e.g. eroded ones (default: --labels)",
    )
    for split, areas in SPLITS.items():
        parser.add_argument(
            f"--{split}",
            nargs="*",
            type=int,
            default=list(areas),
            metavar="AREA",
            help=f"areas of the split (default: {' '.join(map(str, areas))})",
        )
    add_tile_arguments(parser, size=256, overlap=192)
    parser.add_argument(
        "--eval-tile-size",
        type=int,
        default=512,
        metavar="PX",
        help="largest side of tiles of val and test, which do not overlap; 0: whole areas (default: %(default)s)",
    )
    parser.set_defaults(gsd_m=GSD_M)
    conversion.add_arguments(parser)


def main(args) -> None:
    """Run `prepare_dataset.py vaihingen`."""
    check_tile_arguments(args)
    if args.eval_tile_size != 0 and not 32 <= args.eval_tile_size <= 8192:
        raise InputError(f"`eval_tile_size={args.eval_tile_size}`: expected 32 to 8192, or 0.")
    if args.split or args.block_m:
        raise InputError("`split`, `block_m`: areas have their splits. Use `train`, `val` and `test`.")
    areas = {split: tuple(getattr(args, split)) for split in SPLITS if getattr(args, split)}
    listed = [area for of_split in areas.values() for area in of_split]
    twice = {area for area in listed if listed.count(area) > 1}
    if twice:
        raise InputError(f"area {min(twice)} is listed twice in `train`, `val` and `test`.")
    labels = args.labels or args.root / "gts_for_participants"
    paths = _rasters(labels)
    if args.eval_labels:
        others = {area for split, of_split in areas.items() if split != "train" for area in of_split}
        paths = [path for area, path in _by_area(paths).items() if area not in others]
        paths += [path for area, path in _by_area(_rasters(args.eval_labels)).items() if area in others]
    options = {name: getattr(args, name) for name in ("tile_size", "overlap", "max_nodata", "cut")}
    source = Areas(
        _rasters(args.root / "top"), paths, BandSpec(("nir", "red", "green")), gsd_m=args.gsd_m, classes=CLASSES,
        areas=areas, eval_size=args.eval_tile_size, **options,
    )  # fmt: skip
    recipe = {"source": "vaihingen", "areas": areas, "eval_tile_size": args.eval_tile_size, **options}
    recipe |= {"root": args.root, "labels": labels, "eval_labels": args.eval_labels}
    report = conversion.convert(source, args.out, conversion.options_from(args), recipe)
    reports.show(report, args.out)


def _rasters(folder: Path) -> list[Path]:
    """Rasters of areas in `folder`; InputError where there are none."""
    found = sorted(p for p in folder.glob("*area*.tif") if not p.name.startswith("."))
    if not found:
        raise InputError(f"{folder}: expected top_mosaic_09cm_area1.tif and so on, found none.")
    return found
