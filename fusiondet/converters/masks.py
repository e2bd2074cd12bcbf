"""Images with masks of buildings -> tiles: `tools/prepare_dataset.py masks`, the layout of Inria, WHU, Massachusetts.

A mask is a raster of its image's size, of 1, 3 or 4 bands (the fourth is alpha) or with a palette, and of two values: 0
and 1, 0 and 255, or black and one colour. Instances are the connected parts of a mask (over edges, not corners), with
the exact outline of their pixels: buildings that touch are one instance, one that a tree crosses is two, and what a
tile's edge cuts is cut. Masks of instance numbers, 0 where there is none, are told by their values: there each number
is one instance, in as many parts as it has. Heights are unknown.

- Inria: `images/austin1.tif`, `gt/austin1.tif`, 5000 x 5000 px of 0.3 m, with CRS.
- WHU: `image/1.tif`, `label/1.tif`, 512 x 512 px, no CRS: `--gsd 0.3` (aerial, downsampled).
- Massachusetts: `sat/22678915_15.tiff`, `map/22678915_15.tif`, 1500 x 1500 px of 1 m, with CRS.
- crowdAI: `images/000000000000.jpg`, 300 x 300 px, and no masks but COCO: `--masks annotation.json --gsd 0.3`. Its
  outlines are taken as they are.
"""

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.buildings import Building, Tile, clean_polygon
from fusiondet.converters import conversion, reports
from fusiondet.converters.coco_index import CocoIndex, ImageRecord, read_index
from fusiondet.converters.cutting import EDGES, KEPT_DTYPES, clip_labels, edge_notes, windows, write_tile
from fusiondet.converters.pairing import distinct_parts, expand, first_band_count, unique_stems
from fusiondet.converters.reports import UNUSABLE, Problems, Report
from fusiondet.converters.source import Made, Place, link
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from fusiondet.io.pixel_classes import label_values, palette_colours
from fusiondet.io.rasters import PixelWindow, open_raster
from fusiondet.io.scene_reader import SceneReader

import numpy as np
import shapely
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.features import shapes

# Pairs of values of a mask; the second is a building.
MASK_VALUES = ((0, 1), (0, 255))
RASTERS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".vrt")
NUMBERED = "the masks hold instance numbers: each number is one building."
# Masks are told from a few of them, and of each from so much.
_SAMPLED_MASKS, _SAMPLED_SIDE_PX = 20, 2048
# Of the parts of a mask of instance numbers: a number has few, which are no specks as those of shades are.
_MOST_PARTS, _SMALLEST_PART_PX = 2, 9
TOUCHING = "instances are the connected parts of the masks: buildings that touch are one."


# ---- Masks -----------------------------------------------------------------------------------------------


def read_mask(path: Path, window: PixelWindow | None = None, threshold: float | None = None) -> np.ndarray:
    """(h, w) bool: where a mask says building.

    Args:
        window: (x0, y0, width, height) in its pixels; None for all of it.
        threshold: a pixel is building where a band (of colour) has at least this value; None: by the rules of a mask.

    Raises:
        InputError: it cannot be read, or has other values than a mask has; they are named.
    """
    with open_raster(path, allow_vrt=True) as source:
        values = label_values(source, window or (0, 0, source.width, source.height))
        palette = source.colorinterp[0] == ColorInterp.palette
        if palette:
            values = palette_colours(values[0], source.colormap(1))
    highest = values.max(axis=0)
    if threshold is not None:
        return highest >= threshold
    building = highest != 0
    colours = values[:, building]
    one_band = len(values) == 1
    one = colours.size == 0 or bool((colours == colours[:, :1]).all())
    usual = any(np.isin(values, pair).all() for pair in MASK_VALUES)
    if not (one and (usual or palette)):
        advice = "Where it is in shades, say from which value on it is a building with `threshold`."
        if one_band and np.isin(values, (0, 1, 255)).all():
            advice = (
                "255 beside 1 usually marks what is not labelled, which no mask here has. Make it no building, "
                '`gdal_calc.py -A IN.tif --calc "A==1" --outfile NEW.tif`, or another building, with `threshold=1`.'
            )
        raise InputError(
            f"{path}: is no mask of buildings; it holds {_listed(values)}, expected 0 and 1, 0 and 255, black and one "
            f"colour, or instance numbers. {advice}"
        )
    return building


