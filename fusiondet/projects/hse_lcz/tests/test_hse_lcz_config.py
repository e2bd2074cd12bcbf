"""Configs of the project: keys that mean nothing are refused; every file loads and takes two steps, shrunk."""

import math
from pathlib import Path

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import load_config
from fusiondet.engine.checkpoint import read_checkpoint
from fusiondet.engine.launch import trainer_of
from fusiondet.errors import InputError
from fusiondet.projects.hse_lcz.tests.patch_files import write_split
from tests.support.config_checks import (
    SHRUNK,
    check_leaf_is_short,
    check_says_only_what_differs,
    check_stored_config_of_0_5,
    leaves,
)
from tests.support.tiny_city import SMALL_CONFIG

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))


def config_id(path):
    return path.name


@pytest.mark.parametrize("path", CONFIGS, ids=config_id)
def test_network_of_patches_takes_two_steps(path, tmp_path):
    annotations = write_split(tmp_path, sen2=np.random.default_rng(0).random((4, 32, 32, 10)))
    small = {
        "MODEL.HSE_LCZ.WIDTHS": "[4, 8]",
        "MODEL.HSE_LCZ.CONV_DIM": 8,
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    steps = {key: value for key, value in SHRUNK.items() if key.startswith(("SOLVER", "TEST", "DATASETS"))}
    words = {**steps, **small, "DATASETS.TRAIN": f"('{annotations}',)"}
    cfg = load_config(path, [str(word) for item in words.items() for word in item])
    trainer_of(cfg).complete_config(cfg)
    trainer = trainer_of(cfg)(cfg)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    losses = {k: v for k, (v, _) in trainer.storage.latest().items() if k in ("loss_hse", "loss_lcz")}
    assert losses.keys() == {f"loss_{task}" for task in cfg.MODEL.HSE_LCZ.TASKS}
    assert all(math.isfinite(v) for v in losses.values())
    assert len(cfg.MODEL.PIXEL_MEAN) == 10 + 8 * ("sar" in cfg.INPUT.MODALITIES)
    still = [name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    assert read_checkpoint(tmp_path / "out" / "model_final.pth")["iteration"] == 1


@pytest.mark.parametrize("path", leaves(CONFIGS), ids=config_id)
def test_leaf_is_short_and_says_what_it_is(path):
    check_leaf_is_short(path)


@pytest.mark.parametrize("path", CONFIGS, ids=config_id)
def test_says_only_what_differs(path):
    check_says_only_what_differs(path)


@pytest.mark.parametrize(
    ("leaf", "words", "message"),
    [
        (
            "hse_lcz",
            ("MODEL.HSE_LCZ.TASKS", "['roads']"),
            "unknown MODEL.HSE_LCZ.TASKS entry 'roads'.*Known: hse, lcz",
        ),
        ("hse_lcz", ("MODEL.HSE_LCZ.TASKS", "[]"), "expected hse, lcz or both"),
        ("hse_lcz", ("MODEL.HSE_LCZ.TASKS", "['hse', 'hse']"), "expected hse, lcz or both, each once"),
        ("hse_lcz", ("MODEL.HSE_LCZ.PRIOR", "yes"), "unknown MODEL.HSE_LCZ.PRIOR 'yes'"),
        ("hse", ("MODEL.HSE_LCZ.PRIOR", "joint"), "PRIOR is joint, which is between two tasks"),
        ("lcz", ("MODEL.TASK_ATTENTION", "True"), "TASK_ATTENTION is True, which is between two tasks"),
        (
            "lcz",
            ("MODEL.TASK_WEIGHTING.NAME", "gradnorm"),
            "TASK_WEIGHTING.NAME is gradnorm, which is between",
        ),
        ("hse", ("TEST.BEST_METRIC", "lcz/oa"), "BEST_METRIC is lcz/oa, .*such as hse/mae"),
        ("hse_lcz", ("TEST.BEST_METRIC", "segm/AP"), "such as hse/mae or lcz/oa"),
        ("hse_lcz", ("MODEL.HSE_LCZ.WIDTHS", "[]"), "WIDTHS is .*expected one to six"),
        ("hse_lcz", ("MODEL.HSE_LCZ.WIDTHS", "[8, 8, 8, 8, 8, 8, 8]"), "expected one to six numbers"),
        ("hse_lcz", ("MODEL.HSE_LCZ.WIDTHS", "[8, -1]"), "expected one to six numbers"),
        ("hse_lcz", ("MODEL.HSE_LCZ.NUM_CONV", "0"), "NUM_CONV is 0, expected 1 or more"),
        ("hse_lcz", ("MODEL.HSE_LCZ.DROPOUT", "1.0"), "DROPOUT is 1.0"),
        ("hse_lcz", ("MODEL.HSE_LCZ.HSE.LOSS_WEIGHT", "-1.0"), "HSE.LOSS_WEIGHT is -1.0"),
        ("hse_lcz", ("MODEL.MASK_ON", "True"), "MASK_ON is True, but HseLczNet takes whole patches"),
        ("hse_lcz", ("MODEL.HEIGHT_ON", "True"), "HEIGHT_ON is True"),
        ("hse_lcz", ("VIS_PERIOD", "10"), "VIS_PERIOD is 10"),
        ("hse_lcz", ("INPUT.SCALE_RANGE", "[0.5, 2.0]"), "SCALE_RANGE is"),
        ("hse_lcz", ("INPUT.CROP.ENABLED", "True"), "CROP.ENABLED is True"),
        ("hse_lcz", ("INPUT.SAR_SPECKLE_LOOKS", "4.0"), "SAR_SPECKLE_LOOKS is 4.0"),
        ("hse_lcz", ("DATASETS.LABEL_SHARE", "0.5"), "LABEL_SHARE is 0.5"),
        ("hse_lcz", ("MODEL.FUSION.MODALITY_DROPOUT.sar", "0.5"), "MODALITY_DROPOUT"),
        ("hse_lcz", ("MODEL.DENSE_NET.WIDTH", "8"), "MODEL.DENSE_NET.WIDTH is set, but HseLczNet"),
        ("hse_lcz", ("MODEL.DENSE_HEADS.NAMES", "['Footprint']"), "DENSE_HEADS.NAMES is"),
    ],
)
def test_keys_that_would_be_ignored_or_mean_nothing(leaf, words, message):
    with pytest.raises(InputError, match=message):
        load_config(f"so2sat/{leaf}.yaml", words)


def test_keys_of_patches_are_for_patches():
    with pytest.raises(
        InputError, match="MODEL.HSE_LCZ.NUM_CONV is 3, but MODEL.META_ARCHITECTURE FusionRCNN has no use"
    ):
        load_config(SMALL_CONFIG, ["MODEL.HSE_LCZ.NUM_CONV", "3"])


def test_a_stored_config_of_0_5_arrives():
    cfg = check_stored_config_of_0_5(Path(__file__).with_name("hse_lcz_0_5.yaml"))
    assert (
        cfg.MODEL.HSE_LCZ.HSE.LOSS_WEIGHT,
        cfg.MODEL.HSE_LCZ.LCZ.LOSS_WEIGHT,
        cfg.MODEL.HSE_LCZ.NUM_CONV,
    ) == (5.0, 2.0, 1)
