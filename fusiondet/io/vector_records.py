"""Vector files -> records: geometries with those columns that matter. What they mean is for `vectors` to say.

Formats are told by a file's first bytes, and each is opened by its own driver only. 3DBAG's GeoPackages spread what
they know of a building over several layers; here they are brought together.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.errors import InputError, unknown_name
from fusiondet.io import threedbag
from fusiondet.io.building_parts import combine_parts
from fusiondet.io.cityjson_reader import SEQUENCE_SUFFIXES, NotCityJSON, open_cityjson
from fusiondet.io.crs import file_crs_text, parse_crs, transformer
from fusiondet.io.units import LengthUnit, vertical_unit
from fusiondet.io.vector_access import layer_info, list_layers, read_frame, without_columns

import geopandas
import pandas
import pyarrow.parquet as parquet
import shapely

# First bytes of a file -> the only drivers that may open it. Text formats such as OGR's VRT point at other files.
SIGNATURES = {
    b"SQLite format 3\0": ("GPKG",),
    b"\0\0\x27\x0a": ("ESRI Shapefile",),
    b"fgb": ("FlatGeobuf",),
    b"PAR1": ("Parquet",),
    b"{": ("GeoJSON", "GeoJSONSeq"),
    b"\x1e": ("GeoJSONSeq",),
}
# CityGML's attributes: of the highest point of the roof above the lowest of the ground; and of the ground's elevation.
MEASURED_HEIGHT, TERRAIN_HEIGHT = "measuredHeight", "TerrainHeight"
# What heights are called that are computed from a CityJSON's roof surfaces.
HEIGHT_OF_FACES = "roof surfaces above the ground"
# What a column of WKB is called in a Parquet file that does not say which it is.
_GEOMETRY_COLUMNS = ("geometry", "geom", "wkb_geometry", "the_geom", "wkb", "geometry_wkb")
ID_FIELDS = (*threedbag.IDENTIFIERS, "id", "Building_ID", "BuildingId", "OBJECTID", "osm_id")


@dataclass
class Records:
    """What was read of a file.

    Attributes:
        rows: (geometry or None, {column: value}) of the columns that were wanted, in the file's order.
        crs: horizontal, "EPSG:n" or WKT; None when the file has none.
        columns: all of the file's, wanted or not.
        id_field: the column that identifies a row; None when there is none.
        release: of 3DBAG, when something tells.
        notes: sentences for the user.
        is_table: false for CityJSON.
        vertical_unit: what the vertical axis of the file's CRS counts in; None where it has none.
    """

    rows: list[tuple]
    crs: str | None
    columns: list[str]
    id_field: str | None = None
    release: str | None = None
    notes: list[str] = field(default_factory=list)
    is_table: bool = True
    vertical_unit: LengthUnit | None = None


def read_records(
    path: Path,
    layer: str | None,
    wanted: Callable[[str], bool],
    find_fields: Callable[[list[str]], tuple[str | None, str | None]],
    extent=None,
    crs: str | None = None,
) -> Records:
    """The rows of a vector file.

    Args:
        layer, extent, crs: see `vectors.read_layer`.
        wanted: whether a column matters.
        find_fields: columns -> (roof or height, ground), the ones that heights will be made of.

    Raises:
        InputError: see `vectors.read_layer`.
    """
    return _read_city(path, wanted, crs) or _read_table(path, layer, wanted, find_fields, extent, crs)


def _claims_cityjson(path: Path) -> bool:
    """Whether the file says somewhere that it is CityJSON; "type" may stand at its very end."""
    if path.suffix.lower() in (".geojson", ".geojsonl", ".geojsons"):
        return False
    claim, of_lines = re.compile(rb'"type"\s*:\s*"CityJSON'), path.suffix.lower() in SEQUENCE_SUFFIXES
    with open(path, "rb") as f:
        chunk = f.readline(1 << 20) if of_lines else f.read(1 << 20)
        if not chunk.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return False
        while chunk:
            if claim.search(chunk):
                return True
            more = b"" if of_lines else f.read(1 << 20)
            chunk = (
                chunk[-64:] + more if more else b""
            )  # with the end of what was searched: a claim may begin there
    return False


def _has_heights(attributes: dict) -> bool:
    return attributes.get(MEASURED_HEIGHT) is not None or bool(threedbag.roof_fields(attributes))


def _read_city(path: Path, wanted: Callable[[str], bool], crs: str | None) -> Records | None:
    """The file's buildings; None when it is not CityJSON. Those without a height get the one of their faces."""
    if not _claims_cityjson(path):
        return None
    columns: dict[str, str] = {}
    records = []
    try:
        with open_cityjson(path, _has_heights, crs) as model:
            for b in model.buildings:
                # One copy of each name: every line of a CityJSONSeq brings its own.
                names = {columns.setdefault(name, name): value for name, value in b.attributes.items()}
                attributes = {name: value for name, value in names.items() if wanted(name)}
                attributes["id"] = attributes.get("identificatie", b.id)
                if not _has_heights(b.attributes):
                    height = b.roof_height_m(_number(b.attributes.get(TERRAIN_HEIGHT)))
                    if height is not None:
                        attributes[columns.setdefault(HEIGHT_OF_FACES, HEIGHT_OF_FACES)] = height
                records.append((b.footprint(), attributes))
            crs, release = model.crs, threedbag.release_of(model.release)
    except NotCityJSON:
        return None
    id_field = "identificatie" if "identificatie" in columns else "id"
    return Records(records, crs, list(columns), id_field, release, is_table=False)


