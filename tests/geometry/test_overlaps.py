"""Of outlines that overlap, the better one stays."""

from fusiondet.buildings import Building
from fusiondet.geometry.overlaps import check_max_overlap, enclosing, without_overlaps
from tests.support.messages import raises_naming

import numpy as np
import pytest
import shapely
from hypothesis import given as given_
from hypothesis import settings
from hypothesis import strategies as st


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
            with raises_naming("max_overlap", "0"):
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


class TestEnclosing:
    def test_parts_are_inside_the_smallest_outline_around_them(self):
        whole, part, within = shapely.box(0, 0, 30, 30), shapely.box(0, 0, 20, 20), shapely.box(5, 5, 9, 9)
        assert enclosing([within, part, whole]).tolist() == [1, 2, -1]

    def test_a_courtyard_and_a_neighbour_are_beside(self):
        block = shapely.Polygon(shapely.box(0, 0, 30, 30).exterior, [shapely.box(10, 10, 20, 20).exterior])
        yard, neighbour = shapely.box(12, 12, 18, 18), shapely.box(30, 0, 40, 10)
        diagonal = shapely.Polygon([(0, 0), (60, 60), (60, 58), (2, 0)])
        beside = shapely.box(30, 10, 40, 20)  # in the frame of the diagonal, not in it
        assert (enclosing([block, yard, neighbour]) == -1).all()
        assert (enclosing([diagonal, beside]) == -1).all()

    @pytest.mark.parametrize(("over_m", "found"), [(0.9, 0), (1.1, -1)])
    def test_a_part_may_stand_out_by_a_tenth(self, over_m, found):
        assert (
            enclosing([shapely.box(0, 0, 50, 50), shapely.box(40 + over_m, 0, 50 + over_m, 10)])[1] == found
        )

    def test_one_of_two_that_are_the_same(self):
        assert enclosing([shapely.box(0, 0, 5, 5)] * 3).tolist() == [-1, 0, 1]
        assert enclosing([]).tolist() == [] and enclosing([shapely.box(0, 0, 1, 1)]).tolist() == [-1]
