"""A QGIS style beside a layer: outlines coloured by height, with a legend in metres.

QGIS takes `city.qml` by itself when it opens `city.gpkg`. The classes are the same for every layer, so that two maps
can be compared. It is not stored in the GeoPackage: its table `layer_styles` counts as a second layer there, listed in
`gpkg_contents` or not, and readers that take the only layer of a file (GeoPandas, for one) warn or have to be told
which. It would also hold the time at which it was written, and so no two runs would give the same bytes.
"""

from pathlib import Path
from xml.etree import ElementTree

from fusiondet.errors import InputError
from fusiondet.files import atomic_path
from fusiondet.io.layers import format_of

# Upper ends of the classes but the last, metres; about storeys at first.
BREAKS_M = (3, 6, 9, 12, 15, 20, 30, 50, 100)
# Of light and dark ground alike; colour-blind safe, as it is told by lightness (viridis, from pale to dark).
_COLOURS = (
    "#fde725", "#b5de2b", "#6ece58", "#35b779", "#1f9e89", "#26828e", "#31688e", "#3e4989", "#482878", "#440154",
)  # fmt: skip
_UNKNOWN_COLOUR = "#bdbdbd"
_OUTLINE_COLOUR = "#323232"


def check_style(layer: Path) -> Path:
    """Where the style of `layer` belongs: beside it, with the suffix .qml.

    Raises:
        InputError: QGIS would not look for it, as `layer` is a city model, or no layer at all.
    """
    layer = Path(layer)
    if format_of(layer).driver == "CityJSON":
        raise InputError(
            f"{layer}: QGIS reads no style beside a city model. Leave out `style`, or write .gpkg instead."
        )
    return layer.with_suffix(".qml")


def write_style(layer: Path, column: str = "height_m") -> list[str]:
    """Write the style of `layer` beside it; one that is there is the user's, and stays.

    Args:
        layer: file of a layer, e.g. "city.gpkg".
        column: of numbers in metres, NULL where unknown.

    Returns:
        Sentences for the user: which of both it was.

    Raises:
        InputError: see `check_style`.
    """
    path = check_style(layer)
    if path.exists():
        return [f"{path}: is there already and stays as it is. Remove it to get a new style."]
    with atomic_path(path) as temporary:
        temporary.write_text(height_style(column), encoding="utf-8")
    return [f"{path}: written; beside the layer, QGIS colours it by height."]


def height_style(column: str = "height_m") -> str:
    """QGIS style (QML) of polygons: a rule for each class of `column` in metres, and one for NULL."""
    name = '"' + column.replace('"', '""') + '"'
    root = ElementTree.Element("qgis", version="3.16.0", styleCategories="Symbology")
    renderer = ElementTree.SubElement(
        root, "renderer-v2", type="RuleRenderer", symbollevels="0", enableorderby="0", forceraster="0"
    )
    rules = ElementTree.SubElement(renderer, "rules", key="{heights}")
    symbols = ElementTree.SubElement(renderer, "symbols")
    for number, (label, condition, colour) in enumerate(_classes(name)):
        key = f"{{heights-{number}}}"
        ElementTree.SubElement(rules, "rule", key=key, filter=condition, label=label, symbol=str(number))
        _symbol(symbols, str(number), colour)
    ElementTree.SubElement(root, "layerGeometryType").text = "2"
    ElementTree.indent(root, " ")
    text = ElementTree.tostring(root, encoding="unicode")
    return f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{text}\n"


def _classes(name: str) -> list[tuple[str, str, str]]:
    """(label, filter, colour) each: every number, and NULL, is in exactly one."""
    ends = [None, *BREAKS_M, None]
    classes = []
    for low, high, colour in zip(ends[:-1], ends[1:], _COLOURS, strict=True):
        conditions = [f"{name} > {low}"] * (low is not None) + [f"{name} <= {high}"] * (high is not None)
        label = (
            f"up to {high} m" if low is None else f"above {low} m" if high is None else f"{low} – {high} m"
        )
        classes.append((label, " AND ".join(conditions), colour))
    return [*classes, ("height unknown", f"{name} IS NULL", _UNKNOWN_COLOUR)]


def _symbol(parent: ElementTree.Element, name: str, colour: str) -> None:
    symbol = ElementTree.SubElement(
        parent, "symbol", type="fill", name=name, alpha="1", clip_to_extent="1", force_rhr="0"
    )
    fill = {"class": "SimpleFill", "enabled": "1", "locked": "0", "pass": "0"}
    layer = ElementTree.SubElement(symbol, "layer", fill)
    values = {
        "color": _rgba(colour, 217),
        "style": "solid",
        "outline_color": _rgba(_OUTLINE_COLOUR),
        "outline_style": "solid",
        "outline_width": "0.1",
        "outline_width_unit": "MM",
        "joinstyle": "miter",
    }
    options = ElementTree.SubElement(layer, "Option", type="Map")
    for key, value in values.items():
        # Releases before 3.26 read <prop>, later ones <Option>.
        ElementTree.SubElement(options, "Option", type="QString", name=key, value=value)
        ElementTree.SubElement(layer, "prop", k=key, v=value)


def _rgba(colour: str, alpha: int = 255) -> str:
    return ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5)) + f",{alpha}"
