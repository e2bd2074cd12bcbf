"""Config keys of the network of settlement extents and local climate zones, and their checks."""

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.config_text import flat
from fusiondet.errors import InputError, unknown_name

from detectron2.config import CfgNode as CN

ARCHITECTURE = "HseLczNet"
TASKS = ("hse", "lcz")
PRIORS = ("none", "detached", "joint")


def add_hse_lcz_config(cfg: CN) -> None:
    """Add the section MODEL.HSE_LCZ."""
    # Networks of patches, MODEL.META_ARCHITECTURE "HseLczNet": settlement extent and local climate zone of each; see
    # fusiondet/projects/hse_lcz/hse_lcz_net.py. MODEL.TASK_ATTENTION and TASK_WEIGHTING are theirs, too; of what
    # changes training tiles they have flips and turns alone (INPUT.DIHEDRAL, QUARTER_TURNS).
    cfg.MODEL.HSE_LCZ = CN()
    # What is said of a patch: "hse" (settlement extent, a share), "lcz" (one of 17 zones), or both.
    cfg.MODEL.HSE_LCZ.TASKS = ["hse", "lcz"]
    # Channels of the shared blocks; between two of them the map is halved.
    cfg.MODEL.HSE_LCZ.WIDTHS = [32, 64, 128]
    # Convolutions in each shared block.
    cfg.MODEL.HSE_LCZ.NUM_CONV = 2
    # Channels of what each task has for itself.
    cfg.MODEL.HSE_LCZ.CONV_DIM = 128
    # Share of a task's features that training hides before its last layer.
    cfg.MODEL.HSE_LCZ.DROPOUT = 0.2
    # What the zone is told of the predicted settlement extent: "none", "detached" (it learns nothing from the zone), or
    # "joint" (it does).
    cfg.MODEL.HSE_LCZ.PRIOR = "none"
    cfg.MODEL.HSE_LCZ.HSE = CN()
    # Weight of the loss of the extent, which is an error of a share, about 0.1.
    cfg.MODEL.HSE_LCZ.HSE.LOSS_WEIGHT = 10.0
    cfg.MODEL.HSE_LCZ.LCZ = CN()
    # Weight of the loss of the zone, a cross-entropy.
    cfg.MODEL.HSE_LCZ.LCZ.LOSS_WEIGHT = 1.0


# Changes of training tiles that patches do not get, and what they are where they are switched off.
_NOT_FOR_PATCHES = {
    "INPUT.SCALE_RANGE": [1.0, 1.0],
    "INPUT.CROP.ENABLED": False,
    "INPUT.OPTICAL_BRIGHTNESS": 0.0,
    "INPUT.OPTICAL_CONTRAST": 0.0,
    "INPUT.SAR_GAIN_DB": 0.0,
    "INPUT.SAR_SPECKLE_LOOKS": 0.0,
    "INPUT.SAR_LOOK_AZIMUTH_RANGE_DEG": [],
    "INPUT.SUN_AZIMUTH_RANGE_DEG": [],
    "DATASETS.LABEL_SHARE": 1.0,
    "DATALOADER.UNLABELLED_PER_BATCH": 0,
    "VIS_PERIOD": 0,
    "MODEL.MASK_ON": False,
    "MODEL.HEIGHT_ON": False,
    "MODEL.DENSE_HEADS.NAMES": [],
}


