"""Config loading: every mistake named, nothing executed, and what an architecture implies need not be written."""

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import config_from_yaml_text, load_config
from fusiondet.errors import InputError
from tests.support.messages import raises_naming
from tests.support.tiny_city import ROOT

import pytest
import yaml

BASE = ROOT / "configs" / "Base-FusionRCNN-FPN.yaml"


@pytest.fixture
def write(tmp_path):
    def write(text, name="my.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def refused(message, path, *overrides):
    with pytest.raises(InputError, match=message) as error:
        load_config(path, list(overrides))
    return str(error.value)


# ---- Loading ---------------------------------------------------------------------------------------------


def test_leaf_over_base_over_defaults(write):
    write("MODEL: {FPN: {OUT_CHANNELS: 32, NORM: GN}}\nSEED: 3", "base.yaml")
    path = write("_BASE_: base.yaml\nMODEL: {FPN: {OUT_CHANNELS: 64}}")
    cfg = load_config(path, ["SEED", "5"])
    assert (cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM, cfg.SEED, cfg.MODEL.MASK_ON) == (
        64,
        "GN",
        5,
        False,
    )


def test_detectron2s_spelling_of_tuples_and_numbers(write):
    cfg = load_config(write('DATASETS:\n  TRAIN: ("a_train",)\nSOLVER: {BASE_LR: 1e-4}'))
    assert cfg.DATASETS.TRAIN == ("a_train",) and cfg.SOLVER.BASE_LR == 1e-4


def test_config_of_a_checkpoint_comes_back():
    cfg = load_config(BASE, ["MODEL.PIXEL_MEAN", "[1.0, 2.0]", "INPUT.SAR_BANDS", "['HH']"])
    again = config_from_yaml_text(cfg.dump(), "model.pth")
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


# ---- Mistakes --------------------------------------------------------------------------------------------


def test_misspelt_key_in_a_file(write):
    message = refused("my.yaml: unknown config key", write("MODEL: {ROI_HEIGHT_HEAD: {FC_DIMS: 3}}"))
    assert "Did you mean 'MODEL.ROI_HEIGHT_HEAD.FC_DIM'?" in message
    assert "MODEL.ROI_HEIGHT_HEAD.CONTEXT_M" in message and "RPN" not in message


def test_misspelt_key_on_the_command_line():
    message = refused("command line: unknown config key 'SOLVER.BASELR'", BASE, "SOLVER.BASELR", "0.1")
    assert "Did you mean 'SOLVER.BASE_LR'?" in message


def test_misspelt_section(write):
    message = refused("unknown config key", write("MODEL: {FUSSION: {OPTICAL_CHANNELS: 3}}"))
    assert "Did you mean 'MODEL.FUSION'?" in message
    assert "Did you mean 'SOLVER'?" in refused("unknown", write("SOLVERS: {BASE_LR: 0.1}"))


@pytest.mark.parametrize(
    ("key", "wrong", "right"),
    [
        ("MODEL.META_ARCHITECTURE", "FusionRNN", "FusionRCNN"),
        (
            "MODEL.BACKBONE.NAME",
            "build_early_fusion_resnet_backbone",
            "build_early_fusion_resnet_fpn_backbone",
        ),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RPM", "RPN"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchors", "DefaultAnchorGenerator"),
        ("MODEL.RPN.HEAD_NAME", "RPNHead", "StandardRPNHead"),
        ("MODEL.ROI_HEADS.NAME", "FusionROIHead", "FusionROIHeads"),
        ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFC", "FastRCNNConvFCHead"),
        ("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvHead", "MaskRCNNConvUpsampleHead"),
        ("MODEL.ROI_HEIGHT_HEAD.NAME", "ContextHeight", "ContextHeightHead"),
        ("MODEL.FUSION.STEM_INFLATION", "zeros", "zero"),
        ("MODEL.FUSION.EXCHANGE.res3", "MTMM", "MMTM"),
        ("MODEL.FUSION.JOIN", "GateJoin", "GatedJoin"),
        ("MODEL.TASK_WEIGHTING.NAME", "gradnrom", "gradnorm"),
        ("INPUT.HEIGHT_LABELS", "nDSM", "ndsm"),
        ("SOLVER.OPTIMIZER", "Adam", "AdamW"),
        ("SOLVER.LR_SCHEDULER_NAME", "CosineLR", "WarmupCosineLR"),
    ],
)
def test_unknown_name_lists_the_right_ones(key, wrong, right):
    message = refused(f"unknown {key} '{wrong}'", BASE, key, wrong)
    assert f"Did you mean '{right}'?" in message and "Known: " in message


