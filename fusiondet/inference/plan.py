"""Grid, windows and area of a scene, settled before it is predicted, as plain values that any process can take up.

Outputs are checked in `outputs`, options in `options`.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fusiondet import __version__
from fusiondet.buildings import SensorGeometry, map_to_pixel
from fusiondet.errors import InputError
from fusiondet.geometry.seams import default_overlap_px
from fusiondet.inference import checks
from fusiondet.inference.options import SceneOptions
from fusiondet.inference.predictor import Predictor
from fusiondet.inference.value_ranges import value_notes
from fusiondet.inference.windows import check_windows, scene_windows, windows_near
from fusiondet.io.grids import axis_gsd_m
from fusiondet.io.scene_reader import SceneRasters, SceneReader, has_place
from fusiondet.io.vectors import read_layer
from fusiondet.jobs.hashing import file_state, sha256, values_sha256

import shapely
from affine import Affine
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from rasterio import DatasetReader
from shapely.geometry.base import BaseGeometry

# Windows of a block: what is kept to resume a run, and given to a worker, at a time.
BLOCK_WINDOWS = 16
# Angle between rows and columns that is no right one: a network has never seen buildings so distorted.
MAX_SHEAR_DEG = 1.0
# A straight line of an area of interest bends on another map: it is cut into so many parts at least.
_AOI_PARTS = 200


@dataclass(frozen=True)
class ScenePlan:
    """A scene on its grid, and the windows that it is predicted in.

    Attributes:
        rgb, sar: files of each modality, absolute. image_states: of each file, what changes when it does.
        reader_options: of `SceneReader`, with the GSD to resample to.
        width, height, transform, crs, gsd_m: of the grid that is predicted on; transform as six numbers.
        window_px, overlap_px: sides and overlap of the windows. batch: how many the network sees at a time.
        sensor: fields of SensorGeometry in the axes of the image.
        aoi_wkb: area of interest in the grid's pixels; None: all of the scene.
        skip_invalid: pixels that cannot be read count as no data.
        sources: what of `fusiondet.io.height_rasters.HEIGHT_BANDS` a raster of heights is to hold; or
            `fusiondet.inference.checks.CLASS_SOURCES`.
        notes: what was decided on the way, for the user.
    """

    rgb: tuple[str, ...]
    sar: tuple[str, ...]
    image_states: tuple[tuple, ...]
    reader_options: dict
    width: int
    height: int
    transform: tuple[float, ...]
    crs: str | None
    gsd_m: float
    window_px: int
    overlap_px: int
    batch: int
    sensor: dict
    aoi_wkb: bytes | None = None
    skip_invalid: bool = False
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __getstate__(self):
        # What was worked out on the way is worked out again by whoever takes the plan up.
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @cached_property
    def windows(self) -> list[tuple[tuple, tuple]]:
        """(window, core) of `scene_windows`, row by row."""
        return list(scene_windows(self.width, self.height, self.window_px, self.overlap_px))

    @cached_property
    def aoi_px(self) -> BaseGeometry | None:
        """The area of interest in the grid's pixels, prepared; None: all of the scene."""
        if self.aoi_wkb is None:
            return None
        area = shapely.from_wkb(self.aoi_wkb)
        shapely.prepare(area)
        return area

    @cached_property
    def wanted(self) -> frozenset[int]:
        """Numbers of the windows that are read.

        Those within an overlap of the area of interest: a building that stands in it is found as without the area.
        """
        if self.aoi_px is None:
            return frozenset(range(len(self.windows)))
        return frozenset(windows_near(self.windows, self.aoi_px, self.overlap_px))

    @property
    def images(self) -> dict[str, tuple[str, ...]]:
        """Modality -> its files."""
        return {"optical": self.rgb, "sar": self.sar}

    @property
    def pixel_m(self) -> tuple[float, float]:
        """Metres per pixel of the grid, (x, y)."""
        if self.reader_options.get("gsd_m") is not None:
            return self.gsd_m, self.gsd_m
        return axis_gsd_m(self.transform, self.crs, self.width, self.height)

    @property
    def unit_m(self) -> float:
        """Metres per unit of the coordinates where the scene has no CRS: pixels of its first raster, or map units."""
        return self.gsd_m / math.sqrt(abs(Affine(*self.transform).determinant))

    @property
    def blocks(self) -> list[range]:
        """Numbers of the windows of each block."""
        count = len(self.windows)
        return [range(i, min(i + BLOCK_WINDOWS, count)) for i in range(0, count, BLOCK_WINDOWS)]

    def open(self, bands) -> SceneReader:
        """Open the rasters, and return the reader of `bands` on the grid that is predicted on; the caller closes it."""
        return SceneReader(self.rgb or None, self.sar or None, bands, **self.reader_options)

    def fingerprint(self, predictor: Predictor) -> dict:
        """What a result follows from, plain values: two runs with the same one can take up each other's parts."""
        names = ("window_px", "overlap_px", "batch", "skip_invalid")
        area = None if self.aoi_wkb is None else sha256(self.aoi_wkb)
        return {
            "fusiondet": __version__,
            "weights_sha256": predictor.weights_sha256,
            "score_threshold": predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "images": self.image_states,
            "grid": [self.width, self.height, list(self.transform), self.crs],
            "bands": {
                # NaN, a nodata value, is no JSON, and equals nothing.
                k: "nan" if v != v else v
                for k, v in sorted(self.reader_options.items())
                if v is not None
            },
            "sensor": self.sensor,
            "aoi_sha256": area,
            "height_bands": list(self.sources),
            "block_windows": BLOCK_WINDOWS,
            **{name: getattr(self, name) for name in names},
        }


