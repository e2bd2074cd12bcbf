"""DefaultTrainer for tiles of any number of bands: data, steps, checkpoints, hooks and evaluation."""

import copy
import itertools
import logging
import weakref
from dataclasses import replace
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.data import catalog
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.data.sampler import FewLabelsSampler, TileLoader, TrainingSampler, evaluation_loader
from fusiondet.engine.balance import BalanceModalities
from fusiondet.engine.checkpoint import (
    FusionCheckpointer,
    is_own_checkpoint,
    network_differences,
    stored_config,
)
from fusiondet.engine.complete_config import complete_config, labelled_tiles
from fusiondet.engine.hooks import (
    BestCheckpoint,
    CalibrateHeights,
    CatchUp,
    MetricWriters,
    PredictionPanel,
    TrainingFigures,
    WeighTasks,
)
from fusiondet.engine.optimizer import build_optimizer
from fusiondet.engine.training_step import StepTrainer, precision
from fusiondet.errors import InputError
from fusiondet.evaluation.evaluator import BuildingEvaluator, table
from fusiondet.io.bands import BandSpec
from fusiondet.modeling.architecture import Architecture, architecture_of, build_network
from fusiondet.modeling.task_weighting import TaskWeighting
from fusiondet.modeling.weights import load_pretrained, load_timm_weights

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, defaults, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

_log = logging.getLogger(__name__)