def check_hse_lcz(cfg, usual) -> None:
    """InputError when a key of MODEL.HSE_LCZ means nothing or is ignored, or `HseLczNet` would ignore another one.

    Args:
        usual: the defaults of all keys, which may stay as they are.
    """
    keys = cfg.MODEL.HSE_LCZ
    if cfg.MODEL.META_ARCHITECTURE != ARCHITECTURE:
        own = flat(keys)
        for key, value in flat(usual.MODEL.HSE_LCZ).items():
            if own[key] != value:
                raise InputError(
                    f"MODEL.HSE_LCZ.{key} is {own[key]}, but MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} "
                    f"has no use for it. Take {ARCHITECTURE}."
                )
        return
    for key, off in _NOT_FOR_PATCHES.items():
        now, default = cfg, usual
        for part in key.split("."):
            now, default = now[part], default[part]
        # What is switched on by default and left alone is simply not done; heights and masks have to be named.
        left_alone = now == default and key.startswith("INPUT.")
        if not left_alone and (list(now) if isinstance(now, tuple | list) else now) != off:
            raise InputError(
                f"{key} is {now}, but {ARCHITECTURE} takes whole patches and says one thing of each. Set it to {off}."
            )
    for section in ("FUSION", "DENSE_NET"):
        for key, value in usual.MODEL[section].items():
            if cfg.MODEL[section][key] != value and (section, key) != ("FUSION", "OPTICAL_CHANNELS"):
                raise InputError(
                    f"MODEL.{section}.{key} is set, but {ARCHITECTURE} stacks its bands and has no use for it. Leave "
                    "it at its default."
                )
    _check_tasks(cfg)
    _check_numbers(keys)


def _check_tasks(cfg) -> None:
    keys, model = cfg.MODEL.HSE_LCZ, cfg.MODEL
    for task in keys.TASKS:
        if task not in TASKS:
            raise unknown_name("MODEL.HSE_LCZ.TASKS entry", task, TASKS)
    if not len(keys.TASKS) or len({*keys.TASKS}) != len(keys.TASKS):
        raise InputError(f"MODEL.HSE_LCZ.TASKS is {list(keys.TASKS)}, expected hse, lcz or both, each once.")
    if keys.PRIOR not in PRIORS:
        raise unknown_name("MODEL.HSE_LCZ.PRIOR", keys.PRIOR, PRIORS)
    for key, value in (
        ("HSE_LCZ.PRIOR", keys.PRIOR != "none" and keys.PRIOR),
        ("TASK_ATTENTION", model.TASK_ATTENTION),
        ("TASK_WEIGHTING.NAME", model.TASK_WEIGHTING.NAME != "fixed" and model.TASK_WEIGHTING.NAME),
    ):
        if value and len(keys.TASKS) < 2:
            raise InputError(
                f"MODEL.{key} is {value}, which is between two tasks, but MODEL.HSE_LCZ.TASKS is {list(keys.TASKS)}. "
                f"Leave MODEL.{key} at its default, or name hse and lcz."
            )
    metric = cfg.TEST.BEST_METRIC
    if not metric.startswith(tuple(f"{task}/" for task in keys.TASKS)):
        examples = {"hse": "hse/mae", "lcz": "lcz/oa"}
        raise InputError(
            f"TEST.BEST_METRIC is {metric}, which this network is not scored by. Take one such as "
            f"{' or '.join(examples[task] for task in keys.TASKS)}."
        )


def _check_numbers(keys) -> None:
    whole = all(isinstance(width, int) and width > 0 for width in keys.WIDTHS)
    # A patch of 32 px has a cell left after five halvings.
    if not whole or not 1 <= len(keys.WIDTHS) <= 6:
        raise InputError(
            f"MODEL.HSE_LCZ.WIDTHS is {list(keys.WIDTHS)}, expected one to six numbers of channels: patches have 32 px."
        )
    for key in ("NUM_CONV", "CONV_DIM"):
        if keys[key] < 1:
            raise InputError(f"MODEL.HSE_LCZ.{key} is {keys[key]}, expected 1 or more.")
    for task in ("HSE", "LCZ"):
        weight = keys[task].LOSS_WEIGHT
        if not weight >= 0:
            raise InputError(f"MODEL.HSE_LCZ.{task}.LOSS_WEIGHT is {weight}, expected 0 or more.")
    if not 0 <= keys.DROPOUT < 1:
        raise InputError(f"MODEL.HSE_LCZ.DROPOUT is {keys.DROPOUT}, expected at least 0 and below 1.")
