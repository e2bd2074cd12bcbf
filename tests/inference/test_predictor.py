"""From a checkpoint to buildings on the map, with a stand-in network that knows the answer."""

from fusiondet.errors import InputError
from fusiondet.inference import Predictor, buildings_from_instances, predict_scene
from fusiondet.inference.predictor import PROPOSAL_PX, Detectron2Outputs, raise_limits
from fusiondet.io.bands import BandSpec
from fusiondet.modeling.decision_fusion import BoxFusion
from tests.support.scene_cases import raw_output

import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

GSD_M = 0.5
TRANSFORM = Affine(GSD_M, 0, 600000, 0, -GSD_M, 5750000)


def test_a_full_mask_is_its_box_and_heights_keep_their_units():
    (building,) = buildings_from_instances(raw_output([[10, 20, 50, 80]], [0.75], [12.0]))
    assert shapely.box(10, 20, 50, 80).symmetric_difference(building.polygon).area < 0.02 * 2400
    assert building.score == 0.75 and building.height_m == 12.0
    assert building.height_p16_m == pytest.approx(9.6) and building.height_p84_m == pytest.approx(15.0)


def test_buildings_come_best_first_and_empty_masks_are_left_out():
    instances = raw_output([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], [0.2, 0.9, 0.5])
    instances.pred_masks[2] = 0
    assert [round(b.score, 1) for b in buildings_from_instances(instances)] == [0.9, 0.2]


def test_a_network_without_a_mask_head_predicts_its_boxes():
    instances = raw_output([[10, 20, 50, 80], [3, 3, 3, 9]])
    instances.remove("pred_masks")
    (building,) = buildings_from_instances(instances)
    assert building.polygon.equals(shapely.box(10, 20, 50, 80))


def test_no_heights_give_unknown_heights():
    instances = raw_output([[0, 0, 10, 10]])
    for name in ("pred_heights", "pred_height_p16", "pred_height_p84"):
        instances.remove(name)
    (building,) = buildings_from_instances(instances)
    assert building.height_m is None and building.height_source is None


@pytest.fixture
def scene(tmp_path):
    """scene(blocks, shape, nodata rows) -> RGB raster in EPSG:32631 in which a block of 255 is a building."""

    def write(blocks, height=300, width=400, nodata_rows=0, gsd_m=GSD_M, crs="EPSG:32631"):
        image = np.full((3, height, width), 100, np.uint8)
        for x0, y0, x1, y1 in blocks:
            image[:, y0:y1, x0:x1] = 255
        image[:, :nodata_rows] = 0
        path = tmp_path / "rgb.tif"
        transform = Affine(gsd_m, 0, 600000, 0, -gsd_m, 5750000)
        profile = dict(driver="GTiff", count=3, height=height, width=width, dtype="uint8", nodata=0)
        with rasterio.open(path, "w", crs=crs, transform=transform, photometric="RGB", **profile) as file:
            file.write(image)
        return path

    return write


@pytest.fixture
def oracle(small_checkpoint):
    """A Predictor whose network is replaced by one that finds the bright blocks of the image."""
    predictor = Predictor(small_checkpoint, device="cpu")

    class Oracle:
        seen = []

        def outputs(self, inputs, do_postprocess):
            from scipy import ndimage

            image = inputs[0]["image"].numpy()
            self.seen.append((image.shape, inputs[0]["gsd_m"]))
            labels, _ = ndimage.label(np.nan_to_num(image[0]) > 200)
            slices = ndimage.find_objects(labels)
            boxes = [[s[1].start, s[0].start, s[1].stop, s[0].stop] for s in slices]
            return [{"instances": raw_output(boxes)}]

    predictor.model = Oracle()
    Oracle.seen = []
    return predictor


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory):
    """A real checkpoint of an untrained, shrunken RGB network for 0.4 to 0.6 m."""
    import fusiondet.compat  # noqa: F401
    from fusiondet.config_loading import load_config
    from fusiondet.engine.checkpoint import FusionCheckpointer

    from detectron2.modeling import build_model

    folder = tmp_path_factory.mktemp("weights")
    cfg = load_config("configs/synthetic/rgb_r18_small.yaml")
    cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.GSD_RANGE_M = ["red", "green", "blue"], [0.4, 0.6]
    cfg.INPUT.MODALITIES = ["optical"]
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0] * 3, [50.0] * 3
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16, 16
    model = build_model(cfg)
    FusionCheckpointer(model, str(folder), config_yaml=cfg.dump()).save("model")
    return folder / "model.pth"


