"""Scores at the places of their tiles: where squares lie, in which colour, and when a grid replaces the map."""

from fusiondet.buildings import Tile
from fusiondet.visualization import figure_array, tile_map_figure

import matplotlib
import numpy as np
import pytest

NAN = float("nan")


def tile(x, y, **changes):
    """A tile of 100 x 100 m with its upper left corner at (x, y)."""
    facts = {"crs": "EPSG:32631", "transform": (1.0, 0.0, x, 0.0, -1.0, y), **changes}
    return Tile("a.tif", 100, 100, 1.0, **facts)


def squares(figure):
    """(x0, y0, x1, y1) of every square, in order."""
    return [[*p.get_xy().min(axis=0), *p.get_xy().max(axis=0)] for p in figure.axes[0].patches]


def test_tiles_lie_at_their_places_in_the_colours_of_their_scores():
    figure = tile_map_figure([tile(0, 100), tile(200, 300), tile(100, 100)], [0.25, 1.0, NAN], "δ1")
    assert squares(figure) == [[0, 0, 100, 100], [200, 200, 300, 300], [100, 0, 200, 100]]
    patches = figure.axes[0].patches
    colours = matplotlib.colormaps["viridis"]
    assert patches[0].get_facecolor() == pytest.approx(colours(0.25))
    assert patches[1].get_facecolor() == pytest.approx(colours(1.0))
    assert patches[2].get_hatch() and not patches[0].get_hatch()
    assert [t.get_text() for t in figure.axes[0].texts] == ["0.25", "1.00"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["not defined"]
    assert figure.texts[0].get_text() == "δ1: median 0.62 of 2 tiles, 0.25 to 1.00"


@pytest.mark.parametrize(
    "last",
    [
        tile(100, 0, transform=None),
        tile(100, 0, crs="EPSG:28992"),
        tile(0, 0),
        tile(20_000, 0),
    ],
    ids=["no place", "another CRS", "the same place", "too far away"],
)
def test_a_map_that_would_say_nothing_is_a_grid(last):
    figure = tile_map_figure([tile(0, 0), tile(0, 100), last], [0.1, 0.2, 0.3], "δ1")
    assert squares(figure) == [[0, 0, 1, 1], [1, 0, 2, 1], [0, -1, 1, 0]]
    assert "in the order of the annotations" in figure.axes[0].get_xlabel() and not figure.legends


@pytest.mark.parametrize("n", [0, 1, 200])
def test_any_number_of_tiles_makes_a_picture(n):
    tiles = [tile(100 * i, 0) for i in range(n)]
    figure = tile_map_figure(tiles, np.full(n, NAN), "δ1")
    assert "not defined on any of" in figure.texts[0].get_text() and not figure.axes[0].texts
    assert np.ptp(figure_array(figure)) > 0
