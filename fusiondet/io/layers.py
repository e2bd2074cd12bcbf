"""GIS layers of buildings. The suffix chooses the format; all hold the same columns, NULL where unknown.

    id            integer or text   identifier of the building; numbered from 1 when none has one
    score         number            confidence that this is a building, 0-1; says nothing about the height
    height_m      number            metres above ground; the median where it is predicted
    height_p16_m  number            metres; the true height is below it in 16 of 100 cases
    height_p84_m  number            metres; the true height is above it in 16 of 100 cases
    area_m2       number            m², of the outline without its holes, measured on the ellipsoid: true in every CRS
    volume_m3     number            m³, area_m2 x height_m

    .gpkg        GeoPackage, layer "buildings", the given CRS
    .fgb         FlatGeobuf, the given CRS
    .parquet     GeoParquet 1.1, the given CRS; row groups with a "bbox" column, by which a reader skips them
    .geojson     RFC 7946: WGS 84 longitude and latitude, 7 decimals (about 1 cm)
    .city.json   CityJSON 2.0, blocks (LoD1) in a projected CRS in metres; more columns, see `cityjson_writer`
    .city.jsonl  CityJSONSeq, the same one building per line: for readers that take a file piece by piece

`metadata`, plain values about the whole layer (see `fusiondet.io.provenance`), is JSON text in the layer's
description (GeoParquet: "description" in the schema's metadata) or the object "provenance" in CityJSON's "metadata".
"""

from dataclasses import dataclass
from pathlib import Path

from fusiondet.buildings import Building, clean_polygon
from fusiondet.errors import InputError
from fusiondet.files import parse_json, read_json, require_new
from fusiondet.io.cityjson_reader import open_cityjson
from fusiondet.io.crs import GEOREFERENCE, check_crs, crs_text, parse_crs, transformer
from fusiondet.io.vector_access import gdal_path, layer_info, read_frame

import geopandas
import numpy as np
import shapely
from pyproj import CRS, Proj
from shapely.geometry.polygon import orient

NUMBERS = ("score", "height_m", "height_p16_m", "height_p84_m")
WGS84 = "EPSG:4326"
# Attribute of buildings of a city model: the elevation that the block stands on, metres.
GROUND = "ground_m"
# The first line of a CityJSONSeq is its head, without buildings.
_MAX_HEAD_BYTES = 64 << 20
# Up to so far from the middle, and so large, an outline's edges are straight in an equal-area projection, degrees: the
# area is right to 1e-6.
_NEAR_DEG = 1.0
_SMALL_DEG = 0.01


@dataclass(frozen=True)
class Format:
    """Who writes it ("Parquet", "CityJSON", else GDAL's driver), the first bytes of such a file, and layer options."""

    driver: str
    signature: bytes
    options: tuple[tuple[str, str], ...] = ()


FORMATS = {
    ".gpkg": Format("GPKG", b"SQLite format 3\0"),
    ".geojson": Format("GeoJSON", b"{", (("RFC7946", "YES"),)),
    ".fgb": Format("FlatGeobuf", b"fgb"),
    ".parquet": Format("Parquet", b"PAR1"),
    ".city.json": Format("CityJSON", b"{"),
    ".city.jsonl": Format("CityJSON", b"{"),
}


def check_output(
    path: Path, overwrite: bool = False, crs: str | CRS | None = None, elevations: bool = False
) -> Format:
    """Find out before a long computation what `write_buildings` would refuse about `path`: its suffix, its existence.

    Args:
        crs: of the buildings to come, where it is known already: not every format takes every CRS.
        elevations: whether there is a DTM, or a vertical CRS, which not every format takes either.

    Raises:
        InputError: as `write_buildings`.

    Returns:
        The entry of `FORMATS`.
    """
    format_ = format_of(Path(path))
    require_new(path, overwrite)
    if elevations and format_.driver != "CityJSON":
        raise InputError(
            f"{path}: outlines lie flat in this format. Leave out the DTM, or write .city.json instead."
        )
    if crs and format_.driver == "CityJSON":
        check_crs(layer_crs(crs, path), path)
    return format_


