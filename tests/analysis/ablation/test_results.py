"""Tables and claims on scores that one can count."""

import csv
import io

from fusiondet.analysis.ablation import tables as report
from fusiondet.analysis.ablation.results import Cell, drawn_scores, judge, make_cells, table
from fusiondet.analysis.ablation.spec import Claim
from fusiondet.evaluation.resampling import TileScores

import numpy as np
import pytest


def tile(image_id, found, missed, error_m=0.0):
    """A tile with `found` right predictions of score 0.9, 10 m high but for `error_m`, and `missed` buildings."""
    right, wrong = np.ones(found, bool), np.zeros(found, bool)
    heights_m = np.tile([10.0, 10.0 + error_m, 9.0, 12.0], (found, 1))
    pixels = np.array([found, 0, missed])
    return TileScores(
        image_id,
        np.full(found, 0.9),
        right,
        wrong,
        right,
        wrong,
        found + missed,
        found + missed,
        heights_m,
        pixels,
    )


def cell(**by_seed):
    """A cell of score "m": its value per seed s1, s2, ..., and 4 draws around it."""
    seeds = {int(name[1:]): {"m": value} for name, value in by_seed.items()}
    spread = np.array([-1.0, 0.0, 0.0, 1.0])
    return Cell(
        seeds, {seed: {"m": (np.nan if s["m"] is None else s["m"]) + spread} for seed, s in seeds.items()}
    )


def test_equal_networks_differ_by_nothing_and_better_ones_on_every_tile_by_what_they_are():
    half = [tile(i, 2, 2) for i in range(5)]
    tiles = {
        ("reference", "clear", 1): half,
        ("same", "clear", 1): half,
        ("all", "clear", 1): [tile(i, 4, 0, error_m=1.0) for i in range(5)],
    }
    cells = make_cells({key: drawn_scores(t) for key, t in tiles.items()})
    lines = {(x["row"], x["metric"]): x for x in table(cells, ["pixel/f1", "height/mae_m"], "reference")}
    assert lines["reference", "pixel/f1"]["mean"] == 2 * 2 / (2 * 2 + 2)
    assert lines["reference", "pixel/f1"]["difference"] is None
    same, better = lines["same", "pixel/f1"], lines["all", "pixel/f1"]
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    # Every tile says the same, so that drawing other tiles changes nothing.
    assert [better[k] for k in ("mean", "difference", "low", "high")] == pytest.approx(
        [1, 1 / 3, 1 / 3, 1 / 3]
    )
    assert lines["all", "height/mae_m"]["difference"] == pytest.approx(1.0)
    assert better["std"] is None and better["seeds"] == 1


def test_mean_and_std_over_seeds_and_the_interval_of_the_mean():
    cells = {("a", "clear"): cell(s1=10.0, s2=20.0, s3=30.0), ("b", "clear"): cell(s1=11.0, s2=22.0, s3=33.0)}
    reference, other = table(cells, ["m"], "a")
    assert (reference["mean"], reference["std"], reference["seeds"]) == (20.0, 10.0, 3)
    assert (other["mean"], other["difference"]) == (22.0, 2.0)
    # All draws move both sides alike: paired, their difference does not move.
    assert (other["low"], other["high"]) == (2.0, 2.0)


def test_a_score_that_is_not_defined_for_one_seed_has_no_mean():
    cells = {("a", "clear"): cell(s1=1.0, s2=None), ("b", "clear"): cell(s1=3.0, s2=4.0)}
    reference, other = table(cells, ["m"], "a")
    assert reference["mean"] is None and reference["std"] is None
    assert (other["mean"], other["difference"], other["low"]) == (3.5, None, None)


def test_pairs_are_made_of_the_seeds_that_both_have():
    cells = {("a", "clear"): cell(s1=1.0, s2=5.0), ("b", "clear"): cell(s2=6.0)}
    assert table(cells, ["m"], "a")[1]["difference"] == 1.0


def test_networks_scored_apart_are_drawn_alike():
    tiles = [tile(i, i, 5 - i) for i in range(6)]
    worse = [tile(i, max(i - 1, 0), 5 - i + min(i, 1)) for i in range(6)]
    first, again, other = (drawn_scores(t)["drawn"]["match/recall"] for t in (tiles, tiles, worse))
    assert first == again and len(set(first)) > 5
    # Tile by tile one building less is found, of five: paired draws differ by a fifth unless tile 0 is drawn.
    assert max(a - b for a, b in zip(first, other)) == pytest.approx(0.2, abs=1e-5)
    assert min(a - b for a, b in zip(first, other)) >= 0


def test_what_is_not_defined_is_null_in_the_file():
    empty = TileScores(1, *[np.zeros(0)] * 5, 0, 0, np.zeros((0, 4)), np.zeros(3, int))
    found = drawn_scores([empty])
    assert found["score"]["segm/AP50"] is None and set(found["drawn"]["segm/AP50"]) == {None}
    (line,) = table(make_cells({("a", "clear", 1): found}), ["segm/AP50"], "a")
    assert line["mean"] is None


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ({"above": 0}, "shown"),
        ({"above": 1.5}, "open"),
        ({"above": 4}, "contradicted"),
        ({"below": 0}, "contradicted"),
        ({"below": 2}, "open"),
        ({"above": -3, "below": 3.5}, "shown"),
        ({}, None),
    ],
)
def test_verdict_follows_from_the_whole_interval(bounds, verdict):
    moving = Cell({1: {"m": 12.0}}, {1: {"m": np.linspace(11, 13, 101)}})
    still = Cell({1: {"m": 10.0}}, {1: {"m": np.full(101, 10.0)}})
    cells = {("a", "clear"): still, ("b", "clear"): moving}
    (line,) = judge([Claim("more", "m", ("a", "clear"), ("b", "clear"), **bounds)], cells)
    assert line["verdict"] == verdict
    assert (line["difference"], line["low"], line["high"]) == (2.0, pytest.approx(1.05), pytest.approx(2.95))


def test_a_claim_about_a_row_that_is_not_finished_is_missing():
    (line,) = judge(
        [Claim("more", "m", ("a", "clear"), ("b", "clear"), above=0)], {("a", "clear"): cell(s1=1.0)}
    )
    assert line["verdict"] == "missing" and line["difference"] is None


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


# ---- For readers -----------------------------------------------------------------------------------------


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
