"""Networks of patches: what the data complete, training that goes on bit for bit, and scores that are those by hand."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import load_config
from fusiondet.converters.prepare import StrictParser
from fusiondet.converters.prepare import prepare as prepare_data
from fusiondet.data import catalog
from fusiondet.engine.checkpoint import read_checkpoint
from fusiondet.engine.launch import parse_arguments, prepare, trainer_of, work
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError
from fusiondet.files import read_json, write_json
from fusiondet.inference.predictor import Predictor
from fusiondet.projects.hse_lcz.patch_trainer import (
    PatchEvaluator,
    PatchMapper,
    PatchRecords,
    PatchTrainer,
    complete_config,
    load_patches,
)
from fusiondet.projects.hse_lcz.patches import LCZ_CLASSES, OPTICAL_BANDS, SAR_BANDS, read_patches
from fusiondet.projects.hse_lcz.synthetic_patches import write_patches
from fusiondet.projects.hse_lcz.tests.patch_files import write_split
from fusiondet.visualization.training import draw_confusion
from tests.support.tiny_city import ROOT, tiny_config
from tests.support.tiny_city import write_split as write_tiles

import numpy as np
import pytest
import torch

CONFIGS = ROOT / "configs" / "so2sat"
SMALL = (
    *("MODEL.HSE_LCZ.WIDTHS", "[4, 8]", "MODEL.HSE_LCZ.CONV_DIM", "8", "SOLVER.IMS_PER_BATCH", "4"),
    *(
        "SOLVER.MAX_ITER",
        "4",
        "SOLVER.WARMUP_ITERS",
        "1",
        "SOLVER.CHECKPOINT_PERIOD",
        "2",
        "TEST.EVAL_PERIOD",
        "2",
    ),
)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, classes in (("train", np.arange(12) % 17), ("val", np.arange(5))):
        sen2 = rng.random((len(classes), 32, 32, 10)) + 0.1 * classes[:, None, None, None]
        extents = np.where(np.arange(len(classes)) % 4 == 3, np.nan, classes / 17)
        write_split(tmp_path, split, classes, extents, sen2=sen2)
    return tmp_path


def config(root, *overrides, leaf="hse_lcz", train="train", test="val"):
    def names(split):
        return str([str(root / "annotations" / f"{split}.json")] if split else [])

    data = ("DATASETS.TRAIN", names(train), "DATASETS.TEST", names(test), "OUTPUT_DIR", str(root / "out"))
    return load_config(CONFIGS / f"{leaf}.yaml", [*data, *SMALL, *overrides])


def complete(root, *overrides, stored=None, **which):
    cfg = config(root, *overrides, **which)
    complete_config(cfg, stored)
    return cfg


# ---- what the config leaves open ----


def test_bands_and_statistics_come_from_the_data(root):
    cfg = complete(root)
    assert tuple(cfg.INPUT.OPTICAL_BANDS) == OPTICAL_BANDS and list(cfg.INPUT.SAR_BANDS) == []
    split = read_patches(root / "annotations" / "train.json")
    pixels = np.stack([split.read(i) for i in range(len(split))])
    np.testing.assert_allclose(cfg.MODEL.PIXEL_MEAN, pixels.mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(cfg.MODEL.PIXEL_STD, pixels.std(axis=(0, 2, 3)), rtol=1e-4)
    assert cfg.INPUT.GSD_RANGE_M == [10, 10] and cfg.MODEL.FUSION.OPTICAL_CHANNELS == 10


def test_radar_is_stacked_behind_and_bands_can_be_chosen(root):
    cfg = complete(root, leaf="hse_lcz_sar")
    assert tuple(cfg.INPUT.SAR_BANDS) == SAR_BANDS and len(cfg.MODEL.PIXEL_STD) == 18
    cfg = complete(
        root, "INPUT.SAR_BANDS", "['VV', 'VH']", "INPUT.OPTICAL_BANDS", "['B8', 'B2']", leaf="hse_lcz_sar"
    )
    assert len(cfg.MODEL.PIXEL_MEAN) == 4
    x = PatchMapper(cfg, False)(PatchRecords([read_patches(root / "annotations" / "val.json")])[1])
    split = read_patches(root / "annotations" / "val.json")
    np.testing.assert_array_equal(x["image"].numpy(), split.read(1, ["B8", "B2"], ["VV", "VH"]))
    only = complete(root, "INPUT.MODALITIES", "['sar']")
    assert list(only.INPUT.OPTICAL_BANDS) == [] and len(only.MODEL.PIXEL_MEAN) == 8


def test_a_band_of_one_value_does_not_become_infinite(root):
    write_split(root, "flat", [0, 1, 2, 3], sen2=np.full((4, 32, 32, 10), 0.5))
    assert set(complete(root, train="flat").MODEL.PIXEL_STD) == {1.0}


def test_what_the_weights_were_trained_on_stays(root):
    stored = complete(root)
    write_split(root, "train", [0, 1, 2, 3], sen2=np.random.default_rng(1).random((4, 32, 32, 10)) * 7)
    cfg = complete(root, stored=stored)
    assert cfg.MODEL.PIXEL_MEAN == stored.MODEL.PIXEL_MEAN and cfg.SEED == stored.SEED
    alone = complete(root, stored=stored, train=None)
    assert alone.MODEL.PIXEL_STD == stored.MODEL.PIXEL_STD


@pytest.mark.parametrize(
    ("overrides", "which", "message"),
    [
        ((), {"train": None}, "DATASETS.TRAIN is empty"),
        ((), {"train": "gone"}, "gone.json: no such annotation file"),
        (("INPUT.OPTICAL_BANDS", "['red']"), {}, "unknown band of patches 'red'"),
        (("MODEL.PIXEL_MEAN", "[1.0]"), {}, r"PIXEL_MEAN has 1 numbers, expected one per band \(B2, B3"),
        ((), {"train": "unknown"}, "no patch of .*unknown.json has a settlement extent.*`hse_train`"),
    ],
)
def test_data_that_do_not_fit_are_bad_input(root, overrides, which, message):
    write_split(root, "unknown", [0, 1, 2, 3], hse=None)
    with pytest.raises(InputError, match=message):
        complete(root, *overrides, **which)


def test_missing_extents_and_classes_are_said(root, caplog):
    with caplog.at_level("WARNING", "fusiondet"):
        complete(root)
    assert "9 of 12 training patches have a settlement extent" in caplog.text
    assert "val.json has no patch of the classes open_low_rise, lightweight_low_rise" in caplog.text
    write_split(root, "unknown", [0, 1, 2, 3], hse=None)
    complete(root, leaf="lcz", train="unknown")  # the zone alone can be learned


def test_networks_of_tiles_and_of_patches_do_not_take_each_others_data(root, tmp_path):
    tiles = write_tiles(tmp_path / "tiles", "train")
    with pytest.raises(InputError, match=r"train.json: is no split of patches.*take a network of tiles"):
        complete(root, "DATASETS.TRAIN", str([str(tiles)]))
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config(root).dump())
    with pytest.raises(InputError, match=r"train.json: .* holds patches .*configs/so2sat"):
        prepare(parse_arguments(["--config-file", str(path)]))


# ---- records and mapper ----


def test_records_of_several_splits_follow_each_other(root):
    splits = [read_patches(root / "annotations" / f"{name}.json") for name in ("train", "val")]
    records = PatchRecords(splits)
    assert len(records) == 17
    found = [(record["split"] is splits[1], record["image_id"]) for record in records]
    assert found == [(False, i) for i in range(12)] + [(True, i) for i in range(5)]
    for outside in (17, -1):
        with pytest.raises(IndexError):
            records[outside]
    assert len(PatchRecords([])) == 0


def test_training_turns_patches_by_the_counter_and_evaluation_does_not(root):
    cfg = complete(root)
    record = read_patches(root / "annotations" / "train.json").record(4)
    plain = PatchMapper(cfg, False)(record)["image"]
    turned = [PatchMapper(cfg, True)(record, counter)["image"] for counter in range(40)]
    assert all(torch.equal(a, PatchMapper(cfg, True)(record, i)["image"]) for i, a in enumerate(turned))
    kinds = {image.numpy().tobytes() for image in turned}
    by_hand = {
        np.ascontiguousarray(np.rot90(p, k, (1, 2))).tobytes()
        for p in (plain.numpy(), plain.numpy()[:, :, ::-1])
        for k in range(4)
    }
    assert kinds == by_hand and len(by_hand) == 8
    cfg.INPUT.DIHEDRAL = False
    assert torch.equal(PatchMapper(cfg, True)(record, 3)["image"], plain)


# ---- scores ----


def evaluated(root, outputs, out=None):
    split = read_patches(root / "annotations" / "val.json")
    evaluator = PatchEvaluator(split, output_dir=out, draw_confusion=draw_confusion)
    for i in np.random.default_rng(0).permutation(len(outputs)).tolist():  # in whatever order they come
        evaluator.process([{"image_id": i}], [outputs[i]])
    return evaluator.evaluate()


def test_scores_are_those_by_hand(root, tmp_path):
    """True zones 0, 1, 2, 3, 4; extents 0, 1/17, 2/17, unknown, 4/17."""
    said = [0, 1, 1, 3, 4]
    outputs = [
        {"hse": torch.tensor(i / 17 + 0.1), "lcz": torch.eye(17)[zone] * 0.5 + 0.01}
        for i, zone in enumerate(said)
    ]
    results = evaluated(root, outputs, tmp_path / "scores")
    assert results["hse"]["mae"] == pytest.approx(0.1) and results["hse"]["rmse"] == pytest.approx(0.1)
    truth = np.array([0, 1, 2, 4]) / 17
    assert results["hse"]["r2"] == pytest.approx(1 - 4 * 0.01 / ((truth - truth.mean()) ** 2).sum())
    assert results["hse"]["n"] == 4
    assert results["lcz"]["oa"] == pytest.approx(0.8) and results["lcz"]["aa"] == pytest.approx(0.8)
    assert results["lcz"]["kappa"] == pytest.approx((0.8 - 5 / 25) / (1 - 5 / 25))
    assert results["lcz"][f"f1/{LCZ_CLASSES[1]}"] == pytest.approx(2 / 3)
    assert results["lcz"][f"f1/{LCZ_CLASSES[2]}"] == 0
    assert "f1/water" not in results["lcz"], "not defined"
    written = read_json(tmp_path / "scores" / "metrics.json")
    assert written["lcz/f1/water"] is None and written["lcz/oa"] == pytest.approx(0.8)
    assert written["dataset/n_patches"] == 5
    assert (tmp_path / "scores" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "scores" / "predictions.npz") as kept:
        assert kept["index"].tolist() == [0, 1, 2, 3, 4] and kept["lcz"].argmax(axis=1).tolist() == said
        assert kept["hse"][4] == pytest.approx(4 / 17 + 0.1)


def test_one_task_alone_is_scored_alone(root, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "confusion.png").write_bytes(b"of another network")
    results = evaluated(root, [{"hse": torch.tensor(0.5)}] * 5, tmp_path / "s")
    assert results.keys() == {"dataset", "hse"} and not (tmp_path / "s" / "confusion.png").exists()
    assert evaluated(root, [{"lcz": torch.eye(17)[i]} for i in range(5)])["lcz"]["oa"] == 1


# ---- training ----


def train(cfg, resume=False, until=None):
    trainer = PatchTrainer(cfg)
    trainer.resume_or_load(resume)
    if until is not None:
        trainer.max_iter = until
    trainer.train()
    return trainer


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@pytest.mark.parametrize("leaf", ["hse_lcz", "hse_lcz_uncertainty"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(root, leaf):
    # Scores between and after the steps once are enough.
    which = {"leaf": leaf, "test": "val" if leaf == "hse_lcz" else None}
    whole = train(complete(root, "OUTPUT_DIR", str(root / "whole"), **which))
    cfg = complete(root, "OUTPUT_DIR", str(root / "parts"), **which)
    train(cfg, until=2)
    torch.rand(17)  # whatever else happened in between
    resumed = train(cfg, resume=True)
    assert resumed.start_iter == 2
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(resumed.state_dict(), whole.state_dict())
    assert same(resumed._last_eval_results, whole._last_eval_results)
    assert resumed.sampler.consumed == 16
    assert (root / "parts" / "model_best.pth").exists() == (leaf == "hse_lcz")


def test_workers_load_the_same_batches(root):
    cfg = complete(root)
    alone = [next(iter(PatchTrainer.build_train_loader(cfg)))][0]
    cfg.DATALOADER.NUM_WORKERS = 2
    by_workers = next(iter(PatchTrainer.build_train_loader(cfg)))
    assert [x["file_name"] for x in alone] == [x["file_name"] for x in by_workers]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(alone, by_workers))


def test_sixteen_bits_train_too(root):
    amp = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.BF16_ON_CPU", "True")
    trainer = train(complete(root, *amp, test=None))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_weights_of_other_networks_are_refused(root):
    first = complete(root, "SOLVER.MAX_ITER", "2", test=None)
    train(first)
    weights = ("MODEL.WEIGHTS", str(root / "out" / "model_final.pth"))
    again = PatchTrainer(complete(root, *weights, "OUTPUT_DIR", str(root / "again")))
    again.resume_or_load(False)
    assert again.sampler.consumed == 0
    with pytest.raises(InputError, match="is of another network: .*MODEL.HSE_LCZ.TASKS"):
        PatchTrainer(complete(root, *weights, leaf="lcz")).resume_or_load(False)
    foreign = root / "r50.pkl"
    foreign.write_bytes(b"")
    with pytest.raises(InputError, match="start from checkpoints of their own"):
        PatchTrainer(complete(root, "MODEL.WEIGHTS", str(foreign))).resume_or_load(False)


def test_the_trainer_follows_the_network(root):
    assert trainer_of(config(root)) is PatchTrainer
    assert trainer_of(load_config(ROOT / "configs/synthetic/fusion_r18_small.yaml")) is FusionTrainer


# ---- the command line ----


def run(*words):
    args = parse_arguments([str(word) for word in words])
    return work(prepare(args), args)


def test_from_invented_patches_to_scores_by_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    data = tmp_path / "datasets" / "so2sat"
    prepare_data(f"so2sat --generate 136 --unknown-hse 0.2 --out {data}".split(), parser=StrictParser)
    out = tmp_path / "out"
    small = (*SMALL, "SOLVER.MAX_ITER", "3", "TEST.EVAL_PERIOD", "0", "OUTPUT_DIR", out)
    trained = run("--config-file", CONFIGS / "hse_lcz.yaml", *small)
    assert trained.keys() == {"dataset", "hse", "lcz"}
    numbers = read_json(out / "inference" / "so2sat_val" / "metrics.json")
    assert numbers["dataset/n_patches"] == 20 and 0 <= numbers["lcz/oa"] <= 1
    assert numbers["hse/n"] == 20 and numbers["hse/mae"] < 0.6
    assert "lcz/kappa" in (out / "log.txt").read_text()
    # The training data may be gone by then.
    (tmp_path / "datasets" / "so2sat" / "annotations" / "train.json").unlink()
    evaluated = run(
        *("--config-file", out / "config.yaml", "--eval-only", "MODEL.WEIGHTS", out / "model_final.pth"),
        *("OUTPUT_DIR", tmp_path / "again", "DATASETS.TRAIN", "()"),
    )
    assert evaluated["lcz"]["oa"] == numbers["lcz/oa"] and evaluated["hse"]["mae"] == numbers["hse/mae"]


def test_the_written_config_alone_resumes(root):
    path = root / "tiny.yaml"
    path.write_text(config(root, "SOLVER.MAX_ITER", "2").dump())
    run("--config-file", path)
    run("--config-file", root / "out" / "config.yaml", "--resume", "SOLVER.MAX_ITER", "3")
    assert read_checkpoint(root / "out" / "model_final.pth")["iteration"] == 2


def test_a_scene_is_not_predicted_by_a_network_of_patches(root):
    train(complete(root, "SOLVER.MAX_ITER", "1", test=None, leaf="hse_lcz_sar"))
    with pytest.raises(InputError, match=r"model_final.pth: is a network of patches \(HseLczNet\)"):
        Predictor(root / "out" / "model_final.pth")


@pytest.mark.slow
def test_a_few_patches_are_learned_by_heart(tmp_path):
    write_patches(tmp_path / "hdf5" / "train.h5", tmp_path / "hse" / "train.npy", 51, cities=3, seed=0)
    document = {
        "info": {"kind": "patches"},
        "patches": {"file_name": "hdf5/train.h5", "count": 51},
        "hse": {"file_name": "hse/train.npy"},
    }
    write_json(document, tmp_path / "annotations" / "train.json")
    steps = "SOLVER.MAX_ITER 150 SOLVER.IMS_PER_BATCH 34 SOLVER.BASE_LR 0.004 TEST.EVAL_PERIOD 0".split()
    # The widths of the configs, and nothing hidden.
    wide = "MODEL.HSE_LCZ.WIDTHS [16,32,64] MODEL.HSE_LCZ.CONV_DIM 64 MODEL.HSE_LCZ.DROPOUT 0.0".split()
    cfg = complete(tmp_path, *steps, *wide, "INPUT.DIHEDRAL", "False", test="train")
    results = train(cfg)._last_eval_results
    assert results["lcz"]["oa"] >= 0.95 and results["hse"]["mae"] <= 0.05


def test_patches_have_names_as_tiles_have(tmp_path):
    path = write_split(tmp_path / "datasets" / "so2sat", "train")
    assert "so2sat_train" in catalog.known_names()
    split = load_patches("so2sat_train")
    assert len(split) == 4 and split is load_patches(str(path)), "read once"
    with pytest.raises(InputError, match=r"train.json: .* holds patches"):
        catalog.load_split("so2sat_train")
