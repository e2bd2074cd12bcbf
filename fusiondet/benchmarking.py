"""What fusion and heights cost, as ratios: by operations, by parameters, and by the time of a training step.

Times of one machine say little about another, ratios taken side by side do. All networks of a comparison take turns in
one run, in an order that rotates; each round gives one ratio per pair; the median of these is reported with a 95 %
bootstrap interval. The first row compares Detectron2's own network with a second copy of itself: how far its interval
is from 1 is what the machine's noise is worth.

The networks share their weights (extra bands silent, learning rate 0) and the random draws of a round, so that all of
them propose, sample and detect the same regions throughout: the difference is the network's, not the luck of an
initialisation.
"""

import contextlib
import dataclasses
import logging
import platform
import time
import warnings
from dataclasses import dataclass

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.cli import progress
from fusiondet.errors import InputError, unknown_name

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}

RGB_MEAN, RGB_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SAR_MEAN_DB, SAR_STD_DB = -12.0, 6.0


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


@dataclass
class Ratio:
    """Median of paired ratios, and its 95 % interval."""

    median: float
    low: float
    high: float


def benchmark_training(
    cfg: CfgNode,
    *,
    size_px: int = 512,
    batch: int = 2,
    rounds: int = 20,
    warmup: int = 3,
    sar_bands: int = 1,
    buildings: int = 40,
    device: str = "cpu",
    precision: str = "float32",
    seed: int = 0,
) -> dict:
    """Compare training steps of Detectron2's 3-channel Mask R-CNN, early fusion, and early fusion with heights.

    Args:
        cfg: of fusiondet; its widths, depth and frozen stages hold for all networks. Data keys are not needed.
        size_px, batch: random images of that side, that many per step.
        buildings: random boxes on each; operations are counted for one image with that many detections at most.
        rounds: timed steps of each network, after `warmup` others.
        sar_bands: bands beside red, green and blue.
        precision: one of PRECISIONS; float16 trains with a loss scaler, on CUDA only.

    Returns:
        Plain data for JSON: "settings", "networks" {name: parameters, flops, step_flops, step_s}, "rows" of
        COMPARISONS with their ratios.

    Raises:
        InputError: no such device or precision, sizes or counts below 1.
    """
    _check(size_px, batch, rounds, buildings, sar_bands, device, precision)
    settings = {
        "size_px": size_px,
        "batch": batch,
        "rounds": rounds,
        "sar_bands": sar_bands,
        "buildings": buildings,
        "precision": precision,
        "depth": cfg.MODEL.RESNETS.DEPTH,
        "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        "seed": seed,
        **_machine(device),
    }
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.DETECTIONS_PER_IMAGE = buildings
    inputs = random_inputs(batch, size_px, 3 + sar_bands, buildings, seed)
    contestants = {}
    for name, model in _networks(cfg, sar_bands, device, seed).items():
        own_inputs = inputs if "early fusion" in name else [{**x, "image": x["image"][:3]} for x in inputs]
        contestants[name] = _Contestant(model, own_inputs, device, precision)
    seconds = _take_turns(contestants, rounds, warmup, seed)
    networks = {
        name: {
            "parameters": sum(p.numel() for p in c.model.parameters()),
            "flops": count_flops(c.model, c.inputs[:1]),
            "step_flops": c.step_flops(seed),
            "step_s": float(np.median(seconds[name])),
        }
        for name, c in contestants.items()
    }
    return {
        "settings": settings,
        "networks": networks,
        "rows": [_row(c, networks, seconds) for c in COMPARISONS],
    }


