"""The page: numbers, views, charts and provenance in one file that loads nothing from anywhere.

All that comes from the data is either escaped HTML or JSON in a block that no parser executes and whose `<` are written
as escapes; the viewer puts it on the page as text. The page's policy allows exactly the two scripts written here.

Why the views are drawn by viewer.js and not by a library. Measured in Chromium 150, which drew in software on two busy
CPU cores, at 50 000 buildings (292 000 vertices) as a map and in 3-D, without charts; a graphics card is faster with
all of them. Frames are medians of several runs that took turns; "reader" is the JavaScript heap and the memory of the
tab's process.

    viewer                          page     of it code   first frame   map frame       3-D frame     reader
    viewer.js                        9.3 MB   0.03 MB      4 to 16 s    0.6 to 1.2 s   0.9 to 2.4 s    12, 190 MB
    three.js 0.187, bundled          9.9 MB   0.57 MB      7 to 10 s    0.6 to 1.8 s   1.7 to 6.8 s    45, 221 MB
    deck.gl 9.4, bundled            10.2 MB   0.89 MB     35 to 104 s   0.7 to 27 s     15 to 18 s     57, 310 MB
    pydeck 0.9, offline=True        29.3 MB   4.3 MB      loads four addresses, which the page's policy forbids

deck.gl draws the edges of the buildings as layers of their own: the small numbers are without them. Both bundles obey
the policy and work offline. three.js would replace the matrices and buffers, about 150 of 670 lines; picking, colours
that change without new buffers, the legend and the comparison with the truth would remain ours.
"""

import base64
import hashlib
import html
import json
from collections import Counter
from importlib import resources
from pathlib import Path

from fusiondet import __version__
from fusiondet.buildings import Building, clean_height_m, clean_polygon
from fusiondet.errors import InputError
from fusiondet.files import atomic_path, require_new
from fusiondet.io.crs import parse_crs
from fusiondet.io.layers import areas_m2
from fusiondet.io.vectors import Layer
from fusiondet.visualization.building_overlays import MATCH_COLOURS, error_colours, height_colours
from fusiondet.visualization.report import charts
from fusiondet.visualization.report.backdrop import Backdrop, picture_crs, read_picture
from fusiondet.visualization.report.comparison import TruthComparison, compare
from fusiondet.visualization.report.frame import Frame, bounds_of, frame_at, in_crs, move
from fusiondet.visualization.report.shapes import Shapes, shapes_of

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from pyproj import CRS

_STOPS = 17
# Half the side of the ground that is shown where there is nothing on it, metres.
_EMPTY_M = 100.0


