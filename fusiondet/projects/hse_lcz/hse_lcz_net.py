"""Human settlement extent and local climate zone of a patch, two tasks of one network (P4).

A convolutional backbone whose features both tasks share; per task an attention that selects from them, a convolution
and a last layer; the predicted extent as prior of the zone; and a weighting of the two losses
(`fusiondet.modeling.task_weighting`).

What the text of the paper that we have does not say, and is chosen here:

- Backbone: blocks of 3 x 3 convolutions with batch normalisation and ReLU, the map halved by max pooling between them.
- Attention: `TaskAttention` (a gate per channel, a gate per cell) on the last shared map, one per task.
- Prior: zone = argmax(logits(features) + g(extent)), g a small network from a number to 17, which is the logarithm of
  what the extent alone says of the zone. By default the extent learns nothing from the zone through g ("detached").
- Losses: smooth L1 for the extent, quadratic below an error of 0.1; cross-entropy for the zone. Each is the mean over
  the patches of a batch whose truth is known.
- The extent is one number per patch, the share of it that is built up.

Legend: N patches, C bands, K = 17 zones.
"""

from fusiondet.errors import InputError
from fusiondet.modeling.architecture import Architecture
from fusiondet.modeling.task_attention import TaskAttention
from fusiondet.modeling.task_weighting import TaskWeighting, build_task_weighting, register_loss
from fusiondet.projects.hse_lcz.hse_lcz_config import TASKS

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

N_ZONES = 17
# Errors of the extent below this count by their square.
_SMALL_ERROR = 0.1
# Radar echoes of single pixels are hundreds of standard deviations above the mean of all.
_MOST_DEVIATIONS = 10.0
_PRIOR_WIDTH = 32

for _task in TASKS:
    register_loss(f"loss_{_task}", _task)


class _Block(nn.Sequential):
    """3 x 3 convolutions with batch normalisation and ReLU."""

    def __init__(self, in_channels: int, channels: int, convs: int = 1):
        parts = []
        for _ in range(convs):
            conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            parts += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
            in_channels = channels
        super().__init__(*parts)


class _Branch(nn.Module):
    """What one task has for itself: attention, a convolution, the mean over the map, a last layer."""

    def __init__(self, channels: int, dim: int, outputs: int, attention: bool, dropout: float):
        super().__init__()
        self.attention = TaskAttention(channels) if attention else None
        self.block = _Block(channels, dim)
        self.dropout = nn.Dropout(dropout)
        self.predictor = nn.Linear(dim, outputs)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, shared: Tensor, valid: Tensor) -> Tensor:
        """Shared map (N, C, h, w), valid (N, 1, H, W) of the pixels -> (N, outputs)."""
        if self.attention is not None:
            shared = self.attention(shared, valid)
        return self.predictor(self.dropout(self.block(shared).mean(dim=(2, 3))))


class ExtentPrior(nn.Module):
    """What the extent of a patch alone says of its zone: (N,) shares -> (N, K) to be added to the logits."""

    def __init__(self, detached: bool):
        super().__init__()
        self.detached = detached
        self.hidden, self.out = nn.Linear(1, _PRIOR_WIDTH), nn.Linear(_PRIOR_WIDTH, N_ZONES)
        # Bends all over [0, 1], and next to nothing said before training.
        with torch.no_grad():
            self.hidden.weight.copy_(torch.linspace(-8, 8, _PRIOR_WIDTH)[:, None])
            self.hidden.bias.copy_(-self.hidden.weight[:, 0] * torch.linspace(0, 1, _PRIOR_WIDTH).flip(0))
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, extent: Tensor) -> Tensor:
        """See the class."""
        extent = extent.detach() if self.detached else extent
        return self.out(F.relu(self.hidden(extent[:, None])))


