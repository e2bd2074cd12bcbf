"""GIS layers of buildings. The suffix chooses the format; all hold the same columns, NULL where unknown.

    id            integer or text   identifier of the building; numbered from 1 when none has one
    score         number            confidence that this is a building, 0-1; says nothing about the height
    height_m      number            metres above ground; the median where it is predicted
    height_p16_m  number            metres; the true height is below it in 16 of 100 cases
    height_p84_m  number            metres; the true height is above it in 16 of 100 cases
    area_m2       number            m², of the outline without its holes, measured on the ellipsoid: true in every CRS
    volume_m3     number            m³, area_m2 x height_m

    .gpkg     GeoPackage, layer "buildings", the given CRS
    .fgb      FlatGeobuf, the given CRS
    .parquet  GeoParquet, the given CRS
    .geojson  RFC 7946: WGS 84 longitude and latitude, 7 decimals (about 1 cm)

`metadata` is stored as JSON text in the layer's description (GeoParquet: in the schema's metadata).
"""

import errno
import json
from dataclasses import dataclass
from pathlib import Path

from fusiondet.buildings import Building, clean_polygon
from fusiondet.errors import InputError
from fusiondet.files import atomic_path, require_new

import geopandas
import numpy as np
import pyogrio
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from shapely.geometry.polygon import orient

NUMBERS = ("score", "height_m", "height_p16_m", "height_p84_m")
WGS84 = "EPSG:4326"


@dataclass(frozen=True)
class _Format:
    """GDAL's driver (None: written by geopandas), the first bytes of such a file, and layer creation options."""

    driver: str | None
    signature: bytes
    options: tuple[tuple[str, str], ...] = ()


FORMATS = {
    ".gpkg": _Format("GPKG", b"SQLite format 3\0"),
    ".geojson": _Format("GeoJSON", b"{", (("RFC7946", "YES"),)),
    ".fgb": _Format("FlatGeobuf", b"fgb"),
    ".parquet": _Format(None, b"PAR1"),
}


def write_buildings(
    buildings: list[Building],
    crs: str | CRS | None,
    path: Path,
    metadata: dict | None = None,
    overwrite: bool = False,
) -> None:
    """Write a layer, whole or not at all; no buildings give an empty layer.

    Args:
        buildings: outlines in map coordinates of `crs`, x (east, longitude) first.
        crs: "EPSG:n", WKT, or a pyproj CRS. Where it has no EPSG code its full WKT2 is stored.
        path: suffix .gpkg, .geojson, .fgb or .parquet.
        metadata: plain values about the whole layer: model, date, input.
        overwrite: replace `path` if it exists.

    Raises:
        InputError: no or unknown CRS, a suffix that is none of these, an outline without area, or `path` exists.
        OSError: it could not be written to the end; nothing is left behind.
    """
    path, format_ = Path(path), check_output(path, overwrite)
    crs = _crs(crs, path)
    polygons = np.array([_polygon(b, path) for b in buildings], dtype=object)
    columns = _columns(buildings, areas_m2(polygons, crs))
    if format_.driver == "GeoJSON":
        polygons, crs = _to_crs(polygons, crs, CRS(WGS84)), CRS(WGS84)
    description = json.dumps(metadata, allow_nan=False) if metadata else ""
    with atomic_path(path) as temporary:
        try:
            if format_.driver is None:
                _write_parquet(temporary, polygons, columns, crs, description)
            else:
                _write_ogr(temporary, polygons, columns, crs, description, format_)
            written = _count(temporary, format_)
        except (RuntimeError, OSError) as error:
            # GDAL tells of a full disk late and in many ways, or not at all: hence the count of what is there.
            raise OSError(
                errno.EIO, f"could not be written ({error}). Is the disk full?", str(path)
            ) from error
        if written != len(buildings):
            raise OSError(errno.EIO, f"only {written} of {len(buildings)} buildings were written", str(path))


def check_output(path: Path, overwrite: bool = False):
    """Find out before a long computation what `write_buildings` would refuse about `path`: its suffix, its existence.

    Raises:
        InputError: as `write_buildings`.

    Returns:
        The entry of `FORMATS`.
    """
    format_ = _format(Path(path))
    require_new(path, overwrite)
    return format_


