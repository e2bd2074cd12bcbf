"""Classes of pixels: the list that a data set has of them, and rasters that say which one a pixel is of.

A raster of classes is read where it lies, on the grid of the image: as large as the image, of which the tile's window
is read, or as large as the tile. Pixels are whole numbers (codes), or colours: three bands, with or without alpha, or a
palette. What a pixel says is in the list, or among what is not labelled, or it is an error: a colour that is nearly
that of a class comes from a lossy file, and may as well be that of the class next to it.

In a data set, `info` of the annotations has

    classes      [{"name": "building", "colour": [0, 0, 255]}, ...] or [{"name": "building", "code": 3}, ...], in order
    unlabelled   [[0, 0, 0], ...] or [255, ...]: what pixels say of which nothing is known; may be left out

and a tile its `class_file_name`. A data set without classes has two all the same, which footprints tell:
`FOOTPRINT_CLASSES`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fusiondet.buildings import Tile
from fusiondet.errors import InputError
from fusiondet.files import safe_join
from fusiondet.geometry.painting import footprint_label
from fusiondet.io.coco import Dataset, is_number
from fusiondet.io.rasters import GDAL_OPTIONS, PixelWindow, open_raster
from fusiondet.io.tile_rasters import TileRaster

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

FOOTPRINT_CLASSES = ("background", "building")
# Index of a pixel of which nothing is known.
UNKNOWN = -1
# More would not fit into the rasters that are written of them, uint8 with 255 for nothing.
MOST_CLASSES = 255
# Told apart by most eyes (Okabe & Ito 2008, https://jfly.uni-koeln.de/color/), used again from the ninth class on.
_COLOURS = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66),
    (90, 90, 90),
)  # fmt: skip
# Values that a message names.
_MOST_NAMED = 6


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set, numbered from 0 in this order.

    Attributes:
        names: different, none empty.
        values: of each class what its pixels say: all (code,) from 0 on, or all (red, green, blue) in 0 ... 255.
        ignored: what pixels say that are not labelled, of the same kind.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    ignored: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self):
        """InputError when it is no list of classes."""
        if not 2 <= len(self.names) <= MOST_CLASSES or len(self.names) != len(self.values):
            raise InputError(f"{len(self.names)} classes, expected 2 to {MOST_CLASSES}.")
        if not all(isinstance(n, str) and n for n in self.names) or len({*self.names}) < len(self.names):
            raise InputError(f"classes {', '.join(map(repr, self.names))}: expected different names.")
        values = (*self.values, *self.ignored)
        kinds = {len(value) for value in values}
        if kinds not in ({1}, {3}):
            raise InputError("classes with codes and with colours: expected the same kind for all.")
        most = 255 if self.coloured else 2**31 - 1
        for value in values:
            if not all(isinstance(v, int) and 0 <= v <= most for v in value):
                raise InputError(f"class value {_shown(value)}: expected whole numbers from 0 to {most}.")
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise InputError(f"class value {_shown(twice)} stands for two things: {self}.")

    @property
    def coloured(self) -> bool:
        """Whether pixels say colours; else codes."""
        return len(self.values[0]) == 3

    @property
    def colours(self) -> tuple[tuple[int, ...], ...]:
        """Of each class a colour to draw it in: its own, or one of ours for a code."""
        return self.values if self.coloured else class_colours(len(self.names))

    def __str__(self) -> str:
        """The list as text: "building (0, 0, 255), tree (0, 255, 0); not labelled (0, 0, 0)"."""
        known = ", ".join(
            f"{name} {_shown(value)}" for name, value in zip(self.names, self.values, strict=True)
        )
        return known + (f"; not labelled {', '.join(map(_shown, self.ignored))}" if self.ignored else "")

    def in_order_of(self, names: Sequence[str]) -> "ClassList":
        """The same classes, numbered as `names` are.

        Raises:
            InputError: `names` are others.
        """
        if {*names} != {*self.names} or len(names) != len(self.names):
            raise InputError(f"the classes {', '.join(self.names)}, expected {', '.join(names)}.")
        values = dict(zip(self.names, self.values, strict=True))
        return ClassList(tuple(names), tuple(values[name] for name in names), self.ignored)

    def to_info(self) -> dict:
        """The entries of `info`, see the top of this module."""
        key = "colour" if self.coloured else "code"
        plain = [_plain(value) for value in self.values]
        classes = [{"name": name, key: value} for name, value in zip(self.names, plain, strict=True)]
        return {"classes": classes, "unlabelled": [_plain(value) for value in self.ignored]}

    @classmethod
    def from_info(cls, info: dict) -> "ClassList | None":
        """Inverse of `to_info`; None where `info` has no classes.

        Raises:
            InputError: no list of classes.
        """
        listed, ignored = info.get("classes"), info.get("unlabelled") or []
        if listed is None:
            return None
        if not (isinstance(listed, list) and all(isinstance(c, dict) for c in listed)) or not isinstance(
            ignored, list
        ):
            raise InputError("info: expected lists as classes and unlabelled.")
        values = [_value(c.get("colour", c.get("code"))) for c in listed]
        return cls(
            tuple(c.get("name") for c in listed), tuple(values), tuple(_value(value) for value in ignored)
        )


def class_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours, (red, green, blue) in 0 ... 255, for so many classes that have none of their own."""
    return tuple(_COLOURS[i % len(_COLOURS)] for i in range(count))


