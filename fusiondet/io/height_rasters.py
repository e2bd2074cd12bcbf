"""Rasters of heights and of classes: GeoTIFFs that are filled window by window, heights also painted from outlines.

A GeoTIFF of heights is cloud optimised (tiles of 512 pixels, DEFLATE with the predictor for floats, overviews), with a
band per source of `HEIGHT_BANDS`, float32 metres above ground. 0 is no building; what a network says per pixel is about
0 there. NaN is nodata, declared as such: the images have none there. It is NaN since no number of metres can be
taken for it, by no software. One of classes is the same with uint8 numbers, `NO_CLASS` for nodata, a table of colours,
and the names of the classes in the tag CLASSES (JSON) and, for GIS software, in `.tif.aux.xml` beside it.
"""

import contextlib
import errno
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import escape

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.files import atomic_path, require_new
from fusiondet.geometry.painting import paint_heights
from fusiondet.io.pixel_classes import class_colours

import numpy as np
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.windows import Window

# Where heights come from, and what the band that holds them is called.
HEIGHT_BANDS = {
    "dense": "building height above ground, per pixel",
    "instances": "building height above ground, one per building",
}
# The number that is no class.
NO_CLASS = 255
# Rasters are written and painted in parts of this many pixels a side, whatever the size of a window.
_PART_PX = 2048


def check_height_raster(path: Path, overwrite: bool = False, what: str = "heights") -> Path:
    """Find out before a long computation what is wrong with `path` of a raster of `what`.

    Raises:
        InputError: another suffix than .tif or .tiff, or what `fusiondet.files.require_new` refuses.
    """
    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"{path}: {what} are written as GeoTIFF. Use the suffix .tif.")
    return require_new(path, overwrite)


@contextlib.contextmanager
def height_raster(
    path: Path,
    shape: tuple[int, int],
    transform: Affine,
    crs: str | None,
    sources: Sequence[str],
    tags: dict[str, str] | None = None,
    grid_shape: tuple[int, int] | None = None,
):
    """Yield a `HeightRasterWriter`, all nodata; at the end of the block it is `path`, on any error nothing is.

    Args:
        shape, transform, crs: (H, W) of the raster and its place on the map.
        sources: a band each, see `HEIGHT_BANDS`.
        tags: plain values about the whole raster: weights, version, what was decided.
        grid_shape: (H, W) of the pixels that heights come in, over the same extent; None: those of the raster.

    Raises:
        OSError: it could not be written to the end.
    """
    place = {"height": shape[0], "width": shape[1], "transform": transform, "crs": crs}
    with _draft(path, place, len(sources), "float32", np.nan) as dataset:
        for band, source in enumerate(sources, start=1):
            dataset.set_band_description(band, HEIGHT_BANDS[source])
        dataset.units = ["m"] * len(sources)
        dataset.update_tags(**(tags or {}), zero="no building", nodata="NaN: the images have no data")
        yield HeightRasterWriter(dataset, path, sources, _zoom(shape, grid_shape))


@contextlib.contextmanager
def class_raster(
    path: Path,
    shape: tuple[int, int],
    transform: Affine,
    crs: str | None,
    names: Sequence[str],
    tags: dict[str, str] | None = None,
    grid_shape: tuple[int, int] | None = None,
):
    """As `height_raster`, of the numbers of classes `names`; the writer's source is "classes"."""
    place = {"height": shape[0], "width": shape[1], "transform": transform, "crs": crs}
    with _draft(path, place, 1, "uint8", NO_CLASS) as dataset:
        dataset.set_band_description(1, "class")
        dataset.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(class_colours(len(names)))})
        dataset.update_tags(**(tags or {}), CLASSES=json.dumps(list(names)))
        yield HeightRasterWriter(dataset, path, ["classes"], _zoom(shape, grid_shape))
    listed = "".join(f"<Category>{escape(name)}</Category>" for name in names)
    names_path = path.with_name(path.name + ".aux.xml")
    with atomic_path(names_path) as temporary:
        temporary.write_text(
            f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{listed}</CategoryNames></PAMRasterBand></PAMDataset>',
            encoding="utf-8",
        )


def _zoom(shape: tuple[int, int], grid_shape: tuple[int, int] | None) -> tuple[float, float]:
    return (grid_shape[1] / shape[1], grid_shape[0] / shape[0]) if grid_shape else (1.0, 1.0)


@contextlib.contextmanager
def _draft(path: Path, place: dict, count: int, dtype: str, nodata: float):
    """Yield a raster to fill that is `path`, as a cloud-optimised GeoTIFF, at the end of the block."""
    layout = {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "interleave": "band",
        "bigtiff": "IF_SAFER",
    }
    with atomic_path(path) as temporary:
        # Filled without compression: windows end inside of tiles, and a compressed tile that grows leaves a hole.
        draft = temporary.with_suffix(".draft")
        with _told(path):
            dataset = rasterio.open(
                draft, "w+", "GTiff", count=count, dtype=dtype, nodata=nodata, **place, **layout
            )
        with dataset:
            yield dataset
        with _told(path):
            _publish(draft, temporary)


