"""What a converter has to know and to say: where tiles are, what becomes of them, and what is wrong with the data.

A converter is a `Source`: it knows the layout of one kind of data and nothing else. `conversion.convert` does the rest.
"""

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fusiondet.buildings import Tile
from fusiondet.converters.reports import Problems, Report
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from fusiondet.io.crs import transformer
from fusiondet.io.rasters import PixelWindow

import numpy as np
import shapely
from affine import Affine
from pyproj import Transformer


@dataclass(frozen=True)
class Place:
    """Where a tile is, before its labels and pixels are read.

    Attributes:
        name: for messages and file names; unique in its source, together with the window.
        image: which image of its source, as the source counts them.
        window: (x0, y0, width, height) in pixels of the image.
        transform: pixel of the *image* -> map as six numbers; None when it has no georeference.
        crs: "EPSG:n" or WKT; None when unknown.
        split: the one that the data prescribe; None: splits are dealt out.
        group: what has to stay in one split where there is no ground to go by, e.g. a city.
    """

    name: str
    image: int
    window: PixelWindow
    transform: tuple[float, ...] | None = None
    crs: str | None = None
    split: str | None = None
    group: str | None = None

    def ground(self, crs: str | None) -> shapely.Polygon:
        """Its outline on the map, in `crs` where that is given and differs from its own.

        Raises:
            ValueError: it has no georeference.
        """
        if self.transform is None:
            raise ValueError(f"{self.name} is nowhere on the map")
        x0, y0, width, height = self.window
        moved = crs is not None and self.crs is not None and self.crs != crs
        # In another CRS an edge is bent, so that it goes there in steps.
        steps = np.linspace(0, 1, 11)[:-1] if moved else np.zeros(1)
        sides = (
            (steps, 0 * steps),
            (0 * steps + 1, steps),
            (1 - steps, 0 * steps + 1),
            (0 * steps, 1 - steps),
        )
        u, v = np.concatenate(sides, axis=1)
        x, y = Affine(*self.transform) * (x0 + u * width, y0 + v * height)
        if moved:
            x, y = _transformer(self.crs, crs).transform(x, y)
        return shapely.Polygon(np.column_stack([x, y]))


@dataclass
class Made:
    """One tile, or why there is none.

    Attributes:
        tile: its file names relative to the data set's folder; None: left out, `counts` say why.
        counts: "tiles", "labels", "heights", "unknown_heights" or a heading of the source's own -> what -> how many.
        notes: sentences for the user; the same sentence is shown once.
    """

    tile: Tile | None
    counts: dict[str, Counter] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Source(Protocol):
    """What a converter has to know: one kind of data. It is sent to other processes, so it holds nothing open.

    Attributes:
        bands: of the data set. nodata: number that means no data where a raster declares none, or None.
    """

    bands: BandSpec
    nodata: float | None

    def files(self) -> Iterable[Path]:
        """Files that the result depends on: when one of them changes, the conversion is not up to date."""
        ...

    def places(self, problems: Problems) -> list[Place]:
        """Where the tiles are, always in the same order. Called once, first."""
        ...

    def make(self, place: Place, out: Path, problems: Problems) -> Made:
        """The tile at `place`, whose window may be smaller than `places` said. Rasters of its own go under `out`.

        Raises:
            InputError: it cannot be made.
        """
        ...

    def finish(self, sample: Dataset, report: "Report") -> None:
        """Look at the finished data set, of which `sample` has some tiles with buildings; add to the notes of `report`.

        Raises:
            InputError: it cannot be used as it is, and is not written.
        """
        ...

    def info(self) -> dict:
        """Facts for `info` of the annotation files: licence, source, what outlines and heights are."""
        ...


def link(out: Path, name: str, target: Path) -> str:
    """Make `out/name` a link to `target` (a raster or a folder of rasters), and return `name`.

    Data sets refer to rasters by names below their own folder, so that a JSON from elsewhere cannot point anywhere.

    Raises:
        InputError: the file system knows no links.
    """
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.symlink_to(target.resolve())
    except FileExistsError:  # another tile of the same raster, or another process
        pass
    except OSError as error:
        raise InputError(
            f"{path}: cannot be made a link to {target} ({error.strerror}). Copy the pixels instead: `cut=True`."
        ) from None
    return name


@functools.lru_cache(maxsize=32)
def _transformer(crs: str, to_crs: str) -> Transformer:
    return transformer(crs, to_crs)
