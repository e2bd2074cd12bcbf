"""One network of an ablation: trained, then scored under every condition; whatever is finished is never done again.

    <out>/runs/<row>/seed<seed>/
        depends_on.json        what the training follows from: config, data; a change of it is refused
        row.yaml, config.yaml, log.txt, metrics.json, console.txt ...        as tools/train_net.py writes them
        model.pth              the chosen weights, without the state of the optimizer
        trained.json           written last: how they were chosen, and their hash
        <condition>/           whole or not there: predictions.json, metrics.json, scores.json

Every run has a process of its own, so that memory and log files stay apart, and dies with the one that started it.
"""

import dataclasses
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.analysis.ablation.results import DRAWS, drawn_scores
from fusiondet.analysis.ablation.spec import Condition, Row, Spec, own_dataset
from fusiondet.config import defaults
from fusiondet.config_loading import config_from_yaml_text, load_config
from fusiondet.config_text import flat, merge_words, renamed_keys
from fusiondet.data import catalog
from fusiondet.engine import launch
from fusiondet.engine.checkpoint import (
    FusionCheckpointer,
    is_own_checkpoint,
    read_checkpoint,
    stored_config,
    versions,
)
from fusiondet.engine.complete_config import complete_config, settle_data
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError
from fusiondet.evaluation.regions import region_by_name
from fusiondet.evaluation.resampling import TileScores, tile_scores
from fusiondet.files import atomic_dir, atomic_path, read_json, remove_half_written, write_json
from fusiondet.jobs import executors
from fusiondet.jobs.executors import ProcessExecutor, WorkerLostError
from fusiondet.jobs.hashing import file_sha256
from fusiondet.visualization.training import FIGURES

import numpy as np
import torch
from detectron2.config import CfgNode


@dataclass(frozen=True)
class Scoring:
    """One condition of a run: file of the data set, overrides, regions, metrics that the tables show, and what the
    scores follow from.
    """

    name: str
    dataset: str
    overrides: tuple
    regions: tuple[str, ...]
    metrics: tuple[str, ...]
    depends_on: dict


@dataclass(frozen=True)
class Run:
    """One row with one seed, as plain data that another process can take over.

    Attributes:
        folder: its own.
        config_yaml: what it is trained with; data sets by their files.
        depends_on: what the training follows from, {key: value}.
    """

    row: str
    seed: int
    folder: Path
    config_yaml: str
    depends_on: dict
    scorings: tuple[Scoring, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.row}, seed {self.seed}"

    @property
    def trained_file(self) -> Path:
        """Marks a finished training."""
        return self.folder / "trained.json"

    def trained(self) -> dict | None:
        """Facts of the finished training; None while it is not."""
        return read_json(self.trained_file) if self.trained_file.is_file() else None

    def scored(self, scoring: Scoring) -> dict | None:
        """Content of the scores.json of `scoring`; None when there is none that follows from today's inputs, or it was
        written by a version that did not have a metric yet.
        """
        content = self.predicted(scoring)
        columns = content["columns"].values() if content else ()
        return content if all(column["score"].keys() >= set(scoring.metrics) for column in columns) else None

    def predicted(self, scoring: Scoring) -> dict | None:
        """Content of the scores.json of `scoring` if the predictions beside it follow from today's inputs."""
        path, trained = self.folder / scoring.name / "scores.json", self.trained()
        if trained is None or not path.is_file():
            return None
        content = read_json(path)
        return content if content["depends_on"] == _with_weights(scoring, trained) else None

    def parts_left(self) -> list[str]:
        """Names of what is still to do, in order: "training", then conditions."""
        training = [] if self.trained() else ["training"]
        return training + [s.name for s in self.scorings if self.scored(s) is None]


# ---- Planning --------------------------------------------------------------------------------------------


