"""Networks that take turns in one run: their times, operations and memory on the same inputs.

All contestants of a comparison run in every round, in an order that rotates; each round gives one ratio per pair, and
the median of these is reported with a 95 % bootstrap interval. Comparing a network with a second copy of itself shows
what the machine's noise is worth: how far that interval is from 1.
"""

import contextlib
import dataclasses
import logging
import math
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.cli import progress
from fusiondet.errors import InputError, unknown_name

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
TASKS = ("step", "backbone", "inference")

RGB_MEAN, RGB_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SAR_MEAN_DB, SAR_STD_DB = -12.0, 6.0
SENSOR = {
    "sun_azimuth_deg": 150.0,
    "sun_elevation_deg": 45.0,
    "sar_look_azimuth_deg": 90.0,
    "sar_incidence_deg": 40.0,
}


@dataclass
class Ratio:
    """Median of paired ratios, and its 95 % interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class TimingSettings:
    """What all contestants of a comparison have in common.

    Attributes:
        size_px, batch: random images of that side, that many at a time.
        buildings: random boxes on each; operations are counted for one image with that many detections at most.
        rounds: timed runs of each network, after `warmup` others.
        sar_bands: bands beside red, green and blue.
        device: "cpu", "cuda" or "cuda:N".
        precision: one of PRECISIONS; float16 trains with a loss scaler, on CUDA only.

    Raises:
        InputError: no such device or precision, sizes or counts too small.
    """

    size_px: int = 512
    batch: int = 2
    rounds: int = 20
    warmup: int = 3
    sar_bands: int = 1
    buildings: int = 40
    device: str = "cpu"
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self):
        lowest = {"size_px": 32, "batch": 1, "rounds": 1, "warmup": 0, "buildings": 1, "sar_bands": 0}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise InputError(f"benchmark: {name} is {getattr(self, name)}, expected at least {low}.")
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.device.split(":")[0] not in ("cpu", "cuda"):
            raise unknown_name("device", self.device, ("cpu", "cuda"))
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError('benchmark: device cuda asked for, but torch sees no GPU. Pass `device="cpu"`.')
        if self.precision == "float16" and self.device == "cpu":
            raise InputError("benchmark: float16 needs a GPU; on the CPU use bfloat16 or float32.")

    def describe(self, cfg: CfgNode) -> dict:
        """These settings with those of `cfg` and of the machine that matter, as plain data."""
        return {
            **dataclasses.asdict(self),
            "depth": cfg.MODEL.RESNETS.DEPTH,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "device_name": processor(self.device),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "detectron2": detectron2.__version__,
        }


class Contestant:
    """A network with its inputs and an optimizer; with learning rate 0 it stays what it is, however often it steps.

    Three tasks can be timed:
        step: forward pass, backward pass and update.
        backbone: from the normalised batch to the feature maps, in eval mode without gradients.
        inference: from images to instances with pasted masks.
    """

    def __init__(self, model: nn.Module, inputs: list[dict], device: str = "cpu", precision: str = "float32"):
        """Args:
        model: a Detectron2 network on `device`.
        inputs: dicts of `FusionRCNN` with "instances"; one batch, used for every task.
        precision: one of PRECISIONS.
        """
        self.model, self.inputs, self.device = model, inputs, torch.device(device)
        self.optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self.dtype = PRECISIONS[precision]

    def seconds(self, task: str, seed: int) -> float:
        """Seconds of one run of `task`, one of TASKS, the device's queue included."""
        run = self._prepared(task)
        torch.manual_seed(seed)
        self._wait()
        start = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - start

    def peak_bytes(self, task: str, seed: int) -> int:
        """Most bytes that one run of `task` needs: what the network holds, and what torch allocates on top.

        The network holds its parameters, buffers and momenta; gradients count as part of the step. On the GPU the
        rest is torch.cuda.max_memory_allocated over the run; on the CPU the highest sum of what torch.profiler reports
        as allocated and freed, which is the same quantity. Memory inside libraries (oneDNN, cuDNN outside torch's
        allocator) is in neither.
        """
        self.optimizer.zero_grad()
        run = self._prepared(task)
        torch.manual_seed(seed)
        peak = _peak_bytes_on_gpu if self.device.type == "cuda" else _peak_bytes_on_cpu
        with EventStorage():
            extra = peak(run, self.device)
        self.optimizer.zero_grad()
        return self._held_bytes() + extra

    def step_flops(self, seed: int) -> float:
        """Multiply-adds of the convolutions and products in one forward and backward pass."""
        self.model.train()
        torch.manual_seed(seed)
        with EventStorage(), FlopCounterMode(display=False) as counter, self._autocast():
            sum(self.model(self.inputs).values()).backward()
        self.optimizer.zero_grad()
        return counter.get_total_flops() / 2

    @property
    def parameters(self) -> int:
        """Number of parameters, frozen ones too."""
        return sum(p.numel() for p in self.model.parameters())

    def _prepared(self, task: str) -> Callable[[], None]:
        """The work of `task`, with everything done that is not part of it."""
        if task not in TASKS:
            raise unknown_name("task", task, TASKS)
        self.model.train(task == "step")
        if task == "step":
            return self._step
        inputs = [{k: v for k, v in x.items() if k != "instances"} for x in self.inputs]
        work, given = self.model, inputs
        if task == "backbone":
            work, given = self.model.backbone, self.model.preprocess_image(inputs).tensor

        def run():
            with torch.no_grad(), self._autocast():
                work(given)

        return run

    def _step(self) -> None:
        with self._autocast():
            loss = sum(self.model(self.inputs).values())
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _held_bytes(self) -> int:
        momenta = (s.get("momentum_buffer") for s in self.optimizer.state.values())
        tensors = (*self.model.parameters(), *self.model.buffers(), *momenta)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=self.dtype) if self.dtype else contextlib.nullcontext()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def take_turns(
    contestants: dict[str, Contestant],
    rounds: int,
    warmup: int,
    seed: int,
    tasks: Sequence[str] = ("step",),
) -> dict[str, dict[str, list[float]]]:
    """Time every contestant in every round, each round beginning with another one.

    Args:
        rounds: timed ones, after `warmup` others.
        seed: of the random draws of a run; all contestants of a round draw the same.
        tasks: of TASKS.

    Returns:
        task -> contestant -> seconds of each round.
    """
    names = list(contestants)
    seconds = {task: {name: [] for name in names} for task in tasks}
    with EventStorage():
        for i in progress(range(warmup + rounds), label="benchmark", unit="round"):
            for task in tasks:
                for k in range(len(names)):
                    name = names[(i + k) % len(names)]
                    elapsed = contestants[name].seconds(task, seed + i)
                    if i >= warmup:
                        seconds[task][name].append(elapsed)
    return seconds


