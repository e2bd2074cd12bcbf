"""Buildings as files that a GIS opens: layers by suffix, and rasters of heights."""

from fusiondet.export.layers import FORMATS, check_output, read_buildings, write_buildings
from fusiondet.export.rasters import (
    HEIGHT_BANDS,
    HeightRasterWriter,
    check_height_raster,
    height_raster,
    paint_heights,
)

__all__ = [
    "FORMATS",
    "HEIGHT_BANDS",
    "HeightRasterWriter",
    "check_height_raster",
    "check_output",
    "height_raster",
    "paint_heights",
    "read_buildings",
    "write_buildings",
]
