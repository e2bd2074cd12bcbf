"""Data sets of a few 64-pixel tiles for tests of what lies between files and tensors. Not a model of anything real.

Every building is a rectangle whose brightness in all bands grows with its height, so that a tiny network can learn it.
"""

from pathlib import Path

from fusiondet.buildings import Building, SensorGeometry, Tile
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset, write_coco

import numpy as np
import rasterio
from rasterio.transform import from_origin
from shapely.geometry import Polygon, box

GSD_M = 0.5
BANDS = BandSpec(("red", "green", "blue"), ("HH",), "db")
SENSOR = SensorGeometry(
    sun_azimuth_deg=150.0, sun_elevation_deg=45.0, sar_look_azimuth_deg=90.0, sar_incidence_deg=40.0
)
ROOT = Path(__file__).resolve().parents[2]
SMALL_CONFIG = ROOT / "configs" / "synthetic" / "fusion_r18_small.yaml"


def buildings(rng: np.random.Generator, n: int, size: int = 64) -> list[Building]:
    """`n` rectangles on a grid of cells, 6 to 12 pixels wide, 4 to 20 m high."""
    cells = rng.permutation([(x, y) for x in range(2, size - 14, 16) for y in range(2, size - 14, 16)])[:n]
    return [
        Building(box(x, y, x + w, y + h), height_m=float(rng.uniform(4, 20)))
        for (x, y), (w, h) in zip(cells.tolist(), rng.integers(6, 13, (n, 2)).tolist(), strict=True)
    ]


def paint(tile: Tile, rng: np.random.Generator, sar: bool) -> np.ndarray:
    """(3 or 1, H, W): uint8 colours, or float32 dB."""
    value = np.zeros((tile.height, tile.width))
    for building in tile.buildings:
        value[polygon_to_mask(building.polygon, tile.height, tile.width)] = 40 + 8 * (building.height_m or 0)
    noise = rng.normal(0, 5, value.shape)
    if sar:
        return (-18 + value / 20 + noise / 3)[None].astype(np.float32)
    return np.clip(np.stack([value * k + 60 + noise for k in (1.0, 0.8, 0.6)]), 0, 255).astype(np.uint8)


def write_raster(path: Path, image: np.ndarray, **options) -> None:
    """A GeoTIFF of `image` (C, H, W) in EPSG:32631."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = image.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": image.dtype}
    georeference = {"crs": "EPSG:32631", "transform": from_origin(600000, 5800000, GSD_M, GSD_M)}
    with rasterio.open(path, "w", **{**profile, **georeference, **options}) as f:
        f.write(image)


def write_split(
    root: Path,
    split: str = "train",
    counts: tuple[int, ...] = (3, 2, 0, 4),
    *,
    seed: int = 0,
    bands: BandSpec = BANDS,
) -> Path:
    """Tiles with `counts` buildings and their rasters under `root`; returns the annotation file."""
    rng = np.random.default_rng(seed)
    tiles = []
    for i, count in enumerate(counts):
        optical, sar = f"images/{split}_{i}_rgb.tif", f"images/{split}_{i}_sar.tif"
        tile = Tile(
            optical if bands.optical else sar,
            64,
            64,
            GSD_M,
            sar_file_name=sar if bands.optical and bands.sar else None,
            sensor=SENSOR,
            buildings=buildings(rng, count),
        )
        if bands.optical:
            write_raster(root / optical, paint(tile, rng, sar=False))
        if bands.sar:
            write_raster(root / sar, paint(tile, rng, sar=True))
        tiles.append(tile)
    return write_tiles(root, split, tiles, bands)


def write_tiles(root: Path, split: str, tiles: list[Tile], bands: BandSpec = BANDS, **facts) -> Path:
    """The annotation file of `tiles`."""
    path = root / "annotations" / f"{split}.json"
    write_coco(Dataset(tiles, bands, **facts), path)
    return path


def courtyard(x: float, y: float, size: float = 20, hole: float = 8) -> Polygon:
    """A square with a square hole in its middle."""
    rim = (size - hole) / 2
    inner = box(x + rim, y + rim, x + size - rim, y + size - rim)
    return Polygon(box(x, y, x + size, y + size).exterior, [inner.exterior])


def tiny_config(root: Path, *overrides, train: str = "train", test: str = "val"):
    """The small synthetic config, shrunk further, on the splits under `root`."""
    from fusiondet.config_loading import load_config

    def names(split):
        return str([str(root / "annotations" / f"{split}.json")] if split else [])

    return load_config(
        SMALL_CONFIG,
        [
            *("DATASETS.TRAIN", names(train), "DATASETS.TEST", names(test), "OUTPUT_DIR", str(root / "out")),
            *(
                "MODEL.FPN.OUT_CHANNELS",
                "16",
                "MODEL.ROI_BOX_HEAD.FC_DIM",
                "16",
                "MODEL.ROI_MASK_HEAD.CONV_DIM",
                "8",
            ),
            *("MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_HEIGHT_HEAD.CONV_DIM", "32"),
            *("MODEL.ROI_HEIGHT_HEAD.NUM_CONV", "1", "MODEL.ROI_HEIGHT_HEAD.FC_DIM", "16"),
            *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
            *(
                "MODEL.RPN.POST_NMS_TOPK_TEST",
                "30",
                "TEST.DETECTIONS_PER_IMAGE",
                "12",
                "SOLVER.IMS_PER_BATCH",
                "2",
            ),
            *(
                "SOLVER.MAX_ITER",
                "4",
                "SOLVER.WARMUP_ITERS",
                "2",
                "SOLVER.CHECKPOINT_PERIOD",
                "2",
                "VIS_PERIOD",
                "0",
            ),
            *overrides,
        ],
    )


def completed_config(root: Path, *overrides, stored=None, **splits):
    """`tiny_config` with what the data give to it; `stored`: config of the weights."""
    from fusiondet.engine.complete_config import complete_config

    cfg = tiny_config(root, *overrides, **splits)
    complete_config(cfg, stored)
    return cfg
