"""Windows of a scene through the network: the next ones are read, and the last ones outlined, while it works.

A thread each reads, runs the network and makes outlines of its masks; queues between them are short, so memory does not
grow with the scene. Windows come out in the order in which they were asked for, and what is said of one depends on the
plan alone: which windows the network sees together is settled by their numbers, not by what happens to be ready.
"""

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.inference.plan import BLOCK_WINDOWS, ScenePlan
from fusiondet.inference.predictor import ImagePrediction, Predictor
from fusiondet.io.rasters import UnreadablePixelsError
from fusiondet.io.scene_reader import Scene, SceneReader

import numpy as np
import shapely

# Parts of a window that cannot be read are narrowed down to about this size.
_SMALLEST_PART_PX = 64


@dataclass
class WindowResult:
    """What was found in a window.

    Attributes:
        index: number of the window in the plan.
        buildings: outlines in the pixels of the grid.
        layers: source -> (h, w) metres of the window's pixels, for a raster of heights, or "classes" -> numbers; empty
            where none is wanted or the window is outside of the area of interest.
        data_px: modality -> how many pixels of the window have data of it. seen_px: how many have any.
        unreadable_px: pixels that could not be read and count as no data.
    """

    index: int
    buildings: list[Building] = field(default_factory=list)
    layers: dict[str, np.ndarray] = field(default_factory=dict)
    data_px: dict[str, int] = field(default_factory=dict)
    seen_px: int = 0
    unreadable_px: int = 0


@dataclass
class _Read:
    """A window that was read; `scene` is None where it was not looked at, `nodata` (h, w) bool."""

    index: int
    scene: Scene | None = None
    nodata: np.ndarray | None = None
    data_px: dict[str, int] = field(default_factory=dict)
    unreadable_px: int = 0
    output: dict | None = None


def predict_windows(
    predictor: Predictor, plan: ScenePlan, reader: SceneReader, indices: Iterable[int]
) -> Iterator[WindowResult]:
    """Yield what the network finds in windows of a plan, in the order in which they are asked for.

    Args:
        reader: of the plan's grid; nothing else may read from it meanwhile.
        indices: numbers of the windows; those of a block one after another.

    Raises:
        InputError: pixels that cannot be read, unless `plan.skip_invalid`.
    """
    with contextlib.ExitStack() as threads:
        ahead = 2 * plan.batch
        read = threads.enter_context(_Ahead(_read(predictor, plan, reader, indices), ahead))
        answered = threads.enter_context(_Ahead(_answered(predictor, plan, read), ahead))
        results = (_interpreted(predictor, plan, item) for item in answered)
        yield from threads.enter_context(_Ahead(results, 2 * BLOCK_WINDOWS))


class _Ahead:
    """An iterator that a thread of its own runs ahead of its reader, by `size` items at most."""

    _END = object()

    def __init__(self, iterator: Iterator, size: int):
        self._iterator, self._queue = iterator, queue.Queue(max(1, size))
        self._stopped, self._error = threading.Event(), None
        self._thread = threading.Thread(target=self._run, daemon=True, name="fusiondet-pipeline")

    def _run(self):
        try:
            for item in self._iterator:
                if not self._put(item):
                    return
        except BaseException as error:  # of any kind: it is raised where the results are read
            self._error = error
        finally:
            # Here, not when it is collected: what it holds is let go by the thread that used it.
            self._iterator.close()
            self._put(self._END)

    def _put(self, item) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False

    def __iter__(self):
        while not self._stopped.is_set():
            try:
                item = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            if item is self._END:
                if self._error is not None:
                    raise self._error
                return
            yield item

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()


def _read(
    predictor: Predictor, plan: ScenePlan, reader: SceneReader, indices: Iterable[int]
) -> Iterator[_Read]:
    for index in indices:
        if index not in plan.wanted:
            yield _Read(index)
            continue
        window, _ = plan.windows[index]
        scene, unreadable_px = _read_window(reader, window, plan.skip_invalid)
        missing = np.isnan(scene.image)
        lacking = {m: missing[channels].all(axis=0) for m, channels in predictor.channels.items()}
        data_px = {m: int((~pixels).sum()) for m, pixels in lacking.items()}
        yield _Read(index, scene, missing.all(axis=0), data_px, unreadable_px)