def read_numbers(path: Path, window: PixelWindow | None = None) -> np.ndarray | None:
    """(h, w) instance numbers, 0 where there is no instance or no data; None of a mask that holds no such numbers.

    Args:
        window: (x0, y0, width, height) in its pixels; None for all of it.

    Raises:
        InputError: it cannot be read.
    """
    with open_raster(path, allow_vrt=True) as source:
        if source.colorinterp[0] == ColorInterp.palette:
            return None
        values = label_values(source, window or (0, 0, source.width, source.height))
        if len(values) > 1 or values.dtype.kind not in "iu":
            return None
        numbers = values[0] if source.nodata is None else np.where(values[0] == source.nodata, 0, values[0])
    return numbers if numbers.min(initial=0) >= 0 else None


def holds_instances(path: Path) -> bool:
    """Whether a mask holds instance numbers, not one value for all buildings, classes or shades.

    Raises:
        InputError: it cannot be read.
    """
    with open_raster(path, allow_vrt=True) as source:
        sides = [min(side, _SAMPLED_SIDE_PX) for side in (source.width, source.height)]
        start = [(all_of_it - side) // 2 for all_of_it, side in zip((source.width, source.height), sides)]
    numbers = read_numbers(path, (*start, *sides))
    if numbers is None or np.isin(numbers, (0, 1, 255)).all():
        return False
    parts = instances(numbers)
    areas = [p.area for part in parts for p in getattr(part, "geoms", [part])]
    return len(areas) <= _MOST_PARTS * len(parts) and float(np.median(areas)) >= _SMALLEST_PART_PX


def instances(numbers: np.ndarray) -> list[shapely.geometry.base.BaseGeometry]:
    """Outlines of the instances of (h, w) numbers, in its pixels, exact, by ascending number; 0 is none."""
    found, index = np.unique(numbers, return_inverse=True)
    parts: dict[int, list] = {i: [] for i in range(len(found)) if found[i]}
    index = index.reshape(numbers.shape).astype(np.int32)
    for outline, i in shapes(index, mask=numbers != 0, connectivity=4):
        parts[int(i)].append(shapely.geometry.shape(outline))
    return [clean_polygon(shapely.unary_union(outlines)) for outlines in parts.values()]


def _listed(values: np.ndarray, most: int = 6) -> str:
    """The values of (n, h, w) pixels as text."""
    found = np.unique(values.reshape(len(values), -1), axis=1).T.tolist()
    texts = [", ".join(f"{number:g}" for number in value) for value in found[:most]]
    text = ", ".join(texts) if len(values) == 1 else ", ".join(f"({t})" for t in texts)
    return text + (f" and {len(found) - most} more values" if len(found) > most else "")


def components(mask: np.ndarray) -> list[shapely.geometry.base.BaseGeometry]:
    """Outlines of the parts of (h, w) bool that hang together over edges, in its pixels, exact."""
    found = shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    return [clean_polygon(shapely.geometry.shape(outline)) for outline, _ in found]


# ---- The source ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """An image with its mask, or with its record in a COCO file."""

    stem: str
    image: Path
    mask: Path | None = None
    record: ImageRecord | None = None


@dataclass
class MaskPairs:
    """Images and their masks as a `conversion.Source`.

    Attributes:
        images: files. masks: files, or one COCO file.
        threshold: see `read_mask`. gsd_m: metres per pixel of images without georeference, None when unknown.
        tile_size, overlap: pixels. edge: see `cutting.windows`.
        min_area_px: what is smaller is dropped. max_nodata: largest share of a tile.
        cut: copy the pixels of every tile.
    """

    images: list[Path]
    masks: list[Path]
    bands: BandSpec = field(default_factory=BandSpec)
    nodata: float | None = None
    threshold: float | None = None
    gsd_m: float | None = None
    tile_size: int = 512
    overlap: int = 0
    edge: str = "overlap"
    min_area_px: float = 0.0
    max_nodata: float = 0.95
    cut: bool = False
    _pairs: list[Pair] = field(default_factory=list)
    _index: CocoIndex | None = None
    _numbered: bool = False
    _edge_notes: list[str] = field(default_factory=list)

    @property
    def coco(self) -> bool:
        """Whether the labels are outlines of a COCO file."""
        return len(self.masks) == 1 and self.masks[0].suffix.lower() == ".json"

    def files(self) -> Iterable[Path]:
        """Images and masks."""
        return [*self.images, *self.masks]

    def places(self, problems: Problems) -> list[Place]:
        """Windows that cover every image that has a mask of its size."""
        self._pairs = self._listed_pairs(problems) if self.coco else self._matched_pairs(problems)
        self._numbered = not self.coco and self.threshold is None and self._hold_instances()
        found, images_px = [], 0
        for number, pair in enumerate(self._pairs):
            try:
                with self._open(pair) as reader:
                    self._check(pair, reader)
                    size = (reader.width, reader.height)
            except InputError as error:
                problems.add(UNUSABLE, str(error))
                continue
            ground = {"transform": tuple(reader.transform)[:6], "crs": reader.crs}
            ground = {} if reader.transform.is_identity else ground
            split = self._split_of(pair)
            found += [
                Place(f"{pair.stem}_x{w[0]:05d}_y{w[1]:05d}", number, w, split=split, **ground)
                for w in self._windows_of(pair, *size)
            ]
            images_px += math.prod(size)
        self._edge_notes = edge_notes(sum(math.prod(p.window[2:]) for p in found), images_px, self.overlap)
        return found

    def _hold_instances(self) -> bool:
        masks = [pair.mask for pair in self._pairs[:: math.ceil(len(self._pairs) / _SAMPLED_MASKS) or 1]]
        for mask in masks:
            # A mask that cannot be read is named with its image.
            with contextlib.suppress(InputError):
                if holds_instances(mask):
                    return True
        return False

    def _matched_pairs(self, problems: Problems) -> list[Pair]:
        return match(self.images, self.masks, problems)

    def _split_of(self, pair: Pair) -> str | None:
        """The split that the data prescribe; None: splits are dealt out."""
        return None

    def _windows_of(self, pair: Pair, width: int, height: int) -> list[PixelWindow]:
        return windows(width, height, self.tile_size, self.overlap, self.edge)

    def _listed_pairs(self, problems: Problems) -> list[Pair]:
        """Images that the COCO file lists, by their file names without folders."""
        self._index = read_index(self.masks[0], problems)
        there = {path.name: path for path in self.images}
        pairs = []
        for record in self._index.images:
            path = there.pop(Path(record.name).name, None)
            if path is None:
                problems.add(
                    "labels without an image", f"{self.masks[0]}: lists {record.name}, which is not there."
                )
            else:
                pairs.append(Pair(path.stem, path, None, record))
        for path in there.values():
            problems.add(
                "images without labels", f"{path}: {self.masks[0].name} does not list it. It is left out."
            )
        stems = unique_stems([pair.image for pair in pairs])
        return [dataclasses.replace(pair, stem=stem) for pair, stem in zip(pairs, stems, strict=True)]

    def _open(self, pair: Pair) -> SceneReader:
        with open_raster(pair.image, allow_vrt=True) as source:
            placed = not source.transform.is_identity
            gsd_m = None if source.crs else self.gsd_m
        # A reader wants a pixel size; that of an image that is nowhere is not used.
        return SceneReader(
            pair.image, None, self.bands, nodata=self.nodata, gsd_m=gsd_m if placed else gsd_m or 1.0
        )

    def _check(self, pair: Pair, reader: SceneReader) -> None:
        """InputError where the labels do not lie on their image."""
        size, moved_px = (reader.width, reader.height), 0.0
        if pair.record is not None:
            other, name = (pair.record.width, pair.record.height), f"{self.masks[0].name} says"
        else:
            with open_raster(pair.mask, allow_vrt=True) as mask:
                other, name = (mask.width, mask.height), f"its mask {pair.mask} has"
                if not mask.transform.is_identity and not reader.transform.is_identity:
                    moved_px = math.hypot(*(~reader.transform * (mask.transform * (0, 0))))
        if size != other:
            raise InputError(
                f"{pair.image}: {size[0]} x {size[1]} px, but {name} {other[0]} x {other[1]} px."
            )
        if moved_px > 0.5:
            raise InputError(
                f"{pair.mask}: its georeference is {moved_px:.1f} px off that of its image {pair.image}. Which of the "
                "two is right? Where the pixels fit, remove it from the mask: gdal_edit.py -unsetgt MASK."
            )

    def make(self, place: Place, out: Path, problems: Problems) -> Made:
        """The tile in a window of an image."""
        pair = self._pairs[place.image]
        x0, y0, width, height = place.window
        with self._open(pair) as reader:
            part = None if self.cut else reader.in_file("optical", place.window)
            scene = None
            if part is None or not reader.has_no_gaps("optical"):
                scene = reader.read(place.window)
            valid = np.ones((height, width), bool) if scene is None else np.isfinite(scene.image).all(axis=0)
            if 1 - valid.mean() > self.max_nodata:
                return Made(None, {"tiles": Counter({"left out as no data": 1})})
            transform, placed = (
                reader.transform * Affine.translation(x0, y0),
                not reader.transform.is_identity,
            )
            if part is not None:
                rasters = {"file_name": link(out, f"rgb/{pair.stem}{pair.image.suffix}", pair.image)}
                rasters |= {"window": part.window, "indexes": part.indexes}
            else:
                rasters = {"file_name": f"rgb/{place.name}.tif"}
                dtype, nodata = reader.optical_format
                dtype = dtype if dtype in KEPT_DTYPES else "float32"
                grid = {"transform": transform, "crs": reader.crs}
                write_tile(out / rasters["file_name"], scene.image, dtype, nodata, self.bands.optical, **grid)
        known = placed or self.gsd_m
        labels = Counter()
        tile = Tile(
            width=width,
            height=height,
            gsd_m=reader.gsd_m if known else math.nan,
            crs=reader.crs,
            transform=tuple(transform)[:6] if placed else None,
            buildings=self._buildings(pair, place.window, valid, problems, labels),
            **rasters,
        )
        notes = reader.notes + (
            [] if known else ["the pixel size of images without a CRS is unknown: pass `gsd_m`."]
        )
        return Made(tile, {"labels": labels}, notes)

    def _buildings(
        self, pair: Pair, window, valid: np.ndarray, problems: Problems, labels: Counter
    ) -> list[Building]:
        if pair.record is not None:
            found = self._index.buildings(pair.record, problems, labels)
            return clip_labels(found, window, valid, self.min_area_px, labels)
        x0, y0, width, height = window
        numbers = read_numbers(pair.mask, window) if self._numbered else None
        if numbers is None or np.isin(numbers, (0, 255)).all():
            outlines = components(read_mask(pair.mask, window, self.threshold))
        else:
            outlines = instances(numbers)
        found = [Building(outline) for outline in outlines]
        with open_raster(pair.mask, allow_vrt=True) as mask:
            inner = (x0 > 0, y0 > 0, x0 + width < mask.width, y0 + height < mask.height)
        for building in found:
            a, b, c, d = building.polygon.bounds
            at_edge = np.array([a == 0, b == 0, c == width, d == height])
            labels["cut by a tile's edge"] += bool((at_edge & inner).any())
        return clip_labels(found, (0, 0, width, height), valid, self.min_area_px, labels)

    def finish(self, sample: Dataset, report: Report) -> None:
        """Say what instances are."""
        if not self.coco:
            report.notes.append(NUMBERED if self._numbered else TOUCHING)
        report.notes += self._edge_notes
        report.notes.append("heights are unknown: such data train and score outlines alone.")
        if not report.labels.get("kept"):
            report.notes.append("there is no building in any tile.")

    def info(self) -> dict:
        """What outlines are."""
        outlines = (
            f"of {self.masks[0].name}"
            if self.coco
            else f"of pixels; {NUMBERED if self._numbered else TOUCHING}"
        )
        return {"description": "images with masks of buildings", "outlines": outlines, "height_source": None}


def match(images: list[Path], masks: list[Path], problems: Problems) -> list[Pair]:
    """Images with their masks, told by their names: whole ones, else the parts in which the names of a list differ.

    Args:
        problems: gets those without a partner.

    Raises:
        InputError: names do not tell.
    """
    if len(images) == len(masks) == 1:
        return [Pair(unique_stems(images)[0], images[0], masks[0])]
    for files in (images, masks):
        stem, count = Counter(p.stem.lower() for p in files).most_common(1)[0]
        if count > 1:
            same = " and ".join(str(p) for p in files if p.stem.lower() == stem)
            raise InputError(
                f"{same} have one name, which does not tell what goes with what. Convert each folder by itself."
            )
    whole = ([p.stem.lower() for p in images], [p.stem.lower() for p in masks])
    ours, theirs = max(
        (whole, (distinct_parts(images), distinct_parts(masks))),
        key=lambda keys: len({*keys[0]} & {*keys[1]}),
    )
    if not {*ours} & {*theirs} or len({*theirs}) < len(theirs) or len({*ours}) < len(ours):
        raise InputError(
            f"which mask goes with which image cannot be told from their names, such as {images[0].name} and "
            f"{masks[0].name}. Name them alike, as in images/a1.tif and masks/a1.tif."
        )
    mask_of = dict(zip(theirs, masks, strict=True))
    pairs = []
    for key, image, stem in zip(ours, images, unique_stems(images), strict=True):
        if key in mask_of:
            pairs.append(Pair(stem, image, mask_of.pop(key)))
        else:
            problems.add(
                "images without labels", f"{image}: has no mask among {masks[0].parent} ... It is left out."
            )
    for mask in mask_of.values():
        problems.add("labels without an image", f"{mask}: has no image among {images[0].parent} ...")
    return pairs


# ---- The command -----------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    """Options of `prepare_dataset.py masks`."""
    for name, text in (
        ("images", "the images: files, folders, or patterns in quotes such as 'train/images/*.tif'"),
        ("masks", "their masks, paired by name; or one COCO file (crowdAI)"),
    ):
        parser.add_argument(f"--{name}", nargs="+", required=True, metavar="GLOB", help=text)
    parser.add_argument(
        "--threshold", type=float, metavar="V", help="of masks in shades: this value and above is a building"
    )
    parser.add_argument(
        "--gsd", dest="gsd_m", type=float, metavar="M", help="metres per pixel of images without a CRS"
    )
    parser.add_argument(
        "--nodata", type=float, metavar="V", help="number that means no data where an image declares none"
    )
    parser.add_argument(
        "--tile-size",
        type=int,
        default=512,
        metavar="PX",
        help="side of a tile, pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        default=0,
        metavar="PX",
        help="overlap of neighbouring tiles (default: %(default)s)",
    )
    parser.add_argument(
        "--edge",
        choices=EDGES,
        default="overlap",
        help="the last tiles of an image: overlap those before them, or crop them to what is left, so that ground is "
        "in one tile alone (default: %(default)s)",
    )
    parser.add_argument(
        "--min-area-px",
        type=float,
        default=0.0,
        metavar="PX",
        help="drop smaller instances, pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--max-nodata",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="leave out tiles with a larger share of no data (default: %(default)s)",
    )
    parser.add_argument(
        "--cut", action="store_true", help="copy the pixels; else the tiles refer to the images"
    )
    conversion.add_arguments(parser, skips=True)


def main(args) -> None:
    """Run `prepare_dataset.py masks`."""
    for name, value, low, high in (
        ("tile_size", args.tile_size, 32, 8192),
        ("overlap", args.overlap, 0, args.tile_size - 1),
        ("gsd_m", args.gsd_m, 0.01, 1000),
        ("max_nodata", args.max_nodata, 0, 1),
        ("min_area_px", args.min_area_px, 0, 1e9),
    ):
        if value is not None and not low <= value <= high:
            raise InputError(f"`{name}={value:g}`: expected {low:g} to {high:g}.")
    images, masks = expand(args.images, RASTERS, "images"), expand(args.masks, RASTERS, "masks")
    both = {*images} & {*masks}
    if both:
        raise InputError(f"{min(both)}: is among `images` and among `masks`. Say which files are masks.")
    names = ("nodata", "threshold", "tile_size", "overlap", "edge", "min_area_px", "max_nodata", "cut")
    options = {name: getattr(args, name) for name in names}
    source = MaskPairs(images, masks, _bands(images), gsd_m=args.gsd_m, **options)
    recipe = {"source": "masks", "gsd": args.gsd_m, **options, "images": images, "masks": masks}
    report = conversion.convert(source, args.out, conversion.options_from(args), recipe)
    reports.show(report, args.out)


def _bands(images: list[Path]) -> BandSpec:
    return BandSpec(("pan",)) if first_band_count(images)[1] < 3 else BandSpec()
