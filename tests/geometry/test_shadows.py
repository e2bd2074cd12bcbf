"""Shadows and lines of sight against what one draws on paper, and against slow ray marches."""

import math

from fusiondet.geometry.shadows import line_of_sight, shadow_mask

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st


def block_heights(size=201, half=10, height_m=10.0):
    """A block of 2 x half pixels in the middle of a square."""
    heights = np.zeros((size, size), np.float32)
    middle = size // 2
    heights[middle - half : middle + half + 1, middle - half : middle + half + 1] = height_m
    return heights


@pytest.mark.parametrize("elevation_deg", [30, 45, 60])
@pytest.mark.parametrize(
    ("azimuth_deg", "away"), [(0, (1, 0)), (90, (0, -1)), (180, (-1, 0)), (270, (0, 1))], ids="NESW"
)
def test_a_10_m_block_casts_a_shadow_of_10_over_tan_elevation_away_from_the_sun(
    azimuth_deg, away, elevation_deg
):
    shadow = shadow_mask(block_heights(), azimuth_deg, elevation_deg, gsd_m=0.5)
    rows, columns = np.nonzero(shadow)
    length_px = 10 / math.tan(math.radians(elevation_deg)) / 0.5
    along = (rows - 100) * away[0] + (columns - 100) * away[1]
    # Starts at the wall, whose face is half a pixel beyond the centre of the block's last pixel.
    assert along.min() == 11 and along.max() == math.floor(10.5 + length_px)
    across = np.abs((rows - 100) * away[1] + (columns - 100) * away[0])
    assert across.max() == 10  # as wide as the block


@given(azimuth_deg=st.floats(0, 359.9), elevation_deg=st.floats(25, 75))
def test_shadow_tip_and_direction_at_any_azimuth(azimuth_deg, elevation_deg):
    heights = np.zeros((161, 161), np.float32)
    heights[80, 80] = 15.0  # a mast
    rows, columns = np.nonzero(shadow_mask(heights, azimuth_deg, elevation_deg, gsd_m=0.5))
    distance_px = np.hypot(rows - 80, columns - 80)
    length_px = 15 / math.tan(math.radians(elevation_deg)) / 0.5
    assert distance_px.max() == pytest.approx(length_px, abs=1.2)
    tip = distance_px.argmax()
    azimuth = math.degrees(math.atan2(columns[tip] - 80, 80 - rows[tip]))
    difference = (azimuth - (azimuth_deg + 180) + 180) % 360 - 180
    assert abs(math.radians(difference)) * length_px < 1.2


@given(azimuth_deg=st.floats(0, 359.9), seed=st.integers(0, 1000))
def test_shadow_of_the_flipped_and_turned_city_is_the_flipped_and_turned_shadow(azimuth_deg, seed):
    heights = np.kron(np.random.default_rng(seed).choice([0, 0, 0, 9, 20.0], (8, 8)), np.ones((7, 7))).astype(
        "f4"
    )
    shadow = shadow_mask(heights, azimuth_deg, 40.0, 1.0)
    assert np.mean(shadow[:, ::-1] != shadow_mask(heights[:, ::-1], -azimuth_deg, 40.0, 1.0)) < 0.01
    assert (
        np.mean(np.rot90(shadow, -1) != shadow_mask(np.rot90(heights, -1), azimuth_deg + 90, 40.0, 1.0))
        < 0.01
    )


def test_a_slow_ray_march_agrees():
    rng = np.random.default_rng(3)
    heights = np.kron(rng.choice([0, 0, 0, 5, 12.0], (12, 12)), np.ones((5, 5))).astype(np.float32)
    azimuth_deg, elevation_deg, gsd_m = 150.0, 40.0, 0.5
    step = np.array([-math.cos(math.radians(azimuth_deg)), math.sin(math.radians(azimuth_deg))])
    expected = np.zeros(heights.shape, bool)
    for i, j in np.ndindex(heights.shape):
        for k in np.arange(0.5, 60, 0.5):
            r, c = np.floor(np.array([i, j]) + 0.5 + k * step).astype(int)
            if not (0 <= r < 60 and 0 <= c < 60):
                break
            expected[i, j] |= heights[r, c] > heights[i, j] + k * gsd_m * math.tan(
                math.radians(elevation_deg)
            )
    assert np.mean(expected != shadow_mask(heights, azimuth_deg, elevation_deg, gsd_m)) < 0.04


def test_sun_overhead_casts_no_shadow():
    assert not shadow_mask(block_heights(), 0, 90, 0.5).any()


@pytest.mark.parametrize("off_nadir_deg", [10, 30])
@pytest.mark.parametrize(
    ("azimuth_deg", "away"), [(0, (1, 0)), (90, (0, -1)), (180, (-1, 0)), (270, (0, 1))], ids="NESW"
)
def test_a_10_m_block_leans_away_from_the_sensor_and_shows_its_wall_to_it(azimuth_deg, away, off_nadir_deg):
    heights = block_heights()
    top, wall_m, foot = line_of_sight(heights, azimuth_deg, off_nadir_deg, gsd_m=0.5)
    lean_px = 10 * math.tan(math.radians(off_nadir_deg)) / 0.5
    walls = ~np.isnan(wall_m)
    rows, columns = np.nonzero((heights.ravel()[top] > 0) & ~walls)
    assert len(rows) == 21 * 21  # the whole roof
    moved = (rows.mean() - 100) * away[0] + (columns.mean() - 100) * away[1]
    assert moved == pytest.approx(lean_px, abs=0.51)
    assert (rows.mean() - 100) * away[1] + (columns.mean() - 100) * away[0] == 0
    rows, columns = np.nonzero(walls)
    along = (rows - 100) * away[0] + (columns - 100) * away[1]
    assert along.min() == -10 and walls.sum() == 21 * round(lean_px)  # from the edge that faces the sensor
    expected_m = (along + 10 + 0.5) * 0.5 / math.tan(math.radians(off_nadir_deg))
    assert wall_m[walls] == pytest.approx(expected_m, abs=1e-3)
    i, j = np.unravel_index(foot[walls], heights.shape)
    assert set((i - 100) * away[0] + (j - 100) * away[1]) == {-11}
    untouched = (heights.ravel()[top] == 0) & ~walls
    assert np.array_equal(top[untouched], np.flatnonzero(untouched))  # ground does not lean


def test_a_slow_walk_along_the_line_of_sight_agrees():
    rng = np.random.default_rng(3)
    heights = np.kron(rng.choice([0, 0, 0, 5, 12.0], (12, 12)), np.ones((5, 5))).astype(np.float32)
    azimuth_deg, off_nadir_deg, gsd_m = 150.0, 30.0, 0.5
    step = np.array([-math.cos(math.radians(azimuth_deg)), math.sin(math.radians(azimuth_deg))])
    expected = np.zeros(heights.shape)
    for i, j in np.ndindex(heights.shape):
        for z in np.arange(12.0, -0.1, -0.1):
            p = np.array([i, j]) + 0.5 + z * math.tan(math.radians(off_nadir_deg)) / gsd_m * step
            r, c = np.floor(p).astype(int)
            if 0 <= r < 60 and 0 <= c < 60 and heights[r, c] >= z:
                expected[i, j] = z
                break
    top, wall_m, _ = line_of_sight(heights, azimuth_deg, off_nadir_deg, gsd_m)
    seen_m = np.where(np.isnan(wall_m), heights.ravel()[top], wall_m)
    inside = (slice(0, -16), slice(16, -16))  # beyond the border the two know nothing, each in its own way
    assert np.mean(np.abs(seen_m - expected)[inside] > 1.0) < 0.05
