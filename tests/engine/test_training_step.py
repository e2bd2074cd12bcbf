"""Losses, gradients and random numbers of single steps."""

import fusiondet.compat  # noqa: F401
from fusiondet.engine.training_step import StepTrainer, precision
from tests.support.tiny_city import (
    tiny_config,
)

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn


class Toy(nn.Module):
    """Loss = mean of w * x over the batch; x of an input is its image's only number."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0]))

    def forward(self, batch):
        return {"loss_a": torch.stack([(self.w * x["image"]).sum() for x in batch]).mean()}


def toy_batches(*batches):
    return [
        [{"image": torch.tensor([float(x)]), "file_name": f"tile_{x}.tif"} for x in batch]
        for batch in batches
    ]


def toy_step(batches, model=None, **options):
    model = model or Toy()
    step = StepTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=1.0), **options)
    step.iter = 0
    with EventStorage() as storage:
        step.run_step()
        return model, {k: v for k, (v, _) in storage.latest().items()}


def test_one_step_is_one_gradient_and_its_losses_are_logged():
    model, logged = toy_step(toy_batches([1, 3]))
    assert (
        model.w.item() == 2 - 2
        and logged["loss_a"] == logged["total_loss"] == 4
        and logged["gradient_norm"] == 2
    )


def test_accumulated_steps_equal_one_large_batch():
    small, logged = toy_step(toy_batches([1, 3], [5, 7]), accumulate_steps=2)
    large, _ = toy_step(toy_batches([1, 3, 5, 7]))
    assert small.w.item() == large.w.item() == 2 - 4 and logged["loss_a"] == 8


def test_a_loss_that_is_not_finite_names_loss_and_images_before_weights_change():
    model = Toy()
    with pytest.raises(
        FloatingPointError, match=r"iteration 0: losses \[\{'loss_a': nan\}\].*tile_1.tif, tile_nan.tif"
    ):
        toy_step(toy_batches([1, "nan"]), model)
    assert model.w.item() == 2


class Poisoned(nn.Module):
    """A finite loss with a NaN gradient: NaN x 0."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.0]))

    def forward(self, batch):
        return {"loss_a": torch.sqrt(self.w * 0).sum()}


def test_a_gradient_that_is_not_finite_is_found_in_its_own_step():
    model = Poisoned()
    with pytest.raises(FloatingPointError, match=r"gradients.*tile_3.tif"):
        toy_step(toy_batches([3]), model)
    assert model.w.item() == 0


def test_what_the_network_draws_follows_from_the_step_alone():
    class Drawing(Toy):
        def forward(self, batch):
            self.drawn = torch.rand(3)
            return super().forward(batch)

    first, _ = toy_step(toy_batches([1]), Drawing(), seed=3)
    torch.rand(5)
    second, _ = toy_step(toy_batches([1]), Drawing(), seed=3)
    other, _ = toy_step(toy_batches([1]), Drawing(), seed=4)
    assert torch.equal(first.drawn, second.drawn) and not torch.equal(first.drawn, other.drawn)


def test_bfloat16_computes_in_bfloat16():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, batch):
            out = self.layer(batch[0]["image"][None])
            self.dtype = out.dtype
            return {"loss": out.float().sum()}

    model, _ = toy_step(toy_batches([1]), Layer(), precision="bfloat16")
    assert model.dtype == torch.bfloat16 and model.layer.weight.dtype == torch.float32


def test_amp_means_16_bits_only_where_asked(root):
    assert precision(tiny_config(root)) == "float32"
    assert precision(tiny_config(root, "SOLVER.AMP.ENABLED", "True")) == "float32"
    both = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.BF16_ON_CPU", "True")
    assert precision(tiny_config(root, *both)) == "bfloat16"
    assert precision(tiny_config(root, *both, "MODEL.DEVICE", "cuda")) == "float16"
