import math

from fusiondet.synthetic.city import City, CityBuilding, Part, Plan
from fusiondet.synthetic.surfaces import building_heights, margins_m, rasterize_scene

import numpy as np
import pytest
from affine import Affine


def test_margins_are_as_long_as_shadow_layover_and_radar_shadow(sensor):
    left, top, right, bottom = margins_m(sensor(sun=(180, 30), look=(90, 40)), 10.0)
    assert bottom == pytest.approx(
        3 + 10 / math.tan(math.radians(30))
    )  # the sun stands south: so do shadow casters
    assert right == pytest.approx(
        3 + 10 / math.tan(math.radians(40))
    )  # layover comes from behind, seen from the sensor
    assert left == pytest.approx(3 + 10 * math.tan(math.radians(40)))  # radar shadow from the sensor's side
    assert top == pytest.approx(3)


def test_the_margin_is_as_long_as_the_lean_on_the_side_of_the_sensor(sensor):
    overhead = margins_m(sensor(sun=(180, 30), look=(90, 40)), 10.0)
    left, top, right, bottom = margins_m(sensor(sun=(180, 30), look=(90, 40), view=(0, 35)), 10.0)
    assert (left, right, bottom) == pytest.approx((overhead[0], overhead[2], overhead[3]))
    assert top == pytest.approx(3 + 10 * math.tan(math.radians(35)))


def test_a_block_is_where_its_corners_say_and_as_high(scene_of, block):
    scene = scene_of([block(10, 20, 30, 40, 12.0)])
    core = scene.height_m[scene.core]
    expected = np.zeros((256, 256))  # 64 m at 0.25 m; y = 40 is row (64 - 40) / 0.25
    expected[96:176, 40:120] = 12.0
    np.testing.assert_array_equal(core, expected)


def test_a_gable_roof_is_a_tent(scene_of):
    plan = Plan((Part(10, 20, 40, 30, "gable"),), (0, 0), 0.0)
    scene = scene_of([CityBuilding(plan.footprint(), plan.roof(10.0), 10.0)])
    across = scene.height_m[scene.core][(64 - 30) * 4 : (64 - 20) * 4, 100]
    assert across.argmax() in (19, 20) and across == pytest.approx(across[::-1], abs=1e-4)
    assert np.diff(across[:20]) == pytest.approx(0.25 * math.tan(math.radians(38)), abs=1e-4)


def test_trees_are_in_the_ndsm_and_not_in_the_building_heights(scene_of, block):
    building = block(10, 10, 30, 30, 8.0)
    scene = scene_of([building], trees=[(45, 45, 3.0, 11.0)])
    ndsm = scene.height_m[scene.core]
    heights = building_heights([building], Affine(0.25, 0, 0, 0, -0.25, 64), ndsm.shape)
    assert ndsm.max() == pytest.approx(11.0, abs=0.05) and set(np.unique(heights)) == {0.0, 8.0}
    tree = ndsm * (heights == 0)
    assert (tree > 0).sum() * 0.0625 == pytest.approx(math.pi * 9, rel=0.03)
    assert np.array_equal(ndsm[heights > 0], heights[heights > 0])


def test_building_heights_follow_pixel_centres():
    building = CityBuilding(Plan((Part(0, 0, 2.6, 1),), (0, 0), 0).footprint(), [], 5.0)
    heights = building_heights([building], Affine(1, 0, 0, 0, -1, 2), (2, 4))
    assert heights.tolist() == [
        [0, 0, 0, 0],
        [5, 5, 5, 0],
    ]  # 2.6 m reach past the centre of the third pixel at 2.5
    assert not building_heights([], Affine.identity(), (2, 4)).any()


def test_the_margin_holds_what_casts_into_the_tile_and_no_more(scene_of, block, sensor):
    scene = scene_of(
        [block(-40, 20, -20, 40, 30.0)], sensor(look=(90, 45))
    )  # left of the tile, 30 m radar shadow
    rows, columns = scene.core
    assert scene.height_m.max() == 30 and scene.height_m[scene.core].max() == 0
    assert columns.start * 0.25 == pytest.approx(33, abs=1)
    low = scene_of([block(-200, 20, -180, 40, 30.0)], sensor(look=(90, 45)))
    assert low.core[1].start * 0.25 < 6  # too far away to matter


def test_walls_know_their_direction(scene_of, block):
    scene = scene_of([block(10, 20, 40, 44, 10.0)])
    angle = scene.wall_angle[scene.core]
    assert angle[(64 - 32) * 4, 40] == pytest.approx(math.pi / 2)  # left wall runs down the image
    assert angle[(64 - 44) * 4, 100] % math.pi == pytest.approx(0)  # upper wall runs across
    assert np.isnan(angle[128, 100])  # middle of the roof
    turned = scene.flipped_horizontally()
    assert np.nanmax(np.abs(np.sin(turned.wall_angle[:, ::-1] + scene.wall_angle))) < 1e-5


def test_an_empty_city_is_flat_ground():
    from fusiondet.buildings import SensorGeometry

    scene = rasterize_scene(City([]), (0, 0, 16, 16), 0.5, SensorGeometry(180, 45, 90, 45))
    assert (
        scene.height_m[scene.core].shape == (64, 64) and not scene.height_m.any() and not scene.surface.any()
    )
