"""What people write to cut a mosaic with footprints into a COCO data set: geopandas and rasterio in a loop over tiles.

It is what `convert` measures conversions against, so it stands for itself, imports nothing of fusiondet, and makes no
mistake that costs time: one file is open, the layer has a spatial index, and polygons stay in memory. It does nothing
about pixels without data, splits, problems with the data, several images, or a run that is stopped.
"""

import json
from pathlib import Path

import geopandas
import rasterio
from rasterio.windows import Window
from shapely.affinity import affine_transform
from shapely.geometry import box


def one_pass(mosaic: str, footprints: str, out: str, tile_px: int, min_area_m2: float, copy: bool) -> None:
    """`out`/annotations.json with the clipped polygons of every tile, and the tiles' rasters where `copy` is asked."""
    layer, folder = geopandas.read_file(footprints), Path(out)
    (folder / "rgb").mkdir(parents=True)
    document = _document()
    with rasterio.open(mosaic) as source:
        layer = layer.to_crs(source.crs)
        for window, transform, name in _windows(source, Path(mosaic).stem, tile_px):
            clipped = geopandas.clip(layer, box(*source.window_bounds(window)))
            if copy:
                _copy(source, window, transform, folder / name)
            _add(document, name, window, transform, clipped, min_area_m2)
    (folder / "annotations.json").write_text(json.dumps(document))


def two_steps(mosaic: str, footprints: str, out: str, tile_px: int, min_area_m2: float) -> None:
    """The same, in the steps of the tools for tiles: a raster and a GeoJSON of each tile first, then COCO of these."""
    layer, folder = geopandas.read_file(footprints), Path(out)
    for kind in ("rgb", "labels"):
        (folder / kind).mkdir(parents=True)
    document, tiles = _document(), []
    with rasterio.open(mosaic) as source:
        layer = layer.to_crs(source.crs)
        for window, transform, name in _windows(source, Path(mosaic).stem, tile_px):
            clipped = geopandas.clip(layer, box(*source.window_bounds(window)))
            _copy(source, window, transform, folder / name)
            labels = folder / "labels" / f"{Path(name).stem}.geojson"
            if len(clipped):
                clipped.to_file(labels, driver="GeoJSON")
            tiles.append((name, window, labels))
    for name, window, labels in tiles:
        with rasterio.open(folder / name) as tile:
            clipped = geopandas.read_file(labels) if labels.exists() else layer.iloc[:0]
            _add(document, name, window, tile.transform, clipped, min_area_m2)
    (folder / "annotations.json").write_text(json.dumps(document))


def _document() -> dict:
    return {"images": [], "annotations": [], "categories": [{"id": 1, "name": "building"}]}


def _windows(source, stem: str, tile_px: int):
    """(window, transform, file name) of the tiles; the last ones end at the edge of the mosaic."""

    def starts(length):
        return sorted({*range(0, max(0, length - tile_px), tile_px), max(0, length - tile_px)})

    for y in starts(source.height):
        for x in starts(source.width):
            window = Window(x, y, min(tile_px, source.width), min(tile_px, source.height))
            yield window, source.window_transform(window), f"rgb/{stem}_x{x:05d}_y{y:05d}.tif"


def _copy(source, window, transform, path: Path) -> None:
    profile = {**source.profile, "width": window.width, "height": window.height, "transform": transform}
    with rasterio.open(path, "w", **profile) as tile:
        tile.write(source.read(window=window))


def _add(document: dict, name: str, window, transform, clipped, min_area_m2: float) -> None:
    images, annotations = document["images"], document["annotations"]
    image = {"id": len(images) + 1, "file_name": name, "width": window.width, "height": window.height}
    images.append({**image, "transform": list(transform)[:6]})
    inverse = ~transform
    to_pixels = [inverse.a, inverse.b, inverse.d, inverse.e, inverse.c, inverse.f]
    for row in clipped.itertuples():
        if row.geometry.area < min_area_m2:
            continue
        outline = affine_transform(row.geometry, to_pixels)
        parts = [part for part in getattr(outline, "geoms", [outline]) if part.geom_type == "Polygon"]
        x0, y0, x1, y1 = outline.bounds
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": outline.area,
                "segmentation": [[v for xy in part.exterior.coords[:-1] for v in xy] for part in parts],
                "height_m": row.height,
                "source_id": row.id,
            }
        )
