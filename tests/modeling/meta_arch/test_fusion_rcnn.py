"""FusionRCNN end to end on shrunken networks: what goes in, what comes out, and what must not break."""

import fusiondet.compat  # noqa: F401
from fusiondet.errors import InputError
from fusiondet.modeling.dense_heads import DenseMaps
from tests.support.networks import assert_all_gradients_finite, losses_of

import pytest
import torch
from detectron2.modeling import build_model

NAN = float("nan")


@pytest.fixture
def model(small_cfg):
    torch.manual_seed(0)
    return build_model(small_cfg)


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


SENSOR = {
    "sun_elevation_deg": 45.0,
    "sun_azimuth_deg": 150.0,
    "sar_incidence_deg": 35.0,
    "sar_look_azimuth_deg": 80.0,
}


# ---- Dense heads, tasks, tiles without labels ----

INSTANCE_LOSSES = {"loss_mask", "loss_height", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
DENSE_LOSSES = {"loss_dense_height", "loss_footprint", "loss_reconstruction"}


@pytest.fixture
def dense_cfg(small_cfg):
    small_cfg.MODEL.DENSE_HEADS.NAMES = ["Footprint", "DenseHeight", "Reconstruction"]
    small_cfg.MODEL.DENSE_HEADS.CONV_DIM = 8
    return small_cfg


def built(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def losses_with_seed(model, inputs):
    """Losses in training, but for the norms, whose statistics would mix the tiles of a batch."""
    model.train().backbone.eval()
    torch.manual_seed(1)
    return losses_of(model, inputs)


class Saying(torch.nn.Module):
    """Dense heads that say what they are told to."""

    def __init__(self, **maps):
        super().__init__()
        self.maps = maps

    def forward(self, features, image):
        size = (len(image), 1, *image.shape[-2:])
        return DenseMaps(**{name: x.expand(size).clone() for name, x in self.maps.items()})


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty", "gradnorm"])
def test_every_parameter_of_a_joint_network_gets_a_finite_gradient(dense_cfg, make_tile, weighting):
    dense_cfg.MODEL.TASK_WEIGHTING.NAME, dense_cfg.MODEL.TASK_ATTENTION = weighting, True
    dense_cfg.MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR = True
    model = built(dense_cfg)
    losses = losses_of(model, [make_tile(3), make_tile(1) | {"labelled": False}, make_tile(0, side=64)])
    extra = {"loss_task_uncertainty"} if weighting == "uncertainty" else set()
    assert losses.keys() == INSTANCE_LOSSES | DENSE_LOSSES | extra
    sum(losses.values()).backward()
    assert_all_gradients_finite(model)


def test_a_detector_has_the_weights_and_losses_it_has_without_dense_heads(dense_cfg, make_tile):
    joint = built(dense_cfg)
    dense_cfg.MODEL.DENSE_HEADS.NAMES = []
    alone = built(dense_cfg)
    ours, theirs = alone.state_dict(), joint.state_dict()
    assert {name.split(".")[0] for name in ours} == {"backbone", "proposal_generator", "roi_heads"}
    assert {name.split(".")[0] for name in theirs.keys() - ours.keys()} == {"dense_heads"}
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    tiles = [make_tile(3), make_tile(2, side=64)]
    ours, theirs = losses_with_seed(alone, tiles), losses_with_seed(joint, tiles)
    assert ours.keys() == INSTANCE_LOSSES
    assert all(torch.equal(theirs[name], loss) for name, loss in ours.items())


def test_untrained_attention_changes_nothing_and_a_trained_one_only_its_task(dense_cfg, make_tile):
    plain = built(dense_cfg)
    dense_cfg.MODEL.TASK_ATTENTION = True
    model = built(dense_cfg)
    before, same = losses_with_seed(plain, [make_tile(2)]), losses_with_seed(model, [make_tile(2)])
    for name in INSTANCE_LOSSES:
        torch.testing.assert_close(same[name], before[name])
    assert set(model.attention.levels) == {"p2", "p3", "p4", "p5", "p6"}
    for level in model.attention.levels.values():
        torch.nn.init.constant_(level.excite.bias, 3.0)
    after = losses_with_seed(model, [make_tile(2)])
    assert all(torch.equal(after[name], same[name]) for name in DENSE_LOSSES)
    assert not torch.equal(after["loss_rpn_cls"], same["loss_rpn_cls"])


def test_a_tile_without_labels_trains_the_reconstruction_alone(dense_cfg, make_tile):
    model, labelled, other = built(dense_cfg), make_tile(3), make_tile(2) | {"labelled": False}
    alone, mixed = losses_with_seed(model, [labelled]), losses_with_seed(model, [labelled, other])
    for name in (INSTANCE_LOSSES | DENSE_LOSSES) - {"loss_reconstruction"}:
        torch.testing.assert_close(mixed[name], alone[name])
    assert not torch.equal(mixed["loss_reconstruction"], alone["loss_reconstruction"])
    bare = {key: other[key] for key in ("image", "labelled", "gsd_m")}
    bare = losses_with_seed(model, [bare, labelled])
    for name, loss in bare.items():
        torch.testing.assert_close(loss, mixed[name])


def test_a_batch_without_any_label_is_refused_where_instances_are_trained(dense_cfg, make_tile):
    tile = make_tile(1) | {"labelled": False, "file_name": "a.tif"}
    with pytest.raises(InputError, match=r"no tile of a batch has labels \(a.tif\)"):
        losses_of(built(dense_cfg), [tile])


def test_what_was_dropped_is_to_be_reconstructed_and_what_never_was_is_not(dense_cfg, make_tile):
    dense_cfg.MODEL.FUSION.OPTICAL_CHANNELS, dense_cfg.MODEL.FUSION.MODALITY_DROPOUT.sar = 3, 1.0
    model = built(dense_cfg)
    seen = {}
    model.dense_heads.register_forward_pre_hook(lambda module, args: seen.update(image=args[1].clone()))
    losses = model.dense_heads.losses
    model.dense_heads.losses = lambda maps, targets: (
        seen.update(target=targets.image) or losses(maps, targets)
    )
    tile = make_tile(1, side=80)
    tile["image"][:, :10] = NAN
    losses_of(model, [tile])
    there = torch.zeros(96, 96, dtype=torch.bool)
    there[10:80, :80] = True
    assert seen["image"][0, 3].isnan().all() and torch.equal(~seen["image"][0, 0].isnan(), there)
    sar = seen["target"][0, 3]
    assert torch.equal(~sar.isnan(), there)
    torch.testing.assert_close(sar[10:80, :80], (tile["image"][3, 10:] + 10) / 5)
    model.eval().preprocessing.disabled = "sar"
    assert model.preprocess_image([tile]).complete[0, 3].isnan().all(), "as if it never was"


def test_maps_are_cut_from_the_padding_and_come_in_the_size_of_the_output(dense_cfg, make_tile):
    model = built(dense_cfg).eval()
    ramp_m, logits = torch.arange(96.0), torch.tensor(0.0)
    model.dense_heads = Saying(height_m=ramp_m, footprint=logits)
    tiles = [make_tile(1, side=64), make_tile(1) | {"height": 48, "width": 192}]
    with torch.no_grad():
        one, other = model(tiles)
        raw = model.outputs(tiles, do_postprocess=False)
        instances = model.inference(tiles, do_postprocess=False)
    assert torch.equal(one["height_map_m"], ramp_m[:64].expand(64, 64)) and "instances" in one
    assert one["height_map_m"].dtype == torch.float32
    assert other["footprint_map"].shape == other["height_map_m"].shape == (48, 192)
    # Pixels twice as narrow: their centres lie at 0.25, 0.75, ... of the old ones', those at the border as it is.
    torch.testing.assert_close(other["height_map_m"][0, :4], torch.tensor([0, 0.25, 0.75, 1.25]))
    assert (other["footprint_map"] == 0.5).all()
    assert raw[1]["height_map_m"].shape == (96, 96) and raw[0]["instances"].pred_masks.shape[1:] == (
        1,
        28,
        28,
    )
    assert [len(x) for x in instances] == [len(x["instances"]) for x in raw]


def test_there_are_maps_of_those_heads_alone_that_there_are(dense_cfg, make_tile):
    dense_cfg.MODEL.DENSE_HEADS.NAMES = ["Footprint", "Reconstruction"]
    model = built(dense_cfg).eval()
    with torch.no_grad():
        (output,) = model([make_tile(1)])
    assert output.keys() == {"instances", "footprint_map"}


def test_the_height_head_hears_the_dense_head_and_does_not_teach_it(dense_cfg, make_tile):
    dense_cfg.MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR = True
    model = built(dense_cfg)
    losses_of(model, [make_tile(3)])["loss_height"].backward()
    assert model.roi_heads.height_head.convs[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.dense_heads.parameters())
    model.eval()
    heads, told = model.dense_heads, []
    for metres in (0.0, 30.0):
        model.dense_heads = Saying(height_m=torch.tensor(metres))
        told.append(model.heights_on_truth([make_tile(2)])[0].pred_heights)
    assert not torch.allclose(*told)
    model.dense_heads = heads
    with torch.no_grad():
        assert torch.isfinite(model([make_tile(2)])[0]["instances"].pred_heights).all()


def test_a_joint_network_trains_in_bfloat16(dense_cfg, make_tile):
    dense_cfg.MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR = dense_cfg.MODEL.TASK_ATTENTION = True
    dense_cfg.MODEL.TASK_WEIGHTING.NAME = "gradnorm"
    model = built(dense_cfg)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, [make_tile(2, side=64), make_tile(1, side=64) | {"labelled": False}])
    sum(losses.values()).backward()
    assert_all_gradients_finite(model)
