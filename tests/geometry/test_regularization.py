"""Regular outlines: shapes whose walls are known, noise on top, neighbours, and real footprints."""

import math

from benchmarks.polygon_cost import PolygonSettings, noisy_layer, noisy_outline, quality, true_footprints
from fusiondet.geometry.regularization import CROWD, _Layer, _neighbours, regularize
from fusiondet.synthetic.footprints import read_city

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.affinity import rotate, scale, translate
from shapely.geometry import MultiPolygon, Point, Polygon, box


def iou(a, b):
    return a.intersection(b).area / a.union(b).area


def wriggly(polygon, rng, step_m=0.5, noise_m=0.12):
    """The outline with a vertex every half metre, each a little off."""
    rings = []
    for ring in (polygon.exterior, *polygon.interiors):
        points = np.asarray(shapely.segmentize(ring, step_m).coords)[:-1]
        rings.append(points + rng.normal(0, noise_m, points.shape))
    found = Polygon(rings[0], rings[1:])
    return found if found.is_valid else wriggly(polygon, rng, step_m, noise_m)


def bends_deg(polygon):
    """Turns at the vertices of the outer ring, degrees, without those where nothing turns."""
    step = np.diff(np.asarray(polygon.exterior.coords), axis=0)
    angle = np.degrees(np.arctan2(step[:, 1], step[:, 0]))
    turn = (angle - np.roll(angle, 1) + 180) % 360 - 180
    return turn[np.abs(turn) > 0.01]


def has_right_angles(polygon):
    return np.allclose(np.abs(bends_deg(polygon)), 90, atol=0.01)


L_SHAPE = Polygon([(0, 0), (16, 0), (16, 8), (9, 8), (9, 14), (0, 14)])


# --- one building --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle_deg", [0, 17, 44.9, 45, 72, 90, 133])
def test_a_wriggly_l_gets_its_six_right_angles(angle_deg):
    true = rotate(L_SHAPE, angle_deg, origin=(0, 0))
    (got,) = regularize([wriggly(true, np.random.default_rng(1))], 1.0)
    assert len(bends_deg(got)) == 6 and has_right_angles(got)
    assert iou(got, true) > 0.975


def test_what_is_regular_stays():
    (got,) = regularize([L_SHAPE], 1.0)
    assert got.symmetric_difference(L_SHAPE).area < 1e-6


def test_steps_below_the_tolerance_go_and_others_stay():
    def stepped(depth_m):
        return Polygon([(0, 0), (20, 0), (20, 10), (10, 10), (10, 10 + depth_m), (0, 10 + depth_m)])

    assert len(bends_deg(regularize([stepped(0.4)], 1.0)[0])) == 4
    assert len(bends_deg(regularize([stepped(2.0)], 1.0)[0])) == 6
    assert len(bends_deg(regularize([stepped(0.4)], 0.2)[0])) == 6


def test_a_courtyard_keeps_its_walls_too():
    true = rotate(box(0, 0, 30, 24).difference(box(8, 8, 20, 16)), 30)
    (got,) = regularize([wriggly(true, np.random.default_rng(2))], 1.0)
    assert len(got.interiors) == 1 and has_right_angles(got) and has_right_angles(Polygon(got.interiors[0]))
    assert iou(got, true) > 0.97


def test_an_oblique_wall_is_not_forced_square():
    true = Polygon([(0, 0), (20, 0), (20, 8), (12, 16), (0, 16)])
    (got,) = regularize([wriggly(true, np.random.default_rng(3), noise_m=0.08)], 0.6)
    assert sorted(np.abs(bends_deg(got))) == pytest.approx([45, 45, 90, 90, 90], abs=4)
    assert iou(got, true) > 0.96


