"""One image and its footprints -> tiles on disk: windows, labels clipped to tiles and to valid pixels, rasters."""

import dataclasses
import functools
import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.buildings import Building, SensorGeometry, Tile, clean_polygon, map_to_pixel
from fusiondet.data.bands import BandSpec
from fusiondet.data.coco import mask_to_polygon, polygon_to_mask
from fusiondet.data.converters.heights import HeightRaster, statistic
from fusiondet.data.converters.vectors import Layer, transform_layer
from fusiondet.data.imagery import Scene, SceneReader
from fusiondet.errors import InputError

import numpy as np
import rasterio
import shapely
from affine import Affine
from pyproj import CRS, Transformer

# Tiles keep the dtype of the optical file if it is one of these, which float32 holds exactly; else they are float32.
KEPT_DTYPES = ("uint8", "uint16", "int16", "float32")
# A building is cut along no data only where that is a region; single dark pixels that equal the nodata number are not.
MIN_HOLE_PX = 25

Window = tuple[int, int, int, int]


@dataclass
class CutTile:
    """A tile on disk.

    Attributes:
        source, window: where it was cut: (x0, y0, width, height) in pixels of the image.
        ground: its outline on the map, in the CRS of `tile.crs`.
        labels, heights: what happened to the labels, and how many heights are known -> number of buildings.
    """

    source: "Source"
    window: Window
    tile: Tile
    ground: shapely.Polygon
    labels: Counter
    heights: Counter


@dataclass
class Source:
    """One image with its labels.

    Attributes:
        stem: start of the tiles' names. rgb, sar: its files. layers: its footprints.
        heights: keyword arguments of `HeightRaster`, all None for none. zonal: statistic of it.
        options: keyword arguments of `SceneReader`.
        max_nodata: largest share of invalid pixels of a tile. min_area_m2: smallest building.
        notes, no_data, reasons, comparison: filled by `cut`: sentences for the user; windows left out; why heights are
            unknown -> buildings; (height from the raster, height from the attribute) of buildings that have both.
    """

    stem: str
    rgb: Path | None
    sar: Path | None
    layers: list[Layer]
    heights: dict[str, Path | None]
    zonal: str
    options: dict
    max_nodata: float
    min_area_m2: float
    sensor: SensorGeometry
    notes: list[str] = field(default_factory=list)
    no_data: int = 0
    reasons: Counter = field(default_factory=Counter)
    comparison: list[tuple[float, float]] = field(default_factory=list)
    _labels: list[Building] | None = None
    _tree: shapely.STRtree | None = None

    def cut(self, folder: Path, bands: BandSpec, windows) -> list[CutTile]:
        """Write tiles under `folder`; those with too few valid pixels are left out.

        Args:
            windows: list of windows, or a function (width, height) -> windows.

        Raises:
            InputError: a file cannot be used, or image and footprints cannot be brought together.
        """
        with ExitStack() as files:
            reader = files.enter_context(SceneReader(self.rgb, self.sar, bands, **self.options))
            heights = (
                files.enter_context(HeightRaster(**self.heights)) if any(self.heights.values()) else None
            )
            if self._labels is None:
                self.notes = reader.notes
                self._labels = self._place(reader, heights)
                self._tree = shapely.STRtree([label.polygon for label in self._labels])
            windows = windows(reader.width, reader.height) if callable(windows) else windows
            tiles = [self._cut_one(reader, window, heights, folder) for window in windows]
        return [tile for tile in tiles if tile is not None]

    def _place(self, reader: SceneReader, heights: HeightRaster | None) -> list[Building]:
        """Buildings that touch the image, in its pixels, with their heights."""
        frame = shapely.box(0, 0, reader.width, reader.height)
        around = _ground(reader.transform, reader.width, reader.height)
        placed = []
        for layer in self.layers:
            local, tree = _in_crs(layer, reader.crs)
            for building in (local.buildings[i] for i in sorted(tree.query(around))):
                outline_px = clean_polygon(map_to_pixel(building.polygon, reader.transform))
                if outline_px is not None and outline_px.intersects(frame):
                    if heights is not None:
                        building = self._with_zonal_height(building, reader.crs, heights)
                    placed.append(dataclasses.replace(building, polygon=outline_px))
        return placed

    def _with_zonal_height(self, building: Building, crs: str | None, heights: HeightRaster) -> Building:
        height_m, reason = heights.of(_moved(building.polygon, crs, heights.crs), statistic(self.zonal))
        if height_m is None:
            self.reasons[reason] += 1
            facts = {"height_source": None, "height_stat": None, "height_datum": None}
        else:
            facts = {"height_source": heights.source, "height_stat": self.zonal, "height_datum": "ground"}
            if building.height_m is not None:
                self.comparison.append((height_m, building.height_m))
        return dataclasses.replace(building, height_m=height_m, **facts)

    def _cut_one(self, reader: SceneReader, window: Window, heights, folder: Path) -> CutTile | None:
        x0, y0, width, height = window
        scene = reader.read(window)
        main = scene.image[: len(reader.bands.optical)] if reader.bands.optical else scene.image
        valid = np.isfinite(main).all(axis=0)
        if 1 - valid.mean() > self.max_nodata:
            self.no_data += 1
            return None
        name = f"{self.stem}_x{x0:05d}_y{y0:05d}.tif"
        labels = Counter()
        near = self._tree.query(shapely.box(x0, y0, x0 + width, y0 + height))
        near = [self._labels[i] for i in sorted(near)]
        buildings = clip_labels(near, window, valid, self.min_area_m2 / scene.gsd_m**2, labels)
        tile = Tile(
            width=width,
            height=height,
            gsd_m=scene.gsd_m,
            crs=scene.crs,
            transform=tuple(scene.transform)[:6],
            sensor=self.sensor,
            buildings=buildings,
            **_write_rasters(reader, scene, heights, folder, name),
        )
        known = Counter("known" if b.height_m is not None else "unknown" for b in buildings)
        return CutTile(self, window, tile, _ground(scene.transform, width, height), labels, known)


