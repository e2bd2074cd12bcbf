"""OUTPUT_DIR of a run: of one run at a time, untouched by refused runs, and whole after kills."""

import json
import logging
import os
import shutil
from pathlib import Path

from fusiondet.engine.checkpoint import read_checkpoint
from fusiondet.engine.launch import parse_arguments, prepare, work
from fusiondet.engine.run_output import RunOutput
from fusiondet.errors import InputError
from tests.support.processes import start_program
from tests.support.tiny_city import tiny_config

import pytest
import torch


def snapshot(folder: Path) -> dict:
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_a_refused_run_leaves_no_trace(tmp_path):
    folder = tmp_path / "new" / "out"
    with pytest.raises(InputError), RunOutput(folder):
        logging.getLogger("fusiondet").warning("something")
        raise InputError("refused")
    assert not list(tmp_path.iterdir())
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("A: 1")
    before = snapshot(tmp_path)
    with pytest.raises(InputError), RunOutput(folder):
        raise InputError("refused")
    assert snapshot(tmp_path) == before


def test_a_second_run_is_refused_with_the_first_ones_process(tmp_path):
    with RunOutput(tmp_path / "out"):
        before = snapshot(tmp_path)
        with pytest.raises(InputError, match=f"out: another run is working on it .process {os.getpid()} on "):
            RunOutput(tmp_path / "out").__enter__()
        assert snapshot(tmp_path) == before
    with RunOutput(tmp_path / "out"):
        pass


def test_a_begun_run_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    for name in (".model_0000001.pth.ab12_xyz", "inference/val/.predictions.json.00000000"):
        (out / name).mkdir(parents=True)
        (out / name / Path(name).name[1:-9]).write_bytes(b"half")
    for name in (".git", ".mine.abcdefgh"):
        (out / name).mkdir()
        (out / name / "kept").touch()
    (out / ".lock").write_text("process 1 on a machine that is gone")
    (out / "model_0000000.pth").touch()
    with RunOutput(out, ["earlier"]) as output:
        logging.getLogger("fusiondet").warning("before")
        output.begin("A: 1\n")
        logging.getLogger("fusiondet").warning("after")
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert names == [".git/kept", ".mine.abcdefgh/kept", "config.yaml", "log.txt", "model_0000000.pth"]
    assert sorted(path.name for path in out.glob(".*")) == [".git", ".mine.abcdefgh"]
    lines = (out / "log.txt").read_text().splitlines()
    assert lines[0] == "earlier" and "before" in lines[1] and "after" in lines[2]


# ---- Runs that are refused, from the command line's words -------------------------------------------------


@pytest.fixture
def finished(root):
    """Folder of data and of what looks like a finished training, `out`."""
    (root / "tiny.yaml").write_text(tiny_config(root, "OUTPUT_DIR", str(root / "out")).dump())
    out = root / "out"
    out.mkdir()
    (out / "config.yaml").write_text("A: 1")
    (out / "last_checkpoint").write_text("model_final.pth")
    (out / "metrics.json").write_text("{}\n")
    torch.save(
        {"model": {"a": torch.ones(1)}, "config_yaml": tiny_config(root).dump()}, out / "model_final.pth"
    )
    return root


@pytest.mark.parametrize(
    "words",
    [
        ("SOLVER.BASE_LR", "0.0"),
        ("DATASETS.TRAIN", "['nowhere_train']"),
        ("INPUT.OPTICAL_BANDS", "['purple']"),
        ("MODEL.ROI_HEIGHT_HEAD.CONV_DIM", "10"),
        ("MODEL.WEIGHTS", "gone.pth"),
        ("MODEL.WEIGHTS", "{out}/model_final.pth"),
        ("--resume",),
        ("--eval-only",),
        ("--eval-only", "MODEL.WEIGHTS", "{out}/model_final.pth"),
    ],
)
def test_a_refused_training_writes_nothing(finished, words):
    before = snapshot(finished)
    words = [word.format(out=finished / "out") for word in words]
    with pytest.raises(InputError):
        args = parse_arguments(["--config-file", str(finished / "tiny.yaml"), *words])
        work(prepare(args), args)
    assert snapshot(finished) == before


# ---- Kills -----------------------------------------------------------------------------------------------


def comparable(value):
    """A checkpoint with lists of numbers for tensors."""
    if isinstance(value, dict):
        return {key: comparable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(part) for part in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def metrics(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "time" not in k and k != "eta_seconds"} for line in lines]


@pytest.mark.slow
def test_killed_trainings_end_as_one_that_was_not(tmp_path):
    """FUSIONDET_KILLS (default 6) kills at random moments, in evaluations and while files are written too."""
    kills = int(os.environ.get("FUSIONDET_KILLS", "6"))
    code = "import sys; from pathlib import Path; from tests.support.killed_trainings import main; "
    code += "import json; print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), 7)))"
    program = start_program(code, tmp_path, kills)
    said, errors = program.communicate()
    assert program.returncode == 0, errors + "".join(
        path.read_text()[-3000:] for path in tmp_path.glob("*.log")
    )
    done = json.loads(said.splitlines()[-1])
    assert done["kills"] == kills
    print(done)
    whole = tmp_path / "whole" / "out"
    for killed in sorted(tmp_path.glob("killed-*/out")):
        assert not list(killed.rglob(".*")), "nothing half-written is left"
        names = {path.name for path in killed.rglob("*") if not path.name.startswith("events.")}
        assert names == {path.name for path in whole.rglob("*") if not path.name.startswith("events.")}
        for name in ("model_final.pth", "model_best.pth", "model_0000007.pth"):
            assert comparable(read_checkpoint(killed / name)) == comparable(read_checkpoint(whole / name)), (
                name
            )
        assert metrics(killed) == metrics(whole)
        for path in whole.glob("inference/*/*.json"):
            assert (killed / path.relative_to(whole)).read_bytes() == path.read_bytes()
        assert (killed / "config.yaml").read_bytes() == (whole / "config.yaml").read_bytes()
    shutil.rmtree(tmp_path)
