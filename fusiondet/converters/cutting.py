"""Rasters of any size with footprints as a source of tiles: windows of pixels, labels clipped to them, heights."""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.buildings import Building, SensorGeometry, Tile, clean_polygon
from fusiondet.converters.reports import COMPARED, UNUSABLE, Problems, Report
from fusiondet.converters.source import Made, Place, link
from fusiondet.converters.zonal_heights import NO_DATA, HeightRaster, statistic
from fusiondet.errors import InputError
from fusiondet.geometry.painting import mask_to_polygon, polygon_to_mask
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from fusiondet.io.crs import parse_crs, transformer
from fusiondet.io.labels import check_height_labels
from fusiondet.io.rasters import PixelWindow, open_raster
from fusiondet.io.scene_reader import Scene, SceneReader
from fusiondet.io.tile_rasters import TileRaster
from fusiondet.io.vectors import UNKNOWN_HEIGHT, Layer, transform_layer
from fusiondet.io.whole_tiff import whole_tiff

import numpy as np
import rasterio
import shapely
from affine import Affine
from shapely.affinity import translate

# Tiles keep the dtype of the optical file if it is one of these, which float32 holds exactly; else they are float32.
KEPT_DTYPES = ("uint8", "uint16", "int16", "float32")
# Tiles of one image: a country at half a metre has some million.
MAX_TILES = 10_000_000
# What the last tiles of an image do; see `windows`.
EDGES = ("overlap", "crop")
# A building is cut along no data only where that is a region; single dark pixels that equal the nodata number are not.
MIN_HOLE_PX = 25
# What is added to the source of a height whose ground was taken from around the outline, and what counts these.
GROUND_AROUND, AROUND = " (ground around the outline)", "on ground around the outline"
# A tile that refers to its raster is read in the raster's blocks: from so many times its own pixels on, that is slow.
SLOW_BLOCKS = 8


@dataclass
class Image:
    """One image of a mosaic with its labels.

    Attributes:
        stem: start of the tiles' names. rgb, sar: its files, several where each has a band. layer: number of its
            layer of footprints.
        heights: keyword arguments of `HeightRaster`, all None for none.
    """

    stem: str
    rgb: list[Path]
    sar: list[Path]
    layer: int
    heights: dict[str, Path | None]

    @property
    def files(self) -> list[Path]:
        """All its rasters."""
        return [*self.rgb, *self.sar, *(p for p in self.heights.values() if p is not None)]


# What happened to outlines that leaves none.
_UNUSABLE = ("no geometry", "no area", "sides that cross too often", "outside the CRS")