class HeightRasterWriter:
    """A raster of heights or classes being filled; see `height_raster` and `class_raster`.

    Heights come in pixels of a grid over the same extent, which may be finer or coarser: every pixel of the raster
    takes what the grid has at its centre, as outlines do, so that no roof is mixed with the ground beside it.
    """

    def __init__(self, dataset, path: Path, sources: Sequence[str], zoom: tuple[float, float]):
        """`dataset`: open for reading and writing; `zoom`: (x, y) pixels of the grid per pixel of the raster."""
        self._dataset, self._path, self._sources, self._zoom = dataset, path, list(sources), zoom

    def fill(self, heights_m: dict[str, np.ndarray], window, core) -> None:
        """Write the part of a window that is its core.

        Args:
            heights_m: source -> (h, w) metres in the pixels of the grid, NaN = no data.
            window: (x0, y0, w, h) of the grid. core: (x0, y0, x1, y1) inside of it, infinite at the grid's borders;
                cores that tile the grid fill every pixel of the raster once.
        """
        values = np.stack([heights_m[source] for source in self._sources])
        columns, at_x = _owned(core[0], core[2], self._zoom[0], self._dataset.width, window[0], window[2])
        rows, at_y = _owned(core[1], core[3], self._zoom[1], self._dataset.height, window[1], window[3])
        with _told(self._path):
            for part in _parts(rows, columns):
                y, x = at_y[part.row_off - rows.start :], at_x[part.col_off - columns.start :]
                chosen = values[:, y[: part.height, None], x[None, : part.width]]
                self._dataset.write(chosen.astype(self._dataset.dtypes[0]), window=part)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the raster."""
        return self._dataset.height, self._dataset.width

    @property
    def zoom(self) -> tuple[float, float]:
        """(x, y) pixels of the grid that heights come in, per pixel of the raster."""
        return self._zoom

    def paint(self, buildings_px: list[Building], rows: range | None = None) -> None:
        """Write the heights of buildings over the band "instances", where that has data.

        Args:
            buildings_px: outlines in pixels of the grid.
            rows: of the raster; None: all. `buildings_px` holds all that reach into them.
        """
        band = 1 + self._sources.index("instances")
        scale = [1 / self._zoom[0], 1 / self._zoom[1]]
        buildings = [
            replace(b, polygon=shapely.transform(b.polygon, lambda xy: xy * scale)) for b in buildings_px
        ]
        tree = shapely.STRtree([b.polygon for b in buildings])
        with _told(self._path):
            for part in _parts(rows or range(self._dataset.height), range(self._dataset.width)):
                x, y = part.col_off, part.row_off
                near = sorted(tree.query(shapely.box(x, y, x + part.width, y + part.height)))
                if near:
                    painted = paint_heights([buildings[i] for i in near], (part.height, part.width), (x, y))
                    below = self._dataset.read(band, window=part)
                    keep = np.isnan(painted) | np.isnan(below)
                    self._dataset.write(np.where(keep, below, painted), band, window=part)


def _owned(
    low: float, high: float, zoom: float, length: int, start: int, size: int
) -> tuple[range, np.ndarray]:
    """Pixels of the raster along one axis whose centres lie in [low, high) of the grid, and where a window that begins
    at `start` has them.
    """
    first, last = (math.ceil(min(max(v, 0.0), length * zoom) / zoom - 0.5) for v in (low, high))
    centres = (np.arange(first, last) + 0.5) * zoom
    return range(first, last), np.clip(np.floor(centres).astype(int) - start, 0, size - 1)


def _parts(rows: range, columns: range) -> Iterator[Window]:
    for y in rows[::_PART_PX]:
        for x in columns[::_PART_PX]:
            yield Window(x, y, min(_PART_PX, columns.stop - x), min(_PART_PX, rows.stop - y))


def _publish(draft: Path, path: Path) -> None:
    """Write `draft` as a cloud-optimised GeoTIFF, and make sure that all of it arrived."""
    with rasterio.open(draft) as wanted:
        heights = wanted.dtypes[0] == "float32"
    options = {
        "compress": "DEFLATE",
        "predictor": "FLOATING_POINT" if heights else "NO",
        "bigtiff": "IF_SAFER",
    }
    options["overview_resampling"] = "AVERAGE" if heights else "MODE"
    rasterio.shutil.copy(draft, path, driver="COG", **options)
    with rasterio.open(draft) as wanted, rasterio.open(path) as written:
        if any(wanted.checksum(band) != written.checksum(band) for band in wanted.indexes):
            raise RasterioError("it reads back as something else")


@contextlib.contextmanager
def _told(path: Path):
    """GDAL tells of a full disk late and in many ways (rasterio makes a SystemError of some): all as an OSError."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, SystemError) as error:
        raise OSError(errno.EIO, f"could not be written ({error}). Is the disk full?", str(path)) from error
