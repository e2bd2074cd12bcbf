"""SpaceNet 1, 2 and 4 -> tiles with buildings: `tools/prepare_dataset.py spacenet`. (3 and 5 are about roads.)

Layout: a folder of GeoTIFF tiles (`--images`), a GeoJSON of footprints for each (`--labels`), and the table of the
competition (`--csv`). Either of the two is enough; where there are both, a tile's labels are its GeoJSON's, and tiles
in which the two differ are named. Which label file belongs to which image is told by the parts of its name that not all
label files share (`..._img7_Geo.geojson`, `3band_..._img7.tif`); one file may serve many images (SpaceNet 4: 27 views).

    data      AOI                               GSD             publisher's licence
    1         Rio de Janeiro                    0.5 m, 2 m      CC BY-SA 4.0
    2         Vegas, Paris, Shanghai, Khartoum  0.3 m, 1.2 m    CC BY-SA 4.0
    4         Atlanta, 27 view angles           0.5 m           CC BY-SA 4.0

The table has a row for each building, `ImageId, BuildingId, PolygonWKT_Pix, PolygonWKT_Geo`; a tile without buildings
has one row with BuildingId -1 or an empty polygon. `PolygonWKT_Pix` is what the competition scores, in pixels of the
image that ImageId names (0 = outer corner of the first pixel): a building in two parts has two rows there, whose
`PolygonWKT_Geo` is the whole building both times. So the pixels are taken, and the map only where these cannot be right
(8-band images with the table of the 3-band ones). Polygons may have elevations, which are dropped. Outlines follow the
roofs as drawn on the images; heights are unknown. Outside the strip pixels are 0 without a nodata tag.
"""

import csv
import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet import cli
from fusiondet.buildings import Building, SensorGeometry, Tile, clean_polygon, map_to_pixel, pixel_to_map
from fusiondet.converters import conversion, reports
from fusiondet.converters.cutting import KEPT_DTYPES, clip_labels, write_tile
from fusiondet.converters.pairing import expand, first_band_count, unique_stems
from fusiondet.converters.reports import UNUSABLE, Problems, Report
from fusiondet.converters.source import Made, Place, link
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from fusiondet.io.crs import transformer
from fusiondet.io.rasters import PixelWindow, open_raster
from fusiondet.io.scene_reader import SceneReader
from fusiondet.io.tile_rasters import TileRaster, read_tile_image
from fusiondet.io.vectors import UNKNOWN_HEIGHT, Layer, read_layer, transform_layer

import numpy as np
import shapely
from affine import Affine
from shapely.geometry.base import BaseGeometry

# A row with a longer line is no outline of a building.
MAX_ROW_BYTES = 16 << 20
# Bands of the published products, by their number.
BANDS = {
    1: ("pan",),
    3: ("red", "green", "blue"),
    4: ("red", "green", "blue", "nir"),
    8: ("coastal", "blue", "green", "yellow", "red", "red_edge", "nir1", "nir2"),
}
# An outline in pixels may leave the bounds of the same one on the map by so much.
_SAME_PLACE_PX = 2.0
# An outline that ends so close to the edge of its tile goes on beyond it.
_AT_EDGE_PX = 0.25


# ---- The table of a competition --------------------------------------------------------------------------


@dataclass(frozen=True)
class TableRow:
    """A row of a competition's table: its values by column, and where it stands, for messages."""

    values: dict[str, str]
    where: str

    def outline(self, column: str) -> BaseGeometry | None:
        """The geometry in a column of WKT; None where it is missing or damaged."""
        text = self.values.get(column)
        return shapely.from_wkt(text, on_invalid="ignore") if text else None


