"""What happens between the optical and the SAR stream: exchanges, joins, and what stands for pixels without data.

An *exchange* lets two streams of features learn from each other and leaves them two; a *join* makes one of them. A new
op is one class in this file and one line of YAML; whatever is in the registries is built and tested.

Legend: N images, C channels, H x W cells. `valid` is (N, 1, H, W) in [0, 1]: the share of a cell's pixels that
hold data of that modality; padding holds none.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from fusiondet.errors import InputError, unknown_name

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.utils.registry import Registry
from torch import Tensor, nn

MODALITIES = ("optical", "sar")

EXCHANGE_REGISTRY = Registry("EXCHANGE")
EXCHANGE_REGISTRY.__doc__ = """
Ops that let two streams learn from each other: subclasses of `Exchange`. Built as obj(cfg, optical: ShapeSpec,
sar: ShapeSpec), the shapes of the feature maps behind the stage.
"""

JOIN_REGISTRY = Registry("JOIN")
JOIN_REGISTRY.__doc__ = """
Ops that make one feature map of two: modules with `out_channels`, called as
join(optical, sar, optical_valid, sar_valid) with (N, C, H, W) each -> (N, out_channels, H, W). Built as
obj(cfg, optical: ShapeSpec, sar: ShapeSpec).
"""


# ---- Pixels without data -----------------------------------------------------------------------------------


# A learned stand-in is within this many standard deviations of the mean. Where no image of a batch has the modality,
# batch norm sees a constant, and its gradient is so large that one step of SGD takes the value thousands away.
_MOST_DEVIATIONS = 3.0


class StandIn(nn.Module):
    """Puts a value per band where there is no data: 0, which is the band's mean, or one that is learned."""

    def __init__(self, bands: int, learned: bool):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(bands)) if learned else None

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) normalised, NaN = no data -> the same without NaN, and valid (N, 1, H, W): any band has data."""
        missing = torch.isnan(image)
        value = image.new_zeros(())
        if self.value is not None:
            value = self.value.clamp(-_MOST_DEVIATIONS, _MOST_DEVIATIONS).to(image.dtype)[:, None, None]
        return torch.where(missing, value, image), (~missing.all(1, keepdim=True)).to(image.dtype)


def valid_mean(features: Tensor, valid: Tensor) -> Tensor:
    """Mean of (N, C, H, W) over the cells with data, (N, C) float32; over all cells of an image that has none."""
    weight = torch.where(valid.amax((1, 2, 3), keepdim=True) > 0, valid, 1.0).float()
    return (features.float() * weight).sum((2, 3)) / weight.sum((2, 3))


def weights_of(shares: Tensor) -> Tensor:
    """`shares` (N, parts, ...) scaled to a sum of 1 over the parts; equal where all are 0."""
    shares = torch.where(shares.sum(dim=1, keepdim=True) > 0, shares, torch.ones_like(shares))
    return shares / shares.sum(dim=1, keepdim=True)


# ---- Joins -------------------------------------------------------------------------------------------------


def _projection(channels: int, out_channels: int) -> nn.Module:
    """Nothing where widths agree, else a 1x1 convolution."""
    if channels == out_channels:
        return nn.Identity()
    conv = nn.Conv2d(channels, out_channels, kernel_size=1)
    weight_init.c2_xavier_fill(conv)
    return conv


class Join(nn.Module):
    """Base of joins: the optical stream's width is the result's; a SAR stream of another one is projected to it."""

    @configurable
    def __init__(self, *, optical_channels: int, sar_channels: int):
        super().__init__()
        self.out_channels = optical_channels
        self.project = _projection(sar_channels, optical_channels)

    @classmethod
    def from_config(cls, cfg, optical, sar):
        """Joins have no keys of their own."""
        return {"optical_channels": optical.channels, "sar_channels": sar.channels}


@JOIN_REGISTRY.register()
class SumJoin(Join):
    """Sum of the two."""

    def forward(self, optical: Tensor, sar: Tensor, optical_valid: Tensor, sar_valid: Tensor) -> Tensor:
        """See JOIN_REGISTRY."""
        return optical + self.project(sar)


@JOIN_REGISTRY.register()
class ConcatJoin(nn.Module):
    """1x1 convolution over both: every stream has its own weight for every channel of the result."""

    @configurable
    def __init__(self, *, optical_channels: int, sar_channels: int):
        super().__init__()
        self.out_channels = optical_channels
        self.conv = nn.Conv2d(optical_channels + sar_channels, optical_channels, kernel_size=1)
        weight_init.c2_xavier_fill(self.conv)

    from_config = Join.from_config

    def forward(self, optical: Tensor, sar: Tensor, optical_valid: Tensor, sar_valid: Tensor) -> Tensor:
        """See JOIN_REGISTRY."""
        return self.conv(torch.cat([optical, sar], dim=1))


@JOIN_REGISTRY.register()
class GatedJoin(Join):
    """2 (g * optical + (1 - g) * sar) with a gate g in (0, 1) per cell and channel, from both streams and validities.

    Starts as the sum where both have data, and as twice the other stream where one has none: the size of the result
    does not change at the edge of the data.
    """

    # Of the gate's logit, per unit of difference in validity: sigmoid(4) is 0.98.
    VALIDITY_LOGIT = 4.0

    @configurable
    def __init__(self, *, optical_channels: int, sar_channels: int):
        super().__init__(optical_channels=optical_channels, sar_channels=sar_channels)
        # A full-width gate would cost as much as a stage; a quarter of the width decides as well.
        hidden = max(optical_channels // 4, 8)
        self.gate = nn.Sequential(
            nn.Conv2d(2 * optical_channels + 2, hidden, kernel_size=1),
            nn.ReLU(),
            nn.Conv2d(hidden, optical_channels, kernel_size=1),
        )
        weight_init.c2_msra_fill(self.gate[0])
        _zero(self.gate[2])
        self.validity = nn.Parameter(torch.full((optical_channels, 1, 1), self.VALIDITY_LOGIT))

    def forward(self, optical: Tensor, sar: Tensor, optical_valid: Tensor, sar_valid: Tensor) -> Tensor:
        """See JOIN_REGISTRY."""
        sar = self.project(sar)
        told = (optical, sar, optical_valid.to(optical.dtype), sar_valid.to(optical.dtype))
        logit = self.gate(torch.cat(told, dim=1)) + self.validity * (optical_valid - sar_valid)
        gate = torch.sigmoid(logit).to(optical.dtype)
        return 2 * (gate * optical + (1 - gate) * sar)


def _zero(layer: nn.Module) -> None:
    """Make a freshly built linear layer or convolution return 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


