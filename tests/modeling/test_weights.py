"""Pretrained weights: the same response as the network they come from, whatever the file's conventions."""

import pickle
import re

import fusiondet.compat  # noqa: F401
from fusiondet.errors import InputError
from fusiondet.modeling import weights
from fusiondet.modeling.weights import load_pretrained
from tests.support.detectors import RGB, RGB_MEAN, RGB_STD, caffe2_blobs, config

import numpy as np
import pytest
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import build_resnet_backbone


def detectron2_config(**keys):
    """The plain 3-channel Mask R-CNN, Detectron2's defaults: BGR 0-255, deviation 1, 80 classes."""
    cfg = config(channels=3, **keys)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    cfg.MODEL.PIXEL_MEAN = RGB_MEAN[::-1]
    cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]
    return cfg


def randomise_norms(module):
    """Statistics and affine parameters as after training, so that a test sees whether they arrived."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if (
                tensor.dim() == 1
                and tensor.is_floating_point()
                and ("norm" in name or "bn" in name or "downsample.1" in name)
            ):
                tensor.copy_(0.8 + 0.4 * torch.rand(tensor.shape, generator=generator))
    return module.eval()


def inputs(cfg, bands=("HH",), **changes):
    """Arguments of load_pretrained for a model of `cfg`."""
    return {
        "optical_bands": RGB,
        "sar_bands": bands,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        **changes,
    }


def silent_image(cfg, size=64):
    """A (C, H, W) image: random 8-bit red, green, blue; every other band at its mean everywhere."""
    image = torch.randint(0, 256, (3, size, size), generator=torch.Generator().manual_seed(2)).float()
    extra = [torch.full((1, size, size), mean) for mean in cfg.MODEL.PIXEL_MEAN[3:]]
    return torch.cat([image, *extra])


def bottom_up_features(model, image):
    with torch.no_grad():
        return model.backbone.bottom_up(model.preprocess_image([{"image": image}]).tensor)


def save_detectron2_pickle(path, state, author="Detectron2 Model Zoo"):
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": author}))
    return path


def close(ours, theirs, tolerance=1e-4):
    return torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.fixture(scope="module")
def torchvision_r18(tmp_path_factory):
    network = randomise_norms(torchvision.models.resnet18())
    path = tmp_path_factory.mktemp("torchvision") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return network, path


def torchvision_features(network, image_rgb):
    """res2 to res5 by torchvision itself, from a (3, H, W) 8-bit image."""
    scale = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(scale(image_rgb / 255)[None]))))
        out = []
        for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
            out.append(x := layer(x))
    return dict(zip(("res2", "res3", "res4", "res5"), out))


# ---- The response --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_torchvision_response_is_torchvisions(torchvision_r18, norm):
    network, path = torchvision_r18
    cfg = config(channels=5, depth=18, norm=norm, stride_in_1x1=False)
    model = build_model(cfg).eval()
    load_pretrained(model, path, **inputs(cfg, bands=("HH", "HV")))
    image = silent_image(cfg)
    ours, theirs = bottom_up_features(model, image), torchvision_features(network, image[:3])
    assert all(close(ours[level], theirs[level]) for level in theirs)


def test_torchvision_r50_response_is_torchvisions(tmp_path):
    network = randomise_norms(torchvision.models.resnet50())
    torch.save(network.state_dict(), tmp_path / "resnet50.pth")
    cfg = config(stride_in_1x1=False)
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 64, 64
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
    model = build_model(cfg).eval()
    load_pretrained(model, tmp_path / "resnet50.pth", **inputs(cfg))
    image = silent_image(cfg)
    ours, theirs = bottom_up_features(model, image), torchvision_features(network, image[:3])
    assert all(close(ours[level], theirs[level]) for level in theirs)


def detectron2_source(**keys):
    source = detectron2_config(**keys)
    torch.manual_seed(3)
    return source, randomise_norms(build_model(source))


def test_detectron2_response_is_detectron2s(tmp_path):
    _, source = detectron2_source()
    path = save_detectron2_pickle(tmp_path / "model_final.pkl", source.state_dict())
    cfg = config()
    model = build_model(cfg).eval()
    load_pretrained(model, path, **inputs(cfg))
    image = silent_image(cfg)
    ours, theirs = bottom_up_features(model, image), bottom_up_features(source, image[[2, 1, 0]])
    assert all(close(ours[level], theirs[level]) for level in theirs)


def test_caffe2_response_is_detectron2s(tmp_path):
    """The file that Detectron2's own configs name, read by Detectron2 and by us."""
    from detectron2.checkpoint import DetectionCheckpointer

    cfg = detectron2_config()
    blobs = caffe2_blobs(randomise_norms(build_resnet_backbone(cfg, ShapeSpec(channels=3))))
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    source = build_model(cfg).eval()
    DetectionCheckpointer(source).load(str(path))
    cfg = config()
    model = build_model(cfg).eval()
    report = load_pretrained(model, path, **inputs(cfg))
    image = silent_image(cfg)
    ours, theirs = bottom_up_features(model, image), bottom_up_features(source, image[[2, 1, 0]])
    assert report.layout == "caffe2" and not report.unused
    assert all(close(ours[level], theirs[level]) for level in theirs)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_other_pixel_statistics_change_nothing_inside_the_image(torchvision_r18, norm):
    network, path = torchvision_r18
    cfg = config(depth=18, norm=norm, stride_in_1x1=False)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [80.0, 90.0, 60.0, -12.0], [40.0, 30.0, 20.0, 6.0]
    model = build_model(cfg).eval()
    load_pretrained(model, path, **inputs(cfg))
    image = silent_image(cfg)
    scale = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        ours = model.backbone.bottom_up.resnet.stem.conv1(model.preprocess_image([{"image": image}]).tensor)
        theirs = network.bn1(network.conv1(scale(image[:3] / 255)[None]))
    # A 7x7 window with stride 2 reaches over the border for the first two outputs, and the last.
    assert close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2])
    assert not close(ours, theirs)  # zero padding stands for another grey value there, as documented


