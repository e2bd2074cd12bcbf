import math

from fusiondet.synthetic.city import CityBuilding, Part, Plan
from fusiondet.synthetic.sar import (
    FLOOR_DB,
    RadarFrame,
    add_intervals,
    corner_response,
    ground_range_power,
    lit_share,
    radar_shadow_mask,
    render_sar,
    speckle,
)
from fusiondet.synthetic.surfaces import Surfaces

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

NOTHING = -np.inf
HALF_DB = -8.0 - 3.0  # edge of a roof of -8 dB


def surfaces(ground_db=NOTHING, roof_db=NOTHING, wall_db=NOTHING, corner_db=NOTHING, slope=0.0):
    """Row 0: ground; row 1: building."""
    column = np.array
    return Surfaces(
        slope=column([[0.0, 0.0], [slope, 0.0]]),
        albedo=np.zeros((2, 3), np.float32),
        sigma0_db=column([ground_db, roof_db]),
        wall_sigma0_db=column([NOTHING, wall_db]),
        corner_sigma0_db=column([NOTHING, corner_db]),
        texture=np.zeros(2, np.float32),
    )


def profile(*blocks, length_m=100.0, step_m=0.5, wall_angle_deg=0.0):
    """One line in ground range; blocks are (start, stop, height) in metres."""
    centres = (np.arange(round(length_m / step_m)) + 0.5) * step_m
    height = np.zeros((1, len(centres)), np.float32)
    for start, stop, top in blocks:
        height[0, (centres > start) & (centres < stop)] = top
    return RadarFrame(
        height_m=height,
        surface=(height > 0).astype(np.int32),
        wall_angle_deg=np.full_like(height, wall_angle_deg),
        slope=np.zeros_like(height),
        spacing_m=step_m,
        to_scene=np.eye(2, 3),
    )


def extent_m(power, step_m=0.5, above=1e-6):
    """First and last edge of the cells with power, metres."""
    cells = np.nonzero(power[0] > above)[0]
    return cells[0] * step_m, (cells[-1] + 1) * step_m


def energy(power, step_m=0.5):
    return power.sum() * step_m


def test_level_ground_has_its_sigma_nought_everywhere():
    power = ground_range_power(profile(), surfaces(ground_db=-10), 40.0)
    assert power == pytest.approx(np.full((1, 200), 0.1), rel=1e-4)


@pytest.mark.parametrize("incidence_deg", [30.0, 40.0, 50.0])
def test_the_roof_is_displaced_towards_the_sensor_by_h_cot_incidence(incidence_deg):
    power = ground_range_power(profile((60, 70, 10.0)), surfaces(roof_db=0), incidence_deg)
    shift_m = 10 / math.tan(math.radians(incidence_deg))
    assert extent_m(power, above=1e-3) == pytest.approx((60 - shift_m, 70 - shift_m), abs=0.5)
    assert energy(power) == pytest.approx(10.0, rel=1e-4)


@pytest.mark.parametrize(
    "width_m", [2.0, 20.0]
)  # 10 m at 40 degrees: layover of 11.9 m, wider than the first
def test_the_dark_strip_ends_h_tan_incidence_behind_the_wall(width_m):
    power = ground_range_power(profile((50, 50 + width_m, 10.0)), surfaces(ground_db=0), 40.0)
    dark = np.nonzero(power[0] < 1e-6)[0]
    assert dark[0] * 0.5 == 50.0
    assert (dark[-1] + 1) * 0.5 == pytest.approx(50 + width_m + 10 * math.tan(math.radians(40)), abs=0.5)
    hidden_m = width_m + 10 * math.tan(math.radians(40))
    assert energy(power) == pytest.approx(100 - hidden_m, rel=1e-4)  # to the fraction of a cell


@given(height_m=st.floats(3, 40), incidence_deg=st.floats(25, 60))
def test_wall_energy_does_not_depend_on_the_sampling(height_m, incidence_deg):
    expected = height_m * math.tan(math.radians(incidence_deg))
    for step_m in (1.0, 0.5, 0.25):
        frame = profile((100, 110, height_m), length_m=150, step_m=step_m)
        power = ground_range_power(frame, surfaces(wall_db=0), incidence_deg)
        assert energy(power, step_m) == pytest.approx(expected, rel=1e-4)


