"""Dense heads of two branches: averages and losses on numbers one can check by hand."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.modeling.branch_dense_heads import BranchDenseHeads
from fusiondet.modeling.dense_heads import DenseMaps, DenseTargets

import pytest
import torch
from torch import nn

CHANNELS = {"optical": slice(0, 2), "sar": slice(2, 3)}


class Flat(nn.Module):
    """Heads that predict the same everywhere, and whose loss is the number of known pixels."""

    def __init__(self, height_m, probability):
        super().__init__()
        self.height_m, self.logit = height_m, math.log(probability / (1 - probability))

    def forward(self, features, image):
        self.bands = image.shape[1]
        flat = torch.ones(len(image), 1, *image.shape[-2:])
        return DenseMaps(height_m=flat * self.height_m, footprint=flat * self.logit)

    def losses(self, maps, targets):
        known = [(~x.isnan()).sum().item() for x in (targets.height_m, targets.footprint, targets.image)]
        return {"loss_footprint": torch.tensor(known)}


@pytest.fixture
def heads():
    return BranchDenseHeads({"optical": Flat(10.0, 0.9), "sar": Flat(20.0, 0.3)}, CHANNELS)


@pytest.fixture
def image():
    """Columns with data of both, optical alone, SAR alone, none."""
    image = torch.zeros(1, 3, 2, 4)
    image[:, 2, :, [1, 3]] = torch.nan
    image[:, :2, :, 2:] = torch.nan
    return image


def test_maps_are_averaged_where_both_have_data_or_neither(heads, image):
    maps = heads({"optical": {}, "sar": {}}, image).output_maps()
    assert (heads["optical"].bands, heads["sar"].bands) == (2, 1)
    assert maps["height_map_m"][0, 0, 0].tolist() == [15, 10, 20, 15]
    assert maps["footprint_map"][0, 0, 1].tolist() == pytest.approx([0.6, 0.9, 0.3, 0.6])


def test_each_branch_alone_predicts_everywhere(heads, image):
    maps = heads({"optical": {}, "sar": {}}, image).branch_maps()
    assert list(maps) == ["optical", "sar", "fused"]
    assert (maps["optical"]["height_map_m"] == 10).all() and (maps["sar"]["height_map_m"] == 20).all()
    assert maps["fused"]["height_map_m"][0, 0, 0].tolist() == [15, 10, 20, 15]


def test_a_branch_is_trained_where_its_modality_has_data(heads, image):
    maps = heads({"optical": {}, "sar": {}}, image)
    labels = torch.zeros(1, 1, 2, 4)
    losses = heads.losses(maps, DenseTargets(labels, labels, torch.zeros(1, 3, 2, 4)))
    assert losses["optical/loss_footprint"].tolist() == [4, 4, 8]
    assert losses["sar/loss_footprint"].tolist() == [4, 4, 4]