class CompetitionTable:
    """A competition's CSV, of which the rows of one image are read at a time.

    In memory there is the place of each row, not its outline. Why no library does this, measured on 300 MB with 391 205
    rows of 12 943 images; memory is the private peak, beyond what the imports take, and in each worker process:

        reader                          index, CPU s   memory   1000 images, s
        this one                        0.8            53 MB    0.2
        pyarrow.csv 26, rows by number  2.0 to 2.2     860 MB   29
        DuckDB 2.0, a table in a file   2.9 to 3.2     500 MB   1.4 (and 121 MB of disk)

    A row that is cut off within quotes swallows the correct row behind it in both libraries; neither keeps the numbers
    of lines for messages where lines are empty. Here each line stands for itself.

    Attributes:
        path: the file. columns: its header.
    """

    def __init__(self, path: Path, needed: Sequence[str]):
        """Find the rows of every image.

        Raises:
            InputError: no such file, no text, or a column in `needed` (ImageId first) is missing.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{path}: no such file; expected the table of a competition (CSV).")
        self._offsets: dict[str, list[tuple[int, int]]] = {}
        csv.field_size_limit(MAX_ROW_BYTES)
        with open(self.path, "rb") as f:
            head = self._parse(f.readline(MAX_ROW_BYTES)) or []
            self.columns = [name.strip().lstrip("\ufeff") for name in head]
            missing = [name for name in needed if name not in self.columns]
            if missing:
                raise InputError(
                    f"{self.path}: expected the table of a competition with {', '.join(needed)}, but column "
                    f"{missing[0]!r} is missing (columns: {', '.join(self.columns)[:200] or 'none'})."
                )
            column, number = self.columns.index(needed[0]), 1
            while True:
                offset, number = f.tell(), number + 1
                line = f.readline(MAX_ROW_BYTES)
                if not line:
                    break
                if line.strip():
                    # Image ids are never quoted, and nearly always come first: most of the file is not parsed.
                    name = line.split(b",", 1)[0] if column == 0 else None
                    name = (
                        name.decode("utf-8", "replace").strip().strip('"')
                        if name is not None
                        else (self._parse(line) + [""] * len(self.columns))[column]
                    )
                    self._offsets.setdefault(name, []).append((offset, number))

    def _parse(self, line: bytes) -> list[str]:
        try:
            return next(csv.reader([line.decode("utf-8", "replace")]), [])
        except csv.Error:
            return []

    @property
    def image_ids(self) -> list[str]:
        """Images with rows, in the order of the file."""
        return list(self._offsets)

    def rows(self, image_id: str) -> list[TableRow]:
        """Rows of an image, in the order of the file; none where it has none."""
        found = []
        with open(self.path, "rb") as f:
            for offset, number in self._offsets.get(image_id, ()):
                f.seek(offset)
                values = self._parse(f.readline(MAX_ROW_BYTES))
                where = f"{self.path}, line {number} (image {image_id})"
                found.append(TableRow(dict(zip(self.columns, values, strict=False)), where))
        return found


@functools.lru_cache(maxsize=4)
def open_table(path: Path, needed: tuple[str, ...]) -> CompetitionTable:
    """`CompetitionTable`, indexed once in each process."""
    return CompetitionTable(path, needed)


def table_outlines(
    rows: list[TableRow],
    id_column: str,
    choose: Callable[[TableRow], BaseGeometry | None],
    problems: Problems,
) -> tuple[list[tuple[TableRow, BaseGeometry]], Counter]:
    """Rows that are buildings with their outlines, and what happened to the others.

    A row with id -1 or an empty outline says that the image has no buildings. Rows whose text is damaged, e.g. cut off,
    are left out and named; so are repeated ids, whose rows are kept.

    Args:
        choose: outline of a row, valid or not; None where its text is damaged.
    """
    found, seen, counts = [], Counter(), Counter()
    for row in rows:
        name = (row.values.get(id_column) or "").strip()
        if name == "-1":
            continue
        outline = choose(row)
        if outline is None:
            problems.add(
                "rows with a damaged outline",
                f"{row.where}: building {name or '?'}: expected a polygon as WKT, found none or one that is cut off.",
            )
            continue
        if outline.is_empty:
            continue
        polygon = clean_polygon(outline)
        if polygon is None:
            counts["no area"] += 1
            continue
        seen[name] += 1
        if seen[name] == 2:
            problems.add(
                "identifiers of several buildings",
                f"{row.where}: {id_column} {name} occurs twice in this image; both rows are kept.",
            )
        found.append((row, polygon))
    return found, counts


# ---- Which labels belong to which image ------------------------------------------------------------------


def match_names(images: Sequence[str], labels: Sequence[str]) -> tuple[list[int | None], list[int]]:
    """(for each image the number of its label or None, numbers of labels without an image), by parts of names.

    A label belongs to an image when all parts of its name (letters and digits in a row) that not all labels have occur
    in the image's; the label with most parts, where several do. A single label's parts count if any image has them
    and not all.

    Raises:
        InputError: two labels fit one image equally well.
    """
    in_images, in_labels = [_parts(name) for name in images], [_parts(name) for name in labels]
    if len(labels) == 1:
        shared = frozenset.intersection(*in_images) if in_images else frozenset()
        needed = [in_labels[0] & frozenset().union(*in_images) - shared]
        if len(images) > 1 and not needed[0]:
            return [None] * len(images), [0]
    else:
        common = frozenset.intersection(*in_labels) if in_labels else frozenset()
        needed = [parts - common for parts in in_labels]
    frequency = Counter(part for parts in needed for part in parts)
    # Each label is looked up by its rarest part.
    by_part: dict[str, list[int]] = {}
    for number, parts in enumerate(needed):
        by_part.setdefault(min(parts, key=lambda part: (frequency[part], part), default=""), []).append(
            number
        )
    chosen: list[int | None] = []
    for name, parts in zip(images, in_images, strict=True):
        fitting = [n for part in (*parts, "") for n in by_part.get(part, ()) if needed[n] <= parts]
        fitting.sort(key=lambda n: (-len(needed[n]), n))
        if len(fitting) > 1 and len(needed[fitting[0]]) == len(needed[fitting[1]]):
            few = " and ".join(str(labels[n]) for n in fitting[:2])
            raise InputError(f"{name}: both {few} could be its labels. Rename them, or convert them apart.")
        chosen.append(fitting[0] if fitting else None)
    used = set(chosen)
    return chosen, [n for n in range(len(labels)) if n not in used]


def _parts(name: str) -> frozenset[str]:
    return frozenset(part for part in re.split(r"[^0-9a-z]+", name.lower()) if part)


# ---- Tiles of an image with its labels, for all SpaceNets ------------------------------------------------


@dataclass(frozen=True)
class TileRules:
    """How tiles are made of images.

    Attributes:
        max_nodata: largest share of pixels without data. min_area_m2: smallest building, and smallest rest of one.
        cut: copy the pixels of every tile.
    """

    max_nodata: float = 0.95
    min_area_m2: float = 2.0
    cut: bool = False

    def __post_init__(self):
        """Refuse numbers that make no sense, naming the parameter."""
        for name, value, low, high in (
            ("max_nodata", self.max_nodata, 0, 1),
            ("min_area_m2", self.min_area_m2, 0, 1e6),
        ):
            if not low <= value <= high:
                raise InputError(f"`{name}={value}`: expected {low:g} to {high:g}.")


def add_rule_arguments(parser) -> None:
    """Options of `TileRules`."""
    parser.add_argument(
        "--max-nodata",
        type=float,
        default=TileRules.max_nodata,
        metavar="SHARE",
        help="leave out tiles with a larger share of no data (default: %(default)s)",
    )
    parser.add_argument(
        "--min-area-m2",
        type=float,
        default=TileRules.min_area_m2,
        metavar="M2",
        help="drop smaller buildings and clippings (default: %(default)s)",
    )
    parser.add_argument(
        "--cut",
        action="store_true",
        help="copy the pixels of every tile (default: refer to the archive's files)",
    )


def rules_from(args) -> TileRules:
    """`TileRules` of a command line with `add_rule_arguments`."""
    return TileRules(args.max_nodata, args.min_area_m2, args.cut)


def turned(transform: Affine, width: int, height: int) -> Affine:
    """Pixel -> map of an image of that size that was turned by 180 degrees."""
    return transform * Affine(-1, 0, width, 0, -1, height)


class ImageTiles:
    """An image that is open, from which tiles are made: a context manager.

    Attributes:
        reader: on whose grid the image is.
        grid: pixel -> map of the image as its tiles show it, turned or not.
    """

    def __init__(
        self,
        optical: Path | None,
        sar: Path | None,
        bands: BandSpec,
        rules: TileRules,
        name_of: Callable[[Path, Path], str],
        turn: bool = False,
        nodata: float | None = None,
        **options,
    ):
        """Open the files.

        Args:
            optical, sar: its files; with neither, or without one of a modality in `bands`, that modality is missing.
            name_of: (a raster, folder of the data set) -> its name there, to which it makes a link.
            turn: tiles show the image turned by 180 degrees; their transforms are turned too, so that outlines,
                azimuths and predictions stay where they are on the map.
            nodata, options: keyword arguments of `SceneReader`.
        """
        self.bands, self.rules, self.turn, self._nodata, self._name_of = bands, rules, turn, nodata, name_of
        self._rescaled = options.get("sar_scale") not in (None, bands.sar_scale)
        self.reader = SceneReader(optical, sar, bands, nodata=nodata, **options)
        self._files = {"optical": optical if bands.optical else None, "sar": sar if bands.sar else None}
        self._main = "optical" if bands.optical else "sar"
        size = self.reader.width, self.reader.height
        self.grid = turned(self.reader.transform, *size) if turn else self.reader.transform

    def make(
        self, place: Place, labels: list[Building], out: Path, sensor: SensorGeometry | None = None
    ) -> Made:
        """The tile at `place`: labels clipped to it and to its valid pixels, rasters referred to.

        Pixels are written, under `out`, only where they have to be: `TileRules.cut`, a SAR file on another grid or in
        another scale than the data set's, a turned tile.

        Args:
            place: its window is in pixels of the image as tiles show it.
            labels: in the CRS of the image.
        """
        reader, rules = self.reader, self.rules
        x0, y0, width, height = place.window
        window = place.window
        if self.turn:
            window = (reader.width - x0 - width, reader.height - y0 - height, width, height)
        parts = {modality: self._part(modality, window) for modality, path in self._files.items() if path}
        image = None if all(parts.values()) else self._read(window)
        valid = np.isfinite(self._main_pixels(image, parts[self._main])).all(axis=0)
        if 1 - valid.mean() > rules.max_nodata:
            return Made(None, {"tiles": Counter({"left out as no data": 1})})
        counts = Counter()
        in_pixels = [_in_pixels(building, self.grid) for building in labels]
        least_px = rules.min_area_m2 / reader.gsd_m**2
        buildings = clip_labels(
            [b for b in in_pixels if b is not None], place.window, valid, least_px, counts
        )
        # Label files may be cut at their tile already, so that nothing is left to be cut here.
        frame = shapely.box(0, 0, width, height).buffer(-_AT_EDGE_PX, join_style="mitre")
        counts["at a tile's edge"] = sum(not frame.covers(b.polygon) for b in buildings)
        del counts["cut by a tile's edge"]
        transform = self.grid * Affine.translation(x0, y0)
        tile = Tile(
            width=width,
            height=height,
            gsd_m=reader.gsd_m,
            crs=reader.crs,
            transform=tuple(transform)[:6],
            sensor=sensor or SensorGeometry(),
            buildings=buildings,
            **self._rasters(parts, image, place, transform, out),
        )
        unknown = Counter(b.attributes.get(UNKNOWN_HEIGHT) for b in buildings if b.height_m is None)
        unknown.pop(None, None)
        origin = {f"{name} {'as it is' if part else 'written'}": 1 for name, part in parts.items()}
        return Made(tile, {"labels": counts, "unknown_heights": unknown, "rasters": Counter(origin)})

    def _part(self, modality: str, window: PixelWindow) -> TileRaster | None:
        """`window` of the modality's file where a tile can refer to it."""
        if self.rules.cut or self.turn or (modality == "sar" and self._rescaled):
            return None
        return self.reader.in_file(modality, window)

    def _read(self, window: PixelWindow) -> np.ndarray:
        image = self.reader.read(window).image
        return image[:, ::-1, ::-1] if self.turn else image

    def _main_pixels(self, image: np.ndarray | None, part: TileRaster | None) -> np.ndarray:
        """The pixels whose validity counts: the optical ones, where there are any."""
        n = len(self.bands.optical)
        if image is not None:
            return image[:n] if n else image
        if n:  # SAR is not needed, and is most of the bytes
            only = BandSpec(self.bands.optical)
            return read_tile_image(part, None, only, only, self._nodata)
        return read_tile_image(None, part, self.bands, self.bands, self._nodata)

    def _rasters(self, parts: dict, image, place: Place, transform: Affine, out: Path) -> dict:
        """`Tile`'s names, windows and indexes of the rasters."""
        n, found = len(self.bands.optical), {}
        name = f"{place.name}_x{place.window[0]:05d}_y{place.window[1]:05d}.tif"
        for modality, part in parts.items():
            first = modality == self._main
            keys = (
                ("file_name", "window", "indexes")
                if first
                else ("sar_file_name", "sar_window", "sar_indexes")
            )
            if part is not None:
                names = (self._name_of(self._files[modality], out), part.window, part.indexes)
                found |= dict(zip(keys, names, strict=True))
                continue
            pixels = image[:n] if modality == "optical" else image[n:]
            if not first and not np.isfinite(pixels).any():
                continue
            folder = "rgb" if modality == "optical" else "sar"
            if modality == "optical":
                dtype, nodata = self.reader.optical_format
                dtype = dtype if dtype in KEPT_DTYPES else "float32"
            else:
                dtype, nodata = "float32", None
            names = self.bands.optical if modality == "optical" else self.bands.sar
            write_tile(out / folder / name, pixels, dtype, nodata, names, transform, self.reader.crs)
            found[keys[0]] = f"{folder}/{name}"
        return found

    def close(self) -> None:
        """Close the files."""
        self.reader.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _in_pixels(building: Building, grid: Affine) -> Building | None:
    polygon = clean_polygon(map_to_pixel(building.polygon, grid))
    return None if polygon is None else dataclasses.replace(building, polygon=polygon)


