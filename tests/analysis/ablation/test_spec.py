"""The specification: what a file means, and that a wrong one is refused in one line that names it."""

import math

from fusiondet.analysis.ablation import read_spec
from fusiondet.config_text import flat, safe_yaml
from fusiondet.engine.complete_config import complete_config
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError
from tests.support.ablation_cases import CONDITIONS, NARROW, ROWS
from tests.support.messages import raises_naming
from tests.support.tiny_city import ROOT, tiny_config, write_split

import pytest


def cells(spec):
    return [(row.name, column) for row, column in spec.cells()]


def test_conditions_hold_for_rows_that_they_say_something_about(write_spec):
    rows = ROWS + "  sar: {overrides: {INPUT.MODALITIES: [sar]}}\n"
    conditions = CONDITIONS + "  shift: {dataset: TEST, needs: [sar], regions: [in_the_clear]}\n"
    spec = read_spec(write_spec(rows, conditions))
    assert cells(spec) == [
        ("rgb", "clear"),
        *(("early", column) for column in ("clear", "no_sar", "shift", "shift/in_the_clear")),
        *(("sar", column) for column in ("clear", "shift", "shift/in_the_clear")),
    ]
    assert spec.columns == ["clear", "no_sar", "shift", "shift/in_the_clear"]
    assert spec.rows["rgb"].label == "RGB only" and spec.rows["early"].label == "early"


def test_rows_differ_by_their_overrides_alone(write_spec):
    spec = read_spec(write_spec(), ["SOLVER.MAX_ITER", "5"], seeds=[3, 4])
    rgb, early = (spec.config(spec.rows[name], 4) for name in ("rgb", "early"))
    assert (rgb.SEED, rgb.SOLVER.MAX_ITER, rgb.INPUT.MODALITIES) == (4, 5, ["optical"])
    rgb.INPUT.MODALITIES = early.INPUT.MODALITIES
    assert rgb == early and spec.seeds == (3, 4)


def test_the_one_that_comes_along_has_every_strategy():
    spec = read_spec(ROOT / "configs" / "ablation" / "fusion.yaml")
    configs = {name: spec.config(row, 1).MODEL for name, row in spec.rows.items()}
    joins = {m.FUSION.JOIN for m in configs.values() if "intermediate" in m.BACKBONE.NAME}
    exchanges = {op for m in configs.values() for op in m.FUSION.EXCHANGE.values()}
    assert joins == {"SumJoin", "ConcatJoin", "GatedJoin"} and exchanges == {"", "MMTM", "CrossAttention"}
    assert {m.FUSION.SHARE_WEIGHTS for m in configs.values()} == {True, False}
    assert len({m.BACKBONE.NAME for m in configs.values()}) == 4
    of_rgb = {column for row, column in cells(spec) if row == "rgb"}
    assert {"clear", "clouds/under_cloud"} <= of_rgb and not of_rgb & {
        "no_sar",
        "no_optical",
        "sar_shift_3px",
    }
    assert {"no_sar", "no_optical", "sar_shift_3px"} < set(spec.columns) and len(spec.claims) > 8


JOINT = ROOT / "configs" / "ablation" / "joint.yaml"


@pytest.fixture(scope="module")
def joint():
    return read_spec(JOINT)


# A network of each kind; the others differ from these in what their own tests cover.
QUICK = ("dense_both", "joint_gradnorm", "joint_prior", "painted_10")


