import copy
import math

import fusiondet.compat  # noqa: F401
from fusiondet.buildings import Building, SensorGeometry, Tile
from fusiondet.config import config_from_yaml_text
from fusiondet.data.bands import BandSpec
from fusiondet.engine import trainer as engine
from fusiondet.engine.checkpoint import load_model, network_differences, read_checkpoint
from fusiondet.engine.trainer import FusionTrainer, StepTrainer, complete_config, context_m
from fusiondet.errors import InputError
from fusiondet.files import read_json
from tests.tiny_city import BANDS, courtyard, tiny_config, write_split, write_tiles

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn


@pytest.fixture
def root(tmp_path):
    write_split(tmp_path, "train", (3, 2, 0, 4))
    write_split(tmp_path, "val", (2, 0), seed=5)
    return tmp_path


def complete(root, *overrides, stored=None, **splits):
    cfg = tiny_config(root, *overrides, **splits)
    complete_config(cfg, stored)
    return cfg


# ---- what the config leaves open ----


def test_the_data_complete_the_config(root):
    cfg = complete(root)
    assert (cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS) == (["red", "green", "blue"], ["HH"])
    assert (cfg.INPUT.SAR_SCALE, cfg.MODEL.FUSION.OPTICAL_CHANNELS) == ("db", 3)
    assert len(cfg.MODEL.PIXEL_MEAN) == len(cfg.MODEL.PIXEL_STD) == 4
    assert cfg.MODEL.PIXEL_MEAN[0] > cfg.MODEL.PIXEL_MEAN[2] > 0 > cfg.MODEL.PIXEL_MEAN[3] > -25
    assert cfg.INPUT.GSD_RANGE_M == [0.5, 0.5]
    heights_m = [
        b.height_m for tile in engine.catalog.load_split(cfg.DATASETS.TRAIN[0]).tiles for b in tile.buildings
    ]
    assert cfg.MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M == pytest.approx(sorted(heights_m)[4], abs=1e-3)
    assert 0.1 <= cfg.MODEL.ROI_HEIGHT_HEAD.PRIOR_LOG_SCALE < 1


def test_given_statistics_stay_and_only_the_missing_half_is_computed(root):
    cfg = complete(root, "MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0, 4.0]")
    assert cfg.MODEL.PIXEL_MEAN == [1, 2, 3, 4] and len(cfg.MODEL.PIXEL_STD) == 4
    with pytest.raises(
        InputError, match=r"MODEL.PIXEL_MEAN has 2 numbers, expected one per band \(red, green"
    ):
        complete(root, "MODEL.PIXEL_MEAN", "[1.0, 2.0]")


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
        FusionTrainer.build_model(complete(root, key, value))


def test_the_scale_jitter_widens_the_gsd_range(root):
    assert complete(root, "INPUT.SCALE_RANGE", "[0.5, 2.0]").INPUT.GSD_RANGE_M == [0.25, 1.0]


def turned(root, split, *sensors, gsd_m=0.5):
    """The training tiles as `split`, with these geometries in turn."""
    tiles = copy.deepcopy(engine.catalog.load_split(str(root / "annotations" / "train.json")).tiles)
    for i, tile in enumerate(tiles):
        tile.sensor, tile.gsd_m = sensors[i % len(sensors)], gsd_m
    write_tiles(root, split, tiles)
    return split


def test_the_config_keeps_which_angles_were_trained_on(root):
    angles = [SensorGeometry(sun_elevation_deg=e, sar_incidence_deg=i) for e, i in ((30, 45), (50.5, 35))]
    cfg = complete(root, train=turned(root, "angles", *angles))
    assert cfg.INPUT.SUN_ELEVATION_RANGE_DEG == [30, 50.5]
    assert cfg.INPUT.SAR_INCIDENCE_RANGE_DEG == [35, 45]
    optical = complete(root, "INPUT.MODALITIES", "['optical']", train="angles")
    assert optical.INPUT.SUN_ELEVATION_RANGE_DEG == [30, 50.5] and optical.INPUT.SAR_INCIDENCE_RANGE_DEG == []
    unknown = complete(root, train=turned(root, "unknown", SensorGeometry()))
    assert unknown.INPUT.SUN_ELEVATION_RANGE_DEG == unknown.INPUT.SAR_INCIDENCE_RANGE_DEG == []


