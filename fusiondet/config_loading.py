"""Loading configs, and refusing what means nothing or would be ignored, before anything is built."""

from pathlib import Path

import fusiondet.compat
import fusiondet.modeling  # noqa: F401  (registers networks)
from fusiondet import plugins
from fusiondet.config import defaults, find_config
from fusiondet.config_ranges import DEVICE, check_ranges, range_of, shown
from fusiondet.config_text import (
    drop_absent_sections,
    flat,
    get_key,
    merge,
    merge_words,
    overlay,
    parse_stored,
    read_chain,
    rename_words,
    set_key,
)
from fusiondet.errors import InputError, unknown_name
from fusiondet.modeling.architecture import Architecture, architecture_of
from fusiondet.modeling.dense_heads import check_dense_heads
from fusiondet.modeling.dense_nets import check_dense_net, dense_net_named, known_dense_nets
from fusiondet.modeling.fusion import EXCHANGE_REGISTRY, JOIN_REGISTRY
from fusiondet.modeling.height_head import ROI_HEIGHT_HEAD_REGISTRY
from fusiondet.modeling.sensor_geometry import check_facts
from fusiondet.modeling.timm_net import STRIDES, check_timm_name

from detectron2.config import CfgNode as CN
from detectron2.modeling import META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, ROI_MASK_HEAD_REGISTRY

# Builders of backbones: of ResNets, then the same of a network of timm.
_TIMM_EARLY = "build_timm_fpn_backbone"
_ONE_STREAM = ("build_early_fusion_resnet_fpn_backbone", _TIMM_EARLY)
_BOTH_STREAMS = tuple(
    f"build_{fusion}_fusion_{trunk}_fpn_backbone"
    for trunk in ("resnet", "timm")
    for fusion in ("intermediate", "late")
)
_TWO_PYRAMIDS = ("build_two_pyramids_resnet_fpn_backbone", "build_two_pyramids_timm_fpn_backbone")


# ---- Loading ---------------------------------------------------------------------------------------------


def load_config(path: str | Path, overrides: list[str] = ()) -> CN:
    """Return Detectron2's defaults, fusiondet's keys, the YAML file with its `_BASE_` chain, then KEY VALUE pairs.

    Keys that MODEL.META_ARCHITECTURE implies, and TEST.BEST_METRIC, need not be set; see `implied_values`.

    Args:
        path: of a file, or the name of a config; see `fusiondet.config.find_config`.

    Raises:
        InputError: missing file, invalid YAML, Python tags in it, an unknown key (the right ones are listed), a value
            of another type or that means nothing, or a name that is in no registry.
    """
    cfg = defaults()
    found = find_config(path)
    if found is None:
        raise InputError(f"{path}: no such config file.")
    layers = read_chain(found)
    tree = {}
    for layer in layers:
        tree = overlay(tree, layer)
    dropped = drop_absent_sections(tree, cfg, str(path))
    merge(cfg, lambda: cfg.merge_from_other_cfg(CN(tree)), str(path))
    merge_words(cfg, overrides)
    check_ranges(cfg)
    layers.append(dict.fromkeys(rename_words(overrides, note=False)[::2]))
    _check_architecture_is_there(cfg, str(path), dropped)
    check_names(cfg)
    check_values(cfg)
    _complete(cfg, [flat(layer).keys() for layer in layers])
    check_fusion(cfg)
    check_tasks(cfg)
    return cfg


def config_from_yaml_text(text: str, source: str) -> CN:
    """Return the config stored in checkpoint `source`. Parsed by a safe loader; `_BASE_` is refused.

    Raises:
        InputError: Python tags, a `_BASE_`, unknown keys or names, values that mean nothing; the project of the
            network is not there.
    """
    cfg, dropped = parse_stored(text, source)
    try:
        check_ranges(cfg)
    except InputError as error:
        raise InputError(f"{source}: the config stored in it is not valid: {error}") from None
    _check_architecture_is_there(cfg, source, dropped)
    check_names(cfg)
    check_values(cfg)
    check_fusion(cfg)
    check_tasks(cfg)
    return cfg


