"""One optimizer step: forward and backward in the chosen precision, for any number of processes."""

import contextlib
import itertools
import math
import time

import fusiondet.compat  # noqa: F401  (before detectron2)

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch.nn.parallel import DistributedDataParallel


class StepTrainer(SimpleTrainer):
    """One optimizer step: forward and backward in the chosen precision, checked on all ranks before weights change.

    Attributes:
        last_batch: inputs of the latest forward pass of this process.
    """

    def __init__(
        self,
        model,
        loader,
        optimizer,
        *,
        precision: str = "float32",
        accumulate_steps: int = 1,
        seed: int = 0,
    ):
        """`precision`: "float32", "float16" (CUDA, with loss scaling) or "bfloat16"; `seed` of the run."""
        super().__init__(model, loader, optimizer)
        self.precision, self.accumulate_steps, self.seed = precision, accumulate_steps, seed
        self.grad_scaler = torch.amp.GradScaler("cuda", enabled=precision == "float16")
        self.device_type = next(model.parameters()).device.type
        self.last_batch: list[dict] = []

    def run_step(self) -> None:
        """Take `accumulate_steps` batches, then step.

        Raises:
            FloatingPointError: a loss or gradient is not finite; on every rank, naming losses and images of all ranks.
        """
        assert self.model.training, "the model was left in eval mode"
        self.optimizer.zero_grad()
        files, losses, data_time = [], {}, 0.0
        for part in range(self.accumulate_steps):
            start = time.perf_counter()
            batch = self.last_batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            files += [x["file_name"] for x in batch]
            # What the network draws (RoI sampling) follows from the step alone, so that a resumed run draws the same.
            # After the data: a loader draws too when it starts.
            torch.manual_seed(_step_seed(self.seed, self.iter, part, comm.get_rank()))
            with self._gradient_sync(part == self.accumulate_steps - 1):
                with self._autocast():
                    named = self.model(batch)
                for name, loss in named.items():
                    losses[name] = losses.get(name, 0.0) + loss.detach().float() / self.accumulate_steps
                self.grad_scaler.scale(sum(named.values()) / self.accumulate_steps).backward()
        self._log(self._gathered({k: float(v) for k, v in losses.items()}, data_time, files))
        self.grad_scaler.unscale_(self.optimizer)
        self._check_gradients(files)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _autocast(self):
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=getattr(torch, self.precision))

    def _gradient_sync(self, last: bool):
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _gathered(self, losses: dict[str, float], data_time: float, files: list[str]) -> list[dict]:
        """`losses` of all ranks, with data_time; FloatingPointError everywhere when any is not finite."""
        everyone = comm.all_gather({**losses, "data_time": data_time})
        bad = [{k: v for k, v in one.items() if not math.isfinite(v)} for one in everyone]
        if any(bad):
            self._fail(
                f"losses {[one for one in bad if one]} (of {everyone})", files if bad[comm.get_rank()] else []
            )
        return everyone

    def _check_gradients(self, files: list[str]) -> None:
        # A NaN can hide in a gradient whose loss was fine, and would poison the weights one step before it shows.
        gradients = [
            p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
        if comm.is_main_process() and math.isfinite(norm):
            get_event_storage().put_scalar("gradient_norm", norm)
        # Under loss scaling an overflow is normal: the scaler leaves the step out and lowers its scale.
        if not math.isfinite(norm) and not self.grad_scaler.is_enabled():
            self._fail("gradients", files)

    def _fail(self, what: str, files: list[str]) -> None:
        names = sorted(set(itertools.chain.from_iterable(comm.all_gather(files))))
        raise FloatingPointError(
            f"not finite at iteration {self.iter}: {what}. Images: {', '.join(names)}. Is one of them damaged, or "
            "SOLVER.BASE_LR too high?"
        )

    def _log(self, everyone: list[dict]) -> None:
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        # Ranks wait for the slowest loader.
        storage.put_scalar("data_time", max(one.pop("data_time") for one in everyone))
        means = {k: float(np.mean([one[k] for one in everyone])) for k in everyone[0]}
        storage.put_scalar("total_loss", sum(means.values()))
        storage.put_scalars(**means)


def _step_seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def precision(cfg: CfgNode) -> str:
    """What is computed in: "float32", "float16" (SOLVER.AMP.ENABLED on CUDA), "bfloat16" (on CPU: BF16_ON_CPU too)."""
    if not cfg.SOLVER.AMP.ENABLED:
        return "float32"
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return "float16"
    return "bfloat16" if cfg.SOLVER.AMP.BF16_ON_CPU else "float32"
