"""Outlines of buildings on axes, in the colour of their height or of how they matched.

One perceptually uniform map for heights; what is unknown is grey and dashed, so it cannot be taken for a low building.
"""

import math
from collections.abc import Sequence

from fusiondet.buildings import Building
from fusiondet.evaluation.matching import NOTHING
from fusiondet.visualization.canvas import round_up

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.patheffects import Normal, Stroke, withStroke
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

# Lower than any building: maps are black there, and their scales made without it.
GROUND_M = 1.0
UNKNOWN_COLOUR = "#f2f2f2"
# Told apart by lightness too, for readers who do not see all colours.
MATCH_COLOURS = {"matched": "#41b6e6", "missed": "#ffe11a", "false": "#e4572e"}

# Plasma without its darkest blue, which drowns in radar shadow and asphalt.
_HEIGHT_MAP = LinearSegmentedColormap.from_list(
    "height", matplotlib.colormaps["plasma"](np.linspace(0.18, 1.0, 256))
)


def height_colours(heights_m: Sequence[float | None] | np.ndarray) -> ScalarMappable:
    """The height scale of a figure: 0 m to a round number near the 98th percentile of the known heights.

    Returns:
        A ScalarMappable: `.to_rgba(height_m)` is the colour, and a colourbar can be drawn from it. Without any known
        height it ends at 10 m.
    """
    known = np.array(heights_m, dtype=float)
    known = known[np.isfinite(known)]
    top = round_up(float(np.percentile(known, 98))) if known.size else 10.0
    return ScalarMappable(Normalize(0.0, top), _HEIGHT_MAP)


def map_colours(heights_m: np.ndarray) -> ScalarMappable:
    """`height_colours` for maps, which fade to black at the ground: otherwise low buildings are lost on it."""
    colours = height_colours(heights_m)
    height_m = np.linspace(0, colours.norm.vmax, 512)
    rgba = colours.to_rgba(height_m)
    rgba[:, :3] *= np.clip(height_m / GROUND_M, 0.12, 1)[:, None]
    return ScalarMappable(colours.norm, ListedColormap(rgba))


def error_colours(errors_m: np.ndarray) -> ScalarMappable:
    """The scale of height errors: from blue, too low, over white to red, too high, as far as the 98th percentile.

    Args:
        errors_m: any shape, prediction minus truth; NaN is unknown.
    """
    known = np.abs(errors_m[np.isfinite(errors_m)])
    top = round_up(float(np.percentile(known, 98))) if known.size else 10.0
    return ScalarMappable(Normalize(-top, top), matplotlib.colormaps["RdBu_r"])


def draw_buildings(
    ax: Axes,
    buildings: Sequence[Building],
    colours: ScalarMappable | None = None,
    labels: bool = True,
    linewidth_pt: float = 1.3,
) -> None:
    """Draw outlines in the colour of their height, lightly filled; unknown heights grey and dashed.

    Args:
        ax: axes in pixels, y down (as after `imshow` with extent (0, W, H, 0)).
        buildings: outlines in pixels; courtyards stay open.
        colours: scale of `height_colours`; default: of these buildings.
        labels: write the height in metres on every building that has room for it.
    """
    colours = colours or height_colours([b.height_m for b in buildings])
    known = [b for b in buildings if known_height(b.height_m)]
    unknown = [b for b in buildings if not known_height(b.height_m)]
    _draw_outlines(ax, [b.polygon for b in known], [colours.to_rgba(b.height_m) for b in known], linewidth_pt)
    _draw_outlines(
        ax, [b.polygon for b in unknown], [UNKNOWN_COLOUR] * len(unknown), linewidth_pt, dashed=True
    )
    if labels:
        _label_heights(ax, known)


def draw_matches(
    ax: Axes,
    truth: Sequence[Building],
    predictions: Sequence[Building],
    matches: Sequence[int],
    linewidth_pt: float = 1.3,
) -> None:
    """Draw predictions that found a building, those that did not ("false"), and the truth that was missed (dashed).

    Args:
        matches: index into `truth` of every prediction, or -1.
    """
    found = {int(g) for g in matches if g != NOTHING}
    predicted = list(zip(predictions, matches, strict=True))
    groups = {
        "missed": [b.polygon for i, b in enumerate(truth) if i not in found],
        "matched": [b.polygon for b, g in predicted if g != NOTHING],
        "false": [b.polygon for b, g in predicted if g == NOTHING],
    }
    for name, polygons in groups.items():
        colours = [MATCH_COLOURS[name]] * len(polygons)
        _draw_outlines(ax, polygons, colours, linewidth_pt, dashed=name == "missed")