@dataclass
class Mosaic:
    """Images with footprints, cut into windows: a `conversion.Source`.

    Attributes:
        layers: footprints; see `Image.layer`.
        label_files: what they were read from.
        options: keyword arguments of `SceneReader`.
        zonal: statistic of the height rasters' pixels inside an outline.
        height_unit: of heights in rasters that state none, see `HeightRaster`.
        tile_size, overlap: pixels. edge: see `windows`.
        max_nodata: largest share of invalid pixels of a tile. min_area_m2: smallest building.
        cut: copy the pixels of every tile; else a tile refers to its rasters wherever their grid is the tiles'.
        notes: sentences for the user on what was decided before.
        footprint_counts: what the layers hold; "read" is the number of footprints. footprint_checks: what 3DBAG says
            against its buildings. footprint_reasons: why heights of the layers are unknown, each building counted once.
        facts: for `info`.
    """

    images: list[Image]
    layers: list[Layer]
    bands: BandSpec
    nodata: float | None
    label_files: list[Path]
    options: dict
    zonal: str = "median"
    height_unit: str | None = None
    tile_size: int = 512
    overlap: int = 0
    edge: str = "overlap"
    max_nodata: float = 0.95
    min_area_m2: float = 2.0
    sensor: SensorGeometry = field(default_factory=SensorGeometry)
    cut: bool = False
    notes: list[str] = field(default_factory=list)
    footprint_counts: Counter = field(default_factory=Counter)
    footprint_checks: Counter = field(default_factory=Counter)
    footprint_reasons: Counter = field(default_factory=Counter)
    facts: dict = field(default_factory=dict)
    _opened: "tuple[int, _OpenImage] | None" = None
    _edge_notes: list[str] = field(default_factory=list)

    def __getstate__(self):
        return {**vars(self), "_opened": None}

    def files(self) -> Iterable[Path]:
        """Rasters and label files."""
        return [*self.label_files, *(path for image in self.images for path in image.files)]

    def places(self, problems: Problems) -> list[Place]:
        """Windows that cover every image."""
        found, images_px = [], 0
        for number, image in enumerate(self.images):
            try:
                reader = self._open(number).reader
            except InputError as error:
                problems.add(UNUSABLE, str(error))
                continue
            transform = tuple(reader.transform)[:6]
            found += [
                Place(image.stem, number, window, transform, reader.crs)
                for window in windows(reader.width, reader.height, self.tile_size, self.overlap, self.edge)
            ]
            images_px += reader.width * reader.height
        self._edge_notes = edge_notes(sum(math.prod(p.window[2:]) for p in found), images_px, self.overlap)
        return found

    def make(self, place: Place, out: Path, problems: Problems) -> Made:
        """The tile at `place`; left out with too few valid pixels."""
        return self._open(place.image).make(place, out)

    def finish(self, sample: Dataset, report: Report) -> None:
        """Note what there is to say about heights and labels of the finished tiles.

        Raises:
            InputError: the height rasters are elevations, say; or none of the footprints lies on the images.
        """
        self._close()
        report.more = {
            "images": Counter({"read": len(self.images)}),
            "footprints": self.footprint_counts,
            **({"footprints of unknown height": self.footprint_reasons} if self.footprint_reasons else {}),
            **({"3DBAG's checks": self.footprint_checks} if self.footprint_checks else {}),
            **report.more,
        }
        report.notes += [*self.notes, *self._edge_notes, *self._height_notes(sample)]
        if report.labels[AROUND]:
            report.notes.append(
                f"{report.labels[AROUND]} of {report.labels['kept']} labels stand where the terrain has no data: their "
                f"heights are above the ground around them."
            )
        if not self.footprint_counts["read"]:
            report.notes.append("the footprints are empty: every tile is a negative.")
        elif not sum(report.labels.values()):
            raise InputError(self._why_no_footprint())

    def _why_no_footprint(self) -> str:
        """Why no image has a building: no outline could be read, or all lie elsewhere."""
        lost = {
            reason: n
            for reason, n in self.footprint_counts.items()
            if reason in _UNUSABLE or reason.startswith("dropped: ")
        }
        read, files = self.footprint_counts["read"], ", ".join(path.name for path in self.label_files)
        if sum(lost.values()) >= read:
            counted = ", ".join(f"{reason} {n}" for reason, n in lost.items())
            return (
                f"{files}: none of {read} footprints can be used ({counted}). Expected polygons; "
                "`ogr2ogr -nlt MULTIPOLYGON OUT.gpkg IN` makes them of lines and surfaces."
            )
        polygons = [b.polygon for layer in self.layers for b in layer.buildings]
        x0, y0, x1, y1 = shapely.total_bounds(polygons)
        return (
            f"{files}: none of {read - sum(lost.values())} footprints lies on the images. They are at x {x0:.8g} to "
            f"{x1:.8g}, y {y0:.8g} to {y1:.8g} of {(self.layers[0].crs or 'no CRS')[:60]}. Are the CRS of both right "
            "(`footprints_crs` says what the footprints' is), and is it the same place?"
        )

    def _height_notes(self, sample: Dataset) -> list[str]:
        files = ", ".join(
            dict.fromkeys(p.name for image in self.images for p in image.heights.values() if p is not None)
        )
        try:
            return check_height_labels({files: sample} if files and sample.tiles else {}, "ndsm")
        except InputError as error:
            raise InputError(f"{files}: {str(error).replace(f'{sample.root.resolve()}/', 'tile ')}") from None

    def info(self) -> dict:
        """`facts`."""
        return self.facts

    def _open(self, number: int) -> "_OpenImage":
        """The image of that number; one at a time is kept open."""
        if self._opened is None or self._opened[0] != number:
            self._close()
            self._opened = number, _OpenImage(self, self.images[number])
        return self._opened[1]

    def _close(self) -> None:
        if self._opened is not None:
            self._opened[1].files.close()
            self._opened = None


