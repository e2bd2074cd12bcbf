"""Names of 3DBAG's height attributes (https://docs.3dbag.nl, CC BY 4.0 by tudelft3d and 3DGI).

All of them are elevations above NAP, not heights: the ground next to the building, `b3_h_maaiveld` (5th percentile
of the ground points within 4 m), has to be subtracted. The statistics describe the roof points of the LoD 2.2 model;
70p is what 3DBAG's own LoD 1.2 block is extruded to.
"""

from collections.abc import Iterable

from fusiondet.errors import unknown_name

STATISTICS = ("min", "50p", "70p", "max")
DEFAULT_STATISTIC = "70p"
# (roof, ground) of each naming family, newest first: 2025 renamed b3_h_dak_70p to b3_h_70p.
FAMILIES = (
    ("b3_h_{}", "b3_h_maaiveld"),
    ("b3_h_dak_{}", "b3_h_maaiveld"),
)


def height_fields(columns: Iterable[str], statistic: str = DEFAULT_STATISTIC) -> tuple[str, str] | None:
    """Names of (roof elevation, ground elevation) among `columns`; None when they are not 3DBAG's.

    Raises:
        InputError: `statistic` is not one of STATISTICS.
    """
    if statistic not in STATISTICS:
        raise unknown_name("3DBAG statistic", statistic, STATISTICS)
    columns = set(columns)
    families = [(roof.format(statistic), ground) for roof, ground in FAMILIES]
    return next((pair for pair in families if columns.issuperset(pair)), None)


def ground_field(roof_field: str) -> str | None:
    """The ground elevation that belongs to one of 3DBAG's roof elevations; None for any other field."""
    pairs = ((roof.format(s), ground) for roof, ground in FAMILIES for s in STATISTICS)
    return next((ground for roof, ground in pairs if roof == roof_field), None)


def statistic_of(roof_field: str) -> str | None:
    """`height_stat` of one of 3DBAG's roof elevations: "p70", "p50", "min", "max"; None for any other field."""
    for roof, _ in FAMILIES:
        for name in STATISTICS:
            if roof_field == roof.format(name):
                return f"p{name[:-1]}" if name.endswith("p") else name
    return None