def read_buildings(path: Path) -> tuple[list[Building], str | None]:
    """Inverse of `write_buildings`: the buildings in file order, and the CRS as "EPSG:n" or WKT.

    FlatGeobuf files are sorted along their spatial index, the others keep the order they were written in.

    Columns that are missing are unknown; areas and volumes are not read, as they follow from the rest.

    Raises:
        InputError: missing, another suffix or content, or damaged.
    """
    path = Path(path)
    format_ = _format(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    with open(path, "rb") as f:
        head = f.read(len(format_.signature) + 64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head.startswith(format_.signature):
        # Checked before GDAL looks: it would follow what a renamed VRT points at.
        raise InputError(f"{path}: its content is not what {path.suffix} stands for.")
    try:
        frame = geopandas.read_parquet(path) if format_.driver is None else pyogrio.read_dataframe(path)
    except Exception as error:  # pyogrio, pyarrow and shapely each have their own
        raise InputError(f"{path}: damaged, or not a layer of buildings ({error}).") from None
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"{path}: a table without geometry, expected a layer of buildings.")
    rows = frame.drop(columns=frame.geometry.name).to_dict("records")
    outlines = [clean_polygon(p) for p in frame.geometry]
    buildings = [_building(p, row) for p, row in zip(outlines, rows, strict=True) if p is not None]
    return buildings, _crs_text(frame.crs)


def areas_m2(polygons: np.ndarray, crs: CRS) -> np.ndarray:
    """(N,) areas on the ellipsoid of `crs`, m²; planar where a CRS stands on no ellipsoid (a local grid)."""
    geod = crs.get_geod()
    if geod is None or crs.geodetic_crs is None:
        return shapely.area(polygons) * crs.axis_info[0].unit_conversion_factor ** 2
    degrees = _to_crs(polygons, crs, crs.geodetic_crs)
    return np.array(
        [sum(_ring_areas(part, geod) for part in shapely.get_parts(p)) for p in degrees], dtype=float
    )


def _ring_areas(polygon, geod) -> float:
    return abs(geod.geometry_area_perimeter(orient(polygon))[0])


def _to_crs(polygons: np.ndarray, source: CRS, target: CRS) -> np.ndarray:
    if source == target or not len(polygons):
        return polygons
    convert = Transformer.from_crs(source, target, always_xy=True).transform
    return shapely.transform(polygons, convert, interleaved=False)


def _format(path: Path) -> _Format:
    suffix = path.suffix.lower()
    if suffix == ".shp":
        raise InputError(
            f"{path}: a shapefile cuts column names to 10 characters and has no NULL. Write .gpkg instead; "
            "`ogr2ogr out.shp buildings.gpkg` makes a shapefile of it."
        )
    if suffix not in FORMATS:
        raise InputError(f"{path}: suffix {path.suffix!r} is not known. Use one of {', '.join(FORMATS)}.")
    return FORMATS[suffix]


def _crs(crs, path: Path) -> CRS:
    if not crs:
        raise InputError(
            f"{path}: the buildings have no CRS, so a GIS could not place them. Give the image one first, e.g. "
            "`gdal_edit.py -a_srs EPSG:32631 image.tif`."
        )
    try:
        return CRS.from_user_input(crs)
    except CRSError as error:
        raise InputError(f"{path}: CRS {str(crs)[:80]!r} is not understood ({error}).") from None


def _crs_text(crs: CRS | None) -> str | None:
    """Code "EPSG:n" when that is exactly `crs`, else its WKT2."""
    if crs is None:
        return None
    authority = crs.to_authority(auth_name="EPSG", min_confidence=100)
    return ":".join(authority) if authority else crs.to_wkt()


def _polygon(building: Building, path: Path):
    polygon = clean_polygon(building.polygon)
    if polygon is None or not np.isfinite(polygon.bounds).all():
        raise InputError(f"{path}: building {building.id!r} has no outline with area and finite coordinates.")
    return polygon


def _columns(buildings: list[Building], area_m2: np.ndarray) -> dict[str, np.ndarray]:
    columns = {"id": _ids(buildings)}
    for name in NUMBERS:
        columns[name] = np.array([getattr(b, name) for b in buildings], dtype=float)
    return {**columns, "area_m2": area_m2, "volume_m3": area_m2 * columns["height_m"]}


def _ids(buildings: list[Building]) -> np.ndarray:
    ids = [b.id for b in buildings]
    if all(i is None for i in ids):
        return np.arange(1, len(ids) + 1, dtype=np.int64)
    if all(isinstance(i, int | np.integer) for i in ids):
        return np.array(ids, dtype=np.int64)
    return np.array([None if i is None else str(i) for i in ids], dtype=object)


def _write_ogr(path, polygons, columns, crs, description, format_) -> None:
    # One geometry type per layer: some readers refuse a mixture. GeoJSON readers are used to it.
    multi = any(p.geom_type == "MultiPolygon" for p in polygons) and format_.driver != "GeoJSON"
    mixed = "Unknown" if format_.driver == "GeoJSON" else "Polygon"
    pyogrio.raw.write(
        str(path),
        geometry=shapely.to_wkb(polygons),
        field_data=list(columns.values()),
        fields=np.array(list(columns), dtype=object),
        geometry_type="MultiPolygon" if multi else mixed,
        promote_to_multi=multi,
        crs=_crs_text(crs),
        driver=format_.driver,
        layer="buildings",
        layer_options={**dict(format_.options), **({"DESCRIPTION": description} if description else {})},
    )


def _write_parquet(path, polygons, columns, crs, description) -> None:
    geopandas.GeoDataFrame(columns, geometry=list(polygons), crs=crs).to_parquet(path)
    if description:
        import pyarrow.parquet as parquet

        table = parquet.read_table(path)
        kept = table.schema.metadata or {}
        parquet.write_table(
            table.replace_schema_metadata({**kept, b"description": description.encode()}), path
        )


def _count(path: Path, format_: _Format) -> int:
    if format_.driver is None:
        import pyarrow.parquet as parquet

        return parquet.read_metadata(path).num_rows
    return pyogrio.read_info(path, force_feature_count=True)["features"]


def _building(polygon, row: dict) -> Building:
    values = {name: _number(row.get(name)) for name in NUMBERS}
    identifier = row.get("id")
    if isinstance(identifier, float):
        identifier = None if np.isnan(identifier) else int(identifier)
    return Building(polygon, id=identifier, **values)


def _number(value) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