def test_band_order_follows_names(torchvision_r18):
    _, path = torchvision_r18
    stems = {}
    for bands in (("red", "green", "blue"), ("blue", "red", "green")):
        cfg = config(channels=3, depth=18, stride_in_1x1=False)
        order = [RGB.index(band) for band in bands]
        cfg.MODEL.PIXEL_MEAN = [RGB_MEAN[i] for i in order]
        cfg.MODEL.PIXEL_STD = [RGB_STD[i] for i in order]
        model = build_model(cfg)
        load_pretrained(model, path, **inputs(cfg, bands=(), optical_bands=bands))
        stems[bands] = model.backbone.bottom_up.resnet.stem.conv1.weight
    first, second = stems.values()
    assert torch.equal(first[:, [2, 0, 1]], second)


# ---- Inflation -----------------------------------------------------------------------------------------------

SOURCE = weights.LAYOUTS["torchvision"]


def inflated(bands, mean, std, inflation):
    weight = torch.randn(6, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    ours = weights.Layout(bands, mean, std, None)
    return weight, *weights.inflate_stem(weight, SOURCE, ours, inflation)[:2]


def test_zero_inflation_ignores_the_extra_bands():
    weight, ours, constant = inflated((*RGB, "HH"), (*RGB_MEAN, -12.0), (*RGB_STD, 6.0), "zero")
    assert torch.equal(ours[:, :3], weight) and not ours[:, 3].any() and not constant.any()


def test_mean_rescaled_preserves_the_response_to_grey():
    bands = (*RGB, "nir", "HH", "HV")
    weight, ours, _ = inflated(
        bands, (*RGB_MEAN, 90.0, -12.0, -20.0), (*RGB_STD, 50.0, 6.0, 5.0), "mean_rescaled"
    )
    assert torch.allclose(ours.sum(1), weight.sum(1), atol=1e-5)
    assert ours[:, 3:].abs().sum(dim=(2, 3)).min() > 0


@pytest.mark.parametrize("inflation", weights.INFLATIONS)
def test_sar_only_starts_from_the_mean_filter(inflation):
    weight, ours, constant = inflated(("HH", "HV"), (-12.0, -20.0), (6.0, 5.0), inflation)
    assert torch.allclose(ours.sum(1), weight.sum(1), atol=1e-5)
    assert torch.equal(ours[:, 0], ours[:, 1]) and not constant.any()


def test_sixteen_bit_counts_are_matched_by_their_statistics():
    weight, ours, constant = inflated(RGB, (400.0, 500.0, 600.0), (100.0, 120.0, 90.0), "zero")
    assert torch.allclose(ours, weight) and not constant.any()


def test_missing_colour_is_reported():
    ours = weights.Layout(("red", "green", "nir"), (120.0, 115.0, 90.0), (58.0, 57.0, 50.0), None)
    line = weights.inflate_stem(torch.zeros(2, 3, 7, 7), SOURCE, ours, "zero")[2]
    assert line == "red, green from the file; nir zero; blue dropped"


def test_inflated_stem_is_never_frozen(torchvision_r18):
    cfg = config(depth=18, stride_in_1x1=False)
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    with pytest.raises(InputError, match="frozen. Set MODEL.BACKBONE.FREEZE_AT 0"):
        load_pretrained(build_model(cfg), torchvision_r18[1], **inputs(cfg))


def test_rgb_stem_may_be_frozen(torchvision_r18):
    cfg = config(channels=3, depth=18, stride_in_1x1=False)
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    report = load_pretrained(build_model(cfg), torchvision_r18[1], **inputs(cfg, bands=()))
    assert list(report.stems.values()) == ["red, green, blue from the file"]


# ---- The rest of the model -----------------------------------------------------------------------------------


def test_full_model_loads_all_but_the_class_dependent_tensors(tmp_path):
    _, source = detectron2_source()
    path = save_detectron2_pickle(tmp_path / "model_final.pkl", source.state_dict())
    cfg = config()
    model = build_model(cfg)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_pretrained(model, path, **inputs(cfg))
    after, theirs = model.state_dict(), source.state_dict()
    assert sorted(report.reinitialised) == sorted(weights.CLASS_DEPENDENT)
    assert all(torch.equal(after[name], before[name]) for name in report.reinitialised)
    assert (
        all(name.startswith("roi_heads.height_head.") for name in report.left_at_init) and report.left_at_init
    )
    for name in (
        "backbone.fpn_lateral3.weight",
        "proposal_generator.rpn_head.conv.weight",
        "roi_heads.box_head.fc1.bias",
    ):
        assert name in report.loaded and torch.equal(after[name], theirs[name])
    assert not report.unused
    table = str(report)
    for word in ("detectron2 layout", "HH zero", "reinitialised", "left at init", "roi_heads.height_head"):
        assert word in table


def test_every_parameter_is_in_exactly_one_part_of_the_report(tmp_path):
    _, source = detectron2_source()
    path = save_detectron2_pickle(tmp_path / "model_final.pkl", source.state_dict())
    cfg = config()
    model = build_model(cfg)
    report = load_pretrained(model, path, **inputs(cfg))
    named = report.loaded + report.reinitialised + report.left_at_init
    assert sorted(named) == sorted(model.state_dict())


def test_converted_torchvision_pickle_equals_torchvision(torchvision_r18, tmp_path):
    network, path = torchvision_r18
    renamed = {}  # what Detectron2's convert-torchvision-to-d2.py writes
    for name, tensor in network.state_dict().items():
        name = name if "layer" in name else "stem." + name
        for t in (1, 2, 3, 4):
            name = name.replace(f"layer{t}", f"res{t + 1}").replace(f"bn{t}", f"conv{t}.norm")
        renamed[name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = tensor
    converted = save_detectron2_pickle(tmp_path / "r18.pkl", renamed, author="torchvision")
    states = []
    for file in (path, converted):
        torch.manual_seed(0)
        cfg = config(depth=18, stride_in_1x1=False)
        model = build_model(cfg)
        load_pretrained(model, file, **inputs(cfg))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_checkpoint_of_ours_gives_rgb_to_rgb_and_sar(tmp_path):
    cfg = config(channels=3, depth=18)
    cfg.INPUT.OPTICAL_BANDS = list(RGB)
    torch.manual_seed(5)
    source = randomise_norms(build_model(cfg))
    torch.save({"model": source.state_dict(), "config_yaml": cfg.dump()}, tmp_path / "model_final.pth")
    cfg = config(depth=18)
    model = build_model(cfg).eval()
    report = load_pretrained(model, tmp_path / "model_final.pth", **inputs(cfg))
    image = silent_image(cfg)
    ours, theirs = bottom_up_features(model, image), bottom_up_features(source, image[:3])
    assert report.layout == "fusiondet" and not report.left_at_init and not report.reinitialised
    assert all(close(ours[level], theirs[level]) for level in theirs)


def test_normalisation_inside_an_old_checkpoint_is_used(tmp_path):
    cfg, source = detectron2_source(depth=18)
    source.pixel_mean, source.pixel_std = (
        torch.tensor(RGB_MEAN).view(3, 1, 1),
        torch.tensor(RGB_STD).view(3, 1, 1),
    )
    state = {**source.state_dict(), "pixel_mean": source.pixel_mean, "pixel_std": source.pixel_std}
    path = save_detectron2_pickle(tmp_path / "old.pkl", state)
    cfg = config(channels=3, depth=18)
    model = build_model(cfg).eval()
    load_pretrained(model, path, **inputs(cfg, bands=()))
    image = silent_image(cfg)
    ours, theirs = bottom_up_features(model, image), bottom_up_features(source, image)
    assert all(close(ours[level], theirs[level]) for level in theirs)


def test_a_bare_resnet_is_a_model_too(torchvision_r18):
    resnet = build_resnet_backbone(config(channels=3, depth=18), ShapeSpec(channels=3))
    report = load_pretrained(resnet, torchvision_r18[1], **inputs(config(channels=3), bands=()))
    assert torch.allclose(resnet.stem.conv1.weight, torchvision_r18[0].conv1.weight, atol=1e-6)
    assert not report.left_at_init and not report.unused


def test_a_model_without_a_resnet_is_refused(torchvision_r18):
    with pytest.raises(InputError, match="need a ResNet or .* in the model; Linear has none"):
        load_pretrained(torch.nn.Linear(1, 1), torchvision_r18[1], **inputs(config()))


def test_several_streams_take_their_own_bands(torchvision_r18):
    cfg = config(depth=18)

    class TwoStreams(torch.nn.Module):
        stream_channels = {"optical": slice(0, 3), "sar": slice(3, 4)}

        def __init__(self):
            super().__init__()
            self.optical = build_resnet_backbone(cfg, ShapeSpec(channels=3))
            self.sar = build_resnet_backbone(cfg, ShapeSpec(channels=1))

    model = torch.nn.ModuleDict({"backbone": torch.nn.ModuleDict({"bottom_up": TwoStreams()})})
    load_pretrained(model, torchvision_r18[1], **inputs(cfg))
    streams = model["backbone"]["bottom_up"]
    theirs = torchvision_r18[0].conv1.weight
    assert torch.allclose(streams.optical.stem.conv1.weight, theirs, atol=1e-6)
    assert torch.allclose(streams.sar.stem.conv1.weight, theirs.sum(1, keepdim=True), atol=1e-5)
    assert torch.equal(streams.optical.res4[0].conv1.weight, streams.sar.res4[0].conv1.weight)


# ---- Two streams ---------------------------------------------------------------------------------------------

STAGES = [f"res{i}" for i in (2, 3, 4, 5)]


def two_streams(kind="intermediate_fusion", channels=4, **keys):
    """A config of two streams, and its network with weights that no other one has."""
    joined = {} if kind == "two_pyramids" else {"MODEL.FUSION.JOIN": "ConcatJoin"}
    keys = {"MODEL.FUSION.EXCHANGE.res3": "MMTM", **joined, **keys}
    cfg = config(channels=channels, norm="BN", stride_in_1x1=False)
    cfg.MODEL.BACKBONE.NAME = f"build_{kind}_resnet_fpn_backbone"
    cfg.MODEL.FUSION.OPTICAL_CHANNELS = 3
    cfg.merge_from_list([word for item in keys.items() for word in item])
    cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS = list(RGB), ["HH", "HV"][: channels - 3]
    torch.manual_seed(6)
    return cfg, randomise_norms(build_model(cfg))


def saved(cfg, model, path):
    torch.save({"model": model.state_dict(), "config_yaml": cfg.dump()}, path)
    return path


def backbone_features(model, image):
    with torch.no_grad():
        return model.backbone(model.preprocess_image([{"image": image}]).tensor)


@pytest.mark.parametrize("kind", ["intermediate_fusion", "late_fusion"])
def test_one_resnet_serves_both_streams(kind, tmp_path):
    source = randomise_norms(torchvision.models.resnet50(width_per_group=64))
    torch.save(source.state_dict(), tmp_path / "resnet50.pth")
    cfg = config(norm="BN", stride_in_1x1=False)
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64, 256
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.FUSION.OPTICAL_CHANNELS = 64, 3
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FUSION.EXCHANGE.res4 = f"build_{kind}_resnet_fpn_backbone", "MMTM"
    cfg.MODEL.FUSION.JOIN = "ConcatJoin"
    model = build_model(cfg).eval()
    report = load_pretrained(model, tmp_path / "resnet50.pth", **inputs(cfg))
    streams = model.backbone.bottom_up
    assert torch.allclose(streams.optical.stem.conv1.weight, source.conv1.weight, atol=1e-6)
    assert torch.allclose(streams.sar.stem.conv1.weight, source.conv1.weight.sum(1, keepdim=True), atol=1e-5)
    for stream in (streams.optical, streams.sar):
        assert torch.equal(stream.res4[2].conv2.weight, source.layer3[2].conv2.weight)
    started = [name for name in report.left_at_init if name.startswith("backbone.bottom_up.")]
    assert started and not any(name.split(".")[2] in ("optical", "sar") for name in started)
    assert not report.unused
    table = str(report)
    for row in (
        r"stem +backbone.bottom_up.optical.stem.conv1.weight +red, green, blue from the file",
        r"stem +backbone.bottom_up.sar.stem.conv1.weight +HH as the mean filter",
        r"loaded +backbone.bottom_up.sar.res5 ",
        r"left at init +backbone.bottom_up.exchanges.res4 +6 tensors",
        r"left at init +backbone\..*joins",
    ):
        assert re.search(row, table), table


def test_a_whole_detector_serves_both_pyramids_and_both_branches(tmp_path):
    _, source = detectron2_source()
    path = save_detectron2_pickle(tmp_path / "model_final.pkl", source.state_dict())
    cfg, model = two_streams(
        "two_pyramids",
        **{
            "MODEL.RESNETS.NORM": "FrozenBN",
            "MODEL.RESNETS.STRIDE_IN_1X1": True,
            "MODEL.META_ARCHITECTURE": "LateFusionRCNN",
        },
    )
    report = load_pretrained(model, path, **inputs(cfg))
    own, theirs = model.state_dict(), source.state_dict()
    for modality in ("optical", "sar"):
        for before, after in (("backbone", "fpn_output3.weight"), ("roi_heads", "box_head.fc1.weight")):
            assert torch.equal(own[f"{before}.{modality}.{after}"], theirs[f"{before}.{after}"])
    assert len(report.reinitialised) == 2 * len(weights.CLASS_DEPENDENT) and not report.unused
    # What no detector of Detectron2's has.
    ours = ("height_head", "exchanges", "fused_interval_width")
    assert all(any(word in name for word in ours) for name in report.left_at_init)


@pytest.mark.parametrize("kind", ["intermediate_fusion", "late_fusion", "two_pyramids"])
def test_two_streams_give_two_streams_with_one_band_more(kind, tmp_path):
    architecture = {"MODEL.META_ARCHITECTURE": "LateFusionRCNN"} if kind == "two_pyramids" else {}
    source_cfg, source = two_streams(kind, **architecture)
    path = saved(source_cfg, source, tmp_path / "model_final.pth")
    cfg, model = two_streams(kind, channels=5, **architecture)
    for parameter in model.parameters():
        parameter.data.normal_()
    report = load_pretrained(model.eval(), path, **inputs(cfg, bands=("HV", "HH")))
    image = torch.rand(5, 64, 64) * 100
    image[3] = -12.0  # the new band at its mean
    ours, theirs = backbone_features(model, image), backbone_features(source, image[[0, 1, 2, 4]])
    if kind == "two_pyramids":
        ours, theirs = ({(m, p): f for m in x for p, f in x[m].items()} for x in (ours, theirs))
    assert all(close(ours[level], theirs[level]) for level in theirs)
    assert not (report.left_at_init or report.unused or report.reinitialised)
    assert "HH from the file; HV zero" in report.stems["backbone.bottom_up.sar.stem.conv1.weight"]


def test_early_fusion_gives_each_stream_its_bands(tmp_path):
    cfg = config(norm="BN", stride_in_1x1=False)
    cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS = list(RGB), ["HH"]
    source = randomise_norms(build_model(cfg))
    path = saved(cfg, source, tmp_path / "model_final.pth")
    cfg, model = two_streams("late_fusion", **{"MODEL.FUSION.MODALITY_DROPOUT.sar": 0.1})
    report = load_pretrained(model, path, **inputs(cfg))
    streams, stem = model.backbone.bottom_up, source.backbone.bottom_up.resnet.stem.conv1.weight
    assert torch.equal(streams.optical.stem.conv1.weight, stem[:, :3])
    assert torch.equal(streams.sar.stem.conv1.weight, stem[:, 3:])
    for pyramid in (model.backbone.optical, model.backbone.sar):
        assert torch.equal(pyramid.fpn_lateral4.weight, source.backbone.fpn_lateral4.weight)
    assert "backbone.bottom_up.stand_ins.sar.value" in report.left_at_init and not report.unused


def test_shared_stages_go_to_both_streams_and_the_optical_ones_are_shared(tmp_path):
    share = {"MODEL.FUSION.SHARE_WEIGHTS": True}
    cfg, shared = two_streams(**share)
    path = saved(cfg, shared, tmp_path / "shared.pth")
    cfg, apart = two_streams()
    report = load_pretrained(apart, path, **inputs(cfg))
    image = torch.rand(4, 64, 64) * 100
    ours, theirs = backbone_features(apart, image), backbone_features(shared, image)
    assert all(close(ours[level], theirs[level]) for level in theirs) and not report.left_at_init

    cfg, apart = two_streams()
    path = saved(cfg, apart, tmp_path / "apart.pth")
    cfg, shared = two_streams(**share)
    report = load_pretrained(shared, path, **inputs(cfg))
    own, theirs = shared.backbone.bottom_up, apart.backbone.bottom_up
    assert torch.equal(own.optical.res3[0].conv2.weight, theirs.optical.res3[0].conv2.weight)
    assert torch.equal(own.sar.stem.conv1.weight, theirs.sar.stem.conv1.weight)
    assert report.unused and all(name.startswith("backbone.bottom_up.sar.res") for name in report.unused)


def test_stand_ins_of_other_bands_start_afresh(tmp_path):
    learned = {"MODEL.FUSION.MODALITY_DROPOUT.sar": 0.1, "MODEL.FUSION.OPTICAL_CHANNELS": 3}
    cfg = config(channels=4, depth=18, **learned)
    cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS = list(RGB), ["HH"]
    source = build_model(cfg)
    source.backbone.bottom_up.stand_in.value.data.fill_(3.0)
    path = saved(cfg, source, tmp_path / "model_final.pth")
    for channels, value in ((4, 3.0), (5, 0.0)):
        cfg = config(channels=channels, depth=18, **learned)
        model = build_model(cfg)
        report = load_pretrained(model, path, **inputs(cfg, bands=("HH", "HV")[: channels - 3]))
        assert model.backbone.bottom_up.stand_in.value.tolist() == [value] * channels
        assert report.reinitialised == (["backbone.bottom_up.stand_in.value"] if channels == 5 else [])


# ---- Bad input -----------------------------------------------------------------------------------------------


def refused(cfg, path, match, **changes):
    """The file is refused with that message, and the model stays as it was."""
    model = build_model(cfg)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=match) as error:
        load_pretrained(model, path, **inputs(cfg, **changes))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return str(error.value)


def test_weights_of_other_heads_start_a_training_and_the_rest_starts_afresh(tmp_path):
    cfg = config(norm="BN", stride_in_1x1=False)
    cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS = list(RGB), ["HH"]
    detector = randomise_norms(build_model(cfg))
    joint = cfg.clone()
    joint.MODEL.DENSE_HEADS.NAMES, joint.MODEL.DENSE_HEADS.CONV_DIM = ["Footprint", "DenseHeight"], 8
    joint.MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR, joint.MODEL.TASK_WEIGHTING.NAME = True, "uncertainty"
    model = build_model(joint)
    report = load_pretrained(model, saved(cfg, detector, tmp_path / "model_final.pth"), **inputs(cfg))
    own, theirs = model.state_dict(), detector.state_dict()
    shown = ["convs.0.weight", "fcs.0.weight"]
    assert report.reinitialised == [f"roi_heads.height_head.{name}" for name in shown]
    assert all(torch.equal(own[name], theirs[name]) for name in report.loaded)
    assert {name.split(".")[0] for name in report.left_at_init} == {"dense_heads", "task_weighting"}
    assert not report.unused and re.search(r"left at init +dense_heads.decoders.footprint", str(report))

    model.task_weighting.task_log_scales.data.fill_(3.0)
    path = saved(joint, model, tmp_path / "joint.pth")
    joint.MODEL.DENSE_HEADS.NAMES = ["Reconstruction", "DenseHeight"]
    other = build_model(joint)
    report = load_pretrained(other, path, **inputs(joint))
    assert torch.equal(
        other.dense_heads.heads.dense_height.predictor.weight,
        model.dense_heads.heads.dense_height.predictor.weight,
    )
    assert (
        other.task_weighting.task_log_scales == 0
    ).all() and "task_weighting.task_log_scales" in report.unused
    assert all("footprint" in name or "task_weighting" in name for name in report.unused)
    assert all("reconstruction" in name or "task_weighting" in name for name in report.left_at_init)


def test_what_looks_at_or_paints_other_bands_starts_afresh(tmp_path):
    cfg = config(norm="BN", stride_in_1x1=False)
    cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS = list(RGB), ["HH"]
    cfg.MODEL.DENSE_HEADS.NAMES, cfg.MODEL.DENSE_HEADS.CONV_DIM = ["DenseHeight", "Reconstruction"], 8
    path = saved(cfg, randomise_norms(build_model(cfg)), tmp_path / "model_final.pth")
    more = config(channels=5, norm="BN", stride_in_1x1=False)
    more.INPUT.OPTICAL_BANDS, more.INPUT.SAR_BANDS = list(RGB), ["HH", "HV"]
    more.MODEL.DENSE_HEADS = cfg.MODEL.DENSE_HEADS
    report = load_pretrained(build_model(more), path, **inputs(more, bands=("HH", "HV")))
    fresh = [name.removeprefix("dense_heads.") for name in report.reinitialised]
    assert fresh and all(
        "picture" in name or name.startswith("heads.reconstruction.predictor") for name in fresh
    )
    assert not report.left_at_init and not report.unused


def test_stride_of_the_other_convention_is_refused(tmp_path):
    _, source = detectron2_source()
    path = save_detectron2_pickle(tmp_path / "model_final.pkl", source.state_dict())
    refused(config(stride_in_1x1=False), path, "Set MODEL.RESNETS.STRIDE_IN_1X1 True")


def test_another_depth_is_refused(torchvision_r18):
    refused(config(depth=34, stride_in_1x1=False), torchvision_r18[1], "MODEL.RESNETS.DEPTH")


def test_a_stream_of_another_depth_than_the_file_is_named(tmp_path):
    _, source = detectron2_source()
    path = save_detectron2_pickle(tmp_path / "model_final.pkl", source.state_dict())
    cfg, _ = two_streams(**{"MODEL.FUSION.SAR_RESNETS.DEPTH": 101, "MODEL.RESNETS.STRIDE_IN_1X1": True})
    message = refused(cfg, path, r"not the model's backbone.bottom_up.sar: it lacks res4.10.conv1")
    assert "MODEL.FUSION.SAR_RESNETS.DEPTH" in message


def test_two_streams_do_not_fit_one(tmp_path):
    path = saved(*two_streams(), tmp_path / "model_final.pth")
    refused(
        config(norm="BN", stride_in_1x1=False),
        path,
        r"holds two streams.*network has one \(backbone.bottom_up.resnet\).*MODEL.BACKBONE.NAME",
    )


def test_another_width_is_refused(tmp_path):
    _, source = detectron2_source()
    path = save_detectron2_pickle(tmp_path / "model_final.pkl", source.state_dict())
    cfg = config()
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    assert "(8, 16, 1, 1)" in refused(cfg, path, r"backbone.fpn_lateral\d.weight has shape")


def test_fused_batch_norm_in_a_trainable_one_is_refused(tmp_path):
    blobs = caffe2_blobs(build_resnet_backbone(detectron2_config(), ShapeSpec(channels=3)))
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(blobs))
    refused(config(norm="BN"), tmp_path / "R-50.pkl", "Set MODEL.RESNETS.NORM FrozenBN")


