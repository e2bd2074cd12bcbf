"""Late fusion: two complete networks, one per modality, on the two pyramids of one backbone, whose outputs are merged.

Both architectures are those of one branch, with a module per modality (`PerModality`) where they have one. With
exchanges in the backbone (MODEL.FUSION.EXCHANGE) the branches learn from each other before they decide; without, they
are independent. Losses are named by branch ("optical/loss_footprint", ...), and their sum is trained (P3).

Legend: R regions; pairs are in the order of `MODALITIES`.
"""

from fusiondet.errors import InputError
from fusiondet.modeling.backbone import LateFusionFPN, PyramidPair
from fusiondet.modeling.branch_dense_heads import BranchDenseHeads, BranchMaps
from fusiondet.modeling.decision_fusion import BoxFusion, combine_heights, valid_shares
from fusiondet.modeling.dense_heads import build_dense_heads
from fusiondet.modeling.fusion import MODALITIES, weights_of
from fusiondet.modeling.height_head import HeightDistribution
from fusiondet.modeling.meta_arch.fusion_dense import FusionDense
from fusiondet.modeling.meta_arch.fusion_rcnn import FusionRCNN, instance_features
from fusiondet.modeling.pixel_maps import map_outputs, output_sizes
from fusiondet.modeling.preprocessing import SensedImages
from fusiondet.modeling.roi_heads import attach_sensor, set_heights
from fusiondet.modeling.sensor_geometry import FACTS
from fusiondet.modeling.streams import PerModality
from fusiondet.modeling.task_attention import InstanceAttention

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_proposal_generator, build_roi_heads
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

# Boxes of one branch below this are not even offered to the other: what both see dimly is worth more than that.
_BRANCH_SCORE = 0.05


@META_ARCH_REGISTRY.register()
class LateFusionDense(FusionDense):
    """FusionDense with `BranchDenseHeads` (P1's late fusion).

    Heights and probabilities are averaged where both modalities have data, and those of one branch where the other one
    has none.
    """

    separate_pyramids = True
    has_branches = True

    @classmethod
    def _build_heads(cls, cfg, backbone: nn.Module) -> nn.Module:
        _check_two_pyramids(cfg, backbone)
        return _dense_branches(cfg, backbone.output_shape())["dense_heads"]

    @property
    def shares_stages(self) -> bool:
        """See Architecture."""
        return self.backbone.bottom_up.shares_stages

    def unimodal_part(self, modality: str) -> nn.Module:
        """See Architecture: its ResNet."""
        return getattr(self.backbone.bottom_up, modality)

    @torch.no_grad()
    def branch_predictions(self, batched_inputs) -> dict[str, list[dict]]:
        """See Architecture. Where its modality has no data, a branch could only guess."""
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        maps = self.dense_heads(self.backbone(images.tensor), images.tensor)
        sizes = output_sizes(batched_inputs, images)
        return {name: map_outputs(one, images, sizes) for name, one in maps.branch_maps().items()}


