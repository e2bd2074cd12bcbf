"""Dense heads of two branches, one per modality, and the average of their maps (P1's late fusion)."""

from dataclasses import dataclass

from fusiondet.modeling.dense_heads import DenseHeads, DenseMaps, DenseTargets
from fusiondet.modeling.fusion import MODALITIES, weights_of
from fusiondet.modeling.streams import PerModality

import torch
from torch import Tensor


@dataclass
class BranchMaps:
    """Dense predictions of both branches.

    Attributes:
        branches: modality -> maps of its branch.
        valid: modality -> (N, 1, H, W) bool, whether any of its bands has data.
    """

    branches: dict[str, DenseMaps]
    valid: dict[str, Tensor]

    def output_maps(self) -> dict[str, Tensor]:
        """As `DenseMaps.output_maps`: the mean of the branches that have data at a pixel, of both where neither has."""
        maps = [self.branches[m].output_maps() for m in MODALITIES]
        valid = torch.cat([self.valid[m] for m in MODALITIES], dim=1).float()
        weights = weights_of(valid).split(1, dim=1)
        return {name: sum(own[name] * weight for own, weight in zip(maps, weights)) for name in maps[0]}

    def branch_maps(self) -> dict[str, dict[str, Tensor]]:
        """As `DenseMaps.branch_maps`."""
        of_branches = {m: self.branches[m].output_maps() for m in MODALITIES}
        return {**of_branches, "fused": self.output_maps()}


class BranchDenseHeads(PerModality):
    """`DenseHeads` per modality: each sees the pyramid and the bands of its own modality, and is trained where it has
    data.
    """

    def __init__(self, heads: dict[str, DenseHeads], channels: dict[str, slice]):
        """`channels`: modality -> its bands in the image."""
        super().__init__(heads)
        self.channels = channels

    def forward(self, pyramids: dict[str, dict[str, Tensor]], image: Tensor) -> BranchMaps:
        """A pyramid per modality, and the image (N, C, H, W), normalised, NaN = no data."""
        own = {m: image[:, self.channels[m]] for m in MODALITIES}
        return BranchMaps(
            branches={m: self[m](pyramids[m], own[m]) for m in MODALITIES},
            valid={m: ~torch.isnan(own[m]).all(dim=1, keepdim=True) for m in MODALITIES},
        )

    def losses(self, maps: BranchMaps, targets: DenseTargets) -> dict[str, Tensor]:
        """Losses of both branches, named "optical/loss_footprint", ..."""
        losses = {}
        for name in MODALITIES:
            # Nor is a branch to reconstruct what was dropped: where it has no data, it could only learn to guess.
            unseen = ~maps.valid[name]
            labels = (targets.height_m, targets.footprint, targets.image[:, self.channels[name]])
            asked = DenseTargets(*(torch.where(unseen, torch.nan, x) for x in labels))
            own = self[name].losses(maps.branches[name], asked)
            losses |= {f"{name}/{key}": loss for key, loss in own.items()}
        return losses