def test_stages_and_modalities_that_do_not_exist(write):
    refused(
        r"'MODEL.FUSION.EXCHANGE.res6'.*Did you mean 'MODEL.FUSION.EXCHANGE.res[2-5]'.*EXCHANGE.res2, .*EXCHANGE.res5",
        write("MODEL: {FUSION: {EXCHANGE: {res6: MMTM}}}"),
    )
    refused(
        "MODALITY_DROPOUT.radar.*MODALITY_DROPOUT.sar", BASE, "MODEL.FUSION.MODALITY_DROPOUT.radar", "0.1"
    )


def test_modalities():
    assert "Did you mean 'sar'?" in refused(
        "INPUT.MODALITIES entry 'sars'", BASE, "INPUT.MODALITIES", "['sars']"
    )
    refused("INPUT.MODALITIES is empty", BASE, "INPUT.MODALITIES", "[]")


def test_facts_of_the_height_head():
    key = "MODEL.ROI_HEIGHT_HEAD.GEOMETRY"
    assert "Did you mean 'sun_elevation'?" in refused("entry 'sun_elevatoin'", BASE, key, "['sun_elevatoin']")
    refused(
        "names incidence, but INPUT.MODALITIES", BASE, key, "['incidence']", "INPUT.MODALITIES", "['optical']"
    )


def test_value_of_another_type(write):
    refused("my.yaml: .*int.*str", write("SOLVER: {MAX_ITER: many}"))
    refused("command line: .*bool", BASE, "MODEL.HEIGHT_ON", "3")
    refused("my.yaml", write("MODEL: 5"))
    refused("my.yaml", write("SEED: {A: 1}"))
    refused("my.yaml: config keys are words, found 7", write("MODEL: {7: 1}"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOLVER.ACCUMULATE_STEPS", "0", "above 0"),
        ("SOLVER.MAX_ITER", "0", "above 0"),
        ("SOLVER.IMS_PER_BATCH", "-1", "above 0"),
        ("MODEL.ROI_HEIGHT_HEAD.NUM_CONV", "0", "above 0"),
        ("MODEL.ROI_HEIGHT_HEAD.MIN_HEIGHT_M", "0.0", "above 0"),
        ("MODEL.ROI_HEIGHT_HEAD.MIN_HEIGHT_M", "300.0", "less than MAX_HEIGHT_M"),
        ("DATALOADER.NUM_WORKERS", "-1", "0 or more"),
        ("INPUT.SCALE_RANGE", "[1]", "0 < low <= high"),
        ("INPUT.SCALE_RANGE", "['a', 'b']", "0 < low <= high"),
        ("INPUT.SCALE_RANGE", "[0, 1]", "0 < low <= high"),
        ("INPUT.SUN_AZIMUTH_RANGE_DEG", "[90]", "two numbers or"),
        ("INPUT.SUN_ELEVATION_RANGE_DEG", "[90]", "two numbers or"),
        ("MODEL.ROI_HEIGHT_HEAD.GEOMETRY_DROPOUT", "1.0", "at least 0 and below 1"),
        ("MODEL.ROI_HEIGHT_HEAD.GEOMETRY", "[['gsd']]", "Known: gsd, incidence"),
        ("MODEL.PIXEL_STD", "[1.0, 0.0]", "deviations above 0"),
        ("MODEL.PIXEL_MEAN", "['a']", "expected numbers"),
        ("DATASETS.TRAIN", "(3,)", "a list of names"),
        ("MODEL.PIXEL_MEAN", "None", "has no value"),
        ("MODEL.FUSION.MMTM.RATIO", "0", "above 0"),
        ("MODEL.FUSION.CROSS_ATTENTION.WINDOW", "-1", "0 or more"),
        ("MODEL.FUSION.CROSS_ATTENTION.DIM", "100", "a multiple of 4 times HEADS, 16"),
        ("MODEL.FUSION.SAR_RESNETS.DEPTH", "20", r"0 or one of \(18, 34, 50"),
        ("MODEL.RESNETS.DEPTH", "0", r"one of \(18, 34, 50"),
        ("DATASETS.LABEL_SHARE", "0.0", "above 0.* and 1 at most"),
        ("DATASETS.LABEL_SHARE", "1.5", "above 0.* and 1 at most"),
        ("DATALOADER.UNLABELLED_PER_BATCH", "-1", "0 or more"),
        ("MODEL.TASK_WEIGHTING.RATE", "0.0", "above 0 and 1 at most"),
        ("MODEL.TASK_WEIGHTING.ALPHA", "-1.0", "0 or more"),
        ("MODEL.DENSE_HEADS.HEIGHT.LOSS_WEIGHT", "-1.0", "0 or more"),
    ],
)
def test_values_that_mean_nothing_are_named_with_what_was_expected(key, value, expected):
    assert key.split(".")[-1] in refused(expected, BASE, key, value)


