"""The report as text and as JSON."""

import json

from fusiondet.doctor.findings import Case, Finding, counted, percent, plain, text, worst_first
from tests.support.messages import missing_facts

import numpy as np
import pytest


def test_words_and_numbers():
    findings = [
        Finding("b", "ok", "fine", numbers={"x": np.float32("nan"), "y": (np.int64(3), 0.5)}),
        Finding("a", "FAIL", "bad", "Mend it."),
    ]
    assert text(findings).splitlines() == [
        "FAIL  a: bad",
        "      -> Mend it.",
        "ok    b: fine",
        "2 checks: 1 failed, 0 to look at, 0 not possible, 1 ok.",
    ]
    assert findings[0].to_dict()["numbers"] == {"x": None, "y": [3, 0.5]}
    assert (counted(1, "pair"), counted(2, "copy"), percent(0.5), percent(0.999)) == (
        "1 pair",
        "2 copies",
        "50 %",
        "99.9 %",
    )


@pytest.mark.parametrize(
    "share, words",
    [
        (0, "0 %"),
        (1.6e-5, "below 0.1 %"),
        (0.0123, "1.2 %"),
        (0.25, "25 %"),
        (0.994, "99 %"),
        (0.99999, "99.9 %"),
        (1, "100 %"),
    ],
)
def test_shares_are_readable_at_both_ends(share, words):
    assert percent(share) == words


def test_a_failure_shows_where_to_look_and_a_passed_check_does_not():
    cases = tuple(Case("train", f"{i}.tif", "black" * (i == 0)) for i in range(5))
    failed, passed = Finding("a", "FAIL", "bad", cases=cases), Finding("b", "ok", "fine", cases=cases)
    assert missing_facts(text([failed]), "0.tif (black)", "1.tif", "2.tif") == []
    assert "3.tif" not in text([failed]) and "0.tif" not in text([passed])
    assert failed.to_dict()["cases"][0] == {"split": "train", "image": "0.tif", "note": "black"}
    assert len(failed.to_dict()["cases"]) == 5


def test_worst_first_keeps_the_order_within_a_verdict():
    names = [("a", "ok"), ("b", "warn"), ("c", "FAIL"), ("d", "n/a"), ("e", "warn")]
    ordered = worst_first([Finding(name, verdict, "") for name, verdict in names])
    assert [finding.name for finding in ordered] == ["c", "b", "e", "d", "a"]


@pytest.mark.parametrize(
    "value, expected",
    [
        (np.arange(3), [0, 1, 2]),
        (np.array([0.5, np.inf]), [0.5, None]),
        ({1: {"x": float("nan")}}, {"1": {"x": None}}),
        ((), []),
        (np.bool_(True), True),
        ("text", "text"),
        (None, None),
    ],
)
def test_numbers_become_json(value, expected):
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)
