"""The picture of a confusion matrix: rows in per cent, names and numbers that can be read."""

from fusiondet.visualization import figure_array
from fusiondet.visualization.confusion import confusion_figure

import numpy as np
import pytest


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_cells_are_shares_of_the_true_class():
    figure = confusion_figure(np.array([[3, 1, 0], [0, 0, 0], [0, 500, 1]]), ["a", "b", "c"], "Confusion")
    # Cells that hold something, then how many each row has.
    assert texts(figure) == ["75", "25", "100", "·", "4", "0", "501", "n"]
    ax = figure.axes[0]
    assert ax.get_title(loc="left") == "Confusion"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    assert ax.images[0].get_array().tolist()[1] == [0, 0, 0]


def test_seventeen_classes_do_not_overlap():
    names = [f"class number {i}" for i in range(17)]
    figure = confusion_figure(np.full((17, 17), 100), names)
    assert figure_array(figure).shape[0] > 900
    ax = figure.axes[0]
    renderer = figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels()]]
    edges = figure.bbox
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= edges.x1 and b.y1 <= edges.y1 for b in boxes)
    overlapping = [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]
    assert overlapping == []


def test_counts_and_names_belong_together():
    with pytest.raises(ValueError, match="2 names"):
        confusion_figure(np.zeros((3, 3), int), ["a", "b"])