class _OpenImage:
    """An image of a mosaic, open, with its labels in its pixels."""

    def __init__(self, mosaic: Mosaic, image: Image):
        self.mosaic, self.image = mosaic, image
        with ExitStack() as files:
            self.reader = files.enter_context(
                SceneReader(
                    image.rgb or None, image.sar or None, mosaic.bands, nodata=mosaic.nodata, **mosaic.options
                )
            )
            self.heights = (
                files.enter_context(HeightRaster(**image.heights, height_unit=mosaic.height_unit))
                if any(image.heights.values())
                else None
            )
            self.files = files.pop_all()
        self._labels: dict[int, tuple[Building, str | None]] = {}
        # Of buildings under which the terrain has no data: their number -> elevation of the ground around them, metres.
        self._grounds: dict[int, float] = {}
        self._linked: set[tuple[Path, str]] = set()
        self._has_no_gaps = self.reader.has_no_gaps("optical" if mosaic.bands.optical else "sar")

    @functools.cached_property
    def _near(self) -> tuple[list[Building], np.ndarray, np.ndarray, shapely.STRtree]:
        """Buildings that may touch the image, their outlines in its pixels as they are, which of these have nothing to
        be cleaned, and an index of them.
        """
        try:
            local, tree = _in_crs(self.mosaic.layers[self.image.layer], self.reader.crs)
        except InputError as error:
            raise InputError(f"{(self.image.rgb or self.image.sar)[0]}: {error}") from None
        buildings = [local.buildings[i] for i in sorted(tree.query(_ground(self.reader)))]
        inverse = ~self.reader.transform
        outlines_px = shapely.transform(
            np.array([b.polygon for b in buildings], dtype=object),
            lambda xy: np.column_stack(inverse * (xy[:, 0], xy[:, 1])),
        )
        return buildings, outlines_px, _is_clean(outlines_px), shapely.STRtree(outlines_px)

    def _label(self, index: int, counts: Counter) -> Building | None:
        """A building in the image's pixels, with its height; None when nothing of it is left there."""
        if index not in self._labels:
            buildings, outlines_px, clean, _ = self._near
            outline_px = outlines_px[index] if clean[index] else clean_polygon(outlines_px[index])
            building = buildings[index]
            if outline_px is not None and self.heights is not None:
                building, compared = self._with_zonal_height(index, building)
                counts.update(compared)
            self._labels[index] = outline_px and dataclasses.replace(building, polygon=outline_px)
        return self._labels[index]

    def _with_zonal_height(self, index: int, building: Building) -> tuple[Building, dict]:
        """`building` with the height that its raster says, and the sums that compare it with the one it had."""
        polygon = _moved(building.polygon, self.reader.crs, self.heights.crs)
        measure, source = statistic(self.mosaic.zonal), self.heights.source
        height_m, reason = self.heights.of(polygon, measure)
        if reason == NO_DATA and (ground_m := self.heights.ground_around(polygon)) is not None:
            height_m, reason = self.heights.of(polygon, measure, ground_m)
            source += GROUND_AROUND
            self._grounds[index] = ground_m
        if height_m is None:
            facts = {"height_source": None, "height_stat": None, "height_datum": None}
            return dataclasses.replace(
                building, height_m=None, attributes={**building.attributes, UNKNOWN_HEIGHT: reason}, **facts
            ), {}
        facts = {
            "height_source": source,
            "height_stat": self.mosaic.zonal,
            "height_datum": "ground",
        }
        compared = {}
        if building.height_m is not None:
            difference_m = height_m - building.height_m
            compared = {"n": 1, "abs_m": abs(difference_m), "sum_m": difference_m}
        return dataclasses.replace(building, height_m=height_m, **facts), compared

    def make(self, place: Place, out: Path) -> Made:
        x0, y0, width, height = place.window
        mosaic, reader = self.mosaic, self.reader
        pixels, valid = self._pixels(place.window)
        if valid is not None and 1 - valid.mean() > mosaic.max_nodata:
            return Made(None, {"tiles": Counter({"left out as no data": 1})})
        labels, compared = Counter(), Counter()
        near = sorted(self._near[3].query(shapely.box(x0, y0, x0 + width, y0 + height)))
        found = [self._label(i, compared) for i in near]
        buildings = clip_labels(
            [b for b in found if b is not None],
            place.window,
            _all_valid(height, width) if valid is None else valid,
            mosaic.min_area_m2 / reader.gsd_m**2,
            labels,
        )
        transform = reader.transform * Affine.translation(x0, y0)
        if around := sum((b.height_source or "").endswith(GROUND_AROUND) for b in buildings):
            labels[AROUND] = around
        grounds = [
            (translate(self._labels[i].polygon, -x0, -y0), self._grounds[i])
            for i in near
            if i in self._grounds
        ]
        rasters, notes = self._rasters(place, pixels, valid, transform, out, grounds)
        tile = Tile(
            width=width,
            height=height,
            gsd_m=reader.gsd_m,
            crs=reader.crs,
            transform=tuple(transform)[:6],
            sensor=mosaic.sensor,
            buildings=buildings,
            **rasters,
        )
        unknown = Counter(b.attributes.get(UNKNOWN_HEIGHT) for b in buildings if b.height_m is None)
        unknown.pop(None, None)
        counts = {"labels": labels, "unknown_heights": unknown, **({COMPARED: compared} if compared else {})}
        told = self.heights.notes if self.heights is not None else []
        return Made(tile, counts, [*reader.notes, *told, *notes])

    def _pixels(self, window: PixelWindow) -> tuple[Scene | np.ndarray | None, np.ndarray | None]:
        """(what was read of the tile, its (h, w) validity), as little as will do.

        The first is a scene, or the optical file's numbers where nothing else will be written, or None where the tile
        refers to its rasters. The second is None where no pixel has to be read to know that all of them are valid.
        """
        cut, optical = self.mosaic.cut, self.mosaic.bands.optical
        if self.reader.in_file("optical" if optical else "sar", window) is not None:
            if not cut and self._has_no_gaps:
                return None, None
            if optical and (not cut or self._is_copied):
                pixels, valid = self.reader.read_file("optical", window)
                return (pixels if cut else None), valid
        scene = self.reader.read(window)
        first = scene.image[: len(optical)] if optical else scene.image
        return scene, np.isfinite(first).all(axis=0)

    @functools.cached_property
    def _is_copied(self) -> bool:
        """Whether a tile that is cut out holds the optical file's numbers, and nothing else."""
        sar = self.mosaic.bands.sar and self.image.sar
        return bool(self.mosaic.bands.optical) and not sar and self.reader.optical_format[0] in KEPT_DTYPES

    def _rasters(self, place: Place, pixels, valid, transform: Affine, out: Path, grounds=()):
        """`Tile`'s names of its rasters, which are written where there is no other way, and notes; see `_pixels`.

        `grounds`: see `HeightRaster.onto`.
        """
        bands, image, reader = self.mosaic.bands, self.image, self.reader
        name = f"{image.stem}_x{place.window[0]:05d}_y{place.window[1]:05d}.tif"
        n = len(bands.optical)
        grid = {"transform": transform, "crs": reader.crs}
        found, notes = {}, []
        for modality, files, keys in (
            ("optical", image.rgb, ("file_name", "window", "indexes")),
            ("sar", image.sar, ("sar_file_name", "sar_window", "sar_indexes")),
        ):
            names = getattr(bands, modality)
            if not files or not names:
                continue
            keys = keys if n else ("file_name", "window", "indexes")
            folder = "rgb" if modality == "optical" else "sar"
            part = None if self.mosaic.cut else reader.in_file(modality, place.window)
            if part is not None and (modality == "optical" or self._same_scale()):
                target = self._link(out, f"{folder}/{image.stem}{files[0].suffix}", files[0])
                found |= dict(zip(keys, (target, part.window, part.indexes), strict=True))
                notes += _slow(part, place.window)
                continue
            found[keys[0]] = f"{folder}/{name}"
            if isinstance(pixels, np.ndarray):
                nodata = self._format(modality)[1]
                packed = _is_packed(files[0])
                _write(out / folder / name, pixels, valid, nodata, names, **grid, packed=packed)
                continue
            pixels = pixels or reader.read(place.window)
            image = (
                pixels.image[:n] if modality == "optical" else _in_scale(pixels.image[n:], bands.sar_scale)
            )
            if modality == "sar" and n and not np.isfinite(image).any():
                del found[keys[0]]
                continue
            write_tile(out / folder / name, image, *self._format(modality), names, **grid)
        if self.heights is not None:
            crs = rasterio.crs.CRS.from_user_input(reader.crs) if reader.crs else None
            ndsm = self.heights.onto(transform, crs, place.window[:1:-1], grounds)
            # A CRS in feet would be taken for the unit of heights as well.
            write_tile(out / "ndsm" / name, ndsm[None], "float32", None, ("ndsm",), **grid, unit="m")
            found["ndsm_file_name"] = f"ndsm/{name}"
        return found, notes

    def _link(self, out: Path, name: str, target: Path) -> str:
        if (out, name) not in self._linked:
            link(out, name, target)
            self._linked.add((out, name))
        return name

    def _same_scale(self) -> bool:
        """Whether the SAR file holds what the data set says that its SAR files hold."""
        return (
            self.mosaic.options.get("sar_scale") or self.mosaic.bands.sar_scale
        ) == self.mosaic.bands.sar_scale

    def _format(self, modality: str) -> tuple[str, float | None]:
        """(dtype, nodata number) of a written tile."""
        if modality == "sar":
            return ("uint8" if self.mosaic.bands.sar_scale == "stretched_uint8" else "float32"), None
        dtype, nodata = self.reader.optical_format
        return (dtype if dtype in KEPT_DTYPES else "float32"), nodata