def _check_architecture_is_there(cfg: CN, source: str, dropped: list[str]) -> None:
    """InputError when the network of a complete config belongs to a project that is not there."""
    if not dropped:
        return
    for key, known in (
        ("MODEL.META_ARCHITECTURE", _known_architectures()),
        ("MODEL.DENSE_NET.NAME", known_dense_nets()),
    ):
        name = get_key(cfg, key)
        if name and name not in known:
            raise InputError(
                f"{source}: {key} is {name}, of a project that is not in fusiondet/projects (so are the config "
                f"sections {', '.join(dropped)}). Put its folder back. Known: {', '.join(sorted(known))}."
            )


def _known_architectures() -> list[str]:
    return [*(name for name, _ in META_ARCH_REGISTRY), *plugins.merged("architectures")]


# ---- What an architecture implies ------------------------------------------------------------------------


def implied_values(architecture: type[Architecture]) -> dict:
    """Return {key: value} of what follows from the choice of an architecture, so that nobody has to set it."""
    implied = {}
    if architecture.separate_pyramids:
        implied["MODEL.BACKBONE.NAME"] = _TWO_PYRAMIDS[0]
    if not architecture.finds_instances:
        implied |= {"MODEL.MASK_ON": False, "MODEL.HEIGHT_ON": False}
    return implied


def _complete(cfg: CN, layers: list) -> None:
    """Set, in place, implied values and TEST.BEST_METRIC where no layer sets them on purpose.

    What a file sets below the one that names the architecture was meant for another network. A value beside or above
    the architecture stays, and is refused if it contradicts.

    Args:
        layers: dotted keys that the files of the chain and the command line set, from the lowest base up.
    """
    set_in = {key: i for i, layer in enumerate(layers) for key in layer}
    chosen_in = set_in.get("MODEL.META_ARCHITECTURE", -1)
    architecture = architecture_of(cfg)
    for key, value in implied_values(architecture).items():
        if set_in.get(key, -1) < chosen_in:
            set_key(cfg, key, value)
    check_dense_heads(cfg)
    check_dense_net(cfg)
    metric, layer = cfg.TEST.BEST_METRIC, set_in.get("TEST.BEST_METRIC", -1)
    if layer < 0 or (layer < chosen_in and not metric.startswith(_score_prefixes(architecture, cfg))):
        cfg.TEST.BEST_METRIC = architecture.best_metric(cfg)


def _score_prefixes(architecture: type[Architecture], cfg: CN) -> tuple[str, ...]:
    return tuple(f"{group}/" for group in architecture.score_groups(cfg)) or ("",)


# ---- Checks ----------------------------------------------------------------------------------------------


_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_POOLERS = ("ROIAlign", "ROIAlignV2", "ROIPool")


