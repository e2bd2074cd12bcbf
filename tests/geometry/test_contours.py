"""Outlines of ROI masks against shapes whose outline is known exactly."""

from fusiondet.geometry.contours import mask_to_polygon_px, masks_to_polygons_px, sample_to_pixel, simplify

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapely.geometry import Point, Polygon, box

# Position of the edge must be right on average, whatever its place among the samples.
BIAS_PX = 0.05


def coverage(shape_px, box_xyxy, size=28, fine=16):
    """(size, size) share of every cell of the box that `shape_px` covers: an ideal soft mask."""
    x0, y0, x1, y1 = box_xyxy
    n = size * fine
    xs = x0 + (np.arange(n) + 0.5) * (x1 - x0) / n
    ys = y0 + (np.arange(n) + 0.5) * (y1 - y0) / n
    inside = shapely.contains_xy(shape_px, *np.meshgrid(xs, ys))
    return inside.reshape(size, fine, size, fine).mean(axis=(1, 3))


def offset_px(found, true):
    """Mean distance by which `found` lies outside `true` (negative: inside), px."""
    return (found.area - true.area) / true.length


def random_boxes(n, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        x0, y0 = rng.uniform(0, 500, 2)
        w, h = rng.uniform(15, 45, 2)
        yield rng, (x0, y0, x0 + w, y0 + h)


def test_a_full_mask_is_its_box():
    got = mask_to_polygon_px(np.ones((28, 28)), (10, 20, 38, 48))
    # Marching squares cuts each corner by half a cell: an eighth of a square pixel here.
    assert got.area == pytest.approx(28 * 28 - 4 / 8)
    assert got.bounds == (10, 20, 38, 48)


def test_a_sample_is_the_centre_of_its_cell():
    assert sample_to_pixel(np.array([[0, 0], [3, 1]]), (10, 20, 18, 24), (2, 4)).tolist() == [
        [11, 21],
        [17, 23],
    ]


def test_a_hard_block_of_ten_by_ten_encloses_one_hundred_pixels():
    prob = np.zeros((28, 28))
    prob[5:15, 8:18] = 1
    got = mask_to_polygon_px(prob, (100, 200, 128, 228))
    assert got.bounds == (108, 205, 118, 215)
    assert got.area == pytest.approx(100 - 4 / 8)
    assert got.symmetric_difference(box(108, 205, 118, 215)).area <= 0.5 + 1e-9


def test_edges_of_rectangles_are_where_they_are():
    offsets, centres = [], []
    for rng, (x0, y0, x1, y1) in random_boxes(60):
        w, h = x1 - x0, y1 - y0
        a, b, c, d = rng.uniform(0.05, 0.2, 4)
        true = box(x0 + a * w, y0 + b * h, x1 - c * w, y1 - d * h)
        got = mask_to_polygon_px(coverage(true, (x0, y0, x1, y1)), (x0, y0, x1, y1))
        offsets.append(offset_px(got, true))
        centres.append(np.subtract(got.centroid.coords[0], true.centroid.coords[0]))
    assert abs(np.mean(offsets)) <= BIAS_PX
    assert np.abs(np.mean(centres, axis=0)).max() <= BIAS_PX / 2
    assert np.abs(centres).max() < 0.15


def test_edges_of_discs_are_where_they_are():
    offsets = []
    for rng, (x0, y0, x1, y1) in random_boxes(60, seed=1):
        radius = min(x1 - x0, y1 - y0) / 2 * rng.uniform(0.7, 0.95)
        true = Point((x0 + x1) / 2 + rng.uniform(-0.5, 0.5), (y0 + y1) / 2).buffer(radius, quad_segs=64)
        got = mask_to_polygon_px(coverage(true, (x0, y0, x1, y1)), (x0, y0, x1, y1))
        offsets.append(offset_px(got, true))
    assert abs(np.mean(offsets)) <= BIAS_PX and np.abs(offsets).max() <= 2 * BIAS_PX


def test_edges_of_half_planes_are_where_they_are():
    offsets = []
    for rng, (x0, y0, x1, y1) in random_boxes(60, seed=2):
        angle, far = rng.uniform(0, 2 * np.pi), 200
        side = shapely.affinity.rotate(box(-far, 0, far, far), angle, origin=(0, 0), use_radians=True)
        side = shapely.affinity.translate(side, (x0 + x1) / 2 + rng.uniform(-3, 3), (y0 + y1) / 2)
        true = side.intersection(box(x0, y0, x1, y1))
        got = mask_to_polygon_px(coverage(true, (x0, y0, x1, y1)), (x0, y0, x1, y1))
        offsets.append(offset_px(got, true))
    assert abs(np.mean(offsets)) <= BIAS_PX and np.abs(offsets).max() <= 2 * BIAS_PX


def test_a_courtyard_stays_a_hole_and_a_pinhole_is_filled():
    prob = np.ones((28, 28))
    prob[10:18, 10:18] = 0
    prob[4, 4] = 0
    got = mask_to_polygon_px(prob, (0, 0, 28, 28))
    assert [Polygon(r).area for r in got.interiors] == [pytest.approx(64 - 0.5)]
    assert got.interiors[0].bounds == (10, 10, 18, 18)


def test_parts_stay_unless_they_are_crumbs():
    prob = np.zeros((28, 28))
    prob[2:12, 2:12] = prob[2:12, 16:24] = prob[20, 20] = 1
    box_xyxy = (0, 0, 28, 28)
    assert len(mask_to_polygon_px(prob, box_xyxy).geoms) == 2
    assert mask_to_polygon_px(prob, box_xyxy, min_part_share=1).bounds == (2, 2, 12, 12)
    assert len(mask_to_polygon_px(prob, box_xyxy, min_part_share=0).geoms) == 3


@pytest.mark.parametrize(
    ("prob", "box_xyxy"),
    [
        (np.zeros((28, 28)), (0, 0, 9, 9)),
        (np.full((28, 28), 0.5), (0, 0, 9, 9)),
        (np.full((28, 28), np.nan), (0, 0, 9, 9)),
        (np.ones((28, 28)), (5, 5, 5, 9)),
        (np.ones((28, 28)), (5, 5, 2, 9)),
        (np.ones((28, 28)), (0, 0, np.nan, 9)),
    ],
)
def test_nothing_is_none(prob, box_xyxy):
    got = mask_to_polygon_px(prob, box_xyxy)
    assert got is None or got.area < 1e-6


def test_one_cell_is_a_diamond():
    got = mask_to_polygon_px(np.ones((1, 1)), (0, 0, 2, 2))
    assert got.equals(Polygon([(1, 0), (2, 1), (1, 2), (0, 1)]))


masks = arrays(
    np.float64,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0, 0.2, 0.5, 0.9, 1]),
)