def label_layer(path: Path, problems: Problems, **options) -> Layer:
    """The footprints of a label file in its own CRS; repeated identifiers are a problem. Options are `read_layer`'s."""
    layer = read_layer(path, **options)
    repeated = layer.counts.get("identifiers of several rows")
    if repeated:
        note = next(note for note in layer.notes if "stand in several rows" in note)
        note = note.removesuffix(" Join them with `join_parts=True`.")  # there is no such option here
        problems.add("label files with one identifier for several buildings", f"{path.parent}/{note}")
    return layer


def in_crs_of(layer: Layer, reader: SceneReader, path: Path) -> Layer:
    """The footprints of the file `path` in the CRS of an image; those that name none are in it already.

    Raises:
        InputError: the image has no CRS.
    """
    if layer.crs and reader.crs:
        return transform_layer(layer, reader.crs)
    if layer.crs:
        raise InputError(
            f"{path}: is in {layer.crs}, but its image has no CRS. Set it: `rio edit-info --crs EPSG:n FILE`."
        )
    return layer


def refuse_labels_elsewhere(labels: list[Building], reader: SceneReader, path: Path, name: str) -> None:
    """Refuse a tile with labels of which none is on it: as one without buildings it would teach what is wrong.

    Args:
        labels: in the CRS of the image. path, name: their file and the tile, for the message.

    Raises:
        InputError: none of `labels` touches the image.
    """
    frame = shapely.box(0, 0, reader.width, reader.height)
    if labels and not any(map_to_pixel(b.polygon, reader.transform).intersects(frame) for b in labels):
        x0, y0, x1, y1 = shapely.total_bounds([b.polygon for b in labels])
        raise InputError(
            f"{path}: none of the {len(labels)} buildings of tile {name} is on it; they lie at x {x0:.8g} to {x1:.8g}, "
            f"y {y0:.8g} to {y1:.8g} in its CRS. Are they the labels of another tile, or is their CRS wrong?"
        )


