"""Buildings of overlapping windows against a model that answers with the truth, cut to its window."""

import dataclasses
import math

from fusiondet.buildings import Building, clean_polygon, validate
from fusiondet.geometry.seams import MIN_OVERLAP_PX, SeamMerger, default_overlap_px
from fusiondet.synthetic.footprints import read_city
from fusiondet.synthetic.presets import preset
from fusiondet.synthetic.procedural import make_city

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.affinity import rotate, scale, translate
from shapely.geometry import Point, Polygon, box

GSD_M = 0.5


def in_pixels(city):
    """The single parts of a city's buildings in pixels from (0, 0), and the size of the grid: two parts that nowhere
    touch are two outlines to whoever sees only one of them."""
    parts = [(p, b) for b in city.buildings for p in getattr(b.footprint, "geoms", [b.footprint])]
    x0, y0, x1, y1 = np.array(shapely.total_bounds([p for p, _ in parts])) / GSD_M
    buildings = [
        Building(
            translate(scale(p, 1 / GSD_M, 1 / GSD_M, origin=(0, 0)), -x0, -y0),
            b.height_m,
            0.8 * b.height_m,
            1.25 * b.height_m,
            score=0.9,
        )
        for p, b in parts
    ]
    return buildings, (math.ceil(x1 - x0), math.ceil(y1 - y0))


@pytest.fixture(scope="module")
def city():
    rngs = np.random.default_rng(0), np.random.default_rng(1)
    return in_pixels(make_city(preset("realistic"), (0, 0, 400, 400), *rngs))


@pytest.fixture(scope="module")
def limburg(shared_data):
    return in_pixels(read_city(shared_data("3dbag-b3-limburg") / "limburg.city.json"))


def grid(size, side, overlap, offset=(0, 0)):
    (w, h), step = size, side - overlap
    return [(x, y, side, side) for y in range(-offset[1], h, step) for x in range(-offset[0], w, step)]


class Oracle:
    """Answers with the truth in a window; with `noise_px`, every outline is off by up to that, and turned a little."""

    def __init__(self, buildings, noise_px=0.0, seed=0):
        self.buildings, self.noise_px, self.rng = buildings, noise_px, np.random.default_rng(seed)
        self.tree = shapely.STRtree([b.polygon for b in buildings])

    def __call__(self, window):
        x, y, w, h = window
        view = box(x, y, x + w, y + h)
        found = []
        for i in sorted(self.tree.query(view, predicate="intersects")):
            polygon, building = self.buildings[i].polygon, self.buildings[i]
            if self.noise_px:
                polygon = translate(polygon, *self.rng.uniform(-self.noise_px, self.noise_px, 2))
                factor = float(np.exp(self.rng.normal(0, 0.1)))
                heights = {k: factor * getattr(building, k) for k in HEIGHTS}
                score = float(self.rng.uniform(0.3, 1))
                building = dataclasses.replace(building, score=score, **heights)
            polygon = clean_polygon(polygon.intersection(view))
            if polygon is not None:
                found.append(dataclasses.replace(building, polygon=polygon))
        return found


HEIGHTS = ("height_m", "height_p16_m", "height_p84_m")


def merged(windows, answers):
    merger = SeamMerger(windows)
    found = [b for i, answer in enumerate(answers) for b in merger.add(i, answer)]
    return found + merger.finish()


def one_to_one(found, truth):
    """(found, truth) pairs; fails unless every building was found once, and every finding is one building."""
    outlines = np.array([b.polygon for b in found])
    i, j = shapely.STRtree([b.polygon for b in truth]).query(outlines, predicate="intersects")
    true = np.array([b.polygon for b in truth])[j]
    shared = shapely.area(shapely.intersection(outlines[i], true))
    much = shared > 0.3 * np.minimum(shapely.area(outlines[i]), shapely.area(true))
    i, j = i[much], j[much]
    assert len(set(i)) == len(i), "two buildings became one"
    assert len(set(j)) == len(j), "one building twice"
    assert len(i) == len(found) == len(truth)
    return [(found[a], truth[b]) for a, b in zip(i, j)]


