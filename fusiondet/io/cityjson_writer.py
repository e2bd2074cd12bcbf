"""Buildings as CityJSON 2.0 (https://www.cityjson.org/specs/2.0.1/): a block (LoD 1.2) for each, or for each part.

    Building      attributes; a Solid of lod "1.2", with its faces told apart as ground, roof and wall
    BuildingPart  the same for each piece where an outline is in several, or a courtyard touches its wall in a point

A building of unknown height, and one without ground beneath it where a DTM is given, is kept as an outline (a
MultiSurface of lod "0"). Coordinates are whole millimetres (`transform`), x east first whatever the CRS says.

Attributes, null where unknown: the columns of `fusiondet.io.layers`, and

    height_stat     text     which statistic of the roof height_m is, e.g. "p70"; null where nothing says
    measuredHeight  number   = height_m, only where that is the roof's maximum, which CityGML means by it
    ground_m        number   elevation of the block's lower face: median of the DTM under the outline, or around it

Without a DTM every block stands on z = 0: `metadata.elevation.from` is then "relative" and ground_m null. The reference
system has a vertical part where the DTM's, or the given one, has an EPSG code together with the map's.

`metadata` holds more than CityJSON names: `elevation` (from, vertical_crs) and `provenance`.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.files import finite_or_none
from fusiondet.geometry.solids import apart, extrude
from fusiondet.io.crs import check_crs, crs_text, not_in_metres, parse_crs
from fusiondet.io.layers import NUMBERS
from fusiondet.io.terrain import GroundRaster

import numpy as np
import shapely
from pyproj import CRS
from pyproj.crs import CompoundCRS
from shapely.geometry.polygon import orient

# Metres per unit of the integer vertices.
SCALE_M = 0.001
LOD_BLOCK, LOD_OUTLINE = "1.2", "0"
# Between a building's name and the number of its part.
PART = "#"
_SURFACES = [{"type": "GroundSurface"}, {"type": "RoofSurface"}, {"type": "WallSurface"}]

Ground = Callable[[np.ndarray], np.ndarray]


class CityModelWriter:
    """What `BuildingWriter` needs to write CityJSON: first `prepare` every row, then `write` them all.

    A context manager that closes the DTM.

    Attributes:
        notes: sentences for the user about buildings that got no block; complete after `write`.
    """

    def __init__(self, path: Path, crs: CRS, dtm: Path | Ground | None, vertical_crs: str | CRS | None):
        """For `dtm` and `vertical_crs` see `BuildingWriter`.

        Raises:
            InputError: see `check_crs` and `GroundRaster`; also a vertical CRS that is none, or none in metres.
        """
        self._horizontal, self._dtm, self.notes = check_crs(crs, path), dtm, []
        if dtm is None and vertical_crs is not None:
            raise InputError(
                f"{path}: a vertical CRS says what elevations count from, and there are none without a DTM. "
                "Pass `dtm` as well."
            )
        if vertical_crs is None and crs.is_compound:
            vertical_crs = next((part for part in crs.sub_crs_list if part.is_vertical), None)
        self._vertical = None if dtm is None or vertical_crs is None else _vertical(vertical_crs, path)
        self._low, self._high = np.full(3, np.inf), np.full(3, -np.inf)
        self._files = ExitStack()

    def __enter__(self):
        if isinstance(self._dtm, str | Path):
            self._dtm = self._files.enter_context(GroundRaster(self._dtm, self._horizontal))
            self.notes += self._dtm.notes
            if self._vertical is None and self._dtm.vertical_crs:
                self._vertical = CRS.from_user_input(self._dtm.vertical_crs)
        return self

    def __exit__(self, *_):
        self._files.close()

    def prepare(self, polygons: np.ndarray, heights_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Outlines on the grid of millimetres (empty where they are smaller), and (N,) ground, NaN = unknown.

        Args:
            polygons: (N,) in map coordinates. heights_m: (N,), NaN = unknown.
        """
        snapped = shapely.set_precision(polygons, SCALE_M)
        ground_m = (
            np.zeros(len(polygons)) if self._dtm is None else np.asarray(self._dtm(polygons), dtype=float)
        )
        bounds = shapely.bounds(snapped).reshape(-1, 4)
        for values, axis in ((bounds[:, :2], slice(0, 2)), (ground_m[:, None], slice(2, 3))):
            self._low[axis] = np.fmin(self._low[axis], np.fmin.reduce(values, axis=0, initial=np.inf))
        tops_m = ground_m + np.nan_to_num(heights_m)
        for values, axis in ((bounds[:, 2:], slice(0, 2)), (tops_m[:, None], slice(2, 3))):
            self._high[axis] = np.fmax(self._high[axis], np.fmax.reduce(values, axis=0, initial=-np.inf))
        return snapped, ground_m

    def write(
        self, target: Path, batches: Iterable[tuple[list[str], np.ndarray, list[dict]]], metadata: dict
    ) -> int:
        """Write the file, in the memory of a batch; as a CityJSONSeq where the name ends in "l".

        Args:
            batches: (names, polygons as prepared, rows) each: a row has the columns of `fusiondet.io.layers` and
                "height_stat" and "ground_m", NaN or None where unknown.
            metadata: stored as "provenance".

        Returns:
            Number of buildings written.
        """
        head = self._head(metadata)
        blocks = _Blocks(head["transform"]["translate"], metadata.get("height_stat"), self._dtm is not None)
        put = _write_sequence if target.name.lower().endswith("l") else _write_document
        count = put(target, head, batches, blocks)
        for found, what in (
            (blocks.without_height, "have no known height"),
            (blocks.without_ground, "have no ground beneath them in the DTM"),
        ):
            if found:
                self.notes.append(
                    f"{found} of {count} buildings {what}: written as outlines without a block."
                )
        if isinstance(self._dtm, GroundRaster) and self._dtm.from_around:
            self.notes.append(
                f"{self._dtm.from_around} of {count} buildings have no data beneath them in the DTM: they stand on the "
                "ground around their outline."
            )
        if blocks.without_area:
            self.notes.append(
                f"{blocks.without_area} of {count} buildings are smaller than a millimetre: no outline."
            )
        return count

    def _head(self, metadata: dict) -> dict:
        """The document's members before its objects."""
        known = np.isfinite(self._low) & np.isfinite(self._high)
        low, high = np.where(known, self._low, 0.0), np.where(known, self._high, 0.0)
        code, described = self._reference()
        facts = {
            "referenceSystem": f"https://www.opengis.net/def/crs/EPSG/0/{code}",
            "title": "Buildings",
            "elevation": {"from": "relative" if self._dtm is None else "dtm", "vertical_crs": described},
            "provenance": metadata,
        }
        if known[:2].all():
            facts = {"geographicalExtent": [round(float(v), 3) for v in (*low, *high)], **facts}
        # Whole metres, so that the vertices' grid goes through zero.
        translate = [float(math.floor(v)) for v in low]
        transform = {"scale": [SCALE_M] * 3, "translate": translate}
        return {"type": "CityJSON", "version": "2.0", "metadata": facts, "transform": transform}

    def _reference(self) -> tuple[int, str | None]:
        """(EPSG code of the reference system, the vertical CRS as text)."""
        code = int(crs_text(self._horizontal).split(":")[1])
        if self._vertical is None:
            return code, None
        name = f"{self._horizontal.name} + {self._vertical.name}"
        both = CompoundCRS(name, [self._horizontal, self._vertical]).to_epsg()
        if both and [p.to_epsg() for p in CRS.from_epsg(both).sub_crs_list] == [
            code,
            self._vertical.to_epsg(),
        ]:
            code = both
        return code, crs_text(self._vertical)