def test_joint_has_each_task_alone_every_weighting_and_every_help(joint):
    configs = {name: joint.config(row, 1) for name, row in joint.rows.items()}
    models = [cfg.MODEL for cfg in configs.values()]
    assert configs["detector"].MODEL.DENSE_HEADS.NAMES == []
    assert {tuple(m.DENSE_HEADS.NAMES) for m in models if m.META_ARCHITECTURE == "FusionDense"} == {
        ("DenseHeight",),
        ("Footprint", "DenseHeight"),
    }
    assert {m.TASK_WEIGHTING.NAME for m in models} == {"fixed", "uncertainty", "gradnorm"}
    for switch in ("HEIGHT.REFINE", "HEIGHT.FROM_FOOTPRINT", "SHARED_STEPS", "SKIPS", "UPSAMPLE"):
        assert len({str(flat(m.DENSE_HEADS)[switch]) for m in models}) == 2, switch
    assert any(m.ROI_HEIGHT_HEAD.DENSE_PRIOR for m in models) and any(m.TASK_ATTENTION for m in models)
    shares = {(c.DATASETS.LABEL_SHARE, tuple(c.MODEL.DENSE_HEADS.NAMES)) for c in configs.values()}
    assert {(share, heads) for share in (0.1, 0.3, 1.0) for heads in ((), ("Reconstruction",))} <= shares
    tiles = joint.data["abltest"]
    assert int(tiles[-1].removeprefix("test=")) >= 200 and len(joint.claims) > 20
    # One protocol: what fusion.yaml compares can be read beside it.
    fusion = read_spec(ROOT / "configs" / "ablation" / "fusion.yaml")
    assert {name: fusion.data[name] for name in joint.data} == joint.data
    early, detector = fusion.config(fusion.rows["early"], 1), configs["detector"]
    detector.SOLVER.MAX_ITER = early.SOLVER.MAX_ITER
    assert early == detector


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(row, marks=() if row in QUICK else pytest.mark.slow)
        for row in safe_yaml(JOINT.read_text("utf-8"), "")["rows"]
    ],
)
def test_rows_of_joint_take_two_steps(joint, name, tmp_path):
    row = joint.rows[name]
    words = (*row.overrides, "MODEL.DENSE_HEADS.CONV_DIM", 8, "SOLVER.MAX_ITER", 2)
    # `tiny_config` sets a metric of instances.
    words += ("TEST.BEST_METRIC", joint.config(row, 1).TEST.BEST_METRIC)
    write_split(tmp_path)
    cfg = tiny_config(tmp_path, *NARROW, *words, test="")
    complete_config(cfg)
    trainer = FusionTrainer(cfg)
    trainer.train()
    losses = {k: v for k, (v, _) in trainer.storage.latest().items() if k.startswith("loss_")}
    assert len(losses) >= len(cfg.MODEL.DENSE_HEADS.NAMES) and all(math.isfinite(v) for v in losses.values())
    assert ("loss_mask" in losses) == (cfg.MODEL.META_ARCHITECTURE == "FusionRCNN")


