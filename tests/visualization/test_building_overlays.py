"""Outlines are where the buildings are, in the colour of their height."""

from fusiondet.buildings import Building
from fusiondet.visualization import draw_buildings, draw_matches, figure_array, height_colours
from fusiondet.visualization.building_overlays import MATCH_COLOURS, UNKNOWN_COLOUR, pixels_per_point
from fusiondet.visualization.canvas import axes_in, new_figure

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgba
from shapely.geometry import MultiPolygon, box

SIZE = 100


@pytest.fixture
def ax():
    """Axes over the whole figure: 100 x 100 image pixels on 480 x 480 dots."""
    figure = new_figure(4, 4)
    ax = axes_in(figure, 0, 0, 4, 4)
    ax.set_xlim(0, SIZE)
    ax.set_ylim(SIZE, 0)
    ax.set_axis_off()
    return ax


def dot(ax, x, y):
    """RGB of the figure at a place in image pixels."""
    return figure_array(ax.figure)[int(y * 4.8), int(x * 4.8)].astype(int)


def test_scale_starts_at_zero_ends_round_and_rises_in_lightness():
    colours = height_colours([3.0, None, float("nan"), 17.0])
    assert (colours.norm.vmin, colours.norm.vmax) == (0.0, 20.0)
    lightness = colours.to_rgba(np.linspace(0, 20, 9))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()
    assert height_colours([]).norm.vmax == height_colours([None]).norm.vmax == 10.0


def test_the_scale_ignores_one_tower():
    assert height_colours([8.0] * 99 + [300.0]).norm.vmax < 20


def test_a_building_has_the_colour_of_its_height_on_its_outline_and_nothing_outside(ax):
    building = Building(box(20, 30, 60, 70), height_m=5.0)
    colours = height_colours([10.0])
    draw_buildings(ax, [building], colours, labels=False)
    expected = np.round(255 * np.array(colours.to_rgba(5.0)[:3]))
    assert np.abs(dot(ax, 40, 30) - expected).max() <= 12
    assert np.abs(dot(ax, 20, 50) - expected).max() <= 12
    assert (dot(ax, 10, 10) == 255).all()
    fill = dot(ax, 40, 50)
    assert (fill >= expected - 1).all() and not (fill == 255).all()


def test_known_and_unknown_heights_are_two_collections_in_their_own_colours(ax):
    known = [Building(box(0, 0, 9, 9), 3.0), Building(box(20, 0, 30, 9), 9.0)]
    unknown = [Building(box(50, 0, 60, 9)), Building(box(70, 0, 80, 9), float("nan"))]
    colours = height_colours([9.0])
    draw_buildings(ax, [*known, *unknown], colours, labels=False)
    first, second = ax.collections
    np.testing.assert_allclose(first.get_edgecolor(), [colours.to_rgba(3.0), colours.to_rgba(9.0)])
    assert {to_hex(c) for c in second.get_edgecolor()} == {UNKNOWN_COLOUR}
    assert first.get_linestyle()[0][1] is None and second.get_linestyle()[0][1] is not None
    draw_buildings(ax, [], colours)
    assert len(ax.collections) == 2


def test_courtyards_stay_open_and_parts_are_all_drawn(ax):
    ring = box(10, 10, 50, 50).difference(box(20, 20, 40, 40))
    far = box(70, 70, 90, 90)
    draw_buildings(ax, [Building(MultiPolygon([ring, far]), 5.0)], labels=False)
    assert (dot(ax, 30, 30) == 255).all()
    assert (dot(ax, 15, 30) < 255).any() and (dot(ax, 80, 80) < 255).any()


def test_labels_are_written_where_they_fit_and_never_overlap(ax):
    roomy = Building(box(10, 10, 50, 50), 12.3)
    low = Building(box(60, 10, 90, 40), 4.26)
    same_place = Building(box(12, 12, 48, 48), 7.0)
    tiny = Building(box(70, 70, 71, 71), 5.0)
    outside = Building(box(90, 60, 120, 61), 5.0)
    draw_buildings(ax, [tiny, same_place, roomy, low, outside])
    assert sorted(t.get_text() for t in ax.texts) == ["12", "4.3"]
    boxes = [t.get_window_extent() for t in ax.texts]
    assert not boxes[0].overlaps(boxes[1])


def test_lines_get_thinner_when_buildings_are_small(ax):
    draw_buildings(ax, [Building(box(0, 0, 50, 50), 5.0)], labels=False)
    draw_buildings(ax, [Building(box(60 + i, 60, 60.8 + i, 61), 5.0) for i in range(9)], labels=False)
    big, small = (c.get_linewidth()[0] for c in ax.collections)
    assert big == pytest.approx(1.3) and small == pytest.approx(0.5)


def test_pixels_per_point(ax):
    assert pixels_per_point(ax) == pytest.approx(SIZE / (4 * 72))


def test_matched_missed_and_false(ax):
    truth = [Building(box(0, 0, 20, 20)), Building(box(40, 0, 60, 20))]
    predictions = [Building(box(0, 0, 20, 20)), Building(box(70, 70, 90, 90)), Building(box(70, 0, 90, 20))]
    draw_matches(ax, truth, predictions, [0, -1, -1])
    drawn = {to_hex(c.get_edgecolor()[0]): len(c.get_paths()) for c in ax.collections}
    assert drawn == {MATCH_COLOURS["matched"]: 1, MATCH_COLOURS["missed"]: 1, MATCH_COLOURS["false"]: 2}
    blue = np.array(to_rgba(MATCH_COLOURS["matched"])[:3]) * 255
    assert np.abs(dot(ax, 20, 10) - blue).max() <= 12
