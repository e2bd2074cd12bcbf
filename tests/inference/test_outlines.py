"""Outlines of a scene that comes in row by row: blocks of houses are set straight, and thinned out, as in one piece."""

from types import SimpleNamespace

from fusiondet.buildings import Building, pixel_to_map
from fusiondet.geometry.overlaps import without_overlaps
from fusiondet.geometry.regularization import regularize
from fusiondet.geometry.seams import SeamMerger
from fusiondet.inference.outlines import HeldBack, OutlineFinisher, Regularizer, buildings_to_map
from fusiondet.inference.pipeline import WindowResult
from fusiondet.inference.windows import scene_windows

import numpy as np
import pytest
import shapely
from hypothesis import given as given_
from hypothesis import settings
from hypothesis import strategies as st
from shapely.affinity import rotate

PIXEL_M = (0.5, 0.5)


def houses(rng, rows=6, columns=9):
    """Rows of houses, wall to wall, with outlines a little off, in pixels."""
    found = []
    for row in range(rows):
        for column in range(columns):
            x, y = 10 + 40 * column, 15 + 90 * row
            ring = np.array(
                [(x, y), (x + 20, y), (x + 40, y), (x + 40, y + 30), (x + 20, y + 30), (x, y + 30)], float
            )
            ring[[1, 4]] += rng.normal(0, 0.6, (2, 2))
            found.append(Building(shapely.Polygon(ring)))
    return found


def given(windows, buildings, margin_px, shaped):
    """What comes out when each building comes with the last window that sees it; and after which window."""
    out, held = [], HeldBack(windows, margin_px)
    for index, (x0, y0, w, h) in enumerate(windows):
        box = shapely.box(x0, y0, x0 + w, y0 + h)
        later = [shapely.box(x, y, x + a, y + b) for x, y, a, b in windows[index + 1 :]]
        mine = [
            b for b in buildings
            if b.polygon.intersects(box) and not any(b.polygon.intersects(other) for other in later)
        ]  # fmt: skip
        out += [(index, b) for b in shaped(held.add(index, mine))]
    return out + [(len(windows), b) for b in shaped(held.finish([]))]


@pytest.mark.parametrize(("side", "overlap"), [(128, 48), (200, 64), (1000, 0)])
def test_the_result_is_that_of_the_whole_layer(side, overlap):
    buildings = houses(np.random.default_rng(0))
    windows = [window for window, _ in scene_windows(400, 580, side, overlap)]
    regularizer = Regularizer(PIXEL_M, tolerance_m=1.0)
    found = given(windows, buildings, regularizer.margin_px, regularizer.regular)
    whole = regularize([shapely.transform(b.polygon, lambda xy: xy * 0.5) for b in buildings], 1.0)
    by_place = {tuple(np.round(p.centroid.coords[0])): p for p in whole}
    assert len(found) == len(buildings) == len(by_place)
    for _, building in found:
        metres = shapely.transform(building.polygon, lambda xy: xy * 0.5)
        same = by_place[tuple(np.round(metres.centroid.coords[0]))]
        assert metres.symmetric_difference(same).area < 1e-6
        assert len(building.polygon.exterior.coords) <= 7
    raw = sum(b.polygon.area for b in buildings)
    together = shapely.union_all([b.polygon for _, b in found])
    assert together.area == pytest.approx(raw, rel=0.02)


def test_what_stands_at_the_far_end_of_a_building_longer_than_the_overlap_waits_for_it():
    windows = [(0, y, 200, 200) for y in (0, 160, 320)]
    long, early, lone = (
        shapely.box(50, 20, 80, 480),
        shapely.box(20, 20, 50, 40),
        shapely.box(120, 20, 150, 40),
    )
    merger = SeamMerger(windows)
    held, out = HeldBack(windows, 2.0, merger.waiting), []
    for index, (x, y, w, h) in enumerate(windows):
        view = shapely.box(x, y, x + w, y + h)
        seen = [Building(p.intersection(view)) for p in (long, early, lone) if p.intersects(view)]
        out.append({b.polygon.bounds for b in held.add(index, merger.add(index, seen))})
    assert out == [{lone.bounds}, set(), set()]
    assert {b.polygon.bounds for b in held.finish(merger.finish())} == {long.bounds, early.bounds}
    assert merger.waiting() == []