def write_report(
    buildings: list[Building],
    crs: str | CRS | None,
    path: Path,
    *,
    image: Path | None = None,
    truth: Layer | None = None,
    metadata: dict | None = None,
    overwrite: bool = False,
) -> None:
    """Write a report of `buildings` as one HTML page, whole or not at all.

    Args:
        buildings: outlines in map coordinates of `crs`; none give a page that says so. Heights that are unknown are
            drawn flat and grey, and counted.
        crs: "EPSG:n", WKT or a pyproj CRS; None: coordinates are taken to be metres, and the page says so.
        path: of the page, usually with suffix .html.
        image: raster to lay under the buildings, in any CRS; only the part around them is read, at 1600 pixels at most.
        truth: true buildings in any CRS, as read by `read_layer(..., signed=True)`; None: no comparison.
        metadata: plain values about the layer: model, configuration, date, input.
        overwrite: replace `path` if it exists.

    Raises:
        InputError: `path` exists, a CRS is not understood, an outline has no area, the image cannot be read, has no
            CRS or lies elsewhere, or only one of layer and truth has a CRS.
    """
    path = require_new(path, overwrite)
    text = page(buildings, crs, image=image, truth=truth, metadata=metadata, title=path.stem)
    with atomic_path(path) as temporary:
        # Names of files and identifiers may hold what is no Unicode; a script's hash counts its line ends.
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def page(
    buildings: list[Building],
    crs: str | CRS | None,
    *,
    image: Path | None = None,
    truth: Layer | None = None,
    metadata: dict | None = None,
    title: str = "buildings",
) -> str:
    """The page as text; see `write_report`."""
    crs = parse_crs(crs, "the CRS of the buildings") if crs else None
    polygons = _outlines(buildings)
    frame, shown, picture = _placed(polygons, crs, image)
    columns = _columns(buildings, polygons, crs)
    comparison = None if truth is None else compare(buildings, crs, truth)
    shapes = shapes_of(shown)
    missed = None
    if comparison is not None:
        outlines = np.array([b.polygon for b in comparison.missed], dtype=object)
        missed = shapes_of(move(in_crs(outlines, crs, frame.crs), frame))
    drawn = _charts(columns, comparison)
    data = {
        "count": len(buildings),
        "ids": [str(k if b.id is None else b.id) for k, b in enumerate(buildings, 1)],
        "columns": {name: _packed(values, "<f4") for name, values in columns.items()},
        "shapes": _packed_shapes(shapes),
        "missed": None if missed is None else _packed_shapes(missed),
        "missed_colour": _rgb(MATCH_COLOURS["missed"]),
        "modes": _modes(columns, comparison),
        "charts": drawn,
        **_ground(shown, picture, frame),
    }
    if comparison is not None:
        extra = {
            "truth_m": comparison.truth_m,
            "error_m": comparison.error_m,
            "matched": comparison.truth_of >= 0,
        }
        data["columns"] |= {name: _packed(values, "<f4") for name, values in extra.items()}
    facts = _facts(buildings, crs, image, frame, shapes, metadata)
    return _html(title, data, columns, comparison, picture, facts)


def _outlines(buildings: list[Building]) -> np.ndarray:
    polygons = np.empty(len(buildings), dtype=object)
    for k, building in enumerate(buildings):
        polygons[k] = clean_polygon(building.polygon)
        if polygons[k] is None:
            raise InputError(
                f"building {building.id!r} (number {k + 1}) has no outline with area and finite coordinates."
            )
    return polygons


def _placed(polygons, crs, image) -> tuple[Frame, np.ndarray, Backdrop | None]:
    """The plane of the page, the outlines in it, and the picture; the plane is that of the picture if there is one."""
    picture = None
    if image is not None:
        base = picture_crs(image)
        if (base is None) != (crs is None):
            bare = image if base is None else "the layer of buildings"
            raise InputError(f"{bare} has no CRS, so picture and buildings cannot be laid over each other.")
        polygons = in_crs(polygons, crs, base)
        picture = read_picture(image, bounds_of(polygons))
    else:
        base = crs
    bounds = bounds_of(polygons) or (picture.bounds if picture else (0.0, 0.0, 0.0, 0.0))
    # Without buildings and picture any point will do, but 0, 0 lies outside of most projections.
    frame = Frame(None, (0.0, 0.0), (1.0, 1.0)) if not any(bounds) else frame_at(base, bounds)
    return frame, move(polygons, frame), picture


def _columns(buildings: list[Building], polygons: np.ndarray, crs: CRS | None) -> dict[str, np.ndarray]:
    """(N,) float arrays, NaN where unknown."""
    columns = {
        name: np.array([clean_height_m(getattr(b, name))[0] for b in buildings], dtype=float)
        for name in ("height_m", "height_p16_m", "height_p84_m")
    }
    columns["score"] = np.array([b.score for b in buildings], dtype=float)
    if crs is None:
        columns["area_m2"] = np.array([p.area for p in polygons], dtype=float)
    else:
        columns["area_m2"] = areas_m2(polygons, crs)
    return columns