def key(building):
    return (*building.polygon.bounds, building.polygon.wkb, building.height_m, building.score)


def is_exact(found, truth):
    for got, true in one_to_one(found, truth):
        assert got.polygon.is_valid
        assert abs(got.polygon.area / true.polygon.area - 1) < 0.005
        assert got.polygon.symmetric_difference(true.polygon).area < 0.005 * true.polygon.area
        for name in HEIGHTS:
            assert abs(getattr(got, name) - getattr(true, name)) < 0.01
        assert got.score == pytest.approx(true.score)


# --- the oracle ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "overlap", "offset"),
    [
        (256, MIN_OVERLAP_PX, (0, 0)),
        (256, 97, (37, 91)),
        (300, 150, (11, 3)),
        (300, MIN_OVERLAP_PX, (1, 255)),
        (512, 64, (101, 7)),
    ],
)
def test_a_city_with_terraces_is_seamless(city, side, overlap, offset):
    truth, size = city
    windows = grid(size, side, overlap, offset)
    is_exact(merged(windows, map(Oracle(truth), windows)), truth)


@pytest.mark.parametrize(
    ("side", "overlap", "offset"),
    [(256, MIN_OVERLAP_PX, (13, 77)), (300, 96, (0, 0)), (512, 192, (5, 311)), (301, 33, (299, 1))],
)
def test_real_footprints_are_seamless(limburg, side, overlap, offset):
    truth, size = limburg
    windows = grid(size, side, overlap, offset)
    is_exact(merged(windows, map(Oracle(truth), windows)), truth)


@settings(max_examples=10)
@given(
    st.integers(200, 520), st.integers(32, 110), st.integers(0, 199), st.integers(0, 199), st.floats(0, 360)
)
def test_any_window_overlap_offset_and_direction(city, side, overlap, x, y, angle_deg):
    truth, size = city
    centre = (size[0] / 2, size[1] / 2)
    near = Point(centre).buffer(300)
    turned = [
        dataclasses.replace(b, polygon=rotate(b.polygon, angle_deg, origin=centre))
        for b in truth
        if near.covers(b.polygon)
    ]
    windows = grid(size, side, overlap, (x, y))
    is_exact(merged(windows, map(Oracle(turned), windows)), turned)


@pytest.mark.parametrize("seed", range(4))
def test_outlines_a_pixel_off_and_other_heights_and_scores_make_no_duplicates(city, seed):
    truth, size = city
    windows = grid(size, (256, 300, 512, 256)[seed], (32, 150, 100, 64)[seed], (seed * 31, seed * 57))
    for got, _ in one_to_one(merged(windows, map(Oracle(truth, 1.0, seed), windows)), truth):
        validate(got)


def test_outlines_a_pixel_off_on_real_footprints(limburg):
    truth, size = limburg
    windows = grid(size, 300, 64)
    one_to_one(merged(windows, map(Oracle(truth, 1.0), windows)), truth)


# --- one by one: windows 200 wide that overlap by 40 at x = 160 to 200 ---------------------------------------------

PAIR = [(0, 0, 200, 100), (160, 0, 200, 100)]


def in_pair(left, right):
    """Outlines in the first and in the second window -> what is made of them, from left to right."""
    answers = [
        [Building(clean_polygon(p.intersection(box(x, y, x + w, y + h))), score=0.5) for p in outlines]
        for outlines, (x, y, w, h) in zip((left, right), PAIR)
    ]
    found = merged(PAIR, answers)
    again = merged(PAIR[::-1], answers[::-1])
    assert sorted(map(key, found)) == sorted(map(key, again))
    return outlines([b.polygon for b in found])


def outlines(polygons):
    """From left to right, rings from a defined vertex on."""
    return sorted((p.normalize() for p in polygons), key=lambda p: p.bounds)


