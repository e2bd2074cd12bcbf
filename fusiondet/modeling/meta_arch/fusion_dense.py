"""Dense prediction alone: the backbones of the detector below dense heads."""

from fusiondet.errors import InputError
from fusiondet.modeling.architecture import Architecture
from fusiondet.modeling.dense_heads import DENSE_HEAD_REGISTRY, build_dense_heads
from fusiondet.modeling.meta_arch.fusion_rcnn import all_levels
from fusiondet.modeling.pixel_maps import dense_targets, map_outputs, output_sizes
from fusiondet.modeling.preprocessing import Preprocessing, SensedImages
from fusiondet.modeling.task_weighting import TaskWeighting, build_task_weighting

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import nn


@META_ARCH_REGISTRY.register()
class FusionDense(Architecture, nn.Module):
    """Backbone and dense heads; inputs and outputs are those of FusionRCNN, without "instances" in the outputs."""

    finds_instances = False
    has_modalities = True
    reads_dense_heads = True
    # Heads may read some levels of the pyramid only.
    may_skip_parameters = True

    @configurable
    def __init__(
        self,
        *,
        preprocessing: Preprocessing,
        backbone: nn.Module,
        dense_heads: nn.Module,
        task_weighting: TaskWeighting,
    ):
        """Args:
        backbone: (N, C, H, W), NaN = no data -> feature maps by name.
        dense_heads: `DenseHeads` on these feature maps.
        task_weighting: (losses, shared feature maps) -> weighted losses.
        """
        super().__init__()
        self.preprocessing, self.channels = preprocessing, preprocessing.channels
        self.backbone, self.dense_heads, self.task_weighting = backbone, dense_heads, task_weighting

    @classmethod
    def from_config(cls, cfg):
        """Build backbone and dense heads.

        Raises:
            InputError: there are no dense heads.
        """
        if not len(cfg.MODEL.DENSE_HEADS.NAMES):
            raise InputError(
                f"MODEL.META_ARCHITECTURE {cls.__name__} has dense heads alone, but MODEL.DENSE_HEADS.NAMES is empty. "
                "Name one at least, or use FusionRCNN."
            )
        arguments = {
            "preprocessing": Preprocessing.from_config(cfg),
            "task_weighting": build_task_weighting(cfg, cls.tasks(cfg)),
            "backbone": build_backbone(cfg),
        }
        return {**arguments, "dense_heads": cls._build_heads(cfg, arguments["backbone"])}

    @classmethod
    def _build_heads(cls, cfg, backbone: nn.Module) -> nn.Module:
        return build_dense_heads(cfg, backbone.output_shape(), len(cfg.MODEL.PIXEL_MEAN))

    @classmethod
    def pixel_tasks(cls, cfg) -> tuple[str, ...]:
        """See Architecture."""
        return tuple(DENSE_HEAD_REGISTRY.get(name).pixel_task for name in cfg.MODEL.DENSE_HEADS.NAMES)

    @classmethod
    def tasks(cls, cfg) -> list[str]:
        """See Architecture."""
        return [DENSE_HEAD_REGISTRY.get(name).task for name in cfg.MODEL.DENSE_HEADS.NAMES]

    def preprocess_image(self, batched_inputs) -> SensedImages:
        """Return the batch, see `Preprocessing`."""
        return self.preprocessing(batched_inputs, self.backbone.size_divisibility)

    def forward(self, batched_inputs):
        """Return the losses in training, weighted; else as `outputs`."""
        if not self.training:
            return self.outputs(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        shared = self.backbone(images.tensor)
        maps = self.dense_heads(shared, images.tensor)
        losses = self.dense_heads.losses(maps, dense_targets(batched_inputs, images.complete))
        return self.task_weighting(losses, all_levels(shared))

    def outputs(self, batched_inputs, do_postprocess=True) -> list[dict]:
        """Return the maps of each input; without `do_postprocess` they have the size of the image."""
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        maps = self.dense_heads(self.backbone(images.tensor), images.tensor)
        sizes = output_sizes(batched_inputs, images) if do_postprocess else images.image_sizes
        return map_outputs(maps.output_maps(), images, sizes)
