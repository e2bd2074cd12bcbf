"""FusionRCNN end to end on shrunken networks: what goes in, what comes out, and what must not break."""

import fusiondet.compat  # noqa: F401
from fusiondet.errors import InputError
from fusiondet.modeling.meta_arch import SENSOR_FIELDS, sensor_rows

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

NAN = float("nan")


@pytest.fixture
def model(small_cfg):
    torch.manual_seed(0)
    return build_model(small_cfg)


def losses_of(model, inputs):
    with EventStorage():
        return model(inputs)


def assert_all_gradients_finite(model):
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (0, 0)])
def test_every_parameter_gets_a_finite_gradient_with_and_without_buildings(model, make_input, counts):
    losses = losses_of(model, [make_input(n) for n in counts])
    sum(losses.values()).backward()
    assert {"loss_mask", "loss_height", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} == set(
        losses
    )
    assert_all_gradients_finite(model)


def test_unknown_heights_are_ignored_and_all_unknown_is_zero(model, make_input):
    losses = losses_of(model, [make_input(3, heights_m=[NAN, NAN, NAN])])
    sum(losses.values()).backward()
    assert losses["loss_height"].item() == 0
    assert losses["loss_mask"].item() > 0
    assert_all_gradients_finite(model)


def test_no_data_pixels_do_not_spoil_losses_or_gradients(model, make_input):
    x = make_input(3)
    x["image"][:, :20] = NAN
    x["image"][3] = NAN
    losses = losses_of(model, [x])
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert_all_gradients_finite(model)


def test_a_whole_nodata_band_is_the_band_at_its_mean(model, make_input):
    model.eval()
    x, y = make_input(2), make_input(2)
    x["image"][3] = NAN
    y["image"][3] = model.pixel_mean[3]
    with torch.no_grad():
        a, b = model([x])[0]["instances"], model([y])[0]["instances"]
    torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)


def test_predictions_carry_heights_in_metres_with_an_interval(model, make_input):
    model.eval()
    with torch.no_grad():
        instances = model([make_input(2), make_input(0)])[0]["instances"]
    assert len(instances) > 0 and not instances.has("sensor")
    low, median, high = instances.pred_height_p16, instances.pred_heights, instances.pred_height_p84
    assert (low <= median).all() and (median <= high).all() and (low >= 1.0).all() and (high <= 200.0).all()


def test_heights_on_truth_are_aligned_with_the_truth(model, make_input):
    model.eval()
    results = model.heights_on_truth([make_input(3), make_input(0), make_input(1)])
    assert [len(r.pred_heights) for r in results] == [3, 0, 1]


def test_a_network_without_a_mask_head_is_not_shown_true_masks(small_cfg, make_input):
    small_cfg.MODEL.MASK_ON = False
    model = build_model(small_cfg).eval()
    x, y = make_input(2), make_input(2)
    y["instances"].gt_masks.tensor[:] = False
    torch.nn.init.normal_(model.roi_heads.height_head.predictor.weight)
    (a,), (b,) = model.heights_on_truth([x]), model.heights_on_truth([y])
    torch.testing.assert_close(a.pred_heights, b.pred_heights)


def test_plain_rois_of_a_plain_rcnn_work_without_heights(small_cfg, make_input):
    small_cfg.MODEL.HEIGHT_ON, small_cfg.MODEL.META_ARCHITECTURE = False, "GeneralizedRCNN"
    model = build_model(small_cfg).eval()
    with torch.no_grad():
        assert model([make_input(2)])[0]["instances"].has("pred_masks")


def test_given_boxes_get_masks_and_heights(model, make_input):
    model.eval()
    from detectron2.structures import Instances

    x = make_input(2)
    given = Instances((96, 96), pred_boxes=x["instances"].gt_boxes, pred_classes=x["instances"].gt_classes)
    with torch.no_grad():
        result = model.inference([x], [given], do_postprocess=False)[0]
    assert len(result.pred_heights) == 2 and result.pred_masks.shape == (2, 1, 28, 28)


def test_no_height_head_when_switched_off(small_cfg, make_input):
    small_cfg.MODEL.HEIGHT_ON = False
    model = build_model(small_cfg)
    assert "loss_height" not in losses_of(model, [make_input(2)])
    model.eval()
    with torch.no_grad():
        assert not model([make_input(2)])[0]["instances"].has("pred_heights")


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 12])
def test_any_number_of_bands(small_cfg, make_input, channels):
    small_cfg.MODEL.PIXEL_MEAN, small_cfg.MODEL.PIXEL_STD = [0.0] * channels, [1.0] * channels
    losses = losses_of(build_model(small_cfg), [make_input(2, channels=channels)])
    assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize(("depth", "res2"), [(18, 64), (34, 64), (50, 256), (101, 256)])