@functools.lru_cache(maxsize=4)
def _all_valid(height: int, width: int) -> np.ndarray:
    """The validity of a tile without gaps; tiles share it."""
    valid = np.ones((height, width), bool)
    valid.setflags(write=False)
    return valid


def _in_scale(image_db: np.ndarray, scale: str) -> np.ndarray:
    """SAR channels of an image in the numbers of a data set's files."""
    if scale in ("linear_power", "amplitude"):
        return np.power(10.0, image_db / (10 if scale == "linear_power" else 20), dtype=np.float32)
    return image_db


def _slow(part: TileRaster, window: PixelWindow) -> list[str]:
    """A note where a tile's raster has blocks that make reading the tile slow."""
    ratio = _block_ratio(part.path, window[2], window[3])
    if part.window is None or ratio < SLOW_BLOCKS:
        return []
    return [
        f"{part.path}: its blocks make a reader unpack {ratio:.0f} times the pixels of a tile, which slows down "
        "training. Copy the tiles with `cut=True`, or tile the raster: gdal_translate -co TILED=YES IN OUT."
    ]


@functools.lru_cache(maxsize=64)
def _is_packed(path: Path) -> bool:
    with open_raster(path, allow_vrt=True) as raster:
        return raster.compression is not None


@functools.lru_cache(maxsize=64)
def _block_ratio(path: Path, width: int, height: int) -> float:
    """Pixels of the blocks that a window touches at worst, over its own."""
    with open_raster(path) as raster:
        rows, columns = raster.block_shapes[0]
        across = min(raster.width, (math.ceil(width / columns) + 1) * columns)
        down = min(raster.height, (math.ceil(height / rows) + 1) * rows)
    return across * down / (width * height)


