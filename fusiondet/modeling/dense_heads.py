"""Heads that predict per pixel from the pyramid of the detector: heights of buildings, footprints, the image itself.

Each head has a decoder that doubles the coarsest map up to full resolution (P1, P2: with skip connections; P5: without
for the reconstruction), and a loss that looks only where the truth is known.

Legend: N images, C bands, H x W pixels of the padded batch, D channels. Heights are metres above ground. `picture` is
(N, C + 1, H, W): normalised bands, 0 where there is no data, and a last channel that is 1 where any band has data.
"""

import math
from dataclasses import dataclass

from fusiondet.errors import InputError, unknown_name
from fusiondet.modeling.backbone import valid_at
from fusiondet.modeling.fusion import StandIn, valid_mean
from fusiondet.modeling.task_attention import TaskAttention

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.utils.registry import Registry
from torch import Tensor, nn

DENSE_HEAD_REGISTRY = Registry("DENSE_HEAD")
DENSE_HEAD_REGISTRY.__doc__ = """
Heads named in MODEL.DENSE_HEADS.NAMES: subclasses of `DenseHead`. Built as obj(cfg, in_channels: int, image_channels:
int), the channels of its decoder's last map, and C.
"""


@dataclass
class DenseMaps:
    """What the dense heads say; None where there is no such head.

    Attributes:
        height_m: (N, 1, H, W) metres, 0 or more; 0 is no building.
        footprint: (N, 1, H, W) logits.
        reconstruction: (N, C, H, W) normalised bands; None in evaluation, too: it only ever trains the features.
        classes: (N, K, H, W) logits of the classes of a data set (of a `DenseNet` alone).
        branches: modality -> footprint logits (N, 1, H, W) of a network whose branches decide on their own.
        branches_valid: modality -> (N, 1, H, W) 1 where the branch saw data of it, else 0.
    """

    height_m: Tensor | None = None
    footprint: Tensor | None = None
    reconstruction: Tensor | None = None
    classes: Tensor | None = None
    branches: dict[str, Tensor] | None = None
    branches_valid: dict[str, Tensor] | None = None

    def output_maps(self) -> dict[str, Tensor]:
        """Return what is output, float32, as far as it is predicted.

        Returns:
            {"height_map_m": (N, 1, H, W) metres, "footprint_map": (N, 1, H, W) probability of a building,
            "class_map": (N, K, H, W) probabilities of the classes}.
        """
        maps = {}
        if self.height_m is not None:
            maps["height_map_m"] = self.height_m.float()
        if self.footprint is not None:
            maps["footprint_map"] = self.footprint.float().sigmoid()
        if self.classes is not None:
            maps["class_map"] = self.classes.float().softmax(dim=1)
        return maps

    def branch_maps(self) -> dict[str, dict[str, Tensor]]:
        """Return `output_maps` of each branch alone and of the network: {"optical": ..., "sar": ..., "fused": ...}."""
        of_branches = {m: DenseMaps(footprint=logits).output_maps() for m, logits in self.branches.items()}
        return {**of_branches, "fused": self.output_maps()}


@dataclass
class DenseTargets:
    """What they should say; NaN where nothing is known, on tiles without labels and in the padding.

    Attributes:
        height_m: (N, 1, H, W) metres above ground, 0 outside buildings, NaN also in buildings of unknown height.
        footprint: (N, 1, H, W) 0 or 1.
        image: (N, C, H, W) normalised bands, NaN = no data.
        classes: (N, 1, H, W) index of the class.
    """

    height_m: Tensor
    footprint: Tensor
    image: Tensor
    classes: Tensor | None = None


# ---- Decoder -----------------------------------------------------------------------------------------------

UPSAMPLINGS = ("resize", "transposed")
NORMS = ("", "GN", "BN", "SyncBN")


def decoder_steps(input_shape: dict[str, ShapeSpec], in_features: list[str]) -> int:
    """Doublings from the coarsest of `in_features` to full resolution."""
    return int(math.log2(input_shape[in_features[-1]].stride))