def _vertical(crs: str | CRS, path: Path) -> CRS:
    crs = parse_crs(crs, f"{path}: vertical CRS")
    crs = next((part for part in crs.sub_crs_list if part.is_vertical), crs)
    if not crs.is_vertical or not_in_metres(crs.axis_info[0]) or crs.axis_info[0].direction != "up":
        raise InputError(f"{path}: {crs.name} is not a vertical CRS in metres, up. For NAP pass EPSG:5709.")
    return crs


class _Blocks:
    """Objects of buildings, and how many got no block."""

    def __init__(self, translate: list[float], height_stat: str | None, has_dtm: bool):
        self._translate, self._height_stat, self._has_dtm = np.array(translate), height_stat, has_dtm
        self.without_height = self.without_ground = self.without_area = 0

    def in_units(self, polygons: np.ndarray) -> np.ndarray:
        return shapely.transform(polygons, lambda xy: np.round((xy - self._translate[:2]) / SCALE_M))

    def objects(self, name: str, polygon, row: dict, vertex: Callable[[tuple], int]) -> dict[str, dict]:
        """Name -> CityObject: the building, then its parts. `polygon` is in units, `vertex` numbers a place."""
        attributes = self._attributes(row)
        building = {"type": "Building", "attributes": attributes}
        height_m, ground_m = attributes["height_m"], finite_or_none(row["ground_m"])
        self.without_area += polygon.is_empty
        if polygon.is_empty:
            return {name: building}
        low = 0 if ground_m is None else round((ground_m - self._translate[2]) / SCALE_M)
        if height_m is None or ground_m is None:
            self.without_height += height_m is None
            self.without_ground += height_m is not None
            return {name: {**building, "geometry": [_outline(polygon, low, vertex)]}}
        high = low + max(1, round(height_m / SCALE_M))
        solids = [extrude(p, low, high) for part in shapely.get_parts(polygon) for p in apart(part, 1)]
        geometries = [[_solid(solid, vertex)] for solid in solids]
        if len(geometries) == 1:
            return {name: {**building, "geometry": geometries[0]}}
        parts = {
            f"{name}{PART}{i}": {"type": "BuildingPart", "parents": [name], "geometry": geometry}
            for i, geometry in enumerate(geometries, start=1)
        }
        return {name: {**building, "children": list(parts)}, **parts}

    def _attributes(self, row: dict) -> dict:
        values = {"id": row["id"], **{k: finite_or_none(row[k]) for k in (*NUMBERS, "area_m2", "volume_m3")}}
        values["height_stat"] = row["height_stat"] or self._height_stat
        values["ground_m"] = finite_or_none(row["ground_m"]) if self._has_dtm else None
        if values["height_stat"] == "max" and values["height_m"] is not None:
            values["measuredHeight"] = values["height_m"]
        return values


