"""Networks of timm as trunks: the maps that timm makes, in pieces that exchange and join."""

import fusiondet.compat  # noqa: F401
from fusiondet.modeling.timm_net import STRIDES, TimmNet, check_timm_name
from tests.support.messages import raises_naming

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY

# One of each family, as small as they come.
FAMILIES = (
    "resnet10t", "regnetx_002", "tf_efficientnet_lite0", "mobilenetv3_small_050", "mobilenetv4_conv_small_035",
    "convnext_atto", "swin_tiny_patch4_window7_224", "edgenext_xx_small", "pvt_v2_b0", "fastvit_t8", "densenet121",
    "repvgg_a0", "efficientvit_b0", "starnet_s1", "hgnetv2_b0",
)  # fmt: skip


def names_in_timm(state, reference):
    """`state` of a TimmNet under timm's names for the features of the same network."""
    found = {}
    for name, tensor in state.items():
        module, _, rest = name.partition(".")[2].partition(".")
        candidates = (f"{module}.{rest}", f"{module.replace('_', '.')}.{rest}")
        found[next(n for n in candidates if n in reference)] = tensor
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_those_of_timm(name):
    torch.manual_seed(0)
    net = TimmNet(name, bands=4).eval()
    size = {"strict_img_size": False} if "swin" in name else {}
    theirs = timm.create_model(name, features_only=True, in_chans=4, **size).eval()
    theirs.load_state_dict(names_in_timm(net.state_dict(), theirs.state_dict()), strict=False)
    image = torch.randn(2, 4, 96, 64)
    with torch.no_grad():
        ours, expected = net(image), theirs(image)[-4:]
    for (stage, features), other in zip(ours.items(), expected, strict=True):
        other = other.permute(0, 3, 1, 2) if "swin" in name else other
        assert features.shape[-2:] == (96 // STRIDES[stage], 64 // STRIDES[stage])
        assert features.shape[1] == net.output_shape()[stage].channels
        assert torch.equal(features, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_sees_the_image_is_known(name):
    net = TimmNet(name, bands=5, stages=())
    convs = [net.get_submodule(conv) for conv in net.first_convs()]
    assert convs and all(conv.in_channels == 5 for conv in convs)
    alone = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels == 5]
    assert len(alone) == len(convs)


def test_stages_that_nothing_needs_are_not_built():
    net = TimmNet("resnet10t", bands=3, stages=("res2", "res3"))
    assert not hasattr(net, "res4") and [*net(torch.zeros(1, 3, 64, 64))] == ["res2", "res3"]


def test_frozen_pieces_neither_learn_nor_count():
    net = TimmNet("resnet10t", bands=3, frozen=2).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net(torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad == (not name.startswith(("stem.", "res2.")))
    changed = {
        name.split(".")[0] for name, tensor in net.state_dict().items() if not tensor.equal(before[name])
    }
    assert changed == {"res3", "res4", "res5"}  # running means


def test_checkpointed_stages_have_the_same_gradient():
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        net = TimmNet("convnext_atto", bands=4, checkpointed=checkpointed)
        net(torch.ones(1, 4, 64, 64))["res5"].square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("convnext_tinny", ("MODEL.TIMM.NAME", "convnext_tinny", "convnext_tiny")),
        ("hf-hub:somebody/net", ("MODEL.TIMM.NAME", "hf-hub:somebody/net")),
        ("vit_tiny_patch16_224", ("MODEL.TIMM.NAME vit_tiny_patch16_224",)),
        ("hrnet_w18_small", ("MODEL.TIMM.NAME hrnet_w18_small", "strides 2, 4, 8, 16, 32")),
        ("maxvit_rmlp_pico_rw_256", ("MODEL.TIMM.NAME maxvit_rmlp_pico_rw_256", "one size")),
        ("inception_v3", ("MODEL.TIMM.NAME inception_v3",)),
    ],
)
def test_networks_that_do_not_fit_are_refused(name, facts):
    with raises_naming(*facts):
        TimmNet(name, bands=3)


def test_stochastic_depth_where_there_is_none():
    with raises_naming("densenet121", "MODEL.TIMM.DROP_PATH 0"):
        TimmNet("densenet121", bands=3, drop_path=0.1)
    assert any(
        m.drop_prob > 0
        for m in TimmNet("convnext_atto", 3, drop_path=0.1).modules()
        if hasattr(m, "drop_prob")
    )


def test_names_with_the_tag_of_weights_are_fine():
    check_timm_name("resnet18.a1_in1k")


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("fusion", ["", "intermediate_fusion_", "late_fusion_", "two_pyramids_"])
def test_every_way_of_fusing_gives_every_parameter_a_gradient(small_cfg, name, fusion):
    small_cfg.MODEL.BACKBONE.NAME = f"build_{fusion}timm_fpn_backbone"
    small_cfg.MODEL.TIMM.NAME = name
    if fusion:
        small_cfg.MODEL.FUSION.OPTICAL_CHANNELS = 3
        small_cfg.MODEL.FUSION.EXCHANGE.res3 = "MMTM"
    backbone = BACKBONE_REGISTRY.get(small_cfg.MODEL.BACKBONE.NAME)(small_cfg, ShapeSpec(channels=4))
    features = backbone(torch.randn(2, 4, 64, 96))
    maps = (
        [m for pyramid in features.values() for m in pyramid.values()]
        if fusion == "two_pyramids_"
        else features.values()
    )
    sum(m.square().mean() for m in maps).backward()
    shapes = {n: (s.channels, s.stride) for n, s in backbone.output_shape().items()}
    assert shapes["p2"] == (small_cfg.MODEL.FPN.OUT_CHANNELS, 4) and shapes["p5"][1] == 32
    assert not [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]


def test_shared_stages_are_of_both_streams(small_cfg):
    small_cfg.MODEL.BACKBONE.NAME = "build_intermediate_fusion_timm_fpn_backbone"
    small_cfg.MODEL.TIMM.NAME, small_cfg.MODEL.FUSION.SHARE_WEIGHTS = "resnet10t", True
    small_cfg.MODEL.FUSION.OPTICAL_CHANNELS = 3
    backbone = BACKBONE_REGISTRY.get(small_cfg.MODEL.BACKBONE.NAME)(small_cfg, ShapeSpec(channels=4))
    streams = backbone.bottom_up
    assert streams.shares_stages and streams.sar.stage_names == []
    assert backbone(torch.randn(1, 4, 64, 64))["p5"].shape[-2:] == (2, 2)
