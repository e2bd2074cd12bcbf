"""Buildings as files that a GIS opens: layers and city models by suffix, styles, rasters of heights and classes."""

from fusiondet.export.layers import FORMATS, check_output, read_buildings, read_metadata
from fusiondet.export.provenance import acquisition_time, made_with
from fusiondet.export.rasters import (
    HEIGHT_BANDS,
    NO_CLASS,
    HeightRasterWriter,
    check_height_raster,
    class_raster,
    height_raster,
    paint_heights,
)
from fusiondet.export.solids import check_solid, solid_volume
from fusiondet.export.stream import BuildingWriter, write_buildings
from fusiondet.export.style import check_style, height_style, write_style

__all__ = [
    "FORMATS",
    "HEIGHT_BANDS",
    "NO_CLASS",
    "BuildingWriter",
    "HeightRasterWriter",
    "acquisition_time",
    "check_height_raster",
    "check_output",
    "check_solid",
    "check_style",
    "class_raster",
    "height_raster",
    "height_style",
    "made_with",
    "paint_heights",
    "read_buildings",
    "read_metadata",
    "solid_volume",
    "write_buildings",
    "write_style",
]
