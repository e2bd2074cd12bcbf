"""FusionHeightNet: shapes of every level, who asks whom in cross-fusion, encoders shared or not, tiles of any size."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import check_tasks
from fusiondet.data import catalog
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.errors import InputError
from fusiondet.modeling.dense_heads import DenseTargets
from fusiondet.modeling.dense_nets import Picture, dense_net_named
from fusiondet.modeling.fusion import MODALITIES, exchanges
from fusiondet.modeling.streams import modality_of_parameters
from fusiondet.projects.fusion_height_net.fusion_height_net import Transformer
from tests.support.tiny_city import BANDS, write_split

import pytest
import torch
from detectron2.modeling import build_model

NAN = math.nan
WIDTH = 4


@pytest.fixture
def cfg(dense_cfg):
    net = dense_cfg.MODEL.DENSE_NET
    net.NAME, net.WIDTH = "FusionHeightNet", WIDTH
    net.FUSION_HEIGHT_NET.DEPTH, net.FUSION_HEIGHT_NET.HEADS, net.FUSION_HEIGHT_NET.POSITIONS = 2, 2, 4
    return dense_cfg


def network(cfg, optical=3, sar=1, **keys):
    for key, value in keys.items():
        cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET[key] = value
    cfg.INPUT.MODALITIES = [m for m, bands in zip(MODALITIES, (optical, sar)) if bands]
    torch.manual_seed(0)
    return dense_net_named("FusionHeightNet")(cfg, optical, sar)


def picture(n=2, height=64, width=96, optical=3, sar=1):
    generator = torch.Generator().manual_seed(1)
    bands = torch.randn(n, optical + sar, height, width, generator=generator)
    valid = torch.ones(n, 1, height, width)
    return Picture(bands[:, :optical], bands[:, optical:], valid * (optical > 0), valid * (sar > 0), bands)


def truth(n=2, height=64, width=96):
    drawn = torch.rand(n, 1, height, width, generator=torch.Generator().manual_seed(2))
    height_m = torch.where(drawn < 0.3, 10 + 20 * drawn, 0.0)
    footprint = (height_m > 0).float()
    height_m[:, :, :, :7], footprint[:, :, :, 20:24] = NAN, NAN
    return DenseTargets(height_m, footprint, torch.zeros(n, 4, height, width))


def record(seen, key, module):
    """Keep the shape of what `module` gives under `key`; a list of those of several maps."""

    def hook(_, __, said):
        said = said if isinstance(said, list | tuple) else [said]
        seen[key] = [tuple(x.shape[1:]) for x in said]

    module.register_forward_hook(hook)


# ---- Shapes ------------------------------------------------------------------------------------------------


def test_shapes_of_every_level(cfg):
    """F0 at H/2, F1 at H/4, F2 at H/8, F_out and all that follows at H/16, decoders back to H/2, heads at H."""
    net, seen = network(cfg).train(), {}
    for m in MODALITIES:
        record(seen, f"stem {m}", net.stems[m])
        record(seen, f"levels {m}", net.levels[m])
        record(seen, f"transformer {m}", net.transformers[m])
        record(seen, f"tokens {m}", net.transformers[m].embed)
    for i, fusion in enumerate(net.exchanges):
        record(seen, f"cross-fusion {i + 1}", fusion)
    record(seen, "fused", net.joins[0])
    for task, decoder in net.decoders.items():
        for i, step in enumerate(decoder.steps):
            record(seen, f"{task} {i}", step)
        record(seen, f"{task} head", getattr(net.head, task))
    maps = net(picture(height=64, width=96))
    coarsest = (8 * WIDTH, 4, 6)
    for m in MODALITIES:
        assert seen[f"stem {m}"] == [(WIDTH, 32, 48)]
        assert seen[f"levels {m}"] == [(2 * WIDTH, 16, 24), (4 * WIDTH, 8, 12), coarsest]
        assert seen[f"transformer {m}"] == [coarsest]
        # One token per cell of F_out: 24 of them.
        assert seen[f"tokens {m}"] == [(4, 6, 8 * WIDTH)]
    assert seen["cross-fusion 1"] == seen["cross-fusion 2"] == [coarsest, coarsest]
    assert seen["fused"] == [coarsest]
    for task, classes in (("footprint", 2), ("height", 1)):
        steps = [seen[f"{task} {i}"] for i in (2, 1, 0)]
        assert steps == [[(4 * WIDTH, 8, 12)], [(2 * WIDTH, 16, 24)], [(WIDTH, 32, 48)]]
        assert seen[f"{task} head"] == [(classes, 64, 96)]
    assert maps.footprint.shape == maps.height_m.shape == (2, 1, 64, 96)
    assert len(seen) == 4 * 2 + 3 + 4 * 2


def test_each_decoder_sees_the_levels_of_both_encoders(cfg):
    net = network(cfg)
    for decoder in net.decoders.values():
        # Below, and F2, F1, F0 of two encoders beside.
        seen = [step[0].in_channels // WIDTH for step in decoder.steps]
        assert seen == [2 + 2 * 1, 4 + 2 * 2, 8 + 2 * 4]
    assert network(cfg, sar=0).decoders["height"].steps[0][0].in_channels == 3 * WIDTH


@pytest.mark.parametrize(("optical", "sar"), [(3, 1), (10, 8), (1, 4), (4, 0), (0, 2)])
def test_any_bands(cfg, optical, sar):
    maps = network(cfg, optical, sar).train()(picture(height=32, width=32, optical=optical, sar=sar))
    assert maps.height_m.shape == (2, 1, 32, 32) and maps.height_m.isfinite().all()


# ---- Gradients and sharing ---------------------------------------------------------------------------------

VARIANTS = [
    ({}, 3, 1, ["footprint", "height"]),
    ({"FUSION": "concat"}, 3, 1, ["footprint", "height"]),
    ({"SHARE_WEIGHTS": True}, 3, 1, ["footprint", "height"]),
    ({}, 3, 0, ["footprint", "height"]),
    ({}, 0, 1, ["footprint"]),
    ({}, 3, 1, ["height"]),
]


@pytest.mark.parametrize(("keys", "optical", "sar", "tasks"), VARIANTS)
def test_every_parameter_has_a_finite_gradient(cfg, keys, optical, sar, tasks):
    cfg.MODEL.DENSE_NET.TASKS = tasks
    net = network(cfg, optical, sar, **keys).train()
    losses = net.losses(net(picture(optical=optical, sar=sar)), truth())
    names = {"footprint": "loss_footprint", "height": "loss_dense_height"}
    assert losses.keys() == {names[task] for task in tasks}
    sum(losses.values()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A constant added to all keys changes no attention, and batch norm takes one out of what it is given.
        idle = name.endswith("key.bias")
        assert idle or parameter.grad.abs().sum() > 0, name


def test_a_shared_encoder_is_one_for_both_but_for_the_stem(cfg):
    own, shared = network(cfg), network(cfg, SHARE_WEIGHTS=True)
    assert list(own.levels) == list(own.transformers) == list(MODALITIES)
    assert list(shared.levels) == list(shared.transformers) == ["both"]
    assert list(shared.stems) == list(MODALITIES)

    def count(part):
        return sum(p.numel() for p in part.parameters())

    assert count(own.levels) == 2 * count(shared.levels)
    assert count(own.transformers) == 2 * count(shared.transformers)
    assert count(own.exchanges) == count(shared.exchanges)
    # What the one stream does to it, the other one sees: here, all that is left of SAR where its stem says what the
    # optical one does.
    shared.eval()
    said = shared._encoded(shared.levels, {m: torch.ones(1, WIDTH, 16, 16) for m in MODALITIES})
    torch.testing.assert_close(said["optical"][-1], said["sar"][-1])


def test_independent_encoders_share_nothing(cfg):
    net = network(cfg)
    for part in (net.stems, net.levels, net.transformers):
        optical, sar = ({p.data_ptr() for p in part[m].parameters()} for m in MODALITIES)
        assert optical and not optical & sar
    for part in (net.decoders["footprint"], net.decoders["height"]):
        assert not {p.data_ptr() for p in part.parameters()} & {p.data_ptr() for p in net.levels.parameters()}


def test_what_one_stream_has_for_itself_is_named_by_its_modality(cfg):
    """By which SOLVER.SAR_LR_FACTOR finds it; cross-fusion is of both."""
    net = network(cfg)
    named, of_one = dict(net.named_parameters()), modality_of_parameters(net)
    parts = {name.split(".")[0] for name, p in named.items() if of_one.get(p) == "sar"}
    assert parts == {"stems", "levels", "transformers"}
    shared = network(cfg, SHARE_WEIGHTS=True)
    of_one = modality_of_parameters(shared)
    assert {n.split(".")[0] for n, p in shared.named_parameters() if p in of_one} == {"stems"}


# ---- Cross-fusion ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_queries_come_from_the_other_modality_keys_and_values_from_its_own(cfg):
    """In SAR's branch: what SAR's norm is given is seen by keys, values; what the optical one is, by queries."""
    net = network(cfg).eval()
    assert len(exchanges(net)) == 2
    for fusion in net.exchanges:
        for own, other in (MODALITIES, MODALITIES[::-1]):
            block, given = getattr(fusion, own), {}
            for layer in ("query", "key", "value"):
                getattr(block, layer).register_forward_hook(
                    lambda _, x, __, given=given, layer=layer: given.__setitem__(layer, x[0].clone())
                )
            maps = {m: torch.randn(1, 8 * WIDTH, 3, 5) for m in MODALITIES}
            valid = [torch.ones(1, 1, 3, 5)] * 2
            fusion(*(maps[m] for m in MODALITIES), *valid)
            normed = {m: getattr(fusion, f"{m}_norm")(maps[m].permute(0, 2, 3, 1)) for m in MODALITIES}
            torch.testing.assert_close(given["query"], normed[other])
            torch.testing.assert_close(given["key"], normed[own])
            torch.testing.assert_close(given["value"], normed[own])


@torch.no_grad()
def test_a_change_of_the_other_modality_changes_weights_but_not_values(cfg):
    """With values that are the same in every cell, no query matters; with queries alone, its own cells are weighed."""
    fusion = network(cfg).eval().exchanges[0]
    own, other = torch.randn(1, 8 * WIDTH, 3, 3), torch.randn(1, 8 * WIDTH, 3, 3)
    valid = torch.ones(1, 1, 3, 3)
    changed = torch.randn(1, 8 * WIDTH, 3, 3)
    before, after = (fusion(x, own, valid, valid)[1] for x in (other, changed))
    assert not torch.allclose(before, after)
    same = own[:, :, :1, :1].expand_as(own).contiguous()
    before, after = (fusion(x, same, valid, valid)[1] for x in (other, changed))
    torch.testing.assert_close(before, after)


@torch.no_grad()
def test_concatenation_tells_neither_stream_of_the_other(cfg):
    net = network(cfg, FUSION="concat").eval()
    assert not exchanges(net) and not len(net.exchanges)
    seen = {}
    net.transformers["sar"].register_forward_hook(lambda _, __, y: seen.setdefault("sar", []).append(y))
    one = picture(1)
    other = Picture(one.optical + 1, one.sar, one.optical_valid, one.sar_valid, one.target)
    maps = [net(one), net(other)]
    assert torch.equal(*seen["sar"]) and not torch.equal(maps[0].footprint, maps[1].footprint)


# ---- Transformer -------------------------------------------------------------------------------------------


def test_positions_are_resized_to_other_tiles():
    transformer = Transformer(8, depth=0, heads=2, mlp_ratio=2.0, cells=4)
    assert torch.equal(transformer.positions(4, 4), transformer.position)
    with torch.no_grad():
        transformer.position.copy_(torch.arange(4.0)[None, None, :, None].expand(1, 8, 4, 4))
    wide = transformer.positions(8, 3)
    assert wide.shape == (1, 8, 8, 3)
    # The top stays the top, and positions in between lie in between.
    rows = wide[0, 0, :, 0]
    assert (rows.diff() > 0).all() and rows[0].abs() < 0.3 and (rows[-1] - 3).abs() < 0.3
    assert wide.std(dim=3).max() < 1e-5


@torch.no_grad()
def test_without_blocks_it_is_the_embedding_and_the_position():
    transformer, x = Transformer(8, depth=0, heads=2, mlp_ratio=2.0, cells=3), torch.randn(2, 8, 3, 3)
    expected = torch.einsum("oi,nihw->nohw", transformer.embed.weight, x)
    expected = expected + transformer.embed.bias[:, None, None] + transformer.position
    torch.testing.assert_close(transformer(x, torch.ones(2, 1, 3, 3)), expected)


@torch.no_grad()
def test_a_block_is_the_papers():
    """x1 = x + MSA(LN(x)), x2 = x1 + MLP(LN(x1)), against torch's own attention."""
    transformer = Transformer(8, depth=1, heads=2, mlp_ratio=2.0, cells=3)
    block, norm = transformer.blocks[0], transformer.norms[0]
    for layer in (block.out, block.mlp[2]):
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    parts = (block.query, block.key, block.value)
    reference.in_proj_weight.copy_(torch.cat([layer.weight for layer in parts]))
    reference.in_proj_bias.copy_(torch.cat([layer.bias for layer in parts]))
    reference.out_proj.load_state_dict(block.out.state_dict())
    x = torch.randn(2, 8, 3, 3)
    tokens = (transformer.embed(x.permute(0, 2, 3, 1)) + transformer.position.permute(0, 2, 3, 1)).flatten(
        1, 2
    )
    normed = norm(tokens)
    x1 = tokens + reference(normed, normed, normed)[0]
    expected = x1 + block.mlp(block.norm(x1))
    said = transformer(x, torch.ones(2, 1, 3, 3)).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tokens_without_data_are_no_keys():
    transformer = Transformer(8, depth=2, heads=2, mlp_ratio=2.0, cells=4)
    for block in transformer.blocks:
        torch.nn.init.normal_(block.out.weight)
    x, valid = torch.randn(1, 8, 4, 4), torch.ones(1, 1, 4, 4)
    valid[..., 2:] = 0
    other = x.clone()
    other[..., 2:] += 5
    torch.testing.assert_close(transformer(x, valid)[..., :2], transformer(other, valid)[..., :2])
    assert transformer(x, torch.zeros_like(valid)).isfinite().all()


