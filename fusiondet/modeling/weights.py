"""Pretrained weights for a network whose input is not the three 8-bit colours that the weights were trained on.

Every source has its own conventions, named in `LAYOUTS`; `load_pretrained` finds out which one a file has and maps it
name by name. Nothing is matched by guessing, nothing is skipped silently: the returned `LoadReport` says what became of
every tensor, and a tensor whose shape does not fit is an error unless it is in `CLASS_DEPENDENT`.

**The stem.** The source computes `sum_c w_c * (x_c - m_c) / s_c` over its bands c, on 8-bit pixels x. Our network
normalises with other means M and deviations S, in another band order, over more bands. So for a band of the same name

    W_c = w_c * S_c / s_c      and the constant      b = sum_c w_c * (M_c - m_c) / s_c

which goes into the normalisation behind the stem (`running_mean -= b`), as the stem's convolution has no bias. The
response is then the source's, exactly, for every output whose 7x7 window lies inside the image. Where the window
reaches over the border, zero padding stands for the value M here and m there, so the two differ by `w * (M - m) / s`
summed over the taps outside; with PIXEL_MEAN = m they agree there too. Behind GroupNorm, or no norm, b has nowhere to
go and is dropped: the report says so.

Optical data that is not 8-bit (a PIXEL_MEAN above 255, say 11-bit counts) has no common scale with the source. There
each band's mean and deviation are taken to be what ImageNet's are: W_c = w_c * (ImageNet's deviation) / s_c, and b = 0.

**Bands the source does not know** (SAR, near infrared) are inflated as told by `inflation`:

    "zero"           extra bands start silent; the response is the source's whatever they hold.
    "mean_rescaled"  extra bands start as the mean of the known bands' filters, and all filters are scaled by
                     (source bands / our bands): an image that is equal in all normalised bands responds as before.
                     Takes PIXEL_STD for the bands' deviations, as computed from the training data.

When no band has a name that the source knows (SAR only, panchromatic), both give the mean filter, rescaled likewise.

**Two streams.** A file with one ResNet serves both, each stem by the names of its bands; so do its pyramid and its
heads where the network has them per modality. Of a file with two streams each takes its own. Exchanges, joins,
stand-ins and dense heads come from files that have the same ones, and start afresh otherwise; so do layers that look
at the image itself, or paint it, in other bands, and the first layers of a height head that is shown something else.
Weights between tasks always start afresh: they belong to a training.
"""

import collections
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.config_text import parse_stored
from fusiondet.errors import InputError, unknown_name
from fusiondet.modeling.fusion import MODALITIES
from fusiondet.modeling.timm_net import TimmNet
from fusiondet.modeling.timm_weights import read_timm_weights
from fusiondet.modeling.weight_files import check_finite, local_path, read_pickle, read_torch_file

import numpy as np
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from torch import Tensor, nn

INFLATIONS = ("zero", "mean_rescaled")

# Tensors whose shape follows the number of classes: initialised afresh where it differs, as when going from COCO's 80
# classes to buildings. Any other tensor of another shape is an error.
CLASS_DEPENDENT = (
    "roi_heads.box_predictor.cls_score.weight",
    "roi_heads.box_predictor.cls_score.bias",
    "roi_heads.box_predictor.bbox_pred.weight",
    "roi_heads.box_predictor.bbox_pred.bias",
    "roi_heads.mask_head.predictor.weight",
    "roi_heads.mask_head.predictor.bias",
)

# In the order red, green, blue. From torchvision's and Detectron2's own preprocessing.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Layout:
    """Conventions of one kind of weight file.

    Attributes:
        bands: names of the stem's input channels, in order.
        mean, std: the normalisation trained with, per band.
        stride_in_1x1: whether bottleneck blocks stride in their first 1x1 convolution (MSRA) or in the 3x3
            (torchvision); None where the file says nothing about it.
        eight_bit: whether mean and std are in 8-bit counts, so that they can be compared with other 8-bit data.
    """

    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stride_in_1x1: bool | None
    eight_bit: bool = True

    def take(self, channels: slice) -> "Layout":
        """The same for some of the channels."""
        own = (self.bands[channels], self.mean[channels], self.std[channels])
        return Layout(*own, self.stride_in_1x1, self.eight_bit)