def _charts(columns: dict[str, np.ndarray], comparison: TruthComparison | None) -> dict[str, charts.Chart]:
    """The charts that have something to show, by name."""
    height_m, p16_m, p84_m = (columns[name] for name in ("height_m", "height_p16_m", "height_p84_m"))
    drawn = {}
    if np.isfinite(height_m).any():
        drawn["heights"] = charts.height_histogram(height_m)
    if len(columns["area_m2"]):
        drawn["areas"] = charts.area_histogram(columns["area_m2"])
    if np.isfinite(columns["score"]).any():
        drawn["scores"] = charts.score_histogram(columns["score"])
    if np.isfinite(p84_m - p16_m + height_m).any():
        drawn["intervals"] = charts.interval_scatter(height_m, p16_m, p84_m)
    if comparison is not None:
        if np.isfinite(comparison.error_m).any():
            drawn["truth"] = charts.truth_scatter(comparison, height_m)
            drawn["errors"] = charts.error_histogram(comparison)
        if len(comparison.recall):
            drawn["precision"] = charts.precision_recall(comparison)
    return drawn


def _modes(columns: dict[str, np.ndarray], comparison: TruthComparison | None) -> list[dict]:
    """What the views can be coloured by."""
    height_m, width_m = columns["height_m"], columns["height_p84_m"] - columns["height_p16_m"]
    modes = [_mode("height", "Height above ground", "m", height_m, height_colours(height_m))]
    if np.isfinite(width_m).any():
        scale = ScalarMappable(height_colours(width_m).norm, matplotlib.colormaps["viridis"])
        modes.append(_mode("interval", "Width of the 16–84 % interval", "m", width_m, scale))
    if np.isfinite(columns["score"]).any():
        scale = ScalarMappable(Normalize(0.0, 1.0), matplotlib.colormaps["cividis"])
        modes.append(_mode("score", "Score", "", columns["score"], scale))
    if comparison is not None:
        error_m = comparison.error_m
        label = "Height error, prediction − truth"
        modes.append(_mode("error", label, "m", error_m, error_colours(error_m)))
        names = (("false", "no true building"), ("matched", "matched"))
        modes.append(
            {
                "key": "match",
                "label": "Match with the truth",
                "unit": "",
                "values": _packed(comparison.truth_of >= 0, "<f4"),
                "categories": [
                    *({"label": label, "colour": _rgb(MATCH_COLOURS[name])} for name, label in names),
                    {"label": "missed", "colour": _rgb(MATCH_COLOURS["missed"])},
                ],
                "shows_missed": True,
                "unknown": 0,
            }
        )
    return modes


def _mode(key: str, label: str, unit: str, values: np.ndarray, colours: ScalarMappable) -> dict:
    low, high = float(colours.norm.vmin), float(colours.norm.vmax)
    known = values[np.isfinite(values)]
    stops = colours.to_rgba(np.linspace(low, high, _STOPS))[:, :3]
    return {
        "key": key,
        "label": label,
        "unit": unit,
        "values": _packed(values, "<f4"),
        "stops": np.round(255 * stops).astype(int).tolist(),
        "low": low,
        "high": high,
        "open_low": bool((known < low).any()),
        "open_high": bool((known > high).any()),
        "unknown": int(len(values) - len(known)),
    }


def _ground(polygons: np.ndarray, picture: Backdrop | None, frame: Frame) -> dict:
    """Corners of the ground, and what the views show at first, both in metres."""
    bounds = bounds_of(polygons)
    if picture is not None:
        corners = frame.to_metres(picture.corners)
        left, bottom = corners.min(axis=0).tolist()
        right, top = corners.max(axis=0).tolist()
        extent = bounds or (left, bottom, right, top)
        return {"ground": corners.tolist(), "extent": list(extent)}
    left, bottom, right, top = bounds or (-_EMPTY_M, -_EMPTY_M, _EMPTY_M, _EMPTY_M)
    margin = max(0.06 * max(right - left, top - bottom), 5.0)
    l, b, r, t = left - margin, bottom - margin, right + margin, top + margin
    return {"ground": [[l, t], [r, t], [l, b], [r, b]], "extent": [left, bottom, right, top]}


def _packed_shapes(shapes: Shapes) -> dict[str, str]:
    return {
        "xy": _packed(shapes.xy, "<f4"),
        **{name: _packed(getattr(shapes, name), "<u4") for name in ("ring_size", "ring_owner", "triangles")},
    }


