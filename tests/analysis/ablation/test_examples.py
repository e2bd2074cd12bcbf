"""Maps of a few tiles, kept beside the weights that they follow from. `test_runs.py` predicts some."""

from fusiondet.analysis.ablation import examples
from fusiondet.analysis.ablation.runs import Run
from fusiondet.analysis.ablation.spec import Gallery
from fusiondet.files import write_json
from tests.support.tiny_city import write_split

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

# Tiles 1 to 5 have so many buildings.
COUNTS = (3, 2, 0, 4, 1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("city"), "test", COUNTS)


@pytest.fixture
def runs(tmp_path):
    """Three runs, of which the last is not trained."""
    found = [Run(row, 1, tmp_path / row, "", {}, ()) for row in ("rgb", "early", "late")]
    for run in found[:2]:
        write_json({"weights": f"hash of {run.row}"}, run.trained_file)
    return found


def keep(run, galleries, dataset, **maps):
    asked = examples._asked(dataset, examples._tiles(galleries, dataset))
    np.savez_compressed(run.folder / "maps.npz", key=examples._key(run, asked), **maps)


def test_tiles_of_all_galleries_are_predicted_once_each(dataset):
    """Of 1, 2, 4 and 5, which have buildings, the middle one of one is 4; of two, they are 2 and 5."""
    one, two = Gallery("A", {}, tiles=1), Gallery("B", {}, tiles=2)
    assert examples._tiles([one], dataset) == [4]
    assert examples._tiles([two], dataset) == [2, 5]
    assert examples._tiles([two, one, two], dataset) == [2, 4, 5]


def test_maps_are_left_of_trained_rows_that_are_shown_until_they_are_kept(dataset, runs):
    galleries = [Gallery("A", {"rgb": "RGB", "late": "Late"}, tiles=1)]
    assert examples.maps_left(galleries, runs, dataset) == [runs[0]]
    keep(runs[0], galleries, dataset, footprint_0=np.ones((64, 64), bool))
    assert examples.maps_left(galleries, runs, dataset) == []
    # Other tiles, then other weights.
    assert examples.maps_left([Gallery("A", {"rgb": "RGB"}, tiles=2)], runs, dataset) == [runs[0]]
    write_json({"weights": "trained again"}, runs[0].trained_file)
    assert examples.maps_left(galleries, runs, dataset) == [runs[0]]


def test_kept_maps_come_back_with_what_the_network_does_not_have(dataset, runs):
    galleries = [Gallery("A", {"rgb": "RGB"}, tiles=2)]
    footprint, height_m = np.eye(64, dtype=bool), np.full((64, 64), 7.5, np.float32)
    keep(runs[0], galleries, dataset, footprint_0=footprint, footprint_1=~footprint, height_1=height_m)
    asked = examples._asked(dataset, examples._tiles(galleries, dataset))
    first, second = examples._read(runs[0], asked)
    assert (first.footprint == footprint).all() and first.height_m is None
    assert (second.footprint == ~footprint).all() and (second.height_m == height_m).all()


def test_only_galleries_and_rows_with_maps_are_drawn(dataset, runs):
    rows = {"rgb": "RGB only", "early": "RGB + SAR", "late": "Late"}
    galleries = [Gallery("Seen", rows, tiles=1), Gallery("Unseen", {"late": "Late"}, tiles=1)]
    keep(runs[1], galleries, dataset, footprint_0=np.ones((64, 64), bool))
    made = examples.figures(galleries, runs, dataset)
    assert list(made) == ["Seen"]
    words = {text.get_text() for text in made["Seen"].findobj(lambda artist: hasattr(artist, "get_text"))}
    assert "RGB + SAR" in words and not words & {"RGB only", "Late"}


def test_a_map_of_probabilities_is_a_building_from_one_half_on():
    probability = torch.tensor([[0.49, 0.5], [0.51, 0.0]])
    said = examples._maps({}, {"footprint_map": probability, "height_map_m": torch.full((2, 2), 3.0)})
    assert said.footprint.tolist() == [[False, True], [True, False]]
    assert said.height_m.dtype == np.float32 and (said.height_m == 3).all()
    assert examples._maps({}, {"footprint_map": probability}).height_m is None
    assert examples._maps({}, {"height_map_m": probability}).footprint is None


@pytest.mark.parametrize("with_heights", [True, False])
def test_instances_are_painted(with_heights):
    """Two overlapping buildings, the surer one on top; one that is too unsure is not shown."""
    found = Instances((6, 8))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 6], [6, 0, 8, 2]]))
    found.scores = torch.tensor([0.9, 0.8, 0.3])
    if with_heights:
        for name, factor in (("pred_height_p16", 0.5), ("pred_heights", 1.0), ("pred_height_p84", 2.0)):
            found.set(name, torch.tensor([10.0, 20.0, 30.0]) * factor)
    said = examples._maps({"image_id": 1, "height": 6, "width": 8}, {"instances": found})
    footprint, height_m = np.zeros((6, 8), bool), np.zeros((6, 8))
    footprint[2:6, 2:6] = footprint[:4, :4] = True
    height_m[2:6, 2:6] = 20
    height_m[:4, :4] = 10
    assert (said.footprint == footprint).all()
    if with_heights:
        assert (said.height_m == height_m).all()
    else:
        assert said.height_m is None
