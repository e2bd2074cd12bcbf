"""Small sound inputs of every kind, in one folder: each run of a tool gets a copy of it."""

import json
import shutil
from pathlib import Path

import fusiondet.compat  # noqa: F401
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.coco import encode_rle, prediction_record, read_coco
from tests.support import spacenet_replica, tiny_city
from tests.support.contest_cases import Contest
from tests.support.contest_zips import zipped
from tests.support.scene_cases import checkpoint

import geopandas
import numpy as np
from affine import Affine
from shapely.geometry import box

SIZE_PX, GSD_M, LEFT, TOP = 96, 0.5, 600_000, 5_800_000
CRS = "EPSG:32631"
# x, y, width and height of blocks in pixels, and their height in metres.
BLOCKS = ((8, 8, 20, 16, 6.0), (40, 10, 24, 24, 12.0), (12, 50, 30, 20, 9.0), (60, 60, 24, 24, 20.0))
SMALL_NETWORK = (
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
    *("MODEL.ROI_HEIGHT_HEAD.CONV_DIM", "32", "MODEL.ROI_HEIGHT_HEAD.NUM_CONV", "1"),
    *("MODEL.ROI_HEIGHT_HEAD.FC_DIM", "16", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "TEST.DETECTIONS_PER_IMAGE", "12"),
)
TRAINING = f"""\
_BASE_: {tiny_city.SMALL_CONFIG}
MODEL:
  RESNETS: {{DEPTH: 50, WIDTH_PER_GROUP: 4, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16}}
  FPN: {{OUT_CHANNELS: 16}}
  RPN: {{POST_NMS_TOPK_TRAIN: 50, POST_NMS_TOPK_TEST: 30}}
  ROI_HEADS: {{BATCH_SIZE_PER_IMAGE: 16}}
  ROI_BOX_HEAD: {{FC_DIM: 16}}
  ROI_MASK_HEAD: {{CONV_DIM: 8, NUM_CONV: 1}}
  ROI_HEIGHT_HEAD: {{CONV_DIM: 32, NUM_CONV: 1, FC_DIM: 16}}
DATASETS: {{TRAIN: [ds/annotations/train.json], TEST: [ds/annotations/val.json]}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 1, WARMUP_ITERS: 0, CHECKPOINT_PERIOD: 1}}
TEST: {{DETECTIONS_PER_IMAGE: 12}}
VIS_PERIOD: 0
OUTPUT_DIR: out
"""
ABLATION = f"""\
data: {{abl: [synthetic, --size, 32, --split, train=2, val=1]}}
base: {tiny_city.SMALL_CONFIG}
train: [abl_train]
val: [abl_val]
steps: 2
seeds: [1]
compare_to: rgb
rows: {{rgb: {{label: RGB, overrides: {{INPUT.MODALITIES: [optical]}}}}, early: {{label: Early}}}}
conditions: {{clear: {{dataset: abl_val}}}}
"""


def make(root: Path) -> Path:
    """Write everything below `root`, and return it."""
    _dataset(root)
    _scene(root / "scene")
    _layers(root / "layers")
    _masks(root / "masks")
    _classes(root / "classes")
    spacenet_replica.spacenet1(root / "rio", 2)
    shutil.rmtree(root / "rio" / "8band")
    _contest(root / "contest")
    checkpoint(root / "net", *SMALL_NETWORK)
    (root / "net" / "last_checkpoint").unlink(missing_ok=True)
    (root / "train.yaml").write_text(TRAINING)
    (root / "ablation.yaml").write_text(ABLATION)
    return root


def _dataset(root: Path) -> None:
    tiny_city.write_split(root / "ds", "train", (3, 2))
    truth = read_coco(tiny_city.write_split(root / "ds", "val", (3, 0, 2), seed=1))
    records = [
        prediction_record(
            tile.id,
            0.9,
            house.polygon.bounds,
            encode_rle(polygon_to_mask(house.polygon, tile.height, tile.width)),
            (house.height_m - 1, house.height_m, house.height_m + 1),
        )
        for tile in truth.tiles
        for house in tile.buildings
    ]
    (root / "predictions.json").write_text(json.dumps(records))


def _scene(folder: Path) -> None:
    rng = np.random.default_rng(0)
    heights = np.zeros((SIZE_PX, SIZE_PX), np.float32)
    for x, y, w, h, height_m in BLOCKS:
        heights[y : y + h, x : x + w] = height_m
    noise = rng.normal(0, 4, heights.shape)
    rgb = np.stack([np.clip(k * (60 + 8 * heights) + noise, 1, 255) for k in (1.0, 0.8, 0.6)])
    grid = {"crs": CRS, "transform": Affine(GSD_M, 0, LEFT, 0, -GSD_M, TOP)}
    for name, values in (
        ("rgb", rgb.astype(np.uint8)),
        ("sar", (-18 + heights / 3 + noise / 4)[None].astype(np.float32)),
        ("ndsm", heights[None]),
        ("dsm", (heights + 30)[None]),
        ("dtm", np.full((1, *heights.shape), 30, np.float32)),
    ):
        tiny_city.write_raster(folder / f"{name}.tif", values, **grid)
    tiny_city.write_raster(folder / "rgb.png", rgb.astype(np.uint8), driver="PNG", crs=None, transform=None)
    (folder / "scenes.csv").write_text("rgb,sar,name\nrgb.tif,sar.tif,a\n")