@META_ARCH_REGISTRY.register()
class LateFusionRCNN(FusionRCNN):
    """FusionRCNN with proposals, boxes, masks, heights and losses per modality ("optical/loss_mask", ...).

    A branch is trained on those buildings on which its modality has any data. Its height head reads the angles of its
    own sensor alone.

    At inference boxes are merged by `fuse_boxes`; then the mask and height heads of both branches run on the merged
    boxes. Everything is weighted by the share of each modality in the box, so that where one has no data the result is
    that of the other alone. So are maps, pixel by pixel.

    Attributes:
        fused_interval_width: factor on the width of all height intervals. The heads of both branches keep theirs at 1,
            so that the intervals of one branch, where the other has no data, and of both are calibrated alike.
    """

    separate_pyramids = True
    has_branches = True
    detectors = 2

    @configurable
    def __init__(self, *, box_fusion: BoxFusion, **kwargs):
        """See FusionRCNN; `backbone` gives {modality: pyramid}, and all heads are `PerModality`."""
        super().__init__(**kwargs)
        self.box_fusion = box_fusion
        self.predicts_heights = all(heads.height_head is not None for heads in self.roi_heads.values())
        if self.predicts_heights:
            self.register_buffer("fused_interval_width", torch.ones(()))

    @classmethod
    def from_config(cls, cfg):
        """Build the backbone, then the heads of both branches.

        Raises:
            InputError: the backbone has one pyramid, or the heads are not those of fusiondet.
        """
        arguments = {
            **cls._common_arguments(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }
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
            "proposal_generator": PerModality({m: build_proposal_generator(cfg, shapes) for m in MODALITIES}),
            "roi_heads": PerModality({m: build_roi_heads(_branch_cfg(cfg, m), shapes) for m in MODALITIES}),
            "box_fusion": BoxFusion(
                # What a single detector would take for one building twice.
                match_iou=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
                score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            ),
            **(_dense_branches(cfg, shapes) if len(cfg.MODEL.DENSE_HEADS.NAMES) else {}),
        }

    @property
    def interval_width(self) -> Tensor | None:
        """See Architecture."""
        return self.fused_interval_width if self.predicts_heights else None

    @property
    def shares_stages(self) -> bool:
        """See Architecture."""
        return self.backbone.bottom_up.shares_stages

    def unimodal_part(self, modality: str) -> nn.Module:
        """See Architecture: its ResNet."""
        return getattr(self.backbone.bottom_up, modality)

    def instance_features(self, shared, image: Tensor, maps: BranchMaps | None) -> dict[str, dict]:
        """{modality: the feature maps that its instances are found in}."""
        features = {}
        for name in MODALITIES:
            attention = None if self.attention is None else self.attention[name]
            prior = maps.branches[name] if self.dense_prior else None
            features[name] = instance_features(attention, shared[name], image[:, self.channels[name]], prior)
        return features

    def instance_losses(self, batched_inputs, images: SensedImages, features) -> dict[str, Tensor]:
        """Losses of both branches, named "<modality>/<loss>"."""
        truth = [x["instances"].to(self.device) for x in batched_inputs]
        shares = self._shares(images, [x.gt_boxes for x in truth])
        losses = {}
        for column, name in enumerate(MODALITIES):
            # On a building of which it has no pixel, a branch could only learn to guess.
            visible = [x[share[:, column] > 0] for x, share in zip(truth, shares)]
            with get_event_storage().name_scope(name):
                proposals, of_proposals = self.proposal_generator[name](images, features[name], visible)
                _, of_heads = self.roi_heads[name](images, features[name], proposals, visible)
            losses |= {f"{name}/{key}": loss for key, loss in {**of_proposals, **of_heads}.items()}
        return losses

    def find_instances(self, images: SensedImages, features) -> list[Instances]:
        """Merge the boxes of both branches, and predict masks and heights for them."""
        merged = self._merged(images, self._detections(images, features))
        return self.complete_instances(images, features, merged)

    def complete_instances(
        self,
        images: SensedImages,
        features,
        given: list[Instances],
        names: tuple[str, ...] = MODALITIES,
    ) -> list[Instances]:
        """Masks and heights of the branches `names`, weighted by the share of their modality in each box."""
        attach_sensor(given, images.sensor)
        parts = [self.roi_heads[m].masks_and_heights(features[m], given) for m in names]
        masks, heights = ([part[i] for part in parts] for i in range(2))
        shares = torch.cat(self._shares(images, [x.pred_boxes for x in given]))
        shares = shares[:, [MODALITIES.index(m) for m in names]]
        if masks[0] is not None:
            mean = (torch.stack(masks, dim=1) * weights_of(shares)[..., None, None, None]).sum(dim=1)
            for x, part in zip(given, mean.split([len(x) for x in given])):
                x.pred_masks = part
        if self.predicts_heights:
            set_heights(given, combine_heights(heights, shares, self.fused_interval_width))
        for x in given:
            x.remove("sensor")
        return given

    def truth_heights(
        self, images: SensedImages, features, truth: list[Instances]
    ) -> HeightDistribution | None:
        """As FusionRCNN.truth_heights, of both branches together."""
        if not self.predicts_heights:
            return None
        heights = [self.roi_heads[m].heights_of_truth(features[m], truth, images.sensor) for m in MODALITIES]
        shares = torch.cat(self._shares(images, [x.gt_boxes for x in truth]))
        return combine_heights(heights, shares, self.fused_interval_width)

    @torch.no_grad()
    def branch_predictions(self, batched_inputs) -> dict[str, list[dict]]:
        """See Architecture. A branch finds nothing where its modality has no data."""
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        shared = self.backbone(images.tensor)
        maps = self.dense_heads(shared, images.tensor) if self.dense_prior else None
        features = self.instance_features(shared, images.tensor, maps)
        found = self._detections(images, features)
        boxes = {m: [self.box_fusion.above_threshold(x) for x in found[m]] for m in MODALITIES}
        results = {m: self.complete_instances(images, features, boxes[m], (m,)) for m in MODALITIES}
        results["fused"] = self.complete_instances(images, features, self._merged(images, found))
        sizes = images.image_sizes
        return {m: GeneralizedRCNN._postprocess(r, batched_inputs, sizes) for m, r in results.items()}

    def _shares(self, images: SensedImages, boxes: list[Boxes]) -> list[Tensor]:
        """(R, 2) per image: share of each modality in each box."""
        return [
            torch.stack([valid_shares(image[self.channels[m]], b.tensor) for m in MODALITIES], dim=1)
            for image, b in zip(images.tensor, boxes)
        ]

    def _detections(self, images: SensedImages, features) -> dict[str, list[Instances]]:
        """Boxes of each branch that hold data of its modality."""
        found = {}
        for column, name in enumerate(MODALITIES):
            proposals, _ = self.proposal_generator[name](images, features[name], None)
            instances = self.roi_heads[name].detect(features[name], proposals)
            shares = self._shares(images, [x.pred_boxes for x in instances])
            found[name] = [x[share[:, column] > 0] for x, share in zip(instances, shares)]
        return found

    def _merged(self, images: SensedImages, found: dict[str, list[Instances]]) -> list[Instances]:
        shares = {m: self._shares(images, [x.pred_boxes for x in found[m]]) for m in MODALITIES}
        return self.box_fusion(found, shares)


