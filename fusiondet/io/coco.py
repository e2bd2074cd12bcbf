"""The annotations on disk: one COCO JSON per split, rasters untouched beside it. Write, read, validate.

Layout: `ROOT/annotations/<split>.json`; every file name in it is relative to ROOT. Plain COCO tools read the file; the
keys below are additions, and unknown is always null, never NaN.

    bands          BandSpec.to_dict(): names in channel order and the SAR scale of the files
    nodata         number that means "no data" in rasters that declare none, or null
    images[]       id, file_name, width, height, sar_file_name, ndsm_file_name, building_height_file_name, gsd_m,
                   crs, transform (a, b, c, d, e, f), sensor {SensorGeometry.to_dict()}; where known, cloud_file_name
                   and class_file_name (its classes are listed in info, see `pixel_classes`); of a tile that
                   is a part of its rasters, window and sar_window (x0, y0, width, height); where it is not the first
                   bands, indexes and sar_indexes. Plain COCO tools read such a raster as a whole: for them tiles are
                   cut out (`tools/prepare_dataset.py ... --cut`)
    annotations[]  id, image_id, category_id 1, bbox (x, y, w, h) px, area px², iscrowd 0, segmentation (polygons, or
                   RLE where the building has holes or would become two by rasterising), height_m, height_source,
                   height_stat, height_datum, outline, source_id

Predictions are COCO results with `height_m, height_p16_m, height_p84_m`; see `prediction_record`.
"""

import dataclasses
import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path

from fusiondet import plugins
from fusiondet.buildings import (
    OUTLINES,
    Building,
    SensorGeometry,
    Tile,
    clean_height_m,
    clean_polygon,
    is_tangled,
)
from fusiondet.errors import InputError, unknown_name
from fusiondet.files import atomic_path, finite_or_none, parse_json, read_json, safe_join
from fusiondet.geometry.painting import mask_to_polygon, polygon_to_mask
from fusiondet.io.bands import BandSpec

import numpy as np
import shapely
from pycocotools import mask as mask_api
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

CATEGORIES = [{"id": 1, "name": "building", "supercategory": "building"}]
RASTER_KEYS = (
    "file_name",
    "sar_file_name",
    "ndsm_file_name",
    "building_height_file_name",
    "cloud_file_name",
    "class_file_name",
)
# Masks of an image are made in memory: a larger one has to be cut into tiles.
MAX_SIDE_PX = 32768
# Of all edges of a segmentation; rasterising takes 40 bytes for each pixel of them.
_MAX_EDGES_PX = 1e7
# Few data sets have something to say here, so that null is left out.
_RARE_KEYS = ("cloud_file_name", "class_file_name", "window", "sar_window", "indexes", "sar_indexes")
_TUPLE_KEYS = ("transform", "window", "sar_window", "indexes", "sar_indexes")
_TILE_KEYS = tuple(f.name for f in dataclasses.fields(Tile) if f.name not in ("buildings", "sensor"))
# Of a pixel's coordinates, in the rings of a file.
_DECIMALS = 3
# Of a prediction: median, 16th and 84th percentile.
HEIGHT_KEYS = ("height_m", "height_p16_m", "height_p84_m")
_HEIGHT_TEXT_KEYS = ("height_source", "height_stat", "height_datum")


@dataclass
class Dataset:
    """One split: its tiles, what their bands are, and free-form facts (`info`: licence, counts, how it was made).

    Attributes:
        nodata: number that means "no data" where a raster declares none; None when there is no such number.
        root: folder that the tiles' file names are relative to; set by `read_coco`.
    """

    tiles: list[Tile]
    bands: BandSpec
    info: dict = field(default_factory=dict)
    nodata: float | None = None
    root: Path | None = None


def write_coco(dataset: Dataset, path: Path) -> None:
    """Write `dataset` as `path`, whole or not at all. Tiles without an id are numbered from 1 on, in order."""
    with CocoWriter(path, dataset.bands, dataset.info, dataset.nodata) as writer:
        for image, annotations in _numbered(dataset):
            writer.add(image, annotations)