GEOMETRY = ("MODEL.ROI_HEIGHT_HEAD.GEOMETRY", "['gsd', 'sun_elevation', 'sun_azimuth']")


def test_a_fact_that_no_training_tile_states_is_an_error(root):
    half = SensorGeometry(sun_azimuth_deg=10)
    turned(root, "half", half)
    with pytest.raises(
        InputError, match="sun_elevation, but no tile of .*half.json states its sun_elevation_deg"
    ):
        complete(root, *GEOMETRY, train="half")
    with pytest.raises(InputError, match="gsd, but no tile"):
        complete(root, *GEOMETRY, train=turned(root, "no_gsd", half, gsd_m=math.nan))
    complete(root, *GEOMETRY, "MODEL.HEIGHT_ON", "False", train="half")


def test_a_fact_that_some_training_tiles_lack_is_a_warning(root, caplog):
    known = SensorGeometry(sun_azimuth_deg=10, sun_elevation_deg=40)
    complete(root, *GEOMETRY, train=turned(root, "some", known, SensorGeometry(), SensorGeometry(), known))
    assert "2 of 4 training tiles do not state sun_elevation_deg" in caplog.text
    assert "gsd_m" not in caplog.text


def test_a_network_told_its_geometry_trains_and_evaluates(root):
    known = SensorGeometry(sun_azimuth_deg=10, sun_elevation_deg=40)
    turned(root, "some", known, SensorGeometry())
    trainer = train(complete(root, *GEOMETRY, "SOLVER.MAX_ITER", "1", train="some"))
    assert trainer.model.roi_heads.height_head.geometry.marks == ["sun_shadow"]
    assert trainer._last_eval_results["height_gt_boxes"]["mae_m"] > 0


@pytest.mark.parametrize(("modality", "optical", "sar"), [("optical", 3, []), ("sar", 0, ["HH"])])
def test_one_modality_drops_the_other(root, modality, optical, sar):
    cfg = complete(root, "INPUT.MODALITIES", str([modality]))
    assert cfg.MODEL.FUSION.OPTICAL_CHANNELS == optical and cfg.INPUT.SAR_BANDS == sar
    assert len(cfg.MODEL.PIXEL_MEAN) == optical + len(sar) and cfg.INPUT.SAR_SCALE == ("db" if sar else "")


def test_chosen_bands_are_kept_in_their_order(root):
    cfg = complete(root, "INPUT.OPTICAL_BANDS", "['blue', 'red']")
    assert cfg.INPUT.OPTICAL_BANDS == ["blue", "red"] and cfg.MODEL.FUSION.OPTICAL_CHANNELS == 2
    assert cfg.MODEL.PIXEL_MEAN[0] < cfg.MODEL.PIXEL_MEAN[1]


def test_values_set_by_the_user_stay(root):
    cfg = complete(root, "MODEL.PIXEL_MEAN", "[1.,2.,3.,4.]", "MODEL.PIXEL_STD", "[1.,1.,1.,1.]", "SEED", "7")
    assert cfg.MODEL.PIXEL_MEAN == [1, 2, 3, 4] and cfg.SEED == 7


def test_a_missing_modality_and_a_missing_band_are_errors(root):
    write_split(root, "rgb", (1,), bands=BandSpec())
    with pytest.raises(InputError, match=r"asks for sar.*has no sar band.*INPUT.MODALITIES"):
        complete(root, train="rgb", test="")
    with pytest.raises(InputError, match=r"rgb.json lacks band HH: it has red, green, blue"):
        complete(root, test="rgb")
    with pytest.raises(InputError, match=r"train.json lacks band nir: .* the network takes nir,"):
        complete(root, "INPUT.OPTICAL_BANDS", "['nir']")


def test_a_stretch_and_decibels_do_not_mix(root):
    write_tiles(root, "stretched", [], BandSpec(BANDS.optical, ("HH",), "stretched_uint8"))
    with pytest.raises(InputError, match="stretched_uint8.*cannot be turned into dB"):
        complete(root, test="stretched")