def claim(**keys):
    words = {"metric": "segm/AP50", "from": "[rgb, clear]", "to": "[early, clear]", **keys}
    return "[{" + ", ".join(f"{k}: {v}" for k, v in words.items()) + "}]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, "unknown key 'epochs'.*Known: base"),
        ({"rows": "\n  a: {lable: A}"}, "rows: a: unknown key 'lable'. Did you mean 'label'"),
        ({"rows": " [a, b]"}, "rows: expected a mapping"),
        ({"rows": ""}, "rows is empty"),
        ({"rows": "\n  early: {}\n  ../up: {}"}, "names have letters"),
        ({"rows": "\n  early: {config: none.yaml}"}, "row 'early': no such config file: .*none.yaml"),
        (
            {"rows": "\n  early: {overrides: {MODEL.DEPTH: 3}}"},
            "row 'early': unknown config key 'MODEL.DEPTH'",
        ),
        ({"rows": "\n  early: {overrides: {MODEL.MASK_ON: [1]}}"}, "row 'early': Type mismatch"),
        (
            {"rows": "\n  early: {overrides: {INPUT.MODALITIES: [lidar]}}"},
            "row 'early': unknown INPUT.MODALITIES",
        ),
        ({"rows": "\n  early: {overrides: {SOLVER.MAX_ITER: 9}}"}, "same for all rows; set it by 'steps'"),
        ({"rows": "\n  early: {overrides: {SEED: 9}}"}, "same for all rows; set it by 'seeds'"),
        (
            {"conditions": "\n  clear: {dataset: gone_test}"},
            "conditions: clear: dataset: unknown data set 'gone_test'",
        ),
        ({"conditions": "\n  clear: {}"}, "clear: dataset is None"),
        ({"conditions": ""}, "conditions is empty"),
        ({"conditions": "\n  c: {dataset: TEST, regions: [fog]}"}, "unknown regions 'fog'.*under_cloud"),
        ({"conditions": "\n  c: {dataset: TEST, needs: [lidar]}"}, "unknown needs 'lidar'"),
        (
            {"conditions": "\n  c: {dataset: TEST, overrides: {MODEL.FUSION.DISABLE: sar}}"},
            "under condition 'c': unknown config key 'MODEL.FUSION.DISABLE'",
        ),
        (
            {"conditions": "\n  c: {dataset: TEST, overrides: {INPUT.MODALITIES: [optical]}}"},
            "condition 'c' makes another network of row 'early' .*INPUT.MODALITIES.*Hide a modality by MODEL.FUSION",
        ),
        ({"compare_to": "erly"}, "unknown reference row 'erly'. Did you mean 'early'"),
        ({"compare_to": None}, "compare_to is None, expected a word"),
        ({"metrics": "[segm/AP51]"}, "unknown metric 'segm/AP51'. Did you mean 'segm/AP50'"),
        ({"train": "[]"}, "train is empty"),
        ({"val": "gone"}, "val is 'gone', expected a list"),
        ({"steps": 0}, "steps is 0, expected a whole number, at least 1"),
        ({"seeds": "[1, 1]"}, "seeds is .1, 1., expected different"),
        ({"cost_rounds": "many"}, "cost_rounds is 'many'"),
        ({"claims": "[3]"}, "claim 1: expected a mapping"),
        ({"claims": claim(to="[early]")}, "claim 1: to is .'early'., expected .row, condition."),
        ({"claims": claim(to="[late, clear]")}, "unknown row 'late'"),
        ({"claims": claim(to="[early, fog]")}, "unknown condition 'fog'"),
        ({"claims": claim(to="[rgb, no_sar]")}, "condition no_sar says nothing about row rgb"),
        ({"claims": claim(above="much")}, "above is 'much', expected a number"),
        ({"claims": claim(metric="segm/AP99")}, "unknown metric 'segm/AP99'"),
        ({"galleries": "[{title: Both, rows: [late]}]"}, "gallery 1: unknown row 'late'"),
        ({"galleries": "[{title: Both, rows: []}]"}, "gallery 1: expected rows"),
        (
            {"galleries": "[{title: A, rows: [rgb]}, {title: A, rows: [rgb]}]"},
            "gallery 2: .* title of its own",
        ),
        ({"galleries": "[{title: Both, rows: [rgb], tiles: 0}]"}, "gallery 1: tiles is 0, expected a whole"),
        ({"base": "none.yaml"}, "no such config file: .*none.yaml"),
        ({"base": "'!!python/object:x'"}, "no such config file"),
        ({"data": "{abl: synthetic}"}, "abl is 'synthetic', expected a list"),
    ],
)
def test_wrong_files_are_refused_by_name(write_spec, changes, message):
    with pytest.raises(InputError, match=message) as raised:
        read_spec(write_spec(name="wrong.yaml", **changes))
    assert "wrong.yaml" in str(raised.value) and "\n" not in str(raised.value)


def test_claims_pair_the_same_tiles_only(write_spec):
    conditions = CONDITIONS + "  other: {dataset: TEST, regions: [under_cloud]}\n"
    path = write_spec(conditions=conditions, claims=claim(to="[early, other/under_cloud]"), name="pairs.yaml")
    with raises_naming("clear", "other/under_cloud"):
        read_spec(path)
    claims = read_spec(write_spec(claims=claim(to="[early, no_sar]", above=-3), name="pairs.yaml")).claims
    assert (claims[0].above, claims[0].text) == (-3, "early (no_sar) against rgb (clear)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SEED", "3"], "command line: SEED is the same for all rows; set it by 'seeds'"),
        (["MODEL.DEPTH", "3"], "command line: unknown config key"),
        (["SOLVER.MAX_ITER"], "KEY VALUE pairs"),
    ],
)
def test_wrong_overrides_of_the_command_line(write_spec, words, message):
    with pytest.raises(InputError, match=message):
        read_spec(write_spec(), words)


@pytest.mark.parametrize("seeds", [[1, 1], [-1]])
def test_wrong_seeds_of_the_command_line(write_spec, seeds):
    with pytest.raises(InputError, match="command line: seeds is .*expected different whole numbers from 0"):
        read_spec(write_spec(), seeds=seeds)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rows: [", "not a plain YAML"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"a: !!python/name:os.system x", "YAML"),
    ],
)
def test_files_that_are_no_yaml(tmp_path, content, message):
    (tmp_path / "broken.yaml").write_bytes(content)
    with pytest.raises(InputError, match=f"broken.yaml.*{message}"):
        read_spec(tmp_path / "broken.yaml")
    with raises_naming("gone.yaml"):
        read_spec(tmp_path / "gone.yaml")