class DenseDecoder(nn.Module):
    """From the coarsest feature map to full resolution, twice the size at each step (P1).

    A step has `dim` channels at stride 4 and above, half of it at stride 2 and a quarter at stride 1. With skips, a
    projection of what is known at that stride is added: a feature map, or at strides 2 and 1 a convolution of the
    image. Without, the coarsest map is all there is.
    """

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        in_features: list[str],
        image_channels: int,
        dim: int = 64,
        skips: bool = True,
        upsample: str = "resize",
        norm: str = "GN",
        steps: range | None = None,
        attention: bool = False,
    ):
        """A decoder, or part of one.

        Args:
            in_features: names of feature maps, finest first; their strides are powers of 2.
            image_channels: C.
            upsample: "resize" (bilinear) or "transposed" (convolution, 2 x 2 with stride 2).
            norm: "", "GN" (`ValidGroupNorm`), "BN" or "SyncBN".
            steps: those of the doublings that this is; None for all. The first is 0. A later one starts from where
                another decoder ended.
            attention: look at each feature map through a `TaskAttention`.
        """
        super().__init__()
        coarsest = input_shape[in_features[-1]]
        steps = range(decoder_steps(input_shape, in_features)) if steps is None else steps
        self.first = in_features[-1] if steps and steps[0] == 0 else None
        by_stride = {input_shape[name].stride: name for name in in_features}
        # Named by their number, so that weights of a decoder shared up to another step find their place.
        self.skips, self.steps = [], nn.ModuleDict()
        for step in steps:
            stride = coarsest.stride >> (step + 1)
            channels = coarsest.channels if step == 0 else decoder_channels(dim, 2 * stride)
            skip = by_stride.get(stride) if skips else None
            self.skips.append(skip)
            seen = input_shape[skip].channels if skip else 0
            picture = image_channels + 1 if skips and stride < 4 and not skip else 0
            self.steps[str(step)] = _Step(
                channels, decoder_channels(dim, stride), stride, upsample, norm, seen, picture
            )
        read = {name for name in (self.first, *self.skips) if name} if attention else ()
        self.attentions = nn.ModuleDict({n: TaskAttention(input_shape[n].channels) for n in sorted(read)})

    def forward(self, features: dict[str, Tensor], picture: Tensor, start: Tensor | None = None) -> Tensor:
        """Features (N, D, H/stride, W/stride) and `picture` -> the map behind the last step.

        Args:
            start: what the decoder gave that took the steps before; None for one that begins with step 0.
        """
        valid = picture[:, -1:]
        features = {**features, **{n: a(features[n], valid) for n, a in self.attentions.items()}}
        x = start if self.first is None else features[self.first]
        for skip, step in zip(self.skips, self.steps.values()):
            x = step(x, features.get(skip), picture)
        return x


def decoder_channels(dim: int, stride: int) -> int:
    """Channels of a decoder of width `dim` at `stride`."""
    return dim if stride >= 4 else dim * stride // 4


class _Step(nn.Module):
    """One doubling."""

    def __init__(self, in_channels, channels, stride, upsample, norm, skip_channels, picture_channels):
        """`stride` is that of the result. `skip_channels`, `picture_channels`: 0 for what is not added."""
        super().__init__()
        self.stride, self.resize = stride, upsample == "resize"
        if self.resize:
            # Before the resize, with which a 1x1 convolution commutes, it costs a quarter.
            self.up = nn.Conv2d(in_channels, channels, 1, bias=False)
        else:
            self.up = nn.ConvTranspose2d(in_channels, channels, 2, stride=2, bias=False)
        self.skip = nn.Conv2d(skip_channels, channels, 1, bias=False) if skip_channels else None
        self.picture = None
        if picture_channels:
            self.picture = nn.Conv2d(picture_channels, channels, 3, stride, padding=1)
            weight_init.c2_msra_fill(self.picture)
        self.conv = _Convolution(channels, channels, norm)
        for layer in filter(None, (self.up, self.skip)):
            nn.init.normal_(layer.weight, std=(layer.in_channels) ** -0.5)

    def forward(self, x: Tensor, skip: Tensor | None, picture: Tensor) -> Tensor:
        x = self.up(x)
        if self.resize:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        # Where a size is odd, the coarser map reaches over the edge.
        height, width = (-(-side // self.stride) for side in picture.shape[-2:])
        x = x[:, :, :height, :width]
        if self.skip is not None:
            x = x + self.skip(skip)
        if self.picture is not None:
            x = x + F.relu(self.picture(picture))
        return self.conv(x, picture[:, -1:])


class _Convolution(nn.Module):
    """3 x 3 convolution, normalisation, ReLU."""

    def __init__(self, in_channels: int, channels: int, norm: str):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=not norm)
        self.norm = ValidGroupNorm(channels) if norm == "GN" else get_norm(norm, channels)
        weight_init.c2_msra_fill(self.conv)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """`valid` (N, 1, H, W) of the pixels."""
        x = self.conv(x)
        if isinstance(self.norm, ValidGroupNorm):
            x = self.norm(x, valid_at(valid, x))
        elif self.norm is not None:
            x = self.norm(x)
        return F.relu(x)


class ValidGroupNorm(nn.Module):
    """Group normalisation by the cells that hold data.

    Else how much of a batch is padding, or of a tile lies beyond the scene, would change what is said of the rest.
    Groups have 8 channels or a few more: Detectron2's "GN", always 32 groups, takes no fewer than 32 channels.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.groups = next(g for g in range(max(1, channels // 8), 0, -1) if channels % g == 0)
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Maps (N, channels, h, w) by `valid` (N, 1, h, w), share of each cell with data; by all where none has any."""
        wide = x.float()
        mean, square = (self._grouped(valid_mean(y, valid)) for y in (wide, wide * wide))
        scale = (square - mean * mean).clamp(min=0.0).add(self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, :, None, None], wide, scale[:, :, None, None]).to(x.dtype)

    def _grouped(self, values: Tensor) -> Tensor:
        """(N, channels) -> each replaced by the mean of its group."""
        groups = values.unflatten(1, (self.groups, -1))
        return groups.mean(2, keepdim=True).expand_as(groups).flatten(1)


