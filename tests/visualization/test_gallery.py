"""What networks say of the same tiles, side by side."""

from fusiondet.errors import InputError
from fusiondet.visualization.gallery import Said, footprint_panel, gallery_figure
from tests.support.figures import texts, view

import numpy as np
import pytest


def test_every_pixel_has_the_colour_of_what_it_is():
    truth, said = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 1, 0]], bool)
    found, missed, false, ground = footprint_panel(said, truth)[0].tolist()
    assert found == [255, 255, 255] and ground == [0, 0, 0]
    assert missed != false and missed[0] > 200 and missed[1] > 200 and false[1] < 120


def test_a_column_per_network_and_two_lines_per_tile():
    truth = np.zeros((32, 48), bool)
    views = [view(truth_map_m=np.where(truth, 5.0, 0.0)) for _ in range(3)]
    both, masks = Said(truth, np.full((32, 48), 4.0)), Said(truth, None)
    figure = gallery_figure(views, [truth] * 3, {"first": [both] * 3, "footprints alone": [masks] * 3})
    panels = [ax for ax in figure.axes if len(ax.images) or any(t.get_text() == "–" for t in ax.texts)]
    assert len(panels) == 3 * 2 * 4
    assert sum(any(t.get_text() == "–" for t in ax.texts) for ax in panels) == 3, "no heights: nothing shown"
    assert {"optical, SAR", "truth", "first", "footprints alone"} <= set(texts(figure))


def test_nothing_to_draw():
    with pytest.raises(InputError, match="nothing to draw"):
        gallery_figure([view()], [np.zeros((32, 48), bool)], {})