def test_outlines_that_differ_in_their_last_digits_are_the_same():
    # The plain overlay of these two is empty.
    a = [(28.203527632659277, 48.102284997119725), (6.337081092724489, 49.94377643243704)]
    a += [(4.352529718740234, 26.378591336964), (26.21897625867502, 24.537099901646684)]
    b = [(28.203527632659274, 48.102284997119725), (6.337081092724489, 49.94377643243703)]
    b += [(4.352529718740236, 26.378591336964), (26.21897625867502, 24.537099901646684)]
    windows = [(0, 0, 60, 100), (0, 0, 100, 60)]
    assert len(merged(windows, [[Building(Polygon(a))], [Building(Polygon(b))]])) == 1


def test_a_cut_building_is_put_together():
    (got,) = in_pair([box(120, 20, 300, 50)], [box(120, 20, 300, 50)])
    assert got.equals(box(120, 20, 300, 50)) and len(got.exterior.coords) == 5


def test_the_window_that_sees_it_whole_has_the_say():
    (got,) = in_pair([box(150, 20, 190, 50)], [box(150, 21, 190, 52)])
    assert got.equals(box(150, 20, 190, 50))


def test_of_two_that_see_it_whole_it_is_the_one_that_sees_it_from_further_inside():
    (got,) = in_pair([box(166, 20, 180, 50)], [box(167, 20, 181, 50)])
    assert got.equals(box(166, 20, 180, 50))


def test_where_both_cut_it_each_rules_to_the_middle():
    (got,) = in_pair([box(120, 20, 300, 50)], [box(120, 22, 300, 52)])
    assert got.equals(box(120, 20, 180, 50).union(box(180, 22, 300, 52)))


def test_an_outline_that_ends_early_is_not_taken_for_the_whole():
    (got,) = in_pair([box(100, 20, 300, 50)], [box(165, 20, 300, 50)])
    assert got.equals(box(100, 20, 300, 50))


def test_terraced_houses_stay_apart_whatever_the_noise():
    houses = [box(x, 20, x + 12, 50) for x in range(100, 280, 12)]
    shifted = [translate(h, 1.5, -1) for h in houses]
    left, right = [h for h in houses if h.bounds[0] < 198], [h for h in shifted if h.bounds[2] > 162]
    assert len(in_pair(left, right)) == len(houses)


def test_a_house_that_one_window_missed_does_not_merge_its_neighbours():
    a, b, c = (box(x, 20, x + 12, 50) for x in (165, 177, 189))
    got = in_pair([a, c], [translate(b, 1, 0)])
    assert got == outlines([a, translate(b, 1, 0), c.intersection(box(0, 0, 200, 100))])


def test_a_building_that_one_window_missed_stays():
    assert in_pair([], [box(170, 20, 190, 40)]) == outlines([box(170, 20, 190, 40)])
    assert in_pair([box(170, 20, 190, 40)], []) == outlines([box(170, 20, 190, 40)])


def test_a_sliver_at_the_border_is_no_evidence():
    assert in_pair([box(140, 20, 165, 50)], [box(140, 20, 165, 50)]) == outlines([box(140, 20, 165, 50)])
    assert in_pair([box(140, 20, 160, 50)], [box(150, 20, 165, 50)]) == outlines([box(140, 20, 160, 50)])


def test_a_small_building_at_the_border_that_the_other_window_missed_is_not_lost():
    shed = box(160, 20, 165, 26)
    assert in_pair([], [shed]) == outlines([shed])
    assert in_pair([box(100, 20, 130, 50)], [shed]) == outlines([shed, box(100, 20, 130, 50)])
    assert in_pair([box(195, 20, 199, 24)], []) == outlines([box(195, 20, 199, 24)])
    # The other window shows something there, be it a little off.
    for other in (box(159, 20, 165, 26), box(150, 20, 158, 26), box(167.5, 20, 180, 26)):
        assert in_pair([other], [shed]) == outlines([other])
    # The end of something larger.
    assert in_pair([], [box(140, 20, 165, 50)]) == in_pair([], [box(140, 20, 162, 22)]) == []


