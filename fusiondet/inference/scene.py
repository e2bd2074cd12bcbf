"""From a checkpoint and rasters of any size to a layer of buildings on the map, and to a raster of heights.

Memory does not grow with the scene: windows are read, predicted and forgotten; buildings are merged across the borders
of windows as these come, and written as soon as nothing can change them any more.
"""

import contextlib
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet import __version__
from fusiondet.buildings import Building
from fusiondet.cli import progress
from fusiondet.errors import InputError
from fusiondet.files import parts_folder, require_new, scratch_folder
from fusiondet.geometry.seams import SeamMerger
from fusiondet.inference import checks
from fusiondet.inference.cluster import predict_on_cluster
from fusiondet.inference.outlines import (
    MAX_OVERLAP,
    HeldBack,
    Regularizer,
    buildings_to_map,
    check_max_overlap,
    without_overlaps,
)
from fusiondet.inference.parts import PartStore
from fusiondet.inference.pipeline import WindowResult, predict_windows
from fusiondet.inference.plan import ScenePlan, plan_scene
from fusiondet.inference.predictor import Predictor
from fusiondet.inference.strips import HeightStrips
from fusiondet.inference.workers import PredictorSettings, predict_on_workers
from fusiondet.io.grids import crs_text
from fusiondet.io.height_rasters import check_height_raster, class_raster, height_raster
from fusiondet.io.layer_writer import BuildingWriter
from fusiondet.io.layers import check_output, read_buildings, read_metadata
from fusiondet.io.provenance import acquisition_time, made_with
from fusiondet.io.qgis_style import check_style, write_style
from fusiondet.io.rasters import open_raster
from fusiondet.io.scene_reader import SceneReader

import rasterio

# What GDAL may keep of rasters that are being written: its own default is a share of the machine.
_GDAL_CACHE_BYTES = 128 << 20
# So often a part that cannot be read is made again.
_MOST_TRIES = 3


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


class SceneFacts:
    """What is only known once all windows were looked at."""

    def __init__(self):
        """Nothing is known yet."""
        self.data_px = {"optical": 0, "sar": 0}
        self.seen_px = 0  # of these, windows that overlap count what they share twice
        self.unreadable_px = self.unreadable_windows = 0
        self.covered = 0  # outlines that better ones covered

    def of(self, results: Iterable[WindowResult]) -> Iterator[WindowResult]:
        """`results`, which are looked at as they pass."""
        for result in results:
            for modality, count in result.data_px.items():
                self.data_px[modality] += count
            self.seen_px += result.seen_px
            self.unreadable_px += result.unreadable_px
            self.unreadable_windows += result.unreadable_px > 0
            yield result

    def notes(self, predictor: Predictor, plan: ScenePlan, rgb_path, sar_path) -> list[str]:
        """For the user."""
        paths = {"optical": rgb_path, "sar": sar_path}
        notes = checks.nodata_notes(predictor, paths, self.data_px, self.seen_px)
        if self.unreadable_px:
            files = checks.names_of([f for path in paths.values() for f in checks.files_of(path)])
            notes.append(
                f"{files}: {self.unreadable_px} pixels in {self.unreadable_windows} of {len(plan.wanted)} windows "
                "could not be read and count as no data."
            )
        if self.covered:
            notes.append(
                f"{self.covered} outlines were left out, for the most part covered by others with better scores (see "
                "--max-overlap)."
            )
        return notes


