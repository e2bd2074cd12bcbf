import dataclasses
import math

from fusiondet.buildings import SensorGeometry
from fusiondet.data import augmentations as aug
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.geometry.shadows import shadow_mask

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import box

SENSOR = SensorGeometry(
    sun_azimuth_deg=135.0, sun_elevation_deg=40.0, sar_look_azimuth_deg=90.0, sar_incidence_deg=35.0
)
OUTLINE = box(14, 9, 26, 15)
HEIGHT_M, GSD_M = 6.0, 0.5


def render(shape, outline, sensor, gsd_m) -> np.ndarray:
    """(4, H, W): building, its height in metres, shadow of the sun, shadow of the radar. No noise."""
    building = polygon_to_mask(outline, *shape)
    height_m = np.where(building, HEIGHT_M, 0.0)
    sun = shadow_mask(height_m, sensor.sun_azimuth_deg, sensor.sun_elevation_deg, gsd_m)
    radar = shadow_mask(height_m, sensor.sar_look_azimuth_deg + 180, 90 - sensor.sar_incidence_deg, gsd_m)
    return np.stack([building, height_m, sun & ~building, radar & ~building]).astype(np.float32)


def make_sample(shape=(36, 48), outline=OUTLINE, sensor=SENSOR, gsd_m=GSD_M):
    image = render(shape, outline, sensor, gsd_m)
    return aug.Sample(image, [outline], gsd_m, sensor, 4, rasters={"ndsm": image[1]})


def rendered_again(sample):
    return render(sample.size, sample.outlines_px[0], sample.sensor, sample.gsd_m)


# ---- geometry: the picture of the changed world is the changed picture ----


@given(st.booleans(), st.integers(0, 3), st.sampled_from([0.0, 45.0, 135.0, 180.0, 270.0, 315.0]))
def test_augmenting_the_picture_is_rendering_the_augmented_scene(mirror, quarters, azimuth_deg):
    sensor = dataclasses.replace(SENSOR, sun_azimuth_deg=azimuth_deg, sar_look_azimuth_deg=azimuth_deg)
    sample = aug.dihedral(make_sample(sensor=sensor), mirror, quarters)
    np.testing.assert_array_equal(sample.image, rendered_again(sample))
    np.testing.assert_array_equal(sample.rasters["ndsm"], sample.image[1])


@given(st.booleans(), st.integers(0, 3), st.floats(0, 359))
def test_shadows_fall_where_the_turned_metadata_say_for_any_sun(mirror, quarters, azimuth_deg):
    sensor = dataclasses.replace(SENSOR, sun_azimuth_deg=azimuth_deg)
    sample = aug.dihedral(make_sample(sensor=sensor), mirror, quarters)
    again = rendered_again(sample)
    assert again[2].any()
    # The renderer is exact to half a pixel off the axes, so shadows may differ along their rim and nowhere else.
    different = np.argwhere(sample.image[2] != again[2])
    assert len(different) <= 0.12 * again[2].sum() + 2


def test_without_turning_the_metadata_the_shadow_would_be_on_the_wrong_side():
    turned = aug.flip_horizontally(make_sample())
    forgotten = dataclasses.replace(turned, sensor=SENSOR)
    assert (forgotten.image[2] != rendered_again(forgotten)[2]).sum() > 0.5 * turned.image[2].sum()


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_resizing_the_picture_is_rendering_at_the_other_gsd(factor):
    sample = make_sample((36, 48), box(16, 8, 28, 16))
    resized = aug.resize(sample, round(36 * factor), round(48 * factor))
    assert resized.gsd_m == pytest.approx(GSD_M / factor)
    again = rendered_again(resized)
    # Only pixels on a border may be mixed.
    agree = np.abs(resized.image - again)[[0, 2, 3]] < 0.5
    assert agree.mean() > 0.98
    assert resized.image[1][
        polygon_to_mask(resized.outlines_px[0].buffer(-1.1), *resized.size)
    ] == pytest.approx(6.0)


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_resize_gives_further_rasters_their_nearest_pixel(height, width):
    rows, columns = np.indices((6, 8))
    sample = aug.Sample(np.zeros((1, 6, 8), np.float32), [], GSD_M, SENSOR, 1, rasters={})
    sample.rasters["height"] = np.where(rows == 2, np.nan, 10.0 * rows + columns).astype(np.float32)
    got = aug.resize(sample, height, width).rasters["height"]
    for y in range(height):
        for x in range(width):
            there = sample.rasters["height"][int((y + 0.5) * 6 / height), int((x + 0.5) * 8 / width)]
            assert got[y, x] == there or (np.isnan(got[y, x]) and np.isnan(there))


