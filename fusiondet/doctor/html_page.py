"""The findings as one HTML page: verdicts, what to do, and the worst tiles with their outlines over both pictures.

Self-contained: pictures are inside, nothing is loaded from anywhere, and all text from the data is escaped.
"""

import base64
import html
import json
import math
from collections.abc import Iterable
from pathlib import Path

from fusiondet import __version__
from fusiondet.doctor.findings import Case, Finding, plain, verdict_line, worst_first
from fusiondet.doctor.samples import read_samples
from fusiondet.doctor.split_source import Split
from fusiondet.errors import InputError
from fusiondet.files import atomic_path
from fusiondet.io.coco import RASTER_KEYS
from fusiondet.visualization import height_colours, optical_panel, sar_panel

import cv2
import numpy as np
import shapely
from matplotlib.colors import to_hex

CASES_PER_FINDING = 3
# Pictures are shown, and stored, this wide.
_SIDE_PX = 330
_UNKNOWN = "#00e5ff"
# Speckle does not compress without loss: a page would have ten megabytes.
_QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 88)

_STYLE = """ :root { color-scheme: light; } body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 0 auto;
max-width: 1080px; padding: 24px; } h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 34px 0 8px;
} .faint, .note { color: #666; } .path { overflow-wrap: anywhere; } article { border-left: 5px solid #bbb; background:
#f7f7f7; margin: 10px 0; padding: 10px 14px; border-radius: 3px; } article h3 { font-size: 15px; margin: 0; } article
p { margin: 4px 0; overflow-wrap: anywhere; } .FAIL { border-color: #c62828; } .warn { border-color: #e6a100; } .ok {
border-color: #2e7d32; } .badge { display: inline-block; min-width: 40px; padding: 0 7px; margin-right: 8px; border-
radius: 3px; color: #fff;   background: #888; font-size: 13px; text-align: center; } .FAIL .badge { background:
#c62828; } .warn .badge { background: #b07a00; } .ok .badge { background: #2e7d32; } .cases { display: flex; flex-
wrap: wrap; gap: 14px; margin-top: 8px; } figure { margin: 0; } figcaption { font-size: 12.5px; max-width: 680px;
overflow-wrap: anywhere; } .pair { display: flex; flex-wrap: wrap; gap: 4px; } .picture { position: relative; line-
height: 0; } .picture img { display: block; } .picture svg { position: absolute; left: 0; top: 0; } .kind { position:
absolute; left: 4px; top: 4px; font-size: 11px; line-height: 1.3; color: #fff; background: #000a;   padding: 0 5px;
border-radius: 2px; } table { border-collapse: collapse; } th, td { padding: 3px 14px 3px 0; text-align: right;
border-bottom: 1px solid #ddd; } th:first-child, td:first-child { text-align: left; } td { font-variant-numeric:
tabular-nums; } details { margin-top: 6px; font-size: 13px; } summary { color: #666; cursor: pointer; } pre { white-
space: pre-wrap; overflow-wrap: anywhere; background: #fff; padding: 8px; max-height: 320px; overflow: auto; } .charts
{ display: flex; flex-wrap: wrap; gap: 40px; align-items: end; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(path: Path, data: Path, splits: list[Split], findings: list[Finding]) -> None:
    """Write the page of `findings` about the data set `data`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(page(data, splits, findings), encoding="utf-8")


def page(data: Path, splits: list[Split], findings: list[Finding]) -> str:
    """The page as text."""
    ordered = worst_first(findings)
    tiles = {
        (split.name, getattr(tile, key)): (split, tile)
        for split in splits
        if split.dataset is not None
        for tile in split.dataset.tiles
        for key in RASTER_KEYS
        if getattr(tile, key) is not None
    }
    bad = [f for f in ordered if f.verdict in ("FAIL", "warn")]
    rest = [f for f in ordered if f.verdict not in ("FAIL", "warn")]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(f'{data.name}: data doctor')}</title><style>{_STYLE}</style></head><body>",
            f'<h1>Data doctor</h1><p class="path"><b>{_text(data)}</b><br>{_text(verdict_line(findings))} '
            f'<span class="faint">fusiondet {_text(__version__)}</span></p>',
            _overview(splits),
            "<h2>What needs attention</h2>" if bad else "<h2>Nothing needs attention</h2>",
            *(_article(finding, tiles, with_cases=True) for finding in bad),
            "<h2>All else</h2>" if rest else "",
            *(_article(finding, tiles, with_cases=False) for finding in rest),
            "</body></html>\n",
        ]
    )


def _text(value) -> str:
    return html.escape(str(value), quote=True)


def _overview(splits: list[Split]) -> str:
    rows, heights_m, counts = [], [], []
    for split in splits:
        if split.dataset is None:
            rows.append(f'<tr><td>{_text(split.name)}</td><td colspan="4">cannot be read</td></tr>')
            continue
        tiles = split.dataset.tiles
        buildings = [b for tile in tiles for b in tile.buildings]
        known = [b.height_m for b in buildings if b.height_m is not None]
        heights_m += known
        counts += [len(tile.buildings) for tile in tiles]
        numbers = (len(tiles), sum(not tile.buildings for tile in tiles), len(buildings), len(known))
        cells = "".join(f"<td>{n}</td>" for n in numbers)
        rows.append(f"<tr><td>{_text(split.name)}</td>{cells}</tr>")
    head = "".join(f"<th>{h}</th>" for h in ("split", "images", "empty", "buildings", "with height"))
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    charts = [
        _histogram("height above ground, m", np.array(heights_m)),
        _histogram("buildings per image", np.array(counts)),
    ]
    return f'<div class="charts"><div>{table}</div>{"".join(charts)}</div>'


