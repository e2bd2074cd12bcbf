"""SegNet: unpooling by remembered places."""

from fusiondet.projects.fusion_height_net.tests.baselines import network, picture

import torch
from torch import nn


def test_segnet_unpools_to_where_the_maxima_were(dense_cfg):
    net, seen = network(dense_cfg, "SegNet").eval(), {}
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


def test_segnet_goes_down_and_up_five_levels(dense_cfg):
    net, sizes = network(dense_cfg, "SegNet").eval(), []
    for level in (*net.body.down, *reversed(net.body.up)):
        level.register_forward_hook(lambda _, __, said: sizes.append((said.shape[1], said.shape[-2])))
    with torch.no_grad():
        net(picture())
    down = [(8, 64), (16, 32), (32, 16), (64, 8), (64, 4)]
    assert sizes == down + [(64, 4), (32, 8), (16, 16), (8, 32), (8, 64)]


def test_an_odd_side_comes_back_as_it_was(dense_cfg):
    """Halving 75 px five times rounds down; unpooling is given the sizes that there were."""
    net = network(dense_cfg, "SegNet").eval()
    with torch.no_grad():
        assert net.body(picture(n=1, height=75, width=101).stacked).shape == (1, 8, 75, 101)


def test_the_convolutions_are_those_of_vgg_16_and_the_same_backwards(dense_cfg):
    def channels(levels):
        return [
            (m.in_channels, m.out_channels) for level in levels for m in level if isinstance(m, nn.Conv2d)
        ]

    body = network(dense_cfg, "SegNet", width=4).body
    down = channels(body.down)
    assert down == [
        *((4, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16), (16, 16)),
        *((16, 32), (32, 32), (32, 32), (32, 32), (32, 32), (32, 32)),
    ]
    up = channels(reversed(body.up))
    # The last one has nothing above it and keeps its channels, where the first of all had the bands.
    assert up == [(b, a) for a, b in reversed(down)]
