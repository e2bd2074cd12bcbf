"""Backbones that take stacked RGB + SAR images: one stream or two, joined before, inside or behind the pyramid.

A stream is a trunk: Detectron2's ResNet, or a network of timm cut into the same stages (`timm_net`).

Legend: N images, C channels (optical first, SAR after), H x W pixels. Pixels without data arrive as NaN.
"""

from collections.abc import Callable

from fusiondet.errors import InputError, unknown_name
from fusiondet.modeling.fusion import EXCHANGE_REGISTRY, JOIN_REGISTRY, MODALITIES, StandIn
from fusiondet.modeling.streams import ModalityParts, PerModality
from fusiondet.modeling.timm_net import STRIDES, TimmNet

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn


class EarlyFusionResNet(Backbone):
    """Early fusion: one ResNet over all bands stacked (P1, early fusion), any number of them."""

    def __init__(self, resnet: Backbone, stand_in: StandIn):
        super().__init__()
        self.stand_in = stand_in
        self.resnet = resnet

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) normalised, NaN = no data -> {"res2": (N, C2, H/4, W/4), ...}."""
        return self.resnet(self.stand_in(image)[0])

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the feature maps, those of the ResNet."""
        return self.resnet.output_shape()


class TwoStreamResNet(Backbone, ModalityParts):
    """A ResNet per modality, with exchanges between them; what they exchange behind a stage enters the next one."""

    def __init__(self, optical: Backbone, sar: Backbone, exchanges: dict[str, nn.Module], learned: bool):
        """Two ResNets and what is between them.

        Args:
            optical, sar: Detectron2's ResNets with the same out_features; a `sar` of nothing but a stem goes through
                the stages of `optical`.
            exchanges: stage -> op of EXCHANGE_REGISTRY.
            learned: whether what stands for pixels without data is learned.
        """
        super().__init__()
        bands = {"optical": optical.stem.in_channels, "sar": sar.stem.in_channels}
        # Read by fusiondet.modeling.weights.
        self.stream_channels = {"optical": slice(0, bands["optical"]), "sar": slice(bands["optical"], None)}
        self.stand_ins = PerModality({name: StandIn(bands[name], learned) for name in MODALITIES})
        self.optical, self.sar = optical, sar
        self.exchanges = nn.ModuleDict(exchanges)

    @property
    def shares_stages(self) -> bool:
        """Whether both streams go through the same stages."""
        return not self.sar.stage_names

    def parts_of(self, modality: str) -> list[nn.Module]:
        """See ModalityParts: its ResNet, or of shared stages its stem alone."""
        resnet = getattr(self, modality)
        return [resnet.stem] if self.shares_stages else [resnet]

    def forward(self, image: Tensor) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """(N, C, H, W) normalised, NaN = no data -> features, validity.

        Returns:
            {"optical": {"res2": (N, C2, H/4, W/4), ...}, "sar": ...} and {"optical": (N, 1, H, W), "sar": ...}: 1 where
            a pixel holds data.
        """
        filled = {m: self.stand_ins[m](image[:, part]) for m, part in self.stream_channels.items()}
        valid = {m: pixels for m, (_, pixels) in filled.items()}
        optical, sar = self.optical.stem(filled["optical"][0]), self.sar.stem(filled["sar"][0])
        features = {m: {} for m in MODALITIES}
        for stage in self.optical.stage_names:
            optical, sar = self._stage(stage, optical, sar)
            if stage in self.exchanges:
                maps = (valid_at(valid["optical"], optical), valid_at(valid["sar"], sar))
                optical, sar = self.exchanges[stage](optical, sar, *maps)
            if stage in self.output_shapes["optical"]:
                features["optical"][stage], features["sar"][stage] = optical, sar
        return features, valid

    def _stage(self, name: str, optical: Tensor, sar: Tensor) -> tuple[Tensor, Tensor]:
        if not self.shares_stages:
            return getattr(self.optical, name)(optical), getattr(self.sar, name)(sar)
        # As one batch: batch norm in training then sees the mixture whose statistics it keeps for evaluation.
        both = getattr(self.optical, name)(torch.cat([optical, sar]))
        return both[: len(optical)], both[len(optical) :]

    @property
    def output_shapes(self) -> dict[str, dict[str, ShapeSpec]]:
        """Channels and strides of the feature maps by modality."""
        own = self.optical if self.shares_stages else self.sar
        return {"optical": self.optical.output_shape(), "sar": own.output_shape()}