def paired_ratio(ours_s, theirs_s, seed: int = 0, draws: int = 4000) -> Ratio:
    """Median of the round-by-round ratios of two equally long series, with its bootstrap interval."""
    ratios = np.asarray(ours_s, float) / np.asarray(theirs_s, float)
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(ratios, (draws, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def count_flops(model: nn.Module, inputs: list[dict]) -> float:
    """Multiply-adds of one inference of `inputs`, as fvcore counts them (RoIAlign and NMS are not counted)."""
    from detectron2.utils.analysis import FlopCountAnalysis

    training = model.training
    noisy = logging.getLogger("fvcore.nn.jit_analysis")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer: constants, deprecations
            return float(FlopCountAnalysis(model.eval(), inputs).total())
    finally:
        noisy.setLevel(level)
        model.train(training)


def format_table(result: dict) -> str:
    """The rows of `benchmark_training` as text."""
    s = result["settings"]
    lines = [
        f"{s['batch']} images of {s['size_px']} px, R-{s['depth']}, {s['precision']}, {s['device_name']}, "
        f"{s['rounds']} rounds; torch {s['torch']}, Detectron2 {s['detectron2']}",
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


def random_inputs(batch: int, size_px: int, channels: int, buildings: int, seed: int) -> list[dict]:
    """Training inputs of `FusionRCNN` with random pixels and `buildings` random rectangles with heights each."""
    rng = np.random.default_rng(seed)
    inputs = []
    for _ in range(batch):
        optical = rng.integers(0, 256, (3, size_px, size_px))
        sar = rng.normal(SAR_MEAN_DB, SAR_STD_DB, (channels - 3, size_px, size_px))
        side = rng.uniform(0.02, 0.12, (buildings, 2)) * size_px
        corner = rng.uniform(0, 1, (buildings, 2)) * (size_px - side)
        boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
        inputs.append(
            {
                "image": torch.from_numpy(np.concatenate([optical, sar]).astype(np.float32)),
                "height": size_px,
                "width": size_px,
                "gsd_m": 0.5,
                "instances": _rectangles(boxes, rng.uniform(3, 30, buildings), size_px),
            }
        )
    return inputs


def _rectangles(box_xyxy: np.ndarray, heights_m: np.ndarray, size_px: int) -> Instances:
    centres = np.arange(size_px) + 0.5
    x0, y0, x1, y1 = (box_xyxy[:, [i]] for i in range(4))
    inside_x, inside_y = (centres >= x0) & (centres < x1), (centres >= y0) & (centres < y1)
    instances = Instances((size_px, size_px))
    instances.gt_boxes = Boxes(torch.from_numpy(box_xyxy))
    instances.gt_classes = torch.zeros(len(box_xyxy), dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.from_numpy(inside_y[:, :, None] & inside_x[:, None, :]))
    instances.gt_heights = torch.from_numpy(heights_m.astype(np.float32))
    return instances


def _networks(cfg: CfgNode, sar_bands: int, device: str, seed: int) -> dict[str, nn.Module]:
    """The contestants in training mode, with the same weights wherever they have the same tensor."""
    torch.manual_seed(seed)
    baseline = build_model(_plain_config(cfg, device))
    _tame(baseline)
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


def _tame(model: nn.Module) -> None:
    """Shrink what the residual branches add: untrained, with frozen norms, features overflow 16-bit floats."""
    for name, tensor in model.state_dict().items():
        if name.startswith("backbone.bottom_up.res") and name.endswith(
            ("conv2.norm.weight", "conv3.norm.weight")
        ):
            tensor.mul_(0.2)


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


class _Contestant:
    """A network with its optimizer, for one training step at a time; with learning rate 0 it stays what it is."""

    def __init__(self, model: nn.Module, inputs: list[dict], device: str, precision: str):
        self.model, self.inputs, self.device = model, inputs, torch.device(device)
        self.optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self.dtype = PRECISIONS[precision]

    def step_seconds(self, seed: int) -> float:
        """Seconds of one forward pass, backward pass and update, the device's queue included."""
        torch.manual_seed(seed)
        self._wait()
        start = time.perf_counter()
        with self._autocast():
            loss = sum(self.model(self.inputs).values())
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._wait()
        return time.perf_counter() - start

    def step_flops(self, seed: int) -> float:
        """Multiply-adds of the convolutions and products in one forward and backward pass."""
        torch.manual_seed(seed)
        with EventStorage(), FlopCounterMode(display=False) as counter, self._autocast():
            sum(self.model(self.inputs).values()).backward()
        self.optimizer.zero_grad()
        return counter.get_total_flops() / 2

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=self.dtype) if self.dtype else contextlib.nullcontext()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _take_turns(
    contestants: dict[str, _Contestant], rounds: int, warmup: int, seed: int
) -> dict[str, list[float]]:
    """Seconds of every timed step: all take a step in each round, each round begins with another one."""
    names = list(contestants)
    seconds = {name: [] for name in names}
    with EventStorage():
        for i in progress(range(warmup + rounds), label="benchmark", unit="round"):
            for k in range(len(names)):
                name = names[(i + k) % len(names)]
                elapsed = contestants[name].step_seconds(seed + i)
                if i >= warmup:
                    seconds[name].append(elapsed)
    return seconds


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


def _check(size_px, batch, rounds, buildings, sar_bands, device, precision) -> None:
    for name, value, low in (
        ("size", size_px, 32),
        ("batch", batch, 1),
        ("rounds", rounds, 1),
        ("buildings", buildings, 1),
        ("SAR bands", sar_bands, 0),
    ):
        if value < low:
            raise InputError(f"benchmark: {name} is {value}, expected at least {low}.")
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise unknown_name("device", device, ("cpu", "cuda"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("benchmark: device cuda asked for, but torch sees no GPU. Use --device cpu.")
    if precision == "float16" and device == "cpu":
        raise InputError("benchmark: float16 needs a GPU; on the CPU use bfloat16 or float32.")


def _machine(device: str) -> dict:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU ({platform.machine()})"
    return {
        "device": device,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "detectron2": detectron2.__version__,
    }
