"""Baselines of FusionHeightNet: sizes of their maps, what makes each of them itself."""

import functools
import math
import socket

import fusiondet.compat  # noqa: F401
from fusiondet.errors import InputError
from fusiondet.projects.fusion_height_net.tests.baselines import network, picture

import pytest
import torch
from torch import nn

SMP = ["DeepLabV3Plus", "ResUNet", "UPerNet", "PSPNet"]


@pytest.fixture
def build(dense_cfg):
    return functools.partial(network, dense_cfg)


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


@pytest.mark.parametrize("name", [*SMP, "SegNet", "DUCHDC"])
def test_both_tasks_look_at_one_map(build, name):
    net, given = build(name).eval(), {}
    for task in ("footprint", "height"):
        getattr(net.head, task).register_forward_hook(lambda _, x, __, task=task: given.update({task: x[0]}))
    with torch.no_grad():
        maps = net(picture())
    assert torch.equal(given["footprint"], given["height"])
    assert math.isfinite(maps.height_m.sum()) and (maps.height_m[maps.footprint <= 0] == 0).all()
