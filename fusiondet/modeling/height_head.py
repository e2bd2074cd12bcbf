"""Height per building: heads, their loss, and the registry they are named in.

Legend: R regions of the whole batch, D channels, S cells per side of a pooled region. Heights are metres above ground;
log height is natural log of metres and never leaves this module.
"""

import math
from dataclasses import dataclass

from fusiondet.modeling.poolers import Float32Pooler
from fusiondet.modeling.sensor_geometry import GeometryBranch

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry
from torch import Tensor, nn

ROI_HEIGHT_HEAD_REGISTRY = Registry("ROI_HEIGHT_HEAD")
ROI_HEIGHT_HEAD_REGISTRY.__doc__ = """
Heads that predict a height per region. Built as obj(cfg, input_shape: dict[str, ShapeSpec]).

forward(features: dict[str, (N, D, H, W)], boxes: N Boxes in image pixels, masks: (R, 1, M, M) probabilities in the
frame of each box, or None, sensor: (R, len(SENSOR_FIELDS))) -> HeightDistribution of R regions. With
MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR one of the features is "dense_height", (N, 1, H, W) metres at stride 1, detached.
losses(predicted: HeightDistribution, heights_m: (R,) known heights) -> dict of scalar losses; R may be 0.
interval_width: buffer, factor on the width of the intervals that calibration sets in place.
"""

# Fields set on Instances, in the order of HeightDistribution.heights_m().
HEIGHT_FIELDS = ("pred_height_p16", "pred_heights", "pred_height_p84")

# What stands for a number of the config that the training data could not tell: an ordinary town.
DEFAULT_CONTEXT_M, DEFAULT_MEDIAN_M, DEFAULT_LOG_SCALE = 40.0, 8.0, 0.6

# A Laplace distribution has 68 % of its mass within this many scales of its median: ln(1 / 0.32).
_LAPLACE_P84 = math.log(1 / 0.32)
# Scale of the log height: 2 % is finer than any truth, a factor of 4.5 is not worth calling a prediction.
_LOG_SCALE_RANGE = (math.log(0.02), math.log(1.5))


@dataclass
class HeightDistribution:
    """Laplace distribution of the log height of R regions.

    Attributes:
        location: (R,) median of the log height. log_scale: (R,) log of its scale.
        range_m: heights leave clipped to this range, metres.
        width: intervals leave this much wider than the scale says; see `ContextHeightHead.interval_width`.
    """

    location: Tensor
    log_scale: Tensor
    range_m: tuple[float, float]
    width: float | Tensor = 1.0

    def heights_m(self) -> tuple[Tensor, Tensor, Tensor]:
        """(R,) each: 16th percentile, median, 84th percentile of the height, metres above ground."""
        half = self.log_scale.exp() * (_LAPLACE_P84 * self.width)
        quantiles = (self.location - half, self.location, self.location + half)
        return tuple(q.exp().clamp(*self.range_m) for q in quantiles)

    def negative_log_likelihood(self, heights_m: Tensor) -> Tensor:
        """(R,) -log p(log height) up to a constant, of heights clipped to the range: |error| / scale + log scale."""
        target = heights_m.clamp(*self.range_m).log()
        return (target - self.location).abs() * (-self.log_scale).exp() + self.log_scale