def _read_window(reader: SceneReader, window, skip_invalid: bool) -> tuple[Scene, int]:
    """The pixels of a window, and how many of them cannot be read; those are NaN."""
    try:
        return reader.read(window), 0
    except UnreadablePixelsError as error:
        x0, y0, width, height = window
        if not skip_invalid:
            raise InputError(
                f"{error} The window of {width} x {height} px at column {x0}, row {y0} needs them; pass "
                "`skip_invalid=True` to take what cannot be read for no data."
            ) from None
    image = np.full((len(reader.bands), height, width), np.nan, np.float32)
    scene = Scene(image, reader.transform, reader.crs, reader.gsd_m)
    return scene, _read_parts(reader, (x0, y0), window, image)


def _read_parts(reader: SceneReader, origin, window, image: np.ndarray) -> int:
    """Fill `image`, whose corner is `origin`, with what of `window` can be read; how many pixels cannot."""
    x0, y0, width, height = window
    lost_px = 0
    for y, h in _halves(y0, height):
        for x, w in _halves(x0, width):
            try:
                part = reader.read((x, y, w, h)).image
            except UnreadablePixelsError:
                small = max(w, h) <= _SMALLEST_PART_PX
                lost_px += w * h if small else _read_parts(reader, origin, (x, y, w, h), image)
            else:
                image[:, y - origin[1] : y - origin[1] + h, x - origin[0] : x - origin[0] + w] = part
    return lost_px


def _halves(start: int, length: int) -> list[tuple[int, int]]:
    half = length // 2
    return [(start, half), (start + half, length - half)] if half else [(start, length)]


def _answered(predictor: Predictor, plan: ScenePlan, read: Iterable[_Read]) -> Iterator[_Read]:
    """The windows with what the network says of them; it sees `plan.batch` of one block together."""
    waiting: list[_Read] = []
    for item in read:
        if waiting and _block(waiting[-1]) != _block(item):
            yield from _infer(predictor, plan, waiting)
            waiting = []
        waiting.append(item)
        if sum(_has_pixels(i) for i in waiting) == plan.batch:
            yield from _infer(predictor, plan, waiting)
            waiting = []
    yield from _infer(predictor, plan, waiting)


def _block(item: _Read) -> int:
    return item.index // BLOCK_WINDOWS


def _has_pixels(item: _Read) -> bool:
    return item.scene is not None and not item.nodata.all()


def _infer(predictor: Predictor, plan: ScenePlan, items: list[_Read]) -> list[_Read]:
    seen = [item for item in items if _has_pixels(item)]
    if seen:
        outputs = predictor.infer([item.scene.image for item in seen], plan.gsd_m, plan.sensor)
        for item, output in zip(seen, outputs, strict=True):
            item.output, item.scene = output, None
    return items


def _interpreted(predictor: Predictor, plan: ScenePlan, item: _Read) -> WindowResult:
    if item.nodata is None:
        return WindowResult(item.index)
    if item.output is None:
        predicted = predictor.nothing(item.nodata.shape)
    else:
        predicted = predictor.interpret(item.output, item.nodata)
    x0, y0 = plan.windows[item.index][0][:2]
    _shift(predicted.buildings, x0, y0)
    layers = _layers(predicted, item.nodata) if plan.sources else {}
    return WindowResult(
        item.index,
        predicted.buildings,
        {source: layers[source] for source in plan.sources},
        item.data_px,
        int((~item.nodata).sum()),
        item.unreadable_px,
    )


def _shift(buildings: list[Building], x0: int, y0: int) -> None:
    polygons = shapely.transform([b.polygon for b in buildings], lambda xy: xy + (x0, y0))
    for building, polygon in zip(buildings, polygons, strict=True):
        building.polygon = polygon


def _layers(predicted: ImagePrediction, nodata: np.ndarray) -> dict[str, np.ndarray]:
    """What a window has to say to a raster of classes, or to one of heights before buildings are painted on it."""
    return {
        "classes": predicted.class_map,
        "dense": predicted.height_map_m,
        "instances": np.where(nodata, np.float32(np.nan), np.float32(0)),
    }