def _check_two_pyramids(cfg, backbone: nn.Module) -> None:
    """InputError unless `backbone` returns two pyramids that stay apart."""
    if not isinstance(backbone, PyramidPair) or isinstance(backbone, LateFusionFPN):
        raise InputError(
            f"{cfg.MODEL.META_ARCHITECTURE} needs MODEL.BACKBONE.NAME build_two_pyramids_resnet_fpn_backbone, found "
            f"{cfg.MODEL.BACKBONE.NAME}."
        )


def _dense_branches(cfg, shapes: dict) -> dict[str, nn.Module]:
    """{"dense_heads", and with MODEL.TASK_ATTENTION "attention"}, of both branches.

    Attention is built for maps alone, too, which leave it aside: the weights that random numbers give to the SAR heads
    depend on it.
    """
    optical, bands = cfg.MODEL.FUSION.OPTICAL_CHANNELS, len(cfg.MODEL.PIXEL_MEAN)
    channels = {"optical": slice(0, optical), "sar": slice(optical, bands)}
    heads, attention = {}, {}
    for name, part in channels.items():
        heads[name] = build_dense_heads(cfg, shapes, part.stop - part.start)
        if cfg.MODEL.TASK_ATTENTION:
            attention[name] = InstanceAttention.of_config(cfg, shapes)
    modules = {"dense_heads": BranchDenseHeads(heads, channels)}
    return {**modules, "attention": PerModality(attention)} if attention else modules


def _branch_cfg(cfg, modality: str):
    """`cfg` for the heads of one branch: dim boxes pass, and of MODEL.ROI_HEIGHT_HEAD.GEOMETRY what its pixels show.

    By the angles of the other sensor it could only recognise the acquisition; see `check_facts`.
    """
    own = cfg.clone()
    own.defrost()
    own.MODEL.ROI_HEADS.SCORE_THRESH_TEST = min(cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, _BRANCH_SCORE)
    head = own.MODEL.ROI_HEIGHT_HEAD
    head.GEOMETRY = [fact for fact in head.GEOMETRY if FACTS[fact].modality in ("", modality)]
    return own