def windows(width: int, height: int, size: int, overlap: int, edge: str = "overlap") -> list[PixelWindow]:
    """(x0, y0, w, h) that cover a raster; the last ones end at its edge. Smaller than `size` where the raster is.

    Args:
        edge: "overlap" has the last ones of full size, so that they overlap those before them by more than `overlap`;
            "crop" has them smaller, so that without `overlap` no pixel is in two windows.

    Raises:
        InputError: they would be more than MAX_TILES.
    """
    step = size - overlap
    count = math.prod(1 + math.ceil(max(0, side - size) / step) for side in (width, height))
    if count > MAX_TILES:
        raise InputError(
            f"{width} x {height} px would make {count} tiles, more than {MAX_TILES}. Use a larger `tile_size`, a "
            "smaller `overlap`, or a part of the image."
        )

    def spans(length):
        step, last = size - overlap, max(0, length - size)
        if edge == "overlap":
            return [(start, min(size, length)) for start in sorted({*range(0, last, step), last})]
        return [(start, min(size, length - start)) for start in range(0, max(1, length - overlap), step)]

    return [(x, y, w, h) for y, h in spans(height) for x, w in spans(width)]


def edge_notes(tiles_px: int, images_px: int, overlap: int) -> list[str]:
    """A note where the last tiles of images overlap others without being asked to.

    Args:
        tiles_px, images_px: pixels of all windows, and of the images that they cover.
        overlap: that was asked for, pixels.
    """
    if overlap or tiles_px <= images_px:
        return []
    return [
        f"the last tiles of an image end at its edge and overlap those before them: {tiles_px / images_px - 1:.1%} of "
        "the ground is in the tiles once more, with its buildings, and scores count it once more. "
        '`edge="crop"` makes the last tiles smaller instead.'
    ]