def predict_scene(
    predictor: Predictor,
    rgb_path,
    sar_path=None,
    *,
    height_path: Path | None = None,
    height_source: str | None = None,
    **options,
) -> ScenePrediction:
    """Buildings of a raster pair, read and predicted window by window, and on demand a raster of heights.

    Buildings that several windows see are merged, see `fusiondet.geometry.seams`. A pixel of the height raster belongs
    to the window in whose core it lies. Rasters whose rows run north or columns west are read from the other end, so
    that the network sees no mirrored picture, and heights are written north-up.

    Args:
        rgb_path, sar_path: a raster, or a list of rasters whose bands are those of one; None where there is none.
        height_path: GeoTIFF to write heights to, on the pixels of the optical raster (the SAR raster's without one)
            that are predicted, also where these are resampled for the network; see `fusiondet.io.height_rasters`. An
            existing one is replaced.
        height_source: "dense", "instances", "both" (a band each); None: the first of these that the network has.
        options:
            window_px: side of a window; a scene up to this size is one window (1024).
            overlap_px: how far neighbouring windows overlap; None derives it from the GSD, from what the height head
                looks at around a building, and from a large building, see `fusiondet.geometry.seams`.
            batch: how many windows the network sees at a time; None: 1 on a CPU, 4 on a GPU.
            force_gsd: predict even though the pixel size is more than four times off what the network was trained on.
            sensor: `SensorGeometry`, where sun and sensors were, as far as known.
            aoi: area of interest: a file of polygons in any CRS, a GeoDataFrame or GeoSeries, or a geometry in the
                scene's CRS. Buildings are kept if a point inside of them (shapely's representative point) is in it.
            skip_invalid: pixels that cannot be read count as no data, and are counted in the notes.
            extent: "intersection" predicts where both rasters are, "optical" also where SAR is missing; None: the
                latter if the network copes without SAR, as training with SAR missing makes it.
            regularize_m, max_overlap: see `finished_buildings`.
            rgb_bands, sar_bands, sar_scale, sar_factor, nodata, gsd_m: of `SceneReader`.

    Raises:
        InputError: from the reader; the pixel size is too far from that of the training; no raster of a modality that
            the network takes; angles that cannot be; heights from what the network does not have.
    """
    regularize_m, max_overlap = options.pop("regularize_m", None), options.pop("max_overlap", MAX_OVERLAP)
    sources = checks.wanted_sources(predictor, height_source) if height_path else []
    plan = plan_scene(predictor, rgb_path, sar_path, sources=tuple(sources), **options)
    results = predict_windows(predictor, plan, range(len(plan.windows)))
    buildings: list[Building] = []
    with contextlib.closing(results):
        found = _assemble(predictor, plan, results, buildings.extend, height_path, regularize_m, max_overlap)
    return _prediction(predictor, plan, found, rgb_path, sar_path, buildings)


def finished_buildings(
    plan: ScenePlan,
    results: Iterable[WindowResult],
    regularize_m: float | None = None,
    max_overlap: float = MAX_OVERLAP,
    facts: SceneFacts | None = None,
) -> Iterator[list[Building]]:
    """Buildings in pixels of the grid, each once, in lists as they are finished; those outside the area left out.

    Args:
        results: of all windows of the plan, in order.
        regularize_m: walls are set straight and square within this many metres, see
            `fusiondet.geometry.regularization`; None leaves outlines as they are.
        max_overlap: outlines of which better ones cover a larger share are left out, see
            `fusiondet.inference.outlines.without_overlaps`; 1 keeps all.
        facts: is told how many were.

    Raises:
        InputError: numbers that cannot be.
    """
    check_max_overlap(max_overlap)
    windows = [window for window, _ in plan.windows]
    merger, held = SeamMerger(windows), None
    regularizer = Regularizer(plan.pixel_m, tolerance_m=regularize_m) if regularize_m is not None else None
    if regularizer or max_overlap < 1:
        held = HeldBack(windows, regularizer.margin_px if regularizer else 0.0, merger.waiting)

    def shaped(buildings: list[Building]) -> list[Building]:
        kept = without_overlaps(buildings, max_overlap)
        if facts:
            facts.covered += len(buildings) - len(kept)
        # Before some are left out: walls are shared with neighbours outside of the area, too.
        regular = regularizer.regular(kept) if regularizer else kept
        if plan.aoi_px is None:
            return regular
        inside = [plan.aoi_px.intersects(b.polygon.representative_point()) for b in kept]
        return [b for b, i in zip(regular, inside, strict=True) if i]

    for result in results:
        found = merger.add(result.index, result.buildings)
        yield shaped(held.add(result.index, found) if held else found)
    found = merger.finish()
    yield shaped(held.finish(found) if held else found)


def _assemble(
    predictor: Predictor,
    plan: ScenePlan,
    results: Iterable[WindowResult],
    write: Callable[[list[Building]], None] | None,
    height_path: Path | None,
    regularize_m: float | None,
    max_overlap: float,
    scratch: Path | None = None,
) -> tuple[SceneFacts, int, int]:
    """Hand buildings in map coordinates to `write` as they are finished, and fill the raster of heights.

    `scratch`: folder for what waits to be painted; None: the system's.

    Returns:
        Facts of the windows, the number of buildings, and that of those with known height.
    """
    facts, count, with_heights = SceneFacts(), 0, 0
    with contextlib.ExitStack() as opened:
        opened.enter_context(rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES))
        heights = strips = None
        if height_path:
            heights = opened.enter_context(_height_raster(predictor, plan, height_path))
        if "instances" in plan.sources:
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix=".heights-", dir=scratch))
            strips = HeightStrips(Path(folder), heights)

        def looked_at():
            bar = progress(results, total=len(plan.windows), label="predicting", unit="window")
            for result in facts.of(bar):
                if heights and result.layers:
                    heights.fill(result.layers, *plan.windows[result.index])
                yield result

        for buildings in finished_buildings(plan, looked_at(), regularize_m, max_overlap, facts):
            if strips:
                strips.add(buildings)
            count += len(buildings)
            with_heights += sum(b.height_m is not None for b in buildings)
            if write:
                write(buildings_to_map(buildings, plan.transform))
        if strips:
            strips.paint()
    return facts, count, with_heights


