"""Baselines of FusionHeightNet: sizes of their maps, what makes each of them itself."""

import math
import socket

import fusiondet.compat  # noqa: F401
from fusiondet.errors import InputError
from fusiondet.modeling.dense_nets import Picture, dense_net_named
from fusiondet.projects.fusion_height_net.duc_hdc import _DILATIONS

import numpy as np
import pytest
import torch
from torch import nn

SMP = ["DeepLabV3Plus", "ResUNet", "UPerNet", "PSPNet"]


@pytest.fixture
def build(dense_cfg):
    def network(name, optical=3, sar=1, width=8, encoder="resnet18"):
        dense_cfg.MODEL.DENSE_NET.WIDTH, dense_cfg.MODEL.DENSE_NET.SMP.ENCODER = width, encoder
        torch.manual_seed(0)
        return dense_net_named(name)(dense_cfg, optical, sar)

    return network


def picture(n=2, height=64, width=96, optical=3, sar=1):
    generator = torch.Generator().manual_seed(1)
    bands = torch.randn(n, optical + sar, height, width, generator=generator)
    valid = torch.ones(n, 1, height, width)
    return Picture(bands[:, :optical], bands[:, optical:], valid, valid, bands)


@pytest.mark.parametrize(
    ("name", "channels", "stride"),
    [("DeepLabV3Plus", 32, 4), ("ResUNet", 2, 1), ("UPerNet", 32, 4), ("PSPNet", 64, 8), ("SegNet", 8, 1),
     ("DUCHDC", 8, 1)],
)  # fmt: skip
def test_maps_of_the_body_and_of_the_head(build, name, channels, stride):
    net, seen = build(name).eval(), {}
    net.body.register_forward_hook(lambda _, given, said: seen.update(given=given[0].shape, said=said.shape))
    net.head.footprint.register_forward_hook(lambda _, given, __: seen.update(head=given[0].shape))
    with torch.no_grad():
        maps = net(picture())
    # All bands at once, optical first.
    assert seen["given"] == (2, 4, 64, 96)
    assert seen["said"] == (2, channels, 64 // stride, 96 // stride)
    assert seen["head"] == (2, 8 if stride > 1 else channels, 64, 96)
    assert maps.footprint.shape == maps.height_m.shape == (2, 1, 64, 96)


@pytest.mark.parametrize("name", SMP)
def test_the_encoders_width_and_depth_follow_the_keys_and_nothing_is_fetched(build, name, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    shallow, deep = build(name), build(name, encoder="resnet34")

    def convolutions(net):
        return sum(isinstance(m, nn.Conv2d) for m in net.body.encoder.modules())

    # DeepLabv3+ and the others alike have all four stages: 34 - 18 layers more.
    assert convolutions(deep) - convolutions(shallow) == 16
    assert shallow.body.encoder.out_channels[-4:] == [8, 16, 32, 64]
    assert build(name, width=16).body.encoder.out_channels[-4:] == [16, 32, 64, 128]


def test_an_unknown_encoder_is_refused(build):
    with pytest.raises(InputError, match="SMP.ENCODER 'resnet-50'.*Did you mean 'resnet50'"):
        build("UPerNet", encoder="resnet-50")


def test_the_deep_encoder_of_psp_stays_at_stride_8(build):
    strides = {}
    net = build("PSPNet").eval()
    for i in range(1, 5):
        layer = getattr(net.body.encoder.model, f"layer{i}")
        layer.register_forward_hook(lambda _, __, said, i=i: strides.update({i: 64 // said.shape[-2]}))
    with torch.no_grad():
        net(picture())
    assert strides == {1: 4, 2: 8, 3: 8, 4: 8}


def test_segnet_unpools_to_where_the_maxima_were(build):
    net, seen = build("SegNet").eval(), {}
    net.body.down[0].register_forward_hook(lambda _, __, said: seen.update(pooled=said))
    net.body.up[0].register_forward_hook(lambda _, given, __: seen.update(unpooled=given[0]))
    with torch.no_grad():
        net(picture())
    blocks = [
        nn.functional.unfold(seen[key], 2, stride=2).unflatten(1, (8, 4)) for key in ("pooled", "unpooled")
    ]
    pooled, unpooled = blocks
    filled = unpooled != 0
    assert (filled.sum(2) <= 1).all() and filled.any()
    # The one that is filled in a block of 2 x 2 is the greatest of what went in.
    greatest = pooled == pooled.amax(2, keepdim=True)
    assert (greatest | ~filled).all()


def test_segnet_goes_down_and_up_five_levels(build):
    net, sizes = build("SegNet").eval(), []
    for level in (*net.body.down, *reversed(net.body.up)):
        level.register_forward_hook(lambda _, __, said: sizes.append((said.shape[1], said.shape[-2])))
    with torch.no_grad():
        net(picture())
    down = [(8, 64), (16, 32), (32, 16), (64, 8), (64, 4)]
    assert sizes == down + [(64, 4), (32, 8), (16, 16), (8, 32), (8, 64)]


def test_hybrid_dilations_leave_no_pixel_out(build):
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
    found = [m.dilation[0] for m in build("DUCHDC").body if hasattr(m, "conv2") for m in [m.conv2]]
    assert found == [d for stage in _DILATIONS for d in stage]


@torch.no_grad()
def test_dense_upsampling_says_each_pixel_from_its_cell_alone(build):
    """A change of one cell's channels changes its own 8 x 8 pixels alone, and filter k the pixel k of all cells."""
    shuffle = build("DUCHDC").body[-1]
    assert isinstance(shuffle, nn.PixelShuffle) and shuffle.upscale_factor == 8
    x = torch.zeros(1, 64, 2, 3)
    x[0, 8 * 3 + 5, 1, 2] = 1
    said = shuffle(x)
    assert said.shape == (1, 1, 16, 24) and said[0, 0, 8 + 3, 16 + 5] == 1 and said.sum() == 1


@pytest.mark.parametrize("name", [*SMP, "SegNet", "DUCHDC"])
def test_both_tasks_look_at_one_map(build, name):
    net, given = build(name).eval(), {}
    for task in ("footprint", "height"):
        getattr(net.head, task).register_forward_hook(lambda _, x, __, task=task: given.update({task: x[0]}))
    with torch.no_grad():
        maps = net(picture())
    assert torch.equal(given["footprint"], given["height"])
    assert math.isfinite(maps.height_m.sum()) and (maps.height_m[maps.footprint <= 0] == 0).all()
