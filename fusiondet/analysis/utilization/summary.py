"""What the analysis found, as aligned text, Markdown, JSON and a picture."""

from pathlib import Path

from fusiondet.analysis.utilization.measurement import UTILIZATIONS, Estimate, Utilization, analyze
from fusiondet.files import atomic_dir, require_new_dir, write_json
from fusiondet.locks import sole_writer
from fusiondet.visualization import IntervalPanel, interval_figure, save_figure

REPORT = "utilization.json"
_DROP = "Drop sensitivity: score lost when a modality is replaced"
_CONDITIONAL = (
    "Conditional utilisation (P3): share of a branch's score that is due to what it hears of the other"
)
_LABELS = {
    "segm/AP50": "AP50",
    "joint/AP50": "joint AP50",
    "pixel/best_f1": "pixel F1",
    "height/delta1": "δ1",
    "dense/dice": "pixel F1",
    "dense/delta1_building": "δ1 on buildings",
    "dense/delta1_all": "δ1 everywhere",
}
_NAMES = {"optical": "optical", "sar": "SAR", "mean": "its mean", "stand_in": "the stand-in"}
_NAMES |= {"other_tile": "another tile's", "u_sar_given_opt": "u(sar|opt)", "u_opt_given_sar": "u(opt|sar)"}


def analyze_to_dir(
    weights: Path, dataset_name: str, out: Path, *, overwrite: bool = False, **options
) -> Utilization:
    """`analyze`, written to the new directory `out` whole or not at all: utilization.json, .md and .png.

    Raises:
        InputError: see `analyze` and `fusiondet.files.require_new_dir`; the latter before anything is computed.
    """
    require_new_dir(out, REPORT, overwrite)
    with sole_writer(out):
        result = analyze(weights, dataset_name, **options)
        require_new_dir(out, REPORT, overwrite)  # another run may have been at work until just now
        with atomic_dir(out) as folder:
            write_json(result.to_dict(), folder / REPORT, indent=1)
            (folder / "utilization.md").write_text(markdown(result), encoding="utf-8")
            save_figure(figure(result), folder / "utilization.png")
    return result


def figure(result: Utilization):
    """Drop sensitivity per score, below it the conditional utilisation where the network has one."""
    groups = [(_DROP, "score lost", _drop_rows(result))]
    if result.conditional:
        groups.append((_CONDITIONAL, "share of the branch's score", _conditional_rows(result)))
    return interval_figure(
        [(heading, [_panel(key, unit, rows) for key in result.keys]) for heading, unit, rows in groups]
    )


def _panel(key: str, unit: str, rows: list) -> IntervalPanel:
    in_points = key.endswith("AP50") and unit == "score lost"
    values = [(name, one[key].value, one[key].low, one[key].high, group) for name, one, group in rows]
    return IntervalPanel(
        _LABELS[key], f"{unit}, points" if in_points else unit, values, 5.0 if in_points else 0.05
    )


def text_table(result: Utilization) -> str:
    """The report as aligned lines."""
    lines = []
    for title, header, rows in _sections(result):
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        lines += [title]
        lines += [
            "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in (header, *rows)
        ]
    return "\n".join(lines + [f"note: {note}" for note in result.notes])


def markdown(result: Utilization) -> str:
    """The report as Markdown tables."""
    lines = []
    for title, header, rows in _sections(result):
        cells = [header, ["---"] * len(header), *rows]
        lines += [
            f"**{title}**",
            "",
            *("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells),
            "",
        ]
    facts = ", ".join(f"{key} {value}" for key, value in result.facts.items())
    return "\n".join([*lines, *(f"Note: {note}" for note in result.notes), "", f"{facts}.", ""])


def _sections(result: Utilization) -> list[tuple[str, list[str], list[list[str]]]]:
    header = ["", *(_LABELS[key] for key in result.keys)]
    kept = [name for name in result.scores if "/" not in name]
    scores = [[_plain_name(n), *(_number(key, result.scores[n][key]) for key in result.keys)] for n in kept]
    sections = [("Scores", header, scores)]
    drop = [[name, *(_cell(key, one[key]) for key in result.keys)] for name, one, _ in _drop_rows(result)]
    sections.append((f"{_DROP} [95 % interval]", header, drop))
    if result.conditional:
        u = [
            [name, *(_cell("", one[key]) for key in result.keys)]
            for name, one, _ in _conditional_rows(result)
        ]
        sections.append((f"{_CONDITIONAL} [95 % interval]", header, u))
    return sections


def _drop_rows(result: Utilization) -> list[tuple[str, dict[str, Estimate], str]]:
    """(name, SCORE -> Estimate, modality) of each replacement."""
    return [(f"{_NAMES[m]} → {_NAMES[how]}", one, m) for (m, how), one in result.drop_sensitivity.items()]


def _conditional_rows(result: Utilization) -> list[tuple[str, dict[str, Estimate], str]]:
    groups = dict(zip(UTILIZATIONS, ("sar", "optical", ""), strict=True))
    return [(_NAMES.get(name, name), one, groups[name]) for name, one in result.conditional.items()]


def _plain_name(name: str) -> str:
    return name.replace("_", " ").replace("sar ", "SAR ").replace("cut off", "with the other cut off")


def _number(key: str, value: float | None, sign: str = "") -> str:
    return "–" if value is None else format(value, f"{sign}.1f" if key.endswith("AP50") else f"{sign}.3f")


def _cell(key: str, one: Estimate) -> str:
    if one.value is None or one.low is None:
        return _number(key, one.value, "+")
    return f"{_number(key, one.value, '+')} [{_number(key, one.low, '+')}, {_number(key, one.high, '+')}]"