class FusionTrainer(DefaultTrainer):
    """DefaultTrainer with our data, optimizers, step, checkpoints and evaluation; on v0.5 and upstream main."""

    def __init__(self, cfg: CfgNode, figures: TrainingFigures | None = None):
        """Build everything and load nothing.

        Args:
            cfg: complete, see `complete_config`.
            figures: draws predictions and scores; None: nothing is drawn.
        """
        TrainerBase.__init__(self)
        self.figures = figures
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        torch.manual_seed(max(cfg.SEED, 0))
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self.sampler = loader.sampler
        self._samples_per_step = loader.batch_size * comm.get_world_size() * cfg.SOLVER.ACCUMULATE_STEPS
        # Other processes would wait for the gradients of parameters that a step leaves out.
        skipped = architecture_of(cfg).may_skip_parameters
        parallel = defaults.create_ddp_model(model, broadcast_buffers=False, find_unused_parameters=skipped)
        self._trainer = StepTrainer(
            parallel,
            loader,
            optimizer,
            precision=precision(cfg),
            accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
            seed=max(cfg.SEED, 0),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = FusionCheckpointer(
            model, cfg.OUTPUT_DIR, config_yaml=cfg.dump(), trainer=weakref.proxy(self)
        )
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self._last_eval_results: dict = {}
        self.register_hooks(self.build_hooks())

    def run_step(self) -> None:
        """One optimizer step; the sampler's position moves with it."""
        super().run_step()
        self.sampler.consumed += self._samples_per_step

    # -- state --

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from OUTPUT_DIR's last checkpoint, or start from MODEL.WEIGHTS, or from scratch.

        Raises:
            InputError: the checkpoint or the weights do not fit the config.
        """
        if resume and self.checkpointer.has_checkpoint():
            self.checkpointer.load(self.checkpointer.get_checkpoint_file())
            self.start_iter = self.iter + 1
            _log.info("Resuming after iteration %d", self.iter)
            return
        if resume:
            _log.warning(
                "%s has no checkpoint to resume from yet, starting from the beginning", self.cfg.OUTPUT_DIR
            )
            for hook in self._hooks:
                if isinstance(hook, MetricWriters):
                    hook.begin_again()
        load_weights(self.checkpointer.model, self.cfg)

    def state_dict(self) -> dict:
        """Everything but the weights that a later run needs to go on as if it had not stopped."""
        state = TrainerBase.state_dict(self)
        own = {name: s for name, s in state.get("hooks", {}).items() if name != "LRScheduler"}
        return {
            "iteration": state["iteration"],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self._trainer.grad_scaler.state_dict(),
            "sampler": self.sampler.state_dict(),
            "hooks": own,
        }

    def load_state_dict(self, state: dict) -> None:
        """Inverse of `state_dict`."""
        TrainerBase.load_state_dict(self, {"iteration": state["iteration"], "hooks": state.get("hooks", {})})
        saved, settings = state["optimizer"]["param_groups"][0], self.optimizer.param_groups[0]
        if ("betas" in saved) != ("betas" in settings):
            raise InputError(
                f"cannot resume: SOLVER.OPTIMIZER is {self.cfg.SOLVER.OPTIMIZER}, and it was trained with another one."
            )
        changed = [k for k in ("initial_lr", "weight_decay", "momentum") if saved.get(k) != settings.get(k)]
        if changed:
            _log.warning("the resumed run keeps the optimizer's own %s, not the config's", ", ".join(changed))
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                    raise InputError(
                        f"cannot resume: the optimizer's {name} has shape {tuple(value.shape)} for a parameter of "
                        f"shape {tuple(parameter.shape)}."
                    )
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:
            self._trainer.grad_scaler.load_state_dict(state["scaler"])
        self.sampler.load_state_dict(state["sampler"])

    # -- parts --

    @classmethod
    def complete_config(cls, cfg: CfgNode, stored: CfgNode | None = None) -> None:
        """Fill in what `cfg` leaves open, see the function of this name."""
        complete_config(cfg, stored)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """See `build_network`; with the number of parameters in the log.

        Raises:
            InputError: the config describes no network, one whose parts do not fit together, or one without heights
                where MODEL.HEIGHT_ON asks for them.
        """
        model = build_network(cfg)
        if cfg.MODEL.HEIGHT_ON and (not isinstance(model, Architecture) or model.interval_width is None):
            raise InputError(
                f"MODEL.HEIGHT_ON is True, but {cfg.MODEL.META_ARCHITECTURE} with {cfg.MODEL.ROI_HEADS.NAME} predicts "
                "no heights. Use FusionRCNN or LateFusionRCNN with FusionROIHeads, or set MODEL.HEIGHT_ON False."
            )
        count = sum(p.numel() for p in model.parameters())
        _log.info("%s, %.2f million parameters, on %s", type(model).__name__, count / 1e6, cfg.MODEL.DEVICE)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See the function of this name."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TileLoader:
        """Endless batches from all of DATASETS.TRAIN, of this process's part of SOLVER.IMS_PER_BATCH labelled tiles and
        DATALOADER.UNLABELLED_PER_BATCH others.

        Raises:
            InputError: one of these two does not divide among the processes; there are no such tiles.
        """
        processes, seed = comm.get_world_size(), max(cfg.SEED, 0)
        per_batch = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.UNLABELLED_PER_BATCH
        for key, number in zip(("SOLVER.IMS_PER_BATCH", "DATALOADER.UNLABELLED_PER_BATCH"), per_batch):
            if number % processes:
                raise InputError(f"{key} is {number}, expected a multiple of the {processes} processes.")
        records = training_records(cfg)
        labelled = np.array([record.get("labelled", True) for record in records], bool)
        if labelled.all() and not per_batch[1]:
            sampler = TrainingSampler(len(records), seed, comm.get_rank(), processes)
        else:
            sampler = FewLabelsSampler(labelled, per_batch, seed, comm.get_rank(), processes)
        mapper = FusionDatasetMapper(cfg, True)
        return TileLoader(records, mapper, sampler, sum(per_batch) // processes, cfg.DATALOADER.NUM_WORKERS)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Every tile of a data set once, whole and unchanged, with its instances."""
        records = catalog.records(catalog.load_split(catalog.ensure_registered(dataset_name)))
        return evaluation_loader(records, FusionDatasetMapper(cfg, False), cfg.DATALOADER.NUM_WORKERS)

    @classmethod
    def calibration_batches(cls, cfg: CfgNode):
        """Whole tiles with their truth, from all of DATASETS.TEST; each process has its share."""
        return itertools.chain.from_iterable(cls.build_test_loader(cfg, name) for name in cfg.DATASETS.TEST)

    @classmethod
    def build_evaluator(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        model: nn.Module | None = None,
        figures: TrainingFigures | None = None,
    ) -> BuildingEvaluator:
        """The evaluator of a data set.

        Args:
            model: also score its heights on true boxes, when the config asks for it.
            figures: draws scores; None: nothing is drawn.
        """
        on_truth = cfg.MODEL.HEIGHT_ON and cfg.TEST.HEIGHTS_ON_TRUTH_BOXES and model is not None
        return BuildingEvaluator(
            dataset_name,
            output_dir=f"{cfg.OUTPUT_DIR}/inference/{catalog.folder_name(dataset_name)}",
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            model=model if on_truth else None,
            height_labels=cfg.INPUT.HEIGHT_LABELS,
            class_names=cfg.MODEL.DENSE_NET.CLASSES
            if "classes" in architecture_of(cfg).pixel_tasks(cfg)
            else (),
            draw_confusion=None if figures is None else figures.confusion,
        )

    def build_hooks(self) -> list:
        """Detectron2's default hooks in their order, with our best checkpoint and our images."""
        cfg = self.cfg
        made = [hooks.IterationTimer(), hooks.LRScheduler()]
        made += [WeighTasks(m) for m in self.checkpointer.model.modules() if isinstance(m, TaskWeighting)]
        balance = cfg.MODEL.FUSION.BALANCE
        if balance.WINDOW:
            settings = {
                "window": balance.WINDOW,
                "tolerance": balance.TOLERANCE,
                "warmup": cfg.SOLVER.WARMUP_ITERS,
            }
            made.append(BalanceModalities(self.checkpointer.model, self.optimizer, **settings))
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            loader = self.build_train_loader(cfg)
            made.append(
                hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)
            )
        if cfg.MODEL.HEIGHT_ON and cfg.TEST.CALIBRATE_HEIGHTS and len(cfg.DATASETS.TEST):
            made.append(CalibrateHeights(cfg.TEST.EVAL_PERIOD, lambda: self.calibration_batches(cfg)))
        # Checkpoints come before evaluation: should that fail, the weights are on disk.
        if comm.is_main_process():
            made.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))

        def evaluate():
            self._last_eval_results = self.test(cfg, self.model, figures=self.figures)
            return self._last_eval_results

        evaluation = hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate) if len(cfg.DATASETS.TEST) else None
        made += [evaluation] if evaluation else []
        best = BestCheckpoint(self.checkpointer, cfg.TEST.BEST_METRIC) if comm.is_main_process() else None
        writers = None
        if comm.is_main_process():
            made.append(best)
            if cfg.VIS_PERIOD > 0 and self.figures is not None:
                bands = BandSpec(cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS, cfg.INPUT.SAR_SCALE)
                made.append(PredictionPanel(cfg.VIS_PERIOD, bands, self.figures.predictions))
            writers = MetricWriters(self.build_writers, Path(cfg.OUTPUT_DIR) / "metrics.json")
            made.append(writers)
        # Last: all others have to be as they were when the checkpoint was written.
        made.append(CatchUp(self.checkpointer, cfg.TEST.EVAL_PERIOD, evaluation, best, writers))
        return made

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators=None, figures: TrainingFigures | None = None
    ) -> dict:
        """Score `model` on every data set of DATASETS.TEST, by `evaluators` or those of `build_evaluator`.

        Returns:
            On the main process {task: {metric: number}}, e.g. ["segm"]["AP50"], per data set where there are several;
            numbers that are not defined are left out. {} on other processes.
        """
        results = {}
        plain = model.module if isinstance(model, DistributedDataParallel) else model
        for i, name in enumerate(cfg.DATASETS.TEST):
            evaluator = evaluators[i] if evaluators else cls.build_evaluator(cfg, name, plain, figures)
            results[name] = inference_on_dataset(plain, cls.build_test_loader(cfg, name), evaluator) or {}
            if comm.is_main_process():
                _log.info("%s\n%s", name, table(results[name]))
        if not any(results.values()):
            return {}
        return next(iter(results.values())) if len(results) == 1 else results