def plan_scene(
    predictor: Predictor, rasters: SceneRasters, options: SceneOptions, sources: Sequence[str] = ()
) -> tuple[ScenePlan, SceneReader]:
    """Refuse what cannot be predicted, and settle everything else by the headers of the rasters.

    Args:
        rasters: of the scene; they stay open.
        sources: what of a window is written to a raster, see `ScenePlan`.

    Returns:
        The plan, and the reader of its grid, which is closed with `rasters`.

    Raises:
        InputError: no raster of a modality that the network takes; the pixel size is too far from that of the training;
            an area of interest that is not on the scene; and see `SceneReader`.
    """
    checks.check_sar_scale(predictor, options.sar_scale)
    sensor = options.sensor or SensorGeometry()
    notes = checks.modality_notes(predictor, rasters.paths)
    notes += checks.sensor_notes(predictor, sensor, rasters.paths)

    extent = options.extent or checks.extent_for(predictor)
    reading = {**options.reading, "extent": extent, "north_up": True}
    name = (rasters.paths["optical"] or rasters.paths["sar"])[0]
    unplaced = bool(rasters.sources) and not has_place(rasters.sources[0])
    if unplaced and reading.get("gsd_m") is None:
        reading["gsd_m"] = checks.usual_gsd(predictor, name)
        notes.append(
            f"{name}: no georeference says how large its pixels are; taken as {reading['gsd_m']:.3g} m, as in the "
            "training (see `gsd_m`)."
        )
    reader = rasters.reader(
        predictor.bands,
        **reading,
        recognise_nodata=True,
        usual_nodata=next(iter(predictor.cfg.INPUT.NODATA), None),
        target_gsd_m=lambda own_gsd_m: checks.target_gsd(predictor, own_gsd_m, name, options.force_gsd),
    )
    _check_shear(reader.transform, name)

    context_m = predictor.cfg.MODEL.ROI_HEIGHT_HEAD.CONTEXT_M if predictor.cfg.MODEL.HEIGHT_ON else 0.0
    overlap_px = options.overlap_px
    if overlap_px is None:
        overlap_px = default_overlap_px(reader.gsd_m, options.window_px, context_m)
        # One window has no neighbour to overlap with.
        if max(reader.width, reader.height) > options.window_px:
            notes.append(
                f"windows of {options.window_px} px overlap by {overlap_px} px, {overlap_px * reader.gsd_m:.3g} m "
                "(see `overlap_px`)."
            )
    check_windows(options.window_px, overlap_px)

    ground = name
    if extent == "intersection" and reader.shared < 1:
        ground = f"the part of {name} that all rasters cover"
    area = None if options.aoi is None else area_px(options.aoi, reader, ground)

    notes += reader.notes
    notes += value_notes(predictor, reader, rasters.paths, options)
    if reader.crs is None:
        where = "in pixels of it, x to the right and y down" if unplaced else "in the units of its transform"
        notes.append(f"{name}: has no CRS; coordinates are {where}, and no GIS places them on the map.")
    notes += checks.extent_notes(predictor, reader, extent)
    notes += checks.turn_note(reader.transform, name)
    plan = ScenePlan(
        rgb=tuple(str(path.absolute()) for path in rasters.paths["optical"]),
        sar=tuple(str(path.absolute()) for path in rasters.paths["sar"]),
        image_states=tuple(_state(source) for source in rasters.sources),
        reader_options={**reading, "target_gsd_m": reader.target_gsd_m, "fills": reader.fills or None},
        width=reader.width,
        height=reader.height,
        transform=tuple(reader.transform)[:6],
        crs=reader.crs,
        gsd_m=reader.gsd_m,
        window_px=options.window_px,
        overlap_px=overlap_px,
        batch=options.batch or (1 if predictor.device.type == "cpu" else 4),
        sensor=sensor.in_image_axes(Affine.scale(1, -1) if unplaced else reader.transform).to_dict(),
        aoi_wkb=None if area is None else shapely.to_wkb(area),
        skip_invalid=options.skip_invalid,
        sources=tuple(sources),
        notes=tuple(notes),
    )
    return plan, reader


