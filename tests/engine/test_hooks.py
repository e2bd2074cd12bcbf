import math
from types import SimpleNamespace

from fusiondet.data import catalog
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.engine.checkpoint import FusionCheckpointer, read_checkpoint
from fusiondet.engine.hooks import (
    BestCheckpoint,
    CalibrateHeights,
    PredictionPanel,
    WeighTasks,
    calibrate_heights,
)
from fusiondet.io.bands import BandSpec
from fusiondet.modeling.task_weighting import GradNormWeighting
from fusiondet.visualization.training import draw_predictions
from tests.support.tiny_city import write_split

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn


def best_hook(folder, metric="joint/AP50", start_iter=0):
    hook = BestCheckpoint(FusionCheckpointer(nn.Linear(1, 1), str(folder), config_yaml="A: 1"), metric)
    hook.trainer = SimpleNamespace(
        iter=start_iter, start_iter=start_iter, max_iter=100, _last_eval_results={}
    )
    hook.before_train()
    return hook


def evaluated(hook, iteration, results):
    hook.trainer.iter, hook.trainer._last_eval_results = iteration, results
    hook.after_step()


def stored(folder):
    return read_checkpoint(folder / "model_best.pth")["fusiondet"]["value"]


def test_only_a_better_evaluation_is_kept(tmp_path):
    hook = best_hook(tmp_path)
    hook.after_step()
    assert not hook.path.exists(), "nothing was evaluated yet"
    for iteration, value, kept in [
        (1, 10.0, 10.0),
        (2, 30.0, 30.0),
        (3, 20.0, 30.0),
        (4, 30.0, 30.0),
        (5, 31.0, 31.0),
    ]:
        evaluated(hook, iteration, {"joint": {"AP50": value}})
        assert stored(tmp_path) == kept
    assert read_checkpoint(hook.path)["iteration"] == 5


def test_an_error_in_metres_is_better_when_smaller(tmp_path):
    hook = best_hook(tmp_path, "height/mae_m")
    for iteration, value, kept in [(1, 3.0, 3.0), (2, 2.0, 2.0), (3, 2.5, 2.0)]:
        evaluated(hook, iteration, {"height": {"mae_m": value}})
        assert stored(tmp_path) == kept


@pytest.mark.parametrize("metric", ["mae_m_building", "rmse_m_all", "mse_m2_all", "mae_norm_building"])
def test_an_error_of_maps_is_better_when_smaller(tmp_path, metric):
    hook = best_hook(tmp_path, f"dense/{metric}")
    for iteration, value, kept in [(1, 3.0, 3.0), (2, 2.0, 2.0), (3, 2.5, 2.0)]:
        evaluated(hook, iteration, {"dense": {metric: value}})
        assert stored(tmp_path) == kept


def test_tasks_are_weighed_once_per_step_and_logged():
    weighting = GradNormWeighting(["instances", "footprint"], alpha=0.0, rate=1.0)
    hook = WeighTasks(weighting)
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage)
        for _ in range(2):  # micro-batches
            x = torch.ones(1, 1, 1, 1, requires_grad=True)
            weighting({"loss_mask": x.sum(), "loss_footprint": 3 * x.sum()}, [x])
        hook.after_step()
        hook.after_step()  # nothing was seen since
        logged = {key: value for key, (value, _) in storage.latest().items()}
    assert logged == {
        **{"task_weight/instances": 1, "task_weight/footprint": 1},
        **{"task_loss/instances": 1, "task_loss/footprint": 3},
    }
    assert weighting.task_weights.tolist() == pytest.approx([1.5, 0.5])


@pytest.mark.parametrize("results", [{"segm": {"AP50": 5.0}}, {"joint": {"AP50": math.nan}}, {}])
def test_a_metric_that_is_not_there_never_counts(tmp_path, results):
    hook = best_hook(tmp_path)
    evaluated(hook, 1, results)
    assert not hook.path.exists()
    evaluated(hook, 2, {"joint": {"AP50": 0.0}})
    assert stored(tmp_path) == 0.0


def test_a_resumed_run_knows_what_is_to_be_beaten(tmp_path):
    evaluated(best_hook(tmp_path), 9, {"joint": {"AP50": 50.0}})
    resumed = best_hook(tmp_path, start_iter=10)
    evaluated(resumed, 19, {"joint": {"AP50": 40.0}})
    assert stored(tmp_path) == 50.0, "40 does not replace 50 after a resume"
    evaluated(resumed, 29, {"joint": {"AP50": 60.0}})
    assert stored(tmp_path) == 60.0


def test_another_metric_or_a_fresh_run_starts_anew(tmp_path):
    evaluated(best_hook(tmp_path), 9, {"joint": {"AP50": 50.0}})
    evaluated(best_hook(tmp_path, "segm/AP50", start_iter=10), 19, {"segm": {"AP50": 10.0}})
    assert stored(tmp_path) == 10.0
    evaluated(best_hook(tmp_path, "segm/AP50", start_iter=0), 3, {"segm": {"AP50": 5.0}})
    assert stored(tmp_path) == 5.0