def check_names(cfg: CN) -> None:
    """InputError when a class named in `cfg` is in no registry; the message lists the names that are."""
    for key, registry in {
        "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
        "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
        "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
        "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
        "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
        "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
        "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
        "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
        "MODEL.ROI_HEIGHT_HEAD.NAME": ROI_HEIGHT_HEAD_REGISTRY,
        "MODEL.FUSION.JOIN": JOIN_REGISTRY,
        **{f"MODEL.FUSION.EXCHANGE.{stage}": EXCHANGE_REGISTRY for stage in cfg.MODEL.FUSION.EXCHANGE},
    }.items():
        name = get_key(cfg, key)
        # Detectron2's default for the box head is "", which networks without one keep; "" is no exchange, too.
        known = {known for known, _ in registry}
        if key == "MODEL.META_ARCHITECTURE":
            known |= {*plugins.merged("architectures")}
        if name and name not in known:
            raise unknown_name(key, name, known)
    if not len(cfg.INPUT.MODALITIES):
        raise InputError('INPUT.MODALITIES is empty, expected "optical", "sar" or both.')
    for modality in cfg.INPUT.MODALITIES:
        if modality not in ("optical", "sar"):
            raise unknown_name("INPUT.MODALITIES entry", modality, ("optical", "sar"))
    if len({*cfg.INPUT.MODALITIES}) < len(cfg.INPUT.MODALITIES):
        raise InputError(f"INPUT.MODALITIES is {list(cfg.INPUT.MODALITIES)}, expected each modality once.")
    if not DEVICE.fullmatch(cfg.MODEL.DEVICE):
        raise InputError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, expected cpu, cuda, or one of them such as cuda:0."
        )
    check_facts(cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY, cfg.INPUT.MODALITIES)
    for key, known in {
        "MODEL.FUSION.STEM_INFLATION": ("zero", "mean_rescaled"),
        "MODEL.FUSION.DISABLED": ("", "optical", "sar"),
        "MODEL.TASK_WEIGHTING.NAME": ("fixed", "uncertainty", "gradnorm"),
        "INPUT.HEIGHT_LABELS": ("auto", "building_height", "ndsm", "instances"),
        "SOLVER.OPTIMIZER": ("SGD", "AdamW"),
        "SOLVER.WARMUP_METHOD": ("constant", "linear"),
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
        "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
        **dict.fromkeys(
            ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE"), _BOX_LOSSES
        ),
        **dict.fromkeys(("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "MODEL.ROI_MASK_HEAD.POOLER_TYPE"), _POOLERS),
        "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    }.items():
        if get_key(cfg, key) not in known:
            raise unknown_name(key, get_key(cfg, key), [name for name in known if name])


_DEPTHS = (18, 34, 50, 101, 152)
_PAIRS = ("INPUT.SAR_LOOK_AZIMUTH_RANGE_DEG", "INPUT.SUN_AZIMUTH_RANGE_DEG")
_ORDERED_PAIRS = ("INPUT.GSD_RANGE_M", "INPUT.SUN_ELEVATION_RANGE_DEG", "INPUT.SAR_INCIDENCE_RANGE_DEG")


def check_values(cfg: CN) -> None:
    """InputError when a number or list in `cfg` is in its range and has no meaning beside others."""
    for keys, allowed, what in (
        (
            ("MODEL.FUSION.MODALITY_DROPOUT",),
            lambda v: sum(v.values()) <= 1,
            "probabilities of 0 or more that add up to 1 at most",
        ),
        (("MODEL.RESNETS.DEPTH",), lambda v: v in _DEPTHS, f"one of {_DEPTHS}"),
        (("MODEL.FUSION.SAR_RESNETS.DEPTH",), lambda v: v in (0, *_DEPTHS), f"0 or one of {_DEPTHS}"),
        (("INPUT.NODATA",), lambda v: len(v) <= 1, "one number or []"),
        (_PAIRS, lambda v: len(v) in (0, 2), "two numbers or []"),
        (
            _ORDERED_PAIRS,
            lambda v: not len(v) or _is_rising_pair(v),
            "two numbers or [], the lower one first",
        ),
        (
            ("INPUT.SCALE_RANGE",),
            lambda v: _are_in_range("INPUT.SCALE_RANGE", v) and _is_rising_pair(v),
            "[low, high] with 0 < low <= high",
        ),
        (("SOLVER.STEPS",), lambda v: list(v) == sorted({*v}), "a list of rising numbers of steps"),
    ):
        for key in keys:
            if not allowed(get_key(cfg, key)):
                raise InputError(f"{key} is {shown(get_key(cfg, key))}, expected {what}.")
    attention = cfg.MODEL.FUSION.CROSS_ATTENTION
    if attention.DIM % (4 * attention.HEADS):
        raise InputError(
            f"MODEL.FUSION.CROSS_ATTENTION.DIM is {attention.DIM}, expected a multiple of 4 times HEADS, "
            f"{4 * attention.HEADS}."
        )
    head, mean, std = cfg.MODEL.ROI_HEIGHT_HEAD, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if head.MIN_HEIGHT_M >= head.MAX_HEIGHT_M:
        raise InputError(
            f"MODEL.ROI_HEIGHT_HEAD.MIN_HEIGHT_M is {head.MIN_HEIGHT_M}, expected less than MAX_HEIGHT_M, "
            f"{head.MAX_HEIGHT_M}."
        )
    if not (_are_in_range("MODEL.PIXEL_MEAN", mean) and _are_in_range("MODEL.PIXEL_STD", std)):
        raise InputError(
            f"MODEL.PIXEL_MEAN {mean}, PIXEL_STD {std}: expected numbers, deviations above 0; or [] to have them "
            "computed from the training data."
        )


# Keys of MODEL.FUSION that are for two streams; two pyramids are never joined.
_IDLE_KEYS = {
    **dict.fromkeys(_ONE_STREAM, ("EXCHANGE", "JOIN", "SHARE_WEIGHTS", "SAR_RESNETS")),
    **dict.fromkeys(_TWO_PYRAMIDS, ("JOIN",)),
}


def check_fusion(cfg: CN) -> None:
    """InputError when a key of MODEL.FUSION would be ignored, or asks for a modality that the network does not see."""
    fusion, usual, backbone = cfg.MODEL.FUSION, defaults().MODEL.FUSION, cfg.MODEL.BACKBONE.NAME
    idle = [key for key in _IDLE_KEYS.get(backbone, ()) if fusion[key] != usual[key]]
    if idle:
        raise InputError(
            f"MODEL.FUSION.{idle[0]} is {shown(fusion[idle[0]])}, but MODEL.BACKBONE.NAME {backbone} has no use for "
            f"it. Leave it at {shown(usual[idle[0]])}, or take {' or '.join(_BOTH_STREAMS[:2])}."
        )
    if (backbone in _TWO_PYRAMIDS) != architecture_of(cfg).separate_pyramids:
        raise InputError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} with MODEL.BACKBONE.NAME {backbone}: "
            f"{_names_of('separate_pyramids')} and {' or '.join(_TWO_PYRAMIDS)} go together. Leave "
            "MODEL.BACKBONE.NAME out, or take another architecture."
        )
    hiding = ["DISABLED"] * bool(fusion.DISABLED) + ["MODALITY_DROPOUT"] * any(
        fusion.MODALITY_DROPOUT.values()
    )
    two_streams = backbone in (*_BOTH_STREAMS, *_TWO_PYRAMIDS)
    if len(cfg.INPUT.MODALITIES) < 2 and (hiding or two_streams):
        key = f"MODEL.FUSION.{hiding[0]}" if hiding else f"MODEL.BACKBONE.NAME {backbone}"
        raise InputError(
            f"{key} needs both modalities, optical and sar, but INPUT.MODALITIES is {list(cfg.INPUT.MODALITIES)}. "
            + (
                "Leave it at its default."
                if hiding
                else f"Use {' or '.join(_ONE_STREAM)} for one modality alone."
            )
        )
    _check_timm(cfg)


def _check_timm(cfg: CN) -> None:
    """InputError when the backbone is of timm and the network has no name there, or the other way round."""
    keys, usual, backbone = cfg.MODEL.TIMM, defaults().MODEL, cfg.MODEL.BACKBONE.NAME
    if "timm" not in backbone:
        idle = [key for key, value in keys.items() if value != usual.TIMM[key]]
        if idle:
            raise InputError(
                f"MODEL.TIMM.{idle[0]} is {shown(keys[idle[0]])}, but MODEL.BACKBONE.NAME is {backbone}, which has no "
                f"use for it. Leave it at {shown(usual.TIMM[idle[0]])}, or take {_TIMM_EARLY} or another with timm."
            )
        return
    if not keys.NAME:
        raise InputError(
            f"MODEL.BACKBONE.NAME {backbone} needs MODEL.TIMM.NAME, e.g. convnext_tiny or resnet50."
        )
    check_timm_name(keys.NAME)
    if cfg.MODEL.FUSION.SAR_RESNETS != usual.FUSION.SAR_RESNETS:
        raise InputError(
            f"MODEL.FUSION.SAR_RESNETS is set, but MODEL.BACKBONE.NAME {backbone} has no ResNets. Leave it at its "
            "defaults."
        )
    missing = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in STRIDES]
    if missing:
        raise unknown_name("MODEL.FPN.IN_FEATURES entry", missing[0], STRIDES)


