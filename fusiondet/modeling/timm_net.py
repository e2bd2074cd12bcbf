"""Hierarchical networks of timm (ResNet, RegNet, EfficientNet, ConvNeXt, Swin, ...) as stages that can be joined.

A network is cut where timm says that a feature map of stride 4, 8, 16 or 32 is ready. The pieces are called as those of
Detectron2's ResNet are, `stem`, `res2`, ... `res5`, so that two streams of it exchange and join behind every stage.
Inside a piece the names are timm's: `res2.stages_0.blocks.0.norm.weight` is timm's `stages.0.blocks.0.norm.weight`.
"""

import difflib
from collections import OrderedDict
from collections.abc import Sequence

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.errors import InputError

import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Stage -> pixels of the image that a cell of its feature map is wide.
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class TimmNet(Backbone):
    """A hierarchical network of timm, called piece by piece.

    Attributes:
        name: of the network, in timm's words.
        stage_names: of STRIDES, in order; [] for a stem alone.
    """

    def __init__(
        self,
        name: str,
        bands: int,
        stages: Sequence[str] = tuple(STRIDES),
        drop_path: float = 0.0,
        frozen: int = 0,
        checkpointed: bool = False,
    ):
        """Build the network with random weights.

        Args:
            name: in timm's words, e.g. "convnext_tiny".
            bands: of the image.
            stages: of STRIDES, the first ones; none for the stem of a stream that shares the stages of another.
            drop_path: rate of stochastic depth, where it is above 0.
            frozen: leading pieces that do not learn: 1 the stem, 2 also res2, ...
            checkpointed: whether a training step computes the stages twice, to keep less in memory.

        Raises:
            InputError: timm has no such network, or it has no feature maps stage by stage at these strides, or no
                stochastic depth, or takes images of one size only.
        """
        super().__init__()
        self.name, self.stage_names = name, list(stages)
        net = _create(name, bands, drop_path)
        channels_last = getattr(getattr(net, "output_fmt", None), "name", "NCHW") == "NHWC"
        pieces = _cut(name, net)
        for piece in ("stem", *self.stage_names):
            self.add_module(piece, _Piece(pieces[piece], piece == "stem", channels_last, checkpointed))
        self.stem.in_channels = bands
        channels = dict(zip(net.feature_info.reduction(), net.feature_info.channels(), strict=True))
        self._out_feature_channels = {stage: channels[STRIDES[stage]] for stage in self.stage_names}
        self._out_feature_strides = {stage: STRIDES[stage] for stage in self.stage_names}
        for piece in ("stem", *self.stage_names)[:frozen]:
            module = getattr(self, piece)
            module.requires_grad_(False)
            freeze_batch_norm_2d(module)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W), sides multiples of 32 -> {"res2": (N, C2, H/4, W/4), ...}."""
        features, x = {}, self.stem(image)
        for stage in self.stage_names:
            features[stage] = x = getattr(self, stage)(x)
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the feature maps."""
        strides, channels = self._out_feature_strides, self._out_feature_channels
        return {s: ShapeSpec(channels=channels[s], stride=strides[s]) for s in self.stage_names}

    def first_convs(self) -> list[str]:
        """Names of the convolutions that see the image: mostly one, or the branches of a stem with several."""
        names = timm.get_pretrained_cfg_value(self.name, "first_conv")
        inside = dict(self.named_modules())
        found = []
        for name in [names] if isinstance(names, str) else names or []:
            # timm flattens the first two levels of names where it lists features.
            found += [n for n in (f"stem.{name}", f"stem.{name.replace('.', '_', 1)}") if n in inside][:1]
        return found

    def norm_behind(self, conv: str) -> str | None:
        """Name of the batch norm right behind a convolution; None where something else follows."""
        leaves = [n for n, m in self.named_modules() if hasattr(m, "running_mean") or not [*m.children()]]
        behind = leaves[leaves.index(conv) + 1]
        return behind if hasattr(self.get_submodule(behind), "running_mean") else None


class _Piece(nn.Sequential):
    """Modules one after another, on feature maps with channels first whatever they have inside."""

    def __init__(self, modules: OrderedDict, sees_image: bool, channels_last: bool, checkpointed: bool):
        super().__init__(modules)
        self._last_in, self._last_out = channels_last and not sees_image, channels_last
        self._checkpointed = checkpointed and not sees_image

    def forward(self, x: Tensor) -> Tensor:
        if self._checkpointed and self.training and torch.is_grad_enabled():
            return checkpoint(self._run, x, use_reentrant=False)
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        x = super().forward(x.permute(0, 2, 3, 1) if self._last_in else x)
        return x.permute(0, 3, 1, 2).contiguous() if self._last_out else x


