"""Your own rasters and footprints -> tiles with buildings: `tools/prepare_dataset.py tiles`.

Layout of the result: `OUT/annotations/<split>.json` beside `OUT/{rgb,sar,ndsm}/`. A tile is a window of its raster, to
which a link in that folder leads; nothing is copied. Tiles are written as files of their own where that is asked for
(`--cut`) or has to be: rasters on another grid than the optical one, height models that are a difference, VRT. Written
RGB tiles keep the file's numbers, written SAR tiles the scale that the data set says (NaN = no data).
"""

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet import cli
from fusiondet.buildings import SensorGeometry
from fusiondet.converters import conversion, reports
from fusiondet.converters.conversion import Options, convert
from fusiondet.converters.cutting import EDGES, Image, Mosaic
from fusiondet.converters.merging import merge_layers
from fusiondet.converters.pairing import group_by_band, pair, pair_by_name, unique_stems
from fusiondet.converters.reports import Report
from fusiondet.converters.zonal_heights import statistic
from fusiondet.errors import InputError
from fusiondet.io import threedbag
from fusiondet.io.bands import LINEAR_SCALES, SAR_SCALES, BandSpec, band_number, sar_members
from fusiondet.io.building_parts import PARTS_INSIDE
from fusiondet.io.rasters import open_raster
from fusiondet.io.threedbag_filters import CHECKS, Filters, parse_filters
from fusiondet.io.units import HEIGHT_UNITS
from fusiondet.io.vectors import INSIDE, Layer, check_crs, read_layer, settle_parts


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
    height_unit: str | None = None
    statistic: str = threedbag.DEFAULT_STATISTIC
    height_stat: str | None = None
    height_datum: str | None = None
    outline: str = "footprint"
    join_parts: bool = False
    parts_inside: str = "keep"
    filter: list[str] = field(default_factory=list)
    image_year: int | None = None
    max_years_apart: int | None = None
    max_empty_share: float = 0.5
    ndsm: list[Path] = field(default_factory=list)
    dsm: list[Path] = field(default_factory=list)
    dtm: list[Path] = field(default_factory=list)
    zonal: str = "median"
    rgb_names: list[str] | None = None
    rgb_bands: list[int] | None = None
    sar_names: list[str] = field(default_factory=list)
    sar_bands: list[int] | None = None
    sar_scale: str | None = None
    sar_factor: float | None = None
    nodata: float | None = None
    gsd: float | None = None
    tile_size: int = 512
    overlap: int = 0
    edge: str = "overlap"
    max_nodata: float = 0.95
    min_area_m2: float = 2.0
    cut: bool = False
    sensor: SensorGeometry = field(default_factory=SensorGeometry)