def training_records(cfg: CfgNode) -> list[dict]:
    """Records of all tiles of DATASETS.TRAIN; those that are not labelled have `labelled` False and no buildings.

    Raises:
        InputError: an unknown data set.
    """
    records = [r for name in cfg.DATASETS.TRAIN for r in catalog.records(catalog.load_split(name))]
    labelled = labelled_tiles(cfg, len(records))
    if not labelled.all():
        _log.info(
            "%d of %d training tiles are labelled: DATASETS.LABEL_SHARE %g, SEED %d",
            *(labelled.sum(), len(records), cfg.DATASETS.LABEL_SHARE, cfg.SEED),
        )
    for i in np.flatnonzero(~labelled):
        records[i] = {**records[i], "tile": replace(records[i]["tile"], buildings=[]), "labelled": False}
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        # A tile without buildings has other classes to learn.
        records = [
            r for r in records if r["tile"].buildings or r["class_raster"] or not r.get("labelled", True)
        ]
    return records


def load_weights(model: nn.Module, cfg: CfgNode) -> None:
    """Load MODEL.WEIGHTS: a checkpoint of this very network strictly, anything else through `modeling.weights`.

    Raises:
        InputError: they do not fit.
    """
    path = cfg.MODEL.WEIGHTS
    if not path and cfg.MODEL.TIMM.WEIGHTS:
        load_timm_weights(model, cfg.MODEL.TIMM.WEIGHTS, **_input_facts(cfg))
        return
    if not path:
        _log.info("MODEL.WEIGHTS is empty: starting from random weights")
        return
    if is_own_checkpoint(path) and not network_differences(stored_config(path), cfg):
        # Weights between tasks belong to a training, see `modeling.weights`: a new one has its own.
        fresh = {m: copy.deepcopy(m.state_dict()) for m in model.modules() if isinstance(m, TaskWeighting)}
        FusionCheckpointer(model).load(path, checkpointables=[])
        for weighting, state in fresh.items():
            weighting.load_state_dict(state)
        return
    load_pretrained(model, path, **_input_facts(cfg))


def _input_facts(cfg: CfgNode) -> dict:
    return {
        "optical_bands": cfg.INPUT.OPTICAL_BANDS,
        "sar_bands": cfg.INPUT.SAR_BANDS,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "inflation": cfg.MODEL.FUSION.STEM_INFLATION,
    }