def test_buildings_land_on_the_map(oracle, scene):
    result = predict_scene(oracle, scene([(100, 50, 140, 90)]))
    (building,) = result.buildings
    expected = shapely.box(600050, 5750000 - 45, 600070, 5750000 - 25)
    assert result.crs == "EPSG:32631"
    assert building.polygon.symmetric_difference(expected).area < 0.02 * expected.area


def test_a_scene_of_many_windows_gives_every_building_once(oracle, scene):
    blocks = [(x, y, x + 20, y + 16) for x in range(5, 370, 40) for y in range(5, 270, 40)]
    whole = predict_scene(oracle, scene(blocks), window_px=1024)
    parts = predict_scene(oracle, scene(blocks), window_px=128, overlap_px=48)
    assert len(whole.buildings) == len(blocks) == len(parts.buildings)
    assert shapely.unary_union([b.polygon for b in parts.buildings]).area == pytest.approx(
        shapely.unary_union([b.polygon for b in whole.buildings]).area, rel=1e-3
    )


def test_nothing_is_predicted_on_nodata(oracle, scene):
    """One block is mostly below the no-data rows, one is cut by them, one is free of them."""
    path = scene([(10, 80, 50, 110), (100, 90, 140, 120), (200, 150, 240, 180)], nodata_rows=100)
    oracle.model.outputs = lambda inputs, do_postprocess: [
        {"instances": raw_output([[10, 80, 50, 110], [100, 90, 140, 120], [200, 150, 240, 180]])}
    ]
    result = predict_scene(oracle, path)
    tops = sorted((5750000 - b.polygon.bounds[3]) / GSD_M for b in result.buildings)
    assert tops == pytest.approx([100, 150], abs=0.3)


def test_an_all_nodata_scene_has_no_buildings(oracle, scene):
    result = predict_scene(oracle, scene([], nodata_rows=300))
    assert result.buildings == [] and oracle.model.seen == []
    assert any("nothing to predict" in note for note in result.notes)


def test_a_coarser_raster_is_resampled_to_the_nearest_trained_gsd_and_says_so(oracle, scene):
    result = predict_scene(oracle, scene([(100, 50, 140, 90)], gsd_m=1.2))
    shape, gsd_m = oracle.model.seen[0]
    assert shape == (3, 600, 800) and gsd_m == pytest.approx(0.6)
    assert any("resampled from 1.2 m to 0.6 m" in note for note in result.notes)
    (building,) = result.buildings
    assert building.polygon.area == pytest.approx((40 * 1.2) ** 2, rel=0.03)


def test_a_raster_near_the_training_is_left_alone(oracle, scene):
    predict_scene(oracle, scene([], gsd_m=0.7))
    assert oracle.model.seen[0][0] == (3, 300, 400)


def test_a_raster_far_from_the_training_is_refused_unless_forced(oracle, scene):
    path = scene([], height=30, width=40, gsd_m=10.0)
    with pytest.raises(
        InputError, match=r"10 m per pixel, but model.pth was trained on 0.4 to 0.6 m.*`force_gsd"
    ):
        predict_scene(oracle, path)
    predict_scene(oracle, path, force_gsd=True)


@pytest.mark.parametrize(("window", "overlap"), [(64, 64), (64, -1), (0, 0)])
def test_windows_that_do_not_cover_the_scene_are_refused(oracle, scene, window, overlap):
    with pytest.raises(InputError, match="overlap_px|window_px"):
        predict_scene(oracle, scene([]), window_px=window, overlap_px=overlap)


def test_thresholds_and_scales_that_cannot_be_are_refused(oracle, small_checkpoint, scene):
    with pytest.raises(InputError, match="score.threshold.* is 7, expected 0 to 1"):
        Predictor(small_checkpoint, score_threshold=7)
    oracle.bands = BandSpec(("red", "green", "blue"), ("HH",), "db")
    with pytest.raises(InputError, match="unknown `sar_scale` 'dezibel'.*linear_power"):
        predict_scene(oracle, scene([]), sar_scale="dezibel")
    with pytest.raises(InputError, match="trained on db; a display stretch"):
        predict_scene(oracle, scene([]), sar_scale="stretched_uint8")


