import copy
import itertools
import json
import math
import statistics

import fusiondet.compat  # noqa: F401
from fusiondet.buildings import Building, SensorGeometry, Tile
from fusiondet.config_loading import config_from_yaml_text
from fusiondet.engine import trainer as engine
from fusiondet.engine.checkpoint import load_model, network_differences, read_checkpoint
from fusiondet.engine.trainer import FusionTrainer, StepTrainer, complete_config, context_m
from fusiondet.errors import InputError
from fusiondet.files import read_json
from fusiondet.io.bands import BandSpec
from fusiondet.modeling.task_weighting import UncertaintyWeighting
from tests.support.tiny_city import BANDS, courtyard, tiny_config, write_split, write_tiles

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


# ---- few labels ----

PAINTED = ("MODEL.DENSE_HEADS.NAMES", "['Reconstruction']", "MODEL.DENSE_HEADS.CONV_DIM", "8")


@pytest.fixture
def ten_tiles(tmp_path):
    write_split(tmp_path, "train", (1, 2, 1, 0, 2, 1, 1, 2, 0, 1))
    return tmp_path


def few(root, share, *overrides):
    return complete(root, "DATASETS.LABEL_SHARE", str(share), *overrides, test="")


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
    with pytest.raises(InputError, match="LABEL_SHARE is .*above 0, as buildings are learned from labels"):
        few(ten_tiles, share)


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


def test_learned_scales_of_tasks_do_not_decay_and_have_a_pace_of_their_own(root):
    cfg = tiny_config(root, "SOLVER.WEIGHT_DECAY", "0.25", "SOLVER.BASE_LR", "0.5")
    weighting = UncertaintyWeighting(["instances", "footprint"])
    optimizer = FusionTrainer.build_optimizer(cfg, nn.Sequential(nn.Linear(1, 1), weighting))
    (group,) = [g for g in optimizer.param_groups if any(p is weighting.task_log_scales for p in g["params"])]
    assert (len(group["params"]), group["weight_decay"], group["lr"]) == (1, 0, 0.01)


STREAMS = ("SOLVER.BASE_LR", "0.5", "SOLVER.OPTICAL_LR_FACTOR", "2.0", "SOLVER.SAR_LR_FACTOR", "0.5")
INTERMEDIATE = ("MODEL.BACKBONE.NAME", "build_intermediate_fusion_resnet_fpn_backbone")


def rates(root, *overrides):
    """{name of a parameter: learning rate} of a network."""
    cfg = complete(root, *STREAMS, *overrides, test="")
    model = FusionTrainer.build_model(cfg)
    optimizer = FusionTrainer.build_optimizer(cfg, model)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {*rate.values()} <= {1.0, 0.5, 0.25} and len(optimizer.param_groups) <= 6
    return {name: rate[id(p)] for name, p in model.named_parameters()}


def test_each_stream_learns_at_its_own_rate(root):
    exchange = ("MODEL.FUSION.EXCHANGE.res4", "MMTM", "MODEL.FUSION.MODALITY_DROPOUT.sar", "0.1")
    rate = rates(root, *INTERMEDIATE, *exchange)
    for name, value in rate.items():
        parts = name.split(".")
        both = "exchanges" in parts or "joins" in parts
        assert value == (0.5 if both else 1.0 if "optical" in parts else 0.25 if "sar" in parts else 0.5), (
            name
        )
    assert rate["backbone.bottom_up.sar.res5.1.conv2.weight"] == 0.25
    assert rate["backbone.bottom_up.exchanges.res4.sar.weight"] == 0.5


def test_stages_of_both_streams_learn_at_the_common_rate(root):
    rate = rates(root, *INTERMEDIATE, "MODEL.FUSION.SHARE_WEIGHTS", "True")
    assert rate["backbone.bottom_up.optical.stem.conv1.weight"] == 1.0
    assert rate["backbone.bottom_up.sar.stem.conv1.weight"] == 0.25
    assert rate["backbone.bottom_up.optical.res4.0.conv1.weight"] == 0.5


def test_branches_of_late_fusion_learn_at_their_own_rate(root):
    two = ("MODEL.META_ARCHITECTURE", "LateFusionRCNN", "MODEL.BACKBONE.NAME")
    rate = rates(root, *two, "build_two_pyramids_resnet_fpn_backbone")
    assert all(
        v == (1.0 if "optical" in name.split(".") else 0.25) for name, v in rate.items() if "fpn" in name
    )
    assert {v for name, v in rate.items() if name.startswith("roi_heads.sar.")} == {0.25}


def test_a_rate_for_a_stream_that_is_not_there_is_an_error(root):
    cfg = complete(root, "SOLVER.SAR_LR_FACTOR", "0.5", test="")
    with pytest.raises(InputError, match=r"SAR_LR_FACTOR is 0.5, .*build_early_fusion.*Leave it at 1.0"):
        FusionTrainer.build_optimizer(cfg, FusionTrainer.build_model(cfg))


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
        return complete(root, *settings, "OUTPUT_DIR", str(root / out), test="")

    whole = train(config("whole"))
    train(config("parts"), until=1)
    resumed = train(config("parts"), resume=True)
    assert resumed.start_iter == 1 and same(resumed.model.state_dict(), whole.model.state_dict())
    (hook,) = [hook for hook in whole._hooks if isinstance(hook, engine.WeighTasks)]
    assert len({float(w.detach()) for w in hook.weighting._weights()}) > 1, "they moved"
    logged = json.loads((root / "whole" / "metrics.json").read_text().splitlines()[-1])
    tasks = ["dense_height", "footprint", "reconstruction"] + ["instances", "height"] * (name == "gradnorm")
    assert {k for k in logged if k.startswith("task_")} >= {f"task_weight/{t}" for t in tasks}
    another = complete(root, *settings, "MODEL.WEIGHTS", str(root / "whole" / "model_final.pth"), test="")
    another = FusionTrainer(another)
    another.resume_or_load(False)
    assert {float(w.detach()) for w in another.model.task_weighting._weights()} == {1.0}, "a new training"
    assert same(another.model.dense_heads.state_dict(), whole.model.dense_heads.state_dict())


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
