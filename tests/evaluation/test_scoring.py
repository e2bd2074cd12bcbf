"""Scores of files: what is counted, what heads the table, and what is refused. `tests/tools` has the rest."""

import time

from fusiondet.buildings import Building, Tile
from fusiondet.errors import InputError
from fusiondet.evaluation.scoring import score_dfc2023, score_instances, score_layers
from fusiondet.files import read_json, write_json
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset, encode_rle, prediction_record, write_coco
from fusiondet.io.vectors import Layer
from tests.support.contest_cases import Contest
from tests.support.messages import raises_naming

import pytest
from shapely.geometry import box


@pytest.fixture
def files(tmp_path):
    """(annotations, predictions) of one tile: one of its two houses is found, 1 m too low."""
    houses = [Building(box(2, 2, 12, 12), 6.0), Building(box(20, 2, 32, 12), 3.0)]
    write_coco(Dataset([Tile("a.tif", 64, 64, 0.5, buildings=houses)], BandSpec()), tmp_path / "truth.json")
    rle = encode_rle(polygon_to_mask(houses[0].polygon, 64, 64))
    write_json([prediction_record(1, 0.9, (2, 2, 12, 12), rle, (5.0, 5.0, 5.0))], tmp_path / "found.json")
    return tmp_path / "truth.json", tmp_path / "found.json"


def test_metrics_are_those_asked_for(files):
    numbers, table = score_instances(*files, metrics=("height",))
    assert numbers["height/mae_m"] == 1 and "segm/AP50" not in numbers and "MAE 1.000 m" in table
    numbers, _ = score_instances(*files, metrics=("dense", "spacenet"))
    assert numbers["spacenet/tp"] == 1 and numbers["spacenet/fn"] == 1 and "height/mae_m" not in numbers
    assert numbers["dense/recall"] == pytest.approx(100 / 220)
    with raises_naming("'hight'", "'height'"):
        score_instances(*files, metrics=("hight",))


def test_results_do_not_differ_from_themselves(files):
    numbers, _ = score_instances(*files, compare=files[1], draws=10)
    assert numbers["match/f1/difference"] == 0


def test_rows_that_are_no_buildings_head_the_table():
    truth = Layer([Building(box(0, 0, 10, 10), 5.0)], "EPSG:32631")
    found = Layer([Building(box(0, 0, 10, 10), 4.0)], "EPSG:32631")
    found.reasons.update({"below the ground": 2})
    numbers, table = score_layers(truth, found)
    assert numbers["match/n"] == 1 and numbers["height/mae_m"] == 1
    assert table.splitlines()[0] == "predictions: 2 below the ground"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ("`submission`", "`predictions`")),
        ({"submission": "a.zip", "predictions": "a.json"}, ("`submission`", "`predictions`")),
        ({"submission": "a.zip", "write_submission": "b.zip"}, ("`write_submission`", "`predictions`")),
    ],
)
def test_a_contest_takes_a_zip_or_results(files, options, names):
    with pytest.raises(InputError) as refused:
        score_dfc2023(files[0], **options)
    assert all(name in str(refused.value) for name in names)


def test_truth_that_is_refused_leaves_no_submission_behind(tmp_path):
    Contest(tiles=2).write(tmp_path)
    written = {"predictions": tmp_path / "res/seg_results.json", "write_submission": tmp_path / "out.zip"}
    truth, heights = tmp_path / "ref/buildings_only_val.json", tmp_path / "ref/height"
    (heights / "P_0002.tif").write_bytes(b"II*")
    with raises_naming("P_0002.tif"):
        score_dfc2023(truth, heights=heights, **written)
    assert not (tmp_path / "out.zip").exists()


def test_trees_do_not_count_where_buildings_are_chosen(tmp_path):
    def square(i: int, **more) -> dict:
        return {
            "image_id": 1,
            "segmentation": [[10 * i, 5, 10 * i + 8, 5, 10 * i + 8, 13, 10 * i, 13]],
            **more,
        }

    categories = [{"id": 1, "name": "tree"}, {"id": 2, "name": "building"}]
    images = [{"id": 1, "file_name": "a.tif", "width": 100, "height": 20}]
    annotations = [square(i, id=i + 1, category_id=1 + i % 2) for i in range(8)]
    truth, predictions, both = (tmp_path / name for name in ("truth.json", "p.json", "both.json"))
    write_json({"images": images, "categories": categories, "annotations": annotations}, truth)
    # Our own predictions are of category 1, whatever a building is called in the truth.
    write_json([square(i, category_id=1, score=0.9) for i in range(8) if i % 2], predictions)
    write_json([square(i, category_id=1 + i % 2, score=0.9) for i in range(8)], both)
    with raises_naming(truth, "building (4)", "`classes`"):
        score_instances(truth, predictions)
    for metrics in (["coco"], ["spacenet"], ["dense"]):
        options = {"metrics": metrics, "classes": ["building"], "min_area_px": 0}
        found = [score_instances(truth, path, **options)[0] for path in (predictions, both)]
        assert found[0] == found[1]
        assert {"segm/AP50": 100, "spacenet/f1": 1, "dense/dice": 1}.items() & found[0].items()
    difference, _ = score_instances(truth, predictions, compare=both, classes=["building"], draws=10)
    assert difference["segm/AP50/a"] == difference["segm/AP50/b"] == 100
    only = [a for a in annotations if a["category_id"] == 2]
    write_json({"images": images, "categories": categories, "annotations": only}, truth)
    with raises_naming(both, "predictions of several classes (1, 2)"):
        score_instances(truth, both)


def test_only_the_best_predictions_of_a_tile_are_looked_at(files):
    truth, predictions = files
    records = read_json(predictions)
    worse = {**records[0], "score": 0.0, "segmentation": {"size": [1, 1], "counts": "broken"}}
    expected = score_instances(truth, predictions)[0]
    write_json(records + [worse] * 100_000, predictions)
    started = time.process_time()
    numbers = score_instances(truth, predictions, max_detections=len(records))[0]
    assert time.process_time() - started < 20
    assert {k: v for k, v in numbers.items() if "dataset" not in k} == {
        k: v for k, v in expected.items() if "dataset" not in k
    }