# ---- Heads -------------------------------------------------------------------------------------------------


class DenseHead(nn.Module):
    """Base of the heads: a map and its loss.

    Attributes:
        task: its name for weighting and attention. pixel_task: its name in `Architecture.pixel_tasks`.
        field: its map in `DenseMaps`. loss_name: its loss.
        needs: fields of `DenseMaps` that have to be there before it is called.
        sees_details: its decoder may have skips, and shares its first steps with the others that do.
        loss_weight: factor on the loss.
    """

    task: str
    pixel_task: str
    field: str
    loss_name: str
    needs: tuple[str, ...] = ()
    sees_details = True

    def __init__(self, loss_weight: float):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, decoded: Tensor, maps: DenseMaps) -> Tensor:
        """The decoder's last map (N, in_channels, H, W) and what other heads said -> its own map, float32."""
        raise NotImplementedError

    def loss(self, maps: DenseMaps, targets: DenseTargets) -> Tensor:
        """Scalar, before its weight; 0 and attached to the map where nothing is known."""
        raise NotImplementedError


# Far above any building; keeps what an untrained or diverging head says finite.
_MOST_HEIGHT_M = 2000.0
# What the untrained head says everywhere: between the ground, which most pixels are, and a building.
_UNTRAINED_HEIGHT_M = 1.0
# The last layer counts in log(1 + 20 m): Adam moves weights by its rate whatever the gradient, and with a few channels
# it takes hundreds of steps to a number of 3 that counts in 1.
_LOG_UNIT = math.log1p(20.0)


