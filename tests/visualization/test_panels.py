"""Bands become pictures: known colours at known pixels, for any number of bands, with and without data."""

from fusiondet.visualization import optical_panel, sar_panel
from fusiondet.visualization.panels import NODATA_GREYS, faded

import numpy as np
import pytest

NAMES = {
    3: ("red", "green", "blue"),
    4: ("blue", "green", "red", "nir"),
    8: ("coastal", "blue", "green", "yellow", "red", "rededge", "nir1", "nir2"),
}


def ramp(low, high, size=40):
    """(size, size) values that rise from left to right."""
    return np.tile(np.linspace(low, high, size, dtype=np.float32), (size, 1))


def test_true_colour_stays_true_and_percentiles_reach_black_and_white():
    image = np.stack([ramp(50, 200)] * 3)
    image[:, 10:20, 20:30] = np.array([200.0, 50.0, 50.0])[:, None, None]
    picture = optical_panel(image, NAMES[3])
    assert picture.shape == (40, 40, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[15, 25], [255, 0, 0])
    np.testing.assert_array_equal(picture[0, 0], [0, 0, 0])
    np.testing.assert_array_equal(picture[0, -1], [255, 255, 255])
    assert np.ptp(picture[0], axis=1).max() == 0, "grey stays grey"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 10])
def test_any_number_of_bands_gives_a_picture(count):
    image = np.random.default_rng(0).uniform(0, 5000, (count, 12, 20)).astype(np.float32)
    picture = optical_panel(image, NAMES.get(count, ()))
    assert picture.shape == (12, 20, 3) and picture.std() > 20
    assert (np.ptp(picture, axis=2).max() == 0) == (count < 3), "one or two bands are grey, more are colour"


@pytest.mark.parametrize("count", [4, 8])
def test_red_green_and_blue_are_found_by_name(count):
    image = np.zeros((count, 20, 20), np.float32)
    image[NAMES[count].index("red"), :10] = 3000
    picture = optical_panel(image, NAMES[count])
    np.testing.assert_array_equal(picture[0, 0], [255, 0, 0])
    np.testing.assert_array_equal(picture[19, 0], [0, 0, 0])


def test_haze_is_taken_out_of_raw_counts_but_eight_bit_colours_are_kept():
    scene = np.stack([ramp(0, 1)] * 3)
    haze = np.array([0.1, 0.2, 0.5])[:, None, None]
    raw = optical_panel(2000 * (scene + haze), NAMES[3])
    assert np.ptp(raw[:, 20].astype(int), axis=1).max() <= 1
    eight_bit = optical_panel(120 * (scene + haze), NAMES[3])
    assert (eight_bit[:, 20, 2].astype(int) - eight_bit[:, 20, 0] > 40).all()


def test_dark_raw_pictures_are_brightened():
    image = ramp(0, 1)[None] ** 3 * 8000
    picture = optical_panel(image)[:, :, 0]
    assert 0.3 * 255 < picture.mean() < 0.45 * 255, "linear light would have a mean of 0.25"
    assert (np.diff(picture[0].astype(int)) >= 0).all()


def test_no_data_is_hatched_and_does_not_change_the_stretch():
    image = np.stack([ramp(0, 100)] * 3)
    whole = optical_panel(image, NAMES[3])
    image[1, :4] = np.nan
    image[0, 4:8] = np.inf
    picture = optical_panel(image, NAMES[3])
    assert set(np.unique(picture[:8])) == set(NODATA_GREYS)
    np.testing.assert_array_equal(picture[8:], whole[8:])


@pytest.mark.parametrize("panel", [optical_panel, sar_panel])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_all_nodata_is_all_hatch_and_constant_is_mid_grey(panel, count):
    nothing = panel(np.full((count, 16, 16), np.nan))
    assert set(np.unique(nothing)) == set(NODATA_GREYS)
    assert np.unique(panel(np.full((count, 16, 16), 7.0))).tolist() == [128]


def test_one_polarisation_is_grey_and_rises_with_backscatter():
    picture = sar_panel(ramp(-25, 5)[None], ("HH",))
    assert np.ptp(picture, axis=2).max() == 0
    assert (np.diff(picture[0, :, 0].astype(int)) >= 0).all()
    assert picture[0, 0, 0] == 0 and picture[0, -1, 0] == 255


def test_two_polarisations_are_co_cross_and_ratio_in_whatever_order():
    co, cross = ramp(-20, 0), ramp(-20, 0).T
    picture = sar_panel(np.stack([co, cross]), ("VV", "VH"))
    np.testing.assert_array_equal(picture[0, -1], [255, 0, 255])
    np.testing.assert_array_equal(picture[-1, 0], [0, 255, 0])
    np.testing.assert_array_equal(sar_panel(np.stack([cross, co]), ("VH", "VV")), picture)


def test_four_polarisations_show_hh_hv_vv():
    image = np.full((4, 10, 10), -20.0)
    for k in range(4):
        image[k, k] = 0.0
        image[k, 9] = 0.0
    picture = sar_panel(image, ("VV", "VH", "HV", "HH"))
    np.testing.assert_array_equal(picture[:4, 0], [[0, 0, 255], [0, 0, 0], [0, 255, 0], [255, 0, 0]])


def test_faded_is_grey_except_where_it_is_kept():
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0] = [255, 0, 0]
    keep = np.array([[False, True], [False, False]])
    quiet = faded(picture, keep)
    np.testing.assert_array_equal(quiet[0, 1], [255, 0, 0])
    assert np.ptp(quiet[0, 0]) == 0 and quiet[0, 0, 0] > quiet[1, 0, 0] == 40
