"""Between steps, besides Detectron2's own hooks: weigh tasks, calibrate intervals, keep the best checkpoint, draw."""

import itertools
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.engine.checkpoint import FusionCheckpointer, read_checkpoint
from fusiondet.errors import InputError
from fusiondet.evaluation import is_error
from fusiondet.files import naming
from fusiondet.io.bands import BandSpec
from fusiondet.modeling.task_weighting import TaskWeighting

import numpy as np
import torch
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter

_log = logging.getLogger(__name__)


class WeighTasks(HookBase):
    """After every step, lets the weights of tasks follow what the step showed, and logs both.

    Logged: `task_weight/<task>` that the step was trained with (those learned by the optimizer: as it left them), and
    `task_loss/<task>` without it. Comes before the checkpoints, so that they hold the weights of the next step.
    """

    def __init__(self, weighting: TaskWeighting):
        """`weighting`: the part of the trained model."""
        self.weighting = weighting

    def after_step(self) -> None:
        """Update, in every process."""
        self.trainer.storage.put_scalars(**self.weighting.update())


# Fewer known heights than this say nothing about how often an interval is right.
_MIN_CALIBRATION_HEIGHTS = 50


# A sound network expects its errors to within this factor.
_OVERFITTED_WIDTH = 2.0


class CalibrateHeights(HookBase):
    """Widens or narrows the height intervals until 68 % of held-out heights lie inside, at the end of the training.

    Comes before the checkpoints, so that they hold the result.
    """

    def __init__(self, period: int, build_loader):
        """`period`: also every so many steps (0: at the end alone); `build_loader()` -> batches with truth."""
        self.period, self.build_loader = period, build_loader

    def after_step(self) -> None:
        """Calibrate at the last step and at those of the period."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self.period > 0 and done % self.period == 0):
            model = self.trainer.model
            calibrate_heights(getattr(model, "module", model), self.build_loader())


@torch.no_grad()
def calibrate_heights(model, batches) -> float | None:
    """Set the model's `interval_width` from heights predicted for true boxes and masks of `batches`.

    The width is the 68 % quantile of |log error| over the predicted half width (split conformal scaling: Vovk et al.
    2005; Papadopoulos et al. 2002), so on exchangeable data 68 % of the true heights lie between the 16th and the 84th
    percentile. Processes share their batches' errors and all set the same width.

    Returns:
        The width; None, and nothing is changed, when fewer than 50 heights are known.
    """
    width, training = model.interval_width, model.training
    before = width.clone()
    width.fill_(1.0)
    model.eval()
    ratios = []
    for batch in batches:
        for x, result in zip(batch, model.heights_on_truth(batch), strict=True):
            truth_m = x["instances"].gt_heights.to(result.pred_heights)
            half = result.pred_height_p84.log() - result.pred_heights.log()
            ratio = (truth_m.log() - result.pred_heights.log()).abs() / half
            # Where both percentiles are clipped to the largest height there is no width to speak of.
            ratios.append(ratio[torch.isfinite(ratio)].cpu())
    model.train(training)
    ratios = torch.cat(list(itertools.chain(*comm.all_gather(ratios), [torch.zeros(0)])))
    if len(ratios) < _MIN_CALIBRATION_HEIGHTS:
        width.copy_(before)
        _log.warning("height intervals are not calibrated: only %d known heights to do it with", len(ratios))
        return None
    width.fill_(float(torch.quantile(ratios, 0.68)))
    _log.info("height intervals scaled by %.3f after %d held-out heights", width, len(ratios))
    if width > _OVERFITTED_WIDTH:
        _log.warning(
            "height intervals had to be stretched by %.1f on held-out ground: the network errs there %.1f times as "
            "much as it was trained to expect, which is overfitting. Take an earlier checkpoint (model_best.pth, or "
            "fewer steps by SOLVER.MAX_ITER), more training data, or more augmentation (INPUT.SCALE_RANGE, "
            "INPUT.SAR_SPECKLE_LOOKS, MODEL.FUSION.MODALITY_DROPOUT)",
            width, width,
        )  # fmt: skip
    return float(width)


class BestCheckpoint(HookBase):
    """Writes `model_best.pth` whenever an evaluation beats all before, also across `--resume`.

    The best value so far is read from `model_best.pth` itself, where it stands under "fusiondet": no state can differ
    from the file. A metric that is missing or not finite never counts, and is reported once.
    """

    def __init__(self, checkpointer: FusionCheckpointer, metric: str, name: str = "model_best"):
        """`metric`: flat key of the evaluation; larger is better unless it is an error, such as height/mae_m."""
        self.checkpointer, self.metric, self.name = checkpointer, metric, name
        self.best: float | None = None
        self._judged: dict | None = None
        self._missing_reported = False

    @property
    def path(self) -> Path:
        """The file of the best checkpoint."""
        return Path(self.checkpointer.save_dir) / f"{self.name}.pth"

    def before_train(self) -> None:
        """On a resumed run, learn what is to be beaten."""
        if self.trainer.start_iter > 0 and self.path.is_file():
            try:
                stored = read_checkpoint(self.path)
            except InputError as error:
                _log.warning("%s; the next evaluation counts as the best", error)
                return
            # A run that goes on from before that checkpoint has not seen it yet.
            facts = stored.get("fusiondet", {})
            if (
                facts.get("metric") == self.metric
                and stored.get("iteration", math.inf) < self.trainer.start_iter
            ):
                self.best = facts["value"]

    def after_step(self) -> None:
        """Judge the evaluation of this step, if there was one."""
        results = self.trainer._last_eval_results
        if results and results is not self._judged:
            self._judged = results
            self._judge(flatten_results_dict(results))

    def after_train(self) -> None:
        """The last evaluation comes after the last step."""
        self.after_step()

    def _judge(self, results: dict) -> None:
        # With several test sets the first one that has the metric decides; its keys then begin with its name.
        value = next(
            (v for k, v in results.items() if k == self.metric or k.endswith("/" + self.metric)), None
        )
        if value is None or not math.isfinite(value):
            if not self._missing_reported:
                _log.warning(
                    "TEST.BEST_METRIC %s is not defined (yet): %s is not written", self.metric, self.path.name
                )
            self._missing_reported = True
            return
        smaller_is_better = self.metric.endswith("_m") or is_error(self.metric)
        if self.best is not None and (value >= self.best if smaller_is_better else value <= self.best):
            return
        before = "" if self.best is None else f", before {self.best:.4g}"
        _log.info("%s %.4g is the best so far%s", self.metric, value, before)
        self.best = float(value)
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        facts = {"metric": self.metric, "value": self.best}
        self.checkpointer.save(self.name, tag=False, facts=facts, iteration=iteration)


# Writers that remember the last step they wrote; the one of the screen remembers a time.
_BY_STEP = (JSONWriter, TensorboardXWriter)


class MetricWriters(hooks.PeriodicWriter):
    """Detectron2's writers of metrics, which go on where they were when the checkpoint was written.

    Its state has the latest values, from which medians are written, and the number of lines of metrics.json: lines that
    a killed run wrote after its checkpoint are dropped, as they will be written again. Nothing is written earlier.
    """

    # What the medians of all writers are of.
    WINDOW = 20

    def __init__(self, build_writers: Callable[[], list], path: Path, period: int = 20):
        """`path`: of metrics.json; `period`: steps between two lines."""
        super().__init__([], period)
        self._build, self.path = build_writers, path
        self._restored: dict | None = None

    def begin_again(self) -> None:
        """Drop all lines: a run that was killed before its first checkpoint wrote them."""
        self._restored = {"lines": 0, "written": -1, "scalars": {}}

    def before_train(self) -> None:
        """Open the files, as they were at the checkpoint."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state, self._restored = self._restored, None
        if state and self.path.is_file():
            lines = self.path.read_bytes().splitlines(keepends=True)
            os.truncate(self.path, sum(map(len, lines[: state["lines"]])))
        self._writers = self._build()
        if not state:
            return
        for writer in self._writers:
            if isinstance(writer, _BY_STEP):
                writer._last_write = state["written"]
        storage = self.trainer.storage
        now = storage.iter
        for name, (values, hint) in state["scalars"].items():
            for value, storage.iter in values:
                storage.put_scalar(name, value, smoothing_hint=hint)
        storage.iter = now

    def state_dict(self) -> dict:
        """Plain values; {} before training."""
        if not self._writers:
            return {}
        storage = self.trainer.storage
        # Times of this machine would make checkpoints of one training differ.
        scalars = {
            name: [[list(pair) for pair in history.values()[-self.WINDOW :]], storage.smoothing_hints()[name]]
            for name, history in storage.histories().items()
            if "time" not in name and name != "eta_seconds"
        }
        written = max([w._last_write for w in self._writers if isinstance(w, _BY_STEP)], default=-1)
        lines = self.path.read_bytes().count(b"\n")
        return {"lines": lines, "written": written, "scalars": scalars}

    def load_state_dict(self, state: dict) -> None:
        """Inverse of `state_dict`."""
        self._restored = {
            "lines": int(state["lines"]),
            "written": int(state["written"]),
            "scalars": {
                str(name): ([(float(value), int(step)) for value, step in values], bool(hint))
                for name, (values, hint) in state["scalars"].items()
            },
        }

    def after_step(self) -> None:
        """Write when it is time."""
        with naming(self.path):
            super().after_step()

    def after_train(self) -> None:
        """Write the rest and close."""
        with naming(self.path):
            super().after_train()