def test_unknown_inflation_lists_the_known(torchvision_r18):
    message = refused(config(depth=18), torchvision_r18[1], "STEM_INFLATION", inflation="means_rescaled")
    assert "Did you mean 'mean_rescaled'?" in message


def test_band_count_that_does_not_fit(torchvision_r18):
    refused(config(depth=18), torchvision_r18[1], "2 values|4 values", bands=("HH", "HV"))


def test_group_norm_says_that_the_mean_is_not_compensated(tmp_path):
    cfg = config(channels=3, depth=18, norm="GN")
    source = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    path = save_detectron2_pickle(tmp_path / "gn.pkl", source.state_dict())
    cfg.MODEL.PIXEL_MEAN = [80.0, 90.0, 60.0]
    report = load_pretrained(build_model(cfg), path, **inputs(cfg, bands=()))
    assert "not compensated" in report.notes[0] and "not compensated" in str(report)


class Bomb:
    def __reduce__(self):
        return print, ("boom",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_bomb_does_not_go_off(tmp_path, protocol, capsys):
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps({"model": {"x": Bomb()}}, protocol=protocol))
    refused(
        config(depth=18),
        tmp_path / "bomb.pkl",
        r"bomb.pkl: refused, because it holds (builtins|__builtin__).print",
    )
    assert "boom" not in capsys.readouterr().out


