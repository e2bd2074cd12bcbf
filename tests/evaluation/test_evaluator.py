import dataclasses
import math

import fusiondet.compat  # noqa: F401
from fusiondet.data import catalog
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.errors import InputError
from fusiondet.evaluation.dense import dense_metrics, tile_truth
from fusiondet.evaluation.evaluator import BuildingEvaluator, nested, prediction_records, table
from fusiondet.evaluation.regions import region_by_name
from fusiondet.evaluation.resampling import summarize, tile_scores
from fusiondet.files import read_json
from fusiondet.io.coco import decode_rle, read_predictions, write_coco
from fusiondet.io.pixel_classes import ClassList
from fusiondet.modeling.height_head import HEIGHT_FIELDS
from fusiondet.visualization.training import draw_confusion
from tests.support.tiny_city import BANDS, write_raster, write_split

import numpy as np
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


# ---- Maps ------------------------------------------------------------------------------------------------


def true_maps(name, height_factor=1.0):
    """image id -> what dense heads would say that see everything."""
    dataset, found = catalog.load_split(name), {}
    for tile in dataset.tiles:
        height_m, footprint = (torch.as_tensor(m).float() for m in tile_truth(dataset, tile))
        found[tile.id] = {"height_map_m": height_m * height_factor, "footprint_map": footprint * 0.8}
    return found


def test_instances_of_a_detector_are_its_map(split, tmp_path):
    inputs = inputs_of(split)
    (tmp_path / "dense_scores.json").write_text("of another network")
    results = run(BuildingEvaluator(split, output_dir=tmp_path), inputs, [perfect(x, 1.1) for x in inputs])
    assert results["dense"]["dice"] == results["dense"]["delta1_building"] == 1 and "painted" not in results
    tiles = catalog.load_split(split).tiles
    area_m = [(b.polygon.area, b.height_m) for tile in tiles for b in tile.buildings]
    expected = 0.1 * sum(a * m for a, m in area_m) / sum(a for a, _ in area_m)
    assert results["dense"]["mae_m_building"] == pytest.approx(expected, rel=1e-4)
    assert not (tmp_path / "dense_scores.json").exists()
    again = dense_metrics(
        [tile.dense for tile in tile_scores(catalog.load_split(split), tmp_path / "predictions.json")]
    )
    assert {k.removeprefix("dense/"): v for k, v in again.items()} == pytest.approx(results["dense"])


def test_a_detector_without_heights_has_footprints_alone(split):
    inputs = inputs_of(split)
    outputs = [perfect(x) for x in inputs]
    for output in outputs:
        for name in HEIGHT_FIELDS:
            output["instances"].remove(name)
    results = run(BuildingEvaluator(split), inputs, outputs)
    assert results["dense"]["iou"] == 1 and "delta1_building" not in results["dense"]


def test_dense_heads_are_scored_beside_the_instances(split, tmp_path):
    inputs, maps = inputs_of(split), true_maps(split, 2.0)
    outputs = [perfect(x) | maps[x["image_id"]] for x in inputs]
    results = run(BuildingEvaluator(split, output_dir=tmp_path), inputs, outputs)
    assert results["dense"]["dice"] == 1 and results["dense"]["delta1_building"] == 0
    assert results["painted"]["dice"] == results["painted"]["delta1_building"] == 1
    assert results["segm"]["AP50"] == 100
    tiles = tile_scores(catalog.load_split(split), tmp_path / "predictions.json")
    again = summarize(tiles)
    assert again["dense/mae_m_building"] == pytest.approx(results["dense"]["mae_m_building"])
    assert (again["painted/delta1_building"], again["segm/AP50"]) == (1, pytest.approx(100))


def test_a_network_without_instances_is_scored_by_its_maps(split, tmp_path):
    inputs, maps = inputs_of(split), true_maps(split)
    results = run(
        BuildingEvaluator(split, output_dir=tmp_path), inputs, [maps[x["image_id"]] for x in inputs]
    )
    assert results.keys() == {"dataset", "dense"} and results["dataset"] == {"n_images": 3, "n_buildings": 5}
    assert results["dense"]["delta1_all"] == results["dense"]["dice_tile_mean"] == 1
    assert results["dense"]["rmse_m_building"] == 0
    assert read_predictions(tmp_path / "predictions.json") == []
    again = summarize(tile_scores(catalog.load_split(split), tmp_path / "predictions.json"))
    assert again["dense/delta1_building"] == 1
    assert again["segm/AP50"] is again["match/n_truth"] is again["painted/dice"] is None


