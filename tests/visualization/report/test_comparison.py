"""Layer against truth: pairs, errors, missed buildings and the curve, on rows one can count by hand."""

from fusiondet.buildings import Building
from fusiondet.evaluation.layer_scores import evaluate_vectors
from fusiondet.io.vectors import Layer
from fusiondet.visualization.report.comparison import compare
from tests.support.messages import raises_naming

import numpy as np
import pytest
from shapely.geometry import box

RD = "EPSG:28992"


def house(k: int, height_m=None, score=None, shift: float = 0.0, **more) -> Building:
    x = 155_000 + 30 * k + shift
    return Building(box(x, 463_000, x + 10, 463_010), height_m, score=score, **more)


def test_pairs_errors_and_missed():
    truth = Layer([house(0, 5.0, id="t0"), house(1, 8.0), house(2), house(3, 9.0, id="missed")], RD)
    predictions = [
        house(1, 9.0, 0.9, height_p16_m=7.5, height_p84_m=10.0),
        house(7, 3.0, 0.8),
        house(0, 4.0, 0.7),
        house(2, 6.0, 0.6),
    ]
    found = compare(predictions, RD, truth)
    assert found.truth_of.tolist() == [1, -1, 0, 2]
    np.testing.assert_array_equal(found.error_m, [1, np.nan, -1, np.nan])
    np.testing.assert_array_equal(found.truth_m, [8, np.nan, 5, np.nan])
    assert [b.id for b in found.missed] == ["missed"]
    assert found.numbers["height/interval_coverage"] == 1
    expected = evaluate_vectors(truth, Layer(predictions, RD))
    assert {k: found.numbers[k] for k in expected if k != "height/interval_coverage"} == {
        k: v for k, v in expected.items() if k != "height/interval_coverage"
    }
    # From the best score down: hit, false alarm, hit, hit, of four.
    assert found.recall.tolist() == [0.25, 0.25, 0.5, 0.75]
    assert found.precision == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4])
    assert found.score.tolist() == [0.9, 0.8, 0.7, 0.6]
    # 101 points of recall: precision 1 up to .25, then .75 up to .75, then nothing.
    assert found.numbers["ap50"] == pytest.approx(100 * (26 * 1 + 50 * 0.75) / 101)


def test_buildings_of_one_score_are_one_point_of_the_curve():
    truth = Layer([house(0), house(1)], RD)
    found = compare([house(9, score=0.5), house(0, score=0.5), house(1, score=0.5)], RD, truth)
    assert found.recall.tolist() == [1.0] and found.precision == pytest.approx([2 / 3])


def test_overlap_below_one_half_is_no_match():
    found = compare([house(0, 5.0, shift=4.0)], RD, Layer([house(0, 5.0)], RD))
    assert found.truth_of.tolist() == [-1] and len(found.missed) == 1


def test_no_scores_no_curve():
    found = compare([house(0), house(1, score=0.4)], RD, Layer([house(0)], RD))
    assert not len(found.recall) and found.numbers["ap50"] is None


@pytest.mark.parametrize("buildings", [[], [house(0, 5.0, 0.5)]])
@pytest.mark.parametrize("truth", [[], [house(0, 5.0)]])
def test_either_side_may_be_empty(buildings, truth):
    found = compare(buildings, RD, Layer(truth, RD))
    matched = int(bool(buildings) and bool(truth))
    assert found.numbers["match/n"] == matched and len(found.missed) == len(truth) - matched
    assert len(found.error_m) == len(buildings)


def test_layers_without_crs_are_compared_as_they_are_and_one_alone_is_refused():
    assert compare([house(0, 5.0)], None, Layer([house(0, 6.0)], None)).error_m.tolist() == [-1]
    with raises_naming("CRS"):
        compare([house(0)], None, Layer([house(0)], RD))