def _houses() -> geopandas.GeoDataFrame:
    outlines = [
        box(LEFT + x * GSD_M, TOP - (y + h) * GSD_M, LEFT + (x + w) * GSD_M, TOP - y * GSD_M)
        for x, y, w, h, _ in BLOCKS
    ]
    columns = {"height": [block[4] for block in BLOCKS], "ground": [0.5] * 4, "name": list("abcd")}
    return geopandas.GeoDataFrame(columns, geometry=outlines, crs=CRS)


def _layers(folder: Path) -> None:
    folder.mkdir(parents=True)
    houses = _houses()
    for suffix in ("gpkg", "geojson", "shp", "fgb"):
        houses.to_file(folder / f"houses.{suffix}")
    houses.to_parquet(folder / "houses.parquet")
    houses.dissolve()[["geometry"]].to_file(folder / "area.geojson")
    (folder / "houses.city.json").write_text(json.dumps(_city(houses)))


def _city(houses: geopandas.GeoDataFrame) -> dict:
    """CityJSON 2.0 of blocks with semantic surfaces."""
    vertices, objects = [], {}
    for i, (outline, height_m) in enumerate(zip(houses.geometry, houses.height)):
        ring = list(outline.exterior.coords)[:-1][::-1]
        first, n = len(vertices), len(ring)
        vertices += [
            [round(x * 1000), round(y * 1000), z] for z in (0, round(height_m * 1000)) for x, y in ring
        ]
        low, high = [*range(first, first + n)], [*range(first + n, first + 2 * n)]
        walls = [[[low[k], low[(k + 1) % n], high[(k + 1) % n], high[k]]] for k in range(n)]
        kinds = [{"type": "GroundSurface"}, {"type": "RoofSurface"}, {"type": "WallSurface"}]
        objects[f"b{i}"] = {
            "type": "Building",
            "attributes": {"height": height_m, "measuredHeight": height_m},
            "geometry": [
                {
                    "type": "Solid",
                    "lod": "2.2",
                    "boundaries": [[[low[::-1]], [high], *walls]],
                    "semantics": {"surfaces": kinds, "values": [[0, 1, *[2] * n]]},
                }
            ],
        }
    return {
        "type": "CityJSON",
        "version": "2.0",
        "transform": {"scale": [0.001] * 3, "translate": [0.0] * 3},
        "metadata": {"referenceSystem": "https://www.opengis.net/def/crs/EPSG/0/32631"},
        "CityObjects": objects,
        "vertices": vertices,
    }


def _masks(folder: Path) -> None:
    houses = np.zeros((64, 64), np.uint8)
    houses[8:24, 8:30] = houses[30:60, 34:50] = 255
    image = np.stack([houses // 2 + 40] * 3)
    plain = {"driver": "PNG", "crs": None, "transform": None}
    tiny_city.write_raster(folder / "images" / "a.png", image, **plain)
    tiny_city.write_raster(folder / "gt" / "a.png", houses[None], **plain)
    outlines = [[8, 8, 30, 8, 30, 24, 8, 24], [34, 30, 50, 30, 50, 60, 34, 60]]
    annotations = [
        {"id": i, "image_id": 7, "category_id": 100, "segmentation": [outline], "iscrowd": 0, "area": 400.0,
         "bbox": [outline[0], outline[1], outline[2] - outline[0], outline[5] - outline[1]]}
        for i, outline in enumerate(outlines, 1)
    ]  # fmt: skip
    document = {
        "images": [{"id": 7, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": annotations,
        "categories": [{"id": 100, "name": "building", "supercategory": "building"}],
    }
    (folder / "coco.json").write_text(json.dumps(document))


def _classes(folder: Path) -> None:
    numbers = np.kron(np.arange(64).reshape(8, 8) % 3, np.ones((8, 8), int)).astype(np.uint8)
    tiny_city.write_raster(folder / "images" / "a.tif", np.stack([numbers * 60 + 20] * 3))
    tiny_city.write_raster(folder / "labels" / "a.tif", numbers[None])


def _contest(folder: Path) -> None:
    Contest(seed=1, tiles=2).write(folder)
    zipped(folder / "res", folder / "submission.zip")