# ---- Keys that mean nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"FUSION": "corss"}, "FUSION 'corss'.*Did you mean 'cross'"),
        ({"HEADS": 0}, "HEADS is 0, expected 1 or more"),
        ({"HEADS": 3}, "tokens of 32 channels: expected a multiple of 4 times .*HEADS, 12"),
        ({"DEPTH": -1}, "DEPTH is -1, expected 0 or more"),
        ({"POSITIONS": 0}, "POSITIONS is 0, expected 1 or more"),
        ({"MLP_RATIO": 0.0}, "MLP_RATIO is 0.0, expected above 0"),
    ],
)
def test_keys_that_mean_nothing(cfg, keys, message):
    for key, value in keys.items():
        cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET[key] = value
    with pytest.raises(InputError, match=message):
        check_tasks(cfg)


@pytest.mark.parametrize(("key", "value"), [("FUSION", "concat"), ("SHARE_WEIGHTS", True)])
def test_one_modality_has_nothing_to_fuse_or_share(cfg, key, value):
    cfg.INPUT.MODALITIES = ["sar"]
    check_tasks(cfg)
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET[key] = value
    with pytest.raises(InputError, match=r"about two modalities, but INPUT.MODALITIES is \['sar'\]"):
        check_tasks(cfg)


# ---- Learning ----------------------------------------------------------------------------------------------


