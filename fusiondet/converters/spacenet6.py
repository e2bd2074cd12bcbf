"""SpaceNet 6 (Rotterdam): SAR and optical tiles with buildings and heights: `tools/prepare_dataset.py spacenet6`.

Shermeyer et al., "SpaceNet 6: Multi-Sensor All Weather Mapping Dataset", CVPR Workshops 2020 (arXiv 2004.06500). 3401
tiles of 450 m, 48 000 footprints, EPSG:32631, CC BY-SA 4.0 (SpaceNet LLC). Layout of the training archive:

    AOI_11_Rotterdam/                                       pixels              what
      PS-RGB/                                               900², 0.5 m         uint8, red green blue (WorldView-2)
      PS-RGBNIR/                                            900², 0.5 m         uint16, red green blue nir
      PAN/                                                  900², 0.5 m         uint16
      RGBNIR/                                               450²                uint16, red green blue nir
      SAR-Intensity/                                        900², 0.5 m         float32, HH HV VH VV (Capella, X band)
      geojson_buildings/                                                        footprints with heights
      SummaryData/SN6_Train_AOI_11_Rotterdam_Buildings.csv                      the same, in pixels
      SummaryData/SAR_orientations.txt                                          where each strip was imaged from

A file is named `SN6_Train_AOI_11_Rotterdam_<product>_<start>_<end>_tile_<n>.tif`; <start>_<end> is the strip of the
aircraft, and all four words are the ImageId. About 20 tiles of different strips lie on each place. Outside a strip
pixels are 0 in every product. Products of one tile have slightly different pixel sizes (0.49999648 m, 0.5 m).

SAR: decibels of uncalibrated counts, from 0 to 92.88: ten times the logarithm of |z|² of 16-bit complex numbers, of
which the largest is 93.3. So they are no linear power, and never negative; `--sar-scale auto` looks at the numbers and
says what it found. Polarisations and tiles can be compared as far as their calibration is one.

Look direction: SAR_orientations.txt has 0 for strips imaged from the north and 1 for those from the south, as the
authors' baseline reads it (CosmiQ/CosmiQ_SN6_Baseline). An antenna in the north looks south: azimuth 180, the other 0,
within a degree or two of grid north. Others read the flag the other way round; what matters for learning, which strips
look alike, does not depend on it. Incidence is 35 degrees on average; 33.4 to 36.6.

Heights: `roof_075mean`, `roof_075median` and the table's Mean_ and Median_Building_Height are the same numbers: of 3D
BAG's 75th percentile of the roof points (over the parts of a building), which is an elevation above NAP. The ground is
near 0 m NAP in most of the port and some metres off elsewhere, so that they look like heights. They are called
unverified unless `--ground` is given; a roof at or below 0 m is unknown without it.

The labels' own `partialDec`, `truncated`, `origarea` and `origlen` describe other stages of production (a whole
building has `partialDec` 1) and are not read: what a tile cuts is found anew.
"""

import contextlib
import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet import cli
from fusiondet.buildings import (
    Building,
    SensorGeometry,
    clean_height_m,
    clean_polygon,
    map_to_pixel,
    pixel_to_map,
)
from fusiondet.converters import conversion, reports
from fusiondet.converters.reports import UNUSABLE, Problems, Report
from fusiondet.converters.source import Made, Place, link
from fusiondet.converters.spacenet import (
    ImageTiles,
    TileRules,
    add_rule_arguments,
    in_crs_of,
    label_layer,
    open_table,
    refuse_labels_elsewhere,
    rules_from,
    table_outlines,
    turned,
)
from fusiondet.errors import InputError
from fusiondet.io.bands import POLARISATIONS, SAR_SCALES, BandSpec
from fusiondet.io.calibration import check_sar_scale, plausible_sar_scales
from fusiondet.io.coco import Dataset
from fusiondet.io.rasters import BandReader, open_raster, sample_values
from fusiondet.io.scene_reader import SceneReader
from fusiondet.io.terrain import GROUND_RINGS_M, ground_around
from fusiondet.io.vector_records import read_records
from fusiondet.io.vectors import UNKNOWN_HEIGHT

