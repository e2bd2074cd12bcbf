"""The detector: Detectron2's GeneralizedRCNN that also carries per-image facts in metres and degrees to its heads."""

from fusiondet.errors import InputError
from fusiondet.modeling.height_head import HeightDistribution
from fusiondet.modeling.roi_heads import set_heights
from fusiondet.modeling.sensor_geometry import SENSOR_FIELDS, columns_of

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import Instances


def sensor_rows(batched_inputs: list[dict], device) -> torch.Tensor:
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


@META_ARCH_REGISTRY.register()
class FusionRCNN(GeneralizedRCNN):
    """GeneralizedRCNN for images of any number of bands whose heads may ask for GSD and sensor geometry.

    Each input is a dict with
        image: (C, H, W) float32 in the units of MODEL.PIXEL_MEAN; NaN means no data.
        gsd_m: metres per pixel. sensor: {field of SensorGeometry: degrees or None}, optional.
        instances: training and `heights_on_truth`: gt_boxes, gt_classes, gt_masks, gt_heights (metres, NaN unknown).
        height, width: size of the output; the image's own if absent.
    Each output is {"instances": Instances} with pred_boxes, scores, pred_classes, pred_masks and, in metres above
    ground, pred_heights (the median), pred_height_p16, pred_height_p84.
    """

    @configurable
    def __init__(
        self,
        *,
        optical_channels: int = 0,
        modality_dropout: dict[str, float] | None = None,
        disabled: str = "",
        **kwargs,
    ):
        """See GeneralizedRCNN.

        Args:
            optical_channels: how many of the leading bands are optical.
            modality_dropout: modality -> probability that training hides it from an image.
            disabled: modality that is treated as missing, "" for none.
        """
        super().__init__(**kwargs)
        bands = len(self.pixel_mean)
        self.channels = {"optical": slice(0, optical_channels), "sar": slice(optical_channels, bands)}
        self.modality_dropout, self.disabled = dict(modality_dropout or {}), disabled
        self._check_modalities()

    @classmethod
    def from_config(cls, cfg):
        """Builds as Detectron2 does, after `fusion_arguments`."""
        arguments = cls.fusion_arguments(cfg)
        return {**super().from_config(cfg), **arguments}

    @staticmethod
    def fusion_arguments(cfg) -> dict:
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
        }

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

        Padding is NaN like any pixel without data, and so is a modality that is disabled or, in training, dropped. The
        angles of a modality that has no pixel are NaN too: nothing in the image shows what they would explain.
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
            self._hide(image)
        images.sensor = sensor_rows(batched_inputs, self.device)
        for name, part in self.channels.items():
            unseen = torch.isnan(images.tensor[:, part]).flatten(1).all(1)
            images.sensor[:, columns_of(name)] += torch.where(unseen, torch.nan, 0.0)[:, None]
        return images

    def _hide(self, image: torch.Tensor) -> None:
        """Write NaN over the modality of `image` (C, H, W) that is disabled or dropped, unless it is the last one."""
        names = [self.disabled] if self.disabled else []
        if self.training and any(self.modality_dropout.values()):
            # Drawn on the CPU, whose generator the trainer seeds, so that a resumed run drops the same.
            draw = float(torch.rand(()))
            for name, probability in self.modality_dropout.items():
                if 0 <= draw < probability:
                    names.append(name)
                draw -= probability
        for name in names:
            rest = [image[part] for other, part in self.channels.items() if other != name]
            if name == self.disabled or not all(torch.isnan(r).all() for r in rest):
                image[self.channels[name]] = torch.nan

    @property
    def interval_width(self) -> torch.Tensor | None:
        """The factor on the width of the height intervals that calibration sets in place; None without heights."""
        head = getattr(self.roi_heads, "height_head", None)
        return getattr(head, "interval_width", None)

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        """As in Detectron2; given boxes learn the facts of their image first."""
        if detected_instances is not None:
            for instances, row in zip(detected_instances, self.preprocess_image(batched_inputs).sensor):
                instances.sensor = row.expand(len(instances), -1)
        return super().inference(batched_inputs, detected_instances, do_postprocess)

    @torch.no_grad()
    def heights_on_truth(self, batched_inputs) -> list[Instances]:
        """Heights with ground-truth boxes and masks: what the height head errs by when detection is perfect.

        Returns:
            One Instances per input, aligned with its `instances`: pred_heights, pred_height_p16, pred_height_p84.
        """
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        truth = [x["instances"].to(self.device) for x in batched_inputs]
        return truth_heights(truth, self.roi_heads.heights_of_truth(features, truth, images.sensor))

    def visualize_training(self, batched_inputs, proposals):
        """Nothing: Detectron2's picture needs three channels; fusiondet.engine.hooks draws any number."""