_LIMITS = {"gsd": (0.01, 1000), "max_nodata": (0, 1), "min_area_m2": (0, 1e6)}
_FILES = {"type": Path, "nargs": "+", "default": [], "metavar": "FILE"}
_COUNT = {"type": int, "metavar": "PX"}
_NUMBERS = {"type": int, "nargs": "+", "metavar": "N"}
_MEANS = {"type": band_number, "nargs": "+", "metavar": "N"}
_NAME = {"metavar": "NAME"}
# Option -> (help, arguments of add_argument). Recipe has the same names, and the defaults.
_OPTIONS = {
    "rgb": (
        "optical rasters (GeoTIFF, JPEG 2000, PNG, JPEG, VRT); none for a SAR-only set. One file a band where "
        "their names hold --rgb-names: B4.tif B3.tif B2.tif",
        _FILES,
    ),
    "sar": (
        "SAR rasters: one for all images, or one for each, paired by name, else by order. One file a "
        "polarisation where their names hold --sar-names: s1_VV.tif s1_VH.tif",
        _FILES,
    ),
    "footprints": ("building layers: one for all images, or one for each", {**_FILES, "required": True}),
    "footprints_crs": (
        "CRS of the footprints, whatever the files say; default: what they say",
        {"metavar": "CRS"},
    ),
    "layer": ("layer of a file with several; of 3DBAG's by default pand, with the roofs of lod12_2d", _NAME),
    "height_field": ("column of heights; default: 3DBAG's, where the file has them", _NAME),
    "ground_field": ("column of ground elevations to subtract", _NAME),
    "height_unit": (
        "of these columns and of rasters of heights; default: what a column's name, a band's unit or the vertical axis "
        "of the CRS states, else metres, unless coordinates are in feet",
        {"choices": tuple(HEIGHT_UNITS)},
    ),
    "statistic": ("which of 3DBAG's roof statistics", {"choices": threedbag.STATISTICS}),
    "height_stat": ("what the height field is, e.g. median, p70, max; recorded", {"metavar": "TEXT"}),
    "height_datum": (
        "what a height field without a ground field is measured from; default: unverified",
        {"choices": ("ground", "unverified")},
    ),
    "outline": ("what the outlines follow", {"choices": ("footprint", "roof")}),
    "join_parts": (
        "make one building of the rows with one identifier, their heights weighted by area",
        {"action": "store_true"},
    ),
    "parts_inside": (
        "what to do with outlines that lie inside another one, such as OpenStreetMap's building:part (they are counted "
        "anyway): keep them as buildings, drop them, or drop them and give their heights to the building around them",
        {"choices": PARTS_INSIDE},
    ),
    "filter": (
        "what to do with buildings that 3DBAG says something against (they are counted anyway): keep, unknown (the "
        f"height) or drop; NAME is {', '.join(CHECKS)}",
        {"nargs": "+", "default": [], "metavar": "NAME=ACTION"},
    ),
    "image_year": (
        "of the images: buildings of a later year of construction are dropped",
        {"type": int, "metavar": "YEAR"},
    ),
    "max_years_apart": (
        "heights measured more years from --image-year are unknown",
        {"type": int, "metavar": "N"},
    ),
    "max_empty_share": (
        "share of an outline without laser points from which on it counts as sparse",
        {"type": float, "metavar": "SHARE"},
    ),
    "ndsm": (
        "rasters of heights above ground, metres; they win over a height field and are compared with it",
        _FILES,
    ),
    "dsm": ("surface elevations, metres; with --dtm", _FILES),
    "dtm": ("ground elevations, metres", _FILES),
    "zonal": ("median, mean, min, max or pNN of the height raster's pixels inside", {"metavar": "STAT"}),
    "rgb_names": ("names of the optical bands; default: red green blue, or pan", {"nargs": "+", **_NAME}),
    "rgb_bands": ("their numbers in the files, from 1; default: by name or colour", _NUMBERS),
    "sar_names": (
        "polarisations, e.g. HH HV, or the mean power of several, HH+HV; needed with --sar",
        {"nargs": "+", "metavar": "POL"},
    ),
    "sar_bands": (
        "their numbers in the files, from 1, 1+4 for the mean power of two; default: by name",
        _MEANS,
    ),
    "sar_scale": ("what the SAR files hold; needed with --sar", {"choices": SAR_SCALES}),
    "sar_factor": (
        "calibration: amplitudes and complex numbers are multiplied by it; default: what the file states, else 1",
        {"type": float, "metavar": "F"},
    ),
    "nodata": (
        "number that means no data where a file declares none, e.g. 0 for a black border",
        {"type": float},
    ),
    "gsd": ("resample to this many metres per pixel", {"type": float, "metavar": "M"}),
    "tile_size": ("side of a tile, pixels", _COUNT),
    "overlap": ("overlap of neighbouring tiles, pixels", _COUNT),
    "edge": (
        "the last tiles of an image: overlap those before them, or crop them to what is left, so that ground is in one "
        "tile alone",
        {"choices": EDGES},
    ),
    "max_nodata": ("leave out tiles with a larger share of no data", {"type": float, "metavar": "SHARE"}),
    "min_area_m2": ("drop smaller buildings and clippings", {"type": float, "metavar": "M2"}),
    "cut": ("copy the pixels of every tile, instead of referring to the rasters", {"action": "store_true"}),
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
    conversion.add_arguments(parser)
    defaults = vars(Recipe())
    for name, (text, arguments) in _OPTIONS.items():
        default = defaults[name]
        shown = f" (default: {default})" if default not in (None, [], False) else ""
        parser.add_argument(
            f"--{name.replace('_', '-')}", help=text + shown, **{"default": default, **arguments}
        )
    for name, text in _ANGLES.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, metavar="DEG", help=f"{text} (default: unknown)"
        )


