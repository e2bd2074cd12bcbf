"""How the losses of tasks are weighted against each other: fixed, by learned uncertainty, or by gradients.

A loss belongs to a task (`task_of`); the tasks of a network share its feature maps. Legend: T tasks.
"""

import math
from collections.abc import Iterable

from fusiondet.errors import InputError, unknown_name
from fusiondet.modeling.fusion import MODALITIES

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor, nn

# Losses that are tasks of their own; all others (proposals, boxes, masks) are of the task "instances".
_TASK_OF = {
    "loss_height": "height",
    "loss_dense_height": "dense_height",
    "loss_footprint": "footprint",
    "loss_reconstruction": "reconstruction",
    "loss_classes": "classes",
}
# Their loss is a negative log-likelihood, |error| / b + log b with b predicted: it falls below 0, and has a learned
# scale already.
_LIKELIHOODS = ("height",)


def register_loss(name: str, task: str) -> None:
    """Make the loss `name` a task of its own, for networks outside the core."""
    _TASK_OF[name] = task


def task_of(loss_name: str) -> str:
    """The task that a loss belongs to; a branch's prefix ("sar/loss_mask") does not matter."""
    return _TASK_OF.get(loss_name.rpartition("/")[2], "instances")


class TaskWeighting(nn.Module):
    """Fixed weights of 1: losses pass through. Also what all weightings have in common.

    Weights change in `update` alone, once per optimizer step and in all processes alike: all micro-batches of a step,
    in all processes, see the same ones.

    Attributes:
        branch_weights: modality -> factor on the losses of its branch, before all else; see `BalanceModalities`.
    """

    def __init__(self, tasks: Iterable[str]):
        """`tasks`: those that losses will come of; one that has no loss in a batch is left alone."""
        super().__init__()
        self.tasks = list(tasks)
        self.branch_weights = dict.fromkeys(MODALITIES, 1.0)
        self._seen: Tensor | None = None

    def forward(self, losses: dict[str, Tensor], shared: list[Tensor]) -> dict[str, Tensor]:
        """`losses` times the weights of their tasks, under their names.

        Args:
            losses: scalars attached to the graph; "sar/loss_mask" is of the SAR branch.
            shared: feature maps (N, C, h, w) that all tasks are computed from.
        """
        of_branches = {}
        for name, loss in losses.items():
            branch, slash, _ = name.partition("/")
            of_branches[name] = loss * self.branch_weights[branch] if slash else loss
        return self._weighted(of_branches, shared)

    def _weighted(self, losses: dict[str, Tensor], shared: list[Tensor]) -> dict[str, Tensor]:
        """As `forward`, of losses that already have the weights of their branches."""
        sums = self._sums(losses)
        # Passes without gradients, such as those of PreciseBN, do not count.
        if torch.is_grad_enabled():
            self._remember(self._measured(sums, shared))
        weights = dict(zip(self.tasks, self._weights(), strict=True))
        return {name: loss * weights[task_of(name)] for name, loss in losses.items()}

    @torch.no_grad()
    def update(self) -> dict[str, float]:
        """Adapt the weights to what was seen since the last call; every process must call it.

        Returns:
            What is worth logging, averaged over all micro-batches and processes: "task_loss/<task>", unweighted, and
            "task_weight/<task>" as they were when it was called; {} when nothing was seen.
        """
        logged = {f"task_weight/{task}": float(w) for task, w in zip(self.tasks, self._weights())}
        means = self._means()
        if not np.isfinite(means).any():
            return {}
        self._adapt(means)
        return logged | {f"task_loss/{t}": float(x) for t, x in zip(self.tasks, means[0]) if np.isfinite(x)}

    def _weights(self) -> Iterable:
        """T weights, numbers or scalar tensors."""
        return [1.0] * len(self.tasks)

    def _measured(self, sums: list[Tensor], shared: list[Tensor]) -> Tensor:
        """(K, T) numbers of a micro-batch that `_adapt` is given the means of; first the losses, NaN for none (0)."""
        losses = torch.stack([loss.detach() for loss in sums])
        return torch.where(losses == 0, torch.nan, losses)[None]

    def _adapt(self, means: np.ndarray) -> None:
        """Take in the means (K, T) of a step; NaN where nothing is known."""

    def _sums(self, losses: dict[str, Tensor]) -> list[Tensor]:
        """The loss of each task; 0 for one without."""
        zero = next(iter(losses.values())).detach().float() * 0.0
        sums = dict.fromkeys(self.tasks, zero)
        for name, loss in losses.items():
            sums[task_of(name)] = sums[task_of(name)] + loss.float()
        return list(sums.values())

    def _remember(self, measured: Tensor) -> None:
        known = torch.isfinite(measured)
        seen = torch.stack([torch.where(known, measured, 0.0), known.to(measured)])
        self._seen = seen if self._seen is None else self._seen + seen

    def _means(self) -> np.ndarray:
        """(K, T) over what was remembered in all processes, which is then forgotten."""
        seen, self._seen = self._seen, None
        everyone = comm.all_gather(None if seen is None else seen.double().cpu().numpy())
        total, count = np.sum([one for one in everyone if one is not None] or [np.zeros((2, 1, 1))], axis=0)
        return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