def _height_raster(predictor: Predictor, plan: ScenePlan, path: Path):
    """`height_raster`, or `class_raster`, on the scene's own pixels for what comes in those of the plan's grid."""
    options = {**plan.reader_options, "target_gsd_m": None}
    of_classes = plan.sources == checks.CLASS_SOURCES
    make, bands = (class_raster, predictor.class_names) if of_classes else (height_raster, plan.sources)
    with SceneReader(plan.rgb or None, plan.sar or None, predictor.bands, **options) as own:
        return make(
            path,
            (own.height, own.width),
            own.transform,
            own.crs,
            bands,
            tags={
                "weights": predictor.weights.name,
                "weights_sha256": predictor.weights_sha256,
                "fusiondet": __version__,
                "gsd_m": str(plan.gsd_m),
            },
            grid_shape=(plan.height, plan.width),
        )


def provenance(predictor: Predictor, plan: ScenePlan) -> dict:
    """Plain values that say where a result comes from: model, images and their dates, windows, versions."""
    acquired = {m: acquisition_time(Path(files[0])) for m, files in plan.images.items() if files}
    return made_with(
        predictor.weights,
        predictor.config_yaml,
        acquired,
        images=[Path(name).name for files in plan.images.values() for name in files],
        score_threshold=predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        gsd_m=plan.gsd_m,
        window_px=plan.window_px,
        overlap_px=plan.overlap_px,
    )


def _prediction(predictor, plan: ScenePlan, found, rgb_path, sar_path, buildings) -> ScenePrediction:
    facts, count, with_heights = found
    notes = [*plan.notes, *facts.notes(predictor, plan, rgb_path, sar_path)]
    metadata = provenance(predictor, plan)
    return ScenePrediction(buildings, plan.crs, plan.gsd_m, notes, metadata, count, with_heights)


