"""What the columns of 3DBAG and its relatives mean: which of them are heights, and what else is known of a building.

3DBAG (https://docs.3dbag.nl, CC BY 4.0 by tudelft3d and 3DGI) has named the same things differently from release to
release, and Kadaster's 3D Basisvoorziening (Hoogtestatistieken Gebouwen, CC BY 4.0) derives from it:

    release                  roof                                    ground
    from 2025                b3_h_{min,50p,70p,max}                  b3_h_maaiveld
    2023, 2024               b3_h_dak_{min,50p,70p,max}              b3_h_maaiveld
    21.03, 21.09             h_dak_{min,50p,70p,max}                 h_maaiveld
    3D Basisvoorziening      dd_h_dak_{min,50p,70p,max}              h_maaiveld
    3D BAG v1 (to 2020)      roof-{0.00,0.25,0.50,...,0.99}          ground-{0.00,0.10,...,0.50}

All of them are elevations above NAP in metres, not heights: the ground next to the building, the 5th percentile of the
ground points within 4 m, has to be subtracted. The statistics describe the roof points of the LoD 2.2 model; 70p is
what 3DBAG's own LoD 1.2 block is extruded to. v1 has quantiles of all points and no 70p: 0.75 stands in for it. Names
are also found in capitals and cut to a shapefile's 10 characters, where that leaves one meaning.
"""

import functools
import re
from collections.abc import Iterable, Mapping

from fusiondet.errors import InputError, unknown_name

import pandas

STATISTICS = ("min", "50p", "70p", "max")
DEFAULT_STATISTIC = "70p"
# (roof, grounds) of each naming family, newest first: 2025 renamed b3_h_dak_70p to b3_h_70p.
FAMILIES = (
    ("b3_h_{}", ("b3_h_maaiveld",)),
    ("b3_h_dak_{}", ("b3_h_maaiveld",)),
    ("dd_h_dak_{}", ("dd_h_maaiveld", "h_maaiveld")),
    ("h_dak_{}", ("h_maaiveld",)),
)
# 3D BAG v1: the quantile nearest to each statistic; and of the ground, best first. The later 5th percentile lies
# between the two lowest; of these the minimum is at the mercy of one point in a ditch.
V1_QUANTILES = {"min": "00", "50p": "50", "70p": "75", "max": "99"}
V1_GROUNDS = ("10", "00", "20", "30", "40", "50")
_SHAPEFILE_NAME = 10
# The Netherlands lie between -7 m and 323 m; what stands on them ends below 400 m. A number beyond is a sentinel.
NAP_RANGE_M = (-15.0, 450.0)

# What is known of a building -> its names through the releases. 10-character truncations are found too.
ATTRIBUTES = {
    "greenhouse": ("b3_kas_warenhuis", "kas_warenhuis"),
    "roof_type": ("b3_dak_type", "dak_type"),
    "cloud_date": ("b3_pw_datum", "pw_datum", "ahn_file_date"),
    "cloud": ("b3_pw_bron", "pw_bron", "ahn_version"),
    "selection": ("b3_pw_selectie_reden",),
    "insufficient": ("b3_pw_onvoldoende",),
    "extrusion": ("b3_extrusie",),
    "simplified": ("b3_reconstructie_onvolledig", "reconstruction_skipped", "lod11_replace"),
    "model_errors": ("b3_val3dity_lod22", "val3dity_codes_lod22"),
    "mutated": ("b3_mutatie_ahn3_ahn4", "b3_mutatie_ahn4_ahn5"),
    "nodata_ahn3": ("b3_nodata_fractie_ahn3",),
    "nodata_ahn4": ("b3_nodata_fractie_ahn4",),
    "nodata_ahn5": ("b3_nodata_fractie_ahn5",),
    "built": ("oorspronkelijkbouwjaar", "bouwjaar"),
    "status": ("status", "pandstatus"),
    "kadaster_median": ("dd_h_dak_50p",),
}
# Truncations that more than one attribute is cut to; whichever of the two mutations it is, it is one.
AMBIGUOUS = {"b3_val3dit", "val3dity_c", "b3_nodata_", "reconstruc"}
# Layers of its GeoPackages: whole buildings, and the parts of their roofs, the least divided ones first.
WHOLE_BUILDINGS = "pand"
ROOF_PARTS = ("lod12_2d", "lod13_2d", "lod22_2d")
IDENTIFIERS = ("identificatie", "identifica")