@DENSE_HEAD_REGISTRY.register()
class DenseHeight(DenseHead):
    """Height of buildings per pixel, metres above ground, exactly 0 outside.

    The last layers predict z = log(1 + height); the map is exp(z) - 1 with z clipped to [0, log(1 + 2000 m)]. The loss
    is |log(1 + predicted) - log(1 + true)|, relative where it is high and in metres near the ground: the mean over
    building pixels and the mean over ground, half each. Over all pixels alike, ground would outvote buildings: the best
    answer to a pixel that is a building with less than even odds would be 0. A median of the halves still makes the
    ground come out as 0 itself (some scores ask for that). The clip lets gradients through: else a head that once says
    0 everywhere would stay there.

    `refine` multiplies with argmax(footprint), 0 or 1, before the loss (P2, equation 16): the height then learns only
    where a footprint is predicted, from false ones, too. `from_footprint` shows the footprint's probability to the last
    two layers (left open by P1). In neither does the loss of the height reach the footprint: what a pixel is stays
    that head's own decision, as an outline fed in from outside would be.
    """

    task, pixel_task = "dense_height", "height"
    field, loss_name = "height_m", "loss_dense_height"

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        refine: bool = False,
        from_footprint: bool = False,
        loss_weight: float = 1.0,
    ):
        super().__init__(loss_weight)
        self.refine = refine
        self.needs = ("footprint",) if refine or from_footprint else ()
        self.informed = None
        if from_footprint:
            self.informed = nn.Conv2d(in_channels + 1, in_channels, 3, padding=1)
            weight_init.c2_msra_fill(self.informed)
        self.predictor = _predictor(in_channels, 1, bias=math.log1p(_UNTRAINED_HEIGHT_M) / _LOG_UNIT)

    @classmethod
    def from_config(cls, cfg, in_channels, image_channels):
        """The only reader of config keys."""
        heads = cfg.MODEL.DENSE_HEADS
        return {
            "in_channels": in_channels,
            "refine": heads.HEIGHT.REFINE,
            "from_footprint": heads.HEIGHT.FROM_FOOTPRINT,
            "loss_weight": heads.HEIGHT.LOSS_WEIGHT,
        }

    def forward(self, decoded, maps):
        """See DenseHead; (N, 1, H, W) metres."""
        if self.informed is not None:
            probability = maps.footprint.detach().sigmoid().to(decoded.dtype)
            decoded = F.relu(self.informed(torch.cat([decoded, probability], dim=1)))
        z = self.predictor(decoded).float() * _LOG_UNIT
        z = z + (z.clamp(0.0, math.log1p(_MOST_HEIGHT_M)) - z).detach()
        height_m = z.expm1()
        return height_m * (maps.footprint.detach() > 0) if self.refine else height_m

    def loss(self, maps, targets):
        """Mean absolute difference of log(1 + metres), of buildings and of ground half each."""
        predicted, truth_m = known_pixels(maps.height_m, targets.height_m)
        difference, building = (predicted.log1p() - truth_m.log1p()).abs(), truth_m > 0
        return (_mean(difference[building]) + _mean(difference[~building])) / 2


@DENSE_HEAD_REGISTRY.register()
class Footprint(DenseHead):
    """Whether a pixel is part of a building: one logit, which is the two classes of P2 but for a constant.

    The loss is cross-entropy + Dice (P2, equation 19) over the known pixels of the batch together. Dice counts one
    more pixel that is both predicted and true, so that a batch without buildings has a gradient, too.
    """

    task = pixel_task = field = "footprint"
    loss_name = "loss_footprint"

    @configurable
    def __init__(self, *, in_channels: int, loss_weight: float = 1.0):
        super().__init__(loss_weight)
        self.predictor = _predictor(in_channels, 1)

    @classmethod
    def from_config(cls, cfg, in_channels, image_channels):
        """The only reader of config keys."""
        return {"in_channels": in_channels, "loss_weight": cfg.MODEL.DENSE_HEADS.FOOTPRINT.LOSS_WEIGHT}

    def forward(self, decoded, maps):
        """See DenseHead; (N, 1, H, W) logits."""
        return self.predictor(decoded).float()

    def loss(self, maps, targets):
        """See `footprint_loss`."""
        return footprint_loss(maps.footprint, targets.footprint)


def footprint_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean cross-entropy + 1 - (2 overlap + 1) / (predicted + true + 1), areas in pixels (P2, equation 19).

    Args:
        logits: of any shape. truth: of the same, 0 or 1, NaN where unknown.
    """
    logits, truth = known_pixels(logits, truth)
    entropy = _mean(F.binary_cross_entropy_with_logits(logits, truth, reduction="none"))
    predicted = logits.sigmoid()
    dice = (2 * (predicted * truth).sum() + 1) / (predicted.sum() + truth.sum() + 1)
    return entropy + (1 - dice)


@DENSE_HEAD_REGISTRY.register()
class Reconstruction(DenseHead):
    """The image again, from the coarsest feature map alone (P5): a decoder with skips would copy it and teach nothing.

    Needs no labels. The loss is the mean absolute difference over valid pixels and bands, in standard deviations of a
    band; P5 sums over pixels instead, and its weight of 0.1 belongs to that sum.
    """

    task = pixel_task = field = "reconstruction"
    loss_name = "loss_reconstruction"
    sees_details = False

    @configurable
    def __init__(self, *, in_channels: int, image_channels: int, loss_weight: float = 1.0):
        super().__init__(loss_weight)
        self.predictor = _predictor(in_channels, image_channels)

    @classmethod
    def from_config(cls, cfg, in_channels, image_channels):
        """The only reader of config keys."""
        weight = cfg.MODEL.DENSE_HEADS.RECONSTRUCTION.LOSS_WEIGHT
        return {"in_channels": in_channels, "image_channels": image_channels, "loss_weight": weight}

    def forward(self, decoded, maps):
        """See DenseHead; (N, C, H, W) normalised bands."""
        return self.predictor(decoded).float()

    def loss(self, maps, targets):
        """Mean absolute difference."""
        predicted, truth = known_pixels(maps.reconstruction, targets.image)
        return _mean((predicted - truth).abs())


def _predictor(in_channels: int, channels: int, bias: float = 0.0) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, kernel_size=1)
    # Small beside what it will say, yet not so small that what is below it learns nothing at first.
    nn.init.normal_(conv.weight, std=0.3 * in_channels**-0.5)
    nn.init.constant_(conv.bias, bias)
    return conv


def known_pixels(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) float32 each, where the truth is known. Selected before any arithmetic: NaN * 0 is NaN in the gradient."""
    known = ~torch.isnan(truth)
    return predicted[known].float(), truth[known].float()


