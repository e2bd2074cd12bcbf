"""Bands, statistics, ranges and priors that the training data give to a config."""

import copy
import json
import math

import fusiondet.compat  # noqa: F401
from fusiondet.buildings import Building, SensorGeometry, Tile
from fusiondet.data import catalog
from fusiondet.engine.complete_config import context_m
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from tests.support.tiny_city import (
    BANDS,
    completed_config,
    courtyard,
    write_split,
    write_tiles,
)

import pytest


def test_the_data_complete_the_config(root):
    cfg = completed_config(root)
    assert (cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS) == (["red", "green", "blue"], ["HH"])
    assert (cfg.INPUT.SAR_SCALE, cfg.MODEL.FUSION.OPTICAL_CHANNELS) == ("db", 3)
    assert len(cfg.MODEL.PIXEL_MEAN) == len(cfg.MODEL.PIXEL_STD) == 4
    assert cfg.MODEL.PIXEL_MEAN[0] > cfg.MODEL.PIXEL_MEAN[2] > 0 > cfg.MODEL.PIXEL_MEAN[3] > -25
    assert cfg.INPUT.GSD_RANGE_M == [0.5, 0.5]
    heights_m = [
        b.height_m for tile in catalog.load_split(cfg.DATASETS.TRAIN[0]).tiles for b in tile.buildings
    ]
    assert cfg.MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M == pytest.approx(sorted(heights_m)[4], abs=1e-3)
    assert 0.1 <= cfg.MODEL.ROI_HEIGHT_HEAD.PRIOR_LOG_SCALE < 1


def test_given_statistics_stay_and_only_the_missing_half_is_computed(root):
    cfg = completed_config(root, "MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0, 4.0]")
    assert cfg.MODEL.PIXEL_MEAN == [1, 2, 3, 4] and len(cfg.MODEL.PIXEL_STD) == 4
    with pytest.raises(
        InputError, match=r"MODEL.PIXEL_MEAN has 2 numbers, expected one per band \(red, green"
    ):
        completed_config(root, "MODEL.PIXEL_MEAN", "[1.0, 2.0]")


def test_the_scale_jitter_widens_the_gsd_range(root):
    assert completed_config(root, "INPUT.SCALE_RANGE", "[0.5, 2.0]").INPUT.GSD_RANGE_M == [0.25, 1.0]


def turned(root, split, *sensors, gsd_m=0.5):
    """The training tiles as `split`, with these geometries in turn."""
    tiles = copy.deepcopy(catalog.load_split(str(root / "annotations" / "train.json")).tiles)
    for i, tile in enumerate(tiles):
        tile.sensor, tile.gsd_m = sensors[i % len(sensors)], gsd_m
    write_tiles(root, split, tiles)
    return split


def test_the_config_keeps_which_angles_were_trained_on(root):
    angles = [SensorGeometry(sun_elevation_deg=e, sar_incidence_deg=i) for e, i in ((30, 45), (50.5, 35))]
    cfg = completed_config(root, train=turned(root, "angles", *angles))
    assert cfg.INPUT.SUN_ELEVATION_RANGE_DEG == [30, 50.5]
    assert cfg.INPUT.SAR_INCIDENCE_RANGE_DEG == [35, 45]
    optical = completed_config(root, "INPUT.MODALITIES", "['optical']", train="angles")
    assert optical.INPUT.SUN_ELEVATION_RANGE_DEG == [30, 50.5] and optical.INPUT.SAR_INCIDENCE_RANGE_DEG == []
    unknown = completed_config(root, train=turned(root, "unknown", SensorGeometry()))
    assert unknown.INPUT.SUN_ELEVATION_RANGE_DEG == unknown.INPUT.SAR_INCIDENCE_RANGE_DEG == []


GEOMETRY = ("MODEL.ROI_HEIGHT_HEAD.GEOMETRY", "['gsd', 'sun_elevation', 'sun_azimuth']")


def test_a_fact_that_no_training_tile_states_is_an_error(root):
    half = SensorGeometry(sun_azimuth_deg=10)
    turned(root, "half", half)
    with pytest.raises(
        InputError, match="sun_elevation, but no tile of .*half.json states its sun_elevation_deg"
    ):
        completed_config(root, *GEOMETRY, train="half")
    with pytest.raises(InputError, match="gsd, but no tile"):
        completed_config(root, *GEOMETRY, train=turned(root, "no_gsd", half, gsd_m=math.nan))
    completed_config(root, *GEOMETRY, "MODEL.HEIGHT_ON", "False", train="half")


