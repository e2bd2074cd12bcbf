"""The detector: Detectron2's GeneralizedRCNN that carries metres and degrees to its heads, with dense heads beside."""

from fusiondet.errors import InputError
from fusiondet.modeling.architecture import Architecture
from fusiondet.modeling.dense_heads import DENSE_HEAD_REGISTRY, DenseMaps, build_dense_heads
from fusiondet.modeling.height_head import HeightDistribution
from fusiondet.modeling.pixel_maps import add_maps, dense_targets, has_labels, output_sizes
from fusiondet.modeling.preprocessing import Preprocessing, SensedImages
from fusiondet.modeling.roi_heads import FusionROIHeads, attach_sensor, set_heights
from fusiondet.modeling.task_attention import InstanceAttention
from fusiondet.modeling.task_weighting import TaskWeighting, build_task_weighting

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import Instances
from torch import Tensor, nn


@META_ARCH_REGISTRY.register()
class FusionRCNN(Architecture, GeneralizedRCNN):
    """GeneralizedRCNN for images of any number of bands, whose heads may use GSD and acquisition geometry.

    Each input is a dict with
        image: (C, H, W) float32 in the units of MODEL.PIXEL_MEAN; NaN means no data.
        gsd_m: metres per pixel. sensor: {field of SensorGeometry: degrees or None}, optional.
        instances: training and `heights_on_truth`: gt_boxes, gt_classes, gt_masks, gt_heights (metres, NaN unknown).
        building_height_m, footprint: training of dense heads: (H, W) metres above ground, 0 outside buildings, and 0
            or 1; NaN or absent is unknown.
        labelled: False for a tile that trains what needs no labels alone; True if absent.
        height, width: size of the output; the image's own if absent.
    Each output is {"instances": Instances} with pred_boxes, scores, pred_classes, pred_masks and, in metres above
    ground, pred_heights (the median), pred_height_p16, pred_height_p84; and, where there are such dense heads,
    "height_map_m" (H, W) float32 metres, 0 or more, and "footprint_map" (H, W) probability.
    """

    has_modalities = True
    reads_dense_heads = True

    @configurable
    def __init__(
        self,
        *,
        preprocessing: Preprocessing,
        task_weighting: TaskWeighting,
        dense_heads: nn.Module | None = None,
        attention: nn.Module | None = None,
        dense_prior: bool = False,
        **kwargs,
    ):
        """See GeneralizedRCNN.

        Args:
            task_weighting: (losses, shared feature maps) -> weighted losses.
            dense_heads: `DenseHeads`; None for a detector alone.
            attention: (feature maps, image) -> the maps that instances are found in; None: the same.
            dense_prior: instance heads read the height map of the dense heads as feature map "dense_height".
        """
        super().__init__(**kwargs)
        self.preprocessing, self.channels = preprocessing, preprocessing.channels
        self.dense_heads, self.attention, self.task_weighting = dense_heads, attention, task_weighting
        self.dense_prior = dense_prior

    @classmethod
    def from_config(cls, cfg):
        """Build as Detectron2 does; dense heads last, so that all else starts as it does without them.

        Raises:
            InputError: what `complete_config` fills in is missing, or the keys of a part do not fit.
        """
        arguments = {**cls._common_arguments(cfg), **super().from_config(cfg)}
        shapes = arguments["backbone"].output_shape()
        if len(cfg.MODEL.DENSE_HEADS.NAMES):
            arguments["dense_heads"] = build_dense_heads(cfg, shapes, len(cfg.MODEL.PIXEL_MEAN))
            if cfg.MODEL.TASK_ATTENTION:
                arguments["attention"] = InstanceAttention.of_config(cfg, shapes)
        return arguments

    @classmethod
    def _common_arguments(cls, cfg) -> dict:
        """Arguments that do not depend on the number of branches."""
        return {
            "preprocessing": Preprocessing.from_config(cfg),
            "task_weighting": build_task_weighting(cfg, cls.tasks(cfg)),
            "dense_prior": cfg.MODEL.HEIGHT_ON and cfg.MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR,
        }

    @classmethod
    def pixel_tasks(cls, cfg) -> tuple[str, ...]:
        """See Architecture."""
        return tuple(DENSE_HEAD_REGISTRY.get(name).pixel_task for name in cfg.MODEL.DENSE_HEADS.NAMES)

    @classmethod
    def tasks(cls, cfg) -> list[str]:
        """See Architecture."""
        instances = ["instances", "height"] if cfg.MODEL.HEIGHT_ON else ["instances"]
        return instances + [DENSE_HEAD_REGISTRY.get(name).task for name in cfg.MODEL.DENSE_HEADS.NAMES]

    @property
    def interval_width(self) -> Tensor | None:
        """See Architecture."""
        return self.roi_heads.interval_width if isinstance(self.roi_heads, FusionROIHeads) else None

    def preprocess_image(self, batched_inputs) -> SensedImages:
        """Return the batch, see `Preprocessing`."""
        return self.preprocessing(batched_inputs, self.backbone.size_divisibility)

    def forward(self, batched_inputs):
        """Return the losses in training, weighted; else as `outputs`.

        Tiles without labels train the dense heads that need none; proposals and instance heads never see them.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        shared = self.backbone(images.tensor)
        maps = None if self.dense_heads is None else self.dense_heads(shared, images.tensor)
        features = self.instance_features(shared, images.tensor, maps)
        losses = self.instance_losses(*labelled_part(batched_inputs, images, features))
        if self.dense_heads is not None:
            losses |= self.dense_heads.losses(maps, dense_targets(batched_inputs, images.complete))
        return self.task_weighting(losses, all_levels(shared))

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        """As in Detectron2: `outputs`, or, without `do_postprocess`, the raw Instances alone."""
        outputs = self.outputs(batched_inputs, detected_instances, do_postprocess)
        return outputs if do_postprocess else [x["instances"] for x in outputs]

    def outputs(self, batched_inputs, detected_instances=None, do_postprocess=True) -> list[dict]:
        """Return the output for each input, see the class.

        Args:
            detected_instances: Instances with pred_boxes and pred_classes that are taken for granted.
            do_postprocess: False: instances as the heads leave them, with masks of the size of the heads', and maps of
                the size of the image.
        """
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        shared = self.backbone(images.tensor)
        maps = None if self.dense_heads is None else self.dense_heads(shared, images.tensor)
        features = self.instance_features(shared, images.tensor, maps)
        if detected_instances is None:
            found = self.find_instances(images, features)
        else:
            given = [x.to(self.device) for x in detected_instances]
            found = self.complete_instances(images, features, given)

        sizes = images.image_sizes
        outputs = [{"instances": x} for x in found]
        if do_postprocess:
            sizes = output_sizes(batched_inputs, images)
            outputs = GeneralizedRCNN._postprocess(found, batched_inputs, images.image_sizes)
        return outputs if maps is None else add_maps(outputs, maps.output_maps(), images, sizes)

    @torch.no_grad()
    def heights_on_truth(self, batched_inputs) -> list[Instances]:
        """Predict heights for ground-truth boxes and masks: the error of the height head under perfect detection.

        Returns:
            One Instances per input, aligned with its `instances`: pred_heights, pred_height_p16, pred_height_p84.
        """
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        shared = self.backbone(images.tensor)
        maps = self.dense_heads(shared, images.tensor) if self.dense_prior else None
        features = self.instance_features(shared, images.tensor, maps)
        truth = [x["instances"].to(self.device) for x in batched_inputs]
        heights = self.truth_heights(images, features, truth)
        results = [Instances(x.image_size) for x in truth]
        if heights is not None:
            set_heights(results, heights, [len(x) for x in truth])
        return results

    # -- the steps that late fusion takes per branch --

    def instance_features(self, shared: dict, image: Tensor, maps: DenseMaps | None) -> dict:
        """Return the feature maps that instances are found in; `maps` are read with `dense_prior` alone."""
        return instance_features(self.attention, shared, image, maps if self.dense_prior else None)

    def instance_losses(self, batched_inputs, images: SensedImages, features: dict) -> dict[str, Tensor]:
        """Losses of proposals and instance heads; every input has labels."""
        truth = [x["instances"].to(self.device) for x in batched_inputs]
        proposals, of_proposals = self.proposal_generator(images, features, truth)
        _, of_heads = self.roi_heads(images, features, proposals, truth)
        return {**of_heads, **of_proposals}

    def find_instances(self, images: SensedImages, features: dict) -> list[Instances]:
        """Detect instances; masks have the size of the mask head."""
        proposals, _ = self.proposal_generator(images, features, None)
        return self.roi_heads(images, features, proposals, None)[0]

    def complete_instances(
        self, images: SensedImages, features: dict, given: list[Instances]
    ) -> list[Instances]:
        """Predict masks and heights of instances with pred_boxes and pred_classes."""
        attach_sensor(given, images.sensor)
        return self.roi_heads.forward_with_given_boxes(features, given)

    def truth_heights(
        self, images: SensedImages, features: dict, truth: list[Instances]
    ) -> HeightDistribution | None:
        """Heights of the ground truth of the whole batch; None without a height head."""
        return self.roi_heads.heights_of_truth(features, truth, images.sensor)


def instance_features(
    attention: nn.Module | None, shared: dict, image: Tensor, prior: DenseMaps | None
) -> dict:
    """Shared feature maps as instance heads read them: gated by `attention`, with the height map of `prior`."""
    features = shared if attention is None else attention(shared, image)
    # Detached: the loss of the height head does not train the dense heads.
    return features if prior is None else {**features, "dense_height": prior.height_m.detach()}


def labelled_part(batched_inputs: list[dict], images: SensedImages, features: dict):
    """Inputs, images and feature maps of the tiles that have labels.

    Raises:
        InputError: there is none. Batches are made so that every process has one in each, as heads that take no part
            in a step would leave the other processes waiting.
    """
    rows = [i for i, x in enumerate(batched_inputs) if has_labels(x)]
    if len(rows) == len(batched_inputs):
        return batched_inputs, images, features
    if not rows:
        names = ", ".join(str(x.get("file_name", "image")) for x in batched_inputs)
        raise InputError(f"no tile of a batch has labels ({names}): expected one at least in every process.")
    return [batched_inputs[i] for i in rows], images.take(rows), _take(features, rows)


def _take(features: dict, rows: list[int]) -> dict:
    """Feature maps of these images alone; pyramids may be nested by modality."""
    return {k: _take(v, rows) if isinstance(v, dict) else v[rows] for k, v in features.items()}


def all_levels(features: dict) -> list[Tensor]:
    """All feature maps of pyramids that may be nested by modality."""
    return [t for v in features.values() for t in (all_levels(v) if isinstance(v, dict) else [v])]