def build_height_head(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The head named MODEL.ROI_HEIGHT_HEAD.NAME."""
    return ROI_HEIGHT_HEAD_REGISTRY.get(cfg.MODEL.ROI_HEIGHT_HEAD.NAME)(cfg, input_shape)


@ROI_HEIGHT_HEAD_REGISTRY.register()
class ContextHeightHead(nn.Module):
    """Height from the building itself and from its surroundings in metres, where shadow and layover lie.

    Two regions are pooled: the tight box, averaged inside the mask, and a square that reaches `context_m` beyond the
    box, kept as a map because direction and distance matter there. Both see the mask as one more channel. The sizes of
    both in metres enter beside them: a convolution counts cells, the height is in metres.

    With a prior (one task's output shown to another: P4), what a dense head says of the heights is one more channel of
    the tight box, and its mean inside the mask one more number, both as log(1 + metres).

    Attributes:
        interval_width: factor on the width of the intervals, 1 until it is calibrated on held-out data: a network that
            has seen its training heights often is surer of new ones than it should be. It has no part in the loss.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: nn.Module,
        context_pooler: nn.Module,
        in_channels: int,
        resolution: int,
        context_resolution: int,
        context_m: float,
        conv_dim: int = 128,
        num_conv: int = 3,
        fc_dim: int = 512,
        num_fc: int = 2,
        norm: str = "GN",
        range_m: tuple[float, float] = (1.0, 200.0),
        prior_median_m: float = DEFAULT_MEDIAN_M,
        prior_log_scale: float = DEFAULT_LOG_SCALE,
        loss_weight: float = 1.0,
        geometry: GeometryBranch | None = None,
        prior_pooler: nn.Module | None = None,
    ):
        """Args:
        pooler, context_pooler: called with (list of feature maps, list of Boxes) -> (R, in_channels, S, S), with
            S = `resolution` and `context_resolution`.
        context_m: how far the context reaches beyond the box on each side, metres.
        range_m: predictions and training heights are clipped to it.
        prior_median_m, prior_log_scale: what the untrained head predicts.
        geometry: reads the first of `in_features`; None for a head that is told no angles.
        prior_pooler: as `pooler`, on the feature map "dense_height"; None for a head that is not shown it.
        """
        super().__init__()
        self.in_features = in_features
        self.pooler, self.context_pooler = pooler, context_pooler
        self.resolution, self.context_resolution = resolution, context_resolution
        self.context_m, self.range_m, self.loss_weight = context_m, tuple(range_m), loss_weight
        self.geometry, self.prior_pooler = geometry, prior_pooler
        prior = int(prior_pooler is not None)
        self.register_buffer("interval_width", torch.ones(()))
        self.convs = _convolutions(in_channels + 1 + prior, conv_dim, [1] * num_conv, norm)
        self.context_convs = _convolutions(in_channels + 1, conv_dim, [1, 2] + [1] * (num_conv - 2), norm)
        side = math.ceil(context_resolution / 2)
        told = geometry.out_channels if geometry is not None else 0
        widths = [conv_dim * (2 + side * side) + _SCALE_FEATURES + told + prior] + [fc_dim] * num_fc
        layers = [[nn.Linear(a, b), nn.ReLU()] for a, b in zip(widths, widths[1:])]
        self.fcs = nn.Sequential(*[layer for pair in layers for layer in pair])
        self.predictor = nn.Linear(widths[-1], 2)
        nn.init.normal_(self.predictor.weight, std=0.001)
        with torch.no_grad():
            self.predictor.bias.copy_(torch.tensor([math.log(prior_median_m), math.log(prior_log_scale)]))

    @classmethod
    def from_config(cls, cfg, input_shape):
        """The only reader of config keys."""
        head = cfg.MODEL.ROI_HEIGHT_HEAD
        scales = tuple(1.0 / input_shape[f].stride for f in head.IN_FEATURES)

        def pooler(side):
            return Float32Pooler(ROIPooler(side, scales, head.POOLER_SAMPLING_RATIO, "ROIAlignV2"))

        return {
            "in_features": list(head.IN_FEATURES),
            "pooler": pooler(head.POOLER_RESOLUTION),
            "context_pooler": pooler(head.CONTEXT_RESOLUTION),
            "in_channels": input_shape[head.IN_FEATURES[0]].channels,
            "resolution": head.POOLER_RESOLUTION,
            "context_resolution": head.CONTEXT_RESOLUTION,
            "context_m": head.CONTEXT_M or DEFAULT_CONTEXT_M,
            "conv_dim": head.CONV_DIM,
            "num_conv": head.NUM_CONV,
            "fc_dim": head.FC_DIM,
            "num_fc": head.NUM_FC,
            "norm": head.NORM,
            "range_m": (head.MIN_HEIGHT_M, head.MAX_HEIGHT_M),
            "prior_median_m": head.PRIOR_MEDIAN_M or DEFAULT_MEDIAN_M,
            "prior_log_scale": head.PRIOR_LOG_SCALE or DEFAULT_LOG_SCALE,
            "loss_weight": head.LOSS_WEIGHT,
            "geometry": cls._geometry(head, input_shape[head.IN_FEATURES[0]]),
            "prior_pooler": cls._prior_pooler(head),
        }

    @staticmethod
    def _prior_pooler(head) -> nn.Module | None:
        if not head.DENSE_PRIOR:
            return None
        # As many samples as there are pixels, so that every cell is the mean of its own.
        return Float32Pooler(ROIPooler(head.POOLER_RESOLUTION, (1.0,), 0, "ROIAlignV2"))

    @staticmethod
    def _geometry(head, shape: ShapeSpec) -> GeometryBranch | None:
        if not len(head.GEOMETRY):
            return None
        return GeometryBranch(head.GEOMETRY, shape.channels, shape.stride, head.GEOMETRY_DROPOUT)

    def forward(
        self, features, boxes: list[Boxes], masks: Tensor | None, sensor: Tensor
    ) -> HeightDistribution:
        """See ROI_HEIGHT_HEAD_REGISTRY. A GSD of NaN counts as 1 m."""
        levels = [features[f] for f in self.in_features]
        if self.geometry is not None:
            sensor = self.geometry.hide(sensor, [len(b) for b in boxes])
        gsd_m = torch.nan_to_num(sensor[:, 0], nan=1.0)
        xyxy = torch.cat([b.tensor for b in boxes])
        context_xyxy = context_boxes(xyxy, self.context_m / gsd_m)
        context = [Boxes(part) for part in context_xyxy.split([len(b) for b in boxes])]
        if masks is None:
            masks = xyxy.new_ones(len(xyxy), 1, 2, 2)
        inside = resample_masks(masks, xyxy, xyxy, self.resolution)
        tight, numbers = [self.pooler(levels, boxes), inside], [_scale_features(xyxy, context_xyxy, gsd_m)]
        if self.prior_pooler is not None:
            height_m = self.prior_pooler([features["dense_height"]], boxes)
            tight.append(height_m.log1p())
            numbers.append(_mean_inside(height_m, inside).log1p())
        x = self.convs(torch.cat(tight, dim=1))
        inside = inside.to(x.dtype)
        around = resample_masks(masks, xyxy, context_xyxy, self.context_resolution)
        y = self.context_convs(torch.cat([self.context_pooler(levels, context), around], dim=1))
        numbers = torch.cat(numbers, dim=1).to(x.dtype)
        seen, shift = [_mean_inside(x, inside), x.mean((2, 3)), y.flatten(1), numbers], 0.0
        if self.geometry is not None:
            evidence = self.geometry(levels[0], boxes, masks, sensor)
            seen.append(evidence.vector.to(x.dtype))
            shift = evidence.log_height
        location, log_scale = self.predictor(self.fcs(torch.cat(seen, dim=1))).float().unbind(1)
        location = location + shift
        return HeightDistribution(
            location, log_scale.clamp(*_LOG_SCALE_RANGE), self.range_m, self.interval_width
        )

    def losses(self, predicted: HeightDistribution, heights_m: Tensor) -> dict[str, Tensor]:
        """Mean negative log-likelihood over R known heights.

        With R = 0 it is zero, still attached to the prediction, so that every distributed rank takes part in the
        backward pass. The scalar `height_head/mae_m` is logged.
        """
        if not len(heights_m):
            return {"loss_height": (predicted.location.sum() + predicted.log_scale.sum()) * 0.0}
        loss = predicted.negative_log_likelihood(heights_m).mean()
        with torch.no_grad():
            mae_m = (predicted.heights_m()[1] - heights_m).abs().mean()
        get_event_storage().put_scalar("height_head/mae_m", mae_m.item())
        return {"loss_height": loss * self.loss_weight}


def context_boxes(box_xyxy: Tensor, margin_px: Tensor) -> Tensor:
    """(R, 4) squares around the centres of `box_xyxy` that reach `margin_px` (R,) beyond its longer side.

    Square, so that a metre has the same length in both directions; they may leave the image.
    """
    centre = (box_xyxy[:, :2] + box_xyxy[:, 2:]) / 2
    half = (box_xyxy[:, 2:] - box_xyxy[:, :2]).amax(dim=1) / 2 + margin_px
    return torch.cat([centre - half[:, None], centre + half[:, None]], dim=1)


def resample_masks(masks: Tensor, from_xyxy: Tensor, to_xyxy: Tensor, side: int) -> Tensor:
    """Masks in the frame of one box, seen in the frame of another.

    Args:
        masks: (R, 1, M, M), cell (j, i) sampled at the centre of its cell in `from_xyxy` (R, 4).
        to_xyxy: (R, 4), same pixels. side: cells of the result.

    Returns:
        (R, 1, side, side) bilinear; 0 outside `from_xyxy`.
    """
    cells = (torch.arange(side, device=masks.device, dtype=torch.float32) + 0.5) / side
    size = (to_xyxy[:, 2:] - to_xyxy[:, :2])[:, :, None]
    points = to_xyxy[:, :2, None] + size * cells
    extent = (from_xyxy[:, 2:] - from_xyxy[:, :2]).clamp(min=1e-3)[:, :, None]
    x, y = (2 * (points - from_xyxy[:, :2, None]) / extent - 1).unbind(1)
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1)
    return F.grid_sample(
        masks.float(), grid.float(), mode="bilinear", padding_mode="zeros", align_corners=False
    )


def _mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """(R, D) mean of `values` (R, D, S, S) weighted by `inside` (R, 1, S, S); less where that is below one cell."""
    return (values * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1.0)


_SCALE_FEATURES = 4


def _scale_features(box_xyxy: Tensor, context_xyxy: Tensor, gsd_m: Tensor) -> Tensor:
    """(R, 4) log of box width and height, context side and GSD in metres, near 0 for a house at 0.5 m."""
    width_m, height_m = ((box_xyxy[:, 2:] - box_xyxy[:, :2]) * gsd_m[:, None]).clamp(min=0.1).unbind(1)
    context_m = (context_xyxy[:, 2] - context_xyxy[:, 0]) * gsd_m
    return torch.stack([width_m / 10, height_m / 10, context_m / 50, gsd_m / 0.5], dim=1).log()


def _convolutions(in_channels: int, out_channels: int, strides: list[int], norm: str) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * len(strides)
    return nn.Sequential(
        *[
            Conv2d(a, b, 3, stride=s, padding=1, bias=not norm, norm=get_norm(norm, b), activation=F.relu)
            for a, b, s in zip(widths, widths[1:], strides)
        ]
    )
