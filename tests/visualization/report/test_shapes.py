"""Outlines as arrays: the triangles cover the buildings and nothing else, and every ring is there."""

from fusiondet.buildings import clean_polygon
from fusiondet.visualization.report.shapes import Shapes, shapes_of

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import MultiPolygon, Point, Polygon, box


def array_of(*outlines) -> np.ndarray:
    array = np.empty(len(outlines), dtype=object)
    array[:] = outlines
    return array


def roof(shapes: Shapes, owner: int):
    """The roof of one building, put together from its triangles."""
    first = np.concatenate([[0], np.cumsum(shapes.ring_size)])
    vertex_owner = np.repeat(shapes.ring_owner, shapes.ring_size)
    assert len(vertex_owner) == len(shapes.xy) == first[-1]
    mine = shapes.triangles[vertex_owner[shapes.triangles[:, 0]] == owner]
    assert (vertex_owner[mine] == owner).all()
    triangles = shapely.polygons(shapes.xy[mine].astype(float))
    return triangles, shapely.union_all(triangles)


def test_courtyards_stay_open_and_parts_stay_with_their_building():
    courtyard = Polygon([(0, 0), (20, 0), (20, 20), (0, 20)], [[(5, 5), (5, 15), (15, 15), (15, 5)]])
    two = MultiPolygon([box(50, 0, 55, 5), box(60, 0, 65, 5)])
    shapes = shapes_of(array_of(courtyard, two))
    assert shapes.ring_size.tolist() == [4, 4, 4, 4]
    assert shapes.ring_owner.tolist() == [0, 0, 1, 1]
    for k, outline in enumerate((courtyard, two)):
        triangles, whole = roof(shapes, k)
        assert whole.equals(outline) and shapely.area(triangles).sum() == pytest.approx(outline.area)
    assert shapes.tolerance_m == 0


def test_wall_that_two_buildings_share_belongs_to_both():
    shapes = shapes_of(array_of(box(0, 0, 10, 10), box(10, 0, 20, 10)))
    assert len(shapes.xy) == 8
    assert [roof(shapes, k)[1].bounds for k in (0, 1)] == [(0, 0, 10, 10), (10, 0, 20, 10)]


def test_nothing_has_no_shape():
    for outlines in (array_of(), array_of(None)):
        shapes = shapes_of(outlines)
        assert shapes.xy.shape == (0, 2) and shapes.triangles.shape == (0, 3) and not len(shapes.ring_size)


def test_an_outline_that_cannot_be_placed_leaves_the_others_their_numbers():
    shapes = shapes_of(array_of(None, box(0, 0, 1, 1)))
    assert shapes.ring_owner.tolist() == [1] and len(shapes.triangles) == 2


def test_many_vertices_are_thinned_no_further_than_stated():
    circles = array_of(*(Point(100 * k, 0).buffer(20, quad_segs=500) for k in range(3)))
    whole, thin = shapes_of(circles), shapes_of(circles, max_vertices=300)
    assert len(whole.xy) == 6000 and whole.tolerance_m == 0
    assert len(thin.xy) <= 300 and thin.tolerance_m == 0.1
    for k, circle in enumerate(circles):
        assert roof(thin, k)[1].hausdorff_distance(circle) <= 0.1 + 1e-4


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 12), st.integers(1, 12)),
        min_size=1,
        max_size=8,
    ),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 6)), max_size=5),
)
def test_triangles_cover_any_outline_exactly(blocks, yards):
    solid = shapely.union_all([box(x, y, x + w, y + h) for x, y, w, h in blocks])
    outline = clean_polygon(
        solid.difference(shapely.union_all([box(x, y, x + s, y + s) for x, y, s in yards]))
    )
    if outline is None:
        return
    triangles, whole = roof(shapes_of(array_of(outline)), 0)
    # As large as the outline and all inside of it: no gap, no overlap.
    assert shapely.area(triangles).sum() == pytest.approx(outline.area)
    assert whole.symmetric_difference(outline).area == pytest.approx(0, abs=1e-6)