def coco_document(dataset: Dataset) -> dict:
    """`dataset` as the document that `write_coco` writes. Annotations are numbered from 1 on, in order."""
    images, annotations = [], []
    for image, of_image in _numbered(dataset):
        images.append(image)
        for record in of_image:
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **record})
    return {
        **_head(dataset.bands, dataset.info, dataset.nodata),
        "images": images,
        "annotations": annotations,
    }


def tile_records(tile: Tile) -> tuple[dict, list[dict]]:
    """(image record, its annotation records without `id` and `image_id`) of `tile`: what `CocoWriter.add` takes."""
    return _image_record(tile), [annotation_record(b, tile.height, tile.width) for b in tile.buildings]


def tile_from_records(image: dict, annotations: Iterable[dict]) -> Tile:
    """Inverse of `tile_records`; crowds and outlines without area are left out.

    Raises:
        InputError: see `building_from_annotation`.
    """
    tile = _tile(image)
    for annotation in annotations:
        _add_building(tile, annotation)
    return tile


def _add_building(tile: Tile, annotation: dict) -> None:
    building = building_from_annotation(annotation, tile.height, tile.width)
    if building is not None and not annotation.get("iscrowd"):
        tile.buildings.append(building)


class CocoWriter:
    """Write a data set tile by tile in constant memory, whole or not at all: a context manager.

    The file appears at the end of the block; on any error there is none.
    """

    def __init__(self, path: Path, bands: BandSpec, info: dict | None = None, nodata: float | None = None):
        """Args are those of `Dataset`. `info` may be filled until the end of the block."""
        self.path, self.info = Path(path), {} if info is None else info
        self._bands, self._nodata = bands, nodata
        self._root = image_root(self.path)
        self._ids: set = set()
        self._free, self._images, self._annotations = 1, 0, 0
        self._files = ExitStack()

    def __enter__(self):
        self._target = self._files.enter_context(atomic_path(self.path))
        self._parts = {
            name: self._files.enter_context(open(self._target.with_name(name), "w+", encoding="utf-8"))
            for name in ("images", "annotations")
        }
        return self

    def add(self, image: dict, annotations: list[dict]) -> int | str:
        """Append one tile, as `tile_records` makes it; its id: the record's own, else the next free number.

        Raises:
            InputError: see `validate_coco`.
        """
        image = {**image}
        if image.get("id") is None:
            while self._free in self._ids:
                self._free += 1
            image["id"] = self._free
        _validate_image(image, self.path, self._root, self._ids)
        first = self._annotations + 1
        records = [{"id": first + i, "image_id": image["id"], **a} for i, a in enumerate(annotations)]
        for record in records:
            _validate_annotation(record, self.path, self._ids)
        self._append("images", [image], self._images)
        self._append("annotations", records, self._annotations)
        self._images += 1
        self._annotations += len(records)
        return image["id"]

    def _append(self, name: str, records: list[dict], before: int) -> None:
        if records:
            text = json.dumps(records, allow_nan=False)
            self._parts[name].write((", " if before else "") + text[1:-1])

    def __exit__(self, kind, error, trace):
        if kind is None:
            with open(self._target, "w", encoding="utf-8") as target:
                head = json.dumps(_head(self._bands, self.info, self._nodata), allow_nan=False)
                target.write(head[:-1])
                for name, part in self._parts.items():
                    target.write(f', "{name}": [')
                    part.seek(0)
                    shutil.copyfileobj(part, target)
                    target.write("]")
                target.write("}")
        return self._files.__exit__(kind, error, trace)


def _head(bands: BandSpec, info: dict, nodata: float | None) -> dict:
    return {
        "info": info,
        "licenses": [],
        "bands": bands.to_dict(),
        "nodata": nodata,
        "categories": CATEGORIES,
    }