def test_strips_in_a_corner_are_one_building_whichever_machine_sees_them():
    # The shed is within 6 px of a border of each window but the last, which misses it.
    windows = [(0, 0, 200, 200), (160, 0, 200, 200), (0, 160, 200, 200), (100, 100, 200, 200)]
    shed, farm = Building(box(195, 195, 199, 199), score=0.5), Building(box(193, 195, 194, 199), score=0.5)
    (got,) = merged(windows, [[shed], [], [dataclasses.replace(shed, id=2)], []])
    assert got.polygon.equals(shed.polygon)
    answers = [[shed], [], [dataclasses.replace(shed, id=2)], [farm]]
    assert [b.polygon for b in merged(windows, answers)] == [farm.polygon]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1]):
        last, found = SeamMerger(windows), []
        for block in (order[:2], order[2:]):
            merger = SeamMerger(windows)
            found += [b for i in block for b in merger.add(i, answers[i])]
            for i, pieces in merger.take_open().items():
                found += last.add(i, pieces)
        assert [b.polygon for b in found + last.finish()] == [farm.polygon]


def test_no_small_building_is_lost_that_some_window_shows_whole():
    houses = [
        Building(box(x, y, x + 4.5, y + 4.5), score=0.5) for x in range(1, 240, 9) for y in range(1, 240, 9)
    ]
    windows, rng = grid((240, 240), 64, 32, (7, 13)), np.random.default_rng(0)
    answers = [[b for b in answer if rng.random() < 0.6] for answer in map(Oracle(houses), windows)]
    found = shapely.STRtree([b.polygon for b in merged(windows, answers)])
    whole = {b.polygon.wkb: b.polygon for answer in answers for b in answer if b.polygon.area == 4.5**2}
    assert len(whole) > 600
    assert all(len(found.query(p, predicate="intersects")) == 1 for p in whole.values())


def test_a_fragment_within_a_building_is_dropped():
    assert in_pair([box(130, 10, 195, 90)], [box(162, 20, 175, 26)]) == outlines([box(130, 10, 195, 90)])


def test_two_houses_that_one_window_takes_for_one_do_not_overlap_afterwards():
    a, b = box(164, 20, 180, 50), box(180, 20, 190, 50)
    got = in_pair([a, b], [a.union(b)])
    assert shapely.union_all(got).area == pytest.approx(sum(p.area for p in got))


def test_a_shed_in_a_courtyard_is_a_building_of_its_own():
    court = box(150, 10, 198, 90).difference(box(164, 20, 190, 80))
    shed = box(170, 30, 180, 40)
    assert len(in_pair([court, shed], [court, shed])) == 2


def test_legs_of_a_u_are_one_building_even_if_a_window_tells_them_as_two():
    u = box(100, 20, 300, 80).difference(box(150, 40, 300, 60))
    legs = list(u.intersection(box(160, 0, 360, 100)).geoms)
    assert len(legs) == 2
    (got,) = in_pair([u], legs)
    assert got.equals(u)


def test_no_overlap_leaves_what_is_cut_in_pieces():
    windows = [(0, 0, 100, 100), (100, 0, 100, 100)]
    answers = [[Building(box(50, 10, 100, 20))], [Building(box(100, 10, 150, 20))]]
    assert len(merged(windows, answers)) == 2


def test_a_building_larger_than_windows_and_its_courtyard():
    block = box(50, 60, 950, 800).difference(box(250, 260, 700, 600))
    windows = grid((1000, 900), 256, 40)
    (got,) = merged(windows, map(Oracle([Building(block, 12.0, 10.0, 15.0, 0.7)]), windows))
    assert got.polygon.equals(block) and len(got.polygon.interiors) == 1
    assert (got.height_m, got.height_p16_m) == pytest.approx((12, 10 * math.sqrt(12 / 10 * 12 / 15)))


def test_a_building_in_four_windows_is_one():
    windows = grid((300, 300), 200, 60)
    house = Building(box(150, 150, 190, 190), 7.0, 6.0, 8.0, 0.9)
    assert len(merged(windows, map(Oracle([house]), windows))) == 1


# --- heights and scores --------------------------------------------------------------------------------------------


