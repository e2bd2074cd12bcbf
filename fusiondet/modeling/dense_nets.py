"""What every whole network for maps has in common: what it is given, what it says, and the architecture around it.

Such a network ("dense net") has no pyramid that heads are hung on: it is one system from pixels to maps, as the papers
describe them. A new one is one file in this folder, one class in `DENSE_NET_REGISTRY`, and a config that names it.

Legend: N images, C bands (C_opt optical, then C_sar SAR), H x W pixels of the padded batch.
"""

from dataclasses import dataclass

from fusiondet import plugins
from fusiondet.errors import InputError, unknown_name
from fusiondet.modeling.dense_heads import DenseMaps, DenseTargets
from fusiondet.modeling.fusion import MODALITIES, StandIn
from fusiondet.modeling.meta_arch import NO_INSTANCES, FusionDense, dense_targets
from fusiondet.modeling.task_weighting import task_of

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from detectron2.utils.registry import Registry
from torch import Tensor, nn

DENSE_NET_REGISTRY = Registry("DENSE_NET")
DENSE_NET_REGISTRY.__doc__ = """
Whole networks named in MODEL.DENSE_NET.NAME: subclasses of `DenseNet`. Built as obj(cfg, optical_channels: int,
sar_channels: int); one of the two may be 0, never both.
"""


def known_dense_nets() -> list[str]:
    """Return the names that MODEL.DENSE_NET.NAME can have."""
    return sorted({name for name, _ in DENSE_NET_REGISTRY} | {*plugins.merged("dense_networks")})


def dense_net_named(name: str) -> type["DenseNet"]:
    """Return the class of a whole network; that of a project is imported first.

    Raises:
        InputError: a library that it needs is not installed.
    """
    plugins.load("dense_networks", name, "MODEL.DENSE_NET.NAME")
    return DENSE_NET_REGISTRY.get(name)


@dataclass
class Picture:
    """A normalised batch without NaN, by modality; bands of a modality that the network does not have: 0 of them.

    Attributes:
        optical, sar: (N, C_opt, H, W), (N, C_sar, H, W); 0, or what is learned to stand there, where there is no data.
        optical_valid, sar_valid: (N, 1, H, W) 1 where any band of the modality has data, else 0; all 0 without bands.
        target: (N, C, H, W) what the bands were before modality dropout hid any, NaN where there is no data.
    """

    optical: Tensor
    sar: Tensor
    optical_valid: Tensor
    sar_valid: Tensor
    target: Tensor

    @property
    def stacked(self) -> Tensor:
        """(N, C, H, W): all bands, optical first (early fusion)."""
        return torch.cat([self.optical, self.sar], dim=1)

    @property
    def valid(self) -> Tensor:
        """(N, 1, H, W): 1 where any band at all has data."""
        return torch.maximum(self.optical_valid, self.sar_valid)


class DenseNet(nn.Module):
    """Base of whole networks for maps.

    Attributes:
        stride: the padded sides are multiples of it.
        least_size_px: an image smaller than this is padded to it, so that no map inside it is empty.
        tasks: what it can be asked for in MODEL.DENSE_NET.TASKS.
        sections: of MODEL.DENSE_NET and MODEL.FUSION, the keys and sections that it reads; all others stay at their
            defaults, as they would be ignored.
        learns_unlabelled: tiles without labels teach it something.
        has_branches: it has a branch per modality that says something on its own, `DenseMaps.branches`.
    """

    stride: int = 1
    least_size_px: int = 1
    tasks: tuple[str, ...] = ("footprint", "height")
    sections: tuple[str, ...] = ()
    learns_unlabelled: bool = False
    has_branches: bool = False

    @classmethod
    def teaches_unlabelled(cls, cfg) -> bool:
        """Whether tiles without labels teach the network of `cfg` something; `learns_unlabelled` unless keys say no."""
        return cls.learns_unlabelled

    @classmethod
    def check(cls, cfg) -> None:
        """InputError for a value of the network's own keys that means nothing."""

    def own(self, modality: str) -> nn.Module:
        """The part of a network with branches that looks at `modality` alone."""
        raise NotImplementedError

    def forward(self, picture: Picture) -> DenseMaps:
        """What it says of `picture`, maps of the size of the picture."""
        raise NotImplementedError

    def losses(self, maps: DenseMaps, targets: DenseTargets) -> dict[str, Tensor]:
        """{"loss_footprint", "loss_dense_height", "loss_classes", "loss_reconstruction"}: those that it has, weighted.

        Names may have a branch before them ("sar/loss_footprint"). 0 and attached where nothing is known.
        """
        raise NotImplementedError


