"""Two gloo processes on the CPU, started once for all tests: importing everything twice is what takes the time."""

import json

import fusiondet.compat  # noqa: F401
from fusiondet.compat import launch
from fusiondet.data import catalog
from fusiondet.engine.complete_config import complete_config
from fusiondet.engine.hooks import WeighTasks
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError
from tests.support.tiny_city import tiny_config, write_split

import numpy as np
import pytest
import torch
import torch.distributed as dist


def _both(cfg, folder):
    """In each process: a whole run, one in which the second tile gives a NaN, and bad input found by one of them."""
    torch.set_num_threads(1)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        catalog.ensure_registered(name)
    trainer = FusionTrainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    state = {
        "parameters": [float(p.detach().double().sum()) for p in trainer.model.parameters()],
        "results": trainer._last_eval_results,
        "seen": [x["file_name"] for x in trainer._trainer.last_batch],
        "consumed": trainer.sampler.consumed,
        "error": _error_of_a_bad_tile(cfg),
        **_joint(folder),
    }
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(state))
    dist.barrier()
    if dist.get_rank() == 1:
        raise InputError("tile.tif: damaged.\nCopy it again.")


def _joint(folder) -> dict:
    """Two steps with weighted tasks, of one tile with labels and one without in each process."""
    trainer = FusionTrainer(joint_config(folder))
    trainer.resume_or_load(False)
    trainer.train()
    (hook,) = [hook for hook in trainer._hooks if isinstance(hook, WeighTasks)]
    return {
        "weights": [float(w) for w in hook.weighting.task_weights],
        "first_losses": [float(x) for x in hook.weighting.first_losses],
        "joint_parameters": [float(p.detach().double().sum()) for p in trainer.model.parameters()],
        "labelled": [x.get("labelled", True) for x in trainer._trainer.last_batch],
        "joint_consumed": trainer.sampler.consumed,
        "dense_parameters": _dense_alone(folder),
    }


def _dense_alone(folder) -> list[float]:
    """Two steps of dense heads that read the coarsest level of the pyramid alone."""
    trainer = FusionTrainer(dense_config(folder))
    trainer.train()
    return [float(p.detach().double().sum()) for p in trainer.model.parameters()]


def joint_config(root):
    return config(
        root,
        *("MODEL.DENSE_HEADS.NAMES", "['Footprint', 'Reconstruction']", "MODEL.DENSE_HEADS.CONV_DIM", "8"),
        *("MODEL.TASK_WEIGHTING.NAME", "gradnorm", "DATASETS.LABEL_SHARE", "0.7"),
        *("DATALOADER.UNLABELLED_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(root / "joint")),
        train="few",
        test="",
    )


def dense_config(root):
    return config(
        root,
        *("MODEL.META_ARCHITECTURE", "FusionDense", "MODEL.MASK_ON", "False", "MODEL.HEIGHT_ON", "False"),
        *("MODEL.DENSE_HEADS.NAMES", "['Footprint']", "MODEL.DENSE_HEADS.CONV_DIM", "8"),
        *("MODEL.DENSE_HEADS.SKIPS", "False", "TEST.BEST_METRIC", "dense/dice", "SOLVER.MAX_ITER", "2"),
        *("SOLVER.ACCUMULATE_STEPS", "2", "OUTPUT_DIR", str(root / "dense")),
        train="few",
        test="",
    )


def _error_of_a_bad_tile(cfg) -> str:
    cfg.DATASETS.TEST = ()
    trainer = FusionTrainer(cfg)
    trainer.model.register_forward_hook(_spoil_second_tile)
    try:
        trainer.train()
    except FloatingPointError as error:
        return str(error)
    return ""


def _spoil_second_tile(model, inputs, losses):
    if any("train_1" in x["file_name"] for x in inputs[0]):
        return {**losses, "loss_mask": losses["loss_mask"] * torch.nan}
    return losses


def config(root, *overrides, **splits):
    cfg = tiny_config(root, "SOLVER.MAX_ITER", "3", "SOLVER.CHECKPOINT_PERIOD", "99", *overrides, **splits)
    complete_config(cfg)
    return cfg


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found, on two tiles of which one has no building: one process sees none in a step."""
    root = tmp_path_factory.mktemp("two")
    write_split(root, "train", (3, 0))
    write_split(root, "val", (2, 0, 1), seed=5)
    write_split(root, "few", (1, 3, 2), seed=7)
    with pytest.raises(InputError) as refused:  # as the process raised it, not as a failure of a process
        launch(_both, 2, args=(config(root), root), device="cpu")
    assert str(refused.value) == "tile.tif: damaged.\nCopy it again."
    return [json.loads((root / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_processes_agree_although_one_sees_no_building(ranks):
    first, second = ranks
    assert {*first["seen"]} != {*second["seen"]}
    assert first["parameters"] == second["parameters"], "gradients were averaged over both"
    assert np.isfinite(first["parameters"]).all()
    assert first["consumed"] == second["consumed"] == 3 * 2


def test_evaluation_gathers_all_processes_on_the_first(ranks):
    results = ranks[0]["results"]
    assert (results["dataset"]["n_images"], results["dataset"]["n_buildings"]) == (3, 3)
    assert results["height_gt_boxes"]["n"] == 3
    assert ranks[1]["results"] == {}


def test_a_loss_that_is_not_finite_stops_all_and_names_the_image(ranks):
    for rank in ranks:
        assert "not finite at iteration 0: losses [{'loss_mask': nan}]" in rank["error"]
        assert "train_1_rgb.tif" in rank["error"] and "train_0_rgb.tif" not in rank["error"]


def test_tasks_have_the_same_weights_in_all_processes(ranks):
    first, second = ranks
    assert first["weights"] == second["weights"] and len({*first["weights"]}) == 4
    assert sum(first["weights"]) == pytest.approx(4) and first["first_losses"] == second["first_losses"]
    assert first["joint_parameters"] == second["joint_parameters"]


def test_dense_heads_that_leave_levels_unread_train_in_all_processes(ranks):
    first, second = ranks
    assert first["dense_parameters"] == second["dense_parameters"]
    assert np.isfinite(first["dense_parameters"]).all()


def test_every_process_has_tiles_of_either_kind(ranks):
    for rank in ranks:
        assert rank["labelled"] == [True, False] and rank["joint_consumed"] == 2 * 4


def test_a_batch_that_does_not_divide_is_an_input_error(tmp_path, monkeypatch):
    write_split(tmp_path, "train", (1, 1))
    cfg = config(tmp_path, "SOLVER.IMS_PER_BATCH", "3", test="")
    monkeypatch.setattr("fusiondet.engine.trainer.comm.get_world_size", lambda: 2)
    with pytest.raises(InputError, match="IMS_PER_BATCH is 3, expected a multiple of the 2 processes"):
        FusionTrainer.build_train_loader(cfg)