@pytest.mark.parametrize(
    ("mirror", "quarters", "point", "sun"),
    [
        (False, 1, (36 - 9, 14), 225.0),  # up becomes right
        (False, 2, (48 - 14, 36 - 9), 315.0),
        (False, 3, (9, 48 - 14), 45.0),
        (True, 0, (48 - 14, 9), 225.0),
    ],
)
def test_a_corner_and_the_sun_go_where_one_can_draw_them(mirror, quarters, point, sun):
    sample = aug.dihedral(make_sample(), mirror, quarters)
    assert point in {(round(x), round(y)) for x, y in sample.outlines_px[0].exterior.coords}
    assert sample.sensor.sun_azimuth_deg == pytest.approx(sun)
    assert sample.sensor.sun_elevation_deg == 40


def test_four_quarter_turns_and_two_flips_are_nothing():
    sample = make_sample()
    for _ in range(4):
        sample = aug.rotate_quarters(sample, 1)
    sample = aug.flip_horizontally(aug.flip_horizontally(sample))
    np.testing.assert_array_equal(sample.image, make_sample().image)
    assert sample.sensor == SENSOR and sample.outlines_px[0].equals(OUTLINE)


def test_a_crop_cuts_outlines_and_drops_what_is_outside():
    sample = make_sample()
    sample.outlines_px.append(box(40, 30, 44, 34))
    part = aug.crop(sample, 20, 5, 16, 20)
    assert part.size == (20, 16) and part.rasters["ndsm"].shape == (20, 16)
    assert part.outlines_px[0].equals(box(0, 4, 6, 10)) and part.outlines_px[1] is None
    np.testing.assert_array_equal(part.image[0], polygon_to_mask(part.outlines_px[0], 20, 16))


# ---- which turns are allowed ----


def test_only_turns_that_keep_the_azimuths_are_allowed():
    assert len(aug.allowed_dihedral(SENSOR)) == 8
    assert aug.allowed_dihedral(SENSOR, quarter_turns=False) == [(False, 0), (False, 2), (True, 0), (True, 2)]
    assert aug.allowed_dihedral(SENSOR, (80, 100)) == [(False, 0), (True, 2)], (
        "up-down flip keeps a look to the east"
    )
    assert aug.allowed_dihedral(SENSOR, (80, 100), (130, 140)) == [(False, 0)]
    assert set(aug.allowed_dihedral(SENSOR, (), (130, 140))) == {(False, 0), (True, 3)}


@given(st.floats(0, 359.9), st.floats(0, 359.9), st.floats(1, 359))
def test_allowed_turns_stay_in_range_and_the_identity_is_always_there(look, start, width):
    sensor = SensorGeometry(sar_look_azimuth_deg=look)
    allowed = aug.allowed_dihedral(sensor, (start, start + width))
    assert (False, 0) in allowed
    for mirror, quarters in allowed[1:]:
        turned = (sensor.flipped_horizontally() if mirror else sensor).rotated(90 * quarters)
        assert (turned.sar_look_azimuth_deg - start) % 360 <= width + 1e-5 or (
            start - turned.sar_look_azimuth_deg
        ) % 360 < 1e-5


def test_an_unknown_azimuth_is_not_restricted():
    assert len(aug.allowed_dihedral(SensorGeometry(), (80, 100), (130, 140))) == 8


@pytest.mark.parametrize(
    ("azimuth", "limits", "inside"),
    [
        (350, (340, 20), True),
        (10, (340, 20), True),
        (30, (340, 20), False),
        (5, (0, 360), True),
        (5, (), True),
    ]
    + [(90, (90, 90), True), (91, (90, 90), False), (None, (1, 2), True), (float("nan"), (1, 2), True)],
)
def test_ranges_go_clockwise_through_north(azimuth, limits, inside):
    assert aug.in_range_deg(azimuth, limits) is inside


# ---- no data ----


