"""From input dicts to the batch that a network reads: normalised, padded, with sensor metadata, modalities hidden."""

from fusiondet.errors import InputError
from fusiondet.modeling.sensor_geometry import SENSOR_FIELDS, columns_of

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F


class SensedImages(ImageList):
    """Detectron2's padded batch with sensor metadata.

    Attributes:
        tensor: (N, C, H, W) normalised; NaN = no data, padding, or a modality that is hidden.
        image_sizes: (height, width) of each image before padding.
        sensor: (N, len(SENSOR_FIELDS)) float32 metres per pixel and degrees; NaN where unknown.
        complete: `tensor` as it was before modality dropout.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]], sensor: Tensor, complete: Tensor):
        super().__init__(tensor, image_sizes)
        self.sensor, self.complete = sensor, complete

    def take(self, rows: list[int]) -> "SensedImages":
        """Return the batch of these images alone, padded as before."""
        sizes = [self.image_sizes[i] for i in rows]
        return SensedImages(self.tensor[rows], sizes, self.sensor[rows], self.complete[rows])


class Preprocessing(nn.Module):
    """Normalise and pad a batch, and hide modalities. Holds no weights: nothing of it is in a checkpoint.

    Attributes:
        channels: modality -> slice of the bands.
        modality_dropout: modality -> probability that training hides it from an image.
        disabled: modality that is treated as missing, "" for none.
    """

    def __init__(
        self,
        *,
        pixel_mean: list[float],
        pixel_std: list[float],
        optical_channels: int = 0,
        modality_dropout: dict[str, float] | None = None,
        disabled: str = "",
    ):
        """`pixel_mean`, `pixel_std`: one number per band; the first `optical_channels` bands are optical.

        Raises:
            InputError: no numbers; a modality is hidden that the network does not have, or that is its only one.
        """
        super().__init__()
        if len(pixel_mean) == 0 or len(pixel_mean) != len(pixel_std):
            raise InputError(
                f"MODEL.PIXEL_MEAN has {len(pixel_mean)} and MODEL.PIXEL_STD {len(pixel_std)} numbers, expected one "
                "per band. They are computed from the training data by tools/train_net.py; or set them in the config."
            )
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        bands = len(pixel_mean)
        self.channels = {"optical": slice(0, optical_channels), "sar": slice(optical_channels, bands)}
        self.modality_dropout, self.disabled = dict(modality_dropout or {}), disabled
        self._check_modalities()

    @classmethod
    def from_config(cls, cfg) -> "Preprocessing":
        """Build it from MODEL.PIXEL_MEAN, PIXEL_STD and MODEL.FUSION.

        Raises:
            InputError: what `complete_config` fills in is missing, or see `__init__`.
        """
        return cls(
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            optical_channels=cfg.MODEL.FUSION.OPTICAL_CHANNELS,
            modality_dropout=cfg.MODEL.FUSION.MODALITY_DROPOUT,
            disabled=cfg.MODEL.FUSION.DISABLED,
        )

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict], size_divisibility: int, least_size_px: int = 1
    ) -> SensedImages:
        """Return the batch of `batched_inputs`, see `FusionRCNN` for their keys.

        Angles of a modality without a single pixel become NaN: nothing in the image shows what they would explain.

        Args:
            size_divisibility: the padded sides are multiples of it.
            least_size_px: the padded sides are no shorter.

        Raises:
            InputError: an image has another number of bands.
        """
        bands = len(self.pixel_mean)
        for x in batched_inputs:
            if x["image"].shape[0] != bands:
                raise InputError(
                    f"{x.get('file_name', 'image')}: {x['image'].shape[0]} bands, but the network takes {bands}."
                )

        pixels = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        images = ImageList.from_tensors(pixels, size_divisibility, pad_value=torch.nan)
        height, width = images.tensor.shape[-2:]
        missing = (0, max(0, least_size_px - width), 0, max(0, least_size_px - height))
        tensor = F.pad(images.tensor, missing, value=torch.nan) if any(missing) else images.tensor
        if self.disabled:
            tensor[:, self.channels[self.disabled]] = torch.nan

        complete = tensor
        if self.training and any(self.modality_dropout.values()):
            complete = tensor.clone()
            for image in tensor:
                self._drop(image)

        sensor = sensor_rows(batched_inputs, self.device)
        for name, part in self.channels.items():
            unseen = torch.isnan(tensor[:, part]).flatten(1).all(1)
            sensor[:, columns_of(name)] += torch.where(unseen, torch.nan, 0.0)[:, None]
        return SensedImages(tensor, images.image_sizes, sensor, complete)

    def _drop(self, image: Tensor) -> None:
        """Write NaN over the modality of `image` (C, H, W) that is drawn, if any, unless it is the last one."""
        # Drawn on the CPU, whose generator the trainer seeds, so that a resumed run drops the same.
        draw = float(torch.rand(()))
        for name, probability in self.modality_dropout.items():
            rest = [image[part] for other, part in self.channels.items() if other != name]
            if 0 <= draw < probability and not all(torch.isnan(r).all() for r in rest):
                image[self.channels[name]] = torch.nan
            draw -= probability

    def _check_modalities(self) -> None:
        present = [name for name, part in self.channels.items() if part.start < part.stop]
        hidden = {name for name, p in self.modality_dropout.items() if p > 0} | {self.disabled} - {""}
        if hidden and len(present) < 2:
            raise InputError(
                f"MODEL.FUSION.DISABLED or MODALITY_DROPOUT hides {' and '.join(sorted(hidden))}, but the network "
                f"takes {' and '.join(present)} alone. Leave both keys at their defaults."
            )


def sensor_rows(batched_inputs: list[dict], device) -> Tensor:
    """(N, len(SENSOR_FIELDS)) float32 of each input ("gsd_m", and the dict "sensor"); NaN where unknown."""
    rows = [{"gsd_m": x.get("gsd_m"), **(x.get("sensor") or {})} for x in batched_inputs]
    known = [[float("nan") if row.get(name) is None else row[name] for name in SENSOR_FIELDS] for row in rows]
    return torch.tensor(known, dtype=torch.float32, device=device)
