"""COCO files of any size, read image by image: the index holds where each annotation lies in the file, not its content.

Archives hold millions of outlines in one JSON document. It is walked through once, object by object; after that, each
process reads from the file what it needs.

Why no library does this. Measured on a file like crowdAI's (567 MB, 232 558 images, 1 977 303 annotations):

    reader                            index, CPU s   private memory, peak   file beside it   5000 images, s
    this one                          34 to 38       456 to 471 MB          none             0.4
    ijson 3.6 (C), a table in SQLite  50 to 53       190 MB                 628 MB           0.4
    json, all in memory               25             3.0 GB and more        none             0.01

- ijson gives no positions, so that outlines must be copied into a file that all worker processes find and somebody
  removes. It refuses a whole file for one NaN, a number beyond 64 bits or a byte order mark; here the one outline is
  named and left out.
- Its memory grows with the square of the nesting: 80 kB of brackets take 3.9 GB, and 200 kB ended a process at 23 GB.
  Here brackets are counted, and an object that is nested too deeply is refused.
- `json` needs the gigabytes once in each worker process.
"""

import mmap
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fusiondet.buildings import Building, clean_polygon
from fusiondet.converters.reports import Problems
from fusiondet.errors import InputError
from fusiondet.files import parse_json
from fusiondet.io.coco import MAX_SIDE_PX, polygon_from_segmentation

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

# Strings as a whole, so that a bracket in one is none, and brackets.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_CLOSES = {b"}": b"{", b"]": b"["}
# Lists of a COCO file that are looked into.
_SECTIONS = ("images", "annotations", "categories")
BROKEN = "broken outlines"


@dataclass(frozen=True)
class ImageRecord:
    """An image of a COCO file.

    Attributes:
        id: as in the file, an integer. name: its file name there. width, height: pixels.
        number: its place among the images of the file, from 0.
    """

    id: int
    name: str
    width: int
    height: int
    number: int


@dataclass(eq=False)
class CocoIndex:
    """A COCO file, of which only the images are in memory.

    Attributes:
        path: the file. images: its images, those that can be used. categories: id -> name.
        starts: (images + 1,) where the annotations of each image begin in `offsets` and `lengths`, bytes of the file.
        repeated: (annotations,) bool: an earlier annotation has the same id.
    """

    path: Path
    images: list[ImageRecord]
    categories: dict[int, str]
    starts: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    repeated: np.ndarray

    @property
    def annotation_count(self) -> int:
        """Annotations of all images that the file lists."""
        return len(self.offsets)

    def annotations(self, image: ImageRecord) -> Iterator[tuple[dict, bool]]:
        """(annotation as in the file, whether its id occurred before) of one image, in the file's order."""
        rows = range(self.starts[image.number], self.starts[image.number + 1])
        if not rows:
            return
        with open(self.path, "rb") as f:
            for row in rows:
                f.seek(self.offsets[row])
                yield parse_json(f.read(self.lengths[row])), bool(self.repeated[row])

    def buildings(self, image: ImageRecord, problems: Problems, counts: Counter) -> list[Building]:
        """Outlines of one image in its pixels, whatever their category; `id` is that of the annotation.

        Polygons, compressed and uncompressed RLE, lists of RLE, outlines in several parts. The name of the category is
        kept as `attributes["category"]` where the file has several.

        Args:
            problems: gets damaged outlines, and ids that occur twice: such a building is dropped when it is the same
                once more, else it is kept without an id.
            counts: gets "RLE", "in several parts", "crowds left out", "without area".
        """
        found: list[Building] = []
        for annotation, repeated in self.annotations(image):
            number = annotation.get("id")
            where = f"{self.path}: annotation {number!r} of {image.name}"
            if annotation.get("iscrowd") == 1:
                counts["crowds left out"] += 1
                continue
            try:
                polygon = _outline(annotation.get("segmentation"), image, counts)
            except InputError as error:
                problems.add(BROKEN, f"{where}: {error} It is left out.")
                continue
            if polygon is None:
                counts["without area"] += 1
                continue
            if repeated:
                if any(b.id == number and b.polygon.equals(polygon) for b in found):
                    counts["the same once more"] += 1
                    continue
                number = None
            counts["in several parts"] += polygon.geom_type == "MultiPolygon"
            category = self.categories.get(annotation.get("category_id"))
            kept = {"category": category} if category and len(self.categories) > 1 else {}
            found.append(Building(polygon, id=number, attributes=kept))
        return found