def test_a_damaged_best_file_does_not_stop_training(tmp_path):
    (tmp_path / "model_best.pth").write_bytes(b"half")
    hook = best_hook(tmp_path, start_iter=10)
    evaluated(hook, 19, {"joint": {"AP50": 1.0}})
    assert stored(tmp_path) == 1.0


def test_of_several_test_sets_the_first_decides(tmp_path):
    hook = best_hook(tmp_path)
    evaluated(hook, 1, {"town_val": {"joint": {"AP50": 7.0}}, "city_val": {"joint": {"AP50": 9.0}}})
    assert stored(tmp_path) == 7.0


class OneBox(nn.Module):
    """A "network" that always predicts the same square of 8 m."""

    def forward(self, inputs):
        from detectron2.structures import Boxes, Instances

        found = Instances((64, 64))
        found.pred_boxes, found.scores = Boxes(torch.tensor([[4.0, 4, 12, 12]])), torch.tensor([0.9])
        found.pred_masks = torch.zeros(1, 64, 64, dtype=torch.bool)
        found.pred_masks[0, 4:12, 4:12] = True
        for name in ("pred_heights", "pred_height_p16", "pred_height_p84"):
            found.set(name, torch.tensor([8.0]))
        return [{"instances": found}]


@pytest.mark.parametrize(
    "bands",
    [
        BandSpec(("pan",)),
        BandSpec((), ("VV", "VH"), "db"),
        BandSpec(("red", "green", "blue", "nir"), ("HH",), "db"),
    ],
)
@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_the_panel_takes_any_number_of_bands(tmp_path, bands, mask_format):
    write_split(tmp_path, counts=(2,), bands=BandSpec((), ("HH",), "db"))
    record = catalog.records(catalog.load_split(str(tmp_path / "annotations" / "train.json")))[0]
    inputs = FusionDatasetMapper(False, optical_bands=(), sar_bands=("HH",), mask_format=mask_format)(record)
    inputs["image"] = torch.rand(len(bands), 64, 64)
    inputs["image"][:, :8] = torch.nan
    hook = PredictionPanel(2, bands, draw_predictions)
    model = OneBox().train()
    drawn = {}
    hook.trainer = SimpleNamespace(
        model=model,
        iter=0,
        _trainer=SimpleNamespace(last_batch=[inputs]),
        storage=SimpleNamespace(put_image=drawn.__setitem__),
    )
    hook.after_step()
    assert not drawn, "not yet due"
    hook.trainer.iter = 1
    hook.after_step()
    picture = drawn["predictions"]
    assert picture.dtype == torch.uint8 and picture.shape[0] == 3 and picture.float().std() > 10
    assert model.training, "training goes on"


class Oracle(nn.Module):
    """A detector that predicts 10 m with a half width of 0.1 in log height, times its width."""

    def __init__(self):
        super().__init__()
        self.register_buffer("interval_width", torch.tensor(3.0))

    def heights_on_truth(self, batch):
        assert not self.training
        half = 0.1 * float(self.interval_width)
        median = [torch.full_like(x["instances"].gt_heights, 10.0) for x in batch]
        return [SimpleNamespace(pred_heights=m, pred_height_p84=m * math.exp(half)) for m in median]


def batches_of(errors):
    """One building per batch, true heights at these distances from 10 m in log height; NaN is unknown."""
    heights_m = [10.0 * torch.tensor(e).exp() for e in errors]
    return [[{"instances": SimpleNamespace(gt_heights=h[None])}] for h in heights_m]


def test_calibrated_intervals_hold_68_percent_of_the_truth():
    errors = torch.randn(400, generator=torch.Generator().manual_seed(1)) * 0.25
    model = Oracle().train()
    width = calibrate_heights(model, batches_of(errors.tolist()))
    assert (errors.abs() <= 0.1 * width).float().mean().item() == pytest.approx(0.68, abs=0.005)
    assert model.training and float(model.interval_width) == pytest.approx(width)


@pytest.mark.parametrize(("deviation", "said"), [(0.12, False), (0.25, True)])
def test_intervals_that_had_to_be_stretched_much_are_reported_as_overfitting(caplog, deviation, said):
    errors = torch.randn(400, generator=torch.Generator().manual_seed(1)) * deviation
    with caplog.at_level("WARNING", "fusiondet"):
        calibrate_heights(Oracle(), batches_of(errors.tolist()))
    assert ("overfitting" in caplog.text and "model_best.pth" in caplog.text) == said


def test_calibration_ignores_unknown_heights_and_does_nothing_with_too_few():
    model = Oracle()
    assert calibrate_heights(model, batches_of([math.nan] * 200 + [0.1] * 20)) is None
    assert float(model.interval_width) == 3.0


@pytest.mark.parametrize(
    ("period", "iteration", "expected"), [(0, 98, 0), (0, 99, 1), (50, 49, 1), (50, 50, 0)]
)
def test_calibration_comes_at_the_end_and_with_each_evaluation(period, iteration, expected):
    calls = []
    hook = CalibrateHeights(period, lambda: calls.append(1) or [])
    hook.trainer = SimpleNamespace(iter=iteration, max_iter=100, model=Oracle())
    hook.after_step()
    assert len(calls) == expected
