"""Charts as plain dicts {"data": [...], "layout": {...}} for Plotly: numbers only, no text of the layer is in them.

In a trace whose `meta` is BUILDINGS the `customdata` of a dot is the index of its building: a click on it shows that.
"""

import math

from fusiondet.evaluation.height_metrics import RATIO
from fusiondet.visualization.canvas import FAINT, INK, round_up
from fusiondet.visualization.report.comparison import TruthComparison

import numpy as np

# Blue and orange of Okabe & Ito: told apart by every reader, and from the grey of what is unknown.
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"
BUILDINGS = "buildings"
MAX_DOTS = 4000
_EXTREME_DOTS = 500
_AREA_EDGES_M2 = (0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, math.inf)

Chart = dict


def height_histogram(height_m: np.ndarray) -> Chart:
    """Numbers of buildings by height, (N,) metres, NaN unknown."""
    known = height_m[np.isfinite(height_m)]
    top = float(known.max()) if len(known) else 10.0
    step = next(s for s in (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0) if top / s <= 40)
    edges = step * np.arange(math.floor(top / step) + 2)
    return _histogram("Heights", known, edges, "height above ground (m)", "m")


def score_histogram(score: np.ndarray) -> Chart:
    """Numbers of buildings by score, (N,) in [0, 1], NaN unknown."""
    known = score[np.isfinite(score)]
    return _histogram("Scores", known, np.linspace(0, 1, 21), "score", "")


def area_histogram(area_m2: np.ndarray) -> Chart:
    """Numbers of buildings by area of the outline, (N,) m²."""
    counts, _ = np.histogram(area_m2, _AREA_EDGES_M2)
    names = [f"{a:g}–{b:g}" for a, b in zip(_AREA_EDGES_M2[:-2], _AREA_EDGES_M2[1:-1])]
    names.append(f"> {_AREA_EDGES_M2[-2]:g}")
    shown = slice(*_occupied(counts))
    hover = "%{x} m²: %{y} buildings<extra></extra>"
    bars = {"type": "bar", "x": names[shown], "y": counts[shown].tolist(), "marker": {"color": BLUE}}
    chart = _chart("Areas", [{**bars, "hovertemplate": hover}], "area of the outline (m²)", "buildings")
    # Names such as 10-20 are no dates and no numbers.
    chart["layout"]["xaxis"]["type"] = "category"
    return chart


