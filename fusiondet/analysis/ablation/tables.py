"""The results of an ablation for readers: Markdown, HTML, CSV and a picture, from the content of results.json."""

import base64
import csv
import html
import io
import re
import textwrap
from collections.abc import Sequence

from fusiondet.evaluation import is_error
from fusiondet.visualization.canvas import FAINT, INK, axes_in, new_figure

from matplotlib.axes import Axes
from matplotlib.figure import Figure

NOTHING = "–"
# Counts, and what has its best value in between.
NEITHER_IS_BETTER = (
    *("height/n", "match/n_truth", "height/bias_m", "height/median_error_m", "height/slope"),
    *("height/interval_coverage", "dense/normalizer_m", "painted/normalizer_m"),
)
CSV_COLUMNS = ("row", "label", "column", "metric", "seeds", "mean", "std", "difference", "low", "high")
_COST_COLUMNS = ("parameters", "gflops", "step_s", "inference_s")
_NAMES = {
    "segm/AP50": "AP50 of masks",
    "joint/AP50": "AP50 of masks with the right height",
    "height/mae_m": "Height MAE, m",
    "height/delta1": "Height δ1",
    "height/skill": "Height skill",
    "pixel/f1": "Pixel F1",
    "dense/dice": "Dice per pixel",
    "dense/delta1_building": "Height δ1 per building pixel",
    "dense/mae_m_building": "Height MAE per building pixel, m",
    "dense/mae_m_all": "Height MAE per pixel, m",
    "dense/rmse_m_building": "Height RMSE per building pixel, m",
    "dense/delta2_building": "Height δ2 per building pixel",
    "dense/delta3_building": "Height δ3 per building pixel",
    "dense/delta1_all": "Height δ1 per pixel",
    **{f"dense/{score}": f"{score.capitalize()} per pixel" for score in ("accuracy", "precision", "recall")},
    "dense/iou": "IoU per pixel",
}

_NOTES = {
    "height/": "Heights are scored on the buildings that a network finds, other ones for every network; AP50 of masks "
    "with the right height is over all buildings.",
    "dense/": "Scores per pixel are those of the dense heads, and of a network without them those of its instances, "
    "painted.",
}


def worth_showing(results: dict) -> dict:
    """`results` without the rows that have no score yet, but for the one compared with, and without claims on them."""
    scored = {line["row"] for line in results["table"]} | {results["compare_to"]}
    rows = {name: row for name, row in results["rows"].items() if name in scored}
    claims = [claim for claim in results["claims"] if claim["from"][0] in rows and claim["to"][0] in rows]
    return {**results, "rows": rows, "claims": claims}


def markdown(results: dict) -> str:
    """All of `results` as Markdown: what was done, an overview with costs, a table per metric, claims."""
    parts = ["\n".join(_head(results)), "## Overview", _grid(*_overview(results))]
    parts += [note] if (note := _cost_note(results["costs"])) else []
    for metric in results["metrics"]:
        parts += [f"## {title(metric)}", _grid(*_metric_table(results, metric))]
    if results["claims"]:
        parts += ["## Claims", _grid(*_claims_table(results["claims"], results["rows"]))]
    return "\n\n".join(parts) + "\n"


def page(results: dict, pictures: dict[str, bytes]) -> str:
    """The same as one HTML page that needs no network, with `pictures` (title -> PNG) behind the overview."""
    head, *notes = (line for line in _head(results) if line)
    parts = [f"<h1>{_html(head.removeprefix('# '))}</h1>", *(f"<p>{_html(note)}</p>" for note in notes)]
    parts += [
        "<h2>Overview</h2>",
        _html_grid(*_overview(results)),
        f"<p>{_html(_cost_note(results['costs']))}</p>",
    ]
    for heading, png in pictures.items():
        source = base64.b64encode(png).decode("ascii")
        parts.append(
            f'<h2>{_html(heading)}</h2><img alt="{_html(heading)}" src="data:image/png;base64,{source}">'
        )
    for metric in results["metrics"]:
        parts += [f"<h2>{_html(title(metric))}</h2>", _html_grid(*_metric_table(results, metric))]
    if results["claims"]:
        parts += ["<h2>Claims</h2>", _html_grid(*_claims_table(results["claims"], results["rows"]))]
    return _PAGE.format(title=_html(results["spec"]), style=_STYLE, body="\n".join(parts))


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""
_STYLE = (
    "body{font:14px/1.45 system-ui,sans-serif;color:#222;margin:2em auto;max-width:1500px;padding:0 1em}"
    "table{border-collapse:collapse;font-size:12px;display:block;overflow-x:auto;margin:1em 0}"
    "td,th{padding:3px 8px;border-bottom:1px solid #e5e5e5;text-align:right;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}th{border-bottom:2px solid #999;white-space:normal}"
    "img{max-width:100%;display:block;margin:1em 0}"
)