class UncertaintyWeighting(TaskWeighting):
    """Weights learned from how uncertain each task is (Kendall, Gal, Cipolla 2018, https://arxiv.org/abs/1705.07115).

    A task with the loss L contributes exp(-s) L + s, s learned: the negative log-likelihood of a Laplace distribution
    of scale exp(s), whose optimum is s = log L. With s = 0 training starts as with fixed weights.

    Other than in the paper:
    - One form for all tasks. There L / (2 exp(s)) + s / 2 is for squared errors and exp(-s) L + s / 2 for classes; a
      factor on s moves its optimum by a constant alone.
    - The height of instances, a likelihood already whose scale is predicted per building, keeps its weight of 1: its
      loss may fall below 0, and s would then have no optimum.
    - s of a task without a loss in a batch (nothing labelled in it) is left alone.
    """

    def __init__(self, tasks: Iterable[str]):
        """See TaskWeighting."""
        super().__init__(tasks)
        self.learned = [task for task in self.tasks if task not in _LIKELIHOODS]
        # fusiondet.engine.optimizer knows it by this name.
        self.task_log_scales = nn.Parameter(torch.zeros(len(self.learned)))

    def _weighted(self, losses: dict[str, Tensor], shared: list[Tensor]) -> dict[str, Tensor]:
        """As TaskWeighting's, with the sum of all s as "loss_task_uncertainty"."""
        sums = dict(zip(self.tasks, self._sums(losses), strict=True))
        heard = torch.stack([sums[task].detach() != 0 for task in self.learned])
        # In the graph in every process, whatever its batch holds.
        regulariser = (self.task_log_scales * heard).sum()
        return {**super()._weighted(losses, shared), "loss_task_uncertainty": regulariser}

    def _weights(self) -> Iterable:
        weights = dict(zip(self.learned, torch.exp(-self.task_log_scales), strict=True))
        return [weights.get(task, 1.0) for task in self.tasks]


# Steps whose mean loss stands for a task at the beginning: one batch of a few tiles says little.
_FIRST_STEPS = 10
# A loss a hundred times its first one, or a hundredth of it, says no more than that.
_MOST_LOG_PROGRESS = math.log(100.0)


