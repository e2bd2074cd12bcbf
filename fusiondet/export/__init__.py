"""Buildings as files that a GIS opens: layers and city models by suffix, their styles, and rasters of heights."""

from fusiondet.export.layers import FORMATS, check_output, read_buildings, read_metadata
from fusiondet.export.rasters import (
    HEIGHT_BANDS,
    HeightRasterWriter,
    check_height_raster,
    height_raster,
    paint_heights,
)
from fusiondet.export.solids import check_solid, solid_volume
from fusiondet.export.stream import BuildingWriter, write_buildings

__all__ = [
    "FORMATS",
    "HEIGHT_BANDS",
    "BuildingWriter",
    "HeightRasterWriter",
    "check_height_raster",
    "check_output",
    "check_solid",
    "height_raster",
    "paint_heights",
    "read_buildings",
    "read_metadata",
    "solid_volume",
    "write_buildings",
]
