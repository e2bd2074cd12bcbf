"""GeoTIFFs that are written whole or not at all, on a full disk too."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fusiondet.files import atomic_path

from rasterio.io import DatasetWriter, MemoryFile


@contextlib.contextmanager
def whole_tiff(path: Path, **profile) -> Iterator[DatasetWriter]:
    """Yield a raster to fill, which is in memory; at the end of the block it is the file `path`.

    GDAL only prints that a disk is full, and goes on; what it made in memory is written by one call that fails.

    Args:
        profile: keyword arguments of `rasterio.open`.

    Raises:
        OSError: it could not be written; names `path`.
    """
    with MemoryFile(ext=".tif") as memory:
        with memory.open(**{"driver": "GTiff", **profile}) as target:
            yield target
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.write(memory.getbuffer())
