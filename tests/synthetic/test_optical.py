import math

from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.geometry.shadows import line_of_sight, shadow_mask
from fusiondet.synthetic.city import CityBuilding, Part, Plan, roof_outline
from fusiondet.synthetic.optical import render_optical

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.affinity import affine_transform


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


def test_a_block_outside_the_tile_casts_into_it(scene_of, block, sensor):
    geometry = sensor(sun=(180, 45))
    casting = render_optical(
        scene_of([block(20, -25, 40, -5, 20.0)], geometry), geometry
    )  # south of the tile
    empty = render_optical(scene_of([], geometry), geometry)
    darker = casting.mean(axis=2) < empty.mean(axis=2) - 5
    assert darker[-29:, 42:78].all()  # 20 m shadow from y = -5: 15 m into the tile, 30 rows
    assert not darker[:-32].any()


def test_the_roof_that_faces_the_sun_is_the_brighter_one(scene_of, sensor):
    plan = Plan((Part(10, 20, 50, 40, "gable"),), (0, 0), 0.0)
    building = CityBuilding(plan.footprint(), plan.roof(12.0), 12.0)
    geometry = sensor(sun=(180, 40))
    picture = render_optical(scene_of([building], geometry), geometry).mean(axis=2)
    north, south = picture[55, 60], picture[80, 60]
    assert south > north + 30
    geometry = sensor(sun=(0, 40))
    picture = render_optical(scene_of([building], geometry), geometry).mean(axis=2)
    assert picture[55, 60] > picture[80, 60] + 30


