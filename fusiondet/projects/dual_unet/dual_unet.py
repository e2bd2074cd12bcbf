"""The dual U-Net whose branches tell each other what they see (P3), and one of its U-Nets alone."""

from fusiondet.errors import InputError
from fusiondet.modeling.backbone import valid_at
from fusiondet.modeling.dense_heads import DenseMaps, DenseTargets, known_pixels
from fusiondet.modeling.dense_nets import DENSE_NET_REGISTRY, DenseNet, Picture
from fusiondet.modeling.fusion import MMTM, MODALITIES, weights_of
from fusiondet.modeling.streams import PerModality
from fusiondet.modeling.unet import UNetDecoder, UNetEncoder

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn


@DENSE_NET_REGISTRY.register()
class DualUNet(DenseNet):
    """Two identical U-Nets, SAR and optical, joined by MMTMs; each says where buildings are, and p is the mean of both.

    Hafner, Ban & Nascetti, "Investigating Imbalances Between SAR and Optical Utilization for Multi-Modal Urban
    Mapping": p = (p_sar + p_opt) / 2 (equation 2), loss L(y, p_sar) + L(y, p_opt) with the Power Jaccard loss, four
    MMTMs "between convolution layers". Of one modality alone it is one such U-Net, without a partner to tell anything.

    Assumptions, as the paper does not say it: three levels of 1, 2 and 2 times WIDTH = 64 channels, batch norm, an MMTM
    behind every pair of convolutions but the last (three down, two up: four MMTMs), its result the map that goes on,
    down and across; gates 2 sigmoid(E) that start as 1, and means over the cells with data, as `MMTM` has them. Levels
    and widths are those of the code that the authors published beside their data, whose MMTMs have RATIO 1 and whose
    U-Net goes up by transposed convolutions; here maps are doubled bilinearly (`UNetDecoder`).

    Where a modality has no data its branch has no say and is not asked in training: what it says there it was told, or
    guesses. Where neither has, both count alike.
    """

    tasks = ("footprint",)
    sections = ("WIDTH", "DUAL_UNET", "MMTM", "BALANCE")

    def __init__(self, cfg, optical_channels: int, sar_channels: int):
        """Reads MODEL.DENSE_NET.WIDTH, MODEL.DENSE_NET.DUAL_UNET and MODEL.FUSION.MMTM."""
        super().__init__()
        keys = cfg.MODEL.DENSE_NET
        widths = [keys.WIDTH * multiple for multiple in keys.DUAL_UNET.MULTIPLES]
        bands = {m: n for m, n in zip(MODALITIES, (optical_channels, sar_channels)) if n}
        self.power = keys.DUAL_UNET.POWER
        self.stride = 2 ** (len(widths) - 1)
        # Batch norm needs more than one cell of the coarsest map.
        self.least_size_px = 2 * self.stride
        self.branches = PerModality({m: _UNet(n, widths) for m, n in bands.items()})
        self.has_branches = len(bands) == 2
        # Down to the coarsest map and up again, but for the last map.
        told = [*widths, *reversed(widths[1:-1])] if self.has_branches else []
        shapes = [ShapeSpec(channels=width) for width in told]
        self.exchanges = nn.ModuleList(MMTM(cfg, shape, shape) for shape in shapes)

    @classmethod
    def check(cls, cfg) -> None:
        """See DenseNet."""
        keys = cfg.MODEL.DENSE_NET.DUAL_UNET
        multiples = list(keys.MULTIPLES)
        if len(multiples) < 2 or not all(isinstance(m, int) and m > 0 for m in multiples):
            raise InputError(
                f"MODEL.DENSE_NET.DUAL_UNET.MULTIPLES is {multiples}, expected two whole numbers above 0 or more, one "
                "per level of the U-Nets."
            )
        if not 1 <= keys.POWER <= 2:
            raise InputError(f"MODEL.DENSE_NET.DUAL_UNET.POWER is {keys.POWER}, expected 1 to 2.")

    def unimodal_part(self, modality: str) -> nn.Module:
        """See DenseNet."""
        return self.branches[modality]

    def forward(self, picture: Picture) -> DenseMaps:
        """See DenseNet."""
        valid = {m: getattr(picture, f"{m}_valid") for m in self.branches}
        x = {m: getattr(picture, m) for m in self.branches}
        maps = []
        for i in range(self.levels):
            x = self._told(i, {m: net.encoder.level(i, x[m]) for m, net in self.branches.items()}, valid)
            maps.append(x)
        for i in reversed(range(self.levels - 1)):
            x = {m: net.decoder.step(i, x[m], maps[i][m]) for m, net in self.branches.items()}
            if i:
                x = self._told(2 * self.levels - 2 - i, x, valid)
        logits = {m: net.predictor(x[m]).float() for m, net in self.branches.items()}
        fused = mean_logit([*logits.values()], [*valid.values()])
        return DenseMaps(footprint=fused, branches=logits, branches_valid=valid)

    @property
    def levels(self) -> int:
        """Of each U-Net."""
        return len(next(iter(self.branches.values())).encoder.levels)

    def _told(self, i: int, x: dict[str, Tensor], valid: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps of both after exchange `i`."""
        if not self.has_branches:
            return x
        shares = [valid_at(valid[m], x[m]) for m in MODALITIES]
        return dict(zip(MODALITIES, self.exchanges[i](*(x[m] for m in MODALITIES), *shares)))

    def losses(self, maps: DenseMaps, targets: DenseTargets) -> dict[str, Tensor]:
        """See DenseNet: {"optical/loss_footprint", "sar/loss_footprint"}, or the one of the modality that there is."""
        losses = {}
        for name, logits in maps.branches.items():
            asked = torch.where(maps.branches_valid[name] > 0, targets.footprint, torch.nan)
            losses[f"{name}/loss_footprint"] = power_jaccard_loss(logits, asked, self.power)
        return losses


class _UNet(nn.Module):
    """One branch: `UNetEncoder`, `UNetDecoder`, and a logit for each pixel."""

    def __init__(self, in_channels: int, widths: list[int]):
        super().__init__()
        self.encoder, self.decoder = UNetEncoder(in_channels, widths), UNetDecoder(widths)
        self.predictor = nn.Conv2d(widths[0], 1, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.3 * widths[0] ** -0.5)
        nn.init.zeros_(self.predictor.bias)


def mean_logit(logits: list[Tensor], valid: list[Tensor]) -> Tensor:
    """The logit of the mean of probabilities, each with the weight of its validity, all alike where none has any.

    Exact where probabilities are 0 or 1 but for the last digits, too. Passes on no gradient: branches learn by
    themselves.

    Args:
        logits, valid: (N, 1, H, W) each.
    """
    if len(logits) == 1:
        return logits[0]
    with torch.no_grad():
        weights = weights_of(torch.stack(valid, dim=1).float()).log()
        said = torch.stack(logits, dim=1)
        yes = torch.logsumexp(F.logsigmoid(said) + weights, dim=1)
        return yes - torch.logsumexp(F.logsigmoid(-said) + weights, dim=1)


def power_jaccard_loss(logits: Tensor, truth: Tensor, power: float = 2.0) -> Tensor:
    """1 - (sum(y p) + 1) / (sum(y^power + p^power - y p) + 1), over the known pixels of the batch together.

    Duque-Arias et al., On power Jaccard losses for semantic segmentation, VISAPP 2021: power 1 is the Jaccard loss, and
    up to 2 wrong pixels of middling p count less and less. The 1, a small number there, is one more pixel that is both
    predicted and true, so that a batch without buildings has a gradient, too. 0 and attached where nothing is known.

    Args:
        logits: of any shape. truth: of the same, 0 or 1, NaN where unknown.
    """
    logits, truth = known_pixels(logits, truth)
    said = logits.sigmoid()
    overlap = (said * truth).sum()
    return 1 - (overlap + 1) / (said.pow(power).sum() + truth.pow(power).sum() - overlap + 1)