def _number(value) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _read_table(path: Path, layer, wanted, find_fields, extent, crs: str | None) -> Records:
    drivers = _drivers(path)
    try:
        if drivers == ("Parquet",):
            frame = _read_parquet(path)
            source = Records([], None, [c for c in frame.columns if c != frame.geometry.name])
        else:
            frame, source = _read_ogr(path, drivers, layer, wanted, find_fields, extent, crs)
    except InputError:
        raise
    except Exception as error:  # pyogrio, pyarrow and shapely each have their own
        raise InputError(f"{path}: damaged, or not a {' or '.join(drivers)} file ({error}).") from None
    source.crs = crs or file_crs_text(frame.crs.to_2d() if frame.crs else None)
    source.vertical_unit = vertical_unit(frame.crs) if frame.crs else None
    kept = [c for c in frame.columns if c != frame.geometry.name and wanted(c)]
    attributes = frame[kept].to_dict("records") if kept else [{}] * len(frame)
    source.id_field = threedbag.identifier_field(kept) or next((n for n in ID_FIELDS if n in kept), None)
    source.rows = list(zip(frame.geometry.to_numpy(), attributes, strict=True))
    return source


def _read_parquet(path: Path):
    """Frame of a GeoParquet, or of a Parquet of WKB without its metadata, as some databases export."""
    schema = parquet.read_schema(path)
    if b"geo" in (schema.metadata or {}):
        return geopandas.read_parquet(path)
    binary = [f.name for f in schema if str(f.type).removeprefix("large_") == "binary"]
    named = [name for name in binary if name.lower() in _GEOMETRY_COLUMNS]
    if len(named or binary) != 1:
        raise InputError(
            f"{path}: a Parquet file without geometry (columns {', '.join(schema.names[:20])}). Expected GeoParquet, "
            f"or a column of WKB called geometry."
        )
    (column,) = named or binary
    frame = pandas.read_parquet(path)
    outlines = shapely.from_wkb(frame[column].to_numpy(), on_invalid="ignore")
    return geopandas.GeoDataFrame(frame.drop(columns=column), geometry=outlines)


def _read_ogr(path, drivers, layer, wanted, find_fields, extent, crs):
    layer, others = _choose_layer(path, layer)
    info = layer_info(path, layer=layer)
    if info["driver"] not in drivers:
        raise InputError(f"{path}: expected {' or '.join(drivers)}, GDAL takes it for {info['driver']}.")
    columns = list(info["fields"])
    frame = read_frame(
        path, layer, [c for c in columns if wanted(c)], _bbox(path, extent, crs or info["crs"])
    )
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"{path}: a table without geometry; expected building footprints.")
    if (info["driver"].startswith("GeoJSON") and _off_the_globe(frame)) or _is_undefined(frame.crs):
        frame = frame.set_crs(None, allow_override=True)
    source = Records([], None, columns)
    if without_columns(path):
        source.notes.append(
            f"{path.name}: {path.stem}.dbf is not beside it, so its buildings have outlines alone."
        )
    metadata = (info.get("dataset_metadata") or {}).values(), (info.get("layer_metadata") or {}).values()
    texts = [text for values in metadata for text in values if "3dbag" in str(text).lower()]
    source.release = threedbag.release_of(*texts, "/".join(path.absolute().parts[-4:]))
    if others:
        frame = _with_other_layers(path, layer, others, frame, source, wanted, find_fields)
    return frame, source