def _names_of(attribute: str) -> str:
    """Return the names of the core's architectures that have a property, for messages."""
    return " or ".join(
        name
        for name, one in META_ARCH_REGISTRY
        if isinstance(one, type) and issubclass(one, Architecture) and getattr(one, attribute)
    )


def check_tasks(cfg: CN) -> None:
    """InputError when a key of dense heads, of what joins tasks, or of tiles without labels would be ignored."""
    check_dense_heads(cfg)
    check_dense_net(cfg)
    usual = defaults()
    for check in plugins.config_functions("check_config"):
        check(cfg, usual)
    model, architecture = cfg.MODEL, architecture_of(cfg)
    if not architecture.predicts_scenes:
        return
    if not architecture.finds_instances:
        _check_dense_alone(cfg, architecture)
    elif not architecture.reads_dense_heads:
        for key in ("MODEL.DENSE_HEADS.NAMES", "MODEL.TASK_ATTENTION", "MODEL.TASK_WEIGHTING.NAME"):
            if get_key(cfg, key) not in ([], False, "fixed"):
                raise InputError(
                    f"{key} is {get_key(cfg, key)}, but MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE} has no use "
                    f"for it. Take {_names_of('reads_dense_heads')}."
                )
    for key, task, head in (
        ("MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR", "height", "DenseHeight"),
        ("DATALOADER.UNLABELLED_PER_BATCH", "reconstruction", "Reconstruction"),
    ):
        if get_key(cfg, key) and task not in architecture.pixel_tasks(cfg):
            if architecture.reads_dense_net:
                raise InputError(
                    f"{key} is {get_key(cfg, key)}, but {model.DENSE_NET.NAME} as configured says no {task}. Leave "
                    f"{key} at {get_key(usual, key)}, or take a network that does."
                )
            raise InputError(
                f"{key} is {get_key(cfg, key)}, which needs the head {head}, but MODEL.DENSE_HEADS.NAMES is "
                f"{list(model.DENSE_HEADS.NAMES)}. Add it there, or leave {key} at {get_key(usual, key)}."
            )
    if model.ROI_HEIGHT_HEAD.DENSE_PRIOR and not model.HEIGHT_ON:
        raise InputError(
            "MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR is True, but with MODEL.HEIGHT_ON False there is no head to show it to."
        )
    _check_more_than_one_task(cfg, architecture)


