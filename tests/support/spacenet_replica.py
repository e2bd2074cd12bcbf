"""Small trees with the names and formats of SpaceNet, and pictures that show exactly the labelled buildings.

Buildings are bright in every product and the rest is dark, each product rendered on its own grid: labels that are
shifted, flipped or turned do not lie on what is bright. `covered` says how well they do.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from fusiondet.buildings import map_to_pixel, pixel_to_map
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.tile_rasters import read_tile

import numpy as np
import rasterio
import shapely
from affine import Affine

ROOT = Path(__file__).resolve().parents[2]
# Corner of a real tile of Rotterdam, and what its products' pixels measure.
LEFT, TOP = 592736.9762427969, 5747555.521581902
OPTICAL_GSD_M, SAR_GSD_M = 0.4999964762785847, 0.5
SIZE = 120
NORTH_STRIP, SOUTH_STRIP = "20190822070610_20190822070846", "20190823144405_20190823144711"
PREFIX = "SN6_Train_AOI_11_Rotterdam"
FLAGS = {NORTH_STRIP: 0, SOUTH_STRIP: 1}


@dataclass(frozen=True)
class Roof:
    """A building on the map: its outline, the elevation of its roof in metres, and its Building_ID."""

    polygon: shapely.Polygon
    roof_m: float
    id: int


def town(columns: int, rows: int, step_m: float) -> list[Roof]:
    """Two buildings in each cell: an L, whose flipped or turned image is another, and a block at the cell's edge."""
    roofs = []
    for row in range(rows):
        for column in range(columns):
            x, y, n = LEFT + column * step_m, TOP - row * step_m, len(roofs)
            ell = shapely.Polygon([(8, 8), (24, 8), (24, 13), (14, 13), (14, 28), (8, 28)])
            block = shapely.box(step_m - 6, 34, step_m + 5, 46)  # reaches into the next cell
            for number, shape in enumerate((ell, block)):
                on_map = shapely.transform(
                    shape, lambda p, x=x, y=y: np.column_stack([x + p[:, 0], y - p[:, 1]])
                )
                roofs.append(Roof(on_map, 4.0 + (7 * (n + number)) % 23, 15000 + n + number))
    return roofs


def on(roofs: list[Roof], transform: Affine, width: int, height: int) -> list[tuple[Roof, shapely.Polygon]]:
    """Buildings on an image with their outlines in its pixels, cut at its edges."""
    frame = shapely.box(0, 0, width, height)
    cut = [(roof, map_to_pixel(roof.polygon, transform).intersection(frame)) for roof in roofs]
    return [(roof, outline) for roof, outline in cut if outline.area > 0]


def bright(roofs: list[Roof], transform: Affine, width: int, height: int) -> np.ndarray:
    """(H, W) bool: where buildings are."""
    mask = np.zeros((height, width), bool)
    for _, outline in on(roofs, transform, width, height):
        mask |= polygon_to_mask(outline, height, width)
    return mask


def write_raster(path: Path, image: np.ndarray, transform: Affine, crs: str, nodata=None) -> None:
    """GeoTIFF of (C, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = dict(
        driver="GTiff", count=len(image), height=image.shape[1], width=image.shape[2], dtype=image.dtype
    )
    with rasterio.open(path, "w", transform=transform, crs=crs, nodata=nodata, **profile) as target:
        target.write(image)


def write_features(path: Path, crs: str, features: list[tuple[shapely.Polygon, dict]]) -> None:
    """GeoJSON as SpaceNet writes it: a crs member, polygons with elevations."""
    code = crs.rpartition(":")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{code}"}},
        "features": [
            {
                "type": "Feature",
                "properties": properties,
                "geometry": shapely.geometry.mapping(shapely.force_3d(polygon)),
            }
            for polygon, properties in features
        ],
    }
    path.write_text(json.dumps(document), encoding="utf-8")


def speckled_db(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(4, H, W) float32 decibels of uncalibrated counts, four looks: ground about 56, buildings about 74."""
    power = np.where(mask, 10**7.4, 10**5.6) * rng.gamma(4, 1 / 4, (4, *mask.shape))
    return (10 * np.log10(power) + np.arange(4).reshape(4, 1, 1)).astype(np.float32)


