"""tools/train_net.py, from the command line's words to files."""

import logging
import subprocess
import sys

from fusiondet.engine import launch
from fusiondet.engine.checkpoint import read_checkpoint
from fusiondet.engine.launch import parse_arguments, prepare, work
from fusiondet.errors import InputError
from fusiondet.files import read_json
from tests.support.tiny_city import ROOT, tiny_config, write_raster, write_split

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg


@pytest.fixture
def config_file(tmp_path):
    write_split(tmp_path, "train")
    write_split(tmp_path, "val", (2, 0), seed=5)
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config(tmp_path, "SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "0.001").dump())
    return path


def run(*words):
    args = parse_arguments([str(word) for word in words])
    return work(prepare(args), args)


def test_train_then_evaluate_from_the_checkpoint_gives_the_same_numbers(config_file, tmp_path):
    trained = run("--config-file", config_file)
    out = tmp_path / "out"
    assert (out / "config.yaml").exists() and (out / "log.txt").exists()
    weights = out / "model_final.pth"
    # The training data may be gone by then: everything needed is in the checkpoint.
    (tmp_path / "annotations" / "train.json").unlink()
    evaluated = run(
        *("--config-file", config_file, "--eval-only", "DATASETS.TRAIN", "[]"),
        *("MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / "again"),
    )
    assert evaluated == trained
    folder = tmp_path / "again" / "inference" / f"{tmp_path.name}_val"
    assert read_json(folder / "metrics.json")["dataset/n_images"] == 2


def test_the_written_config_alone_resumes(config_file, tmp_path):
    run("--config-file", config_file)
    written = tmp_path / "out" / "config.yaml"
    run("--config-file", written, "--resume", "SOLVER.MAX_ITER", "3")
    content = read_checkpoint(tmp_path / "out" / "model_final.pth")
    assert content["iteration"] == 2 and content["sampler"]["consumed"] == 6
    assert content["optimizer"]["state"][0]["step"] == 3


def test_resume_keeps_the_statistics_it_was_trained_with(config_file, tmp_path):
    run("--config-file", config_file)
    before = read_checkpoint(tmp_path / "out" / "model_final.pth")["config_yaml"]
    write_split(tmp_path, "train", seed=99)
    cfg = prepare(parse_arguments(["--config-file", str(config_file), "--resume"]))
    assert cfg.dump() == before, "other pixels in the files do not shift the input of trained weights"


def test_another_optimizer_cannot_resume_and_other_settings_are_said(config_file, tmp_path, caplog):
    run("--config-file", config_file)
    more = ("--config-file", config_file, "--resume", "SOLVER.MAX_ITER", "3")
    with pytest.raises(InputError, match="SOLVER.OPTIMIZER is SGD, and it was trained with another"):
        run(*more, "SOLVER.OPTIMIZER", "SGD")
    with caplog.at_level("WARNING", "fusiondet"):
        run(*more, "SOLVER.BASE_LR", "0.5")
    assert "the optimizer's own initial_lr, not the config's" in caplog.text


@pytest.mark.parametrize("tag", [b"", b"\xff\xfe", b"gone.pth"])
def test_a_damaged_note_of_the_last_checkpoint_is_bad_input(config_file, tmp_path, tag):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "last_checkpoint").write_bytes(tag)
    with pytest.raises(InputError, match="no such checkpoint"):
        run("--config-file", config_file, "--resume")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "config_file.*is missing"),
        (("--config-file", "nowhere.yaml"), "nowhere.yaml: no such config file"),
        (
            ("--config-file", "{c}", "SOLVER.BASE_RL", "1"),
            "(?s)SOLVER.BASE_RL.*Did you mean 'SOLVER.BASE_LR'",
        ),
        (
            ("--config-file", "{c}", "DATASETS.TRAIN", "('synthcity_train',)"),
            "unknown data set 'synthcity_train'",
        ),
        (("--config-file", "{c}", "--eval-only"), "eval_only.* needs MODEL.WEIGHTS"),
        (
            ("--config-file", "{c}", "--eval-only", "MODEL.WEIGHTS", "gone.pth"),
            "gone.pth: no such checkpoint",
        ),
        (("--config-file", "{c}", "--eval-only", "DATASETS.TEST", "[]"), "eval_only.* needs DATASETS.TEST"),
        (
            ("--config-file", "{c}", "MODEL.FUSION.DISABLED", "sar"),
            r"DISABLED sar is for .eval_only.*INPUT.MODALITIES \"\['optical'\]\".*MODALITY_DROPOUT",
        ),
        (
            ("--config-file", "{c}", "--eval-only", "MODEL.FUSION.DISABLED", "radar"),
            "unknown MODEL.FUSION.DISABLED 'radar'.*optical",
        ),
        (
            (
                *("--config-file", "{c}", "--eval-only", "OUTPUT_DIR", "first"),
                *("MODEL.WEIGHTS", "first/model_best.pth", "MODEL.FUSION.DISABLED", "sar"),
            ),
            "config.yaml and scores would become those without sar. Name another OUTPUT_DIR",
        ),
        (
            ("--config-file", "{c}", "MODEL.FUSION.MODALITY_DROPOUT.sar", "1.5"),
            "MODALITY_DROPOUT",
        ),
        (
            ("--config-file", "{c}", "MODEL.ROI_HEIGHT_HEAD.NAME", "Tape"),
            "ROI_HEIGHT_HEAD.NAME 'Tape'.*ContextHeightHead",
        ),
    ],
)
def test_wrong_input_is_named_before_anything_starts(config_file, words, message):
    with pytest.raises(InputError, match=message):
        run(*(word.format(c=config_file) for word in words))


