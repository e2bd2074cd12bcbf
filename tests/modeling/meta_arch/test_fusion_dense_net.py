"""Whole networks for maps in their architecture: pixels without data, small and odd tiles, dropout, files, keys."""

import math

import fusiondet.compat  # noqa: F401
from benchmarks import count_flops
from fusiondet.config_loading import check_tasks
from fusiondet.engine.checkpoint import FusionCheckpointer
from fusiondet.inference import Predictor, predict_scene
from fusiondet.modeling.dense_nets import Picture
from tests.support.projects import needs_network
from tests.support.scene_cases import bands_of, number_scene
from tests.support.tiny_city import GSD_M

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

pytestmark = needs_network("FusionHeightNet")
NAN = math.nan
NETS = ["FusionHeightNet", "DeepLabV3Plus", "ResUNet", "UPerNet", "PSPNet", "SegNet", "DUCHDC"]


@pytest.fixture(params=NETS)
def cfg(dense_cfg, request):
    narrow(dense_cfg, request.param)
    return dense_cfg


def narrow(cfg, name):
    """`cfg` with network `name` of few channels."""
    net = cfg.MODEL.DENSE_NET
    net.NAME, net.WIDTH = name, 4
    if name in ("DeepLabV3Plus", "ResUNet", "UPerNet", "PSPNet"):
        net.SMP.ENCODER, net.WIDTH = "resnet18", 8
    if name == "FusionHeightNet":
        net.FUSION_HEIGHT_NET.DEPTH = 1


def build(cfg):
    check_tasks(cfg)
    torch.manual_seed(0)
    return build_model(cfg)


