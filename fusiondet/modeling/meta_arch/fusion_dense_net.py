"""The architecture around one of `DENSE_NET_REGISTRY`: a whole network from pixels to maps, as a paper describes it."""

from fusiondet.modeling.architecture import Architecture
from fusiondet.modeling.dense_heads import DenseMaps
from fusiondet.modeling.dense_nets import DenseNet, Picture, check_dense_net, dense_net_named
from fusiondet.modeling.fusion import StandIn
from fusiondet.modeling.pixel_maps import dense_targets, map_outputs, output_sizes
from fusiondet.modeling.preprocessing import Preprocessing, SensedImages
from fusiondet.modeling.task_weighting import TaskWeighting, build_task_weighting, task_of

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn


class FilledInput(nn.Module):
    """Split the image by modality, fill pixels without data, and hand it to a dense net."""

    def __init__(self, net: DenseNet, optical_channels: int, bands: int, learned: bool):
        """`learned`: whether the fill value of a modality that the network has is learned."""
        super().__init__()
        self.net, self.optical_channels = net, optical_channels
        self.optical_fill = StandIn(optical_channels, learned and optical_channels > 0)
        self.sar_fill = StandIn(bands - optical_channels, learned and optical_channels < bands)

    def forward(self, image: Tensor, complete: Tensor | None = None) -> DenseMaps:
        """(N, C, H, W), NaN = no data; `complete`: before any modality was dropped, None: the same."""
        optical, optical_valid = self.optical_fill(image[:, : self.optical_channels])
        sar, sar_valid = self.sar_fill(image[:, self.optical_channels :])
        target = image if complete is None else complete
        return self.net(Picture(optical, sar, optical_valid, sar_valid, target))


@META_ARCH_REGISTRY.register()
class FusionDenseNet(Architecture, nn.Module):
    """One of `DENSE_NET_REGISTRY`: inputs and outputs are those of FusionRCNN, without "instances" in the outputs.

    Inputs may have classes: (H, W) float32 index of a class, NaN where unknown; outputs of a network with the task
    "classes" have "class_map": (K, H, W) float32 probabilities.
    """

    finds_instances = False
    has_modalities = True
    reads_dense_net = True

    @configurable
    def __init__(
        self, *, preprocessing: Preprocessing, filled_net: FilledInput, task_weighting: TaskWeighting
    ):
        """`task_weighting`: (losses, []) -> weighted losses."""
        super().__init__()
        self.preprocessing, self.channels = preprocessing, preprocessing.channels
        # Named as in the checkpoints of 0.5.
        self.backbone = filled_net
        self.task_weighting = task_weighting
        self.has_branches = filled_net.net.has_branches

    @classmethod
    def from_config(cls, cfg):
        """Build the network that the config names.

        Raises:
            InputError: see `check_dense_net`.
        """
        check_dense_net(cfg)
        preprocessing = Preprocessing.from_config(cfg)
        task_weighting = build_task_weighting(cfg, cls.tasks(cfg))
        optical, bands = cfg.MODEL.FUSION.OPTICAL_CHANNELS, len(cfg.MODEL.PIXEL_MEAN)
        net = dense_net_named(cfg.MODEL.DENSE_NET.NAME)(cfg, optical, bands - optical)
        learned = any(cfg.MODEL.FUSION.MODALITY_DROPOUT.values())
        return {
            "preprocessing": preprocessing,
            "filled_net": FilledInput(net, optical, bands, learned),
            "task_weighting": task_weighting,
        }

    @classmethod
    def pixel_tasks(cls, cfg) -> tuple[str, ...]:
        """See Architecture."""
        net = dense_net_named(cfg.MODEL.DENSE_NET.NAME)
        return (*cfg.MODEL.DENSE_NET.TASKS, *(["reconstruction"] if net.teaches_unlabelled(cfg) else []))

    @classmethod
    def tasks(cls, cfg) -> list[str]:
        """See Architecture."""
        losses = {
            "footprint": "loss_footprint",
            "height": "loss_dense_height",
            "classes": "loss_classes",
            "reconstruction": "loss_reconstruction",
        }
        return [task_of(losses[task]) for task in cls.pixel_tasks(cfg)]

    @property
    def net(self) -> DenseNet:
        """The network itself."""
        return self.backbone.net

    def unimodal_part(self, modality: str) -> nn.Module:
        """See Architecture."""
        return self.net.unimodal_part(modality)

    def preprocess_image(self, batched_inputs) -> SensedImages:
        """Return the batch, see `Preprocessing`, no smaller than the network can take."""
        return self.preprocessing(batched_inputs, self.net.stride, self.net.least_size_px)

    def forward(self, batched_inputs):
        """Return the losses in training, weighted; else as `outputs`."""
        if not self.training:
            return self.outputs(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor, images.complete)
        losses = self.net.losses(maps, dense_targets(batched_inputs, images.complete))
        return self.task_weighting(losses, [])

    def outputs(self, batched_inputs, do_postprocess=True) -> list[dict]:
        """Return the maps of each input; without `do_postprocess` they have the size of the image."""
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor)
        sizes = output_sizes(batched_inputs, images) if do_postprocess else images.image_sizes
        return map_outputs(maps.output_maps(), images, sizes)

    @torch.no_grad()
    def branch_predictions(self, batched_inputs) -> dict[str, list[dict]]:
        """See Architecture. Where its modality has no data, a branch could only guess."""
        assert not self.training and self.has_branches
        images = self.preprocess_image(batched_inputs)
        maps, sizes = self.backbone(images.tensor), output_sizes(batched_inputs, images)
        return {name: map_outputs(one, images, sizes) for name, one in maps.branch_maps().items()}
