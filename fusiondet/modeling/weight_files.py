"""Files of weights, opened without running anything that is in them, and with their checksums compared."""

import collections
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.errors import InputError

import numpy as np
import torch
from torch import Tensor


def local_path(path: str | Path) -> Path:
    """`path` as a file on disk; names of the model zoo are looked up where Detectron2 (iopath) caches them.

    Raises:
        InputError: no such file; for a name of the zoo it says where to put the file.
    """
    from iopath.common.file_io import get_cache_dir

    text = str(path)
    url = text.replace("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")
    match = re.match(r"https?://[^/]+/([^?]+)", url)
    on_disk = Path(get_cache_dir()) / match[1] if match else Path(text)
    if on_disk.is_file():
        return on_disk
    if match:
        raise InputError(f"{text}: not downloaded yet. Fetch {url} and store it as {on_disk}.")
    raise InputError(f"{text}: no such file, expected pretrained weights (.pkl or .pth).")


def read_torch_file(path: str | Path):
    """What `torch.save` wrote to `path`, on the CPU. Nothing in the file is executed.

    Raises:
        InputError: missing, damaged (checksums are compared), or holding anything but dense tensors, numbers and text.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint.")
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        tensors = [*_tensors(content)]
    except Exception as error:  # a damaged file raises almost anything
        # Torch's own words advise to load the file without protection.
        found = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        reason = (
            f"it holds {found[1]}, and loading that could run code"
            if found
            else "it is damaged or was never one"
        )
        raise InputError(f"{path}: not opened, {reason}; {_COPY_AGAIN}") from None
    for name, tensor in tensors:
        problem = _strangeness(tensor)
        if problem:
            raise InputError(
                f"{path}: tensor {name} is {problem}, expected a plain tensor of numbers. Convert it and save the file "
                "again."
            )
    return content


_COPY_AGAIN = (
    "expected a .pth of tensors, numbers and text alone. Copy or download it again from its original source."
)


def _check_archive(path: str | Path) -> None:
    """InputError when a checksum of the archive in `path` is wrong, which `torch.load` does not look at.

    Files of torch before 1.6 are no archives and have no checksums.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            # Torch never compresses: a small file that grows to fill the memory is none of its own.
            packed = [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
            damaged = None if packed else archive.testzip()
    except Exception as error:  # a damaged directory of an archive raises almost anything
        raise InputError(
            f"{path}: not opened, it is damaged or was never one ({type(error).__name__}); {_COPY_AGAIN}"
        ) from None
    if packed or damaged:
        reason = f"{damaged} in it has another checksum" if damaged else f"{packed[0]} in it is compressed"
        raise InputError(f"{path}: not opened, it is damaged or was never one ({reason}); {_COPY_AGAIN}")


def _tensors(content, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in dictionaries and lists with their dotted names."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping | list | tuple):
        parts = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, part in parts:
            yield from _tensors(part, f"{name}.{key}" if name else str(key))


def _strangeness(tensor: Tensor) -> str:
    """Return what makes it impossible to calculate with `tensor` like with any other; "" if nothing does."""
    if tensor.is_meta:
        return "without content (device meta)"
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_nested or tensor.layout is not torch.strided:
        return "nested" if tensor.is_nested else f"sparse ({tensor.layout})"
    if tensor.is_complex():
        return "of complex numbers"
    # A few bytes can stand for more than any memory holds.
    if tensor.numel() * tensor.element_size() > max(tensor.untyped_storage().nbytes(), 2**20):
        return f"a repetition of a few numbers, {tuple(tensor.shape)}"
    return ""


def check_finite(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that weights are numbers.

    Raises:
        InputError: NaN or infinity in some of `tensors`; names them.
    """
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise InputError(
            f"{source}: {len(bad)} of {len(tensors)} tensors have values that are NaN or infinite ("
            f"{', '.join(bad[:3])}{', …' if len(bad) > 3 else ''}), so nothing can be predicted with them. Use an "
            "earlier checkpoint of that training, or copy the file again."
        )


def read_pickle(path: Path):
    """What a model-zoo `.pkl` holds: dictionaries of arrays, text and numbers. Nothing else is unpickled.

    Raises:
        InputError: it holds anything else, or is not complete.
    """
    with open(path, "rb") as f:
        try:
            return _WeightsUnpickler(f, encoding="latin1").load()
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except Exception as error:  # a damaged pickle raises almost anything
            raise InputError(
                f"{path}: not a pickle of weights, or not complete ({first_line(error)})."
            ) from None


class _WeightsUnpickler(pickle.Unpickler):
    """Unpickles dictionaries of numpy arrays, text and numbers, and nothing else."""

    def find_class(self, module, name):
        """The allowed object of that name; everything else could run code."""
        allowed = _allowed_globals().get((module, name))
        if allowed is None:
            raise InputError(
                f"refused, because it holds {module}.{name}: expected arrays, text and numbers only. "
                "A pickle with anything else can run code; get the file from its original source."
            )
        return allowed


def _allowed_globals() -> dict:
    from numpy._core import multiarray, numeric

    allowed = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode_latin1,
    }
    for package in ("numpy.core", "numpy._core"):  # numpy 1 and 2
        allowed[package + ".multiarray", "_reconstruct"] = multiarray._reconstruct
        allowed[package + ".multiarray", "scalar"] = multiarray.scalar
        allowed[package + ".numeric", "_frombuffer"] = numeric._frombuffer
    return allowed


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 writes bytes. No other codec: some are decompressors."""
    if encoding != "latin1":
        raise InputError(f"refused, because it uses the codec {encoding!r}.")
    return text.encode("latin1")


def first_line(error: Exception) -> str:
    """Return what `error` says in its first line, shortened; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
