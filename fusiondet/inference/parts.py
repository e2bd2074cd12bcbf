"""What was found in finished blocks of windows, on disk: a run that was killed goes on from there.

The parts of `buildings.gpkg` are in the hidden folder `.buildings.gpkg.parts` beside it: `plan.json`, which says what
they follow from, and a GeoParquet per block, in pixels of the grid, with a column for the number of the window. Where a
raster of heights is asked for, `.npz` beside it holds the heights of the block's windows. Each appears whole or not at
all; one that is damaged all the same is made again.
"""

import io
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.files import atomic_path, naming, read_json, remove_half_written, write_json
from fusiondet.inference.pipeline import WindowResult
from fusiondet.inference.predictor import HEIGHT_FACTS

import numpy as np
import pyarrow
import pyarrow.parquet
import shapely

_NUMBERS = ("score", "height_m", "height_p16_m", "height_p84_m")
_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": [], "crs": None}},
}
_SCHEMA = pyarrow.schema(
    [("window", pyarrow.int32()), *((name, pyarrow.float64()) for name in _NUMBERS)]
    + [("geometry", pyarrow.binary())]
)


class PartStore:
    """The folder of the parts of one result; see the module."""

    def __init__(self, folder: Path, fingerprint: dict, resume: bool, overwrite: bool):
        """Make the folder, or take up what an earlier run left in it.

        Args:
            fingerprint: what the result follows from, plain values; see `ScenePlan.fingerprint`.
            resume: go on with the parts that are there; without any, begin.
            overwrite: remove them, if not `resume`.

        Raises:
            InputError: there are parts and neither is asked for, or they follow from something else.
        """
        self.folder = Path(folder).absolute()  # other processes may stand elsewhere
        fingerprint = json.loads(json.dumps(fingerprint))
        plan = self.folder / "plan.json"
        if self.blocks() and not resume:
            if not overwrite:
                raise InputError(
                    f"{self.folder}: an earlier run left {len(self.blocks())} finished blocks there. Pass --resume to "
                    "go on with them, or --overwrite to begin again."
                )
            shutil.rmtree(self.folder)
        if self.blocks():
            _check_same(self.folder, read_json(plan), fingerprint)
            remove_half_written(self.folder)
        else:
            remove_half_written(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(fingerprint, plan, indent=1)

    def path(self, block: int) -> Path:
        """The file of a block."""
        return part_path(self.folder, block)

    def blocks(self) -> list[Path]:
        """Files of the blocks that are there."""
        return sorted(self.folder.glob("block-*.parquet"))

    def numbers(self) -> set[int]:
        """Numbers of the blocks that are there."""
        return {int(path.stem.partition("-")[2]) for path in self.blocks()}

    def save(self, block: int, results: Iterable[WindowResult]) -> None:
        """Write the results of a block's windows."""
        save_part(self.folder, block, results)

    def save_bytes(self, block: int, part: bytes, layers: bytes | None) -> None:
        """Write what `part_bytes` gave for the results of a block's windows."""
        path = self.path(block)
        # The part comes last: it says that the block is there.
        for target, content in ((path.with_suffix(".npz"), layers), (path, part)):
            if content is not None:
                with atomic_path(target) as temporary, naming(target):
                    temporary.write_bytes(content)

    def load(self, block: int) -> list[WindowResult] | None:
        """What `save` was given; None when that is not there, or damaged."""
        path = self.path(block)
        try:
            results = read_part(path)
            layers = path.with_suffix(".npz")
            if layers.exists():
                by_index = {r.index: r for r in results}
                with np.load(layers, allow_pickle=False) as arrays:
                    for name in arrays.files:
                        index, source = name.split(" ")
                        by_index[int(index)].layers[source] = arrays[name]
            return results
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException, shapely.GEOSException):
            path.unlink(missing_ok=True)
            return None

    def remove(self) -> None:
        """Forget everything: the result is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Forget a run that failed before its first block was finished."""
        if not self.blocks():
            self.remove()


