"""Buildings as files that a GIS opens: `write_buildings`, `read_buildings` (by suffix) and `paint_heights`."""

from fusiondet.export.layers import FORMATS, check_output, read_buildings, write_buildings
from fusiondet.export.rasters import paint_heights

__all__ = ["FORMATS", "check_output", "paint_heights", "read_buildings", "write_buildings"]