def _html(text: str) -> str:
    """`text` escaped, with **bold** and *italic* as Markdown has them."""
    escaped = html.escape(text)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escaped)
    return re.sub(r"\*(.+?)\*", r"<i>\1</i>", escaped)


def _html_grid(header: list[str], lines: list[list[str]]) -> str:
    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_html(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + row(header, "th") + "".join(row(line, "td") for line in lines) + "</table>"


def as_csv(results: dict) -> str:
    """One line per row, column and metric; the costs are lines with column "cost". Empty: not defined."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    labels = {name: row["label"] for name, row in results["rows"].items()}
    writer.writerows({**line, "label": labels[line["row"]]} for line in results["table"])
    for name, costs in (results["costs"] or {"rows": {}})["rows"].items():
        for key in _COST_COLUMNS:
            line = {"row": name, "label": labels[name], "column": "cost", "metric": key, "mean": costs[key]}
            ratio = costs.get(key.replace("_s", "_ratio")) if key.endswith("_s") else None
            if ratio:
                writer.writerow(line)
                line = {**line, "metric": key.replace("_s", "_ratio"), "mean": ratio["median"]}
                line |= {"low": ratio["low"], "high": ratio["high"]}
            writer.writerow(line)
    return text.getvalue()


def title(metric: str) -> str:
    """`metric` for readers."""
    return _NAMES.get(metric, metric)


def is_better(line: dict) -> bool | None:
    """Whether a line of the table is better than the reference; None where its interval holds 0 or nothing says so."""
    excludes_zero = line["low"] is not None and (line["low"] > 0 or line["high"] < 0)
    if not excludes_zero or line["metric"] in NEITHER_IS_BETTER:
        return None
    return (line["low"] > 0) != is_error(line["metric"])


def number(metric: str, value: float | None, sign: bool = False) -> str:
    """`value` with as many decimals as mean something."""
    if value is None:
        return NOTHING
    metres = metric.endswith("_m") or "_m_" in metric
    decimals = 1 if "AP" in metric else 2 if metres else 3
    return f"{value:{'+' if sign else ''}.{decimals}f}"


# ---- Markdown --------------------------------------------------------------------------------------------


def _head(results: dict) -> list[str]:
    seeds = results["seeds"]
    reference = results["rows"][results["compare_to"]]["label"]
    lines = [
        f"# Ablation {results['spec']}",
        "",
        f"{results['steps']} steps each on {', '.join(results['train'])}; seeds {', '.join(map(str, seeds))}; the "
        f"checkpoint with the best {_best_metrics(results)} on {', '.join(results['val'])}.",
    ]
    if len(seeds) > 1:
        lines.append("Scores are mean ± standard deviation over seeds.")
    lines.append(
        f"In brackets: 95 % interval of the difference to *{reference}*, from a paired bootstrap over tiles"
        + (
            ", of the mean over seeds; "
            if len(seeds) > 1
            else "; one seed, so it says nothing about other seeds; "
        )
        + f"bold where it excludes 0. {NOTHING}: says nothing about this network."
    )
    for prefix, note in _NOTES.items():
        if any(metric.startswith(prefix) for metric in results["metrics"]):
            lines.append(note)
    used = sorted(set(_versions_used(results)))
    if len(used) > 1:
        lines += ["", f"**Trained by different versions**: {'; '.join(used)}."]
    if results["missing"]:
        lines += ["", f"**Not finished**: {'; '.join(results['missing'])}."]
    return lines


def _best_metrics(results: dict) -> str:
    """What chose the checkpoints: the reference's, then those of rows that were chosen by something else."""
    rows = results["rows"]
    usual = rows[results["compare_to"]]["best_metric"]
    others: dict[str, list[str]] = {}
    for row in rows.values():
        if row["best_metric"] != usual:
            others.setdefault(row["best_metric"], []).append(row["label"])
    return "; ".join([usual, *(f"of *{'*, *'.join(labels)}* {metric}" for metric, labels in others.items())])


def _versions_used(results: dict) -> list[str]:
    trainings = [seed["training"] for row in results["rows"].values() for seed in row["seeds"].values()]
    return [", ".join(f"{k} {v}" for k, v in t["versions"].items()) for t in trainings if "versions" in t]


def _overview(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and lines: the scores in the first column, and what each network costs."""
    column = results["columns"][0]
    costs = (results["costs"] or {"rows": {}})["rows"]
    header = ["", *(f"{title(m)} ({column})" for m in results["metrics"])]
    header += ["Parameters, M", "GFLOPs", "Step, s", "× reference", "Inference, s/tile", "× reference"]
    lines = []
    for name, row in results["rows"].items():
        scores = [_cell(results, name, column, metric) for metric in results["metrics"]]
        lines.append([row["label"], *scores, *_cost_cells(costs.get(name))])
    return header, lines


def _cost_cells(costs: dict | None) -> list[str]:
    if costs is None:
        return [NOTHING] * 6
    return [
        f"{costs['parameters'] / 1e6:.2f}",
        f"{costs['gflops']:.2f}",
        *(f"{costs['step_s']:.3f}", _ratio(costs["step_ratio"])),
        *(f"{costs['inference_s']:.4f}", _ratio(costs["inference_ratio"])),
    ]


def _ratio(ratio: dict | None) -> str:
    return NOTHING if ratio is None else f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _cost_note(costs: dict | None) -> str:
    if not costs:
        return ""
    s = costs["settings"]
    most = max(row["tiles"] for row in costs["rows"].values())
    batch = str(s["batch"]) if most == s["batch"] else f"{s['batch']} (with unlabelled ones {most})"
    return (
        f"Times: {s['device']}, {s['threads']} threads, {batch} tiles of {s['size_px']} px per step, all "
        f"networks taking turns for {s['rounds']} rounds; medians, ratios with their 95 % interval. GFLOPs: "
        "multiply-adds of one tile's inference (fvcore)."
    )


def _metric_table(results: dict, metric: str) -> tuple[list[str], list[list[str]]]:
    lines = [
        [row["label"], *(_cell(results, name, column, metric) for column in results["columns"])]
        for name, row in results["rows"].items()
    ]
    return ["", *results["columns"]], lines


def _cell(results: dict, row: str, column: str, metric: str) -> str:
    line = _line(results, row, column, metric)
    if line is None:
        return NOTHING
    text = number(metric, line["mean"])
    if line["std"] is not None:
        text += f" ± {number(metric, line['std'])}"
    if line["low"] is None:
        return text
    interval = f"[{number(metric, line['low'], sign=True)}, {number(metric, line['high'], sign=True)}]"
    return f"{text} **{interval}**" if line["low"] > 0 or line["high"] < 0 else f"{text} {interval}"


def _line(results: dict, row: str, column: str, metric: str) -> dict | None:
    wanted = (row, column, metric)
    return next((x for x in results["table"] if (x["row"], x["column"], x["metric"]) == wanted), None)


def _claims_table(claims: Sequence[dict], rows: dict) -> tuple[list[str], list[list[str]]]:
    lines = []
    for claim in claims:
        metric, ends = claim["metric"], []
        for key in ("from", "to"):
            row, column = claim[key]
            ends.append(f"{rows[row]['label']}, {column}: {number(metric, claim[f'{key}_score'])}")
        interval = NOTHING
        if claim["low"] is not None:
            low, high = (number(metric, claim[key], sign=True) for key in ("low", "high"))
            interval = f"{number(metric, claim['difference'], sign=True)} [{low}, {high}]"
        verdict = claim["verdict"] or ""
        lines.append([claim["claim"], title(metric), *ends, interval, _bounds(claim), verdict])
    return ["Claim", "Score", "From", "To", "Difference", "Claimed", "Verdict"], lines


def _bounds(claim: dict) -> str:
    said = [
        f"{word} {claim[key]:g}" for key, word in (("above", ">"), ("below", "<")) if claim[key] is not None
    ]
    return " and ".join(said)


def _grid(header: list[str], lines: list[list[str]]) -> str:
    rule = [":--", *["--:"] * (len(header) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in [header, rule, *lines]]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


# ---- Picture ---------------------------------------------------------------------------------------------

_PANEL_IN, _GAP_IN, _LINE_IN, _LABEL_IN = 1.75, 0.14, 0.24, 2.6
_SIDE_BY_SIDE = 6
_HEAD_IN, _TOP_IN = 0.8, 0.5  # above all panels; above each row of them, for its titles


def figure(results: dict) -> Figure:
    """Rows downwards, a panel per metric and column: the score, and around it the interval of the difference.

    Metrics are below each other, their columns side by side; where there is one column, metrics are.

    A bar crosses the reference's vertical line exactly when the interval of the difference holds 0. With several seeds
    each is a faint dot.
    """
    blocks = _blocks(results["metrics"], results["columns"])
    panel_h = _LINE_IN * len(results["rows"]) + 0.1
    block = _TOP_IN + panel_h + 0.3
    height = _HEAD_IN + len(blocks) * block + 0.1
    most = max(len(panels) for _, panels in blocks)
    width = max(_LABEL_IN + most * (_PANEL_IN + _GAP_IN) + 0.1, 7.0)
    made = new_figure(width, height)
    for i, (heading, panels) in enumerate(blocks):
        top = height - _HEAD_IN - i * block
        made.text(0.15 / width, (top - 0.12) / height, heading, fontsize=10, color=INK, fontweight="bold")
        for k, (metric, column, above) in enumerate(panels):
            x = _LABEL_IN + k * (_PANEL_IN + _GAP_IN)
            ax = axes_in(made, x, top - _TOP_IN - panel_h, _PANEL_IN, panel_h)
            _panel(ax, results, metric, column, above, labels=k == 0)
    made.text(0.15 / width, 1 - 0.12 / height, _caption(results), fontsize=8.5, color=FAINT, va="top")
    return made


def _blocks(metrics: Sequence[str], columns: Sequence[str]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """(heading, panels) of every row of panels; a panel is (metric, column, what stands above it)."""
    if len(columns) > 1:
        return [(title(metric), [(metric, column, column) for column in columns]) for metric in metrics]
    panels = [(metric, columns[0], "\n".join(textwrap.wrap(title(metric), 24))) for metric in metrics]
    parts = [panels[i : i + _SIDE_BY_SIDE] for i in range(0, len(panels), _SIDE_BY_SIDE)]
    return [(columns[0], part) for part in parts]


def _panel(ax: Axes, results: dict, metric: str, column: str, above: str, labels: bool) -> None:
    names = list(results["rows"])
    reference = _line(results, results["compare_to"], column, metric)
    if reference is not None and reference["mean"] is not None:
        ax.axvline(reference["mean"], color="#b0b0b0", linewidth=1.0, zorder=1)
    for y, name in enumerate(names):
        line = _line(results, name, column, metric)
        if line is None or line["mean"] is None:
            ax.text(
                0.5, y, NOTHING, transform=ax.get_yaxis_transform(), ha="center", va="center", color=FAINT
            )
            continue
        _mark(ax, y, line, [s.get(metric) for s in _seed_scores(results, name, column)])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(
        range(len(names)), [results["rows"][n]["label"] for n in names] if labels else [], fontsize=8
    )
    ax.tick_params(labelsize=7.5, length=2, colors=INK)
    ax.locator_params(axis="x", nbins=5, prune="both")
    ax.tick_params(axis="y", length=0)
    ax.set_title(above, fontsize=8, color=INK)
    ax.grid(axis="x", color="#eeeeee", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _mark(ax: Axes, y: int, line: dict, seeds: list) -> None:
    colour = {True: "#1b7f4b", False: "#b5402a", None: "#555555"}[is_better(line)]
    if line["low"] is not None:
        reference = line["mean"] - line["difference"]
        ends = [reference + line["low"], reference + line["high"]]
        ax.plot(ends, [y, y], color=colour, linewidth=1.8, solid_capstyle="butt", zorder=2)
    if len(seeds) > 1:
        ax.plot(seeds, [y] * len(seeds), ".", color=colour, alpha=0.45, markersize=4, zorder=2)
    ax.plot([line["mean"]], [y], "o", color=colour, markersize=4.5, zorder=3)


def _seed_scores(results: dict, row: str, column: str) -> list[dict]:
    per_seed = results["rows"][row]["seeds"].values()
    return [seed["scores"][column] for seed in per_seed if column in seed["scores"]]


def _caption(results: dict) -> str:
    reference, seeds = results["rows"][results["compare_to"]]["label"], len(results["seeds"])
    return (
        f"{results['steps']} steps each, {f'mean of {seeds} seeds' if seeds > 1 else 'one seed'}. "
        f"Vertical line: {reference}.\n"
        "Bar: 95 % interval of the difference to it, paired bootstrap over tiles.\n"
        "Green: better. Red: worse. Grey: the interval holds 0."
    )
