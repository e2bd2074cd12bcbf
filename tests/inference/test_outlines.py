"""Outlines of a scene that comes in row by row: blocks of houses are set straight, and thinned out, as in one piece."""

from types import SimpleNamespace

from fusiondet.buildings import Building, pixel_to_map
from fusiondet.errors import InputError
from fusiondet.geometry.regularization import regularize
from fusiondet.geometry.seams import SeamMerger
from fusiondet.inference.outlines import (
    HeldBack,
    Regularizer,
    buildings_to_map,
    check_max_overlap,
    without_overlaps,
)
from fusiondet.inference.pipeline import WindowResult
from fusiondet.inference.scene import finished_buildings
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
        results = []
        for index, ((x, y, w, h), _) in enumerate(windows):
            view = shapely.box(x, y, x + w, y + h)
            seen = [Building(b.polygon.intersection(view)) for b in row if b.polygon.intersects(view)]
            results.append(WindowResult(index, seen))
        found = [b for some in finished_buildings(plan, results, regularize_m=1.0) for b in some]
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


def scored(*rows):
    """Buildings of (x0, y0, x1, y1, score)."""
    return [Building(shapely.box(*row[:4]), score=row[4]) for row in rows]


class TestOverlaps:
    def left(self, *rows, **options):
        """Numbers of the rows that stay."""
        buildings = scored(*rows)
        kept = without_overlaps(buildings, **options)
        assert [b for b in buildings if any(b is k for k in kept)] == kept, "in their order, as they are"
        return [i for i, b in enumerate(buildings) if any(b is k for k in kept)]

    def test_the_better_of_two_sights_of_one_building_stays(self):
        assert self.left((0, 0, 10, 10, 0.8), (1, 0, 11, 10, 0.9)) == [1]
        assert self.left((0, 0, 10, 10, 0.9), (1, 0, 11, 10, 0.9)) == [0], "of equals the first by place"
        assert self.left((0, 0, 10, 10, 0.9), (0, 0, 10, 11, 0.9)) == [1], "or the larger one"

    def test_a_piece_in_a_better_building_goes(self):
        assert self.left((0, 0, 20, 20, 0.9), (5, 5, 10, 10, 0.7)) == [0]

    def test_houses_that_together_are_a_worse_outline_stay_and_it_goes(self):
        row = [(x, 0, x + 8, 10, 0.9) for x in (0, 8, 16)]
        assert self.left((0, 0, 24, 10, 0.6), *row) == [1, 2, 3]

    def test_a_larger_one_with_little_of_it_covered_stays(self):
        assert self.left((0, 0, 20, 20, 0.6), (15, 15, 24, 24, 0.9)) == [0, 1]

    def test_what_is_left_out_covers_nothing(self):
        # The second goes because of the first; the third is half in the second, and little in the first.
        assert self.left((0, 0, 10, 10, 0.9), (4, 0, 14, 10, 0.8), (9, 0, 19, 10, 0.7)) == [0, 2]

    def test_the_share_is_what_is_asked_for(self):
        rows = (0, 0, 10, 10, 0.9), (6.5, 0, 16.5, 10, 0.8)  # 35 %
        assert self.left(*rows) == [0, 1] and self.left(*rows, max_overlap=0.34) == [0]
        assert self.left((0, 0, 10, 10, 0.9), (0, 0, 10, 10, 0.8), max_overlap=1.0) == [0, 1]
        assert self.left() == [] and self.left((0, 0, 1, 1, None)) == [0]

    def test_a_courtyard_is_free(self):
        ring = shapely.box(0, 0, 30, 30).difference(shapely.box(8, 8, 22, 22))
        buildings = [Building(ring, score=0.9), Building(shapely.box(9, 9, 21, 21), score=0.5)]
        assert without_overlaps(buildings) == buildings

    @pytest.mark.parametrize("error_px", [0.0, 1.2])
    def test_terraces_stay_whole(self, error_px):
        """Walls that are shared, and outlines that reach over them by so much as masks do."""
        rng = np.random.default_rng(0)
        row = [
            shapely.box(12 * i, 0, 12 * (i + 1), 20).buffer(error_px, join_style="mitre") for i in range(20)
        ]
        buildings = [Building(p, score=s) for p, s in zip(row, rng.uniform(0.5, 1, 20).tolist(), strict=True)]
        assert without_overlaps(buildings) == buildings

    def test_numbers_that_are_no_share(self):
        for wrong in (0.0, -1, 1.1, float("nan")):
            with pytest.raises(InputError, match="--max-overlap is .*expected a share above 0"):
                check_max_overlap(wrong)

    @given_(
        st.lists(
            st.tuples(
                *[st.integers(0, 300)] * 2, *[st.integers(2, 40)] * 2, st.sampled_from([0.5, 0.7, 0.9])
            ),
            max_size=60,
        ),
        st.sampled_from([0.2, 0.5, 0.8]),
    )
    @settings(max_examples=60, deadline=None)
    def test_nothing_that_stays_is_covered_and_everything_else_is(self, rows, share):
        buildings = scored(*((x, y, x + w, y + h, score) for x, y, w, h, score in rows))
        kept = without_overlaps(buildings, share)
        ids = {id(b) for b in kept}
        for building in buildings:
            better = [
                k.polygon for k in kept
                if k is not building and (k.score, k.polygon.area) >= (building.score, building.polygon.area)
            ]  # fmt: skip
            covered = shapely.union_all(better).intersection(building.polygon).area / building.polygon.area
            if id(building) not in ids:
                assert covered > share - 1e-9
            strictly = [p.polygon for p in kept if p.score > building.score]
            if id(building) in ids:
                covered = shapely.union_all(strictly).intersection(building.polygon).area
                assert covered <= share * building.polygon.area + 1e-6
        assert without_overlaps(list(reversed(kept)), share) == list(reversed(kept)), "once is enough"

    @given_(st.integers(0, 2**31), st.sampled_from([(96, 32), (128, 64), (1000, 0)]))
    @settings(max_examples=15, deadline=None)
    def test_row_by_row_is_as_all_at_once(self, seed, windows):
        rng = np.random.default_rng(seed)
        corners, sides = rng.uniform(0, 380, (120, 2)), rng.uniform(4, 24, (120, 2))
        rows = np.column_stack([corners, corners + sides, rng.uniform(0.5, 1, 120)]).tolist()
        buildings = scored(*rows)
        rects = [window for window, _ in scene_windows(400, 400, *windows)]
        found = given(rects, buildings, 0.0, without_overlaps)
        assert {id(b) for _, b in found} == {id(b) for b in without_overlaps(buildings)}
