"""Ablations: configs x seeds x conditions of evaluation, resumable after a kill, one table of results.

spec       the YAML file that says which networks, data and conditions; its docstring documents every key
runs       one network: trained, then scored under every condition; what is finished is never done again
costs      parameters, operations and times of all networks, taking turns
results    scores, paired differences and claims as numbers
gallery    what the networks say of a few tiles, side by side
report     the same as Markdown, HTML, CSV and a picture

<out>/ablation.json                     marks the directory; which commands made the data
<out>/datasets/<name>/                  the spec's own data
<out>/runs/<row>/seed<seed>/            see `runs`
<out>/costs.json
<out>/results.{json,csv,md,png,html}
"""

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.analysis.ablation import costs, results, runs
from fusiondet.analysis.ablation import examples as gallery
from fusiondet.analysis.ablation import tables as report
from fusiondet.analysis.ablation.runs import Run
from fusiondet.analysis.ablation.spec import Row, Spec, read_spec
from fusiondet.converters.prepare import StrictParser, prepare
from fusiondet.engine.checkpoint import versions
from fusiondet.errors import InputError, unknown_name
from fusiondet.files import atomic_path, read_json, require_new_dir, write_json
from fusiondet.locks import lock
from fusiondet.visualization import save_figure
from fusiondet.visualization.canvas import figure_png

__all__ = ["describe", "read_spec", "run_ablation"]

MARK = "ablation.json"
_WAYS_OUT = "Pass `overwrite=True` to train it anew, or choose another `out` to keep both."


def run_ablation(
    spec: Spec, out: Path, *, rows: Sequence[str] = (), jobs: int = 1, overwrite: bool = False
) -> Path:
    """Do what is left of `spec` under `out`, and write the results of all that is finished.

    Args:
        rows: only these are worked on; the tables have whatever else is finished too. Empty: all.
        jobs: networks trained side by side, each in its own process.
        overwrite: train rows anew, and make data anew, whose settings differ from those that `out` was begun with.

    Returns:
        Path of results.md.

    Raises:
        InputError: `out` is no directory of an ablation, or in use; a row or data set changed since it was begun; a
            row could not be trained or scored for bad input.
        RuntimeError: a row failed; the others are finished, and the results written.
    """
    out = require_new_dir(Path(out), MARK, overwrite=True)
    _check_rows(spec, rows)
    if jobs < 1:
        raise InputError(f"`jobs={jobs}`: expected at least 1.")
    with _alone(out):
        make_data(spec, out, overwrite)
        plan = runs.plan(spec, out)
        chosen = [run for run in plan if not rows or run.row in rows]
        changed = _changed(chosen, overwrite)
        runs.check_data(chosen)
        for run in changed:
            shutil.rmtree(run.folder)
        current = [run for run in plan if not runs.changes(run)]
        failures = _work(chosen, jobs) + _costs(spec, out, current) + _galleries(spec, out, current)
        path = write_results(spec, out, plan, current)
    if failures:
        lines = "; ".join(f"{f.name}: {f.message.strip().splitlines()[-1]}" for f in failures)
        kind = InputError if all(f.bad_input for f in failures) else RuntimeError
        raise kind(f"{spec.path}: {len(failures)} not finished: {lines}")
    return path


def describe(spec: Spec, out: Path, rows: Sequence[str] = ()) -> str:
    """What `run_ablation` would do, without doing anything: per run what is finished and what is left."""
    _check_rows(spec, rows)
    made = {name: _made(out, name) for name in spec.data}
    lines = [f"data set {name}: {_state(made[name], words)}" for name, words in spec.data.items()]
    if not all(made.values()):
        per_row = {row.name: 0 for row in spec.rows.values()}
        for row, column in spec.cells():
            per_row[row.name] += "/" not in column
        lines += [
            f"{name}: training and {count} conditions, {len(spec.seeds)} times"
            for name, count in per_row.items()
            if not rows or name in rows
        ]
        return "\n".join(lines)
    plan = [run for run in runs.plan(spec, out) if not rows or run.row in rows]
    for run in plan:
        changed, left = runs.changes(run), run.parts_left()
        state = f"changed, {changed[0]}" if changed else f"left: {', '.join(left)}" if left else "finished"
        lines.append(f"{run.name}: {state}")
    parts = sum(len(run.parts_left()) for run in plan)
    return "\n".join([*lines, f"{parts} parts left of {sum(1 + len(run.scorings) for run in plan)}"])