# ---- The source ------------------------------------------------------------------------------------------

TABLE_COLUMNS = ("ImageId", "BuildingId", "PolygonWKT_Pix")


@dataclass
class SpaceNet:
    """Images with label files or the table of a competition: a `conversion.Source`.

    Attributes:
        images, stems: files, and unique names for them. labels: label file of each, or None. ids: its ImageId in
            `table`, or None. table: the competition's CSV, or None.
        unused_labels, unused_ids: label files and ids of the table that belong to no image.
    """

    images: list[Path]
    stems: list[str]
    labels: list[Path | None]
    ids: list[str | None]
    table: Path | None
    bands: BandSpec
    rules: TileRules
    nodata: float | None = 0.0
    unused_labels: list[Path] = field(default_factory=list)
    unused_ids: list[str] = field(default_factory=list)

    def files(self) -> Iterable[Path]:
        """Images, label files and the table."""
        return [*self.images, *(p for p in (*self.labels, self.table) if p is not None)]

    def places(self, problems: Problems) -> list[Place]:
        """One for each image that has labels; a tile that only lacks its label file is no tile without buildings."""
        for path in self.unused_labels:
            problems.add("labels without an image", f"{path}: no image has a name that goes with it.")
        for name in self.unused_ids:
            problems.add(
                "labels without an image", f"{self.table}: no image has a name that goes with {name}."
            )
        found = []
        for number, path in enumerate(cli.progress(self.images, label="headers", unit="image")):
            if self.labels[number] is None and self.ids[number] is None:
                where = " and ".join(
                    words
                    for words in (
                        "no label file" * any(self.labels),
                        "no row of the table" * bool(self.table),
                    )
                    if words
                )
                problems.add(
                    "images without labels", f"{path}: {where or 'no label'} goes with it; left out."
                )
                continue
            try:
                with open_raster(path) as raster:
                    crs = raster.crs.to_string() if raster.crs else None
                    transform = None if raster.transform.is_identity else tuple(raster.transform)[:6]
                    window = (0, 0, raster.width, raster.height)
            except InputError as error:
                problems.add(UNUSABLE, str(error))
                continue
            found.append(Place(self.stems[number], number, window, transform, crs))
        return found

    def make(self, place: Place, out: Path, problems: Problems) -> Made:
        """The tile of an image."""
        path = self.images[place.image]
        with ImageTiles(
            path, None, self.bands, self.rules, self._name_of(place), nodata=self.nodata
        ) as image:
            labels, counts = self._labels(place.image, image.reader, problems)
            # A file of a whole city may have no building on a tile.
            if self.labels[place.image] not in self._shared:
                where = self.labels[place.image] or self.table
                refuse_labels_elsewhere(labels, image.reader, where, place.name)
            made = image.make(place, labels, out)
        made.counts.setdefault("labels", Counter()).update(counts)
        return made

    @functools.cached_property
    def _shared(self) -> set[Path]:
        """Label files of several images."""
        return {path for path, n in Counter(self.labels).items() if n > 1 and path is not None}

    def _name_of(self, place: Place) -> Callable[[Path, Path], str]:
        return lambda path, out: link(out, f"images/{place.name}{path.suffix}", path)

    def _labels(self, number: int, reader: SceneReader, problems: Problems) -> tuple[list[Building], Counter]:
        """Buildings of an image in its CRS, and what happened to other labels."""
        of_file, of_table, counts = None, None, Counter()
        if self.labels[number] is not None:
            path = self.labels[number]
            layer = in_crs_of(label_layer(path, problems), reader, path)
            of_file, counts = layer.buildings, layer.geometry
        if self.ids[number] is not None:
            of_table, table_counts = self._of_table(self.ids[number], reader, problems)
            counts = counts if of_file is not None else table_counts
        if of_file is not None and of_table is not None:
            # A building in two parts is one feature and two rows.
            parts = sum(len(getattr(b.polygon, "geoms", [b.polygon])) for b in of_file)
            if parts != len(of_table):
                problems.add(
                    "images whose label file and table differ",
                    f"{self.labels[number]}: {len(of_file)} features with {parts} parts, but {len(of_table)} rows in "
                    f"{self.table}; the label file is taken.",
                )
        return of_file if of_file is not None else of_table, counts

    def _of_table(
        self, image_id: str, reader: SceneReader, problems: Problems
    ) -> tuple[list[Building], Counter]:
        rows = open_table(self.table, TABLE_COLUMNS).rows(image_id)
        frame = _Frame(reader)
        found, counts = table_outlines(rows, "BuildingId", frame.outline_px, problems)
        if frame.from_map:
            counts["taken from PolygonWKT_Geo (pixels of another image)"] = frame.from_map
        buildings, seen = [], set()
        for row, polygon in found:
            key = shapely.normalize(polygon).wkb
            if key in seen:
                counts["repeated outlines"] += 1
                continue
            seen.add(key)
            buildings.append(
                Building(pixel_to_map(polygon, reader.transform), outline="roof", id=row.values["BuildingId"])
            )
        return buildings, counts

    def finish(self, sample: Dataset, report: Report) -> None:
        """Heights are unknown: say so."""
        report.notes.append("SpaceNet 1 to 5 have no heights: every height is unknown.")

    def info(self) -> dict:
        """Where the tiles come from."""
        return {
            "description": f"SpaceNet tiles of {len(self.images)} images",
            "licence": "CC BY-SA 4.0 (SpaceNet LLC)",
            "outline": "as drawn on the images: roofs",
        }


