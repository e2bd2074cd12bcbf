"""Images with a class per pixel -> tiles: `tools/prepare_dataset.py classes`, for land cover in colours or codes.

A raster of labels has its image's size; `--class NAME=VALUE` says what its pixels stand for: a code (`tree=3`) or a
colour (`tree=0,255,0`), and `--ignore VALUE` what is not labelled. Every pixel of every label raster is looked at
before anything is written. Labels stay where they are: tiles refer to windows of images and labels alike. There are no
instances: such data train and score networks that tell classes (MODEL.DENSE_NET.TASKS "classes").
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusiondet.buildings import Building
from fusiondet.converters import conversion, reports
from fusiondet.converters.masks import RASTERS, MaskPairs, Pair
from fusiondet.converters.pairing import expand, first_band_count
from fusiondet.converters.reports import Problems, Report
from fusiondet.converters.source import Made, Place, link
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from fusiondet.io.pixel_classes import UNKNOWN, ClassList, label_values, palette_colours, read_classes
from fusiondet.io.rasters import open_raster
from fusiondet.io.scene_reader import SceneReader
from fusiondet.io.tile_rasters import TileRaster

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp

# Pixels of labels that are looked at together.
_MOST_PIXELS = 2**26


@dataclass
class ClassPairs(MaskPairs):
    """Images and rasters of their classes as a `conversion.Source`; `masks` are the rasters.

    Attributes:
        classes: what their pixels stand for.
    """

    classes: ClassList | None = None

    def _check(self, pair: Pair, reader: SceneReader) -> None:
        """InputError where the labels do not lie on their image, or a pixel of them is of no class."""
        super()._check(pair, reader)
        raster, size = TileRaster(pair.mask), (reader.height, reader.width)
        rows = max(1, _MOST_PIXELS // reader.width)
        for y0 in range(0, reader.height, rows):
            read_classes(raster, self.classes, size, (0, y0, reader.width, min(rows, reader.height - y0)))

    def make(self, place: Place, out: Path, problems: Problems) -> Made:
        """The tile in a window of an image."""
        made = super().make(place, out, problems)
        if made.tile is None:
            return made
        pair = self._pairs[place.image]
        size = place.window[3], place.window[2]
        numbers = read_classes(TileRaster(pair.mask, place.window), self.classes, size)
        labelled = np.bincount(numbers[numbers != UNKNOWN], minlength=len(self.classes.names)).tolist()
        pixels = Counter(dict(zip(self.classes.names, labelled, strict=True)))
        pixels["not labelled"] = int((numbers == UNKNOWN).sum())
        made.counts = {"pixels": pixels}
        if made.tile.window is not None:
            made.tile.class_file_name = link(out, f"classes/{pair.stem}{pair.mask.suffix}", pair.mask)
        else:
            made.tile.class_file_name = f"classes/{place.name}.tif"
            self._cut(pair, place, out / made.tile.class_file_name, made.tile)
        return made

    def _hold_instances(self) -> bool:
        return False  # but classes

    def _buildings(self, pair, window, valid, problems, labels) -> list[Building]:
        return []

    def _cut(self, pair: Pair, place: Place, path: Path, tile) -> None:
        """Write the labels of a tile as they are, but for a palette of colours, as `path`."""
        with open_raster(pair.mask) as source:
            values = label_values(source, place.window)
            if source.colorinterp[0] == ColorInterp.palette and self.classes.coloured:
                values = palette_colours(values[0], source.colormap(1))
            facts = {"nodata": source.nodata, "crs": tile.crs, "compress": "deflate"}
        if tile.transform is not None:
            facts["transform"] = Affine(*tile.transform)
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = dict(zip(("count", "height", "width"), values.shape, strict=True))
        with rasterio.open(path, "w", driver="GTiff", dtype=values.dtype, **shape, **facts) as f:
            f.write(values)

    def finish(self, sample: Dataset, report: Report) -> None:
        """Name the classes that no pixel is of."""
        pixels = report.more.get("pixels", {})
        absent = [name for name in self.classes.names if not pixels.get(name)]
        if absent:
            report.notes.append(f"there is no pixel of class {' or '.join(absent)} in any tile.")
        report.notes.append("there are no instances: such data train and score classes of pixels.")

    def info(self) -> dict:
        """The classes."""
        return {"description": "images with a class per pixel", **self.classes.to_info()}


# ---- The command -----------------------------------------------------------------------------------------


def parse_classes(words: Sequence[str], ignored: Sequence[str] = ()) -> ClassList:
    """["tree=0,255,0", ...] or ["tree=3", ...], and values that are not labelled -> the list.

    Raises:
        InputError: no NAME=VALUE; or see `ClassList`.
    """
    pairs = [word.rpartition("=") for word in words]
    if not all(name and equals for name, equals, _ in pairs):
        raise InputError(
            f"`classes={list(words)}`: expected NAME=CODE or NAME=RED,GREEN,BLUE, e.g. tree=0,255,0."
        )
    values = [_number("classes", value) for _, _, value in pairs]
    try:
        return ClassList(
            tuple(name for name, _, _ in pairs),
            tuple(values),
            tuple(_number("ignored", word) for word in ignored),
        )
    except InputError as error:
        raise InputError(f"`classes={list(words)}`: {error}") from None


def _number(parameter: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"`{parameter}={text!r}`: expected a code such as 3, or a colour such as 0,255,0."
        ) from None


def add_arguments(parser) -> None:
    """Options of `prepare_dataset.py classes`."""
    for name, text in (
        ("images", "the images: files, folders, or patterns in quotes such as 'top/*.tif'"),
        ("labels", "rasters of their classes, paired by name"),
    ):
        parser.add_argument(f"--{name}", nargs="+", required=True, metavar="GLOB", help=text)
    parser.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        required=True,
        metavar="NAME=VALUE",
        help="what pixels stand for, in order: a code (tree=3) or a colour (tree=0,255,0)",
    )
    parser.add_argument(
        "--ignore",
        dest="ignored",
        nargs="+",
        default=[],
        metavar="VALUE",
        help="codes or colours that are not labelled",
    )
    parser.add_argument(
        "--bands", nargs="+", metavar="NAME", help="of the images, in order (default: red green blue, or pan)"
    )
    parser.add_argument(
        "--gsd", dest="gsd_m", type=float, metavar="M", help="metres per pixel of images without a CRS"
    )
    parser.add_argument(
        "--nodata", type=float, metavar="V", help="number that means no data where an image declares none"
    )
    add_tile_arguments(parser, size=512, overlap=0)
    conversion.add_arguments(parser)


def add_tile_arguments(parser, size: int, overlap: int) -> None:
    """`--tile-size`, `--overlap`, `--max-nodata` and `--cut`."""
    for name, kind, default, metavar, text in (
        ("tile-size", int, size, "PX", "side of a tile, pixels"),
        ("overlap", int, overlap, "PX", "overlap of neighbouring tiles"),
        ("max-nodata", float, 0.95, "SHARE", "leave out tiles with a larger share of no data"),
    ):
        parser.add_argument(
            f"--{name}", type=kind, default=default, metavar=metavar, help=f"{text} (default: %(default)s)"
        )
    parser.add_argument(
        "--cut", action="store_true", help="copy the pixels; else the tiles refer to the images and labels"
    )


def check_tile_arguments(args) -> None:
    """InputError for numbers that mean nothing."""
    for name, value, low, high in (
        ("tile_size", args.tile_size, 32, 8192),
        ("overlap", args.overlap, 0, args.tile_size - 1),
        ("max_nodata", args.max_nodata, 0, 1),
        ("gsd_m", args.gsd_m, 0.01, 1000),
    ):
        if value is not None and not low <= value <= high:
            raise InputError(f"`{name}={value:g}`: expected {low:g} to {high:g}.")


def main(args) -> None:
    """Run `prepare_dataset.py classes`."""
    check_tile_arguments(args)
    classes = parse_classes(args.classes, args.ignored)
    images, labels = expand(args.images, RASTERS, "images"), expand(args.labels, RASTERS, "labels")
    both = {*images} & {*labels}
    if both:
        raise InputError(f"{min(both)}: is among `images` and among `labels`. Say which files are labels.")
    usual = ("pan",) if first_band_count(images)[1] < 3 else ("red", "green", "blue")
    bands = BandSpec(tuple(args.bands or usual))
    names = ("nodata", "tile_size", "overlap", "max_nodata", "cut")
    options = {name: getattr(args, name) for name in names}
    source = ClassPairs(images, labels, bands, gsd_m=args.gsd_m, classes=classes, **options)
    recipe = {
        "source": "classes",
        "gsd": args.gsd_m,
        "bands": bands.optical,
        "classes": str(classes),
        **options,
    }
    recipe |= {"images": images, "labels": labels}
    report = conversion.convert(source, args.out, conversion.options_from(args), recipe)
    reports.show(report, args.out)
