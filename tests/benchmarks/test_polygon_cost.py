"""The benchmark of outlines: its measures on shapes one can draw, its input, and the command."""

import json
import math
import sys

from benchmarks import polygon_cost as polygons
from benchmarks.polygon_cost import PolygonSettings, benchmark_polygons, format_table, quality
from fusiondet.errors import InputError

import pytest
from shapely.affinity import translate
from shapely.geometry import Polygon, box


def test_the_truth_is_perfect():
    truth = [box(0, 0, 10, 8), box(10, 0, 20, 8)]
    numbers = quality(truth, truth)
    assert (numbers["iou"], numbers["polis_m"], numbers["hausdorff_m"]) == pytest.approx((1, 0, 0))
    assert (numbers["vertices"], numbers["right_angles"], numbers["invalid"]) == (4, 1, 0)
    assert (numbers["pairs"], numbers["shared"]) == (1, 1)
    assert (numbers["overlap_m2"], numbers["gap_m2"]) == pytest.approx((0, 0), abs=1e-9)


def test_shifts_gaps_and_overlaps_have_their_size():
    truth = [box(0, 0, 10, 8), box(10, 0, 20, 8)]
    apart = quality([truth[0], translate(truth[1], 0.5, 0)], truth)
    assert apart["hausdorff_m"] == pytest.approx(0.25) and apart["polis_m"] == pytest.approx(0.125)
    assert apart["gap_m2"] == pytest.approx(0.5 * 8, rel=0.01) and apart["shared"] == 0
    over = quality([truth[0], translate(truth[1], -0.5, 0)], truth)
    assert over["overlap_m2"] == pytest.approx(0.5 * 8) and over["gap_m2"] == pytest.approx(0, abs=1e-9)
    assert over["iou"] == pytest.approx((1 + 9.5 / 10.5) / 2)


def test_invalid_outlines_are_counted_and_oblique_corners_told_from_right_ones():
    bow = Polygon([(0, 0), (10, 8), (10, 0), (0, 8)])
    assert quality([bow], [box(0, 0, 10, 8)])["invalid"] == 1
    roof = Polygon([(0, 0), (10, 0), (10, 5), (5, 10), (0, 5)])
    assert quality([roof], [roof])["right_angles"] == pytest.approx(3 / 5)


def test_every_contestant_is_measured_and_growth_is_timed(monkeypatch):
    monkeypatch.setitem(sys.modules, "buildingregulariser", None)
    result = benchmark_polygons(PolygonSettings(buildings=30, grown=5))
    assert set(result["contestants"]) == {"given outlines", "simplified", "fusiondet"}
    assert set(result["growth"]) == {"merging across seams", "regularising"}
    text = format_table(result)
    assert "not installed" in text and "10 times as many" in text
    json.dumps(result)


def test_the_library_takes_part_if_it_is_there():
    pytest.importorskip("buildingregulariser", reason="an optional dependency of this benchmark alone")
    result = benchmark_polygons(PolygonSettings(buildings=30, grown=0))
    assert result["contestants"]["buildingregulariser"]["iou"] > 0.7 and not result["notes"]


def test_seams_are_timed_on_layers_of_the_size_that_is_said():
    layer = polygons._tiled([box(0, 0, 10, 8), box(20, 0, 30, 8)], 7)
    assert len(layer) == 7 and len({p.bounds for p in layer}) == 7
    windows, answers = polygons._cut_by_windows(layer, 0.01)
    assert len(windows) == len(answers) and sum(map(len, answers)) > 7
    area_px = sum(b.polygon.area for a in answers for b in a)
    assert area_px >= 7 * 80 / 0.01**2 * (1 - 1e-9)


@pytest.mark.parametrize(
    "wrong", [{"buildings": 0}, {"gsd_m": math.nan}, {"tolerance_m": 0}, {"min_iou": 2}, {"grown": -1}]
)
def test_wrong_numbers_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong)).replace("_", "-")):
        PolygonSettings(**wrong)


def test_the_command_writes_what_it_prints(load_tool, tmp_path, capsys):
    out = tmp_path / "polygons.json"
    load_tool("benchmark").main(["polygons", "--buildings", "20", "--grown", "0", "--out", str(out)])
    assert "fusiondet" in capsys.readouterr().out
    assert json.loads(out.read_text())["settings"]["buildings"] == 20