def test_a_whole_number_for_a_float_is_explained():
    refused("decimal point here: 40.0", BASE, "MODEL.ROI_HEIGHT_HEAD.CONTEXT_M", "30")


def test_odd_number_of_overrides():
    refused("KEY VALUE pairs, found 3 words: SEED 1 MODEL", BASE, "SEED", "1", "MODEL")


def test_files_that_are_no_configs(tmp_path, write):
    refused("nowhere.yaml: no such config file", tmp_path / "nowhere.yaml")
    refused("no such config file", tmp_path)
    refused("my.yaml: expected a YAML mapping of config keys, found list", write("- 1"))
    refused("my.yaml: not a plain YAML config in line 2", write("MODEL: {\nSEED: ]"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    refused("binary.yaml: not a text file", tmp_path / "binary.yaml")


def test_bases_that_are_not_there_or_go_round(write):
    refused("my.yaml: its _BASE_ .*gone.yaml does not exist", write("_BASE_: gone.yaml"))
    write("_BASE_: my.yaml", "other.yaml")
    refused("is its own _BASE_, by way of .*other.yaml", write("_BASE_: other.yaml"))
    refused("_BASE_ .* does not exist", write("_BASE_: {a: 1}"))


# ---- Several tasks ---------------------------------------------------------------------------------------

HEADS = "MODEL.DENSE_HEADS.NAMES"
DENSE = ("MODEL.META_ARCHITECTURE", "FusionDense", "MODEL.MASK_ON", "False", "MODEL.HEIGHT_ON", "False")
DENSE += ("TEST.BEST_METRIC", "dense/dice")


def test_a_dense_head_is_known_and_named_once():
    message = refused("unknown MODEL.DENSE_HEADS.NAMES entry 'Footprints'", BASE, HEADS, "['Footprints']")
    assert "Did you mean 'Footprint'?" in message
    refused("NAMES has Footprint more than once", BASE, HEADS, "['Footprint', 'DenseHeight', 'Footprint']")


@pytest.mark.parametrize(
    ("key", "value", "head", "others"),
    [
        ("MODEL.DENSE_HEADS.HEIGHT.REFINE", "True", "Footprint", "['DenseHeight']"),
        ("MODEL.DENSE_HEADS.HEIGHT.FROM_FOOTPRINT", "True", "Footprint", "['DenseHeight']"),
        ("MODEL.DENSE_HEADS.SHARED_STEPS", "2", "DenseHeight", "['Footprint']"),
        ("MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR", "True", "DenseHeight", "['Footprint']"),
        ("DATALOADER.UNLABELLED_PER_BATCH", "4", "Reconstruction", "['Footprint']"),
    ],
)
def test_what_needs_a_head_names_it(key, value, head, others):
    message = refused(f"{key} is {value}, which needs the head", BASE, key, value, HEADS, others)
    assert head in message and "NAMES" in message


def test_a_prior_needs_somebody_to_show_it_to():
    refused(
        "with MODEL.HEIGHT_ON False there is no head",
        BASE, HEADS, "['DenseHeight']", "MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR", "True", "MODEL.HEIGHT_ON", "False",
    )  # fmt: skip


def test_an_architecture_that_knows_no_dense_heads_is_named():
    plain = ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    refused("NAMES is .*GeneralizedRCNN has no use for it. Take Fus", BASE, *plain, HEADS, "['Footprint']")
    refused("TASK_WEIGHTING.NAME is uncer", BASE, *plain, "MODEL.TASK_WEIGHTING.NAME", "uncertainty")
    load_config(BASE, plain)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "NAMES is empty"),
        ((HEADS, "['Footprint']", "MODEL.MASK_ON", "True"), "MODEL.MASK_ON is True, .* finds no instances"),
        (
            (HEADS, "['Footprint']", "MODEL.HEIGHT_ON", "True"),
            "MODEL.HEIGHT_ON is True, .* finds no instances",
        ),
        ((HEADS, "['Footprint']", "TEST.BEST_METRIC", "joint/AP50"), "begins with dense/, such as dense/del"),
        ((HEADS, "['Footprint']", "MODEL.TASK_ATTENTION", "True"), "ATTENTION is True, but .* a single task"),
        (
            (HEADS, "['Footprint']", "MODEL.TASK_WEIGHTING.NAME", "gradnorm"),
            "NAME is gradnorm, but .* a single task",
        ),
    ],
)
def test_dense_heads_alone_find_no_instances(overrides, message):
    refused(message, BASE, *DENSE, *overrides)
    load_config(BASE, [*DENSE, HEADS, "['Footprint', 'DenseHeight']", "MODEL.TASK_ATTENTION", "True"])