def test_resizing_never_mixes_no_data_in():
    image = np.full((2, 8, 8), 7.0, np.float32)
    image[0, :, :4] = np.nan
    for size in (16, 4, 5):
        result = aug.resize_valid(image, size, size)
        known = np.isfinite(result[0])
        assert known.any() and (~known).any()
        np.testing.assert_allclose(result[0][known], 7.0, rtol=1e-6)
        np.testing.assert_allclose(result[1], 7.0, rtol=1e-6)
        assert np.isnan(result[0][:, : size // 2 - 1]).all(), "what was no data stays no data"


def test_all_no_data_stays_no_data():
    assert np.isnan(aug.resize_valid(np.full((1, 4, 4), np.nan, np.float32), 8, 8)).all()


def test_sar_is_averaged_in_power():
    image = np.zeros((2, 2, 2), np.float32)
    image[1] = [[0.0, -20.0], [0.0, -20.0]]  # power 1 and 0.01
    sample = aug.Sample(image, [], 0.5, SensorGeometry(), 1)
    half = aug.resize(sample, 1, 1)
    assert half.image[1, 0, 0] == pytest.approx(10 * math.log10(0.505), abs=1e-4)
    stretched = dataclasses.replace(sample, sar_in_db=False)
    assert aug.resize(stretched, 1, 1).image[1, 0, 0] == pytest.approx(-10.0, abs=1e-4)


def test_four_uint8_like_channels_keep_their_colours_where_sar_is_zero():
    # Through Pillow, four 8-bit channels are RGBA: scaled with premultiplied alpha, RGB turns black where SAR is 0.
    image = np.empty((4, 8, 8), np.float32)
    image[:3] = np.array([120, 140, 160])[:, None, None]
    for sar in (0, 1, 5):
        image[3] = sar
        resized = aug.resize(aug.Sample(image, [], 0.5, SensorGeometry(), 3, sar_in_db=False), 5, 5)
        np.testing.assert_allclose(resized.image[:, 2, 2], [120, 140, 160, sar], rtol=1e-5)


# ---- photometry: one modality at a time ----


def photometric_sample():
    rng = np.random.default_rng(0)
    image = np.concatenate([rng.uniform(50, 200, (3, 16, 16)), rng.normal(-12, 3, (1, 16, 16))]).astype(
        np.float32
    )
    image[:, 0, 0] = np.nan
    return aug.Sample(image, [], 0.5, SensorGeometry(), 3)


def test_colour_changes_touch_optical_alone():
    before = photometric_sample()
    after = aug.jitter_optical(before, np.random.default_rng(1), 0.2, 0.2)
    np.testing.assert_array_equal(after.image[3], before.image[3])
    assert not np.allclose(after.image[:3, 1:], before.image[:3, 1:])
    assert np.isnan(after.image[:, 0, 0]).all() and np.isfinite(after.image[:, 1:]).all()


def test_brightness_alone_is_one_factor_within_its_range():
    before = photometric_sample()
    after = aug.jitter_optical(before, np.random.default_rng(1), 0.2, 0.0)
    ratio = (after.image[:3] / before.image[:3])[:, 1:]
    assert np.ptp(ratio) < 1e-5 and 0.8 <= ratio.mean() <= 1.2


def test_gain_and_speckle_touch_sar_alone():
    before = photometric_sample()
    gain = aug.jitter_sar(before, np.random.default_rng(1), 1.0, 0.0)
    np.testing.assert_array_equal(gain.image[:3], before.image[:3])
    shift = (gain.image - before.image)[3, 1:]
    assert np.ptp(shift) < 1e-5 and shift.mean() != 0, "one gain for the tile, in dB"


def test_speckle_has_the_variance_of_its_looks_in_linear_power():
    flat = aug.Sample(np.full((1, 300, 300), -10, np.float32), [], 0.5, SensorGeometry(), 0)
    power = 10 ** (aug.jitter_sar(flat, np.random.default_rng(1), 0.0, 4.0).image / 10)
    assert power.mean() == pytest.approx(0.1, rel=0.01)
    assert power.var() / power.mean() ** 2 == pytest.approx(1 / 4, rel=0.03)


def test_off_is_off_and_one_modality_is_fine():
    before = photometric_sample()
    assert aug.jitter_optical(before, np.random.default_rng(1), 0, 0) is before
    assert aug.jitter_sar(before, np.random.default_rng(1), 0, 0) is before
    optical_only = dataclasses.replace(before, image=before.image[:3])
    assert aug.jitter_sar(optical_only, np.random.default_rng(1), 1, 2).image.shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("kind", "size", "low", "high"),
    [("absolute", (64, 32), (64, 32), (64, 32)), ("absolute", (999, 999), (80, 100), (80, 100))]
    + [("relative", (0.5, 0.25), (40, 25), (40, 25)), ("absolute_range", (20, 30), (20, 20), (30, 30))]
    + [("relative_range", (0.5, 0.5), (40, 50), (80, 100))],
)
def test_crop_sizes_mean_what_detectron2_means(kind, size, low, high):
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = aug.crop_size(kind, size, 80, 100, rng)
        assert low[0] <= height <= high[0] and low[1] <= width <= high[1]
