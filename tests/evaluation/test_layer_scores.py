"""Layer against layer: one partner each, any CRS, features never merged; and real layers with known numbers."""

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.evaluation.layer_scores import evaluate_vectors, match_polygons, polis
from fusiondet.io.vectors import Layer, read_layer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from shapely import transform
from shapely.geometry import box

RD = "EPSG:28992"


def layer(*boxes_and_heights, crs=RD):
    return Layer([Building(polygon, height_m) for polygon, height_m in boxes_and_heights], crs)


def house(x, w=10.0):
    return box(155_000 + x, 463_000, 155_000 + x + w, 463_010)


def test_numbers_one_can_check_in_the_head():
    truth = layer((house(0), 5.0), (house(20), None), (house(40), 8.0), (house(60), 9.0))
    predictions = layer(
        (house(40), 7.0), (house(0, 8), 6.5), (house(20), 3.0), (house(66), 1.0), (house(90), 2.0)
    )
    got = evaluate_vectors(truth, predictions)
    assert (got["match/n"], got["match/n_truth"], got["match/n_predictions"]) == (3, 4, 5)
    assert got["match/recall"] == 0.75 and got["match/precision"] == 0.6
    assert got["match/f1"] == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert got["match/mean_iou"] == pytest.approx((1 + 1 + 0.8) / 3)
    # Error is prediction - truth: +1.5 and -1.
    assert (got["height/n"], got["height/bias_m"], got["height/mae_m"]) == (2, 0.25, 1.25)
    assert got["height/coverage"] == pytest.approx(2 / 3)


def test_a_feature_has_one_partner_the_best():
    truth = [house(0), house(0)]
    pairs, iou = match_polygons(truth, [house(0, 9), house(0), house(0, 8)], 0.5)
    assert pairs.tolist() == [[0, 1], [1, 0]] and iou.tolist() == [1.0, pytest.approx(0.9)]


def test_equal_features_pair_in_order_and_stay_features():
    pairs, _ = match_polygons([house(0)] * 3, [house(0)] * 3, 0.5)
    assert pairs.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_the_threshold_counts_in_and_bad_ones_are_refused():
    truth, predictions = layer((house(0), 1.0)), layer((house(0, 5), 1.0))
    assert evaluate_vectors(truth, predictions, 0.5)["match/n"] == 1
    assert evaluate_vectors(truth, predictions, 0.51)["match/n"] == 0
    for threshold in (0, -1, 1.5):
        with pytest.raises(InputError, match="IoU threshold"):
            evaluate_vectors(truth, predictions, threshold)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32631"])
def test_layers_may_have_any_crs(crs):
    truth = layer((house(0), 5.0), (house(40), 8.0))
    there = Transformer.from_crs(RD, crs, always_xy=True).transform
    moved = [(transform(b.polygon, there, interleaved=False), b.height_m) for b in truth.buildings]
    got = evaluate_vectors(truth, layer(*moved, crs=crs))
    assert got["match/n"] == 2 and got["match/mean_iou"] == pytest.approx(1, abs=1e-3)
    assert got["height/mae_m"] == 0
    assert evaluate_vectors(layer(*moved, crs=crs), truth)["match/n"] == 2


def test_without_any_crs_coordinates_are_compared_as_they_are():
    bare = layer((house(0), 5.0), crs=None)
    assert evaluate_vectors(bare, bare)["match/n"] == 1
    for pair, name in (((bare, layer()), "truth"), ((layer(), bare), "prediction")):
        with pytest.raises(InputError, match=f"{name} layer has no CRS"):
            evaluate_vectors(*pair)


def test_nothing_gives_defined_numbers():
    some, none = layer((house(0), 5.0)), layer()
    missed = evaluate_vectors(some, none)
    assert (missed["match/recall"], missed["match/precision"], missed["match/f1"]) == (0, None, 0)
    assert missed["height/coverage"] == 0 and missed["height/mae_m"] is None
    assert evaluate_vectors(none, some)["match/recall"] is None
    assert evaluate_vectors(none, none)["match/f1"] is None


rectangles = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 6), st.integers(1, 6)), max_size=12
)


@given(rectangles, rectangles)
def test_pairs_are_one_to_one_and_none_is_left_over(truth, predictions):
    truth, predictions = ([box(x, y, x + w, y + h) for x, y, w, h in side] for side in (truth, predictions))
    pairs, iou = match_polygons(truth, predictions, 0.3)
    for column in pairs.T:
        assert len(set(column)) == len(column)
    for (t, p), value in zip(pairs, iou, strict=True):
        assert value == pytest.approx(_iou(truth[t], predictions[p])) and value >= 0.3
    free = [(t, p) for t in range(len(truth)) for p in range(len(predictions)) if t not in pairs[:, 0]]
    assert all(_iou(truth[t], predictions[p]) < 0.3 for t, p in free if p not in pairs[:, 1])


def _iou(a, b):
    return a.intersection(b).area / a.union(b).area


def test_a_roof_measured_below_the_ground_counts_in_a_comparison():
    truth = layer((house(0), -0.15), (house(20), 4.0))
    got = evaluate_vectors(truth, layer((house(0), 1.0), (house(20), 4.0)))
    assert got["height/bias_m"] == pytest.approx(0.575) and got["height/delta1"] == 0.5
    assert got["height/bin_0_3_m/n"] == 1


def test_two_sources_of_the_same_town_give_the_known_numbers(shared_data):
    folder = shared_data("3dbag-wageningen-heights")
    truth = read_layer(
        folder / "downtown_clipped_buildings_real.shp", "dd_h_dak_7", "h_maaiveld", signed=True
    )
    predictions = read_layer(folder / "downtown_wageningen_estimated.json", "MeanValue", signed=True)
    got = evaluate_vectors(truth, predictions)
    assert got["match/n_truth"] == got["match/n_predictions"] == got["match/n"] == 2462
    assert got["height/n"] == 2325
    assert got["height/bias_m"] == pytest.approx(-0.334, abs=5e-4)
    assert got["height/mae_m"] == pytest.approx(0.890, abs=5e-4)
    assert got["height/rmse_m"] == pytest.approx(1.380, abs=5e-4)


class TestOutlinesAlone:
    def test_polis_one_can_draw(self):
        # Two of four vertices of the wider one are 2 m off the other; all vertices of the other lie on its outline.
        assert polis(house(0), house(0, 12)) == pytest.approx(0.5)
        assert polis(house(0), house(0)) == 0

    def test_metres_whatever_the_unit_of_the_map(self):
        pair = layer((house(0), None)), layer((house(0, 12), None))
        assert evaluate_vectors(*pair)["match/polis_m"] == pytest.approx(0.5, rel=1e-3)
        for crs in ("EPSG:4326", "EPSG:2263"):
            convert = Transformer.from_crs(RD, crs, always_xy=True).transform
            moved = [
                layer((transform(p.buildings[0].polygon, convert, interleaved=False), None), crs=crs)
                for p in pair
            ]
            assert evaluate_vectors(*moved)["match/polis_m"] == pytest.approx(0.5, rel=1e-2)

    def test_no_heights_are_none_to_score(self):
        numbers = evaluate_vectors(layer((house(0), None)), layer((house(0), None)))
        assert not any(key.startswith("height/") for key in numbers) and numbers["match/f1"] == 1
        apart = evaluate_vectors(layer((house(0), None)), layer((house(90), None)))
        assert apart["match/polis_m"] is None
