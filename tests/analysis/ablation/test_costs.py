"""When the costs of an ablation are measured anew, and how seconds become numbers. `test_runs.py` measures some."""

from fusiondet.analysis.ablation.costs import _times, costs_left
from fusiondet.analysis.ablation.runs import Run
from fusiondet.files import write_json

import pytest


@pytest.fixture
def runs(tmp_path):
    """Two trained runs, and costs.json as it is measured with 3 rounds."""
    found = [Run(row, 1, tmp_path / row, "", {}, ()) for row in ("rgb", "early")]
    for run in found:
        write_json({"weights": f"hash of {run.row}"}, run.trained_file)
    weights = {"rgb": "hash of rgb", "early": "hash of early"}
    write_json({"depends_on": {"rounds": 3, "weights": weights}, "rows": {}}, tmp_path / "costs.json")
    return found


def test_costs_are_kept_while_nothing_changes(runs, tmp_path):
    assert not costs_left(runs, 3, tmp_path / "costs.json")


def test_costs_are_measured_anew_for_other_rounds_rows_and_weights(runs, tmp_path):
    path = tmp_path / "costs.json"
    assert costs_left(runs, 3, tmp_path / "nowhere.json")
    assert costs_left(runs, 4, path)
    assert costs_left(runs[:1], 3, path)
    write_json({"weights": "trained again"}, runs[1].trained_file)
    assert costs_left(runs, 3, path)


SECONDS = {
    "step": {"rgb": [2.0, 4.0, 9.0], "early": [4.0, 8.0, 18.0]},
    "inference": {"rgb": [1.0, 1.0, 3.0], "early": [1.5, 1.5, 4.5]},
}


def test_times_are_medians_and_ratios_of_the_same_round():
    """Rounds differ by far more than the networks; within each, they are twice and one and a half times as slow."""
    assert _times("early", SECONDS, "rgb") == {
        "step_s": 8.0,
        "inference_s": 1.5,
        "step_ratio": {"median": 2.0, "low": 2.0, "high": 2.0},
        "inference_ratio": {"median": 1.5, "low": 1.5, "high": 1.5},
    }


def test_without_the_reference_there_are_no_ratios():
    assert _times("early", SECONDS, "late") == {
        "step_s": 8.0,
        "inference_s": 1.5,
        "step_ratio": None,
        "inference_ratio": None,
    }
