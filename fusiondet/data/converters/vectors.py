"""Read building layers: GeoPackage, GeoJSON, shapefile, FlatGeobuf, GeoParquet, CityJSON and CityJSONSeq.

One feature is one `Building`, in the order of the file; nothing is merged. Heights are metres above ground: where a
ground field is given it is subtracted, and where nothing tells what a number is measured from, the building's
`height_datum` is "unverified".
"""

import dataclasses
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.buildings import Building, clean_height_m, clean_polygon
from fusiondet.data.converters import threedbag
from fusiondet.data.converters.cityjson import read_cityjson
from fusiondet.errors import InputError, unknown_name

import geopandas
import numpy as np
import pandas
import pyogrio
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

# First bytes of a file -> the only drivers that may open it. Text formats such as OGR's VRT point at other files.
SIGNATURES = {
    b"SQLite format 3\0": ("GPKG",),
    b"\0\0\x27\x0a": ("ESRI Shapefile",),
    b"fgb": ("FlatGeobuf",),
    b"PAR1": ("Parquet",),
    b"{": ("GeoJSON", "GeoJSONSeq"),
    b"\x1e": ("GeoJSONSeq",),
}
LOWEST_ROOF_M = -3.0
# Attribute of a building whose height is unknown: why, in the words of `Layer.reasons`.
UNKNOWN_HEIGHT = "unknown_height"
ID_FIELDS = ("identificatie", "id", "Building_ID", "BuildingId", "OBJECTID", "osm_id")


