"""The numbers of an evaluation as text."""

from fusiondet.buildings import Tile
from fusiondet.evaluation.table import metrics_table, worse_than_constant
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset


def test_undefined_numbers_are_printed_as_a_dash():
    from fusiondet.evaluation.instances import evaluate_instances

    metrics = evaluate_instances(Dataset([Tile("a.tif", 64, 64, 0.5)], BandSpec()), [])
    text = metrics_table(metrics)
    assert text.splitlines()[1].split() == ["bbox", "-", "-", "-"]
    assert "MAE - m" in text and "None" not in text


def test_heights_that_are_worse_than_a_constant_are_said():
    assert worse_than_constant({"height/skill": 0.1, "dense/skill": None}) == []
    (note,) = worse_than_constant({"height/skill": 0.1, "dense/skill": -0.25})
    assert note.startswith(
        "note: heights are worse than one constant height for all buildings (dense/skill -0.250)"
    )
    assert note in metrics_table({"dense/skill": -0.25})
