"""The height scatter says what the evaluation says, and shows every building."""

from fusiondet.evaluation.height_metrics import height_metrics
from fusiondet.visualization import figure_array, height_scatter

import numpy as np
import pytest

TRUTH = np.array([4.0, 5.0, 8.0, 10.0, 30.0, np.nan, 7.0])
PRED = np.array([4.4, 4.0, 8.5, 15.0, 27.0, 9.0, np.nan])


def annotation(figure):
    return figure.axes[0].texts[0].get_text()


def dots(ax, marker_count=0):
    return ax.collections[-1 - marker_count].get_offsets()


def test_axes_are_square_in_metres_with_the_one_to_one_line():
    scatter, bins = height_scatter(TRUTH, PRED).axes
    assert (scatter.get_xlabel(), scatter.get_ylabel()) == ("true height (m)", "predicted height (m)")
    assert scatter.get_xlim() == scatter.get_ylim() == (0.0, 40.0)
    np.testing.assert_array_equal(*scatter.lines[0].get_data())
    assert (bins.get_xlabel(), bins.get_ylabel()) == ("true height (m)", "error, prediction − truth (m)")


def test_dots_are_the_known_pairs_and_numbers_those_of_the_evaluation():
    figure = height_scatter(TRUTH, PRED)
    np.testing.assert_allclose(dots(figure.axes[0]), np.c_[TRUTH, PRED][:5])
    numbers = height_metrics(TRUTH, PRED)
    words = annotation(figure).replace("−", "-").split("\n")
    assert words[0] == "n = 5" and words[1] == f"MAE {numbers['height/mae_m']:.2f} m"
    assert words[2] == f"bias {numbers['height/bias_m']:+.2f} m" and words[3] == "δ1 0.60"
    assert len(words) == 4, "no interval, no word about it"


def test_the_delta1_band_lies_between_the_two_ratios():
    band = height_scatter(TRUTH, PRED).axes[0].collections[0].get_paths()[0].vertices
    assert {(round(x), round(y)) for x, y in band} >= {(0, 0), (40, 32), (40, 50)}


def test_intervals_are_vertical_lines_from_p16_to_p84():
    figure = height_scatter(TRUTH, PRED, PRED - 1, np.where(TRUTH == 8, np.nan, PRED + 2))
    bars = next(c for c in figure.axes[0].collections if c.get_label() == "16–84 % interval").get_segments()
    np.testing.assert_allclose(bars[0], [[4.0, 3.4], [4.0, 6.4]])
    assert len(bars) == 4
    assert "inside 16–84 %" in annotation(figure)


def test_bins_show_mean_absolute_error_and_bias():
    bins = height_scatter(TRUTH, PRED).axes[1]
    ticks = [t.get_text() for t in bins.get_xticklabels()]
    assert ticks == ["3–6\nn = 2", "6–12\nn = 2", "12–24\nn = 0", "24–50\nn = 1"]
    np.testing.assert_allclose([bar.get_height() for bar in bins.patches], [0.7, 2.75, 3.0])
    bias = next(line for line in bins.lines if line.get_label() == "bias")
    np.testing.assert_allclose(bias.get_data(), [[0, 1, 3], [-0.3, 2.75, -3.0]])


def test_a_wild_prediction_stays_visible_and_presses_nobody_into_a_corner():
    truth = np.linspace(3, 20, 99)
    figure = height_scatter(np.append(truth, 10.0), np.append(truth, 180.0))
    ax = figure.axes[0]
    assert ax.get_ylim()[1] <= 30
    assert ax.get_legend_handles_labels()[1][-1] == "1 above 30 m"
    x, y = ax.collections[-1].get_offsets()[0]
    assert x == 10.0 and 25 < y < 30
    assert "n = 100" in annotation(figure)


@pytest.mark.parametrize("truth", [[], [np.nan, np.nan]])
def test_nothing_matched_is_said(truth):
    figure = height_scatter(truth, truth)
    assert annotation(figure) == "no matched building\nhas a known height"
    assert figure_array(figure).shape == (588, 1224, 3)