def tile(height=64, width=64, channels=4, seed=0, hole=True):
    """An input with a building of 20 m, and labels; a corner without data, another without optical."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(channels, height, width, generator=generator) * 100
    if hole:
        image[:, : height // 4, : width // 4] = NAN
        image[:3, -height // 4 :] = NAN
    height_m = torch.zeros(height, width)
    height_m[height // 3 : height // 2 + 1, width // 3 :] = 20.0
    footprint = (height_m > 0).float()
    height_m[0] = footprint[-1] = NAN
    return {"image": image, "building_height_m": height_m, "footprint": footprint,
            "height": height, "width": width, "gsd_m": 0.5}  # fmt: skip


def step(model, inputs):
    """Losses of one training step, backwards too."""
    losses = model.train()(inputs)
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}


def check_gradients(model):
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_operations_of_every_network_can_be_counted(cfg):
    model = build(cfg).eval()
    small, large = (count_flops(model, [tile(side, side, hole=False)]) for side in (64, 128))
    # Convolutions cost four times as much on four times the pixels, attention more.
    assert 3.5 * small < large < 8 * small


# ---- Any tile ----------------------------------------------------------------------------------------------


def test_pixels_without_data_give_finite_losses_gradients_and_maps(cfg):
    model = build(cfg)
    losses = step(model, [tile(), tile(seed=1)])
    assert losses.keys() == {"loss_footprint", "loss_dense_height"}
    assert all(math.isfinite(v) and v > 0 for v in losses.values())
    check_gradients(model)
    with torch.no_grad():
        nothing = {**tile(), "image": torch.full((4, 64, 64), NAN)}
        for said in model.eval()([tile(), nothing]):
            assert said.keys() == {"height_map_m", "footprint_map"}
            for values in said.values():
                assert values.shape == (64, 64) and values.isfinite().all()
            assert (said["height_map_m"][said["footprint_map"] <= 0.5] == 0).all()
            assert (said["height_map_m"] >= 0).all() and (said["height_map_m"] <= 50).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (9, 70), (67, 45)])
def test_a_single_tile_of_any_size_trains_and_is_said(cfg, height, width):
    """Smaller than the stride, of odd size, alone in its batch: what batch norm cannot train on if it is 1 x 1."""
    model = build(cfg)
    one = tile(height, width, hole=False)
    one["building_height_m"][:], one["footprint"][:] = 12.0, 1.0
    assert all(math.isfinite(v) for v in step(model, [one]).values())
    check_gradients(model)
    with torch.no_grad():
        (said,) = model.eval()([one])
    assert all(values.shape == (height, width) and values.isfinite().all() for values in said.values())


def test_maps_come_in_the_size_asked_for(cfg):
    with torch.no_grad():
        (said,) = build(cfg).eval()([{**tile(), "height": 100, "width": 30}])
    assert said["height_map_m"].shape == said["footprint_map"].shape == (100, 30)


@pytest.mark.parametrize(("modalities", "channels", "optical"), [(["optical"], 3, 3), (["sar"], 2, 0)])
def test_one_modality_alone(cfg, modalities, channels, optical):
    cfg.INPUT.MODALITIES, cfg.MODEL.FUSION.OPTICAL_CHANNELS = modalities, optical
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [50.0] * channels, [20.0] * channels
    model = build(cfg)
    losses = step(model, [tile(channels=channels), tile(channels=channels, seed=1)])
    assert all(math.isfinite(v) for v in losses.values())
    check_gradients(model)


@pytest.mark.parametrize(("task", "loss"), [("footprint", "loss_footprint"), ("height", "loss_dense_height")])
def test_one_task_alone(cfg, task, loss):
    cfg.MODEL.DENSE_NET.TASKS = [task]
    model = build(cfg)
    assert step(model, [tile(), tile(seed=1)]).keys() == {loss}
    check_gradients(model)
    with torch.no_grad():
        (said,) = model.eval()([tile()])
    assert said.keys() == {"footprint": {"footprint_map"}, "height": {"height_map_m"}}[task]


# ---- Modalities that are hidden ----------------------------------------------------------------------------


def test_dropout_hides_a_modality_and_its_stand_in_is_learned(dense_cfg):
    narrow(dense_cfg, "FusionHeightNet")
    dense_cfg.MODEL.FUSION.MODALITY_DROPOUT.sar = 1.0
    model, seen = build(dense_cfg), []
    torch.nn.init.constant_(model.backbone.sar_fill.value, 0.7)
    model.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    step(model, [tile(hole=False)])
    (picture,) = seen
    assert isinstance(picture, Picture)
    assert (picture.sar == 0.7).all() and not picture.sar_valid.any() and picture.optical_valid.all()
    # What was there stays what could be reconstructed.
    assert picture.target.isfinite().all()
    assert model.backbone.sar_fill.value.grad.abs().sum() > 0
    check_gradients(model)


def test_a_disabled_modality_is_not_seen(dense_cfg):
    narrow(dense_cfg, "FusionHeightNet")
    dense_cfg.MODEL.FUSION.DISABLED = "sar"
    model = build(dense_cfg).eval()
    one = tile(hole=False)
    other = {**one, "image": torch.cat([one["image"][:3], one["image"][3:] + 30])}
    with torch.no_grad():
        (said,), (too) = model([one]), model([other])
    assert torch.equal(said["footprint_map"], too[0]["footprint_map"])


# ---- Files and scenes --------------------------------------------------------------------------------------


def save(cfg, folder):
    model = build(cfg)
    FusionCheckpointer(model, str(folder), config_yaml=cfg.dump()).save("model")
    return model, folder / "model.pth"


@pytest.mark.parametrize("name", ["FusionHeightNet", "UPerNet"])
def test_a_file_gives_the_same_network_and_a_scene_its_raster(dense_cfg, tmp_path, name):
    narrow(dense_cfg, name)
    cfg = dense_cfg
    cfg.INPUT.MODALITIES, cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.GSD_RANGE_M = (
        ["optical"],
        ["pan"],
        [GSD_M, GSD_M],
    )
    cfg.MODEL.FUSION.OPTICAL_CHANNELS, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = 1, [0.0], [1000.0]
    model, path = save(cfg, tmp_path)
    predictor = Predictor(path, "cpu")
    own, read = model.state_dict(), predictor.model.state_dict()
    assert own.keys() == read.keys() and all(torch.equal(own[key], read[key]) for key in own)
    raster, _ = number_scene(tmp_path, (70, 90), unseen=np.s_[:9])
    result = predict_scene(predictor, raster, height_path=tmp_path / "h.tif", window_px=64, overlap_px=32)
    (heights_m,) = bands_of(tmp_path / "h.tif")
    assert heights_m.shape == (70, 90) and not result.buildings
    assert np.isnan(heights_m[:9]).all() and ((heights_m[9:] >= 0) & (heights_m[9:] <= 50)).all()
