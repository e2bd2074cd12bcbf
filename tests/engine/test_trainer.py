import copy
import itertools
import json
import math
import statistics

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import config_from_yaml_text
from fusiondet.engine import trainer as engine
from fusiondet.engine.checkpoint import load_model, network_differences, read_checkpoint
from fusiondet.engine.complete_config import complete_config
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError
from fusiondet.files import read_json
from fusiondet.io.bands import BandSpec
from tests.support.messages import raises_naming
from tests.support.tiny_city import (
    BANDS,
    completed_config,
    tiny_config,
    write_split,
    write_tiles,
)

import pytest
import timm
import torch


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("MODEL.RESNETS.DEPTH", "42", "DEPTH is 42, expected one of"),
        ("MODEL.RESNETS.NORM", "XX", "KeyError 'XX'"),
        ("MODEL.ROI_HEIGHT_HEAD.IN_FEATURES", "['p9']", "KeyError 'p9'"),
        ("MODEL.ROI_HEIGHT_HEAD.CONV_DIM", "10", "must be divisible by num_groups"),
        ("MODEL.DEVICE", "toaster", "toaster"),
        (
            "MODEL.META_ARCHITECTURE",
            "GeneralizedRCNN",
            "GeneralizedRCNN with FusionROIHeads predicts no heights",
        ),
        ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "FusionRCNN with StandardROIHeads predicts no heights"),
    ],
)
def test_a_network_that_cannot_be_is_bad_input(root, key, value, named):
    with pytest.raises(InputError, match=named):
        FusionTrainer.build_model(completed_config(root, key, value))


# ---- few labels ----

PAINTED = ("MODEL.DENSE_HEADS.NAMES", "['Reconstruction']", "MODEL.DENSE_HEADS.CONV_DIM", "8")


@pytest.fixture
def ten_tiles(tmp_path):
    write_split(tmp_path, "train", (1, 2, 1, 0, 2, 1, 1, 2, 0, 1))
    return tmp_path


def few(root, share, *overrides):
    return completed_config(root, "DATASETS.LABEL_SHARE", str(share), *overrides, test="")


def labelled_ids(cfg):
    return {r["image_id"] for r in engine.training_records(cfg) if r.get("labelled", True)}


def test_tiles_without_labels_show_no_building(ten_tiles, caplog):
    caplog.set_level("INFO")
    records = engine.training_records(few(ten_tiles, 0.3))
    assert len(records) == 10 and "3 of 10 training tiles are labelled" in caplog.text
    assert [r["tile"].buildings for r in records if "labelled" in r] == [[]] * 7
    everything = engine.training_records(few(ten_tiles, 1.0))
    assert not any("labelled" in r for r in everything)
    assert [r for r in records if "labelled" not in r] == [
        r for r in everything if r["image_id"] in {x["image_id"] for x in records if "labelled" not in x}
    ]


def test_the_seed_alone_chooses_and_smaller_shares_are_within_larger_ones(ten_tiles):
    chosen = labelled_ids(few(ten_tiles, 0.3))
    assert chosen == labelled_ids(few(ten_tiles, 0.3, *PAINTED, "MODEL.HEIGHT_ON", "False"))
    assert len(labelled_ids(few(ten_tiles, 0.1))) == 1 and labelled_ids(few(ten_tiles, 0.1)) < chosen
    assert len({frozenset(labelled_ids(few(ten_tiles, 0.3, "SEED", str(seed)))) for seed in range(5)}) > 1