def _check_same(folder: Path, there: dict, wanted: dict) -> None:
    names = [k for k in {**there, **wanted} if there.get(k) != wanted.get(k)]
    if names:
        differences = "; ".join(
            f"{k} was {_short(a)}, is {_short(b)}"
            for k in names
            for a, b in [_apart(there.get(k), wanted.get(k))]
        )
        raise InputError(
            f"{folder}: the parts that are to be taken up follow from something else ({differences}). Give the options "
            "of the first run, or pass --overwrite instead of --resume to begin again."
        )


def _apart(there, wanted):
    """Of two lists the first items that differ, else both as they are."""
    if isinstance(there, list) and isinstance(wanted, list) and len(there) == len(wanted):
        return next(
            ((a, b) for a, b in zip(json.loads(json.dumps(there)), json.loads(json.dumps(wanted))) if a != b),
            (there, wanted),
        )
    return there, wanted


def _short(value) -> str:
    # The end is what tells two of them apart: the beginning is mostly one and the same folder.
    text = json.dumps(value)
    return text if len(text) < 80 else "... " + text[-76:]


def part_path(folder: Path, block: int) -> Path:
    """The file of a block's part."""
    return folder / f"block-{block:06d}.parquet"


def save_part(folder: Path, block: int, results: Iterable[WindowResult]) -> None:
    """Write the results of a block's windows; also for processes that know no more than the folder."""
    results, path = list(results), part_path(folder, block)
    layers = _layers(results)
    if layers:
        with atomic_path(path.with_suffix(".npz")) as temporary, naming(path.with_suffix(".npz")):
            np.savez(temporary, **layers)
    # Last: it says that the block is there.
    with atomic_path(path) as temporary, naming(path):
        write_part(results, temporary)


def part_bytes(results: list[WindowResult]) -> tuple[bytes, bytes | None]:
    """What the two files of a block hold; None where there are no heights."""
    part, layers = io.BytesIO(), io.BytesIO()
    write_part(results, part)
    arrays = _layers(results)
    if arrays:
        np.savez(layers, **arrays)
    return part.getvalue(), layers.getvalue() if arrays else None


def _layers(results: list[WindowResult]) -> dict[str, np.ndarray]:
    return {f"{r.index} {source}": v for r in results for source, v in r.layers.items()}


def write_part(results: list[WindowResult], target) -> None:
    """Results, without their layers, as GeoParquet: a path or a binary file."""
    rows = [(r.index, b) for r in results for b in r.buildings]
    columns = {"window": [index for index, _ in rows]}
    columns |= {name: [getattr(b, name) for _, b in rows] for name in _NUMBERS}
    columns["geometry"] = list(shapely.to_wkb([b.polygon for _, b in rows])) if rows else []
    facts = [[r.index, r.data_px, r.seen_px, r.unreadable_px] for r in results]
    metadata = {"geo": json.dumps(_GEO), "windows": json.dumps(facts)}
    table = pyarrow.table(columns, schema=_SCHEMA.with_metadata(metadata))
    pyarrow.parquet.write_table(table, target, compression="zstd")


def read_part(source) -> list[WindowResult]:
    """Inverse of `write_part`."""
    table = pyarrow.parquet.ParquetFile(source).read()
    results = {
        index: WindowResult(index, data_px=data_px, seen_px=seen_px, unreadable_px=unreadable_px)
        for index, data_px, seen_px, unreadable_px in json.loads(table.schema.metadata[b"windows"])
    }
    columns = table.to_pydict()
    polygons = shapely.from_wkb(columns["geometry"])
    for i, (index, polygon) in enumerate(zip(columns["window"], polygons, strict=True)):
        values = {name: columns[name][i] for name in _NUMBERS}
        facts = HEIGHT_FACTS if values["height_m"] is not None else {}
        results[index].buildings.append(Building(polygon, **values, **facts))
    return list(results.values())