# ---- Exchanges ---------------------------------------------------------------------------------------------


class Exchange(nn.Module):
    """Base of exchanges: forward(optical, sar, optical_valid, sar_valid) -> (optical, sar), shapes unchanged.

    All that one stream gets to know of the other goes through `_tell`, so that it can be observed and cut off (P3).

    Attributes:
        optical, sar: modules, the half of the exchange that changes this stream alone.
    """

    optical: nn.Module
    sar: nn.Module

    def __init__(self):
        super().__init__()
        self._replaced: dict[str, Tensor] = {}
        self._listener = None

    def _tell(self, modality: str, message: Tensor, valid: Tensor) -> Tensor:
        """`message` (N, M, ...) of the stream `modality` to the other one; its mean where that is cut off."""
        if self._listener is not None:
            self._listener(modality, message.detach(), valid)
        mean = self._replaced.get(modality)
        if mean is None:
            return message
        return mean.to(message).reshape(1, -1, *[1] * (message.dim() - 2)).expand_as(message)


@EXCHANGE_REGISTRY.register()
class MMTM(Exchange):
    """Multimodal transfer module: each stream's channels are gated by what both streams hold (P3; CVPR 2020, Joze).

    Squeeze: h = mean over the cells with data. Joint: z = relu(FC([h_optical, h_sar])). Excitation: E = FC(z), one per
    stream. Gate: 2 * sigmoid(E) * F, which starts as 1 * F.
    """

    @configurable
    def __init__(self, *, optical_channels: int, sar_channels: int, ratio: float):
        """`ratio`: channels of both streams together over it are the width of z."""
        super().__init__()
        both = optical_channels + sar_channels
        width = max(int(both / ratio), 1)
        self.joint = nn.Linear(both, width)
        self.optical, self.sar = nn.Linear(width, optical_channels), nn.Linear(width, sar_channels)
        nn.init.kaiming_normal_(self.joint.weight, nonlinearity="relu")
        nn.init.zeros_(self.joint.bias)
        _zero(self.optical)
        _zero(self.sar)

    @classmethod
    def from_config(cls, cfg, optical, sar):
        """MODEL.FUSION.MMTM."""
        return {
            "optical_channels": optical.channels,
            "sar_channels": sar.channels,
            "ratio": cfg.MODEL.FUSION.MMTM.RATIO,
        }

    def forward(self, optical, sar, optical_valid, sar_valid) -> tuple[Tensor, Tensor]:
        """See EXCHANGE_REGISTRY."""
        h_optical, h_sar = valid_mean(optical, optical_valid), valid_mean(sar, sar_valid)
        # z once per listener: each knows its own squeeze, and of the other what it is told.
        z_optical = F.relu(self.joint(torch.cat([h_optical, self._tell("sar", h_sar, sar_valid)], dim=1)))
        z_sar = F.relu(self.joint(torch.cat([self._tell("optical", h_optical, optical_valid), h_sar], dim=1)))
        return _gated(optical, self.optical(z_optical)), _gated(sar, self.sar(z_sar))