class CatchUp(HookBase):
    """Does what a run that was killed had left to do after its last checkpoint: an evaluation, and the last checkpoint.

    So `model_best.pth` and metrics.json become those of a run that was never killed.
    """

    def __init__(
        self,
        checkpointer: FusionCheckpointer,
        period: int,
        evaluation: hooks.EvalHook | None,
        best: BestCheckpoint | None,
        writers: MetricWriters | None,
    ):
        """`period` of `evaluation`; `best` judges it and `writers` write, in the main process."""
        self.checkpointer, self.period, self.evaluation = checkpointer, period, evaluation
        self.best, self.writers = best, writers

    def before_train(self) -> None:
        """Catch up with the step that the checkpoint was written after."""
        trainer, done = self.trainer, self.trainer.start_iter
        if not done:
            return
        trainer.iter = trainer.storage.iter = done - 1
        if done >= trainer.max_iter:
            # There are no steps left; the last evaluation is made after training, as ever.
            if self.best is not None and Path(self.checkpointer.get_checkpoint_file()).stem != "model_final":
                self.checkpointer.save("model_final", iteration=trainer.iter)
        elif self.evaluation is not None and self.period > 0 and done % self.period == 0:
            self.evaluation._do_eval()
            if self.best is not None:
                self.best.after_step()
        if self.writers is not None:
            self.writers.after_step()
        if done < trainer.max_iter:
            trainer.iter = trainer.storage.iter = done


