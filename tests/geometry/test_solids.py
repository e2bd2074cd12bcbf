"""Blocks are solids whatever the outline is like, and the check finds each way of not being one."""

from fusiondet.buildings import clean_polygon
from fusiondet.geometry.solids import GROUND, ROOF, WALL, apart, check_solid, extrude, solid_volume

import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.affinity import rotate
from shapely.geometry import Polygon, box

CUBE = extrude(box(0, 0, 1, 1), 0, 1)


def test_a_cube():
    assert sorted(CUBE.vertices) == [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    assert CUBE.kinds == [GROUND, ROOF, WALL, WALL, WALL, WALL] and len(CUBE.faces) == 6
    assert check_solid(CUBE.vertices, CUBE.faces) == [] and solid_volume(CUBE.vertices, CUBE.faces) == 1
    bottom = [CUBE.vertices[i] for i in CUBE.faces[0][0]]
    assert {z for *_, z in bottom} == {0} and not Polygon([(x, y) for x, y, _ in bottom]).exterior.is_ccw


@pytest.mark.parametrize("turn", [False, True])
def test_a_courtyard_has_walls_that_look_into_it(turn):
    outline = box(0, 0, 10, 10).difference(box(3, 3, 7, 7))
    block = extrude(shapely.reverse(outline) if turn else outline, 2, 5)
    assert check_solid(block.vertices, block.faces) == []
    assert solid_volume(block.vertices, block.faces) == pytest.approx(84 * 3, rel=1e-12)
    assert [len(rings) for rings in block.faces] == [2, 2] + [1] * 8


def test_far_from_the_origin_no_digit_is_lost():
    block = extrude(box(500_000_000, 5_800_000_000, 500_000_007, 5_800_000_003), 123_000, 123_005)
    assert check_solid(block.vertices, block.faces) == []
    assert solid_volume(block.vertices, block.faces) == 105


def with_faces(change):
    faces = [[list(ring) for ring in rings] for rings in CUBE.faces]
    change(faces)
    return CUBE.vertices, faces


BROKEN = {
    "1 pieces|edges": lambda f: f.pop(),
    "look inwards": lambda f: [ring.reverse() for rings in f for ring in rings],
    "edges that are not shared": lambda f: f[2][0].reverse(),
    "without three different corners": lambda f: f[2].__setitem__(0, [0, 1, 0]),
    "no face": lambda f: f.clear(),
}


@pytest.mark.parametrize("message", BROKEN)
def test_faces_that_make_no_solid_are_found(message):
    problems = check_solid(*with_faces(BROKEN[message]))
    assert len(problems) == 1 and any(word in problems[0] for word in message.split("|"))


def test_vertices_that_make_no_solid_are_found():
    bent = [(x, y, z + 0.1 * ((x, y, z) == (1, 1, 1))) for x, y, z in CUBE.vertices]
    assert "is not planar" in check_solid(bent, CUBE.faces)[0]
    assert check_solid(bent, CUBE.faces, tolerance=0.2) == []
    flat = [(x, y, 0) for x, y, _ in CUBE.vertices]
    problems = check_solid(flat, CUBE.faces)
    assert "4 vertices at the place of another" in problems and "face 2 has no area" in problems
    house = extrude(Polygon([(0, 0), (4, 0), (4, 4), (2, 6), (0, 4)]), 0, 1)
    swapped = [house.vertices[i] for i in (1, 0, 2, 3, 4, 6, 5, 7, 8, 9)]
    assert any("crosses itself" in p for p in check_solid(swapped, house.faces))


def test_two_solids_are_not_one_and_holes_have_a_direction():
    faces = CUBE.faces + [[[i + 8 for i in ring] for ring in rings] for rings in CUBE.faces]
    apart_by_5 = CUBE.vertices + [(x + 5, y, z) for x, y, z in CUBE.vertices]
    assert check_solid(apart_by_5, faces) == ["2 pieces that do not hang together"]
    block = extrude(box(0, 0, 10, 10).difference(box(3, 3, 7, 7)), 0, 1)
    block.faces[0][1].reverse()
    assert any("same way as its outer ring" in p for p in check_solid(block.vertices, block.faces))


def test_a_courtyard_that_touches_the_wall_in_a_point_is_cut_open():
    outline = Polygon(box(0, 0, 8, 8).exterior, [[(0, 4), (3, 2), (3, 6)]])
    assert outline.is_valid and not outline.interiors[0].disjoint(outline.exterior)
    whole = extrude(outline, 0, 1)
    parts = apart(outline, 1)
    assert len(parts) > 1 and all(not p.interiors for p in parts)
    assert shapely.unary_union(parts).equals(outline)
    blocks = [extrude(p, 0, 1) for p in parts]
    assert all(check_solid(b.vertices, b.faces) == [] for b in blocks)
    # Two courtyards that meet in a corner: the edge there belongs to four walls.
    corner = box(0, 0, 9, 9).difference(box(2, 2, 4, 4).union(box(4, 4, 6, 6)))
    broken = extrude(corner, 0, 1)
    assert any("vertices at the place" in p for p in check_solid(broken.vertices, broken.faces))
    blocks = [extrude(p, 0, 1) for p in apart(corner, 1)]
    assert all(check_solid(b.vertices, b.faces) == [] for b in blocks)
    assert sum(solid_volume(b.vertices, b.faces) for b in blocks) == pytest.approx(corner.area)
    assert whole.kinds[0] == GROUND


def test_a_courtyard_as_narrow_as_the_grid_is_filled():
    outline = Polygon(box(0, 0, 8, 8).exterior, [[(0, 4), (1, 4), (1, 5)]])
    parts = apart(outline, 1)
    assert all(not p.interiors for p in parts) and abs(sum(p.area for p in parts) - 64) <= 1
    assert all(check_solid(b.vertices, b.faces) == [] for b in (extrude(p, 0, 1) for p in parts))


@st.composite
def outlines(draw):
    """Rooms on a coarse grid, taken away from each other: courtyards, some that touch something, and several pieces."""
    side = st.integers(0, 11)
    boxes = draw(
        st.lists(st.tuples(side, side, st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8)
    )
    shape = Polygon()
    for number, (x, y, w, h) in enumerate(boxes):
        room = box(x, y, x + w, y + h)
        shape = shape.difference(room) if number % 3 == 2 else shape.union(room)
    shape = rotate(shape, draw(st.sampled_from([0, 17, 45, 88.5])), origin=(0, 0))
    return clean_polygon(shapely.set_precision(shapely.transform(shape, lambda xy: xy * 1000), 1))


@given(outlines(), st.integers(-5000, 5000), st.integers(1, 30_000))
def test_every_outline_gives_solids_with_its_area(outline, low, height):
    parts = [p for piece in shapely.get_parts(outline) for p in apart(piece, 1)]
    volume = 0
    for part in parts:
        block = extrude(part, low, low + height)
        assert check_solid(block.vertices, block.faces) == []
        volume += solid_volume(block.vertices, block.faces)
    assert volume == pytest.approx(sum(p.area for p in parts) * height, rel=1e-9)
    # A cut through a slanted wall moves its corner by less than a unit.
    assert shapely.symmetric_difference(shapely.unary_union(parts), outline).area <= 2 * outline.length