def test_a_wall_is_spread_evenly_over_its_layover():
    power = ground_range_power(profile((60, 70, 10.0)), surfaces(wall_db=0), 45.0)
    assert (
        power[0, 100:120] == pytest.approx(1.0)
        and power[0, :100].max() < 1e-9
        and power[0, 120:].max() < 1e-9
    )


def test_a_wall_is_seen_only_above_the_shadow_of_what_stands_before_it():
    # At 45 degrees a 10 m block that ends at 50 m shades the wall at 56 m up to 4 m.
    power = ground_range_power(profile((40, 50, 10.0), (56, 60, 12.0)), surfaces(wall_db=0), 45.0)
    assert energy(power) == pytest.approx(10 + (12 - 4))
    assert energy(
        ground_range_power(profile((40, 50, 10.0), (56, 60, 3.0)), surfaces(wall_db=0), 45.0)
    ) == pytest.approx(10)


def test_double_bounce_sits_at_the_foot_of_the_wall_and_grows_with_height():
    low, high = (ground_range_power(profile((60, 70, h)), surfaces(corner_db=0), 45.0) for h in (5.0, 15.0))
    assert extent_m(low) == (59.5, 60.5)
    assert energy(high) == pytest.approx(3 * energy(low)) == pytest.approx(15.0)


def test_double_bounce_is_strong_at_0_and_weak_at_30_degrees_from_the_wall_normal():
    def bounce(angle_deg):
        return energy(
            ground_range_power(profile((60, 70, 10.0), wall_angle_deg=angle_deg), surfaces(corner_db=0), 45.0)
        )

    assert bounce(5) > 0.9 * bounce(0) and bounce(15) < 0.35 * bounce(0) and bounce(30) < 0.03 * bounce(0)
    assert bounce(np.nan) < 0.001 * bounce(0)  # no wall known here, e.g. a tree
    assert corner_response(12.0) == pytest.approx(0.5)


def test_double_bounce_vanishes_when_the_ground_before_the_wall_is_hidden_or_built_over():
    def bounce(*blocks):
        power = ground_range_power(profile(*blocks), surfaces(corner_db=0), 45.0)
        return power[0, 119:121].sum() * 0.5  # at 60 m

    free = bounce((60, 70, 10.0))
    assert bounce((40, 50, 12.0), (60, 70, 10.0)) == pytest.approx(
        0, abs=1e-9
    )  # the strip lies in radar shadow
    assert bounce((40, 48, 7.0), (60, 70, 10.0)) == pytest.approx(0.5 * free)  # half of it does
    assert bounce((54, 58, 0.5), (60, 70, 10.0)) < 0.3 * free  # built over


def test_facets_that_tilt_towards_the_sensor_are_brighter_and_compressed():
    frame = profile((50, 60, 5.0))
    frame.height_m[0, 100:120] = 5 + 0.5 * (np.arange(20) * 0.5 + 0.25)
    frame.slope[0, 100:120] = 0.5
    power = ground_range_power(frame, surfaces(roof_db=0), 45.0)
    assert energy(power) == pytest.approx(10 * 1.5)  # 1 + slope tan(incidence)
    start, stop = extent_m(power, above=1e-3)
    assert stop - start == pytest.approx(10 * (1 - 0.5), abs=0.5)


def test_the_switches_take_each_effect_away():
    frame, all_db = profile((60, 70, 10.0)), surfaces(0, 0, 0, 0)
    still = ground_range_power(frame, all_db, 45.0, shadow=False, layover=False, double_bounce=False)
    assert still == pytest.approx(np.ones((1, 200)))
    unshaded = ground_range_power(frame, surfaces(ground_db=0), 45.0, shadow=False)
    assert energy(unshaded) == pytest.approx(90)
    assert energy(ground_range_power(frame, surfaces(corner_db=0), 45.0, double_bounce=False)) == 0


