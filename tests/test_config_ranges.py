"""Ranges of config keys: every number has one, and no value of any kind passes the door as a traceback."""

import fusiondet.compat  # noqa: F401
from fusiondet.config import defaults
from fusiondet.config_loading import config_from_yaml_text, load_config
from fusiondet.config_ranges import check_ranges, range_of, shown
from fusiondet.config_text import flat, merge_words, safe_yaml, set_key
from fusiondet.errors import InputError
from tests.support.tiny_city import ROOT

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

BASE = ROOT / "configs" / "Base-FusionRCNN-FPN.yaml"
KEYS = sorted(flat(defaults()))
NUMBERS = [key for key, value in flat(defaults()).items() if type(value) in (int, float)]


def refused(key, value) -> str:
    with pytest.raises(InputError) as error:
        load_config(BASE, [key, value])
    assert key in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOLVER.BASE_LR", "0.0", "above 0"),
        ("SOLVER.BASE_LR", "-0.1", "above 0"),
        ("SOLVER.BASE_LR", "1e999", "1000 at most"),
        ("SOLVER.MOMENTUM", "2.0", "at least 0 and below 1"),
        ("SOLVER.GAMMA", "-1.0", "above 0"),
        ("SOLVER.WEIGHT_DECAY", "-0.1", "0 or more"),
        ("SOLVER.STEPS", "[20, 10]", "rising"),
        ("SOLVER.STEPS", "['ten']", "numbers"),
        ("SOLVER.WARMUP_ITERS", "-1", "0 or more"),
        ("SEED", str(2**40), "at most"),
        ("SEED", "0x" + "f" * 5000, "4300 digits"),
        ("INPUT.MODALITIES", "['sar', 'sar']", "each modality once"),
        ("INPUT.SCALE_RANGE", "[1.0, 1e999]", "0 < low <= high"),
        ("INPUT.GSD_RANGE_M", "[2.0, 1.0]", "the lower one first"),
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "0", "above 0"),
        ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "100000", "512 at most"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[]", "lists of numbers in a list"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[32, 64]", "lists of numbers in a list"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[]]", "lists of numbers in a list"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[-32]]", "above 0"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.0]]", "above 0"),
        ("MODEL.RPN.IOU_THRESHOLDS", "[0.3, 7]", "at least 0 and 1 at most"),
        ("MODEL.RPN.NMS_THRESH", "-0.5", "at least 0 and 1 at most"),
        ("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "0", "above 0"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", "0", "above 0"),
        ("MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.5", "at least 0 and 1 at most"),
        ("MODEL.FPN.OUT_CHANNELS", "1000000000", "16384 at most"),
        ("MODEL.FPN.IN_FEATURES", "['res2', 'res2']", "more than once"),
        ("MODEL.FPN.IN_FEATURES", "[2, 3]", "list of names"),
        ("MODEL.DEVICE", "meta", "expected cpu, cuda"),
        ("MODEL.PIXEL_MEAN", "[1e999]", "expected numbers"),
    ],
)
def test_a_value_outside_its_range_is_refused_with_the_range(key, value, expected):
    assert expected in refused(key, value)


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", [key for key in NUMBERS if type(flat(defaults())[key]) is float])
def test_no_key_takes_nan_or_infinity(key, text):
    cfg = defaults()
    set_key(cfg, key, yaml.safe_load(text))
    if key == "SOLVER.CLIP_GRADIENTS.NORM_TYPE" and text == ".inf":  # the largest absolute gradient
        return check_ranges(cfg)
    with pytest.raises(InputError, match=key):
        check_ranges(cfg)


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_range_that_holds_its_default(key):
    value = flat(defaults())[key]
    assert range_of(key).holds(value)
    assert not range_of(key).holds(float("nan")) and not range_of(key).holds(10**400)


def test_defaults_are_in_their_ranges():
    check_ranges(defaults())


def test_values_of_a_stored_config_name_the_checkpoint():
    with pytest.raises(InputError, match="model.pth: .*SOLVER.BASE_LR is -1.0, expected above 0"):
        config_from_yaml_text("SOLVER: {BASE_LR: -1.0}", "model.pth")


def test_long_values_are_cut_in_messages():
    assert shown([1, 2]) == "[1, 2]"
    assert shown([1] * 500).endswith("… (1500 characters)") and len(shown([1] * 500)) < 100
    assert shown(int("f" * 5000, 16)) == "a number of more than 4300 digits"


# ---- Values of any kind ----------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 3),
    st.sampled_from([10**30, -(10**30), 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda part: st.one_of(
        st.lists(part, max_size=3), st.dictionaries(st.text(max_size=4), part, max_size=2)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_for_any_key_is_taken_or_refused_by_name(key, value):
    cfg = defaults()
    set_key(cfg, key, value)
    try:
        check_ranges(cfg)
    except InputError as error:
        assert key in str(error) or isinstance(value, dict)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(KEYS),
    st.sampled_from(["", ".A", ".A.B", "."]),
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            ["9" * 5000, "0x" + "f" * 5000, "(" * 300, "{1, 2}", "{'a': 1}", "1j", "b'x'", "[[[]]]"]
        ),
        VALUES.map(str),
    ),
)
def test_any_words_are_taken_or_refused(key, below, value):
    try:
        load_config(BASE, [key + below, value])
    except InputError as error:
        assert str(error)


@pytest.mark.parametrize(
    "text",
    [
        "SEED: " + "9" * 5000,
        "SEED: 0x" + "f" * 5000,
        "SEED: 2024-13-45",
        "SEED: 2024-01-02",
        "SEED: 2024-01-02 03:04:05",
        "DATASETS: {TRAIN: [2024-01-02]}",
        "SEED: !!float abc",
        "SEED: !!int ''",
        "SEED: !!bool maybe",
        "SEED: !!timestamp x",
        "OUTPUT_DIR: !!binary aGVsbG8=",
        "MODEL: !!set {a, b}",
        "? [a]\n: b",
        "<<: 5",
        "SEED: {A: {B: 1}}",
        "SOLVER: {BASE_LR: {A: 1}}",
    ],
)
def test_yaml_of_any_kind_is_read_or_refused(text):
    with pytest.raises(InputError, match=r"my\.yaml"):
        config_from_yaml_text(text, "my.yaml")


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        VALUES.map(
            lambda value: yaml.safe_dump({"SEED": value}, allow_unicode=True) if _dumps(value) else ""
        ),
    )
)
def test_any_text_is_yaml_or_refused(text):
    try:
        assert isinstance(safe_yaml(text, "my.yaml"), dict)
    except InputError as error:
        assert "my.yaml" in str(error)


def _dumps(value) -> bool:
    try:
        yaml.safe_dump(value)
    except (ValueError, yaml.YAMLError):
        return False
    return True


def test_a_key_below_a_value_is_named():
    with pytest.raises(InputError, match="SEED.A"):
        merge_words(defaults(), ["SEED.A", "1"])