def _solid(solid, vertex) -> dict:
    numbers = [vertex(tuple(map(int, place))) for place in solid.vertices]
    faces = [[[numbers[i] for i in ring] for ring in rings] for rings in solid.faces]
    semantics = {"surfaces": _SURFACES, "values": [solid.kinds]}
    return {"type": "Solid", "lod": LOD_BLOCK, "boundaries": [faces], "semantics": semantics}


def _outline(polygon, z: int, vertex) -> dict:
    """Seen from below, as ground surfaces are."""
    faces = [
        [
            [vertex((int(x), int(y), z)) for x, y in ring.coords[:-1]]
            for ring in (part.exterior, *part.interiors)
        ]
        for part in (orient(p, sign=-1) for p in shapely.get_parts(polygon))
    ]
    semantics = {"surfaces": _SURFACES[:1], "values": [0] * len(faces)}
    return {"type": "MultiSurface", "lod": LOD_OUTLINE, "boundaries": faces, "semantics": semantics}


class _Vertices:
    """Numbers for places, from `start` on; each place once."""

    def __init__(self, start: int = 0):
        self._numbers: dict[tuple, int] = {}
        self.start = start

    def __call__(self, place: tuple) -> int:
        return self._numbers.setdefault(place, self.start + len(self._numbers))

    def __len__(self) -> int:
        return len(self._numbers)

    def text(self) -> str:
        return ",".join(f"[{x},{y},{z}]" for x, y, z in self._numbers)


def _write_document(target: Path, head: dict, batches, blocks: _Blocks) -> int:
    """One JSON document. Neighbours share vertices where they come in one batch: the file can be of any length."""
    count, places = 0, 0
    with open(target, "w", encoding="utf-8") as f, open(target.with_suffix(".vertices"), "w+") as later:
        f.write(_text(head)[:-1] + ',\n"CityObjects":{')
        for names, polygons, rows in batches:
            vertices = _Vertices(places)
            for name, polygon, row in zip(names, blocks.in_units(polygons), rows, strict=True):
                f.write(",\n" if count else "\n")
                f.write(_text(blocks.objects(name, polygon, row, vertices))[1:-1])
                count += 1
            later.write((",\n" if places and len(vertices) else "") + vertices.text())
            places += len(vertices)
        f.write('},\n"vertices":[')
        later.seek(0)
        shutil.copyfileobj(later, f)
        f.write("]}\n")
    return count


def _write_sequence(target: Path, head: dict, batches, blocks: _Blocks) -> int:
    """A line with the head, and one for each building, with its own vertices."""
    count = 0
    with open(target, "w", encoding="utf-8") as f:
        f.write(_text({**head, "CityObjects": {}, "vertices": []}) + "\n")
        for names, polygons, rows in batches:
            for name, polygon, row in zip(names, blocks.in_units(polygons), rows, strict=True):
                vertices = _Vertices()
                objects = blocks.objects(name, polygon, row, vertices)
                feature = {"type": "CityJSONFeature", "id": name, "CityObjects": objects}
                f.write(f'{_text(feature)[:-1]},"vertices":[{vertices.text()}]}}\n')
                count += 1
    return count


def _text(value) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
