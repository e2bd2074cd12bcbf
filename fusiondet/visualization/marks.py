"""What stands on and under the panels: arrows in badges, scale bars, the legend."""

import math
from collections.abc import Sequence

from fusiondet.buildings import Tile
from fusiondet.visualization.building_overlays import MATCH_COLOURS
from fusiondet.visualization.canvas import FAINT, INK, axes_in, round_down
from fusiondet.visualization.panels import NODATA_GREYS

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, DrawingArea
from matplotlib.patches import FancyArrow, FancyBboxPatch, Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text


def image_direction(azimuth_deg: float, transform: Sequence[float] | None = None) -> tuple[float, float]:
    """Unit vector (right, down) in the image of a grid azimuth, clockwise from north.

    Args:
        transform: pixel -> map; None means north up. Only its orientation counts, so degrees do no harm.
    """
    east, north = math.sin(math.radians(azimuth_deg)), math.cos(math.radians(azimuth_deg))
    a, b, _, d, e, _ = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0) if transform is None else tuple(transform)[:6]
    axes = np.array([[a, b], [d, e]]) / [math.hypot(a, d), math.hypot(b, e)]
    direction = np.linalg.solve(axes, (east, north))
    right, down = direction / np.linalg.norm(direction)
    return float(right), float(down)


def draw_direction(
    ax: Axes,
    tile: Tile,
    azimuth_deg: float | None,
    angle_deg: float | None,
    name: str,
    colour: str,
    corner: str = "upper right",
) -> None:
    """Badge in a corner with an arrow along `azimuth_deg` in the image; nothing when it is unknown.

    Args:
        angle_deg: written under the arrow, after `name`; None when unknown.
    """
    if azimuth_deg is None:
        return
    right, down = image_direction(azimuth_deg, tile.transform)
    width, height, x, y, reach = 34.0, 31.0, 17.0, 19.5, 8.5
    area = DrawingArea(width, height, 0, 0)
    area.add_artist(
        FancyBboxPatch(
            (2, 2), width - 4, height - 4, boxstyle="round,pad=2", facecolor=(0, 0, 0, 0.6), linewidth=0
        )
    )
    area.add_artist(
        FancyArrow(
            x - reach * right,
            y + reach * down,
            2 * reach * right,
            -2 * reach * down,
            width=1.4,
            head_width=6,
            head_length=6,
            length_includes_head=True,
            facecolor=colour,
            linewidth=0,
            gid=f"{name} arrow",
        )
    )
    words = name if angle_deg is None else f"{name} {angle_deg:.0f}°"
    area.add_artist(Text(x, 1.5, words, fontsize=6, color=colour, ha="center", va="bottom"))
    ax.add_artist(AnchoredOffsetbox(corner, child=area, frameon=False, pad=0.0, borderpad=0.3))


def draw_scale_bar(ax: Axes, tile: Tile) -> None:
    """White bar of a round length, at most a third of the tile, lower left; nothing when the GSD is unknown."""
    if not math.isfinite(tile.gsd_m) or tile.gsd_m <= 0:
        return
    length_m = round_down(tile.width * tile.gsd_m / 3)
    left, right, y = 0.04 * tile.width, 0.04 * tile.width + length_m / tile.gsd_m, 0.955 * tile.height
    rim = [withStroke(linewidth=3.2, foreground=(0, 0, 0, 0.7))]
    ax.plot([left, right], [y, y], color="white", linewidth=1.8, solid_capstyle="butt", path_effects=rim)
    rim = [withStroke(linewidth=1.8, foreground=(0, 0, 0, 0.75))]
    at = {"xy": (left, y), "xytext": (0, 2.5), "textcoords": "offset points"}
    ax.annotate(f"{length_m:g} m", **at, fontsize=6.5, color="white", va="bottom", path_effects=rim)


def draw_colourbar(
    figure: Figure,
    colours: ScalarMappable,
    values: np.ndarray,
    left_in: float,
    width_in: float,
    label: str = "height above ground (m)",
) -> None:
    """Horizontal bar in metres at the lower edge, with a pointed end where known values lie beyond the scale."""
    ax = axes_in(figure, left_in, 0.4, width_in, 0.11)
    norm = colours.norm
    beyond = bool((values < norm.vmin).any()), bool((values > norm.vmax).any())
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    bar = figure.colorbar(colours, cax=ax, orientation="horizontal", extend=extend)
    bar.set_label(label, fontsize=7.5, labelpad=1, color=INK)
    bar.ax.tick_params(labelsize=7, length=2, pad=1.5, color=FAINT)
    bar.outline.set(linewidth=0.4)


def draw_keys(figure: Figure, keys: list, arrows: str, right_in: float) -> None:
    """Keys in one row at the lower right, and what the arrows mean below them."""
    width_in, height_in = figure.get_size_inches()
    if keys:
        at = (right_in / width_in, 0.42 / height_in)
        style = {"fontsize": 7.5, "frameon": False, "handlelength": 1.6, "columnspacing": 1.2}
        figure.legend(
            handles=keys, loc="center right", bbox_to_anchor=at, ncols=len(keys), borderaxespad=0, **style
        )
    if arrows:
        at = (right_in / width_in, 0.16 / height_in)
        figure.text(*at, arrows, fontsize=7, color=FAINT, ha="right", va="center")


def draw_class_keys(
    figure: Figure,
    classes: dict[str, tuple[int, ...]],
    left_in: float,
    bottom_in: float,
    columns: int,
    row_in: float,
) -> None:
    """Names of `classes` beside their colours, (red, green, blue) in 0 ... 255, row by row above `bottom_in`."""
    width_in, height_in = figure.get_size_inches()
    column_in, rows = (width_in - 2 * left_in) / columns, math.ceil(len(classes) / columns)
    room = max(4, int((column_in - 0.35) * 72 / (0.56 * 7.5)))
    for i, (name, colour) in enumerate(classes.items()):
        row, column = divmod(i, columns)
        x_in, y_in = left_in + column * column_in, bottom_in + (rows - row - 0.9) * row_in
        box = (x_in / width_in, y_in / height_in), 0.17 / width_in, 0.12 / height_in
        shade = [c / 255 for c in colour]
        figure.add_artist(
            Rectangle(*box, transform=figure.transFigure, facecolor=shade, edgecolor="#333333", lw=0.5)
        )
        text = name if len(name) <= room else name[: room - 1] + "…"
        at = (x_in + 0.23) / width_in, (y_in + 0.06) / height_in
        figure.text(*at, text, fontsize=7.5, color=INK, va="center", ha="left", parse_math=False)


def legend_keys(
    any_unknown: bool, any_nodata: bool, with_matches: bool, hatch: str = "no data"
) -> list[Patch]:
    """Handles for what occurs in the figure besides known heights; `hatch` is what hatched pixels are."""
    keys = []
    if any_unknown:
        keys.append(
            Patch(facecolor="#d8d8d8", edgecolor="#333333", linestyle=(0, (2, 1)), label="height unknown")
        )
    if any_nodata:
        light, dark = (f"#{g:02x}{g:02x}{g:02x}" for g in NODATA_GREYS)
        keys.append(Patch(facecolor=light, edgecolor=dark, hatch="////", linewidth=0, label=hatch))
    for name, colour in MATCH_COLOURS.items() if with_matches else ():
        style = (0, (2, 1)) if name == "missed" else "-"
        keys.append(Patch(facecolor=colour, edgecolor="#333333", linestyle=style, linewidth=0.8, label=name))
    return keys