def test_one_head_alone_is_scored_by_what_it_says(split):
    inputs, maps = inputs_of(split), true_maps(split)
    heights = run(
        BuildingEvaluator(split), inputs, [drop(maps[x["image_id"]], "footprint_map") for x in inputs]
    )
    assert heights["dense"]["dice"] == heights["dense"]["delta1_building"] == 1
    outlines = run(
        BuildingEvaluator(split), inputs, [drop(maps[x["image_id"]], "height_map_m") for x in inputs]
    )
    assert outlines["dense"]["dice"] == 1 and "mae_m_all" not in outlines["dense"]


def drop(output, name):
    return {key: value for key, value in output.items() if key != name}


def class_map(numbers, k):
    """Probabilities whose largest is at `numbers` (H, W)."""
    return torch.nn.functional.one_hot(torch.as_tensor(numbers), k).movedim(-1, 0).float()


def test_classes_are_scored_against_footprints_where_there_is_no_raster(split, tmp_path):
    inputs, dataset = inputs_of(split), catalog.load_split(split)
    names, counts, outputs = ["building", "background"], np.zeros((2, 2), int), []
    for tile in dataset.tiles:
        truth = np.where(tile_truth(dataset, tile)[1], 0, 1)
        said = truth.copy()
        said[:, :20] = 0
        np.add.at(counts, (truth, said), 1)
        outputs.append({"class_map": class_map(said, 2), "footprint_map": torch.as_tensor(said == 0).float()})
    evaluator = BuildingEvaluator(
        split, output_dir=tmp_path, class_names=names, draw_confusion=draw_confusion
    )
    results = run(evaluator, inputs, outputs)
    scores, total = results["classes"], counts.sum()
    assert scores["oa"] == pytest.approx(np.trace(counts) / total) and scores["n"] == total == 3 * 64 * 64
    f1 = 2 * counts[0, 0] / (counts[0].sum() + counts[:, 0].sum())
    assert scores["f1/building"] == pytest.approx(f1) == results["dense"]["dice"] and f1 < 0.9
    assert read_json(tmp_path / "confusion.json") == {"classes": names, "counts": counts.tolist()}
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    assert flatten_results_dict(results)["classes/f1/building"] == scores["f1/building"]
    assert "classes/oa" in table(results)
    again = summarize(tile_scores(dataset, tmp_path / "predictions.json"))
    assert again["dense/dice"] == pytest.approx(f1)


def test_classes_are_scored_against_rasters_without_what_is_not_labelled(split, tmp_path):
    numbers = np.zeros((1, 64, 64), np.uint8)
    numbers[:, 10:20], numbers[:, 60:] = 1, 9
    path, dataset = catalog.annotation_file(split), catalog.load_split(split)
    write_raster(dataset.root / "classes.tif", numbers)
    tiles = [dataclasses.replace(tile, class_file_name="classes.tif") for tile in dataset.tiles]
    classes = ClassList(("grass", "building", "car"), ((0,), (1,), (2,)), ((9,),))
    write_coco(dataclasses.replace(dataset, tiles=tiles, info=classes.to_info()), path)
    inputs, said = inputs_of(split), np.zeros((64, 64), int)
    said[15:25], said[61:] = 1, 2
    outputs = [{"class_map": class_map(said, 3), "footprint_map": torch.zeros(64, 64)} for _ in inputs]
    results = run(BuildingEvaluator(split, output_dir=tmp_path, class_names=classes.names), inputs, outputs)
    assert results.keys() == {"dataset", "classes"}, "there are no outlines to score a footprint by"
    assert results["classes"] == pytest.approx(
        {
            "oa": 50 / 60, "aa": (45 / 50 + 5 / 10) / 2, "kappa": (50 / 60 - 2600 / 3600) / (1 - 2600 / 3600),
            "f1/grass": 90 / 100, "f1/building": 10 / 20, "mean_f1": 0.7, "iou/grass": 45 / 55, "iou/building": 5 / 15,
            "miou": (45 / 55 + 5 / 15) / 2, "n": 3 * 60 * 64,
        }
    )  # fmt: skip
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["classes/f1/car"] is None, "neither true nor said where the truth is known"
    assert read_json(tmp_path / "confusion.json")["counts"][0] == [3 * 45 * 64, 3 * 5 * 64, 0]
    with pytest.raises(InputError, match="has no counts of image"):
        tile_scores(catalog.load_split(split), tmp_path / "predictions.json")


