"""Odd config keys, and changes of checkpoints."""

import functools
import random
from pathlib import Path
from typing import Any

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import load_config
from tests.fuzz.mutations import NASTY_VALUES, NASTY_WORDS, change_bytes
from tests.support.tiny_city import SMALL_CONFIG

import torch
from detectron2.config import CfgNode

# Of these, numbers like 100 make a sound training long.
_SLOW = ("SOLVER.MAX_ITER", "DATALOADER.NUM_WORKERS", "TEST.AUG", "SOLVER.STEPS")
_KEY_VALUES = (
    *(
        "[]",
        "[1]",
        "[0.0]",
        "['x']",
        "['sar', 'sar']",
        "{}",
        "{'a': 1}",
        "None",
        "True",
        "-0.5",
        "100",
        "1e8",
        "[1, 2, 3]",
    ),
    *(
        "2024-01-01",
        "[[]]",
        "[[1]]",
        "[-1]",
        "()",
        "(1, 1)",
        "float('nan')",
        ".nan",
        ".inf",
        "1e400",
        "'optical'",
    ),
)


@functools.cache
def _keys() -> list[str]:
    found = []

    def walk(node: CfgNode, prefix: str) -> None:
        for name, value in node.items():
            walk(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else found.append(f"{prefix}{name}")

    walk(load_config(SMALL_CONFIG, []), "")
    return [key for key in sorted(found) if not key.startswith(_SLOW)]


def nasty_pair(rng: random.Random) -> list[str]:
    """A config key and a value for it, either of which may be odd."""
    key = rng.choice(_keys())
    # Keys of the network and its data are more than half of the ways to go wrong.
    if rng.random() < 0.1:
        key = rng.choice((f"{key}.X", key.rpartition(".")[0] or "MODEL", key.lower(), "", "A.B", f"{key}X"))
    return [key, rng.choice((*_KEY_VALUES, *NASTY_WORDS))]


def change(path: Path, rng: random.Random) -> None:
    """Change what a checkpoint holds, or its bytes."""
    if rng.random() < 0.35:
        change_bytes(path, rng)
        return
    content = torch.load(path, weights_only=False)
    part = rng.choice(("model", "model", "config", "top"))
    if part == "model" and isinstance(content.get("model"), dict):
        name = rng.choice(sorted(content["model"]))
        content["model"][name] = _other_tensor(content["model"][name], rng)
        if rng.random() < 0.2:
            content["model"][rng.choice((7, "x", "", None, f"{name}x"))] = content["model"].pop(name)
    elif part == "config":
        texts = [key for key, value in content.items() if isinstance(value, str) and "\n" in value]
        if texts:
            lines = content[texts[0]].split("\n")
            at = rng.randrange(len(lines))
            key, _, _ = lines[at].partition(":")
            lines[at] = rng.choice(
                (f"{key}: {rng.choice((*_KEY_VALUES, *NASTY_WORDS))}", "", key, "\t", "- x")
            )
            content[texts[0]] = "\n".join(lines)
    else:
        key = rng.choice(sorted(content))
        value = rng.choice((None, [], {}, 7, "x", torch.zeros(2), {1: 2}, "delete"))
        content.pop(key) if value == "delete" else content.update({key: value})
        content = content if rng.random() < 0.95 else rng.choice(([], None, 7, {}, "x", [content]))
    torch.save(content, path)


def _other_tensor(tensor: Any, rng: random.Random) -> Any:
    if not isinstance(tensor, torch.Tensor):
        return rng.choice(NASTY_VALUES[:20])
    full = tensor.double() if tensor.is_floating_point() else tensor
    match rng.randrange(12):
        case 0:
            return torch.full_like(full, float("nan") if full.is_floating_point() else -1)
        case 1:
            return full * 0 + float("inf") if full.is_floating_point() else full
        case 2:
            return tensor.to(
                rng.choice((torch.float16, torch.float64, torch.int64, torch.complex64, torch.bool))
            )
        case 3:
            return tensor.flatten()
        case 4:
            return tensor[:0] if tensor.ndim else tensor.reshape(1)
        case 5:
            return tensor.unsqueeze(0).expand(3, *tensor.shape)
        case 6:
            return tensor.to_sparse() if tensor.ndim else tensor
        case 7:
            return torch.empty(tensor.shape, device="meta")
        case 8:
            return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)
        case 9:
            return rng.choice((None, 7, "x", [1.0], tensor.tolist()))
        case 10:
            return torch.full_like(full, 1e30 if full.is_floating_point() else 2**40)
        case _:
            return full[..., :1] if full.ndim else full