class IntermediateFusionResNet(TwoStreamResNet):
    """Intermediate fusion: two streams, joined at every level that feeds the FPN."""

    def __init__(self, *args, joins: dict[str, nn.Module], **kwargs):
        """`joins`: level -> op of JOIN_REGISTRY; else as TwoStreamResNet."""
        super().__init__(*args, **kwargs)
        self.joins = nn.ModuleDict(joins)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) normalised, NaN = no data -> {"res2": (N, C2, H/4, W/4), ...}."""
        features, valid = super().forward(image)
        return joined(self.joins, features, valid)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the joined feature maps."""
        strides = {name: shape.stride for name, shape in self.output_shapes["optical"].items()}
        return {n: ShapeSpec(channels=join.out_channels, stride=strides[n]) for n, join in self.joins.items()}


class PyramidPair(Backbone, ModalityParts):
    """Two streams with a pyramid each, for a detector per modality (decision-level fusion)."""

    def __init__(self, bottom_up: TwoStreamResNet, optical: FPN, sar: FPN):
        """`optical`, `sar`: pyramids over `PassThrough`, of the same levels."""
        super().__init__()
        self.bottom_up, self.optical, self.sar = bottom_up, optical, sar

    def parts_of(self, modality: str) -> list[nn.Module]:
        """See ModalityParts: its pyramid."""
        return [getattr(self, modality)]

    def forward(self, image: Tensor) -> dict[str, dict[str, Tensor]]:
        """(N, C, H, W) normalised, NaN = no data -> {"optical": {"p2": (N, C, H/4, W/4), ...}, "sar": ...}."""
        return self.pyramids(image)[0]

    def pyramids(self, image: Tensor) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """As `forward`, with the validity (N, 1, H, W) of each modality's pixels."""
        features, valid = self.bottom_up(image)
        return {m: getattr(self, m)(features[m]) for m in MODALITIES}, valid

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of one pyramid; the other one's are the same."""
        return self.optical.output_shape()

    @property
    def size_divisibility(self) -> int:
        """As of the pyramids."""
        return self.optical.size_divisibility


class LateFusionFPN(PyramidPair):
    """Late fusion of features: two finished pyramids, joined at every level."""

    def __init__(self, *args, joins: dict[str, nn.Module]):
        """`joins`: level -> op of JOIN_REGISTRY; else as PyramidPair."""
        super().__init__(*args)
        self.joins = nn.ModuleDict(joins)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) normalised, NaN = no data -> {"p2": (N, C, H/4, W/4), ...}."""
        return joined(self.joins, *self.pyramids(image))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the joined pyramid."""
        shapes = super().output_shape()
        return {
            n: ShapeSpec(channels=join.out_channels, stride=shapes[n].stride)
            for n, join in self.joins.items()
        }


class PassThrough(Backbone):
    """Features that are there already, for Detectron2's FPN, which asks a bottom-up network for them."""

    def __init__(self, shapes: dict[str, ShapeSpec]):
        super().__init__()
        self.shapes = shapes

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The argument."""
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        """What was given."""
        return self.shapes


def valid_at(valid: Tensor, features: Tensor) -> Tensor:
    """Validity (N, 1, H, W) of pixels as the share per cell of `features` (N, C, h, w): (N, 1, h, w)."""
    return F.adaptive_avg_pool2d(valid, features.shape[-2:])


def joined(joins: nn.ModuleDict, features: dict[str, dict[str, Tensor]], valid: dict[str, Tensor]):
    """One feature map per level that has a join, of both modalities' and the validity of their pixels."""
    return {
        level: join(
            *(features[m][level] for m in MODALITIES),
            *(valid_at(valid[m], features[m][level]) for m in MODALITIES),
        )
        for level, join in joins.items()
    }


# ---- Built from the config ---------------------------------------------------------------------------------


@BACKBONE_REGISTRY.register()
def build_early_fusion_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet-FPN over `input_shape.channels` stacked bands: RGB + SAR, RGB only and SAR only are the same code.

    ResNet-18, 34, 50 and 101 by MODEL.RESNETS.DEPTH. The FPN is Detectron2's own.
    """
    _check_widths(cfg.MODEL.RESNETS, "MODEL.RESNETS")
    return _early(cfg, build_resnet_backbone(cfg, input_shape), input_shape)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """As `build_early_fusion_resnet_fpn_backbone`, of the network MODEL.TIMM.NAME. Raises as TimmNet does."""
    return _early(cfg, _timm(cfg, input_shape.channels), input_shape)


@BACKBONE_REGISTRY.register()
def build_intermediate_fusion_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Two ResNets with exchanges behind the stages named in MODEL.FUSION.EXCHANGE, joined, below one FPN.

    Raises:
        InputError: one modality alone, an exchange behind a stage that is not built, names that are not known, shared
            stages with a SAR stream of its own depth or width.
    """
    return _intermediate(cfg, _streams(cfg, input_shape, _resnets))