def main(args) -> None:
    """Run `prepare_dataset.py tiles`."""
    sensor = SensorGeometry(**{f"{name}_deg": getattr(args, name) for name in _ANGLES})
    recipe = Recipe(**{name: getattr(args, name) for name in _OPTIONS}, sensor=sensor)
    reports.show(make_tiles(recipe, args.out, conversion.options_from(args)), args.out)


def make_tiles(recipe: Recipe, out: Path, options: Options | None = None) -> Report:
    """Make a data set at `out` of the recipe's rasters and footprints, whole or not at all.

    Raises:
        InputError: an option contradicts another or a file; an image cannot be used (all of them are named), unless
            `skip_invalid`; a height raster holds no heights (see `check_height_labels`); no tile is left, or none of
            the footprints lies on the images; or what `convert` refuses.
    """
    options = options or Options()
    _check(recipe)
    options = dataclasses.replace(options, min_side_px=recipe.tile_size // 2)
    return convert(_mosaic(recipe), out, options, {"source": "tiles", **vars(recipe)})


def _check(recipe: Recipe) -> None:
    if not recipe.rgb and not recipe.sar:
        raise InputError("no image: pass `rgb`, `sar` or both.")
    if not 32 <= recipe.tile_size <= 8192:
        raise InputError(f"`tile_size={recipe.tile_size}`: expected 32 to 8192 pixels.")
    if not 0 <= recipe.overlap < recipe.tile_size:
        raise InputError(
            f"`overlap={recipe.overlap}`: expected 0 up to less than the tile size, {recipe.tile_size}."
        )
    if recipe.sar and not (recipe.sar_scale and recipe.sar_names):
        raise InputError(
            f"`sar` needs `sar_names` (e.g. HH) and `sar_scale` ({', '.join(SAR_SCALES)}): what the numbers mean "
            "cannot be told from the file."
        )
    for name, value in recipe.sensor.to_dict().items():
        low, high = (-360, 360) if name in SensorGeometry.AZIMUTHS else (0, 90)
        if value is not None and not low <= value <= high:
            raise InputError(f"{name} is {value}, expected degrees from {low} to {high}.")
    for name, (low, high) in _LIMITS.items():
        value = getattr(recipe, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"`{name}={value}`: expected {low:g} to {high:g}.")
    if recipe.nodata is not None and not math.isfinite(recipe.nodata):
        raise InputError(
            f"`nodata={recipe.nodata}`: expected a finite number; NaN and inf are no data anyway."
        )
    if recipe.footprints_crs is not None:
        check_crs(recipe.footprints_crs, "footprints_crs")
    if bool(recipe.dsm) != bool(recipe.dtm) or (recipe.ndsm and recipe.dsm):
        raise InputError("heights come either from `ndsm`, or from `dsm` and `dtm` together.")
    statistic(recipe.zonal)
    _filters(recipe)


def _bands(recipe: Recipe) -> BandSpec:
    """What the data set's rasters hold: SAR in dB where the tiles are written, else in the scale of the files."""
    names = recipe.rgb_names
    if recipe.rgb and names is None:
        if recipe.rgb_bands and len(recipe.rgb_bands) not in (1, 3):
            raise InputError(
                f"`rgb_bands` names {len(recipe.rgb_bands)} bands: say what they are with `rgb_names`."
            )
        count = len(recipe.rgb_bands) if recipe.rgb_bands else _band_count(recipe.rgb[0])
        names = ["pan"] if count == 1 else ["red", "green", "blue"]
    scale = recipe.sar_scale if recipe.sar else ""
    if scale == "complex" or (recipe.cut and scale in LINEAR_SCALES):
        scale = "db"
    return BandSpec(names if recipe.rgb else (), recipe.sar_names if recipe.sar else (), scale)


def _band_count(path: Path) -> int:
    try:
        with open_raster(path, allow_vrt=True) as source:
            return source.count
    except InputError:  # reported with the other bad images
        return 3


def _filters(recipe: Recipe) -> Filters:
    return Filters(
        parse_filters(recipe.filter), recipe.image_year, recipe.max_years_apart, recipe.max_empty_share
    )


def _mosaic(recipe: Recipe) -> Mosaic:
    """The source of the recipe: its files paired, its labels read."""
    notes: list[str] = []
    optical = group_by_band(recipe.rgb, recipe.rgb_names or ())
    polarisations = dict.fromkeys(p for name in recipe.sar_names for p in sar_members(name))
    radar = group_by_band(recipe.sar, tuple(polarisations))
    groups = optical or radar
    base = [files[0] for files in groups]
    sar = [None] * len(base)
    if optical and radar:
        partner = pair(base, [files[0] for files in radar], "SAR raster", notes)
        sar = [next(files for files in radar if files[0] == first) for first in partner]
    heights = [pair(base, files, "height raster", notes) for files in (recipe.ndsm, recipe.dsm, recipe.dtm)]
    footprints = recipe.footprints
    chosen = pair_by_name(base, footprints) if len(footprints) == len(base) > 1 else None
    layers = [_read_layer(recipe, path) for path in cli.progress(footprints, label="footprints", unit="file")]
    counts, checks = _footprint_counts(layers), sum((layer.checks for layer in layers), Counter())
    if chosen is None and len(footprints) > 1:
        notes.append(f"{len(footprints)} footprint files taken as one layer for all images.")
        layers = [merge_layers(layers)]
        counts |= {key: n for key, n in layers[0].counts.items() if n}
    layers = [settle_parts(layer, recipe.parts_inside) for layer in layers]
    for name in (INSIDE, f"dropped: {INSIDE}"):
        counts[name] = sum(layer.counts[name] for layer in layers)
    counts = +counts
    notes += dict.fromkeys(note for layer in layers for note in layer.notes)
    images = [
        Image(
            stem,
            files if recipe.rgb else [],
            (sar[i] or []) if recipe.rgb else files,
            footprints.index(chosen[i]) if chosen else 0,
            {"ndsm": heights[0][i], "dsm": heights[1][i], "dtm": heights[2][i]},
        )
        for i, (files, stem) in enumerate(zip(groups, unique_stems(base), strict=True))
    ]
    scene = {name: getattr(recipe, name) for name in ("rgb_bands", "sar_bands", "sar_scale", "sar_factor")}
    return Mosaic(
        images,
        layers,
        _bands(recipe),
        recipe.nodata,
        footprints,
        {**scene, "target_gsd_m": recipe.gsd},
        notes=notes,
        footprint_counts=counts,
        footprint_checks=+checks,
        # Labels are counted tile by tile, a building in several tiles as often; these are the buildings.
        footprint_reasons=sum((layer.reasons for layer in layers), Counter()),
        facts={
            "description": f"tiles of {len(base)} images",
            "image_files": [p.name for p in base],
            "footprint_files": [p.name for p in footprints],
        },
        **{
            name: getattr(recipe, name)
            for name in (
                "zonal",
                "height_unit",
                "tile_size",
                "overlap",
                "edge",
                "max_nodata",
                "min_area_m2",
                "sensor",
                "cut",
            )
        },
    )


def _footprint_counts(layers: list[Layer]) -> Counter:
    """What the files hold: how many footprints were read, and what happened to their outlines."""
    counts = sum((layer.geometry + layer.counts for layer in layers), Counter())
    gone = (
        "no geometry",
        "no area",
        "sides that cross too often",
        "rows joined to others",
        *(c for c in counts if c.startswith("dropped: ")),
    )
    read = sum(len(layer.buildings) for layer in layers) + sum(counts[name] for name in gone)
    return Counter({"read": read}) + counts


def _read_layer(recipe: Recipe, path: Path) -> Layer:
    options = ("layer", "height_unit", "statistic", "height_stat", "height_datum", "outline", "join_parts")
    return read_layer(
        path,
        recipe.height_field,
        recipe.ground_field,
        filters=_filters(recipe),
        crs=recipe.footprints_crs,
        **{name: getattr(recipe, name) for name in options},
    )