def windows(width: int, height: int, size: int, overlap: int) -> list[Window]:
    """(x0, y0, w, h) that cover a raster; the last ones end at its edge. Smaller than `size` where the raster is."""

    def starts(length):
        last = max(0, length - size)
        return sorted({*range(0, last, size - overlap), last})

    return [(x, y, min(size, width), min(size, height)) for y in starts(height) for x in starts(width)]


def clear_of(tile: CutTile, others: list[shapely.Polygon], min_side: int) -> Window | None:
    """The largest window left of `tile` by cutting off sides until it shares no ground with `others`.

    Args:
        others: outlines in the CRS of `tile.tile.crs`.
        min_side: pixels.

    Returns:
        A window of the tile's image; None when it would be narrower than `min_side`.
    """
    x0, y0, width, height = tile.window
    left, top, right, bottom = 0, 0, width, height
    for other in others:
        shared = map_to_pixel(other, tile.tile.transform).intersection(shapely.box(left, top, right, bottom))
        if shared.area < 1e-3:
            continue
        a, b, c, d = shared.bounds
        a, b, c, d = math.floor(a + 1e-3), math.floor(b + 1e-3), math.ceil(c - 1e-3), math.ceil(d - 1e-3)
        choices = [
            (c, top, right, bottom),
            (left, top, a, bottom),
            (left, d, right, bottom),
            (left, top, right, b),
        ]
        left, top, right, bottom = max(choices, key=lambda r: max(0, r[2] - r[0]) * max(0, r[3] - r[1]))
        if right - left < min_side or bottom - top < min_side:
            return None
    return x0 + left, y0 + top, right - left, bottom - top


