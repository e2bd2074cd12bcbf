"""Read building layers: GeoPackage, GeoJSON, shapefile, FlatGeobuf, GeoParquet, CityJSON and CityJSONSeq.

One feature is one `Building`, in the order of the file; parts are joined on request only. Heights are metres above
ground: where a ground field is given it is subtracted, and where nothing tells what a number is measured from, the
building's `height_datum` is "unverified". What is special about 3DBAG's files is in `threedbag`.
"""

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.buildings import Building, clean_height_m, clean_polygon, is_tangled
from fusiondet.errors import InputError, unknown_name
from fusiondet.geometry.overlaps import enclosing
from fusiondet.io import threedbag
from fusiondet.io.building_parts import PARTS_INSIDE, join_buildings, without_parts
from fusiondet.io.crs import check_placed, parse_crs, transformer
from fusiondet.io.height_columns import column_units, refuse_identifier, unit_notes
from fusiondet.io.threedbag_filters import Filters, Inspector
from fusiondet.io.vector_access import without_columns
from fusiondet.io.vector_records import HEIGHT_OF_FACES, ID_FIELDS, MEASURED_HEIGHT, Records, read_records

import numpy as np
import shapely

LOWEST_ROOF_M = -3.0
# Attribute of a building whose height is unknown: why, in the words of `Layer.reasons`.
UNKNOWN_HEIGHT = "unknown_height"
# What `Layer.counts` calls outlines that lie in another one.
INSIDE = "inside another outline"


