"""What every way of fusing costs beside early fusion: step, backbone and inference time, parameters, FLOPs, memory.

Networks with one stream and with two cannot share all weights, and other features would mean other proposals, samples
and detections: the luck of an initialisation. So every network computes its own features, and its heads then see those
of early fusion (`_see_features`), with the same weights in the heads and the same random draws: all rows have the
same regions to work on, and gradients run through each network's own backbone.
"""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.analysis.timing import (
    RGB_MEAN,
    RGB_STD,
    SAR_MEAN_DB,
    SAR_STD_DB,
    TASKS,
    Contestant,
    TimingSettings,
    costs,
    headline,
    paired_ratio,
    random_inputs,
    ratio_text,
    take_turns,
    tame,
    verdict,
)
from fusiondet.config_loading import check_fusion, check_names, check_values
from fusiondet.modeling.fusion import EXCHANGE_REGISTRY, JOIN_REGISTRY, MODALITIES

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkRow:
    """A network of the table.

    Attributes:
        overrides: config key -> value, on top of `EARLY`.
        limits: task -> what the upper end of the interval of its time ratio should not exceed.
    """

    title: str
    overrides: dict = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)


REFERENCE, CONTROL = "early fusion", "early fusion again"

EARLY = {
    "MODEL.META_ARCHITECTURE": "FusionRCNN",
    "MODEL.BACKBONE.NAME": "build_early_fusion_resnet_fpn_backbone",
    "MODEL.ROI_HEADS.NAME": "FusionROIHeads",
    "MODEL.MASK_ON": True,
    "MODEL.HEIGHT_ON": True,
    "MODEL.ROI_HEIGHT_HEAD.GEOMETRY": [],
    "MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR": False,
    "MODEL.DENSE_HEADS.NAMES": [],
    "MODEL.DENSE_HEADS.SHARED_STEPS": 0,
    "MODEL.DENSE_HEADS.HEIGHT.REFINE": False,
    "MODEL.DENSE_HEADS.HEIGHT.FROM_FOOTPRINT": False,
    "MODEL.TASK_ATTENTION": False,
    "MODEL.TASK_WEIGHTING.NAME": "fixed",
    "MODEL.FUSION.SHARE_WEIGHTS": False,
    "MODEL.FUSION.DISABLED": "",
    "MODEL.FUSION.JOIN": "SumJoin",
    **{
        f"MODEL.FUSION.SAR_RESNETS.{k}": 0
        for k in ("DEPTH", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "WIDTH_PER_GROUP")
    },
    **{f"MODEL.FUSION.EXCHANGE.{stage}": "" for stage in ("res2", "res3", "res4", "res5")},
    **{f"MODEL.FUSION.MODALITY_DROPOUT.{modality}": 0.0 for modality in MODALITIES},
    "INPUT.MODALITIES": list(MODALITIES),
}
INTERMEDIATE = {"MODEL.BACKBONE.NAME": "build_intermediate_fusion_resnet_fpn_backbone"}
TWO_STREAMS = {"step": 1.6, "backbone": 2.1}
# Attention at res4 and res5 of R-50, of width 256, was found to take 0.7 of the time of one stream, which is about 0.6
# of a step.
TWO_STREAMS_AND_ATTENTION = {"step": 2.0, "backbone": 2.8}

# Stages of an exchange, where they are not these: keys and queries at stride 8 are too many.
EXCHANGE_STAGES = ("res3", "res4", "res5")
OTHER_EXCHANGE_STAGES = {"CrossAttention": ("res4", "res5")}
EXCHANGE_LIMITS = {"CrossAttention": TWO_STREAMS_AND_ATTENTION}


