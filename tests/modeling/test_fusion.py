"""Exchanges and joins, each found in its registry; MMTM and attention against what one can compute by hand."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.errors import InputError
from fusiondet.modeling import fusion
from fusiondet.modeling.fusion import (
    EXCHANGE_REGISTRY,
    JOIN_REGISTRY,
    MMTM,
    CrossAttention,
    GatedJoin,
    StandIn,
    SumJoin,
    cut_off,
    exchanges,
    mean_messages,
    valid_mean,
)

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

NAN = float("nan")
EXCHANGES = sorted(name for name, _ in EXCHANGE_REGISTRY)
JOINS = sorted(name for name, _ in JOIN_REGISTRY)
OPS = [(EXCHANGE_REGISTRY, name) for name in EXCHANGES] + [(JOIN_REGISTRY, name) for name in JOINS]
OP_IDS = EXCHANGES + JOINS


def built(registry, name, cfg, channels=(32, 16), trained=True):
    """The op for streams of these widths, with random weights where a fresh one has zeros."""
    torch.manual_seed(0)
    op = registry.get(name)(cfg, *(ShapeSpec(channels=c, stride=8) for c in channels))
    return randomised(op) if trained else op


def randomised(op):
    with torch.no_grad():
        for parameter in op.parameters():
            parameter.normal_(std=0.3)
    return op


def streams(channels=(32, 16), images=2, size=(7, 5), valid=1.0):
    """Features and validity of both streams, as ops are called with."""
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(images, c, *size, generator=generator) for c in channels]
    return *features, *(torch.full((images, 1, *size), valid) for _ in channels)


def outputs(op, *inputs):
    result = op(*inputs)
    return result if isinstance(result, tuple) else (result,)


# ---- Every op ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("channels", [(32, 32), (32, 16), (16, 32)])
@pytest.mark.parametrize(("registry", "name"), OPS, ids=OP_IDS)
def test_shapes(registry, name, channels, images, small_cfg):
    op, inputs = built(registry, name, small_cfg, channels), streams(channels, images)
    result = outputs(op, *inputs)
    if registry is EXCHANGE_REGISTRY:
        assert [r.shape for r in result] == [x.shape for x in inputs[:2]]
    else:
        assert [tuple(r.shape) for r in result] == [(images, op.out_channels, 7, 5)]


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize(("registry", "name"), OPS, ids=OP_IDS)
def test_every_parameter_and_both_streams_get_a_gradient(registry, name, window, small_cfg):
    small_cfg.MODEL.FUSION.CROSS_ATTENTION.WINDOW = window
    op, (optical, sar, *valid) = built(registry, name, small_cfg), streams()
    optical.requires_grad_(), sar.requires_grad_()
    valid[0][:, :, 2:] = 0
    sum(
        (r * torch.linspace(-1, 1, r.numel()).view_as(r)).sum() for r in outputs(op, optical, sar, *valid)
    ).backward()
    # A bias of all keys moves every score of a softmax alike, so its gradient is 0, and there.
    gradients = {n: p.grad for n, p in op.named_parameters()} | {"optical": optical.grad, "sar": sar.grad}
    assert [n for n, g in gradients.items() if g is None or not (g.abs().max() > 0 or "key.bias" in n)] == []


@pytest.mark.parametrize("hidden", [("optical",), ("sar",), ("optical", "sar")])
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize(("registry", "name"), OPS, ids=OP_IDS)
def test_streams_without_any_data_stay_finite(registry, name, window, hidden, small_cfg):
    small_cfg.MODEL.FUSION.CROSS_ATTENTION.WINDOW = window
    op, (optical, sar, optical_valid, sar_valid) = built(registry, name, small_cfg), streams()
    for modality, valid in (("optical", optical_valid), ("sar", sar_valid)):
        valid *= float(modality not in hidden)
    optical.requires_grad_()
    result = outputs(op, optical, sar, optical_valid, sar_valid)
    sum(r.sum() for r in result).backward()
    assert all(torch.isfinite(t).all() for t in (*result, *(p.grad for p in op.parameters()), optical.grad))


@pytest.mark.parametrize(("registry", "name"), OPS, ids=OP_IDS)
def test_bfloat16_on_cpu_keeps_the_streams_kind(registry, name, small_cfg):
    op, (optical, sar, *valid) = built(registry, name, small_cfg), streams()
    exact = outputs(op, optical, sar, *valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = outputs(op, optical.bfloat16(), sar.bfloat16(), *valid)
    assert {r.dtype for r in result} == {torch.bfloat16}
    for r, e in zip(result, exact):
        assert (r.float() - e).abs().max() < 0.05 * e.abs().max()


@pytest.mark.parametrize("name", EXCHANGES)
def test_fresh_exchange_is_the_identity(name, small_cfg):
    optical, sar, *valid = streams()
    changed = built(EXCHANGE_REGISTRY, name, small_cfg, trained=False)(optical, sar, *valid)
    torch.testing.assert_close(changed, (optical, sar))


@pytest.mark.parametrize("name", EXCHANGES)
def test_images_of_a_batch_do_not_mix(name, small_cfg):
    op, inputs = built(EXCHANGE_REGISTRY, name, small_cfg), streams(images=3)
    alone = [op(*(x[i : i + 1] for x in inputs)) for i in range(3)]
    torch.testing.assert_close(op(*inputs), tuple(torch.cat(parts) for parts in zip(*alone)))


# ---- Stand-ins ---------------------------------------------------------------------------------------------


def test_stand_in_fills_each_band_and_knows_where_there_is_data():
    image = torch.tensor([[1.0, NAN, NAN], [2.0, 3.0, NAN]]).view(1, 2, 1, 3)
    stand_in = StandIn(2, learned=True)
    with torch.no_grad():
        stand_in.value.copy_(torch.tensor([0.5, -2.5]))
    filled, valid = stand_in(image)
    assert filled.view(2, 3).tolist() == [[1.0, 0.5, 0.5], [2.0, 3.0, -2.5]]
    assert valid.view(3).tolist() == [1.0, 1.0, 0.0]


def test_stand_in_stays_near_the_mean_where_batch_norm_sees_nothing_else():
    """Of a batch without the modality a step of SGD goes hundreds of deviations: images would vanish beside it."""
    torch.manual_seed(0)
    stand_in = StandIn(1, learned=True)
    layers = [torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()]
    layers += [torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.BatchNorm2d(4)]
    network, nothing = torch.nn.Sequential(*layers), torch.full((1, 1, 64, 64), NAN)
    weights = torch.randn(1, 4, 64, 64)
    (network(stand_in(nothing)[0]) * weights).sum().backward()
    with torch.no_grad():
        stand_in.value -= stand_in.value.grad
    assert stand_in.value.abs().item() > 100
    assert stand_in(nothing)[0].abs().unique().tolist() == [3.0]


def test_stand_in_that_is_not_learned_is_the_mean_and_no_tensor():
    stand_in = StandIn(2, learned=False)
    assert stand_in(torch.full((1, 2, 1, 1), NAN))[0].flatten().tolist() == [0.0, 0.0]
    assert stand_in.state_dict() == {}


# ---- Joins -------------------------------------------------------------------------------------------------


def test_sum_join_sums():
    join = SumJoin(optical_channels=2, sar_channels=2)
    optical, sar, *valid = streams((2, 2))
    torch.testing.assert_close(join(optical, sar, *valid), optical + sar)
    assert not list(join.parameters())


def test_fresh_gate_sums_where_both_have_data_and_takes_the_other_stream_elsewhere():
    join = GatedJoin(optical_channels=4, sar_channels=4)
    optical, sar, optical_valid, sar_valid = streams((4, 4))
    optical_valid[:, :, 0], sar_valid[:, :, 1] = 0, 0
    both = join(optical, sar, optical_valid, sar_valid)
    shut = 1 / (1 + math.exp(4))
    torch.testing.assert_close(both[:, :, 0], 2 * (shut * optical + (1 - shut) * sar)[:, :, 0])
    torch.testing.assert_close(both[:, :, 1], 2 * ((1 - shut) * optical + shut * sar)[:, :, 1])
    torch.testing.assert_close(both[:, :, 2:], (optical + sar)[:, :, 2:])


# ---- MMTM --------------------------------------------------------------------------------------------------


def test_mean_over_valid_cells_ignores_what_padding_holds():
    features = torch.arange(12.0).view(1, 2, 2, 3)
    valid = torch.tensor([[1.0, 1.0, 0.0], [0.5, 0.0, 0.0]]).view(1, 1, 2, 3)
    # (0 + 1 + 0.5 * 3) / 2.5 = 1 and (6 + 7 + 0.5 * 9) / 2.5 = 7
    assert valid_mean(features, valid).tolist() == [[1.0, 7.0]]
    padded = nn.functional.pad(features, (0, 3, 0, 2), value=1e6)
    assert valid_mean(padded, nn.functional.pad(valid, (0, 3, 0, 2))).tolist() == [[1.0, 7.0]]
    assert valid_mean(features, torch.zeros_like(valid)).tolist() == [[2.5, 8.5]]


def test_mmtm_by_hand():
    op = MMTM(optical_channels=1, sar_channels=1, ratio=2)
    with torch.no_grad():
        op.joint.weight.copy_(torch.tensor([[1.0, 2.0]]))
        op.joint.bias.fill_(-3.0)
        op.optical.weight.fill_(1.0), op.sar.weight.fill_(-1.0)
    optical, sar = torch.tensor([[1.0, 3.0, 99.0]]).view(1, 1, 1, 3), torch.full((1, 1, 1, 3), 1.0)
    valid = torch.tensor([1.0, 1.0, 0.0]).view(1, 1, 1, 3)
    # Squeezes 2 and 1; z = 2 + 2 * 1 - 3 = 1; excitations 1 and -1.
    high, low = 2 / (1 + math.exp(-1)), 2 / (1 + math.exp(1))
    changed = op(optical, sar, valid, valid)
    torch.testing.assert_close(changed, (optical * high, sar * low))


def test_padding_does_not_change_mmtms_gate():
    op, inputs = randomised(MMTM(optical_channels=8, sar_channels=8, ratio=4)), streams((8, 8))
    # Sums of whole numbers are exact in any order.
    inputs = [x.mul(4).round() for x in inputs[:2]] + [torch.ones(2, 1, 7, 5)] * 2
    padded = [nn.functional.pad(x, (0, 4, 0, 1), value=v) for x, v in zip(inputs, (5e3, -7e3, 0, 0))]
    for whole, part in zip(op(*padded), op(*inputs)):
        assert torch.equal(whole[:, :, :7, :5], part)


# ---- CrossAttention ----------------------------------------------------------------------------------------


def attention(channels=(16, 8), **options):
    options = {"dim": 8, "heads": 2, "mlp_ratio": 2.0, **options}
    torch.manual_seed(2)
    return randomised(CrossAttention(optical_channels=channels[0], sar_channels=channels[1], **options))


def naive_half(branch, norm, other_norm, own, other, valid):
    """One stream of the paper's equations, cell by cell and head by head, for keys that are not pooled."""
    n, _, height, width = own.shape
    positions = branch._positions(height, width, 1, own).reshape(height * width, -1)
    result = torch.empty_like(own)
    for i in range(n):
        x, y = own[i].flatten(1).T, other[i].flatten(1).T
        query, key = branch.query(other_norm(y)) + positions, branch.key(norm(x)) + positions
        value, keys = branch.value(norm(x)), valid[i].flatten().nonzero()[:, 0].tolist()
        heads = zip(*(t.chunk(branch.heads, dim=1) for t in (query, key, value)))
        found = torch.cat([naive_head(*head, keys or range(len(x))) for head in heads], dim=1)
        x = x + branch.out(found)
        x = x + branch.mlp(branch.norm(x))
        result[i] = x.T.view_as(own[i])
    return result


