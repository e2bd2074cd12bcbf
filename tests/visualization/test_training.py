"""Which figures of a tile are drawn for which network during training, and what they show."""

import math
from types import SimpleNamespace

from fusiondet.buildings import Building
from fusiondet.engine.hooks import PredictionPanel
from fusiondet.io.bands import BandSpec
from fusiondet.visualization import training

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from shapely.geometry import box
from torch import nn

SIDE = 32


class Maps(nn.Module):
    """A network that says the same of every image."""

    def __init__(self, **output):
        super().__init__()
        self.output = output

    def forward(self, batch):
        assert not self.training
        return [dict(self.output) for _ in batch]


def inputs(**labels):
    """A tile with one building of 8 m, and a corner where no band has data."""
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[0, 10:20, 10:20] = True
    truth = Instances((SIDE, SIDE), gt_masks=BitMasks(mask), gt_heights=torch.tensor([8.0]))
    image = torch.rand(2, SIDE, SIDE)
    image[:, :4, :6] = math.nan
    facts = {"sensor": {}, "file_name": "a.tif", "image_id": 1, "gsd_m": 0.5}
    return {"image": image, "instances": truth, "height": SIDE, "width": SIDE, **facts, **labels}


@pytest.fixture
def views(monkeypatch):
    """What was drawn, last first."""
    drawn, draw = [], training.tile_figure
    monkeypatch.setattr(training, "tile_figure", lambda view: drawn.insert(0, view) or draw(view))
    return drawn


def pictures(output, *batch):
    """Names of the pictures of the first step at which they are due."""
    shown = {}
    hook = PredictionPanel(1, BandSpec(("pan",), ("HH",), "db"), training.draw_predictions)
    storage = SimpleNamespace(put_image=shown.__setitem__)
    step = SimpleNamespace(last_batch=list(batch))
    hook.trainer = SimpleNamespace(model=Maps(**output).train(), iter=0, _trainer=step, storage=storage)
    hook.after_step()
    assert all(p.dtype == torch.uint8 and p.shape[0] == 3 for p in shown.values())
    return sorted(shown)


def test_a_network_without_instances_shows_its_maps_beside_the_truth(views):
    truth_m = torch.zeros(SIDE, SIDE)
    predicted = {
        "height_map_m": torch.full((SIDE, SIDE), 3.0),
        "footprint_map": torch.full((SIDE, SIDE), 0.7),
    }
    assert pictures(predicted, inputs(building_height_m=truth_m)) == ["height_maps"]
    (view,) = views
    assert (view.truth_map_m == 0).all() and view.predictions is None
    for shown, value in ((view.height_map_m, 3.0), (view.footprint_map, 0.7)):
        assert math.isnan(shown[3, 5]) and shown[4, 5] == pytest.approx(value) == shown[3, 6]


def test_a_network_of_both_shows_both(views):
    found = Instances((SIDE, SIDE), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    found.pred_masks, found.pred_classes = torch.zeros(0, SIDE, SIDE), torch.zeros(0)
    output = {"instances": found, "height_map_m": torch.zeros(SIDE, SIDE)}
    assert pictures(output, inputs()) == ["height_maps", "predictions"]
    maps, instances = views
    assert maps.truth_map_m is None and maps.predictions is None and instances.predictions == []


def test_a_tile_without_labels_is_not_drawn_beside_one_with(views):
    unlabelled = inputs(labelled=False, file_name="b.tif")
    assert pictures({"height_map_m": torch.zeros(SIDE, SIDE)}, unlabelled, inputs()) == ["height_maps"]
    assert views[0].tile.file_name == "a.tif"


def test_the_truth_of_the_inputs_is_drawn():
    truth = Instances((64, 64))
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[0, 4:12, 6:20] = mask[1, 30:40, 30:40] = True
    truth.gt_masks, truth.gt_heights = BitMasks(mask), torch.tensor([7.0, math.nan])
    sensor = {"sun_azimuth_deg": 10.0, "sun_elevation_deg": math.nan}
    tile = training._tile_of({"instances": truth, "sensor": sensor, "file_name": "a/b.tif", "gsd_m": 0.5})
    assert [
        b.polygon.equals(p)
        for b, p in zip(tile.buildings, (box(6, 4, 20, 12), box(30, 30, 40, 40)), strict=True)
    ]
    assert [b.height_m for b in tile.buildings] == [7.0, None] and isinstance(tile.buildings[0], Building)
    assert tile.sensor.sun_azimuth_deg == 10 and tile.sensor.sun_elevation_deg is None