def test_heights_are_weighted_by_area_seen_and_inverse_variance_and_scores_by_area():
    # 80 x 30 px left of the border, 140 x 30 right of it; the spread of log height is twice as wide on the left.
    left = Building(box(120, 20, 200, 50), 10.0, 10 / 1.44, 10 * 1.44, score=0.4)
    right = Building(box(160, 20, 300, 50), 12.0, 12 / 1.2, 12 * 1.2, score=0.8, id="right")
    (got,) = merged(PAIR, [[left], [right]])
    weights = np.array([80 / 4, 140.0])
    log_m = np.average(np.log([10, 12]), weights=weights)
    assert got.height_m == pytest.approx(math.exp(log_m))
    variance = np.average(np.log([1.44, 1.2]) ** 2 + (np.log([10, 12]) - log_m) ** 2, weights=weights)
    assert got.height_p84_m / got.height_m == pytest.approx(math.exp(math.sqrt(variance)))
    assert got.score == pytest.approx((80 * 0.4 + 140 * 0.8) / 220)
    assert got.id == "right"


def test_unknown_heights_are_left_out_and_without_intervals_areas_weigh():
    pieces = [box(120, 20, 200, 50), box(160, 20, 300, 50)]
    (got,) = merged(PAIR, [[Building(pieces[0])], [Building(pieces[1], 9.0, 8.0, 10.0)]])
    assert got.height_m == pytest.approx(9) and got.height_p16_m == pytest.approx(9 / math.sqrt(10 / 8))
    assert got.score is None
    (got,) = merged(PAIR, [[Building(pieces[0], 8.0)], [Building(pieces[1], 9.0, 8.0, 10.0)]])
    assert got.height_m == pytest.approx(math.exp((80 * math.log(8) + 140 * math.log(9)) / 220))
    assert got.height_p16_m is None and got.height_p84_m is None
    (got,) = merged(PAIR, [[Building(p)] for p in pieces])
    assert got.height_m is None


def test_heights_that_are_none_are_unknown_and_no_error():
    pieces = [box(120, 20, 200, 50), box(160, 20, 300, 50)]
    sure = Building(pieces[1], 9.0, 8.0, 10.0)
    for height_m in (0.0, -2.0, math.nan, math.inf):
        (got,) = merged(PAIR, [[Building(pieces[0], height_m, 0.0, 1.0)], [sure]])
        assert got.height_m == pytest.approx(9) and got.height_p84_m > 9
        (got,) = merged(PAIR, [[Building(box(10, 20, 50, 50), height_m, 1.0, 2.0)], []])
        assert (got.height_m, got.height_p16_m, got.height_p84_m) == (None, None, None)
    for low, high in ((0.0, 10.0), (8.0, 0.0), (8.0, math.nan)):
        (got,) = merged(PAIR, [[Building(pieces[0], 9.0, low, high)], [sure]])
        assert got.height_m == pytest.approx(9) and got.height_p16_m is None
    (got,) = merged(PAIR, [[Building(pieces[0], 9.0, 9.0, 9.0)], [sure]])
    assert got.height_m == pytest.approx(9)


@pytest.mark.filterwarnings("ignore:invalid value encountered in linearrings")
def test_outlines_that_cross_themselves_are_mended_and_those_without_area_left_out():
    bow = Polygon([(120, 20), (200, 50), (200, 20), (120, 50)])
    lone = translate(bow, -110, 0)
    nothing = [None, Polygon(), box(10, 10, 10, 20), Polygon([(0, 0), (math.nan, 1), (1, 1)]), Point(20, 20)]
    found = merged(PAIR, [[Building(p) for p in (bow, lone, *nothing)], [Building(box(160, 20, 300, 50))]])
    assert len(found) == 2 and all(b.polygon.is_valid and b.polygon.area > 1000 for b in found)


# --- order, blocks, memory -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy(city):
    truth, size = city
    windows = grid(size, 256, 70, (19, 40))
    return windows, list(map(Oracle(truth, 1.0, 5), windows))


