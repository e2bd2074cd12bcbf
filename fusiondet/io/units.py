"""Units of length that files state: band units, axes of reference systems, and what they are in metres.

Names come from PROJ's database ("US survey foot", "us-ft", "metre" ...), with the spellings of GDAL, ESRI and English
beside them. Feet come in two lengths, which differ by 2 parts in a million: they are kept apart.
"""

import re
from dataclasses import dataclass
from functools import cache

from fusiondet.errors import InputError

from pyproj import CRS
from pyproj.database import get_units_map

# What PROJ's database calls by other names. Keys are as `_key` makes them.
_SPELLINGS = {
    "m": "meter meters metres mtr",
    "ft": "feet international_foot international_feet foot_international feet_international ift foot_intl "
    "intl_foot intl_feet",
    "us-ft": "us_survey_feet us_foot us_feet foot_us feet_us ft_us ftus usft us_ft survey_foot survey_feet sft sfoot "
    "foot_us_survey feet_us_survey us_survey_ft u_s_survey_foot u_s_survey_feet usfoot usfeet",
    "cm": "centimeter centimeters centimetres cm",
    "dm": "decimeter decimeters decimetres decimetre dm",
    "mm": "millimeter millimeters millimetres mm",
    "km": "kilometer kilometers kilometres km",
}


@dataclass(frozen=True)
class LengthUnit:
    """A unit of length.

    Attributes:
        name: the short one where PROJ has one ("m", "ft", "us-ft"), else its name ("German legal metre").
        metres: how many metres one is.
    """

    name: str
    metres: float

    @property
    def is_metre(self) -> bool:
        """True for the metre."""
        return self.metres == 1

    @property
    def is_foot(self) -> bool:
        """True for a foot of any kind."""
        return 0.28 < self.metres < 0.33


METRE = LengthUnit("m", 1.0)
FOOT = LengthUnit("ft", 0.3048)
US_SURVEY_FOOT = LengthUnit("us-ft", 1200 / 3937)
# The units that a user may state for heights that no file states.
HEIGHT_UNITS = {unit.name: unit for unit in (METRE, FOOT, US_SURVEY_FOOT)}


def length_unit(name: str | None) -> LengthUnit | None:
    """Return the unit that is called `name`, in any of the spellings of GDAL, PROJ and ESRI; None for no such one."""
    return _units().get(_key(name or ""))


def required_length_unit(name: str, parameter: str) -> LengthUnit:
    """Return the unit that is called `name`.

    Args:
        parameter: what was given it, for the message.

    Raises:
        InputError: no unit of length is called so.
    """
    unit = length_unit(name)
    if unit is None:
        raise InputError(
            f"`{parameter}` is {str(name)[:40]!r}, expected a unit of length: {', '.join(HEIGHT_UNITS)}."
        )
    return unit


def vertical_unit(crs: CRS) -> LengthUnit | None:
    """Return the unit that heights count in by the vertical axis of a compound, vertical or 3D `crs`.

    None where the CRS has no vertical axis; an axis of depths counts too, see `is_depth`.
    """
    return next((_axis_unit(axis) for axis in _axes(crs) if axis.direction in ("up", "down")), None)


def height_unit_of(band_unit: str | None, crs: CRS | None) -> LengthUnit | None:
    """Return the unit of heights in a raster: that of its band, else that of the vertical axis of its CRS.

    A band's unit may have a datum behind it: "m above ground", "US survey feet (NAVD88)".

    Returns:
        None where neither states one.

    Raises:
        InputError: the band's unit is no length; or the axis counts downwards.
    """
    if crs is not None and is_depth(crs):
        raise InputError(
            f"the vertical axis of its CRS {crs.name} counts depths, expected heights, which count upwards. Assign "
            "the right CRS, or convert the values."
        )
    if not band_unit or not band_unit.strip():
        return crs and vertical_unit(crs)
    text = re.sub(r"[(\[,;].*", "", band_unit)
    for words in (band_unit, text, (text.split() or [""])[0]):
        if unit := length_unit(words):
            return unit
    raise InputError(
        f"its band is in {band_unit[:40]!r}, which is no length. Expected heights in metres or feet: where they are, "
        "set the unit with `rio edit-info --bidx 1 --units m FILE`."
    )


def is_depth(crs: CRS) -> bool:
    """Return True where the vertical axis of `crs` counts downwards."""
    return any(axis.direction == "down" for axis in _axes(crs))


def horizontal_unit(crs: CRS) -> LengthUnit | None:
    """Return the unit of the map coordinates of `crs`; None where they are angles.

    It is only a hint at the unit of heights: layers with coordinates in feet hold heights in feet, and in metres.
    """
    axes = [axis for axis in _axes(crs) if axis.direction not in ("up", "down")]
    return _axis_unit(axes[0]) if axes and crs.is_projected else None


def _axes(crs: CRS) -> list:
    while crs.is_bound and crs.source_crs is not None:
        crs = crs.source_crs
    parts = crs.sub_crs_list or [crs]
    return [axis for part in parts for axis in (part.source_crs if part.is_bound else part).axis_info]


def _axis_unit(axis) -> LengthUnit:
    return length_unit(axis.unit_name) or LengthUnit(axis.unit_name, axis.unit_conversion_factor)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_")


@cache
def _units() -> dict[str, LengthUnit]:
    """The unit of each key, see `_key`."""
    units = {}
    for entry in get_units_map(category="linear", allow_deprecated=False).values():
        unit = LengthUnit(entry.proj_short_name or entry.name, entry.conv_factor)
        units.update({_key(name): unit for name in (entry.name, entry.proj_short_name) if name})
    units = {key: HEIGHT_UNITS.get(unit.name, unit) for key, unit in units.items()}
    units["dm"] = LengthUnit("dm", 0.1)  # 0.01 in PROJ's own table
    for short, spellings in _SPELLINGS.items():
        units.update(dict.fromkeys(spellings.split(), units[_key(short)]))
    return units
