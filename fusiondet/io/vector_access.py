"""Vector files through GDAL. What a path or a file would do besides being read is refused before GDAL sees it.

That is: names that pyogrio takes for something else, links in GeoJSON that GDAL would fetch, stored queries in
GeoPackages that never end, shapefiles without the files that belong to them.
"""

import contextlib
import functools
import json
import mmap
import re
import sqlite3
import struct
import time
import urllib.parse
import warnings
from pathlib import Path

from fusiondet.buildings import clean_polygon
from fusiondet.errors import InputError

import numpy as np
import pyogrio
import shapely
from pyogrio.errors import GeometryError

# A stored query (view) is tried for so long, and may have so many rows.
VIEW_SECONDS, VIEW_ROWS = 20, 20_000_000
# What pyogrio splits paths at: archive!member, database;options.
_SPLIT_AT = "!;"
# The member "crs", also in other cases and with escapes, which GDAL understands.
_CRS_KEY = re.compile(rb"""(?i)["'](?:c|\\u00[46]3)(?:r|\\u00[57]2)(?:s|\\u00[57]3)["']\s*""")
_LONGEST_CRS = 1 << 16
_TABLES = "`ogr2ogr -f GPKG OUT.gpkg IN.gpkg LAYER` makes a table of it"
# Types of WKB that shapely does not know; like polygons, and like collections of polygons.
_RINGS, _COLLECTIONS = (3, 17), (4, 5, 6, 7, 15, 16)


def gdal_path(path: str | Path) -> str:
    """Return the absolute path of a local file as pyogrio has to be given it.

    Raises:
        InputError: pyogrio would split it, and read or write another file.
    """
    text = str(Path(path).absolute())
    found = next((c for c in _SPLIT_AT if c in text), None)
    if found:
        raise InputError(
            f'{path}: "{found}" in a path of a vector file means a part of another file to the library that reads '
            "and writes it. Rename the file or folder."
        )
    if Path(text).suffix.lower() == ".zip":
        raise InputError(f"{path}: an archive is not read here. Unpack it first.")
    return text


def list_layers(path: Path) -> list[tuple[str, str | None]]:
    """(name, type of geometry; None for a table without) of all layers.

    Raises:
        InputError: `path` is refused, see the top of this module, or its type of geometry cannot be read.
    """
    with _naming_geometry(path):
        return [(str(name), kind) for name, kind in pyogrio.list_layers(_checked(path))]


def layer_info(path: Path, layer: str | None = None, **options) -> dict:
    """`pyogrio.read_info` of a file. Raises as `list_layers`."""
    with _naming_geometry(path):
        return pyogrio.read_info(_checked(path), layer=layer, **options)


def read_frame(
    path: Path, layer: str | None = None, columns: list[str] | None = None, bbox=None, geometry: bool = True
):
    """Frame of a layer; what cannot be read as a geometry is None in it.

    Surfaces that are made of faces (TIN, PolyhedralSurface, also in collections) are what is seen of them from above.

    Raises:
        InputError: as of `list_layers`.
    """
    text = _checked(path)
    with warnings.catch_warnings(), _naming_geometry(path):
        warnings.filterwarnings(
            "ignore", message="Could not parse column"
        )  # GDAL guesses that mixed text is JSON
        warnings.filterwarnings("ignore", message="geometry column type")
        warnings.filterwarnings("ignore", message="Invalid WKB geometry")
        frame = pyogrio.read_dataframe(
            text, layer=layer, columns=columns, bbox=bbox, read_geometry=geometry, on_invalid="ignore"
        )
        if geometry and hasattr(frame, "geometry") and frame.geometry.isna().any():
            blobs = pyogrio.raw.read(text, layer=layer, columns=[], bbox=bbox)[2]
            if len(blobs) == len(frame):
                unread = np.flatnonzero(frame.geometry.isna())
                seen = [None if blobs[i] is None else seen_from_above(blobs[i]) for i in unread]
                geometries = frame.geometry.to_numpy().copy()
                geometries[unread] = seen
                frame = frame.set_geometry(type(frame.geometry)(geometries, index=frame.index, crs=frame.crs))
    return frame


def seen_from_above(wkb: bytes):
    """Union of all faces in a geometry of any type, 2-D; None when it has no face, or is not WKB."""
    try:
        rings, _ = _faces(wkb, 0)
        faces = [clean_polygon(shapely.Polygon(outer, holes)) for outer, *holes in rings]
    except (struct.error, ValueError, shapely.errors.ShapelyError):
        return None
    faces = [face for face in faces if face is not None]
    return shapely.union_all(faces) if faces else None


