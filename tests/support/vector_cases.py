"""Layers of made-up buildings."""

from fusiondet.buildings import Building
from fusiondet.io.vectors import UNKNOWN_HEIGHT

import geopandas
from shapely.geometry import box


def frame(geometry, **columns):
    return geopandas.GeoDataFrame(columns, geometry=list(geometry), crs="EPSG:28992")


def houses(n):
    return [box(20 * i, 0, 20 * i + 10, 10) for i in range(n)]


def house(name, x0, x1, height_m=None, stat="p70", y1=10):
    attributes = {} if height_m else {UNKNOWN_HEIGHT: "missing"}
    return Building(
        box(x0, 0, x1, y1), height_m, height_stat=stat if height_m else None, id=name, attributes=attributes
    )