def predict_to_file(
    weights: Path,
    rgb_path,
    sar_path,
    out: Path | None,
    *,
    height_path: Path | None = None,
    height_source: str | None = None,
    class_path: Path | None = None,
    score_threshold: float | str = "layer",
    device=None,
    overwrite: bool = False,
    resume: bool = False,
    workers: int = 0,
    scheduler: str | None = None,
    regularize_m: float | None = None,
    max_overlap: float = MAX_OVERLAP,
    dtm: Path | None = None,
    report: Path | None = None,
    style: bool = False,
    predictor: Predictor | None = None,
    tell: Callable[[list[str]], None] | None = None,
    **options,
) -> ScenePrediction:
    """`predict_scene` with a fresh Predictor, written to `out`; formats: `fusiondet.io.layer_writer.write_buildings`.

    Everything that can be wrong with `out`, `height_path` or the rasters is found before the network is built. Finished
    blocks of windows are kept in a hidden folder beside `out` (`fusiondet.inference.parts`) until `out` is whole.

    Args:
        out: layer of buildings; None for a network that finds none, which writes heights or classes per pixel alone.
        class_path: GeoTIFF to write the most probable class of each pixel to, see `fusiondet.io.height_rasters`; for a
            network that tells classes, or footprints. Of a pixel that several windows see, the one speaks whose core it
            lies in.
        resume: take up what a run that was stopped has finished; with the same options the result is the same.
        workers: processes of this machine that predict, each with a network of its own; 0: this process does.
        scheduler: address of a scheduler of dask.distributed whose workers predict.
        regularize_m, max_overlap: see `finished_buildings`.
        dtm: raster of elevations that the buildings of a city model stand on, see `BuildingWriter`.
        report: HTML page about `out` to write, see `fusiondet.visualization.report`; all buildings are in memory then.
        style: write a QGIS style beside `out`, see `fusiondet.io.qgis_style.write_style`.
        predictor: of `weights`, where it is there already; `score_threshold` and `device` are its own then.
        tell: is given notes as soon as they are known: once before anything is predicted, once when `out` is whole.
        options: see `predict_scene`.

    Returns:
        What was found, without the buildings.

    Raises:
        InputError: see `predict_scene` and `write_buildings`; also when the scene has no CRS, or when `out` is missing
            for a network that finds buildings, or given for one that does not.
        OSError: an output could not be written to the end. What is finished is kept for `resume`.
    """
    inputs = [*checks.files_of(rgb_path), *checks.files_of(sar_path)]
    others = [p for p in (weights, dtm, options.get("aoi")) if isinstance(p, str | Path)]
    outputs = {"--out": out, "--height-raster": height_path, "--class-raster": class_path, "--report": report}
    _check_outputs(outputs, others, inputs, overwrite)
    if out is None and (dtm is not None or report is not None or style):
        raise InputError("--dtm, --report and --style are about the buildings of --out, which is missing.")
    if style:
        check_style(out)
    if height_source and height_path is None:
        raise InputError("--height-source says what is written with --height-raster, which is missing.")
    crs = _check_crs(inputs)
    if out is not None:
        check_output(out, overwrite, crs, elevations=dtm is not None)
    if workers < 0:
        raise InputError(f"--workers is {workers}, expected 0 (this process) or more.")
    if workers and scheduler:
        raise InputError(
            "--workers are processes of this machine, --scheduler is a cluster: pass one of them."
        )
    elsewhere = bool(workers or scheduler)
    predictor = predictor or Predictor(weights, device, score_threshold, build=not elsewhere)
    _check_kind(predictor, out, weights)
    sources = checks.wanted_sources(predictor, height_source) if height_path else []
    if class_path is not None:
        checks.check_tells_classes(predictor)
        if height_path is not None:
            raise InputError("--class-raster and --height-raster: write one at a time.")
        sources, height_path = checks.CLASS_SOURCES, class_path
    plan = plan_scene(predictor, rgb_path, sar_path, sources=tuple(sources), **options)
    folder = parts_folder(out if out is not None else height_path)
    store = PartStore(folder, plan.fingerprint(predictor), resume, overwrite)
    tell = tell or (lambda notes: None)
    tell(list(plan.notes))
    try:
        with contextlib.ExitStack() as opened:
            if out is not None and height_path is not None:
                opened.enter_context(scratch_folder(height_path))
            writer = write = None
            if out is not None:
                writer = BuildingWriter(out, plan.crs, provenance(predictor, plan), overwrite, dtm=dtm)
                write = opened.enter_context(writer).write
            results = _results(predictor, plan, store, device, workers, scheduler)
            opened.enter_context(contextlib.closing(results))
            shape = (regularize_m, max_overlap, store.folder)
            found = _assemble(predictor, plan, results, write, height_path, *shape)
            if writer and found[0].unreadable_px:
                writer.metadata["unreadable_px"] = found[0].unreadable_px
    except BaseException:
        store.remove_if_empty()
        raise
    store.remove()
    result = _prediction(predictor, plan, found, rgb_path, sar_path, [])
    result.notes += writer.notes if writer else []
    if style:
        result.notes += write_style(out)
    tell(result.notes[len(plan.notes) :])
    if report is not None:
        with scratch_folder(report):
            _report(out, report, (plan.rgb or plan.sar)[0], overwrite)
    return result


def _report(out: Path, report: Path, image: str, overwrite: bool) -> None:
    from fusiondet.visualization.report import write_report  # which brings plotly along

    buildings, crs = read_buildings(out)
    options = {"metadata": read_metadata(out), "overwrite": overwrite}
    try:
        write_report(buildings, crs, report, image=Path(image), **options)
    except InputError:
        # Of an image with damaged blocks no overview can be made; the layer is there, and its page is wanted.
        if "unreadable_px" not in options["metadata"]:
            raise
        write_report(buildings, crs, report, **options)


def _results(predictor, plan, store, device, workers: int, scheduler: str | None) -> Iterator[WindowResult]:
    settings = PredictorSettings.of(predictor, device)
    if scheduler:
        compute = functools.partial(predict_on_cluster, settings, plan, store, address=scheduler)
    elif workers:
        compute = functools.partial(predict_on_workers, settings, plan, store, count=workers)
    else:
        return stored_results(predictor, plan, store)
    return gathered_results(plan, store, compute)


