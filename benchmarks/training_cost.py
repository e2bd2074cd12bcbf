"""What early fusion and heights add to a training step of Detectron2's own Mask R-CNN.

The networks share their weights (extra bands silent, learning rate 0) and the random draws of a round, so that all of
them propose, sample and detect the same regions throughout: the difference is the network's, not the luck of an
initialisation.
"""

import dataclasses
from dataclasses import dataclass

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.analysis.timing import (
    RGB_MEAN,
    RGB_STD,
    SAR_MEAN_DB,
    SAR_STD_DB,
    Contestant,
    TimingSettings,
    costs,
    headline,
    paired_ratio,
    random_inputs,
    take_turns,
    tame,
)

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn


@dataclass(frozen=True)
class Comparison:
    """One row of the table: `network` against `baseline`, both names of contestants.

    Attributes:
        step_limit, flops_limit: what the upper end of the step time's interval and the ratio of operations should not
            exceed; None without such an aim.
    """

    title: str
    network: str
    baseline: str
    step_limit: float | None = None
    flops_limit: float | None = None


COMPARISONS = (
    Comparison("A/A control", "detectron2 again", "detectron2"),
    Comparison("early fusion / 3 channels", "early fusion", "detectron2", step_limit=1.05, flops_limit=1.01),
    Comparison("height head / without", "early fusion + height", "early fusion", step_limit=1.10),
)


def benchmark_training(cfg: CfgNode, settings: TimingSettings) -> dict:
    """Compare training steps of Detectron2's 3-channel Mask R-CNN, early fusion, and early fusion with heights.

    Args:
        cfg: of fusiondet; its widths, depth and frozen stages hold for all networks. Data keys are not needed.

    Returns:
        Plain data for JSON: "settings", "networks" {name: parameters, flops, step_flops, step_s}, "rows" of
        COMPARISONS with their ratios.
    """
    s = settings
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.DETECTIONS_PER_IMAGE = s.buildings
    inputs = random_inputs(s.batch, s.size_px, 3 + s.sar_bands, s.buildings, s.seed)
    contestants = {}
    for name, model in _networks(cfg, s.sar_bands, s.device, s.seed).items():
        own_inputs = inputs if "early fusion" in name else [{**x, "image": x["image"][:3]} for x in inputs]
        contestants[name] = Contestant(model, own_inputs, s.device, s.precision)
    seconds = take_turns(contestants, s.rounds, s.warmup, s.seed)
    networks = costs(contestants, seconds)
    for name, c in contestants.items():
        networks[name]["step_flops"] = c.step_flops(s.seed)
    return {
        "settings": s.describe(cfg),
        "networks": networks,
        "rows": [_row(c, networks, seconds["step"]) for c in COMPARISONS],
    }


def format_table(result: dict) -> str:
    """The rows of `benchmark_training` as text."""
    lines = [
        headline(result["settings"]),
        "FLOPs: multiply-adds of one inference of one image (fvcore), and of one training step (torch)",
        "aim: met if the upper end of the interval is within it; not shown: too noisy, take more steps",
        f"{'':<28}{'FLOPs':>8}{'of a step':>11}{'parameters':>12}{'step time':>11}   95 % interval    aim",
    ]
    for row in result["rows"]:
        step = row["step"]
        aim = ""
        if row["step_limit"] is not None:
            flops = f", FLOPs <= {row['flops_limit']:.2f}" if row["flops_limit"] else ""
            verdict = "met" if row["met"] else "MISSED" if step["low"] > row["step_limit"] else "not shown"
            aim = f"step <= {row['step_limit']:.2f}{flops}: {verdict}"
        lines.append(
            f"{row['title']:<28}{row['flops']:>8.4f}{row['step_flops']:>11.4f}{row['parameters']:>12.4f}{step['median']:>11.3f}"
            f"   {step['low']:.3f} .. {step['high']:.3f}   {aim}".rstrip()
        )
    for name, n in result["networks"].items():
        flops = f"{n['flops'] / 1e9:.1f} G, step {n['step_flops'] / 1e9:.1f} G multiply-adds"
        costs = f"{flops}, {n['parameters'] / 1e6:.2f} M parameters"
        lines.append(f"{name:<28}{costs}, {n['step_s']:.3f} s")
    return "\n".join(lines)


def _networks(cfg: CfgNode, sar_bands: int, device: str, seed: int) -> dict[str, nn.Module]:
    """The contestants in training mode, with the same weights wherever they have the same tensor."""
    torch.manual_seed(seed)
    baseline = build_model(_plain_config(cfg, device))
    tame(baseline)
    networks = {"detectron2": baseline, "detectron2 again": build_model(_plain_config(cfg, device))}
    networks["early fusion"] = build_model(_fusion_config(cfg, sar_bands, device, height=False))
    networks["early fusion + height"] = build_model(_fusion_config(cfg, sar_bands, device, height=True))
    for network in networks.values():
        _copy_weights(baseline, network)
    return {name: network.train() for name, network in networks.items()}


def _plain_config(cfg: CfgNode, device: str) -> CfgNode:
    """Detectron2's own Mask R-CNN of the same sizes: its classes, three channels, no heights."""
    return _derived(cfg, device, "GeneralizedRCNN", "build_resnet_fpn_backbone", "StandardROIHeads", 0, False)


def _fusion_config(cfg: CfgNode, sar_bands: int, device: str, height: bool) -> CfgNode:
    backbone = "build_early_fusion_resnet_fpn_backbone"
    return _derived(cfg, device, "FusionRCNN", backbone, "FusionROIHeads", sar_bands, height)


def _derived(
    cfg, device: str, architecture: str, backbone: str, heads: str, sar_bands: int, height: bool
) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = (
        architecture,
        backbone,
        heads,
    )
    cfg.MODEL.HEIGHT_ON = height
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.FUSION.OPTICAL_CHANNELS = 3
    cfg.MODEL.PIXEL_MEAN = RGB_MEAN + [SAR_MEAN_DB] * sar_bands
    cfg.MODEL.PIXEL_STD = RGB_STD + [SAR_STD_DB] * sar_bands
    return cfg


def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    theirs = {name.replace("bottom_up.", "bottom_up.resnet."): t for name, t in source.state_dict().items()}
    theirs.update(source.state_dict())
    for name, tensor in target.state_dict().items():
        if name not in theirs:
            continue
        if tensor.shape == theirs[name].shape:
            tensor.copy_(theirs[name])
        elif name.endswith("stem.conv1.weight"):
            tensor.zero_()
            tensor[:, :3] = theirs[name]


def _row(c: Comparison, networks: dict, seconds: dict) -> dict:
    step = paired_ratio(seconds[c.network], seconds[c.baseline])
    ours, theirs = networks[c.network], networks[c.baseline]
    row = {
        **dataclasses.asdict(c),
        "flops": ours["flops"] / theirs["flops"],
        "step_flops": ours["step_flops"] / theirs["step_flops"],
        "parameters": ours["parameters"] / theirs["parameters"],
        "step": dataclasses.asdict(step),
        "met": None,
    }
    if c.step_limit is not None:
        row["met"] = step.high <= c.step_limit and (c.flops_limit is None or row["flops"] <= c.flops_limit)
    return row
