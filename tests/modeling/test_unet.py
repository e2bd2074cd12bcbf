"""Shapes of the parts of a U-Net, sizes that do not divide, and what a decoder sees."""

from fusiondet.modeling.unet import DoubleConv, UNetDecoder, UNetEncoder

import pytest
import torch

WIDTHS = [4, 6, 8]


@pytest.mark.parametrize("size", [(16, 16), (17, 22), (4, 4)])
@pytest.mark.parametrize("skips", [True, False])
def test_every_level_halves_the_size_and_the_decoder_restores_it(size, skips):
    maps = UNetEncoder(3, WIDTHS)(torch.rand(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [
        (2, width, size[0] // 2**i, size[1] // 2**i) for i, width in enumerate(WIDTHS)
    ]
    assert UNetDecoder(WIDTHS, skips)(maps).shape == (2, WIDTHS[0], *size)


def test_levels_one_by_one_are_the_encoder():
    encoder = UNetEncoder(3, WIDTHS).eval()
    image = torch.rand(1, 3, 8, 8)
    x = image
    for i, expected in enumerate(encoder(image)):
        x = encoder.level(i, x)
        torch.testing.assert_close(x, expected)


def test_without_skips_only_the_size_of_finer_maps_counts():
    maps = UNetEncoder(3, WIDTHS).eval()(torch.rand(1, 3, 16, 16))
    other = [torch.full_like(m, 7.0) for m in maps[:-1]] + maps[-1:]
    for skips in (False, True):
        decoder = UNetDecoder(WIDTHS, skips).eval()
        assert torch.equal(decoder(maps), decoder(other)) != skips


def test_maps_beside_may_have_widths_of_their_own():
    beside = [torch.rand(1, 5, 16, 16), torch.rand(1, 7, 8, 8), torch.rand(1, 8, 4, 4)]
    decoder = UNetDecoder(WIDTHS, skip_widths=[5, 7, 8])
    assert decoder(beside).shape == (1, WIDTHS[0], 16, 16)


def test_a_bias_stands_in_for_the_norm():
    kinds = [[type(layer).__name__ for layer in DoubleConv(3, 4, norm)] for norm in (True, False)]
    assert kinds == [["Conv2d", "BatchNorm2d", "ReLU"] * 2, ["Conv2d", "ReLU"] * 2]
    assert DoubleConv(3, 4)[0].bias is None and DoubleConv(3, 4, norm=False)[0].bias is not None