def _state(source: DatasetReader) -> tuple:
    """Return what changes when an image does: of a mosaic, which only refers to its pixels, also its files."""
    state = tuple(file_state(Path(source.name)))
    if source.driver != "VRT":
        return state
    files = [file_state(Path(name)) for name in source.files]
    return (*state, values_sha256([state for state in files if state is not None]))


def _check_shear(transform: Affine, name) -> None:
    a, b, _, d, e, _ = tuple(transform)[:6]
    cosine = (a * b + d * e) / (math.hypot(a, d) * math.hypot(b, e))
    off_deg = abs(math.degrees(math.asin(max(-1.0, min(1.0, cosine)))))
    if off_deg > MAX_SHEAR_DEG:
        raise InputError(
            f"{name}: its rows and columns meet at {90 - off_deg:.3g} degrees, so buildings are distorted in it. "
            "Rectify it first: gdalwarp IN OUT."
        )


def area_px(aoi, reader: SceneReader, name) -> BaseGeometry:
    """The area of interest in the pixels of `reader`.

    Args:
        aoi: vector file with polygons in any CRS; GeoDataFrame or GeoSeries in any CRS; or a geometry in the scene's.
        name: the scene's, for messages.

    Raises:
        InputError: not polygons, no CRS on one side only, or nowhere on the scene.
    """
    what = aoi if isinstance(aoi, str | Path) else "the area of interest"
    if isinstance(aoi, str | Path):
        layer = read_layer(Path(aoi))
        polygons, crs = [b.polygon for b in layer.buildings], layer.crs
    elif isinstance(aoi, BaseGeometry):
        polygons, crs = [aoi], reader.crs
    else:
        polygons, crs = list(aoi.geometry), aoi.crs and aoi.crs.to_wkt()
    area = shapely.union_all([p for p in polygons if p is not None and p.area > 0])
    if area.is_empty:
        raise InputError(f"{what}: holds no polygon, so there is nowhere to predict.")
    if (crs is None) != (reader.crs is None):
        has, lacks = (name, what) if crs is None else (what, name)
        raise InputError(f"{lacks}: has no CRS, but {has} has one, so they cannot be laid over each other.")
    if crs is not None and CRS(crs) != CRS(reader.crs):
        area = _to_crs(area, crs, reader.crs, what)
    area = map_to_pixel(area, reader.transform)
    if not area.intersects(shapely.box(0, 0, reader.width, reader.height)):
        raise InputError(
            f"{what}: lies outside of {name} everywhere. Is it the right scene, and is the CRS of both right?"
        )
    return area


def _to_crs(area: BaseGeometry, crs, to_crs, what) -> BaseGeometry:
    x0, y0, x1, y1 = area.bounds
    fine = shapely.segmentize(area, max(x1 - x0, y1 - y0) / _AOI_PARTS)
    try:
        convert = Transformer.from_crs(CRS(crs), CRS(to_crs), always_xy=True).transform
        moved = shapely.transform(fine, convert, interleaved=False)
    except ProjError as error:
        raise InputError(f"{what}: its CRS cannot be brought to that of the scene ({error}).") from None
    if not all(map(math.isfinite, moved.bounds)):
        raise InputError(f"{what}: reaches where the scene's CRS {to_crs[:60]} is not defined.")
    return shapely.make_valid(moved)