def test_bomb_in_a_torch_file_does_not_go_off(tmp_path, capsys):
    torch.save({"model": Bomb()}, tmp_path / "bomb.pth")
    refused(config(depth=18), tmp_path / "bomb.pth", "bomb.pth: not opened, it holds .*print")
    assert "boom" not in capsys.readouterr().out


def test_decompressing_codec_is_refused(tmp_path):
    # codecs.encode("...", "zlib") and the like: an allowed name with a dangerous argument.
    bomb = b"c_codecs\nencode\n(Vabc\nVbz2\ntR."
    (tmp_path / "codec.pkl").write_bytes(bomb)
    refused(config(depth=18), tmp_path / "codec.pkl", "codec 'bz2'")


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", pickle.dumps({"a": np.zeros(3)})[:-20]])
def test_damaged_files(tmp_path, suffix, content):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    refused(config(depth=18), path, "damaged.*(not complete|refused|not opened)")


def test_a_file_of_something_else(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pth")
    refused(config(depth=18), tmp_path / "other.pth", "not weights of a known layout .*begins with weights")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    refused(config(depth=18), tmp_path / "list.pth", "expected a dictionary of weights, found list")
    torch.save({"model": [torch.zeros(3)]}, tmp_path / "inner.pth")
    refused(config(depth=18), tmp_path / "inner.pth", "expected a dictionary of weights in it, found list")


def test_pretrained_weights_that_are_nan_are_refused(tmp_path):
    torch.save(
        {"conv1.weight": torch.ones(2), "layer1.0.conv1.weight": torch.full((2,), torch.nan)},
        tmp_path / "r.pth",
    )
    refused(
        config(depth=18), tmp_path / "r.pth", r"1 of 2 tensors .*NaN or infinite \(layer1.0.conv1.weight\)"
    )
