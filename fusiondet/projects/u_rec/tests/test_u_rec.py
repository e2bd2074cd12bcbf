"""U-REC: levels, the decoder without skips, losses by hand, tiles without labels and tiles that are small."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import check_tasks
from fusiondet.data import catalog
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.errors import InputError
from fusiondet.modeling.architecture import architecture_of
from fusiondet.modeling.dense_heads import DenseMaps, DenseTargets
from fusiondet.modeling.dense_nets import Picture, dense_net_named
from fusiondet.projects.u_rec.u_rec import WIDTHS, class_loss, one_against_all
from tests.support.tiny_city import BANDS, write_split

import pytest
import torch
from detectron2.modeling import build_model

NAN = math.nan


@pytest.fixture
def cfg(small_cfg):
    model = small_cfg.MODEL
    model.META_ARCHITECTURE, model.MASK_ON, model.HEIGHT_ON = "FusionDenseNet", False, False
    model.FUSION.OPTICAL_CHANNELS = 3
    model.DENSE_NET.NAME, model.DENSE_NET.TASKS, model.DENSE_NET.WIDTH = "UREC", ["classes"], 4
    model.DENSE_NET.CLASSES = ["tree", "building", "road"]
    small_cfg.TEST.BEST_METRIC = "classes/oa"
    return small_cfg


def network(cfg, optical=3, sar=1):
    torch.manual_seed(0)
    return dense_net_named("UREC")(cfg, optical, sar)


def picture(n=2, height=64, width=96, optical=3, sar=1):
    generator = torch.Generator().manual_seed(1)
    bands = torch.randn(n, optical + sar, height, width, generator=generator)
    valid = torch.ones(n, 1, height, width)
    return Picture(bands[:, :optical], bands[:, optical:], valid, valid * (sar > 0), bands)


def targets(image, classes):
    return DenseTargets(torch.full_like(classes, NAN), torch.full_like(classes, NAN), image, classes)


def drawn_classes(n, height, width, k=3):
    return torch.randint(0, k, (n, 1, height, width), generator=torch.Generator().manual_seed(2)).float()


# ---- Shapes and paths ------------------------------------------------------------------------------------


def test_five_poolings_with_maps_of_every_level(cfg):
    net, seen = network(cfg).train(), {}
    for name in ("encoder", "segmentation", "reconstruction"):
        part = getattr(net, name)
        for i, layer in enumerate(getattr(part, "levels", None) or part.steps):
            layer.register_forward_hook(lambda _, __, y, key=(name, i): seen.__setitem__(key, tuple(y.shape)))
    maps = net(picture())
    for i, times in enumerate(WIDTHS):
        shape = (2, 4 * times, 64 >> i, 96 >> i)
        assert seen["encoder", i] == shape
        if i < 5:
            assert seen["segmentation", i] == seen["reconstruction", i] == shape
    assert len(seen) == 6 + 5 + 5 and net.stride == 32
    assert maps.classes.shape == (2, 3, 64, 96) and maps.reconstruction.shape == (2, 4, 64, 96)
    assert maps.footprint.shape == (2, 1, 64, 96)


@pytest.mark.parametrize(("optical", "sar"), [(3, 0), (0, 2), (7, 1)])
def test_any_bands(cfg, optical, sar):
    maps = network(cfg, optical, sar).train()(picture(optical=optical, sar=sar))
    assert maps.reconstruction.shape[1] == optical + sar


def test_the_reconstruction_sees_the_coarsest_map_alone(cfg):
    net = network(cfg).eval()
    levels = net.encoder(picture().stacked)
    others = [torch.randn_like(level) for level in levels[:-1]] + levels[-1:]
    assert torch.equal(net.reconstruction(levels), net.reconstruction(others))
    assert not torch.allclose(net.segmentation(levels), net.segmentation(others))
    other_end = [*levels[:-1], torch.randn_like(levels[-1])]
    assert not torch.allclose(net.reconstruction(levels), net.reconstruction(other_end))


@pytest.mark.parametrize("w1", [0.0, 0.1])
def test_every_parameter_has_a_finite_gradient(cfg, w1):
    cfg.MODEL.DENSE_NET.U_REC.W1 = w1
    net, one = network(cfg).train(), picture()
    losses = net.losses(net(one), targets(one.target, drawn_classes(2, 64, 96)))
    sum(losses.values()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert ("loss_reconstruction" in losses) == (w1 > 0)
    assert any(name.startswith("reconstruction") for name, _ in net.named_parameters()) == (w1 > 0)


def test_in_evaluation_nothing_is_reconstructed(cfg):
    maps = network(cfg).eval()(picture())
    assert maps.reconstruction is None and maps.classes is not None


# ---- Numbers ---------------------------------------------------------------------------------------------


def test_losses_by_hand(cfg):
    net = network(cfg)
    logits = torch.zeros(2, 3, 1, 2)
    logits[0, 1, 0, 0] = math.log(2.0)  # probabilities 1/4, 1/2, 1/4
    truth = torch.tensor([[[[1.0, 2.0]]], [[[NAN, NAN]]]])
    image = torch.tensor([[[[1.0, NAN]]], [[[0.0, -2.0]]]])
    said = torch.tensor([[[[0.5, 9.0]]], [[[0.0, 1.0]]]])
    maps = DenseMaps(classes=logits, reconstruction=said)
    losses = net.losses(maps, targets(image, truth))
    assert float(losses["loss_classes"].detach()) == pytest.approx(0.9 * (math.log(2) + math.log(3)) / 2)
    assert float(losses["loss_reconstruction"].detach()) == pytest.approx(0.1 * 3.5 / 3)
    net.reduction = "sum_per_image"
    losses = net.losses(maps, targets(image, truth))
    assert float(losses["loss_reconstruction"].detach()) == pytest.approx(0.1 * 3.5 / 2)


def test_a_sum_is_a_mean_of_another_weight(cfg):
    """The equivalence that the docstring states: gradients point the same way."""
    one, w1, n = picture(), 0.1, 4 * 64 * 96
    gradients = []
    for reduction, weight in (("sum_per_image", w1), ("mean", n * w1 / (n * w1 + 1 - w1))):
        cfg.MODEL.DENSE_NET.U_REC.REDUCTION, cfg.MODEL.DENSE_NET.U_REC.W1 = reduction, weight
        net = network(cfg).train()
        losses = net.losses(net(one), targets(one.target, drawn_classes(2, 64, 96)))
        sum(losses.values()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]).double())
    scale = n * w1 + 1 - w1
    assert torch.allclose(gradients[0], scale * gradients[1], rtol=1e-3, atol=1e-3 * gradients[0].abs().max())


def test_without_any_known_class_the_loss_is_zero_and_attached():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = class_loss(logits, torch.full((1, 1, 2, 2), NAN))
    loss.backward()
    assert float(loss.detach()) == 0 and (logits.grad == 0).all()


def test_the_footprint_is_the_building_against_all_others():
    logits = torch.randn(2, 4, 3, 5)
    expected = logits.softmax(dim=1)[:, 2:3]
    torch.testing.assert_close(one_against_all(logits, 2).sigmoid(), expected)


def test_without_a_class_building_there_is_no_footprint(cfg):
    cfg.MODEL.DENSE_NET.CLASSES = ["water", "land"]
    assert network(cfg).eval()(picture()).footprint is None


# ---- In the whole ----------------------------------------------------------------------------------------


def inputs(n=2, size=64, labelled=True):
    generator = torch.Generator().manual_seed(3)
    found = []
    for i in range(n):
        image = torch.cat(
            [
                100 + 50 * torch.randn(3, size, size, generator=generator),
                torch.randn(1, size, size, generator=generator),
            ]
        )
        classes = drawn_classes(1, size, size)[0, 0]
        found.append({"image": image, "classes": classes, "labelled": labelled, "file_name": f"{i}.tif"})
    return found


def test_tiles_without_labels_train_the_reconstruction_and_the_encoder_alone(cfg):
    model = build_model(cfg).train()
    losses = model(inputs(labelled=False))
    assert float(losses["loss_classes"].detach()) == 0 and float(losses["loss_reconstruction"].detach()) > 0
    sum(losses.values()).backward()
    moved = {
        name.split(".")[2] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert moved == {"encoder", "reconstruction", "bands"}


def test_what_a_tile_without_labels_says_of_classes_does_not_count(cfg):
    model = build_model(cfg).train()
    mixed = inputs()
    mixed[1]["labelled"] = False
    first = model(mixed)["loss_classes"]
    mixed[1]["classes"] = 2 - mixed[1]["classes"]
    assert torch.equal(first, model(mixed)["loss_classes"])


@pytest.mark.parametrize("size", [1, 20, 32, 33])
def test_a_tile_smaller_than_the_stride(cfg, size):
    model = build_model(cfg)
    losses = model.train()(inputs(1, size))
    assert all(torch.isfinite(v) for v in losses.values())
    (output,) = model.eval()(inputs(1, size))
    assert output["class_map"].shape == (3, size, size) and "instances" not in output
    torch.testing.assert_close(output["class_map"].sum(dim=0), torch.ones(size, size))
    torch.testing.assert_close(output["footprint_map"], output["class_map"][1])


def test_no_data_is_neither_learned_from_nor_passed_on(cfg):
    model = build_model(cfg).train()
    one = inputs(1)
    one[0]["image"][:, :, 32:] = NAN
    one[0]["classes"][:, 32:] = NAN
    losses = model(one)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# ---- Configs ---------------------------------------------------------------------------------------------


def test_the_weight_says_whether_tiles_without_labels_are_of_use(cfg):
    cfg.DATALOADER.UNLABELLED_PER_BATCH = 2
    check_tasks(cfg)
    assert architecture_of(cfg).pixel_tasks(cfg) == ("classes", "reconstruction")
    cfg.MODEL.DENSE_NET.U_REC.W1 = 0.0
    assert architecture_of(cfg).pixel_tasks(cfg) == ("classes",)
    with pytest.raises(InputError, match="DATALOADER.UNLABELLED_PER_BATCH is 2"):
        check_tasks(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("U_REC.W1", 1.0, "U_REC.W1 is 1.0, expected 0 or more and below 1"),
        ("U_REC.W1", -0.1, "U_REC.W1 is -0.1"),
        ("U_REC.REDUCTION", "sum", "REDUCTION 'sum'.*Known: mean, sum_per_image"),
        ("TASKS", ["height"], "TASKS entry of UREC 'height'.*Known: classes"),
        ("HEIGHT.LOSS_WEIGHT", 2.0, "HEIGHT.LOSS_WEIGHT is 2.0, but UREC does not read it"),
    ],
)
def test_keys_that_mean_nothing(cfg, key, value, message):
    node, *last = cfg.MODEL.DENSE_NET, *key.split(".")
    for part in last[:-1]:
        node = node[part]
    node[last[-1]] = value
    with pytest.raises(InputError, match=message):
        check_tasks(cfg)


@pytest.mark.parametrize("names", [[], ["building"], ["a", "a"]])
def test_classes_that_are_none(cfg, names):
    cfg.MODEL.DENSE_NET.CLASSES = names
    with pytest.raises(InputError, match="MODEL.DENSE_NET.CLASSES is"):
        network(cfg)


# ---- Learning --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("w1", [0.0, 0.1])
def test_overfits_four_tiles(cfg, tmp_path, w1):
    cfg.MODEL.DENSE_NET.CLASSES, cfg.MODEL.DENSE_NET.WIDTH = ["background", "building"], 8
    cfg.MODEL.DENSE_NET.U_REC.W1 = w1
    path = str(write_split(tmp_path, counts=(3, 2, 1, 4)))
    mapper = FusionDatasetMapper(
        True, optical_bands=BANDS.optical, sar_bands=BANDS.sar, class_names=cfg.MODEL.DENSE_NET.CLASSES
    )
    tiles = [mapper(record) for record in catalog.records(catalog.load_split(path))]
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        sum(model(tiles).values()).backward()
        optimizer.step()
    with torch.no_grad():
        said = torch.stack([x["footprint_map"] >= 0.5 for x in model.eval()(tiles)])
    truth = torch.stack([x["classes"] for x in tiles]) == 1
    dice = 2 * (said & truth).sum() / (said.sum() + truth.sum())
    print(f"dice {dice:.4f}")
    assert dice >= 0.95