@pytest.mark.parametrize("radius_m", [4, 9])
@pytest.mark.parametrize("stretch", [1.0, 1.5])
def test_round_stays_round(radius_m, stretch):
    true = scale(Point(20, 20).buffer(radius_m, quad_segs=32), stretch, 1)
    raw = wriggly(true, np.random.default_rng(4), noise_m=0.08)
    (got,) = regularize([raw], 1.0)
    assert len(got.exterior.coords) > 12
    assert iou(got, true) > iou(raw, true) - 0.01


def test_parts_of_a_building_stay_parts():
    rng = np.random.default_rng(5)
    true = MultiPolygon([box(0, 0, 10, 8), box(14, 0, 22, 8)])
    (got,) = regularize([MultiPolygon([wriggly(p, rng) for p in true.geoms])], 1.0)
    assert len(got.geoms) == 2 and all(map(has_right_angles, got.geoms)) and iou(got, true) > 0.95


def test_what_no_edges_describe_stays_as_given():
    angle = np.linspace(0, 2 * math.pi, 11)[:-1]
    radius = np.where(np.arange(10) % 2, 1.0, 4.0)
    star = Polygon(np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]))
    (got,) = regularize([star], 3.0)
    assert iou(got, star) >= 0.9
    (got,) = regularize([star], 3.0, min_iou=1.0)
    assert got.equals(star)


def test_nothing_and_no_tolerance():
    assert regularize([], 1.0) == []
    assert regularize([L_SHAPE], 0.0) == [L_SHAPE]


def test_far_from_the_origin_it_is_the_same():
    rng = np.random.default_rng(6)
    layer = [wriggly(box(x, 0, x + 9.7, 9), rng) for x in range(0, 60, 10)]
    here = regularize(layer, 1.0)
    there = regularize([translate(p, 500_000, 5_700_000) for p in layer], 1.0)
    for a, b in zip(here, there):
        assert a.symmetric_difference(translate(b, -500_000, -5_700_000)).area < 1e-3


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 60), st.floats(0, 60), st.floats(0.5, 25), st.floats(0.5, 25), st.floats(0, 180)
        ),
        min_size=1,
        max_size=6,
    ),
    st.floats(0.1, 4),
    st.sampled_from([0.7, 0.9, 0.97]),
)
def test_whatever_comes_outlines_are_valid_and_like_the_given_ones(boxes, tolerance_m, min_iou):
    layer = [rotate(box(x, y, x + w, y + h), angle) for x, y, w, h, angle in boxes]
    got = regularize(layer, tolerance_m, min_iou)
    assert len(got) == len(layer)
    for found, given_outline in zip(got, layer):
        assert found.is_valid and found.geom_type == given_outline.geom_type
        assert iou(found, given_outline) >= min_iou - 1e-6


# --- neighbours ----------------------------------------------------------------------------------------------------


def walls_are_shared(outlines, pairs):
    for i, j in pairs:
        a, b = outlines[i], outlines[j]
        assert a.intersection(b).area < 1e-6
        assert a.boundary.intersection(b.boundary).length > 5
        assert len(shapely.union(a, b).interiors) == 0
    assert not shapely.union_all(outlines).buffer(0.4, join_style="mitre").interiors


@pytest.mark.parametrize("angle_deg", [0, 28])
@pytest.mark.parametrize("apart_m", [-0.6, 0.0, 0.7])
def test_neighbours_that_gape_or_overlap_share_a_wall(angle_deg, apart_m):
    rng = np.random.default_rng(7)
    layer = [
        rotate(
            wriggly(box(10 * i + apart_m / 2, 0, 10 * (i + 1) - apart_m / 2, 9), rng),
            angle_deg,
            origin=(0, 0),
        )
        for i in range(6)
    ]
    got = regularize(layer, 1.0)
    walls_are_shared(got, [(i, i + 1) for i in range(5)])
    # One front, not six that step back and forth.
    row = shapely.union_all(got)
    assert len(bends_deg(row)) == 4 and has_right_angles(row)
    if hasattr(shapely, "coverage_is_valid"):
        assert shapely.coverage_is_valid(got)