def test_a_fact_that_some_training_tiles_lack_is_a_warning(root, caplog):
    known = SensorGeometry(sun_azimuth_deg=10, sun_elevation_deg=40)
    completed_config(
        root, *GEOMETRY, train=turned(root, "some", known, SensorGeometry(), SensorGeometry(), known)
    )
    assert "2 of 4 training tiles do not state sun_elevation_deg" in caplog.text
    assert "gsd_m" not in caplog.text


def test_a_network_told_its_geometry_trains_and_evaluates(root):
    known = SensorGeometry(sun_azimuth_deg=10, sun_elevation_deg=40)
    turned(root, "some", known, SensorGeometry())
    trainer = FusionTrainer(completed_config(root, *GEOMETRY, "SOLVER.MAX_ITER", "1", train="some"))
    trainer.resume_or_load(False)
    trainer.train()
    assert trainer.model.roi_heads.height_head.geometry.marks == ["sun_shadow"]
    assert trainer._last_eval_results["height_gt_boxes"]["mae_m"] > 0


@pytest.mark.parametrize(("modality", "optical", "sar"), [("optical", 3, []), ("sar", 0, ["HH"])])
def test_one_modality_drops_the_other(root, modality, optical, sar):
    cfg = completed_config(root, "INPUT.MODALITIES", str([modality]))
    assert cfg.MODEL.FUSION.OPTICAL_CHANNELS == optical and cfg.INPUT.SAR_BANDS == sar
    assert len(cfg.MODEL.PIXEL_MEAN) == optical + len(sar) and cfg.INPUT.SAR_SCALE == ("db" if sar else "")


def test_chosen_bands_are_kept_in_their_order(root):
    cfg = completed_config(root, "INPUT.OPTICAL_BANDS", "['blue', 'red']")
    assert cfg.INPUT.OPTICAL_BANDS == ["blue", "red"] and cfg.MODEL.FUSION.OPTICAL_CHANNELS == 2
    assert cfg.MODEL.PIXEL_MEAN[0] < cfg.MODEL.PIXEL_MEAN[1]


def test_values_set_by_the_user_stay(root):
    cfg = completed_config(
        root, "MODEL.PIXEL_MEAN", "[1.,2.,3.,4.]", "MODEL.PIXEL_STD", "[1.,1.,1.,1.]", "SEED", "7"
    )
    assert cfg.MODEL.PIXEL_MEAN == [1, 2, 3, 4] and cfg.SEED == 7


def test_a_missing_modality_and_a_missing_band_are_errors(root):
    write_split(root, "rgb", (1,), bands=BandSpec())
    with pytest.raises(InputError, match=r"asks for sar.*has no sar band.*INPUT.MODALITIES"):
        completed_config(root, train="rgb", test="")
    with pytest.raises(InputError, match=r"rgb.json lacks band HH: it has red, green, blue"):
        completed_config(root, test="rgb")
    with pytest.raises(InputError, match=r"train.json lacks band nir: .* the network takes nir,"):
        completed_config(root, "INPUT.OPTICAL_BANDS", "['nir']")


def test_a_stretch_and_decibels_do_not_mix(root):
    write_tiles(root, "stretched", [], BandSpec(BANDS.optical, ("HH",), "stretched_uint8"))
    with pytest.raises(InputError, match="stretched_uint8.*cannot be turned into dB"):
        completed_config(root, test="stretched")


def test_an_unknown_data_set_and_no_data_set_are_errors(root):
    with pytest.raises(InputError, match="no such annotation file"):
        completed_config(root, train="nowhere")
    with pytest.raises(InputError, match="DATASETS.TRAIN is empty"):
        completed_config(root, train="", test="")


def test_the_detection_limit_rises_above_the_densest_tile(root, caplog):
    crowd = [Building(courtyard(0, 0, 4, 1)) for _ in range(40)]
    write_tiles(root, "dense", [Tile("images/train_0_rgb.tif", 64, 64, 0.5, buildings=crowd)])
    cfg = completed_config(root, test="dense")
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 60 and cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 120
    assert "the densest tile has 40 buildings" in caplog.text


