"""Benchmark: ratios, their interval, and that the networks compared differ by nothing but what is compared."""

import json

import fusiondet.compat  # noqa: F401
from fusiondet.benchmarking import (
    Contestant,
    Settings,
    benchmark_training,
    paired_ratio,
    random_inputs,
    take_turns,
    training,
)
from fusiondet.config import add_fusiondet_config
from fusiondet.errors import InputError

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

SMALL = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: FusionRCNN
  BACKBONE: {NAME: build_early_fusion_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6], PRE_NMS_TOPK_TRAIN: 50, POST_NMS_TOPK_TRAIN: 30, PRE_NMS_TOPK_TEST: 50,
    POST_NMS_TOPK_TEST: 30}
  ROI_HEADS: {NAME: FusionROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 1, BATCH_SIZE_PER_IMAGE: 16}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 16, POOLER_RESOLUTION: 14}
  ROI_HEIGHT_HEAD: {CONV_DIM: 32, FC_DIM: 16}
TEST: {DETECTIONS_PER_IMAGE: 10}
"""


TINY = Settings(size_px=64, batch=1, rounds=2, warmup=0, sar_bands=2, buildings=3)


@pytest.fixture
def small_yaml(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path / "small.yaml"


@pytest.fixture
def cfg(small_yaml):
    cfg = get_cfg()
    add_fusiondet_config(cfg)
    cfg.merge_from_file(str(small_yaml))
    return cfg


def test_paired_ratio_is_the_median_of_ratios_not_a_ratio_of_medians():
    # The machine slows down tenfold in the middle; every pair says 2.
    theirs = np.array([1.0, 1.0, 10.0, 10.0, 1.0])
    ratio = paired_ratio(2 * theirs, theirs)
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_interval_holds_the_truth_and_shrinks_with_rounds():
    rng = np.random.default_rng(0)
    few, many = (paired_ratio(1.1 * rng.normal(1, 0.05, n), rng.normal(1, 0.05, n)) for n in (10, 1000))
    assert many.low < 1.1 < many.high
    assert many.high - many.low < few.high - few.low
    assert few.low <= few.median <= few.high


def test_small_benchmark(cfg):
    result = benchmark_training(cfg, TINY)
    rows = {row["title"]: row for row in result["rows"]}
    control, fusion = rows["A/A control"], rows["early fusion / 3 channels"]
    assert control["flops"] == control["parameters"] == 1.0 and control["met"] is None
    assert all(row["step"]["low"] <= row["step"]["median"] <= row["step"]["high"] for row in rows.values())
    assert all(row["step"]["median"] > 0 for row in rows.values())
    # Two more bands in the stem of 64 7x7 filters, and nothing else.
    networks = result["networks"]
    assert networks["early fusion"]["parameters"] - networks["detectron2"]["parameters"] == 64 * 7 * 7 * 2
    assert networks["early fusion"]["flops"] - networks["detectron2"]["flops"] == 64 * 7 * 7 * 2 * 32 * 32
    assert fusion["met"] == (fusion["step"]["high"] <= 1.05 and fusion["flops"] <= 1.01)
    assert rows["height head / without"]["flops"] > 1 and rows["height head / without"]["step_flops"] > 1
    # Forward, and the gradient of the filter; the image needs none.
    assert (
        networks["early fusion"]["step_flops"] - networks["detectron2"]["step_flops"]
        == 2 * 64 * 7 * 7 * 2 * 32 * 32
    )
    json.dumps(result, allow_nan=False)
    table = training.format_table(result)
    assert all(title in table for title in rows) and "95 % interval" in table


def test_all_networks_do_the_same_work(cfg):
    """Same features from the same image: the extra band is silent, so proposals and samples are the same too."""
    networks = training._networks(cfg, 1, "cpu", seed=0)
    inputs = random_inputs(1, 64, 4, 3, seed=0)
    features = {}
    for name, network in networks.items():
        x = inputs if "early fusion" in name else [{**inputs[0], "image": inputs[0]["image"][:3]}]
        with torch.no_grad():
            features[name] = network.eval().backbone(network.preprocess_image(x).tensor)["p3"]
    for name, feature in features.items():
        assert torch.allclose(feature, features["detectron2"], rtol=1e-4, atol=1e-5), name


def test_a_step_leaves_the_weights_alone_and_computes_gradients(cfg):
    model = training._networks(cfg, 1, "cpu", seed=0)["early fusion + height"]
    contestant = Contestant(model, random_inputs(1, 64, 4, 3, 0), "cpu", "bfloat16")
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    seconds = take_turns({"one": contestant}, rounds=2, warmup=1, seed=0)
    assert len(seconds["step"]["one"]) == 2 and min(seconds["step"]["one"]) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_random_inputs_are_rectangles_with_heights():
    (x,) = random_inputs(1, 100, 4, 5, seed=1)
    instances = x["instances"]
    areas = instances.gt_masks.tensor.sum(dim=(1, 2))
    sides = instances.gt_boxes.tensor[:, 2:] - instances.gt_boxes.tensor[:, :2]
    assert len(instances) == 5 and (areas > 0).all()
    assert ((areas - sides.prod(dim=1)).abs() <= sides.sum(dim=1) + 1).all()
    assert (instances.gt_heights > 0).all() and x["image"].shape == (4, 100, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float8"}, "unknown precision 'float8'.*Known: bfloat16, float16, float32"),
        ({"precision": "float16"}, "float16 needs a GPU"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"size_px": 8}, "size_px is 8, expected at least 32"),
        ({"rounds": 0}, "rounds is 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        Settings(**options)


def test_cuda_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees no GPU. Use --device cpu"):
        Settings(device="cuda")


def test_tool_prints_a_table_and_writes_json(load_tool, small_yaml, tmp_path, capsys):
    out = tmp_path / "benchmark.json"
    words = [
        "train",
        "--config-file",
        str(small_yaml),
        "--size",
        "64",
        "--batch",
        "1",
        "--steps",
        "1",
        "--warmup",
        "0",
    ]
    tool = load_tool("benchmark")
    tool.main([*words, "--buildings", "2", "--out", str(out), "MODEL.FPN.OUT_CHANNELS", "8"])
    printed = capsys.readouterr().out
    assert "early fusion / 3 channels" in printed and printed.endswith(f"wrote {out}\n")
    assert json.loads(out.read_text())["settings"]["size_px"] == 64
    with pytest.raises(InputError, match="already exists"):
        tool.main([*words, "--out", str(out)])
