"""The detector: Detectron2's GeneralizedRCNN that carries facts in metres and degrees to its heads, and dense heads."""

from fusiondet.errors import InputError
from fusiondet.modeling.architecture import Architecture
from fusiondet.modeling.dense_heads import (
    DENSE_HEAD_REGISTRY,
    DenseMaps,
    DenseTargets,
    TaskAttention,
    build_dense_heads,
)
from fusiondet.modeling.height_head import HeightDistribution
from fusiondet.modeling.roi_heads import attach_sensor, set_heights
from fusiondet.modeling.sensor_geometry import SENSOR_FIELDS, columns_of
from fusiondet.modeling.task_weighting import build_task_weighting

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F


def sensor_rows(batched_inputs: list[dict], device) -> Tensor:
    """(N, len(SENSOR_FIELDS)) float32 facts of each input ("gsd_m", and the dict "sensor"); NaN where unknown."""
    rows = [{"gsd_m": x.get("gsd_m"), **(x.get("sensor") or {})} for x in batched_inputs]
    known = [[float("nan") if row.get(name) is None else row[name] for name in SENSOR_FIELDS] for row in rows]
    return torch.tensor(known, dtype=torch.float32, device=device)


def truth_heights(truth: list[Instances], heights: HeightDistribution | None) -> list[Instances]:
    """The batch's `heights` as pred_heights, pred_height_p16, pred_height_p84 of one Instances per image."""
    results = [Instances(x.image_size) for x in truth]
    if heights is not None:
        set_heights(results, heights, [len(x) for x in truth])
    return results


def dense_targets(batched_inputs: list[dict], image: Tensor) -> DenseTargets:
    """What the dense heads should say about a batch; NaN for what an input does not tell, and all of its padding.

    Args:
        image: (N, C, H, W) normalised and padded, NaN = no data: what is to be reconstructed.
    """

    def stacked(key: str) -> Tensor:
        maps = image.new_full((len(image), 1, *image.shape[-2:]), torch.nan)
        for row, x in zip(maps, batched_inputs):
            if _labelled(x) and x.get(key) is not None:
                height, width = x[key].shape
                row[0, :height, :width] = x[key].to(image)
        return maps

    labels = (stacked(key) for key in ("building_height_m", "footprint"))
    return DenseTargets(*labels, image, stacked("classes"))


def _output_sizes(batched_inputs: list[dict], images: ImageList) -> list[tuple[int, int]]:
    """(height, width) that the output for each input has."""
    return [(x.get("height", h), x.get("width", w)) for x, (h, w) in zip(batched_inputs, images.image_sizes)]


def _labelled(x: dict) -> bool:
    return x.get("labelled", True)


def _rows(features: dict, rows: list[int]) -> dict:
    """Feature maps of these images alone; pyramids may be nested by modality."""
    return {k: _rows(v, rows) if isinstance(v, dict) else v[rows] for k, v in features.items()}


def _levels(features: dict) -> list[Tensor]:
    """All feature maps of pyramids that may be nested by modality."""
    return [t for v in features.values() for t in (_levels(v) if isinstance(v, dict) else [v])]


