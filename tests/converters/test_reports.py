"""Counts and words about a conversion."""

from collections import Counter

from fusiondet.converters import reports
from fusiondet.converters.reports import Problems, Report, counted, show
from fusiondet.errors import InputError

import pytest


def test_only_the_first_of_a_kind_are_named():
    problems = Problems()
    for i in range(reports.MAX_NAMED + 3):
        problems.add("holes", f"hole {i}")
    lines = problems.lines()
    assert lines[0] == f"problem: {reports.MAX_NAMED + 3} holes" and lines[-1] == "  ... and 3 more"
    assert len(lines) == reports.MAX_NAMED + 2


def test_a_strict_problem_is_an_error_and_is_not_counted():
    problems = Problems(strict=True)
    with pytest.raises(InputError, match="^hole 1$"):
        problems.add("holes", "hole 1")
    assert problems.counts == {} and problems.named == {}


def test_an_empty_report_has_lines():
    assert Report().lines() == ["tiles: none", "labels: none", "heights: none"]


def test_counts_are_told_in_thousands_without_those_that_are_zero():
    assert counted({"kept": 1234567, "dropped": 0, "cut": 12}) == "1 234 567 kept, 12 cut"
    assert counted({"dropped": 0}) == "none"


def test_counts_of_tiles_are_summed_under_their_headings():
    report = Report()
    report.add(
        {"tiles": Counter(written=1), "heights": Counter(known=2, unknown=0), "roofs": Counter(flat=3)}
    )
    report.add({"tiles": Counter(written=1), "roofs": Counter(flat=1, steep=2)})
    assert report.tiles == {"written": 2} and report.more == {"roofs": {"flat": 4, "steep": 2}}
    assert "unknown" in report.heights
    report.drop_zeros()
    assert dict(report.heights) == {"known": 2}


def test_two_heights_of_a_building_are_compared_by_their_sums():
    """Differences of +1, -2 and +4 m: MAE 7 / 3, bias 1 m."""
    report = Report()
    assert report.compared is None
    for difference_m in (1.0, -2.0, 4.0):
        sums = Counter({"n": 1, "sum_m": difference_m, "abs_m": abs(difference_m)})
        report.add({reports.COMPARED: sums})
    assert report.compared.endswith("n = 3, MAE 2.33 m, bias +1.00 m")
    # In a line of its own, not among the headings of the source.
    assert report.lines() == ["tiles: none", "labels: none", "heights: none", report.compared]


@pytest.mark.parametrize(
    ("names", "leaked_m2", "last"),
    [
        (("train", "val"), 12.34, "ground in two splits: 12.3 m2"),
        (("train", "val"), None, "ground in two splits: not measured, no georeference"),
        (("train",), 0.0, "train: 3 tiles"),
    ],
)
def test_shared_ground_is_told_where_there_are_two_splits(names, leaked_m2, last):
    report = Report(splits={name: {"tiles": 3, "buildings": 0} for name in names}, leaked_m2=leaked_m2)
    assert report.lines()[-1] == last


@pytest.mark.parametrize(("unchanged", "begin"), [(False, "wrote {}: "), (True, "{} is up to date: ")])
def test_what_is_shown_ends_in_the_files_that_are_there(tmp_path, capsys, unchanged, begin):
    show(Report(splits={"train": {}, "val": {}}, unchanged=unchanged), tmp_path)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == begin.format(tmp_path) + "annotations/train.json, annotations/val.json"
