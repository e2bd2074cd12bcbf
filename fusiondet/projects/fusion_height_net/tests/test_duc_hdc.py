"""DUC-HDC: hybrid dilations, and dense upsampling."""

from fusiondet.projects.fusion_height_net.duc_hdc import _DILATIONS
from fusiondet.projects.fusion_height_net.tests.baselines import network, picture

import numpy as np
import pytest
import torch
from torch import nn


def test_hybrid_dilations_leave_no_pixel_out(dense_cfg):
    """Where a unit behind the dilated stages looks, along one line; with dilation 2 throughout it would miss half."""

    def looked_at(dilations):
        seen = np.ones(1)
        for d in dilations:
            kernel = np.zeros(2 * d + 1)
            kernel[[0, d, -1]] = 1
            seen = np.convolve(seen, kernel)
        return seen > 0

    hybrid = [d for stage in _DILATIONS[2:] for d in stage]
    assert looked_at(hybrid).all() and not looked_at([2] * len(hybrid)).all()
    found = [
        m.dilation[0] for m in network(dense_cfg, "DUCHDC").body if hasattr(m, "conv2") for m in [m.conv2]
    ]
    assert found == [d for stage in _DILATIONS for d in stage]


@torch.no_grad()
def test_dense_upsampling_says_each_pixel_from_its_cell_alone(dense_cfg):
    """A change of one cell's channels changes its own 8 x 8 pixels alone, and filter k the pixel k of all cells."""
    shuffle = network(dense_cfg, "DUCHDC").body[-1]
    assert isinstance(shuffle, nn.PixelShuffle) and shuffle.upscale_factor == 8
    x = torch.zeros(1, 64, 2, 3)
    x[0, 8 * 3 + 5, 1, 2] = 1
    said = shuffle(x)
    assert said.shape == (1, 1, 16, 24) and said[0, 0, 8 + 3, 16 + 5] == 1 and said.sum() == 1


def test_the_stages_shrink_to_an_eighth_and_dilate_from_there(dense_cfg):
    net, sizes = network(dense_cfg, "DUCHDC").eval(), []
    for block in net.body:
        if hasattr(block, "conv2"):
            block.register_forward_hook(lambda _, __, given: sizes.append((given.shape[1], given.shape[-1])))
    with torch.no_grad():
        net(picture(n=1, height=64, width=96))
    # Width 8: 32, 64, 128, 256 channels; 96 px: a quarter in the first stage, an eighth in all others.
    assert sizes == [(32, 24)] * 3 + [(64, 12)] * 4 + [(128, 12)] * 6 + [(256, 12)] * 3


@pytest.mark.parametrize(("width", "channels"), [(8, 8), (32, 8), (64, 16)])
def test_the_head_has_a_quarter_of_the_width_and_eight_at_least(dense_cfg, width, channels):
    net = network(dense_cfg, "DUCHDC", width=width)
    assert net.head.footprint[0].in_channels == net.head.height[0].in_channels == channels