@pytest.mark.parametrize("device", ["toaster", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_bad_input(small_checkpoint, device):
    with pytest.raises(InputError, match=f"`device={device}`: not on this machine"):
        Predictor(small_checkpoint, device)


def test_a_missing_raster_is_asked_for(oracle):
    with pytest.raises(InputError, match="no raster given|Pass `rgb`"):
        predict_scene(oracle, None, None)


def test_the_predictor_is_rebuilt_from_the_checkpoint_alone(small_checkpoint, scene, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    predictor = Predictor(small_checkpoint, score_threshold=0.0)
    assert predictor.bands.optical == ("red", "green", "blue") and predictor.gsd_range_m == (0.4, 0.6)
    result = predict_scene(predictor, scene([(100, 50, 140, 90)]))
    assert all(b.height_p16_m <= b.height_m <= b.height_p84_m for b in result.buildings)


def test_output_and_crs_are_checked_before_the_network_is_built(scene, tmp_path):
    from fusiondet.inference import predict_to_file

    nowhere = tmp_path / "missing.pth"
    (tmp_path / "taken.gpkg").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        predict_to_file(nowhere, scene([]), None, tmp_path / "taken.gpkg")
    with pytest.raises(InputError, match="have no CRS"):
        predict_to_file(nowhere, scene([], crs=None), None, tmp_path / "a.city.json")
    with pytest.raises(InputError, match="no such checkpoint"):
        predict_to_file(nowhere, scene([]), None, tmp_path / "a.gpkg")
    assert (tmp_path / "taken.gpkg").read_text() == "mine"


def test_a_checkpoint_that_runs_code_is_refused_unopened(tmp_path):
    import os
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/boom",)

    path = tmp_path / "bomb.pth"
    path.write_bytes(pickle.dumps({"model": Bomb(), "config_yaml": ""}))
    with pytest.raises(InputError, match="not opened"):
        Predictor(path)
    assert not (tmp_path / "boom").exists()


def test_a_config_with_python_tags_in_a_checkpoint_is_refused(small_checkpoint, tmp_path):
    content = torch.load(small_checkpoint, weights_only=True)
    content["config_yaml"] = "MODEL: !!python/object/apply:os.system ['true']"
    torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="not a plain YAML config"):
        Predictor(tmp_path / "evil.pth")


def test_a_detector_of_detectron2_predicts_in_the_same_form(small_checkpoint):
    cfg = Predictor(small_checkpoint, "cpu", build=False).cfg
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.HEIGHT_ON = "GeneralizedRCNN", False
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    detector = build_model(cfg).eval()
    x = {"image": torch.rand(3, 64, 64) * 255, "height": 64, "width": 64}
    with torch.no_grad():
        (raw,) = Detectron2Outputs(detector).outputs([x], do_postprocess=False)
        (whole,) = Detectron2Outputs(detector).outputs([x])
    assert raw.keys() == whole.keys() == {"instances"} and len(raw["instances"]) > 0
    assert raw["instances"].pred_masks.shape[1:] == (1, 28, 28)
    assert whole["instances"].pred_masks.shape[1:] == (64, 64)


@pytest.mark.parametrize("architecture", ["FusionRCNN", "LateFusionRCNN"])
def test_limits_rise_with_the_area_and_never_fall_below_those_of_the_config(small_cfg, architecture):
    small_cfg.MODEL.META_ARCHITECTURE, small_cfg.MODEL.FUSION.OPTICAL_CHANNELS = architecture, 3
    if architecture == "LateFusionRCNN":
        small_cfg.MODEL.BACKBONE.NAME = "build_two_pyramids_resnet_fpn_backbone"
    rpn = small_cfg.MODEL.RPN
    rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST, small_cfg.TEST.DETECTIONS_PER_IMAGE = 200, 50, 30
    model = build_model(small_cfg)
    for area_px, expected in ((PROPOSAL_PX**2 * 80, (80, 320, 80)), (1, (50, 200, 30))):
        raise_limits(model, small_cfg, area_px)
        found = set()
        for module in model.modules():
            if isinstance(module, RPN):
                found.add(("proposals", module.post_nms_topk[False], module.pre_nms_topk[False]))
            if isinstance(module, FastRCNNOutputLayers):
                found.add(("detections", module.test_topk_per_image))
            if isinstance(module, BoxFusion):
                found.add(("merged", module.max_detections))
        proposals, before_nms, detections = expected
        merged = {("merged", detections)} if architecture == "LateFusionRCNN" else set()
        assert found == {("proposals", proposals, before_nms), ("detections", detections)} | merged
