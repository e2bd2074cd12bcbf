"""What 3DBAG says against its own buildings, and which of them to keep as labels of an image.

A point cloud is years older or newer than an image; buildings were built or torn down in between; greenhouses and
failed models are level blocks. `Filters` says what to do about each of the CHECKS, an `Inspector` finds them.
"""

import datetime
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fusiondet.errors import InputError, unknown_name
from fusiondet.io.threedbag import ATTRIBUTES, attribute_columns, is_missing

# Values of b3_dak_type by their names of today: 21.09 and 2023 renamed two, Kadaster writes numbers.
ROOF_TYPES = {
    "could not detect": "no planes",
    "single horizontal": "horizontal",
    "2": "slanted",
    "1": "multiple horizontal",
    "0": "horizontal",
    "-1": "no points",
    "-2": "no planes",
}
# Status in the BAG of what does not stand there: permitted only, under construction, never built, demolished.
NOT_STANDING = (
    "bouwvergunning verleend",
    "bouw gestart",
    "niet gerealiseerd pand",
    "pand ten onrechte opgevoerd",
    "pand gesloopt",
)
# Years of the national point clouds, where a file names the cloud but not the date.
CLOUD_YEARS = {
    "ahn1": (1997, 2004),
    "ahn2": (2007, 2012),
    "ahn3": (2014, 2019),
    "ahn4": (2020, 2022),
    "ahn5": (2023, 2025),
}

_CLOUDS = ("ahn3", "ahn4", "ahn5")
_MEASURED = (("cloud_date",), ("cloud",))
# What can be held against a building -> (what it means, sets of ATTRIBUTES of which one, whole, is enough to tell).
CHECKS = {
    "later": ("built after the image was taken", (("built",),)),
    "apart": ("measured too many years from the image", _MEASURED),
    "not-standing": ("planned, under construction, never built or demolished", (("status",),)),
    "outdated": (
        "built since its point cloud was measured",
        (("selection",), *(("built", *one) for one in _MEASURED)),
    ),
    "mutated": ("changed between two of the point clouds", (("mutated",),)),
    "failed-roof": (
        "no points or no planes found on the roof, or not modelled",
        (("roof_type",), ("extrusion",)),
    ),
    "sparse": (
        "too few points on it",
        (("selection",), ("insufficient",), *(("cloud", f"nodata_{cloud}") for cloud in _CLOUDS)),
    ),
    "greenhouse": ("a greenhouse or warehouse, or larger than 70 000 m2", (("greenhouse",),)),
    "simplified": ("one level block where a model was wanted", (("simplified",), ("extrusion",))),
    "invalid": ("a LoD 2.2 model in which val3dity finds errors", (("model_errors",),)),
}
ACTIONS = ("keep", "unknown", "drop")


@dataclass(frozen=True)
class Filters:
    """What to do with buildings that one of CHECKS applies to.

    Attributes:
        actions: check -> "keep" (count it only), "unknown" (the outline stays, its height does not) or "drop". A check
            that is not named is "keep"; but with `image_year`, what was built later is dropped, and with
            `max_years_apart`, heights that were measured too far from the image are unknown.
        image_year: of the image that the buildings are labels of; None when unknown.
        max_years_apart: between the point cloud and the image, for "apart"; None: any.
        max_empty_share: of the outline without points, for "sparse", in [0, 1].

    Raises:
        InputError: an unknown check or action, or a check that lacks its year.
    """

    actions: Mapping[str, str] = field(default_factory=dict)
    image_year: int | None = None
    max_years_apart: int | None = None
    max_empty_share: float = 0.5

    def __post_init__(self):
        for check, action in self.actions.items():
            if check not in CHECKS:
                raise unknown_name("filter", check, CHECKS)
            if action not in ACTIONS:
                raise unknown_name(f"action of the filter {check!r}", action, ACTIONS)
        if self.image_year is not None and not 1900 <= self.image_year <= 2100:
            raise InputError(f"image year {self.image_year}: expected a year from 1900 to 2100.")
        if self.max_years_apart is not None and self.max_years_apart < 0:
            raise InputError(f"{self.max_years_apart} years apart: expected 0 or more.")
        if not 0 <= self.max_empty_share <= 1:
            raise InputError(f"empty share {self.max_empty_share}: expected a number from 0 to 1.")
        if self.image_year is None and ("later" in self.actions or self._apart_asked()):
            raise InputError(
                "filters 'later' and 'apart' compare with the year of the image: give `image_year`."
            )
        if "apart" in self.actions and self.max_years_apart is None:
            raise InputError("filter 'apart' needs the number of years: give `max_years_apart`.")

    def _apart_asked(self) -> bool:
        return "apart" in self.actions or self.max_years_apart is not None

    def action(self, check: str) -> str:
        """What to do with the buildings that `check` applies to."""
        usual = {"later": self.image_year, "apart": self.max_years_apart}
        default = {"later": "drop", "apart": "unknown"}
        return self.actions.get(check) or (default[check] if usual.get(check) is not None else "keep")

    def demanded(self) -> list[str]:
        """The checks that change something."""
        return [check for check in CHECKS if self.action(check) != "keep"]