@settings(max_examples=3)
@given(st.randoms(use_true_random=False))
def test_any_order_of_windows_gives_the_same(noisy, random):
    windows, answers = noisy
    order = list(range(len(windows)))
    random.shuffle(order)
    merger = SeamMerger(windows)
    found = [b for i in order for b in merger.add(i, answers[i])] + merger.finish()
    renumbered = merged([windows[i] for i in order], [answers[i] for i in order])
    expected = sorted(map(key, merged(windows, answers)))
    assert sorted(map(key, found)) == sorted(map(key, renumbered)) == expected


@pytest.mark.parametrize("blocks", [2, 5])
def test_blocks_of_several_machines_give_what_one_gives(noisy, blocks):
    windows, answers = noisy
    found, last = [], SeamMerger(windows)
    still_open = {}
    for numbers in np.array_split(np.arange(len(windows)), blocks):
        merger = SeamMerger(windows)
        found += [b for i in numbers for b in merger.add(i, answers[i])]
        still_open |= merger.take_open()
        assert merger.finish() == []
    for i in range(len(windows)):
        found += last.add(i, still_open.get(i, []))
    found += last.finish()
    assert sorted(map(key, found)) == sorted(map(key, merged(windows, answers)))
    assert blocks > 2 or sum(map(len, still_open.values())) < sum(map(len, answers)) / 3


def test_what_no_later_window_changes_is_handed_out_at_once():
    merger = SeamMerger(PAIR)
    alone, seam = Building(box(10, 10, 40, 40)), Building(box(120, 20, 200, 50))
    assert merger.add(0, [seam, alone]) == [alone]
    (both,) = merger.add(1, [Building(box(160, 20, 300, 50))])
    assert both.polygon.equals(box(120, 20, 300, 50))
    assert merger.finish() == []


def test_memory_holds_pieces_near_open_borders_only():
    windows = grid((900, 3000), 200, 40)
    houses = [Building(box(x, y, x + 25, y + 25)) for x in range(3, 860, 40) for y in range(3, 2960, 40)]
    oracle, merger, most, found = Oracle(houses), SeamMerger(windows), 0, []
    for i, window in enumerate(windows):
        found += merger.add(i, oracle(window))
        most = max(most, sum(len(p.pieces) for p in merger._pieces.values()))
    assert len(found) + len(merger.finish()) == len(houses)
    assert most < len(houses) / 5


def test_windows_without_buildings_and_no_windows():
    assert SeamMerger([]).finish() == []
    merger = SeamMerger(PAIR)
    assert merger.add(0, []) == merger.add(1, []) == merger.finish() == []


def test_a_window_that_never_comes_holds_nothing_back_for_good():
    merger = SeamMerger(PAIR)
    seam = Building(box(120, 20, 200, 50))
    assert merger.add(0, [seam]) == [] and merger.finish() == [seam]


def test_misuse_is_told():
    merger = SeamMerger(PAIR)
    merger.add(0, [])
    with pytest.raises(ValueError, match="before"):
        merger.add(0, [])
    with pytest.raises(ValueError, match="without area"):
        SeamMerger([(0, 0, 0, 5)])


def test_what_lies_beyond_its_window_is_cut_off():
    (got,) = merged([(0, 0, 50, 50)], [[Building(box(40, 40, 60, 60)), Building(box(60, 60, 70, 70))]])
    assert got.polygon.equals(box(40, 40, 50, 50))


def test_the_default_overlap_holds_a_building_and_its_context():
    assert default_overlap_px(0.5, 1024) == 224
    assert default_overlap_px(0.5, 256) == 128
    assert default_overlap_px(10.0, 1024) == MIN_OVERLAP_PX
    assert default_overlap_px(0.5, 2048, context_m=100, largest_building_m=60) == 320


def test_an_outline_with_a_narrow_neck_does_not_break_at_the_seam():
    neck = Polygon([(100, 10), (170, 10), (170, 29), (190, 29), (190, 10), (300, 10), (300, 50), (190, 50)])
    neck = neck.union(Polygon([(100, 10), (170, 10), (170, 50), (100, 50)])).union(box(170, 29, 190, 31))
    (got,) = in_pair([neck], [translate(neck, 0, 2.5)])
    assert got.geom_type == "Polygon"