def _gated(features: Tensor, excitation: Tensor) -> Tensor:
    return features * (2 * torch.sigmoid(excitation))[:, :, None, None].to(features.dtype)


@EXCHANGE_REGISTRY.register()
class CrossAttention(Exchange):
    """Cross-fusion of FusionHeightNet (P2): in each stream, queries of the other one look for keys of its own.

    `x1 = x + A(LN(x), LN(other))`, `x2 = x1 + MLP(LN(x1))`, at a bottleneck width, as full width costs more than the
    network. Not in the paper: fixed sine positions in queries and keys, without which a cell could not prefer its
    surroundings; windows, or pooled keys, which strides 4 and 8 need. Starts as the identity.
    """

    @configurable
    def __init__(
        self,
        *,
        optical_channels: int,
        sar_channels: int,
        dim: int,
        heads: int,
        mlp_ratio: float,
        window: int = 0,
        max_keys: int = 1024,
    ):
        """See MODEL.FUSION.CROSS_ATTENTION.

        Args:
            dim: width inside, at most the stream's; a multiple of 4 * heads.
            mlp_ratio: hidden width of the MLP in units of `dim`.
            window: side of the windows, cells; 0 is the whole map, then keys are pooled to `max_keys` cells.
        """
        super().__init__()
        options = {"dim": dim, "heads": heads, "mlp_ratio": mlp_ratio, "window": window, "max_keys": max_keys}
        self.optical = AttentionBlock(optical_channels, sar_channels, **options)
        self.sar = AttentionBlock(sar_channels, optical_channels, **options)
        self.optical_norm, self.sar_norm = nn.LayerNorm(optical_channels), nn.LayerNorm(sar_channels)

    @classmethod
    def from_config(cls, cfg, optical, sar):
        """MODEL.FUSION.CROSS_ATTENTION."""
        keys = cfg.MODEL.FUSION.CROSS_ATTENTION
        return {
            "optical_channels": optical.channels,
            "sar_channels": sar.channels,
            **{name.lower(): value for name, value in keys.items()},
        }

    def forward(self, optical, sar, optical_valid, sar_valid) -> tuple[Tensor, Tensor]:
        """See EXCHANGE_REGISTRY."""
        n_optical, n_sar = _over_channels(self.optical_norm, optical), _over_channels(self.sar_norm, sar)
        # Queries are linear in the normalised map: the query of its mean is the mean query.
        to_optical = self._tell("sar", n_sar, sar_valid)
        to_sar = self._tell("optical", n_optical, optical_valid)
        return (
            self.optical(optical, n_optical, to_optical, optical_valid),
            self.sar(sar, n_sar, to_sar, sar_valid),
        )