def test_pixels_of_all_tiles_and_processes_are_pooled(split, monkeypatch):
    inputs, names = inputs_of(split), ["background", "building"]
    outputs = [{"class_map": class_map(np.full((64, 64), i % 2), 2)} for i in range(len(inputs))]
    whole = run(BuildingEvaluator(split, class_names=names), inputs, outputs)["classes"]
    evaluators = [BuildingEvaluator(split, class_names=names) for _ in range(2)]
    for k, (one, output) in enumerate(zip(inputs, outputs, strict=True)):
        evaluators[k % 2].process([one], [output])
    gathered = iter([[getattr(e, name) for e in evaluators] for name in ("_records", "_heights_m", "_maps")])
    monkeypatch.setattr("fusiondet.evaluation.evaluator.comm.all_gather", lambda _: next(gathered))
    assert evaluators[0].evaluate()["classes"] == whole

    assert whole["n"] == 3 * 64 * 64 and whole["oa"] < 1


def test_a_map_of_classes_of_another_size_is_refused(split):
    inputs = inputs_of(split)
    outputs = [{"class_map": torch.zeros(2, 32, 64)} for _ in inputs]
    with pytest.raises(InputError, match="a map of classes"):
        run(BuildingEvaluator(split, class_names=["background", "building"]), inputs, outputs)


def test_parts_under_cloud_are_kept_for_scores_of_maps(split, tmp_path):
    dataset, cloud = catalog.load_split(split), np.zeros((1, 64, 64), np.uint8)
    cloud[:, :32] = 255
    write_raster(dataset.root / "cloud.tif", cloud)
    dataset.tiles[0].cloud_file_name = "cloud.tif"
    write_coco(dataset, split)
    inputs, maps = inputs_of(split), true_maps(split)
    run(BuildingEvaluator(split, output_dir=tmp_path), inputs, [maps[x["image_id"]] for x in inputs])
    dataset = catalog.load_split(split)
    region = region_by_name("under_cloud", dataset)
    first, *others = tile_scores(dataset, tmp_path / "predictions.json", region=region)
    hidden = tile_truth(dataset, dataset.tiles[0])[1][:32]
    assert (first.dense.tp, first.dense.tn) == (hidden.sum(), 64 * 32 - hidden.sum())
    assert not any(any(dataclasses.astuple(tile.dense)[:-1]) for tile in others)


def test_labels_that_cannot_be_read_stop_dense_heads_but_not_a_detector(split, caplog):
    dataset = catalog.load_split(split)
    dataset.tiles[1].building_height_file_name = "gone.tif"
    inputs, maps = inputs_of(split), {tile.id: torch.zeros(64, 64) for tile in dataset.tiles}
    with pytest.raises(InputError, match="gone.tif: no such file"):
        run(BuildingEvaluator(split), inputs, [{"height_map_m": maps[x["image_id"]]} for x in inputs])
    with caplog.at_level("WARNING"):
        results = run(BuildingEvaluator(split), inputs, [perfect(x) for x in inputs])
    assert results["segm"]["AP50"] == 100 and "dense" not in results
    assert len([r for r in caplog.records if "gone.tif" in r.message]) == 1
    results = run(BuildingEvaluator(split, height_labels="instances"), inputs, [perfect(x) for x in inputs])
    assert results["dense"]["dice"] == 1


def test_what_several_processes_scored_is_put_together(split, monkeypatch):
    inputs, maps = inputs_of(split), true_maps(split)
    evaluators = [BuildingEvaluator(split) for _ in range(2)]
    for k, one in enumerate(inputs):
        evaluators[k % 2].process([one], [perfect(one) | maps[one["image_id"]]])
    names = ("_records", "_heights_m", "_maps")
    gathered = iter([[getattr(e, name) for e in evaluators] for name in names])
    monkeypatch.setattr("fusiondet.evaluation.evaluator.comm.all_gather", lambda _: next(gathered))
    results = evaluators[0].evaluate()
    assert results["dense"]["dice"] == results["painted"]["recall"] == 1 and results["segm"]["AP50"] == 100