def spacenet6(
    root: Path, columns: int = 4, rows: int = 2, step_m: float = 50.0, origin_shift_m: float = 0.0
) -> list[Roof]:
    """A training archive AOI_11_Rotterdam in `root`, two tiles (strips) of 60 m on each place, 3 m apart.

    Tile numbers are those of the places, from 1. The last place has no buildings. Western 6 columns of pixels of every
    tile of the southern strip are outside the strip: 0 in all products. `origin_shift_m` moves the SAR product's grid.
    """
    roofs = town(columns, rows, step_m)
    empty = shapely.box(
        LEFT + (columns - 1) * step_m - 2, TOP - rows * step_m - 20, LEFT + 1e4, TOP - (rows - 1) * step_m + 2
    )
    roofs = [roof for roof in roofs if not roof.polygon.intersects(empty)]
    rng, table = np.random.default_rng(6), []
    for place in range(columns * rows):
        for strip, shift in ((NORTH_STRIP, 0.0), (SOUTH_STRIP, 3.0)):
            x = LEFT + place % columns * step_m + shift
            y = TOP - place // columns * step_m - shift
            _spacenet6_tile(root, f"{strip}_tile_{place + 1}", (x, y), roofs, rng, table, origin_shift_m)
    summary = root / "SummaryData"
    summary.mkdir()
    (summary / "SAR_orientations.txt").write_text(
        "".join(f"{s} {f}\n" for s, f in FLAGS.items()), encoding="ascii"
    )
    with open(summary / f"{PREFIX}_Buildings.csv", "w", newline="", encoding="utf-8") as f:
        heights = [f"{name}_Building_Height" for name in ("Mean", "Median", "StdDev")]
        writer = csv.writer(f)
        writer.writerow(["ImageId", "TileBuildingId", "PolygonWKT_Pix", *heights])
        writer.writerows(table)
    return roofs