def test_neighbours_of_different_depth_share_what_they_have_in_common():
    rng = np.random.default_rng(8)
    true = [box(0, 0, 10, 14), box(10, 0, 20, 9), box(20, 3, 28, 12)]
    got = regularize([wriggly(p, rng) for p in true], 1.0)
    walls_are_shared(got, [(0, 1), (1, 2)])
    for found, expected in zip(got, true):
        assert iou(found, expected) > 0.96 and has_right_angles(found)


def test_neighbours_of_different_directions_meet_without_gap_or_overlap():
    rng = np.random.default_rng(9)
    a, b = box(0, 0, 12, 10), Polygon([(12, 0), (23, -4), (26, 6), (12, 10)])
    got = regularize([wriggly(a, rng), wriggly(b, rng)], 1.0)
    walls_are_shared(got, [(0, 1)])


def test_buildings_across_a_street_are_no_neighbours():
    rng = np.random.default_rng(10)
    true = [box(0, 0, 10, 10), rotate(box(14, 0, 24, 10), 3)]
    got = regularize([wriggly(p, rng) for p in true], 1.0)
    assert got[0].distance(got[1]) > 3
    assert all(map(has_right_angles, got))


def test_a_party_wall_and_a_courtyard_wall_may_be_one():
    rng = np.random.default_rng(11)
    court = box(0, 0, 30, 30).difference(box(10, 10, 20, 20))
    inside = box(10.2, 10.2, 19.8, 19.8)
    got = regularize([wriggly(court, rng), wriggly(inside, rng)], 1.0)
    assert got[0].intersection(got[1]).area < 1e-6 and len(got[0].interiors) == 1


# --- outlines that lie on each other -------------------------------------------------------------------------------


def test_a_speck_on_a_neighbours_corner_is_no_error():
    speck = Polygon([(20.0002, 5.0), (20.0006, 5.0), (20.0004, 5.0004)])
    layer = [MultiPolygon([box(0, 0, 10, 10), speck]), box(20, 5, 30, 15)]
    for given_order in (layer, layer[::-1]):
        for found, outline in zip(regularize(given_order, 0.5), given_order):
            assert found.is_valid and found.symmetric_difference(outline).area < 1e-5
            assert found.geom_type == outline.geom_type


def test_what_is_empty_or_too_small_to_move_stays_as_given():
    layer = [Polygon(), box(0, 0, 1e-12, 1e-12), box(1e6, 1e6, 1e6 + 9, 1e6 + 9), MultiPolygon()]
    got = regularize(layer, 1.0)
    assert [a is b for a, b in zip(got, layer)] == [True, True, False, True]
    assert iou(got[2], layer[2]) > 0.999
    assert regularize([Polygon()], 1.0)[0].is_empty


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 14), st.sampled_from([0.3, 0.5, 2.0]))
def test_heaps_of_ragged_outlines_stay_valid_and_like_the_given_ones(seed, count, tolerance_m):
    """What a network that has not learned says: teeth, holes, specks, all at one place, on a grid of tenths of a mm."""
    rng = np.random.default_rng(seed)
    layer = []
    for _ in range(count):
        angle = np.sort(rng.uniform(0, 2 * math.pi, 24))
        radius = rng.uniform(1, 12, 24)
        corners = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]) + rng.uniform(0, 4, 2)
        outline = Polygon(corners).buffer(0)
        holes = [Point(*rng.uniform(-5, 9, 2)).buffer(r, quad_segs=1) for r in (2e-4, 5e-4, 1.0)]
        outline = shapely.set_precision(outline.difference(shapely.union_all(holes)), 1e-4)
        # Outlines that were cut from each other meet in slivers and specks.
        if layer and rng.random() < 0.5:
            outline = shapely.set_precision(outline.difference(layer[-1]), 1e-4)
        if outline.area > 0.01:
            layer.append(outline)
    for found, outline in zip(regularize(layer, tolerance_m), layer):
        assert found.is_valid and found.geom_type == outline.geom_type
        assert iou(found, outline) >= 0.9 - 1e-6