def test_an_unknown_data_set_and_no_data_set_are_errors(root):
    with pytest.raises(InputError, match="no such annotation file"):
        complete(root, train="nowhere")
    with pytest.raises(InputError, match="DATASETS.TRAIN is empty"):
        complete(root, train="", test="")


def test_the_detection_limit_rises_above_the_densest_tile(root, caplog):
    crowd = [Building(courtyard(0, 0, 4, 1)) for _ in range(40)]
    write_tiles(root, "dense", [Tile("images/train_0_rgb.tif", 64, 64, 0.5, buildings=crowd)])
    cfg = complete(root, test="dense")
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 60 and cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 120
    assert "the densest tile has 40 buildings" in caplog.text


def test_weights_bring_their_bands_and_statistics(root):
    stored = complete(
        root,
        "INPUT.OPTICAL_BANDS",
        "['green']",
        "MODEL.PIXEL_MEAN",
        "[9., 9.]",
        "MODEL.PIXEL_STD",
        "[2., 2.]",
    )
    stored.MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M, stored.SEED = 3.25, 77
    cfg = complete(root, "SEED", "-1", stored=stored)
    assert cfg.INPUT.OPTICAL_BANDS == ["green"] and cfg.MODEL.PIXEL_MEAN == [9, 9]
    assert cfg.MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M == 3.25 and cfg.SEED == 77


def test_unknown_heights_give_the_prior_of_an_ordinary_town(root):
    write_tiles(
        root,
        "flat",
        [Tile("images/train_0_rgb.tif", 64, 64, 0.5, buildings=[Building(courtyard(2, 2))])],
        BandSpec(),
    )
    head = complete(root, "INPUT.MODALITIES", "['optical']", train="flat", test="").MODEL.ROI_HEIGHT_HEAD
    assert (head.PRIOR_MEDIAN_M, head.PRIOR_LOG_SCALE) == (8.0, 0.6)


def test_a_negative_seed_is_drawn_and_kept(root):
    assert complete(root, "SEED", "-1").SEED >= 0


def test_the_context_reaches_as_far_as_shadow_and_layover():
    sensor = SensorGeometry(sun_elevation_deg=45, sar_incidence_deg=math.degrees(math.atan(0.5)))
    tile = Tile("a", 9, 9, 0.5, sensor=sensor, buildings=[Building(courtyard(0, 0), height_m=20.0)])
    assert context_m([tile], ["optical", "sar"]) == 40, "layover: 20 m * cot"
    assert context_m([tile], ["optical"]) == 20, "shadow: 20 m / tan 45"
    assert context_m([Tile("a", 9, 9, 0.5)], ["optical"]) == 40, "nothing is known"
    tile.buildings[0].height_m = 900.0
    assert context_m([tile], ["sar"]) == 100


# ---- one step ----


class Toy(nn.Module):
    """Loss = mean of w * x over the batch; x of an input is its image's only number."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0]))

    def forward(self, batch):
        return {"loss_a": torch.stack([(self.w * x["image"]).sum() for x in batch]).mean()}


def toy_batches(*batches):
    return [
        [{"image": torch.tensor([float(x)]), "file_name": f"tile_{x}.tif"} for x in batch]
        for batch in batches
    ]


def toy_step(batches, model=None, **options):
    model = model or Toy()
    step = StepTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=1.0), **options)
    step.iter = 0
    with EventStorage() as storage:
        step.run_step()
        return model, {k: v for k, (v, _) in storage.latest().items()}


def test_one_step_is_one_gradient_and_its_losses_are_logged():
    model, logged = toy_step(toy_batches([1, 3]))
    assert (
        model.w.item() == 2 - 2
        and logged["loss_a"] == logged["total_loss"] == 4
        and logged["gradient_norm"] == 2
    )


def test_accumulated_steps_equal_one_large_batch():
    small, logged = toy_step(toy_batches([1, 3], [5, 7]), accumulate_steps=2)
    large, _ = toy_step(toy_batches([1, 3, 5, 7]))
    assert small.w.item() == large.w.item() == 2 - 4 and logged["loss_a"] == 8


def test_a_loss_that_is_not_finite_names_loss_and_images_before_weights_change():
    model = Toy()
    with pytest.raises(
        FloatingPointError, match=r"iteration 0: losses \[\{'loss_a': nan\}\].*tile_1.tif, tile_nan.tif"
    ):
        toy_step(toy_batches([1, "nan"]), model)
    assert model.w.item() == 2


class Poisoned(nn.Module):
    """A finite loss with a NaN gradient: NaN x 0."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.0]))

    def forward(self, batch):
        return {"loss_a": torch.sqrt(self.w * 0).sum()}


