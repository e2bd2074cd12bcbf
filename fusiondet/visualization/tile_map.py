"""A score of every tile at the tile's place on the map."""

import math
from collections.abc import Sequence

from fusiondet.buildings import Tile, pixel_to_map
from fusiondet.visualization.canvas import FAINT, INK, axes_in, new_figure

import matplotlib
import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon

_SIDE_IN, _LEAST_SIDE_IN, _MARGIN_IN, _BAR_IN, _LEAST_WIDTH_IN = 6.4, 1.6, 0.75, 0.2, 6.6
# In a tile of this width there is room for its number.
_NUMBER_IN = 0.3
# A tile smaller than this share of the map's longer side is a dot that nobody sees.
_SMALLEST_SIDE = 1 / 150
_COLOURS, _UNDEFINED = matplotlib.colormaps["viridis"], "#e4e4e4"


def tile_map_figure(tiles: Sequence[Tile], scores: Sequence[float], name: str) -> Figure:
    """Every tile as a square in the colour of its score; "nothing" (NaN) is grey and hatched.

    Tiles lie where their transforms put them, north up. They lie in a grid, in the order of `tiles`, row by row, where
    a place is not known, where they are in several CRSs, where two share one place, or where they lie so far apart that
    one could not be seen.

    Args:
        scores: (len(tiles),) in [0, 1]; NaN where not defined.
        name: of the score.
    """
    scores = np.asarray(scores, dtype=float)
    on_map = _places(tiles)
    corners = _grid(len(tiles)) if on_map is None else on_map
    ends = np.concatenate([*corners, np.zeros((0, 2))]) if corners else np.array([[0.0, 0.0], [1.0, 1.0]])
    low, span = ends.min(axis=0), np.ptp(ends, axis=0)
    inches = _SIDE_IN / span.max()
    width_in, height_in = np.maximum(span * inches, _LEAST_SIDE_IN)
    figure = new_figure(max(width_in + 2.6 * _MARGIN_IN, _LEAST_WIDTH_IN), height_in + 2 * _MARGIN_IN)
    ax = axes_in(figure, _MARGIN_IN, _MARGIN_IN, width_in, height_in)
    ax.set(xlim=(low[0], low[0] + span[0]), ylim=(low[1], low[1] + span[1]))
    ax.set_aspect("equal", anchor="W")
    for outline, score in zip(corners, scores, strict=True):
        ax.add_patch(Polygon(outline, edgecolor="white", linewidth=0.6, **_filling(score)))
        if np.isfinite(score) and np.ptp(outline[:, 0]) * inches >= _NUMBER_IN:
            style = {"fontsize": 6.5, "color": "white" if score < 0.6 else "black"}
            ax.text(*outline.mean(axis=0), f"{score:.2f}", ha="center", va="center", **style)
    _label_axes(ax, None if on_map is None else tiles[0].crs or "", width_in, height_in)
    figure.text(
        *(_MARGIN_IN / figure.get_figwidth(), 1 - 0.5 / figure.get_figheight()),
        _title(name, scores),
        **{"fontsize": 10, "color": INK},
    )
    _key(figure, axes_in(figure, width_in + 1.25 * _MARGIN_IN, _MARGIN_IN, _BAR_IN, height_in), scores, name)
    return figure


def _filling(score: float) -> dict:
    if np.isfinite(score):
        return {"facecolor": _COLOURS(score)}
    return {"facecolor": _UNDEFINED, "hatch": "////"}


def _places(tiles: Sequence[Tile]) -> list[np.ndarray] | None:
    """(4, 2) corners of every tile in map coordinates; None where a map of them says nothing."""
    if not tiles or any(tile.transform is None for tile in tiles) or len({t.crs for t in tiles}) > 1:
        return None
    squares = [pixel_to_map(shapely.box(0, 0, tile.width, tile.height), tile.transform) for tile in tiles]
    if len({(round(s.centroid.x, 6), round(s.centroid.y, 6)) for s in squares}) < len(squares):
        return None
    x0, y0, x1, y1 = shapely.total_bounds(squares)
    if math.sqrt(min(s.area for s in squares)) < _SMALLEST_SIDE * max(x1 - x0, y1 - y0):
        return None
    return [shapely.get_coordinates(s)[:4] for s in squares]


def _grid(n: int) -> list[np.ndarray]:
    """(4, 2) corners of `n` unit squares, in rows from the top."""
    columns = max(math.ceil(math.sqrt(n)), 1)
    corner = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
    return [corner + (i % columns, -(i // columns)) for i in range(n)]


def _label_axes(ax: Axes, crs: str | None, width_in: float, height_in: float) -> None:
    """Coordinates of a map in `crs`; None: of a grid, which has none."""
    for side in ax.spines.values():
        side.set_visible(False)
    if crs is None:
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel("tiles in the order of the annotations, row by row", fontsize=8, color=FAINT)
        return
    ax.ticklabel_format(style="plain", useOffset=False)
    for axis, length_in in (("x", width_in), ("y", height_in)):
        ax.locator_params(axis=axis, nbins=max(1, int(length_in / 1.5)))
    ax.tick_params(labelsize=7, color=FAINT, labelcolor=FAINT)
    for label in ax.get_yticklabels():  # from its tick upwards: the lowest one is not written over those of x
        label.set(rotation=90, verticalalignment="bottom")
    ax.set_xlabel(crs if len(crs) <= 40 else "map coordinates", fontsize=8, color=FAINT)


def _title(name: str, scores: np.ndarray) -> str:
    defined = scores[np.isfinite(scores)]
    if not len(defined):
        return f"{name}: not defined on any of {len(scores)} tiles"
    ends = f"{defined.min():.2f} to {defined.max():.2f}"
    return f"{name}: median {np.median(defined):.2f} of {len(defined)} tiles, {ends}"


def _key(figure: Figure, bar: Axes, scores: np.ndarray, name: str) -> None:
    figure.colorbar(ScalarMappable(Normalize(0, 1), _COLOURS), cax=bar)
    bar.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
    bar.set_ylabel(name, fontsize=8.5, color=INK)
    if not np.isfinite(scores).all():
        patch = Patch(facecolor=_UNDEFINED, hatch="////", edgecolor="white", label="not defined")
        figure.legend(handles=[patch], loc="lower right", fontsize=8, frameon=False)
