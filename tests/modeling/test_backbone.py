"""Backbones of one stream and of two: what depends on what, what is shared, and what cannot be built."""

import copy

import fusiondet.compat  # noqa: F401
from fusiondet.errors import InputError
from fusiondet.modeling.backbone import TwoStreamResNet, valid_at
from fusiondet.modeling.fusion import EXCHANGE_REGISTRY, JOIN_REGISTRY, cut_off, mean_messages

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

EARLY, INTERMEDIATE, LATE, PAIR = (
    f"build_{kind}_resnet_fpn_backbone"
    for kind in ("early_fusion", "intermediate_fusion", "late_fusion", "two_pyramids")
)
TWO_STREAMS = (INTERMEDIATE, LATE, PAIR)
STAGES = ("res2", "res3", "res4", "res5")
NAN = float("nan")


@pytest.fixture
def build(small_cfg):
    """build(name, **{dotted key below MODEL: value}) -> a narrow backbone for 3 optical and 2 SAR bands."""
    model = small_cfg.MODEL
    model.RESNETS.DEPTH, model.RESNETS.STEM_OUT_CHANNELS = 50, 8
    model.RESNETS.WIDTH_PER_GROUP, model.RESNETS.RES2_OUT_CHANNELS = 4, 16
    model.FUSION.OPTICAL_CHANNELS = 3

    def make(name, channels=5, **keys):
        cfg = small_cfg.clone()
        cfg.MODEL.BACKBONE.NAME = name
        cfg.merge_from_list([w for key, value in keys.items() for w in (f"MODEL.{key}", value)])
        torch.manual_seed(0)
        return build_backbone(cfg, ShapeSpec(channels=channels))

    return make


def at(*stages, op):
    """Keys that put the exchange `op` behind these stages."""
    return {f"FUSION.EXCHANGE.{stage}": op for stage in stages}


def image(n=2, size=64, seed=1):
    return torch.randn(n, 5, size, size, generator=torch.Generator().manual_seed(seed))


def flat(features):
    """All maps of a pyramid or a pair of them, by a name each."""
    return {
        f"{k}.{j}" if isinstance(v, dict) else k: w
        for k, v in features.items()
        for j, w in (v.items() if isinstance(v, dict) else [(k, v)])
    }


def without(pixels, *modalities):
    pixels = pixels.clone()
    for modality in modalities:
        pixels[:, slice(0, 3) if modality == "optical" else slice(3, 5)] = NAN
    return pixels


