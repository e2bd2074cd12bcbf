"""A program that trains, kills and resumes: `python -m tests.support.killed_trainings FOLDER KILLS SEED`.

Processes are forked from one that has imported everything, because that takes longer than the training.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from fusiondet.engine.launch import parse_arguments, prepare, work
from tests.support.tiny_city import tiny_config, write_split

import torch

SMALL = (
    *(
        "MODEL.RESNETS.DEPTH",
        "50",
        "MODEL.RESNETS.STEM_OUT_CHANNELS",
        "8",
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        "16",
    ),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("TEST.EVAL_PERIOD", "4", "OUTPUT_DIR", "out", "SEED", "3", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.BASE_LR", "0.001", "SOLVER.WARMUP_ITERS", "2", "TEST.BEST_METRIC", "height_gt_boxes/mae_m"),
)


def main(folder: Path, kills: int, seed: int) -> dict:
    """Train in `folder`/whole without a kill, then in `folder`/killed-N until `kills` processes were killed.

    Returns:
        {"kills": kills while a training ran, "trainings": those that were killed and finished, "seconds": of the whole}
    """
    torch.set_num_threads(1)
    write_split(folder, "train")
    write_split(folder, "val", (2, 3), seed=5)
    (folder / "tiny.yaml").write_text(tiny_config(folder, *SMALL).dump())
    started = time.monotonic()
    assert _train(folder, "whole", None) == 0
    seconds = time.monotonic() - started
    dice, killed, trainings = random.Random(seed), 0, 0
    while killed < kills:
        name = f"killed-{trainings}"
        while (
            code := _train(folder, name, dice.uniform(0.2, 1.0) * seconds if killed < kills else None)
        ) != 0:
            assert code == -signal.SIGKILL, f"a resumed training ended with status {code}"
            killed += 1
        trainings += 1
    return {"kills": killed, "trainings": trainings, "seconds": seconds}


def _train(folder: Path, name: str, kill_after_s: float | None) -> int:
    """Status of a process that trains or resumes in `folder`/`name`; minus the signal that ended it."""
    (folder / name).mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(folder / f"{name}.log", "a") as log:
                os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
            os.chdir(folder / name)
            args = parse_arguments(["--config-file", str(folder / "tiny.yaml"), "--resume"])
            work(prepare(args), args)
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + (kill_after_s if kill_after_s is not None else 600)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.005)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