class _Frame:
    """Outlines of a table's rows in the pixels of an image.

    Attributes:
        from_map: rows whose outline in pixels is not on the image's grid, so that the one on the map was taken.
    """

    def __init__(self, reader: SceneReader):
        self.from_map = 0
        self._inverse = ~reader.transform
        self._convert = None
        if reader.crs is not None:
            self._convert = transformer("EPSG:4326", reader.crs).transform

    def outline_px(self, row: TableRow) -> BaseGeometry | None:
        in_pixels, on_map = row.outline("PolygonWKT_Pix"), self._on_map(row)
        if in_pixels is None or in_pixels.is_empty or on_map is None:
            return in_pixels
        left, top, right, bottom = on_map.bounds
        x0, y0, x1, y1 = in_pixels.bounds
        slack = _SAME_PLACE_PX
        if x0 >= left - slack and y0 >= top - slack and x1 <= right + slack and y1 <= bottom + slack:
            return in_pixels
        self.from_map += 1
        return on_map

    def _on_map(self, row: TableRow) -> BaseGeometry | None:
        """The row's outline on the map, in pixels; None where there is none.

        Longitude and latitude, or where it cannot be those, the image's own CRS.
        """
        geometry = row.outline("PolygonWKT_Geo")
        if geometry is None or geometry.is_empty or self._convert is None:
            return None
        x, y = shapely.get_coordinates(geometry).T
        if np.abs(x).max() <= 360 and np.abs(y).max() <= 90:
            x, y = self._convert(x, y)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return None
        return shapely.set_coordinates(shapely.force_2d(geometry), np.column_stack(self._inverse * (x, y)))