@dataclass(eq=False)
class Layer:
    """A read layer.

    Attributes:
        buildings: in the file's order and CRS, without those that have no outline.
        crs: "EPSG:n" or WKT (horizontal); None when the file has none.
        reasons: why heights are unknown -> number of buildings: "missing", "not a number", "negative", "zero",
            "absurd", "no ground"; empty when no height field was asked for.
        geometry: what happened to outlines -> number of features: "no geometry", "no area", "sides that cross
            too often" (see `buildings.is_tangled`; all three left out), "repaired".
        height_field, ground_field: the columns that heights came from; None when there are none.
        id_field: the column of identifiers; None when buildings are only numbered.
        release: of 3DBAG, e.g. "2024.04.20"; None when nothing tells.
        counts: what else happened -> number of buildings, e.g. "dropped: greenhouse", "identifiers of several rows".
        checks: what 3DBAG says against its buildings -> number, whatever was done about them (see
            `threedbag_filters.CHECKS`); empty for other files.
        notes: sentences for the user.
    """

    buildings: list[Building]
    crs: str | None
    reasons: Counter = field(default_factory=Counter)
    geometry: Counter = field(default_factory=Counter)
    height_field: str | None = None
    ground_field: str | None = None
    id_field: str | None = None
    release: str | None = None
    counts: Counter = field(default_factory=Counter)
    checks: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def read_layer(
    path: Path,
    height_field: str | None = None,
    ground_field: str | None = None,
    layer: str | None = None,
    *,
    statistic: str = threedbag.DEFAULT_STATISTIC,
    height_stat: str | None = None,
    height_datum: str | None = None,
    outline: str = "footprint",
    extent: tuple[Sequence[float], str] | None = None,
    signed: bool = False,
    join_parts: bool = False,
    filters: Filters | None = None,
    height_unit: str | None = None,
    crs: str | None = None,
) -> Layer:
    """Buildings of a vector file.

    Args:
        path: local file; the format is told by its first bytes.
        height_field: column of heights, or of roof elevations when `ground_field` is given. None: the first that the
            file has of 3DBAG's columns (`statistic`, ground subtracted), "measuredHeight" of CityGML, and for CityJSON
            the mean of the roof surfaces above "TerrainHeight" or the lowest face; else every height is unknown.
        ground_field: column of ground elevations to subtract; None: known for 3DBAG's columns, else nothing.
        layer: which layer of a file with several. None for 3DBAG's GeoPackage: "pand", whole buildings, with the roof
            elevations of "lod12_2d" where it has none of its own. For one of its layers of roof parts, such as
            "lod22_2d", the ground comes from "pand".
        statistic: which of 3DBAG's roof statistics, for `height_field` None.
        height_stat, height_datum, outline: recorded with every building. `height_datum` None: "ground" where a ground
            elevation was subtracted, else "unverified".
        extent: ((left, bottom, right, top), crs): read only what is near it.
        signed: see `height_above_ground_m`.
        join_parts: make one building of the rows with one identifier: their union, with heights weighted by area.
        filters: what to do with buildings that 3DBAG says something against; None: count them only.
        height_unit: m, ft or us-ft: of `height_field` and `ground_field` where their names state none; None: what the
            vertical axis of the CRS states, else metres. Heights are converted, and `notes` says so.
        crs: of the coordinates, whatever the file says; None: what it says.

    Raises:
        InputError: missing, unreadable or of another format; no such layer; no such column (the columns are listed);
            a height field that is an identifier; heights that may be in feet, by a CRS in feet, and nothing states it;
            columns whose cut names have several meanings; a filter that the columns do not serve; a release of 3DBAG
            whose elevations are known to be wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: {'is a directory, expected a vector file' if path.is_dir() else 'no such file'}."
        )
    wanted = _wanted((height_field, ground_field))
    find_fields = functools.partial(_height_fields, path, height_field, ground_field, statistic)
    source = read_records(path, layer, wanted, find_fields, extent, crs)
    named_by_user = height_field is not None
    height_field, ground_field = find_fields(source.columns)
    units = {}
    if named_by_user and source.rows and height_field not in source.columns and without_columns(path):
        raise InputError(
            f"{path}: {path.stem}.dbf, which holds the columns of a shapefile, is not beside it, so there is no "
            f"{height_field!r}. Copy it, too."
        )
    if named_by_user:
        refuse_identifier(path, height_field, [row.get(height_field) for _, row in source.rows], ground_field)
        fields = [f for f in (height_field, ground_field) if f is not None]
        units = column_units(path, fields, height_unit, source)
    elif height_field in _OF_CITYGML:
        units = column_units(path, [height_field], height_unit, source)
        named = f"{height_field} ({_OF_CITYGML[height_field]})"
        source.notes.append(f"{path.name}: heights are {named}. Name `height_field` for others.")
    result = Layer(
        [],
        source.crs,
        height_field=height_field,
        ground_field=ground_field,
        id_field=source.id_field,
        release=source.release,
        notes=source.notes + unit_notes(path, units, height_unit),
    )
    metres = {name: unit.metres for name, unit in units.items() if not unit.is_metre}
    if source.is_table and not named_by_user:
        result.notes += _check_release(path, source, height_field)
    if height_field is None and (roofs := threedbag.roof_fields(source.columns)):
        result.notes.append(
            f"{path.name}: {', '.join(roofs)} are elevations, but not both {statistic} and the ground are among its "
            "columns: heights are unknown. Name `height_field` and `ground_field`."
        )
    inspector = _inspector(path, source, filters or Filters())
    facts = {
        "height_source": " - ".join(f for f in (height_field, ground_field) if f),
        "height_stat": height_stat
        or _OF_CITYGML.get(height_field)
        or (height_field and threedbag.statistic_of(height_field)),
        "height_datum": height_datum
        or (
            "ground" if ground_field or (height_field in _OF_CITYGML and not named_by_user) else "unverified"
        ),
    }
    rows = _rows(source, result, inspector, {"outline": outline}, facts, signed, metres)
    _put_east_first(path, rows, result)
    _count_repeated(path, rows, result, join_parts)
    if join_parts:
        rows = _joined(rows, result)
    for _, building, checks in rows:
        _judge(building, checks, inspector, result)
    return result


# Heights above ground that CityGML defines, or that follow from a model's faces -> what they are of the roof.
_OF_CITYGML = {MEASURED_HEIGHT: "max", HEIGHT_OF_FACES: "mean"}


def _put_east_first(path: Path, rows: list, result: Layer) -> None:
    """Swap x and y of all outlines, and say so, where only that brings them to where their CRS is used.

    Some writers keep the order of axes that a geographic CRS has by law, latitude first.
    """
    if not result.crs or not rows:
        return
    crs = parse_crs(result.crs, f"{path}: CRS")
    area = crs.area_of_use
    if not crs.is_geographic or area is None or area.west > area.east:
        return
    x, y = shapely.get_coordinates(shapely.centroid([row[1].polygon for row in rows])).T
    box = shapely.box(*area.bounds)
    if shapely.contains_xy(box, x, y).any() or not shapely.contains_xy(box, y, x).all():
        return
    for _, building, _ in rows:
        building.polygon = clean_polygon(shapely.transform(building.polygon, lambda xy: xy[:, ::-1]))
    result.notes.append(
        f"{path.name}: as they stand, its coordinates lie outside of where {crs.name} is used; with x and y swapped "
        "(latitude came first) they lie inside, and that is how they are taken."
    )


# (identifier or None, building, the checks that apply to it)
_Row = tuple[str | int | float | None, Building, list[str]]


def _rows(
    source: Records,
    result: Layer,
    inspector: Inspector,
    common: dict,
    facts: dict,
    signed: bool,
    metres: dict[str, float],
) -> list[_Row]:
    """One row per feature with an outline; buildings get `common`, those of known height `facts` as well.

    Args:
        metres: column -> metres that 1 of it is, where it is not a metre.
    """
    known = threedbag.attribute_columns(source.columns)
    roof, ground = result.height_field, result.ground_field
    rows = []
    for number, (geometry, attributes) in enumerate(source.rows):
        polygon = _outline(geometry, result.geometry)
        if polygon is None:
            continue
        name = _identifier(attributes, source.id_field)
        building = Building(polygon, id=number if name is None else name, **common)
        if roof is not None:
            attributes = attributes | _in_metres(attributes, metres)
            reason = threedbag.implausible(attributes, roof, ground, known)
            if reason is None:
                building.height_m, reason = height_above_ground_m(attributes, roof, ground, signed)
            if building.height_m is not None:
                vars(building).update(facts)
            else:
                building.attributes[UNKNOWN_HEIGHT] = reason
        rows.append((name, building, inspector.checks(attributes)))
    return rows


def _in_metres(attributes: dict, metres: dict[str, float]) -> dict[str, float]:
    """The columns of `metres` that hold numbers, in metres."""
    found = {}
    for name, factor in metres.items():
        with contextlib.suppress(TypeError, ValueError):  # counted as it stands
            found[name] = float(_plain(attributes.get(name))) * factor
    return found


def _inspector(path: Path, source: Records, filters: Filters) -> Inspector:
    if not source.rows:  # an empty layer has no columns to miss
        filters = Filters()
    try:
        return Inspector(source.columns, filters)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _check_release(path: Path, source: Records, height_field: str | None) -> list[str]:
    try:
        doubt = threedbag.check_release(source.release, height_field, source.columns)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return [f"{path.name}: {doubt}"] if doubt else []


def _count_repeated(path: Path, rows: list[_Row], result: Layer, join_parts: bool) -> None:
    repeated = {name: n for name, n in Counter(row[0] for row in rows).items() if n > 1 and name is not None}
    if not repeated:
        return
    result.counts["identifiers of several rows"] = len(repeated)
    if not join_parts:
        few = ", ".join(f"{name} ({n})" for name, n in list(repeated.items())[:3])
        result.notes.append(
            f"{path.name}: {len(repeated)} identifiers stand in several rows, e.g. {few}; each row is a building of "
            "its own. Join them with `join_parts=True`."
        )


def _joined(rows: list[_Row], result: Layer) -> list[_Row]:
    """The rows with one of each identifier, where its first row was. Rows without an identifier stay as they are."""
    groups: dict = {}
    for number, row in enumerate(rows):
        groups.setdefault(("row", number) if row[0] is None else row[0], []).append(row)
    joined = []
    for group in groups.values():
        names, buildings, checks = zip(*group, strict=True)
        checks = dict.fromkeys(check for one in checks for check in one)
        joined.append((names[0], join_buildings(buildings), list(checks)))
    result.counts["rows joined to others"] = len(rows) - len(joined)
    return joined


def _judge(building: Building, checks: list[str], inspector: Inspector, result: Layer) -> None:
    """Put `building` into `result` as its filters want it, and count."""
    result.checks.update(checks)
    action, check = inspector.verdict(checks)
    if action == "drop":
        result.counts[f"dropped: {check}"] += 1
        return
    if action == "unknown" and building.height_m is not None:
        result.counts[f"height set unknown: {check}"] += 1
        building = dataclasses.replace(
            building,
            height_m=None,
            height_source=None,
            height_stat=None,
            height_datum=None,
            attributes={**building.attributes, UNKNOWN_HEIGHT: check},
        )
    if UNKNOWN_HEIGHT in building.attributes:
        result.reasons[building.attributes[UNKNOWN_HEIGHT]] += 1
    result.buildings.append(building)


def height_above_ground_m(
    attributes, height_field: str, ground_field: str | None = None, signed: bool = False
):
    """(height, None) or (None, reason) of one feature; see `buildings.clean_height_m` for the reasons.

    With a ground field both are elevations, which may be negative or zero; only their difference is judged. A roof
    slightly below the ground (down to `LOWEST_ROOF_M`) is a measurement all the same: `signed` keeps it, for comparing
    two layers number by number; as a label to learn from it is "negative".
    """
    top = _plain(attributes.get(height_field))
    if ground_field is None:
        return clean_height_m(top)
    ground = _plain(attributes.get(ground_field))
    for value, reason in ((top, "missing"), (ground, "no ground")):
        if value is None:
            return None, reason
    try:
        height_m = float(top) - float(ground)
    except (TypeError, ValueError):
        return None, "not a number"
    if signed and LOWEST_ROOF_M <= height_m < 0:
        return height_m, None
    return clean_height_m(height_m)


def settle_parts(layer: Layer, parts_inside: str) -> Layer:
    """`layer` with its outlines that lie inside another one counted, said, and treated as `parts_inside` says.

    Many layers draw the parts of a building over its outline (OpenStreetMap's `building:part`): each would be a
    building of its own, and the ground under it would be counted twice.

    Args:
        parts_inside: one of `building_parts.PARTS_INSIDE`.

    Raises:
        InputError: another word.
    """
    if parts_inside not in PARTS_INSIDE:
        raise unknown_name("parts_inside", parts_inside, PARTS_INSIDE)
    inside = enclosing([b.polygon for b in layer.buildings])
    count, wholes = int((inside >= 0).sum()), len(set(inside[inside >= 0].tolist()))
    if not count:
        return layer
    found = f"{count} of {len(inside)} outlines lie inside another one ({wholes} have such parts)"
    if parts_inside == "keep":
        note = f'{found}: each is a building of its own. `parts_inside="drop"` leaves them out, "heights" gives their '
        note += "heights to the building around them."
        counts = Counter({INSIDE: count})
        return dataclasses.replace(layer, counts=layer.counts + counts, notes=[*layer.notes, note])
    buildings = without_parts(layer.buildings, inside, heights=parts_inside == "heights")
    for building in buildings:
        if building.height_m is not None and UNKNOWN_HEIGHT in building.attributes:
            building.attributes = {k: v for k, v in building.attributes.items() if k != UNKNOWN_HEIGHT}
    what = (
        "left out" if parts_inside == "drop" else "left out, their heights given to the building around them"
    )
    return dataclasses.replace(
        layer,
        buildings=buildings,
        reasons=Counter(b.attributes[UNKNOWN_HEIGHT] for b in buildings if UNKNOWN_HEIGHT in b.attributes),
        counts=layer.counts + Counter({f"dropped: {INSIDE}": count}),
        notes=[*layer.notes, f"{found}: {what}."],
    )


def transform_layer(layer: Layer, crs: str) -> Layer:
    """`layer` with its outlines in another CRS, without those that cannot be expressed in it (counted).

    Raises:
        InputError: the layer has no CRS.
    """
    if layer.crs is None:
        raise InputError('the footprints have no CRS. Name it, e.g. `footprints_crs="EPSG:28992"`.')
    if parse_crs(layer.crs, "the footprints: CRS") == parse_crs(crs, "CRS"):
        return layer
    convert = transformer(layer.crs, crs)
    kept = []
    for building in layer.buildings:
        moved = shapely.transform(building.polygon, convert.transform, interleaved=False)
        polygon = clean_polygon(moved) if np.isfinite(shapely.get_coordinates(moved)).all() else None
        if polygon is None:
            layer.geometry["outside the CRS"] += 1
        else:
            kept.append(dataclasses.replace(building, polygon=polygon))
    return dataclasses.replace(layer, buildings=kept, crs=crs)


def check_crs(text: str, parameter: str) -> None:
    """Refuse a CRS `text` that is not understood, naming the parameter that it was given by.

    Raises:
        InputError: see above.
    """
    try:
        crs = parse_crs(text, parameter)
    except InputError:
        raise InputError(
            f"`{parameter}={text[:80]!r}` is not a CRS. Expected EPSG:n, WKT or a PROJ string."
        ) from None
    check_placed(crs, f"`{parameter}`")


def _wanted(fields: Sequence[str | None]) -> Callable[[str], bool]:
    """Whether a column is worth keeping: of the 60 that 3DBAG has for every building, a third are."""
    names = {*fields, *ID_FIELDS, MEASURED_HEIGHT}
    return lambda column: column in names or threedbag.is_known(column)


def _height_fields(path, height_field, ground_field, statistic, columns):
    if height_field is None:
        if ground_field is not None:
            raise InputError(f"{path}: a ground field {ground_field!r} was given without a height field.")
        try:
            found = threedbag.height_fields(columns, statistic)
            plain = (
                None
                if threedbag.roof_fields(columns)
                else next((n for n in _OF_CITYGML if n in columns), None)
            )
            return found or (plain, None)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    if columns:  # an empty GeoJSON has no columns to miss
        for name in (height_field, ground_field):
            if name is not None and name not in columns:
                raise InputError(f"{path}: {unknown_name('column', name, columns)}")
    return height_field, ground_field or threedbag.ground_field(height_field, columns)


def _outline(geometry, counts: Counter):
    if geometry is None or geometry.is_empty:
        counts["no geometry"] += 1
        return None
    polygon = clean_polygon(geometry)
    if polygon is None:
        counts["sides that cross too often" if is_tangled(geometry) else "no area"] += 1
    elif not geometry.is_valid:
        counts["repaired"] += 1
    return polygon


def _identifier(attributes: dict, id_field: str | None) -> str | int | float | None:
    named = (_plain(attributes.get(name)) for name in (id_field, *ID_FIELDS))
    value = next((v for v in named if v is not None and str(v).strip()), None)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _plain(value):
    """`value` as Python's own type; None for every kind of "missing"."""
    if isinstance(value, bool):
        return None
    if threedbag.is_missing(value):
        return None
    return value.tolist() if hasattr(value, "tolist") else value