def _with_other_layers(path, layer, others, frame, source: Records, wanted, find_fields):
    """`frame` of one of 3DBAG's layers with what another one says of the same buildings; `source` is told.

    A GeoPackage of 3DBAG has the ground and all about a building in "pand", but its roof elevations only with the
    roof's parts, in "lod12_2d" and others.
    """
    key = threedbag.identifier_field(source.columns)
    for other in others:
        fields = layer_info(path, layer=other)["fields"]
        more = [c for c in fields if c not in source.columns]
        other_key = threedbag.identifier_field(fields)
        if key is None or other_key is None:
            continue
        if layer == threedbag.WHOLE_BUILDINGS:
            roof = find_fields([*source.columns, *more])[0] if threedbag.roof_fields(more) else None
            if roof in source.columns or roof is None:
                continue
            parts = read_frame(path, other, [other_key, roof], _around(frame))
            frame[roof] = frame[key].map(_roofs_of_buildings(parts, other_key, roof))
            source.columns.append(roof)
            source.notes.append(
                f"{path.name}: {roof} of the layer {layer} comes from {other}, its parts weighted by area."
            )
            break
        more = [c for c in more if wanted(c)]
        whole = read_frame(path, other, [other_key, *more], geometry=False)
        whole = whole.drop_duplicates(other_key).set_index(other_key)
        for column in more:
            frame[column] = frame[key].map(whole[column])
        source.columns += more
    return frame


def _around(frame) -> tuple[float, ...] | None:
    return None if frame.geometry.isna().all() else tuple(frame.total_bounds)


def _roofs_of_buildings(parts, key: str, roof: str) -> dict:
    """Identifier -> the roof elevation of its parts; None where most of it is unknown, missing without parts."""
    values, stat = pandas.to_numeric(parts[roof], errors="coerce"), threedbag.statistic_of(roof)
    groups: dict = {}
    for name, value, area in zip(parts[key], values, parts.geometry.area, strict=True):
        groups.setdefault(name, []).append((None if value != value else value, area))
    return {name: combine_parts(*zip(*group, strict=True), stat) for name, group in groups.items()}


def _off_the_globe(frame) -> bool:
    """Whether GeoJSON that is longitude and latitude by default cannot be: many writers leave another CRS out."""
    if frame.crs is None or not frame.crs.is_geographic or frame.geometry.isna().all():
        return False
    left, bottom, right, top = frame.total_bounds
    return bool(left < -361 or right > 361 or bottom < -91 or top > 91)


def _is_undefined(crs) -> bool:
    """Whether a GeoPackage says of its coordinates that they are in no system that is known (srs_id -1 and 0)."""
    return crs is not None and crs.name.startswith("Undefined ")


def _choose_layer(path: Path, layer: str | None) -> tuple[str, list[str]]:
    """(the layer to read, those of 3DBAG's that complete it)."""
    layers = list_layers(path)
    names = [name for name, _ in layers]
    if layer is not None and layer not in names:
        raise unknown_name(f"layer of {path}", layer, names)
    whole, roofs = threedbag.WHOLE_BUILDINGS, [name for name in threedbag.ROOF_PARTS if name in names]
    if whole in names and roofs and layer in (None, whole):
        return whole, roofs
    if whole in names and layer in roofs:
        return layer, [whole]
    if layer is not None:
        return layer, []
    if len(roofs) == 1:  # Kadaster's product has one, beside its 3-D twin
        return roofs[0], []
    with_geometry = [name for name, kind in layers if kind is not None]
    if len(with_geometry) > 1:
        raise InputError(f"{path}: has several layers: {', '.join(with_geometry)}. Name one with `layer`.")
    if not names:
        raise InputError(f"{path}: holds no layer.")
    return (with_geometry or names)[0], []


def _bbox(path: Path, extent, crs):
    if extent is None or not crs or parse_crs(crs, f"{path}: CRS").is_engineering:
        return None
    bounds, extent_crs = extent
    return transformer(extent_crs, crs).transform_bounds(*bounds, densify_pts=21)


def _drivers(path: Path) -> tuple[str, ...]:
    with open(path, "rb") as f:
        head = f.read(64)
    if not head:
        raise InputError(f"{path}: is empty, expected a vector file. Copy or download it again.")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, drivers in SIGNATURES.items():
        if head.startswith(signature) or (signature == b"{" and text.startswith(b"{")):
            return drivers
    raise InputError(
        f"{path}: not a vector file that is read here (GeoPackage, GeoJSON, shapefile .shp, FlatGeobuf, GeoParquet, "
        "CityJSON, CityJSONSeq)."
    )