def clip_labels(
    labels, window: Window, valid: np.ndarray, min_area_px: float, counts: Counter
) -> list[Building]:
    """Buildings of one tile in its pixels, clipped to it and to its valid pixels.

    Args:
        labels: buildings in pixels of the image.
        valid: (h, w) bool of the tile.
        min_area_px: what is smaller is dropped.
        counts: gets "slivers dropped", "dropped on no data", "clipped at no data", "cut by a tile's edge", "kept".
    """
    x0, y0, width, height = window
    frame = shapely.box(x0, y0, x0 + width, y0 + height)
    kept = []
    for building in labels:
        if not building.polygon.intersects(frame):
            continue
        whole = frame.contains(building.polygon)
        inside = building.polygon if whole else shapely.intersection(building.polygon, frame)
        polygon = clean_polygon(shapely.affinity.translate(inside, -x0, -y0))
        if polygon is None:  # touches the edge only
            continue
        if polygon.area < min_area_px:
            counts["slivers dropped"] += 1
            continue
        polygon, change = _clip_to_valid(polygon, valid, min_area_px)
        counts.update([change] if change else [])
        if polygon is not None:
            kept.append(dataclasses.replace(building, polygon=polygon))
            counts["kept"] += 1
            counts["cut by a tile's edge"] += not whole
    return kept


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
    if not crs or not to_crs or CRS.from_user_input(crs) == CRS.from_wkt(to_crs.to_wkt()):
        return polygon
    convert = Transformer.from_crs(crs, to_crs.to_wkt(), always_xy=True)
    return shapely.transform(polygon, convert.transform, interleaved=False)


def _ground(transform: Affine, width: int, height: int) -> shapely.Polygon:
    """The tile's outline on the map, its edges in steps so that they bend right in another CRS."""
    steps = np.linspace(0, 1, 11)[:-1]
    unit = (
        [(t, 0) for t in steps]
        + [(1, t) for t in steps]
        + [(1 - t, 1) for t in steps]
        + [(0, 1 - t) for t in steps]
    )
    return shapely.Polygon([transform * (x * width, y * height) for x, y in unit])


def _write_rasters(reader: SceneReader, scene: Scene, heights, folder: Path, name: str) -> dict[str, str]:
    """Write one tile's rasters; `Tile`'s file names of those that were written."""
    n = len(reader.bands.optical)
    grid = {"transform": scene.transform, "crs": scene.crs}
    files = {}
    if n:
        dtype, nodata = reader.optical_format
        dtype = dtype if dtype in KEPT_DTYPES else "float32"
        write_tile(folder / "rgb" / name, scene.image[:n], dtype, nodata, reader.bands.optical, **grid)
        files["file_name"] = f"rgb/{name}"
    if reader.bands.sar and np.isfinite(scene.image[n:]).any():
        dtype = "uint8" if reader.bands.sar_scale == "stretched_uint8" else "float32"
        write_tile(folder / "sar" / name, scene.image[n:], dtype, None, reader.bands.sar, **grid)
        files["sar_file_name" if n else "file_name"] = f"sar/{name}"
    if heights is not None:
        crs = rasterio.crs.CRS.from_user_input(scene.crs) if scene.crs else None
        ndsm = heights.onto(scene.transform, crs, scene.image.shape[1:])
        write_tile(folder / "ndsm" / name, ndsm[None], "float32", None, ("ndsm",), **grid)
        files["ndsm_file_name"] = f"ndsm/{name}"
    return files


def write_tile(
    path: Path, image: np.ndarray, dtype: str, nodata, names, transform: Affine, crs: str | None
) -> None:
    """GeoTIFF of (C, H, W) float32 with NaN = no data.

    Float files hold NaN; integer ones hold the number `nodata` where it fits the dtype, else an internal mask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    invalid = np.isnan(image).any(axis=0)
    if dtype == "float32":
        nodata = math.nan
    else:
        limits = np.iinfo(dtype)
        if nodata is not None and not (float(nodata).is_integer() and limits.min <= nodata <= limits.max):
            nodata = None
        image = np.clip(np.rint(np.where(invalid, nodata or 0, image)), limits.min, limits.max)
    profile = {
        "driver": "GTiff",
        "dtype": dtype,
        "count": len(image),
        "height": image.shape[1],
        "width": image.shape[2],
        "transform": transform,
        "crs": crs,
        "nodata": nodata,
        # Speckle in float32 does not compress, and unpacking it would take longer than reading it.
        **({} if dtype == "float32" else {"compress": "deflate", "predictor": 2}),
        "photometric": "RGB" if names == ("red", "green", "blue") else "MINISBLACK",
    }
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as target:
        target.write(image.astype(dtype))
        target.descriptions = names
        if nodata is None and invalid.any():
            target.write_mask(~invalid)
