"""The height scatter: predicted against true height, and the error by true height."""

import math

from fusiondet.evaluation.height_metrics import BIN_EDGES_M, RATIO, height_metrics
from fusiondet.visualization.canvas import FAINT, INK, axes_in, new_figure, round_up

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure


def height_scatter(truth_m, pred_m, p16_m=None, p84_m=None) -> Figure:
    """Predicted against true height with the 1:1 line, and the error by true height.

    Left: one dot per building, its 16-84 % interval as a thin line, the band where the height ratio is below 1.25
    (δ1). Right: per bin of true height the mean absolute error (bar), the mean error (dot) and the 16-84 % range of
    the errors (line).

    Args:
        truth_m, pred_m: (N,) metres; pairs with an unknown side (NaN) are left out.
        p16_m, p84_m: (N,) predicted interval; NaN or None where there is none.
    """
    columns = [np.full(len(truth_m), np.nan) if v is None else v for v in (truth_m, pred_m, p16_m, p84_m)]
    pairs = np.array(columns, dtype=float)
    pairs = pairs[:, np.isfinite(pairs[:2]).all(axis=0)]
    figure = new_figure(10.2, 4.9)
    scatter, bins = axes_in(figure, 0.7, 0.7, 3.8, 3.8), axes_in(figure, 5.45, 0.7, 4.5, 3.8)
    numbers = height_metrics(*pairs)
    _scatter_panel(scatter, *pairs, numbers)
    _bins_panel(bins, pairs[0], pairs[1] - pairs[0], numbers)
    return figure


def _scatter_panel(ax: Axes, truth_m, pred_m, p16_m, p84_m, numbers: dict) -> None:
    has_interval = np.isfinite(p16_m) & np.isfinite(p84_m)
    # One wild prediction must not press all others into a corner: it is drawn as a triangle at the upper edge.
    top = round_up(1.05 * max(truth_m.max(), float(np.percentile(pred_m, 98)))) if len(truth_m) else 10.0
    above = pred_m > top
    ends = np.array([0.0, top])
    ax.fill_between(
        ends, ends / RATIO, ends * RATIO, color="#dfe9f5", linewidth=0, label=f"ratio < {RATIO:g} (δ1)"
    )
    ax.plot(ends, ends, color="#444444", linewidth=1.0, label="1:1")
    if has_interval.any():
        bars = np.stack([truth_m, p16_m, truth_m, p84_m], axis=1)[has_interval].reshape(-1, 2, 2)
        ax.add_collection(
            LineCollection(bars, colors=(0.48, 0.2, 0.55, 0.3), linewidths=0.7, label="16–84 % interval")
        )
    size = float(np.clip(3000 / max(len(truth_m), 1), 5, 24))
    dots = {"color": "#7a2f8c", "alpha": 0.75, "linewidths": 0.3, "edgecolors": "white", "zorder": 3}
    ax.scatter(truth_m[~above], pred_m[~above], s=size, **dots)
    if above.any():
        edge = np.full(above.sum(), 0.985 * top)
        ax.scatter(truth_m[above], edge, s=28, marker="^", label=f"{above.sum()} above {top:g} m", **dots)
    ax.set(xlim=ends, ylim=ends, xlabel="true height (m)", ylabel="predicted height (m)")
    ax.set_aspect("equal")
    ax.set_title("Height of matched buildings", fontsize=10, color=INK, loc="left")
    panel = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 2.0}
    style = {"va": "top", "fontsize": 8, "color": INK, "linespacing": 1.45, "bbox": panel, "zorder": 4}
    ax.text(0.035, 0.97, _score_text(numbers), transform=ax.transAxes, **style)
    ax.legend(loc="lower right", fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none")
    _tidy(ax)


def _score_text(numbers: dict) -> str:
    if not numbers["height/n"]:
        return "no matched building\nhas a known height"
    lines = [
        f"n = {numbers['height/n']}",
        f"MAE {numbers['height/mae_m']:.2f} m",
        f"bias {numbers['height/bias_m']:+.2f} m",
        f"δ1 {numbers['height/delta1']:.2f}",
    ]
    if numbers["height/interval_coverage"] is not None:
        lines.append(f"{100 * numbers['height/interval_coverage']:.0f} % inside 16–84 % (68 ideal)")
    return "\n".join(lines).replace("-", "−")


def _bins_panel(ax: Axes, truth_m, error_m, numbers: dict) -> None:
    bins = _occupied_bins(truth_m)
    ticks, filled = [], []
    for k, (low, high) in enumerate(bins):
        n, mae_m, bias_m = (
            numbers[f"height/bin_{low:g}_{high:g}_m/{name}"] for name in ("n", "mae_m", "bias_m")
        )
        name = f"{low:g}–{high:g}" if math.isfinite(high) else f"> {low:g}"
        ticks.append(f"{name}\nn = {n}")
        if n:
            filled.append((k, mae_m, bias_m, *np.percentile(error_m[_inside(truth_m, low, high)], (16, 84))))
    if filled:
        at, mae_m, bias_m, p16_m, p84_m = np.array(filled).T
        ax.bar(at, mae_m, width=0.62, color="#d9c3e0", label="mean |error|")
        ax.vlines(at, p16_m, p84_m, color="#7a2f8c", linewidth=1.6, label="16–84 % of errors")
        ax.plot(at, bias_m, "o", color="#7a2f8c", markersize=5.5, markeredgecolor="white", label="bias")
        ax.legend(fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none")
    else:
        ax.set_ylim(-1, 1)
    ax.axhline(0, color="#444444", linewidth=0.8)
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set_xlim(-0.6, len(ticks) - 0.4)
    ax.set(xlabel="true height (m)", ylabel="error, prediction − truth (m)")
    ax.set_title("Error by true height", fontsize=10, color=INK, loc="left")
    _tidy(ax)
    ax.grid(axis="x", visible=False)


def _occupied_bins(truth_m: np.ndarray) -> list[tuple[float, float]]:
    """The evaluation's bins from the first to the last with a building; all of them without any."""
    bins = list(zip(BIN_EDGES_M[:-1], BIN_EDGES_M[1:], strict=True))
    occupied = [k for k, (low, high) in enumerate(bins) if _inside(truth_m, low, high).any()]
    return bins[occupied[0] : occupied[-1] + 1] if occupied else bins


def _inside(truth_m: np.ndarray, low: float, high: float) -> np.ndarray:
    return (truth_m >= low) & (truth_m < high)


def _tidy(ax: Axes) -> None:
    ax.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
    ax.xaxis.label.set(fontsize=9, color=INK)
    ax.yaxis.label.set(fontsize=9, color=INK)
    ax.grid(color="#000000", alpha=0.08, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
