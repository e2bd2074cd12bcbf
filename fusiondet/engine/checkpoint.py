"""Checkpoints: one file that a network can be rebuilt from, and that is safe to open.

A checkpoint is a dict of tensors, plain numbers and text only, so `torch.load(weights_only=True)` reads it:

    model         state dict
    config_yaml   the complete config as YAML: bands, statistics and GSD range of the training data are in it
    iteration     index of the step that was just finished
    optimizer, scheduler, scaler, sampler, hooks     states, for --resume; scaler is {} without fp16
    fusiondet     {"version", "detectron2", "torch"}, and in model_best.pth "metric" and "value"
"""

import errno
import logging
import os
import shutil
from pathlib import Path

import fusiondet
import fusiondet.compat
from fusiondet import plugins
from fusiondet.config_loading import config_from_yaml_text
from fusiondet.config_text import flat
from fusiondet.errors import InputError
from fusiondet.files import atomic_path
from fusiondet.modeling.weight_files import check_finite, read_torch_file

import detectron2
import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn


class FusionCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with the file format of this module; used by its PeriodicCheckpointer as usual."""

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, config_yaml: str = "", trainer=None, **kwargs
    ):
        """`trainer`: object whose `state_dict()` fills all keys besides model, config_yaml and fusiondet."""
        super().__init__(model, save_dir, **kwargs)
        self.config_yaml, self.trainer = config_yaml, trainer

    def save(self, name: str, tag: bool = True, facts: dict | None = None, **extra) -> None:
        """Write `<save_dir>/<name>.pth`, whole or not at all.

        Args:
            tag: note it in `last_checkpoint`, as the one that --resume goes on from.
            facts: further plain values for the entry "fusiondet".
            extra: further entries, e.g. iteration.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {} if self.trainer is None else self.trainer.state_dict()
        content = {
            "model": self.model.state_dict(),
            "config_yaml": self.config_yaml,
            **state,
            **extra,
            "fusiondet": {**versions(), **(facts or {})},
        }
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_path(path) as temporary:
            _save(_plain(content), temporary, path)
        if tag:
            with atomic_path(Path(self.save_dir) / "last_checkpoint") as temporary:
                temporary.write_text(path.name)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Load one of our checkpoints strictly; `checkpointables=[]` takes the weights alone.

        Raises:
            InputError: see `read_checkpoint` and `load_model`; or the state of the optimizer does not fit.
        """
        content = read_checkpoint(path)
        load_model(self.model, content["model"], path, configs=(content["config_yaml"], self.config_yaml))
        if checkpointables is None and self.trainer is not None:
            try:
                self.trainer.load_state_dict(content)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
            except Exception as error:  # a state of another shape raises almost anything
                raise InputError(
                    f"{path}: cannot go on from it, {type(error).__name__} {error}. Start from its weights instead."
                ) from None
        return content


def _save(content: dict, temporary: Path, path: Path) -> None:
    """`torch.save`, whose failures to write are OSErrors here that name the file and what is safe."""
    try:
        torch.save(content, temporary)
    except (RuntimeError, OSError) as error:
        full = shutil.disk_usage(temporary.parent).free < 2**20 or getattr(error, "errno", 0) == errno.ENOSPC
        # Torch's own words for a failed write; other errors of it are ours.
        if not (full or isinstance(error, OSError) or "writ" in str(error)):
            raise
        number = errno.ENOSPC if full else getattr(error, "errno", None) or errno.EIO
        raise OSError(
            number,
            f"{os.strerror(number)}. The checkpoints before it are whole: make room, then resume the training",
            str(path),
        ) from error


def versions() -> dict[str, str]:
    """What a checkpoint was written by."""
    return {
        "version": fusiondet.__version__,
        "detectron2": detectron2.__version__,
        "torch": str(torch.__version__),
    }


def read_checkpoint(path: str | os.PathLike) -> dict:
    """The content of one of our checkpoints, on the CPU. Nothing in the file is executed.

    Raises:
        InputError: missing, damaged, a pickle of anything but plain data, weights that are NaN or infinite, or not a
            checkpoint of fusiondet.
    """
    content = read_torch_file(path)
    ours = isinstance(content, dict) and isinstance(content.get("config_yaml"), str)
    tensors = content.get("model") if ours else None
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise InputError(
            f"{path}: not a checkpoint of fusiondet (no config_yaml, or no tensors, in it). Weights of other networks "
            "start a training through MODEL.WEIGHTS."
        )
    strange = [name for name in tensors if not isinstance(name, str)]
    if strange:
        raise InputError(
            f"{path}: a tensor in it is called {strange[0]!r}, expected the name of a parameter."
        )
    for key, kind in _ENTRIES.items():
        if key in content and (not isinstance(content[key], kind) or isinstance(content[key], bool)):
            raise InputError(
                f"{path}: its {key} is of type {type(content[key]).__name__}, expected {kind.__name__}. It was not "
                "written by fusiondet, or changed since."
            )
    check_finite(tensors, path)
    return content


# Types of the entries that a training goes on from.
_STATES = ("optimizer", "scheduler", "scaler", "sampler", "hooks", "fusiondet")
_ENTRIES = {"iteration": int, **dict.fromkeys(_STATES, dict)}


def is_own_checkpoint(path: str | os.PathLike) -> bool:
    """Whether `path` is a checkpoint of this module; False for weights of other origin and for missing files.

    Raises:
        InputError: a file of torch that is damaged, or a checkpoint of this module that `read_checkpoint` refuses.
    """
    if not str(path).endswith(".pth") or not Path(path).is_file():
        return False
    content = read_torch_file(path)
    if not isinstance(content, dict) or "config_yaml" not in content:
        return False
    read_checkpoint(path)
    return True


def stored_config(path: str | os.PathLike):
    """The complete config that a checkpoint was trained with.

    Raises:
        InputError: see `read_checkpoint` and `fusiondet.config_loading.config_from_yaml_text`.
    """
    return config_from_yaml_text(read_checkpoint(path)["config_yaml"], str(path))


def load_model(
    model: nn.Module, state: dict, source: str | os.PathLike, *, configs: tuple[str, str] | None = None
) -> None:
    """Load `state` into `model`, every tensor or none.

    Args:
        configs: YAML of the config stored in `source` and of the model's, for the message; empty if not known. Where
            all tensors fit and keys that shape the network differ all the same, a warning names them.

    Raises:
        InputError: names that are missing or superfluous, or other shapes; the message names the first few, and the
            config keys that shape the network and differ.
    """
    own = model.state_dict()
    # Normalisation constants come from the config, and some versions of Detectron2 store them besides.
    ignored = {"pixel_mean", "pixel_std"}
    missing = sorted(own.keys() - state.keys() - ignored)
    extra = sorted(state.keys() - own.keys() - ignored)
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unknown", extra), ("of another shape", sorted(shapes)))
        if names
    ]
    known = configs and all(configs)
    differing = (
        network_differences(*(config_from_yaml_text(c, str(source)) for c in configs)) if known else []
    )
    if problems:
        problems += [f"config keys that differ: {', '.join(differing)}"] if differing else []
        raise InputError(
            f"{source}: does not fit the network of the config; tensors {'; '.join(problems)}. Use the config that it "
            "was trained with (config.yaml beside it)."
        )
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
    logging.getLogger(__name__).info("Loaded all %d tensors of %s", len(own), source)
    if differing:
        # Of heads of attention, say, or the order of bands, no tensor tells.
        logging.getLogger(__name__).warning(
            "%s fits, but was trained with other settings of the network: %s", source, ", ".join(differing)
        )


# Keys and sections of the core that decide which tensors a network has. FUSION.DISABLED, thresholds, losses do not.
_SHAPING = """
    INPUT.MODALITIES INPUT.OPTICAL_BANDS INPUT.SAR_BANDS MODEL.META_ARCHITECTURE MODEL.BACKBONE.NAME MODEL.MASK_ON
    MODEL.HEIGHT_ON MODEL.RESNETS MODEL.FPN MODEL.FUSION.OPTICAL_CHANNELS MODEL.FUSION.EXCHANGE MODEL.FUSION.JOIN
    MODEL.FUSION.SHARE_WEIGHTS MODEL.FUSION.SAR_RESNETS MODEL.FUSION.MMTM MODEL.FUSION.CROSS_ATTENTION
    MODEL.FUSION.MODALITY_DROPOUT MODEL.ANCHOR_GENERATOR.SIZES MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    MODEL.PROPOSAL_GENERATOR.NAME MODEL.RPN.HEAD_NAME MODEL.ROI_HEADS.NAME MODEL.ROI_HEADS.NUM_CLASSES
    MODEL.ROI_HEADS.IN_FEATURES MODEL.ROI_BOX_HEAD MODEL.ROI_MASK_HEAD MODEL.ROI_HEIGHT_HEAD.NAME
    MODEL.ROI_HEIGHT_HEAD.IN_FEATURES MODEL.ROI_HEIGHT_HEAD.POOLER_RESOLUTION MODEL.ROI_HEIGHT_HEAD.CONTEXT_RESOLUTION
    MODEL.ROI_HEIGHT_HEAD.NUM_CONV MODEL.ROI_HEIGHT_HEAD.CONV_DIM MODEL.ROI_HEIGHT_HEAD.NUM_FC
    MODEL.ROI_HEIGHT_HEAD.FC_DIM MODEL.ROI_HEIGHT_HEAD.NORM MODEL.ROI_HEIGHT_HEAD.GEOMETRY
    MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR MODEL.DENSE_HEADS.NAMES MODEL.DENSE_HEADS.IN_FEATURES
    MODEL.DENSE_HEADS.CONV_DIM
    MODEL.DENSE_HEADS.SKIPS MODEL.DENSE_HEADS.UPSAMPLE MODEL.DENSE_HEADS.NORM MODEL.DENSE_HEADS.SHARED_STEPS
    MODEL.DENSE_HEADS.HEIGHT.REFINE MODEL.DENSE_HEADS.HEIGHT.FROM_FOOTPRINT MODEL.TASK_ATTENTION
    MODEL.TASK_WEIGHTING.NAME MODEL.DENSE_NET.NAME MODEL.DENSE_NET.TASKS MODEL.DENSE_NET.WIDTH
    MODEL.DENSE_NET.HEIGHT.REFINE MODEL.DENSE_NET.HEIGHT_SCALE_M MODEL.DENSE_NET.CLASSES
""".split()


def network_differences(stored: CfgNode, now: CfgNode) -> list[str]:
    """The keys that shape a network and whose values differ, with both; [] if none do."""
    one, other = _shaping_values(stored), _shaping_values(now)
    return [f"{key} (stored {one[key]!r}, now {other[key]!r})" for key in one if one[key] != other[key]]


def _shaping_values(cfg: CfgNode) -> dict:
    parts = (*_SHAPING, *plugins.listed("shaping_keys"))
    return {k: v for k, v in flat(cfg).items() if any(f"{k}.".startswith(f"{part}.") for part in parts)}


def _plain(value):
    """`value` with numpy scalars as Python numbers, which is all that weights_only lets through."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    return value.item() if isinstance(value, np.generic) else value
