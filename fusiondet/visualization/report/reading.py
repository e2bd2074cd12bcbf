"""Layers to report: those that fusiondet wrote, with scores and intervals, and any other one."""

from pathlib import Path

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.io.layers import read_buildings, read_metadata
from fusiondet.io.vectors import read_layer


def read_reported(
    path: Path, height_field: str | None = None, ground_field: str | None = None, layer: str | None = None
) -> tuple[list[Building], str | None, dict]:
    """Buildings of a layer, its CRS, and the metadata it was written with.

    Args:
        path: vector file. Without the other arguments, and with a height or a score where `write_buildings` puts them,
            it is read as fusiondet's own; else by `read_layer`.
        height_field, ground_field, layer: see `read_layer`; None: found by themselves where they can be.

    Raises:
        InputError: as `read_layer`.
    """
    if height_field is None and ground_field is None and layer is None:
        try:
            buildings, crs = read_buildings(path)
        except InputError:
            # Another format, or a layer in ours that somebody else filled: the reader of any layer says what is wrong.
            buildings, crs = [], None
        if any(b.height_m is not None or b.score is not None for b in buildings):
            return buildings, crs, read_metadata(path)
    found = read_layer(path, height_field, ground_field, layer, signed=True)
    return found.buildings, found.crs, {}
