"""Charts: every building is counted once, dots belong to their buildings, and a thinned cloud keeps its extremes."""

from fusiondet.visualization.report import charts
from fusiondet.visualization.report.comparison import TruthComparison

import numpy as np
import pytest


def comparison(truth_m, error_m) -> TruthComparison:
    nothing = np.zeros(0)
    n = len(truth_m)
    return TruthComparison(
        {"ap50": None}, np.zeros(n), np.array(truth_m), np.array(error_m), [], nothing, nothing, nothing
    )


@pytest.mark.parametrize(
    "heights_m", [[3.0], [0.5, 0.5, 828.0], [2.0, np.nan, 60.0, 59.9], np.linspace(1, 40, 500)]
)
def test_every_known_height_is_in_one_bar(heights_m):
    heights_m = np.array(heights_m, dtype=float)
    (bars,) = charts.height_histogram(heights_m)["data"]
    assert sum(bars["y"]) == np.isfinite(heights_m).sum()
    assert len(bars["x"]) <= 45


def test_bar_stands_over_its_heights_and_names_them():
    (bars,) = charts.height_histogram(np.array([4.2, 4.4, 7.0]))["data"]
    assert dict(zip(bars["customdata"], bars["y"]))["4 to 4.5 m"] == 2
    assert bars["x"][bars["y"].index(2)] == 4.25


def test_areas_of_any_size_are_counted_in_bars_of_growing_width():
    chart = charts.area_histogram(np.array([12.0, 60.0, 70.0, 1e6]))
    bars = chart["data"][0]
    counted = dict(zip(bars["x"], bars["y"]))
    assert counted["10–20"] == 1 and counted["50–100"] == 2 and counted["> 20000"] == 1
    assert sum(bars["y"]) == 4 and chart["layout"]["xaxis"]["type"] == "category"


def test_dots_know_their_buildings():
    heights_m = np.array([10.0, np.nan, 20.0])
    chart = charts.interval_scatter(heights_m, heights_m * 0.9, heights_m * 1.2)
    dots = chart["data"][0]
    assert dots["customdata"] == [0, 2] and dots["meta"] == charts.BUILDINGS
    assert dots["y"] == pytest.approx([3, 6])
    chart = charts.truth_scatter(comparison([8.0, np.nan, 25.0], [2.0, np.nan, -5.0]), heights_m)
    dots = next(trace for trace in chart["data"] if trace.get("meta") == charts.BUILDINGS)
    assert dots["customdata"] == [0, 2] and dots["x"] == [8, 25] and dots["y"] == [10, 20]
    assert chart["layout"]["xaxis"]["range"] == chart["layout"]["yaxis"]["range"] == [0, 30]


def test_large_cloud_is_thinned_the_same_way_each_time_and_keeps_the_worst():
    n = 50_000
    truth_m = np.full(n, 10.0)
    error_m = np.random.default_rng(1).normal(0, 1, n)
    error_m[777] = 55.0
    charts_of = [charts.truth_scatter(comparison(truth_m, error_m), truth_m + error_m) for _ in range(2)]
    assert charts_of[0] == charts_of[1]
    dots = charts_of[0]["data"][2]
    assert len(dots["x"]) == charts.MAX_DOTS and 777 in dots["customdata"]
    assert len(set(dots["customdata"])) == charts.MAX_DOTS
    assert "4000 of 50000 shown" in charts_of[0]["layout"]["title"]["text"]


def test_errors_beyond_the_chart_are_counted_in_its_title():
    error_m = np.append(np.linspace(-2, 2, 999), 60.0)
    chart = charts.error_histogram(comparison(np.full(1000, 9.0), error_m))
    assert sum(chart["data"][0]["y"]) == 999 and "1 beyond ±3 m" in chart["layout"]["title"]["text"]
    middle = int(np.argmin(np.abs(chart["data"][0]["x"])))
    assert chart["data"][0]["x"][middle] == pytest.approx(0, abs=1e-9)


def test_charts_of_nothing_are_charts():
    nothing = np.zeros(0)
    for chart in (
        charts.height_histogram(nothing),
        charts.area_histogram(nothing),
        charts.score_histogram(nothing),
        charts.interval_scatter(nothing, nothing, nothing),
        charts.truth_scatter(comparison([], []), nothing),
        charts.error_histogram(comparison([], [])),
        charts.precision_recall(comparison([], [])),
    ):
        assert set(chart) == {"data", "layout"}
