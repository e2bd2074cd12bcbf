"""Times, operations and memory of networks that take turns: ratios, their interval, and what is counted."""

import fusiondet.compat  # noqa: F401
from benchmarks import Contestant, TimingSettings, count_flops, paired_ratio, random_inputs, take_turns
from fusiondet.analysis.timing import Ratio, verdict
from fusiondet.errors import InputError
from tests.support.messages import raises_naming

import numpy as np
import pytest
import torch
from torch import nn


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
        TimingSettings(**options)


def test_cuda_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with raises_naming("GPU", "device", "cpu"):
        TimingSettings(device="cuda")


@pytest.mark.parametrize(
    ("low", "high", "said"), [(1, 1.6, "met"), (1.61, 2, "MISSED"), (1.5, 1.7, "not shown")]
)
def test_an_aim_is_met_missed_or_not_shown(low, high, said):
    assert verdict(Ratio((low + high) / 2, low, high), 1.6) == said


class Toy(nn.Module):
    """Has what Contestant asks of a network: losses in training, a backbone and a preprocessing."""

    def __init__(self, calls: list):
        super().__init__()
        self.backbone, self.calls = nn.Linear(256, 256, bias=False), calls

    def preprocess_image(self, inputs):
        assert all("instances" not in x for x in inputs), "truth would be of help"
        return type("Images", (), {"tensor": torch.stack([x["image"] for x in inputs])})

    def forward(self, inputs):
        self.calls.append("step" if self.training else "inference")
        loss = self.backbone(torch.stack([x["image"] for x in inputs])).relu().sum()
        return {"loss": loss} if self.training else loss


def toy(calls):
    return Contestant(Toy(calls), [{"image": torch.ones(512, 256), "instances": None}])


def test_all_take_part_in_every_round_and_begin_in_turn():
    calls = []
    contestants = {name: toy(calls) for name in "abc"}
    for name, c in contestants.items():
        c.seconds = lambda task, seed, name=name: calls.append((task, seed, name)) or float(seed)
    seconds = take_turns(contestants, rounds=2, warmup=1, seed=5, tasks=("step", "inference"))
    order = {seed: "".join(n for t, s, n in calls if (t, s) == ("step", seed)) for seed in (5, 6, 7)}
    assert order == {5: "abc", 6: "bca", 7: "cab"}
    assert seconds == {task: dict.fromkeys("abc", [6.0, 7.0]) for task in ("step", "inference")}


def test_every_task_runs_what_it_says():
    calls = []
    c = toy(calls)
    for task in ("step", "backbone", "inference"):
        assert c.seconds(task, seed=0) > 0
    assert calls == ["step", "inference"]
    with raises_naming("'training'", "backbone", "inference", "step"):
        c.seconds("training", seed=0)


def test_peak_memory_is_what_one_can_add_up():
    """Weights of 256 KiB; images and two maps of 512 KiB each; gradients of the weights, and of the maps."""
    c, weights, maps = toy([]), 256 * 256 * 4, 512 * 256 * 4
    # Image and product; then the rectified copy, when the image's own copy is still referred to.
    assert weights + 2 * maps <= c.peak_bytes("inference", 0) <= weights + 3 * maps + 4096
    first = c.peak_bytes("step", 0)
    assert 2 * weights + 3 * maps <= first <= 3 * weights + 5 * maps + 4096
    # The momentum, made in the first step, is held from now on; the gradient is not.
    assert c.peak_bytes("inference", 0) <= 2 * weights + 3 * maps + 4096


def test_attention_counts_both_products():
    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x[:, :, :3], x[:, :, :3])

    assert count_flops(Attention(), torch.ones(2, 4, 5, 8)) == 2 * 4 * (5 * 3 * 8 + 5 * 3 * 8)
