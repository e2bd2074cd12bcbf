"""Columns of heights: in which unit they are, and which plainly hold no heights."""

import re
from collections.abc import Sequence
from numbers import Number
from pathlib import Path

from fusiondet.buildings import TALLEST_BUILDING_M
from fusiondet.errors import InputError
from fusiondet.io.crs import parse_crs
from fusiondet.io.units import (
    HEIGHT_UNITS,
    METRE,
    LengthUnit,
    horizontal_unit,
    length_unit,
    required_length_unit,
)
from fusiondet.io.vector_records import ID_FIELDS, Records

# Lengths that a column's name may end in; "link" or "ch" are words of other meanings.
_NAMED_UNITS = ("m", "ft", "us-ft", "cm", "dm", "mm")
# A column is told by its numbers from so many on.
_MOST_TELLING = 20
_NAMES_OF_IDS = re.compile(r"(?i:(^|[_\W])(id|fid|gid|oid|uid|uuid|guid|objectid|identifier))$|[a-z]I[dD]$")


def unit_of_name(column: str) -> LengthUnit | None:
    """Return the unit that the name of a column ends in, such as "HEIGHT_FT", "roofHeightFeet" or "top (m)"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)
    words = [word for word in re.split(r"[^A-Za-z0-9]+", words) if word]
    # A name of one word is no unit: a column "m" or "ft" says nothing of what it holds.
    for count in (3, 2, 1):
        unit = length_unit(" ".join(words[-count:])) if len(words) > count else None
        if unit is not None and unit.name in _NAMED_UNITS:
            return unit
    return None


def column_units(
    path: Path, columns: Sequence[str], height_unit: str | None, source: Records
) -> dict[str, LengthUnit]:
    """Return the unit of each of `columns`: what its name states, else `height_unit`, else what the vertical axis does.

    Metres, where nothing says anything.

    Raises:
        InputError: `height_unit` is no unit; or nothing states one, and the coordinates are in feet.
    """
    given = None if height_unit is None else required_length_unit(height_unit, "height_unit")
    found = {column: unit_of_name(column) or given or source.vertical_unit for column in columns}
    unstated = [column for column, unit in found.items() if unit is None]
    map_unit = horizontal_unit(parse_crs(source.crs, f"{path}: CRS")) if source.crs and unstated else None
    if map_unit is not None and map_unit.is_foot:
        raise InputError(
            f"{path}: its coordinates are in feet ({map_unit.name}), and nothing says whether {', '.join(unstated)} is "
            f"in feet, too. Pass `height_unit`: {', '.join(HEIGHT_UNITS)}."
        )
    return {column: unit or METRE for column, unit in found.items()}


def unit_notes(path: Path, units: dict[str, LengthUnit], height_unit: str | None) -> list[str]:
    """Return a sentence for the user about each column that is not in metres, or not in the unit that was given."""
    given = None if height_unit is None else required_length_unit(height_unit, "height_unit")
    notes = []
    for column, unit in units.items():
        if given is not None and unit != given:
            notes.append(f"{path.name}: {column} is in {unit.name} by its name, not in {given.name}.")
        if not unit.is_metre:
            notes.append(f"{path.name}: {column} is in {unit.name}, taken times {unit.metres:.7g} to metres.")
    return notes


def refuse_identifier(path: Path, column: str, values: Sequence, ground_field: str | None = None) -> None:
    """Refuse a column of heights that plainly identifies rows: by its name, or as it counts them.

    Raises:
        InputError: see above.
    """
    why = None
    if column.lower() in {name.lower() for name in ID_FIELDS} or _NAMES_OF_IDS.search(column):
        why = "by its name"
    else:
        numbers = [number for number in map(_whole_number, values) if number is not None]
        many = len(numbers) >= _MOST_TELLING and len(numbers) == len(values)
        if many and all(b - a == 1 for a, b in zip(numbers, numbers[1:])):
            why = f"as it counts the rows from {numbers[0]} to {numbers[-1]}"
        elif (
            many
            and ground_field is None
            and len(set(numbers)) == len(numbers)
            and min(numbers) > TALLEST_BUILDING_M
        ):
            why = (
                f"as all its values are whole, different, and above {TALLEST_BUILDING_M:g}, e.g. {numbers[0]}"
            )
    if why is not None:
        raise InputError(
            f"{path}: the column {column!r} is an identifier {why}, expected heights. Name another column."
        )


def _whole_number(value) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 20 else None
    if isinstance(value, bool) or not isinstance(value, Number) or value != value or abs(value) > 1e18:
        return None
    return int(value) if value == int(value) else None