def stored_results(predictor: Predictor, plan: ScenePlan, store: PartStore) -> Iterator[WindowResult]:
    """Results of all windows in order, those of blocks in `store` from there, the others predicted and put there."""
    blocks, kept = plan.blocks, store.numbers()
    to_do = (index for number, block in enumerate(blocks) if number not in kept for index in block)
    with contextlib.closing(predict_windows(predictor, plan, to_do)) as fresh:
        for number, block in enumerate(blocks):
            there = store.load(number) if number in kept else None
            if there is not None:
                yield from there
            elif number in kept:  # damaged, which is found out only now
                yield from _predict_block(predictor, plan, store, number)
            else:
                yield from _saved(itertools.islice(fresh, len(block)), len(block), store, number)


def _saved(results: Iterator[WindowResult], count: int, store: PartStore, number: int):
    """`results`, which are in `store` before the last of them is handed on."""
    found = []
    for result in results:
        found.append(result)
        if len(found) == count:
            store.save(number, found)
        yield result


def _predict_block(predictor, plan: ScenePlan, store: PartStore, number: int) -> Iterator[WindowResult]:
    block = plan.blocks[number]
    with contextlib.closing(predict_windows(predictor, plan, block)) as results:
        yield from _saved(results, len(block), store, number)


def gathered_results(
    plan: ScenePlan, store: PartStore, compute: Callable[[list[int]], Iterator[int]]
) -> Iterator[WindowResult]:
    """Results of all windows in order, out of `store`, into which others put them.

    Args:
        compute: takes numbers of blocks, and gives them back, in any order, once they are in `store`.

    Raises:
        InputError: a part cannot be read, though it was made again.
    """
    there = store.numbers()
    lacking = [number for number in range(len(plan.blocks)) if number not in there]
    with contextlib.closing(compute(lacking)) as finished:
        for number in range(len(plan.blocks)):
            while number not in there:
                there.add(next(finished))
            results, tries = store.load(number), 0
            while results is None:  # damaged
                if tries == _MOST_TRIES:
                    raise InputError(
                        f"{store.path(number)}: was made again {tries} times, and cannot be read each time. Do the "
                        "workers run the same version of fusiondet as this process?"
                    )
                with contextlib.closing(compute([number])) as again:
                    next(again)
                results, tries = store.load(number), tries + 1
            yield from results


def _check_crs(inputs) -> str:
    """The CRS of the first raster."""
    crs = None
    for path in inputs:
        with open_raster(path, allow_vrt=True) as raster:
            if raster.crs is None and path == inputs[0]:
                raise InputError(
                    f"{path}: has no CRS, so its buildings have no place on the map. "
                    "Set it with `rio edit-info --crs EPSG:n FILE`."
                )
            crs = crs or crs_text(raster.crs)
    return crs


def _check_kind(predictor: Predictor, out: Path | None, weights) -> None:
    if out is None and predictor.has_instances:
        raise InputError(f"{weights}: finds buildings. Pass --out for them, with or without --height-raster.")
    if out is not None and not predictor.has_instances:
        says = "heights or classes: it can be trained on and scored, but has nothing to write."
        if predictor.height_sources:
            says = "only heights per pixel. Pass --height-raster instead of --out."
        elif predictor.class_names:
            names = ", ".join(predictor.class_names)
            says = f"only classes per pixel ({names}). Pass --class-raster instead of --out."
        raise InputError(f"{weights}: finds no buildings, {says}")


def _check_outputs(outputs: dict[str, Path | None], inputs: list, images: list, overwrite: bool) -> None:
    """Refuse names of `outputs` (option -> file) that are taken, or needed as something else; and if there are none.

    Args:
        outputs: of --out, --height-raster, --class-raster and --report, in this order.
        inputs: other files that are read. images: those to predict from.
    """
    out, height_path, class_path, report = outputs.values()
    if out is None and height_path is None and class_path is None:
        raise InputError(
            "nothing to write. Pass --out for buildings, --height-raster for heights, or both; --class-raster for the "
            "classes, or the footprints, of a network that tells them for each pixel."
        )
    if class_path is not None:
        check_height_raster(class_path, overwrite, "classes")
    if out is not None:
        check_output(out, overwrite)
    if height_path is not None:
        check_height_raster(height_path, overwrite)
    if report is not None:
        require_new(report, overwrite)
    taken = {Path(p).resolve(): "is an image to predict from" for p in images if Path(p).exists()}
    taken |= {Path(p).resolve(): "is read to predict" for p in inputs if Path(p).exists()}
    for option, path in outputs.items():
        if path is None:
            continue
        place = Path(path).resolve()
        if place in taken:
            raise InputError(f"{path}: {taken[place]}, and not replaced. Choose another name for {option}.")
        taken[place] = f"is what {option} writes"
