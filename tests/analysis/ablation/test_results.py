"""Tables and claims on scores that one can count."""

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


# ---- For readers -----------------------------------------------------------------------------------------
