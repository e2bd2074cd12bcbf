"""Data sets by name: a COCO file of `fusiondet.io.coco` becomes a data set that Detectron2 knows.

A name is `<source>_<split>` for the file `<source>/annotations/<split>.json` under $DETECTRON2_DATASETS (default:
`datasets/`), e.g. `synthcity_train`, or simply the path of a COCO file. Nothing is read before it is asked for.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.buildings import Tile
from fusiondet.errors import InputError, unknown_name
from fusiondet.files import safe_join
from fusiondet.io.coco import Dataset, annotation_record, image_root, read_coco
from fusiondet.io.pixel_classes import ClassList, class_list, class_raster
from fusiondet.io.tile_rasters import tile_rasters

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode


def dataset_root() -> Path:
    """$DETECTRON2_DATASETS, or `datasets` in the working directory."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def known_names() -> list[str]:
    """Names of the splits found under `dataset_root()`."""
    return sorted(f"{p.parent.parent.name}_{p.stem}" for p in dataset_root().glob("*/annotations/*.json"))


def annotation_file(name: str) -> Path:
    """The COCO file of data set `name`, which may be a path itself.

    Raises:
        InputError: a path that does not exist, or a name without a file; the message lists the names there are.
    """
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise InputError(f"{name}: no such annotation file.")
        return Path(name).resolve()
    words = name.split("_")
    for i in range(len(words) - 1, 0, -1):
        path = dataset_root() / "_".join(words[:i]) / "annotations" / ("_".join(words[i:]) + ".json")
        if path.is_file():
            return path.resolve()
    raise InputError(
        f"{unknown_name('data set', name, known_names())} Looked in {dataset_root().resolve()}; set "
        "DETECTRON2_DATASETS to the folder that holds <source>/annotations/<split>.json, or give a path."
    )


def ensure_registered(name: str, classes: tuple[str, ...] | None = None) -> str:
    """Make `name` known to Detectron2's catalogs and return it; a second call does nothing.

    `classes` are those of `read_coco`, which hold for `load_split` from then on; None: those of an earlier call.

    `DatasetCatalog.get(name)` is then a list of `records` with annotations, which tools of Detectron2 read, and
    `MetadataCatalog.get(name)` has json_file, image_root
    and thing_classes, once the file was read also bands (`BandSpec.to_dict()`).

    Raises:
        InputError: see `annotation_file`.
    """
    path = annotation_file(name)
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name)
        if known.json_file == str(path) and classes in (None, known.building_classes):
            return name
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
    DatasetCatalog.register(name, lambda: _load(name))
    MetadataCatalog.get(name).set(
        json_file=str(path),
        image_root=str(image_root(path)),
        thing_classes=["building"],
        evaluator_type="building",
        building_classes=classes or (),
    )
    return name


def _load(name: str) -> list[dict]:
    dataset = load_split(name)
    MetadataCatalog.get(name).bands = dataset.bands.to_dict()
    return [{**record, "annotations": annotations(record["tile"])} for record in records(dataset)]


def load_split(name: str) -> Dataset:
    """The split `name`, read once per version of its file. Treat it as read-only.

    Raises:
        InputError: see `annotation_file` and `fusiondet.io.coco.read_coco`.
    """
    classes = MetadataCatalog.get(name).building_classes if name in DatasetCatalog.list() else ()
    return load_annotations(name, read_coco, classes)


def load_annotations(name: str, read: Callable, *args):
    """What `read` makes of the annotation file of data set `name`, and of `args`, read once per version of the file.

    Raises:
        InputError: see `annotation_file`, and what `read` raises.
    """
    path = annotation_file(name)
    return _read(path, path.stat().st_mtime_ns, read, *args)


@functools.lru_cache(maxsize=8)
def _read(path: Path, version: int, read: Callable, *args):
    return read(path, *args)


def folder_name(name: str) -> str:
    """`name` as a name of a folder: `<source>_<split>` for a path."""
    if not name.endswith(".json"):
        return name
    path = Path(name).resolve()
    return f"{image_root(path).name}_{path.stem}"


def records(dataset: Dataset) -> list[dict]:
    """What the mapper takes of each tile of `dataset`, in order.

    Returns:
        tile (the `Tile` itself, with its buildings), file_name (absolute, the tile's first raster), optical_raster and
        sar_raster (`TileRaster`, None where there is none), sar_file_name (absolute or None), image_id, height, width,
        gsd_m (NaN when unknown), sensor (SensorGeometry.to_dict(), azimuths in image axes), bands (BandSpec of the
        files), nodata, class_raster (`TileRaster`, None where there is none) and classes (`ClassList`, None where
        footprints tell the classes), building_height_file_name and ndsm_file_name (absolute or None), crs and
        transform (as in `Tile`).
    """
    classes = class_list(dataset)
    return [_record(tile, dataset, classes) for tile in dataset.tiles]


def _record(tile: Tile, dataset: Dataset, classes: ClassList | None) -> dict:
    optical, sar = tile_rasters(dataset, tile)
    return {
        "tile": tile,
        "file_name": _full(dataset, tile.file_name),
        "optical_raster": optical,
        "sar_raster": sar,
        "sar_file_name": None if sar is None else str(sar.path),
        "image_id": tile.id,
        "height": tile.height,
        "width": tile.width,
        "gsd_m": tile.gsd_m,
        "sensor": tile.sensor.in_image_axes(tile.transform).to_dict(),
        "bands": dataset.bands,
        "nodata": dataset.nodata,
        "class_raster": class_raster(dataset, tile),
        "classes": classes,
        "building_height_file_name": _full(dataset, tile.building_height_file_name),
        "ndsm_file_name": _full(dataset, tile.ndsm_file_name),
        "crs": tile.crs,
        "transform": tile.transform,
    }


def annotations(tile: Tile) -> list[dict]:
    """Detectron2's annotations of `tile`: bbox in XYWH pixels, bbox_mode, category_id 0, iscrowd 0, segmentation
    (polygons, or RLE and then the exact outline_px too), height_m (metres or None).
    """
    found = []
    for building in tile.buildings:
        stored = annotation_record(building, tile.height, tile.width)
        kept = ("bbox", "segmentation", "outline_px", "iscrowd", "height_m")
        annotation = {key: stored[key] for key in kept if key in stored}
        found.append({**annotation, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0})
    return found


def _full(dataset: Dataset, name: str | None) -> str | None:
    return None if name is None else str(safe_join(dataset.root, name))
