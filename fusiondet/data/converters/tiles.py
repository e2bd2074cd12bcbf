"""Your own rasters and footprints -> tiles with buildings: `tools/prepare_dataset.py tiles`.

Layout of the result: `OUT/annotations/<split>.json` beside `OUT/{rgb,sar,ndsm}/*.tif`. RGB tiles keep the file's
numbers; SAR tiles are dB (float32, NaN = no data), or uint8 when the input was display-stretched.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet import cli
from fusiondet.buildings import SensorGeometry
from fusiondet.data.bands import SAR_SCALES, BandSpec
from fusiondet.data.coco import Dataset, write_coco
from fusiondet.data.converters import threedbag
from fusiondet.data.converters.cutting import CutTile, Source, clear_of, windows
from fusiondet.data.converters.heights import statistic
from fusiondet.data.converters.splits import assign_blocks, conflicts, leaked_area, parse_split
from fusiondet.data.converters.vectors import Layer, check_crs, read_layer
from fusiondet.data.imagery import metric_crs, open_raster
from fusiondet.data.labels import check_height_labels
from fusiondet.errors import InputError
from fusiondet.files import atomic_dir, require_new_dir

import numpy as np
import shapely
from pyproj import Transformer


@dataclass
class Recipe:
    """What `make_tiles` is asked for; the command line's options in the same words (see `add_arguments`)."""

    rgb: list[Path] = field(default_factory=list)
    sar: list[Path] = field(default_factory=list)
    footprints: list[Path] = field(default_factory=list)
    footprints_crs: str | None = None
    layer: str | None = None
    height_field: str | None = None
    ground_field: str | None = None
    statistic: str = threedbag.DEFAULT_STATISTIC
    height_stat: str | None = None
    height_datum: str | None = None
    outline: str = "footprint"
    ndsm: list[Path] = field(default_factory=list)
    dsm: list[Path] = field(default_factory=list)
    dtm: list[Path] = field(default_factory=list)
    zonal: str = "median"
    rgb_names: list[str] | None = None
    rgb_bands: list[int] | None = None
    sar_names: list[str] = field(default_factory=list)
    sar_bands: list[int] | None = None
    sar_scale: str | None = None
    nodata: float | None = None
    gsd: float | None = None
    tile_size: int = 512
    overlap: int = 0
    max_nodata: float = 0.95
    min_area_m2: float = 2.0
    split: list[str] | None = None
    block_m: float | None = None
    seed: int = 0
    sensor: SensorGeometry = field(default_factory=SensorGeometry)
    skip_invalid: bool = False