def _plain(value: tuple[int, ...]) -> int | list[int]:
    return value[0] if len(value) == 1 else list(value)


def _value(value) -> tuple[int, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not all(is_number(v) and v == int(v) for v in numbers):
        raise InputError(f"info: a class has the value {str(value)[:40]!r}, expected a code or a colour.")
    return tuple(int(v) for v in numbers)


def _shown(value: tuple[int, ...]) -> str:
    return str(value[0]) if len(value) == 1 else str(tuple(value))


# ---- Of a data set ---------------------------------------------------------------------------------------


def class_list(dataset: Dataset) -> ClassList | None:
    """The classes that its rasters tell; None where it has no such rasters, and footprints do.

    Raises:
        InputError: rasters of classes and no list of them, or one that is none.
    """
    # Of other people's files, `info` may hold anything.
    if not any(tile.class_file_name for tile in dataset.tiles):
        return None
    try:
        found = ClassList.from_info(dataset.info)
    except InputError as error:
        raise InputError(f"{dataset.root}: {error}") from None
    if found is None:
        raise InputError(
            f"{dataset.root}: tiles have rasters of classes, but the annotations do not list the classes in their "
            "info. Make the data set again, or add the list: see fusiondet/io/pixel_classes.py."
        )
    return found


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """Names of the classes of its pixels, in order."""
    found = class_list(dataset)
    return FOOTPRINT_CLASSES if found is None else found.names


def class_raster(dataset: Dataset, tile: Tile) -> TileRaster | None:
    """The raster of the classes of `tile`; None where it has none."""
    name = tile.class_file_name
    return None if name is None else TileRaster(safe_join(dataset.root, name), tile.window)


def tile_classes(dataset: Dataset, tile: Tile, names: Sequence[str]) -> np.ndarray:
    """(H, W) int16 index among `names` of the class of each pixel, `UNKNOWN` where it is not labelled.

    Raises:
        InputError: `names` are others than those of `dataset`; or see `read_classes`.
    """
    classes = class_list(dataset)
    if classes is None:
        check_footprint_classes(names)
        return np.where(footprint_label(tile), names.index("building"), names.index("background")).astype(
            np.int16
        )
    raster = class_raster(dataset, tile)
    if raster is None:
        return np.full((tile.height, tile.width), UNKNOWN, np.int16)
    return read_classes(raster, classes.in_order_of(names), (tile.height, tile.width))


def check_footprint_classes(names: Sequence[str]) -> None:
    """InputError when `names` are not those that footprints tell."""
    if sorted(names) != sorted(FOOTPRINT_CLASSES):
        raise InputError(
            f"the classes {', '.join(FOOTPRINT_CLASSES)}, which footprints tell, as it has no rasters of classes; "
            f"expected {', '.join(names)}."
        )


def absent_classes(dataset: Dataset, names: Sequence[str], samples: int = 200) -> tuple[list[str], int]:
    """Those of `names` of which no pixel is in `samples` tiles, evenly spread, and how many tiles were looked at.

    Raises:
        InputError: see `tile_classes`.
    """
    count = min(samples, len(dataset.tiles))
    chosen = np.unique(np.linspace(0, len(dataset.tiles) - 1, count).round().astype(int))
    seen: set[int] = set()
    for i in chosen:
        seen |= {*np.unique(tile_classes(dataset, dataset.tiles[i], names)).tolist()}
        if len(seen - {UNKNOWN}) == len(names):
            break
    return [name for i, name in enumerate(names) if i not in seen], len(chosen)


# ---- Rasters ---------------------------------------------------------------------------------------------


def read_classes(
    raster: TileRaster, classes: ClassList, size: tuple[int, int], window: PixelWindow | None = None
) -> np.ndarray:
    """(h, w) int16 index of the class of each pixel, `UNKNOWN` where it is not labelled.

    Args:
        raster: as large as the image of which `raster.window` is the tile, or as large as the tile.
        size: (height, width) of the tile.
        window: (x0, y0, width, height) in pixels of the tile; None for all of it.

    Raises:
        InputError: it cannot be read, does not cover the tile, has codes where colours are expected or the other way
            round, or pixels that are neither of a class nor among those not labelled: they are named and counted.
    """
    with open_raster(raster.path) as source:
        tile = TileRaster(raster.path, (0, 0, size[1], size[0]))
        tile = tile if (source.height, source.width) == tuple(size) else raster
        part = tile.part(window) or (0, 0, size[1], size[0])
        if part[0] + part[2] > source.width or part[1] + part[3] > source.height:
            raise InputError(
                f"{raster.path}: {source.width} x {source.height} px does not cover the tile at {part}. A raster of "
                "classes has the size of its image, or of its tile."
            )
        return _numbered(source, classes, part)


def _numbered(source, classes: ClassList, part: PixelWindow) -> np.ndarray:
    values = label_values(source, part)
    if source.colorinterp[0] == ColorInterp.palette and classes.coloured:
        values = palette_colours(values[0], source.colormap(1))
    wanted = len(classes.values[0])
    if len(values) != wanted:
        raise InputError(
            f"{source.name}: has {len(values)} band{'s' * (len(values) != 1)}, expected "
            f"{'3 of colours, or a palette' if wanted == 3 else '1 of codes'}: the classes are {classes}."
        )
    if values.dtype.kind == "f":
        values = np.where(np.isfinite(values) & (values == np.round(values)), values, -1)
    packed = _packed(values.astype(np.int64))
    keys = _packed(np.array([*classes.values, *classes.ignored], np.int64).T)
    if not classes.coloured and source.nodata is not None and np.isfinite(source.nodata):
        keys = np.append(keys, np.int64(source.nodata))
    numbers = np.full(len(keys), UNKNOWN, np.int16)
    numbers[: len(classes.names)] = np.arange(len(classes.names))
    # Of a value that is declared as no data and is a class, too, the class counts: it comes first.
    keys, first = np.unique(keys, return_index=True)
    place = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    known = keys[place] == packed
    if not known.all():
        raise _unknown_values(source.name, values[:, ~known], classes)
    return numbers[first][place]


def _packed(values: np.ndarray) -> np.ndarray:
    """(1 or 3, ...) -> (...): one number for each code or colour."""
    return values[0] if len(values) == 1 else (values[0] << 16) + (values[1] << 8) + values[2]


def _unknown_values(name: str, values: np.ndarray, classes: ClassList) -> InputError:
    found, counts = np.unique(values, axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_NAMED]
    shown = ", ".join(f"{_shown(tuple(found[:, i].tolist()))} in {counts[i]} pixels" for i in order)
    more = found.shape[1] - len(order)
    what = "colour" if classes.coloured else "code"
    return InputError(
        f"{name}: {what}{'s' * (found.shape[1] > 1)} of no class: {shown}{f' and {more} more' if more else ''}. The "
        f"classes are {classes}. Add what is missing as a class, or as not labelled (`classes`, `ignored`)."
        + (" Many colours mean a lossy file, such as JPEG: take the original." if more else "")
    )


def label_values(source, part: PixelWindow) -> np.ndarray:
    """(1 or 3, h, w): the window (x0, y0, width, height) of an open raster of labels, without alpha; of a palette the
    indexes.

    Raises:
        InputError: another number of bands, or it is damaged.
    """
    bands = [i for i, colour in enumerate(source.colorinterp, 1) if colour != ColorInterp.alpha]
    bands = bands[:3] if len(bands) == 4 else bands
    if len(bands) not in (1, 3):
        raise InputError(f"{source.name}: has {source.count} bands; labels have 1, 3, or 4 with alpha.")
    try:
        with rasterio.Env(**GDAL_OPTIONS):
            return source.read(bands, window=Window(*part))
    except RasterioError as error:
        raise InputError(
            f"{source.name}: damaged or truncated, its pixels cannot be read ({error.__cause__ or error})."
        ) from None


def palette_colours(indexes: np.ndarray, colours: dict[int, tuple[int, ...]]) -> np.ndarray:
    """(3, h, w) colours of the (h, w) indexes of a palette, black where it has none."""
    table = np.zeros((max(max(colours), int(indexes.max(initial=0))) + 1, 3), np.uint8)
    for index, colour in colours.items():
        table[index] = colour[:3]
    return np.moveaxis(table[indexes], -1, 0)