def naive_head(query, key, value, keys):
    rows = []
    for q in query:
        scores = [float(q @ key[j]) / math.sqrt(len(q)) for j in keys]
        total = sum(math.exp(s) for s in scores)
        rows.append(sum(math.exp(s) / total * value[j] for s, j in zip(scores, keys)))
    return torch.stack(rows)


def naive(op, optical, sar, optical_valid, sar_valid):
    return (
        naive_half(op.optical, op.optical_norm, op.sar_norm, optical, sar, optical_valid),
        naive_half(op.sar, op.sar_norm, op.optical_norm, sar, optical, sar_valid),
    )


@torch.no_grad()
def test_attention_is_the_papers():
    op, inputs = attention(), streams((16, 8), size=(4, 3))
    inputs[2][0, 0, 1:], inputs[3][1] = 0, 0
    torch.testing.assert_close(op(*inputs), naive(op, *inputs), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_windows_are_attention_within_each(monkeypatch):
    """Without positions, which count from the map's corner and not from the window's."""
    monkeypatch.setattr(fusion.AttentionBlock, "_positions", lambda self, h, w, *_: torch.zeros(h, w, 8))
    op, inputs = attention(window=3), streams((16, 8), size=(3, 5))
    inputs[2][:, :, :, 1] = 0
    inputs[3][:, :, :, 3:] = 0
    whole = op(*inputs)
    for columns in (slice(0, 3), slice(3, 5)):
        part = tuple(x[..., columns] for x in whole)
        expected = naive(op, *(x[..., columns] for x in inputs))
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pooled_keys_are_means_of_cells_with_data():
    features = torch.arange(16.0).view(1, 1, 4, 4)
    valid = torch.ones(1, 1, 4, 4)
    valid[0, 0, 0, 0], valid[0, 0, 2:, 2:] = 0, 0
    means, share = fusion._pooled(features, valid, 2)
    assert means.flatten().tolist() == pytest.approx([(1 + 4 + 5) / 3, 4.5, 10.5, (10 + 11 + 14 + 15) / 4])
    assert share.flatten().tolist() == [0.75, 1, 1, 0]


@pytest.mark.parametrize(
    ("size", "most"), [((64, 64), 1024), ((128, 128), 1024), ((2049, 1), 1024), ((7, 5), 9)]
)
def test_keys_stay_below_their_limit(size, most):
    step = fusion._key_step(*size, most)
    assert math.ceil(size[0] / step) * math.ceil(size[1] / step) <= most
    assert step == 1 or math.ceil(size[0] / (step - 1)) * math.ceil(size[1] / (step - 1)) > most


@torch.no_grad()
def test_cells_without_data_are_no_keys():
    op, (optical, sar, optical_valid, sar_valid) = attention(), streams((16, 8))
    optical_valid[:, :, 3:] = 0
    changed = optical.clone()
    changed[:, :, 3:] = 50.0
    rows = slice(0, 3)
    before = op(optical, sar, optical_valid, sar_valid)[0][:, :, rows]
    after = op(changed, sar, optical_valid, sar_valid)[0][:, :, rows]
    torch.testing.assert_close(before, after)
    assert not torch.allclose(before, op(changed, sar, sar_valid, sar_valid)[0][:, :, rows])


def test_width_is_at_most_the_streams():
    op = attention((64, 16), dim=32, heads=4)
    assert (op.optical.query.out_features, op.sar.query.out_features) == (32, 16)


def test_width_that_heads_do_not_divide():
    with pytest.raises(InputError, match=r"width of 12 is not divisible by 4 times 2 heads.*DIM and HEADS"):
        attention((12, 16), dim=16)


# ---- What streams tell each other --------------------------------------------------------------------------


class TwoExchanges(nn.Module):
    """An exchange behind another one; takes (optical, sar, optical_valid, sar_valid)."""

    def __init__(self, name, cfg):
        super().__init__()
        self.first, self.second = (built(EXCHANGE_REGISTRY, name, cfg) for _ in range(2))

    def forward(self, inputs):
        optical, sar, *valid = inputs
        return self.second(*self.first(optical, sar, *valid), *valid)


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("name", EXCHANGES)
def test_a_stream_that_is_cut_off_is_not_heard(name, window, small_cfg):
    small_cfg.MODEL.FUSION.CROSS_ATTENTION.WINDOW = window
    model, (optical, sar, *valid) = TwoExchanges(name, small_cfg), streams()
    means = mean_messages(model, [(optical, sar, *valid)])
    other = (optical * 3 + 1, sar, *valid)
    for modality, deaf in (("optical", 1), ("sar", 0)):
        changed = other if modality == "optical" else (optical, sar * 3 + 1, *valid)
        with cut_off(model, means, modality):
            one, two = model((optical, sar, *valid)), model(changed)
        assert torch.equal(one[deaf], two[deaf]) and not torch.allclose(one[1 - deaf], two[1 - deaf])
    assert not torch.allclose(model((optical, sar, *valid))[1], model(other)[1])


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_mean_of_one_constant_image_is_what_it_says_itself(name, small_cfg):
    model, (optical, sar, *valid) = TwoExchanges(name, small_cfg).first, streams(images=1)
    optical, sar = optical[..., :1, :1].expand_as(optical), sar[..., :1, :1].expand_as(sar)
    means = mean_messages(model, [(optical, sar, *valid)], forward=lambda batch: model(*batch))
    with cut_off(model, means, "sar"):
        heard = model(optical, sar, *valid)
    torch.testing.assert_close(heard, model(optical, sar, *valid))


class Whisper(fusion.Exchange):
    """Tells its features as they are, maps of the optical and vectors of the SAR stream."""

    def forward(self, optical, sar, optical_valid, sar_valid):
        self._tell("optical", optical, optical_valid)
        self._tell("sar", sar[:, :, 0, 0], sar_valid)


def test_mean_messages_of_a_drawn_example():
    op, ones = Whisper(), torch.ones(2, 1, 1, 2)
    # Three images of 1 x 2 cells and one channel. Optical: half a cell counts half, the third image has none.
    optical = [torch.tensor([[1.0, 4.0], [5.0, 7.0]]).view(2, 1, 1, 2), torch.full((1, 1, 1, 2), 1e6)]
    valid = [torch.tensor([[1.0, 0.5], [1.0, 1.0]]).view(2, 1, 1, 2), torch.zeros(1, 1, 1, 2)]
    sar = [torch.tensor([[1.0, 0.0], [2.0, 0.0]]).view(2, 1, 1, 2), torch.full((1, 1, 1, 2), 6.0)]
    batches = [(optical[0], sar[0], valid[0], ones), (optical[1], sar[1], valid[1], ones[:1])]
    op.train()
    means = mean_messages(op, batches, forward=lambda batch: op(*batch))
    # Optical: mean of (1 + 2) / 1.5 = 2 and 6. SAR: mean of 1, 2, 6.
    assert {m: mean.tolist() for m, mean in means[""].items()} == {"optical": [4.0], "sar": [3.0]}
    assert op.training and op._listener is None


def test_no_image_with_data_of_a_modality():
    op = Whisper()
    inputs = (*streams((1, 1))[:2], torch.zeros(2, 1, 7, 5), torch.ones(2, 1, 7, 5))
    with pytest.raises(InputError, match="no image of the calibration holds optical data"):
        mean_messages(op, [inputs], forward=lambda batch: op(*batch))


def test_means_that_lack_an_exchange_cut_nothing_off(small_cfg):
    model = TwoExchanges("MMTM", small_cfg)
    with pytest.raises(KeyError, match="second"), cut_off(model, {"first": {"sar": torch.zeros(8)}}, "sar"):
        pass
    assert not any(op._replaced for op in exchanges(model).values())


def test_unknown_modality_and_networks_without_exchanges():
    with pytest.raises(InputError, match="unknown modality 'radar'.*optical, sar"):
        with cut_off(nn.Identity(), {}, "radar"):
            pass
    assert exchanges(nn.Identity()) == {} and mean_messages(nn.Identity(), [1]) == {}