def interval_scatter(height_m: np.ndarray, p16_m: np.ndarray, p84_m: np.ndarray) -> Chart:
    """Width of the 16-84 % interval against the height, and its usual share of the height in bins of equal number."""
    width_m = p84_m - p16_m
    known = np.flatnonzero(np.isfinite(width_m) & np.isfinite(height_m))
    shown = known[_thinned(width_m[known] / height_m[known])]
    dots = _dots(height_m[shown], width_m[shown], shown, "height %{x:.1f} m, interval %{y:.1f} m wide")
    data = [{**dots, "name": "building"}]
    if len(known) >= 10:
        groups = np.array_split(known[np.argsort(height_m[known], kind="stable")], min(12, len(known) // 5))
        line = {"type": "scatter", "mode": "lines+markers", "line": {"color": ORANGE, "width": 2.5}}
        data.append(
            {
                **line,
                "x": [float(np.median(height_m[g])) for g in groups],
                "y": [float(np.median(width_m[g])) for g in groups],
                "name": "median",
                "hovertemplate": "around %{x:.1f} m: %{y:.1f} m wide<extra></extra>",
            }
        )
    title = "How sure the heights are" + _sample_note(len(shown), len(known))
    chart = _chart(title, data, "height above ground (m)", "width of the 16–84 % interval (m)")
    _from_zero(chart, height_m[known], width_m[known])
    chart["layout"]["showlegend"] = True
    return chart


def truth_scatter(comparison: TruthComparison, height_m: np.ndarray) -> Chart:
    """Predicted against true height of matched buildings, with the 1:1 line and the band of δ1."""
    truth_m, error_m = comparison.truth_m, comparison.error_m
    known = np.flatnonzero(np.isfinite(error_m))
    shown = known[_thinned(np.abs(error_m[known]))]
    both = np.concatenate([truth_m[known], height_m[known]])
    top = round_up(float(both.max())) if len(both) else 10.0
    no_hover = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
    band = {
        "x": [0, top, top, 0],
        "y": [0, top * RATIO, top / RATIO, 0],
        "fill": "toself",
        "line": {"width": 0},
    }
    hover = "true %{x:.1f} m, predicted %{y:.1f} m"
    data = [
        {**no_hover, **band, "fillcolor": "#dfe9f5", "name": f"ratio < {RATIO:g} (δ1)"},
        {**no_hover, "x": [0, top], "y": [0, top], "line": {"color": "#444444", "width": 1}, "name": "1:1"},
        {**_dots(truth_m[shown], height_m[shown], shown, hover), "name": "building"},
    ]
    title = "Heights of matched buildings" + _sample_note(len(shown), len(known))
    chart = _chart(title, data, "true height (m)", "predicted height (m)")
    chart["layout"]["xaxis"]["range"] = chart["layout"]["yaxis"]["range"] = [0, top]
    # One metre is as long on both axes.
    chart["layout"]["yaxis"] |= {"scaleanchor": "x", "constrain": "domain"}
    chart["layout"]["xaxis"]["constrain"] = "domain"
    chart["layout"]["showlegend"] = True
    # Below the 1:1 line there is room, and beside the square.
    chart["layout"]["legend"] |= {"x": 1, "xanchor": "right", "y": 0.02, "yanchor": "bottom"}
    return chart


def error_histogram(comparison: TruthComparison) -> Chart:
    """Numbers of matched buildings by height error."""
    known = comparison.error_m[np.isfinite(comparison.error_m)]
    # An odd number of bars: one stands around 0.
    top = round_up(float(np.percentile(np.abs(known), 99))) if len(known) else 3.0
    title = "Height errors"
    outside = int((np.abs(known) > top).sum())
    if outside:
        title += f" ({outside} beyond ±{top:g} m not shown)"
    return _histogram(title, known, np.linspace(-top, top, 42), "prediction − truth (m)", "m")


def precision_recall(comparison: TruthComparison) -> Chart:
    """Precision against recall from the highest score to the lowest; a hover tells the score."""
    ap50 = comparison.numbers["ap50"]
    title = "Precision and recall at IoU 0.5" + ("" if ap50 is None else f", AP50 {ap50:.1f}")
    curve = {
        "type": "scatter",
        "mode": "lines+markers" if len(comparison.recall) < 60 else "lines",
        "x": _rounded(comparison.recall, 5),
        "y": _rounded(comparison.precision, 5),
        "customdata": _rounded(comparison.score, 4),
        "line": {"color": BLUE, "width": 2},
        "hovertemplate": "from score %{customdata:.2f} on: recall %{x:.3f}, precision %{y:.3f}<extra></extra>",
    }
    chart = _chart(title, [curve], "recall (share of true buildings found)", "precision")
    chart["layout"]["xaxis"]["range"], chart["layout"]["yaxis"]["range"] = [0, 1.01], [0, 1.03]
    return chart


def _histogram(title: str, values: np.ndarray, edges: np.ndarray, label: str, unit: str) -> Chart:
    counts, _ = np.histogram(values, edges)
    names = [f"{a:g} to {b:g} {unit}".rstrip() for a, b in zip(edges.round(3), edges[1:].round(3))]
    bars = {
        "type": "bar",
        "x": ((edges[:-1] + edges[1:]) / 2).round(6).tolist(),
        "y": counts.tolist(),
        "width": (0.94 * np.diff(edges)).round(6).tolist(),
        "customdata": names,
        "marker": {"color": BLUE},
        "hovertemplate": "%{customdata}: %{y} buildings<extra></extra>",
    }
    return _chart(title, [bars], label, "buildings")


def _dots(x: np.ndarray, y: np.ndarray, index: np.ndarray, hover: str) -> dict:
    size, opacity = (7, 0.7) if len(index) < 300 else (4, 0.45)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": _rounded(x, 3),
        "y": _rounded(y, 3),
        "customdata": index.tolist(),
        "meta": BUILDINGS,
        "marker": {"color": BLUE, "size": size, "opacity": opacity},
        "hovertemplate": hover + "<extra></extra>",
    }


def _thinned(extremeness: np.ndarray) -> np.ndarray:
    """Positions of at most 4000 dots: the 500 most extreme ones, and others drawn by chance, always the same."""
    n = len(extremeness)
    if n <= MAX_DOTS:
        return np.arange(n)
    order = np.argsort(-extremeness, kind="stable")
    rest = np.random.default_rng(0).choice(order[_EXTREME_DOTS:], MAX_DOTS - _EXTREME_DOTS, replace=False)
    return np.sort(np.concatenate([order[:_EXTREME_DOTS], rest]))


def _sample_note(shown: int, known: int) -> str:
    return "" if shown == known else f" ({shown} of {known} shown)"


def _from_zero(chart: Chart, x: np.ndarray, y: np.ndarray) -> None:
    for axis, values in (("xaxis", x), ("yaxis", y)):
        chart["layout"][axis]["range"] = [0, 1.05 * float(values.max()) if len(values) else 10.0]


def _occupied(counts: np.ndarray) -> tuple[int, int]:
    filled = np.flatnonzero(counts)
    return (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, len(counts))


def _rounded(values: np.ndarray, digits: int) -> list[float]:
    return np.round(values.astype(float), digits).tolist()


def _chart(title: str, data: list[dict], x_label: str, y_label: str) -> Chart:
    axis = {
        "gridcolor": "#e6e6e6",
        "zeroline": False,
        "linecolor": "#bbbbbb",
        "ticks": "outside",
        "automargin": True,
    }
    layout = {
        "title": {"text": title, "font": {"size": 14, "color": INK}, "x": 0.02, "xanchor": "left"},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "margin": {"l": 58, "r": 36, "t": 40, "b": 48},
        "modebar": {"orientation": "v"},
        "xaxis": {**axis, "title": {"text": x_label}},
        "yaxis": {**axis, "title": {"text": y_label}, "rangemode": "tozero"},
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        "showlegend": False,
        "legend": {
            "x": 0.02,
            "y": 0.98,
            "bgcolor": "rgba(255,255,255,0.8)",
            "font": {"color": FAINT, "size": 11},
        },
        "hoverlabel": {"align": "left"},
        "bargap": 0.06,
    }
    return {"data": data, "layout": layout}