def test_an_overlay_that_fails_leaves_its_pair_as_it_is(monkeypatch):
    def fail(layer, i, j):
        raise shapely.errors.GEOSException("TopologyException")

    rng = np.random.default_rng(17)
    raw = [wriggly(box(0, 0, 10, 9), rng), wriggly(box(10.3, 0, 20, 9), rng)]
    for step in ("_cut", "_fill"):
        with monkeypatch.context() as patched:
            patched.setattr(_Layer, step, fail)
            assert all(map(has_right_angles, regularize(raw, 1.0)))


def test_of_a_heap_each_outline_is_straightened_alone():
    rng = np.random.default_rng(14)
    true = [rotate(box(x, x, x + 14, x + 11), 40 * x) for x in np.linspace(0, 3, 10)]
    raw = [wriggly(p, rng) for p in true]
    got = regularize(raw, 0.8)
    for found, outline in zip(got, raw):
        (alone,) = regularize([outline], 0.8)
        assert found.symmetric_difference(alone).area < 0.02 * outline.area


def test_a_house_among_houses_keeps_its_walls_beside_a_heap():
    rng = np.random.default_rng(15)
    row = [wriggly(box(10 * i + 0.2, 0, 10 * (i + 1) - 0.2, 9), rng) for i in range(3)]
    heap = [wriggly(rotate(box(60, 0, 74, 11), 12 * k), rng) for k in range(12)]
    walls_are_shared(regularize(row + heap, 1.0)[:3], [(0, 1), (1, 2)])


def test_the_work_on_pairs_does_not_grow_with_a_heap(monkeypatch):
    """Of a hundred boxes on one place, no pair is cut, filled and stitched: without that it is thousands."""
    pairs = []
    settle = _Layer.settle
    monkeypatch.setattr(_Layer, "settle", lambda layer: (pairs.extend(layer.pairs), settle(layer)))
    rng = np.random.default_rng(16)
    heap = [
        rotate(box(x, y, x + w, y + h), angle)
        for x, y, w, h, angle in rng.uniform([0, 0, 12, 12, 0], [9, 9, 20, 20, 90], (100, 5))
    ]
    regularize(heap, 1.0)
    assert len(pairs) < 100


def test_the_work_on_each_outline_of_a_heap_does_not_grow_with_it(monkeypatch):
    looked_at = []
    intersection = shapely.intersection
    monkeypatch.setattr(
        shapely, "intersection", lambda a, b: (looked_at.append(np.size(a)), intersection(a, b))[1]
    )
    rng = np.random.default_rng(16)
    corners = rng.uniform([0, 0, 12, 12], [9, 9, 20, 20], (400, 4))
    heap = shapely.box(*corners[:, :2].T, *(corners[:, :2] + corners[:, 2:]).T)
    assert len(_neighbours(list(heap), 1.0)) == 0
    # Each with each: 160 000.
    assert sum(looked_at) <= 400 * 20


def test_what_lies_on_many_others_has_no_neighbours_and_those_keep_theirs():
    houses = [box(10 * k, 0, 10 * k + 10, 9) for k in range(CROWD + 2)]
    # On as many as may be, on one more; the last one only touches all of them, as a hall may.
    assert len(_neighbours([*houses, box(0, 5, 10 * CROWD, 20)], 1.0)) > len(houses)
    crowded = [*houses, box(0, 5, 10 * CROWD + 5, 20), box(0, -20, 100, 0.1)]
    pairs = _neighbours(crowded, 1.0)
    n = len(houses)
    assert not (pairs == n).any() and (pairs == n + 1).any(axis=1).sum() == n
    assert {(k, k + 1) for k in range(n - 1)} <= set(map(tuple, pairs.tolist()))