def test_lit_share_of_a_cell_cut_by_the_shadow_edge():
    frame = profile((10, 12, 3.3), length_m=30)
    share, _ = lit_share(frame.height_m, frame.slope, 1.0, 0.5)
    assert share[0, :24].min() > 1 - 1e-5 and share[0, 24:30].max() == 0
    assert share[0, 30] == pytest.approx(0.4) and share[0, 31:].min() > 1 - 1e-5  # the shadow ends at 15.3 m


@given(st.lists(st.tuples(st.floats(1, 19), st.floats(1, 19), st.floats(0.1, 5)), min_size=1, max_size=6))
def test_intervals_keep_their_energy(items):
    start, stop, given_energy = np.array(items).T
    power = add_intervals([(np.zeros(len(start), int), start, stop, given_energy)], (1, 40), 0.5)
    assert energy(power) == pytest.approx(given_energy.sum())
    lowest, highest = np.minimum(start, stop).min(), np.maximum(start, stop).max()
    assert (
        power[0, : max(int(lowest / 0.5) - 1, 0)].sum() < 1e-9
        and power[0, int(highest / 0.5) + 2 :].sum() < 1e-9
    )


def test_intervals_outside_are_lost():
    power = add_intervals(
        [(np.array([0, 0]), np.array([-9.0, 30.0]), np.array([-8.0, 31.0]), np.ones(2))], (1, 40), 0.5
    )
    assert power.sum() == pytest.approx(0)


@pytest.mark.parametrize("looks", [1.0, 4.0])
def test_speckle_of_l_looks_has_mean_1_and_variance_1_over_l(looks):
    noisy = speckle(np.full((400, 400), 2.0, np.float32), looks, np.random.default_rng(0)) / 2.0
    assert noisy.mean() == pytest.approx(1.0, abs=0.01) and noisy.var() == pytest.approx(1 / looks, rel=0.03)


# --- whole pictures ------------------------------------------------------------------------------------------------


def bright(building, geometry, scene_of, **switches):
    """Pixels (row, column) where `building` adds power to dark ground."""
    scene = scene_of([building], geometry)
    scene.surfaces.sigma0_db[:5] = -60
    picture = render_sar(scene, geometry, noise_floor_db=-60, **switches)
    rows, columns = np.nonzero(picture > HALF_DB)
    return picture, rows, columns


@pytest.mark.parametrize(("look_deg", "towards"), [(90, (0, -1)), (270, (0, 1)), (0, (1, 0)), (180, (-1, 0))])
def test_in_the_picture_the_roof_leans_towards_the_sensor(scene_of, block, sensor, look_deg, towards):
    building = block(24, 24, 40, 40, 8.0, wall_sigma0_db=-90.0, corner_sigma0_db=-90.0)
    geometry = sensor(look=(look_deg, 45))
    _, rows, columns = bright(building, geometry, scene_of)
    centre = np.array([rows.mean(), columns.mean()]) + 0.5
    assert centre == pytest.approx(64 + 16 * np.array(towards), abs=0.6)  # 8 m are 16 pixels
    assert np.ptp(columns) + 1 == pytest.approx(32, abs=3)


def test_in_the_picture_the_shadow_lies_behind_the_wall(scene_of, block, sensor):
    geometry = sensor(look=(90, 40))
    building = block(20, 24, 28, 40, 10.0, corner_sigma0_db=-90.0)
    picture = render_sar(scene_of([building], geometry), geometry, noise_floor_db=-35)
    line = picture[64]
    dark = np.nonzero(line < -13)[0]  # half of the ground's -10 dB
    assert dark.max() + 1 == pytest.approx((28 + 10 * math.tan(math.radians(40))) / 0.5, abs=1)
    assert dark.min() == pytest.approx(20 / 0.5, abs=1.5)