def source_of(
    images: Sequence[str],
    labels: Sequence[str],
    table: Path | None,
    rules: TileRules,
    band_names: Sequence[str] | None = None,
    nodata: float | None = 0.0,
) -> SpaceNet:
    """The source of `prepare_dataset.py spacenet`; see `add_arguments`.

    Raises:
        InputError: no images or labels, or names that do not tell which label belongs to which image.
    """
    if not labels and table is None:
        raise InputError("no labels: pass `labels`, `table` or both.")
    image_files = expand(images, (".tif", ".tiff"), "images")
    label_files = expand(labels, (".geojson", ".json"), "labels") if labels else []
    stems = unique_stems(image_files)
    of_file, unused = match_names([p.stem for p in image_files], [p.stem for p in label_files])
    ids: list[str | None] = [None] * len(image_files)
    unused_ids: list[str] = []
    if table is not None:
        known = open_table(Path(table), TABLE_COLUMNS).image_ids
        numbers, left = match_names([p.stem for p in image_files], known)
        ids = [None if n is None else known[n] for n in numbers]
        unused_ids = [known[n] for n in left]
    return SpaceNet(
        image_files,
        stems,
        [None if n is None else label_files[n] for n in of_file],
        ids,
        None if table is None else Path(table),
        BandSpec(_band_names(image_files, band_names)),
        rules,
        nodata,
        [label_files[n] for n in unused],
        unused_ids,
    )