def _check_dense_alone(cfg: CN, architecture: type[Architecture]) -> None:
    """InputError when a network without instances has no dense head, is to find or is judged by instances."""
    model, name = cfg.MODEL, cfg.MODEL.META_ARCHITECTURE
    if architecture.reads_dense_heads and not len(model.DENSE_HEADS.NAMES):
        raise InputError(
            f"MODEL.META_ARCHITECTURE {name} has dense heads alone, but MODEL.DENSE_HEADS.NAMES is empty. Name one at "
            "least, or take FusionRCNN."
        )
    for key, value in implied_values(architecture).items():
        if get_key(cfg, key) != value and key != "MODEL.BACKBONE.NAME":
            raise InputError(
                f"{key} is {get_key(cfg, key)}, but MODEL.META_ARCHITECTURE {name} finds no instances. Leave "
                "MODEL.MASK_ON and MODEL.HEIGHT_ON out or False, or take FusionRCNN."
            )
    if not cfg.TEST.BEST_METRIC.startswith(_score_prefixes(architecture, cfg)):
        of_classes = "classes" in architecture.score_groups(cfg)
        raise InputError(
            f"TEST.BEST_METRIC is {cfg.TEST.BEST_METRIC}, which {name} is not scored by, as it finds no instances. "
            "Take one that begins with dense/, such as dense/delta1_building or dense/dice"
            + (", or with classes/, such as classes/oa." if of_classes else ".")
        )
    if architecture.reads_dense_net:
        _check_read_by_dense_net(cfg)