def test_a_block_outside_the_tile_is_laid_over_into_it(scene_of, block, sensor):
    geometry = sensor(look=(90, 45))
    picture, _, columns = bright(
        block(70, 20, 90, 44, 20.0), geometry, scene_of
    )  # starts 6 m right of the tile
    assert (
        columns.min() == pytest.approx(100, abs=2) and picture[64, 105:].min() > HALF_DB
    )  # 20 m to the left of 70 m
    picture = render_sar(scene_of([block(-30, 20, -10, 44, 20.0)], geometry), geometry, noise_floor_db=-35)
    assert picture[64, :18].max() < -13 < picture[64, 24:].min()  # 10 m of its radar shadow reach in


def test_a_wall_turned_by_30_degrees_has_no_double_bounce_in_the_picture(scene_of, sensor):
    def peak_db(turn_deg):
        plan = Plan((Part(-8, -8, 8, 8),), (34, 32), math.radians(turn_deg))
        materials = dict(roof_sigma0_db=-90.0, wall_sigma0_db=-90.0, corner_sigma0_db=0.0)
        building = CityBuilding(plan.footprint(), plan.roof(8.0), 8.0, **materials)
        return bright(building, sensor(look=(90, 45)), scene_of)[0].max()

    assert peak_db(0) > 5 and peak_db(30) < peak_db(0) - 12 and peak_db(5) > peak_db(0) - 3


def test_trees_have_no_double_bounce(scene_of, sensor):
    scene = scene_of([], trees=[(32, 32, 4, 12)])
    with_bounce, without = (render_sar(scene, sensor(), double_bounce=switch) for switch in (True, False))
    assert np.array_equal(with_bounce, without) and np.ptp(without) > 3


def test_registration_error_moves_the_picture(scene_of, block, sensor):
    scene = scene_of([block(24, 24, 40, 40, 8.0)])
    exact, moved = render_sar(scene, sensor()), render_sar(scene, sensor(), shift_px=(4, -3))
    assert np.abs(moved[10:-10, 10:-10] - exact[13:-7, 6:-14]).max() < 0.05


def test_noise_floor_speckle_and_seed(scene_of, sensor):
    scene = scene_of([])
    scene.surfaces.sigma0_db[:5] = NOTHING
    assert render_sar(scene, sensor(), noise_floor_db=-20.0) == pytest.approx(-20, abs=1e-3)
    assert render_sar(scene, sensor(), noise_floor_db=-90.0).min() == FLOOR_DB
    one, again = (render_sar(scene, sensor(), np.random.default_rng(1), looks=4) for _ in range(2))
    assert np.array_equal(one, again) and one.dtype == np.float32 and one.shape == (128, 128)
    power = 10 ** (one / 10)
    assert power.mean() == pytest.approx(10**-2.4, rel=0.03)
    neighbours = np.corrcoef(power[:, 1:].ravel(), power[:, :-1].ravel())[0, 1]
    assert 0.4 < neighbours < 0.9  # 1 m resolution on 0.5 m pixels


def test_the_mirrored_scene_under_the_mirrored_look_is_the_mirrored_picture(scene_of, sensor):
    plan = Plan((Part(-12, -6, 12, 6, "gable"), Part(-12, 6, 0, 12)), (32, 32), 0.1)
    geometry = sensor(look=(80, 40))
    scene = scene_of(
        [CityBuilding(plan.footprint(), plan.roof(12.0), 12.0)], geometry, trees=[(10, 10, 3, 9)]
    )
    picture = render_sar(scene, geometry, noise_floor_db=-25)
    mirrored = render_sar(scene.flipped_horizontally(), geometry.flipped_horizontally(), noise_floor_db=-25)
    difference_db = np.abs(picture[:, ::-1] - mirrored)
    assert np.median(difference_db) < 0.05 and np.mean(difference_db > 2) < 0.02


def test_radar_shadow_mask_is_the_shadow_of_a_sun_at_the_antenna():
    heights = np.zeros((41, 81), np.float32)
    heights[15:26, 20:31] = 10.0
    mask = radar_shadow_mask(heights, 90.0, 45.0, 0.5)
    assert mask[20, 31:51].all() and mask.sum() == 11 * 20