def plan(spec: Spec, out: Path) -> list[Run]:
    """All runs of `spec` under `out`, seed by seed, so that a run cut short has every row.

    Raises:
        InputError: a data set that is not there.
    """
    hashes: dict[str, str] = {}

    def file_of(name: str) -> str:
        path = dataset_file(spec, out, name)
        hashes[name] = hashes.get(name) or file_sha256(Path(path))
        return path

    return [_run(spec, out, row, seed, file_of, hashes) for seed in spec.seeds for row in spec.rows.values()]


def _run(spec: Spec, out: Path, row: Row, seed: int, file_of: Callable, hashes: dict) -> Run:
    cfg = spec.config(row, seed)
    folder = out / "runs" / row.name / f"seed{seed}"
    depends_on = not_default(cfg)
    for key, names in (("train", spec.train), ("val", spec.val)):
        cfg.DATASETS["TRAIN" if key == "train" else "TEST"] = tuple(file_of(name) for name in names)
        depends_on[key] = {name: hashes[name] for name in names}
    if Path(cfg.MODEL.WEIGHTS).is_file():
        depends_on["MODEL.WEIGHTS (content)"] = file_sha256(Path(cfg.MODEL.WEIGHTS))
    cfg.OUTPUT_DIR = str(folder)
    scorings = tuple(
        _scoring(condition, file_of(condition.dataset), hashes, spec.shown_metrics)
        for condition in spec.conditions.values()
        if condition.holds_for(row)
    )
    return Run(row.name, seed, folder, cfg.dump(), depends_on, scorings)


def _scoring(condition: Condition, path: str, hashes: dict, metrics: tuple[str, ...]) -> Scoring:
    depends_on = {
        "dataset": hashes[condition.dataset],
        "overrides": [str(word) for word in condition.overrides],
        "regions": list(condition.regions),
        "draws": DRAWS,
    }
    return Scoring(condition.name, path, condition.overrides, condition.regions, metrics, depends_on)


def check_data(plan: Sequence[Run]) -> None:
    """Find, before the first training, what in the data would end a training or a scoring of `plan` hours later.

    Raises:
        InputError: a data set of a run that lacks a band, a fact of the geometry or a cloud raster that it asks for.
    """
    for run in {run.row: run for run in plan}.values():
        try:
            cfg = config_from_yaml_text(run.config_yaml, run.name)
            cfg.DATASETS.TEST = (*cfg.DATASETS.TEST, *(scoring.dataset for scoring in run.scorings))
            weights = cfg.MODEL.WEIGHTS
            settle_data(cfg, stored_config(weights) if weights and is_own_checkpoint(weights) else None)
            for scoring in run.scorings:
                for name in scoring.regions:
                    region_by_name(name, catalog.load_split(scoring.dataset))
        except InputError as error:
            raise InputError(f"row {run.row}: {error}") from None


def dataset_file(spec: Spec, out: Path, name: str) -> str:
    """The annotation file of data set `name`: of the spec's own data under `out`, else of the catalog.

    Raises:
        InputError: there is none.
    """
    own = own_dataset(spec, name)
    if own is None:
        return str(catalog.annotation_file(name))
    folder = (out / "datasets" / own[0] / "annotations").resolve()
    if not (folder / f"{own[1]}.json").is_file():
        splits = ", ".join(sorted(p.stem for p in folder.glob("*.json"))) or "none"
        raise InputError(
            f"{spec.path}: data set {name!r}: {own[0]} has no split {own[1]!r}. Its splits: {splits}."
        )
    return str(folder / f"{own[1]}.json")


def not_default(cfg: CfgNode) -> dict:
    """{dotted key: value} of what `cfg` sets, without data sets and output folder."""
    own, known = flat(cfg), flat(defaults())
    left_out = ("OUTPUT_DIR", "DATASETS.TRAIN", "DATASETS.TEST")
    return {k: v for k, v in own.items() if k not in left_out and (k not in known or v != known[k])}