def test_one_task_is_not_weighed_against_itself():
    weighting = ("MODEL.TASK_WEIGHTING.NAME", "uncertainty")
    load_config(BASE, weighting)
    refused("NAME is uncertainty, but .* a single task", BASE, *weighting, "MODEL.HEIGHT_ON", "False")
    refused("TASK_ATTENTION is True, but .* a single task", BASE, "MODEL.TASK_ATTENTION", "True")
    refused("both change the weights of losses", BASE, *weighting, "MODEL.FUSION.BALANCE.WINDOW", "10")


def test_a_stored_config_is_checked_likewise():
    text = "MODEL: {META_ARCHITECTURE: FusionRCNN, ROI_HEIGHT_HEAD: {DENSE_PRIOR: true}}"
    with pytest.raises(InputError, match="DENSE_PRIOR is True, which needs the head DenseHeight"):
        config_from_yaml_text(text, "model.pth")


# ---- What an architecture implies ------------------------------------------------------------------------

PYRAMIDS = "build_two_pyramids_resnet_fpn_backbone"


def test_late_fusion_implies_a_pyramid_per_modality():
    assert load_config(BASE, ["MODEL.META_ARCHITECTURE", "LateFusionRCNN"]).MODEL.BACKBONE.NAME == PYRAMIDS
    words = ["MODEL.META_ARCHITECTURE", "LateFusionDense", HEADS, "['Footprint']"]
    model = load_config(BASE, words).MODEL
    assert (model.BACKBONE.NAME, model.MASK_ON, model.HEIGHT_ON) == (PYRAMIDS, False, False)


