"""Archives of the contest in small: published names and folders, and content in which nothing can be out of place.

Every building is brighter than the ground in all bands, and the nDSM is its height exactly inside its outline.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.coco import encode_rle

import numpy as np
import rasterio
import shapely
from shapely.geometry import MultiPolygon, Polygon, box

SIZE = 96
GROUND, BRIGHT = 40, 200
NAMES = {
    "train": [
        "GF2_Brasilia_-15.8652_-47.9337",
        "GF2_Brasilia_-15.8652_-47.9351",
        "SV_NewYork_40.7387_-73.9989",
        "SV_Copenhagen_55.6770_12.5319",
    ],
    "val": ["P_0000", "P_0001"],
    "test": ["P_1472"],
}
ROOFS = ("flat_roof", "gable_roof", "hipped_roof_v1", "other")


@dataclass(frozen=True)
class House:
    """A building of the truth: outline in pixels, metres above ground (0: missing in the nDSM), how it is written."""

    polygon: shapely.geometry.base.BaseGeometry
    height_m: float
    written: str


# None of them looks the same after a flip or a turn of the tile, and no two have one height.
HOUSES = [
    House(box(8, 6, 28, 18), 7.5, "polygon"),
    House(box(40, 10, 52, 40), 21.25, "rle"),
    House(MultiPolygon([box(60, 6, 70, 16), box(74, 6, 90, 12)]), 12.0, "polygon"),
    House(Polygon([(6, 50), (30, 50), (30, 60), (16, 60), (16, 80), (6, 80)]), 4.5, "uncompressed"),
    House(Polygon(box(50, 50, 80, 80).exterior, [box(58, 58, 70, 72).exterior]), 33.0, "rle"),
    House(box(84, 84, 94, 94), 0.0, "polygon"),
]
# The third tile of a split has no building; the others lack one, each another one.


def houses(number: int) -> list[House]:
    """The buildings of the image of that number in its split."""
    return [] if number == 2 else [h for i, h in enumerate(HOUSES) if i != number]


def segmentation(house: House):
    """COCO's, in the house's way of writing."""
    if house.written == "polygon":
        parts = getattr(house.polygon, "geoms", [house.polygon])
        return [np.ravel(list(part.exterior.coords)[:-1]).tolist() for part in parts]
    mask = polygon_to_mask(house.polygon, SIZE, SIZE)
    if house.written == "uncompressed":
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *edges, flat.size]).tolist()
        return {"size": [SIZE, SIZE], "counts": [0, *counts] if flat[0] else counts}
    return encode_rle(mask)


def pictures(number: int) -> dict[str, np.ndarray]:
    """Product -> (bands, SIZE, SIZE) of an image."""
    bright, heights_m = np.zeros((SIZE, SIZE), bool), np.zeros((SIZE, SIZE), np.float32)
    for house in houses(number):
        mask = polygon_to_mask(house.polygon, SIZE, SIZE)
        bright |= mask
        heights_m[mask] = house.height_m
    rgb = np.where(bright, BRIGHT, GROUND).astype(np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None]
    sar = np.where(bright, BRIGHT + 20, GROUND).astype(np.uint8)[None]
    return {"rgb": rgb, "sar": sar, "height": heights_m[None], "merge": np.concatenate([rgb, sar])}


def write_tif(path: Path, image: np.ndarray, **options) -> None:
    """A GeoTIFF without georeference."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = image.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": image.dtype}
    with rasterio.open(path, "w", **{**profile, **options}) as f:
        f.write(image)


def document(names: list[str], track: int = 2, labelled: bool = True) -> dict:
    """The COCO file of a split. Ids of images are not in the order of the names."""
    images = [
        {"file_name": f"{name}.tif", "height": SIZE, "width": SIZE, "id": len(names) - 1 - i}
        for i, name in enumerate(names)
    ]
    roofs = ROOFS if track == 1 else ("building",)
    annotations = []
    for i, image in enumerate(images if labelled else []):
        for house in houses(i):
            x0, y0, x1, y1 = house.polygon.bounds
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes a match with number 0 for none
                    "image_id": image["id"],
                    "category_id": 1 + len(annotations) % len(roofs),
                    "segmentation": segmentation(house),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": house.polygon.area,
                    "iscrowd": 0,
                }
            )
    categories = [{"supercategory": "building", "id": i, "name": name} for i, name in enumerate(roofs, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_archive(
    root: Path,
    track: int = 2,
    products: tuple[str, ...] = ("rgb", "sar", "height"),
    spelling: dict[str, str] | None = None,
    labels: str = "annotations",
    labelled: tuple[str, ...] = ("train", "val"),
    flat: bool = False,
    names: dict[str, list[str]] = NAMES,
) -> Path:
    """Write an archive, and return `root`.

    Args:
        spelling: product -> name of its folder. labels: folder of the JSON files.
        labelled: splits with labels; the others have an image_id_<split>.json.
        flat: no folders of splits.
    """
    stem = "roof_fine" if track == 1 else "buildings_only"
    (root / labels).mkdir(parents=True)
    for split, of_split in names.items():
        known = split in labelled
        name = f"{stem}_{split}.json" if known else f"image_id_{split}.json"
        (root / labels / name).write_text(json.dumps(document(of_split, track, known)))
        for number, name in enumerate(of_split):
            images = pictures(number)
            for product in products:
                folder = root / ("" if flat else split) / (spelling or {}).get(product, product)
                if folder.name == "dsmnpy":
                    folder.mkdir(parents=True, exist_ok=True)
                    np.save(folder / f"{name}.npy", images[product][0])
                else:
                    write_tif(folder / f"{name}.tif", images[product])
    return root