def _numbered(dataset: Dataset) -> Iterable[tuple[dict, list[dict]]]:
    """`tile_records` of every tile; those without an id get the numbers from 1 on that no tile has."""
    taken = {tile.id for tile in dataset.tiles if tile.id is not None}
    free = (i for i in itertools.count(1) if i not in taken)
    for tile in dataset.tiles:
        image, annotations = tile_records(tile)
        yield {**image, "id": next(free) if tile.id is None else tile.id}, annotations


def read_coco(path: Path, classes: Sequence[str] = ()) -> Dataset:
    """The split in `path`, checked. File names stay relative to `Dataset.root`, the folder above `annotations/`.

    A file outside a folder named `annotations` has its own folder as root. A plain COCO file without our keys is read
    too: heights unknown, GSD nan, and RGB assumed.

    Args:
        classes: names of the annotated classes that are buildings; see `of_classes`.

    Raises:
        InputError: missing, not JSON, not valid by `validate_coco`, or see `of_classes`.
    """
    path = Path(path)
    document = read_json(path)
    validate_coco(document, path)
    document = of_classes(document, path, classes)
    tiles = {image["id"]: _tile(image) for image in document["images"]}
    for annotation in document["annotations"]:
        try:
            _add_building(tiles[annotation["image_id"]], annotation)
        except (InputError, TypeError, ValueError, KeyError) as error:
            raise InputError(f"{path}: annotation {annotation.get('id')!r}: {error}") from None
    try:
        bands = BandSpec.from_dict(document.get("bands") or BandSpec().to_dict())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return Dataset(
        list(tiles.values()), bands, document.get("info") or {}, document.get("nodata"), image_root(path)
    )


def of_classes(document: dict, path: Path, classes: Sequence[str] = ()) -> dict:
    """A valid `document` with those annotations alone whose class is one of `classes`, by name.

    Without `classes`, all of them, which then have to be of one class or be kinds of roofs; classes that are listed and
    not annotated do not matter.

    Raises:
        InputError: begins with `path`; several classes are annotated and none is chosen, or one is chosen that is not
            among them.
    """
    names = category_names(document)
    counts = Counter(names.get(_category(a), f"class {_category(a)}") for a in document["annotations"])
    for name in classes:
        if name not in counts and name not in names.values():
            raise InputError(f"{path}: {unknown_name('class', name, {*counts, *names.values()})}")
    if classes:
        kept = [a for a in document["annotations"] if names.get(_category(a)) in classes]
        return {**document, "annotations": kept}
    # Some tools number classes of outlines, e.g. by completeness, with names such as "1.0".
    if len(counts) > 1 and not are_roofs(counts) and not all(map(_is_numeral, counts)):
        found = ", ".join(f"{name} ({n})" for name, n in counts.most_common(8))
        raise InputError(
            f"{path}: annotations of {len(counts)} classes, and all of them would count as buildings: {found}. Choose "
            f'those that are with `classes`, e.g. `classes=["{counts.most_common(1)[0][0]}"]`; in a config, '
            "INPUT.CLASSES."
        )
    return document


def category_names(document: dict) -> dict[int | str, str]:
    """Id -> name of the categories that a valid `document` lists."""
    return {_category(c, "id"): str(c.get("name")) for c in document["categories"] if isinstance(c, dict)}


def are_roofs(names: Iterable[str]) -> bool:
    """Whether classes of these names are kinds of roofs, as those of DFC2023's first track: all are buildings."""
    names = [name.lower() for name in names]
    return any("roof" in name for name in names) and all("roof" in n or n in ("dome", "other") for n in names)