def _histogram(label: str, values: np.ndarray, width: int = 250, height: int = 90) -> str:
    """Bars up to the 99th percentile as SVG; the last one holds what is above."""
    if not values.size:
        return ""
    top = max(float(np.percentile(values, 99)), 1.0)
    step = 10 ** math.floor(math.log10(top / 5))
    step = max(
        next(step * k for k in (1, 2, 5, 10) if step * k * 18 >= top),
        1 if label.startswith("buildings") else 0,
    )
    bins = max(1, math.ceil(top / step))
    counts = np.bincount(np.clip((values / step).astype(int), 0, bins - 1), minlength=bins)
    bar = width / bins
    bars = "".join(
        f'<rect x="{i * bar:.1f}" y="{height - n / counts.max() * height:.1f}" width="{max(bar - 1, 1):.1f}" '
        f'height="{n / counts.max() * height:.1f}" fill="#4a6fa5"/>'
        for i, n in enumerate(counts.tolist())
    )
    at = "font-size='11' fill='#666'"
    words = (
        f"<text x='0' y='{height + 13}' {at}>0</text>"
        f"<text x='{width}' y='{height + 13}' text-anchor='end' {at}>{bins * step:g} +</text>"
        f"<text x='{width / 2}' y='{height + 13}' text-anchor='middle' {at}>{_text(label)}</text>"
    )
    return f'<svg width="{width}" height="{height + 18}" role="img" aria-label="{_text(label)}">{bars}{words}</svg>'


def _article(finding: Finding, tiles: dict, with_cases: bool) -> str:
    kind = finding.verdict if finding.verdict in ("FAIL", "warn", "ok") else "none"
    parts = [
        f'<article class="{kind}"><h3><span class="badge">{_text(finding.verdict)}</span>{_text(finding.name)}</h3>',
        f"<p>{_text(finding.detail)}</p>",
    ]
    if finding.remedy:
        parts.append(f"<p><b>What to do:</b> {_text(finding.remedy)}</p>")
    if with_cases and finding.cases:
        shown = "".join(_case(case, tiles) for case in finding.cases[:CASES_PER_FINDING])
        parts.append(f'<div class="cases">{shown}</div>')
        rest = finding.cases[CASES_PER_FINDING:]
        if rest:
            names = ", ".join(f"{case.image}{f' ({case.note})' if case.note else ''}" for case in rest)
            parts.append(f'<p class="note">Also {_text(names)}</p>')
    if finding.numbers:
        numbers = json.dumps(plain(finding.numbers), indent=1, ensure_ascii=False)
        parts.append(f"<details><summary>numbers</summary><pre>{_text(numbers)}</pre></details>")
    return "".join([*parts, "</article>"])


def _case(case: Case, tiles: dict) -> str:
    caption = f"{case.split}: {case.image}{f' ({case.note})' if case.note else ''}"
    pictures = ""
    if (case.split, case.image) in tiles:
        split, tile = tiles[case.split, case.image]
        try:
            pictures = "".join(_pictures(split, tile))
        except InputError as error:
            pictures = f'<p class="note">{_text(error)}</p>'
    return f'<figure><div class="pair">{pictures}</div><figcaption>{_text(caption)}</figcaption></figure>'


def _pictures(split: Split, tile) -> Iterable[str]:
    """The optical and the SAR picture of a tile, each with the outlines."""
    bands = split.dataset.bands
    sample = next(read_samples([(split, tile)]))
    if sample.image is None:
        raise InputError(sample.error)
    tile, image = sample.tile, sample.image
    n = len(bands.optical)
    outlines = _outlines(tile)
    if n:
        yield _picture(optical_panel(image[:n], bands.optical), "optical", outlines, tile)
    if len(bands) > n and np.isfinite(image[n:]).any():
        yield _picture(sar_panel(image[n:], bands.sar), "SAR", outlines, tile)


def _picture(panel: np.ndarray, kind: str, outlines: str, tile) -> str:
    height, width = panel.shape[:2]
    scale = _SIDE_PX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    _, data = cv2.imencode(".jpg", cv2.resize(panel[:, :, ::-1], size, interpolation=how), _QUALITY)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode('ascii')}"
    return (
        f'<div class="picture"><img alt="{kind}" width="{size[0]}" height="{size[1]}" src="{source}">'
        f'<svg width="{size[0]}" height="{size[1]}" viewBox="0 0 {tile.width} {tile.height}" fill="none" '
        f'stroke-width="1.2">{outlines}</svg><span class="kind">{kind}</span></div>'
    )


def _outlines(tile) -> str:
    """SVG paths, in the colour of the height; cyan where it is unknown."""
    colours = height_colours([b.height_m for b in tile.buildings])
    paths = []
    for building in tile.buildings:
        colour = _UNKNOWN if building.height_m is None else to_hex(colours.to_rgba(building.height_m))
        rings = [
            "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in ring.coords) + "Z"
            for part in shapely.get_parts(building.polygon)
            for ring in (part.exterior, *part.interiors)
        ]
        paths.append(f'<path d="{"".join(rings)}" stroke="{colour}" vector-effect="non-scaling-stroke"/>')
    return "".join(paths)
