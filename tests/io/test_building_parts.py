"""Parts of a building become one building."""

from fusiondet.geometry.overlaps import enclosing
from fusiondet.io.building_parts import combine_parts, join_buildings, without_parts
from fusiondet.io.vectors import UNKNOWN_HEIGHT
from tests.support.vector_cases import house

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import box


class TestParts:
    def test_union_and_mean_by_area(self):
        joined = join_buildings([house("a", 0, 20, 6.0), house("a", 20, 30, 9.0)])
        assert joined.polygon.equals(box(0, 0, 30, 10)) and joined.height_m == 7.0
        assert (joined.id, joined.height_stat, joined.attributes) == ("a", "p70", {})

    @pytest.mark.parametrize(("stat", "height_m"), [("max", 9.0), ("min", 6.0), ("p50", 7.0), (None, 7.0)])
    def test_the_highest_of_maxima_and_the_lowest_of_minima(self, stat, height_m):
        assert combine_parts([6.0, 9.0], [20, 10], stat) == height_m

    def test_parts_apart_are_one_building(self):
        joined = join_buildings([house("a", 0, 10, 6.0), house("a", 50, 60, 6.0)])
        assert joined.polygon.geom_type == "MultiPolygon" and joined.polygon.area == 200

    def test_unknown_parts(self):
        little = join_buildings([house("a", 0, 20, 6.0), house("a", 20, 30)])
        assert little.height_m == 6.0 and little.attributes == {}
        most = join_buildings([house("a", 0, 10, 6.0), house("a", 10, 30)])
        assert most.height_m is None and most.attributes == {UNKNOWN_HEIGHT: "missing"}
        assert most.height_stat is None
        assert combine_parts([None], [1], "p70") is None and combine_parts([], [], None) is None

    @given(
        st.lists(st.tuples(st.integers(1, 30), st.floats(0.5, 100)), min_size=1, max_size=6),
        st.randoms(use_true_random=False),
    )
    def test_volume_and_area_are_kept_in_any_order(self, widths_and_heights, random):
        parts, x = [], 0
        for width, height_m in widths_and_heights:
            parts.append(house("a", x, x + width, height_m))
            x += width
        random.shuffle(parts)
        joined = join_buildings(parts)
        assert joined.polygon.area == pytest.approx(10 * x)
        volume = sum(p.polygon.area * p.height_m for p in parts)
        assert joined.polygon.area * joined.height_m == pytest.approx(volume)


class TestPartsInside:
    def heights(self, *buildings):
        inside = enclosing([b.polygon for b in buildings])
        assert without_parts(buildings, inside, heights=False) == [buildings[0]]
        (whole,) = without_parts(buildings, inside, heights=True)
        assert whole.polygon.equals(buildings[0].polygon) and whole.id == "a"
        return whole.height_m

    def test_parts_that_cover_the_whole(self):
        assert self.heights(house("a", 0, 30, 9.0), house("b", 0, 20, 6.0), house("c", 20, 30, 9.0)) == 7.0

    def test_the_whole_has_its_own_height_where_no_part_is(self):
        assert self.heights(house("a", 0, 30, 6.0), house("b", 0, 10, 12.0)) == 8.0

    def test_a_part_of_unknown_height_is_as_high_as_the_whole(self):
        assert self.heights(house("a", 0, 30, 6.0), house("b", 0, 10)) == 6.0

    def test_a_whole_of_unknown_height(self):
        assert self.heights(house("a", 0, 30), house("b", 0, 20, 6.0)) == 6.0
        assert self.heights(house("a", 0, 30), house("b", 0, 10, 6.0)) is None

    def test_a_part_of_a_part_counts_once(self):
        parts = house("b", 0, 20, 6.0), house("c", 0, 10, 12.0)
        assert self.heights(house("a", 0, 30, 3.0), *parts) == 7.0