def _spacenet6_tile(root, name, corner, roofs, rng, table, origin_shift_m) -> None:
    crs = "EPSG:32631"
    optical = Affine(OPTICAL_GSD_M, 0, corner[0], 0, -OPTICAL_GSD_M, corner[1])
    sar = Affine(SAR_GSD_M, 0, corner[0] + origin_shift_m, 0, -SAR_GSD_M, corner[1])
    coarse = optical * Affine.scale(2)
    outside = 6 if name.startswith(SOUTH_STRIP) else 0
    mask, small = bright(roofs, optical, SIZE, SIZE), bright(roofs, coarse, SIZE // 2, SIZE // 2)
    rgb = np.where(mask, np.array([200, 180, 160]).reshape(3, 1, 1), np.array([40, 50, 60]).reshape(3, 1, 1))
    nir = np.concatenate([rgb * 6, np.where(mask, 300, 900)[None]])
    low = np.where(small, 1200, 240) * np.array([1, 0.9, 0.8, 0.5]).reshape(4, 1, 1)
    products = {
        "PS-RGB": (rgb.astype(np.uint8), optical),
        "PS-RGBNIR": (nir.astype(np.uint16), optical),
        "PAN": (np.where(mask, 1100, 250)[None].astype(np.uint16), optical),
        "RGBNIR": (low.astype(np.uint16), coarse),
        "SAR-Intensity": (speckled_db(bright(roofs, sar, SIZE, SIZE), rng), sar),
    }
    for product, (image, transform) in products.items():
        image[:, :, : outside * image.shape[2] // SIZE] = 0
        write_raster(root / product / f"{PREFIX}_{product}_{name}.tif", image, transform, crs, nodata=0)
    features = []
    for number, (roof, outline) in enumerate(on(roofs, sar, SIZE, SIZE)):
        properties = {
            "roof_075mean": roof.roof_m,
            "roof_075median": roof.roof_m + 0.25,
            "roof_075stdev": 0.5,
            "Building_ID": roof.id,
            # As in the real file: of a whole building.
            "origarea": 423.6,
            "origlen": 0,
            "partialDec": 1.0,
            "truncated": 0,
        }
        features.append((pixel_to_map(outline, sar), properties))
        table.append([name, number, outline.wkt, roof.roof_m, roof.roof_m + 0.25, 0.5])
    if not features:
        table.append([name, -1, "POLYGON EMPTY", "", "", ""])
    write_features(root / "geojson_buildings" / f"{PREFIX}_Buildings_{name}.geojson", crs, features)


def spacenet1(root: Path, count: int = 4) -> list[Roof]:
    """Tiles img1..img`count` of Rio with a GeoJSON each and the competition's table; img1 has no buildings.

    The westernmost 10 columns of pixels are black and no nodata number is declared. The block of img2 stands on the
    table in two parts, as MultiPolygons do: two rows, each with the whole building as PolygonWKT_Geo.
    """
    crs, step = "EPSG:4326", np.array([4.4838e-06, 4.4888e-06])
    table, everything = [], []
    for number in range(1, count + 1):
        corner = np.array([-43.6821, -22.9857 + 0.002 * number])
        transform = Affine(step[0], 0, corner[0], 0, -step[1], corner[1])
        shapes = [
            shapely.Polygon([(20, 20), (52, 20), (52, 30), (32, 30), (32, 60), (20, 60)]),
            shapely.MultiPolygon([shapely.box(70, 60, 90, 80), shapely.box(94, 60, 110, 75)]),
        ]
        roofs = [
            Roof(pixel_to_map(shape, transform), 0, n) for n, shape in enumerate(shapes[: min(number - 1, 2)])
        ]
        everything += roofs
        name = f"013022223130_Public_img{number}"
        mask = bright(roofs, transform, SIZE, SIZE)
        image = np.where(mask, 200, 40).astype(np.uint8)[None].repeat(3, axis=0)
        image[:, :, :10] = 0
        write_raster(root / "3band" / f"3band_{name}.tif", image, transform, crs)
        coarse = image[:1, ::4, ::4].astype(np.uint16).repeat(8, axis=0) * 20
        write_raster(root / "8band" / f"8band_{name}.tif", coarse, transform * Affine.scale(4), crs)
        features = [(roof.polygon, {"HGIS_OID": roof.id, "partialBuilding": 0}) for roof in roofs]
        write_features(root / "geoJson" / f"{name}_Geo.geojson", crs, features)
        parts = [(roof, part) for roof in roofs for part in getattr(roof.polygon, "geoms", [roof.polygon])]
        for n, (roof, part) in enumerate(parts, 1):
            pixels = shapely.force_3d(map_to_pixel(part, transform))
            table.append([name, n, pixels.wkt, shapely.force_3d(roof.polygon).wkt])
        if not parts:
            nothing = "POLYGON ((0 0, 0 0, 0 0, 0 0))"
            table.append([name, -1, nothing, nothing])
    with open(root / "table.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["ImageId", "BuildingId", "PolygonWKT_Pix", "PolygonWKT_Geo"])
        writer.writerows(table)
    return everything


def covered(dataset, tile, threshold: float, band: int = 0, move=lambda polygon: polygon) -> float:
    """IoU of what the labels cover and what is brighter than `threshold`, of valid pixels; 1 where both are empty.

    Args:
        band: channel of the stacked image. move: what is done to the outlines first, to prove that it would show.
    """
    pixels = read_tile(dataset, tile)[band]
    labels = np.zeros(pixels.shape, bool)
    for building in tile.buildings:
        labels |= polygon_to_mask(move(building.polygon), *pixels.shape)
    known = np.isfinite(pixels)
    seen = known & (np.nan_to_num(pixels, nan=-1e9) > threshold)
    union = ((labels | seen) & known).sum()
    return float((labels & seen).sum() / union) if union else 1.0
