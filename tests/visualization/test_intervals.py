"""Estimates with intervals: where dots, lines and words are drawn."""

from fusiondet.visualization import IntervalPanel, figure_array, interval_figure

import pytest

ROWS = [
    ("first", 0.4, 0.2, 0.5, "optical"),
    ("second", None, None, None, "sar"),
    ("third", -0.1, None, None, ""),
]


def test_dots_lines_and_what_is_not_defined():
    figure = interval_figure([("Heading", [IntervalPanel("A", "share", ROWS)])])
    (ax,) = figure.axes
    zero, line, dot, lonely = ax.lines
    assert list(line.get_xdata()) == [0.2, 0.5] and list(line.get_ydata()) == [0, 0]
    assert [list(p.get_xdata()) + list(p.get_ydata()) for p in (dot, lonely)] == [[0.4, 0], [-0.1, 2]]
    assert [(t.get_text(), t.get_position()[1]) for t in ax.texts] == [("not defined", 1)]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first", "second", "third"]
    assert dot.get_color() != lonely.get_color()


def test_rows_of_panels_share_names_and_none_lies_on_another():
    panels = [IntervalPanel(t, "share", ROWS) for t in "ABC"]
    figure = interval_figure([("One", panels), ("Two", panels[:1])])
    boxes = [ax.get_position() for ax in figure.axes]
    assert len(boxes) == 4 and all(b.x0 >= 0 and b.y0 > 0 and b.x1 <= 1 and b.y1 < 1 for b in boxes)
    assert boxes[0].x1 < boxes[1].x0 and boxes[3].y1 < boxes[0].y0
    named = [any(label.get_text() for label in ax.get_yticklabels()) for ax in figure.axes]
    assert named == [True, False, False, True]
    assert figure_array(figure).std() > 0


def test_zeros_alone_do_not_zoom_in_on_nothing():
    figure = interval_figure([("One", [IntervalPanel("A", "points", [("n", 0.0, 0.0, 0.0, "")], 5.0)])])
    low, high = figure.axes[0].get_xlim()
    assert low == pytest.approx(-2.8) and high == pytest.approx(2.8)
