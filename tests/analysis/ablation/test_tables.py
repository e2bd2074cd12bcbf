"""The tables of an ablation as Markdown, CSV and figure."""

import csv
import io

from fusiondet.analysis.ablation import tables as report
from fusiondet.analysis.ablation.results import Cell, judge, table
from fusiondet.analysis.ablation.spec import Claim

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("metric", "low", "high", "better"),
    [
        ("segm/AP50", 1.0, 2.0, True),
        ("segm/AP50", -2.0, -1.0, False),
        ("segm/AP50", -1.0, 1.0, None),
        ("segm/AP50", None, None, None),
        ("height/mae_m", -2.0, -1.0, True),
        ("height/mae_m", 1.0, 2.0, False),
        ("dense/mae_m_building", -2.0, -1.0, True),
        ("dense/rmse_m_all_tile_mean", 1.0, 2.0, False),
        ("dense/delta1_building", 0.1, 0.2, True),
        ("height/bias_m", -2.0, -1.0, None),
        ("height/n", 1.0, 2.0, None),
    ],
)
def test_better_is_higher_but_for_errors_and_what_has_no_direction(metric, low, high, better):
    assert report.is_better({"metric": metric, "low": low, "high": high}) is better


@pytest.fixture
def found():
    """A results.json of two rows, of which one has no second condition."""

    def line(row, column, metric, mean, difference=None, low=None, high=None, std=None):
        return locals() | {"seeds": 1}

    return {
        **{
            "spec": "spec.yaml",
            "steps": 7,
            "seeds": [1],
            "train": ["t"],
            "val": ["v"],
        },
        **{"compare_to": "b", "metrics": ["segm/AP50", "height/mae_m"], "columns": ["clear", "no_sar"]},
        "rows": {
            name: {"label": name.upper(), "best_metric": "segm/AP50", "seeds": {}} for name in ("a", "b")
        },
        "table": [
            line("a", "clear", "segm/AP50", 80.04, -2.0, -3.26, -1.14),
            line("a", "clear", "height/mae_m", 2.346, 0.5, -0.111, 1.0),
            line("b", "clear", "segm/AP50", 82.04),
            line("b", "clear", "height/mae_m", None),
            line("b", "no_sar", "segm/AP50", 40.0, std=1.23),
        ],
        "claims": [
            {
                **{
                    "claim": "B finds more",
                    "metric": "segm/AP50",
                    "from": ["a", "clear"],
                    "to": ["b", "clear"],
                },
                **{"above": 0, "below": None, "from_score": 80.04, "to_score": 82.04, "difference": 2.0},
                **{"low": 1.14, "high": 3.26, "verdict": "shown"},
            }
        ],
        "costs": {
            "settings": {"device": "CPU", "threads": 1, "batch": 2, "rounds": 3, "size_px": 64},
            "rows": {
                "b": {
                    **{
                        "parameters": 1_500_000,
                        "gflops": 2.5,
                        "tiles": 2,
                        "step_s": 0.5,
                        "inference_s": 0.25,
                    },
                    **{"step_ratio": {"median": 1.0, "low": 0.9, "high": 1.1}, "inference_ratio": None},
                }
            },
        },
        "missing": ["a, seed 1: no_sar"],
    }


def test_markdown_says_every_number_once_rounded(found):
    text = report.markdown(found)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert "| A | 80.0 **[-3.3, -1.1]** | 2.35 [-0.11, +1.00] | – | – | – | – | – | – |" in tables
    assert "| B | 82.0 | – | 1.50 | 2.50 | 0.500 | 1.00 [0.90, 1.10] | 0.2500 | – |" in tables
    assert "| A | 80.0 **[-3.3, -1.1]** | – |" in tables
    assert "| B | 82.0 | 40.0 ± 1.2 |" in tables
    claim = (
        "| B finds more | AP50 of masks | A, clear: 80.0 | B, clear: 82.0 | +2.0 [+1.1, +3.3] | > 0 | shown |"
    )
    assert claim in tables
    assert "one seed" in text and "**Not finished**: a, seed 1: no_sar." in text


def test_rows_without_a_score_are_left_out_of_what_is_shown_with_the_claims_on_them(found):
    row = {**found["rows"]["a"], "label": "Not yet"}
    claim = {**found["claims"][0], "claim": "too early", "from": ["later", "clear"]}
    begun = {**found, "rows": {**found["rows"], "later": row}, "claims": [*found["claims"], claim]}
    shown = report.worth_showing(begun)
    assert shown == found
    assert "Not yet" not in report.markdown(shown)
    nothing = {**begun, "table": []}
    assert list(report.worth_showing(nothing)["rows"]) == [found["compare_to"]]