def test_a_hall_that_cannot_give_way_is_tried_once_and_not_for_each_neighbour(monkeypatch):
    hall, doors = box(0, 0, 100, 10), [box(2.5 * k, 9.7, 2.5 * k + 2.5, 20) for k in range(40)]
    raw = [hall, *doors]
    pairs = np.array([[0, k] for k in range(1, 41)])
    layer = _Layer(list(raw), raw, pairs, 1.0, min_iou=1.0)
    united, union_all = [], shapely.union_all
    monkeypatch.setattr(
        shapely,
        "union_all",
        lambda parts, **options: (united.append(len(parts)), union_all(parts, **options))[1],
    )
    for i, j in layer.pairs:
        layer._cut(i, j)
    assert layer.outlines == raw and united.count(40) == 1


# --- layers --------------------------------------------------------------------------------------------------------


def is_better(found, raw, truth, min_iou=0.9):
    before, after = quality(raw, truth), quality(found, truth)
    assert after["iou"] > before["iou"] + 0.01
    assert after["polis_m"] < 0.75 * before["polis_m"] and after["hausdorff_m"] < 0.7 * before["hausdorff_m"]
    assert after["vertices"] < before["vertices"] / 4 and after["invalid"] == 0
    assert after["right_angles"] > 0.8 and after["shared"] > 0.9
    assert after["overlap_m2"] < 0.001 and after["gap_m2"] < 0.15
    assert min(iou(a, b) for a, b in zip(found, raw)) >= min_iou


def test_noisy_masks_of_a_city_become_its_buildings():
    chosen = PolygonSettings(buildings=120)
    truth, raw = noisy_layer(true_footprints(chosen), chosen)
    is_better(regularize(raw, 1.0), raw, truth)


def test_noisy_masks_of_real_footprints_become_better(shared_data):
    chosen = PolygonSettings(buildings=250, footprints=shared_data("3dbag-b3-limburg") / "limburg.city.json")
    truth, raw = noisy_layer(true_footprints(chosen), chosen)
    is_better(regularize(raw, 1.0), raw, truth)


def test_true_footprints_hardly_change(shared_data):
    city = read_city(shared_data("3dbag-b3-limburg") / "limburg.city.json")
    truth = [b.footprint for b in city.buildings][:300]
    got = regularize(truth, 0.3)
    assert np.mean([iou(a, b) for a, b in zip(got, truth)]) > 0.99


def test_buildings_do_not_depend_on_what_is_far_away(monkeypatch):
    rng = np.random.default_rng(13)
    rows = [[wriggly(box(10 * i, y, 10 * (i + 1), y + 9), rng) for i in range(4)] for y in range(0, 600, 30)]
    order = rng.permutation(80)
    layer = [rows[k // 4][k % 4] for k in order]
    together = regularize(layer, 1.0)
    monkeypatch.setattr("fusiondet.geometry.regularization.BATCH", 5)
    alone = [p for row in rows for p in regularize(row, 1.0)]
    for k, a, b in zip(order, together, regularize(layer, 1.0)):
        assert a.equals(b) and a.symmetric_difference(alone[k]).area < 0.05


def test_the_order_of_the_layer_matters_little():
    rng = np.random.default_rng(12)
    layer = [wriggly(box(10 * i, 0, 10 * (i + 1), 9), rng) for i in range(8)]
    got, backwards = regularize(layer, 1.0), regularize(layer[::-1], 1.0)[::-1]
    for a, b in zip(got, backwards):
        assert iou(a, b) > 0.97


def test_a_noisy_outline_is_where_the_building_is():
    true = box(100.3, 50.2, 130.1, 71.9)
    found = noisy_outline(true, np.random.default_rng(0), noise=0.0)
    assert iou(found, true) > 0.9
    assert noisy_outline(box(0, 0, 0.2, 0.2), np.random.default_rng(0), noise=0.0) is None