def read_buildings(path: Path) -> tuple[list[Building], str | None]:
    """Inverse of `write_buildings`: the buildings in file order, and the CRS as "EPSG:n" or WKT.

    FlatGeobuf files are sorted along their spatial index, the others keep the order they were written in.

    Columns that are missing are unknown; areas and volumes are not read, as they follow from the rest.

    Raises:
        InputError: missing, another suffix or content, or damaged.
    """
    path = Path(path)
    format_ = _checked_format(path)
    if format_.driver == "CityJSON":
        return _read_city(path)
    try:
        frame = geopandas.read_parquet(path) if format_.driver == "Parquet" else read_frame(path)
    except InputError:
        raise
    except Exception as error:  # pyogrio, pyarrow and shapely each have their own
        raise InputError(f"{path}: damaged, or not a layer of buildings ({error}).") from None
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"{path}: a table without geometry, expected a layer of buildings.")
    rows = frame.drop(columns=frame.geometry.name).to_dict("records")
    outlines = [clean_polygon(p) for p in frame.geometry]
    buildings = [_building(p, row) for p, row in zip(outlines, rows, strict=True) if p is not None]
    return buildings, crs_text(frame.crs)


def _read_city(path: Path) -> tuple[list[Building], str | None]:
    with open_cityjson(path) as model:
        found = [(b.footprint(), {"id": b.id, **b.attributes}) for b in model.buildings]
        buildings = [_building(polygon, row) for polygon, row in found if polygon is not None]
        for building, (_, row) in zip(buildings, (f for f in found if f[0] is not None), strict=True):
            if (ground_m := _number(row.get(GROUND))) is not None:
                building.attributes[GROUND] = ground_m
        return buildings, model.crs


def read_vertical_crs(path: Path) -> str | None:
    """What the elevations of a city model count from, as `write_buildings` wrote it; None where it does not say."""
    head = _city_head(Path(path))
    for key in ("metadata", "elevation", "vertical_crs"):
        head = head.get(key) if isinstance(head, dict) else None
    return head if isinstance(head, str) else None


def read_metadata(path: Path) -> dict:
    """The `metadata` that a layer was written with; {} where it has none, or a description by someone else.

    Raises:
        InputError: missing, another suffix or content, or damaged.
    """
    path = Path(path)
    format_ = _checked_format(path)
    if format_.driver == "CityJSON":
        head = _city_head(path)
        metadata = head.get("metadata") if isinstance(head, dict) else None
        found = metadata.get("provenance") if isinstance(metadata, dict) else None
    else:
        description = _description(path, format_) or "{}"
        try:
            found = parse_json(description)
        except ValueError:
            found = {}
    return found if isinstance(found, dict) else {}


def _description(path: Path, format_: Format) -> str | None:
    try:
        if format_.driver == "Parquet":
            import pyarrow.parquet as parquet

            return (parquet.read_schema(path).metadata or {}).get(b"description", b"").decode()
        return (layer_info(path).get("layer_metadata") or {}).get("DESCRIPTION")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: damaged, or not a layer of buildings ({error}).") from None


def _city_head(path: Path):
    if not path.name.lower().endswith(".jsonl"):
        return read_json(path)
    try:
        with open(path, encoding="utf-8-sig") as f:
            return parse_json(f.readline(_MAX_HEAD_BYTES))
    except ValueError as error:
        raise InputError(f"{path}: line 1 is not JSON ({error}). Is it complete?") from None