def _mean(values: Tensor) -> Tensor:
    """Mean of (K,); 0, still attached, of none."""
    return values.sum() / max(1, values.numel())


# ---- All of them -------------------------------------------------------------------------------------------


class DenseHeads(nn.Module):
    """The dense heads of a network, each with its decoder.

    Attributes:
        tasks: what they do, of "dense_height", "footprint", "reconstruction".
    """

    def __init__(
        self, heads: list[DenseHead], decoders: list[DenseDecoder], trunk: DenseDecoder | None = None
    ):
        """Heads with a decoder each.

        Args:
            trunk: takes the first steps for all heads that `sees_details`, whose decoders take the rest; None where
                each takes all.
        """
        super().__init__()
        self.tasks = [head.task for head in heads]
        self.heads = nn.ModuleDict(dict(zip(self.tasks, heads)))
        self.decoders = nn.ModuleDict(dict(zip(self.tasks, decoders)))
        self.trunk = trunk
        self.fill = StandIn(0, learned=False)

    def forward(self, features: dict[str, Tensor], image: Tensor) -> DenseMaps:
        """Features (N, D, H/stride, W/stride) and the image (N, C, H, W), normalised, NaN = no data."""
        picture = torch.cat(self.fill(image), dim=1)
        maps = DenseMaps()
        start = None if self.trunk is None else self.trunk(features, picture)
        for task in sorted(self.tasks, key=lambda task: len(self.heads[task].needs)):
            head = self.heads[task]
            if self.training or task != Reconstruction.task:
                decoded = self.decoders[task](features, picture, start if head.sees_details else None)
                setattr(maps, head.field, head(decoded, maps))
        return maps

    def losses(self, maps: DenseMaps, targets: DenseTargets) -> dict[str, Tensor]:
        """Loss per head, of the maps that were predicted, times its weight. 0 and attached where nothing is known."""
        return {
            head.loss_name: head.loss(maps, targets) * head.loss_weight
            for head in self.heads.values()
            if getattr(maps, head.field) is not None
        }


def build_dense_heads(cfg, input_shape: dict[str, ShapeSpec], image_channels: int) -> DenseHeads | None:
    """The heads named in MODEL.DENSE_HEADS.NAMES; None where there are none.

    Args:
        input_shape: of the feature maps by name.
        image_channels: bands of the image.

    Raises:
        InputError: see `check_dense_heads`; feature maps that are not there or not finest first, more shared steps than
            there are.
    """
    check_dense_heads(cfg)
    keys = cfg.MODEL.DENSE_HEADS
    if not len(keys.NAMES):
        return None
    _check_features(keys.IN_FEATURES, input_shape)
    steps = decoder_steps(input_shape, keys.IN_FEATURES)
    shared = keys.SHARED_STEPS
    if shared > steps:
        raise InputError(
            f"MODEL.DENSE_HEADS.SHARED_STEPS is {shared}, expected {steps} at most: so many doublings lead from "
            f"{keys.IN_FEATURES[-1]} at stride {2**steps} to full resolution."
        )

    def decoder(skips: bool, part: range) -> DenseDecoder:
        return DenseDecoder(
            input_shape, list(keys.IN_FEATURES), image_channels, keys.CONV_DIM, skips, keys.UPSAMPLE, keys.NORM, part,
            cfg.MODEL.TASK_ATTENTION,
        )  # fmt: skip

    width = decoder_channels(keys.CONV_DIM, 1)
    heads = [DENSE_HEAD_REGISTRY.get(name)(cfg, width, image_channels) for name in keys.NAMES]
    decoders = [
        decoder(keys.SKIPS, range(shared, steps)) if head.sees_details else decoder(False, range(steps))
        for head in heads
    ]
    return DenseHeads(heads, decoders, decoder(keys.SKIPS, range(shared)) if shared else None)