import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import RasterioError

PRODUCTS = {
    "PS-RGB": ("red", "green", "blue"),
    "PS-RGBNIR": ("red", "green", "blue", "nir"),
    "PAN": ("pan",),
    "RGBNIR": ("red", "green", "blue", "nir"),
}
SAR = "SAR-Intensity"
LABELS = "geojson_buildings"
ORIENTATIONS = "SAR_orientations.txt"
# Of all products: outside the strip.
NODATA = 0.0
# Flag of a strip -> direction in which its antenna looks.
LOOK_AZIMUTH_DEG = {0: 180.0, 1: 0.0}
LOOKS = {"south": 180.0, "north": 0.0}
INCIDENCE_DEG, INCIDENCE_RANGE_DEG = 35.0, (33.4, 36.6)
# Pixels of the table are those of the SAR product.
TABLE_GSD_M = 0.5
# Tiles whose SAR numbers tell the scale.
SCALE_TILES = 12
# FusionHeightNet trains on 2654 and tests on 747 of the tiles, with one crop of each.
PAPER_TEST_SHARE, PAPER_CROP_PX = 747 / 3401, 512
# Blocks of ground, unless the user says otherwise: about as FusionHeightNet.
SPLIT = ("train=80", "val=20")
# What is left of a tile at the edge of a split is at least so wide.
MIN_SIDE_PX = 256

# Folders and files below a wrong root that are looked through for the right one.
MAX_SEARCHED = 10_000
# Sum of three correlations by which another order of red, green and blue has to fit better.
_ORDER_MARGIN = 0.03

_ID = re.compile(r"(\d{14}_\d{14})_tile_\d+$")


def find_root(root: Path) -> Path:
    """`root` if it holds the products.

    Raises:
        InputError: it does not; the message names the folder above or below that does.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"`root={root}`: no such folder; expected SpaceNet 6's .../train/AOI_11_Rotterdam.")
    if _is_root(root):
        return root
    below = itertools.chain.from_iterable(root.glob(depth) for depth in ("*", "*/*", "*/*/*"))
    around = [*root.absolute().parents[:2], *itertools.islice(below, MAX_SEARCHED)]
    better = sorted(
        (p for p in around if p.is_dir() and _is_root(p)), key=lambda p: not (p / LABELS).is_dir()
    )
    hint = f" Did you mean {better[0]}?" if better else ""
    raise InputError(
        f"`root={root}`: holds none of the folders {', '.join([*PRODUCTS, SAR])}; expected SpaceNet 6's "
        f".../train/AOI_11_Rotterdam.{hint}"
    )


def _is_root(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in (*PRODUCTS, SAR))


def tile_files(folder: Path, suffix: str) -> dict[str, Path]:
    """ImageId -> file, of the files of a product or of labels; other files are not looked at."""
    if not folder.is_dir():
        return {}
    found = {}
    for path in sorted(folder.iterdir()):
        name = _ID.search(path.stem)
        if name and path.suffix.lower() == suffix and not path.name.startswith("."):
            found[name.group()] = path
    return found


def read_orientations(path: Path) -> dict[str, int]:
    """Strip `<start>_<end>` -> 0 (imaged from the north) or 1 (from the south).

    Raises:
        InputError: no such file, or a line that is something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected SpaceNet 6's list of strips and directions.")
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not re.fullmatch(r"\d{14}_\d{14}", words[0]) or words[1] not in ("0", "1"):
            raise InputError(f"{path}, line {number}: expected `<start>_<end> 0|1`, found {line[:80]!r}.")
        found[words[0]] = int(words[1])
    return found