def test_buildings_are_not_held_to_the_end():
    buildings = houses(np.random.default_rng(1), rows=30)
    windows = [window for window, _ in scene_windows(400, 2760, 128, 48)]
    found = given(windows, buildings, 2.0, list)
    waited = [index for index, _ in found]
    assert waited.count(len(windows)) < len(buildings) / 5


@pytest.mark.parametrize("whole_px", [1000, 128])
def test_of_an_area_of_interest_come_the_buildings_of_the_whole_scene(whole_px):
    """Walls that are shared across its border are set straight as if it was not there."""
    rng = np.random.default_rng(3)
    jitter = rng.normal(0, 0.7, (13, 2, 2))
    corners = np.array([[(20 + 25 * i, y + 9 * (i % 3)) for y in (40, 80)] for i in range(13)]) + jitter
    row = [Building(shapely.Polygon([a[0], b[0], b[1], a[1]])) for a, b in zip(corners, corners[1:])]
    windows = list(scene_windows(400, 128, whole_px, 48))
    area = shapely.box(0, 0, 160, 200)

    def finished(aoi_px):
        plan = SimpleNamespace(windows=windows, pixel_m=PIXEL_M, aoi_px=aoi_px)
        outlines, found = OutlineFinisher(plan, regularize_m=1.0), []
        for index, ((x, y, w, h), _) in enumerate(windows):
            view = shapely.box(x, y, x + w, y + h)
            seen = [Building(b.polygon.intersection(view)) for b in row if b.polygon.intersects(view)]
            found += outlines.add(WindowResult(index, seen))
        found += outlines.finish()
        return {b.polygon.normalize().wkb for b in found}

    whole, part = finished(None), finished(area)
    assert 3 < len(part) < len(whole) == len(row) and part < whole


def test_pixels_that_are_not_square_are_square_on_the_ground():
    house = rotate(shapely.box(0, 0, 40, 20), 30, origin=(0, 0))  # metres
    stretched = shapely.transform(house, lambda xy: xy / (0.5, 1.0) + 100)
    (found,) = Regularizer((0.5, 1.0), tolerance_m=0.5).regular([Building(stretched)])
    metres = shapely.transform(found.polygon, lambda xy: (xy - 100) * (0.5, 1.0))
    assert metres.symmetric_difference(house).area < 0.01


def test_many_buildings_on_the_map_are_each_of_them_on_the_map():
    buildings = [
        *houses(np.random.default_rng(2)),
        Building(shapely.box(0, 0, 9, 9).difference(shapely.box(3, 3, 6, 6))),
    ]
    transform = (0.4, 0.3, 6e5, 0.3, -0.4, 5.7e6)
    for moved, building in zip(buildings_to_map(buildings, transform), buildings, strict=True):
        assert moved.polygon.equals_exact(pixel_to_map(building.polygon, transform), 1e-6)
    assert buildings_to_map([], transform) == []


@given_(st.integers(0, 2**31), st.sampled_from([(96, 32), (128, 64), (1000, 0)]))
@settings(max_examples=15, deadline=None)
def test_row_by_row_is_as_all_at_once(seed, windows):
    rng = np.random.default_rng(seed)
    corners, sides = rng.uniform(0, 380, (120, 2)), rng.uniform(4, 24, (120, 2))
    rows = np.column_stack([corners, corners + sides, rng.uniform(0.5, 1, 120)]).tolist()
    buildings = [Building(shapely.box(*row[:4]), score=row[4]) for row in rows]
    rects = [window for window, _ in scene_windows(400, 400, *windows)]
    found = given(rects, buildings, 0.0, without_overlaps)
    assert {id(b) for _, b in found} == {id(b) for b in without_overlaps(buildings)}
