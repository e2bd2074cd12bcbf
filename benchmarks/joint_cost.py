"""What one network for instances and dense maps costs, beside a network for each, run one after the other.

All networks have the same weights wherever they have the same tensor, so that they propose, sample and detect the same
regions: the difference is what is computed twice, and nothing else.
"""

import dataclasses
from dataclasses import dataclass

import fusiondet.compat  # noqa: F401  (before detectron2)
from benchmarks.fusion_cost import NetworkRow, row_config
from fusiondet.analysis.timing import (
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
from fusiondet.config_text import flat

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

TASKS = ("inference", "step")
# What the config says of these holds for the networks with dense heads.
KEPT = (
    "MODEL.DENSE_HEADS.SHARED_STEPS", "MODEL.DENSE_HEADS.HEIGHT.REFINE", "MODEL.DENSE_HEADS.HEIGHT.FROM_FOOTPRINT",
    "MODEL.TASK_ATTENTION",
)  # fmt: skip
PRIOR = "MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR"


def rows(cfg: CfgNode) -> list[NetworkRow]:
    """The networks, as overrides of `cfg`; the first has all weights that the others have."""
    said = flat(cfg)
    heads = {key: said[key] for key in KEPT}
    heads["MODEL.DENSE_HEADS.NAMES"] = list(cfg.MODEL.DENSE_HEADS.NAMES) or ["Footprint", "DenseHeight"]
    alone = {"MODEL.META_ARCHITECTURE": "FusionDense", "MODEL.MASK_ON": False, "MODEL.HEIGHT_ON": False}
    return [
        NetworkRow("joint", {**heads, PRIOR: said[PRIOR]}),
        NetworkRow("detector"),
        NetworkRow("detector again"),
        NetworkRow("dense", {**heads, **alone}),
    ]


@dataclass(frozen=True)
class JointComparison:
    """One row of the table: `network` against all of `others`, run one after the other; titles of `rows`.

    Attributes:
        limit: what the upper end of the interval of the inference time's ratio should not exceed; None: no aim.
    """

    title: str
    network: str
    others: tuple[str, ...]
    limit: float | None = None


COMPARISONS = (
    JointComparison("A/A control", "detector again", ("detector",)),
    JointComparison("joint / detector, then dense", "joint", ("detector", "dense"), limit=0.65),
    JointComparison("joint / detector alone", "joint", ("detector",)),
)


def benchmark_joint(cfg: CfgNode, settings: TimingSettings) -> dict:
    """Compare a detector with dense heads with the detector and the dense heads apart, each on its own backbone.

    Args:
        cfg: of fusiondet; its widths and depth hold for all networks. Without dense heads it is given Footprint and
            DenseHeight. Data keys are not needed.

    Returns:
        Plain data for JSON: "settings"; "networks" {title: parameters, flops, inference_s, step_s}; "rows" of
        COMPARISONS with the ratios of all these, those of times as {median, low, high}, and "verdict" (met, MISSED,
        not shown; "" without an aim).
    """
    s = settings
    contestants = _contestants(cfg, s)
    seconds = take_turns(contestants, s.rounds, s.warmup, s.seed, TASKS)
    networks = costs(contestants, seconds)
    return {
        "settings": s.describe(cfg),
        "networks": networks,
        "rows": [_ratios(comparison, networks, seconds) for comparison in COMPARISONS],
    }


def format_table(result: dict) -> str:
    """The rows of `benchmark_joint` as text."""
    heads = "".join(f"{task + ' time':<24}" for task in TASKS)
    lines = [
        headline(result["settings"]),
        "FLOPs: multiply-adds of one inference of one image (fvcore). Times: median of paired ratios, 95 % interval",
        "aim: met if the upper end of the interval is within it; not shown: too noisy, take more rounds",
        f"{'':<30}{'params':>7}{'FLOPs':>7}   {heads}aim",
    ]
    for row in result["rows"]:
        times = "".join(f"{ratio_text(row[task]):<24}" for task in TASKS)
        aim = f"inference <= {row['limit']:.2f}: {row['verdict']}" if row["verdict"] else ""
        lines.append(
            f"{row['title']:<30}{row['parameters']:>7.3f}{row['flops']:>7.3f}   {times}{aim}".rstrip()
        )
    for name, n in result["networks"].items():
        lines.append(
            f"{name:<30}{n['parameters'] / 1e6:.2f} M parameters, {n['flops'] / 1e9:.1f} G multiply-adds, inference "
            f"{n['inference_s']:.3f} s, step {n['step_s']:.3f} s"
        )
    return "\n".join(lines)


def _contestants(cfg: CfgNode, s: TimingSettings) -> dict[str, Contestant]:
    inputs = random_inputs(s.batch, s.size_px, 3 + s.sar_bands, s.buildings, s.seed)
    inputs = [{**x, **_dense_labels(x["instances"])} for x in inputs]
    contestants: dict[str, Contestant] = {}
    for row in rows(cfg):
        torch.manual_seed(s.seed)
        model = build_model(row_config(cfg, row, s))
        if contestants:
            _copy_weights(contestants["joint"].model, model)
        else:
            tame(model)
        contestants[row.title] = Contestant(model, inputs, s.device, s.precision)
    return contestants


def _dense_labels(instances) -> dict[str, torch.Tensor]:
    """Labels per pixel of random rectangles; where two overlap, the higher one."""
    masks = instances.gt_masks.tensor
    heights_m = masks * instances.gt_heights[:, None, None]
    return {"building_height_m": heights_m.amax(0), "footprint": masks.any(0).float()}


def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    theirs = source.state_dict()
    for name, tensor in target.state_dict().items():
        # A height head that is shown a prior is wider.
        if tensor.shape == theirs[name].shape:
            tensor.copy_(theirs[name])


def _ratios(comparison: JointComparison, networks: dict, seconds: dict) -> dict:
    ours, others = comparison.network, comparison.others
    sizes = {k: networks[ours][k] / sum(networks[o][k] for o in others) for k in ("parameters", "flops")}
    times = {
        task: paired_ratio(of[ours], np.sum([of[o] for o in others], axis=0)) for task, of in seconds.items()
    }
    return {
        **dataclasses.asdict(comparison),
        **sizes,
        **{task: dataclasses.asdict(ratio) for task, ratio in times.items()},
        "verdict": "" if comparison.limit is None else verdict(times["inference"], comparison.limit),
    }