@dataclass
class SpaceNet6:
    """The tiles of SpaceNet 6: a `conversion.Source`.

    Attributes:
        root: folder of the products. optical: one of PRODUCTS, or None for SAR alone.
        bands: of the data set. sar_indexes: which bands of the SAR product each of its SAR bands is. sar_scale: of the
            product's numbers; tiles that are written are dB.
        images, sar, outlines: ImageId -> files of the main product, of SAR (also where it is not asked for: the table
            is in its pixels), and of labels.
        table: the CSV, where the labels come from it. statistic: "mean", "median" or None for no heights.
        ground: elevation of the ground, a raster's path or metres; None: unknown.
        turn: "south" or "north": tiles of strips whose antenna looks there are turned by 180 degrees; None: none are.
        paper_split: prescribe the split and the crops of FusionHeightNet.
        facts: what was found out about the data, for `info`. notes: sentences for the user.
    """

    root: Path
    optical: str | None
    bands: BandSpec
    sar_indexes: list
    sar_scale: str
    images: dict[str, Path]
    sar: dict[str, Path]
    outlines: dict[str, Path]
    table: Path | None
    statistic: str | None
    ground: Path | float | None
    turn: str | None
    paper_split: bool
    rules: TileRules
    orientations: dict[str, int]
    facts: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    nodata: float | None = NODATA

    def files(self) -> Iterable[Path]:
        """Images, labels, the table, the ground and the orientations."""
        others = (self.table, self.ground, self.root / "SummaryData" / ORIENTATIONS)
        return [
            *self.images.values(),
            *self.sar.values(),
            *self.outlines.values(),
            *(path for path in others if isinstance(path, Path)),
        ]

    def places(self, problems: Problems) -> list[Place]:
        """One for each tile that has the main product and labels."""
        main, folder = self.optical or SAR, self.root / (self.optical or SAR)
        labelled = set(open_table(self.table, self._columns).image_ids if self.table else self.outlines)
        labels = self.table or self.root / LABELS
        found = []
        names = sorted({*self.images, *self.sar, *labelled})
        for number, name in enumerate(cli.progress(names, label="headers", unit="tile")):
            strip = _strip(name)
            if name not in self.images:
                if name in self.sar:
                    problems.add("missing products", f"{folder}: tile {name} has no {main}; left out.")
                else:
                    problems.add("labels without an image", f"{labels}: tile {name} has no {main}.")
                continue
            if self.bands.sar and name not in self.sar:
                problems.add(
                    "missing products", f"{self.root / SAR}: tile {name} has no {SAR}; its SAR is no data."
                )
            if name not in labelled:
                problems.add("images without labels", f"{labels}: tile {name} has no labels; left out.")
                continue
            if strip not in self.orientations and (self.bands.sar or self.turn):
                problems.add(
                    "tiles without a look direction",
                    f"{self.root / 'SummaryData' / ORIENTATIONS}: no strip {strip}.",
                )
            try:
                with open_raster(self.images[name]) as raster:
                    grid, size = raster.transform, (raster.width, raster.height)
                    crs = raster.crs.to_string() if raster.crs else None
            except InputError as error:
                problems.add(UNUSABLE, str(error))
                continue
            grid = turned(grid, *size) if self._is_turned(strip) else grid
            found.append(Place(name, number, (0, 0, *size), tuple(grid)[:6], crs, group=strip))
        self._measure_overlap(found)
        return _paper_split(found) if self.paper_split else found

    def _measure_overlap(self, places: list[Place]) -> None:
        grounds = [place.ground(None) for place in places]
        area = shapely.area(shapely.union_all(grounds)) if grounds else 0
        if area:
            self.facts["tiles_per_place"] = round(float(sum(ground.area for ground in grounds) / area), 2)

    def _is_turned(self, strip: str) -> bool:
        look = LOOK_AZIMUTH_DEG.get(self.orientations.get(strip))
        return self.turn is not None and look == LOOKS[self.turn]

    @property
    def _height_column(self) -> str | None:
        """Column of the labels that heights come from; None for no heights."""
        if self.statistic is None:
            return None
        return f"{self.statistic.capitalize()}_Building_Height" if self.table else f"roof_075{self.statistic}"

    @property
    def _columns(self) -> tuple[str, ...]:
        """Columns that the table needs."""
        heights = () if self._height_column is None else (self._height_column,)
        return ("ImageId", "TileBuildingId", "PolygonWKT_Pix", *heights)

    def make(self, place: Place, out: Path, problems: Problems) -> Made:
        """The tile at `place`."""
        strip, sar = _strip(place.name), self.sar.get(place.name)
        look = LOOK_AZIMUTH_DEG.get(self.orientations.get(strip))
        sensor = SensorGeometry()
        if self.bands.sar and sar is not None:
            sensor = SensorGeometry(sar_look_azimuth_deg=look, sar_incidence_deg=INCIDENCE_DEG)
        with ImageTiles(
            self.images[place.name] if self.optical else None,
            sar if self.bands.sar else None,
            self.bands,
            self.rules,
            self._link,
            self._is_turned(strip),
            nodata=NODATA,
            rgb_bands=list(range(1, len(self.bands.optical) + 1)) or None,
            sar_bands=self.sar_indexes or None,
            sar_scale=self.sar_scale or None,
        ) as image:
            labels, counts = self._labels(place.name, image.reader, problems)
            made = image.make(place, labels, out, sensor)
        made.counts.setdefault("labels", Counter()).update(counts)
        return made

    def _link(self, path: Path, out: Path) -> str:
        return f"{link(out, 'images', self.root)}/{path.relative_to(self.root).as_posix()}"

    def _labels(self, name: str, reader: SceneReader, problems: Problems) -> tuple[list[Building], Counter]:
        """Buildings of a tile in its CRS, and what happened to other labels."""
        if self.table:
            buildings, counts = self._of_table(name, reader, problems)
        else:
            buildings, counts = self._of_file(name, reader, problems)
        refuse_labels_elsewhere(buildings, reader, self.table or self.outlines[name], name)
        return self._above_ground(buildings, reader), counts

    def _of_file(self, name: str, reader: SceneReader, problems: Problems) -> tuple[list[Building], Counter]:
        path, column = self.outlines[name], self._height_column
        layer = label_layer(path, problems, height_field=column)
        if self.ground is not None and column is not None:
            # What is no height yet may be negative: the roof of a shed in a polder.
            rows = read_records(path, None, lambda name: name == column, lambda _: (column, None)).rows
            elevations = [row.get(column) for geometry, row in rows if clean_polygon(geometry) is not None]
            for building, elevation in zip(layer.buildings, elevations, strict=True):
                _set_elevation(building, elevation, column)
        layer = in_crs_of(layer, reader, path)
        return layer.buildings, layer.geometry

    def _of_table(self, name: str, reader: SceneReader, problems: Problems) -> tuple[list[Building], Counter]:
        grid = self._table_grid(name, reader)
        rows = open_table(self.table, self._columns).rows(name)
        found, counts = table_outlines(
            rows, "TileBuildingId", lambda row: row.outline("PolygonWKT_Pix"), problems
        )
        buildings = []
        for row, polygon in found:
            building = Building(pixel_to_map(polygon, grid), id=row.values["TileBuildingId"])
            if self._height_column is not None:
                _set_elevation(building, row.values.get(self._height_column), self._height_column)
            buildings.append(building)
        return buildings, counts

    def _table_grid(self, name: str, reader: SceneReader) -> Affine:
        """Pixel of the table -> map: the grid of the tile's SAR file, else 0.5 m from the tile's own corner."""
        if name in self.sar:
            with open_raster(self.sar[name]) as raster:
                return raster.transform
        return Affine(TABLE_GSD_M, 0, reader.transform.c, 0, -TABLE_GSD_M, reader.transform.f)

    def _above_ground(self, buildings: list[Building], reader: SceneReader) -> list[Building]:
        """`buildings`, whose heights are elevations yet, with heights: less the ground, where that is given."""
        if self.statistic is None or not buildings:
            return buildings
        if not isinstance(self.ground, Path):
            return [self._measured(building, self.ground or 0.0) for building in buildings]
        crs = CRS.from_user_input(reader.crs) if reader.crs else None
        with BandReader(self.ground, in_metres=True) as raster:
            ground_m = raster.onto(reader.transform, crs, (reader.height, reader.width))
        outlines_px = (map_to_pixel(building.polygon, reader.transform) for building in buildings)
        grounds_m = [
            ground_around(outline, ground_m, reader.gsd_m, GROUND_RINGS_M[:1]) for outline in outlines_px
        ]
        return [self._measured(b, base_m) for b, base_m in zip(buildings, grounds_m, strict=True)]

    def _measured(self, building: Building, base_m: float | None) -> Building:
        """`building` with its elevation less that of the ground, None where that is unknown."""
        height_m, reason = None, building.attributes.get(UNKNOWN_HEIGHT)
        if building.height_m is not None:
            height_m, reason = (
                (None, "no ground") if base_m is None else clean_height_m(building.height_m - base_m)
            )
        if height_m is None:
            facts = {"height_source": None, "height_stat": None, "height_datum": None}
            facts["attributes"] = {**building.attributes, UNKNOWN_HEIGHT: reason}
        else:
            facts = self._described(building.height_source)
        return dataclasses.replace(building, height_m=height_m, **facts)

    def _described(self, column: str) -> dict[str, str]:
        """What is recorded with every known height that comes from `column`."""
        less = "" if self.ground is None else f" - {getattr(self.ground, 'name', f'{self.ground} m')}"
        return {
            "height_source": column + less,
            "height_stat": f"p75 ({self.statistic} of parts)",
            "height_datum": "unverified" if self.ground is None else "ground",
        }

    def finish(self, sample: Dataset, report: Report) -> None:
        """Notes on what the numbers are."""
        report.notes += self.notes
        if report.unknown_heights["no ground"] and not report.heights["known"]:
            raise InputError(
                f"`ground={self.ground}`: has no elevation under any of the buildings. Is it the terrain of Rotterdam, "
                "and is its CRS right?"
            )
        if self._height_column is not None:
            facts = self._described(self._height_column)
            datum = "above the ground"
            if self.ground is None:
                datum = "an elevation above NAP, datum unverified: pass `ground` to subtract the ground"
            origin = f"{facts['height_source']} of {self.facts['label_source']}"
            report.notes.append(f"heights: {origin}, 3D BAG's {facts['height_stat']}, {datum}.")
        many = self.facts.get("tiles_per_place", 1)
        if many > 1.5:
            report.notes.append(
                f"{many:g} tiles lie on each place on average: scores over tiles count every building so often."
            )
        if self.paper_split:
            report.notes.append(
                "`paper_split`: the 22 % of the tiles farthest east are val, each tile's middle 512 px. Which way the "
                "paper went it does not say, and tiles of both splits overlap at the border."
            )

    def info(self) -> dict:
        """Where the tiles come from, and what the numbers are."""
        return {
            "description": "SpaceNet 6: Multi-Sensor All Weather Mapping, Rotterdam (arXiv 2004.06500)",
            "licence": "CC BY-SA 4.0 (SpaceNet LLC)",
            "outline": "footprints",
            **({} if self._height_column is None else self._described(self._height_column)),
            "optical_product": self.optical,
            "turned_looks": self.turn,
            "sar_incidence_range_deg": list(INCIDENCE_RANGE_DEG) if self.bands.sar else None,
            **self.facts,
        }


