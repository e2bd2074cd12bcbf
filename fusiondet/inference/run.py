"""The way of a scene from open rasters to finished buildings and rasters; every entry of this package takes it.

    open rasters -> plan -> windows -> seams -> overlaps -> regular outlines -> area of interest -> map coordinates

Memory does not grow with the scene: windows are read, predicted and forgotten; buildings are merged across the borders
of windows as these come, and handed on as soon as nothing can change them any more.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fusiondet import __version__
from fusiondet.buildings import Building
from fusiondet.cli import progress
from fusiondet.inference import checks
from fusiondet.inference.blocks import window_results
from fusiondet.inference.options import SceneOptions
from fusiondet.inference.outlines import OutlineFinisher, buildings_to_map
from fusiondet.inference.pipeline import WindowResult
from fusiondet.inference.plan import plan_scene
from fusiondet.inference.predictor import Predictor
from fusiondet.inference.strips import HeightStrips
from fusiondet.io.height_rasters import class_raster, height_raster
from fusiondet.io.provenance import acquisition_time, made_with
from fusiondet.io.scene_reader import SceneRasters
from fusiondet.jobs.store import Store


@dataclass
class ScenePrediction:
    """What was found in a scene, and what was decided on the way.

    Attributes:
        buildings: in the map coordinates of `crs`; empty where they were written to a file instead.
        gsd_m: metres per pixel of the grid that was predicted on. notes: sentences for the user.
        metadata: plain values: the model, the images, the windows, versions.
        count, with_heights: how many buildings there are, and of how many the height is known.
    """

    buildings: list[Building]
    crs: str | None
    gsd_m: float
    notes: list[str] = field(default_factory=list)
    metadata: dict = field(default_factory=dict)
    count: int = 0
    with_heights: int = 0


class SceneRun:
    """A scene that is being predicted.

    Attributes:
        plan: what was decided before.
        count, with_heights: buildings so far, and those of them with known height.
        covered: outlines that were suppressed because better ones cover them; at the end.
        unreadable_px: pixels so far that could not be read and count as no data.
    """

    def __init__(
        self,
        predictor: Predictor,
        rasters: SceneRasters,
        options: SceneOptions,
        sources: Sequence[str] = (),
    ):
        """Plan the scene; for the arguments and errors see `plan_scene`. The rasters stay open until the end."""
        self._predictor, self._rasters, self._options = predictor, rasters, options
        self.plan, self._reader = plan_scene(predictor, rasters, options, sources)
        self.count = self.with_heights = self.covered = 0
        self.unreadable_px = self._unreadable_windows = 0
        self._data_px = {"optical": 0, "sar": 0}
        self._seen_px = 0  # of these, windows that overlap count what they share twice

    def buildings(
        self,
        raster_path: Path | None = None,
        store: Store | None = None,
        scratch: Path | None = None,
        show_progress: bool = True,
    ) -> Iterator[list[Building]]:
        """Predict the scene: yield its buildings in map coordinates, each once, in lists as they are finished.

        Args:
            raster_path: GeoTIFF to write what the plan's `sources` are to; it is there when the iterator has ended.
            store: where finished blocks of windows are kept for a run that is stopped.
            scratch: folder for what waits to be painted; None: the system's.
            show_progress: show a progress bar where stderr is a terminal.

        Raises:
            InputError: see `window_results`.
            OSError: the raster or a block could not be written.
        """
        results = window_results(self._predictor, self.plan, self._reader, self._options, store)
        with contextlib.ExitStack() as opened:
            opened.enter_context(contextlib.closing(results))
            raster = strips = None
            if raster_path:
                raster = opened.enter_context(self._raster(raster_path))
            if raster and "instances" in self.plan.sources:
                folder = opened.enter_context(tempfile.TemporaryDirectory(prefix=".heights-", dir=scratch))
                strips = HeightStrips(Path(folder), raster)

            if show_progress:
                results = progress(results, total=len(self.plan.windows), label="predicting", unit="window")
            for buildings in self._finished(results, raster):
                if strips:
                    strips.add(buildings)
                self.count += len(buildings)
                self.with_heights += sum(b.height_m is not None for b in buildings)
                yield buildings_to_map(buildings, self.plan.transform)
            if strips:
                strips.paint()

    def _finished(self, results: Iterator[WindowResult], raster) -> Iterator[list[Building]]:
        """Yield buildings in pixels of the grid as they are finished, those in the area of interest."""
        outlines = OutlineFinisher(self.plan, self._options.regularize_m, self._options.max_overlap)
        for result in results:
            self._count(result)
            if raster and result.layers:
                raster.fill(result.layers, *self.plan.windows[result.index])
            yield outlines.add(result)
        yield outlines.finish()
        self.covered = outlines.covered

    def _count(self, result: WindowResult) -> None:
        for modality, count in result.data_px.items():
            self._data_px[modality] += count
        self._seen_px += result.seen_px
        self.unreadable_px += result.unreadable_px
        self._unreadable_windows += result.unreadable_px > 0

    def _raster(self, path: Path):
        """A raster on the scene's own pixels, for what comes in those of the plan's grid."""
        of_classes = self.plan.sources == checks.CLASS_SOURCES
        make = class_raster if of_classes else height_raster
        return make(
            path,
            self._reader.own_shape,
            self._reader.own_transform,
            self.plan.crs,
            self._predictor.class_names if of_classes else self.plan.sources,
            tags={
                "weights": self._predictor.weights.name,
                "weights_sha256": self._predictor.weights_sha256,
                "fusiondet": __version__,
                "gsd_m": str(self.plan.gsd_m),
            },
            grid_shape=(self.plan.height, self.plan.width),
        )

    @property
    def late_notes(self) -> list[str]:
        """Notes for the user on what is only known once all windows were predicted."""
        paths = self._rasters.paths
        notes = checks.nodata_notes(self._predictor, paths, self._data_px, self._seen_px)
        if self.unreadable_px:
            files = checks.names_of(path for files in paths.values() for path in files)
            notes.append(
                f"{files}: {self.unreadable_px} pixels in {self._unreadable_windows} of {len(self.plan.wanted)} "
                "windows could not be read and count as no data."
            )
        if self.covered:
            notes.append(
                f"{self.covered} outlines were left out, for the most part covered by others with better scores (see "
                "`max_overlap`)."
            )
        return notes

    @cached_property
    def metadata(self) -> dict:
        """Plain values that a result follows from: model, images and their dates, windows, versions."""
        sources = {"optical": self._rasters.optical, "sar": self._rasters.sar}
        return made_with(
            self._predictor.weights,
            self._predictor.weights_sha256,
            self._predictor.config_yaml,
            {modality: acquisition_time(files[0]) for modality, files in sources.items() if files},
            images=[Path(name).name for files in self.plan.images.values() for name in files],
            score_threshold=self._predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            gsd_m=self.plan.gsd_m,
            window_px=self.plan.window_px,
            overlap_px=self.plan.overlap_px,
        )

    def prediction(self, buildings: list[Building]) -> ScenePrediction:
        """Return the result of a run that has ended, with `buildings`."""
        notes = [*self.plan.notes, *self.late_notes]
        return ScenePrediction(
            buildings,
            self.plan.crs,
            self.plan.gsd_m,
            notes,
            dict(self.metadata),
            self.count,
            self.with_heights,
        )
