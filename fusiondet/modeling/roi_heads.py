"""ROI heads: boxes and masks as in Detectron2, and a height per building beside the mask."""

from fusiondet.modeling.height_head import HEIGHT_FIELDS, HeightDistribution, build_height_head
from fusiondet.modeling.poolers import Float32Pooler

import torch
from detectron2.config import configurable
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads, select_foreground_proposals
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import Instances
from torch import nn


@ROI_HEADS_REGISTRY.register()
class FusionROIHeads(StandardROIHeads):
    """StandardROIHeads with a height head that sees the predicted masks.

    Heights are trained on the same sampled positives as the masks, with the masks predicted for them (detached): what
    the head sees in training is what it sees at inference.
    """

    @configurable
    def __init__(self, *, height_head: nn.Module | None = None, max_height_positives: int = 32, **kwargs):
        """See StandardROIHeads; `height_head`: None for boxes and masks only."""
        super().__init__(**kwargs)
        self.height_head = height_head
        self.max_height_positives = max_height_positives

    @property
    def interval_width(self) -> torch.Tensor | None:
        """Factor on the width of the height intervals; None without a height head."""
        return None if self.height_head is None else self.height_head.interval_width

    @classmethod
    def from_config(cls, cfg, input_shape):
        """The only reader of config keys."""
        arguments = super().from_config(cfg, input_shape)
        for name in ("box_pooler", "mask_pooler"):
            if arguments.get(name) is not None:
                arguments[name] = Float32Pooler(arguments[name])
        arguments["height_head"] = build_height_head(cfg, input_shape) if cfg.MODEL.HEIGHT_ON else None
        arguments["max_height_positives"] = cfg.MODEL.ROI_HEIGHT_HEAD.MAX_POSITIVES_PER_IMAGE
        return arguments

    def forward(self, images, features, proposals, targets=None):
        """As StandardROIHeads.forward; `images.sensor` is (N, len(SENSOR_FIELDS))."""
        if not self.training:
            instances = self.detect(features, proposals)
            if self.height_head is not None:
                attach_sensor(instances, images.sensor)
            return self.forward_with_given_boxes(features, instances), {}
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals)
        positives, _ = select_foreground_proposals(proposals, self.num_classes)
        mask_losses, masks = self._train_masks(features, positives)
        losses.update(mask_losses)
        if self.height_head is not None:
            attach_sensor(positives, images.sensor)
            losses.update(self._train_heights(features, positives, masks))
        return proposals, losses

    def detect(self, features, proposals: list[Instances]) -> list[Instances]:
        """Boxes alone: pred_boxes, scores, pred_classes per image."""
        return self._forward_box(features, proposals)

    def forward_with_given_boxes(self, features, instances):
        """Masks, then heights, of the given `pred_boxes`; instances know their `sensor` row."""
        _, heights = self.masks_and_heights(features, instances)
        if heights is not None:
            set_heights(instances, heights)
        for x in instances:
            if x.has("sensor"):
                x.remove("sensor")
        return instances

    def masks_and_heights(
        self, features, instances: list[Instances]
    ) -> tuple[torch.Tensor | None, HeightDistribution | None]:
        """Mask probabilities (R, 1, M, M) and heights of the R `pred_boxes`; None without that head.

        Instances know their `sensor` row if there is a height head, and learn their `pred_masks`.
        """
        instances = super().forward_with_given_boxes(features, instances)
        masks = torch.cat([x.pred_masks for x in instances]) if self.mask_on else None
        if self.height_head is None:
            return masks, None
        boxes = [x.pred_boxes for x in instances]
        return masks, self.height_head(features, boxes, masks, _sensor(instances))

    def heights_of_truth(
        self, features, truth: list[Instances], sensor: torch.Tensor
    ) -> HeightDistribution | None:
        """Heights of the ground-truth boxes and masks of the whole batch; None without a height head."""
        if self.height_head is None:
            return None
        boxes = [x.gt_boxes for x in truth]
        # A network without a mask head has never seen a mask.
        masks = torch.cat([_truth_masks(x) for x in truth]) if self.mask_on else None
        rows = torch.cat([row.expand(len(x), -1) for x, row in zip(truth, sensor)])
        return self.height_head(features, boxes, masks, rows)

    def _train_masks(self, features, positives: list[Instances]):
        """The mask loss and the mask probabilities (R, 1, M, M), detached; ({}, None) without a mask head."""
        if not self.mask_on:
            return {}, None
        pooled = self.mask_pooler(
            [features[f] for f in self.mask_in_features], [x.proposal_boxes for x in positives]
        )
        logits = self.mask_head.layers(pooled)
        loss = mask_rcnn_loss(logits, positives, self.mask_head.vis_period) * self.mask_head.loss_weight
        if logits.shape[1] > 1:
            classes = torch.cat([x.gt_classes for x in positives])
            logits = logits[torch.arange(len(logits), device=logits.device), classes][:, None]
        return {"loss_mask": loss}, logits.detach().float().sigmoid()

    def _train_heights(self, features, positives: list[Instances], masks: torch.Tensor | None):
        """Loss on positives whose height is known, at most `max_height_positives` of an image."""
        kept, rows, start = [], [], 0
        for x in positives:
            known = _known_heights(x)[: self.max_height_positives]
            kept.append(x[known])
            rows.append(known + start)
            start += len(x)
        masks = None if masks is None else masks[torch.cat(rows)]
        predicted = self.height_head(features, [x.proposal_boxes for x in kept], masks, _sensor(kept))
        heights_m = [x.gt_heights for x in kept if len(x)]
        heights_m = torch.cat(heights_m) if heights_m else predicted.location.new_zeros(0)
        return self.height_head.losses(predicted, heights_m)


def _known_heights(x: Instances) -> torch.Tensor:
    """Indices of instances with a known height; images without truth carry no gt_heights at all."""
    if not len(x):
        return torch.zeros(0, dtype=torch.long, device=x.proposal_boxes.device)
    return torch.nonzero(torch.isfinite(x.gt_heights)).flatten()


def attach_sensor(instances: list[Instances], sensor: torch.Tensor) -> None:
    """Let every region know its image's row of `sensor` (N, len(SENSOR_FIELDS))."""
    for x, row in zip(instances, sensor):
        x.sensor = row.expand(len(x), -1)


def _sensor(instances: list[Instances]) -> torch.Tensor:
    return torch.cat([x.sensor for x in instances])


def _truth_masks(x: Instances, side: int = 28) -> torch.Tensor:
    boxes = x.gt_boxes.tensor
    if not len(x):
        return boxes.new_zeros(0, 1, side, side)
    return x.gt_masks.crop_and_resize(boxes, side).to(boxes)[:, None]


def set_heights(
    instances: list[Instances], predicted: HeightDistribution, lengths: list[int] | None = None
) -> None:
    """Split the batch's (R,) heights in metres over its images, of `lengths` regions each (theirs if None)."""
    lengths = lengths if lengths is not None else [len(x) for x in instances]
    for name, values in zip(HEIGHT_FIELDS, predicted.heights_m()):
        for x, part in zip(instances, values.split(lengths)):
            x.set(name, part)