@pytest.mark.slow  # half a minute of a free core
def test_overfits_four_tiles(cfg, tmp_path):
    net = cfg.MODEL.DENSE_NET
    net.WIDTH, net.FUSION_HEIGHT_NET.HEADS = 16, 4
    path = str(write_split(tmp_path, counts=(3, 2, 1, 4)))
    mapper = FusionDatasetMapper(
        True,
        optical_bands=BANDS.optical,
        sar_bands=BANDS.sar,
        height_labels="auto",
        footprint_labels=True,
    )
    tiles = [mapper(record) for record in catalog.records(catalog.load_split(path))]
    truth_m = torch.stack([x["building_height_m"] for x in tiles])
    net.HEIGHT_SCALE_M = float(truth_m.nan_to_num().max())
    torch.manual_seed(0)
    model = build_model(cfg).train()
    steps = 200
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model(tiles).values()).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        said = model.eval()(tiles)
    footprint = torch.stack([x["footprint_map"] > 0.5 for x in said])
    height_m = torch.stack([x["height_map_m"] for x in said])
    true_footprint, building = torch.stack([x["footprint"] for x in tiles]) == 1, truth_m > 0
    dice = 2 * (footprint & true_footprint).sum() / (footprint.sum() + true_footprint.sum())
    ratio = height_m[building].clamp(min=1e-6) / truth_m[building]
    delta1 = (torch.maximum(ratio, 1 / ratio) < 1.25).float().mean()
    print(f"dice {dice:.4f}, delta1 {delta1:.4f}")
    assert dice >= 0.95 and delta1 >= 0.9