def height_fields(columns: Iterable[str], statistic: str = DEFAULT_STATISTIC) -> tuple[str, str] | None:
    """Names of (roof elevation, ground elevation) among `columns`; None when they are not 3DBAG's, or one is missing.

    Raises:
        InputError: `statistic` is not one of STATISTICS, or the columns are cut so short that they no longer tell it.
    """
    if statistic not in STATISTICS:
        raise unknown_name("3DBAG statistic", statistic, STATISTICS)
    return _height_fields(tuple(columns), statistic)


@functools.lru_cache(maxsize=256)
def _height_fields(columns: tuple[str, ...], statistic: str) -> tuple[str, str] | None:
    names = _by_lower(columns)
    unclear = None
    for roof, grounds in FAMILIES:
        ground = _first(names, grounds)
        wanted = roof.format(statistic)
        found = names.get(wanted) or (
            names.get(_cut(wanted)) if not _is_shared_cut(roof, statistic) else None
        )
        if ground and found:
            return found, ground
        if ground and not unclear and len(wanted) > _SHAPEFILE_NAME and _cut(wanted) in names:
            alike = re.escape(_cut(wanted)[:-1]) + r"[\dm]"
            candidates = sorted(
                c for lower, c in names.items() if re.fullmatch(alike, lower) and not statistic_of(lower)
            )
            unclear = (wanted, ground, candidates)
    if unclear:
        wanted, ground, candidates = unclear
        raise InputError(
            f"{wanted!r} is cut to {_SHAPEFILE_NAME} characters, as shapefiles do, and its name no longer tells it "
            f"from others: {', '.join(candidates)}. Name the right one, e.g. `height_field={candidates[0]!r}` "
            f"`ground_field={ground!r}`."
        )
    ground = _v1_ground(names)
    found = next((c for c in columns if _quantile(c, "roof") == V1_QUANTILES[statistic]), None)
    return (found, ground) if found and ground else None


def roof_fields(columns: Iterable[str]) -> list[str]:
    """The roof elevations among `columns`, of whatever statistic."""
    return [c for c in columns if _family(c) is not None]


def ground_field(roof_field: str, columns: Iterable[str]) -> str | None:
    """The one of `columns` that holds the ground of one of 3DBAG's roof elevations; None for any other field."""
    grounds = _family(roof_field)
    if grounds is None:
        return None
    names = _by_lower(columns)
    return _first(names, grounds) if grounds else _v1_ground(names)


def statistic_of(roof_field: str) -> str | None:
    """`height_stat` of a roof elevation: "p70", "p50", "min", "max", v1's "p75"; None when its name does not tell."""
    if quantile := _quantile(roof_field, "roof"):
        return "min" if quantile == "00" else f"p{quantile}"
    for roof, _ in FAMILIES:
        for name in STATISTICS:
            full = roof.format(name)
            names = {full} if _is_shared_cut(roof, name) else {full, _cut(full)}
            if roof_field.lower() in names:
                return f"p{name[:-1]}" if name.endswith("p") else name
    return None


def _family(roof_field: str) -> tuple[str, ...] | None:
    """Names of the ground that belongs to a roof elevation, () for v1's; None when it is not one."""
    lower = roof_field.lower()
    if _quantile(lower, "roof"):
        return ()
    for roof, grounds in FAMILIES:
        if any(lower in (roof.format(s), _cut(roof.format(s))) for s in STATISTICS):
            return grounds
        prefix = roof.format("")
        # GDAL's way out of equal truncations: dd_h_dak_m, dd_h_dak_1, dd_h_dak_2.
        if len(prefix) == _SHAPEFILE_NAME - 1 and re.fullmatch(re.escape(prefix) + r"\d", lower):
            return grounds
    return None


def _is_shared_cut(roof: str, statistic: str) -> bool:
    cuts = [_cut(roof.format(s)) for s in STATISTICS]
    return cuts.count(_cut(roof.format(statistic))) > 1


def _quantile(column: str, kind: str) -> str | None:
    """The digits "75" of v1's "roof-0.75", and of what exporters make of it: roof-0_75, roof_0_75, roof-75."""
    if found := re.fullmatch(kind + r"[-_ ](?:0?[._])?(\d\d)", column.lower()):
        return found.group(1)
    if found := re.fullmatch(kind + r"[-_ ]0[._](\d)", column.lower()):  # cut: ground-0.1
        return found.group(1) + "0"
    return None


def _v1_ground(names: Mapping[str, str]) -> str | None:
    found = {_quantile(lower, "ground"): column for lower, column in names.items()}
    return next((found[q] for q in V1_GROUNDS if q in found), None)


def _by_lower(columns: Iterable[str]) -> dict[str, str]:
    return {str(c).lower(): c for c in reversed(list(columns))}


