"""Two detectors and what becomes of their decisions, on boxes and numbers one can check by hand."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import check_fusion, check_tasks
from fusiondet.data import catalog
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.errors import InputError
from fusiondet.evaluation.dense import dense_counts, dense_metrics, tile_truth
from fusiondet.modeling.branch_dense_heads import BranchDenseHeads
from fusiondet.modeling.dense_heads import DenseMaps
from fusiondet.modeling.fusion import MODALITIES
from fusiondet.modeling.height_head import HEIGHT_FIELDS
from fusiondet.modeling.sensor_geometry import FACTS
from tests.support.tiny_city import BANDS, write_split

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

NAN = float("nan")


@pytest.fixture
def late_cfg(small_cfg):
    small_cfg.MODEL.META_ARCHITECTURE = "LateFusionRCNN"
    small_cfg.MODEL.BACKBONE.NAME = "build_two_pyramids_resnet_fpn_backbone"
    small_cfg.MODEL.FUSION.OPTICAL_CHANNELS = 3
    return small_cfg


def built(cfg, seed=0):
    torch.manual_seed(seed)
    return build_model(cfg)


@pytest.fixture
def model(late_cfg):
    return built(late_cfg)


# ---- The network ----


def train_losses(model, inputs):
    with EventStorage() as storage:
        losses = model.train()(inputs)
        return losses, storage


@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (0, 0)])
@pytest.mark.parametrize("hidden", ["", "sar", "optical"])
def test_every_parameter_of_both_branches_gets_a_gradient(model, make_input, counts, hidden):
    inputs = [make_input(n) for n in counts]
    for x in inputs:
        if hidden:
            x["image"][model.channels[hidden]] = NAN
    losses, storage = train_losses(model, inputs)
    names = {"loss_mask", "loss_height", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert losses.keys() == {f"{m}/{name}" for m in MODALITIES for name in names}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert {"optical/rpn/num_pos_anchors", "sar/rpn/num_pos_anchors"} <= storage.latest().keys()
    if hidden:
        assert losses[f"{hidden}/loss_height"].item() == losses[f"{hidden}/loss_mask"].item() == 0


@pytest.mark.parametrize("op", ["MMTM", "CrossAttention"])
def test_branches_that_tell_each_other_are_one_network(late_cfg, make_input, op):
    """The dual network of P3: what SAR shows changes what the optical branch decides, and everything is trained."""
    late_cfg.MODEL.FUSION.EXCHANGE.res4 = late_cfg.MODEL.FUSION.EXCHANGE.res5 = op
    model = built(late_cfg)
    for parameter in model.backbone.bottom_up.exchanges.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    losses, _ = train_losses(model, [make_input(2), make_input(0)])
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    x, y = make_input(2), make_input(2)
    y["image"][3] += 20
    model.eval()
    a, b = (model.branch_predictions([z])["optical"][0]["instances"].scores for z in (x, y))
    assert a.shape != b.shape or not torch.allclose(a, b)


def test_branches_without_exchange_are_independent(model, make_input):
    x, y = make_input(2), make_input(2)
    y["image"][3] += 20
    model.eval()
    a, b = (model.branch_predictions([z]) for z in (x, y))
    assert_same(a["optical"][0]["instances"], b["optical"][0]["instances"])
    a, b = a["sar"][0]["instances"].scores, b["sar"][0]["instances"].scores
    assert a.shape != b.shape or not torch.allclose(a, b)


def test_a_branch_is_told_the_angles_of_its_own_sensor(late_cfg, make_input):
    late_cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY = list(FACTS)
    model = built(late_cfg)
    geometry = {m: model.roi_heads[m].height_head.geometry for m in MODALITIES}
    optical = ["gsd", "sun_elevation", "sun_azimuth", "off_nadir", "view_azimuth"]
    assert geometry["optical"].facts == optical and geometry["optical"].marks == ["sun_shadow", "lean"]
    assert geometry["sar"].facts == ["gsd", "incidence", "look_azimuth"]
    losses, _ = train_losses(model, [make_input(2)])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    late_cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY = ["incidence", "look_azimuth"]
    assert built(late_cfg).roi_heads["optical"].height_head.geometry is None


def test_a_branch_is_trained_on_the_buildings_it_has_data_of(model, make_input):
    asked = {}
    for name in MODALITIES:
        generator = model.proposal_generator[name]

        def spy(module, args, name=name):
            asked[name] = [x.gt_boxes.tensor.tolist() for x in args[2]]

        generator.register_forward_pre_hook(spy)
    x = make_input(2)
    x["instances"].gt_boxes.tensor[:] = torch.tensor([[4.0, 4, 28, 28], [60.0, 60, 84, 84]])
    x["image"][3, :, :48] = NAN
    train_losses(model, [x])
    assert asked["sar"] == [[[60, 60, 84, 84]]] and len(asked["optical"][0]) == 2


def assert_same(a: Instances, b: Instances):
    assert len(a) == len(b) > 0
    torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)
    for name in ("scores", "pred_masks", *HEIGHT_FIELDS):
        torch.testing.assert_close(a.get(name).float(), b.get(name).float())


@pytest.mark.parametrize(("missing", "left"), [("sar", "optical"), ("optical", "sar")])
def test_without_one_modality_the_result_is_the_other_branch_alone(model, make_input, missing, left):
    model.eval().interval_width.fill_(1.7)
    x = make_input(3)
    x["image"][model.channels[missing]] = NAN
    by_branch = model.branch_predictions([x])
    assert by_branch.keys() == {"optical", "sar", "fused"}
    assert len(by_branch[missing][0]["instances"]) == 0
    assert_same(by_branch["fused"][0]["instances"], by_branch[left][0]["instances"])
    with torch.no_grad():
        assert_same(model([x])[0]["instances"], by_branch[left][0]["instances"])
        model.preprocessing.disabled = missing
        assert_same(model([make_input(3)])[0]["instances"], by_branch[left][0]["instances"])
    truth = model.heights_on_truth([make_input(3)])[0]
    model.preprocessing.disabled, given = "", make_input(3)
    given["image"][model.channels[missing]] = NAN
    torch.testing.assert_close(model.heights_on_truth([given])[0].pred_heights, truth.pred_heights)


def test_fused_predictions_are_those_of_inference_and_come_best_first(model, make_input):
    model.eval()
    inputs = [make_input(2), make_input(3, side=64)]
    with torch.no_grad():
        outputs = model(inputs)
    for a, b in zip(outputs, model.branch_predictions(inputs)["fused"]):
        a, b = a["instances"], b["instances"]
        assert_same(a, b)
        assert (a.scores[:-1] >= a.scores[1:]).all() and not a.has("sensor")
        low, median, high = (a.get(name) for name in HEIGHT_FIELDS)
        assert (low <= median).all() and (median <= high).all()
    assert outputs[1]["instances"].image_size == (64, 64)


def test_an_image_is_not_changed_by_a_larger_one_in_its_batch(model, make_input):
    model.eval()
    small, large = make_input(2, side=64), make_input(3, side=128)
    with torch.no_grad():
        alone = model([small])[0]["instances"]
        together = model([small, large])[0]["instances"]
    assert abs(len(alone) - len(together)) <= 2 and together.pred_masks.shape[1:] == (64, 64)


def test_raw_output_for_the_predictor_and_given_boxes(model, make_input):
    model.eval()
    x = make_input(2)
    with torch.no_grad():
        (raw,) = model.inference([x], do_postprocess=False)
    assert raw.pred_masks.shape[1:] == (1, 28, 28) and not raw.has("sensor")
    given = Instances((96, 96), pred_boxes=x["instances"].gt_boxes, pred_classes=x["instances"].gt_classes)
    with torch.no_grad():
        (result,) = model.inference([x], [given], do_postprocess=False)
    assert len(result.pred_heights) == 2 and result.pred_masks.shape == (2, 1, 28, 28)


def test_a_threshold_applies_to_merged_scores(late_cfg, make_input):
    late_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.3
    model = built(late_cfg).eval()
    for m in MODALITIES:
        assert model.roi_heads[m].box_predictor.test_score_thresh == 0.05
    with torch.no_grad():
        scores = model([make_input(3)])[0]["instances"].scores
    assert (scores > 0.3).all()
    assert all(
        (y[0]["instances"].scores > 0.3).all() for y in model.branch_predictions([make_input(3)]).values()
    )


def test_zero_detections(late_cfg, make_input):
    late_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1.0
    model = built(late_cfg).eval()
    with torch.no_grad():
        (output,) = model([make_input(2)])
    assert len(output["instances"]) == 0 == len(output["instances"].pred_heights)
    nothing = make_input(0)
    nothing["image"][:] = NAN
    assert len(model.branch_predictions([nothing])["fused"][0]["instances"]) == 0
    assert len(model.heights_on_truth([nothing])[0].pred_heights) == 0


def test_without_masks_or_without_heights(late_cfg, make_input):
    late_cfg.MODEL.MASK_ON = False
    model = built(late_cfg).eval()
    with torch.no_grad():
        instances = model([make_input(2)])[0]["instances"]
    assert not instances.has("pred_masks") and instances.has("pred_heights")
    late_cfg.MODEL.MASK_ON, late_cfg.MODEL.HEIGHT_ON = True, False
    model = built(late_cfg)
    assert "optical/loss_height" not in train_losses(model, [make_input(2)])[0]
    model.eval()
    with torch.no_grad():
        instances = model([make_input(2)])[0]["instances"]
    assert model.interval_width is None and not instances.has("pred_heights") and instances.has("pred_masks")
    assert not model.heights_on_truth([make_input(2)])[0].has("pred_heights")


def test_calibration_sets_one_width_for_all(model, make_input):
    from fusiondet.engine.hooks import calibrate_heights

    torch.manual_seed(3)
    batches = [[make_input(30, heights_m=(10 * torch.randn(30).mul(2).exp()).tolist())] for _ in range(2)]
    width = calibrate_heights(model, batches)
    assert width > 1 and model.interval_width.item() == pytest.approx(width)
    assert all(float(heads.height_head.interval_width) == 1 for heads in model.roi_heads.values())
    model.eval()
    inside = [
        (r.pred_height_p16 <= b[0]["instances"].gt_heights)
        & (b[0]["instances"].gt_heights <= r.pred_height_p84)
        for b in batches
        for r in model.heights_on_truth(b)
    ]
    assert torch.cat(inside).float().mean().item() == pytest.approx(0.68, abs=0.1)


def test_a_checkpoint_brings_everything_back_strictly(late_cfg, make_input, tmp_path):
    from fusiondet.engine.checkpoint import load_model

    one, other = built(late_cfg, 0).eval(), built(late_cfg, 1).eval()
    one.interval_width.fill_(2.5)
    load_model(other, one.state_dict(), "late.pth")
    with torch.no_grad():
        assert_same(one([make_input(2)])[0]["instances"], other([make_input(2)])[0]["instances"])
    assert other.interval_width.item() == 2.5
    late_cfg.MODEL.META_ARCHITECTURE, late_cfg.MODEL.BACKBONE.NAME = (
        "FusionRCNN",
        "build_early_fusion_resnet_fpn_backbone",
    )
    with pytest.raises(InputError, match="late.pth: does not fit"):
        load_model(built(late_cfg), one.state_dict(), "late.pth")


def test_another_backbone_or_other_heads_are_refused_by_name(late_cfg):
    late_cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(InputError, match="FusionROIHeads, found StandardROIHeads"):
        build_model(late_cfg)
    late_cfg.MODEL.ROI_HEADS.NAME = "FusionROIHeads"
    late_cfg.MODEL.BACKBONE.NAME = "build_early_fusion_resnet_fpn_backbone"
    with pytest.raises(InputError, match="needs MODEL.BACKBONE.NAME build_two_pyramids_resnet_fpn_backbone"):
        build_model(late_cfg)


# ---- Dense heads ----

DENSE = {"loss_dense_height", "loss_footprint", "loss_reconstruction"}


@pytest.fixture
def dense_cfg(late_cfg):
    late_cfg.MODEL.DENSE_HEADS.NAMES = ["Footprint", "DenseHeight", "Reconstruction"]
    late_cfg.MODEL.DENSE_HEADS.CONV_DIM = 8
    return late_cfg


def labelled(x):
    """With labels per pixel: buildings of 8 m."""
    x["footprint"] = x["instances"].gt_masks.tensor.any(0).float()
    x["building_height_m"] = x["footprint"] * 8
    return x


@pytest.mark.parametrize(("hidden", "weighting"), [("", "uncertainty"), ("sar", "gradnorm")])
def test_dense_heads_of_both_branches_are_trained(dense_cfg, make_input, hidden, weighting):
    dense_cfg.MODEL.TASK_ATTENTION, dense_cfg.MODEL.TASK_WEIGHTING.NAME = True, weighting
    dense_cfg.MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR = True
    model = built(dense_cfg)
    inputs = [labelled(make_input(2)), make_input(1) | {"labelled": False}]
    for x in inputs:
        if hidden:
            x["image"][model.channels[hidden]] = NAN
    losses, _ = train_losses(model, inputs)
    assert losses.keys() >= {
        f"{m}/{name}" for m in MODALITIES for name in DENSE | {"loss_mask", "loss_height"}
    }
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if hidden:
        assert all(losses[f"{hidden}/{name}"].item() == 0 for name in DENSE)


def test_a_branch_has_its_own_bands_and_is_asked_where_they_have_data(dense_cfg, make_input):
    model, asked = built(dense_cfg), {}
    for name, heads in model.dense_heads.items():

        def spy(maps, targets, name=name, losses=heads.losses):
            asked[name] = targets
            return losses(maps, targets)

        heads.losses = spy
    x = labelled(make_input(2))
    x["image"][3, :, :48] = NAN
    train_losses(model, [x])
    assert [asked[m].image.shape[1] for m in MODALITIES] == [3, 1]
    known = {m: ~asked[m].footprint[0, 0].isnan() for m in MODALITIES}
    assert known["optical"].all() and known["sar"][:, 48:].all() and not known["sar"][:, :48].any()
    assert torch.equal(~asked["sar"].height_m[0, 0].isnan(), known["sar"])
    assert torch.equal(~asked["sar"].image[0, 0].isnan(), known["sar"])


def test_a_branch_whose_modality_is_dropped_is_asked_nothing(dense_cfg, make_input):
    dense_cfg.MODEL.FUSION.MODALITY_DROPOUT.sar = 1.0
    losses, _ = train_losses(built(dense_cfg), [labelled(make_input(2))])
    assert all(losses[f"sar/{name}"].item() == 0 < losses[f"optical/{name}"].item() for name in DENSE)


class Says(torch.nn.Module):
    def __init__(self, height_m, probability):
        super().__init__()
        self.height_m, self.logit = height_m, math.log(probability / (1 - probability))

    def forward(self, features, image):
        flat = image.new_ones(len(image), 1, *image.shape[-2:])
        return DenseMaps(height_m=flat * self.height_m, footprint=flat * self.logit)


@pytest.mark.parametrize("architecture", ["LateFusionRCNN", "LateFusionDense"])
def test_maps_are_averaged_where_both_have_data_and_one_branchs_where_it_alone_has(
    dense_cfg, make_input, architecture
):
    maps_alone(dense_cfg, architecture)
    model = built(dense_cfg).eval()
    model.dense_heads = BranchDenseHeads({"optical": Says(10.0, 0.9), "sar": Says(20.0, 0.3)}, model.channels)
    x = make_input(1)
    x["image"][3, :, :48] = NAN
    x["image"][:3, 48:] = NAN
    x["image"][:, :4] = NAN
    with torch.no_grad():
        (output,) = model([x])
    height_m, probability = output["height_map_m"], output["footprint_map"]
    expected_m = torch.tensor([[15.0, 15.0], [10.0, 15.0], [15.0, 20.0]])  # no data, or both: 15
    for rows, (left_m, right_m) in zip(((0, 4), (4, 48), (48, 96)), expected_m):
        part = height_m[slice(*rows)]
        assert (part[:, :48] == left_m).all() and (part[:, 48:] == right_m).all()
    assert probability[10, 10].item() == pytest.approx(0.9) and probability[10, 90].item() == pytest.approx(
        0.6
    )
    assert probability[90, 90].item() == pytest.approx(0.3)
    assert ("instances" in output) == (architecture == "LateFusionRCNN")


def test_a_dense_prior_is_that_of_the_branch(dense_cfg, make_input):
    dense_cfg.MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR = True
    model, heard = built(dense_cfg).eval(), {}
    for name in MODALITIES:
        model.roi_heads[name].height_head.register_forward_pre_hook(
            lambda module, args, name=name: heard.update({name: args[0]["dense_height"]})
        )
    said = {}
    for name in MODALITIES:
        model.dense_heads[name].register_forward_hook(
            lambda module, args, maps, name=name: said.update({name: maps.height_m})
        )
    (result,) = model.heights_on_truth([make_input(2)])
    assert all(torch.equal(heard[m], said[m]) for m in MODALITIES) and len(result.pred_heights) == 2
    assert all(len(y[0]["instances"]) for y in model.branch_predictions([make_input(3)]).values())


# ---- Maps alone ----


def maps_alone(cfg, architecture="LateFusionDense"):
    cfg.MODEL.META_ARCHITECTURE = architecture
    if architecture == "LateFusionDense":
        cfg.MODEL.MASK_ON = cfg.MODEL.HEIGHT_ON = False
        cfg.TEST.BEST_METRIC = "dense/delta1_building"
    check_fusion(cfg)
    check_tasks(cfg)
    return cfg


@pytest.mark.parametrize("exchange", ["", "MMTM"])
@pytest.mark.parametrize("hidden", [None, "sar"])
def test_two_networks_for_maps_are_trained(dense_cfg, make_input, exchange, hidden):
    dense_cfg.MODEL.FUSION.EXCHANGE.res4 = exchange
    model = built(maps_alone(dense_cfg))
    x = labelled(make_input(2))
    if hidden:
        x["image"][model.channels[hidden]] = NAN
    losses, _ = train_losses(model, [x, labelled(make_input(1))])
    assert losses.keys() == {f"{m}/{name}" for m in MODALITIES for name in DENSE}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert not hasattr(model, "roi_heads") and model.interval_width is None


def test_each_branch_says_what_it_sees_and_both_the_mean(dense_cfg, make_input):
    model = built(maps_alone(dense_cfg)).eval()
    x = make_input(1)
    with torch.no_grad():
        (output,), branches = model([x]), model.branch_predictions([x])
    maps = {m: branches[m][0] for m in branches}
    assert output.keys() == maps["sar"].keys() == {"height_map_m", "footprint_map"}
    for name in output:
        assert torch.equal(maps["fused"][name], output[name])
        torch.testing.assert_close(output[name], (maps["optical"][name] + maps["sar"][name]) / 2)
    x["image"][3] += 30
    again = model.branch_predictions([x])
    assert torch.equal(again["optical"][0]["height_map_m"], maps["optical"]["height_map_m"])
    assert not torch.equal(again["sar"][0]["height_map_m"], maps["sar"]["height_map_m"])


def test_a_branch_is_the_network_of_its_modality_alone(dense_cfg, make_input):
    """Late fusion as averaging of two models: each could stand for itself."""
    late = built(maps_alone(dense_cfg)).eval()
    alone = dense_cfg.clone()
    alone.MODEL.META_ARCHITECTURE, alone.MODEL.FUSION.OPTICAL_CHANNELS = "FusionDense", 0
    alone.MODEL.BACKBONE.NAME = "build_early_fusion_resnet_fpn_backbone"
    alone.MODEL.PIXEL_MEAN, alone.MODEL.PIXEL_STD = [-10.0], [5.0]
    sar = built(alone).eval()
    own = {name.replace("bottom_up.sar", "bottom_up.resnet").replace(".sar.", ".", 1): value
           for name, value in late.state_dict().items() if ".sar" in name}  # fmt: skip
    missing, unexpected = sar.load_state_dict(own, strict=False)
    assert not unexpected and {*missing} <= {"pixel_mean", "pixel_std"}, (missing, unexpected)
    x = make_input(1)
    expected = late.branch_predictions([x])["sar"][0]
    with torch.no_grad():
        (output,) = sar([x | {"image": x["image"][3:]}])
    for name in expected:
        torch.testing.assert_close(output[name], expected[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.BACKBONE.NAME": "build_early_fusion_resnet_fpn_backbone"}, "LateFusionDense .* go together"),
        ({"MODEL.META_ARCHITECTURE": "FusionDense"}, "FusionDense with .*LateFusionRCNN and .* go together"),
        ({"MODEL.DENSE_HEADS.NAMES": []}, "LateFusionDense has dense heads alone, but .* is empty"),
        ({"MODEL.MASK_ON": True}, "LateFusionDense finds no instances"),
        ({"TEST.BEST_METRIC": "segm/AP50"}, "LateFusionDense is not scored by"),
    ],
)
def test_configs_of_two_networks_for_maps(dense_cfg, changes, message):
    maps_alone(dense_cfg)
    for key, value in changes.items():
        dense_cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=message):
        check_fusion(dense_cfg)
        check_tasks(dense_cfg)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["early", "late"])
def test_heights_of_four_tiles_are_learned_by_heart(dense_cfg, tmp_path, capsys, fusion):
    maps_alone(dense_cfg)
    model_cfg = dense_cfg.MODEL
    model_cfg.DENSE_HEADS.NAMES, model_cfg.DENSE_HEADS.CONV_DIM = ["DenseHeight"], 32
    if fusion == "early":
        model_cfg.META_ARCHITECTURE = "FusionDense"
        model_cfg.BACKBONE.NAME = "build_early_fusion_resnet_fpn_backbone"
    dataset = catalog.load_split(str(write_split(tmp_path, counts=(3, 2, 1, 4))))
    bands = {"optical_bands": BANDS.optical, "sar_bands": BANDS.sar}
    mapper = FusionDatasetMapper(True, **bands, height_labels="instances", footprint_labels=True)
    inputs = [mapper(record) for record in catalog.records(dataset)]
    model = built(dense_cfg).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(200):
        optimizer.zero_grad()
        sum(train_losses(model, inputs)[0].values()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        outputs = model(inputs)
    truths = [tile_truth(dataset, tile, "instances") for tile in dataset.tiles]
    scores = dense_metrics(
        [
            dense_counts(output["height_map_m"].numpy(), truth_m, None, footprint)
            for output, (truth_m, footprint) in zip(outputs, truths)
        ]
    )
    with capsys.disabled():
        print(f"\nheights, {fusion}: delta1 {scores['dense/delta1_building']:.4f} on buildings of four tiles")
    assert scores["dense/delta1_building"] >= 0.9
