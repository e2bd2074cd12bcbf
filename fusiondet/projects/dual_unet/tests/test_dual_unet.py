"""The dual U-Net: maps of every level, what the branches tell each other, losses and the mean by hand, one modality."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import check_tasks
from fusiondet.data import catalog
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.engine.balance import BalanceModalities
from fusiondet.engine.complete_config import complete_config
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError
from fusiondet.modeling.dense_heads import DenseTargets
from fusiondet.modeling.dense_nets import Picture, dense_net_named
from fusiondet.modeling.fusion import MODALITIES, cut_off, exchanges, mean_messages
from fusiondet.projects.dual_unet.dual_unet import mean_logit, power_jaccard_loss
from tests.support.tiny_city import BANDS, tiny_config, write_split

import pytest
import torch
from detectron2.modeling import build_model

NAN = math.nan
OPTICAL, SAR = slice(0, 3), slice(3, 4)


@pytest.fixture
def cfg(dense_cfg):
    net = dense_cfg.MODEL.DENSE_NET
    net.NAME, net.TASKS, net.WIDTH, net.HEIGHT_SCALE_M = "DualUNet", ["footprint"], 4, 0.0
    return dense_cfg


def network(cfg, optical=3, sar=1):
    cfg.INPUT.MODALITIES = ["optical"] * (optical > 0) + ["sar"] * (sar > 0)
    check_tasks(cfg)
    torch.manual_seed(0)
    return dense_net_named("DualUNet")(cfg, optical, sar)


def built(cfg):
    check_tasks(cfg)
    torch.manual_seed(0)
    return build_model(cfg)


def open_gates(model):
    """What the branches tell each other makes a difference."""
    for op in exchanges(model).values():
        for parameter in op.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def picture(n=2, height=64, width=96, optical=3, sar=1):
    generator = torch.Generator().manual_seed(1)
    bands = torch.randn(n, optical + sar, height, width, generator=generator)
    valid = torch.ones(n, 1, height, width)
    return Picture(bands[:, :optical], bands[:, optical:], valid * (optical > 0), valid * (sar > 0), bands)


def tile(height=64, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(4, height, width, generator=generator) * 100
    footprint = torch.zeros(height, width)
    footprint[height // 3 : height // 2 + 1, width // 3 :] = 1.0
    return {"image": image, "footprint": footprint, "height": height, "width": width, "gsd_m": 0.5}


def check_gradients(model):
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# ---- Shapes ----------------------------------------------------------------------------------------------


def test_maps_of_every_level_and_four_exchanges_between_them(cfg):
    net, seen, order = network(cfg).eval(), {}, []
    for m, branch in net.branches.items():
        for part, layers in (("down", branch.encoder.levels), ("up", branch.decoder.steps)):
            for i, layer in enumerate(layers):

                def look(_, given, said, key=(m, part, i)):
                    seen[key] = (given[0].shape[1], *said.shape)
                    order.append(key)

                layer.register_forward_hook(look)
    for i, op in enumerate(net.exchanges):
        op.register_forward_hook(lambda _, given, __, i=i: order.append((i, given[0].shape, given[2].shape)))
    with torch.no_grad():
        maps = net(picture())
    for m, bands in (("optical", 3), ("sar", 1)):
        # Channels taken in; then what comes out: WIDTH times 1, 2, 2, at strides 1, 2, 4.
        assert seen[m, "down", 0] == (bands, 2, 4, 64, 96)
        assert seen[m, "down", 1] == (4, 2, 8, 32, 48)
        assert seen[m, "down", 2] == (8, 2, 8, 16, 24)
        assert seen[m, "up", 1] == (16, 2, 8, 32, 48)
        assert seen[m, "up", 0] == (12, 2, 4, 64, 96)
        assert maps.branches[m].shape == (2, 1, 64, 96)
    # Behind every pair of convolutions but the last, from which a branch decides.
    told = [entry for entry in order if isinstance(entry[0], int)]
    sizes = [(4, 64, 96), (8, 32, 48), (8, 16, 24), (8, 32, 48)]
    assert told == [(i, (2, *size), (2, 1, *size[1:])) for i, size in enumerate(sizes)]
    assert order[-1] == ("sar", "up", 0) and order.index(told[3]) > order.index(("sar", "up", 1))
    assert maps.footprint.shape == (2, 1, 64, 96) and maps.height_m is None


def test_the_branches_are_two_of_the_same_and_untrained_gates_are_open(cfg):
    both, sar = network(cfg), network(cfg, optical=0)
    shapes = {
        m: {n: p.shape for n, p in net.named_parameters() if n != "encoder.levels.0.0.weight"}
        for m, net in both.branches.items()
    }
    assert shapes["optical"] == shapes["sar"]
    # Untrained MMTMs multiply by 1: the branch is the U-Net alone.
    sar.branches["sar"].load_state_dict(both.branches["sar"].state_dict())
    x = picture()
    alone = Picture(x.optical[:, :0], x.sar, x.optical_valid * 0, x.sar_valid, x.sar)
    with torch.no_grad():
        torch.testing.assert_close(both.eval()(x).branches["sar"], sar.eval()(alone).footprint)


@pytest.mark.parametrize("multiples", [[1, 2], [1, 2, 4, 8]])
def test_other_depths_have_an_exchange_behind_every_pair_but_the_last(cfg, multiples):
    cfg.MODEL.DENSE_NET.DUAL_UNET.MULTIPLES = multiples
    net = network(cfg)
    assert len(net.exchanges) == 2 * len(multiples) - 2 and net.stride == 2 ** (len(multiples) - 1)
    assert net(picture()).footprint.shape == (2, 1, 64, 96)


@pytest.mark.parametrize(("optical", "sar"), [(3, 1), (10, 2), (3, 0), (0, 1)])
def test_every_parameter_gets_a_finite_gradient(cfg, optical, sar):
    net = network(cfg, optical, sar)
    maps = net(picture(optical=optical, sar=sar))
    truth = torch.zeros(2, 1, 64, 96)
    truth[0, :, 8:20, 8:40] = 1.0
    losses = net.losses(maps, DenseTargets(truth * NAN, truth, truth))
    names = [m for m, n in (("optical", optical), ("sar", sar)) if n]
    assert [*losses] == [f"{m}/loss_footprint" for m in names]
    sum(losses.values()).backward()
    check_gradients(net)


# ---- The loss and the mean -------------------------------------------------------------------------------


def test_power_jaccard_by_hand():
    logits = torch.tensor([0.0, math.log(3), -math.log(3), 100.0])  # p = 1/2, 3/4, 1/4, 1
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0])
    # overlap 1/2 + 3/4; power 2: 1/4 + 9/16 + 1/16 + 1 + two true pixels; power 1: 1/2 + 3/4 + 1/4 + 1 + two.
    assert power_jaccard_loss(logits, truth).item() == pytest.approx(1 - 2.25 / (1.875 + 2 - 1.25 + 1))
    assert power_jaccard_loss(logits, truth, 1.0).item() == pytest.approx(1 - 2.25 / (2.5 + 2 - 1.25 + 1))


def test_power_jaccard_at_its_ends():
    truth = torch.tensor([1.0, 1.0, 0.0])
    assert power_jaccard_loss(100 * (2 * truth - 1), truth).item() == pytest.approx(0, abs=1e-6)
    assert power_jaccard_loss(100 * (1 - 2 * truth), truth).item() == pytest.approx(1 - 1 / 4)
    unknown = torch.full((3,), NAN)
    logits = torch.zeros(3, requires_grad=True)
    loss = power_jaccard_loss(logits, unknown)
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()
    nothing_there = torch.zeros(3, requires_grad=True)
    power_jaccard_loss(nothing_there, torch.zeros(3)).backward()
    assert (nothing_there.grad > 0).all(), "a batch without buildings teaches, too"


def test_unknown_pixels_are_left_out():
    logits, truth = torch.tensor([1.0, -2.0, 5.0]), torch.tensor([1.0, 0.0, NAN])
    assert power_jaccard_loss(logits, truth) == power_jaccard_loss(logits[:2], truth[:2])


def test_the_mean_is_of_probabilities_by_what_each_branch_saw():
    p, q = torch.tensor([0.9, 0.9, 0.9, 0.9]), torch.tensor([0.3, 0.3, 0.3, 0.3])
    valid = [torch.tensor([1.0, 1, 0, 0]), torch.tensor([1.0, 0, 1, 0])]
    shaped = [x.reshape(1, 1, 1, 4) for x in (p.logit(), q.logit(), *valid)]
    mean = mean_logit(shaped[:2], shaped[2:]).sigmoid().flatten()
    torch.testing.assert_close(mean, torch.tensor([0.6, 0.9, 0.3, 0.6]))


def test_certain_branches_have_a_finite_mean():
    ones = torch.ones(1, 1, 1, 2)
    logits = [
        torch.tensor([200.0, 200.0]).reshape(1, 1, 1, 2),
        torch.tensor([-200.0, 300.0]).reshape(1, 1, 1, 2),
    ]
    mean = mean_logit(logits, [ones, ones]).flatten()
    assert mean.isfinite().all() and mean[0].item() == pytest.approx(0, abs=1e-5) and mean[1] > 100


def test_the_map_is_the_mean_of_the_branches(cfg):
    model = open_gates(built(cfg)).eval()
    x = tile()
    x["image"][SAR, :, :16] = NAN
    x["image"][OPTICAL, 48:] = NAN
    with torch.no_grad():
        (output,), branches = model([x]), model.branch_predictions([x])
    p = {m: branches[m][0]["footprint_map"] for m in (*MODALITIES, "fused")}
    assert torch.equal(p["fused"], output["footprint_map"]) and output.keys() == {"footprint_map"}
    torch.testing.assert_close(p["fused"][:48, 16:], (p["optical"] + p["sar"])[:48, 16:] / 2)
    torch.testing.assert_close(p["fused"][:48, :16], p["optical"][:48, :16])
    torch.testing.assert_close(p["fused"][48:, 16:], p["sar"][48:, 16:])
    assert not torch.allclose(p["optical"], p["sar"])


# ---- What the branches tell each other -------------------------------------------------------------------


def test_cutting_off_changes_what_the_other_branch_says_alone(cfg):
    model = open_gates(built(cfg)).eval()
    inputs = [[tile(seed=i)] for i in range(3)]
    means = mean_messages(model, inputs)
    assert [*means] == [f"backbone.net.exchanges.{i}" for i in range(4)]
    assert [len(one["sar"]) for one in means.values()] == [4, 8, 8, 8]
    (x,) = inputs[0]

    def said():
        return {m: one[0]["footprint_map"] for m, one in model.branch_predictions([x]).items()}

    def changed(one, other):
        return {m for m in one if not torch.equal(one[m], other[m])}

    as_it_is = said()
    for silent, hearing in (("sar", "optical"), ("optical", "sar")):
        with cut_off(model, means, silent):
            without = said()
            image = x["image"].clone()
            x["image"][model.channels[silent]] += 7
            # Deaf to it, whatever it shows.
            assert torch.equal(said()[hearing], without[hearing])
            x["image"] = image
        # The silent branch hears the other one as before; that one's answer comes back to it in the next exchange.
        assert hearing in changed(as_it_is, without) and "fused" in changed(as_it_is, without)
    assert changed(as_it_is, said()) == set(), "nothing stays cut off"


def test_cutting_off_the_last_exchange_leaves_the_silent_branch_as_it_was(cfg):
    model = open_gates(built(cfg)).eval()
    inputs = [[tile(seed=i)] for i in range(2)]
    means = mean_messages(model, inputs)
    for op in [*model.net.exchanges][:3]:
        for gate in (op.optical, op.sar):
            torch.nn.init.zeros_(gate.weight)
            torch.nn.init.zeros_(gate.bias)
    before = model.branch_predictions(inputs[0])
    with cut_off(model, means, "sar"):
        after = model.branch_predictions(inputs[0])
    maps = [{m: one[0]["footprint_map"] for m, one in said.items()} for said in (before, after)]
    assert torch.equal(maps[0]["sar"], maps[1]["sar"]) and not torch.equal(
        maps[0]["optical"], maps[1]["optical"]
    )


def test_balanced_training_trains_the_slower_branch_alone(tmp_path):
    write_split(tmp_path, "train", (3, 2))
    overrides = ["MODEL.META_ARCHITECTURE", "FusionDenseNet", "MODEL.DENSE_NET.NAME", "DualUNet"]
    overrides += [
        "MODEL.DENSE_NET.TASKS",
        "['footprint']",
        "MODEL.DENSE_NET.WIDTH",
        "4",
        "MODEL.MASK_ON",
        "False",
    ]
    overrides += ["MODEL.HEIGHT_ON", "False", "TEST.BEST_METRIC", "dense/dice", "DATASETS.TEST", "[]"]
    overrides += ["MODEL.FUSION.BALANCE.WINDOW", "1", "MODEL.FUSION.BALANCE.TOLERANCE", "0.0"]
    cfg = tiny_config(tmp_path, *overrides, "SOLVER.WARMUP_ITERS", "0", test="")
    complete_config(cfg)
    trainer = FusionTrainer(cfg)
    open_gates(trainer.model)
    hook = next(h for h in trainer._hooks if isinstance(h, BalanceModalities))
    own = {m: {id(p) for p in trainer.model.net.branches[m].parameters()} for m in MODALITIES}
    assert all({id(p) for p in hook._parameters[f"{m}/own"]} == own[m] for m in MODALITIES)
    seen, losses_of = [], trainer.model.net.losses

    def spy(maps, targets):
        seen.append((hook.trained, dict(trainer.model.task_weighting.branch_weights)))
        return losses_of(maps, targets)

    trainer.model.net.losses = spy
    trainer.train()
    alone = [(trained, weights) for trained, weights in seen if trained]
    assert len(seen) == 4 and alone, "a step of both, then one of one"
    assert all(weights == {m: float(m == trained) for m in MODALITIES} for trained, weights in alone)
    assert trainer.model.task_weighting.branch_weights == {"optical": 1.0, "sar": 1.0}


# ---- Missing data, small tiles, keys ---------------------------------------------------------------------


@pytest.mark.parametrize(("hidden", "other"), [(OPTICAL, "sar"), (SAR, "optical")])
def test_without_one_modality_the_other_decides_and_is_asked_alone(cfg, hidden, other):
    model = open_gates(built(cfg))
    inputs = [tile(seed=i) for i in range(2)]
    for x in inputs:
        x["image"][hidden] = NAN
    losses = model.train()(inputs)
    assert {name: loss.item() > 0 for name, loss in losses.items()} == {
        f"{m}/loss_footprint": m == other for m in MODALITIES
    }
    sum(losses.values()).backward()
    check_gradients(model)
    model.eval()
    with torch.no_grad():
        branches = model.branch_predictions(inputs[:1])
    maps = {m: branches[m][0]["footprint_map"] for m in branches}
    torch.testing.assert_close(maps["fused"], maps[other])


def test_a_dropped_modality_is_not_asked(cfg):
    cfg.MODEL.FUSION.MODALITY_DROPOUT.sar = 1.0
    losses = built(cfg).train()([tile()])
    assert losses["sar/loss_footprint"].item() == 0 < losses["optical/loss_footprint"].item()


def test_no_label_is_no_loss_and_no_building_is_one(cfg):
    model = built(cfg).train()
    x = tile()
    x["footprint"] = torch.zeros(64, 64)
    assert all(loss.item() > 0 for loss in model([x]).values())
    assert all(loss.item() == 0 for loss in model([x | {"footprint": None}]).values())


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (33, 61)])
def test_tiles_of_any_size(cfg, size):
    model = built(cfg)
    x = tile(*size)
    losses = model.train()([x])
    sum(losses.values()).backward()
    check_gradients(model)
    with torch.no_grad():
        (output,) = model.eval()([x])
    assert output["footprint_map"].shape == size and output["footprint_map"].isfinite().all()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MULTIPLES", [2], "MULTIPLES is .2., expected two whole numbers"),
        ("MULTIPLES", [1, 0], "expected two whole numbers above 0"),
        ("MULTIPLES", [1, 1.5], "expected two whole numbers above 0"),
        ("POWER", 0.5, "POWER is 0.5, expected 1 to 2"),
    ],
)
def test_keys_that_mean_nothing(cfg, key, value, message):
    cfg.MODEL.DENSE_NET.DUAL_UNET[key] = value
    with pytest.raises(InputError, match=message):
        check_tasks(cfg)


def test_heights_are_not_its_task(cfg):
    cfg.MODEL.DENSE_NET.TASKS = ["footprint", "height"]
    with pytest.raises(InputError, match="TASKS entry of DualUNet"):
        check_tasks(cfg)


# ---- Learning --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_four_tiles_by_heart(cfg, tmp_path, capsys):
    cfg.MODEL.DENSE_NET.WIDTH = 8
    path = str(write_split(tmp_path, counts=(3, 2, 1, 4)))
    mapper = FusionDatasetMapper(
        True, optical_bands=BANDS.optical, sar_bands=BANDS.sar, footprint_labels=True
    )
    inputs = [mapper(record) for record in catalog.records(catalog.load_split(path))]
    model = built(cfg).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        sum(model(inputs).values()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        said = torch.stack([output["footprint_map"] >= 0.5 for output in model(inputs)])
    truth = torch.stack([x["footprint"] > 0 for x in inputs])
    dice = 2 * (said & truth).sum() / (said.sum() + truth.sum())
    with capsys.disabled():
        print(f"\ndual U-Net: Dice {dice:.4f} of four tiles")
    assert dice >= 0.95
