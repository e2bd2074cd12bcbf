"""Results of a block of windows as the bytes of files, which a run that was stopped is resumed from.

A block has a GeoParquet of its buildings, in pixels of the grid, with a column for the number of the window; and where
a raster is wanted, an `.npz` of what its windows hold of it. They keep every bit.
"""

import io
import json

from fusiondet.buildings import Building
from fusiondet.inference.pipeline import WindowResult
from fusiondet.inference.predictor import HEIGHT_FACTS
from fusiondet.jobs.store import Store

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
_BUILDINGS, _LAYERS = "block-{:06d}.parquet", "block-{:06d}.npz"


def block_bytes(results: list[WindowResult]) -> tuple[bytes, bytes | None]:
    """Return the contents of the two files of a block; None in the place of the second where no raster is wanted."""
    layers = {f"{r.index} {source}": v for r in results for source, v in r.layers.items()}
    if not layers:
        return _write_buildings(results), None
    file = io.BytesIO()
    np.savez(file, **layers)
    return _write_buildings(results), file.getvalue()


def save_block(store: Store, block: int, buildings: bytes, layers: bytes | None) -> None:
    """Keep what `block_bytes` returned; OSError where it cannot be written."""
    # The buildings come last: with them the block counts as finished.
    if layers is not None:
        store.save(_LAYERS.format(block), layers)
    store.save(_BUILDINGS.format(block), buildings)


def finished_blocks(store: Store) -> set[int]:
    """Return the numbers of the blocks that are in `store`."""
    names = [name for name in store.finished() if name.endswith(".parquet")]
    return {int(name.removesuffix(".parquet").partition("-")[2]) for name in names}


def load_block(store: Store, block: int) -> list[WindowResult] | None:
    """Return the results of a block's windows; None where they are not in `store`, or cannot be read."""
    buildings = store.load(_BUILDINGS.format(block))
    if buildings is None:
        return None
    try:
        results = _read_buildings(buildings)
        return results if _with_layers(results, store, block) else None
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException, shapely.GEOSException):
        return None


def _write_buildings(results: list[WindowResult]) -> bytes:
    rows = [(r.index, b) for r in results for b in r.buildings]
    columns = {"window": [index for index, _ in rows]}
    columns |= {name: [getattr(b, name) for _, b in rows] for name in _NUMBERS}
    columns["geometry"] = list(shapely.to_wkb([b.polygon for _, b in rows])) if rows else []
    counts = [[r.index, r.data_px, r.seen_px, r.unreadable_px, sorted(r.layers)] for r in results]
    metadata = {"geo": json.dumps(_GEO), "windows": json.dumps(counts)}
    table = pyarrow.table(columns, schema=_SCHEMA.with_metadata(metadata))
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def _read_buildings(content: bytes) -> list[WindowResult]:
    """Inverse of `_write_buildings`; the layers of the results are named, and empty."""
    table = pyarrow.parquet.ParquetFile(io.BytesIO(content)).read()
    results = {}
    for index, data_px, seen_px, unreadable_px, layers in json.loads(table.schema.metadata[b"windows"]):
        empty = dict.fromkeys(layers, np.empty((0, 0)))
        results[index] = WindowResult(
            index, layers=empty, data_px=data_px, seen_px=seen_px, unreadable_px=unreadable_px
        )
    columns = table.to_pydict()
    polygons = shapely.from_wkb(columns["geometry"])
    for i, (index, polygon) in enumerate(zip(columns["window"], polygons, strict=True)):
        values = {name: columns[name][i] for name in _NUMBERS}
        facts = HEIGHT_FACTS if values["height_m"] is not None else {}
        results[index].buildings.append(Building(polygon, **values, **facts))
    return list(results.values())


def _with_layers(results: list[WindowResult], store: Store, block: int) -> bool:
    """Fill in the layers that `results` name; whether they are there."""
    if not any(r.layers for r in results):
        return True
    content = store.load(_LAYERS.format(block))
    if content is None:
        return False
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for result in results:
            result.layers = {source: arrays[f"{result.index} {source}"] for source in result.layers}
    return True
