"""Dense heads: sizes, numbers of the losses, masks, what reaches what."""

import itertools
import math

import fusiondet.compat  # noqa: F401
from fusiondet.errors import InputError
from fusiondet.modeling.dense_heads import (
    DENSE_HEAD_REGISTRY,
    DenseDecoder,
    DenseHeight,
    DenseMaps,
    DenseTargets,
    Footprint,
    Reconstruction,
    ValidGroupNorm,
    build_dense_heads,
    check_dense_heads,
)
from fusiondet.modeling.task_attention import TaskAttention

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

BANDS = 4
SHAPES = {f"p{level}": ShapeSpec(channels=16, stride=2**level) for level in (2, 3, 4, 5)}
NAN = math.nan


@pytest.fixture
def cfg(small_cfg):
    small_cfg.MODEL.DENSE_HEADS.NAMES = ["DenseHeight", "Footprint", "Reconstruction"]
    small_cfg.MODEL.DENSE_HEADS.CONV_DIM = 16
    return small_cfg


def build(cfg, **keys):
    for key, value in keys.items():
        *sections, last = key.split("__")
        node = cfg.MODEL.DENSE_HEADS
        for section in sections:
            node = node[section]
        node[last] = value
    torch.manual_seed(0)
    return build_dense_heads(cfg, SHAPES, BANDS)


