"""The values that each config key may have: one table of ranges for the core's keys, Detectron2's and projects'.

`check_ranges` looks at single values. What keys mean together is checked by `fusiondet.config_loading`.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from fusiondet.config import defaults
from fusiondet.config_text import flat
from fusiondet.errors import InputError

from detectron2.config import CfgNode as CN

# Names of devices. Not "meta", whose tensors hold nothing.
DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu)(:\d{1,3})?")


class Range(NamedTuple):
    """Numbers from `low` to `high`; an end is excluded where it is open. Infinity is in it if `infinite`."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False
    infinite: bool = False

    def holds(self, value) -> bool:
        """Return whether `value` is a number of the range. NaN is in none."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.infinite and value == float("inf"):
            return True
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def expected(self, value) -> str:
        """Return the range in words: both ends of one that ends at 1, else the end that `value` is beyond."""
        low = f"above {self.low:g}" if self.low_open else f"{self.low:g} or more"
        high = f"below {self.high:g}" if self.high_open else f"{self.high:g} at most"
        if self.high <= 1:
            return f"{low if self.low_open else f'at least {self.low:g}'} and {high}"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return high if is_number and value > self.high else low


# Far above anything that is meant, and exact in float32 and int32.
_LARGEST = 1e9
_LARGEST_SEED = 2**31 - 1


def _above_0(high: float = _LARGEST) -> Range:
    return Range(0, high, low_open=True)


def _from_0(high: float = _LARGEST) -> Range:
    return Range(0, high)


_SHARE = _from_0(1)
# Layers and channels: a value above it is a slip of the keyboard, and would fill any memory.
_CHANNELS, _LAYERS, _CELLS = _above_0(16_384), 100, 512

# (patterns of keys, range), the first that fits a key counts. A value that is a list has its numbers in that range,
# however deep they are nested. A key of numbers that none fits has to be finite, see `_ANY`.
_TABLE: tuple[tuple[str, Range], ...] = (
    ("SEED", Range(-_LARGEST, _LARGEST_SEED)),  # below 0: drawn
    ("VERSION", Range(0, 2)),
    ("VIS_PERIOD *.EVAL_PERIOD", _from_0()),
    # ---- Solver
    ("SOLVER.BASE_LR", _above_0(1000)),
    ("SOLVER.MOMENTUM", Range(0, 1, high_open=True)),
    ("SOLVER.GAMMA SOLVER.BIAS_LR_FACTOR", _above_0(1000)),
    ("SOLVER.WARMUP_FACTOR DATASETS.LABEL_SHARE MODEL.TASK_WEIGHTING.RATE", _above_0(1)),
    ("SOLVER.WEIGHT_DECAY*", _from_0(1000)),
    ("SOLVER.LAYER_DECAY", _above_0(1)),
    ("SOLVER.OPTICAL_LR_FACTOR SOLVER.SAR_LR_FACTOR", _above_0(1e6)),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", _above_0()._replace(infinite=True)),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.MAX_ITER SOLVER.CHECKPOINT_PERIOD", _above_0()),
    ("SOLVER.IMS_PER_BATCH SOLVER.ACCUMULATE_STEPS TEST.PRECISE_BN.NUM_ITER", _above_0()),
    ("SOLVER.STEPS SOLVER.WARMUP_ITERS SOLVER.REFERENCE_WORLD_SIZE", _from_0()),
    # ---- Data
    ("DATALOADER.NUM_WORKERS", _from_0(1024)),
    ("DATALOADER.MAX_BATCH_GIB", _above_0()),
    ("DATALOADER.UNLABELLED_PER_BATCH DATALOADER.REPEAT_THRESHOLD INPUT.MIN_INSTANCE_AREA_PX", _from_0()),
    ("INPUT.SAR_SPECKLE_LOOKS", _from_0()),
    ("INPUT.OPTICAL_BRIGHTNESS INPUT.OPTICAL_CONTRAST", _from_0(10)),
    ("INPUT.SAR_GAIN_DB", _from_0(100)),
    ("INPUT.*_RANGE_DEG", Range(-360, 720)),
    ("INPUT.NODATA", Range(-1e39, 1e39)),  # that of float32 is -3.4e38
    ("INPUT.SCALE_RANGE", _above_0(1000)),
    ("MODEL.PIXEL_STD", _above_0()),
    ("INPUT.GSD_RANGE_M INPUT.CROP.SIZE", _above_0()),
    ("INPUT.M??_SIZE_*", _from_0()),
    ("TEST.DETECTIONS_PER_IMAGE TEST.AUG.M*", _above_0(1e6)),
    # ---- Anchors, proposals, boxes
    ("MODEL.ANCHOR_GENERATOR.SIZES", _above_0(1e5)),
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", _above_0(1000)),
    ("MODEL.ANCHOR_GENERATOR.ANGLES", Range(-360, 360)),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", Range(0, 1, high_open=True)),
    ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", _from_0(1e5)),
    (
        "*.IOU_THRESHOLDS *.IOUS *.POSITIVE_FRACTION *.NMS_THRESH* *.SCORE_THRESH_TEST *.OVERLAP_THRESH",
        _SHARE,
    ),
    ("*.IOU_LABELS", Range(-1, 1)),
    ("*.BATCH_SIZE_PER_IMAGE *TOPK*", _above_0(1e6)),
    ("MODEL.RPN.CONV_DIMS", Range(-1, _CHANNELS.high)),
    ("*.BBOX_REG_WEIGHTS", _above_0()),
    ("*.BBOX_REG_LOSS_WEIGHT *.LOSS_WEIGHT *LOSS_BETA *.SMOOTH_L1_BETA *.FOCAL_LOSS_*", _from_0(1e6)),
    ("*.POOLER_RESOLUTION *.CONTEXT_RESOLUTION", _above_0(_CELLS)),
    ("*.POOLER_SAMPLING_RATIO", _from_0(64)),
    ("*.NUM_CLASSES *.NUM_KEYPOINTS", _above_0(1e5)),
    # ---- Networks
    ("MODEL.BACKBONE.FREEZE_AT MODEL.TIMM.FREEZE", _from_0(5)),
    ("MODEL.TIMM.DROP_PATH", Range(0, 1, high_open=True)),
    ("MODEL.FUSION.OPTICAL_CHANNELS", Range(-1, _CHANNELS.high)),
    ("MODEL.FUSION.SAR_RESNETS.*", _from_0(_CHANNELS.high)),
    ("*.ROI_HEIGHT_HEAD.NUM_CONV", _above_0(_LAYERS)),
    ("*.NUM_CONV *.NUM_CONVS *.NUM_FC *.SHARED_STEPS", _from_0(_LAYERS)),
    ("*.OUT_CHANNELS *.*_OUT_CHANNELS *.CONV_DIM *.CONV_DIMS *.CONVS_DIM *.WIDTH", _CHANNELS),
    ("*.WIDTH_PER_GROUP *.CROSS_ATTENTION.DIM *.HEADS *.MMTM.RATIO *.MLP_RATIO", _CHANNELS),
    ("*.FC_DIM", _above_0(65_536)),
    ("*.NUM_GROUPS *.DEFORM_NUM_GROUPS", _above_0(1024)),
    ("*.DEPTH", _above_0(1000)),
    ("*.RES5_DILATION", Range(1, 2)),
    ("*.CROSS_ATTENTION.WINDOW", _from_0(4096)),
    ("*.CROSS_ATTENTION.MAX_KEYS", _above_0(1e5)),
    ("*.MODALITY_DROPOUT.*", _SHARE),
    ("*.GEOMETRY_DROPOUT *.DROPOUT", Range(0, 1, high_open=True)),
    ("*.BALANCE.*", _from_0()),
    ("*.TASK_WEIGHTING.ALPHA", _from_0(1000)),
    ("*.CONTEXT_M *.PRIOR_MEDIAN_M *.PRIOR_LOG_SCALE *.HEIGHT_SCALE_M", _from_0(1e5)),
    ("*.MIN_HEIGHT_M *.MAX_HEIGHT_M", _above_0(1e5)),
    ("*.ROI_HEIGHT_HEAD.MAX_POSITIVES_PER_IMAGE", _above_0(1e5)),
)
_RANGES = tuple((pattern, one) for patterns, one in _TABLE for pattern in patterns.split())
_ANY = Range(-_LARGEST, _LARGEST)

# Lists whose entries are of any kind, or whose own checks have more to tell than that they are no numbers or no words.
_OWN_CHECKS = (
    "TEST.EXPECTED_RESULTS", "INPUT.SCALE_RANGE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.DEPTH",
    "MODEL.FUSION.SAR_RESNETS.DEPTH", "MODEL.RESNETS.DEFORM_ON_PER_STAGE", "INPUT.MODALITIES",
    "MODEL.ROI_HEIGHT_HEAD.GEOMETRY", "*.NAMES", "*.TASKS", "*.WIDTHS",
)  # fmt: skip
# Lists of words in which none may be twice.
_UNIQUE = ("*.IN_FEATURES", "*.OUT_FEATURES", "INPUT.*_BANDS", "*.CLASSES")


def range_of(key: str) -> Range:
    """Return the range of the numbers under a dotted key."""
    return next((one for pattern, one in _RANGES if fnmatchcase(key, pattern)), _ANY)


def check_ranges(cfg: CN) -> None:
    """Check each value of `cfg` alone.

    Raises:
        InputError: a number outside its range, or no number among numbers, or no word among words, or no value (None,
            which YAML makes of a key without one); names the key, the range and the value.
    """
    usual = flat(defaults())
    for key, value in flat(cfg).items():
        if value is None and usual.get(key, 0) is not None:
            raise InputError(f"{key} has no value. Write one, or leave the key out to keep its default.")
        if key not in usual:
            raise InputError(f"{key}: there is no such config key.")
        kind = type(usual[key])
        if kind in (list, bool, str) and not isinstance(value, kind):
            raise InputError(f"{key} is {shown(value)}, expected {_KINDS[kind]}.")
        if kind in (bool, str) or value is None or _fits(key, _OWN_CHECKS):
            continue
        if kind is not list:
            _check_number(key, value, value)
        elif _is_of_words(key, usual[key]):
            _check_words(key, value)
        else:
            _check_numbers(key, value, usual[key])


_KINDS = {list: "a list", bool: "True or False", str: "text"}


def _fits(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _is_of_words(key: str, usual) -> bool:
    if usual:
        return isinstance(usual[0], str)
    return key.startswith("DATASETS.") or _fits(key, _UNIQUE)


def _check_words(key: str, words: list) -> None:
    wrong = [word for word in words if not isinstance(word, str) or not word]
    if wrong:
        raise InputError(f"{key} is {shown(words)}, expected a list of names, found {shown(wrong[0])} in it.")
    twice = [word for i, word in enumerate(words) if word in words[:i]]
    if twice and _fits(key, _UNIQUE):
        raise InputError(f"{key} is {shown(words)}, where {twice[0]!r} is more than once. Name it once.")


def _check_numbers(key: str, value: list, usual: list) -> None:
    nested = bool(usual) and isinstance(usual[0], list | tuple)
    # An empty list has a meaning where the default is one, such as "from the training data".
    if (usual and not value and key not in ("SOLVER.STEPS",)) or (
        nested and not all(isinstance(part, list | tuple) and part for part in value)
    ):
        what = "lists of numbers in a list" if nested else "one number at least"
        raise InputError(f"{key} is {shown(value)}, expected {what}.")
    for number in _leaves(value):
        _check_number(key, number, value)


def _leaves(value) -> Iterator:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _check_number(key: str, number, value) -> None:
    one = range_of(key)
    if not one.holds(number):
        numbers = "numbers, each " if isinstance(value, list) else ""
        expected = _EXPECTED.get(key) or f"{numbers}{one.expected(number)}"
        raise InputError(f"{key} is {shown(value)}, expected {expected}.")


# Where a range has a reason that is worth a word.
_EXPECTED = {
    "DATASETS.LABEL_SHARE": "above 0, as buildings are learned from labels alone, and 1 at most; 0.1: a tenth of the "
    "tiles"
}


def shown(value, most: int = 80) -> str:
    """Return `value` as text for a message, cut where it is long. Python refuses to print very long numbers."""
    try:
        text = repr(dict(value) if isinstance(value, CN) else value)
    except ValueError:
        return "a number of more than 4300 digits"
    return text if len(text) <= most else f"{text[: most - 20]} … ({len(text)} characters)"