def _checked_format(path: Path) -> Format:
    """Its format; InputError unless there is a file that begins like one."""
    format_ = format_of(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    with open(path, "rb") as f:
        head = f.read(len(format_.signature) + 64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head.startswith(format_.signature):
        # Checked before GDAL looks: it would follow what a renamed VRT points at.
        raise InputError(f"{path}: its content is not what {path.suffix} stands for.")
    return format_


def areas_m2(polygons: np.ndarray, crs: CRS | None, unit_m: float = 1.0) -> np.ndarray:
    """(N,) areas on the ellipsoid of `crs`, m²; planar where a CRS stands on no ellipsoid (a local grid).

    Without a CRS they are planar as well, and a unit of the coordinates is `unit_m` metres.

    Buildings near each other are measured at once, in the equal-area projection around their middle: as good as one by
    one along geodesics, whose formula rounds to some 1e-5 m², in a tenth of the time. Outlines that are far from the
    others, or large enough for their edges to bend in a projection, are measured along geodesics.
    """
    if crs is None:
        return shapely.area(polygons).astype(float) * unit_m**2
    geod = crs.get_geod()
    if geod is None or crs.geodetic_crs is None:
        return shapely.area(polygons) * crs.axis_info[0].unit_conversion_factor ** 2
    degrees = np.asarray(to_crs(polygons, crs, crs.geodetic_crs), dtype=object)
    areas = np.full(len(degrees), np.nan)
    bounds = shapely.bounds(degrees).reshape(-1, 4)
    middle = (bounds[:, :2] + bounds[:, 2:]) / 2
    with np.errstate(invalid="ignore"):  # infinite: beyond what the CRS maps
        centre = np.median(middle, axis=0) if len(middle) else np.zeros(2)
        away = np.abs((middle - centre + 180) % 360 - 180)
        side = bounds[:, 2:] - bounds[:, :2]
        near = (away <= _NEAR_DEG).all(axis=1) & (side <= _SMALL_DEG).all(axis=1)
    if near.any():
        plane = Proj(proj="laea", lon_0=centre[0], lat_0=centre[1], a=geod.a, b=geod.b)
        areas[near] = shapely.area(shapely.transform(degrees[near], plane, interleaved=False))
    for i in np.nonzero(~near)[0]:
        areas[i] = sum(_ring_areas(part, geod) for part in shapely.get_parts(degrees[i]))
    return areas


def _ring_areas(polygon, geod) -> float:
    return abs(geod.geometry_area_perimeter(orient(polygon))[0])


def to_crs(polygons: np.ndarray, source: CRS, target: CRS) -> np.ndarray:
    """(N,) polygons of the CRS `source` in that of `target`, x first."""
    if source == target or not len(polygons):
        return polygons
    convert = transformer(source, target).transform
    return shapely.transform(polygons, convert, interleaved=False)


def format_of(path: Path) -> Format:
    """The entry of FORMATS that the name ends in, the longest one; InputError when there is none."""
    name, suffix = path.name.lower(), path.suffix.lower()
    if suffix == ".shp":
        raise InputError(
            f"{path}: a shapefile cuts column names to 10 characters and has no NULL. Write .gpkg instead; "
            "`ogr2ogr out.shp buildings.gpkg` makes a shapefile of it."
        )
    gdal_path(path)
    known = [end for end in FORMATS if name.endswith(end)]
    if not known:
        raise InputError(f"{path}: suffix {path.suffix!r} is not known. Use one of {', '.join(FORMATS)}.")
    return FORMATS[max(known, key=len)]


def layer_crs(crs, path: Path, plane: bool = False) -> CRS | None:
    """`crs` ("EPSG:n", WKT or a pyproj CRS) understood.

    Args:
        plane: take none as well, for coordinates in a plane of their own, where the format of `path` can do so.

    Returns:
        None for none.

    Raises:
        InputError: it is not understood; or there is none, which is not wanted, or not possible in this format
            (CityJSON, and GeoJSON, whose coordinates are longitudes and latitudes).
    """
    if not crs and not plane:
        raise InputError(
            f"{path}: the buildings have no CRS, so a GIS could not place them. Give the image one first, e.g. "
            "`gdal_edit.py -a_srs EPSG:32631 image.tif`."
        )
    if not crs:
        if format_of(path).driver in ("CityJSON", "GeoJSON"):
            raise InputError(
                f"{path}: the buildings have no CRS, and this format has no coordinates without one. Write .gpkg, "
                f".parquet or .fgb; or give the image a CRS and a transform: {GEOREFERENCE}"
            )
        return None
    return parse_crs(crs, f"{path}: CRS")


def _building(polygon, row: dict) -> Building:
    values = {name: _number(row.get(name)) for name in NUMBERS}
    identifier = row.get("id")
    if isinstance(identifier, float):
        identifier = None if np.isnan(identifier) else int(identifier)
    stat = row.get("height_stat")
    return Building(polygon, id=identifier, height_stat=stat if isinstance(stat, str) else None, **values)


def _number(value) -> float | None:
    try:
        return None if value is None or not np.isfinite(value) else float(value)
    except TypeError:  # text where a number is expected
        return None
