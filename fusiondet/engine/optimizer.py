"""The optimizer of a network, and the groups of parameters that learn at rates of their own."""

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.errors import InputError
from fusiondet.modeling.architecture import architecture_of
from fusiondet.modeling.fusion import MODALITIES
from fusiondet.modeling.streams import modality_of_parameters
from fusiondet.modeling.timm_net import TimmNet

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling.backbone import ResNet
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

# Of the logarithms that UncertaintyWeighting learns: of the order of 1 whatever the network, a few hundred steps away.
_LOG_SCALE_LR = 0.01
# Pieces of a trunk -> how far they are from the heads, for SOLVER.LAYER_DECAY.
_DEPTHS = {"res5": 1, "res4": 2, "res3": 3, "res2": 4, "stem": 5}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW by SOLVER.OPTIMIZER; normalisation layers decay by SOLVER.WEIGHT_DECAY_NORM (0).

    What one stream has for itself learns by SOLVER.OPTICAL_LR_FACTOR or SAR_LR_FACTOR times the rate; the pieces of a
    trunk by powers of SOLVER.LAYER_DECAY, stage by stage.

    Raises:
        InputError: one of these two factors is set, but the network has no stream of that modality alone.
    """
    bias_decay = cfg.SOLVER.WEIGHT_DECAY_BIAS
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        # v0.5 has a default of its own that does not follow WEIGHT_DECAY; later versions have None, which does.
        weight_decay_bias=None if bias_decay == get_cfg().SOLVER.WEIGHT_DECAY_BIAS else bias_decay,
        overrides={"task_log_scales": {"lr": _LOG_SCALE_LR, "weight_decay": 0.0}},
    )
    groups = _by_stream(cfg, model, groups)
    if cfg.SOLVER.OPTIMIZER == "SGD":
        kind = torch.optim.SGD
        options = {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV}
    else:
        kind = torch.optim.AdamW
        options = {}
    kind = maybe_add_gradient_clipping(cfg, kind)
    return kind(_merged(groups), lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, **options)


def _by_stream(cfg: CfgNode, model: nn.Module, groups: list[dict]) -> list[dict]:
    """A group per parameter; "lr" of those that one stream has for itself times the factor of its modality."""
    factors = {"optical": cfg.SOLVER.OPTICAL_LR_FACTOR, "sar": cfg.SOLVER.SAR_LR_FACTOR}
    of_one = modality_of_parameters(model)
    idle = [m for m in MODALITIES if factors[m] != 1 and m not in of_one.values()]
    if idle:
        network = f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}"
        if architecture_of(cfg).reads_dense_net:
            network = f"MODEL.DENSE_NET.NAME is {cfg.MODEL.DENSE_NET.NAME}"
        raise InputError(
            f"SOLVER.{idle[0].upper()}_LR_FACTOR is {factors[idle[0]]:g}, but the network has no stream that sees "
            f"{idle[0]} bands alone: {network}, INPUT.MODALITIES {list(cfg.INPUT.MODALITIES)}. Leave it at 1.0."
        )
    depths = {p: depth for piece, depth in _pieces(model) for p in piece.parameters()}
    decay = cfg.SOLVER.LAYER_DECAY
    return [
        {
            **group,
            "params": [p],
            "lr": group["lr"] * factors.get(of_one.get(p), 1.0) * decay ** depths.get(p, 0),
        }
        for group in groups
        for p in group["params"]
    ]


def _pieces(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """Stem and stages of all trunks, each with its distance from the heads."""
    trunks = [m for m in model.modules() if isinstance(m, ResNet | TimmNet)]
    return [
        (getattr(trunk, name), depth)
        for trunk in trunks
        for name, depth in _DEPTHS.items()
        if hasattr(trunk, name)
    ]


def _merged(groups: list[dict]) -> list[dict]:
    """Parameter groups with equal settings as one: Detectron2 makes one per tensor, and optimizers loop over groups."""
    merged: dict[tuple, dict] = {}
    for group in groups:
        settings = {k: v for k, v in group.items() if k != "params"}
        merged.setdefault(tuple(sorted(settings.items())), {**settings, "params": []})["params"] += group[
            "params"
        ]
    return list(merged.values())
