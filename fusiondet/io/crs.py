"""Coordinate reference systems: their names, and whether a format takes them.

Three functions name a CRS, because they answer three questions and differ for the same CRS: of 404 EPSG definitions
written as ESRI's WKT, `crs_text` and `raster_crs_text` differ for 46, `crs_text` and `file_crs_text` for 38.
"""

import contextlib
from pathlib import Path

from fusiondet.errors import InputError

from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

# What to do about a raster without a place on the map, and about one that lacks the CRS only.
GEOREFERENCE = (
    '`rio edit-info --crs EPSG:n --transform "[PIXEL, 0, LEFT, 0, -PIXEL, TOP]" FILE` sets both, as does '
    "`gdal_translate -a_srs EPSG:n -a_ullr LEFT TOP RIGHT BOTTOM IN OUT`; `rio edit-info --like OTHER --crs like "
    "--transform like FILE` takes them from a raster on the same grid."
)
SET_CRS = "`rio edit-info --crs EPSG:n FILE` sets it where the transform is there already."


def parse_crs(crs: str | CRS, name: str) -> CRS:
    """Return `crs` ("EPSG:n", WKT, a PROJ string or a pyproj CRS) as a pyproj CRS.

    Args:
        name: what the CRS belongs to, for the message.

    Raises:
        InputError: it is not understood.
    """
    if isinstance(crs, str):
        crs = _URNS_OF_SURVEYS.get(crs.partition("*")[0].strip().lower(), crs)
    try:
        return CRS.from_user_input(crs)
    except (CRSError, OverflowError, ValueError, TypeError) as error:
        raise InputError(
            f"{name} {str(crs)[:80]!r} is not understood ({str(error).splitlines()[0][:200]}). Expected EPSG:n, WKT or "
            "a PROJ string."
        ) from None


# Names that German surveys write and PROJ does not know; a height reference may follow behind a star.
_URNS_OF_SURVEYS = {
    **{f"urn:adv:crs:etrs89_utm{zone}": f"EPSG:{25800 + zone}" for zone in (31, 32, 33)},
    **{f"urn:adv:crs:de_dhdn_3gk{zone}": f"EPSG:{31464 + zone}" for zone in (2, 3, 4, 5)},
    "urn:adv:crs:etrs89_lat-lon": "EPSG:4258",
}


def horizontal_crs(crs: CRS) -> CRS:
    """Return the part of `crs` that x and y are counted in, without heights."""
    return crs.sub_crs_list[0] if crs.is_compound else crs.to_2d()


def check_placed(crs: CRS, name: str) -> CRS:
    """Return `crs` of `name`.

    Raises:
        InputError: it says nothing about where on the earth x and y are: a local grid, heights alone, coordinates from
            the middle of the earth, another planet.
    """
    flat = horizontal_crs(crs)
    try:
        if not (flat.is_geographic or flat.is_projected):
            raise InputError(f"it is of the type {flat.type_name}")
        transformer(flat, "EPSG:4326")
    except InputError as error:
        raise InputError(f"{name}: {flat.name!r} has no place on the map ({error}).") from None
    return crs


def transformer(source, target) -> Transformer:
    """Return the conversion of x and y, easting or longitude first, from one CRS to another.

    Args:
        source, target: "EPSG:n", WKT, or a CRS of pyproj or rasterio.

    Raises:
        InputError: one is not understood, or no conversion is known: a CRS of a building site, of heights alone, or of
            another celestial body.
    """
    source, target = (parse_crs(crs, "the CRS") for crs in (source, target))
    # Through a CRS of heights alone PROJ hands coordinates as they are, or as infinity.
    if not any(crs.is_vertical and not crs.is_compound for crs in (source, target)):
        with contextlib.suppress(ProjError):
            return Transformer.from_crs(source, target, always_xy=True)
    raise InputError(
        f"no conversion is known from the CRS {source.name!r} ({source.type_name}) to {target.name!r} "
        f"({target.type_name}). Assign the one that the data are really in: `rio edit-info --crs EPSG:n FILE` for "
        "rasters, `ogr2ogr -a_srs EPSG:n OUT IN` for layers."
    )


def crs_text(crs: CRS | None) -> str | None:
    """Return "EPSG:n" if that is exactly `crs`, else its WKT 2."""
    if crs is None:
        return None
    authority = crs.to_authority(auth_name="EPSG", min_confidence=100)
    return ":".join(authority) if authority else crs.to_wkt()


def raster_crs_text(crs) -> str | None:
    """Return "EPSG:n" or WKT of a raster's `rasterio.crs.CRS` as GDAL identifies it; None for none.

    GDAL writes WKT 1 where it can, which is what tiles and checkpoints hold.
    """
    return crs.to_string() if crs else None


def file_crs_text(crs: CRS | None) -> str | None:
    """Return "EPSG:n" where `crs` most probably is that, else its WKT 2.

    Shapefiles describe a CRS in ESRI's words, which match none of EPSG's definitions exactly.
    """
    if crs is None:
        return None
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else crs.to_wkt()


def check_crs(crs: CRS, path: Path) -> CRS:
    """The horizontal part of `crs`.

    Raises:
        InputError: it is not a projected CRS in metres with an EPSG code, or it is Web Mercator, whose metres are
            none on the ground: blocks would be wider than they are tall.
    """
    horizontal = horizontal_crs(crs)
    way_out = (
        "Give the image a projected CRS in metres first, e.g. its UTM zone: `gdalwarp -t_srs EPSG:32631 IN OUT`; or "
        "write .gpkg, which takes every CRS."
    )
    if not horizontal.is_projected:
        raise InputError(f"{path}: CityJSON needs metres, and {crs.name} has none ({_kind(crs)}). {way_out}")
    units = {a.unit_name for c in (crs.sub_crs_list or [crs]) for a in c.axis_info if not_in_metres(a)}
    if units:
        raise InputError(
            f"{path}: CityJSON needs metres, and {crs.name} is in {' and '.join(sorted(units))}. {way_out}"
        )
    method = horizontal.coordinate_operation.method_name if horizontal.coordinate_operation else ""
    if "Pseudo" in method and "Mercator" in method:
        raise InputError(
            f"{path}: CityJSON needs metres on the ground, those of {crs.name} are stretched. {way_out}"
        )
    if not crs_text(horizontal).startswith("EPSG:"):
        raise InputError(f"{path}: CityJSON names a CRS by its EPSG code, and {crs.name} has none. {way_out}")
    return horizontal


def not_in_metres(axis) -> bool:
    """Return True for an axis of a pyproj CRS that is counted in anything but metres."""
    return axis.unit_conversion_factor != 1


def _kind(crs: CRS) -> str:
    return "longitude and latitude" if crs.is_geographic else crs.type_name