def _cut(name: str) -> str:
    return name[:_SHAPEFILE_NAME]


def _first(names: Mapping[str, str], wanted: Iterable[str]) -> str | None:
    for name in wanted:
        for spelling in (name, _cut(name)):
            if spelling in names and spelling not in AMBIGUOUS:
                return names[spelling]
    return None


@functools.lru_cache(maxsize=4096)
def is_known(column: str) -> bool:
    """Whether `column` is one that this module and the filters know what to do with."""
    lower = column.lower()
    return bool(
        _family(column) is not None
        or _quantile(column, "ground")
        or _first({lower: column}, (ground for _, grounds in FAMILIES for ground in grounds))
        or attribute_columns((column,))
        or lower in IDENTIFIERS
    )


def attribute_columns(columns: Iterable[str]) -> dict[str, list[str]]:
    """Key of ATTRIBUTES -> the columns that hold it, for those that are there."""
    names = _by_lower(columns)
    found = {}
    for key, spellings in ATTRIBUTES.items():
        there = [column for name in spellings if (column := _first(names, (name,)))]
        if there:
            found[key] = list(dict.fromkeys(there))
    return found


def identifier_field(columns: Iterable[str]) -> str | None:
    """The column that holds the BAG's identifier of a building; None when there is none."""
    return _first(_by_lower(columns), IDENTIFIERS)


def is_missing(value) -> bool:
    """Whether a column's value says nothing: None, NaN, NaT or empty text. An empty list says something."""
    if isinstance(value, str):
        return not value.strip()
    if value is None or isinstance(value, (int, float)):
        return value is None or value != value
    return bool(pandas.api.types.is_scalar(value) and pandas.isna(value))


def implausible(attributes: Mapping, roof_field: str, ground_field: str | None, columns) -> str | None:
    """Why a row's elevations are not to be believed although they are numbers; None when nothing speaks against them.

    Args:
        roof_field, ground_field: the columns that are subtracted.
        columns: `attribute_columns` of the layer.
    """
    if ground_field is None or _family(roof_field) is None:
        return None
    median = columns.get("kadaster_median")
    # Where Kadaster had no roof planes, it wrote the height of a block, above ground, into the column of the maximum.
    if median and roof_field.lower().startswith("dd_h_dak_") and is_missing(attributes.get(median[0])):
        return "no roof planes" if not is_missing(attributes.get(roof_field)) else None
    low, high = NAP_RANGE_M
    for name in (roof_field, ground_field):
        try:
            elevation_m = float(attributes[name])
        except (KeyError, TypeError, ValueError):  # no number: not for here to say
            continue
        if elevation_m < low or elevation_m > high:
            return "outside the range of NAP"
    return None


def release_of(*texts: str | None) -> str | None:
    """3DBAG's release, e.g. "2023.06.22", in the first text that names one; None when none does.

    Args:
        texts: metadata, or a path: its downloads lie in folders such as v20230622. Other dates are not taken for one.
    """
    version = r"(?<![a-zA-Z0-9.])(?:v(20\d\d)[._-]?(\d\d)[._-]?(\d\d)|(20\d\d)\.(\d\d)\.(\d\d))(?!\d)"
    for text in texts:
        if found := re.search(version, str(text or "")):
            return ".".join(filter(None, found.groups()))
    return None


def check_release(release: str | None, roof_field: str | None, columns: Iterable[str]) -> str | None:
    """What there is to say about a table's roof elevations before they are believed; None when nothing.

    In release 2023.06.22 those of the roof parts in GeoPackage and WFS were 15 m off (3DBAG's release notes of
    2023.08.09); its CityJSON is right.

    Args:
        release: as `release_of` gives it; None when nothing tells.
        columns: of the whole file.

    Raises:
        InputError: it is that release.
    """
    if roof_field is None or not roof_field.lower().startswith("b3_h_dak_"):
        return None
    advice = (
        "Its roof elevations are 15 m off in GeoPackage and WFS: use release 2023.08.09 or later, or the CityJSON of "
        "the same release"
    )
    if release == "2023.06.22":
        raise InputError(
            f"this is 3DBAG's release 2023.06.22. {advice}. Name `height_field` and `ground_field` to read them all "
            "the same."
        )
    # b3_bag_bag_overlap came with 2023.10.08. What was made of a file may have lost it, or been cut to 10 characters.
    if release is None and not any(str(c).lower().startswith("b3_bag_bag") for c in columns):
        return f"may be 3DBAG's release 2023.06.22, the columns do not tell. {advice}."
    return None