def _strip(name: str) -> str:
    return _ID.fullmatch(name).group(1) if _ID.fullmatch(name) else name


def _set_elevation(building: Building, value, column: str) -> None:
    """Make a raw value of `column` the building's height, whatever its sign, or say why it is unknown."""
    building.attributes.pop(UNKNOWN_HEIGHT, None)
    try:
        building.height_m = float(value)
    except (TypeError, ValueError):
        building.height_m = None
    building.height_source = column
    if building.height_m is None or not math.isfinite(building.height_m):
        building.height_m, building.attributes[UNKNOWN_HEIGHT] = None, clean_height_m(value)[1] or "missing"


def _paper_split(places: list[Place]) -> list[Place]:
    """The middle `PAPER_CROP_PX` of every tile, those farthest east in "val"."""
    east = [place.ground(None).centroid.x for place in places]
    order = np.argsort(east, kind="stable")
    test = set(order[len(places) - round(len(places) * PAPER_TEST_SHARE) :].tolist())
    found = []
    for number, place in enumerate(places):
        _, _, width, height = place.window
        w, h = min(width, PAPER_CROP_PX), min(height, PAPER_CROP_PX)
        window = ((width - w) // 2, (height - h) // 2, w, h)
        found.append(dataclasses.replace(place, window=window, split="val" if number in test else "train"))
    return found


# ---- The command -----------------------------------------------------------------------------------------


def settle_sar_scale(files: list[Path], asked: str) -> tuple[str, str]:
    """(scale of the SAR product's numbers, what they are like, for the user).

    Args:
        asked: one of SAR_SCALES, or "auto".

    Raises:
        InputError: the numbers cannot be what was asked for.
    """
    step = max(1, len(files) // SCALE_TILES)
    chosen, samples = files[::step][:SCALE_TILES], []
    for path in chosen:
        with contextlib.suppress(InputError):  # damaged: named where the tile is made
            samples.append(sample_values([path], NODATA))
    values = np.concatenate(samples) if samples else np.zeros(0, np.float32)
    values = values[np.isfinite(values) & (values != NODATA)]
    if not values.size:
        raise InputError(
            f"{chosen[0].parent}: the SAR of {len(chosen)} tiles is all no data or damaged. Is the archive complete?"
        )
    low, median, high = np.percentile(values, (1, 50, 99))
    seen = (
        f"{values.size} numbers of {len(samples)} tiles: 1 % below {low:.3g}, median {median:.3g}, 1 % above "
        f"{high:.3g}, at most {values.max():.4g}"
    )
    if asked != "auto":
        check_sar_scale(values, asked, chosen[0].parent)
        return asked, f"{SAR} is {asked}, as asked for ({seen})"
    plausible = plausible_sar_scales(values)
    if plausible == ("db",):
        return "db", f"{SAR} is in dB already, and stays as it is ({seen})"
    if "db" not in plausible:
        return "linear_power", f"{SAR} is linear, taken as power and written in dB ({seen})"
    return "db", f"{SAR} is taken as dB, as published: the numbers alone do not tell ({seen})"


def check_band_order(images: dict[str, Path], colours: dict[str, Path]) -> None:
    """Refuse a four-band product whose first bands are not red, green and blue, by comparing it with PS-RGB.

    Other releases of these pictures begin with blue. Tiles whose bands hardly differ say nothing.

    Args:
        images, colours: ImageId -> files of the product and of PS-RGB.

    Raises:
        InputError: another order fits better.
    """
    shared = [name for name in images if name in colours]
    samples = []
    for name in shared[:: max(1, len(shared) // SCALE_TILES)][:SCALE_TILES]:
        try:
            with open_raster(images[name]) as raster, open_raster(colours[name]) as colour:
                bands = raster.read((1, 2, 3))
                known = colour.read((1, 2, 3), out_shape=bands.shape)
        except (InputError, RasterioError):  # named where the tile is made
            continue
        valid = (bands != NODATA).any(axis=0) & (known != NODATA).any(axis=0)
        samples.append(np.concatenate([bands, known])[:, valid].astype(np.float64))
    pixels = np.concatenate(samples, axis=1) if samples else np.zeros((6, 0))
    if pixels.shape[1] < 2 or not (pixels.std(axis=1) > 0).all():
        return
    like = np.corrcoef(pixels)[:3, 3:]
    orders = {
        order: sum(like[i, c] for i, c in enumerate(order)) for order in itertools.permutations(range(3))
    }
    best = max(orders, key=orders.get)
    if orders[best] > orders[0, 1, 2] + _ORDER_MARGIN:
        found = ", ".join(PRODUCTS["PS-RGB"][c] for c in best)
        raise InputError(
            f"{next(iter(images.values())).parent}: its first bands are {found} by comparison with PS-RGB, "
            "expected red, green, blue as published. Reorder them: gdal_translate -b 3 -b 2 -b 1 -b 4 IN OUT."
        )


def source_of(
    root: Path,
    rules: TileRules,
    *,
    optical: str = "PS-RGB",
    sar: str = "all",
    sar_scale: str = "auto",
    labels: str = "auto",
    statistic: str = "mean",
    ground: Path | float | None = None,
    turn: str | None = None,
    paper_split: bool = False,
) -> SpaceNet6:
    """The source of `prepare_dataset.py spacenet6`; see `add_arguments`.

    Raises:
        InputError: a folder or file of the archive that is needed is not there, or options contradict each other.
    """
    root = find_root(root)
    if optical == "none" and sar == "none":
        raise InputError('`optical="none"` and `sar="none"`: nothing is left. Choose one of them.')
    product = None if optical == "none" else optical
    suffix = ".tif"
    images = tile_files(root / (product or SAR), suffix)
    if not images:
        there = [name for name in (*PRODUCTS, SAR) if tile_files(root / name, suffix)]
        raise InputError(
            f"{root / (product or SAR)}: holds no tiles. Products with tiles: {', '.join(there) or 'none'} "
            "(see `optical` and `sar`)."
        )
    if product in ("PS-RGBNIR", "RGBNIR"):
        check_band_order(images, tile_files(root / "PS-RGB", suffix))
    sar_files = tile_files(root / SAR, suffix)
    if sar != "none" and not sar_files:
        raise InputError(f'{root / SAR}: holds no tiles. Unpack the product, or pass `sar="none"`.')
    names, indexes = _sar_bands(sar)
    facts, notes, scale = {}, [], ""
    if names:
        scale, text = settle_sar_scale(list(sar_files.values()), sar_scale)
        facts["sar_numbers"] = text
        notes.append(text + ".")
    table, outlines = _label_files(root, labels)
    orientations = {}
    if names or turn:
        orientations = read_orientations(root / "SummaryData" / ORIENTATIONS)
    facts["label_source"] = table.name if table else LABELS
    return SpaceNet6(
        root,
        product,
        BandSpec(PRODUCTS[product] if product else (), names, "db" if names else ""),
        indexes,
        scale,
        images,
        sar_files,
        outlines,
        table,
        None if statistic == "none" else statistic,
        ground,
        turn,
        paper_split,
        rules,
        orientations,
        facts,
        notes,
    )


def _sar_bands(sar: str) -> tuple[tuple[str, ...], list]:
    """(names of the SAR bands, which bands of the product they are)."""
    if sar == "none":
        return (), []
    if sar == "all":
        return POLARISATIONS, [1, 2, 3, 4]
    if sar == "mean":
        return ("+".join(POLARISATIONS),), [(1, 2, 3, 4)]
    return (sar,), [POLARISATIONS.index(sar) + 1]


def _label_files(root: Path, labels: str) -> tuple[Path | None, dict[str, Path]]:
    """(the table, {}) or (None, ImageId -> label file)."""
    outlines = {} if labels == "csv" else tile_files(root / LABELS, ".geojson")
    tables = sorted((root / "SummaryData").glob("*_Buildings.csv"))
    if outlines:
        return None, outlines
    if labels == "geojson" or not tables:
        raise InputError(
            f"{root}: has no labels: expected {LABELS}/*.geojson or SummaryData/*_Buildings.csv. The archives of the "
            "test sets have none; use the training archive."
        )
    if len(tables) > 1:
        raise InputError(
            f"{root / 'SummaryData'}: several tables: {', '.join(p.name for p in tables)}. Leave one there."
        )
    return tables[0], {}


def parse_ground(text: str | None) -> Path | float | None:
    """`--ground`: metres, or the path of a raster.

    Raises:
        InputError: neither.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        path = Path(text)
        if not path.is_file():
            raise InputError(
                f"`ground={text}`: neither a number (metres above NAP) nor an existing raster."
            ) from None
        return path
    if not -50 <= value <= 1000:
        raise InputError(f"`ground={text}`: expected metres above NAP, -50 to 1000.")
    return value


def add_arguments(parser) -> None:
    """Options of `prepare_dataset.py spacenet6`."""
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="the training archive's AOI_11_Rotterdam"
    )
    parser.add_argument(
        "--optical",
        choices=(*PRODUCTS, "none"),
        default="PS-RGB",
        help="optical product (default: %(default)s)",
    )
    parser.add_argument(
        "--sar",
        choices=(*POLARISATIONS, "all", "mean", "none"),
        default="all",
        help="polarisations; mean: of their power, written to disk. A config can also take one or a mean out of all, "
        "e.g. INPUT.SAR_BANDS \"['HH+HV+VH+VV']\" (default: %(default)s)",
    )
    parser.add_argument(
        "--sar-scale",
        choices=("auto", *(s for s in SAR_SCALES if s in ("linear_power", "amplitude", "db"))),
        default="auto",
        help="what the SAR product holds; auto: told from its numbers (default: %(default)s)",
    )
    parser.add_argument(
        "--labels",
        choices=("auto", "geojson", "csv"),
        default="auto",
        help="outlines and heights from geojson_buildings/ or from SummaryData's table; auto: the first that is there "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--height-stat",
        dest="statistic",
        choices=("mean", "median", "none"),
        default="mean",
        help="of the parts of a building: roof_075mean or roof_075median; none: no heights (default: %(default)s)",
    )
    parser.add_argument(
        "--ground",
        metavar="FILE|M",
        help="ground to subtract: a terrain model (metres above NAP) or one elevation in metres "
        "(default: none, heights are of unverified datum)",
    )
    looks = parser.add_mutually_exclusive_group()
    for look, flag in (("south", 0), ("north", 1)):
        looks.add_argument(
            f"--turn-{look}-looking",
            dest="turn",
            action="store_const",
            const=look,
            help=f"write tiles of strips whose antenna looks {look} ({flag} in {ORIENTATIONS}) turned by 180 degrees, "
            "so that all look one way in the image; 15 MB a tile with all polarisations"
            + ("; as the published baseline does" if flag else ""),
        )
    parser.add_argument(
        "--paper-split",
        action="store_true",
        help="splits train and val (2654 and 747 of all tiles, by longitude) and one 512 px crop of each tile, as "
        "paper P2 of README.md; the ground that they share is measured",
    )
    add_rule_arguments(parser)
    conversion.add_arguments(parser, skips=True)
    parser.epilog = f"Default of --split: {' '.join(SPLIT)}."


def main(args) -> None:
    """Run `prepare_dataset.py spacenet6`."""
    rules, ground = rules_from(args), parse_ground(args.ground)
    names = ("optical", "sar", "sar_scale", "labels", "statistic", "turn", "paper_split")
    asked = {name: getattr(args, name) for name in names}
    source = source_of(args.root, rules, ground=ground, **asked)
    recipe = {
        "source": "spacenet6",
        "root": args.root,
        "ground": args.ground,
        **asked,
        **dataclasses.asdict(rules),
    }
    split = args.split or (None if args.paper_split else list(SPLIT))
    options = conversion.options_from(args, split=split, min_side_px=MIN_SIDE_PX)
    report = conversion.convert(source, args.out, options, recipe)
    reports.show(report, args.out)