def parse_filters(texts: Iterable[str]) -> dict[str, str]:
    """["greenhouse=drop", "sparse=unknown"] -> {"greenhouse": "drop", "sparse": "unknown"}, for `Filters.actions`.

    Raises:
        InputError: one is not NAME=ACTION, or a name occurs twice.
    """
    actions: dict[str, str] = {}
    for text in texts:
        check, equals, action = text.partition("=")
        if not equals or not check or not action:
            raise InputError(f"filter {text!r}: expected NAME=ACTION, e.g. greenhouse=drop.")
        if check in actions:
            raise InputError(f"filter {check!r} is given twice.")
        actions[check] = action
    return actions


class Inspector:
    """Says of each building of one layer which CHECKS apply to it.

    Args:
        columns: of the layer.
        filters: which checks matter.

    Raises:
        InputError: a check that changes something is asked for, and the layer lacks the columns that tell.
    """

    def __init__(self, columns: Iterable[str], filters: Filters):
        self.filters = filters
        self.columns = attribute_columns(columns)
        for check in filters.demanded():
            ways = CHECKS[check][1]
            if not any(self.columns.keys() >= set(way) for way in ways):
                wanted = " or ".join(" with ".join("/".join(ATTRIBUTES[key]) for key in way) for way in ways)
                raise InputError(
                    f"filter {check!r} needs columns that are not there: {wanted}. Leave the filter out, or say "
                    f"{check}=keep."
                )

    def checks(self, attributes: Mapping) -> list[str]:
        """The checks that apply to a building with these attributes, in the order of CHECKS. Unknown is innocent."""
        known = {}
        for key, columns in self.columns.items():
            values = [v for c in columns if not is_missing(v := attributes.get(c))]
            if len(values) == 1:
                known[key] = values[0]
            elif values:  # of two mutations, say, one is enough
                known[key] = next((v for v in values if _truth(v)), values[0])
        if not known:
            return []
        return [check for check in CHECKS if _CHECKS[check](known, self.filters)]

    def verdict(self, checks: Iterable[str]) -> tuple[str, str | None]:
        """(action, the check that asks for it) of a building that `checks` apply to; ("keep", None) for none."""
        worst = ("keep", None)
        for check in checks:
            action = self.filters.action(check)
            if ACTIONS.index(action) > ACTIONS.index(worst[0]):
                worst = (action, check)
        return worst


def point_cloud_years(known: Mapping) -> tuple[int, int] | None:
    """(first, last) year in which a building's points may have been measured; None when nothing is known.

    Args:
        known: {"cloud_date": ..., "cloud": ...}, as the file has them.
    """
    if year := year_of(known.get("cloud_date")):
        return year, year
    name = re.sub(r"\.0$", "", str(known.get("cloud", "")).strip().lower())
    return CLOUD_YEARS.get(f"ahn{name}" if name.isdigit() else name)


def year_of(value) -> int | None:
    """The year of a date in any of the ways in which files write it: 2020, 2020.0, "2017-12-01", "20171201", a date."""
    if isinstance(value, datetime.date):
        return value.year
    found = re.match(r"\d{4}(?!\d)|\d{4}(?=\d{4}(?!\d))", str(value).strip())
    year = int(found.group()) if found else 0
    # Years of construction before 1006 and after 2100 are the BAG's ways to say that it is not known: 1005, 9999.
    return year if 1006 <= year <= 2100 else None


def _truth(value) -> bool:
    return value is True or str(value).strip().lower() in ("true", "t", "1", "1.0", "yes", "ja")


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


def roof_type(value) -> str:
    """A value of `b3_dak_type` by its name of today."""
    text = re.sub(r"\.0$", "", str(value).strip().lower())
    return ROOF_TYPES.get(text, text)


def _is_later(known: Mapping, filters: Filters) -> bool:
    built = year_of(known.get("built"))
    return bool(built and filters.image_year is not None and built > filters.image_year)


def _is_apart(known: Mapping, filters: Filters) -> bool:
    years = point_cloud_years(known)
    if filters.image_year is None or filters.max_years_apart is None or years is None:
        return False
    gap = max(years[0] - filters.image_year, filters.image_year - years[1], 0)
    return gap > filters.max_years_apart


def _is_outdated(known: Mapping, filters: Filters) -> bool:
    built, years = year_of(known.get("built")), point_cloud_years(known)
    if known.get("selection") == "_LATEST_BUT_OUTDATED":
        return True
    return bool(built and years and built > years[1])


def _is_sparse(known: Mapping, filters: Filters) -> bool:
    if known.get("selection") == "_HIGHEST_YET_INSUFFICIENT_COVERAGE" or _truth(known.get("insufficient")):
        return True
    empty = known.get(f"nodata_{str(known.get('cloud', '')).strip().lower()}")
    return _number(empty) > filters.max_empty_share


_CHECKS = {
    "later": _is_later,
    "apart": _is_apart,
    "not-standing": lambda known, _: str(known.get("status", "")).strip().lower() in NOT_STANDING,
    "outdated": _is_outdated,
    "mutated": lambda known, _: _truth(known.get("mutated")),
    "failed-roof": lambda known, _: (
        roof_type(known.get("roof_type", "")) in ("no points", "no planes", "unknown")
        or str(known.get("extrusion", "")) in ("skip", "2", "2.0")
    ),
    "sparse": _is_sparse,
    "greenhouse": lambda known, _: _truth(known.get("greenhouse")),
    "simplified": lambda known, _: (
        _truth(known.get("simplified")) or str(known.get("extrusion", "")) in ("lod11_fallback", "1", "1.0")
    ),
    "invalid": lambda known, _: bool(re.search(r"\d", str(known.get("model_errors", "")))),
}
