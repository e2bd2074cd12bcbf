"""A replica of ISPRS Vaihingen through the command lines: prepared, trained on for two steps, scored again."""

import os
import subprocess
import sys

from fusiondet.converters.prepare import prepare
from fusiondet.files import read_json
from fusiondet.projects.u_rec.tests.vaihingen_replica import replica
from tests.support.tiny_city import ROOT

import pytest

SMALL = {
    "MODEL.DEVICE": "cpu", "MODEL.DENSE_NET.WIDTH": 4, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": 2,
    "DATALOADER.NUM_WORKERS": 0, "DATASETS.LABEL_SHARE": 0.5, "DATALOADER.UNLABELLED_PER_BATCH": 2, "SEED": 1,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def call(tool, *arguments):
        command = [sys.executable, ROOT / "tools" / f"{tool}.py", *map(str, arguments)]
        result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        return result.returncode, result.stdout + result.stderr

    return call


def test_prepare_train_and_score(run, tmp_path):
    root = replica(tmp_path / "isprs")
    small = ["--tile-size", 32, "--overlap", 16, "--eval-tile-size", 48]
    prepare([str(word) for word in ("vaihingen", "--root", root, "--out", tmp_path / "vaihingen", *small)])
    config = ["--config-file", ROOT / "configs/vaihingen/u_rec.yaml", "OUTPUT_DIR", tmp_path / "out"]
    words = [word for item in SMALL.items() for word in item]
    code, text = run("train_net", *config, *words)
    assert code == 0, text
    first = read_json(tmp_path / "out/inference/vaihingen_val/metrics.json")
    assert 0 <= first["classes/oa"] <= 1 and first["classes/n"] == 72 * 96
    assert set(read_json(tmp_path / "out/inference/vaihingen_val/confusion.json")["classes"]) == {
        "impervious", "building", "low vegetation", "tree", "car", "clutter",
    }  # fmt: skip
    assert (tmp_path / "out/model_best.pth").is_file(), "chosen by classes/oa"
    weights = ["MODEL.WEIGHTS", tmp_path / "out/model_final.pth", "DATASETS.TEST", "('vaihingen_test',)"]
    code, text = run("train_net", "--eval-only", *config, *words, *weights)
    assert code == 0, text
    assert read_json(tmp_path / "out/inference/vaihingen_test/metrics.json")["classes/n"] == 72 * 96
