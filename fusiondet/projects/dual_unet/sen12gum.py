"""SEN12 Global Urban Mapping -> tiles of built-up areas: `tools/prepare_dataset.py sen12gum`.

Data sheet. Patches of 10 m, 256 x 256 px at most: mean Sentinel-1 images (VV, VH), median Sentinel-2 images (10
bands), and where buildings are (Hafner, Ban & Nascetti 2022, https://doi.org/10.5281/zenodo.6914898). 26 sites to train
on and 4 to validate in the United States, Canada and Australia, 60 places of SpaceNet 7 all over the world to test;
further sites have no labels.

- Layout, as the authors' training code reads it (github.com/SebastianHafner/DDA_UrbanExtraction):
  `SITE/samples.json` ({"samples": [{"patch_id": "0000000000-0000000256", "is_labeled": true, ...}, ...]}),
  `SITE/{sentinel1,sentinel2,buildings}/PRODUCT_SITE_PATCH.tif`; the places to test in `spacenet7/samples.json`
  ("aoi_id") and `spacenet7/{sentinel1,sentinel2,buildings}/PRODUCT_AOI.tif`. Which sites train and validate stands in
  that code. `sentinel1_features` and `sentinel2_features` in a samples.json name the bands, where they are there.
- Labels are a raster: a pixel is built-up where it is above 0 (`--threshold`); buildings burnt into pixels of 10 m, not
  single ones. Instances are the connected parts (over edges, not corners), with the exact outline of their pixels: maps
  of them are the raster, bit by bit, while scores of instances mean little. A pixel without a value is not built-up.
- Assumed, as it is not published with the data: Sentinel-1 numbers are 0 to 1 for -25 to 5 dB, as the authors' download
  code scales them (github.com/SebastianHafner/gee_download); they are written as decibels again. Where they are
  decibels as they are, `--sar-scale db`. Sentinel-2 numbers, reflectances there, are taken as they are.
- Licence: that of its page.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.buildings import Building, Tile
from fusiondet.converters import conversion, reports
from fusiondet.converters.cutting import clip_labels, write_tile
from fusiondet.converters.masks import components
from fusiondet.converters.reports import UNUSABLE, Problems, Report
from fusiondet.converters.source import Made, Place, link
from fusiondet.errors import InputError
from fusiondet.files import read_json, safe_join
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from fusiondet.io.crs import raster_crs_text
from fusiondet.io.grids import gsd_m_of
from fusiondet.io.rasters import open_raster
from fusiondet.io.tile_rasters import read_tile_image

import numpy as np
from affine import Affine

SITES = {
    "train": (
        "albuquerque", "atlantaeast", "atlantawest", "charlston", "columbus", "dallas", "denver", "elpaso", "houston",
        "kansascity", "lasvegas", "losangeles", "miami", "minneapolis", "montreal", "phoenix", "quebec", "saltlakecity",
        "sandiego", "santafe", "seattle", "stgeorge", "toronto", "tucson", "winnipeg", "sydney",
    ),
    "val": ("calgary", "newyork", "sanfrancisco", "vancouver"),
    "test": ("spacenet7",),
}  # fmt: skip
# The folder whose samples are places of their own.
PLACES = "spacenet7"
SAMPLES = "samples.json"
OPTICAL_NAMES = {
    "B2": "blue", "B3": "green", "B4": "red", "B5": "red_edge_1", "B6": "red_edge_2", "B7": "red_edge_3", "B8": "nir",
    "B8A": "nir_narrow", "B11": "swir_1", "B12": "swir_2",
}  # fmt: skip
SAR_NAMES = ("VV", "VH")
# What 0 and 1 are in Sentinel-1 files, dB.
UNIT_RANGE_DB = (-25.0, 5.0)
SAR_SCALES = ("unit", "db")


@dataclass(frozen=True)
class Patch:
    """A sample of the archive: its split, site, and what follows the product in its files' names."""

    split: str
    site: str
    ending: str

    def file(self, root: Path, product: str) -> Path:
        """The raster of `product`; names come from a file, so that they must not leave `root`."""
        return safe_join(root, f"{self.site}/{product}/{product}_{self.ending}.tif")