def check_timm_name(name: str) -> None:
    """InputError, with names that are near, when timm has no network `name`."""
    # Any other prefix ("hf-hub:") would ask a server.
    if ":" not in name and timm.is_model(name):
        return
    near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise InputError(
        f"MODEL.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have.{hint} "
        "`timm.list_models()` names all."
    )


def _create(name: str, bands: int, drop_path: float) -> nn.Module:
    check_timm_name(name)
    options = {"drop_path_rate": drop_path} if drop_path else {}
    fixed_size = timm.get_pretrained_cfg_value(name, "fixed_input_size")
    for more in ({"strict_img_size": False}, {}) if fixed_size else ({},):
        try:
            net = timm.create_model(name, features_only=True, in_chans=bands, **options, **more)
            break
        except TypeError as error:  # an option that it does not know
            if not more:
                raise InputError(
                    f"MODEL.TIMM.NAME {name}: cannot be built ({error})."
                    + (" It has no stochastic depth: set MODEL.TIMM.DROP_PATH 0." if drop_path else "")
                ) from None
        except (RuntimeError, AttributeError, AssertionError, NotImplementedError) as error:
            raise _no_features(name, str(error)) from None
    _check_any_size(name, net, bands)
    return net


def _check_any_size(name: str, net: nn.Module, bands: int) -> None:
    """InputError unless `net` takes windows of other sizes than its own, and its maps have the sides they should."""
    try:
        with torch.no_grad():
            maps = net.eval()(torch.zeros(1, bands, 96, 64))
    except Exception as error:  # whatever fails inside it
        raise InputError(
            f"MODEL.TIMM.NAME {name}: takes images of one size only, and windows of a scene have any ({error}). Take "
            "another network, e.g. convnext_tiny or swin_tiny_patch4_window7_224."
        ) from None
    for stride, features in zip(net.feature_info.reduction(), maps, strict=True):
        if not {96 // stride, 64 // stride} <= {*features.shape[1:]}:
            raise _no_features(
                name, f"that of stride {stride} is {tuple(features.shape)} of an image of 96 x 64"
            )
    net.train()


def _no_features(name: str, reason: str) -> InputError:
    return InputError(
        f"MODEL.TIMM.NAME {name}: has no feature maps of strides 4, 8, 16 and 32 that are computed one after the other "
        f"({reason}). Take a hierarchical network, e.g. resnet50, convnext_tiny or swin_tiny_patch4_window7_224."
    )


def _cut(name: str, net: nn.Module) -> dict[str, OrderedDict]:
    """Piece -> its modules by name; "stem" is all before what makes the first feature map of stride 4."""
    steps = _steps(net)
    ends = {
        info["reduction"]: info["module"].replace(".", "_") for info in net.feature_info.get_dicts(keys=None)
    }
    found = [step for step, _ in steps]
    if not {*STRIDES.values()} <= ends.keys() or not all(ends[s] in found for s in STRIDES.values()):
        raise _no_features(name, f"it has strides {', '.join(map(str, net.feature_info.reduction()))}")
    cuts = [found.index(ends[stride]) for stride in STRIDES.values()]
    begins = [cuts[0], *(cut + 1 for cut in cuts[:-1])]
    pieces = {"stem": OrderedDict(steps[: cuts[0]])}
    for stage, begin, end in zip(STRIDES, begins, cuts, strict=True):
        pieces[stage] = OrderedDict(steps[begin : end + 1])
    if not pieces["stem"]:
        raise _no_features(name, "its first feature map has no stem before it")
    return pieces


def _steps(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules of `net` in the order of computing, by timm's names with dots written as underscores."""
    if isinstance(net, nn.ModuleDict):
        return list(net.items())
    if not hasattr(net, "conv_stem") or not hasattr(net, "blocks"):
        return []
    # EfficientNet and its kin; MobileNetV3's activation stands apart.
    head = [(part, getattr(net, part)) for part in ("conv_stem", "bn1", "act1") if hasattr(net, part)]
    return head + [(f"blocks_{i}", block) for i, block in enumerate(net.blocks)]
