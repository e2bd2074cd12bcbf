"""What a layer was made with, as the plain values that are stored in it (see `fusiondet.io.layers`).

    weights         name of the checkpoint's file
    weights_sha256  of its bytes: which model it was, whatever the file is called
    config          how it was built and trained, as YAML text
    acquired        modality -> when it was imaged, ISO 8601, null where unknown
    versions        package -> version that was at work

No date of the run and no path is among them: the same input gives the same file, on any machine.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path

from fusiondet import __version__

_PACKAGES = ("torch", "detectron2", "rasterio", "shapely", "pyogrio", "pyproj", "pyarrow")


def made_with(
    weights: Path | None = None,
    weights_sha256: str | None = None,
    config: str | None = None,
    acquired: Mapping[str, str | None] | None = None,
    **more,
) -> dict:
    """Metadata for `BuildingWriter`; what is not given is left out.

    Args:
        weights, weights_sha256: checkpoint, of which the name is stored, and hash of its content.
        config: YAML text.
        acquired: modality -> ISO 8601 text, e.g. from `acquisition_time`.
        more: further plain values, e.g. gsd_m, height_stat.
    """
    facts = {}
    if weights is not None:
        facts |= {"weights": Path(weights).name, "weights_sha256": weights_sha256}
    if config is not None:
        facts["config"] = config
    if acquired is not None:
        facts["acquired"] = dict(acquired)
    return {**facts, **more, "versions": {"fusiondet": __version__, **_versions()}}


def acquisition_time(raster) -> str | None:
    """Return when an open raster was imaged, ISO 8601, from its metadata; None where they do not hold it.

    GDAL's ACQUISITIONDATETIME is taken, of which it makes those of many vendors. The TIFF tag DateTime is not: it is
    when the file was written.
    """
    stated = raster.tags(ns="IMAGERY").get("ACQUISITIONDATETIME") or raster.tags().get("ACQUISITIONDATETIME")
    if not stated:
        return None
    try:
        return datetime.fromisoformat(re.sub(r"Z$", "+00:00", stated.strip())).isoformat()
    except ValueError:
        return None


def _versions() -> dict[str, str]:
    """Of the packages that are installed, without importing them."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
