"""The page of a layer that has just been written to a file."""

from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.io.layers import read_buildings, read_metadata
from fusiondet.visualization.report.page import write_report


def write_layer_report(layer: Path, path: Path, *, image: Path, overwrite: bool = False) -> None:
    """Write the report of a layer of fusiondet over the image that it was predicted from.

    Args:
        layer: file with buildings; all of them are in memory then.
        path, image, overwrite: see `write_report`.

    Raises:
        InputError: see `write_report`.
    """
    buildings, crs = read_buildings(layer)
    metadata = read_metadata(layer)
    try:
        write_report(buildings, crs, path, image=image, metadata=metadata, overwrite=overwrite)
    except InputError:
        # Of an image with damaged blocks no overview can be made; the layer is there, and its page is wanted.
        if "unreadable_px" not in metadata:
            raise
        write_report(buildings, crs, path, metadata=metadata, overwrite=overwrite)