def known_height(height_m: float | None) -> bool:
    """Whether this is a number of metres."""
    return height_m is not None and math.isfinite(height_m)


def pixels_per_point(ax: Axes) -> float:
    """Image pixels under one typographic point, from the axes' size on paper."""
    box = ax.get_position().transformed(ax.figure.transFigure)
    width_px, height_px = (abs(np.diff(limits)[0]) for limits in (ax.get_xlim(), ax.get_ylim()))
    dots_per_point = ax.figure.dpi / 72.0
    return dots_per_point * max(width_px / box.width, height_px / box.height)


def _draw_outlines(
    ax: Axes, polygons: Sequence[BaseGeometry], colours: Sequence, linewidth_pt: float, dashed: bool = False
) -> None:
    """Add one collection: faint fill, coloured line, thin dark rim that keeps it readable on any background."""
    if not polygons:
        return
    # On a tile full of small buildings lines of full width would leave nothing of them.
    side_pt = float(np.median([math.sqrt(p.area) for p in polygons])) / pixels_per_point(ax)
    linewidth_pt = min(linewidth_pt, max(0.5, 0.11 * side_pt))
    patches = [PathPatch(_outline(polygon)) for polygon in polygons]
    rgba = matplotlib.colors.to_rgba_array(colours)
    style = (0, (3.0, 1.5)) if dashed else "-"
    collection = PatchCollection(
        patches,
        facecolors=rgba * (1.0, 1.0, 1.0, 0.28),
        edgecolors=rgba,
        linewidths=linewidth_pt,
        linestyles=style,
    )
    rim = Stroke(linewidth=1.9 * linewidth_pt, foreground=(0, 0, 0, 0.55))
    collection.set_path_effects([rim, Normal()])
    ax.add_collection(collection, autolim=False)


def _outline(polygon: BaseGeometry) -> Outline:
    """Compound path of a Polygon or MultiPolygon; holes run the other way round, so they stay unfilled."""
    parts = [orient(part) for part in getattr(polygon, "geoms", [polygon])]
    rings = [ring for part in parts for ring in (part.exterior, *part.interiors)]
    return Outline.make_compound_path(
        *(Outline(np.asarray(ring.coords)[:, :2], closed=True) for ring in rings)
    )


def _label_heights(ax: Axes, buildings: Sequence[Building], size_pt: float = 6.5) -> None:
    """Write heights at a point inside each building, largest first, where the text fits and covers no other text."""
    px_per_pt = pixels_per_point(ax)
    frame = (*sorted(ax.get_xlim()), *sorted(ax.get_ylim()))
    taken: list[tuple[float, float, float, float]] = []
    for building in sorted(buildings, key=lambda b: -b.polygon.area):
        text = f"{building.height_m:.0f}" if building.height_m >= 9.95 else f"{building.height_m:.1f}"
        half_w, half_h = 0.33 * size_pt * len(text) * px_per_pt, 0.55 * size_pt * px_per_pt
        centre = building.polygon.centroid
        at = centre if building.polygon.contains(centre) else building.polygon.representative_point()
        label = (at.x - half_w, at.y - half_h, at.x + half_w, at.y + half_h)
        if _fits(label, building.polygon.bounds, frame) and not any(
            _overlap(label, other) for other in taken
        ):
            taken.append(label)
            rim = [withStroke(linewidth=1.6, foreground=(0, 0, 0, 0.8))]
            style = {
                "fontsize": size_pt,
                "color": "white",
                "ha": "center",
                "va": "center",
                "path_effects": rim,
            }
            ax.text(at.x, at.y, text, clip_on=True, **style)


def _fits(label, bounds, frame) -> bool:
    """Whether the label is no larger than the building and inside the picture."""
    left, right, top, bottom = frame
    inside = label[0] >= left and label[2] <= right and label[1] >= top and label[3] <= bottom
    return inside and all(bounds[i + 2] - bounds[i] >= label[i + 2] - label[i] for i in (0, 1))


def _overlap(a, b) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
