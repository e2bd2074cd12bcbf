"""Tiles with square buildings, and predictions of them."""

from fusiondet.buildings import Tile
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset, encode_rle, prediction_record

from shapely.geometry import box

SIZE = 48


def record(image_id, score, shape, heights_m):
    return prediction_record(
        image_id, score, shape.bounds, encode_rle(polygon_to_mask(shape, SIZE, SIZE)), heights_m
    )


def city(*houses):
    return Dataset([Tile("a.tif", SIZE, SIZE, 0.5, buildings=list(houses), id=1)], BandSpec())


def found(shape, score=0.9, height_m=6.0):
    return record(1, score, shape, (height_m - 1, height_m, height_m + 1))


LEFT, RIGHT = box(2, 2, 12, 12), box(30, 2, 40, 12)