def find_patches(root: Path, problems: Problems) -> tuple[list[Patch], Counter]:
    """(labelled samples of all sites with a split, how many others there are by reason).

    Raises:
        InputError: there is no site of the data set, or a list of samples is none.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"`root={root}`: is no folder.")
    split_of = {site: split for split, sites in SITES.items() for site in sites}
    sites = sorted(folder.name for folder in root.iterdir() if (folder / SAMPLES).is_file())
    if not {*sites} & {*split_of}:
        inner = next(
            (p for p in sorted(root.iterdir()) if any((p / s / SAMPLES).is_file() for s in split_of)), None
        )
        hint = f" Is it {inner}?" if inner else ""
        raise InputError(
            f"`root={root}`: expected folders of sites such as losangeles/, each with {SAMPLES}, sentinel1/, "
            f"sentinel2/ and buildings/; none of the data set's sites is there.{hint}"
        )
    # In the order of the splits, not of the folders.
    found: list[Patch] = []
    left_out: Counter = Counter()
    for split, names in SITES.items():
        for site in (site for site in names if site in sites):
            for sample in _samples(root / site / SAMPLES, "aoi_id" if site == PLACES else "patch_id"):
                if sample["is_labeled"]:
                    name = sample["name"]
                    found.append(Patch(split, site, name if site == PLACES else f"{site}_{name}"))
                else:
                    left_out["without labels"] += 1
    for site in sites:
        if site not in split_of:
            left_out["at sites of no split"] += len(_samples(root / site / SAMPLES, "patch_id"))
    return found, left_out


def _samples(path: Path, key: str) -> list[dict]:
    """[{"name": ..., "is_labeled": ...}] of a list of samples."""
    document = read_json(path)
    samples = document.get("samples") if isinstance(document, dict) else None
    right = isinstance(samples, list) and all(
        isinstance(s, dict) and isinstance(s.get(key), str) for s in samples
    )
    if not right:
        raise InputError(f'{path}: expected {{"samples": [{{"{key}": "...", "is_labeled": true}}, ...]}}.')
    return [{"name": s[key], "is_labeled": s.get("is_labeled", True) is not False} for s in samples]


def _features(path: Path, key: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the bands that the samples.json `path` states, else `usual`."""
    names = read_json(path).get(key)
    if names is None:
        return usual
    if not isinstance(names, list) or not names or not {*map(str, names)} <= {*usual}:
        raise InputError(f"{path}: {key} is {names!r}, expected names among {', '.join(usual)}.")
    return tuple(names)


# ---- The source ------------------------------------------------------------------------------------------


