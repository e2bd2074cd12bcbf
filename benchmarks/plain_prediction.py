"""What people write to predict a scene with Detectron2: slice it, predict each slice, paste masks, polygons, union.

It is what `scene` measures scene prediction against, so it stands for itself, imports nothing of fusiondet, and makes
no mistake that costs time: the raster is read once, and outlines are united at once. It knows nothing of heights and
scores after the union, pixels without data, other grids, or a run that is stopped; and houses that touch become one.
"""

import geopandas
import numpy as np
import rasterio
import rasterio.features
import shapely
from rasterio.windows import Window
from shapely.geometry import shape


def slice_and_unite(image: str, out: str, predict, slice_px: int, overlap_px: int) -> int:
    """Write the outlines that `predict` finds in the slices of a raster to a layer; how many they are.

    Args:
        predict: (h, w, bands) -> Instances with pred_masks (R, h, w) bool, as Detectron2's DefaultPredictor does.
    """
    with rasterio.open(image) as source:
        pixels, crs = source.read(), source.crs
        height, width = source.shape
        transforms = {
            (x, y): source.window_transform(Window(x, y, slice_px, slice_px))
            for y in _starts(height, slice_px, overlap_px)
            for x in _starts(width, slice_px, overlap_px)
        }
    outlines = []
    for (x, y), transform in transforms.items():
        tile = np.ascontiguousarray(pixels[:, y : y + slice_px, x : x + slice_px].transpose(1, 2, 0))
        masks = predict(tile).pred_masks.numpy()
        for mask in masks:
            found = rasterio.features.shapes(mask.astype(np.uint8), mask=mask, transform=transform)
            outlines += [shape(geometry) for geometry, _ in found]
    united = shapely.get_parts(shapely.unary_union(outlines))
    geopandas.GeoDataFrame(geometry=united, crs=crs).to_file(out, driver="GPKG")
    return len(united)


def _starts(length: int, size: int, overlap: int) -> list[int]:
    return sorted({*range(0, max(1, length - size), size - overlap), max(0, length - size)})
