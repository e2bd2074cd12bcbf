"""Roofs, footprints and label heights of single buildings, on plans one can draw."""

from fusiondet.synthetic.city import CityBuilding, Part, Plan, roof_height_m, roof_outline, roof_piece
from tests.support.cities import BOUNDS, city_of

import numpy as np
import pytest
import shapely
from shapely import STRtree


def heights_at(pieces, points):
    """Highest roof plane over each point."""
    tops = []
    for x, y in points:
        over = [p for p in pieces if p.polygon.buffer(1e-6).contains(shapely.Point(x, y))]
        tops.append(max(p.plane[0] * x + p.plane[1] * y + p.plane[2] for p in over))
    return tops


def test_a_gable_roof_has_its_ridge_along_the_longer_side():
    pieces = Plan((Part(0, 0, 20, 8, "gable"),), (0, 0), 0.0).roof(10.0)
    rise_m = 4 * np.tan(np.radians(38))
    eave, ridge, other_eave = heights_at(pieces, [(10, 0), (10, 4), (3, 8)])
    assert eave == pytest.approx(10 - 0.7 * rise_m) and other_eave == pytest.approx(eave)
    assert ridge == pytest.approx(10 + 0.3 * rise_m)


def test_the_ridge_of_a_terraced_house_follows_the_row_though_it_is_the_shorter_side():
    pieces = Plan((Part(0, 0, 6, 10, "gable", ridge="u"),), (0, 0), 0.0).roof(8.0)
    left, right = heights_at(pieces, [(0.5, 5), (5.5, 5)])
    assert left == pytest.approx(right) == pytest.approx(8 + 0.3 * min(5 * np.tan(np.radians(38)), 0.45 * 8))


def test_a_hip_roof_falls_to_all_four_sides_and_covers_its_plan():
    plan = Plan((Part(0, 0, 20, 8, "hip"),), (0, 0), 0.3)
    pieces = plan.roof(10.0)
    assert sum(p.polygon.area for p in pieces) == pytest.approx(160)
    corners = plan.to_city(np.array([[0, 4], [20, 4], [10, 0], [10, 8]]))
    assert heights_at(pieces, corners) == pytest.approx([10 - 0.7 * 4 * np.tan(np.radians(38))] * 4)


@pytest.mark.parametrize("roof", ["flat", "gable", "hip"])
def test_the_label_height_is_the_70th_percentile_of_the_roof(roof):
    pieces = Plan((Part(0, 0, 20, 8, roof),), (5, 7), 0.5).roof(10.0)
    z, weight = [], []
    for p in pieces:  # an independent, finer sampling
        x0, y0, x1, y1 = p.polygon.bounds
        x, y = (g.ravel() for g in np.meshgrid(np.linspace(x0, x1, 211), np.linspace(y0, y1, 211)))
        inside = shapely.contains_xy(p.polygon, x, y)
        z.append((p.plane[0] * x + p.plane[1] * y + p.plane[2])[inside])
        weight.append(np.full(inside.sum(), p.polygon.area / inside.sum()))
    z, weight = np.concatenate(z), np.concatenate(weight)
    order = np.argsort(z)
    expected = z[order][np.searchsorted(np.cumsum(weight[order]), 0.7 * weight.sum())]
    assert roof_height_m(pieces) == pytest.approx(expected, abs=0.05)


def test_a_low_wing_of_a_third_does_not_change_the_label_but_one_of_three_quarters_does():
    def label(split):
        return roof_height_m(
            Plan((Part(0, 0, split, 10), Part(split, 0, 30, 10, factor=0.5)), (0, 0), 0).roof(12.0)
        )

    assert label(20) == pytest.approx(12.0)
    assert label(7) == pytest.approx(6.0)


def test_a_roof_piece_that_is_a_wall_seen_from_above_is_left_out_or_levelled():
    vertical = np.array([[0, 0, 0], [5, 0, 0], [5, 0, 3], [0, 0, 3.0]])
    assert roof_piece(vertical) is None
    steep = np.array([[0, 0, 0], [5, 0, 0], [5, 0.1, 3], [0, 0.1, 3.0]])
    assert roof_piece(steep).plane == pytest.approx((0, 0, 1.5))


def test_a_leaning_flat_roof_is_its_footprint_aside_and_boxes_on_it_do_not_count():
    plan = Plan((Part(0, 0, 20, 8),), (5, 7), 0.3)
    small = Plan((Part(18, 6, 19.5, 7.5),), (5, 7), 0.3).roof(14.0)
    building = CityBuilding(plan.footprint(), plan.roof(10.0) + small, 10.0)
    moved = shapely.affinity.translate(building.footprint, 3.0, -4.0)
    assert roof_outline(building, (0.3, -0.4)).symmetric_difference(moved).area < 0.1
    assert roof_outline(building, (0.0, 0.0)).symmetric_difference(building.footprint).area < 0.1


def test_parts_of_different_height_lean_differently():
    building = Plan((Part(0, 0, 10, 10), Part(10, 0, 20, 10, factor=0.5)), (0, 0), 0.0)
    building = CityBuilding(building.footprint(), building.roof(8.0), 8.0)
    low, high = sorted(roof_outline(building, (-0.5, 0.0)).geoms, key=lambda part: -part.bounds[0])
    assert high.bounds == pytest.approx((-4, 0, 6, 10)) and low.bounds == pytest.approx((8, 0, 18, 10))


def test_a_city_within_another_keeps_what_it_has_and_adds_what_is_beyond():
    inner, outer = city_of("realistic"), city_of("realistic", 7, 8, (-60.0, -60.0, 460.0, 360.0))
    both = inner.within(outer, BOUNDS)
    n = len(inner.buildings)
    assert both.buildings[:n] == inner.buildings and np.array_equal(
        both.trees[: len(inner.trees)], inner.trees
    )
    around = [b.footprint for b in both.buildings[n:]]
    assert len(around) > 20 and not any(b.intersects(shapely.box(*BOUNDS)) for b in around)
    assert len({b.id for b in both.buildings}) == len(both.buildings)
    a, b = STRtree(around).query([b.footprint for b in inner.buildings], predicate="intersects")
    assert len(a) == 0
