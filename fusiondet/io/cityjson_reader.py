"""Read CityJSON 1.0-2.0 and CityJSONSeq (https://www.cityjson.org/specs/): buildings with their surfaces in metres.

Map coordinates are (x, y, z) in the file's CRS after the `transform` of its quantised vertices. Parts belong to their
building: one `CityBuilding` per object of type Building. Geometry templates are not read.

A CityJSONSeq is read line by line, so `open_cityjson` needs the memory of one feature at a time. A CityJSON is one JSON
document, which is parsed as a whole: about ten times its size.
"""

import contextlib
import gc
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.buildings import clean_polygon
from fusiondet.errors import InputError
from fusiondet.files import parse_json, read_json
from fusiondet.io.crs import horizontal_crs, parse_crs

import numpy as np
import shapely

# Of a CityJSON, and of one line of a CityJSONSeq: either is parsed in memory.
MAX_FILE_BYTES = 4 << 30
SEQUENCE_SUFFIXES = (".jsonl", ".ndjson")
# How deep the list of surfaces lies in "boundaries".
_DEPTH = {"MultiSurface": 0, "CompositeSurface": 0, "Solid": 1, "MultiSolid": 2, "CompositeSolid": 2}


@dataclass
class Surface:
    """One planar face: `rings` are (N, 3) map coordinates, not closed, outer ring first, then holes.

    `kind` is its semantic type, e.g. "RoofSurface", "GroundSurface", "WallSurface"; "" when the file says nothing.
    """

    kind: str
    lod: str
    rings: list[np.ndarray]

    def polygon(self) -> shapely.Polygon:
        """Its outline seen from above (2-D; degenerate for a wall)."""
        return shapely.Polygon(self.rings[0][:, :2], [ring[:, :2] for ring in self.rings[1:]])


@dataclass
class CityBuilding:
    """A building: attributes of the building itself (a single part's fill gaps) and the surfaces of all parts."""

    id: str
    attributes: dict = field(default_factory=dict)
    surfaces: list[Surface] = field(default_factory=list)

    def footprint(self):
        """Polygon or MultiPolygon of LoD 0, else of the ground surfaces, else of all faces of the highest LoD.

        Without semantics that is the outline seen from above: every line down through a solid meets its underside.
        None when there is no face.
        """
        flat = [s for s in self.surfaces if s.lod.startswith("0")]
        ground = [s for s in flat if s.kind == "GroundSurface"]
        chosen = ground or [s for s in flat if s.kind != "RoofSurface"]
        return _union(chosen) or _union(self._of_kind("GroundSurface")) or _union(self._best(self.surfaces))

    def roof_surfaces(self) -> list[Surface]:
        """The roof faces of the highest level of detail that has some; [] when none is marked as roof."""
        return self._of_kind("RoofSurface")

    def _of_kind(self, kind: str) -> list[Surface]:
        return self._best([s for s in self.surfaces if s.kind == kind])

    @staticmethod
    def _best(surfaces: list[Surface]) -> list[Surface]:
        """Those of the highest level of detail above 0."""
        best = max((s.lod for s in surfaces if not s.lod.startswith("0")), default=None)
        return [s for s in surfaces if s.lod == best]

    def roof_height_m(self, ground_m: float | None = None) -> float | None:
        """Mean height of the roof by its area, above `ground_m` or, where that is None, the lowest point of the faces.

        None without roof surfaces, which LoD 0 and models without semantics do not have.
        """
        roof = self.roof_surfaces()
        areas = [s.polygon().area for s in roof]
        if not sum(areas):
            return None
        # The mean of a plane over a polygon is its height at the middle of it.
        top = sum(a * _height_at_middle(s) for a, s in zip(areas, roof, strict=True) if a) / sum(areas)
        if ground_m is None:
            ground_m = min(float(s.rings[0][:, 2].min()) for s in self.surfaces)
        return top - ground_m