_BGR_255 = Layout(("blue", "green", "red"), IMAGENET_MEAN[::-1], (1.0, 1.0, 1.0), stride_in_1x1=True)
# torchvision divides by 255 and normalises by ImageNet's deviations, which is the same as these in 8-bit counts.
_RGB_UNIT = Layout(("red", "green", "blue"), IMAGENET_MEAN, IMAGENET_STD, stride_in_1x1=False)
LAYOUTS = {
    "caffe2": _BGR_255,  # ImageNetPretrained/MSRA/R-50.pkl: conv1_w, res2_0_branch2a_w, ...
    "detectron2": _BGR_255,  # model_final_*.pkl, or a .pth trained with Detectron2's own defaults
    "torchvision": _RGB_UNIT,  # resnet50-*.pth
    "torchvision_converted": _RGB_UNIT,  # the same after Detectron2's convert-torchvision-to-d2.py
    "fusiondet": None,  # our own checkpoints: from the config stored inside
}


@dataclass
class LoadReport:
    """What became of every tensor. `str(report)` is a table for the log.

    Attributes:
        loaded: model tensors taken as they are.
        stems: per stem, one line on how its bands were made.
        reinitialised: tensors of another shape that follow classes, bands, or what a height head is shown; left
            at their fresh initialisation.
        left_at_init: model tensors that the file does not have (heads, when it is a bare backbone).
        unused: tensors of the file that the model has no place for.
        notes: what a reader should know besides.
    """

    path: str
    layout: str
    loaded: list[str] = field(default_factory=list)
    stems: dict[str, str] = field(default_factory=dict)
    reinitialised: list[str] = field(default_factory=list)
    left_at_init: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self):
        rows = [("stem", name, line) for name, line in self.stems.items()]
        for title in ("loaded", "reinitialised", "left_at_init", "unused"):
            counts = collections.Counter(_module_of(name) for name in getattr(self, title))
            rows += [(title.replace("_", " "), module, f"{n} tensors") for module, n in counts.items()]
        width = max([len(module) for _, module, _ in rows] or [0])
        lines = [f"  {title:<14} {module:<{width}}  {text}" for title, module, text in rows]
        notes = [f"  note: {note}" for note in self.notes]
        return "\n".join([f"weights from {self.path} ({self.layout} layout)", *lines, *notes])


