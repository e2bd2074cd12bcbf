"""Points along outlines, and correlation over shifts."""

from fusiondet.doctor.edges import correlation, edge_points, middle, peak_px, splat
from tests.support.tiny_city import courtyard

import numpy as np
import pytest
from shapely.geometry import box


def test_normals_point_out_of_buildings_and_into_courtyards():
    edges = edge_points([courtyard(20, 20, size=40, hole=20)], 100, 100)
    inside = edges.xy - 0.25 * edges.outward
    rim = (np.abs(inside - 40).max(axis=1) < 20) & (np.abs(inside - 40).max(axis=1) > 10)
    assert len(edges.xy) == 2 * 4 * (40 + 20) and rim.all()
    assert edges.length.sum() == pytest.approx(4 * (40 + 20))


def test_edges_on_the_border_are_cuts_and_no_walls():
    edges = edge_points([box(0, 10, 30, 20)], 100, 100)
    assert (edges.xy[:, 0] > 1).all() and (edges.outward[:, 0] >= 0).all()


def test_splat_keeps_sums_and_centres():
    array = splat(np.array([[3.25, 7.5]]), np.array([2.0]), 20, 10)
    rows, columns = np.indices(array.shape) + 0.5
    assert array.sum() == pytest.approx(2)
    assert ((array * columns).sum() / 2, (array * rows).sum() / 2) == pytest.approx((3.25, 7.5))


@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-9, 9)])
def test_correlation_finds_the_shift_of_the_picture(shift):
    template = np.random.default_rng(0).normal(size=(60, 50))
    picture = np.roll(template, shift[::-1], axis=(0, 1))
    (surface,) = correlation(picture, [template], 10)
    assert peak_px(surface) == shift


def test_without_outlines_there_are_no_edges():
    edges = edge_points([], 10, 10)
    assert [len(a) for a in (edges.xy, edges.outward, edges.length, edges.building)] == [0] * 4


def test_edges_name_their_building():
    edges = edge_points([box(5, 5, 10, 10), box(20, 20, 30, 30)], 100, 100)
    assert [edges.length[edges.building == i].sum() for i in (0, 1)] == pytest.approx([20, 40])


@pytest.mark.parametrize("shape", [(1, 1), (511, 512), (513, 600), (2000, 30)])
def test_middle_keeps_the_centre(shape):
    array = np.add.outer(np.arange(shape[0]), 10000 * np.arange(shape[1]))
    part = middle(array)
    assert max(part.shape) <= 513 and np.median(part) == pytest.approx(np.median(array), abs=1e4)
