"""Late fusion of decisions: boxes and heights of two detectors, one per modality, become one set of buildings.

Legend: R regions; pairs are in the order of `MODALITIES`. The *share* of a modality in a box is the part of the box's
area that has data of it, [0, 1].
"""

from fusiondet.modeling.fusion import MODALITIES, weights_of
from fusiondet.modeling.height_head import HeightDistribution

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn


class BoxFusion(nn.Module):
    """Merge the boxes of both detectors, see `fuse_boxes`, and keep the best."""

    def __init__(self, *, match_iou: float = 0.5, score_threshold: float = 0.05, max_detections: int = 100):
        """For the boxes of one image.

        Args:
            match_iou: boxes of both detectors that overlap more are one building.
            score_threshold, max_detections: of the merged boxes.
        """
        super().__init__()
        self.match_iou, self.score_threshold, self.max_detections = match_iou, score_threshold, max_detections

    def forward(self, found: dict[str, list[Instances]], shares: dict[str, list[Tensor]]) -> list[Instances]:
        """Boxes of each modality's detector and (R, 2) shares of both modalities in them, per image -> merged ones."""
        merged = []
        for optical, sar, optical_shares, sar_shares in zip(
            *(found[m] for m in MODALITIES), *(shares[m] for m in MODALITIES), strict=True
        ):
            boxes = fuse_boxes(optical, sar, optical_shares, sar_shares, self.match_iou)
            merged.append(self.above_threshold(boxes)[: self.max_detections])
        return merged

    def above_threshold(self, boxes: Instances) -> Instances:
        """Return those of `boxes` that score above `score_threshold`."""
        return boxes[boxes.scores > self.score_threshold]


def valid_shares(image: Tensor, box_xyxy: Tensor) -> Tensor:
    """(R,) share of the pixels that each of `box_xyxy` (R, 4) touches which have data in any band of `image`.

    Args:
        image: (C, H, W), NaN = no data. A box beyond it has a share of 0.
    """
    valid = ~torch.isnan(image).all(dim=0)
    height, width = valid.shape
    sums = nn.functional.pad(valid.long().cumsum(0).cumsum(1), (1, 0, 1, 0))
    x0, y0 = box_xyxy[:, :2].floor().long().unbind(1)
    x1, y1 = box_xyxy[:, 2:].ceil().long().unbind(1)
    x0, x1, y0, y1 = x0.clamp(0, width), x1.clamp(0, width), y0.clamp(0, height), y1.clamp(0, height)
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return inside / ((x1 - x0) * (y1 - y0)).clamp(min=1)


def fuse_boxes(
    optical: Instances, sar: Instances, optical_shares: Tensor, sar_shares: Tensor, match_iou: float
) -> Instances:
    """Weighted box fusion (Solovyev et al. 2021, https://arxiv.org/abs/1910.13302) of two detectors' boxes of an image.

    In the order of their scores, boxes join the box of the other detector that they overlap most, by more than
    `match_iou`, of the same class. Coordinates are averaged with the weights share * score; scores with the shares,
    where a detector that has data in the box and does not find it says 0. Unlike there, a detector has one box per
    building at most: its own doubles are gone already.

    Args:
        optical, sar: pred_boxes, scores, pred_classes, of positive share.
        optical_shares, sar_shares: (R, 2) shares of both modalities in each of these boxes.

    Returns:
        The same fields, best first.
    """
    boxes = torch.cat([optical.pred_boxes.tensor, sar.pred_boxes.tensor])
    scores = torch.cat([optical.scores, sar.scores])
    classes = torch.cat([optical.pred_classes, sar.pred_classes])
    own = torch.cat([optical_shares[:, 0], sar_shares[:, 1]])
    others = torch.cat([optical_shares[:, 1], sar_shares[:, 0]])
    iou = pairwise_iou(Boxes(boxes), Boxes(boxes)) * (classes[:, None] == classes)
    n = len(optical)
    iou[:n, :n] = iou[n:, n:] = 0
    partner = torch.as_tensor(_partners(iou.cpu().numpy(), scores, match_iou), device=boxes.device)
    first = torch.nonzero(
        (partner < 0) | (torch.arange(len(partner), device=boxes.device) < partner)
    ).flatten()
    second = partner[first]
    paired = second >= 0
    mass = own * scores
    gained = torch.where(paired, mass[second], 0.0)
    fused = (mass[first, None] * boxes[first] + gained[:, None] * boxes[second]) / (mass[first] + gained)[
        :, None
    ]
    score = (mass[first] + gained) / (own[first] + torch.where(paired, own[second], others[first]))
    order = score.argsort(descending=True, stable=True)
    result = Instances(optical.image_size)
    result.pred_boxes = Boxes(torch.where(paired[:, None], fused, boxes[first])[order])
    result.scores, result.pred_classes = score[order], classes[first][order]
    return result


def _partners(iou: np.ndarray, scores: Tensor, match_iou: float) -> np.ndarray:
    """(R,) index of the box that each one is merged with, or -1; `iou` (R, R) is 0 between boxes that never are."""
    partner, seen = np.full(len(iou), -1), np.zeros(len(iou), bool)
    for i in scores.argsort(descending=True, stable=True).tolist():
        overlap = iou[i] * (seen & (partner < 0))
        seen[i] = True
        j = overlap.argmax()
        if overlap[j] > match_iou:
            partner[i], partner[j] = j, i
    return partner


def combine_heights(
    parts: list[HeightDistribution], shares: Tensor, width: float | Tensor = 1.0
) -> HeightDistribution:
    """One distribution of the log height of `parts`, branch predictions of the same R regions.

    With m and v median and variance (2 scale²) of a branch's log height and q its share, the weights are
    w = (q / v) / sum(q / v), the median is sum(w m), and the variance that of the mixture, sum(w (v + (m - median)²)).
    It is never below that of the best branch, because the errors of both are not independent (one building, one
    training), and grows where they disagree.

    Args:
        shares: (R, number of parts); where all are 0 they count as equal.
        width: of the result; that of the parts is left aside.
    """
    location = torch.stack([p.location for p in parts], dim=1)
    variance = 2 * torch.stack([p.log_scale for p in parts], dim=1).mul(2).exp()
    weights = weights_of(weights_of(shares) / variance)
    median = (weights * location).sum(dim=1)
    mixed = (weights * (variance + (location - median[:, None]) ** 2)).sum(dim=1)
    return HeightDistribution(median, (mixed / 2).log() / 2, parts[0].range_m, width)