@dataclass(eq=False)
class Layer:
    """A read layer.

    Attributes:
        buildings: in the file's order and CRS, without those that have no outline.
        crs: "EPSG:n" or WKT (horizontal); None when the file has none.
        reasons: why heights are unknown -> number of buildings: "missing", "not a number", "negative", "zero",
            "absurd", "no ground"; empty when no height field was asked for.
        geometry: what happened to outlines -> number of features: "no geometry", "no area" (both left out), "repaired".
        height_field, ground_field: the columns that heights came from; None when there are none.
    """

    buildings: list[Building]
    crs: str | None
    reasons: Counter = field(default_factory=Counter)
    geometry: Counter = field(default_factory=Counter)
    height_field: str | None = None
    ground_field: str | None = None


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
) -> Layer:
    """Buildings of a vector file.

    Args:
        path: local file; the format is told by its first bytes.
        height_field: column of heights, or of roof elevations when `ground_field` is given. None: 3DBAG's columns if
            the file has them (`statistic`, ground subtracted), else every height is unknown.
        ground_field: column of ground elevations to subtract; None: known for 3DBAG's columns, else nothing.
        layer: which layer of a file with several.
        statistic: which of 3DBAG's roof statistics, for `height_field` None.
        height_stat, height_datum, outline: recorded with every building. `height_datum` None: "ground" where a ground
            elevation was subtracted, else "unverified".
        extent: ((left, bottom, right, top), crs): read only what is near it.
        signed: see `height_above_ground_m`.

    Raises:
        InputError: missing, unreadable or of another format; no such layer; no such column (the columns are listed).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: {'is a directory, expected a vector file' if path.is_dir() else 'no such file'}."
        )
    if _is_cityjson(path):
        records, crs, columns = _read_city(path)
    else:
        records, crs, columns = _read_table(path, layer, (height_field, ground_field), statistic, extent)
    height_field, ground_field = _height_fields(path, columns, height_field, ground_field, statistic)
    result = Layer([], crs, height_field=height_field, ground_field=ground_field)
    common = {
        "height_source": None
        if height_field is None
        else " - ".join(f for f in (height_field, ground_field) if f),
        "height_stat": height_stat or (height_field and threedbag.statistic_of(height_field)),
        "height_datum": height_datum or ("ground" if ground_field else "unverified"),
    }
    for number, (geometry, attributes) in enumerate(records):
        polygon = _outline(geometry, result.geometry)
        if polygon is None:
            continue
        building = Building(polygon, outline=outline, id=_identifier(attributes, number))
        if height_field is not None:
            building.height_m, reason = height_above_ground_m(attributes, height_field, ground_field, signed)
            if building.height_m is not None:
                vars(building).update(common)
            else:
                building.attributes[UNKNOWN_HEIGHT] = reason
                result.reasons[reason] += 1
        result.buildings.append(building)
    return result


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


def transform_layer(layer: Layer, crs: str) -> Layer:
    """`layer` with its outlines in another CRS, without those that cannot be expressed in it (counted).

    Raises:
        InputError: the layer has no CRS.
    """
    if layer.crs is None:
        raise InputError("the footprints have no CRS. Name it, e.g. --footprints-crs EPSG:28992.")
    if CRS.from_user_input(layer.crs) == CRS.from_user_input(crs):
        return layer
    convert = Transformer.from_crs(layer.crs, crs, always_xy=True)
    kept = []
    for building in layer.buildings:
        moved = shapely.transform(building.polygon, convert.transform, interleaved=False)
        polygon = clean_polygon(moved) if np.isfinite(shapely.get_coordinates(moved)).all() else None
        if polygon is None:
            layer.geometry["outside the CRS"] += 1
        else:
            kept.append(dataclasses.replace(building, polygon=polygon))
    return dataclasses.replace(layer, buildings=kept, crs=crs)


def check_crs(text: str, name: str) -> None:
    """Refuse a CRS `text` that is not understood, naming where it was given: `name`.

    Raises:
        InputError: see above.
    """
    try:
        CRS.from_user_input(text)
    except CRSError:
        raise InputError(
            f"{name} {text[:80]!r} is not a CRS. Expected EPSG:n, WKT or a PROJ string."
        ) from None


def _is_cityjson(path: Path) -> bool:
    if path.suffix.lower() in (".geojson", ".geojsonl", ".geojsons"):
        return False
    with open(path, "rb") as f:
        start = f.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        if not start.startswith(b"{"):
            return False
        f.seek(0)
        text = f.readline() if path.suffix.lower() in (".jsonl", ".ndjson") else f.read()
    try:  # "type" may stand at the very end, so the start of the file does not tell
        document = json.loads(text)
    except ValueError:
        raise InputError(f"{path}: not valid JSON. Is it the right file, and complete?") from None
    return isinstance(document, dict) and str(document.get("type", "")).startswith("CityJSON")


def _read_city(path: Path):
    model = read_cityjson(path)
    columns = dict.fromkeys(name for b in model.buildings for name in b.attributes)
    records = [
        (b.footprint(), {**b.attributes, "id": b.attributes.get("identificatie", b.id)})
        for b in model.buildings
    ]
    return records, model.crs, list(columns)


def _read_table(path: Path, layer, fields, statistic, extent):
    drivers = _drivers(path)
    try:
        if drivers == ("Parquet",):
            frame = geopandas.read_parquet(path)
            columns = [c for c in frame.columns if c != frame.geometry.name]
        else:
            frame, columns = _read_ogr(path, drivers, layer, fields, statistic, extent)
    except InputError:
        raise
    except Exception as error:  # pyogrio, pyarrow and shapely each have their own
        raise InputError(f"{path}: damaged, or not a {' or '.join(drivers)} file ({error}).") from None
    crs = frame.crs.to_2d() if frame.crs else None
    attributes = frame.drop(columns=frame.geometry.name).to_dict("records")
    return list(zip(frame.geometry.to_numpy(), attributes, strict=True)), _crs_text(crs), columns


def _read_ogr(path, drivers, layer, fields, statistic, extent):
    layer = _choose_layer(path, layer)
    info = pyogrio.read_info(path, layer=layer)
    if info["driver"] not in drivers:
        raise InputError(f"{path}: expected {' or '.join(drivers)}, GDAL takes it for {info['driver']}.")
    columns = list(info["fields"])
    wanted = {*fields, *ID_FIELDS, *(threedbag.height_fields(columns, statistic) or ())}
    wanted |= {threedbag.ground_field(f) for f in fields if f}
    with warnings.catch_warnings():  # GDAL guesses that mixed text and numbers are JSON
        warnings.filterwarnings("ignore", message="Could not parse column")
        frame = pyogrio.read_dataframe(
            path,
            layer=layer,
            columns=[c for c in columns if c in wanted],
            bbox=_bbox(extent, info["crs"]),
            on_invalid="ignore",
        )
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"{path}: a table without geometry; expected building footprints.")
    if info["driver"].startswith("GeoJSON") and _off_the_globe(frame):
        frame = frame.set_crs(None, allow_override=True)
    return frame, columns


def _off_the_globe(frame) -> bool:
    """Whether GeoJSON that is longitude and latitude by default cannot be: many writers leave another CRS out."""
    if frame.crs is None or not frame.crs.is_geographic or frame.geometry.isna().all():
        return False
    left, bottom, right, top = frame.total_bounds
    return bool(left < -361 or right > 361 or bottom < -91 or top > 91)


def _choose_layer(path: Path, layer: str | None) -> str:
    layers = pyogrio.list_layers(path)
    names = [str(name) for name, _ in layers]
    if layer is not None:
        if layer not in names:
            raise unknown_name(f"layer of {path}", layer, names)
        return layer
    with_geometry = [str(name) for name, kind in layers if kind is not None]
    if len(with_geometry) > 1:
        raise InputError(f"{path}: has several layers: {', '.join(with_geometry)}. Name one with --layer.")
    if not names:
        raise InputError(f"{path}: holds no layer.")
    return (with_geometry or names)[0]


def _bbox(extent, crs):
    if extent is None or not crs:
        return None
    bounds, extent_crs = extent
    return Transformer.from_crs(extent_crs, crs, always_xy=True).transform_bounds(*bounds, densify_pts=21)


def _drivers(path: Path) -> tuple[str, ...]:
    with open(path, "rb") as f:
        head = f.read(64)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, drivers in SIGNATURES.items():
        if head.startswith(signature) or (signature == b"{" and text.startswith(b"{")):
            return drivers
    raise InputError(
        f"{path}: not a vector file that is read here (GeoPackage, GeoJSON, shapefile .shp, FlatGeobuf, GeoParquet, "
        "CityJSON, CityJSONSeq)."
    )


def _height_fields(path, columns, height_field, ground_field, statistic):
    if height_field is None:
        if ground_field is not None:
            raise InputError(f"{path}: a ground field {ground_field!r} was given without a height field.")
        return threedbag.height_fields(columns, statistic) or (None, None)
    if columns:  # an empty GeoJSON has no columns to miss
        for name in (height_field, ground_field):
            if name is not None and name not in columns:
                raise InputError(f"{path}: {unknown_name('column', name, columns)}")
    if ground_field is None and threedbag.ground_field(height_field) in columns:
        ground_field = threedbag.ground_field(height_field)
    return height_field, ground_field


def _outline(geometry, counts: Counter):
    if geometry is None or geometry.is_empty:
        counts["no geometry"] += 1
        return None
    polygon = clean_polygon(geometry)
    if polygon is None:
        counts["no area"] += 1
    elif not geometry.is_valid:
        counts["repaired"] += 1
    return polygon


def _identifier(attributes: dict, number: int):
    named = (_plain(attributes.get(name)) for name in ID_FIELDS)
    value = next((v for v in named if v is not None and str(v).strip()), number)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value):
    """`value` as Python's own type; None for every kind of "missing"."""
    if isinstance(value, bool):
        return None
    if pandas.api.types.is_scalar(value) and pandas.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _crs_text(crs) -> str | None:
    if crs is None:
        return None
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else crs.to_wkt()