def test_what_is_implied_may_be_said_and_not_contradicted(write):
    early = "build_early_fusion_resnet_fpn_backbone"
    late = ("MODEL.META_ARCHITECTURE", "LateFusionRCNN")
    load_config(BASE, [*late, "MODEL.BACKBONE.NAME", PYRAMIDS])
    message = refused("LateFusionRCNN with MODEL.BACKBONE.NAME", BASE, *late, "MODEL.BACKBONE.NAME", early)
    assert PYRAMIDS in message
    write(f"_BASE_: {BASE}\nMODEL: {{META_ARCHITECTURE: LateFusionRCNN}}", "base.yaml")
    above = write(f"_BASE_: base.yaml\nMODEL: {{BACKBONE: {{NAME: {early}}}}}")
    refused("LateFusionRCNN with MODEL.BACKBONE.NAME", above)
    refused(
        "LateFusionRCNN with MODEL.BACKBONE.NAME",
        write("_BASE_: base.yaml", "leaf.yaml"),
        "MODEL.BACKBONE.NAME",
        early,
    )


def test_a_base_below_the_architecture_gives_way(write):
    """Base-FusionRCNN-FPN.yaml sets MASK_ON and a backbone, for detectors."""
    write(
        f"_BASE_: {BASE}\nMODEL: {{META_ARCHITECTURE: FusionDense, DENSE_HEADS: {{NAMES: [Footprint]}}}}",
        "dense.yaml",
    )
    cfg = load_config(write("_BASE_: dense.yaml\nSEED: 1"))
    assert (cfg.MODEL.MASK_ON, cfg.MODEL.HEIGHT_ON) == (False, False)
    refused(
        "MODEL.MASK_ON is True, .* finds no instances", write("_BASE_: dense.yaml\nMODEL: {MASK_ON: True}")
    )


@pytest.mark.parametrize(
    ("words", "metric"),
    [
        ((), "joint/AP50"),
        (("MODEL.HEIGHT_ON", "False"), "segm/AP50"),
        (("MODEL.HEIGHT_ON", "False", "MODEL.MASK_ON", "False"), "bbox/AP50"),
        (
            ("MODEL.META_ARCHITECTURE", "FusionDense", HEADS, "['Footprint', 'DenseHeight']"),
            "dense/delta1_building",
        ),
        (("MODEL.META_ARCHITECTURE", "FusionDense", HEADS, "['Footprint']"), "dense/dice"),
        (("TEST.BEST_METRIC", "bbox/AP50"), "bbox/AP50"),
    ],
)
def test_the_best_checkpoint_is_chosen_by_what_the_network_is_scored_by(words, metric):
    assert load_config(BASE, words).TEST.BEST_METRIC == metric


def test_a_metric_of_a_base_stays_where_it_fits(write):
    write(f"_BASE_: {BASE}\nTEST: {{BEST_METRIC: dense/mae_m_building}}", "base.yaml")
    dense = "MODEL: {META_ARCHITECTURE: FusionDense, DENSE_HEADS: {NAMES: [DenseHeight]}}"
    assert load_config(write(f"_BASE_: base.yaml\n{dense}")).TEST.BEST_METRIC == "dense/mae_m_building"
    write(f"_BASE_: {BASE}\nTEST: {{BEST_METRIC: segm/AP}}", "base.yaml")
    assert load_config(write(f"_BASE_: base.yaml\n{dense}")).TEST.BEST_METRIC == "dense/delta1_building"


# ---- Untrusted input -------------------------------------------------------------------------------------

BOMBS = [
    "SEED: !!python/object/apply:os.system ['touch {target}']",
    "SEED: !!python/object/new:subprocess.Popen [['touch', '{target}']]",
    "MODEL: !!python/tuple [1, 2]",
    "SEED: !!python/name:os.system",
]


