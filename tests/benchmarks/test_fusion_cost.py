"""The cost of fusing: which networks are compared, and that they all have the same regions to work on."""

import json

import fusiondet.compat  # noqa: F401
from benchmarks import TimingSettings
from benchmarks import fusion_cost as fusion
from fusiondet.config_loading import load_config
from fusiondet.modeling.fusion import EXCHANGE_REGISTRY, JOIN_REGISTRY

import pytest
import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

TINY = TimingSettings(size_px=64, batch=1, rounds=1, warmup=0, buildings=3)
ROWS = {row.title: row for row in fusion.rows()}


@pytest.fixture
def few_rows(monkeypatch):
    """An instance of each kind of network; the others take too long for a test."""
    titles = (fusion.REFERENCE, fusion.CONTROL, "RGB only", "intermediate + MMTM", "late, decisions")
    monkeypatch.setattr(fusion, "rows", lambda: [ROWS[title] for title in titles])
    return titles


def test_every_registered_op_has_a_row():
    rows = list(fusion.rows())
    assert [row.title for row in rows[:2]] == [fusion.REFERENCE, fusion.CONTROL]
    assert {row.overrides.get("MODEL.FUSION.JOIN") for row in rows} >= {name for name, _ in JOIN_REGISTRY}
    exchanged = {v for row in rows for key, v in row.overrides.items() if ".EXCHANGE." in key}
    assert exchanged == {name for name, _ in EXCHANGE_REGISTRY}
    architectures = {row.overrides.get("MODEL.META_ARCHITECTURE") for row in rows}
    assert "LateFusionRCNN" in architectures and any("late_fusion" in str(row.overrides) for row in rows)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_rows_are_configs_whatever_the_file_says(cfg, row):
    """The file's own choice of a fusion does not reach the rows."""
    cfg.merge_from_list(["MODEL.FUSION.DISABLED", "sar", "MODEL.FUSION.EXCHANGE.res2", "MMTM"])
    own = fusion.row_config(cfg, row, TINY)
    assert own.MODEL.FUSION.DISABLED == "" and own.MODEL.FUSION.EXCHANGE.res2 == ""
    assert len(own.MODEL.PIXEL_MEAN) == (3 if row.title == "RGB only" else 4)
    assert own.TEST.DETECTIONS_PER_IMAGE == TINY.buildings


def test_all_networks_detect_the_same_with_backbones_of_their_own(cfg, few_rows):
    contestants = fusion._contestants(cfg, fusion.rows(), TINY)
    found, computed = {}, {}
    for title, c in contestants.items():
        with torch.no_grad():
            found[title] = c.model.eval()(c.inputs)[0]["instances"]
            image = c.model.preprocess_image(c.inputs).tensor
            computed[title] = c.model.backbone.bottom_up(image)
    reference = found[fusion.REFERENCE]
    assert isinstance(reference, Instances) and len(reference) == 3
    for title, instances in found.items():
        assert torch.allclose(instances.pred_boxes.tensor, reference.pred_boxes.tensor, atol=1e-3), title
        assert torch.equal(instances.pred_masks, reference.pred_masks), title
    early, mixed = computed[fusion.REFERENCE], computed["intermediate + MMTM"]
    assert not torch.allclose(early["res5"], mixed["res5"])


def test_gradients_reach_the_whole_backbone(cfg, few_rows):
    for title, c in fusion._contestants(cfg, fusion.rows(), TINY).items():
        with EventStorage():
            sum(c.model.train()(c.inputs).values()).backward()
        assert [n for n, p in c.model.named_parameters() if p.requires_grad and p.grad is None] == [], title


def test_tool_prints_ratios_and_writes_json(load_tool, small_yaml, monkeypatch, tmp_path, capsys):
    titles = (fusion.REFERENCE, fusion.CONTROL, "intermediate + MMTM")
    monkeypatch.setattr(fusion, "rows", lambda: [ROWS[title] for title in titles])
    out = tmp_path / "fusion.json"
    words = ["fusion", "--config-file", str(small_yaml), "--size", "64", "--steps", "1", "--warmup", "0"]
    load_tool("benchmark").main([*words, "--buildings", "2", "--out", str(out)])
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    reference, control, mixed = result["rows"]
    assert reference["step"] == reference["inference"] == {"median": 1, "low": 1, "high": 1}
    assert control["parameters"] == control["flops"] == control["step_flops"] == 1
    assert control["step_bytes"] == pytest.approx(1, abs=0.02)
    # A second encoder in a network whose heads are next to nothing.
    assert 1.8 < mixed["parameters"] < 2.3 and 1.5 < mixed["step_flops"] < 2.1 and mixed["step_bytes"] > 1.5
    assert set(mixed["verdicts"]) == {"step", "backbone"}
    assert all(printed.count(f"\n{row['title']} ") >= 2 for row in result["rows"])
    assert "step <= 1.6: " in printed and printed.endswith(f"wrote {out}\n")


def test_default_config_is_one_of_ours(load_tool):
    args = load_tool("benchmark").parser().parse_args(["fusion"])
    assert load_config(args.config_file).MODEL.HEIGHT_ON