# Below the share of one pixel in a cell of any size.
_NO_DATA = 1e-9


def _over_channels(module: nn.Module, x: Tensor) -> Tensor:
    """A module for (..., C) applied to (N, C, H, W)."""
    return module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class AttentionBlock(nn.Module):
    """One stream's half of CrossAttention; a block of a Transformer where the other stream is the same one."""

    def __init__(
        self, channels, other_channels, *, dim, heads, mlp_ratio, window=0, max_keys=1024, positions=True
    ):
        """See `CrossAttention`; `positions`: sines of the cells' places in queries and keys."""
        super().__init__()
        dim = min(dim, channels)
        if dim % (4 * heads):
            raise InputError(
                f"CrossAttention: a width of {dim} is not divisible by 4 times {heads} heads. Set MODEL.FUSION."
                "CROSS_ATTENTION.DIM and HEADS so that it is; DIM is never above the stream's channels."
            )
        self.heads, self.window, self.max_keys = heads, window, max_keys
        self.positions = positions
        self.query = nn.Linear(other_channels, dim)
        self.key, self.value = nn.Linear(channels, dim), nn.Linear(channels, dim)
        self.out = nn.Linear(dim, channels)
        hidden = int(mlp_ratio * dim)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
        _zero(self.out)
        _zero(self.mlp[2])

    def forward(self, own: Tensor, normed: Tensor, told: Tensor, valid: Tensor) -> Tensor:
        """Own features and the same normalised (N, C, H, W), the other stream's (N, M, H, W) -> (N, C, H, W)."""
        height, width = own.shape[-2:]
        step = 1 if self.window else _key_step(height, width, self.max_keys)
        keys, valid = _pooled(normed, valid, step)
        query = self.query(told.permute(0, 2, 3, 1)) + self._positions(height, width, 1, own)
        key = self.key(keys.permute(0, 2, 3, 1)) + self._positions(*keys.shape[-2:], step, own)
        value = self.value(keys.permute(0, 2, 3, 1))
        found = self._attend(query, key, value, valid.permute(0, 2, 3, 1))
        x = own.permute(0, 2, 3, 1) + self.out(found)
        return (x + self.mlp(self.norm(x))).permute(0, 3, 1, 2).to(own.dtype)

    def _attend(self, query, key, value, valid) -> Tensor:
        """(N, H, W, dim) queries, (N, h, w, ...) keys, values, validity -> (N, H, W, dim)."""
        side, shape = self.window, query.shape
        # Cells that fill up the last windows are 0 and never keys; cells without data are where there is no other.
        valid = valid.clamp(min=_NO_DATA)
        query, key, value, valid = (
            _to_windows(x, side) if side else x.flatten(1, 2) for x in (query, key, value, valid)
        )
        valid = valid[:, None, None, :, 0]
        has_data = valid > _NO_DATA
        mask = has_data | (~has_data.any(-1, keepdim=True) & (valid > 0))
        split = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        found = F.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(2)
        return _from_windows(found, side, shape) if side else found.reshape(shape)

    def _positions(self, height: int, width: int, step: int, like: Tensor) -> Tensor:
        """(H, W, dim) sines and cosines of the cells' centres, in cells of the map; the same for every head."""
        if not self.positions:
            return like.new_zeros(height, width, self.query.out_features)
        n = self.query.out_features // self.heads // 4
        frequency = 100.0 ** (-torch.arange(n, device=like.device) / n)
        y, x = (
            (torch.arange(size, device=like.device) + 0.5)[:, None] * step * frequency
            for size in (height, width)
        )
        y = torch.cat([y.sin(), y.cos()], dim=1)[:, None].expand(height, width, 2 * n)
        x = torch.cat([x.sin(), x.cos()], dim=1)[None].expand(height, width, 2 * n)
        return torch.cat([y, x], dim=2).repeat(1, 1, self.heads)