class _Whole(Backbone):
    """A dense net in the place of a backbone: takes the image with NaN, and says `DenseMaps`."""

    def __init__(self, net: DenseNet, optical_channels: int, bands: int, learned_stand_in: bool):
        super().__init__()
        self.net, self.optical_channels = net, optical_channels
        self.optical_fill = StandIn(optical_channels, learned_stand_in and optical_channels > 0)
        self.sar_fill = StandIn(bands - optical_channels, learned_stand_in and optical_channels < bands)

    @property
    def size_divisibility(self) -> int:
        return self.net.stride

    def forward(self, image: Tensor, complete: Tensor | None = None) -> DenseMaps:
        """(N, C, H, W), NaN = no data; `complete`: before any modality was dropped, None: the same."""
        optical, optical_valid = self.optical_fill(image[:, : self.optical_channels])
        sar, sar_valid = self.sar_fill(image[:, self.optical_channels :])
        # all() over no bands is True: those of a modality that is not there are missing everywhere.
        target = image if complete is None else complete
        return self.net(Picture(optical, sar, optical_valid, sar_valid, target))


@META_ARCH_REGISTRY.register()
class FusionDenseNet(FusionDense):
    """One of `DENSE_NET_REGISTRY`: inputs and outputs are those of FusionRCNN, without "instances" in the outputs.

    Inputs may have classes: (H, W) float32 index of a class, NaN where unknown; outputs of a network with the task
    "classes" have "class_map": (K, H, W) float32 probabilities.
    """

    reads_dense_heads = may_skip_parameters = False
    reads_dense_net = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_weights = dict.fromkeys(MODALITIES, 1.0)

    @classmethod
    def from_config(cls, cfg):
        """Builds the network that the config names.

        Raises:
            InputError: see `check_dense_net`.
        """
        check_dense_net(cfg)
        arguments = cls.fusion_arguments(cfg)
        optical, bands = cfg.MODEL.FUSION.OPTICAL_CHANNELS, len(cfg.MODEL.PIXEL_MEAN)
        net = dense_net_named(cfg.MODEL.DENSE_NET.NAME)(cfg, optical, bands - optical)
        learned = any(cfg.MODEL.FUSION.MODALITY_DROPOUT.values())
        return {**arguments, "backbone": _Whole(net, optical, bands, learned), **NO_INSTANCES}

    @classmethod
    def pixel_tasks(cls, cfg) -> tuple[str, ...]:
        """See Architecture."""
        net = dense_net_named(cfg.MODEL.DENSE_NET.NAME)
        return (*cfg.MODEL.DENSE_NET.TASKS, *(["reconstruction"] if net.teaches_unlabelled(cfg) else []))

    @classmethod
    def tasks(cls, cfg) -> list[str]:
        """As FusionRCNN.tasks: what the maps are weighted under."""
        net = dense_net_named(cfg.MODEL.DENSE_NET.NAME)
        losses = {"footprint": "loss_footprint", "height": "loss_dense_height", "classes": "loss_classes"}
        names = [task_of(losses[task]) for task in cfg.MODEL.DENSE_NET.TASKS]
        return names + (["reconstruction"] if net.teaches_unlabelled(cfg) else [])

    @property
    def net(self) -> DenseNet:
        """The network itself."""
        return self.backbone.net

    @property
    def has_branches(self) -> bool:
        """See FusionRCNN."""
        return self.net.has_branches

    def own(self, modality: str) -> nn.Module:
        """The part of a network with branches that looks at `modality` alone."""
        return self.net.own(modality)

    @torch.no_grad()
    def branch_predictions(self, batched_inputs) -> dict[str, list[dict]]:
        """What each branch says alone and what both say together, each in the form of `inference`.

        Returns:
            {"optical": ..., "sar": ..., "fused": ...}. Where its modality has no data, a branch could only guess.
        """
        assert not self.training and self.has_branches
        images = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor)
        said = {m: DenseMaps(footprint=logits) for m, logits in maps.branches.items()} | {"fused": maps}
        return {
            name: self._maps_alone(self._said(one, images), batched_inputs, images)
            for name, one in said.items()
        }

    def preprocess_image(self, batched_inputs):
        """As FusionRCNN's; a batch smaller than the network can take is padded, with NaN as all padding."""
        images = super().preprocess_image(batched_inputs)
        least = self.net.least_size_px
        height, width = images.tensor.shape[-2:]
        if min(height, width) >= least:
            return images
        padding = (0, max(0, least - width), 0, max(0, least - height))
        padded = ImageList(nn.functional.pad(images.tensor, padding, value=torch.nan), images.image_sizes)
        padded.sensor = images.sensor
        padded.complete = nn.functional.pad(images.complete, padding, value=torch.nan)
        return padded

    def forward(self, batched_inputs):
        """The losses in training, weighted; else as `outputs`."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor, images.complete)
        losses = self.net.losses(maps, dense_targets(batched_inputs, images.complete))
        # "optical/loss_footprint" of a network with branches, "loss_footprint" of one without.
        losses = {key: loss * self.loss_weights.get(key.split("/")[0], 1.0) for key, loss in losses.items()}
        return losses if self.task_weighting is None else self.task_weighting(losses, [])

    def _maps(self, shared, image: Tensor):
        return shared

    def _seen(self, shared, image: Tensor, maps=None):
        return {}


def check_dense_net(cfg) -> None:
    """InputError when a key of MODEL.DENSE_NET means nothing, or would be ignored by the network that is named."""
    keys, model = cfg.MODEL.DENSE_NET, cfg.MODEL
    if model.META_ARCHITECTURE != "FusionDenseNet":
        if keys.NAME:
            raise InputError(
                f"MODEL.DENSE_NET.NAME is {keys.NAME}, but MODEL.META_ARCHITECTURE is {model.META_ARCHITECTURE}, which "
                "has no use for it. Take FusionDenseNet, or leave MODEL.DENSE_NET.NAME empty."
            )
        return
    known = known_dense_nets()
    if keys.NAME not in known:
        raise unknown_name("MODEL.DENSE_NET.NAME", keys.NAME, known)
    net = dense_net_named(keys.NAME)
    if not len(keys.TASKS) or len(set(keys.TASKS)) != len(keys.TASKS):
        raise InputError(f"MODEL.DENSE_NET.TASKS is {list(keys.TASKS)}, expected names, each once.")
    for task in keys.TASKS:
        if task not in net.tasks:
            raise unknown_name(f"MODEL.DENSE_NET.TASKS entry of {keys.NAME}", task, net.tasks)
    if len(model.DENSE_HEADS.NAMES):
        raise InputError(
            f"MODEL.DENSE_HEADS.NAMES is {list(model.DENSE_HEADS.NAMES)}, but FusionDenseNet has the heads of its own "
            "network, which MODEL.DENSE_NET.TASKS names. Leave it empty, or take FusionDense or FusionRCNN."
        )
    if model.TASK_ATTENTION:
        raise InputError(
            "MODEL.TASK_ATTENTION is True, but FusionDenseNet has no feature maps that all its tasks share. Leave it "
            "at False."
        )
    if model.TASK_WEIGHTING.NAME == "gradnorm":
        raise InputError(
            "MODEL.TASK_WEIGHTING.NAME is gradnorm, but FusionDenseNet has no feature maps that all its tasks share. "
            "Take fixed or uncertainty."
        )
    for key, value in (
        ("FOOTPRINT.LOSS_WEIGHT", keys.FOOTPRINT.LOSS_WEIGHT),
        ("HEIGHT.LOSS_WEIGHT", keys.HEIGHT.LOSS_WEIGHT),
        ("HEIGHT_SCALE_M", keys.HEIGHT_SCALE_M),
    ):
        if not value >= 0:
            raise InputError(f"MODEL.DENSE_NET.{key} is {value}, expected 0 or more.")
    net.check(cfg)