def changes(run: Run) -> list[str]:
    """What differs from what `run` was begun with, as "key: old -> new"; [] for a run that is new or as it was."""
    path = run.folder / "depends_on.json"
    if not path.is_file():
        return []
    usual = flat(defaults())
    names = renamed_keys()
    stored = {names.get(key, key): value for key, value in read_json(path).items()}
    before, now = {**usual, **stored}, {**usual, **run.depends_on}
    return [
        f"{key}: {_said(before.get(key))} -> {_said(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if _said(before.get(key)) != _said(now.get(key))
    ]


def _said(value):
    if isinstance(value, dict):  # data sets with their hashes
        return ", ".join(f"{name} ({digest[:8]})" for name, digest in value.items())
    # As JSON gives it back.
    return list(value) if isinstance(value, tuple) else value


# ---- Training and scoring --------------------------------------------------------------------------------


def work(run: Run) -> Iterator[str]:
    """Do what is left of `run`; yields the name of every part when it is finished."""
    remove_half_written(run.folder)
    trained_now = run.trained() is None
    if trained_now:
        _train(run)
    # Checkpoints with the optimizer's state are three times the size, and nothing goes on from here. A call before this
    # one may have been killed before it came to that.
    for path in run.folder.glob("model_*.pth"):
        path.unlink()
    if trained_now:
        yield "training"
    for scoring in run.scorings:
        if run.scored(scoring) is None:
            _score(run, scoring)
            yield scoring.name


def _train(run: Run) -> None:
    if not (run.folder / "depends_on.json").is_file():
        write_json(run.depends_on, run.folder / "depends_on.json", indent=1)
    args = launch.parse_arguments(["--config-file", str(_config_file(run)), "--resume"])
    cfg = launch.prepare(args)
    launch.work(cfg, args, FIGURES)
    facts = _keep_chosen_weights(run.folder, cfg)
    write_json({**facts, "finished": time.strftime("%Y-%m-%d %H:%M:%S")}, run.trained_file, indent=1)


def _config_file(run: Run) -> Path:
    """row.yaml, written as it is today: the directory may have moved since the training."""
    path = run.folder / "row.yaml"
    with atomic_path(path) as temporary:
        temporary.write_text(run.config_yaml, encoding="utf-8")
    return path


def _keep_chosen_weights(folder: Path, cfg: CfgNode) -> dict:
    """Write model.pth from the checkpoint that was best on val, else from the last one; returns what was chosen."""
    best = folder / "model_best.pth"
    chosen = best if best.is_file() else folder / "model_final.pth"
    content = read_checkpoint(chosen)
    with atomic_path(folder / "model.pth") as temporary:
        torch.save({k: content[k] for k in ("model", "config_yaml", "iteration", "fusiondet")}, temporary)
    facts = content["fusiondet"]
    return {
        "chosen": chosen.name,
        "iteration": content["iteration"],
        "metric": facts.get("metric", cfg.TEST.BEST_METRIC),
        "value": facts.get("value"),
        "weights": file_sha256(folder / "model.pth"),
        "versions": {key: facts.get(key) for key in versions()},
    }


def _score(run: Run, scoring: Scoring) -> None:
    """Predict and score one condition; only score it where the predictions are there."""
    if run.predicted(scoring) is not None:
        cfg = config_from_yaml_text(run.config_yaml, str(run.folder))
        merge_words(cfg, scoring.overrides)
        _write_scores(run, scoring, run.folder / scoring.name, cfg.INPUT.HEIGHT_LABELS)
        return
    with atomic_dir(run.folder / scoring.name) as folder:
        cfg, model = load_trained(run, [*scoring.overrides, "DATASETS.TEST", [scoring.dataset]])
        cfg.OUTPUT_DIR = str(folder)
        FusionTrainer.test(cfg, model, figures=FIGURES)
        written = folder / "inference" / catalog.folder_name(scoring.dataset)
        for path in written.iterdir():
            path.rename(folder / path.name)
        written.rmdir(), written.parent.rmdir()
        _write_scores(run, scoring, folder, cfg.INPUT.HEIGHT_LABELS)


