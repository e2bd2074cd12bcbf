import math

from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.geometry.shadows import line_of_sight
from fusiondet.synthetic.city import CityBuilding, Part, Plan, roof_outline
from fusiondet.synthetic.optical import render_optical

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.affinity import affine_transform


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