def paired_ratio(ours_s, theirs_s, seed: int = 0, draws: int = 4000) -> Ratio:
    """Median of the round-by-round ratios of two equally long series, with its bootstrap interval."""
    ratios = np.asarray(ours_s, float) / np.asarray(theirs_s, float)
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(ratios, (draws, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def costs(contestants: dict[str, Contestant], seconds: dict) -> dict[str, dict]:
    """Title -> parameters, flops (multiply-adds of one inference of one image) and the median <task>_s of each task.

    Args:
        seconds: of `take_turns`.
    """
    return {
        title: {
            "parameters": c.parameters,
            "flops": count_flops(c.model, c.inputs[:1]),
            **{f"{task}_s": float(np.median(of[title])) for task, of in seconds.items()},
        }
        for title, c in contestants.items()
    }


def ratio_text(ratio: dict) -> str:
    """A `Ratio` as a dict, for a table."""
    return f"{ratio['median']:.3f} ({ratio['low']:.3f} .. {ratio['high']:.3f})"


def processor(device: str) -> str:
    """What computes: the name of the GPU, or the kind of CPU."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU ({platform.machine()})"


def headline(settings: dict) -> str:
    """The first line of a table, from `TimingSettings.describe`."""
    s = settings
    return (
        f"{s['batch']} images of {s['size_px']} px, R-{s['depth']}, {s['precision']}, {s['device_name']}, "
        f"{s['rounds']} rounds; torch {s['torch']}, Detectron2 {s['detectron2']}"
    )


def tame(model: nn.Module) -> None:
    """Shrink what the residual branches add: untrained, with frozen norms, features overflow 16-bit floats."""
    for name, tensor in model.state_dict().items():
        if re.search(r"\.res[2-5]\..*conv[23]\.norm\.weight$", name):
            tensor.mul_(0.2)


def verdict(ratio: Ratio, limit: float) -> str:
    """Whether `ratio` is at most `limit`: "met", "MISSED", or "not shown" when its interval holds the limit."""
    return "met" if ratio.high <= limit else "MISSED" if ratio.low > limit else "not shown"


def count_flops(model: nn.Module, inputs: list[dict]) -> float:
    """Multiply-adds of one inference of `inputs`, as fvcore counts them (RoIAlign and NMS are not counted).

    Attention, which fvcore does not know, is counted as its two products.
    """
    from detectron2.utils.analysis import FlopCountAnalysis

    training = model.training
    noisy = logging.getLogger("fvcore.nn.jit_analysis")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer: constants, deprecations
            analysis = FlopCountAnalysis(model.eval(), inputs)
            analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
            return float(analysis.total())
    finally:
        noisy.setLevel(level)
        model.train(training)


def _attention_flops(inputs, outputs) -> int:
    """Of queries (..., L, E), keys (..., S, E), values (..., S, V): L * S * (E + V) for each of the leading indices."""
    query, key, value = (x.type().sizes() for x in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _peak_bytes_on_gpu(run: Callable[[], None], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_bytes_on_cpu(run: Callable[[], None], device: torch.device) -> int:
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "99"
    )  # else the profiler reports its own beginning and end on stderr
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return int(max(np.cumsum([e.nbytes() for e in events]), default=0))


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
                "sensor": SENSOR,
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