def _band_names(images: list[Path], asked: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the bands, as asked for or told by their number in the first image that can be read."""
    path, count = first_band_count(images)
    if asked and len(asked) != count:
        raise InputError(
            f"`band_names={list(asked)}`: names {len(asked)} bands, but {path} has {count}. Name each of them."
        )
    if not asked and count not in BANDS:
        raise InputError(
            f"{path}: has {count} bands; say what they are with `band_names` (known without: "
            f"{', '.join(map(str, BANDS))} bands)."
        )
    return tuple(asked or BANDS[count])


def add_arguments(parser) -> None:
    """Options of `prepare_dataset.py spacenet`."""
    parser.add_argument(
        "--images",
        nargs="+",
        required=True,
        metavar="GLOB",
        help="tiles (GeoTIFF): files, patterns or a folder",
    )
    parser.add_argument(
        "--labels", nargs="+", default=[], metavar="GLOB", help="footprints, a GeoJSON for each tile"
    )
    parser.add_argument(
        "--csv",
        dest="table",
        type=Path,
        metavar="FILE",
        help="table of the competition, with PolygonWKT_Pix",
    )
    parser.add_argument(
        "--band-names",
        nargs="+",
        metavar="NAME",
        help="names of the images' bands (default: pan, red green blue [nir], or WorldView's eight, by their number)",
    )
    parser.add_argument(
        "--nodata",
        type=float,
        default=0.0,
        metavar="NUMBER",
        help="means no data where a file declares none (default: 0, the black border)",
    )
    add_rule_arguments(parser)
    conversion.add_arguments(parser, skips=True)


def main(args) -> None:
    """Run `prepare_dataset.py spacenet`."""
    rules = rules_from(args)
    names = ("images", "labels", "band_names", "nodata")
    recipe = {name: getattr(args, name) for name in names} | {"csv": args.table} | dataclasses.asdict(rules)
    source = source_of(args.images, args.labels, args.table, rules, args.band_names, args.nodata)
    report = conversion.convert(
        source, args.out, conversion.options_from(args), {"source": "spacenet", **recipe}
    )
    reports.show(report, args.out)
