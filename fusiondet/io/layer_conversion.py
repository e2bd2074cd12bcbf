"""A layer of buildings in one of the formats of `fusiondet.io.layers` -> the same in another one."""

from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.io.layer_writer import write_buildings
from fusiondet.io.layers import (
    GROUND,
    check_output,
    format_of,
    read_buildings,
    read_metadata,
    read_vertical_crs,
)

import numpy as np


def convert_layer(source: Path, target: Path, dtm: Path | None = None, overwrite: bool = False) -> list[str]:
    """Write the buildings of `source` as `target`: outlines, identifiers, scores, heights with intervals, metadata.

    Columns that are not those of `fusiondet.io.layers` are left out. From one city model to another the elevations of
    the ground are kept, and with them what they count from.

    Args:
        source, target: layers; their suffixes are among `fusiondet.io.layers.FORMATS`.
        dtm: what the blocks of a city model stand on, a raster of elevations; None: those of `source`, else z = 0.
        overwrite: replace `target` if it exists.

    Returns:
        Sentences for the user.

    Raises:
        InputError: `source` cannot be read, has no CRS, or is `target`; or what `check_output` refuses.
        OSError: `target` could not be written to the end; nothing is left behind.
    """
    source, target = Path(source), Path(target)
    check_output(target, overwrite, elevations=dtm is not None)
    if source.exists() and target.exists() and source.samefile(target):
        raise InputError(f"{target}: is what is read. Choose another name.")
    buildings, crs = read_buildings(source)
    check_output(target, overwrite, crs, elevations=dtm is not None)

    metadata = read_metadata(source)
    stats = {b.height_stat for b in buildings if b.height_m is not None} - {None}
    if len(stats) == 1:
        metadata.setdefault("height_stat", stats.pop())

    options = {"dtm": dtm}
    ground_m = np.array([b.attributes.get(GROUND, np.nan) for b in buildings], dtype=float)
    if dtm is None and format_of(target).driver == "CityJSON" and np.isfinite(ground_m).any():
        rest = iter(ground_m)
        # The writer asks for all outlines once, in their order.
        options["dtm"] = lambda polygons: np.array([next(rest) for _ in polygons])
        options["vertical_crs"] = read_vertical_crs(source)
    notes = write_buildings(buildings, crs, target, metadata, overwrite, **options)

    unknown = sum(b.height_m is None for b in buildings)
    if unknown and format_of(target).driver != "CityJSON":
        notes.append(f"{unknown} of {len(buildings)} buildings have no known height (height_m).")
    return notes
