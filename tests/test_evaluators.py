import math

import fusiondet.compat  # noqa: F401
from fusiondet.data import catalog
from fusiondet.data.coco import decode_rle, read_predictions
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.evaluators import BuildingEvaluator, nested, prediction_records, table
from fusiondet.files import read_json
from tests.tiny_city import BANDS, write_split

import pytest
import torch
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances


@pytest.fixture
def split(tmp_path):
    return str(write_split(tmp_path / "town", "val", (3, 0, 2)))


def inputs_of(name):
    mapper = FusionDatasetMapper(False, optical_bands=BANDS.optical, sar_bands=BANDS.sar)
    return [mapper(record) for record in catalog.records(catalog.load_split(name))]


def perfect(inputs, height_factor=1.0):
    """What a network would predict that sees everything."""
    truth, found = inputs["instances"], Instances((64, 64))
    found.pred_boxes, found.scores = Boxes(truth.gt_boxes.tensor), torch.full((len(truth),), 0.9)
    found.pred_classes, found.pred_masks = truth.gt_classes, truth.gt_masks.tensor
    for name, share in (("pred_height_p16", 0.9), ("pred_heights", 1.0), ("pred_height_p84", 1.1)):
        found.set(name, truth.gt_heights * share * height_factor)
    return {"instances": found}


class Truthful:
    """The part of a network that the evaluator asks for heights on true boxes: 10 % too high."""

    def heights_on_truth(self, inputs):
        return [perfect(x, 1.1)["instances"] for x in inputs]


def run(evaluator, inputs, outputs):
    evaluator.reset()
    for one, output in zip(inputs, outputs, strict=True):
        evaluator.process([one], [output])
    return evaluator.evaluate()


def test_perfect_predictions_score_perfectly(split):
    inputs = inputs_of(split)
    results = run(BuildingEvaluator(split), inputs, [perfect(x) for x in inputs])
    assert results["segm"]["AP"] == results["bbox"]["AP"] == results["joint"]["AP50"] == 100
    assert results["height"]["mae_m"] < 1e-4 and results["height"]["n"] == 5
    assert "height_gt_boxes" not in results


def test_heights_on_true_boxes_are_scored_apart(split):
    inputs = inputs_of(split)
    wrong = [perfect(x, 2.0) for x in inputs]
    results = run(BuildingEvaluator(split, model=Truthful()), inputs, wrong)
    truth_m = torch.cat([x["instances"].gt_heights for x in inputs])
    assert results["height_gt_boxes"]["mae_m"] == pytest.approx(0.1 * truth_m.mean().item(), rel=1e-4)
    assert results["height"]["mae_m"] == pytest.approx(truth_m.mean().item(), rel=1e-4)
    assert results["height_gt_boxes"]["n"] == 5 and results["joint"]["AP50"] == 0


def test_files_feed_every_other_tool(split, tmp_path):
    inputs = inputs_of(split)
    run(BuildingEvaluator(split, output_dir=tmp_path / "inference"), inputs, [perfect(x) for x in inputs])
    records = read_predictions(tmp_path / "inference" / "predictions.json")
    assert len(records) == 5 and set(records[0]) >= {
        "image_id",
        "score",
        "bbox",
        "segmentation",
        "height_p16_m",
    }
    metrics = read_json(tmp_path / "inference" / "metrics.json")
    assert metrics["segm/AP50"] == 100 and metrics["dataset/n_predictions"] == 5


def test_no_prediction_gives_defined_numbers(split, tmp_path):
    inputs = inputs_of(split)
    nothing = [
        {"instances": x["instances"][:0]}
        for x in [perfect(x)["instances"] for x in inputs]
        for x in [{"instances": x}]
    ]
    results = run(BuildingEvaluator(split, output_dir=tmp_path, model=Truthful()), inputs, nothing)
    assert results["segm"]["AP50"] == results["joint"]["AP50"] == 0 and results["height"]["coverage"] == 0
    assert "mae_m" not in results["height"] and read_json(tmp_path / "metrics.json")["height/mae_m"] is None
    assert read_json(tmp_path / "predictions.json") == []
    assert all(math.isfinite(v) for v in flatten_results_dict(results).values()), (
        "what goes to the log is numbers"
    )


def test_no_truth_at_all_gives_defined_numbers(tmp_path):
    split = str(write_split(tmp_path / "field", "val", (0, 0)))
    inputs = inputs_of(split)
    results = run(BuildingEvaluator(split, model=Truthful()), inputs, [perfect(x) for x in inputs])
    assert results["dataset"]["n_buildings"] == 0 and results["height"]["n"] == 0


def test_the_densest_tile_is_never_cut(split):
    inputs = inputs_of(split)
    results = run(BuildingEvaluator(split, max_detections=1), inputs, [perfect(x) for x in inputs])
    assert results["segm"]["AP"] == 100


def test_a_network_without_masks_or_heights_is_scored_by_its_boxes(split):
    inputs = inputs_of(split)
    outputs = [perfect(x) for x in inputs]
    for output in outputs:
        for name in ("pred_masks", "pred_heights", "pred_height_p16", "pred_height_p84"):
            output["instances"].remove(name)
    results = run(BuildingEvaluator(split), inputs, outputs)
    assert results["segm"]["AP50"] == 100 and results["height"]["n"] == 0


def test_records_hold_masks_in_the_frame_of_the_image(split):
    one = inputs_of(split)[0]
    records = prediction_records(one, perfect(one)["instances"])
    assert (
        decode_rle(records[0]["segmentation"], 64, 64) == one["instances"].gt_masks.tensor[0].numpy()
    ).all()
    truth_m = one["instances"].gt_heights[0].item()
    assert [records[0][k] for k in ("height_p16_m", "height_m", "height_p84_m")] == pytest.approx(
        [truth_m * 0.9, truth_m, truth_m * 1.1]
    )


def test_detectron2s_form_is_the_flat_keys_split_once():
    numbers = {"segm/AP50": 80, "height/bin_0_3_m/n": 4, "height/mae_m": None, "joint/AP": math.nan}
    assert nested(numbers) == {"segm": {"AP50": 80.0}, "height": {"bin_0_3_m/n": 4.0}}
    assert flatten_results_dict(nested(numbers)) == {"segm/AP50": 80.0, "height/bin_0_3_m/n": 4.0}
    assert "segm/AP50" in table(nested(numbers)) and table({}) == "  no number is defined"