def _faces(wkb: bytes, at: int) -> tuple[list, int]:
    """([[outer ring, hole, ...], ...], where the geometry that begins at `at` ends), x and y alone."""
    order = "<" if wkb[at] else ">"
    (kind,) = struct.unpack_from(f"{order}I", wkb, at + 1)
    at += 9 if kind & 0x20000000 else 5
    flags, thousands = kind >> 30, (kind & 0x0FFFFFFF) // 1000
    size = 2 + (bin(flags).count("1") if flags else {0: 0, 1: 1, 2: 1, 3: 2}.get(thousands, 0))
    kind = (kind & 0x0FFFFFFF) % 1000

    def points(count: int, at: int):
        values = np.frombuffer(wkb, f"{order}f8", count * size, at).reshape(-1, size)
        return values[:, :2], at + 8 * count * size

    if kind == 1:
        return [], points(1, at)[1]
    (count,) = struct.unpack_from(f"{order}I", wkb, at)
    at += 4
    if kind == 2:
        return [], points(count, at)[1]
    if kind not in (*_RINGS, *_COLLECTIONS):
        raise ValueError(f"geometries of type {kind} have no plane faces")
    found = []
    for _ in range(count):
        if kind in _RINGS:
            (length,) = struct.unpack_from(f"{order}I", wkb, at)
            ring, at = points(length, at + 4)
            found.append(ring)
        else:
            inner, at = _faces(wkb, at)
            found += inner
    return ([found] if found else []) if kind in _RINGS else found, at


@contextlib.contextmanager
def _naming_geometry(path: Path):
    """Turn pyogrio's word on types of geometry that it does not list into what to do."""
    try:
        yield
    except GeometryError as error:
        raise InputError(
            f"{path}: {error} (15 is PolyhedralSurface, 16 TIN, 17 Triangle). Make polygons of it: "
            "`ogr2ogr -nlt MULTIPOLYGON OUT.gpkg IN`."
        ) from None


def _checked(path: Path) -> str:
    text, path = gdal_path(path), Path(path)
    stat = path.stat()
    _check_content(path, stat.st_size, stat.st_mtime_ns)
    return text


@functools.lru_cache(maxsize=64)
def _check_content(path: Path, size: int, mtime_ns: int) -> None:
    """Refuse what `path` holds; remembered until it changes."""
    with open(path, "rb") as f:
        head = f.read(64)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n\x1e").startswith(b"{"):
        _check_no_link(path)
    elif head.startswith(b"\0\0\x27\x0a"):
        _check_shapefile(path)
    elif head.startswith(b"SQLite format 3"):
        _check_views(path)


def _check_no_link(path: Path) -> None:
    """InputError when a member "crs" of GeoJSON is a link, which GDAL fetches on opening the file."""
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for key in _CRS_KEY.finditer(content):
            after = content[key.end() : key.end() + _LONGEST_CRS]
            if after[:1] not in (b":", b"/"):  # a value, not a key
                continue
            value = after[1:].lstrip()
            if after[:1] == b":" and value[:1] not in (b"{", b"/"):
                continue
            try:
                found, _ = json.JSONDecoder().raw_decode(value.decode("utf-8", "replace"))
                kind = str(found.get("type")).strip().lower()
            except (ValueError, RecursionError, AttributeError):
                kind = "unreadable"
            if kind not in ("name", "epsg", "ogc", "none"):
                raise InputError(
                    f'{path}: its member "crs" is of the type {kind[:40]!r}: links are not followed, expected '
                    '{"type": "name", "properties": {"name": "EPSG:n"}}. Take it out of the file, and name the CRS.'
                )


def _check_shapefile(path: Path) -> None:
    beside = {p.suffix.lower() for p in path.parent.glob(f"{_escaped(path.stem)}.*")}
    if ".shx" not in beside:
        raise InputError(
            f"{path}: a shapefile is several files, and {path.stem}.shx is not beside it. Copy it, too."
        )


def without_columns(path: Path) -> bool:
    """Whether `path` is a shapefile whose columns, a file of their own, are not beside it."""
    with open(path, "rb") as f:
        if f.read(4) != b"\0\0\x27\x0a":
            return False
    return not any(p.suffix.lower() == ".dbf" for p in path.parent.glob(f"{_escaped(path.stem)}.*"))


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _check_views(path: Path) -> None:
    """InputError when a layer is a stored query that does not come to an end, or has too many rows.

    All of them, whichever is to be read: GDAL looks at each of them on opening the file.
    """
    database = sqlite3.connect(f"file:{urllib.parse.quote(str(Path(path).absolute()))}?mode=ro", uri=True)
    name = ""
    try:
        layers = {row[0].lower() for row in database.execute("SELECT table_name FROM gpkg_contents")}
        views = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'view'")]
        views = [name for name in views if name.lower() in layers]
        deadline = time.monotonic() + VIEW_SECONDS
        database.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        for name in views:
            quoted = name.replace('"', '""')
            query = f'SELECT count(*) FROM (SELECT 1 FROM "{quoted}" LIMIT {VIEW_ROWS + 1})'
            if database.execute(query).fetchone()[0] > VIEW_ROWS:
                raise InputError(
                    f"{path}: its layer {name} is a stored query (view) of more than {VIEW_ROWS:,} rows. If it ends at "
                    f"all, {_TABLES}."
                )
    except sqlite3.DatabaseError as error:
        if "interrupted" in str(error):
            reason = f"does not end within {VIEW_SECONDS} s"
        elif "no such function" in str(error):
            reason = f"needs a spatial database ({error})"
        else:
            return  # damaged, as GDAL will say
        raise InputError(
            f"{path}: its layer {name} is a stored query (view) that {reason}. If it ends at all, {_TABLES}."
        ) from None
    finally:
        database.close()
