"""U-REC (P5): semantic segmentation and reconstruction of the image from one encoder.

Papadomanolaki, Karantzalos, Vakalopoulou 2019, IGARSS, https://doi.org/10.1109/igarss.2019.8898133.
"""

from fusiondet.errors import InputError, unknown_name
from fusiondet.modeling.dense_heads import DenseMaps, DenseTargets, known_pixels
from fusiondet.modeling.dense_nets import DENSE_NET_REGISTRY, DenseNet, Picture
from fusiondet.modeling.unet import UNetDecoder, UNetEncoder

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels of the levels over those of the finest: five poolings, doubling up to 8, as in VGG.
WIDTHS = (1, 2, 4, 8, 8, 8)
REDUCTIONS = ("mean", "sum_per_image")
BUILDING = "building"


@DENSE_NET_REGISTRY.register()
class UREC(DenseNet):
    """A U-Net of five poolings that tells classes, and a second decoder, without skips, that paints the image again.

    L = w1 L1(reconstruction) + (1 - w1) CE(classes), w1 = MODEL.DENSE_NET.U_REC.W1 (equation 3); with w1 = 0 there is
    no second decoder: the paper's baseline, a plain U-Net. The reconstruction needs no labels, so that tiles without
    train it, and the encoder with it. Bands are stacked (early fusion), of any number, and so are classes. Where one of
    them is called "building", its logit against all others is the footprint, too.

    CE is the mean over pixels of known class. L1 by MODEL.DENSE_NET.U_REC.REDUCTION, in standard deviations of a band,
    over the n known numbers (pixels x bands) of an image:
    - "mean": their mean, of the whole batch; w1 is then a share of two losses of the order of 1.
    - "sum_per_image": their sum, mean over the images, as equation 1 has it. w1 then does what n w1 / (n w1 + 1 - w1)
      does with "mean", and the whole loss is n w1 + 1 - w1 times as large: with the paper's 0.1 and 256 x 256 x 3
      numbers it is 0.99995, which leaves the classes next to nothing of the encoder. That the paper's 0.1 is of a mean
      (as PyTorch's L1Loss takes) is our reading.

    Assumptions, as the paper does not publish it: channels of the levels (MODEL.DENSE_NET.WIDTH times 1, 2, 4, 8, 8,
    8), two convolutions at each, bilinear doubling, a 1 x 1 convolution behind each decoder.
    """

    stride = 2 ** (len(WIDTHS) - 1)
    # Batch norm of a single image has to see more than one cell at the coarsest level.
    least_size_px = 2 * stride
    tasks = ("classes",)
    sections = ("WIDTH", "U_REC")
    learns_unlabelled = True

    def __init__(self, cfg, optical_channels: int, sar_channels: int):
        """See `DENSE_NET_REGISTRY`.

        Raises:
            InputError: fewer than two classes, or see `check`.
        """
        super().__init__()
        self.check(cfg)
        keys, bands = cfg.MODEL.DENSE_NET, optical_channels + sar_channels
        names = list(keys.CLASSES)
        if len(names) < 2 or len({*names}) < len(names):
            raise InputError(
                f"MODEL.DENSE_NET.CLASSES is {names}, expected two names or more, each once. They are taken from the "
                "training data by tools/train_net.py."
            )
        self.w1, self.reduction = keys.U_REC.W1, keys.U_REC.REDUCTION
        self.building = names.index(BUILDING) if BUILDING in names else None
        widths = [keys.WIDTH * times for times in WIDTHS]
        self.encoder = UNetEncoder(bands, widths)
        self.segmentation = UNetDecoder(widths)
        self.classes = nn.Conv2d(widths[0], len(names), 1)
        self.reconstruction = UNetDecoder(widths, skips=False) if self.w1 else None
        self.bands = nn.Conv2d(widths[0], bands, 1) if self.w1 else None

    @classmethod
    def teaches_unlabelled(cls, cfg) -> bool:
        """Whether there is a reconstruction."""
        return cfg.MODEL.DENSE_NET.U_REC.W1 > 0

    @classmethod
    def check(cls, cfg) -> None:
        """InputError for a key of MODEL.DENSE_NET.U_REC that means nothing."""
        keys = cfg.MODEL.DENSE_NET.U_REC
        if not 0 <= keys.W1 < 1:
            raise InputError(
                f"MODEL.DENSE_NET.U_REC.W1 is {keys.W1}, expected 0 or more and below 1: the classes have the rest."
            )
        if keys.REDUCTION not in REDUCTIONS:
            raise unknown_name("MODEL.DENSE_NET.U_REC.REDUCTION", keys.REDUCTION, REDUCTIONS)

    def forward(self, picture: Picture) -> DenseMaps:
        """Classes, the footprint that follows from them, and in training the reconstruction."""
        levels = self.encoder(picture.stacked)
        logits = self.classes(self.segmentation(levels)).float()
        maps = DenseMaps(classes=logits)
        if self.building is not None:
            maps.footprint = one_against_all(logits, self.building)
        if self.reconstruction is not None and self.training:
            maps.reconstruction = self.bands(self.reconstruction(levels)).float()
        return maps

    def losses(self, maps: DenseMaps, targets: DenseTargets) -> dict[str, Tensor]:
        """{"loss_classes", "loss_reconstruction"}; see the class."""
        losses = {"loss_classes": (1 - self.w1) * class_loss(maps.classes, targets.classes)}
        if maps.reconstruction is not None:
            predicted, truth = known_pixels(maps.reconstruction, targets.image)
            whole = (predicted - truth).abs().sum()
            parts = max(1, truth.numel()) if self.reduction == "mean" else len(targets.image)
            losses["loss_reconstruction"] = self.w1 * whole / parts
        return losses


def class_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels of known class; 0, still attached, where there is none.

    Args:
        logits: (N, K, H, W). truth: (N, 1, H, W) index of the class, NaN where unknown.
    """
    truth = truth[:, 0]
    known = ~torch.isnan(truth)
    chosen = logits.movedim(1, -1)[known]
    return F.cross_entropy(chosen, truth[known].long(), reduction="sum") / max(1, len(chosen))


def one_against_all(logits: Tensor, index: int) -> Tensor:
    """(N, K, H, W) logits of classes -> (N, 1, H, W) logit of class `index` against all others."""
    others = [i for i in range(logits.shape[1]) if i != index]
    return logits[:, index : index + 1] - torch.logsumexp(logits[:, others], dim=1, keepdim=True)