def load_pretrained(
    model: nn.Module,
    path: str | Path,
    *,
    optical_bands: Sequence[str],
    sar_bands: Sequence[str],
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    inflation: str = "zero",
    layout: str | None = None,
) -> LoadReport:
    """Load a pretrained file into `model`, adapting the stem(s) to its bands. The model is changed only if all fits.

    Args:
        model: a detector whose backbone holds one or more Detectron2 `ResNet`s (all are loaded), or such a ResNet.
        path: `.pkl` or `.pth` of one of LAYOUTS; `detectron2://` and `https://` names are looked up in Detectron2's
            cache and never downloaded.
        optical_bands, sar_bands: names of the model's input channels, optical first. "red", "green", "blue" are known
            to the files; any other name is an extra band.
        pixel_mean, pixel_std: the model's normalisation, one number per channel, in counts of the data.
        inflation: one of INFLATIONS.
        layout: one of LAYOUTS; None finds out from the names in the file.

    Returns:
        The report, which is logged too.

    Raises:
        InputError: file missing, of no known layout, or holding anything but numbers; another depth, width or position
            of the stride; a tensor of another shape; a frozen stem that had to be inflated.
    """
    if inflation not in INFLATIONS:
        raise unknown_name("MODEL.FUSION.STEM_INFLATION", inflation, INFLATIONS)
    bands = Layout((*optical_bands, *sar_bands), tuple(pixel_mean), tuple(pixel_std), None)
    if not len(bands.bands) == len(bands.mean) == len(bands.std):
        raise InputError(
            f"{len(bands.bands)} bands ({', '.join(bands.bands) or 'none'}), but {len(bands.mean)} values in "
            f"MODEL.PIXEL_MEAN and {len(bands.std)} in MODEL.PIXEL_STD; expected one per band."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    raw, found, source = _read(path, layout)
    report = LoadReport(str(path), found)
    state = _canonical(raw, found, report)
    merged: dict[str, Tensor] = {}
    used: set[str] = set()
    resnets = streams(model)
    for prefix, channels in resnets.items():
        resnet = model.get_submodule(prefix) if prefix else model
        names = _names_of_stream(state, prefix, resnet, path)
        part = {own: state[name] for own, name in names.items()}
        theirs = source.take(_channels_of_stream(state, prefix))
        _check_resnet(resnet, prefix, part, theirs, report)
        _adapt_stem(resnet, part, theirs, bands.take(channels), inflation, prefix, report)
        merged.update({_join(prefix, name): tensor for name, tensor in part.items()})
        used.update(names.values())
    names = _names_of_the_rest(model, state, resnets)
    merged.update({own: state[name] for own, name in names.items()})
    report.unused += [name for name in state if name not in used.union(names.values())]
    _commit(model, merged, report)
    logging.getLogger(__name__).info("%s", report)
    return report


def load_timm_weights(
    model: nn.Module,
    source: str,
    *,
    optical_bands: Sequence[str],
    sar_bands: Sequence[str],
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    inflation: str = "zero",
) -> LoadReport:
    """Load weights of a network of timm, made for red, green and blue, into the stream(s) of `model`.

    Args:
        source: "pretrained" or a file; see `timm_weights.read_timm_weights`.

    The other arguments, what is returned and raised: as of `load_pretrained`.
    """
    bands = Layout((*optical_bands, *sar_bands), tuple(pixel_mean), tuple(pixel_std), None)
    merged: dict[str, Tensor] = {}
    report = None
    for prefix, channels in streams(model).items():
        net = model.get_submodule(prefix)
        found = read_timm_weights(net, source)
        report = report or LoadReport(found.origin, "timm")
        mean, std = ([255 * value for value in values] for values in (found.mean, found.std))
        part = dict(found.tensors)
        layout = Layout(("red", "green", "blue"), tuple(mean), tuple(std), None)
        _adapt_stem(net, part, layout, bands.take(channels), inflation, prefix, report)
        merged.update({_join(prefix, name): tensor for name, tensor in part.items()})
    _commit(model, merged, report)
    logging.getLogger(__name__).info("%s", report)
    return report


def streams(model: nn.Module) -> dict[str, slice]:
    """Names of the trunks in `model` (ResNets, networks of timm) with the channels of the image that each takes.

    A backbone with several streams has an attribute `stream_channels`, from the name of its trunk to a slice; without
    it every trunk takes all channels.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, ResNet | TimmNet):
            parent, _, child = name.rpartition(".")
            declared = getattr(model.get_submodule(parent), "stream_channels", {}) if name else {}
            found[name] = declared.get(child, slice(None))
    if not found:
        raise InputError(
            f"pretrained weights need a ResNet or a network of timm in the model; {type(model).__name__} has none."
        )
    return found


# ---- Reading files -----------------------------------------------------------------------------------------


def _read(path: str | Path, layout: str | None) -> tuple[dict, str, Layout]:
    """Raw tensors by their own names, the name of the layout, and its conventions."""
    on_disk = local_path(path)
    content = read_pickle(on_disk) if on_disk.suffix == ".pkl" else read_torch_file(on_disk)
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected a dictionary of weights, found {type(content).__name__}.")
    raw = content.get("model", content.get("blobs", content))
    if not isinstance(raw, Mapping):
        raise InputError(f"{path}: expected a dictionary of weights in it, found {type(raw).__name__}.")
    raw = {str(name): _tensor(value) for name, value in raw.items() if isinstance(value, np.ndarray | Tensor)}
    if layout is not None and layout not in LAYOUTS:
        raise unknown_name("layout of a weight file", layout, LAYOUTS)
    layout = layout or _layout_of(content, raw)
    if layout is None:
        some = ", ".join(list(raw)[:3]) or "no tensors"
        raise InputError(
            f"{path}: not weights of a known layout ({', '.join(LAYOUTS)}); it begins with {some}."
        )
    check_finite(raw, path)
    return raw, layout, _conventions(content, raw, layout, path)


def _layout_of(content: Mapping, raw: Mapping) -> str | None:
    if isinstance(content.get("config_yaml"), str) and any(name.startswith(_BOTTOM_UP) for name in raw):
        return "fusiondet"
    if any(name.startswith(_BOTTOM_UP) for name in raw):
        return "detectron2"
    if "stem.conv1.weight" in raw:
        return "torchvision_converted" if content.get("__author__") == "torchvision" else "detectron2"
    if "conv1_w" in raw:
        return "caffe2"
    return "torchvision" if "conv1.weight" in raw and "layer1.0.conv1.weight" in raw else None


def _conventions(content: Mapping, raw: Mapping, layout: str, path) -> Layout:
    if layout == "fusiondet":
        return _conventions_of_checkpoint(content, path)
    source = LAYOUTS[layout]
    # Old Detectron2 checkpoints carry their normalisation. Blue is the darkest mean of ImageNet and of COCO.
    mean, std = (raw.get(name) for name in ("pixel_mean", "pixel_std"))
    if layout == "detectron2" and mean is not None and std is not None and mean.numel() == std.numel() == 3:
        rgb = bool(mean.flatten()[0] > mean.flatten()[2])
        bands = ("red", "green", "blue") if rgb else ("blue", "green", "red")
        return Layout(
            bands, tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()), source.stride_in_1x1
        )
    return source


def _conventions_of_checkpoint(content: Mapping, path) -> Layout:
    cfg, _ = parse_stored(content["config_yaml"], str(path))
    of = {"optical": cfg.INPUT.OPTICAL_BANDS, "sar": cfg.INPUT.SAR_BANDS}
    bands = tuple(name for modality in of if modality in cfg.INPUT.MODALITIES for name in of[modality])
    mean, std = tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD)
    return Layout(bands, mean, std, cfg.MODEL.RESNETS.STRIDE_IN_1X1, eight_bit=_is_8bit(bands, mean))


def _tensor(value) -> Tensor:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value)) if value.dtype.kind in "fiu" else torch.empty(0)
    return value.detach().cpu()


# ---- Names -------------------------------------------------------------------------------------------------

_BOTTOM_UP = "backbone.bottom_up."
# There in checkpoints of two streams alone.
_FIRST_STEM = _BOTTOM_UP + "optical.stem."
# Constants, counters, ImageNet's classifier, and a bias of MSRA's stem that Detectron2 does not use either.
_IGNORED = re.compile(
    r"(^|\.)(pixel_mean|pixel_std|num_batches_tracked|cell_anchors\.\d+)$|_momentum$"
    r"|^(stem\.)?(fc|fc1000|linear|pred)[._]|^conv1_b$"
)
_CAFFE2 = re.compile(r"(?:(?:res_)?conv1|(res[2-5])_(\d+)_branch(1|2a|2b|2c))(_bn|_gn)?_(w|s|b|rm|riv)")


def _canonical(raw: Mapping[str, Tensor], layout: str, report: LoadReport) -> dict[str, Tensor]:
    """Tensors by Detectron2's names for a full model, the ResNet directly below `backbone.bottom_up.`.

    ImageNet's classifier and normalisation constants are left out.
    """
    names = {
        "caffe2": _from_caffe2,
        "torchvision": _from_torchvision,
        "fusiondet": _from_fusiondet,
    }.get(layout, _from_detectron2)
    state = {}
    for name, tensor in raw.items():
        target = None if _IGNORED.search(name) else names(name)
        if target is not None:
            state[target] = tensor
        elif not _IGNORED.search(name):
            report.unused.append(name)
    return state


def _from_detectron2(name: str) -> str | None:
    """`stem.conv1.weight` of a bare backbone, or the name in a full model as it is."""
    if re.match(r"(stem|res[2-5])\.", name):
        return _BOTTOM_UP + name
    return name if re.match(r"(backbone|proposal_generator|roi_heads)\.", name) else None


def _from_fusiondet(name: str) -> str:
    """The early-fusion backbone keeps its ResNet one level deeper than Detectron2's."""
    return name.replace(_BOTTOM_UP + "resnet.", _BOTTOM_UP)


def _from_caffe2(name: str) -> str | None:
    """`res2_0_branch2a_bn_s` -> `backbone.bottom_up.res2.0.conv1.norm.weight`; `res_conv1_bn_b` is the stem's."""
    match = _CAFFE2.fullmatch(name)
    if match is None:
        return None
    stage, block, branch, norm, kind = match.groups()
    conv = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}.get(branch)
    module = f"{stage}.{block}.{conv}" if stage else "stem.conv1"
    leaf = {"w": "weight", "s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}[kind]
    return f"{_BOTTOM_UP}{module}{'.norm' if norm else ''}.{leaf}"


def _from_torchvision(name: str) -> str | None:
    """`layer1.0.bn2.weight` -> `backbone.bottom_up.res2.0.conv2.norm.weight`; as Detectron2's own converter."""
    if not re.match(r"(conv1|bn1|layer[1-4])\.", name):
        return None
    name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    return _BOTTOM_UP + (name if name.startswith("res") else "stem." + name)


def _names_of_stream(state: Mapping[str, Tensor], prefix: str, resnet: ResNet, path) -> dict[str, str]:
    """Names within the ResNet `prefix` of the model -> names in the file.

    A file of one ResNet serves every stream, a file of two streams each its own. Stages that the streams of the file
    share go to both, and those that the model's share are the optical stream's.
    """
    if not _has_streams(state):
        found = _within_resnet(state, _BOTTOM_UP)
    elif prefix.rpartition(".")[2] not in MODALITIES:
        raise InputError(
            f"{path}: holds two streams, optical and sar, but the network has one ({prefix}). Set MODEL.BACKBONE.NAME "
            "to that of the file, or start from weights of one stream."
        )
    else:
        found = _within_resnet(state, f"{_BOTTOM_UP}{prefix.rpartition('.')[2]}.")
        if all(name.startswith("stem.") for name in found):
            found = {**_within_resnet(state, f"{_BOTTOM_UP}optical."), **found}
    if not resnet.stage_names:
        return {own: name for own, name in found.items() if own.startswith("stem.")}
    return found


def _within_resnet(state: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    names = {name.removeprefix(prefix): name for name in state if name.startswith(prefix)}
    return {own: name for own, name in names.items() if re.match(r"(stem|res\d+)\.", own)}


def _has_streams(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(_FIRST_STEM) for name in state)


def _channels_of_stream(state: Mapping[str, Tensor], prefix: str) -> slice:
    """Those of the file's bands that its stem for this stream takes."""
    if not _has_streams(state):
        return slice(None)
    # What sees the image comes first.
    optical = next(t for name, t in state.items() if name.startswith(_FIRST_STEM) and t.ndim == 4).shape[1]
    return slice(0, optical) if prefix.endswith("optical") else slice(optical, None)


def _names_of_the_rest(model: nn.Module, state: Mapping[str, Tensor], resnets) -> dict[str, str]:
    """Names of all other tensors in the model -> names in the file; a pyramid or head of one serves both modalities."""
    inside = tuple(_join(prefix, "") if prefix else "" for prefix in resnets)
    own = [name for name in model.state_dict() if not name.startswith((*inside, "task_weighting."))]
    names = {name: name if name in state else _without_modality(name) for name in own}
    return {name: source for name, source in names.items() if source in state}


def _without_modality(name: str) -> str:
    """`roi_heads.optical.box_head.fc1.weight` -> `roi_heads.box_head.fc1.weight`."""
    return re.sub(r"\.(optical|sar)\.", ".", name, count=1)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _module_of(name: str) -> str:
    """The first four levels of a name at most: one line of the table. Streams, exchanges, joins have their own."""
    return ".".join(name.split(".")[:-1][:4])


# ---- Checks, the stem, the end -----------------------------------------------------------------------------


def _check_resnet(resnet: ResNet, prefix: str, part, source: Layout, report: LoadReport) -> None:
    """InputError unless depth, width, norm and stride position are those of the file; fills in fused statistics."""
    own = {name for name in resnet.state_dict() if not name.endswith("num_batches_tracked")}
    if not part.keys() - own and any(name.endswith("norm.running_mean") for name in own - part.keys()):
        _fill_fused_statistics(resnet, part, report)
    surplus, lacking = sorted(part.keys() - own), sorted(own - part.keys())
    if surplus or lacking:
        one = f"it has {surplus[0]}, which the model lacks" if surplus else f"it lacks {lacking[0]}"
        raise InputError(
            f"{report.path}: its {_kind(resnet)} is not the model's{f' {prefix}' if prefix else ''}: {one} "
            f"({len(surplus)} such and {len(lacking)} missing tensors). Compare {_architecture_keys(resnet, prefix)} "
            "with the file."
        )
    stride = _stride_in_1x1(resnet)
    if None not in (stride, source.stride_in_1x1) and stride != source.stride_in_1x1:
        raise InputError(
            f"{report.path}: weights of the {report.layout} layout were trained with MODEL.RESNETS.STRIDE_IN_1X1 "
            f"{source.stride_in_1x1}, the model has {stride}. Set MODEL.RESNETS.STRIDE_IN_1X1 {source.stride_in_1x1}."
        )


def _kind(trunk: nn.Module) -> str:
    return trunk.name if isinstance(trunk, TimmNet) else "ResNet"


def _architecture_keys(trunk: nn.Module, prefix: str) -> str:
    if isinstance(trunk, TimmNet):
        return "MODEL.TIMM.NAME"
    other = ", and MODEL.FUSION.SAR_RESNETS.DEPTH of the SAR stream," if prefix.endswith(".sar") else ""
    return f"MODEL.RESNETS.DEPTH{other} and MODEL.RESNETS.NORM"


def _fill_fused_statistics(resnet: ResNet, part: dict[str, Tensor], report: LoadReport) -> None:
    """Files of Caffe2 hold batch norm as a fixed scale and bias: identity statistics, and frozen norms only."""
    for name, module in resnet.named_modules():
        if (
            not name.endswith("norm")
            or _join(name, "weight") not in part
            or _join(name, "running_mean") in part
        ):
            continue
        if not isinstance(module, FrozenBatchNorm2d):
            raise InputError(
                f"{report.path}: its batch norm is fused into a fixed scale and bias, which only means something in "
                f"frozen norms; the model has {type(module).__name__}. Set MODEL.RESNETS.NORM FrozenBN, or use "
                "torchvision's weights."
            )
        part[_join(name, "running_mean")] = torch.zeros(module.num_features)
        part[_join(name, "running_var")] = torch.ones(module.num_features) - module.eps


def _stride_in_1x1(resnet: ResNet) -> bool | None:
    for block in resnet.modules():
        if isinstance(block, BottleneckBlock) and block.stride > 1:
            return block.conv1.stride[0] > 1
    return None


def _adapt_stem(
    resnet, part, source: Layout, bands: Layout, inflation: str, prefix: str, report: LoadReport
) -> None:
    """Rewrite the stem's filter, and what is added behind it, in `part` for `bands`."""
    for name, norm in _image_convs(resnet):
        key, conv = f"{name}.weight", resnet.get_submodule(name)
        if part[key].shape[1] != len(source.bands):
            raise InputError(
                f"{report.path}: its stem has {part[key].shape[1]} input bands, expected {', '.join(source.bands)}."
            )
        if conv.in_channels != len(bands.bands):
            raise InputError(
                f"the model's stem {prefix} takes {conv.in_channels} bands, but {len(bands.bands)} are named."
            )
        weight, constant, line = inflate_stem(part[key].float(), source, bands, inflation)
        part[key] = weight
        report.stems[_join(prefix, key)] = line
        if set(bands.bands) - set(source.bands) and not conv.weight.requires_grad:
            raise InputError(
                f"{report.path}: the stem is made for {', '.join(bands.bands)} and must learn the bands that the "
                "weights do not know, but it is frozen. Set "
                f"{'MODEL.TIMM.FREEZE' if isinstance(resnet, TimmNet) else 'MODEL.BACKBONE.FREEZE_AT'} 0."
            )
        if "StdConv" in type(conv).__name__:
            report.notes.append(
                f"{_join(prefix, key)}: the network standardises its filters, so the scale of bands is not kept."
            )
        if constant.abs().max() == 0:
            continue
        if f"{name}.bias" in part:
            part[f"{name}.bias"] = part[f"{name}.bias"].float() + constant
        elif f"{norm}.running_mean" in part:
            part[f"{norm}.running_mean"] = part[f"{norm}.running_mean"].float() - constant
        else:
            report.notes.append(
                f"{_join(prefix, key)}: difference of the pixel means not compensated (no batch norm)."
            )


def _image_convs(trunk: nn.Module) -> list[tuple[str, str | None]]:
    """(name of a convolution that sees the image, that of the batch norm behind it)."""
    if isinstance(trunk, TimmNet):
        return [(conv, trunk.norm_behind(conv)) for conv in trunk.first_convs()]
    return [("stem.conv1", "stem.conv1.norm")]


def inflate_stem(weight: Tensor, source: Layout, bands: Layout, inflation: str) -> tuple[Tensor, Tensor, str]:
    """The source's stem filter for other bands: see the formulas at the top of this module.

    Args:
        weight: (O, source bands, k, k).
        source, bands: names and normalisation of the source's channels and of ours; `bands.eight_bit` is not looked at.
        inflation: one of INFLATIONS.

    Returns:
        Filter (O, bands, k, k); (O,) what to subtract from the running mean behind it; one line for the report.
    """
    common = _is_8bit(bands.bands, bands.mean) or not _knows_imagenet(source)
    at = {name: i for i, name in enumerate(source.bands)}
    columns, constant = {}, torch.zeros(len(weight))
    for j, name in enumerate(bands.bands):
        if name in at and common:
            i = at[name]
            columns[j] = weight[:, i] * (bands.std[j] / source.std[i])
            constant += weight[:, i].sum((1, 2)) * (bands.mean[j] - source.mean[i]) / source.std[i]
        elif name in at:
            columns[j] = weight[:, at[name]] * _unit_gain(source, at[name])
    extra = [name for name in bands.bands if name not in at]
    rescaled = bool(extra) and (inflation == "mean_rescaled" or not columns)
    known = list(columns.values()) or [weight[:, i] * _unit_gain(source, i) for i in at.values()]
    start = torch.stack(known).mean(0) * float(rescaled)
    scale = len(source.bands) / len(bands.bands) if rescaled else 1.0
    filters = [columns.get(j, start) * scale for j in range(len(bands.bands))]
    return torch.stack(filters, dim=1), constant, _stem_line(bands, source, extra, rescaled, common)


def _stem_line(bands: Layout, source: Layout, extra: list[str], rescaled: bool, common: bool) -> str:
    known = ", ".join(name for name in bands.bands if name in source.bands)
    lost = ", ".join(name for name in source.bands if name not in bands.bands)
    parts = [known and f"{known} from the file{'' if common else ' (not 8-bit: statistics matched)'}"]
    parts.append(extra and f"{', '.join(extra)} {'as the mean filter, all rescaled' if rescaled else 'zero'}")
    parts.append(known and lost and f"{lost} dropped")
    return "; ".join(part for part in parts if part)


def _is_8bit(names: Sequence[str], mean: Sequence[float]) -> bool:
    """Whether the colours among `names` look like 8-bit counts: a mean above 255 or a reflectance below 1 is not."""
    colours = [m for name, m in zip(names, mean, strict=True) if name in ("red", "green", "blue")]
    return bool(colours) and all(1 < m <= 255 for m in colours)


def _knows_imagenet(source: Layout) -> bool:
    return set(source.bands) == {"red", "green", "blue"} and source.eight_bit


def _unit_gain(source: Layout, i: int) -> float:
    """What makes filter i one for inputs of unit deviation; our own checkpoints' filters already are."""
    if not _knows_imagenet(source):
        return 1.0
    return IMAGENET_STD[("red", "green", "blue").index(source.bands[i])] / source.std[i]


# A value per band; layers of the height head whose input is what GEOMETRY and DENSE_PRIOR tell.
_MAY_DIFFER = re.compile(
    r"\.stand_ins?\.|\.steps\.\d+\.picture\.|heads\.reconstruction\.predictor\."
    r"|\.height_head\.(convs|fcs)\.0\.weight$"
)


def _may_differ(name: str) -> bool:
    """Whether a tensor of another shape starts afresh, where others are an error."""
    return _without_modality(name) in CLASS_DEPENDENT or _MAY_DIFFER.search(name) is not None


def _commit(model: nn.Module, merged: dict[str, Tensor], report: LoadReport) -> None:
    """Sort `merged` into the report and copy what fits into `model`; InputError before anything is changed."""
    own = model.state_dict()
    for name, tensor in list(merged.items()):
        if own[name].shape != tensor.shape:
            if not _may_differ(name):
                raise InputError(
                    f"{report.path}: {name} has shape {tuple(tensor.shape)}, the model's is {tuple(own[name].shape)}. "
                    "Set the widths in the config to those of the file, or load a file with the backbone only."
                )
            report.reinitialised.append(name)
            del merged[name]
    report.loaded += merged
    there = {*merged, *report.reinitialised}
    report.left_at_init += [n for n in own if n not in there and not n.endswith("num_batches_tracked")]
    with torch.no_grad():
        for name, tensor in merged.items():
            own[name].copy_(tensor)