def test_rows_chosen_by_another_score_are_named(found):
    assert "the checkpoint with the best segm/AP50 on v." in report.markdown(found)
    found["rows"]["c"] = {"label": "C", "best_metric": "dense/delta1_building", "seeds": {}}
    found["rows"]["d"] = {**found["rows"]["c"], "label": "D"}
    assert "the best segm/AP50; of *C*, *D* dense/delta1_building on v." in report.markdown(found)


def test_a_network_without_instances_has_scores_per_pixel_alone(found):
    """Nothing stands for its masks, in tables, claims and picture, and nothing breaks."""
    found["metrics"] = ["segm/AP50", "dense/mae_m_building"]
    found["columns"] = ["clear"]
    cells = {
        ("b", "clear"): Cell({1: {"segm/AP50": 80.0, "dense/mae_m_building": 4.0}}, _still(80.0, 4.0)),
        ("a", "clear"): Cell({1: {"segm/AP50": None, "dense/mae_m_building": 3.0}}, _still(np.nan, 3.0)),
    }
    found["table"] = table(cells, found["metrics"], "b")
    claims = [Claim("against", metric, ("b", "clear"), ("a", "clear")) for metric in found["metrics"]]
    found["claims"] = judge(claims, cells)
    text = report.markdown(found)
    assert "| A | – | 3.00 **[-1.00, -1.00]** | – | – | – | – | – | – |" in text
    assert "| against | AP50 of masks | B, clear: 80.0 | A, clear: – | – |  | missing |" in text
    assert "| against | Height MAE per building pixel, m | B, clear: 4.00 | A, clear: 3.00 | -1.00 [" in text
    assert "its instances, painted" in text
    masks, heights = report.figure(found).axes
    assert [t.get_text() for t in masks.texts] == ["–"] and len(heights.texts) == 0
    assert "a,A,clear,segm/AP50,1,,,,,\n" in report.as_csv(found)


def _still(masks, height_m, draws=4):
    return {1: {"segm/AP50": np.full(draws, masks), "dense/mae_m_building": np.full(draws, height_m)}}


def test_larger_batches_of_unlabelled_tiles_are_said(found):
    found["costs"]["rows"]["a"] = {**found["costs"]["rows"]["b"], "tiles": 6}
    assert "2 (with unlabelled ones 6) tiles of 64 px per step" in report.markdown(found)


def test_csv_holds_the_table_and_the_costs_unrounded(found):
    lines = list(csv.DictReader(io.StringIO(report.as_csv(found))))
    by_key = {(x["row"], x["column"], x["metric"]): x for x in lines}
    assert by_key["a", "clear", "segm/AP50"]["mean"] == "80.04"
    assert by_key["a", "clear", "segm/AP50"]["label"] == "A"
    assert by_key["b", "clear", "height/mae_m"]["mean"] == ""
    assert by_key["b", "cost", "parameters"]["mean"] == "1500000"
    ratio = by_key["b", "cost", "step_ratio"]
    assert (ratio["mean"], ratio["low"], ratio["high"]) == ("1.0", "0.9", "1.1")
    assert ("b", "cost", "inference_ratio") not in by_key and ("b", "cost", "inference_s") in by_key


def test_networks_trained_by_different_versions_are_named(found):
    assert "different versions" not in report.markdown(found)
    for row, torch in (("a", "2.6"), ("b", "2.7")):
        found["rows"][row]["seeds"] = {"1": {"training": {"versions": {"torch": torch}}, "scores": {}}}
    assert "**Trained by different versions**: torch 2.6; torch 2.7." in report.markdown(found)


def test_a_bar_in_a_label_does_not_end_its_cell(found):
    found["rows"]["a"]["label"] = "A|B"
    assert "| A\\|B | 80.0 " in report.markdown(found)


def test_csv_and_markdown_without_costs(found):
    found["costs"] = None
    assert "cost" not in report.as_csv(found)
    assert "Times:" not in report.markdown(found)


def test_with_one_column_metrics_stand_side_by_side(found):
    one = {**found, "columns": ["clear"]}
    figure = report.figure(one)
    assert [ax.get_title().replace("\n", " ") for ax in figure.axes] == [
        report.title(m) for m in found["metrics"]
    ]
    assert len({round(ax.get_position().y0, 6) for ax in figure.axes}) == 1
    many = report.figure({**one, "metrics": found["metrics"] * 4})
    assert len({round(ax.get_position().y0, 6) for ax in many.axes}) == 2, (
        "no picture is wider than six panels"
    )


def test_picture_has_a_panel_per_metric_and_column_and_a_bar_per_interval(found):
    figure = report.figure(found)
    assert [ax.get_title() for ax in figure.axes] == ["clear", "no_sar"] * 2
    first = figure.axes[0]
    bars = [
        line.get_xdata() for line in first.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 1.5
    ]
    # Around the reference: 82.04 and the ends of the interval of the difference to it.
    assert [list(bar) for bar in bars] == [pytest.approx([82.04 - 3.26, 82.04 - 1.14])]
    assert [text.get_text() for text in figure.axes[1].texts] == ["–"]
