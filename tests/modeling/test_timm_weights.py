"""Weights of networks of timm: from files and packages, into streams of other bands, with timm's own response."""

import sys

import fusiondet.compat  # noqa: F401
from fusiondet.modeling import timm_weights
from fusiondet.modeling.timm_net import TimmNet
from fusiondet.modeling.timm_weights import read_timm_weights
from fusiondet.modeling.weights import load_pretrained, load_timm_weights
from tests.support.messages import raises_naming

import pytest
import timm
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file

FAMILIES = ("resnet10t", "convnext_atto", "fastvit_t8", "tf_efficientnet_lite0")
MEAN, STD = [90.0, 110.0, 120.0, -11.0], [40.0, 45.0, 60.0, 6.0]
BANDS = {"optical_bands": ["red", "green", "blue"], "sar_bands": ["VV"], "pixel_mean": MEAN, "pixel_std": STD}


def random_network(name):
    """A network of timm whose norms have seen something."""
    torch.manual_seed(1)
    model = timm.create_model(name).eval()
    for module in model.modules():
        if hasattr(module, "running_mean") and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
    return model


def stem_responses(net, model, name):
    """Ours and timm's, behind the stem, of one 8-bit image; pixels whose windows reach over the border left out."""
    image = torch.randint(0, 256, (1, 4, 96, 96)).float()
    ours = (image - torch.tensor(MEAN).view(1, -1, 1, 1)) / torch.tensor(STD).view(1, -1, 1, 1)
    mean, std = (
        255 * torch.tensor(timm.get_pretrained_cfg_value(name, key)).view(1, 3, 1, 1)
        for key in ("mean", "std")
    )
    plain = TimmNet(name, 3).eval()
    plain.load_state_dict(read_state(plain, model))
    with torch.no_grad():
        response, expected = net.eval().stem(ours), plain.stem((image[:, :3] - mean) / std)
    return response[..., 6:-6, 6:-6], expected[..., 6:-6, 6:-6]