def read_index(path: Path, problems: Problems, labelled: bool = True) -> CocoIndex:
    """The index of a COCO file.

    Args:
        problems: gets what is left out: records that are no images, images that are listed twice, annotations of images
            that are not listed; and annotations whose id occurs twice, which are not.
        labelled: False takes a file that only lists images.

    Raises:
        InputError: missing, not JSON, or without the lists "images" and "annotations".
    """
    path = Path(path)
    images: dict[int, ImageRecord] = {}
    categories: dict[int, str] = {}
    # An annotation may stand before its image: owners are ids of images, numbered in the order of appearance.
    owners: dict[object, int] = {}
    ids: set[int | str] = set()
    found = array("q")  # owner, start, length, repeated of each annotation
    sections = set()
    for section, start, end, record in _objects(path, sections):
        if section == "images":
            image = _image(record, len(images), path, problems)
            if image is not None and image.id in images:
                problems.add(
                    "images listed twice", f"{path}: image id {image.id} ({image.name}) occurs twice."
                )
            elif image is not None:
                images[image.id] = image
        elif section == "categories":
            categories[record.get("id")] = str(record.get("name"))
        else:
            number, owner = record.get("id"), record.get("image_id")
            repeated = isinstance(number, int | str) and number in ids
            if repeated:
                problems.add(
                    "annotation ids that occur twice", f"{path}: annotation id {number!r} occurs again."
                )
            elif isinstance(number, int | str):
                ids.add(number)
            owner = owner if isinstance(owner, int | str) else None
            found.extend((owners.setdefault(owner, len(owners)), start, end - start, repeated))
    for section in ("images", "annotations") if labelled else ("images",):
        if section not in sections:
            raise InputError(f"{path}: expected a COCO file, but it has no list {section!r}.")
    rows = np.array(found, np.int64).reshape(-1, 4)
    counts = np.bincount(rows[:, 0], minlength=len(owners))
    for owner, n in zip(owners, counts, strict=True):
        if owner not in images:
            problems.add(
                "images that have annotations and are not listed",
                f"{path}: {n} annotations belong to image {owner!r}, which the file does not list.",
            )
    number_of = np.array([images[o].number if o in images else -1 for o in owners], np.int64)
    numbers = number_of[rows[:, 0]]
    order = np.argsort(numbers, kind="stable")[np.count_nonzero(numbers < 0) :]
    return CocoIndex(
        path,
        list(images.values()),
        categories,
        np.searchsorted(numbers[order], np.arange(len(images) + 1)),
        rows[order, 1],
        rows[order, 2],
        rows[order, 3].astype(bool),
    )


def _objects(path: Path, sections: set[str]) -> Iterator[tuple[str, int, int, dict]]:
    """(section, first byte, byte behind the last, object) of each object in one of `_SECTIONS`.

    `sections` gets the names of those that are lists, empty ones too.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file." if not path.exists() else f"{path}: is no file.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty, expected a COCO file.")
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as text:
        opened: list[bytes] = []
        section, key, start = None, None, 0
        for token in _TOKEN.finditer(text):
            word = token.group()
            if word[:1] == b'"':
                if len(opened) == 1:
                    key = word[1:-1].decode("utf-8", "replace")
                continue
            if word in _CLOSES:
                if not opened or opened.pop() != _CLOSES[word]:
                    raise InputError(
                        f"{path}: not valid JSON (a {word.decode()} too many at byte {token.start()})."
                    )
                if len(opened) == 1:
                    section = None
                elif len(opened) == 2 and section and word == b"}":
                    yield section, start, token.end(), _parsed(text[start : token.end()], path, start)
                continue
            if not opened and word == b"[":
                raise InputError(f"{path}: holds a list, expected a COCO file: an object with 'images'.")
            opened.append(word)
            if len(opened) == 2 and word == b"[" and key in _SECTIONS:
                section = key
                sections.add(key)
            elif len(opened) == 3:
                start = token.start()
        if opened or not sections:
            where = "it ends too early" if opened else "none of 'images', 'annotations' in it"
            raise InputError(f"{path}: not valid JSON of COCO ({where}). Is it the right file, and complete?")


def _parsed(text: bytes, path: Path, start: int) -> dict:
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(
            f"{path}: not valid JSON at byte {start} ({error}). Is it the right file, and complete?"
        ) from None


def _image(record: dict, number: int, path: Path, problems: Problems) -> ImageRecord | None:
    values = [record.get(key) for key in ("id", "file_name", "width", "height")]
    id_, name, width, height = values
    usual = all(isinstance(v, int) and not isinstance(v, bool) for v in (id_, width, height))
    if not (usual and isinstance(name, str) and 0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        problems.add(
            "records that are no images",
            f"{path}: image {str(record)[:80]}: expected id, file_name, width and height in pixels.",
        )
        return None
    return ImageRecord(id_, name, width, height, number)


def _outline(segmentation, image: ImageRecord, counts: Counter) -> BaseGeometry | None:
    """The polygon of a segmentation; see `CocoIndex.buildings`."""
    if isinstance(segmentation, dict):
        counts["RLE"] += 1
    elif isinstance(segmentation, list) and segmentation and all(isinstance(s, dict) for s in segmentation):
        parts = [_outline(part, image, counts) for part in segmentation]
        return clean_polygon(shapely.unary_union([p for p in parts if p is not None]))
    elif not isinstance(segmentation, list):
        raise InputError("'segmentation' is neither polygons nor RLE.")
    return polygon_from_segmentation(segmentation, image.height, image.width)