def _write_scores(run: Run, scoring: Scoring, folder: Path, height_labels: str) -> None:
    columns = _columns(scoring, folder / "predictions.json", height_labels)
    write_json(
        {"depends_on": _with_weights(scoring, run.trained()), "columns": columns}, folder / "scores.json"
    )


def load_trained(run: Run, overrides: Sequence = ()) -> tuple[CfgNode, torch.nn.Module]:
    """Complete config and network of a finished training, in eval mode."""
    weights = run.folder / "model.pth"
    cfg = load_config(_config_file(run), list(overrides))
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    complete_config(cfg, stored_config(weights))
    model = FusionTrainer.build_model(cfg)
    FusionCheckpointer(model).load(str(weights), checkpointables=[])
    return cfg, model.eval()


def _columns(scoring: Scoring, predictions: Path, height_labels: str) -> dict[str, dict]:
    """Column -> its scores, over drawn tiles too, and the counts of every tile that they follow from."""
    dataset = catalog.load_split(scoring.dataset)
    regions = {scoring.name: None}
    regions |= {f"{scoring.name}/{name}": region_by_name(name, dataset) for name in scoring.regions}
    columns = {}
    for column, region in regions.items():
        tiles = tile_scores(dataset, predictions, region=region, height_labels=height_labels)
        columns[column] = {**drawn_scores(tiles), "tiles": [_plain(tile) for tile in tiles]}
    return columns


def _with_weights(scoring: Scoring, trained: dict) -> dict:
    return {**scoring.depends_on, "weights": trained["weights"]}


def _plain(tile: TileScores) -> dict:
    """`tile` for JSON; unknown numbers as null."""
    plain = {}
    for name, value in dataclasses.asdict(tile).items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            value = np.where(np.isfinite(value), value.astype(object), None)
        plain[name] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return plain


# ---- Processes -------------------------------------------------------------------------------------------


@dataclass
class Failure:
    """Why a job did not finish: one line for bad input, else the traceback."""

    name: str
    message: str
    bad_input: bool


def in_processes(jobs: dict[str, tuple[Callable, Path]], at_once: int, report: Callable) -> list[Failure]:
    """Run every job in a process of its own, `at_once` of them side by side.

    Args:
        jobs: name -> (function without arguments that yields messages and can be pickled, folder). What the process
            prints goes to console.txt in the folder. Side by side they share the CPU's threads, and another number of
            threads can change the last digits.
        report: called as report(name, message) for every message.

    Returns:
        The jobs that failed; the others are not kept from running.
    """
    threads = max(1, (os.cpu_count() or 1) // at_once) if at_once > 1 else 0
    failures = []
    with ProcessExecutor(
        at_once, preload=[__name__], tries=1, fresh=True, on_report=lambda said: report(*said)
    ) as executor:
        futures = {
            name: executor.submit(_logged, name, function, folder, threads)
            for name, (function, folder) in jobs.items()
        }
        for name, future in futures.items():
            error = future.exception()
            if isinstance(error, WorkerLostError):
                console = jobs[name][1] / "console.txt"
                message = f"process ended with status {error.exit_code}; see {console}"
                failures.append(Failure(name, message, False))
            elif isinstance(error, InputError):
                failures.append(Failure(name, str(error), True))
            elif error is not None:
                failures.append(Failure(name, "".join(traceback.format_exception(error)), False))
    return failures


def _logged(name: str, function: Callable, folder: Path, threads: int) -> None:
    """Run `function` in a process of its own, and report its messages."""
    folder.mkdir(parents=True, exist_ok=True)
    console = os.open(folder / "console.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(console, 1), os.dup2(console, 2)
    if threads:
        torch.set_num_threads(threads)
    try:
        for message in function():
            executors.report((name, message))
    except InputError:
        raise
    except Exception:
        traceback.print_exc()
        raise