def read_state(net, model):
    state, found = model.state_dict(), {}
    for own in net.state_dict():
        module, _, rest = own.partition(".")[2].partition(".")
        names = (f"{module}.{rest}", f"{module.replace('_', '.', 1)}.{rest}")
        found[own] = state[next(name for name in names if name in state)]
    return found


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_response_to_colours_is_timms_and_sar_starts_silent(name, kind, tmp_path):
    model, path = random_network(name), tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save({"state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}, path)
    net = TimmNet(name, 4)
    report = load_timm_weights(net, str(path), **BANDS)
    ours, expected = stem_responses(net, model, name)
    assert torch.allclose(ours, expected, atol=2e-4 * float(expected.abs().max()))
    assert not [n for n in report.left_at_init if not n.endswith("num_batches_tracked")]
    assert len(report.stems) == len(net.first_convs())


def test_a_network_that_standardises_its_filters_is_said_to(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("nf_resnet26").state_dict(), path)
    report = load_timm_weights(TimmNet("nf_resnet26", 4), str(path), **BANDS)
    assert "standardises its filters" in str(report)


@pytest.mark.parametrize("fusion", ["intermediate_fusion_", "two_pyramids_"])
def test_both_streams_start_from_the_file(fusion, small_cfg, tmp_path):
    model, path = random_network("convnext_atto"), tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    small_cfg.MODEL.BACKBONE.NAME = f"build_{fusion}timm_fpn_backbone"
    small_cfg.MODEL.TIMM.NAME, small_cfg.MODEL.FUSION.OPTICAL_CHANNELS = "convnext_atto", 3
    if fusion == "two_pyramids_":
        small_cfg.MODEL.META_ARCHITECTURE = "LateFusionRCNN"
    detector = build_model(small_cfg)
    load_timm_weights(detector, str(path), **BANDS)
    streams = detector.backbone.bottom_up
    for stream in (streams.optical, streams.sar):
        ours = stream.res5.stages_3.blocks[0].mlp.fc1.weight
        assert torch.equal(ours, model.stages[3].blocks[0].mlp.fc1.weight)
    mean_filter = streams.sar.stem.stem_0.weight
    assert mean_filter.shape[1] == 1 and mean_filter.abs().max() > 0


def test_a_checkpoint_of_one_network_starts_another_with_more_bands(small_cfg, tmp_path):
    small_cfg.MODEL.BACKBONE.NAME, small_cfg.MODEL.TIMM.NAME = "build_timm_fpn_backbone", "convnext_atto"
    small_cfg.INPUT.OPTICAL_BANDS, small_cfg.INPUT.SAR_BANDS = ["red", "green", "blue"], ["VV"]
    rgb = small_cfg.clone()
    rgb.INPUT.MODALITIES, rgb.MODEL.PIXEL_MEAN, rgb.MODEL.PIXEL_STD = ["optical"], MEAN[:3], STD[:3]
    source = build_model(rgb)
    path = tmp_path / "rgb.pth"
    torch.save({"model": source.state_dict(), "config_yaml": rgb.dump()}, path)
    both = build_model(small_cfg)
    report = load_pretrained(both, path, **BANDS)
    ours, theirs = (m.backbone.bottom_up.resnet for m in (both, source))
    assert torch.equal(ours.stem.stem_0.weight[:, :3], theirs.stem.stem_0.weight)
    assert not ours.stem.stem_0.weight[:, 3].any()
    assert torch.equal(
        ours.res4.stages_2.blocks[0].conv_dw.weight, theirs.res4.stages_2.blocks[0].conv_dw.weight
    )
    assert report.layout == "fusiondet"


def test_a_package_of_the_index_serves_weights_without_a_download(tmp_path, monkeypatch):
    model = random_network("tf_efficientnet_lite0")
    package = tmp_path / "some_lite0_package"
    package.mkdir()
    (package / "__init__.py").touch()
    # Other names in the same order, as TensorFlow's conversions have them.
    torch.save({f"_{i}": t for i, t in enumerate(model.state_dict().values())}, package / "lite0.pth")
    monkeypatch.syspath_prepend(tmp_path)
    sha256 = timm_weights.hashlib.sha256((package / "lite0.pth").read_bytes()).hexdigest()
    entry = ("some_lite0_package", "lite0.pth", sha256)
    monkeypatch.setitem(timm_weights.PACKAGED, "tf_efficientnet_lite0", entry)
    monkeypatch.setattr(
        timm_weights, "_in_order", lambda state, name: dict(zip(model.state_dict(), state.values()))
    )
    found = read_timm_weights(TimmNet("tf_efficientnet_lite0", 3), "pretrained")
    assert torch.equal(found.tensors["stem.conv_stem.weight"], model.conv_stem.weight)
    assert found.mean == (0.5, 0.5, 0.5) and found.std == (0.5, 0.5, 0.5)
    (package / "lite0.pth").write_bytes(b"something else")
    with raises_naming("lite0.pth", "some_lite0_package"):
        read_timm_weights(TimmNet("tf_efficientnet_lite0", 3), "pretrained")
    assert "some_lite0_package" not in sys.modules  # nothing of it ran


def test_tensors_in_order_get_timms_names():
    model = random_network("tf_efficientnet_lite0")
    theirs = {f"_{i}": t for i, (n, t) in enumerate(model.state_dict().items()) if "num_batches" not in n}
    named = timm_weights._in_order(theirs, "tf_efficientnet_lite0")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in named.items())


def test_no_network_for_a_download_says_what_else_there_is(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("Network is unreachable")

    net = TimmNet("convnext_atto", 3)
    monkeypatch.setattr(timm_weights.timm, "create_model", refuse)
    with raises_naming("MODEL.TIMM.WEIGHTS", "convnext_atto", "Network is unreachable"):
        read_timm_weights(net, "pretrained")


def test_files_that_do_not_fit(tmp_path):
    net = TimmNet("resnet10t", 3)
    other = tmp_path / "other.safetensors"
    save_file(timm.create_model("convnext_atto").state_dict(), other)
    with raises_naming("other.safetensors", "MODEL.TIMM.NAME resnet10t", "conv1.0.weight"):
        read_timm_weights(net, str(other))
    state = timm.create_model("resnet10t").state_dict()
    state["layer2.0.conv1.weight"] = state["layer2.0.conv1.weight"][:, :8]
    narrow = tmp_path / "narrow.pth"
    torch.save(state, narrow)
    with raises_naming("narrow.pth", "layer2.0.conv1.weight", "1 tensors differ"):
        read_timm_weights(net, str(narrow))
    with raises_naming("nowhere.pth", "resnet10t"):
        read_timm_weights(net, str(tmp_path / "nowhere.pth"))
    for name in ("cut.safetensors", "cut.pth", "cut.npz"):
        (tmp_path / name).write_bytes(b"PK\3\4 no weights")
        with raises_naming(name):
            read_timm_weights(net, str(tmp_path / name))
    state["layer2.0.conv1.weight"] = (
        timm.create_model("resnet10t").state_dict()["layer2.0.conv1.weight"] * torch.nan
    )
    torch.save(state, narrow)
    with raises_naming("narrow.pth", "res3.layer2.0.conv1.weight"):
        read_timm_weights(net, str(narrow))