def test_weights_bring_their_bands_and_statistics(root):
    stored = completed_config(
        root,
        "INPUT.OPTICAL_BANDS",
        "['green']",
        "MODEL.PIXEL_MEAN",
        "[9., 9.]",
        "MODEL.PIXEL_STD",
        "[2., 2.]",
    )
    stored.MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M, stored.SEED = 3.25, 77
    cfg = completed_config(root, "SEED", "-1", stored=stored)
    assert cfg.INPUT.OPTICAL_BANDS == ["green"] and cfg.MODEL.PIXEL_MEAN == [9, 9]
    assert cfg.MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M == 3.25 and cfg.SEED == 77


def test_unknown_heights_give_the_prior_of_an_ordinary_town(root):
    write_tiles(
        root,
        "flat",
        [Tile("images/train_0_rgb.tif", 64, 64, 0.5, buildings=[Building(courtyard(2, 2))])],
        BandSpec(),
    )
    head = completed_config(
        root, "INPUT.MODALITIES", "['optical']", train="flat", test=""
    ).MODEL.ROI_HEIGHT_HEAD
    assert (head.PRIOR_MEDIAN_M, head.PRIOR_LOG_SCALE) == (8.0, 0.6)


def test_a_negative_seed_is_drawn_and_kept(root):
    assert completed_config(root, "SEED", "-1").SEED >= 0


def test_the_context_reaches_as_far_as_shadow_and_layover():
    sensor = SensorGeometry(sun_elevation_deg=45, sar_incidence_deg=math.degrees(math.atan(0.5)))
    tile = Tile("a", 9, 9, 0.5, sensor=sensor, buildings=[Building(courtyard(0, 0), height_m=20.0)])
    assert context_m([tile], ["optical", "sar"]) == 40, "layover: 20 m * cot"
    assert context_m([tile], ["optical"]) == 20, "shadow: 20 m / tan 45"
    assert context_m([Tile("a", 9, 9, 0.5)], ["optical"]) == 40, "nothing is known"
    tile.buildings[0].height_m = 900.0
    assert context_m([tile], ["sar"]) == 100


# ---- Scores and heights that the data do not have -------------------------------------------------------


def without_heights(root, split, buildings=True):
    path = root / "annotations" / f"{split}.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["height_m"] = None
    if not buildings:
        content["annotations"] = []
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("words", "metric"),
    [
        ((), "segm/AP50"),
        (("TEST.BEST_METRIC", "height/mae_m"), "segm/AP50"),
        (("MODEL.MASK_ON", "False"), "bbox/AP50"),
        (("TEST.BEST_METRIC", "bbox/AP50"), "bbox/AP50"),
    ],
)
def test_the_best_checkpoint_is_chosen_by_a_score_that_the_data_have(root, caplog, words, metric):
    assert completed_config(root).TEST.BEST_METRIC == "joint/AP50"
    without_heights(root, "val")
    with caplog.at_level("WARNING", "fusiondet"):
        assert completed_config(root, *words).TEST.BEST_METRIC == metric
    assert (f"TEST.BEST_METRIC is {metric} instead of" in caplog.text) == (
        words[-2:] != ("TEST.BEST_METRIC", metric)
    )


def test_heights_that_nobody_knows_are_said_at_the_start(root, caplog):
    completed_config(root)
    assert "HEIGHT_ON" not in caplog.text
    without_heights(root, "train")
    with caplog.at_level("WARNING", "fusiondet"):
        completed_config(root)
    assert "MODEL.HEIGHT_ON is True, but no building of the training data has a known height" in caplog.text


@pytest.mark.parametrize(
    "words", [("SOLVER.IMS_PER_BATCH", "100000000"), ("INPUT.SCALE_RANGE", "[1.0, 1000.0]")]
)
def test_a_batch_that_no_machine_holds_is_refused_with_the_key_that_allows_it(root, words):
    with pytest.raises(
        InputError, match=r"a batch would take .* GiB.*raise DATALOADER.MAX_BATCH_GIB, which is 32"
    ):
        completed_config(root, *words)
    completed_config(root, *words, "DATALOADER.MAX_BATCH_GIB", "1e8")
