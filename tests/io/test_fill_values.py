"""Fill values of images whose right answer is drawn into them."""

from fusiondet.io.fill_values import (
    LATTICE,
    PATCH_PX,
    Fill,
    border_fill,
    fill_words,
    find_fill,
    lattice_starts,
)

import numpy as np
import pytest


def image(bands=3, side=200):
    return np.random.default_rng(0).integers(20, 250, (bands, side, side)).astype(np.float32)


def cells(pixels):
    """Every pixel a patch, as of an image that is read whole."""
    return pixels[..., None, None]


def corner(pixels, value, side=100):
    """A triangle of `value` in a corner, as a turned image has it."""
    rows, columns = np.indices(pixels.shape[1:])
    pixels[:, rows + columns < side] = value
    return pixels


def test_an_image_without_fill_has_none():
    assert find_fill(cells(image())) is None


def test_black_in_a_corner_is_a_fill_value_without_doubt():
    found = find_fill(cells(corner(image(), 0)))
    assert found == Fill(0.0, pytest.approx(5050 / 40_000), True)


@pytest.mark.parametrize("value", [255, 1, 65535])
def test_other_values_at_the_border_are_only_proposed(value):
    found = find_fill(cells(corner(image(), value)))
    assert (found.value, found.certain) == (value, False)
    assert f"pass `nodata={value:g}`" in fill_words("a.tif", found)


def test_black_inside_of_the_image_is_a_shadow():
    pixels = image()
    pixels[:, 60:140, 60:140] = 0
    assert border_fill(cells(pixels)) is None


def test_a_small_shadow_at_the_border_is_in_doubt():
    pixels = image()
    pixels[:, :25, 50:75] = 0
    assert border_fill(cells(pixels)).certain is False


def test_black_of_one_band_alone_is_colour():
    pixels = image()
    pixels[0, :80] = 0
    assert border_fill(cells(pixels)) is None


def test_an_image_of_one_value_has_no_fill():
    assert find_fill(cells(np.full((3, 50, 50), 100.0))) is None


def test_the_ground_of_a_drawn_image_is_no_fill():
    pixels = np.full((3, 200, 200), 100.0)
    for i in range(40):
        pixels[:, 5 * i : 5 * i + 4, 20:180] = 101 + i
    assert find_fill(cells(pixels)) is None


@pytest.mark.parametrize("value", [-9999.0, -32768.0, np.finfo(np.float32).min])
def test_values_that_no_image_has_are_fill_wherever_they_are(value):
    pixels = np.random.default_rng(1).normal(-10, 5, (1, 100, 100)).astype(np.float32)
    pixels[0, 40:50, 40:50] = value
    found = find_fill(cells(pixels))
    assert (found.value, found.share, found.certain) == (np.float32(value), 0.01, True)


def test_patches_of_a_large_image_show_its_black_side():
    pixels = image(1, PATCH_PX * LATTICE)
    pixels[:, :, : PATCH_PX * 3] = 0
    patches = pixels.reshape(1, LATTICE, PATCH_PX, LATTICE, PATCH_PX).swapaxes(2, 3)
    assert find_fill(patches) == Fill(0.0, pytest.approx(3 / LATTICE), True)


def test_the_lattice_reaches_from_border_to_border():
    starts = lattice_starts(30_000)
    assert (len(starts), starts[0], starts[-1]) == (LATTICE, 0, 30_000 - PATCH_PX)
    assert lattice_starts(PATCH_PX) == [0]