@dataclass
class Report:
    """What happened, for the user and for `info` of the written files. Counters: what -> how many."""

    images: int = 0
    footprints: int = 0
    geometry: Counter = field(default_factory=Counter)
    tiles: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    heights: Counter = field(default_factory=Counter)
    unknown_heights: Counter = field(default_factory=Counter)
    splits: dict[str, dict] = field(default_factory=dict)
    leaked_m2: float = 0.0
    compared: str | None = None
    notes: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as text."""
        return [
            f"{self.images} images, {self.footprints} footprints"
            + (f" ({_text(self.geometry)})" if self.geometry else ""),
            f"tiles: {_text(self.tiles)}",
            f"labels: {_text(self.labels)}",
            f"heights: {_text(self.heights)}",
            *(
                [f"unknown heights of footprints: {_text(self.unknown_heights)}"]
                if self.unknown_heights
                else []
            ),
            *([self.compared] if self.compared else []),
            *(f"{name}: {_text(counts)}" for name, counts in self.splits.items()),
            f"ground in two splits: {self.leaked_m2:.1f} m2",
            *(f"note: {note}" for note in self.notes),
            *(f"skipped: {message}" for message in self.invalid),
        ]


def _text(counts) -> str:
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "none"


_LIMITS = {"gsd": (0.01, 1000), "max_nodata": (0, 1), "min_area_m2": (0, 1e6), "block_m": (1, 1e7)}
_FILES = {"type": Path, "nargs": "+", "default": [], "metavar": "FILE"}
_COUNT = {"type": int, "metavar": "PX"}
_NUMBERS = {"type": int, "nargs": "+", "metavar": "N"}
_NAME = {"metavar": "NAME"}
# Option -> (help, arguments of add_argument). Recipe has the same names, and the defaults.
_OPTIONS = {
    "rgb": ("optical rasters (GeoTIFF, JPEG 2000, PNG, JPEG, VRT); none for a SAR-only set", _FILES),
    "sar": ("SAR rasters: one for all images, or one for each, paired by name, else by order", _FILES),
    "footprints": ("building layers: one for all images, or one for each", {**_FILES, "required": True}),
    "footprints_crs": ("CRS of footprints that name none", {"metavar": "CRS"}),
    "layer": ("layer of a file with several", _NAME),
    "height_field": ("column of heights, metres; default: 3DBAG's, where the file has them", _NAME),
    "ground_field": ("column of ground elevations to subtract, metres", _NAME),
    "statistic": ("which of 3DBAG's roof statistics", {"choices": threedbag.STATISTICS}),
    "height_stat": ("what the height field is, e.g. median, p70, max; recorded", {"metavar": "TEXT"}),
    "height_datum": (
        "what a height field without a ground field is measured from; default: unverified",
        {"choices": ("ground", "unverified")},
    ),
    "outline": ("what the outlines follow", {"choices": ("footprint", "roof")}),
    "ndsm": (
        "rasters of heights above ground, metres; they win over a height field and are compared with it",
        _FILES,
    ),
    "dsm": ("surface elevations, metres; with --dtm", _FILES),
    "dtm": ("ground elevations, metres", _FILES),
    "zonal": ("median, mean, min, max or pNN of the height raster's pixels inside", {"metavar": "STAT"}),
    "rgb_names": ("names of the optical bands; default: red green blue, or pan", {"nargs": "+", **_NAME}),
    "rgb_bands": ("their numbers in the files, from 1; default: by name or colour", _NUMBERS),
    "sar_names": ("polarisations, e.g. HH HV; needed with --sar", {"nargs": "+", "metavar": "POL"}),
    "sar_bands": ("their numbers in the files, from 1; default: by name", _NUMBERS),
    "sar_scale": ("what the SAR files hold; needed with --sar", {"choices": SAR_SCALES}),
    "nodata": (
        "number that means no data where a file declares none, e.g. 0 for a black border",
        {"type": float},
    ),
    "gsd": ("resample to this many metres per pixel", {"type": float, "metavar": "M"}),
    "tile_size": ("side of a tile, pixels", _COUNT),
    "overlap": ("overlap of neighbouring tiles, pixels", _COUNT),
    "max_nodata": ("leave out tiles with a larger share of no data", {"type": float, "metavar": "SHARE"}),
    "min_area_m2": ("drop smaller buildings and clippings", {"type": float, "metavar": "M2"}),
    "split": ("e.g. train=80 val=10 test=10; default: train=1", {"nargs": "+", "metavar": "NAME=SHARE"}),
    "block_m": (
        "side of the blocks of ground that are split; default: up to 4 tiles",
        {"type": float, "metavar": "M"},
    ),
}
_ANGLES = {
    "sun_azimuth": "direction to the sun, clockwise from grid north",
    "sun_elevation": "of the sun above the horizon",
    "sar_look_azimuth": "direction the antenna looks (sensor to ground), clockwise from grid north",
    "sar_incidence": "of the radar from the vertical at the ground",
    "view_azimuth": "direction from the ground to the optical sensor, clockwise from grid north",
    "view_off_nadir": "of the optical sensor from the vertical",
}


def add_arguments(parser) -> None:
    """Options of `prepare_dataset.py tiles`."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    defaults = vars(Recipe())
    for name, (text, arguments) in _OPTIONS.items():
        default = defaults[name]
        shown = f" (default: {default})" if default not in (None, []) else ""
        parser.add_argument(_flag(name), help=text + shown, **{"default": default, **arguments})
    for name, text in _ANGLES.items():
        parser.add_argument(_flag(name), type=float, metavar="DEG", help=f"{text} (default: unknown)")
    parser.add_argument(
        "--skip-invalid", action="store_true", help="leave out unusable images, and name them"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    cli.seed_argument(parser)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def main(args) -> None:
    """Run `prepare_dataset.py tiles`."""
    options = {name: getattr(args, name) for name in (*_OPTIONS, "skip_invalid", "seed")}
    sensor = SensorGeometry(**{f"{name}_deg": getattr(args, name) for name in _ANGLES})
    report = make_tiles(Recipe(**options, sensor=sensor), args.out, args.overwrite)
    print("\n".join(report.lines()))
    print(f"wrote {args.out}: {', '.join(f'annotations/{name}.json' for name in report.splits)}")


def make_tiles(recipe: Recipe, out: Path, overwrite: bool = False) -> Report:
    """Cut the recipe's rasters and footprints into a dataset at `out`, whole or not at all.

    Raises:
        InputError: an option contradicts another or a file; an image cannot be used (all of them are named), unless
            `skip_invalid`; a height raster holds no heights (see `check_height_labels`); no tile is left, or none of
            the footprints lies on the images; or `out` exists and `overwrite` is false.
    """
    out = require_new_dir(out, "annotations", overwrite)
    _check(recipe)
    shares = parse_split(recipe.split)
    report = Report()
    bands = _bands(recipe)
    sources = _sources(recipe, report)
    grid = functools.partial(windows, size=recipe.tile_size, overlap=recipe.overlap)
    with atomic_dir(out) as folder:
        cut: list[CutTile] = []
        for source in cli.progress(sources, label="tiles", unit="image"):
            try:
                cut += source.cut(folder, bands, grid)
                report.images += 1
            except InputError as error:
                report.invalid.append(str(error))
        _refuse_invalid(recipe, report, len(sources))
        if not cut:
            raise InputError(f"no tile is left of {len(sources)} images: all is no data. See --max-nodata.")
        splits = _split(cut, shares, recipe, bands, folder, report)
        _count(splits, sources, report)
        report.notes += _check_heights(splits, bands, recipe, folder)
        for name, tiles in splits.items():
            dataset = Dataset([c.tile for c in tiles], bands, _info(recipe, report, name), recipe.nodata)
            write_coco(dataset, folder / "annotations" / f"{name}.json")
    return report


def _check_heights(
    splits: dict[str, list[CutTile]], bands: BandSpec, recipe: Recipe, folder: Path
) -> list[str]:
    """What there is to say about the height rasters of the tiles.

    InputError where they hold elevations, say, which would go for heights from here on.
    """
    files = ", ".join(path.name for path in (*recipe.ndsm, *recipe.dsm, *recipe.dtm))
    tiles = [c.tile for cut in splits.values() for c in cut]
    try:
        return check_height_labels({files: Dataset(tiles, bands, root=folder)} if files else {}, "ndsm")
    except InputError as error:
        raise InputError(f"{files}: {str(error).replace(f'{folder.resolve()}/', 'tile ')}") from None


def _refuse_invalid(recipe: Recipe, report: Report, total: int) -> None:
    if report.invalid and not recipe.skip_invalid:
        if total == 1:
            raise InputError(report.invalid[0])
        bad = "\n  ".join(report.invalid)
        raise InputError(
            f"{len(report.invalid)} of {total} images cannot be used (see --skip-invalid):\n  {bad}"
        )


def _check(recipe: Recipe) -> None:
    if not recipe.rgb and not recipe.sar:
        raise InputError("no image: pass --rgb, --sar or both.")
    if not 32 <= recipe.tile_size <= 8192:
        raise InputError(f"--tile-size {recipe.tile_size}: expected 32 to 8192 pixels.")
    if not 0 <= recipe.overlap < recipe.tile_size:
        raise InputError(
            f"--overlap {recipe.overlap}: expected 0 up to less than the tile size, {recipe.tile_size}."
        )
    if recipe.sar and not (recipe.sar_scale and recipe.sar_names):
        raise InputError(
            "--sar needs --sar-names (e.g. HH) and --sar-scale (linear_power, amplitude, db or stretched_uint8): what "
            "the numbers mean cannot be told from the file."
        )
    for name, value in recipe.sensor.to_dict().items():
        low, high = (-360, 360) if name in SensorGeometry.AZIMUTHS else (0, 90)
        if value is not None and not low <= value <= high:
            raise InputError(f"{name} is {value}, expected degrees from {low} to {high}.")
    for name, (low, high) in _LIMITS.items():
        value = getattr(recipe, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"{_flag(name)} {value}: expected {low:g} to {high:g}.")
    if recipe.nodata is not None and not math.isfinite(recipe.nodata):
        raise InputError(
            f"--nodata {recipe.nodata}: expected a finite number; NaN and inf are no data anyway."
        )
    if recipe.footprints_crs is not None:
        check_crs(recipe.footprints_crs, "--footprints-crs")
    if bool(recipe.dsm) != bool(recipe.dtm) or (recipe.ndsm and recipe.dsm):
        raise InputError("heights come either from --ndsm, or from --dsm and --dtm together.")
    statistic(recipe.zonal)


def _bands(recipe: Recipe) -> BandSpec:
    """What the written tiles hold."""
    names = recipe.rgb_names
    if recipe.rgb and names is None:
        if recipe.rgb_bands and len(recipe.rgb_bands) not in (1, 3):
            raise InputError(
                f"--rgb-bands names {len(recipe.rgb_bands)} bands: say what they are with --rgb-names."
            )
        count = len(recipe.rgb_bands) if recipe.rgb_bands else _band_count(recipe.rgb[0])
        names = ["pan"] if count == 1 else ["red", "green", "blue"]
    sar = recipe.sar_names if recipe.sar else []
    scale = "stretched_uint8" if recipe.sar_scale == "stretched_uint8" else "db"
    return BandSpec(names if recipe.rgb else (), sar, scale if sar else "")


def _band_count(path: Path) -> int:
    try:
        with open_raster(path, allow_vrt=True) as source:
            return source.count
    except InputError:  # reported with the other bad images
        return 3


def _sources(recipe: Recipe, report: Report) -> list[Source]:
    """One source per image, its files found and its labels read once."""
    base = recipe.rgb or recipe.sar
    sar = _pair(base, recipe.sar, "SAR raster", report) if recipe.rgb else [None] * len(base)
    heights = [_pair(base, files, "height raster", report) for files in (recipe.ndsm, recipe.dsm, recipe.dtm)]
    footprints = recipe.footprints
    if len(footprints) == len(base) > 1 and _by_name(base, footprints):
        chosen = _by_name(base, footprints)
    else:
        chosen = [None] * len(base)
        if len(footprints) > 1:
            report.notes.append(f"{len(footprints)} footprint files taken as one layer for all images.")
    layers = {
        path: _read_layer(recipe, path, report)
        for path in cli.progress(footprints, label="footprints", unit="file")
    }
    stems = _unique_stems(base)
    options = {name: getattr(recipe, name) for name in ("rgb_bands", "sar_bands", "sar_scale", "nodata")}
    options["target_gsd_m"] = recipe.gsd
    return [
        Source(
            stem,
            rgb if recipe.rgb else None,
            sar[i] if recipe.rgb else rgb,
            [layers[chosen[i]]] if chosen[i] else list(layers.values()),
            {"ndsm": heights[0][i], "dsm": heights[1][i], "dtm": heights[2][i]},
            recipe.zonal,
            options,
            recipe.max_nodata,
            recipe.min_area_m2,
            recipe.sensor,
        )
        for i, (rgb, stem) in enumerate(zip(base, stems, strict=True))
    ]


def _read_layer(recipe: Recipe, path: Path, report: Report) -> Layer:
    options = ("layer", "statistic", "height_stat", "height_datum", "outline")
    layer = read_layer(
        path, recipe.height_field, recipe.ground_field, **{name: getattr(recipe, name) for name in options}
    )
    report.footprints += len(layer.buildings) + layer.geometry["no geometry"] + layer.geometry["no area"]
    report.geometry += layer.geometry
    if not (recipe.ndsm or recipe.dsm):
        report.unknown_heights += layer.reasons
    return layer if layer.crs else dataclasses.replace(layer, crs=recipe.footprints_crs)


def _pair(base: list[Path], others: list[Path], kind: str, report: Report) -> list[Path | None]:
    """The one of `others` that goes with each of `base`: the only one, else by name, else by order."""
    if not others:
        return [None] * len(base)
    if len(others) == 1:
        return others * len(base)
    if len(others) != len(base):
        raise InputError(f"{len(others)} {kind}s for {len(base)} images: pass one for all, or one for each.")
    named = _by_name(base, others)
    if named is None:
        report.notes.append(
            f"{kind}s are paired with the images in the order given: their names do not tell."
        )
    return named or others


def _by_name(base: list[Path], others: list[Path]) -> list[Path] | None:
    """Each of `base`'s partner among `others`, by the parts of the names in which the files of a list differ."""
    ours, theirs = _distinct_parts(base), _distinct_parts(others)
    if len(set(theirs)) != len(theirs) or set(ours) != set(theirs):
        return None
    return [others[theirs.index(key)] for key in ours]


def _distinct_parts(paths: list[Path]) -> list[frozenset[str]]:
    parts = [frozenset(re.split(r"[^0-9A-Za-z]+", p.stem.lower())) for p in paths]
    common = frozenset.intersection(*parts)
    return [p - common for p in parts]


def _unique_stems(paths: list[Path]) -> list[str]:
    stems = [re.sub(r"[^0-9A-Za-z._-]", "_", p.stem) for p in paths]
    return stems if len(set(stems)) == len(stems) else [f"{i:04d}_{stem}" for i, stem in enumerate(stems)]


def _split(
    cut: list[CutTile], shares, recipe: Recipe, bands, folder: Path, report: Report
) -> dict[str, list[CutTile]]:
    """Split -> tiles. Tiles that reach into another split's ground are cut back, or left out when little would stay."""
    crs = None if cut[0].tile.crs is None else metric_crs(cut[0].tile.crs, *cut[0].ground.centroid.coords[0])
    grounds = np.array([_moved(c, crs) for c in cut])
    x0, y0, x1, y1 = shapely.bounds(grounds).T
    split = assign_blocks(
        grounds, shares, float(np.median(np.maximum(x1 - x0, y1 - y0))), recipe.block_m, recipe.seed
    )
    for index, others in conflicts(grounds, split).items():
        tile = cut[index]
        _remove(tile, folder)
        others = [_moved(cut[o], tile.tile.crs) for o in others]
        window = clear_of(tile, others, recipe.tile_size // 2)
        smaller = tile.source.cut(folder, bands, [window]) if window else []
        if smaller:
            cut[index], grounds[index] = smaller[0], _moved(smaller[0], crs)
            report.tiles["cut back at another split"] += 1
        else:
            split[index] = -1
            report.tiles["left out at another split"] += 1
    report.leaked_m2 = leaked_area(grounds, split)
    chosen = {name: [c for c, s in zip(cut, split, strict=True) if s == i] for i, name in enumerate(shares)}
    empty = [name for name, tiles in chosen.items() if not tiles]
    if empty:
        raise InputError(
            f"split {empty[0]!r} gets no tile ({len(cut)} tiles in all). Use fewer splits, smaller tiles, less "
            "--overlap or another --block-m."
        )
    return chosen


def _moved(tile: CutTile, crs: str | None):
    if crs is None or tile.tile.crs is None or tile.tile.crs == crs:
        return tile.ground
    convert = _transformer(tile.tile.crs, crs)
    return shapely.transform(tile.ground, convert.transform, interleaved=False)


@functools.lru_cache(maxsize=32)
def _transformer(crs: str, to_crs: str) -> Transformer:
    return Transformer.from_crs(crs, to_crs, always_xy=True)


def _remove(tile: CutTile, folder: Path) -> None:
    for name in (tile.tile.file_name, tile.tile.sar_file_name, tile.tile.ndsm_file_name):
        if name is not None:
            (folder / name).unlink()


def _count(splits: dict[str, list[CutTile]], sources: list[Source], report: Report) -> None:
    for name, cut in splits.items():
        buildings = [b for c in cut for b in c.tile.buildings]
        known = sum(b.height_m is not None for b in buildings)
        report.splits[name] = {"tiles": len(cut), "buildings": len(buildings), "known heights": known}
        report.tiles["written"] += len(cut)
        report.tiles["without buildings"] += sum(not c.tile.buildings for c in cut)
        for c in cut:
            report.labels += c.labels
            report.heights += c.heights
    report.tiles["left out as no data"] = sum(s.no_data for s in sources)
    report.unknown_heights += sum((s.reasons for s in sources), Counter())
    report.notes += dict.fromkeys(note for s in sources for note in s.notes)
    pairs = np.array([pair for s in sources for pair in s.comparison])
    if len(pairs):
        error = pairs[:, 0] - pairs[:, 1]
        report.compared = (
            f"height raster against the height field: n = {len(pairs)}, MAE {np.abs(error).mean():.2f} m, "
            f"bias {error.mean():+.2f} m"
        )
    if not report.footprints:
        report.notes.append("the footprints are empty: every tile is a negative.")
    elif not sum(report.labels.values()):
        raise InputError(
            f"none of {report.footprints} footprints lies on the images. Are the CRS of both right, and is it the same "
            "place?"
        )


def _info(recipe: Recipe, report: Report, split: str) -> dict:
    facts = {key: value for key, value in vars(report).items() if key != "invalid"}
    return {
        "description": f"tiles of {report.images} images, split {split!r}",
        "image_files": [p.name for p in (recipe.rgb or recipe.sar)],
        "footprint_files": [p.name for p in recipe.footprints],
        "tile_size_px": recipe.tile_size,
        "overlap_px": recipe.overlap,
        "min_area_m2": recipe.min_area_m2,
        "seed": recipe.seed,
        "skipped_images": len(report.invalid),
        **{key: dict(value) if isinstance(value, Counter) else value for key, value in facts.items()},
    }
