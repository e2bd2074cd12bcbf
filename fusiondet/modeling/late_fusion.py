"""Late fusion of decisions: two complete networks, one per modality, whose maps, boxes, masks and heights are merged.

Legend: N images, R regions, M cells per side of a mask; pairs are in the order of `MODALITIES`. The *share* of a
modality in a box is how much of the box's area has data of it, [0, 1].
"""

from fusiondet.errors import InputError
from fusiondet.modeling.backbone import LateFusionFPN, PyramidPair
from fusiondet.modeling.dense_heads import DenseMaps, DenseTargets
from fusiondet.modeling.fusion import MODALITIES, weights_of
from fusiondet.modeling.height_head import HeightDistribution
from fusiondet.modeling.meta_arch import FusionDense, FusionRCNN, truth_heights
from fusiondet.modeling.roi_heads import attach_sensor, set_heights
from fusiondet.modeling.sensor_geometry import FACTS

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_proposal_generator, build_roi_heads
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

# Boxes of one branch below this are not even offered to the other: what both see dimly is worth more than that.
_BRANCH_SCORE = 0.05


class TwoBranches(FusionRCNN):
    """What networks of two branches have in common: the backbone gives {modality: pyramid}, heads are ModuleDicts.

    A branch has dense heads of its own, which see and reconstruct the bands of its modality, are asked where that has
    data, and have a say there; heights and probabilities are averaged (P1's late fusion). Losses are named by branch
    ("optical/loss_footprint", ...), and their sum is trained (P3). With exchanges in the backbone
    (MODEL.FUSION.EXCHANGE) the branches learn from each other before they decide; without, they are independent.

    Attributes:
        loss_weights: modality -> factor on the losses of its branch.
    """

    has_branches = True
    separate_pyramids = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_weights = dict.fromkeys(MODALITIES, 1.0)

    @classmethod
    def dense_arguments(cls, cfg, shapes: dict, bands: int) -> dict:
        """As FusionRCNN's, of both branches."""
        optical = cfg.MODEL.FUSION.OPTICAL_CHANNELS
        return _of_both([FusionRCNN.dense_arguments(cfg, shapes, own) for own in (optical, bands - optical)])

    def own(self, modality: str) -> nn.Module:
        """The part of the network that looks at `modality` alone: its ResNet."""
        return getattr(self.backbone.bottom_up, modality)

    def _maps(self, shared, image: Tensor):
        """{modality: what its dense heads say}."""
        if self.dense_heads is None:
            return dict.fromkeys(MODALITIES, DenseMaps())
        return {m: self.dense_heads[m](shared[m], image[:, self.channels[m]]) for m in MODALITIES}

    def _dense_losses(self, maps, targets: DenseTargets, images) -> dict[str, Tensor]:
        losses = {}
        for name in MODALITIES:
            part = self.channels[name]
            unseen = torch.isnan(images.tensor[:, part]).all(dim=1, keepdim=True)
            # Nor to reconstruct what was dropped: where it sees nothing, a branch could only learn to guess.
            own = (targets.height_m, targets.footprint, targets.image[:, part])
            asked = DenseTargets(*(torch.where(unseen, torch.nan, x) for x in own))
            losses |= self._named(name, self.dense_heads[name].losses(maps[name], asked))
        return losses

    def _named(self, modality: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{modality}/{key}": value * self.loss_weights[modality] for key, value in losses.items()}

    def _said(self, maps, images) -> dict[str, Tensor]:
        said = [self._said_by(maps[m], images) for m in MODALITIES]
        valid = [~torch.isnan(images.tensor[:, self.channels[m]]).all(dim=1) for m in MODALITIES]
        weights = weights_of(torch.stack(valid, dim=1).float()).split(1, dim=1)
        return {name: sum(part[name] * w for part, w in zip(said, weights)) for name in said[0]}

    def _said_by(self, maps: DenseMaps, images) -> dict[str, Tensor]:
        """Maps of one branch as FusionRCNN says its own."""
        return super()._said(maps, images)


def _check_two_pyramids(cfg, backbone) -> None:
    """InputError where `backbone` is not one of two pyramids that stay apart."""
    if not isinstance(backbone, PyramidPair) or isinstance(backbone, LateFusionFPN):
        raise InputError(
            f"{cfg.MODEL.META_ARCHITECTURE} needs MODEL.BACKBONE.NAME build_two_pyramids_resnet_fpn_backbone, found "
            f"{cfg.MODEL.BACKBONE.NAME}."
        )


@META_ARCH_REGISTRY.register()
class LateFusionDense(TwoBranches, FusionDense):
    """Two complete networks for maps, one per modality, on the two pyramids of one backbone (P1's late fusion).

    Inputs and outputs are those of FusionDense: heights and probabilities averaged where both modalities have data,
    those of the other alone where one has none.
    """

    @classmethod
    def from_config(cls, cfg):
        """Builds backbone and dense heads.

        Raises:
            InputError: there are no dense heads, or the backbone has one pyramid.
        """
        arguments = super().from_config(cfg)
        _check_two_pyramids(cfg, arguments["backbone"])
        return arguments

    @torch.no_grad()
    def branch_predictions(self, batched_inputs) -> dict[str, list[dict]]:
        """What each branch says alone and what both say together, each in the form of `inference`.

        Returns:
            {"optical": ..., "sar": ..., "fused": ...}. Where its modality has no data, a branch could only guess.
        """
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        maps = self._maps(self.backbone(images.tensor), images.tensor)
        said = {m: self._said_by(maps[m], images) for m in MODALITIES} | {"fused": self._said(maps, images)}
        return {name: self._maps_alone(one, batched_inputs, images) for name, one in said.items()}


@META_ARCH_REGISTRY.register()
class LateFusionRCNN(TwoBranches):
    """Two detectors on the two pyramids of one backbone; inputs and outputs are those of FusionRCNN.

    Each branch has proposals, boxes, masks, heights and losses of its own ("optical/loss_mask", ...). A branch is asked
    for those buildings on which its modality has any data. Its height head is told the angles of its own sensor alone.

    At inference boxes are merged by `fuse_boxes`; then the mask and height heads of both branches run on the merged
    boxes. Everything is weighted by the share of each modality in the box, so that where one has no data the result is
    that of the other alone. So are maps, pixel by pixel.

    Attributes:
        fused_interval_width: factor on the width of all height intervals. The heads of both branches keep theirs at 1,
            so that the intervals of one branch, where the other has no data, and of both are calibrated alike.
    """

    detectors = 2

    @configurable
    def __init__(
        self, *, match_iou: float = 0.5, score_threshold: float = 0.05, max_detections: int = 100, **kwargs
    ):
        """See FusionRCNN; `backbone` gives {modality: pyramid}, and all heads are ModuleDicts, one per modality.

        Args:
            match_iou: boxes of both branches that overlap more are one building.
            score_threshold, max_detections: of the merged boxes of an image.
        """
        super().__init__(**kwargs)
        self.match_iou, self.score_threshold, self.max_detections = match_iou, score_threshold, max_detections
        if all(getattr(heads, "height_head", None) is not None for heads in self.roi_heads.values()):
            self.register_buffer("fused_interval_width", torch.ones(()))

    @classmethod
    def from_config(cls, cfg):
        """The only reader of config keys.

        Raises:
            InputError: the backbone has one pyramid, or the heads are not those of fusiondet.
        """
        arguments = cls.fusion_arguments(cfg)
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        _check_two_pyramids(cfg, backbone)
        if cfg.MODEL.ROI_HEADS.NAME != "FusionROIHeads":
            raise InputError(
                f"LateFusionRCNN needs MODEL.ROI_HEADS.NAME FusionROIHeads, found {cfg.MODEL.ROI_HEADS.NAME}."
            )
        return {
            **arguments,
            "backbone": backbone,
            "proposal_generator": nn.ModuleDict(
                {m: build_proposal_generator(cfg, shapes) for m in MODALITIES}
            ),
            "roi_heads": nn.ModuleDict({m: build_roi_heads(_of_branch(cfg, m), shapes) for m in MODALITIES}),
            # What a single detector would take for one building twice.
            "match_iou": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            **cls.dense_arguments(cfg, shapes, len(cfg.MODEL.PIXEL_MEAN)),
        }

    @property
    def interval_width(self) -> Tensor | None:
        """The factor on the width of all height intervals; None without heights."""
        return getattr(self, "fused_interval_width", None)

    def _seen(self, shared, image: Tensor, maps=None):
        """{modality: the feature maps that its instances are found in}."""
        if self.dense_prior and maps is None:
            maps = self._maps(shared, image)
        maps = maps or dict.fromkeys(MODALITIES)
        look = self.attention or dict.fromkeys(MODALITIES)
        own = {m: image[:, self.channels[m]] for m in MODALITIES}
        return {m: self._seen_by(look[m], shared[m], own[m], maps[m]) for m in MODALITIES}

    def _instance_losses(self, batched_inputs, images, features) -> dict[str, Tensor]:
        """Losses of both branches, named "<modality>/<loss>"."""
        batched_inputs, images, features = self._labelled_part(batched_inputs, images, features)
        truth = [x["instances"].to(self.device) for x in batched_inputs]
        shares = self._shares(images, [x.gt_boxes for x in truth])
        losses = {}
        for column, name in enumerate(MODALITIES):
            # On a building of which it has no pixel, a branch could only learn to guess.
            visible = [x[share[:, column] > 0] for x, share in zip(truth, shares)]
            with get_event_storage().name_scope(name):
                proposals, found = self.proposal_generator[name](images, features[name], visible)
                _, of_heads = self.roi_heads[name](images, features[name], proposals, visible)
            losses |= self._named(name, {**found, **of_heads})
        return losses

    def _found(self, images, features, given: list[Instances] | None) -> list[Instances]:
        """Raw instances of both branches together; of those `given` the merged masks and heights."""
        if given is None:
            boxes = self._merged(images, self._detections(images, features))
        else:
            boxes = [x.to(self.device) for x in given]
        return self._with_masks_and_heights(images, features, boxes)

    @torch.no_grad()
    def branch_predictions(self, batched_inputs) -> dict[str, list[dict]]:
        """What each branch says alone and what both say together, each in the form of `inference`.

        Returns:
            {"optical": ..., "sar": ..., "fused": ...}. A branch says nothing where its modality has no data.
        """
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        pyramids = self._seen(self.backbone(images.tensor), images.tensor)
        found = self._detections(images, pyramids)
        boxes = {m: [x[x.scores > self.score_threshold] for x in found[m]] for m in MODALITIES}
        results = {m: self._with_masks_and_heights(images, pyramids, boxes[m], (m,)) for m in MODALITIES}
        results["fused"] = self._with_masks_and_heights(images, pyramids, self._merged(images, found))
        sizes = images.image_sizes
        return {m: GeneralizedRCNN._postprocess(r, batched_inputs, sizes) for m, r in results.items()}

    @torch.no_grad()
    def heights_on_truth(self, batched_inputs) -> list[Instances]:
        """As FusionRCNN.heights_on_truth, of both branches together."""
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        pyramids = self._seen(self.backbone(images.tensor), images.tensor)
        truth = [x["instances"].to(self.device) for x in batched_inputs]
        if self.interval_width is None:
            return truth_heights(truth, None)
        heights = [self.roi_heads[m].heights_of_truth(pyramids[m], truth, images.sensor) for m in MODALITIES]
        shares = torch.cat(self._shares(images, [x.gt_boxes for x in truth]))
        return truth_heights(truth, combine_heights(heights, shares, self.interval_width))

    def _shares(self, images, boxes: list[Boxes]) -> list[Tensor]:
        """(R, 2) per image: share of each modality in each box."""
        return [
            torch.stack([valid_shares(image[self.channels[m]], b.tensor) for m in MODALITIES], dim=1)
            for image, b in zip(images.tensor, boxes)
        ]

    def _detections(self, images, pyramids) -> dict[str, list[Instances]]:
        """Boxes of each branch that hold data of its modality."""
        found = {}
        for column, name in enumerate(MODALITIES):
            proposals, _ = self.proposal_generator[name](images, pyramids[name], None)
            instances = self.roi_heads[name].detect(pyramids[name], proposals)
            shares = self._shares(images, [x.pred_boxes for x in instances])
            found[name] = [x[share[:, column] > 0] for x, share in zip(instances, shares)]
        return found

    def _merged(self, images, found: dict[str, list[Instances]]) -> list[Instances]:
        shares = [self._shares(images, [x.pred_boxes for x in found[m]]) for m in MODALITIES]
        merged = [fuse_boxes(*parts, self.match_iou) for parts in zip(*found.values(), *shares)]
        return [x[x.scores > self.score_threshold][: self.max_detections] for x in merged]

    def _with_masks_and_heights(
        self, images, pyramids, instances: list[Instances], names: tuple[str, ...] = MODALITIES
    ) -> list[Instances]:
        """`instances` with masks and heights of the branches `names`, weighted by the share of their modality."""
        attach_sensor(instances, images.sensor)
        parts = [self.roi_heads[m].masks_and_heights(pyramids[m], instances) for m in names]
        masks, heights = ([part[i] for part in parts] for i in range(2))
        shares = torch.cat(self._shares(images, [x.pred_boxes for x in instances]))
        shares = shares[:, [MODALITIES.index(m) for m in names]]
        if masks[0] is not None:
            mean = (torch.stack(masks, dim=1) * weights_of(shares)[..., None, None, None]).sum(dim=1)
            for x, part in zip(instances, mean.split([len(x) for x in instances])):
                x.pred_masks = part
        if self.interval_width is not None:
            set_heights(instances, combine_heights(heights, shares, self.interval_width))
        for x in instances:
            x.remove("sensor")
        return instances


def _of_both(arguments: list[dict]) -> dict:
    """Modules by name, one dict per modality -> ModuleDicts by name; those that are None stay so."""
    named = {key: [of_one[key] for of_one in arguments] for key in arguments[0]}
    return {
        key: nn.ModuleDict(dict(zip(MODALITIES, both))) for key, both in named.items() if both[0] is not None
    }


def _of_branch(cfg, modality: str):
    """`cfg` for the heads of one branch: dim boxes pass, and of MODEL.ROI_HEIGHT_HEAD.GEOMETRY what its pixels show.

    By the angles of the other sensor it could only recognise the acquisition; see `check_facts`.
    """
    own = cfg.clone()
    own.defrost()
    own.MODEL.ROI_HEADS.SCORE_THRESH_TEST = min(cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, _BRANCH_SCORE)
    head = own.MODEL.ROI_HEIGHT_HEAD
    head.GEOMETRY = [fact for fact in head.GEOMETRY if FACTS[fact].modality in ("", modality)]
    return own


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
