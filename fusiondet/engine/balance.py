"""Balanced multi-modal learning: keep a network of two branches from learning from the easier modality alone.

Wu, Jastrzebski, Cho, Geras: Characterizing and overcoming the greedy nature of learning in multi-modal deep neural
networks, ICML 2022 (https://arxiv.org/abs/2202.05306); named as future work by the MMTM dual network (P3).
"""

import logging
import math
from contextlib import ExitStack

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet import plugins
from fusiondet.errors import InputError
from fusiondet.modeling.architecture import Architecture
from fusiondet.modeling.fusion import MODALITIES, cut_off, exchanges, listen, valid_mean
from fusiondet.modeling.streams import modality_of_parameters

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

_log = logging.getLogger(__name__)
# How much of the running mean of a message stays at a step: it follows the last hundred or so.
_MEMORY = 0.99


class BalanceModalities(HookBase):
    """Trains the branch alone whose modality the network learns from more slowly, for a window of steps at a time.

    In the branch m, let P be the parameters that look at m itself (its ResNet or U-Net), Q those that take in what the
    other branch tells (its half of the exchanges), and speed(x) the sum over regular steps of |gradient of x|² / |x|².
    Then
        s(other | m) = log(speed(Q) / speed(P)),  d = s(sar | optical) - s(optical | sar):
    above 0 the network learns faster from SAR. When |d| is above the tolerance, the next `window` steps re-balance: the
    slower modality's branch hears the running mean of the other's messages, and its losses alone are trained. As many
    regular steps follow at least, in which d is measured on; the paper has one. Steps of the warm-up are not measured,
    as exchanges start with weights of 0.

    Logged: `balance/d_speed`, and `balance/trained`: -1 SAR alone, 0 both, 1 optical alone.
    """

    def __init__(self, model: Architecture, optimizer, *, window: int, tolerance: float, warmup: int = 0):
        """See MODEL.FUSION.BALANCE; `warmup`: steps that only train.

        Raises:
            InputError: the network has no exchanges, or no branches.
        """
        if not isinstance(model, Architecture) or not model.has_branches or not exchanges(model):
            networks = " or ".join(plugins.listed("networks_with_branches"))
            raise InputError(
                "MODEL.FUSION.BALANCE.WINDOW is set, but balancing needs two branches that tell each other: "
                "MODEL.META_ARCHITECTURE LateFusionRCNN or LateFusionDense with a MODEL.FUSION.EXCHANGE, or "
                f"a MODEL.DENSE_NET.NAME with branches ({networks or 'none is there'}). Set it to 0 otherwise."
            )
        if model.shares_stages:
            raise InputError(
                "MODEL.FUSION.BALANCE.WINDOW is set, but with MODEL.FUSION.SHARE_WEIGHTS no parameters are of one "
                "modality alone. Set one of them back to its default."
            )
        self.model, self.window, self.tolerance, self.warmup = model, window, tolerance, warmup
        self.speeds = {f"{m}/{part}": 0.0 for m in MODALITIES for part in ("own", "heard")}
        self.means: dict[str, dict[str, Tensor]] = {name: {} for name in exchanges(model)}
        self.trained, self.steps_left, self.regular_steps = "", 0, 0
        self._parameters = {key: _parameters(model, *key.split("/")) for key in self.speeds}
        self._still = {m: _parameters_of_branch(model, m) for m in MODALITIES}
        self._cut = ExitStack()
        optimizer.register_step_pre_hook(self._keep_still)

    def before_train(self) -> None:
        """Begin to hear what the branches tell each other."""
        listen(self.model, self._hear)

    def after_train(self) -> None:
        """Leave the model as it was, also when a step failed."""
        self._end_of_cut()
        listen(self.model, None)

    def before_step(self) -> None:
        """In a window, cut the branch off and train it alone."""
        if self.steps_left:
            (other,) = {*MODALITIES} - {self.trained}
            self.model.task_weighting.branch_weights[other] = 0.0
            self._cut.enter_context(cut_off(self.model, self.means, other))

    def after_step(self) -> None:
        """Measure a regular step, or end one of a window, and decide about the next."""
        storage = self.trainer.storage
        storage.put_scalar("balance/trained", {"optical": 1, "sar": -1}.get(self.trained, 0))
        if self.steps_left:
            self._end_of_cut()
            self.steps_left -= 1
            if not self.steps_left:
                self.trained, self.regular_steps = "", 0
            return
        self._share_means()
        if self.trainer.iter >= self.warmup:
            self._measure()
            storage.put_scalar("balance/d_speed", self.d_speed())
            self.regular_steps += 1
            if self.regular_steps >= self.window:
                self._begin_window()

    def _begin_window(self) -> None:
        d_speed = self.d_speed()
        slower, faster = MODALITIES if d_speed > 0 else MODALITIES[::-1]
        # Where no image has held the other modality yet, there is no mean to hear.
        if abs(d_speed) > self.tolerance and all(faster in means for means in self.means.values()):
            self.trained, self.steps_left = slower, self.window

    def _end_of_cut(self) -> None:
        self._cut.close()
        self.model.task_weighting.branch_weights = dict.fromkeys(MODALITIES, 1.0)

    def d_speed(self) -> float:
        """Difference of conditional learning speeds: above 0 the network learns faster from SAR; 0 before any step."""
        if not all(self.speeds.values()):
            return 0.0
        optical, sar = (math.log(self.speeds[f"{m}/heard"] / self.speeds[f"{m}/own"]) for m in MODALITIES)
        return optical - sar

    def state_dict(self) -> dict:
        """What a resumed run goes on from. Detectron2 saves after hooks that come first, so between steps."""
        names = ("speeds", "means", "trained", "steps_left", "regular_steps")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        """Inverse of `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)

    @torch.no_grad()
    def _measure(self) -> None:
        for key, parameters in self._parameters.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            speed = float(_square(gradients) / _square(parameters)) if gradients else 0.0
            # An overflow under loss scaling is a step that was not taken.
            self.speeds[key] += speed if math.isfinite(speed) else 0.0

    def _hear(self, name: str, modality: str, message: Tensor, valid: Tensor) -> None:
        if not self.model.training or self.steps_left:
            return
        message = message if message.dim() == 2 else valid_mean(message, valid)
        present = message[valid.amax((1, 2, 3)) > 0].float()
        if len(present):
            mean, before = present.mean(0), self.means[name].get(modality)
            self.means[name][modality] = mean if before is None else before.to(mean).lerp(mean, 1 - _MEMORY)

    def _share_means(self) -> None:
        """Every process hears the mean of all, and so does a run resumed from the checkpoint that one of them wrote."""
        if comm.get_world_size() == 1:
            return
        own = {name: {m: mean.cpu() for m, mean in means.items()} for name, means in self.means.items()}
        everyone = comm.all_gather(own)
        for name, means in self.means.items():
            for modality in MODALITIES:
                heard = [one[name][modality] for one in everyone if modality in one[name]]
                if heard:
                    means[modality] = torch.stack(heard).mean(0)

    def _keep_still(self, optimizer, args, kwargs) -> None:
        """No momentum or decay moves the branch that is not trained."""
        if self.steps_left:
            (other,) = {*MODALITIES} - {self.trained}
            for parameter in self._still[other]:
                parameter.grad = None


def _parameters(model: Architecture, modality: str, part: str) -> list[Tensor]:
    """Parameters of the branch that look at the modality itself ("own"), or at what the other tells ("heard")."""
    if part == "own":
        return list(model.unimodal_part(modality).parameters())
    (other,) = {*MODALITIES} - {modality}
    heard = []
    for op in exchanges(model).values():
        # What the halves of an exchange share counts for both.
        of_other = {*getattr(op, other).parameters()}
        heard += [p for p in op.parameters() if p not in of_other]
    return heard


def _parameters_of_branch(model: Architecture, modality: str) -> list[Tensor]:
    """Parameters that belong to the branch alone, its halves of the exchanges among them."""
    own = [p for p, owner in modality_of_parameters(model).items() if owner == modality]
    return own + [p for op in exchanges(model).values() for p in getattr(op, modality).parameters()]


def _square(tensors: list[Tensor]) -> Tensor:
    return sum(t.float().square().sum() for t in tensors).clamp(min=1e-12)