def test_a_gradient_that_is_not_finite_is_found_in_its_own_step():
    model = Poisoned()
    with pytest.raises(FloatingPointError, match=r"gradients.*tile_3.tif"):
        toy_step(toy_batches([3]), model)
    assert model.w.item() == 0


def test_what_the_network_draws_follows_from_the_step_alone():
    class Drawing(Toy):
        def forward(self, batch):
            self.drawn = torch.rand(3)
            return super().forward(batch)

    first, _ = toy_step(toy_batches([1]), Drawing(), seed=3)
    torch.rand(5)
    second, _ = toy_step(toy_batches([1]), Drawing(), seed=3)
    other, _ = toy_step(toy_batches([1]), Drawing(), seed=4)
    assert torch.equal(first.drawn, second.drawn) and not torch.equal(first.drawn, other.drawn)


def test_bfloat16_computes_in_bfloat16():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, batch):
            out = self.layer(batch[0]["image"][None])
            self.dtype = out.dtype
            return {"loss": out.float().sum()}

    model, _ = toy_step(toy_batches([1]), Layer(), precision="bfloat16")
    assert model.dtype == torch.bfloat16 and model.layer.weight.dtype == torch.float32


# ---- optimizers ----


@pytest.mark.parametrize(("name", "kind"), [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_normalisation_does_not_decay_and_groups_are_few(root, name, kind):
    cfg = tiny_config(root, "SOLVER.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY", "0.25", "SOLVER.BASE_LR", "0.5")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.GroupNorm(1, 2))
    optimizer = FusionTrainer.build_optimizer(cfg, model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert isinstance(optimizer, kind) and len(optimizer.param_groups) == 2
    assert [decay[id(model[i].weight)] for i in range(4)] == [0.25, 0, 0.25, 0]
    assert decay[id(model[0].bias)] == 0.25, "biases decay as weights do, in every version of Detectron2"
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_gradients_are_clipped_as_detectron2_does(root):
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5")
    cfg = tiny_config(
        root, "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "1.0", "SOLVER.MOMENTUM", "0.0", *clip
    )
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    model = Toy()
    optimizer = FusionTrainer.build_optimizer(cfg, model)
    model.w.grad = torch.tensor([100.0])
    optimizer.step()
    assert model.w.item() == 1.5


def test_amp_means_16_bits_only_where_asked(root):
    assert engine.precision(tiny_config(root)) == "float32"
    assert engine.precision(tiny_config(root, "SOLVER.AMP.ENABLED", "True")) == "float32"
    both = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.BF16_ON_CPU", "True")
    assert engine.precision(tiny_config(root, *both)) == "bfloat16"
    assert engine.precision(tiny_config(root, *both, "MODEL.DEVICE", "cuda")) == "float16"


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
    cfg = complete(root, "TEST.EVAL_PERIOD", "2", "VIS_PERIOD", "2")
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


def test_the_checkpoint_alone_rebuilds_the_network(root):
    cfg = complete(root)
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
    whole = train(complete(root, *jitter, "OUTPUT_DIR", str(root / "whole")))
    cfg = complete(root, *jitter, "OUTPUT_DIR", str(root / "parts"))
    train(cfg, until=2)
    torch.rand(17)  # whatever else happened in between
    resumed = train(cfg, resume=True)
    assert resumed.start_iter == 2
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(resumed.state_dict(), whole.state_dict()), "optimizer, scheduler and position in the data too"
    assert same(resumed._last_eval_results, whole._last_eval_results)
    assert resumed.sampler.consumed == 4 * 2 * cfg.SOLVER.ACCUMULATE_STEPS


def test_resume_without_a_checkpoint_starts_and_a_foreign_one_is_refused(root):
    cfg = complete(root, "SOLVER.MAX_ITER", "2", test="")
    assert train(cfg, resume=True).start_iter == 0
    other = complete(root, "MODEL.FPN.OUT_CHANNELS", "32", test="")
    with pytest.raises(InputError, match="model_final.pth: does not fit the network of the config"):
        FusionTrainer(other).resume_or_load(True)


def test_more_data_than_the_checkpoint_knows_cannot_be_resumed(root):
    cfg = complete(root, "SOLVER.MAX_ITER", "2", test="")
    train(cfg)
    write_split(root, "train", (1,) * 6)
    with pytest.raises(InputError, match="trained on 4 tiles, now there are 6"):
        FusionTrainer(cfg).resume_or_load(True)


def test_own_weights_start_a_new_run_strictly(root):
    cfg = complete(root, "SOLVER.MAX_ITER", "2", test="")
    first = train(cfg)
    cfg = complete(root, "MODEL.WEIGHTS", str(root / "out" / "model_final.pth"), test="")
    second = FusionTrainer(cfg)
    second.resume_or_load(False)
    assert same(second.model.state_dict(), first.model.state_dict()) and second.sampler.consumed == 0
    wider = complete(
        root, "MODEL.WEIGHTS", str(root / "out" / "model_final.pth"), "MODEL.FPN.OUT_CHANNELS", "32", test=""
    )
    with pytest.raises(
        InputError, match=r"backbone.fpn_\w+.weight has shape .* Set the widths in the config"
    ):
        FusionTrainer(wider).resume_or_load(False)


def test_own_weights_of_another_polarisation_say_what_to_set(root):
    stored = complete(root, test="")
    write_split(root, "vv", (1,), bands=BandSpec(BANDS.optical, ("VV",), "db"))
    with pytest.raises(
        InputError, match=r"vv.json lacks band HH: it has .*VV, .*checkpoint.*INPUT.SAR_BANDS"
    ):
        complete_config(tiny_config(root, train="vv", test=""), stored)
    cfg = tiny_config(root, "INPUT.SAR_BANDS", "['VV']", train="vv", test="")
    complete_config(cfg, stored)
    assert cfg.INPUT.SAR_BANDS == ["VV"] and network_differences(stored, cfg)


def test_own_weights_of_one_stream_start_two(root):
    first = train(complete(root, "SOLVER.MAX_ITER", "1", test=""))
    two = complete(
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


def test_empty_tiles_alone_and_unknown_heights_train(root):
    write_split(root, "empty", (0, 0))
    trainer = train(complete(root, "SOLVER.MAX_ITER", "2", train="empty", test=""))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    tiles = copy.deepcopy(engine.catalog.load_split(str(root / "annotations" / "train.json")).tiles)
    for building in (b for tile in tiles for b in tile.buildings):
        building.height_m = None
    write_tiles(root, "unknown", tiles)
    trainer = train(complete(root, "SOLVER.MAX_ITER", "2", train="unknown", test=""))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_empty_tiles_are_kept_as_negatives_unless_filtered(root):
    assert FusionTrainer.build_train_loader(complete(root)).sampler.size == 4
    filtered = complete(root, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True")
    assert FusionTrainer.build_train_loader(filtered).sampler.size == 3


@pytest.mark.parametrize("modality", ["optical", "sar"])
def test_one_modality_trains_and_evaluates(root, modality):
    trainer = train(complete(root, "INPUT.MODALITIES", str([modality]), "SOLVER.MAX_ITER", "1"))
    assert trainer._last_eval_results["dataset"]["n_images"] == 2


def test_bfloat16_trains(root):
    both = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.BF16_ON_CPU", "True", "SOLVER.MAX_ITER", "2")
    trainer = train(complete(root, *both, test=""))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_several_test_sets_are_told_apart(root):
    cfg = complete(root, "SOLVER.MAX_ITER", "1")
    write_split(root, "other", (1,))
    cfg.DATASETS.TEST = (*cfg.DATASETS.TEST, str(root / "annotations" / "other.json"))
    results = train(cfg)._last_eval_results
    assert set(results) == set(cfg.DATASETS.TEST)
