"""What several networks say of the same tiles, side by side, as papers show it."""

from collections.abc import Sequence
from dataclasses import dataclass

from fusiondet.errors import InputError
from fusiondet.visualization.building_overlays import MATCH_COLOURS, map_colours
from fusiondet.visualization.canvas import FAINT, INK, axes_in, new_figure
from fusiondet.visualization.panels import map_panel, optical_panel, sar_panel
from fusiondet.visualization.tile_figures import TileView

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

_PANEL_IN, _GAP_IN, _MARGIN_IN, _TITLE_IN, _LEGEND_IN = 1.25, 0.05, 0.15, 0.42, 0.55
# What a pixel is called: found, missed, and said to be a building where there is none.
_FOUND, _MISSED, _FALSE = "#ffffff", MATCH_COLOURS["missed"], MATCH_COLOURS["false"]


@dataclass
class Said:
    """What one network says of one tile; None for what it does not say.

    Attributes:
        footprint: (H, W) bool. height_m: (H, W) metres above ground.
    """

    footprint: np.ndarray | None
    height_m: np.ndarray | None


def footprint_panel(said: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: what was found is white, what was missed yellow, what is not there red, the ground black."""
    picture = np.zeros((*truth.shape, 3), np.uint8)
    for colour, where in ((_FOUND, said & truth), (_MISSED, ~said & truth), (_FALSE, said & ~truth)):
        picture[where] = np.round(255 * np.array(to_rgb(colour)))
    return picture


def gallery_figure(
    views: Sequence[TileView], truth: Sequence[np.ndarray], networks: dict[str, Sequence[Said]]
) -> Figure:
    """Two lines per tile: optical, true and said footprints; beneath them SAR, true and said heights.

    Args:
        views: the tiles, with `truth_map_m`. truth: their (H, W) bool footprints.
        networks: name -> what it says of each tile, in the same order; a column each.

    Raises:
        InputError: no tile, or no network.
    """
    if not views or not networks:
        raise InputError("nothing to draw: expected a tile and a network at least.")
    maps = [m for m in _heights(views, networks) if m is not None]
    colours = map_colours(np.concatenate([m[np.isfinite(m) & (m > 0)] for m in maps] or [np.zeros(0)]))
    columns, lines = 2 + len(networks), 2 * len(views)
    width = 2 * _MARGIN_IN + columns * (_PANEL_IN + _GAP_IN)
    height = _TITLE_IN + lines * (_PANEL_IN + _GAP_IN) + _LEGEND_IN
    figure = new_figure(max(width, 6.4), height)

    def panel(column: int, line: int, picture: np.ndarray | None) -> None:
        x = _MARGIN_IN + column * (_PANEL_IN + _GAP_IN)
        y = height - _TITLE_IN - (line + 1) * (_PANEL_IN + _GAP_IN)
        ax = axes_in(figure, x, y, _PANEL_IN, _PANEL_IN)
        ax.set_xticks([]), ax.set_yticks([])
        for side in ax.spines.values():
            side.set_visible(False)
        if picture is None:
            ax.text(0.5, 0.5, "–", ha="center", va="center", color=FAINT, transform=ax.transAxes)
        else:
            ax.imshow(picture, interpolation="nearest")

    for i, (view, true) in enumerate(zip(views, truth, strict=True)):
        panel(0, 2 * i, optical_panel(view.optical, view.bands.optical) if view.bands.optical else None)
        panel(0, 2 * i + 1, sar_panel(view.sar, view.bands.sar) if view.bands.sar else None)
        said = [Said(true, view.truth_map_m), *(tiles[i] for tiles in networks.values())]
        for column, one in enumerate(said, start=1):
            panel(column, 2 * i, None if one.footprint is None else footprint_panel(one.footprint, true))
            panel(column, 2 * i + 1, None if one.height_m is None else map_panel(one.height_m, colours))
    for column, name in enumerate(("optical, SAR", "truth", *networks)):
        x = _MARGIN_IN + column * (_PANEL_IN + _GAP_IN) + _PANEL_IN / 2
        figure.text(
            x / figure.get_size_inches()[0],
            1 - (_TITLE_IN - 0.06) / height,
            _wrapped(name),
            ha="center",
            va="bottom",
            fontsize=7.5,
            color=INK,
        )
    _legend(figure, colours)
    return figure


def _heights(views: Sequence[TileView], networks: dict[str, Sequence[Said]]):
    yield from (view.truth_map_m for view in views)
    yield from (one.height_m for tiles in networks.values() for one in tiles)


def _wrapped(name: str, most: int = 18) -> str:
    """`name` in lines of about `most` letters."""
    lines = [""]
    for word in name.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _legend(figure: Figure, colours) -> None:
    width, height = figure.get_size_inches()
    ax = axes_in(figure, _MARGIN_IN, 0.32, 2.2, 0.1)
    bar = figure.colorbar(colours, cax=ax, orientation="horizontal")
    bar.ax.tick_params(labelsize=7, length=2)
    bar.outline.set_visible(False)
    figure.text((_MARGIN_IN + 2.3) / width, 0.34 / height, "height, m", fontsize=7.5, color=INK)
    x = 3.3
    for colour, word in ((_FOUND, "found"), (_MISSED, "missed"), (_FALSE, "not there")):
        mark = axes_in(figure, x, 0.3, 0.14, 0.14)
        mark.set_xticks([]), mark.set_yticks([]), mark.set_facecolor(colour)
        figure.text((x + 0.19) / width, 0.34 / height, word, fontsize=7.5, color=INK)
        x += 0.95