VARIANTS = {
    "plain": {},
    "shared": {"FUSION.SHARE_WEIGHTS": True},
    "deeper sar": {"FUSION.SAR_RESNETS.DEPTH": 101},
    "r18 and r50": {"FUSION.SAR_RESNETS.DEPTH": 18, "FUSION.SAR_RESNETS.RES2_OUT_CHANNELS": 64},
    "dropout": {"FUSION.MODALITY_DROPOUT.sar": 0.1},
    "fewer levels": {"FPN.IN_FEATURES": ["res2", "res3", "res4"]},
    **{f"exchange {op}": at(*STAGES, op=op) for op, _ in EXCHANGE_REGISTRY},
    **{f"join {op}": {"FUSION.JOIN": op} for op, _ in JOIN_REGISTRY},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", TWO_STREAMS)
def test_every_parameter_gets_a_gradient_whatever_is_missing(name, variant, build):
    backbone, pixels = build(name, **VARIANTS[variant]), image(1, size=32)
    pixels = torch.cat([pixels, without(pixels, "sar"), without(pixels, "optical", "sar")])
    features = flat(backbone(pixels))
    sum(f.square().sum() for f in features.values()).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", (EARLY, *TWO_STREAMS))
def test_shapes_are_as_declared_for_one_image(name, build):
    backbone, declared = build(name).eval(), build(name).output_shape()
    features = backbone(image(1))
    assert backbone.size_divisibility == 32 and list(declared) == ["p2", "p3", "p4", "p5", "p6"]
    for pyramid in features.values() if name == PAIR else [features]:
        assert {level: tuple(f.shape) for level, f in pyramid.items()} == {
            level: (1, shape.channels, 64 // shape.stride, 64 // shape.stride)
            for level, shape in declared.items()
        }


@pytest.mark.parametrize("name", TWO_STREAMS)
def test_bfloat16_on_cpu(name, build):
    backbone = build(name, **at("res3", op="CrossAttention"), **at("res4", op="MMTM")).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(f.isfinite().all() for f in flat(backbone(without(image(), "sar"))).values())


class Flat(torch.nn.Module):
    """A backbone that returns a tuple, which is what tracing allows."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels):
        return tuple(flat(self.backbone(pixels)).values())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", TWO_STREAMS)
def test_can_be_traced_and_copied(name, build):
    backbone = build(name, **at("res3", op="CrossAttention"), **at("res4", op="MMTM")).eval()
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        traced = torch.jit.trace(Flat(backbone), image(1, size=32), check_trace=False)
        torch.testing.assert_close(traced(image(1, size=32)), Flat(twin)(image(1, size=32)))


# ---- Early fusion ------------------------------------------------------------------------------------------


def test_early_fusion_keeps_its_names_unless_it_learns_stand_ins(build):
    names = set(build(EARLY).state_dict())
    assert {n.split(".")[1] for n in names if n.startswith("bottom_up.")} == {"resnet"}
    learned = build(EARLY, **{"FUSION.MODALITY_DROPOUT.optical": 0.2})
    assert set(learned.state_dict()) - names == {"bottom_up.stand_in.value"}


def test_missing_pixels_are_the_mean_or_what_was_learned(build):
    backbone = build(EARLY, **{"FUSION.MODALITY_DROPOUT.optical": 0.2}).eval()
    pixels = image()
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(without(pixels, "optical")),
            backbone(pixels * torch.tensor([0, 0, 0, 1, 1])[:, None, None]),
        )
        backbone.bottom_up.stand_in.value.fill_(2.0)
        pixels[:, 3:, 10:20] = NAN
        filled = torch.where(pixels.isnan(), 2.0, pixels)
        torch.testing.assert_close(backbone(pixels), backbone(filled))


# ---- Two streams -------------------------------------------------------------------------------------------


def test_two_streams_without_exchange_are_two_networks_of_one(build):
    pair = build(PAIR).eval()
    features = pair(image())
    for modality, part in (("optical", slice(0, 3)), ("sar", slice(3, 5))):
        alone = build(EARLY, channels=part.stop - part.start).eval()
        own = {f"bottom_up.resnet.{n}": t for n, t in getattr(pair.bottom_up, modality).state_dict().items()}
        alone.load_state_dict({**own, **getattr(pair, modality).state_dict()})
        torch.testing.assert_close(alone(image()[:, part]), features[modality])


@pytest.mark.parametrize("op", [op for op, _ in EXCHANGE_REGISTRY])
def test_an_exchange_reaches_its_own_and_later_levels_alone(op, build):
    streams = build(PAIR, **at("res4", op=op)).eval().bottom_up
    with torch.no_grad():
        for parameter in streams.exchanges.parameters():
            parameter.normal_(std=0.2)
        one, _ = streams(image())
        two, _ = streams(torch.cat([image()[:, :3], image(seed=2)[:, 3:]], dim=1))
    heard = {level: not torch.equal(one["optical"][level], two["optical"][level]) for level in STAGES}
    assert heard == {"res2": False, "res3": False, "res4": True, "res5": True}


@pytest.mark.parametrize("op", [op for op, _ in EXCHANGE_REGISTRY])
def test_a_branch_that_hears_means_does_not_depend_on_the_other_modality(op, build):
    pair = build(PAIR, **at(*STAGES, op=op)).eval()
    with torch.no_grad():
        for parameter in pair.bottom_up.exchanges.parameters():
            parameter.normal_(std=0.2)
    means = mean_messages(pair, [image(), image(seed=3)])
    other_optical = torch.cat([image(seed=2)[:, :3], image()[:, 3:]], dim=1)
    with torch.no_grad(), cut_off(pair, means, "optical"):
        one, two = pair(image()), pair(other_optical)
    assert all(torch.equal(one["sar"][level], two["sar"][level]) for level in one["sar"])
    assert not torch.allclose(one["optical"]["p2"], two["optical"]["p2"])


def test_joins_are_told_where_each_modality_has_data(build):
    backbone, told = build(LATE, **{"FUSION.JOIN": "GatedJoin"}).eval(), {}
    for level, join in backbone.joins.items():
        join.register_forward_hook(lambda op, inputs, out, level=level: told.update({level: inputs[2:]}))
    pixels = image(1)
    pixels[:, :3, :, 32:] = NAN  # optical is missing in the right half,
    pixels[:, 3, :16] = NAN  # and one of two SAR bands in the upper quarter, which the other one makes up for
    backbone(pixels)
    assert [v.shape[-1] for v, _ in told.values()] == [16, 8, 4, 2, 1]
    assert told["p5"][0].flatten().tolist() == [1, 0, 1, 0] and told["p5"][1].flatten().tolist() == [1] * 4
    assert told["p6"][0].item() == 0.5


def test_validity_of_a_cell_is_its_share_of_pixels():
    valid = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]).view(1, 1, 2, 4)
    assert valid_at(valid, torch.zeros(1, 9, 1, 2)).flatten().tolist() == [0.75, 0.0]


# ---- Shared stages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWO_STREAMS)
def test_shared_stages_exist_once_and_treat_both_streams_alike(name, build):
    backbone = build(name, channels=6, **{"FUSION.SHARE_WEIGHTS": True})
    streams = backbone.bottom_up
    assert {n.split(".")[0] for n in streams.sar.state_dict()} == {"stem"}
    streams.sar.load_state_dict(
        {n: t for n, t in streams.optical.state_dict().items() if n.startswith("stem")}
    )
    rgb = image()[:, :3]
    for training in (False, True):
        features, _ = TwoStreamResNet.forward(streams.train(training), torch.cat([rgb, rgb], dim=1))
        for level in STAGES:
            torch.testing.assert_close(features["optical"][level], features["sar"][level])


def test_shared_norms_see_both_streams_as_one_batch(build):
    streams = build(PAIR, **{"FUSION.SHARE_WEIGHTS": True}).bottom_up.train()
    seen = {}
    block = streams.optical.res2[0].conv1
    block.register_forward_hook(
        lambda op, inputs, out: seen.update(calls=seen.get("calls", 0) + 1, of=inputs[0])
    )
    streams(image())
    before_norm = torch.nn.functional.conv2d(seen["of"], block.weight)
    assert seen["calls"] == 1 and len(before_norm) == 4
    # Momentum 0.1 from a running mean of 0.
    torch.testing.assert_close(block.norm.running_mean, 0.1 * before_norm.mean((0, 2, 3)))


# ---- What cannot be built ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWO_STREAMS)
@pytest.mark.parametrize("bands", [0, 5, -1])
def test_one_modality_alone_is_not_enough(name, bands, build):
    with pytest.raises(InputError, match=rf"{name} needs both modalities.*build_early_fusion"):
        build(name, **{"FUSION.OPTICAL_CHANNELS": bands})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"FPN.IN_FEATURES": ["res2", "res3"], **at("res4", op="MMTM")},
            r"EXCHANGE.res4 is MMTM, but .* no such stage.*it has res2, res3",
        ),
        (at("res4", op="MTMM"), r"unknown MODEL.FUSION.EXCHANGE.res4 'MTMM'.*'MMTM'.*CrossAttention"),
        ({"FUSION.JOIN": "Sum"}, r"unknown MODEL.FUSION.JOIN 'Sum'.*ConcatJoin, GatedJoin, SumJoin"),
        (
            {"FUSION.SHARE_WEIGHTS": True, "FUSION.SAR_RESNETS.DEPTH": 18},
            r"SHARE_WEIGHTS is set, but so is MODEL.FUSION.SAR_RESNETS.DEPTH",
        ),
        (
            {"FUSION.SAR_RESNETS.DEPTH": 18},
            r"MODEL.FUSION.SAR_RESNETS.DEPTH 18 needs MODEL.FUSION.SAR_RESNETS.RES2_OUT_CHANNELS 64, found 16",
        ),
    ],
)
def test_configs_of_no_network(keys, message, build):
    with pytest.raises(InputError, match=message):
        build(INTERMEDIATE, **keys)
