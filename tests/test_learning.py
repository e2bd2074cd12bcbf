"""Slow: a short training on the synthetic city learns buildings, and heights that follow shadow and layover."""

import os
import subprocess
import sys
from pathlib import Path

from fusiondet.files import read_json

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/synthetic/fusion_r18_small.yaml"
STEPS = 300

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(tool, *arguments) with data sets and outputs in one folder of their own."""
    folder = tmp_path_factory.mktemp("learning")
    threads = str(os.cpu_count() or 1)
    environment = {**os.environ, "DETECTRON2_DATASETS": str(folder), "OMP_NUM_THREADS": threads}

    def call(tool, *arguments):
        command = [sys.executable, ROOT / "tools" / f"{tool}.py", *map(str, arguments)]
        subprocess.run(command, env=environment, cwd=folder, check=True, stdin=subprocess.DEVNULL)
        return folder

    return call


@pytest.fixture(scope="module")
def trained(run):
    """Folder with a network trained for STEPS steps on 120 tiles of the preset easy."""
    city = ["--preset", "easy", "--split", "train=120", "val=20", "test=20", "--seed", 3]
    folder = run("prepare_dataset", "synthetic", "--out", "synthcity", *city)
    run("train_net", "--config-file", CONFIG, "OUTPUT_DIR", folder / "out", "SOLVER.MAX_ITER", STEPS)
    return folder


@pytest.fixture(scope="module")
def scores(run, trained):
    """scores(name, *options of the city) -> metrics on 20 test tiles of that city."""

    def evaluate(name, *options):
        city = ["--preset", "easy", "--split", "test=20", "--seed", 3, *options]
        folder = run("prepare_dataset", "synthetic", "--out", name, *city)
        what = ["MODEL.WEIGHTS", folder / "out/model_final.pth", "DATASETS.TEST", f"('{name}_test',)"]
        run("train_net", "--config-file", CONFIG, "--eval-only", "OUTPUT_DIR", folder / "out", *what)
        return read_json(folder / f"out/inference/{name}_test/metrics.json")

    return evaluate


def test_buildings_and_heights_are_learnt(scores):
    metrics = scores("again")
    print(
        {
            key: metrics[key]
            for key in ("segm/AP50", "height/skill", "height/slope", "height/interval_coverage")
        }
    )
    assert metrics["segm/AP50"] >= 80
    assert metrics["height/skill"] >= 0.3
    assert 0.5 <= metrics["height/interval_coverage"] <= 0.85


def test_the_same_houses_with_other_heights_get_other_heights(scores):
    metrics = scores("redrawn", "--height-seed", 99)
    print(metrics["height/slope"], metrics["height/skill"])
    assert metrics["height/slope"] >= 0.5


def test_without_shadow_and_layover_there_is_nothing_to_see(scores):
    metrics = scores("flat", "--no-shadow", "--no-layover", "--no-double-bounce")
    print(metrics["height/slope"], metrics["height/skill"])
    assert metrics["height/skill"] <= 0.1
    assert abs(metrics["height/slope"]) <= 0.2