def test_without_generator_there_is_no_noise_and_with_the_same_seed_the_same(scene_of, block, sensor):
    scene = scene_of([block(10, 20, 30, 40, 12.0)])
    calm = render_optical(scene, sensor())
    assert np.unique(calm[5:20, 5:20].reshape(-1, 3), axis=0).shape[0] == 1
    noisy, again, other = (render_optical(scene, sensor(), np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(noisy, again) and not np.array_equal(noisy, other)
    assert calm.dtype == np.uint8 and calm.shape == (128, 128, 3)


def test_haze_takes_contrast_and_no_shadow_takes_shadows(scene_of, block, sensor):
    scene = scene_of([block(20, 20, 40, 40, 12.0)])
    clear, hazy, bare = (
        render_optical(scene, sensor(), haze=haze, shadow=shadow).astype(float)
        for haze, shadow in ((0, True), (0.4, True), (0, False))
    )
    assert np.ptp(hazy) < 0.8 * np.ptp(clear)
    assert clear[40, 60].mean() < 0.8 * bare[40, 60].mean()  # north of the wall, in shadow
    assert np.array_equal(clear[100:], bare[100:])


def test_the_mirrored_scene_under_the_mirrored_sun_is_the_mirrored_picture(scene_of, sensor):
    plan = Plan((Part(-12, -6, 12, 6, "hip"), Part(-12, 6, 0, 12)), (32, 32), 0.4)
    geometry = sensor(sun=(130, 40))
    scene = scene_of(
        [CityBuilding(plan.footprint(), plan.roof(12.0), 12.0)], geometry, trees=[(10, 10, 3, 9)]
    )
    picture = render_optical(scene, geometry).astype(int)
    mirrored = render_optical(scene.flipped_horizontally(), geometry.flipped_horizontally()).astype(int)
    assert np.mean(np.abs(picture[:, ::-1] - mirrored) > 8) < 0.005


# --- off-nadir -----------------------------------------------------------------------------------------------------


def lean_xy(azimuth_deg, off_nadir_deg):
    """Metres east and north per metre of height."""
    azimuth, lean = math.radians(azimuth_deg), math.tan(math.radians(off_nadir_deg))
    return -lean * math.sin(azimuth), -lean * math.cos(azimuth)


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


@given(azimuth_deg=st.floats(0, 359.9), off_nadir_deg=st.floats(3, 40))
def test_the_roof_is_seen_where_its_outline_says(azimuth_deg, off_nadir_deg):
    plan = Plan((Part(-9, -6, 9, 6, "gable"),), (32, 32), 0.4)
    building = CityBuilding(plan.footprint(), plan.roof(9.0), 9.0)
    heights = np.zeros((256, 256), np.float32)
    x, y = np.meshgrid((np.arange(256) + 0.5) / 4, 64 - (np.arange(256) + 0.5) / 4)
    for piece in building.roof:
        mask = polygon_to_mask(affine_transform(piece.polygon, (4, 0, 0, -4, 0, 256)), 256, 256)
        heights[mask] = (piece.plane[0] * x + piece.plane[1] * y + piece.plane[2])[mask]
    top, wall_m, _ = line_of_sight(heights, azimuth_deg, off_nadir_deg, 0.25)
    seen = (heights.ravel()[top] > 0) & np.isnan(wall_m)
    outline = roof_outline(building, lean_xy(azimuth_deg, off_nadir_deg))
    said = polygon_to_mask(affine_transform(outline, (4, 0, 0, -4, 0, 256)), 256, 256)
    # At 40 degrees the far side of a roof of 38 degrees is all but edge-on.
    assert (seen & said).sum() / (seen | said).sum() > 0.95


def test_the_picture_of_a_lone_box_shows_roof_wall_and_shadow_where_they_belong(scene_of, block, sensor):
    red = block(24, 24, 44, 44, 12.0, albedo=(0.8, 0.1, 0.1))
    # Sensor in the west: the roof leans east. Sun in the south: the shadow falls north.
    view, sun = (270.0, 25.0), (180.0, 45.0)
    geometry = sensor(sun=sun, view=view)
    picture = render_optical(scene_of([red], geometry), geometry, psf_fwhm_m=0.1).astype(int)
    overhead = render_optical(scene_of([red], sensor(sun=sun)), sensor(sun=sun), psf_fwhm_m=0.1).astype(int)
    roof = picture[..., 0] - picture[..., 1] > 100
    outline = affine_transform(roof_outline(red, lean_xy(*view)), (2, 0, 0, -2, 0, 128))
    said = polygon_to_mask(outline, 128, 128)
    lean_px = 12 * math.tan(math.radians(25)) / 0.5
    assert outline.bounds == pytest.approx((48 + lean_px, 40, 88 + lean_px, 80))
    assert (roof & said).sum() / (roof | said).sum() > 0.97
    assert np.nonzero(roof)[1].mean() + 0.5 == pytest.approx(68 + lean_px, abs=0.5)
    wall = picture[45:75, 49:57].reshape(-1, 3)  # between the foot at 48 and the roof's edge at 59
    ground = overhead[60, 10]
    assert (wall[:, 0] > wall[:, 1] + 10).all() and np.abs(wall - ground).max(axis=1).min() > 20
    left = picture[:, :47]
    assert np.array_equal(left, overhead[:, :47])  # neither ground nor the shadow on it leans


@pytest.mark.parametrize(("sun_azimuth_deg", "bright"), [(270.0, True), (90.0, False)])
def test_a_wall_is_lit_when_it_faces_the_sun(scene_of, block, sensor, sun_azimuth_deg, bright):
    geometry = sensor(sun=(sun_azimuth_deg, 40.0), view=(270.0, 30.0))
    scene = scene_of([block(24, 24, 44, 44, 12.0)], geometry)
    wall = render_optical(scene, geometry)[45:75, 51:58].mean()
    assert wall > 130 if bright else wall < 100


def test_a_view_from_straight_above_is_the_picture_without_view(scene_of, block, sensor):
    scene, rngs = scene_of([block(24, 24, 44, 44, 12.0)]), [np.random.default_rng(1) for _ in range(2)]
    above = render_optical(scene, sensor(view=(77.0, 0.0)), rngs[0])
    assert np.array_equal(above, render_optical(scene, sensor(), rngs[1]))
    render_optical(scene, sensor(view=(77.0, 20.0)), rngs[0]), render_optical(scene, sensor(), rngs[1])
    assert (
        rngs[0].random() == rngs[1].random()
    )  # what is drawn next, the speckle, does not depend on the view


def test_the_mirrored_scene_seen_from_the_mirrored_place_is_the_mirrored_picture(scene_of, sensor):
    plan = Plan((Part(-12, -6, 12, 6, "hip"), Part(-12, 6, 0, 12)), (32, 32), 0.4)
    geometry = sensor(sun=(130, 40), view=(63.0, 25.0))
    scene = scene_of([CityBuilding(plan.footprint(), plan.roof(12.0), 12.0)], geometry)
    picture = render_optical(scene, geometry).astype(int)
    mirrored = render_optical(scene.flipped_horizontally(), geometry.flipped_horizontally()).astype(int)
    assert np.mean(np.abs(picture[:, ::-1] - mirrored) > 12) < 0.02