@BACKBONE_REGISTRY.register()
def build_intermediate_fusion_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Two networks MODEL.TIMM.NAME, joined as `build_intermediate_fusion_resnet_fpn_backbone` joins ResNets."""
    return _intermediate(cfg, _streams(cfg, input_shape, _timms))


@BACKBONE_REGISTRY.register()
def build_late_fusion_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> LateFusionFPN:
    """Two ResNet-FPNs whose pyramids are joined at every level. Raises as the intermediate one does."""
    return _late(cfg, _streams(cfg, input_shape, _resnets))


@BACKBONE_REGISTRY.register()
def build_late_fusion_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> LateFusionFPN:
    """Two networks MODEL.TIMM.NAME with an FPN each, joined as `build_late_fusion_resnet_fpn_backbone` does."""
    return _late(cfg, _streams(cfg, input_shape, _timms))


@BACKBONE_REGISTRY.register()
def build_two_pyramids_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> PyramidPair:
    """Two ResNet-FPNs for LateFusionRCNN, which joins detections only. Raises as the intermediate one does."""
    return PyramidPair(*_pair(cfg, _streams(cfg, input_shape, _resnets)))


@BACKBONE_REGISTRY.register()
def build_two_pyramids_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> PyramidPair:
    """Two networks MODEL.TIMM.NAME with an FPN each, for LateFusionRCNN."""
    return PyramidPair(*_pair(cfg, _streams(cfg, input_shape, _timms)))


def _early(cfg, trunk: Backbone, input_shape: ShapeSpec) -> FPN:
    return _fpn(cfg, EarlyFusionResNet(trunk, StandIn(input_shape.channels, learns_stand_ins(cfg))))


def _intermediate(cfg, streams: dict) -> FPN:
    joins = _joins(cfg, cfg.MODEL.FPN.IN_FEATURES, _shapes(streams["optical"], streams["sar"]))
    return _fpn(cfg, IntermediateFusionResNet(**streams, joins=joins))


def _late(cfg, streams: dict) -> LateFusionFPN:
    bottom_up, optical, sar = _pair(cfg, streams)
    shapes = {"optical": optical.output_shape(), "sar": sar.output_shape()}
    return LateFusionFPN(bottom_up, optical, sar, joins=_joins(cfg, list(shapes["optical"]), shapes))


def learns_stand_ins(cfg) -> bool:
    """Whether what stands for pixels without data is learned: only then does training see whole modalities missing."""
    return any(probability > 0 for probability in cfg.MODEL.FUSION.MODALITY_DROPOUT.values())


def _streams(cfg, input_shape: ShapeSpec, trunks: Callable) -> dict:
    """Arguments of TwoStreamResNet; `trunks`: (cfg, optical bands, SAR bands) -> trunk of each stream."""
    bands = cfg.MODEL.FUSION.OPTICAL_CHANNELS
    if not 0 < bands < input_shape.channels:
        raise InputError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} needs both modalities, optical and sar; INPUT.MODALITIES "
            f"is {list(cfg.INPUT.MODALITIES)}, {max(bands, 0)} of {input_shape.channels} bands are optical. Use "
            "build_early_fusion_resnet_fpn_backbone for one modality alone."
        )
    optical, sar = trunks(cfg, bands, input_shape.channels - bands)
    shapes = _shapes(optical, sar)
    return {
        "optical": optical,
        "sar": sar,
        "exchanges": _exchanges(cfg, shapes),
        "learned": learns_stand_ins(cfg),
    }


def _resnets(cfg, optical_bands: int, sar_bands: int) -> tuple[Backbone, Backbone]:
    optical = _resnet(cfg, optical_bands, cfg.MODEL.RESNETS.clone(), "MODEL.RESNETS")
    return optical, _resnet(cfg, sar_bands, _sar_resnets(cfg), "MODEL.FUSION.SAR_RESNETS")


def _timms(cfg, optical_bands: int, sar_bands: int) -> tuple[TimmNet, TimmNet]:
    return _timm(cfg, optical_bands), _timm(cfg, sar_bands, has_stages=not cfg.MODEL.FUSION.SHARE_WEIGHTS)


def _timm(cfg, bands: int, has_stages: bool = True) -> TimmNet:
    # Stages that no level of the pyramid needs are not built: their parameters would never get a gradient.
    last = list(STRIDES).index(cfg.MODEL.FPN.IN_FEATURES[-1])
    stages = list(STRIDES)[: last + 1] if has_stages else []
    keys = cfg.MODEL.TIMM
    return TimmNet(keys.NAME, bands, stages, keys.DROP_PATH, keys.FREEZE, keys.GRADIENT_CHECKPOINTING)


def _resnet(cfg, bands: int, resnets, section: str) -> Backbone:
    _check_widths(resnets, section)
    own = cfg.clone()
    own.defrost()
    resnets.defrost()
    own.MODEL.RESNETS = resnets
    # Stages that no level of the pyramid needs are not built: their parameters would never get a gradient.
    if list(resnets.OUT_FEATURES) != ["stem"]:
        resnets.OUT_FEATURES = list(cfg.MODEL.FPN.IN_FEATURES)
    return build_resnet_backbone(own, ShapeSpec(channels=bands))


def _sar_resnets(cfg):
    """MODEL.RESNETS for the SAR stream; where stages are shared its only output is the stem."""
    fusion, resnets = cfg.MODEL.FUSION, cfg.MODEL.RESNETS.clone()
    resnets.defrost()
    changed = {key: value for key, value in fusion.SAR_RESNETS.items() if value}
    if fusion.SHARE_WEIGHTS and changed:
        raise InputError(
            f"MODEL.FUSION.SHARE_WEIGHTS is set, but so is MODEL.FUSION.SAR_RESNETS.{next(iter(changed))}: a stream "
            "that shares its stages cannot have others. Leave one of the two keys at its default."
        )
    resnets.update(changed)
    if fusion.SHARE_WEIGHTS:
        resnets.OUT_FEATURES = ["stem"]
    return resnets


def _check_widths(resnets, section: str) -> None:
    if resnets.DEPTH in (18, 34) and resnets.RES2_OUT_CHANNELS != 64:
        raise InputError(
            f"{section}.DEPTH {resnets.DEPTH} needs {section}.RES2_OUT_CHANNELS 64, found {resnets.RES2_OUT_CHANNELS}."
        )


def _shapes(optical: Backbone, sar: Backbone) -> dict[str, dict[str, ShapeSpec]]:
    """Shapes behind every stage that is built, by modality."""
    shapes = {}
    for name, resnet in (("optical", optical), ("sar", sar if sar.stage_names else optical)):
        channels, strides = resnet._out_feature_channels, resnet._out_feature_strides
        shapes[name] = {s: ShapeSpec(channels=channels[s], stride=strides[s]) for s in resnet.stage_names}
    return shapes


def _exchanges(cfg, shapes: dict[str, dict[str, ShapeSpec]]) -> dict[str, nn.Module]:
    built = {}
    for stage, name in cfg.MODEL.FUSION.EXCHANGE.items():
        if not name:
            continue
        if stage not in shapes["optical"]:
            raise InputError(
                f"MODEL.FUSION.EXCHANGE.{stage} is {name}, but the network has no such stage: with MODEL.FPN."
                f"IN_FEATURES {list(cfg.MODEL.FPN.IN_FEATURES)} it has {', '.join(shapes['optical'])}."
            )
        op = _op(EXCHANGE_REGISTRY, f"MODEL.FUSION.EXCHANGE.{stage}", name)
        built[stage] = op(cfg, shapes["optical"][stage], shapes["sar"][stage])
    return built


def _joins(cfg, levels, shapes: dict[str, dict[str, ShapeSpec]]) -> dict[str, nn.Module]:
    op = _op(JOIN_REGISTRY, "MODEL.FUSION.JOIN", cfg.MODEL.FUSION.JOIN)
    return {level: op(cfg, shapes["optical"][level], shapes["sar"][level]) for level in levels}


def _op(registry, key: str, name: str):
    if name not in registry:
        raise unknown_name(key, name, [known for known, _ in registry])
    return registry.get(name)


def _pair(cfg, streams: dict) -> tuple[TwoStreamResNet, FPN, FPN]:
    bottom_up = TwoStreamResNet(**streams)
    shapes = bottom_up.output_shapes
    return bottom_up, _fpn(cfg, PassThrough(shapes["optical"])), _fpn(cfg, PassThrough(shapes["sar"]))


def _fpn(cfg, bottom_up: Backbone) -> FPN:
    top_block = LastLevelMaxPool()
    # Detectron2 takes for granted that the last stage is res5.
    top_block.in_feature = cfg.MODEL.FPN.IN_FEATURES[-1].replace("res", "p")
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