@dataclass
class Sen12Gum:
    """The archive as a `conversion.Source`.

    Attributes:
        root: folder of the sites. threshold: a label above it is built-up. sar_scale: one of SAR_SCALES.
    """

    root: Path
    threshold: float = 0.0
    sar_scale: str = "unit"
    bands: BandSpec = field(default_factory=BandSpec)
    nodata: float | None = None
    _patches: list[Patch] = field(default_factory=list)
    _left_out: Counter = field(default_factory=Counter)

    def __post_init__(self):
        """List the samples, whose sites say which bands there are."""
        self._patches, self._left_out = find_patches(self.root, Problems())
        sites = list(dict.fromkeys(patch.site for patch in self._patches))
        known = {
            (
                _features(self.root / site / SAMPLES, "sentinel2_features", (*OPTICAL_NAMES,)),
                _features(self.root / site / SAMPLES, "sentinel1_features", SAR_NAMES),
            )
            for site in sites
        }
        if not known:
            raise InputError(f"`root={self.root}`: no sample with labels is listed in any {SAMPLES}.")
        if len(known) > 1:
            listed = " and ".join(", ".join(o + s) for o, s in sorted(known))
            raise InputError(
                f"`root={self.root}`: sites have different bands: {listed}. Convert them one by one."
            )
        optical, sar = known.pop()
        self.bands = BandSpec(tuple(OPTICAL_NAMES[name] for name in optical), sar, "db")

    def files(self) -> Iterable[Path]:
        """Lists and rasters."""
        lists = dict.fromkeys(self.root / patch.site / SAMPLES for patch in self._patches)
        products = ("sentinel1", "sentinel2", "buildings")
        return [*lists, *(patch.file(self.root, p) for patch in self._patches for p in products)]

    def places(self, problems: Problems) -> list[Place]:
        """A place for each labelled sample, without ground: sites lie all over the world, far from each other."""
        found = []
        for number, patch in enumerate(self._patches):
            path = patch.file(self.root, "buildings")
            try:
                with open_raster(path) as source:
                    window = (0, 0, source.width, source.height)
            except InputError as error:
                problems.add(UNUSABLE, str(error))
                continue
            found.append(Place(patch.ending, number, window, split=patch.split, group=patch.site))
        return found

    def make(self, place: Place, out: Path, problems: Problems) -> Made:
        """The tile of a sample."""
        patch = self._patches[place.image]
        optical, sar, label = (patch.file(self.root, p) for p in ("sentinel2", "sentinel1", "buildings"))
        with open_raster(optical) as source:
            crs, transform = raster_crs_text(source.crs), source.transform
            size, placed = (source.width, source.height), not source.transform.is_identity
        for path, count in ((optical, len(self.bands.optical)), (sar, len(self.bands.sar)), (label, 1)):
            _check(path, count, size, transform if placed else None)
        # Its end is where a truncated file is missed.
        last_px = (size[0] - 1, size[1] - 1, 1, 1)
        read_tile_image(optical, None, BandSpec(self.bands.optical), self.bands, window=last_px)
        counts = Counter()
        tile = Tile(
            file_name=self._linked(optical, out),
            width=size[0],
            height=size[1],
            gsd_m=gsd_m_of(transform, crs, *size) if placed else 10.0,
            crs=crs,
            transform=tuple(transform)[:6] if placed else None,
            sar_file_name=self._sar(sar, patch, transform, crs, out),
        )
        value = read_tile_image(label, None, BandSpec(("label",)), BandSpec(("label",)))[0]
        built = np.nan_to_num(value, nan=-np.inf) > self.threshold
        everywhere = np.ones(built.shape, bool)
        found = [Building(outline) for outline in components(built)]
        tile.buildings = clip_labels(found, place.window, everywhere, 0.0, counts)
        return Made(tile, {"labels": counts, "sites": Counter([patch.site])})

    def _linked(self, path: Path, out: Path) -> str:
        """Name of a raster of the archive in the data set."""
        return f"{link(out, 'images', self.root)}/{path.relative_to(self.root).as_posix()}"

    def _sar(self, path: Path, patch: Patch, transform: Affine, crs: str | None, out: Path) -> str:
        """Name of the raster of decibels: the archive's, or one that is written."""
        # As if they were optical: numbers are taken as they are.
        numbers = BandSpec(self.bands.sar)
        image = read_tile_image(path, None, numbers, numbers)
        known = image[np.isfinite(image)]
        unit = bool(((known >= 0) & (known <= 1)).all())
        low_db, high_db = UNIT_RANGE_DB
        if known.size and unit != (self.sar_scale == "unit"):
            expected = 'decibels, many of them below 0. Leave out `sar_scale="db"`'
            if not unit:
                expected = (
                    f'0 to 1 for {low_db:g} to {high_db:g} dB. Where they are decibels, pass `sar_scale="db"`'
                )
            raise InputError(f"{path}: numbers from {known.min():g} to {known.max():g}, expected {expected}.")
        if self.sar_scale == "db":
            return self._linked(path, out)
        name = f"sentinel1_db/{patch.site}/{patch.ending}.tif"
        image = low_db + image * (high_db - low_db)
        write_tile(safe_join(out, name), image, "float32", None, self.bands.sar, transform=transform, crs=crs)
        return name

    def finish(self, sample: Dataset, report: Report) -> None:
        """Say what instances are, and what was left out."""
        for reason, count in self._left_out.items():
            report.tiles[f"left out {reason}"] += count
        report.notes.append(
            "instances are the connected parts of built-up areas, not buildings: score maps (dense/)."
        )
        report.notes.append("heights are unknown.")
        if not report.labels.get("kept"):
            report.notes.append(f"nothing is built-up in any tile: no label is above {self.threshold:g}.")

    def info(self) -> dict:
        """Where the data come from, and what outlines are."""
        return {
            "description": "SEN12 Global Urban Mapping, Hafner et al. 2022, https://doi.org/10.5281/zenodo.6914898",
            "outlines": f"of pixels with a label above {self.threshold:g}: built-up areas, not single buildings",
            "height_source": None,
        }


def _check(path: Path, count: int, size: tuple[int, int], transform: Affine | None) -> None:
    """InputError where a raster has not as many bands and pixels, or lies elsewhere than the optical one."""
    with open_raster(path) as source:
        if source.count != count:
            raise InputError(f"{path}: {source.count} bands, expected {count}.")
        if (source.width, source.height) != size:
            raise InputError(
                f"{path}: {source.width} x {source.height} px, but its Sentinel-2 image has {size[0]} x {size[1]} px."
            )
        moved = transform is not None and not source.transform.is_identity
        if moved and not source.transform.almost_equals(transform, abs(transform.a) / 2):
            raise InputError(f"{path}: lies elsewhere than its Sentinel-2 image, by half a pixel or more.")


# ---- The command -----------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    """Options of `prepare_dataset.py sen12gum`."""
    parser.add_argument(
        "--root",
        type=Path,
        required=True,
        metavar="DIR",
        help="the unpacked archive, with a folder for each site",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.0, metavar="V",
        help="a label above this value is built-up, as of a map of probabilities (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--sar-scale", choices=SAR_SCALES, default="unit",
        help="what Sentinel-1 numbers are: 0 to 1 for -25 to 5 dB, or decibels (default: %(default)s)",
    )  # fmt: skip
    conversion.add_arguments(parser, skips=True)


def main(args) -> None:
    """Run `prepare_dataset.py sen12gum`."""
    names = ("root", "threshold", "sar_scale")
    options = {name: getattr(args, name) for name in names}
    source = Sen12Gum(**options)
    recipe = {"source": "sen12gum", **options}
    report = conversion.convert(source, args.out, conversion.options_from(args), recipe)
    reports.show(report, args.out)