def _state(made: list[str] | None, words: list[str]) -> str:
    if made is None:
        return "to make"
    return "there" if made == words else "made by another command"


def _check_rows(spec: Spec, rows: Sequence[str]) -> None:
    for name in rows:
        if name not in spec.rows:
            raise InputError(f"{spec.path}: {unknown_name('row', name, spec.rows)}")


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second process out of `out`; the lock goes with the process, however that ends."""
    with lock(out / ".lock", out):
        for left in out.glob(".*"):  # of one that was killed
            if left.is_dir():
                shutil.rmtree(left)
        if not (out / MARK).is_file():
            write_json({"data": {}}, out / MARK, indent=1)
        yield


# ---- Data ------------------------------------------------------------------------------------------------


def make_data(spec: Spec, out: Path, overwrite: bool = False) -> None:
    """Make the data sets of `spec` that are not there yet.

    Raises:
        InputError: one is there that another command made, and not `overwrite`; or the command is wrong.
    """
    for name, words in spec.data.items():
        before = _made(out, name)
        if before == words:
            continue
        if before is not None and not overwrite:
            raise InputError(
                f"{out}: data set {name} was made by {' '.join(before)!r}, and {spec.path} says {' '.join(words)!r}. "
                "Pass `overwrite=True` to make it anew, or choose another `out`."
            )
        print(f"making data set {name}: {' '.join(words)}", flush=True)
        # Noted as made only when it is: whatever a killed process left behind is made again.
        content = read_json(out / MARK)
        others = {other: made for other, made in content["data"].items() if other != name}
        write_json({**content, "data": others}, out / MARK, indent=1)
        try:
            prepare([*words, "--out", str(out / "datasets" / name), "--overwrite"], parser=StrictParser)
        except InputError as error:
            raise InputError(f"{spec.path}: data: {name}: {error}") from None
        write_json({**content, "data": {**others, name: words}}, out / MARK, indent=1)


def _made(out: Path, name: str) -> list[str] | None:
    """The words that made data set `name`; None when it is not there."""
    there = (out / MARK).is_file() and (out / "datasets" / name).is_dir()
    return read_json(out / MARK)["data"].get(name) if there else None


# ---- Work ------------------------------------------------------------------------------------------------


def _changed(plan: list[Run], overwrite: bool) -> list[Run]:
    """The runs that were begun with other settings; InputError for the first of them unless `overwrite`."""
    found = []
    for run in plan:
        changed = runs.changes(run)
        if changed and not overwrite:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise InputError(
                f"{run.folder}: row {run.row} was begun with another {changed[0]}{more}. {_WAYS_OUT}"
            )
        found += [run] if changed else []
    return found


def _work(plan: list[Run], jobs: int) -> list[runs.Failure]:
    total, left = sum(1 + len(run.scorings) for run in plan), sum(len(run.parts_left()) for run in plan)
    if left < total:
        print(f"{total - left} of {total} parts were finished before", flush=True)
    start = time.monotonic()

    def tell(name: str, part: str) -> None:
        nonlocal left
        left -= 1
        print(f"[{total - left}/{total}] {name}: {part}, {_clock(start)}; {left} left", flush=True)

    waiting = {run.name: (partial(runs.work, run), run.folder) for run in plan if run.parts_left()}
    failures = runs.in_processes(waiting, jobs, tell)
    for failure in failures:
        print(f"{failure.name}: NOT finished: {failure.message.strip().splitlines()[-1]}", flush=True)
    return failures


def _clock(start: float) -> str:
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    return f"{minutes}:{seconds:02d}"


def _costs(spec: Spec, out: Path, plan: list[Run]) -> list[runs.Failure]:
    trained = [run for run in plan if run.seed == spec.seeds[0] and run.trained()]
    path = out / "costs.json"
    if not spec.cost_rounds or not trained or not costs.costs_left(trained, spec.cost_rounds, path):
        return []
    print(f"costs: {len(trained)} networks take turns", flush=True)
    job = partial(costs.measure, trained, spec.compare_to, spec.cost_rounds, path)
    return runs.in_processes({"costs": (job, out)}, 1, lambda *_: None)


def _shown(spec: Spec, out: Path, plan: list[Run]) -> tuple[list[Run], Path]:
    """The runs that galleries show, and the data set whose tiles they are."""
    first = next(iter(spec.conditions.values()))
    return [run for run in plan if run.seed == spec.seeds[0]], Path(
        runs.dataset_file(spec, out, first.dataset)
    )


def _galleries(spec: Spec, out: Path, plan: list[Run]) -> list[runs.Failure]:
    if not spec.galleries:
        return []
    shown, dataset = _shown(spec, out, plan)
    left = gallery.maps_left(spec.galleries, shown, dataset)
    if not left:
        return []
    print(f"galleries: {len(left)} networks say their maps", flush=True)
    job = partial(gallery.predict, spec.galleries, left, dataset)
    return runs.in_processes({"galleries": (job, out)}, 1, lambda *_: None)


# ---- Results ---------------------------------------------------------------------------------------------


def write_results(spec: Spec, out: Path, plan: list[Run], current: list[Run]) -> Path:
    """Write results.json, .csv, .md, .png and .html; returns the path of results.md. Arguments as of `collect`."""
    found = collect(spec, out, plan, current)
    write_json(found, out / "results.json", indent=1)
    found = report.worth_showing(found)
    for suffix, text in (("csv", report.as_csv(found)), ("md", report.markdown(found))):
        with atomic_path(out / f"results.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    save_figure(report.figure(found), out / "results.png")
    pictures = {"Scores": (out / "results.png").read_bytes()}
    if spec.galleries:
        for heading, made in gallery.figures(spec.galleries, *_shown(spec, out, current)).items():
            pictures[heading] = figure_png(made)
    with atomic_path(out / "results.html") as temporary:
        temporary.write_text(report.page(found, pictures), encoding="utf-8")
    return out / "results.md"


def collect(spec: Spec, out: Path, plan: list[Run], current: list[Run]) -> dict:
    """The content of results.json: settings, rows with every seed's scores, table, claims, costs, what is missing.

    Args:
        plan: all runs.
        current: those whose settings are the ones they were begun with; what others have finished does not count.
    """
    scores, metrics = {}, {}
    for run in current:
        for scoring in run.scorings:
            content = run.scored(scoring)
            if content is None:
                continue
            metrics[run.row, scoring.name, run.seed] = read_json(run.folder / scoring.name / "metrics.json")
            for column in content["columns"]:
                scores[run.row, column, run.seed] = content["columns"][column]
    cells = results.make_cells(scores)
    in_order = {
        (row.name, column): cells[row.name, column]
        for row, column in spec.cells()
        if (row.name, column) in cells
    }
    cfg = spec.config(spec.rows[spec.compare_to], spec.seeds[0])
    measured = read_json(out / "costs.json") if (out / "costs.json").is_file() and spec.cost_rounds else None
    return {
        **{
            "spec": spec.path.name,
            "steps": cfg.SOLVER.MAX_ITER,
            "seeds": list(spec.seeds),
            "draws": results.DRAWS,
        },
        **{"train": list(spec.train), "val": list(spec.val), "compare_to": spec.compare_to},
        **{
            "metrics": list(spec.metrics),
            "columns": spec.columns,
            "overrides": [str(w) for w in spec.overrides],
        },
        "versions": versions(),
        "rows": {row.name: _row_facts(spec, row, current, cells, metrics) for row in spec.rows.values()},
        "table": results.table(in_order, spec.metrics, spec.compare_to),
        "claims": results.judge(spec.claims, cells),
        "costs": measured,
        "missing": [f"{run.name}: {what}" for run in plan if (what := _missing(run, run in current))],
    }


def _missing(run: Run, current: bool) -> str:
    return ", ".join(run.parts_left()) if current else "was begun with other settings"


def _row_facts(spec: Spec, row: Row, current: list[Run], cells: dict, metrics: dict) -> dict:
    seeds = {}
    for run in current:
        if run.row == row.name and run.trained():
            scores = {
                c: cell.seeds[run.seed]
                for (name, c), cell in cells.items()
                if name == row.name and run.seed in cell.seeds
            }
            own = {
                c: numbers
                for (name, c, seed), numbers in metrics.items()
                if (name, seed) == (row.name, run.seed)
            }
            seeds[str(run.seed)] = {"training": run.trained(), "scores": scores, "metrics": own}
    return {
        "label": row.label,
        "config": row.config.name,
        "overrides": [str(w) for w in row.overrides],
        "best_metric": spec.config(row, spec.seeds[0]).TEST.BEST_METRIC,
        "seeds": seeds,
    }
