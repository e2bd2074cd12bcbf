"""What the networks of an ablation cost, taking turns on the same tiles in one run."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.analysis.ablation.runs import Run, load_trained
from fusiondet.analysis.timing import Contestant, count_flops, paired_ratio, processor, take_turns
from fusiondet.engine.checkpoint import versions
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.engine.training_step import precision
from fusiondet.files import read_json, write_json

import numpy as np
import torch

_WARMUP = 2


def costs_left(runs: list[Run], rounds: int, path: Path) -> bool:
    """Whether the costs in `path` are not those of `runs`, all of them trained."""
    return not path.is_file() or read_json(path)["depends_on"] != _depends_on(runs, rounds)


def measure(runs: list[Run], reference: str, rounds: int, path: Path) -> Iterator[str]:
    """Write the costs of trained `runs`, one per row, to `path`.

    All networks run on the first training batch of the first row's seed: in each round everyone trains a step and
    predicts the batch, which is larger where tiles without labels are part of it. "rows" has per row parameters, gflops
    (multiply-adds of one tile's inference, 1e9, as fvcore counts them), tiles of the batch, step_s, inference_s (per
    tile), and step_ratio, inference_ratio (per tile) to row `reference` with their 95 % intervals over rounds.
    """
    contestants, gflops = {}, {}
    for run in runs:
        cfg, model = load_trained(run, ["DATALOADER.NUM_WORKERS", 0])
        batch = next(iter(FusionTrainer.build_train_loader(cfg)))
        contestants[run.row] = Contestant(model, batch, cfg.MODEL.DEVICE, precision(cfg))
        gflops[run.row] = count_flops(model, batch[:1]) / 1e9
    seconds = take_turns(contestants, rounds, _WARMUP, seed=0, tasks=("step", "inference"))
    of_tile = {name: np.divide(s, len(contestants[name].inputs)) for name, s in seconds["inference"].items()}
    seconds["inference"] = of_tile
    rows = {
        name: {
            "parameters": contestant.parameters,
            "gflops": gflops[name],
            "tiles": len(contestant.inputs),
            **_times(name, seconds, reference),
        }
        for name, contestant in contestants.items()
    }
    settings = {
        "batch": min(len(contestant.inputs) for contestant in contestants.values()),
        "rounds": rounds,
        "size_px": batch[0]["width"],
        "device": processor(cfg.MODEL.DEVICE),
        "threads": torch.get_num_threads(),
        **versions(),
    }
    write_json({"depends_on": _depends_on(runs, rounds), "settings": settings, "rows": rows}, path, indent=1)
    yield "costs"


def _depends_on(runs: list[Run], rounds: int) -> dict:
    return {"rounds": rounds, "weights": {run.row: run.trained()["weights"] for run in runs}}


def _times(name: str, seconds: dict, reference: str) -> dict:
    step, inference = seconds["step"], seconds["inference"]
    times = {
        "step_s": float(np.median(step[name])),
        "inference_s": float(np.median(inference[name])),
    }
    for key, task in (("step_ratio", step), ("inference_ratio", inference)):
        known = reference in task
        times[key] = asdict(paired_ratio(task[name], task[reference])) if known else None
    return times