class GradNormWeighting(TaskWeighting):
    """Weights by which all tasks pull equally at the shared features (GradNorm: Chen, Badrinarayanan, Lee, Rabinovich
    2018, https://arxiv.org/abs/1711.02257).

    Let G be the norm of the gradient of a task's weighted loss, and r its relative inverse training rate: loss over
    first loss, over the mean of that over tasks. A task whose G is below mean(G) r^alpha gets more weight, else less.
    The price is a second backward pass through the heads: a step of the small joint network takes 1.3 times as long.

    Other than in the paper:
    - Gradients are with regard to the shared feature maps, not to the weights of the last shared layer: no backward
      pass through a backbone, and no choice of a layer where a pyramid has many.
    - Weights are multiplied by (mean(G) r^alpha / G)^rate, and then brought to the sum T, where the paper takes a step
      down the gradient of sum |G - mean(G) r^alpha|. They stay above 0, and the pace does not depend on their size.
    - The first loss is the mean over the first ten steps that have one.
    - For the height of instances, a likelihood that falls below 0, exp(loss - first loss) stands for the ratio, which
      that is for a Laplace distribution at its optimum.
    - A task without a loss in a step, or whose gradient is not finite (float16), keeps its weight in it.
    """

    def __init__(self, tasks: Iterable[str], alpha: float = 1.0, rate: float = 0.05):
        """`alpha`: how much more the slower tasks are pulled; `rate`: share of the gap, in logs, closed per step."""
        super().__init__(tasks)
        self.alpha, self.rate = alpha, rate
        self.register_buffer("task_weights", torch.ones(len(self.tasks)))
        self.register_buffer("first_losses", torch.zeros(len(self.tasks)))
        self.register_buffer("first_steps", torch.zeros(len(self.tasks)))

    def _weights(self) -> Iterable:
        return self.task_weights.unbind()

    def _measured(self, sums: list[Tensor], shared: list[Tensor]) -> Tensor:
        maps = [x for x in shared if x.requires_grad]
        if not maps:
            raise InputError(
                "MODEL.TASK_WEIGHTING.NAME is gradnorm, but no shared feature map is trained. Use fixed or uncertainty."
            )
        squares = torch.stack([_squared_gradient(loss, maps) for loss in sums])
        return torch.cat([super()._measured(sums, shared), squares[None]])

    def _adapt(self, means: np.ndarray) -> None:
        losses, norms = means[0], np.sqrt(means[1])
        progress = self._progress(losses)
        weights = self.task_weights.double().cpu().numpy()
        live = np.isfinite(progress) & np.isfinite(norms) & (norms > 0)
        if live.sum() < 2:
            return
        pulls = (weights * norms)[live]
        goals = pulls.mean() * (progress[live] / progress[live].mean()) ** self.alpha
        adapted = weights[live] * (goals / pulls) ** self.rate
        weights[live] = adapted * weights[live].sum() / adapted.sum()
        self.task_weights.copy_(torch.from_numpy(weights))

    def _progress(self, losses: np.ndarray) -> np.ndarray:
        """(T,) loss over first loss, which the first steps settle; NaN for a task that has none."""
        first, steps = self.first_losses.tolist(), self.first_steps.tolist()
        progress = np.full(len(losses), np.nan)
        for i, (task, loss) in enumerate(zip(self.tasks, losses.tolist(), strict=True)):
            likelihood = task in _LIKELIHOODS
            if not (math.isfinite(loss) and (likelihood or loss > 0)):
                continue
            if steps[i] < _FIRST_STEPS:
                steps[i] += 1
                first[i] += (loss - first[i]) / steps[i]
            logarithm = loss - first[i] if likelihood else math.log(loss / first[i])
            progress[i] = math.exp(max(-_MOST_LOG_PROGRESS, min(logarithm, _MOST_LOG_PROGRESS)))
        self.first_losses.copy_(torch.tensor(first))
        self.first_steps.copy_(torch.tensor(steps))
        return progress


def _squared_gradient(loss: Tensor, maps: list[Tensor]) -> Tensor:
    """Squared norm of the gradient of `loss` at all `maps` together, float32; the graph stays."""
    if not loss.requires_grad:
        return loss.new_zeros(())
    # In float16 small gradients would vanish, and scaled ones may overflow: then with less.
    for scale in (2.0**16, 2.0**8, 1.0) if any(x.dtype == torch.float16 for x in maps) else (1.0,):
        gradients = torch.autograd.grad(loss * scale, maps, retain_graph=True, allow_unused=True)
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients if g is not None]
        square = sum(((norm / scale).square() for norm in norms), loss.new_zeros(()))
        if scale == 1.0 or torch.isfinite(square):
            return square


def build_task_weighting(cfg, tasks: Iterable[str]) -> TaskWeighting:
    """The weighting named MODEL.TASK_WEIGHTING.NAME, for these tasks.

    Raises:
        InputError: there is none of that name.
    """
    settings = cfg.MODEL.TASK_WEIGHTING
    if settings.NAME == "gradnorm":
        return GradNormWeighting(tasks, settings.ALPHA, settings.RATE)
    known = {"fixed": TaskWeighting, "uncertainty": UncertaintyWeighting}
    if settings.NAME not in known:
        raise unknown_name("MODEL.TASK_WEIGHTING.NAME", settings.NAME, [*known, "gradnorm"])
    return known[settings.NAME](tasks)