@META_ARCH_REGISTRY.register()
class HseLczNet(Architecture, nn.Module):
    """Settlement extent and local climate zone of patches.

    Each input is a dict with
        image: (C, H, W) float32 in the units of MODEL.PIXEL_MEAN; NaN means no data. All of one size.
        hse: training: share in [0, 1], NaN unknown. lcz: training: index of the zone, below 0 unknown.
    Each output is a dict with, as far as the network has the task,
        hse: () float32 in [0, 1]. lcz: (17,) float32 probabilities.
    """

    finds_instances = predicts_scenes = False

    @configurable
    def __init__(
        self,
        *,
        pixel_mean: list[float],
        pixel_std: list[float],
        tasks: list[str],
        widths: list[int],
        convs: int,
        head_dim: int,
        dropout: float,
        attention: bool,
        prior: str,
        loss_weights: dict[str, float],
        task_weighting: TaskWeighting,
    ):
        """Args: the keys of these names in MODEL and MODEL.HSE_LCZ; `attention`: each task looks through its own."""
        super().__init__()
        self.register_buffer(
            "pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1), False
        )
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1), False)
        channels = [len(pixel_mean), *widths]
        self.backbone = nn.ModuleList(_Block(a, b, convs) for a, b in zip(channels, widths))
        outputs = {"hse": 1, "lcz": N_ZONES}
        self.branches = nn.ModuleDict(
            {task: _Branch(widths[-1], head_dim, outputs[task], attention, dropout) for task in tasks}
        )
        self.prior = None if prior == "none" else ExtentPrior(prior == "detached")
        self.loss_weights, self.task_weighting = loss_weights, task_weighting

    @classmethod
    def from_config(cls, cfg):
        """The only reader of config keys.

        Raises:
            InputError: what `fusiondet.projects.hse_lcz.patch_trainer.complete_config` fills in is not there.
        """
        mean, std, keys = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.MODEL.HSE_LCZ
        if not len(mean) or len(mean) != len(std):
            raise InputError(
                f"MODEL.PIXEL_MEAN has {len(mean)} and MODEL.PIXEL_STD {len(std)} numbers, expected one per band. They "
                "are computed from the training data by tools/train_net.py; or set them in the config."
            )
        tasks = cls.tasks(cfg)
        return {
            "pixel_mean": list(mean),
            "pixel_std": list(std),
            "tasks": tasks,
            "widths": list(keys.WIDTHS),
            "convs": keys.NUM_CONV,
            "head_dim": keys.CONV_DIM,
            "dropout": keys.DROPOUT,
            "attention": cfg.MODEL.TASK_ATTENTION,
            "prior": keys.PRIOR,
            "loss_weights": {"hse": keys.HSE.LOSS_WEIGHT, "lcz": keys.LCZ.LOSS_WEIGHT},
            "task_weighting": build_task_weighting(cfg, tasks),
        }

    @classmethod
    def tasks(cls, cfg) -> list[str]:
        """See Architecture."""
        return [task for task in TASKS if task in cfg.MODEL.HSE_LCZ.TASKS]

    @classmethod
    def score_groups(cls, cfg) -> tuple[str, ...]:
        """See Architecture."""
        return tuple(cfg.MODEL.HSE_LCZ.TASKS)

    @classmethod
    def best_metric(cls, cfg) -> str:
        """See Architecture."""
        return "lcz/oa" if "lcz" in cfg.MODEL.HSE_LCZ.TASKS else "hse/mae"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]):
        """The losses in training, {"loss_hse", "loss_lcz"}, weighted; else the outputs, see the class."""
        image, valid = self._batch(batched_inputs)
        shared = self.shared_features(image)
        said = self.predictions(shared, valid)
        if not self.training:
            return [
                {name: _said(name, values[i]) for name, values in said.items()}
                for i in range(len(batched_inputs))
            ]
        return self.task_weighting(self.losses(said, batched_inputs), [shared])

    def shared_features(self, image: Tensor) -> Tensor:
        """(N, C, H, W) normalised, without NaN -> (N, D, h, w), halved between blocks."""
        for i, block in enumerate(self.backbone):
            image = block(F.max_pool2d(image, 2) if i else image)
        return image

    def predictions(self, shared: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """{"hse": (N,) shares, "lcz": (N, K) logits}, as far as there are such tasks, float32."""
        said = {name: branch(shared, valid).float() for name, branch in self.branches.items()}
        if "hse" in said:
            said["hse"] = said["hse"][:, 0].sigmoid()
        if self.prior is not None:
            said["lcz"] = said["lcz"] + self.prior(said["hse"]).float()
        return said

    def losses(self, said: dict[str, Tensor], batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Means over the patches of known truth, times their LOSS_WEIGHTs; 0 and attached where there is none."""
        found = {}
        if "hse" in said:
            truth = self._truth(batched_inputs, "hse", torch.float32)
            known = ~torch.isnan(truth)
            error = F.smooth_l1_loss(said["hse"][known], truth[known], reduction="none", beta=_SMALL_ERROR)
            found["loss_hse"] = self.loss_weights["hse"] * _mean(error, said["hse"])
        if "lcz" in said:
            truth = self._truth(batched_inputs, "lcz", torch.int64)
            known = truth >= 0
            entropy = F.cross_entropy(said["lcz"][known], truth[known], reduction="none")
            found["loss_lcz"] = self.loss_weights["lcz"] * _mean(entropy, said["lcz"])
        return found

    def _truth(self, batched_inputs: list[dict], key: str, dtype) -> Tensor:
        return torch.tensor([x[key] for x in batched_inputs], dtype=dtype, device=self.device)

    def _batch(self, batched_inputs: list[dict]) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) normalised, 0 where there is no data; (N, 1, H, W) 1 where any band has data, else 0."""
        for x in batched_inputs:
            bands, *size = x["image"].shape
            if bands != len(self.pixel_mean):
                raise InputError(
                    f"{x.get('file_name', 'patch')}: {bands} bands, but the network takes {len(self.pixel_mean)}."
                )
            if min(size) < self.stride:
                raise InputError(
                    f"{x.get('file_name', 'patch')}: {size[0]} x {size[1]} px, but the network halves its maps down to "
                    f"1/{self.stride}: shorten MODEL.HSE_LCZ.WIDTHS."
                )
        image = torch.stack([x["image"].to(self.device) for x in batched_inputs])
        image = ((image - self.pixel_mean) / self.pixel_std).clamp(-_MOST_DEVIATIONS, _MOST_DEVIATIONS)
        nothing = torch.isnan(image)
        return image.masked_fill(nothing, 0.0), (~nothing).any(dim=1, keepdim=True).to(image.dtype)

    @property
    def stride(self) -> int:
        """Pixels per cell of the shared map, along a side."""
        return 2 ** (len(self.backbone) - 1)


def _said(name: str, values: Tensor) -> Tensor:
    return values.softmax(dim=0) if name == "lcz" else values


def _mean(values: Tensor, attached: Tensor) -> Tensor:
    """Mean of (M,) `values`; where M is 0, 0 that is attached to what was predicted."""
    return values.mean() if len(values) else attached.sum() * 0.0