def _is_numeral(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def _category(record: dict, key: str = "category_id") -> int | str | None:
    return record.get(key) if isinstance(record.get(key), Integral | str) else None


def image_root(json_path: Path) -> Path:
    """Folder that the file names of an annotation file are relative to."""
    folder = Path(json_path).resolve().parent
    return folder.parent if folder.name == "annotations" else folder


def validate_coco(document: dict, path: Path) -> None:
    """Check the keys that everything relies on.

    Raises:
        InputError: names the file, the record and the key; also for names that leave the image root, duplicated ids,
            annotations of unknown images or without outline, sizes that are not pixels, and heights that are neither
            null nor in (0, 1000] m; for files of another kind, that a project reads.
    """
    info = document.get("info") if isinstance(document, dict) else None
    kind = info.get("kind") if isinstance(info, dict) else None
    other_kinds = plugins.merged("annotation_kinds")
    if isinstance(kind, str) and kind in other_kinds:
        raise InputError(
            f"{path}: expected tiles with buildings, but it holds {other_kinds[kind]}. Take another data set."
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise InputError(
                f"{path}: expected a COCO file with a list {key!r}. Make one with tools/prepare_dataset.py."
            )
    for key in ("images", "annotations"):
        for i, record in enumerate(document[key]):
            if not isinstance(record, dict):
                raise InputError(f"{path}: {key}[{i}] is {type(record).__name__}, expected an object.")
    for key, kind in (("bands", dict), ("info", dict), ("nodata", int | float)):
        if not isinstance(document.get(key), kind | None):
            raise InputError(f"{path}: {key!r} is {str(document[key])[:40]!r}, which it cannot be.")
    ids: set = set()
    root = image_root(path)
    for image in document["images"]:
        _validate_image(image, path, root, ids)
    for annotation in document["annotations"]:
        _validate_annotation(annotation, path, ids)


def _validate_image(image: dict, path: Path, root: Path, ids: set) -> None:
    """Check one image record, whose file names are relative to `root`, and put its id among `ids`."""
    where = f"{path}: image {image.get('id')!r}"
    for key in ("id", "file_name", "width", "height"):
        if image.get(key) is None:
            raise InputError(f"{where}: {key!r} is missing.")
    for key in ("width", "height"):
        if (
            isinstance(image[key], bool)
            or not isinstance(image[key], int)
            or not 0 < image[key] <= MAX_SIDE_PX
        ):
            raise InputError(
                f"{where}: {key!r} is {repr(image[key])[:40]}, expected pixels from 1 to {MAX_SIDE_PX}."
            )
    if not isinstance(image["id"], Integral | str):
        raise InputError(f"{where}: expected a number or text as id.")
    if not isinstance(image.get("crs"), str | None):
        raise InputError(f"{where}: crs is {repr(image['crs'])[:60]}, expected text or null.")
    if image["id"] in ids:
        raise InputError(f"{where}: this id occurs twice.")
    ids.add(image["id"])
    for key in RASTER_KEYS:
        if image.get(key) is not None:
            if not isinstance(image[key], str):
                raise InputError(f"{where}: {key!r} is {image[key]!r}, expected a file name.")
            safe_join(root, image[key])
    for key in ("window", "sar_window"):
        window = image.get(key)
        if window is not None and not (
            isinstance(window, list | tuple)
            and len(window) == 4
            and all(isinstance(v, int) and v >= 0 for v in window)
            and tuple(window[2:]) == (image["width"], image["height"])
        ):
            raise InputError(
                f"{where}: {key} is {str(window)[:60]}, expected [x0, y0, width, height] in pixels of the raster, with "
                f"the image's own size, {image['width']} x {image['height']}."
            )
    for key in ("indexes", "sar_indexes"):
        indexes = image.get(key)
        if indexes is not None and not (
            isinstance(indexes, list | tuple)
            and indexes
            and all(isinstance(i, int) and i > 0 for i in indexes)
        ):
            raise InputError(f"{where}: {key} is {str(indexes)[:60]}, expected numbers of bands, from 1.")
    _validate_geometry(image, where)


def _validate_annotation(annotation: dict, path: Path, image_ids: set) -> None:
    where = f"{path}: annotation {annotation.get('id')!r}"
    if not isinstance(annotation.get("image_id"), Integral | str) or annotation["image_id"] not in image_ids:
        raise InputError(
            f"{where}: belongs to image {annotation.get('image_id')!r}, which the file does not list."
        )
    if not isinstance(annotation.get("segmentation"), (list, dict)):
        raise InputError(f"{where}: 'segmentation' is neither polygons nor RLE.")
    height_m = annotation.get("height_m")
    if height_m is not None and (isinstance(height_m, str) or clean_height_m(height_m)[1]):
        raise InputError(
            f"{where}: height_m is {repr(height_m)[:40]}, expected metres in (0, 1000], or null when unknown."
        )
    for key in ("outline_px", *_HEIGHT_TEXT_KEYS):
        if not isinstance(annotation.get(key), str | None):
            raise InputError(f"{where}: {key} is {repr(annotation[key])[:40]}, expected text or null.")
    if annotation.get("outline") not in (None, "", *OUTLINES):
        raise InputError(
            f"{where}: outline is {repr(annotation['outline'])[:40]}, expected {' or '.join(OUTLINES)}, or null."
        )
    if annotation.get("iscrowd") not in (None, 0, 1):
        raise InputError(f"{where}: iscrowd is {repr(annotation['iscrowd'])[:40]}, expected 0 or 1.")
    if annotation.get("area") is not None and not is_number(annotation["area"]):
        raise InputError(f"{where}: area is {repr(annotation['area'])[:40]}, expected square pixels.")
    if annotation.get("bbox") is not None and not is_box(annotation["bbox"]):
        raise InputError(
            f"{where}: bbox is {repr(annotation['bbox'])[:60]}, expected [x, y, width, height] in pixels."
        )


# What an angle can be, and its words. Level light casts no shadow that ends, and a radar that looks straight down no
# layover.
TILTS_DEG = {
    "sun_elevation_deg": (lambda v: 0 < v <= 90, "above 0 and at most 90"),
    "sar_incidence_deg": (lambda v: 0 < v < 90, "above 0 and below 90"),
    "view_off_nadir_deg": (lambda v: 0 <= v < 90, "at least 0 and below 90"),
}


def _validate_geometry(image: dict, where: str) -> None:
    gsd_m, transform, sensor = image.get("gsd_m"), image.get("transform"), image.get("sensor")
    if gsd_m is not None and not (is_number(gsd_m) and gsd_m > 0):
        raise InputError(f"{where}: gsd_m is {gsd_m!r}, expected metres per pixel, or null when unknown.")
    if transform is not None and not (
        isinstance(transform, list) and len(transform) == 6 and all(map(is_number, transform))
    ):
        raise InputError(f"{where}: transform is {str(transform)[:60]}, expected six numbers or null.")
    if sensor is not None and not (
        isinstance(sensor, dict) and all(is_number(v) for v in sensor.values() if v is not None)
    ):
        raise InputError(f"{where}: sensor is {str(sensor)[:60]}, expected degrees by name, or null.")
    for name, (possible, what) in TILTS_DEG.items():
        value = (sensor or {}).get(name)
        if value is not None and not possible(value):
            raise InputError(f"{where}: {name} is {value}, expected {what} degrees, or null when unknown.")


def annotation_record(building: Building, height: int, width: int) -> dict:
    """COCO annotation of `building` (pixels of a height x width image), without ids."""
    x0, y0, x1, y1 = building.polygon.bounds
    return {
        "category_id": 1,
        "bbox": [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)],
        "area": round(building.polygon.area, 3),
        "iscrowd": 0,
        "segmentation": segmentation_from_polygon(building.polygon, height, width),
        "height_m": stored_height_m(building.height_m),
        **{key: getattr(building, key) for key in _HEIGHT_TEXT_KEYS},
        "outline": building.outline,
        "source_id": building.id.item() if hasattr(building.id, "item") else building.id,
        # RLE rounds an outline to pixels; the exact one stays beside it, for pictures and vector metrics.
        **({"outline_px": shapely.to_geojson(building.polygon)} if _has_holes(building.polygon) else {}),
    }


def building_from_annotation(annotation: dict, height: int, width: int) -> Building | None:
    """Inverse of `annotation_record`; None when the segmentation encloses no area."""
    if annotation.get("outline_px"):
        polygon = _exact_outline(annotation["outline_px"])
    else:
        polygon = polygon_from_segmentation(annotation["segmentation"], height, width)
    if polygon is None:
        return None
    return Building(
        polygon=polygon,
        height_m=annotation.get("height_m"),
        outline=annotation.get("outline") or "footprint",
        id=annotation.get("source_id"),
        **{key: annotation.get(key) for key in _HEIGHT_TEXT_KEYS},
    )


def _exact_outline(text: str) -> BaseGeometry | None:
    try:
        geometry = parse_json(text)
        # GEOS reads collections within collections until its stack overflows.
        if geometry["type"] not in ("Polygon", "MultiPolygon"):
            raise ValueError(f"a {str(geometry['type'])[:40]}")
        outline = shapely.from_geojson(text)
    except (ValueError, TypeError, KeyError, shapely.GEOSException) as error:
        raise InputError(f"outline_px is no polygon of GeoJSON ({str(error)[:100]}).") from None
    if is_tangled(outline):
        raise InputError("outline_px: its sides cross each other many thousand times.")
    return clean_polygon(outline)


def stored_outlines(tile: Tile) -> list[BaseGeometry | None]:
    """Outlines of `tile` as `write_coco` and `read_coco` hand them on; None for one that then encloses no area.

    Equal to those of `tile` if our own file was read: only coordinates of more than three decimals change. A network
    learns the same from a file of other origin as from what `write_coco` makes of it.
    """
    outlines = [building.polygon for building in tile.buildings]
    xy_px, owner = shapely.get_coordinates(outlines, return_index=True)
    finer = {*owner[(xy_px != xy_px.round(_DECIMALS)).any(axis=1)].tolist()}
    for i, outline in enumerate(outlines):
        if isinstance(outline, MultiPolygon) or i in finer:
            outlines[i] = _stored_outline(outline)
    return outlines


def _stored_outline(polygon_px: BaseGeometry) -> BaseGeometry | None:
    if _has_holes(polygon_px):
        return clean_polygon(polygon_px)
    return _union_of_rings([_flat(part.exterior) for part in _parts(polygon_px)])


def stored_height_m(height_m: float | None) -> float | None:
    """`height_m` as the file holds it, in tenths of a millimetre."""
    return None if height_m is None else round(float(height_m), 4)


def segmentation_from_polygon(polygon_px: BaseGeometry, height: int, width: int) -> list | dict:
    """COCO segmentation: a list of flat rings, or compressed RLE where rings alone would fill a hole."""
    if _has_holes(polygon_px):
        return encode_rle(polygon_to_mask(polygon_px, height, width))
    return [_flat(part.exterior) for part in _parts(polygon_px)]


def polygon_from_segmentation(segmentation, height: int, width: int) -> BaseGeometry | None:
    """Outline in pixels of a COCO segmentation (polygons or RLE); None when it encloses no area.

    An RLE becomes the union of its pixels' outer borders (exact area, stair-cased). InputError when it is damaged.
    """
    if isinstance(segmentation, dict):
        return mask_to_polygon(decode_rle(segmentation, height, width))
    return _union_of_rings(checked_rings(segmentation))


def _union_of_rings(rings: list[list[float]]) -> BaseGeometry | None:
    outlines = [Polygon(np.reshape(ring, (-1, 2))) for ring in rings if len(ring) >= 6]
    if is_tangled(MultiPolygon(outlines)):
        raise InputError("a polygon whose sides cross each other many thousand times.")
    parts = [clean_polygon(outline) for outline in outlines]
    return clean_polygon(shapely.unary_union([p for p in parts if p is not None])) if any(parts) else None


def checked_rings(segmentation: list) -> list[list[float]]:
    """COCO polygons as flat rings of numbers that pycocotools can be given: it takes memory for every pixel of an edge.

    Raises:
        InputError: coordinates that are no finite numbers, are far outside any image, or do not come in pairs; edges
            that are longer than those of any building together.
    """
    if not isinstance(segmentation, list):
        raise InputError(f"a polygon with coordinates that are no pixels: {str(segmentation)[:60]}.")
    if segmentation and not isinstance(segmentation[0], list):  # some writers forget the outer list
        segmentation = [segmentation]
    length_px = 0.0
    for ring in segmentation:
        if not isinstance(ring, list) or not all(is_number(v) and abs(v) <= 2 * MAX_SIDE_PX for v in ring):
            raise InputError(f"a polygon with coordinates that are no pixels: {str(ring)[:60]}.")
        if len(ring) % 2:
            raise InputError("a polygon with an odd number of coordinates; expected x, y, x, y, ...")
        xy = np.reshape(np.array(ring, float), (-1, 2))
        length_px += np.abs(np.diff(xy, axis=0, append=xy[:1])).max(axis=1).sum() if len(xy) else 0.0
    if length_px > _MAX_EDGES_PX:
        raise InputError(
            f"polygons with edges of {length_px:.3g} px together; no building has more than {_MAX_EDGES_PX:.0e}."
        )
    return segmentation


def is_box(value) -> bool:
    """Whether `value` is a COCO box: x, y, width, height in pixels that an image can have."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 4
        and all(is_number(v) and abs(v) <= 2 * MAX_SIDE_PX for v in value)
        and min(value[2:]) >= 0
    )


def is_number(value) -> bool:
    """Whether `value` is a finite int or float (numpy's too); true and false are none."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # JSON has whole numbers of any length
        return False


def encode_rle(mask: np.ndarray) -> dict:
    """(H, W) bool -> {"size": [H, W], "counts": str}."""
    rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(segmentation: dict, height: int, width: int) -> np.ndarray:
    """Inverse of `encode_rle`, also of uncompressed counts -> (H, W) bool.

    Raises:
        InputError: see `checked_rle`.
    """
    return mask_api.decode(checked_rle(segmentation, height, width)).astype(bool)


def checked_rle(segmentation: dict, height: int, width: int) -> dict:
    """`segmentation` as compressed RLE that pycocotools can be given: it trusts what it is given, and writes beyond its
    memory where there are more runs than pixels.

    Runs of no pixel within are taken out: with them, the union of two masks can have more runs than pixels too.

    Raises:
        InputError: the RLE's size is not (height, width), or its counts do not fill it.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise InputError(f"RLE of size {str(size)[:40]} in an image of size {[height, width]}.")
    most = height * width
    try:
        if len(counts) > 7 * (most + 1):  # characters of a count, at most
            raise ValueError(f"more counts than the {most} pixels")
        runs = np.array(counts, dtype=np.int64) if isinstance(counts, list) else _runs(counts)
        if runs.ndim != 1 or (runs < 0).any():
            raise ValueError("a negative or nested count")
        if len(runs) > most + 1 or (runs > most).any():
            raise ValueError(f"more counts, or larger ones, than the {most} pixels")
        if runs.sum() != most:
            raise ValueError(f"counts add up to {runs.sum()}, not {most}")
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"damaged RLE: {error}.") from None
    if not isinstance(counts, list) and runs[1:].all():
        return {"size": [height, width], "counts": counts}
    plain = {"size": [height, width], "counts": _without_empty_runs(runs).tolist()}
    return mask_api.frPyObjects(plain, height, width)


def _without_empty_runs(runs: np.ndarray) -> np.ndarray:
    """The same mask with runs of at least one pixel; the first run, of background, may have none."""
    filled = np.flatnonzero(runs)
    values = filled % 2
    first = np.flatnonzero(np.diff(values, prepend=-1))  # of neighbours with the same value
    merged = np.add.reduceat(runs[filled], first)
    return np.append(0, merged) if values[0] else merged


def _runs(counts: str | bytes) -> np.ndarray:
    """Run lengths of compressed RLE counts: base 32, 5 bits a character, low ones first, differences to the run two
    before from the fourth run on (cocoapi, common/maskApi.c, rleFrString).
    """
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    digits = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    last = digits < 32
    if not len(digits) or not last[-1] or digits.min() < 0 or digits.max() > 63:
        raise ValueError(f"{text[:20]!r} are no counts")
    ends = np.flatnonzero(last)
    starts = np.append(0, ends[:-1] + 1)
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:  # 35 bits: longer than any image
        raise ValueError(f"{text[:20]!r} are no counts")
    values = np.add.reduceat((digits & 31) << (5 * place), starts)
    values = np.where(digits[ends] & 16, values - (1 << 5 * (place[ends] + 1)), values)
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values


def prediction_record(
    image_id: int, score: float, box_xyxy, rle: dict, height_m: tuple[float, float, float] | None
):
    """COCO result of one detection.

    Args:
        box_xyxy: pixels. rle: of the mask in the image. height_m: (p16, median, p84) in metres, or None.
    """
    x0, y0, x1, y1 = (float(v) for v in box_xyxy)
    p16, median, p84 = height_m if height_m is not None else (None, None, None)
    return {
        "image_id": image_id,
        "category_id": 1,
        "score": float(score),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": rle,
        "height_m": finite_or_none(median),
        "height_p16_m": finite_or_none(p16),
        "height_p84_m": finite_or_none(p84),
    }


def read_predictions(path: Path) -> list[dict]:
    """COCO results in `path`, checked.

    Raises:
        InputError: not a list of records with image_id, score and segmentation; or see `validate_prediction`.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise InputError(f"{path}: expected a list of COCO results, found {type(records).__name__}.")
    for i, record in enumerate(records):
        validate_prediction(record, f"{path}: record {i}")
    return records


def validate_prediction(record: dict, where: str) -> None:
    """Check the keys of one COCO result that everything relies on.

    Raises:
        InputError: begins with `where`; image_id, score or segmentation is missing, a score is outside [0, 1], a box or
            a height is none.
    """
    for key in ("image_id", "score", "segmentation"):
        if not isinstance(record, dict) or key not in record:
            raise InputError(f"{where} has no {key!r}; expected image_id, score, segmentation, height_m.")
    if not isinstance(record["image_id"], Integral | str):
        raise InputError(
            f"{where}: image_id is {repr(record['image_id'])[:40]}, expected a whole number or text."
        )
    if not is_number(record["score"]) or not 0 <= record["score"] <= 1:
        raise InputError(f"{where}: score is {repr(record['score'])[:40]}, expected a number in [0, 1].")
    if not isinstance(record["segmentation"], list | dict):
        raise InputError(f"{where}: 'segmentation' is neither polygons nor RLE.")
    if record.get("bbox") is not None and not is_box(record["bbox"]):
        raise InputError(
            f"{where}: bbox is {repr(record['bbox'])[:60]}, expected [x, y, width, height] in pixels."
        )
    for key in HEIGHT_KEYS:
        if not (record.get(key) is None or is_number(record[key])):
            raise InputError(f"{where}: {key} is {repr(record[key])[:40]}, expected metres or null.")


def _image_record(tile: Tile) -> dict:
    record = {name: getattr(tile, name) for name in _TILE_KEYS}
    for name in _RARE_KEYS:
        if record[name] is None:
            del record[name]
    record["gsd_m"] = finite_or_none(tile.gsd_m)
    record["transform"] = None if tile.transform is None else [float(v) for v in tuple(tile.transform)[:6]]
    return {**record, "sensor": tile.sensor.to_dict()}


def _tile(image: dict) -> Tile:
    names = {f.name for f in dataclasses.fields(Tile)} - {"buildings", "sensor", "gsd_m", *_TUPLE_KEYS}
    return Tile(
        gsd_m=float("nan") if image.get("gsd_m") is None else float(image["gsd_m"]),
        **{key: None if image.get(key) is None else tuple(image[key]) for key in _TUPLE_KEYS},
        sensor=SensorGeometry.from_dict(image.get("sensor")),
        **{name: image.get(name) for name in names},
    )


def _parts(polygon: BaseGeometry) -> Iterable[Polygon]:
    return polygon.geoms if isinstance(polygon, MultiPolygon) else [polygon]


def _has_holes(polygon: BaseGeometry) -> bool:
    return any(part.interiors for part in _parts(polygon))


def _flat(ring) -> list[float]:
    return shapely.get_coordinates(ring)[:-1].round(_DECIMALS).ravel().tolist()