def test_evaluation_never_adapts_weights_to_other_bands(config_file, tmp_path):
    run("--config-file", config_file)
    words = (
        "--eval-only",
        "MODEL.WEIGHTS",
        tmp_path / "out" / "model_final.pth",
        "INPUT.MODALITIES",
        "['optical']",
    )
    with pytest.raises(InputError, match=r"does not fit the network.*of another shape \(backbone"):
        run("--config-file", config_file, *words)


LATE = (
    "MODEL.META_ARCHITECTURE",
    "LateFusionRCNN",
    "MODEL.BACKBONE.NAME",
    "build_two_pyramids_resnet_fpn_backbone",
)


@pytest.mark.parametrize("layout", [(), LATE], ids=["early", "late"])
def test_a_modality_is_hidden_at_evaluation_as_if_its_files_held_nothing(config_file, tmp_path, layout):
    dropout = ("MODEL.FUSION.MODALITY_DROPOUT.sar", "0.4")
    run("--config-file", config_file, *layout, *dropout, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    written, weights = tmp_path / "out" / "config.yaml", tmp_path / "out" / "model_final.pth"
    evaluate = ("--config-file", written, "--eval-only", "DATASETS.TRAIN", "[]", "MODEL.WEIGHTS", weights)
    found = {}
    for name, hide in {"both": (), "hidden": ("MODEL.FUSION.DISABLED", "sar")}.items():
        found[name] = run(*evaluate, "OUTPUT_DIR", tmp_path / name, *hide)
    for path in (tmp_path / "images").glob("val_*_sar.tif"):
        write_raster(path, np.full((1, 64, 64), np.nan, np.float32))
    found["empty"] = run(*evaluate, "OUTPUT_DIR", tmp_path / "empty")
    assert found["hidden"] == found["empty"] != found["both"]
    assert found["hidden"]["height_gt_boxes"]["n"] == 2, "heights on true boxes are without SAR too"


def test_foreign_weights_cannot_be_evaluated(config_file, tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match="not a checkpoint of fusiondet"):
        run("--config-file", config_file, "--eval-only", "MODEL.WEIGHTS", tmp_path / "resnet.pth")


def test_the_tool_says_it_in_one_line_and_exits_with_2(tmp_path):
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(ROOT / "tools" / "train_net.py"),
        "--config-file",
        "nowhere.yaml",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "error: nowhere.yaml: no such config file."
    assert "Traceback" not in done.stderr


def test_expected_results_end_a_run_that_misses_them():
    from fusiondet.engine.launch import _verified

    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = [["segm", "AP50", 90.0, 2.0]]
    assert _verified(cfg, {"segm": {"AP50": 91.0}}) == {"segm": {"AP50": 91.0}}
    with pytest.raises(SystemExit) as ended:
        _verified(cfg, {"segm": {"AP50": 80.0}})
    assert ended.value.code == 1


@pytest.mark.parametrize(
    ("error", "shown"), [(OSError(28, "full"), False), (InputError("bad"), False), (KeyError(1), True)]
)
def test_a_traceback_is_logged_for_failures_of_the_program_alone(error, shown):
    record = logging.LogRecord(
        "d2", logging.ERROR, "", 0, "Exception during training:", (), (type(error), error, None)
    )
    assert launch._without_known_errors(record) == shown