def clip_labels(
    labels, window: PixelWindow, valid: np.ndarray, min_area_px: float, counts: Counter
) -> list[Building]:
    """Buildings of one tile in its pixels, clipped to it and to its valid pixels.

    Args:
        labels: buildings in pixels of the image.
        valid: (h, w) bool of the tile.
        min_area_px: what is smaller is dropped.
        counts: gets "slivers dropped", "dropped on no data", "clipped at no data", "cut by a tile's edge", "kept".
    """
    labels = list(labels)
    outlines = np.array([building.polygon for building in labels], dtype=object)
    if not len(outlines):
        return []
    x0, y0, width, height = window
    frame = shapely.box(x0, y0, x0 + width, y0 + height)
    # All at once: what shapely needs for one call is more than what GEOS needs for one outline.
    left, top, right, bottom = shapely.bounds(outlines).T
    whole = (left >= x0) & (top >= y0) & (right <= x0 + width) & (bottom <= y0 + height)
    crossing = ~whole & shapely.intersects(outlines, frame)
    outlines[crossing] = shapely.intersection(outlines[crossing], frame)
    outlines = shapely.transform(outlines, lambda xy: xy - (x0, y0))
    clean, areas_px = _is_clean(outlines), shapely.area(outlines)
    no_gaps = valid.all()
    kept = []
    for i in np.flatnonzero(whole | crossing):
        polygon, area_px = outlines[i], areas_px[i]
        if not clean[i]:
            polygon = clean_polygon(polygon)
            if polygon is None:  # touches the edge only
                continue
            area_px = polygon.area
        if area_px < min_area_px:
            counts["slivers dropped"] += 1
            continue
        if not no_gaps:
            polygon, change = _clip_to_valid(polygon, valid, min_area_px)
            counts.update([change] if change else [])
        if polygon is not None:
            kept.append(dataclasses.replace(labels[i], polygon=polygon))
            counts["kept"] += 1
            counts["cut by a tile's edge"] += int(crossing[i])
    return kept


def _is_clean(outlines: np.ndarray) -> np.ndarray:
    """Whether `clean_polygon` would hand back each of (N,) outlines as it is; not asked of what has several parts."""
    single = shapely.get_type_id(outlines) == shapely.GeometryType.POLYGON
    return single & ~shapely.has_z(outlines) & ~shapely.is_empty(outlines) & shapely.is_valid(outlines)


