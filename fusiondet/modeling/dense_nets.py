"""What every whole network for maps has in common: what it is given, what it says, and the architecture around it.

Such a network ("dense net") has no pyramid that heads are hung on: it is one system from pixels to maps, as the papers
describe them. A new one is one file in this folder, one class in `DENSE_NET_REGISTRY`, and a config that names it.

Legend: N images, C bands (C_opt optical, then C_sar SAR), H x W pixels of the padded batch.
"""

from dataclasses import dataclass

from fusiondet import plugins
from fusiondet.errors import InputError, unknown_name
from fusiondet.modeling.architecture import architecture_of
from fusiondet.modeling.dense_heads import DenseMaps, DenseTargets

import torch
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

    def unimodal_part(self, modality: str) -> nn.Module:
        """Return the part of a network with branches that processes `modality` alone."""
        raise NotImplementedError

    def forward(self, picture: Picture) -> DenseMaps:
        """What it says of `picture`, maps of the size of the picture."""
        raise NotImplementedError

    def losses(self, maps: DenseMaps, targets: DenseTargets) -> dict[str, Tensor]:
        """{"loss_footprint", "loss_dense_height", "loss_classes", "loss_reconstruction"}: those that it has, weighted.

        Names may have a branch before them ("sar/loss_footprint"). 0 and attached where nothing is known.
        """
        raise NotImplementedError


def check_dense_net(cfg) -> None:
    """InputError when a key of MODEL.DENSE_NET means nothing, or would be ignored by the network that is named."""
    keys, model = cfg.MODEL.DENSE_NET, cfg.MODEL
    if not architecture_of(cfg).reads_dense_net:
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