@dataclass(frozen=True)
class TrainingFigures:
    """Functions that draw while a network is trained and scored; `fusiondet.visualization.training` has them.

    Attributes:
        predictions: (inputs, output, bands) of one tile, the model's input and output dicts and the meaning of the
            image's channels, to {name: (H, W, 3) uint8} images.
        confusion: writes an image of (K, K) counts of true by predicted class: (counts, class names, title, path).
    """

    predictions: Callable[[dict, dict, BandSpec], dict[str, np.ndarray]]
    confusion: Callable[[np.ndarray, Sequence[str], str, Path], None]


class PredictionPanel(HookBase):
    """Every `period` steps, images of the latest batch's first labelled tile and its predictions in TensorBoard."""

    def __init__(self, period: int, bands: BandSpec, draw: Callable[[dict, dict, BandSpec], dict]):
        """`bands`: what the channels of the images are; `draw`: see `TrainingFigures.predictions`."""
        self.period, self.bands, self.draw = period, bands, draw

    def after_step(self) -> None:
        """Draw when it is time."""
        if (self.trainer.iter + 1) % self.period == 0 and self.trainer._trainer.last_batch:
            batch = self.trainer._trainer.last_batch
            labelled = [x for x in batch if x.get("labelled", True)] or batch
            for name, image in self.draw(labelled[0], self._predict(labelled[0]), self.bands).items():
                self.trainer.storage.put_image(name, torch.from_numpy(image).permute(2, 0, 1))

    def _predict(self, inputs: dict) -> dict:
        model = getattr(self.trainer.model, "module", self.trainer.model)
        model.eval()
        try:
            with torch.no_grad():
                return model([inputs])[0]
        finally:
            model.train()