@pytest.mark.parametrize("text", BOMBS)
def test_python_tags_are_refused_and_do_nothing(write, tmp_path, text):
    target = tmp_path / "touched"
    text = text.format(target=target)
    refused("my.yaml: not a plain YAML config in line 1: could not determine a constructor", write(text))
    with pytest.raises(InputError, match="model.pth: not a plain YAML config in line 1"):
        config_from_yaml_text(text, "model.pth")
    write(text, "base.yaml")
    refused("base.yaml: not a plain YAML", write("_BASE_: base.yaml"))
    assert not target.exists()


def test_base_in_a_stored_config_is_refused():
    with pytest.raises(InputError, match="model.pth: its config refers to another file by _BASE_"):
        config_from_yaml_text("_BASE_: /etc/passwd\nSEED: 1", "model.pth")


def test_stored_config_with_unknown_keys_and_names():
    with pytest.raises(InputError, match="model.pth: unknown config key 'MODEL.NEW'"):
        config_from_yaml_text("MODEL: {NEW: 1}", "model.pth")
    with pytest.raises(InputError, match="unknown MODEL.BACKBONE.NAME 'evil'"):
        config_from_yaml_text("MODEL: {BACKBONE: {NAME: evil}}", "model.pth")


def test_references_that_expand_without_end_are_refused():
    laughs = "A0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"A{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
    )
    for text in (laughs, "A: &a [*a]"):
        with pytest.raises(InputError, match="model.pth: its references .* expand to too many values"):
            config_from_yaml_text(text, "model.pth")
    with pytest.raises(InputError, match="not a plain YAML config"):
        config_from_yaml_text("[" * 100_000, "model.pth")


def test_honest_references_are_read():
    cfg = config_from_yaml_text("MODEL: {PIXEL_MEAN: &m [1.0, 2.0], PIXEL_STD: *m}", "model.pth")
    assert cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == [1.0, 2.0]


TIMM = ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone")


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        (TIMM, ("build_timm_fpn_backbone", "MODEL.TIMM.NAME")),
        ((*TIMM, "MODEL.TIMM.NAME", "resnet_50"), ("MODEL.TIMM.NAME", "resnet_50", "resnet50")),
        (("MODEL.TIMM.NAME", "resnet50"), ("MODEL.TIMM.NAME", "build_early_fusion_resnet_fpn_backbone")),
        ((*TIMM, "MODEL.TIMM.NAME", "resnet50", "MODEL.TIMM.FREEZE", "6"), ("MODEL.TIMM.FREEZE", "6")),
        (
            (*TIMM, "MODEL.TIMM.NAME", "resnet50", "MODEL.FUSION.EXCHANGE.res3", "MMTM"),
            ("MODEL.FUSION.EXCHANGE", "build_timm_fpn_backbone"),
        ),
        (("SOLVER.LAYER_DECAY", "1.5"), ("SOLVER.LAYER_DECAY", "1.5")),
    ],
)
def test_a_network_of_timm_and_a_backbone_that_reads_it_go_together(overrides, facts):
    with raises_naming(*facts):
        load_config(BASE, [*overrides])
    load_config(BASE, [*TIMM, "MODEL.TIMM.NAME", "convnext_tiny.fb_in22k"])


def test_late_fusion_may_have_two_pyramids_of_timm():
    late = ("MODEL.META_ARCHITECTURE", "LateFusionRCNN", "MODEL.TIMM.NAME", "resnet50")
    cfg = load_config(BASE, [*late, "MODEL.BACKBONE.NAME", "build_two_pyramids_timm_fpn_backbone"])
    assert cfg.MODEL.BACKBONE.NAME == "build_two_pyramids_timm_fpn_backbone"
    with raises_naming("MODEL.TIMM.NAME", "build_two_pyramids_resnet_fpn_backbone"):
        load_config(BASE, [*late])