def test_depths_of_the_backbone(small_cfg, depth, res2):
    from detectron2.modeling import build_backbone

    small_cfg.MODEL.RESNETS.DEPTH, small_cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = depth, res2
    backbone = build_backbone(small_cfg)
    with torch.no_grad():
        features = backbone(torch.zeros(1, 4, 64, 64))
    assert {k: tuple(v.shape[1:]) for k, v in features.items()} == {
        "p2": (16, 16, 16), "p3": (16, 8, 8), "p4": (16, 4, 4), "p5": (16, 2, 2), "p6": (16, 1, 1),
    }  # fmt: skip


def test_wrong_width_for_the_depth_is_said(small_cfg):
    small_cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
    with pytest.raises(InputError, match="needs MODEL.RESNETS.RES2_OUT_CHANNELS 64, found 256"):
        build_model(small_cfg)


def test_statistics_are_asked_for(small_cfg):
    small_cfg.MODEL.PIXEL_MEAN = []
    with pytest.raises(InputError, match="one per band"):
        build_model(small_cfg)


def test_an_image_with_other_bands_is_refused_by_name(model, make_input):
    x = make_input(1, channels=3) | {"file_name": "a.tif"}
    with pytest.raises(InputError, match="a.tif: 3 bands, but the network takes 4"):
        losses_of(model, [x])


def test_sensor_rows_hold_what_is_known():
    rows = sensor_rows(
        [{"gsd_m": 0.5, "sensor": {"sun_elevation_deg": 45.0, "sar_incidence_deg": None}}, {}], "cpu"
    )
    assert rows.shape == (2, len(SENSOR_FIELDS))
    assert rows[0, 0] == 0.5 and rows[0, 2] == 45.0 and rows[0, 4].isnan() and rows[1].isnan().all()


SENSOR = {
    "sun_elevation_deg": 45.0,
    "sun_azimuth_deg": 150.0,
    "sar_incidence_deg": 35.0,
    "sar_look_azimuth_deg": 80.0,
}


def test_angles_of_a_modality_without_a_pixel_are_unknown(small_cfg, make_input):
    inputs = [make_input(1) | {"sensor": SENSOR} for _ in range(2)]
    inputs[1]["image"][3:] = NAN
    model = build_model(small_cfg).eval()
    sar, sun = SENSOR_FIELDS.index("sar_incidence_deg"), SENSOR_FIELDS.index("sun_elevation_deg")
    sensor = model.preprocess_image(inputs).sensor
    assert sensor[0, sar] == 35 and sensor[1, sar].isnan() and sensor[:, sun].tolist() == [45, 45]
    model.disabled = "optical"
    sensor = model.preprocess_image(inputs[:1]).sensor
    assert sensor[0, sun].isnan() and sensor[0, sar] == 35 and sensor[0, 0] == 0.5


def test_a_network_told_its_geometry_learns_and_predicts_with_and_without_it(small_cfg, make_input):
    small_cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY = [
        "gsd",
        "sun_elevation",
        "sun_azimuth",
        "incidence",
        "look_azimuth",
    ]
    torch.manual_seed(0)
    model = build_model(small_cfg)
    inputs = [make_input(3) | {"sensor": SENSOR}, make_input(2)]
    sum(losses_of(model, inputs).values()).backward()
    assert_all_gradients_finite(model)
    model.eval()
    told, untold = model.heights_on_truth(inputs[:1]), model.heights_on_truth([make_input(3)])
    assert not torch.equal(told[0].pred_heights, untold[0].pred_heights)
    assert torch.isfinite(untold[0].pred_heights).all()
    with torch.no_grad():
        assert all(torch.isfinite(x["instances"].pred_heights).all() for x in model(inputs))


def test_bfloat16_leaves_boxes_where_they_are(small_cfg):
    from fusiondet.modeling.roi_heads import Float32Pooler

    from detectron2.modeling.poolers import ROIPooler
    from detectron2.structures import Boxes

    ramp = torch.arange(300.0).repeat(300, 1)[None, None]
    boxes = [Boxes(torch.tensor([[201.3, 10.0, 210.7, 20.0]]))]
    pooler = Float32Pooler(ROIPooler(1, (1.0,), 2, "ROIAlignV2"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pooler([ramp], boxes)
    assert pooled.dtype == torch.float32
    assert pooled.item() == pytest.approx(206.0 - 0.5, abs=1e-3)
