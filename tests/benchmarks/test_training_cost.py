"""The cost of a training step: the networks compared differ by nothing but what is compared."""

import json

import fusiondet.compat  # noqa: F401
from benchmarks import (
    Contestant,
    TimingSettings,
    benchmark_training,
    random_inputs,
    take_turns,
)
from benchmarks import (
    training_cost as training,
)
from fusiondet.errors import InputError

import pytest
import torch

TINY = TimingSettings(size_px=64, batch=1, rounds=2, warmup=0, sar_bands=2, buildings=3)


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