def _clip_to_valid(polygon, valid: np.ndarray, min_area_px: float):
    """(`polygon` without its part on no data, None or what happened); the polygon is None when little is left."""
    x0, y0 = (max(0, math.floor(v)) for v in polygon.bounds[:2])
    x1, y1 = (math.ceil(v) for v in polygon.bounds[2:])
    valid = valid[y0:y1, x0:x1]
    if valid.all():
        return polygon, None
    mask = polygon_to_mask(shapely.affinity.translate(polygon, -x0, -y0), *valid.shape)
    if not mask.any() or valid[mask].all():
        return polygon, None
    if not valid[mask].any():
        return None, "dropped on no data"
    holes = shapely.affinity.translate(mask_to_polygon(mask & ~valid), x0, y0)
    holes = [p for p in getattr(holes, "geoms", [holes]) if p.area >= MIN_HOLE_PX]
    if not holes:
        return polygon, None
    # The mask ends inside the outline: the rim beyond it is no data as well.
    rest = clean_polygon(polygon.difference(shapely.unary_union(holes).buffer(1, join_style="mitre")))
    if rest is None or rest.area < min_area_px:
        return None, "dropped on no data"
    return rest, "clipped at no data"


@functools.lru_cache(maxsize=16)
def _in_crs(layer: Layer, crs: str | None) -> tuple[Layer, shapely.STRtree]:
    """`layer` in the image's CRS with an index of its outlines; kept, because many images share a layer."""
    if crs is not None:
        layer = transform_layer(layer, crs)
    elif layer.crs is not None:
        raise InputError(
            f"the image has no CRS, but the footprints are in {layer.crs}. Give the image its CRS: "
            "`rio edit-info --crs EPSG:n FILE`."
        )
    return layer, shapely.STRtree([building.polygon for building in layer.buildings])


def _moved(polygon, crs: str | None, to_crs):
    if not crs or not to_crs or parse_crs(crs, "CRS") == parse_crs(to_crs.to_wkt(), "CRS"):
        return polygon
    convert = transformer(crs, to_crs)
    return shapely.transform(polygon, convert.transform, interleaved=False)


def _ground(reader: SceneReader) -> shapely.Polygon:
    """The image's outline on the map."""
    corners = [(0, 0), (reader.width, 0), (reader.width, reader.height), (0, reader.height)]
    return shapely.Polygon([reader.transform * corner for corner in corners])


def write_tile(
    path: Path,
    image: np.ndarray,
    dtype: str,
    nodata,
    names,
    transform: Affine,
    crs: str | None,
    unit: str | None = None,
) -> None:
    """GeoTIFF of (C, H, W) float32 with NaN = no data.

    Float files hold NaN; integer ones hold the number `nodata` where it fits the dtype, else an internal mask.
    """
    if dtype == "float32":
        # Speckle does not compress, and unpacking it would take longer than reading it.
        _write(path, image.astype(dtype), None, None, names, transform, crs, packed=False, unit=unit)
        return
    valid, limits = ~np.isnan(image).any(axis=0), np.iinfo(dtype)
    pixels = np.clip(np.rint(np.where(valid, image, 0)), limits.min, limits.max).astype(dtype)
    _write(path, pixels, valid, nodata, names, transform, crs, packed=True)


def _write(
    path: Path, pixels: np.ndarray, valid, nodata, names, transform, crs, packed: bool, unit=None
) -> None:
    """`write_tile` of (C, H, W) in the file's dtype.

    Args:
        valid: (H, W) bool; None when nothing has to be marked as no data.
        packed: compress.
        unit: of the numbers, where it has to be stated.
    """
    if pixels.dtype.kind == "f":
        nodata = math.nan
    else:
        limits = np.iinfo(pixels.dtype)
        if nodata is not None and not (float(nodata).is_integer() and limits.min <= nodata <= limits.max):
            nodata = None
    whole = valid is None or valid.all()
    if not whole:
        pixels = np.where(valid, pixels, pixels.dtype.type(nodata or 0))
    profile = {
        "driver": "GTiff",
        "dtype": pixels.dtype.name,
        "count": len(pixels),
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "transform": transform,
        "crs": crs,
        "nodata": nodata,
        **({"compress": "deflate", "predictor": 3 if nodata is math.nan else 2} if packed else {}),
        "photometric": "RGB" if names == ("red", "green", "blue") else "MINISBLACK",
    }
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), whole_tiff(path, **profile) as target:
        target.write(pixels)
        target.descriptions = names
        if unit is not None:
            target.units = [unit] * len(pixels)
        if nodata is None and not whole:
            target.write_mask(valid)