class InstanceAttention(nn.Module):
    """What of the shared feature maps the heads of instances look at (P4): a `TaskAttention` per level."""

    def __init__(self, channels: dict[str, int]):
        """`channels` of the feature maps that are looked at, by name; any others stay as they are."""
        super().__init__()
        self.levels = nn.ModuleDict({name: TaskAttention(n) for name, n in channels.items()})

    @classmethod
    def of_config(cls, cfg, shapes: dict):
        """For all maps that the config's heads of instances read: what nobody reads would never get a gradient."""
        model = cfg.MODEL
        read = {*model.RPN.IN_FEATURES, *model.ROI_HEADS.IN_FEATURES}
        read |= {*model.ROI_HEIGHT_HEAD.IN_FEATURES} if model.HEIGHT_ON else set()
        return cls({name: shape.channels for name, shape in shapes.items() if name in read})

    def forward(self, features: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        """Feature maps by name, and the image (N, C, H, W), NaN = no data -> the same maps, gated."""
        valid = (~torch.isnan(image)).any(dim=1, keepdim=True).to(image.dtype)
        return {**features, **{name: look(features[name], valid) for name, look in self.levels.items()}}


@META_ARCH_REGISTRY.register()
class FusionRCNN(Architecture, GeneralizedRCNN):
    """GeneralizedRCNN for images of any number of bands whose heads may ask for GSD and sensor geometry.

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
        optical_channels: int = 0,
        modality_dropout: dict[str, float] | None = None,
        disabled: str = "",
        dense_heads: nn.Module | None = None,
        attention: nn.Module | None = None,
        task_weighting: nn.Module | None = None,
        dense_prior: bool = False,
        **kwargs,
    ):
        """See GeneralizedRCNN.

        Args:
            optical_channels: how many of the leading bands are optical.
            modality_dropout: modality -> probability that training hides it from an image.
            disabled: modality that is treated as missing, "" for none.
            dense_heads: `DenseHeads`; None for a detector alone.
            attention: (feature maps, image) -> those maps that instances are found in; None: the same.
            task_weighting: (losses, shared feature maps) -> weighted losses; None: the sum of all counts.
            dense_prior: the heads of instances get what the dense heads say of heights as feature map "dense_height".
        """
        super().__init__(**kwargs)
        self.dense_heads, self.attention, self.task_weighting = dense_heads, attention, task_weighting
        self.dense_prior = dense_prior
        bands = len(self.pixel_mean)
        self.channels = {"optical": slice(0, optical_channels), "sar": slice(optical_channels, bands)}
        self.modality_dropout, self.disabled = dict(modality_dropout or {}), disabled
        self._check_modalities()

    @classmethod
    def from_config(cls, cfg):
        """Builds as Detectron2 does, after `fusion_arguments`; dense heads last, so that the rest starts as without."""
        arguments = {**cls.fusion_arguments(cfg), **super().from_config(cfg)}
        shapes, bands = arguments["backbone"].output_shape(), len(cfg.MODEL.PIXEL_MEAN)
        return {**arguments, **cls.dense_arguments(cfg, shapes, bands)}

    @staticmethod
    def dense_arguments(cfg, shapes: dict, bands: int) -> dict:
        """The dense heads on feature maps of `shapes` and an image of `bands`, and the attention of instances."""
        if not len(cfg.MODEL.DENSE_HEADS.NAMES):
            return {}
        return {
            "dense_heads": build_dense_heads(cfg, shapes, bands),
            "attention": InstanceAttention.of_config(cfg, shapes) if cfg.MODEL.TASK_ATTENTION else None,
        }

    @classmethod
    def fusion_arguments(cls, cfg) -> dict:
        """What `__init__` takes besides Detectron2's arguments.

        Raises:
            InputError: what `fusiondet.engine.trainer.complete_config` fills in is not there.
        """
        channels = len(cfg.MODEL.PIXEL_MEAN)
        if channels == 0 or channels != len(cfg.MODEL.PIXEL_STD):
            raise InputError(
                f"MODEL.PIXEL_MEAN has {channels} and MODEL.PIXEL_STD {len(cfg.MODEL.PIXEL_STD)} numbers, expected one "
                "per band. They are computed from the training data by tools/train_net.py; or set them in the config."
            )
        fusion = cfg.MODEL.FUSION
        return {
            "optical_channels": fusion.OPTICAL_CHANNELS,
            "modality_dropout": dict(fusion.MODALITY_DROPOUT),
            "disabled": fusion.DISABLED,
            "task_weighting": build_task_weighting(cfg, cls.tasks(cfg)),
            "dense_prior": cfg.MODEL.HEIGHT_ON and cfg.MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
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

    def _check_modalities(self) -> None:
        """InputError when something is asked of a modality that the network does not have, or hiding it leaves none."""
        present = [name for name, part in self.channels.items() if part.start < part.stop]
        hidden = {name for name, p in self.modality_dropout.items() if p > 0} | {self.disabled} - {""}
        if hidden and len(present) < 2:
            raise InputError(
                f"MODEL.FUSION.DISABLED or MODALITY_DROPOUT hides {' and '.join(sorted(hidden))}, but the network "
                f"takes {' and '.join(present)} alone. Leave both keys at their defaults."
            )

    def preprocess_image(self, batched_inputs):
        """Detectron2's normalised, padded batch, with `images.sensor` (N, len(SENSOR_FIELDS)) attached.

        Padding is NaN like any pixel without data, and so is a modality that is disabled or, in training, dropped; what
        was there before it was dropped is `images.complete` (N, C, H, W). The angles of a modality that has no pixel
        are NaN too: nothing in the image shows what they would explain.
        """
        channels = len(self.pixel_mean)
        for x in batched_inputs:
            if x["image"].shape[0] != channels:
                raise InputError(
                    f"{x.get('file_name', 'image')}: {x['image'].shape[0]} bands, but the network takes {channels}."
                )
        images = super().preprocess_image(batched_inputs)
        for image, (height, width) in zip(images.tensor, images.image_sizes):
            image[:, height:], image[:, :, width:] = torch.nan, torch.nan
            if self.disabled:
                image[self.channels[self.disabled]] = torch.nan
        images.complete = images.tensor
        if self.training and any(self.modality_dropout.values()):
            images.complete = images.tensor.clone()
            for image in images.tensor:
                self._drop(image)
        images.sensor = sensor_rows(batched_inputs, self.device)
        for name, part in self.channels.items():
            unseen = torch.isnan(images.tensor[:, part]).flatten(1).all(1)
            images.sensor[:, columns_of(name)] += torch.where(unseen, torch.nan, 0.0)[:, None]
        return images

    def _drop(self, image: Tensor) -> None:
        """Write NaN over the modality of `image` (C, H, W) that is drawn, if any, unless it is the last one."""
        # Drawn on the CPU, whose generator the trainer seeds, so that a resumed run drops the same.
        draw = float(torch.rand(()))
        for name, probability in self.modality_dropout.items():
            rest = [image[part] for other, part in self.channels.items() if other != name]
            if 0 <= draw < probability and not all(torch.isnan(r).all() for r in rest):
                image[self.channels[name]] = torch.nan
            draw -= probability

    @property
    def interval_width(self) -> Tensor | None:
        """The factor on the width of the height intervals that calibration sets in place; None without heights."""
        head = getattr(self.roi_heads, "height_head", None)
        return getattr(head, "interval_width", None)

    def forward(self, batched_inputs):
        """The losses in training, weighted; else as `outputs`.

        Tiles without labels train the dense heads that need none; proposals and heads of instances never see them.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        shared = self.backbone(images.tensor)
        maps = self._maps(shared, images.tensor)
        losses = self._instance_losses(batched_inputs, images, self._seen(shared, images.tensor, maps))
        if self.dense_heads is not None:
            losses |= self._dense_losses(maps, dense_targets(batched_inputs, images.complete), images)
        return losses if self.task_weighting is None else self.task_weighting(losses, _levels(shared))

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        """As in Detectron2: `outputs`, or, without `do_postprocess`, the raw Instances alone."""
        outputs = self.outputs(batched_inputs, detected_instances, do_postprocess)
        return outputs if do_postprocess else [x["instances"] for x in outputs]

    def outputs(self, batched_inputs, detected_instances=None, do_postprocess=True) -> list[dict]:
        """What the network says of each input, see the class.

        Args:
            detected_instances: Instances with pred_boxes and pred_classes that are taken for granted.
            do_postprocess: False: instances as the heads leave them, with masks of the size of the heads', and maps of
                the size of the image.
        """
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        shared = self.backbone(images.tensor)
        maps = self._maps(shared, images.tensor)
        features = self._seen(shared, images.tensor, maps)
        outputs = self._instances(batched_inputs, images, features, detected_instances, do_postprocess)
        sizes = _output_sizes(batched_inputs, images) if do_postprocess else images.image_sizes
        return self._with_maps(outputs, self._said(maps, images), images, sizes)

    def _maps(self, shared, image: Tensor):
        """What the dense heads say."""
        return DenseMaps() if self.dense_heads is None else self.dense_heads(shared, image)

    def _seen(self, shared, image: Tensor, maps=None):
        """The feature maps that instances are found in; `maps` are computed where they are needed and None."""
        if self.dense_prior and maps is None:
            maps = self._maps(shared, image)
        return self._seen_by(self.attention, shared, image, maps)

    def _seen_by(
        self, attention: nn.Module | None, shared: dict, image: Tensor, maps: DenseMaps | None
    ) -> dict:
        features = shared if attention is None else attention(shared, image)
        # Detached: the dense head says what the height is, not what the height head would like to hear.
        return {**features, "dense_height": maps.height_m.detach()} if self.dense_prior else features

    @staticmethod
    def _labelled_part(batched_inputs, images: ImageList, features: dict):
        """Inputs, images and feature maps of the tiles that have labels.

        Raises:
            InputError: there is none. Batches are made so that every process has one in each, as heads that take no
                part in a step would leave the other processes waiting.
        """
        rows = [i for i, x in enumerate(batched_inputs) if _labelled(x)]
        if len(rows) == len(batched_inputs):
            return batched_inputs, images, features
        if not rows:
            names = ", ".join(str(x.get("file_name", "image")) for x in batched_inputs)
            raise InputError(
                f"no tile of a batch has labels ({names}): expected one at least in every process."
            )
        part = ImageList(images.tensor[rows], [images.image_sizes[i] for i in rows])
        part.sensor = images.sensor[rows]
        return [batched_inputs[i] for i in rows], part, _rows(features, rows)

    def _instance_losses(self, batched_inputs, images: ImageList, features) -> dict[str, Tensor]:
        batched_inputs, images, features = self._labelled_part(batched_inputs, images, features)
        truth = [x["instances"].to(self.device) for x in batched_inputs]
        proposals, found = self.proposal_generator(images, features, truth)
        _, losses = self.roi_heads(images, features, proposals, truth)
        return {**losses, **found}

    def _dense_losses(self, maps, targets: DenseTargets, images: ImageList) -> dict[str, Tensor]:
        return self.dense_heads.losses(maps, targets)

    def _instances(self, batched_inputs, images, features, given, do_postprocess: bool) -> list[dict]:
        found = self._found(images, features, given)
        if not do_postprocess:
            return [{"instances": x} for x in found]
        return GeneralizedRCNN._postprocess(found, batched_inputs, images.image_sizes)

    def _found(self, images: ImageList, features, given: list[Instances] | None) -> list[Instances]:
        """Raw instances; of those `given` masks and heights, after they learn the facts of their image."""
        if given is None:
            proposals, _ = self.proposal_generator(images, features, None)
            return self.roi_heads(images, features, proposals, None)[0]
        given = [x.to(self.device) for x in given]
        attach_sensor(given, images.sensor)
        return self.roi_heads.forward_with_given_boxes(features, given)

    def _said(self, maps, images: ImageList) -> dict[str, Tensor]:
        """{"height_map_m", "footprint_map"}: (N, 1, H, W) of the padded batch, as far as there are such heads.

        "class_map", of networks that tell classes: (N, K, H, W).
        """
        said = {"height_map_m": maps.height_m}
        said["footprint_map"] = None if maps.footprint is None else maps.footprint.float().sigmoid()
        said["class_map"] = None if maps.classes is None else maps.classes.float().softmax(dim=1)
        return {name: values.float() for name, values in said.items() if values is not None}

    @staticmethod
    def _with_maps(
        outputs: list[dict], said: dict[str, Tensor], images: ImageList, sizes: list[tuple[int, int]]
    ) -> list[dict]:
        """`outputs` with the maps of `_said` cut from the padding and brought to `sizes` (height, width)."""
        for name, values in said.items():
            for output, one, (height, width), size in zip(outputs, values, images.image_sizes, sizes):
                one = one[None, :, :height, :width]
                if size != (height, width):
                    one = F.interpolate(one, size, mode="bilinear", align_corners=False)
                output[name] = one[0] if name == "class_map" else one[0, 0]
        return outputs

    def _maps_alone(self, said: dict[str, Tensor], batched_inputs, images: ImageList) -> list[dict]:
        """Outputs that hold the maps of `_said` and nothing else."""
        nothing = [{} for _ in batched_inputs]
        return self._with_maps(nothing, said, images, _output_sizes(batched_inputs, images))

    @torch.no_grad()
    def heights_on_truth(self, batched_inputs) -> list[Instances]:
        """Heights with ground-truth boxes and masks: what the height head errs by when detection is perfect.

        Returns:
            One Instances per input, aligned with its `instances`: pred_heights, pred_height_p16, pred_height_p84.
        """
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        features = self._seen(self.backbone(images.tensor), images.tensor)
        truth = [x["instances"].to(self.device) for x in batched_inputs]
        return truth_heights(truth, self.roi_heads.heights_of_truth(features, truth, images.sensor))

    def visualize_training(self, batched_inputs, proposals):
        """Nothing: Detectron2's picture needs three channels; fusiondet.engine.hooks draws any number."""


# Arguments of a network that finds no instances.
NO_INSTANCES = {"proposal_generator": None, "roi_heads": None, "attention": None}


@META_ARCH_REGISTRY.register()
class FusionDense(FusionRCNN):
    """The dense heads of FusionRCNN on the same backbone, and nothing that finds instances.

    Inputs and outputs are those of FusionRCNN, without "instances" in the outputs.
    """

    finds_instances = False
    # Heads may read some levels of the pyramid only.
    may_skip_parameters = True

    @classmethod
    def from_config(cls, cfg):
        """Builds backbone and dense heads.

        Raises:
            InputError: there are no dense heads.
        """
        if not len(cfg.MODEL.DENSE_HEADS.NAMES):
            raise InputError(
                "MODEL.META_ARCHITECTURE FusionDense has dense heads alone, but MODEL.DENSE_HEADS.NAMES is empty. "
                "Name one at least, or use FusionRCNN."
            )
        arguments = {**cls.fusion_arguments(cfg), "backbone": build_backbone(cfg)}
        shapes, bands = arguments["backbone"].output_shape(), len(cfg.MODEL.PIXEL_MEAN)
        return {**arguments, **cls.dense_arguments(cfg, shapes, bands), **NO_INSTANCES}

    @classmethod
    def tasks(cls, cfg) -> list[str]:
        """As FusionRCNN.tasks, of the dense heads alone."""
        return [task for task in FusionRCNN.tasks(cfg) if task not in ("instances", "height")]

    def _instance_losses(self, batched_inputs, images, features) -> dict[str, Tensor]:
        return {}

    def _instances(self, batched_inputs, images, features, given, do_postprocess: bool) -> list[dict]:
        assert given is None, "a network without instances has nothing to add to given ones"
        return [{} for _ in batched_inputs]