def _key_step(height: int, width: int, most: int) -> int:
    """The least factor by which to pool a map so that at most `most` cells are left."""
    step = 1
    while -(-height // step) * -(-width // step) > most:
        step += 1
    return step


def _pooled(features: Tensor, valid: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Both averaged over `step` x `step` cells, features over those with data where there are any."""
    if step == 1:
        return features, valid
    share = F.avg_pool2d(valid, step, ceil_mode=True)
    known = F.avg_pool2d(features * valid, step, ceil_mode=True) / share.clamp(min=_NO_DATA)
    return torch.where(share > 0, known, F.avg_pool2d(features, step, ceil_mode=True)), share


def _to_windows(x: Tensor, side: int) -> Tensor:
    """(N, H, W, C) -> (N * windows, side * side, C), zeros where the last windows reach over the edge."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % side, 0, -x.shape[1] % side))
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def _from_windows(x: Tensor, side: int, shape: torch.Size) -> Tensor:
    """Inverse of `_to_windows` for a map of `shape` (N, H, W, C)."""
    n, height, width, _ = shape
    down, across = -(-height // side), -(-width // side)
    x = x.reshape(n, down, across, side, side, -1).transpose(2, 3)
    return x.reshape(n, down * side, across * side, -1)[:, :height, :width]


# ---- What streams tell each other --------------------------------------------------------------------------


def exchanges(model: nn.Module) -> dict[str, Exchange]:
    """The exchanges in `model` by their names; {} for a network without."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Exchange)}


def listen(model: nn.Module, listener: Callable[[str, str, Tensor, Tensor], None] | None) -> None:
    """Call listener(exchange, modality, message (N, M, ...), valid (N, 1, H, W)) at each message; None: no more."""
    for name, op in exchanges(model).items():
        op._listener = None if listener is None else partial(listener, name)


@torch.no_grad()
def mean_messages(
    model: nn.Module, batches: Iterable, forward: Callable | None = None
) -> dict[str, dict[str, Tensor]]:
    """What each stream tells the other on average (P3): a calibration pass in eval mode, the partner of `cut_off`.

    Args:
        batches: inputs of `model`, of the training set.
        forward: called as forward(batch); the model itself if None, though its backbone alone is enough.

    Returns:
        exchange -> modality -> (M,) float32 mean over images, those of maps over the cells with data first. Images
        without any data of the modality are left out.

    Raises:
        InputError: no image holds data of a modality.
    """
    ops, training = exchanges(model), model.training
    means = {(name, modality): _Mean() for name in ops for modality in MODALITIES}
    listen(model, lambda name, modality, message, valid: means[name, modality].add(message, valid))
    model.eval()
    try:
        for batch in batches:
            (forward or model)(batch)
    finally:
        model.train(training)
        listen(model, None)
    return {name: {m: means[name, m].result(m) for m in MODALITIES} for name in ops}


class _Mean:
    """Mean over images of messages (N, M, ...), counted in double precision."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def add(self, message: Tensor, valid: Tensor) -> None:
        message = message if message.dim() == 2 else valid_mean(message, valid)
        present = message[valid.amax((1, 2, 3)) > 0]
        self.total, self.count = self.total + present.double().sum(0), self.count + len(present)

    def result(self, modality: str) -> Tensor:
        if self.count == 0:
            raise InputError(
                f"no image of the calibration holds {modality} data, so there is no mean message of it."
            )
        return (self.total / self.count).float()


@contextmanager
def cut_off(model: nn.Module, means: dict[str, dict[str, Tensor]], modality: str) -> Iterator[None]:
    """Within it, every exchange hears the mean message of `modality` instead of the image's own (P3, cut-off).

    Args:
        means: exchange -> modality -> (M,), of `mean_messages`.
    """
    if modality not in MODALITIES:
        raise unknown_name("modality", modality, MODALITIES)
    ops = exchanges(model)
    replaced = {name: {modality: means[name][modality]} for name in ops}
    for name, op in ops.items():
        op._replaced = replaced[name]
    try:
        yield
    finally:
        for op in ops.values():
            op._replaced = {}
