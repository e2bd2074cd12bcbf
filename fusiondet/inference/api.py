"""Scenes to buildings, from Python: as frames, in memory, or written to files.

    from fusiondet.inference import ScenePredictor

    predictor = ScenePredictor.from_checkpoint("model.pth", device="cpu")
    buildings = predictor.predict("rgb.tif", "sar.tif")
    print(buildings[["height_m", "score", "area_m2"]].describe())

    # A scene larger than memory: frames of buildings as they are finished.
    for part in predictor.iterate("rgb.tif", "sar.tif", window_px=512):
        print(len(part), "buildings", part.height_m.max(), "m")

Runs that may be stopped and resumed, or that other processes take part in, go through `predict_to_file`.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.files import parts_folder
from fusiondet.inference.options import FILE_OPTIONS, HEIGHT_OPTIONS, SceneOptions
from fusiondet.inference.outputs import check_layer_crs, check_network, check_outputs, raster_sources
from fusiondet.inference.predictor import Predictor
from fusiondet.inference.run import ScenePrediction, SceneRun
from fusiondet.io.layer_writer import BuildingWriter
from fusiondet.io.layers import NUMBERS, areas_m2
from fusiondet.io.qgis_style import write_style
from fusiondet.io.scene_reader import SceneRasters
from fusiondet.jobs.store import Store, announced
from fusiondet.locks import sole_writer

import geopandas
import numpy as np
import pandas
import rasterio
from pyproj import CRS

# Buildings of a frame that `iterate` gives, at least.
_FRAME_ROWS = 1000
# What GDAL may keep of rasters that are being written: its own default is a share of the machine.
_GDAL_CACHE_BYTES = 128 << 20


def predict_scene(predictor: Predictor, rgb, sar=None, **options) -> ScenePrediction:
    """Return the buildings of a raster pair, read and predicted window by window; write a raster of heights on demand.

    Buildings that several windows contain are merged, see `fusiondet.geometry.seams`. A pixel of the height raster
    belongs to the window in whose core it lies. Rasters whose rows run north or columns west are read from the other
    end, so that the network gets no mirrored image, and heights are written north-up.

    Args:
        rgb, sar: a raster, or a list of rasters whose bands are those of one; None where there is none.
        options: see `SceneOptions`; those of `FILE_OPTIONS` go with `predict_to_file`.

    Raises:
        InputError: from the reader; the pixel size is too far from that of the training; no raster of a modality that
            the network takes; an option that is unknown or cannot be; heights that the network does not predict.
    """
    options = SceneOptions.from_keywords(options, without=FILE_OPTIONS)
    with SceneRasters(rgb, sar) as rasters, rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES):
        run = SceneRun(predictor, rasters, options, raster_sources(predictor, options))
        with contextlib.closing(run.buildings(options.height_path)) as found:
            buildings = [building for finished in found for building in finished]
        return run.prediction(buildings)


def predict_to_file(
    weights: Path,
    rgb,
    sar,
    out: Path | None,
    *,
    predictor: Predictor | None = None,
    tell: Callable[[list[str]], None] | None = None,
    write_report: Callable[..., None] | None = None,
    **options,
) -> ScenePrediction:
    """Predict a scene and write it to `out`; formats: `fusiondet.io.layer_writer.write_buildings`.

    Everything that can be wrong with the outputs or the rasters is found before the network is built. Finished blocks
    of windows are kept in a hidden folder beside `out` (`fusiondet.jobs.store`) until `out` is whole.

    Args:
        rgb, sar: as of `predict_scene`.
        out: layer of buildings; None for a network that finds none, which writes heights or classes per pixel alone.
        predictor: of `weights`, where it is there already; `score_threshold` and `device` are its own then.
        tell: is given notes as soon as they are known: once before anything is predicted, once when `out` is whole.
        write_report: writes the page of the option `report`:
            `fusiondet.visualization.report.write_layer_report`. All buildings are in memory then.
        options: see `SceneOptions`.

    Returns:
        What was found, without the buildings.

    Raises:
        InputError: see `predict_scene` and `write_buildings`; also when `out` is missing
            for a network that finds buildings, or given for one that does not.
        OSError: an output could not be written to the end. What is finished is kept for `resume`.
    """
    options = SceneOptions.from_keywords(options)
    tell = tell or (lambda notes: None)
    if options.resume:
        options = _may_finish(out, options)
    with contextlib.ExitStack() as opened:
        rasters = opened.enter_context(SceneRasters(rgb, sar))
        opened.enter_context(rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES))
        images = [path for paths in rasters.paths.values() for path in paths]
        check_outputs(out, options, weights, images)
        if options.report is not None and write_report is None:
            raise InputError(
                "`report` needs `write_report`: pass fusiondet.visualization.report.write_layer_report."
            )
        check_layer_crs(out, options, rasters)
        main, *others = options.outputs(out)
        opened.enter_context(sole_writer(*others))
        if predictor is None:
            predictor = Predictor(
                weights, options.device, options.score_threshold, build=not options.elsewhere
            )
        check_network(predictor, out)
        run = SceneRun(predictor, rasters, options, raster_sources(predictor, options))
        tell(list(run.plan.notes))
        store = opened.enter_context(
            Store(main, run.plan.fingerprint(predictor), resume=options.resume, overwrite=options.overwrite)
        )
        # Another run may have been at work until just now.
        check_outputs(out, options, weights, images)
        store.announce([main, *others])
        notes = _write(run, out, options, store)
        result = run.prediction([])
        result.notes += notes
        if options.style:
            result.notes += write_style(out)
        tell(result.notes[len(run.plan.notes) :])
        if options.report is not None:
            image = Path((run.plan.rgb or run.plan.sar)[0])
            write_report(out, options.report, image=image, overwrite=options.overwrite)
        # Not before all outputs are there: a run that is killed between them is resumed.
        store.remove()
    return result


def _may_finish(out: Path | None, options: SceneOptions) -> SceneOptions:
    """Return the options of a resumed run, which replaces those of its outputs that the killed run has finished."""
    paths = options.outputs(out)
    with sole_writer(*(path for path in paths if parts_folder(path).is_dir())):
        pass  # of a run that was killed at its very end nothing but locks is left: they go
    there = {Path(os.path.abspath(path)) for path in paths if Path(path).exists()}
    # What is there has not been made by that run: it is refused as usual.
    if not there or not there <= announced(paths[0]):
        return options
    return dataclasses.replace(options, overwrite=True)


def _write(run: SceneRun, out: Path | None, options: SceneOptions, store: Store) -> list[str]:
    """Write the layer and the raster of a scene, each whole or not at all; returns notes on the layer."""
    raster_path = options.class_path if options.class_path is not None else options.height_path
    found = run.buildings(raster_path, store, store.folder)
    if out is None:
        with contextlib.closing(found):
            for _ in found:
                pass
        return []
    unit_m = run.plan.unit_m if run.plan.crs is None else None
    try:
        with BuildingWriter(
            out, run.plan.crs, run.metadata, options.overwrite, dtm=options.dtm, unit_m=unit_m
        ) as writer:
            with contextlib.closing(found):
                for buildings in found:
                    writer.write(buildings)
            if run.unreadable_px:
                writer.metadata["unreadable_px"] = run.unreadable_px
    except InputError:
        # The raster is whole before the layer is, whose last buildings may stand on a part of the DTM that is damaged.
        if raster_path is not None and not options.overwrite:
            Path(raster_path).unlink(missing_ok=True)
        raise
    return writer.notes


class ScenePredictor:
    """A trained network that turns rasters of any size into GeoDataFrames of buildings.

    Frames have the columns of the layers of `fusiondet.io.layers`: score, height_m, height_p16_m, height_p84_m (metres
    above ground, NaN where unknown), area_m2 and volume_m3, and outlines in the scene's own CRS; in pixels or
    map units without one. `frame.attrs` holds "notes", what was decided on the way, and "metadata", where it comes
    from.
    """

    def __init__(self, predictor: Predictor):
        """`predictor`: a network that finds buildings."""
        self.predictor = predictor

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str | None = None, score_threshold: float | str | None = "layer"
    ) -> "ScenePredictor":
        """Load a checkpoint that tools/train_net.py wrote; see `Predictor` for the arguments and errors."""
        return cls(Predictor(path, device, score_threshold))

    def predict(self, rgb, sar=None, aoi=None, **options) -> geopandas.GeoDataFrame:
        """Return all buildings of a scene.

        Args:
            rgb, sar: as of `predict_scene`.
            aoi, options: see `SceneOptions`, without those of outputs to files.

        Raises:
            InputError: see `fusiondet.inference.predict_scene`.
        """
        frames = list(self._frames(rgb, sar, aoi, options, rows=None))
        return frames[0]

    def iterate(self, rgb, sar=None, aoi=None, **options) -> Iterator[geopandas.GeoDataFrame]:
        """Yield the same as `predict`, in frames of 1000 buildings or more, as they are finished; in constant memory.

        What is only known at the end, e.g. that SAR has no data anywhere, is in the notes of the last frame. There is
        always one, empty if nothing was found.
        """
        yield from self._frames(rgb, sar, aoi, options, rows=_FRAME_ROWS)

    def _frames(self, rgb, sar, aoi, options: dict, rows: int | None) -> Iterator[geopandas.GeoDataFrame]:
        """Yield frames of at least `rows` buildings, the last one with the rest; None: one of all."""
        without = FILE_OPTIONS | HEIGHT_OPTIONS
        options = SceneOptions.from_keywords({**options, "aoi": aoi}, without)
        with SceneRasters(rgb, sar) as rasters:
            run, waiting = SceneRun(self.predictor, rasters, options), []
            with contextlib.closing(run.buildings(show_progress=False)) as found:
                for buildings in found:
                    if rows is not None and len(waiting) >= rows:
                        yield self._frame(run, waiting, run.plan.notes)
                        waiting = []
                    waiting += buildings
            yield self._frame(run, waiting, [*run.plan.notes, *run.late_notes])

    def _frame(self, run: SceneRun, buildings: Iterable[Building], notes) -> geopandas.GeoDataFrame:
        frame = buildings_frame(buildings, run.plan.crs, run.plan.unit_m)
        frame.attrs = {"notes": list(notes), "metadata": dict(run.metadata)}
        return frame


def buildings_frame(
    buildings: Iterable[Building], crs: str | None, unit_m: float = 1.0
) -> geopandas.GeoDataFrame:
    """Return `buildings` in map coordinates of `crs` as a frame with the columns of a layer; NaN where unknown.

    Args:
        unit_m: metres per unit of the coordinates, where there is no CRS.
    """
    buildings = list(buildings)
    polygons = np.array([b.polygon for b in buildings], dtype=object)
    columns = {name: np.array([getattr(b, name) for b in buildings], dtype=float) for name in NUMBERS}
    area = areas_m2(polygons, CRS(crs) if crs else None, unit_m)
    columns |= {"area_m2": area, "volume_m3": area * columns["height_m"]}
    return geopandas.GeoDataFrame(pandas.DataFrame(columns), geometry=list(polygons), crs=crs)