@settings(max_examples=30, deadline=None)
@given(masks, st.floats(-50, 50), st.floats(-50, 50))
def test_outlines_are_valid_inside_the_box_and_move_with_it(prob, dx, dy):
    box_xyxy = np.array([3.0, 4.0, 33.0, 29.0])
    got = mask_to_polygon_px(prob, box_xyxy)
    moved = mask_to_polygon_px(prob, box_xyxy + [dx, dy, dx, dy])
    assert (got is None) == (moved is None)
    if got is not None:
        assert got.is_valid and got.area > 0
        assert box(*box_xyxy).buffer(1e-9).covers(got)
        back = shapely.affinity.translate(moved, -dx, -dy)
        assert back.symmetric_difference(got).area < 1e-6


@settings(max_examples=30, deadline=None)
@given(masks)
def test_area_lies_between_the_cells_surely_inside_and_those_that_may_be(prob):
    h, w = prob.shape
    got = mask_to_polygon_px(prob, (0, 0, w, h), min_part_share=0, min_hole_px2=0)
    area = 0.0 if got is None else got.area
    # An edge lies at most one cell from the sample it belongs to, in each direction.
    near = np.zeros((h + 2, w + 2), bool)
    for di in range(3):
        for dj in range(3):
            near[di : di + h, dj : dj + w] |= prob > 0.5
    assert area <= near.sum() + 1e-9
    quad_inside = (
        (prob[:-1, :-1] > 0.5) & (prob[1:, :-1] > 0.5) & (prob[:-1, 1:] > 0.5) & (prob[1:, 1:] > 0.5)
    )
    assert area >= quad_inside.sum() - 1e-9


@settings(max_examples=30, deadline=None)
@given(masks, st.floats(0.05, 2.0))
def test_simplifying_moves_the_outline_by_no_more_than_the_tolerance(prob, tolerance_px):
    outline = mask_to_polygon_px(prob, (0, 0, 20, 20))
    if outline is not None:
        simple = simplify(outline, tolerance_px)
        assert simple.is_valid and simple.area > 0
        assert simple.boundary.hausdorff_distance(outline.boundary) <= tolerance_px + 1e-6
        assert shapely.get_num_coordinates(simple) <= shapely.get_num_coordinates(outline)


def test_straight_edges_need_no_vertices_between_their_ends():
    got = mask_to_polygon_px(np.ones((28, 28)), (0, 0, 28, 28))
    assert len(got.exterior.coords) - 1 == 8


@given(arrays(np.float32, (6, 5, 7), elements=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0, np.nan])))
@settings(max_examples=60)
def test_many_masks_are_outlined_as_each_of_them(probs):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (6, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 30, (6, 2))])
    boxes[3, 2] = boxes[3, 0]  # no area
    for tolerance_px in (0.0, 1.5):
        found = masks_to_polygons_px(probs, boxes, tolerance_px)
        for polygon, prob, box_xyxy in zip(found, probs, boxes, strict=True):
            alone = mask_to_polygon_px(prob, box_xyxy, tolerance_px=tolerance_px)
            assert (polygon is None) == (alone is None)
            assert polygon is None or polygon.equals_exact(alone, 1e-9)


def test_no_masks_have_no_outlines():
    assert masks_to_polygons_px(np.zeros((0, 28, 28)), np.zeros((0, 4))) == []
