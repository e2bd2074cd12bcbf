"""Every option of a scene's prediction, in one place: tools, tables of scenes, Python and workers use it."""

import dataclasses
import math
import numbers
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusiondet.buildings import SensorGeometry
from fusiondet.errors import InputError, unknown_name
from fusiondet.geometry.overlaps import MAX_OVERLAP, check_max_overlap
from fusiondet.inference.windows import SMALLEST_WINDOW_PX, check_windows
from fusiondet.io.coco import TILTS_DEG
from fusiondet.io.height_rasters import HEIGHT_BANDS
from fusiondet.io.scene_reader import EXTENTS
from fusiondet.jobs.executors import check_workers

# Options that only a prediction to files takes.
FILE_OPTIONS = frozenset(
    "class_path dtm report style overwrite resume workers scheduler score_threshold device".split()
)
# Options of rasters that are written beside the buildings.
HEIGHT_OPTIONS = frozenset({"height_path", "height_source"})


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """Every option of a scene's prediction; values that cannot be are refused by name.

    Windows of the scene:

    Attributes:
        window_px: int, pixels of the grid (1024). Side of a window; a scene up to this size is one window.
        overlap_px: int, pixels of the grid (None). Overlap of neighbouring windows; None derives it from the GSD, from
            the context of the height head, and from a large building, see `fusiondet.geometry.seams`.
        batch: int, windows (None). How many windows the network sees at a time; None: 1 on a CPU, 4 on a GPU.
        extent: str (None). "intersection" predicts where both rasters are, "optical" also where SAR is missing; None:
            the latter if the network copes without SAR, as training with SAR missing makes it.
        aoi: area of interest (None: all of the scene). A file of polygons in any CRS, a GeoDataFrame or GeoSeries, or a
            geometry in the scene's CRS. Buildings are kept if their representative point is in it.

    Reading of the rasters, see `fusiondet.io.scene_reader.SceneReader`:

        rgb_bands: 1-based numbers (None: by their names). Bands of the optical raster in training order.
        sar_bands: 1-based numbers, a tuple for a mean power (None: by their names). Bands of the SAR raster.
        optical_scale: float, no unit (None: 1, and values in another unit than the training's are refused). What
            optical values are multiplied by to be in the unit of the training; see `fusiondet.inference.value_ranges`.
        sar_scale: str (None: as trained). What the SAR raster holds, one of `fusiondet.io.bands.SAR_SCALES`.
        sar_factor: float, no unit (None: what the file states, else 1). Calibration factor of SAR amplitudes.
        nodata: float, in the raster's unit (None: as in the training, or as recognised). Number that means no data in
            rasters that declare none; see `fusiondet.io.fill_values`.
        gsd_m: float, metres per pixel (None: from the georeference). For rasters without one.
        skip_invalid: bool (False). Pixels that cannot be read count as no data, and are counted in the notes.

    The network:

        score_threshold: float from 0 to 1, "layer" or None ("layer"). See `fusiondet.inference.Predictor`.
        device: str (None: a GPU if there is one). "cpu", "cuda", "cuda:1".
        force_gsd: bool (False). Predict although the pixel size is more than four times off that of the training.
        sensor: SensorGeometry, degrees, azimuths clockwise from grid north (None: unknown). Sun and sensors.

    Shapes of the buildings:

        regularize_m: float, metres (None: as the masks have them). Walls are set straight and square within this
            tolerance, see `fusiondet.geometry.regularization`.
        max_overlap: float, share of an outline's area (0.4). Outlines of which better ones cover more are suppressed,
            see `fusiondet.geometry.overlaps`; 1 keeps all.

    Further outputs:

        height_path: file (None). GeoTIFF of heights, on the pixels of the optical raster (the SAR raster's without one)
            that are predicted, also where these are resampled for the network; see `fusiondet.io.height_rasters`.
        height_source: str (None: the first that the network has). "dense", "instances", or "both", a band each.
        class_path: file (None). GeoTIFF of the most probable class of each pixel, of the window in whose core it lies;
            for a network that predicts classes or footprints per pixel.
        dtm: file (None: all on 0 m). Raster of elevations in metres, which the buildings of a city model stand on.
        report: file (None). HTML page about the layer.
        style: bool (False). Write a QGIS style beside the layer, see `fusiondet.io.qgis_style.write_style`.
        overwrite: bool (False). Replace outputs that exist, and begin again where a run was stopped.

    How the work is done:

        resume: bool (False). Take up what a run that was stopped has finished; the result is the same.
        workers: int, processes of this machine (0). Each has a network of its own; 0 and 1: this process predicts.
        scheduler: str (None). Address of a scheduler of dask.distributed whose workers predict.
    """

    window_px: int = 1024
    overlap_px: int | None = None
    batch: int | None = None
    extent: str | None = None
    aoi: Any = None

    rgb_bands: Sequence[int] | None = None
    sar_bands: Sequence[int | tuple[int, ...]] | None = None
    optical_scale: float | None = None
    sar_scale: str | None = None
    sar_factor: float | None = None
    nodata: float | None = None
    gsd_m: float | None = None
    skip_invalid: bool = False

    score_threshold: float | str | None = "layer"
    device: str | None = None
    force_gsd: bool = False
    sensor: SensorGeometry | None = None

    regularize_m: float | None = None
    max_overlap: float = MAX_OVERLAP

    height_path: Path | None = None
    height_source: str | None = None
    class_path: Path | None = None
    dtm: Path | None = None
    report: Path | None = None
    style: bool = False
    overwrite: bool = False

    resume: bool = False
    workers: int = 0
    scheduler: str | None = None

    def __post_init__(self):
        """Refuse values that cannot be, whatever the scene and the network.

        Raises:
            InputError: names the option, what is expected and what was found.
        """
        for name, least in (("window_px", SMALLEST_WINDOW_PX), ("overlap_px", 0), ("batch", 1)):
            _check_whole(name, getattr(self, name), least)
        if self.overlap_px is not None:
            check_windows(self.window_px, self.overlap_px)
        for name in ("gsd_m", "regularize_m"):
            _check_metres(name, getattr(self, name))
        if self.optical_scale is not None and not 0 < self.optical_scale < math.inf:
            raise InputError(f"`optical_scale` is {self.optical_scale}, expected a number above 0.")
        check_max_overlap(self.max_overlap)
        if self.extent is not None and self.extent not in EXTENTS:
            raise unknown_name("`extent`", self.extent, EXTENTS)
        if self.height_source is not None and self.height_source not in (*HEIGHT_BANDS, "both"):
            raise unknown_name("`height_source`", self.height_source, (*HEIGHT_BANDS, "both"))
        if self.sensor is not None:
            check_angles(self.sensor)
        check_workers(self.workers, self.scheduler, default=0)

    @classmethod
    def from_keywords(cls, keywords: dict, without: Collection[str] = ()) -> "SceneOptions":
        """Return the options of a call.

        Args:
            keywords: name -> value.
            without: names of options that this call has no use for.

        Raises:
            InputError: an unknown option, with the names that are near; one of `without`; a value that cannot be.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in keywords:
            if name not in known:
                raise unknown_name("option", name, set(known) - set(without))
            if name in without:
                raise InputError(
                    f"`{name}` is an option of predictions that are written to files; leave it out."
                )
        return cls(**keywords)

    @property
    def reading(self) -> dict:
        """Keyword arguments of `SceneReader` that are settled before a raster is opened."""
        names = ("rgb_bands", "sar_bands", "optical_scale", "sar_scale", "sar_factor", "nodata", "gsd_m")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def outputs(self, out: Path | None) -> list[Path]:
        """Return the files that are written, the one first beside which finished blocks are kept.

        Args:
            out: layer of buildings, or None.
        """
        paths = (out, self.class_path, self.height_path, self.report)
        return [Path(path) for path in paths if path is not None]

    @property
    def elsewhere(self) -> bool:
        """Whether other processes than this one predict."""
        return self.workers > 1 or self.scheduler is not None


def check_angles(sensor: SensorGeometry) -> None:
    """Raise InputError for an angle that cannot be."""
    for name, value in sensor.to_dict().items():
        possible, expected = TILTS_DEG.get(name, (lambda v: 0 <= v <= 360, "from 0 to 360"))
        if value is not None and not possible(value):
            raise InputError(f"`{name}` is {value}, expected {expected} degrees.")


def _check_whole(name: str, value, least: int) -> None:
    if value is None and name in ("overlap_px", "batch"):
        return
    if not isinstance(value, numbers.Integral) or value < least:
        raise InputError(f"`{name}` is {value}, expected a whole number from {least} on.")


def _check_metres(name: str, value) -> None:
    if value is not None and not 0 < value < math.inf:
        raise InputError(f"`{name}` is {value}, expected metres above 0.")