def check_dense_heads(cfg) -> None:
    """InputError when a key of MODEL.DENSE_HEADS means nothing, or asks for what none of the heads has."""
    keys = cfg.MODEL.DENSE_HEADS
    for name in keys.NAMES:
        if name not in DENSE_HEAD_REGISTRY:
            raise unknown_name(
                "MODEL.DENSE_HEADS.NAMES entry", name, [known for known, _ in DENSE_HEAD_REGISTRY]
            )
        if list(keys.NAMES).count(name) > 1:
            raise InputError(
                f"MODEL.DENSE_HEADS.NAMES has {name} more than once: {list(keys.NAMES)}. Name it once."
            )
    for key, value, known in (("UPSAMPLE", keys.UPSAMPLE, UPSAMPLINGS), ("NORM", keys.NORM, NORMS)):
        if value not in known:
            raise unknown_name(f"MODEL.DENSE_HEADS.{key}", value, [name for name in known if name])
    if keys.CONV_DIM < 4 or keys.CONV_DIM % 4:
        raise InputError(
            f"MODEL.DENSE_HEADS.CONV_DIM is {keys.CONV_DIM}, expected a multiple of 4: a quarter of it at stride 1."
        )
    if keys.SHARED_STEPS < 0:
        raise InputError(f"MODEL.DENSE_HEADS.SHARED_STEPS is {keys.SHARED_STEPS}, expected 0 or more.")
    for section in ("HEIGHT", "FOOTPRINT", "RECONSTRUCTION"):
        weight = keys[section].LOSS_WEIGHT
        if not weight >= 0:
            raise InputError(f"MODEL.DENSE_HEADS.{section}.LOSS_WEIGHT is {weight}, expected 0 or more.")
    _check_skips(keys)
    _check_both_heads(keys)


def _check_skips(keys) -> None:
    """InputError when skips are switched off and no head would have any."""
    heads = [DENSE_HEAD_REGISTRY.get(name) for name in keys.NAMES]
    if heads and not keys.SKIPS and not any(head.sees_details for head in heads):
        raise InputError(
            f"MODEL.DENSE_HEADS.SKIPS is False, but of NAMES {list(keys.NAMES)} none ever has skips. Leave it at True."
        )


def _check_both_heads(keys) -> None:
    """InputError for what joins height and footprint where one of them is not there."""
    joint = {
        "HEIGHT.REFINE": keys.HEIGHT.REFINE,
        "HEIGHT.FROM_FOOTPRINT": keys.HEIGHT.FROM_FOOTPRINT,
        "SHARED_STEPS": keys.SHARED_STEPS,
    }
    for key, value in joint.items():
        for name in ("DenseHeight", "Footprint"):
            if value and name not in keys.NAMES:
                raise InputError(
                    f"MODEL.DENSE_HEADS.{key} is {value}, which needs the heads DenseHeight and Footprint; NAMES is "
                    f"{list(keys.NAMES)}. Add {name} to it, or leave {key} at its default."
                )


def _check_features(names: list[str], input_shape: dict[str, ShapeSpec]) -> None:
    if not len(names):
        raise InputError(
            "MODEL.DENSE_HEADS.IN_FEATURES is empty, expected names of feature maps, finest first."
        )
    for name in names:
        if name not in input_shape:
            raise unknown_name("MODEL.DENSE_HEADS.IN_FEATURES entry", name, input_shape)
    strides = [input_shape[name].stride for name in names]
    if strides != sorted(set(strides)):
        raise InputError(
            f"MODEL.DENSE_HEADS.IN_FEATURES {list(names)} have strides {strides}, expected the finest first, each once."
        )