def rows() -> Iterator[NetworkRow]:
    """All networks, the reference and its control first; every join and exchange that is registered."""
    yield NetworkRow(REFERENCE)
    yield NetworkRow(CONTROL)
    yield NetworkRow("RGB only", {"INPUT.MODALITIES": ["optical"]})
    for name, _ in JOIN_REGISTRY:
        yield NetworkRow(f"intermediate, {name}", {**INTERMEDIATE, "MODEL.FUSION.JOIN": name}, TWO_STREAMS)
    yield NetworkRow(
        "intermediate, shared encoder", {**INTERMEDIATE, "MODEL.FUSION.SHARE_WEIGHTS": True}, TWO_STREAMS
    )
    for name, _ in EXCHANGE_REGISTRY:
        stages = OTHER_EXCHANGE_STAGES.get(name, EXCHANGE_STAGES)
        yield NetworkRow(
            f"intermediate + {name}", _exchange(name, stages), EXCHANGE_LIMITS.get(name, TWO_STREAMS)
        )
    yield NetworkRow(
        "intermediate + CrossAttention 256",
        {**_exchange("CrossAttention", ("res4", "res5")), "MODEL.FUSION.CROSS_ATTENTION.DIM": 256},
        TWO_STREAMS_AND_ATTENTION,
    )
    yield NetworkRow(
        "late, features", {"MODEL.BACKBONE.NAME": "build_late_fusion_resnet_fpn_backbone"}, TWO_STREAMS
    )
    yield NetworkRow(
        "late, decisions",
        {
            "MODEL.META_ARCHITECTURE": "LateFusionRCNN",
            "MODEL.BACKBONE.NAME": "build_two_pyramids_resnet_fpn_backbone",
        },
        {"backbone": TWO_STREAMS["backbone"]},
    )
    geometry = ["gsd", "sun_elevation", "sun_azimuth", "incidence", "look_azimuth"]
    yield NetworkRow("early, head told the geometry", {"MODEL.ROI_HEIGHT_HEAD.GEOMETRY": geometry})
    yield NetworkRow(
        "early, modality dropout",
        {f"MODEL.FUSION.MODALITY_DROPOUT.{modality}": 0.25 for modality in MODALITIES},
    )


def _exchange(name: str, stages: tuple[str, ...]) -> dict:
    return {**INTERMEDIATE, **{f"MODEL.FUSION.EXCHANGE.{stage}": name for stage in stages}}


def benchmark_fusion(cfg: CfgNode, settings: TimingSettings) -> dict:
    """Compare every network of `rows` with early fusion.

    Args:
        cfg: of fusiondet; its widths, depth and frozen stages hold for all networks. Data keys are not needed.

    Returns:
        Plain data for JSON: "settings"; "networks" {title: parameters, flops, step_flops, step_s, backbone_s,
        inference_s, step_bytes, inference_bytes}; "rows" with the ratios of all these to early fusion's, those of times
        as {median, low, high}, and "verdicts" {task: met, MISSED or not shown} where there is an aim.
    """
    s, table = settings, list(rows())
    contestants = _contestants(cfg, table, s)
    seconds = take_turns(contestants, s.rounds, s.warmup, s.seed, TASKS)
    networks = costs(contestants, seconds)
    for title, c in contestants.items():
        networks[title] |= _costs_of_step(c, s.seed)
    return {
        "settings": s.describe(cfg),
        "networks": networks,
        "rows": [_ratios(row, networks, seconds) for row in table],
    }


def format_table(result: dict) -> str:
    """The rows of `benchmark_fusion` as text."""
    heads = "".join(f"{task + ' time':<24}" for task in TASKS)
    lines = [
        headline(result["settings"]),
        "All as a ratio to early fusion. FLOPs: multiply-adds of one inference of one image (fvcore). Memory: the most",
        "that a training step holds, the network and its momenta included (on the CPU as torch.profiler sees it).",
        "aim: met if the upper end of the interval is within it; not shown: too noisy, take more rounds",
        f"{'':<34}{'params':>7}{'FLOPs':>7}{'memory':>8}   {heads}aim",
    ]
    for row in result["rows"]:
        costs = f"{row['parameters']:>7.3f}{row['flops']:>7.3f}{row['step_bytes']:>8.3f}"
        times = "".join(f"{ratio_text(row[task]):<24}" for task in TASKS)
        aims = ", ".join(f"{t} <= {row['limits'][t]:.1f}: {v}" for t, v in row["verdicts"].items())
        lines.append(f"{row['title']:<34}{costs}   {times}{aims}".rstrip())
    for title, n in result["networks"].items():
        lines.append(
            f"{title:<34}{n['parameters'] / 1e6:.2f} M parameters, {n['flops'] / 1e9:.1f} G multiply-adds, step "
            f"{n['step_s']:.3f} s and {n['step_bytes'] / 1e9:.2f} GB, backbone {n['backbone_s']:.3f} s, inference "
            f"{n['inference_s']:.3f} s and {n['inference_bytes'] / 1e9:.2f} GB"
        )
    return "\n".join(lines)