@dataclass
class CityModel:
    """The buildings of a file, and what its head says.

    Attributes:
        buildings: in the file's order.
        crs: horizontal, "EPSG:n" or WKT; None when the file names none.
        release: the version that its metadata give the data set, e.g. "v2024.04.20"; None when they give none.
    """

    buildings: list[CityBuilding]
    crs: str | None
    release: str | None = None


def read_cityjson(path: Path) -> CityModel:
    """All buildings of a CityJSON (.json) or CityJSONSeq (.jsonl) file, with all their surfaces.

    Raises:
        InputError: missing, too large, not CityJSON, or a building refers to vertices or parts that are not there.
    """
    with open_cityjson(path) as model:
        return CityModel(list(model.buildings), model.crs, model.release)


@contextlib.contextmanager
def open_cityjson(
    path: Path,
    outlines_only: Callable[[dict], bool] = lambda attributes: False,
    crs: str | None = None,
):
    """Yield a `CityModel` whose `buildings` are an iterator, to be run through once inside the `with` block.

    Args:
        outlines_only: of a building with these attributes, leave out the surfaces that `CityBuilding.footprint` does
            not look at, which are most of them.
        crs: of the coordinates, whatever the file says; None: what it says.

    Raises:
        InputError: see `read_cityjson`; of what is wrong with a building, while iterating.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        if path.suffix.lower() in SEQUENCE_SUFFIXES:
            documents = stack.enter_context(contextlib.closing(_sequence(path)))
        else:
            stack.enter_context(_without_garbage_collection())
            documents = iter([_document(path)])
        head = next(documents, None)
        if not isinstance(head, dict) or head.get("type") != "CityJSON":
            kind = head.get("type") if isinstance(head, dict) else type(head).__name__
            message = f'{path}: expected CityJSON ("type": "CityJSON"), found {kind!r}.'
            # A CityJSONFeature without the first line of its file is not another kind of file.
            raise (InputError if str(kind).startswith("CityJSON") else NotCityJSON)(message)
        metadata = head.get("metadata") if isinstance(head.get("metadata"), dict) else {}
        crs = crs or _horizontal_crs(metadata.get("referenceSystem"), path)
        release = metadata.get("version")
        buildings = _all_buildings(head, documents, path, outlines_only)
        yield CityModel(buildings, crs, str(release) if release else None)


class NotCityJSON(InputError):
    """The file is JSON, but of another kind."""


def _document(path: Path):
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(
            f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB. Split it, or make a CityJSONSeq of it: `cjseq cat`."
        )
    return read_json(path)


@contextlib.contextmanager
def _without_garbage_collection():
    """While a document is in memory: millions of lists without a cycle, which would be searched for cycles over and
    over, the longer the more there are.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _sequence(path: Path) -> Iterator[dict]:
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as f:
            while line := f.readline(MAX_FILE_BYTES):
                number += 1
                if line.strip():
                    yield parse_json(line)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory, expected a CityJSONSeq file.") from None
    except ValueError as error:
        raise InputError(f"{path}: line {number} is not JSON ({error}). Is it complete?") from None


def _all_buildings(head: dict, rest, path: Path, outlines_only: Callable) -> Iterator[CityBuilding]:
    transform = head.get("transform")
    document = head
    while document is not None:
        if not isinstance(document, dict):
            raise InputError(
                f"{path}: expected a CityJSONFeature on every line, found {type(document).__name__}."
            )
        transform = document.get("transform") or transform
        yield from _buildings(document, transform, path, outlines_only)
        document = next(rest, None)