def scene(n=1, height=64, width=64, shapes=SHAPES, seed=0):
    """Feature maps and an image of noise."""
    generator = torch.Generator().manual_seed(seed)
    features = {
        name: torch.randn(n, s.channels, -(-height // s.stride), -(-width // s.stride), generator=generator)
        for name, s in shapes.items()
    }
    return features, torch.randn(n, BANDS, height, width, generator=generator)


def nowhere_known(image):
    unknown = torch.full((len(image), 1, *image.shape[-2:]), NAN)
    return DenseTargets(unknown, unknown.clone(), torch.full_like(image, NAN))


def picture_of(image):
    return torch.cat([image, torch.ones_like(image[:, :1])], dim=1)


def wake(module):
    """Random numbers where training starts from zeros, so that what could matter does."""
    for attention in module.modules():
        if isinstance(attention, TaskAttention):
            nn.init.normal_(attention.excite.weight)
            nn.init.normal_(attention.spatial.weight)


# ---- Decoder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upsample", ["resize", "transposed"])
@pytest.mark.parametrize("skips", [True, False])
def test_every_step_doubles_the_map(skips, upsample):
    decoder = DenseDecoder(SHAPES, list(SHAPES), BANDS, 32, skips, upsample)
    seen = []
    for step in decoder.steps.values():
        step.register_forward_hook(lambda module, args, result: seen.append(tuple(result.shape[1:])))
    features, image = scene(height=64, width=96)
    decoder(features, picture_of(image))
    assert seen == [(32, 4, 6), (32, 8, 12), (32, 16, 24), (16, 32, 48), (8, 64, 96)]


@pytest.mark.parametrize("upsample", ["resize", "transposed"])
def test_maps_of_odd_size_end_at_that_of_the_image(upsample):
    shapes = {**SHAPES, "p6": ShapeSpec(channels=16, stride=64)}
    decoder = DenseDecoder(shapes, list(shapes), BANDS, 32, True, upsample)
    features, image = scene(height=96, width=99, shapes=shapes)
    assert decoder(features, picture_of(image)).shape == (1, 8, 96, 99)


def test_levels_may_be_left_out():
    decoder = DenseDecoder(SHAPES, ["p2", "p4"], BANDS, 32)
    features, image = scene()
    assert decoder.skips == [None, "p2", None, None]
    assert decoder({name: features[name] for name in ("p2", "p4")}, picture_of(image)).shape == (1, 8, 64, 64)


def test_a_decoder_in_two_parts_is_one_decoder():
    features, image = scene()
    torch.manual_seed(1)
    whole = DenseDecoder(SHAPES, list(SHAPES), BANDS, 32)
    first, rest = (DenseDecoder(SHAPES, list(SHAPES), BANDS, 32, steps=range(*s)) for s in ((2,), (2, 5)))
    for part in (first, rest):
        part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    picture = picture_of(image)
    assert torch.equal(rest(features, picture, first(features, picture)), whole(features, picture))


@pytest.mark.parametrize("skips", [True, False])
def test_without_skips_the_coarsest_map_is_all_there_is(skips):
    decoder = DenseDecoder(SHAPES, list(SHAPES), BANDS, 32, skips)
    features, image = scene()
    before = decoder(features, picture_of(image))
    for name in features:
        other = {**features, name: features[name] + 1}
        assert torch.equal(decoder(other, picture_of(image)), before) == (not skips and name != "p5"), name
    assert torch.equal(decoder(features, picture_of(image + 1)), before) == (not skips)


def test_the_reconstruction_has_no_skips_whatever_the_others_have(cfg):
    heads = build(cfg, SKIPS=True)
    features, image = scene()
    for f in features.values():
        f.requires_grad_()
    heads(features, image).reconstruction.sum().backward()
    assert {name for name, f in features.items() if f.grad is not None} == {"p5"}


# ---- Groups by valid cells ---------------------------------------------------------------------------------


def test_where_all_is_valid_it_is_group_norm():
    x = torch.randn(2, 16, 6, 5) * 3 + 2
    expected = nn.functional.group_norm(x, 2)
    torch.testing.assert_close(ValidGroupNorm(16)(x, torch.ones(2, 1, 6, 5)), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ValidGroupNorm(16)(x, torch.zeros(2, 1, 6, 5)), expected, atol=1e-5, rtol=1e-5)


def test_cells_without_data_have_no_say():
    x, valid = torch.randn(1, 16, 4, 8), torch.ones(1, 1, 4, 8)
    valid[..., 4:] = 0
    x[..., 4:] = 1000
    norm = ValidGroupNorm(16)
    torch.testing.assert_close(norm(x, valid)[..., :4], norm(x[..., :4], valid[..., :4]))


@pytest.mark.parametrize("channels, groups", [(4, 1), (6, 1), (8, 1), (16, 2), (64, 8), (22, 2), (44, 4)])
def test_groups_divide_the_channels(channels, groups):
    assert ValidGroupNorm(channels).groups == groups
    assert ValidGroupNorm(channels)(torch.randn(1, channels, 3, 3), torch.ones(1, 1, 3, 3)).isfinite().all()


@pytest.mark.parametrize("norm", ["GN", ""])
def test_padding_does_not_change_what_is_said_of_the_rest(cfg, norm):
    """But for the cells next to it, which see it as the backbone's do and have their small say in means."""
    cfg.MODEL.TASK_ATTENTION = True
    heads = build(cfg, NORM=norm, SKIPS=True)
    wake(heads)
    features, image = scene(height=64, width=256)
    padded_features, padded = scene(height=64, width=384, seed=1)
    padded[...] = NAN
    padded[..., :256] = image
    for name, f in features.items():
        padded_features[name][..., : f.shape[-1]] = f
    alone, beside = heads(features, image), heads(padded_features, padded)
    for field in ("height_m", "footprint", "reconstruction"):
        here, there = getattr(alone, field), getattr(beside, field)[..., :256]
        deviation = (here - there)[..., :128].abs().mean()
        assert deviation < (0.1 if norm else 1e-4) * here.std()
        assert not torch.allclose(here[..., 128:], there[..., 128:])


# ---- Losses ------------------------------------------------------------------------------------------------


def targets(height_m=None, footprint=None, image=None):
    return DenseTargets(*(None if t is None else torch.tensor([t]) for t in (height_m, footprint, image)))


def test_loss_of_heights_by_hand():
    """Two known pixels: ground said to be e - 1 metres high, and 7 m said to be 3: (1 + log 2) / 2."""
    maps = DenseMaps(height_m=torch.tensor([[[[math.e - 1, 3.0, 50.0]]]]))
    loss = DenseHeight(in_channels=8).loss(maps, targets(height_m=[[[0.0, 7.0, NAN]]]))
    assert loss.item() == pytest.approx((1 + math.log(2)) / 2)


def test_buildings_and_ground_have_one_half_of_the_loss_of_heights_each():
    maps = DenseMaps(height_m=torch.tensor([[[[3.0, 1.0, 0.0, 0.0]]]]))
    loss = DenseHeight(in_channels=8).loss(maps, targets(height_m=[[[7.0, 0.0, 0.0, 0.0]]]))
    assert loss.item() == pytest.approx((math.log(8 / 4) + math.log(2) / 3) / 2)
    # A tile without buildings has the ground's half alone.
    loss = DenseHeight(in_channels=8).loss(maps, targets(height_m=[[[NAN, 0.0, 0.0, 0.0]]]))
    assert loss.item() == pytest.approx(math.log(2) / 3 / 2)


def test_loss_of_footprints_by_hand():
    """Probabilities 3/4 and 1/2 on a building pixel and one beside it."""
    maps = DenseMaps(footprint=torch.tensor([[[[math.log(3.0), 0.0, 9.0]]]]))
    loss = Footprint(in_channels=8).loss(maps, targets(footprint=[[[1.0, 0.0, NAN]]]))
    entropy = (math.log(4 / 3) + math.log(2)) / 2
    dice = (2 * 0.75 + 1) / (0.75 + 0.5 + 1 + 1)
    assert loss.item() == pytest.approx(entropy + 1 - dice)


def test_loss_of_the_reconstruction_by_hand():
    """Differences 1 and 3 in two bands of a pixel; another has one band without data and one that is right."""
    maps = DenseMaps(reconstruction=torch.tensor([[[[1.0, 5.0]], [[3.0, 2.0]]]]))
    head = Reconstruction(in_channels=8, image_channels=2)
    loss = head.loss(maps, targets(image=[[[0.0, NAN]], [[0.0, 2.0]]]))
    assert loss.item() == pytest.approx((1 + 3 + 0) / 3)


def test_weights_scale_the_losses(cfg):
    features, image = scene()
    truth = DenseTargets(torch.full((1, 1, 64, 64), 9.0), torch.ones(1, 1, 64, 64), image)
    once = build(cfg, HEIGHT__LOSS_WEIGHT=1.0, FOOTPRINT__LOSS_WEIGHT=1.0, RECONSTRUCTION__LOSS_WEIGHT=1.0)
    more = build(cfg, HEIGHT__LOSS_WEIGHT=2.0, FOOTPRINT__LOSS_WEIGHT=3.0, RECONSTRUCTION__LOSS_WEIGHT=0.5)
    plain, weighted = (heads.losses(heads(features, image), truth) for heads in (once, more))
    ratios = {name: (weighted[name] / plain[name]).item() for name in plain}
    assert ratios == pytest.approx(
        {"loss_dense_height": 2, "loss_footprint": 3, "loss_reconstruction": 0.5}, rel=1e-5
    )


@pytest.mark.parametrize("task", ["height_m", "footprint", "reconstruction"])
def test_pixels_that_are_not_known_have_no_gradient(cfg, task):
    heads = build(cfg)
    field = "image" if task == "reconstruction" else task
    generator = torch.Generator().manual_seed(3)
    shape = (2, BANDS if field == "image" else 1, 8, 8)
    known = torch.rand(shape, generator=generator) < 0.5
    predicted = torch.rand(shape, generator=generator).mul_(5).requires_grad_()
    truth = torch.where(known, 1.0, NAN)
    unknown = dict.fromkeys(("height_m", "footprint", "image"))
    losses = heads.losses(DenseMaps(**{task: predicted}), DenseTargets(**{**unknown, field: truth}))
    assert len(losses) == 1
    sum(losses.values()).backward()
    assert torch.equal(predicted.grad != 0, known)


def test_nothing_known_is_a_zero_loss_with_zero_gradients(cfg):
    heads = build(cfg)
    features, image = scene()
    losses = heads.losses(heads(features, image), nowhere_known(image))
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(losses, 0.0)
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in heads.parameters())


def test_a_batch_without_buildings_pushes_footprints_down():
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    truth = torch.zeros(1, 1, 4, 4)
    loss = Footprint(in_channels=8).loss(DenseMaps(footprint=logits), DenseTargets(None, truth, None))
    loss.backward()
    assert loss.isfinite() and (logits.grad > 0).all()


# ---- What heads say ----------------------------------------------------------------------------------------


def height_head(z, **kwargs):
    """A head that says `z` for log(1 + metres), whatever it is given."""
    head = DenseHeight(in_channels=8, **kwargs)
    nn.init.zeros_(head.predictor.weight)
    nn.init.constant_(head.predictor.bias, z / math.log1p(20.0))
    return head


@pytest.mark.parametrize("z, metres", [(-3.0, 0.0), (0.0, 0.0), (math.log(13), 12.0), (90.0, 2000.0)])
def test_heights_are_metres_from_zero_to_a_limit(z, metres):
    height_m = height_head(z)(torch.randn(1, 8, 2, 2), DenseMaps())
    assert height_m.flatten().tolist() == pytest.approx([metres] * 4, rel=1e-4)
    assert (height_m >= 0).all()


@pytest.mark.parametrize("z, truth_m, sign", [(-3.0, 9.0, -1), (-3.0, 0.0, 0), (1.0, 0.0, 1), (90.0, 9.0, 1)])
def test_a_head_that_says_nothing_but_ground_still_learns(z, truth_m, sign):
    head = height_head(z)
    maps = DenseMaps(height_m=head(torch.randn(1, 8, 2, 2), DenseMaps()))
    head.loss(maps, DenseTargets(torch.full((1, 1, 2, 2), truth_m), None, None)).backward()
    assert head.predictor.bias.grad.item() == pytest.approx(sign * math.log1p(20.0) / 2, abs=1e-3)


def test_refined_heights_are_zero_outside_the_predicted_footprint():
    """And neither their gradient nor their loss reaches the footprint."""
    logits = torch.tensor([[[[-0.1, 0.0, 0.1, 5.0]]]], requires_grad=True)
    height_m = height_head(math.log(11), refine=True)(torch.randn(1, 8, 1, 4), DenseMaps(footprint=logits))
    torch.testing.assert_close(height_m, torch.tensor([[[[0.0, 0.0, 10.0, 10.0]]]]))
    height_m.sum().backward()
    assert logits.grad is None


def test_heights_from_footprints_depend_on_them(cfg):
    features, image = scene()
    for told in (True, False):
        heads = build(cfg, HEIGHT__FROM_FOOTPRINT=told)
        before = heads(features, image).height_m
        nn.init.constant_(heads.heads["footprint"].predictor.bias, 4.0)
        assert torch.equal(heads(features, image).height_m, before) == (not told)


def test_the_untrained_heads_undecidedly_say_one_metre(cfg):
    maps = build(cfg)(*scene())
    assert maps.height_m.median().item() == pytest.approx(1.0, abs=0.7)
    assert maps.footprint.sigmoid().mean().item() == pytest.approx(0.5, abs=0.1)


def test_the_image_is_reconstructed_in_training_only(cfg):
    heads = build(cfg)
    features, image = scene()
    assert heads(features, image).reconstruction.shape == image.shape
    maps = heads.eval()(features, image)
    assert maps.reconstruction is None and maps.height_m.shape == maps.footprint.shape == (1, 1, 64, 64)
    assert set(heads.losses(maps, nowhere_known(image))) == {"loss_dense_height", "loss_footprint"}


def test_no_data_in_the_image_is_no_nan_in_the_maps(cfg):
    heads = build(cfg)
    features, image = scene(n=2)
    image[0], image[1, :2, :30] = NAN, NAN
    maps = heads(features, image)
    assert all(m.isfinite().all() for m in (maps.height_m, maps.footprint, maps.reconstruction))


# ---- Attention ---------------------------------------------------------------------------------------------


def test_each_task_has_an_attention_of_its_own(cfg):
    cfg.MODEL.TASK_ATTENTION = True
    heads = build(cfg, SHARED_STEPS=2)
    read = {name: sorted(d.attentions) for name, d in heads.decoders.items()}
    assert read == {"dense_height": ["p2"], "footprint": ["p2"], "reconstruction": ["p5"]}
    assert sorted(heads.trunk.attentions) == ["p3", "p4", "p5"]


# ---- Built from the config ---------------------------------------------------------------------------------

COMBINATIONS = list(
    itertools.product(
        (True, False), ("resize", "transposed"), (0, 2, 5), (True, False), (True, False), (True, False)
    )
)


@pytest.mark.parametrize("skips, upsample, shared, refine, told, attention", COMBINATIONS)
def test_every_parameter_has_a_finite_gradient(cfg, skips, upsample, shared, refine, told, attention):
    cfg.MODEL.TASK_ATTENTION = attention
    heads = build(cfg, SKIPS=skips, UPSAMPLE=upsample, SHARED_STEPS=shared, HEIGHT__REFINE=refine,
                  HEIGHT__FROM_FOOTPRINT=told)  # fmt: skip
    features, image = scene(n=2, height=32, width=32)
    image[0, :, :9], image[1, 0] = NAN, NAN
    height_m = torch.where(torch.rand(2, 1, 32, 32) < 0.3, 12.0, 0.0)
    height_m[1, :, :, :5] = NAN
    truth = DenseTargets(height_m, (height_m > 0).float(), image)
    losses = heads.losses(heads(features, image), truth)
    assert set(losses) == {"loss_dense_height", "loss_footprint", "loss_reconstruction"}
    sum(losses.values()).backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("norm", ["", "GN", "BN"])
def test_losses_are_finite_in_half_precision(cfg, norm):
    heads = build(cfg, NORM=norm)
    features, image = scene()
    features = {name: f * 100 for name, f in features.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = heads(features, image)
        losses = heads.losses(
            maps, DenseTargets(torch.full((1, 1, 64, 64), 40.0), torch.ones(1, 1, 64, 64), image)
        )
    assert all(m.dtype == torch.float32 for m in (maps.height_m, maps.footprint, maps.reconstruction))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in heads.parameters())


def test_shared_steps_are_taken_once(cfg):
    heads = build(cfg, SHARED_STEPS=3)
    taken = []
    heads.trunk.register_forward_hook(lambda *_: taken.append("trunk"))
    heads(*scene())
    assert taken == ["trunk"]
    assert [len(heads.decoders[t].steps) for t in heads.tasks] == [2, 2, 5] and len(heads.trunk.steps) == 3


@pytest.mark.parametrize("name", [name for name, _ in DENSE_HEAD_REGISTRY])
def test_each_head_alone(cfg, name):
    heads = build(cfg, NAMES=[name])
    maps = heads(*scene())
    told = [
        field for field in ("height_m", "footprint", "reconstruction") if getattr(maps, field) is not None
    ]
    assert told == [DENSE_HEAD_REGISTRY.get(name).field] and heads.tasks == [
        DENSE_HEAD_REGISTRY.get(name).task
    ]


def test_no_names_are_no_heads(cfg):
    assert build(cfg, NAMES=[]) is None


def test_the_order_of_names_is_that_of_the_tasks(cfg):
    heads = build(cfg, NAMES=["Reconstruction", "DenseHeight", "Footprint"], HEIGHT__REFINE=True)
    assert heads.tasks == ["reconstruction", "dense_height", "footprint"]
    assert heads(*scene()).height_m is not None


def test_heads_learn_one_map_by_heart(cfg):
    """A building of 30 m and one of 4 m on the ground, of which the features tell nothing but where they are."""
    heads = build(cfg, NAMES=["DenseHeight", "Footprint"], DIM=32)
    features, image = scene(height=32, width=32)
    height_m = torch.zeros(1, 1, 32, 32)
    height_m[..., 4:15, 5:20], height_m[..., 20:30, 10:18] = 30.0, 4.0
    image = image * 0.1 + height_m.sign()
    truth = DenseTargets(height_m, height_m.sign(), image)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        sum(heads.losses(heads(features, image), truth).values()).backward()
        optimizer.step()
    maps = heads(features, image)
    error = (maps.height_m.log1p() - height_m.log1p()).abs()
    assert error.mean() < 0.05
    assert (maps.height_m[height_m == 0] == 0).float().mean() > 0.9  # the ground is 0 itself
    assert ((maps.footprint > 0) == (height_m > 0)).float().mean() > 0.98


# ---- Configs that mean nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"NAMES": ["Footprint", "Footprint"]}, "Footprint more than once"),
        ({"NAMES": ["Footprints"]}, "Did you mean 'Footprint'"),
        ({"NAMES": ["DenseHeight"], "HEIGHT__REFINE": True}, "Add Footprint"),
        ({"NAMES": ["DenseHeight"], "HEIGHT__FROM_FOOTPRINT": True}, "Add Footprint"),
        ({"NAMES": ["Footprint"], "HEIGHT__REFINE": True}, "Add DenseHeight"),
        ({"NAMES": ["Footprint"], "SHARED_STEPS": 1}, "Add DenseHeight"),
        ({"NAMES": ["Reconstruction"], "SKIPS": False}, "none ever has skips"),
        ({"UPSAMPLE": "rezise"}, "Did you mean 'resize'"),
        ({"NORM": "LN"}, "Known: BN, GN, SyncBN"),
        ({"CONV_DIM": 30}, "multiple of 4"),
        ({"CONV_DIM": 0}, "multiple of 4"),
        ({"SHARED_STEPS": -1}, "0 or more"),
        ({"HEIGHT__LOSS_WEIGHT": -1.0}, "0 or more"),
    ],
)
def test_configs_that_are_refused(cfg, keys, message):
    with pytest.raises(InputError, match=message):
        build(cfg, **keys)
    with pytest.raises(InputError, match=message):
        check_dense_heads(cfg)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"SHARED_STEPS": 6}, "expected 5 at most"),
        ({"SHARED_STEPS": 5, "IN_FEATURES": ["p2", "p3", "p4"]}, "expected 4 at most"),
        ({"IN_FEATURES": []}, "empty"),
        ({"IN_FEATURES": ["p2", "res5"]}, "Known: p2, p3, p4, p5"),
        ({"IN_FEATURES": ["p5", "p2"]}, r"strides \[32, 4\], expected the finest first"),
    ],
)
def test_configs_that_do_not_fit_the_backbone(cfg, keys, message):
    with pytest.raises(InputError, match=message):
        build(cfg, **keys)