def _packed(values, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")


def _rgb(colour: str) -> list[int]:
    return [round(255 * v) for v in to_rgb(colour)]


# ---- HTML ----


def _text(value) -> str:
    return html.escape(str(value), quote=True)


def _json(value) -> str:
    """JSON that can stand inside a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _html(title, data, columns, comparison, picture, facts) -> str:
    # Plotly is wanted here and nowhere else; it takes a while to import.
    from plotly.offline import get_plotlyjs

    own = resources.files("fusiondet.visualization.report")
    style, viewer = (own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "viewer.js"))
    scripts = [f"\n{get_plotlyjs()}\n" if data["charts"] else "", f"\n{viewer}"]
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}"
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title><style>{style}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
        _tiles(_summary(columns)),
        _views(picture),
        "<h2>Buildings</h2>" if len(columns["area_m2"]) else "<h2>There are no buildings</h2>",
        _charts_of(data["charts"], ("heights", "areas", "scores", "intervals")),
        "" if comparison is None else _against_truth(comparison, data["charts"]),
        "<h2>Where this comes from</h2>",
        _table(facts),
        f'<script type="application/json" id="data">{_json(data)}</script>',
        *(f"<script>{script}</script>" for script in scripts if script),
        "</body></html>\n",
    ]
    return "\n".join(lines)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _summary(columns: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    height_m, area_m2, score = columns["height_m"], columns["area_m2"], columns["score"]
    known = height_m[np.isfinite(height_m)]
    width_m = columns["height_p84_m"] - columns["height_p16_m"]
    sure = np.isfinite(width_m) & np.isfinite(height_m)
    numbers = [
        (_grouped(len(height_m)), "buildings"),
        (_grouped(len(known)), "with a height"),
        (_grouped(len(height_m) - len(known)), "height unknown (flat, grey)"),
    ]
    if len(known):
        low, high = np.percentile(known, (5, 95))
        numbers += [
            (f"{np.median(known):.1f} m", "median height"),
            (f"{low:.1f}–{high:.1f} m", "5 to 95 % of heights"),
            (f"{known.max():.1f} m", "tallest"),
        ]
    if len(area_m2):
        numbers.append((_large(area_m2.sum(), "m²"), "area of all outlines"))
        numbers.append((f"{np.median(area_m2):.0f} m²", "median area"))
    if len(known):
        numbers.append((_large(np.nansum(area_m2 * height_m), "m³"), "area × height"))
    if np.isfinite(score).any():
        numbers.append((f"{np.nanmedian(score):.2f}", "median score"))
    if sure.any():
        numbers += [
            (f"{100 * sure.mean():.0f} %", "have an interval"),
            (f"{np.median(width_m[sure]):.1f} m", "median width of the 16–84 % interval"),
            (
                f"{100 * np.median(width_m[sure] / height_m[sure]):.0f} %",
                "of the height, median share of that width",
            ),
        ]
    return numbers


def _large(value: float, unit: str) -> str:
    return f"{value / 1e6:.2f} million {unit}" if value >= 1e6 else f"{_grouped(value)} {unit}"


def _grouped(value: float) -> str:
    """A whole number with narrow spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def _tiles(numbers: list[tuple[str, str]]) -> str:
    tiles = "".join(f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>" for value, name in numbers)
    return f'<div class="numbers">{tiles}</div>'


def _views(picture: Backdrop | None) -> str:
    image = "" if picture is None else f'<img id="picture" alt="picture" src="{picture.data_url()}">'
    return f"""<div class="tools"><label>Colour by <select id="mode"></select></label>
<span class="legend" id="legend"></span><button id="home" type="button">Whole layer</button></div>
<div class="views"><figure class="view"><canvas id="map" tabindex="0" aria-label="map of the outlines"></canvas>
<span class="caption">map</span><span class="scale" id="map-scale"></span></figure>
<figure class="view"><canvas id="city" tabindex="0" aria-label="3-D view"></canvas>
<span class="caption">3-D, heights to scale (not exaggerated)</span></figure></div>
<p id="trouble" role="alert"></p>{image}
<div id="card" aria-live="polite"></div>
<p class="note">Drag moves the map and turns the 3-D view; Shift or the right button moves that too. After a click the
wheel zooms; + and −, arrow keys and Home work as well. A double click shows the whole layer.</p>"""


def _charts_of(drawn: dict, names: tuple[str, ...]) -> str:
    boxes = "".join(f'<div class="chart" id="chart-{name}"></div>' for name in names if name in drawn)
    return f'<div class="charts">{boxes}</div>'


def _against_truth(comparison: TruthComparison, drawn: dict) -> str:
    n = comparison.numbers

    def text(key: str, spec: str, unit: str = "", factor: int = 1) -> str:
        if n[key] is None:
            return "not defined"
        return f"{factor * n[key]:{spec}}{unit}".replace("-", "−").replace(",", "\u202f")

    numbers = [
        (text("match/n_truth", ",d"), "true buildings"),
        (text("match/n", ",d"), "matched at IoU 0.5"),
        (text("match/precision", ".1f", " %", 100), "precision"),
        (text("match/recall", ".1f", " %", 100), "recall"),
        (text("match/f1", ".3f"), "F1"),
        (text("match/mean_iou", ".3f"), "mean IoU of pairs"),
        (text("ap50", ".1f"), "AP50"),
    ]
    if "height/n" in n:  # else outlines alone
        numbers += [
            (text("height/n", ",d"), "pairs with both heights"),
            (text("height/mae_m", ".2f", " m"), "mean absolute height error"),
            (text("height/rmse_m", ".2f", " m"), "RMSE"),
            (text("height/bias_m", "+.2f", " m"), "bias, prediction − truth"),
            (text("height/delta1", ".1f", " %", 100), "δ1: height ratio below 1.25"),
            (text("height/interval_coverage", ".1f", " %", 100), "of truths inside 16–84 % (68 ideal)"),
        ]
    curve = (
        ""
        if "precision" in drawn
        else '<p class="note">No precision-recall curve: the buildings have no scores, or there is no truth.</p>'
    )
    errors = """<div class="tools"><span class="legend" id="errors-legend"></span></div><div class="views">
<figure class="view"><canvas id="errors" tabindex="0" aria-label="map of height errors"></canvas>
<span class="caption">height errors</span><span class="scale" id="errors-scale"></span></figure>
<div class="chart" id="chart-truth"></div></div>"""
    return "".join(
        [
            "<h2>Against the truth</h2>",
            _tiles(numbers),
            errors if "truth" in drawn else "",
            _charts_of(drawn, ("errors", "precision")),
            curve,
        ]
    )


def _facts(buildings, crs, image, frame: Frame, shapes: Shapes, metadata) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [("coordinates", "no CRS: units taken to be metres")]
    if crs is not None:
        authority = crs.to_authority()
        facts = [("coordinates", f"{crs.name} ({':'.join(authority)})" if authority else crs.name)]
    if image is not None:
        facts.append(("picture", Path(image).name))
    for name, attribute in (
        ("heights from", "height_source"),
        ("height statistic", "height_stat"),
        ("height datum", "height_datum"),
        ("outlines follow the", "outline"),
    ):
        values = Counter(getattr(b, attribute) for b in buildings if getattr(b, attribute))
        if values:
            facts.append((name, ", ".join(f"{value} ({n})" for value, n in values.most_common(5))))
    if shapes.tolerance_m:
        facts.append(
            ("drawing", f"outlines simplified to {shapes.tolerance_m:g} m in the views; numbers are exact")
        )
    facts += list((metadata or {}).items())
    facts.append(("written by", f"fusiondet {__version__}"))
    return facts


def _table(facts: list[tuple[str, object]]) -> str:
    rows = []
    for name, value in facts:
        if isinstance(value, dict | list | tuple):
            shown = f"<pre>{_text(json.dumps(value, indent=1, ensure_ascii=False, default=str))}</pre>"
        else:
            shown = _text(value)
        rows.append(f"<tr><th>{_text(name)}</th><td>{shown}</td></tr>")
    return f'<table class="facts">{"".join(rows)}</table>'