def _buildings(document: dict, transform, path: Path, outlines_only: Callable) -> Iterator[CityBuilding]:
    objects = document.get("CityObjects") or {}
    try:
        vertices = np.asarray(document.get("vertices") or [], dtype=float).reshape(-1, 3)
        if transform:
            with np.errstate(all="ignore"):  # what overflows is found below
                vertices = vertices * transform["scale"] + transform["translate"]
        if not np.isfinite(vertices).all():
            raise ValueError("a coordinate is NaN or infinite")
        houses = [(name, parent) for name, parent in objects.items() if parent.get("type") == "Building"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: its vertices, its transform or its CityObjects are broken ({error!r}). Validate it with cjio."
        ) from None
    for name, parent in houses:
        try:
            parts = [objects[child] for child in parent.get("children") or ()]
            attributes = dict(parts[0].get("attributes") or {}) if len(parts) == 1 else {}
            attributes.update({k: v for k, v in (parent.get("attributes") or {}).items() if v is not None})
            alone = outlines_only(attributes)
            surfaces = [
                s
                for part in (parent, *parts)
                for g in part.get("geometry") or ()
                for s in _surfaces(g, vertices, alone)
            ]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path}: building {name!r} is broken ({error!r}). Validate it with cjio."
            ) from None
        yield CityBuilding(name, attributes, surfaces)


def _surfaces(geometry: dict, vertices: np.ndarray, outlines_only: bool) -> Iterator[Surface]:
    depth = _DEPTH.get(geometry["type"])
    if depth is None:  # points, lines, templates: no face
        return
    lod = str(geometry.get("lod", ""))
    semantics = geometry.get("semantics") or {}
    kinds = [surface["type"] for surface in semantics.get("surfaces") or ()]
    # Without a ground among them, the footprint is that of all faces.
    everything = not outlines_only or lod.startswith("0") or "GroundSurface" not in kinds
    for rings, value in _faces(
        geometry["boundaries"] or [], semantics.get("values") if kinds else None, depth
    ):
        if value is not None and value < 0:
            raise ValueError(f"semantic value {value}")
        kind = "" if value is None else kinds[value]
        if not rings:
            raise ValueError("a surface without a ring")
        if everything or kind == "GroundSurface":
            yield Surface(kind, lod, [_ring(ring, vertices) for ring in rings])


def _ring(ring: list[int], vertices: np.ndarray) -> np.ndarray:
    if len(ring) < 3 or min(ring) < 0 or max(ring) >= len(vertices):
        raise ValueError(f"ring {ring[:5]}... of {len(ring)} vertices among {len(vertices)}")
    return vertices[ring]


def _faces(boundaries: list, values: list | None, depth: int) -> Iterator[tuple[list, int | None]]:
    """Each face with its semantic value; None for values of a solid, a shell or a face goes down to the faces."""
    if values is None:
        values = [None] * len(boundaries)
    for inner, value in zip(boundaries, values, strict=True):
        if inner is None:
            continue
        if depth:
            yield from _faces(inner, value, depth - 1)
        else:
            yield inner, value


def _height_at_middle(surface: Surface) -> float:
    """Height of the plane of a face at the middle of its outline, by least squares through its corners."""
    corners = surface.rings[0]
    middle = surface.polygon().centroid
    flat = np.column_stack([corners[:, :2] - (middle.x, middle.y), np.ones(len(corners))])
    return float(np.linalg.lstsq(flat, corners[:, 2], rcond=None)[0][2])


def _union(surfaces: list[Surface]):
    polygons = [clean_polygon(s.polygon()) for s in surfaces]
    polygons = [p for p in polygons if p is not None]
    if len(polygons) < 2:
        return polygons[0] if polygons else None
    return clean_polygon(shapely.unary_union(polygons))


def _horizontal_crs(reference, path: Path) -> str | None:
    """The horizontal part: "EPSG:28992" for "https://…/EPSG/0/7415", "urn:ogc:def:crs:EPSG::7415" or "EPSG:7415".

    Compounds are "urn:ogc:def:crs,crs:EPSG::28992,crs:EPSG::5709", "EPSG:28992+5709" or a list of the two.
    """
    if isinstance(reference, list):
        reference = reference[0] if reference else None
    if not reference:
        return None
    # The first of a compound is the horizontal one.
    code = re.search(r"(?i)EPSG[^,+]*?(?:/|:|::|/0/)(\d{4,6})(?!\d)", str(reference))
    name = f"EPSG:{code.group(1)}" if code else str(reference)
    crs = horizontal_crs(parse_crs(name, f"{path}: reference system"))
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else crs.to_wkt()