def _contestants(cfg: CfgNode, table: list[NetworkRow], s: TimingSettings) -> dict[str, Contestant]:
    inputs = random_inputs(s.batch, s.size_px, 3 + s.sar_bands, s.buildings, s.seed)
    contestants: dict[str, Contestant] = {}
    features = None
    for row in table:
        torch.manual_seed(s.seed)
        own_cfg = row_config(cfg, row, s)
        model = build_model(own_cfg)
        tame(model)
        if contestants:
            _share_heads(contestants[REFERENCE].model, model)
        own_inputs = [{**x, "image": x["image"][: len(own_cfg.MODEL.PIXEL_MEAN)]} for x in inputs]
        if features is None:
            features = {n: _features(model, own_inputs[:n]) for n in {1, s.batch}}
        _see_features(model, features)
        contestants[row.title] = Contestant(model, own_inputs, s.device, s.precision)
    return contestants


def row_config(cfg: CfgNode, row: NetworkRow, s: TimingSettings) -> CfgNode:
    """`cfg` with the overrides of `row`, and the bands of the random images."""
    cfg = cfg.clone()
    cfg.defrost()
    sar_bands = s.sar_bands if "sar" in {**EARLY, **row.overrides}["INPUT.MODALITIES"] else 0
    cfg.MODEL.DEVICE = s.device
    cfg.MODEL.FUSION.OPTICAL_CHANNELS = len(RGB_MEAN)
    cfg.MODEL.PIXEL_MEAN = RGB_MEAN + [SAR_MEAN_DB] * sar_bands
    cfg.MODEL.PIXEL_STD = RGB_STD + [SAR_STD_DB] * sar_bands
    cfg.TEST.DETECTIONS_PER_IMAGE = s.buildings
    cfg.merge_from_list([word for item in {**EARLY, **row.overrides}.items() for word in item])
    check_names(cfg)
    check_values(cfg)
    check_fusion(cfg)
    return cfg


def _share_heads(source: nn.Module, target: nn.Module) -> None:
    """The weights of all that is not a backbone; in a network with a detector per modality, in each of them."""
    theirs = source.state_dict()
    for name, tensor in target.state_dict().items():
        given = theirs.get(re.sub(rf"\.({'|'.join(MODALITIES)})(?=\.)", "", name))
        if not name.startswith("backbone.") and given is not None and given.shape == tensor.shape:
            tensor.copy_(given)


def _features(model: nn.Module, inputs: list[dict]) -> dict[str, Tensor]:
    with torch.no_grad():
        return model.eval().backbone(model.preprocess_image(inputs).tensor)


class _Instead(torch.autograd.Function):
    """The value of `given`; the gradient goes to `own`."""

    @staticmethod
    def forward(ctx, own: Tensor, given: Tensor) -> Tensor:
        return given.to(own.dtype, copy=True)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None


def _see_features(model: nn.Module, features: dict[int, dict[str, Tensor]]) -> None:
    """From now on the backbone computes its own features and returns `features` of as many images, level by level."""

    def instead(own: Tensor | dict, given: Tensor | dict):
        if isinstance(own, Tensor):
            return _Instead.apply(own, given)
        # A backbone with a pyramid per modality has levels below these names.
        return {name: instead(value, given.get(name, given)) for name, value in own.items()}

    def hook(module, arguments, own):
        return instead(own, features[len(arguments[0])])

    model.backbone.register_forward_hook(hook)


def _costs_of_step(c: Contestant, seed: int) -> dict:
    return {
        "step_flops": c.step_flops(seed),
        **{f"{task}_bytes": c.peak_bytes(task, seed) for task in ("step", "inference")},
    }


def _ratios(row: NetworkRow, networks: dict, seconds: dict) -> dict:
    ours, theirs = networks[row.title], networks[REFERENCE]
    names = ("parameters", "flops", "step_flops", "step_bytes", "inference_bytes")
    times = {task: paired_ratio(of[row.title], of[REFERENCE]) for task, of in seconds.items()}
    return {
        "title": row.title,
        **{name: ours[name] / theirs[name] for name in names},
        **{task: dataclasses.asdict(ratio) for task, ratio in times.items()},
        "limits": row.limits,
        "verdicts": {task: verdict(times[task], limit) for task, limit in row.limits.items()},
    }