# Read for every dense net: what it is, and what happens to its input and output.
_OF_ALL_DENSE_NETS = (
    "NAME", "TASKS", "CLASSES", "HEIGHT_SCALE_M", "OPTICAL_CHANNELS", "STEM_INFLATION", "MODALITY_DROPOUT", "DISABLED",
)  # fmt: skip
# Read where the network has these tasks.
_OF_TASKS = {
    "FOOTPRINT.LOSS_WEIGHT": {"footprint"},
    "HEIGHT.LOSS_WEIGHT": {"height"},
    "HEIGHT.REFINE": {"footprint", "height"},
}


def _check_read_by_dense_net(cfg: CN) -> None:
    """InputError when a key of MODEL.DENSE_NET or MODEL.FUSION is set that the network of `cfg` does not read.

    So with MODEL.BACKBONE.NAME: who names a backbone of two streams there wants another network.
    """
    name, tasks, usual = cfg.MODEL.DENSE_NET.NAME, list(cfg.MODEL.DENSE_NET.TASKS), defaults()
    sections = dense_net_named(name).sections
    if cfg.MODEL.BACKBONE.NAME not in (_ONE_STREAM[0], usual.MODEL.BACKBONE.NAME):
        raise InputError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}, but {name} is a whole network and has no use for a "
            f"backbone. Leave it at {_ONE_STREAM[0]}, or take FusionDense."
        )
    for section in ("DENSE_NET", "FUSION"):
        own, unset = flat(cfg.MODEL[section]), flat(usual.MODEL[section])
        for key, value in own.items():
            if value == unset[key]:
                continue
            if key.partition(".")[0] not in (*_OF_ALL_DENSE_NETS, *sections):
                raise InputError(
                    f"MODEL.{section}.{key} is {value}, but {name} does not read it. Leave it at {unset[key]}."
                )
            missing = _OF_TASKS.get(key, set()) - {*tasks} if section == "DENSE_NET" else set()
            if missing:
                raise InputError(
                    f"MODEL.DENSE_NET.{key} is {value}, but MODEL.DENSE_NET.TASKS is {tasks}. Leave it at "
                    f"{unset[key]}, or add {' and '.join(sorted(missing))}."
                )


def _check_more_than_one_task(cfg: CN, architecture: type[Architecture]) -> None:
    """InputError when tasks are to be weighed or kept apart and there is one, or another schedule weighs them, too."""
    model, heads = cfg.MODEL, len(architecture.pixel_tasks(cfg))
    instances = 1 if architecture.finds_instances else 0
    weighting = model.TASK_WEIGHTING.NAME
    more = "dense heads to MODEL.DENSE_HEADS.NAMES"
    if architecture.reads_dense_net:
        more = "one to MODEL.DENSE_NET.TASKS"
    # A height per building is weighted for itself, and looks at what its box looks at.
    for key, value, tasks in (
        ("TASK_ATTENTION", model.TASK_ATTENTION, instances + heads),
        ("TASK_WEIGHTING.NAME", weighting != "fixed", instances + heads + (instances and model.HEIGHT_ON)),
    ):
        if value and tasks < 2:
            raise InputError(
                f"MODEL.{key} is {get_key(model, key)}, but the network has a single task. Add {more}, or leave "
                f"MODEL.{key} at {get_key(defaults().MODEL, key)}."
            )
    if weighting != "fixed" and model.FUSION.BALANCE.WINDOW:
        raise InputError(
            f"MODEL.TASK_WEIGHTING.NAME is {weighting} and MODEL.FUSION.BALANCE.WINDOW {model.FUSION.BALANCE.WINDOW}: "
            "both change the weights of losses, each by what it sees of the other's. Leave one at its default."
        )


def _are_in_range(key: str, numbers) -> bool:
    return all(range_of(key).holds(number) for number in numbers)


def _is_rising_pair(numbers) -> bool:
    return len(numbers) == 2 and numbers[0] <= numbers[1]