def test_empty_tiles_are_filtered_among_labelled_ones_alone(ten_tiles):
    """Whether a tile without labels is empty, nobody knows."""
    filtered = engine.training_records(few(ten_tiles, 0.9, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True"))
    assert all(r["tile"].buildings for r in filtered if r.get("labelled", True))
    assert sum("labelled" in r for r in filtered) == 1 and len(filtered) in (8, 9)


def test_statistics_of_bands_come_from_all_tiles_and_of_heights_from_labelled_ones(ten_tiles):
    all_labels, cfg = few(ten_tiles, 1.0), few(ten_tiles, 0.3)
    assert cfg.MODEL.PIXEL_MEAN == all_labels.MODEL.PIXEL_MEAN
    tiles = engine.catalog.load_split(cfg.DATASETS.TRAIN[0]).tiles
    chosen = labelled_ids(cfg)
    heights_m = [b.height_m for tile in tiles if tile.id in chosen for b in tile.buildings]
    assert cfg.MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M == pytest.approx(statistics.median(heights_m), abs=1e-3)
    assert cfg.MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M != all_labels.MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M


def test_heights_are_asked_for_on_labelled_tiles_alone(ten_tiles):
    """One tile is told to have heights, and it is not among the labelled ones."""
    chosen = labelled_ids(few(ten_tiles, 0.3))
    tiles = copy.deepcopy(engine.catalog.load_split(str(ten_tiles / "annotations" / "train.json")).tiles)
    kept = next(tile.id for tile in tiles if tile.buildings and tile.id not in chosen)
    for building in (b for tile in tiles if tile.id != kept for b in tile.buildings):
        building.height_m = None
    write_tiles(ten_tiles, "train", tiles)
    dense = ("MODEL.DENSE_HEADS.NAMES", "['DenseHeight']")
    assert few(ten_tiles, 1.0, *dense).MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M != 8
    with pytest.raises(InputError, match="height"):
        few(ten_tiles, 0.3, *dense)


def test_a_batch_has_as_many_tiles_of_either_kind_as_the_config_says(ten_tiles):
    cfg = few(ten_tiles, 0.3, *PAINTED, "DATALOADER.UNLABELLED_PER_BATCH", "3", "DATALOADER.NUM_WORKERS", "0")
    loader = FusionTrainer.build_train_loader(cfg)
    batches = list(itertools.islice(loader, 3))
    assert [[x.get("labelled", True) for x in batch] for batch in batches] == [[True] * 2 + [False] * 3] * 3
    assert not any(len(x["instances"]) for batch in batches for x in batch[2:])
    assert {x["image_id"] for batch in batches for x in batch[:2]} == labelled_ids(cfg)


def test_batches_of_labelled_tiles_alone_when_no_other_is_asked_for(ten_tiles):
    cfg = few(ten_tiles, 0.3, "DATALOADER.NUM_WORKERS", "0")
    batches = itertools.islice(FusionTrainer.build_train_loader(cfg), 3)
    assert {x["image_id"] for batch in batches for x in batch} == labelled_ids(cfg)


def test_unlabelled_tiles_are_asked_for_and_there_is_none(ten_tiles, monkeypatch):
    cfg = few(ten_tiles, 1.0, *PAINTED, "DATALOADER.UNLABELLED_PER_BATCH", "2")
    with pytest.raises(InputError, match=r"each of the 10 training tiles is labelled.*LABEL_SHARE below 1"):
        FusionTrainer.build_train_loader(cfg)
    cfg.DATASETS.LABEL_SHARE, cfg.DATALOADER.UNLABELLED_PER_BATCH = 0.3, 3
    monkeypatch.setattr("fusiondet.engine.trainer.comm.get_world_size", lambda: 2)
    with pytest.raises(InputError, match="UNLABELLED_PER_BATCH is 3, expected a multiple of the 2 processes"):
        FusionTrainer.build_train_loader(cfg)


@pytest.mark.parametrize("share", ["0.0", "-0.5", "1.5"])
def test_no_label_at_all_is_an_error(ten_tiles, share):
    with raises_naming("DATASETS.LABEL_SHARE", share, "above 0"):
        few(ten_tiles, share)


# ---- the trainer ----


def train(cfg, resume=False, until=None):
    """Train; with `until`, as if killed after that step."""
    trainer = FusionTrainer(cfg)
    trainer.resume_or_load(resume)
    if until is not None:
        trainer.max_iter = until
        trainer._hooks = [h for h in trainer._hooks if type(h).__name__ != "EvalHook"]
    trainer.train()
    return trainer


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_a_run_leaves_what_detectron2_users_expect(root):
    cfg = completed_config(root, "TEST.EVAL_PERIOD", "2", "VIS_PERIOD", "2")
    trainer = train(cfg)
    out = root / "out"
    assert {p.name for p in out.iterdir()} >= {
        "metrics.json",
        "model_final.pth",
        "last_checkpoint",
        "inference",
    }
    assert list(out.glob("events.out.tfevents*"))
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    lines = [eval(line, {"NaN": math.nan}) for line in (out / "metrics.json").read_text().splitlines()]
    logged = {key for line in lines for key in line}
    assert {
        "total_loss",
        "loss_mask",
        "loss_height",
        "height_head/mae_m",
        "lr",
        "segm/AP50",
        "gradient_norm",
    } <= logged
    assert "height_gt_boxes/mae_m" in logged, "heights on true boxes are evaluated in training too"
    assert (out / "model_best.pth").exists() and "joint" in trainer._last_eval_results
    folder = out / "inference" / f"{root.name}_val"
    assert (
        read_json(folder / "metrics.json")["dataset/n_buildings"] == 2
        and (folder / "predictions.json").exists()
    )


JOINT = ("MODEL.DENSE_HEADS.NAMES", "['DenseHeight', 'Footprint', 'Reconstruction']", *PAINTED[2:])
ALONE = (
    *("MODEL.META_ARCHITECTURE", "FusionDense", "MODEL.MASK_ON", "False", "MODEL.HEIGHT_ON", "False"),
    *("TEST.BEST_METRIC", "dense/dice"),
)
FEW = ("DATASETS.LABEL_SHARE", "0.75", "DATALOADER.UNLABELLED_PER_BATCH", "1", "SOLVER.ACCUMULATE_STEPS", "2")


@pytest.mark.parametrize(("name", "extra"), [("gradnorm", FEW), ("uncertainty", ALONE)])
def test_weights_of_tasks_go_on_bit_for_bit_and_are_logged(root, name, extra):
    settings = (*JOINT, *extra, "MODEL.TASK_WEIGHTING.NAME", name, "SOLVER.MAX_ITER", "2")
    settings = (*settings, "SOLVER.CHECKPOINT_PERIOD", "1")

    def config(out):
        return completed_config(root, *settings, "OUTPUT_DIR", str(root / out), test="")

    whole = train(config("whole"))
    train(config("parts"), until=1)
    resumed = train(config("parts"), resume=True)
    assert resumed.start_iter == 1 and same(resumed.model.state_dict(), whole.model.state_dict())
    (hook,) = [hook for hook in whole._hooks if isinstance(hook, engine.WeighTasks)]
    assert len({float(w.detach()) for w in hook.weighting._weights()}) > 1, "they moved"
    logged = json.loads((root / "whole" / "metrics.json").read_text().splitlines()[-1])
    tasks = ["dense_height", "footprint", "reconstruction"] + ["instances", "height"] * (name == "gradnorm")
    assert {k for k in logged if k.startswith("task_")} >= {f"task_weight/{t}" for t in tasks}
    another = completed_config(
        root, *settings, "MODEL.WEIGHTS", str(root / "whole" / "model_final.pth"), test=""
    )
    another = FusionTrainer(another)
    another.resume_or_load(False)
    assert {float(w.detach()) for w in another.model.task_weighting._weights()} == {1.0}, "a new training"
    assert same(another.model.dense_heads.state_dict(), whole.model.dense_heads.state_dict())


def test_the_checkpoint_alone_rebuilds_the_network(root):
    cfg = completed_config(root)
    trainer = train(cfg)
    content = read_checkpoint(root / "out" / "model_final.pth")
    rebuilt_cfg = config_from_yaml_text(content["config_yaml"], "model_final.pth")
    assert rebuilt_cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_MEAN and rebuilt_cfg.INPUT.SAR_BANDS == ["HH"]
    rebuilt = FusionTrainer.build_model(rebuilt_cfg)
    load_model(rebuilt, content["model"], "model_final.pth")
    assert same(rebuilt.state_dict(), trainer.model.state_dict())


@pytest.mark.parametrize("extra", [(), ("SOLVER.OPTIMIZER", "SGD", "SOLVER.ACCUMULATE_STEPS", "2")])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(root, extra):
    jitter = (
        "INPUT.SCALE_RANGE",
        "[0.9, 1.1]",
        "SOLVER.CHECKPOINT_PERIOD",
        "2",
        "TEST.EVAL_PERIOD",
        "2",
        *extra,
    )
    whole = train(completed_config(root, *jitter, "OUTPUT_DIR", str(root / "whole")))
    cfg = completed_config(root, *jitter, "OUTPUT_DIR", str(root / "parts"))
    train(cfg, until=2)
    torch.rand(17)  # whatever else happened in between
    resumed = train(cfg, resume=True)
    assert resumed.start_iter == 2
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(resumed.state_dict(), whole.state_dict()), "optimizer, scheduler and position in the data too"
    assert same(resumed._last_eval_results, whole._last_eval_results)
    assert resumed.sampler.consumed == 4 * 2 * cfg.SOLVER.ACCUMULATE_STEPS


def test_resume_without_a_checkpoint_starts_and_a_foreign_one_is_refused(root):
    cfg = completed_config(root, "SOLVER.MAX_ITER", "2", test="")
    assert train(cfg, resume=True).start_iter == 0
    other = completed_config(root, "MODEL.FPN.OUT_CHANNELS", "32", test="")
    with pytest.raises(InputError, match="model_final.pth: does not fit the network of the config"):
        FusionTrainer(other).resume_or_load(True)


def test_more_data_than_the_checkpoint_knows_cannot_be_resumed(root):
    cfg = completed_config(root, "SOLVER.MAX_ITER", "2", test="")
    train(cfg)
    write_split(root, "train", (1,) * 6)
    with pytest.raises(InputError, match="trained on 4 tiles, now there are 6"):
        FusionTrainer(cfg).resume_or_load(True)


def test_own_weights_start_a_new_run_strictly(root):
    cfg = completed_config(root, "SOLVER.MAX_ITER", "2", test="")
    first = train(cfg)
    cfg = completed_config(root, "MODEL.WEIGHTS", str(root / "out" / "model_final.pth"), test="")
    second = FusionTrainer(cfg)
    second.resume_or_load(False)
    assert same(second.model.state_dict(), first.model.state_dict()) and second.sampler.consumed == 0
    wider = completed_config(
        root, "MODEL.WEIGHTS", str(root / "out" / "model_final.pth"), "MODEL.FPN.OUT_CHANNELS", "32", test=""
    )
    with pytest.raises(
        InputError, match=r"backbone.fpn_\w+.weight has shape .* Set the widths in the config"
    ):
        FusionTrainer(wider).resume_or_load(False)


def test_own_weights_of_another_polarisation_say_what_to_set(root):
    stored = completed_config(root, test="")
    write_split(root, "vv", (1,), bands=BandSpec(BANDS.optical, ("VV",), "db"))
    with pytest.raises(
        InputError, match=r"vv.json lacks band HH: it has .*VV, .*checkpoint.*INPUT.SAR_BANDS"
    ):
        complete_config(tiny_config(root, train="vv", test=""), stored)
    cfg = tiny_config(root, "INPUT.SAR_BANDS", "['VV']", train="vv", test="")
    complete_config(cfg, stored)
    assert cfg.INPUT.SAR_BANDS == ["VV"] and network_differences(stored, cfg)


def test_own_weights_of_one_stream_start_two(root):
    first = train(completed_config(root, "SOLVER.MAX_ITER", "1", test=""))
    two = completed_config(
        root,
        *("MODEL.WEIGHTS", str(root / "out" / "model_final.pth")),
        *("MODEL.BACKBONE.NAME", "build_intermediate_fusion_resnet_fpn_backbone"),
        test="",
    )
    second = FusionTrainer(two)
    second.resume_or_load(False)
    theirs, ours = first.model.backbone.bottom_up.resnet, second.model.backbone.bottom_up
    assert all(torch.equal(a, b) for a, b in zip(ours.optical.res4.parameters(), theirs.res4.parameters()))
    assert torch.equal(ours.sar.stem.conv1.weight, theirs.stem.conv1.weight[:, 3:])


def test_weights_of_timm_start_a_training_and_are_not_needed_after_it(root, tmp_path):
    path = tmp_path / "resnet10t.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    network = ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "resnet10t")
    overrides = (*network, "MODEL.TIMM.WEIGHTS", str(path), "SOLVER.MAX_ITER", "1", "SOLVER.BASE_LR", "1e-12")
    trainer = train(completed_config(root, *overrides, test=""))
    theirs = torch.load(path, weights_only=True)["layer3.0.conv1.weight"]
    assert torch.allclose(trainer.model.backbone.bottom_up.resnet.res4.layer3[0].conv1.weight, theirs)
    path.unlink()
    content = read_checkpoint(root / "out" / "model_final.pth")
    rebuilt = FusionTrainer.build_model(config_from_yaml_text(content["config_yaml"], "model_final.pth"))
    load_model(rebuilt, content["model"], "model_final.pth")
    assert same(rebuilt.state_dict(), trainer.model.state_dict())


def test_empty_tiles_alone_and_unknown_heights_train(root):
    write_split(root, "empty", (0, 0))
    trainer = train(completed_config(root, "SOLVER.MAX_ITER", "2", train="empty", test=""))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    tiles = copy.deepcopy(engine.catalog.load_split(str(root / "annotations" / "train.json")).tiles)
    for building in (b for tile in tiles for b in tile.buildings):
        building.height_m = None
    write_tiles(root, "unknown", tiles)
    trainer = train(completed_config(root, "SOLVER.MAX_ITER", "2", train="unknown", test=""))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_empty_tiles_are_kept_as_negatives_unless_filtered(root):
    assert FusionTrainer.build_train_loader(completed_config(root)).sampler.size == 4
    filtered = completed_config(root, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True")
    assert FusionTrainer.build_train_loader(filtered).sampler.size == 3


@pytest.mark.parametrize("modality", ["optical", "sar"])
def test_one_modality_trains_and_evaluates(root, modality):
    trainer = train(completed_config(root, "INPUT.MODALITIES", str([modality]), "SOLVER.MAX_ITER", "1"))
    assert trainer._last_eval_results["dataset"]["n_images"] == 2


def test_bfloat16_trains(root):
    both = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.BF16_ON_CPU", "True", "SOLVER.MAX_ITER", "2")
    trainer = train(completed_config(root, *both, test=""))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_several_test_sets_are_told_apart(root):
    cfg = completed_config(root, "SOLVER.MAX_ITER", "1")
    write_split(root, "other", (1,))
    cfg.DATASETS.TEST = (*cfg.DATASETS.TEST, str(root / "annotations" / "other.json"))
    results = train(cfg)._last_eval_results
    assert set(results) == set(cfg.DATASETS.TEST)
