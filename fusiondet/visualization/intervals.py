"""Estimates with their intervals, one dot and line per row, in panels that share their rows."""

from dataclasses import dataclass

from fusiondet.visualization.canvas import FAINT, INK, axes_in, new_figure

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLOURS = {"optical": "#c4661f", "sar": "#2f6db3"}
_ROW_IN, _PANEL_IN, _GAP_IN, _LABELS_IN = 0.3, 2.15, 0.25, 1.85
# Heading, title, ticks and unit of a row of panels.
_FRAME_IN = 1.3


@dataclass
class IntervalPanel:
    """One panel.

    Attributes:
        title: above it. unit: below it.
        rows: (name, value, low, high, group) from top to bottom; None: not defined; groups "optical" and "sar" have
            their colours.
        smallest_span: how much of the axis is shown at least.
    """

    title: str
    unit: str
    rows: list[tuple[str, float | None, float | None, float | None, str]]
    smallest_span: float = 0.05


def interval_figure(groups: list[tuple[str, list[IntervalPanel]]]) -> Figure:
    """Rows of panels from top to bottom, each with its heading; the panels of one have the same names, written once."""
    heights = [_ROW_IN * (len(panels[0].rows) + 0.6) for _, panels in groups]
    height = sum(heights) + _FRAME_IN * len(groups)
    width = _LABELS_IN + max(len(panels) for _, panels in groups) * (_PANEL_IN + _GAP_IN)
    figure = new_figure(width, height)
    top = height
    for (heading, panels), panel_height in zip(groups, heights, strict=True):
        figure.text(0.1 / width, (top - 0.3) / height, heading, fontsize=11, fontweight="bold", color=INK)
        bottom = top - 0.75 - panel_height
        for k, panel in enumerate(panels):
            left = _LABELS_IN + k * (_PANEL_IN + _GAP_IN)
            _draw(axes_in(figure, left, bottom, _PANEL_IN, panel_height), panel, names=k == 0)
        top -= panel_height + _FRAME_IN
    return figure


def _draw(ax: Axes, panel: IntervalPanel, names: bool) -> None:
    ax.axvline(0, color="#444444", linewidth=0.9)
    ends = [0.0]
    for y, (_, value, low, high, group) in enumerate(panel.rows):
        colour = _COLOURS.get(group, INK)
        if value is None:
            style = {"ha": "center", "va": "center", "fontsize": 7.5, "color": FAINT}
            patch = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            ax.text(0.5, y, "not defined", transform=ax.get_yaxis_transform(), bbox=patch, **style)
            continue
        if low is not None:
            ax.plot([low, high], [y, y], color=colour, linewidth=1.8, alpha=0.55, solid_capstyle="butt")
        ax.plot(value, y, "o", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.6)
        ends += [v for v in (value, low, high) if v is not None]
    # Without a smallest width, rounding errors would fill the panel.
    span = max(max(ends) - min(ends), panel.smallest_span)
    middle = (max(ends) + min(ends)) / 2
    ax.set_xlim(middle - 0.56 * span, middle + 0.56 * span)
    ax.set_ylim(len(panel.rows) - 0.3, -0.7)
    ax.set_yticks(range(len(panel.rows)), [row[0] for row in panel.rows] if names else [])
    ax.set_title(panel.title, fontsize=10, color=INK, loc="left")
    ax.set_xlabel(panel.unit, fontsize=8.5, color=INK)
    ax.locator_params(axis="x", nbins=5)
    ax.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
    ax.tick_params(axis="y", length=0, labelsize=8.5)
    ax.grid(axis="x", color="#000000", alpha=0.08, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
