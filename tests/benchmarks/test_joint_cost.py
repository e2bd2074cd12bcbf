"""The cost of one network against two: the same weights, the same regions, what is shared counted once."""

import json

import fusiondet.compat  # noqa: F401
from benchmarks import TimingSettings
from benchmarks import joint_cost as joint
from fusiondet.config_loading import load_config

import pytest
import torch
from detectron2.utils.events import EventStorage

TINY = TimingSettings(size_px=64, batch=1, rounds=1, warmup=0, buildings=3)


@pytest.fixture
def cfg(small_yaml):
    return load_config(small_yaml, ["MODEL.DENSE_HEADS.CONV_DIM", "16"])


def test_all_networks_find_and_map_the_same(cfg):
    contestants = joint._contestants(cfg, TINY)
    with torch.no_grad():
        found = {title: c.model.eval()(c.inputs)[0] for title, c in contestants.items()}
    both = found["joint"]
    assert len(both["instances"]) == 3 and both["height_map_m"].shape == (64, 64)
    for title in ("detector", "detector again"):
        assert found[title].keys() == {"instances"}
        for field in ("pred_boxes", "pred_masks", "pred_heights"):
            ours, theirs = (x["instances"].get(field) for x in (found[title], both))
            ours, theirs = (getattr(x, "tensor", x) for x in (ours, theirs))
            assert torch.equal(ours, theirs), (title, field)
    assert found["dense"].keys() == {"height_map_m", "footprint_map"}
    for field in found["dense"]:
        assert torch.equal(found["dense"][field], both[field]), field


def test_a_step_trains_every_weight(cfg):
    for title, c in joint._contestants(cfg, TINY).items():
        with EventStorage():
            losses = c.model.train()(c.inputs)
            sum(losses.values()).backward()
        dense = {"loss_footprint", "loss_dense_height"} & losses.keys()
        assert len(dense) == (0 if "detector" in title else 2) and all(losses[name] > 0 for name in dense)
        assert [n for n, p in c.model.named_parameters() if p.requires_grad and p.grad is None] == [], title


def test_labels_per_pixel_are_the_rectangles():
    (one,) = joint.random_inputs(1, 32, 4, 2, seed=0)
    labels = joint._dense_labels(one["instances"])
    masks, heights_m = one["instances"].gt_masks.tensor, one["instances"].gt_heights
    assert torch.equal(labels["footprint"], masks.any(0).float())
    assert labels["building_height_m"].max() == heights_m[masks.any((1, 2))].max()
    assert (labels["building_height_m"][labels["footprint"] == 0] == 0).all()


def test_the_config_says_how_the_dense_heads_are_built(cfg):
    cfg.merge_from_list(["MODEL.DENSE_HEADS.SHARED_STEPS", 2, "MODEL.DENSE_HEADS.HEIGHT.REFINE", True])
    cfg.merge_from_list(["MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR", True, "MODEL.FUSION.DISABLED", "sar"])
    own = {row.title: joint.row_config(cfg, row, TINY).MODEL for row in joint.rows(cfg)}
    for title, model in own.items():
        with_maps = title in ("joint", "dense")
        assert model.FUSION.DISABLED == "" and model.ROI_HEIGHT_HEAD.DENSE_PRIOR == (title == "joint")
        assert list(model.DENSE_HEADS.NAMES) == ["Footprint", "DenseHeight"] * with_maps
        assert (model.DENSE_HEADS.SHARED_STEPS, model.DENSE_HEADS.HEIGHT.REFINE) == (2 * with_maps, with_maps)
    assert own["dense"].META_ARCHITECTURE == "FusionDense"
    cfg.MODEL.DENSE_HEADS.NAMES = ["Footprint"]
    assert joint.rows(cfg)[0].overrides["MODEL.DENSE_HEADS.NAMES"] == ["Footprint"]


def test_tool_prints_ratios_and_writes_json(load_tool, small_yaml, tmp_path, capsys):
    out = tmp_path / "joint.json"
    words = ["joint", "--config-file", str(small_yaml), "--size", "64", "--steps", "1", "--warmup", "0"]
    words += ["--buildings", "2", "--out", str(out), "MODEL.DENSE_HEADS.CONV_DIM", "16"]
    load_tool("benchmark").main(words)
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    control, two, one = result["rows"]
    assert control["parameters"] == control["flops"] == 1 and control["verdict"] == ""
    # All but a second backbone.
    n = {title: network["parameters"] for title, network in result["networks"].items()}
    assert two["parameters"] == n["joint"] / (n["detector"] + n["dense"]) < 0.6
    assert 0.5 < two["flops"] < 1 < one["flops"] and one["parameters"] > 1
    seconds = {title: network["inference_s"] for title, network in result["networks"].items()}
    ratio = seconds["joint"] / (seconds["detector"] + seconds["dense"])
    assert two["inference"]["median"] == pytest.approx(ratio)  # of a single round
    assert two["verdict"] == ("met" if ratio <= two["limit"] else "MISSED") and two["limit"] == 0.65
    assert f"inference <= 0.65: {two['verdict']}" in printed and printed.endswith(f"wrote {out}\n")


def test_default_config_has_dense_heads(load_tool):
    args = load_tool("benchmark").parser().parse_args(["joint"])
    assert args.size == 256
    assert list(load_config(args.config_file).MODEL.DENSE_HEADS.NAMES) == ["Footprint", "DenseHeight"]
