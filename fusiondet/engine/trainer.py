"""Training as Detectron2 users know it, for any number of bands: what a config leaves open, the trainer, one step."""

import contextlib
import copy
import itertools
import logging
import math
import os
import time
import weakref
from collections.abc import Iterable
from dataclasses import replace

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.buildings import Tile
from fusiondet.data import catalog
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.data.sampler import (
    FewLabelsSampler,
    TileLoader,
    TrainingSampler,
    choose_labelled,
    evaluation_loader,
)
from fusiondet.engine.balance import BalanceModalities
from fusiondet.engine.checkpoint import (
    FusionCheckpointer,
    is_own_checkpoint,
    network_differences,
    stored_config,
)
from fusiondet.engine.hooks import (
    BestCheckpoint,
    CalibrateHeights,
    PredictionPanel,
    TrainingFigures,
    WeighTasks,
)
from fusiondet.errors import InputError
from fusiondet.evaluation.evaluator import BuildingEvaluator, table
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from fusiondet.io.labels import check_height_labels, tallest_label_m
from fusiondet.io.pixel_classes import absent_classes, class_list, class_names
from fusiondet.io.tile_rasters import band_statistics
from fusiondet.modeling.architecture import Architecture, architecture_of
from fusiondet.modeling.fusion import MODALITIES
from fusiondet.modeling.height_head import DEFAULT_CONTEXT_M, DEFAULT_LOG_SCALE, DEFAULT_MEDIAN_M
from fusiondet.modeling.sensor_geometry import FACTS
from fusiondet.modeling.streams import modality_of_parameters
from fusiondet.modeling.task_weighting import TaskWeighting
from fusiondet.modeling.weights import load_pretrained

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, defaults, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

_log = logging.getLogger(__name__)

_CONTEXT_RANGE_M = (10.0, 100.0)
# Of the logarithms that UncertaintyWeighting learns: of the order of 1 whatever the network, a few hundred steps away.
_LOG_SCALE_LR = 0.01


# ---- What the config leaves open -------------------------------------------------------------------------


def complete_config(cfg: CfgNode, stored: CfgNode | None = None) -> None:
    """Fill in, in place, what fusiondet/config.py marks "from the training data".

    Args:
        cfg: with DATASETS.TRAIN and TEST; their names are registered.
        stored: config of a checkpoint that the weights come from. Bands and statistics are then taken from it, because
            weights mean nothing under others; values that `cfg` sets itself stay.

    Raises:
        InputError: an unknown data set; a modality or band that a data set does not have; data sets that disagree;
            heights per pixel to be learned, and none or no heights there (see `check_height_labels`).
    """
    train, test, bands = settle_data(cfg, stored)
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed() % 2**31
        _log.info("SEED %d was drawn; it is part of the config that is saved", cfg.SEED)
    # Of tiles whose labels are not used, no building may be known here either.
    labelled = _labelled_parts(cfg, train)
    if "height" in architecture_of(cfg).pixel_tasks(cfg):
        for note in check_height_labels(dict(zip(cfg.DATASETS.TRAIN, labelled)), cfg.INPUT.HEIGHT_LABELS):
            _log.warning(note)
    if not len(cfg.MODEL.PIXEL_MEAN) or not len(cfg.MODEL.PIXEL_STD):
        mean, std = _pooled_statistics(train or test, bands)
        cfg.MODEL.PIXEL_MEAN = list(cfg.MODEL.PIXEL_MEAN) or rounded(mean)
        cfg.MODEL.PIXEL_STD = list(cfg.MODEL.PIXEL_STD) or rounded(std)
        _log.info(
            "MODEL.PIXEL_MEAN %s, PIXEL_STD %s of bands %s",
            cfg.MODEL.PIXEL_MEAN,
            cfg.MODEL.PIXEL_STD,
            bands.names,
        )
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[key]) != len(bands):
            raise InputError(
                f"MODEL.{key} has {len(cfg.MODEL[key])} numbers, expected one per band ({', '.join(bands.names)}), or "
                "[] to have them computed from the training data."
            )
    tiles = [tile for dataset in (train or test) for tile in dataset.tiles]
    known = [tile for dataset in (labelled or test) for tile in dataset.tiles]
    _complete_geometry(cfg, tiles, known)
    _complete_height_prior(cfg, known)
    if architecture_of(cfg).reads_dense_net and "height" in architecture_of(cfg).pixel_tasks(cfg):
        _complete_height_scale(cfg, labelled or test)
    if "classes" in architecture_of(cfg).pixel_tasks(cfg):
        _complete_classes(cfg, train, labelled, test)
    _raise_detection_limit(cfg, [tile for dataset in (*labelled, *test) for tile in dataset.tiles])


def settle_data(cfg: CfgNode, stored: CfgNode | None = None) -> tuple[list[Dataset], list[Dataset], BandSpec]:
    """The first part of `complete_config`, which reads annotations alone: the bands, and whether all data have them.

    Returns:
        Data sets of DATASETS.TRAIN, of DATASETS.TEST, and the bands of the network, which are then in `cfg`, too.

    Raises:
        InputError: as `complete_config`.
    """
    train = [catalog.load_split(catalog.ensure_registered(name)) for name in cfg.DATASETS.TRAIN]
    test = [catalog.load_split(catalog.ensure_registered(name)) for name in cfg.DATASETS.TEST]
    if stored is not None:
        take_over(cfg, stored)
    if not train and (stored is None or not test):
        raise InputError("DATASETS.TRAIN is empty: name a data set such as synthcity_train, or a COCO file.")
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    bands = _settle_bands(cfg, names[0], (train or test)[0].bands)
    for name, dataset in zip(names, (*train, *test), strict=True):
        _check_bands(name, dataset.bands, bands)
    if cfg.MODEL.HEIGHT_ON:
        _check_facts(cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY, cfg.DATASETS.TRAIN, train)
    return train, test, bands


# What weights mean nothing without. Ranges of GSD and angles are not among them: they say what was trained on, last.
_DATA_KEYS = (
    "INPUT.OPTICAL_BANDS",
    "INPUT.SAR_BANDS",
    "INPUT.SAR_SCALE",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.ROI_HEIGHT_HEAD.CONTEXT_M",
    "MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M",
    "MODEL.ROI_HEIGHT_HEAD.PRIOR_LOG_SCALE",
    "MODEL.DENSE_NET.HEIGHT_SCALE_M",
    "MODEL.DENSE_NET.CLASSES",
)


def take_over(cfg: CfgNode, stored: CfgNode) -> None:
    """Bands, statistics and seed of `stored`, the config of the weights, for those that `cfg` leaves open, in place."""
    # A network of other bands, RGB weights going on with SAR say, needs statistics of its own bands.
    other_bands = list(cfg.INPUT.MODALITIES) != list(stored.INPUT.MODALITIES) or any(
        len(cfg.INPUT[name]) and list(cfg.INPUT[name]) != list(stored.INPUT[name])
        for name in ("OPTICAL_BANDS", "SAR_BANDS")
    )
    for key in _DATA_KEYS:
        if other_bands and key.startswith("MODEL.PIXEL_"):
            continue
        *path, name = key.split(".")
        ours, theirs = cfg, stored
        for part in path:
            ours, theirs = ours[part], theirs[part]
        if not ours[name]:
            ours[name] = theirs[name]
    if cfg.SEED < 0:
        cfg.SEED = stored.SEED


def _settle_bands(cfg: CfgNode, name: str, found: BandSpec) -> BandSpec:
    """The bands of the network, written to the config: those it names, else all that data set `name` has."""
    for modality, known in (("optical", found.optical), ("sar", found.sar)):
        if modality in cfg.INPUT.MODALITIES and not known:
            others = [m for m in cfg.INPUT.MODALITIES if m != modality]
            raise InputError(
                f"INPUT.MODALITIES asks for {modality}, but data set {name} has no {modality} band. "
                f'Train on the other modality with INPUT.MODALITIES "{others}".'
            )
    optical = (cfg.INPUT.OPTICAL_BANDS or None) if "optical" in cfg.INPUT.MODALITIES else ()
    sar = (cfg.INPUT.SAR_BANDS or None) if "sar" in cfg.INPUT.MODALITIES else ()
    _refuse_missing(name, found, (*(optical or ()), *(sar or ())))
    bands = found.select(optical, sar)
    cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS = list(bands.optical), list(bands.sar)
    cfg.INPUT.SAR_SCALE = (cfg.INPUT.SAR_SCALE or bands.sar_scale) if bands.sar else ""
    cfg.MODEL.FUSION.OPTICAL_CHANNELS = len(bands.optical)
    return BandSpec(bands.optical, bands.sar, cfg.INPUT.SAR_SCALE)


def _check_bands(name: str, found: BandSpec, wanted: BandSpec) -> None:
    _refuse_missing(name, found, wanted.names)
    # Power, amplitude and dB all reach the network as dB; a display stretch is something else.
    stretched = {scale == "stretched_uint8" for scale in (found.sar_scale, wanted.sar_scale)}
    if wanted.sar and len(stretched) > 1:
        raise InputError(
            f"data set {name} holds SAR as {found.sar_scale}, the network was set up for {wanted.sar_scale}; a display "
            "stretch cannot be turned into dB. Use data of one kind."
        )


def _refuse_missing(name: str, found: BandSpec, wanted: tuple[str, ...]) -> None:
    missing = [band for band in wanted if not found.has(band)]
    if missing:
        raise InputError(
            f"data set {name} lacks band {', '.join(missing)}: it has {', '.join(found.names)}, the network takes "
            f"{', '.join(wanted)}, as the config says, or the checkpoint that the weights come from. To train on "
            "others, set INPUT.OPTICAL_BANDS, INPUT.SAR_BANDS or INPUT.MODALITIES; weights are then adapted."
        )


def _pooled_statistics(datasets: list[Dataset], bands: BandSpec):
    """Mean and deviation per band over all data sets, each weighted by its number of tiles."""
    parts = [band_statistics(dataset, dataset.bands.select(bands.optical, bands.sar)) for dataset in datasets]
    weight = np.array([len(dataset.tiles) for dataset in datasets], float)[:, None] / sum(
        len(d.tiles) for d in datasets
    )
    means, stds = np.array([m for m, _ in parts]), np.array([s for _, s in parts])
    mean = (weight * means).sum(axis=0)
    return mean, np.sqrt((weight * (stds**2 + (means - mean) ** 2)).sum(axis=0))


def _labelled(cfg: CfgNode, count: int) -> np.ndarray:
    """(count,) bool: which training tiles, of all data sets in order, are labelled."""
    return choose_labelled(count, cfg.DATASETS.LABEL_SHARE, max(cfg.SEED, 0))


def _labelled_parts(cfg: CfgNode, train: list[Dataset]) -> list[Dataset]:
    """The training data without the tiles that are not labelled."""
    flags = iter(_labelled(cfg, sum(len(dataset.tiles) for dataset in train)))
    return [replace(dataset, tiles=[t for t in dataset.tiles if next(flags)]) for dataset in train]


def training_records(cfg: CfgNode) -> list[dict]:
    """Records of all tiles of DATASETS.TRAIN; those that are not labelled have `labelled` False and no buildings.

    Raises:
        InputError: an unknown data set.
    """
    records = [r for name in cfg.DATASETS.TRAIN for r in catalog.records(catalog.load_split(name))]
    labelled = _labelled(cfg, len(records))
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


def _check_facts(facts: Iterable[str], names: Iterable[str], datasets: list[Dataset]) -> None:
    """InputError when a fact that the height head is to be told is known for no tile; a warning when for some not."""
    tiles = [tile for dataset in datasets for tile in dataset.tiles]
    for fact in facts:
        known = sum(math.isfinite(_fact_of(tile, fact)) for tile in tiles)
        if tiles and not known:
            raise InputError(
                f"MODEL.ROI_HEIGHT_HEAD.GEOMETRY names {fact}, but no tile of {', '.join(names)} states its "
                f"{FACTS[fact].field}. Add it to the annotations (see datasets/README.md), or leave {fact} out."
            )
        if known < len(tiles):
            _log.warning(
                "%d of %d training tiles do not state %s: the height head learns from them to do without",
                *(len(tiles) - known, len(tiles), FACTS[fact].field),
            )


def _fact_of(tile: Tile, fact: str) -> float:
    """A number of the metadata of `tile`; NaN when unknown."""
    field = FACTS[fact].field
    value = tile.gsd_m if field == "gsd_m" else getattr(tile.sensor, field)
    return math.nan if value is None else value


def _complete_geometry(cfg: CfgNode, tiles: list, labelled: list) -> None:
    low, high = cfg.INPUT.SCALE_RANGE
    for key, fact, (smaller, larger) in (
        ("GSD_RANGE_M", "gsd", (high, low)),
        ("SUN_ELEVATION_RANGE_DEG", "sun_elevation", (1, 1)),
        ("SAR_INCIDENCE_RANGE_DEG", "incidence", (1, 1)),
    ):
        known = [value for value in (_fact_of(tile, fact) for tile in tiles) if math.isfinite(value)]
        seen = FACTS[fact].modality in ("", *cfg.INPUT.MODALITIES)
        if known and seen and not len(cfg.INPUT[key]):
            cfg.INPUT[key] = [round(min(known) / smaller, 6), round(max(known) / larger, 6)]
    if cfg.MODEL.ROI_HEIGHT_HEAD.CONTEXT_M == 0:
        cfg.MODEL.ROI_HEIGHT_HEAD.CONTEXT_M = context_m(labelled, cfg.INPUT.MODALITIES)


def context_m(tiles: Iterable, modalities: Iterable[str]) -> float:
    """How far from a building its shadow and layover reach: h * max(cot(sun elevation), cot and tan of incidence).

    h is the 95th percentile of the known heights; the result is rounded to metres and kept within 10 to 100 m. 40 m
    where heights or geometry are unknown.
    """
    heights_m, reaches = _known_heights_m(tiles), []
    for tile in tiles:
        sun, incidence = tile.sensor.sun_elevation_deg, tile.sensor.sar_incidence_deg
        if sun is not None and "optical" in modalities:
            reaches.append(1 / math.tan(math.radians(sun)))
        if incidence is not None and "sar" in modalities:
            tangent = math.tan(math.radians(incidence))
            reaches.append(max(tangent, 1 / tangent))
    if not heights_m or not reaches:
        return DEFAULT_CONTEXT_M
    return float(np.clip(round(np.percentile(heights_m, 95) * max(reaches)), *_CONTEXT_RANGE_M))


def _complete_height_prior(cfg: CfgNode, tiles: list) -> None:
    head, heights_m = cfg.MODEL.ROI_HEIGHT_HEAD, _known_heights_m(tiles)
    median_m = float(np.median(heights_m)) if heights_m else DEFAULT_MEDIAN_M
    spread = float(np.std(np.log(heights_m))) if len(heights_m) > 1 else DEFAULT_LOG_SCALE
    head.PRIOR_MEDIAN_M = head.PRIOR_MEDIAN_M or round(median_m, 4)
    # Equal heights would start the likelihood at a singularity.
    head.PRIOR_LOG_SCALE = head.PRIOR_LOG_SCALE or round(max(spread, 0.1), 4)


def _complete_height_scale(cfg: CfgNode, datasets: list[Dataset]) -> None:
    """MODEL.DENSE_NET.HEIGHT_SCALE_M: the greatest height per pixel of the labels, metres, rounded up."""
    net = cfg.MODEL.DENSE_NET
    if not net.HEIGHT_SCALE_M:
        net.HEIGHT_SCALE_M = float(math.ceil(tallest_label_m(datasets, cfg.INPUT.HEIGHT_LABELS))) or 1.0
        _log.info(
            "MODEL.DENSE_NET.HEIGHT_SCALE_M %g, the greatest height of the training data", net.HEIGHT_SCALE_M
        )


def _complete_classes(
    cfg: CfgNode, train: list[Dataset], labelled: list[Dataset], test: list[Dataset]
) -> None:
    """MODEL.DENSE_NET.CLASSES: those of the first data set; all others have to have the same.

    A warning names classes that are in none of the tiles looked at: nothing is learned of them, or no score is defined.

    Raises:
        InputError: data sets of different classes, or see `tile_classes`.
    """
    net, full = cfg.MODEL.DENSE_NET, [*train, *test]
    if not len(net.CLASSES):
        net.CLASSES = list(class_names(full[0]))
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for name, dataset, known in zip(names, full, [*labelled, *test], strict=True):
        found = class_names(dataset)
        if {*found} != {*net.CLASSES}:
            raise InputError(
                f"data set {name} has the classes {', '.join(found)}, expected {', '.join(net.CLASSES)}, as the config "
                f"says, or the data set that is named first ({names[0]}), or the checkpoint that the weights come from."
            )
        if class_list(dataset) is not None and class_list(known) is None:
            raise InputError(
                f"data set {name}: no tile whose labels are used (DATASETS.LABEL_SHARE) has a raster of classes."
            )
        absent, looked_at = absent_classes(known, net.CLASSES)
        if absent:
            _log.warning(
                "data set %s: no pixel of %s in the %d tiles looked at", name, " or ".join(absent), looked_at
            )


def _known_heights_m(tiles: Iterable) -> list[float]:
    return [b.height_m for tile in tiles for b in tile.buildings if b.height_m is not None]


def _raise_detection_limit(cfg: CfgNode, tiles: list) -> None:
    densest = max((len(tile.buildings) for tile in tiles), default=0)
    if cfg.TEST.DETECTIONS_PER_IMAGE <= densest:
        limit = math.ceil(1.5 * densest)
        _log.warning(
            "TEST.DETECTIONS_PER_IMAGE raised from %d to %d: the densest tile has %d buildings.",
            *(cfg.TEST.DETECTIONS_PER_IMAGE, limit, densest),
        )
        cfg.TEST.DETECTIONS_PER_IMAGE = limit
    if cfg.MODEL.RPN.POST_NMS_TOPK_TEST < cfg.TEST.DETECTIONS_PER_IMAGE:
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 2 * cfg.TEST.DETECTIONS_PER_IMAGE
        _log.warning("MODEL.RPN.POST_NMS_TOPK_TEST raised to %d for that.", cfg.MODEL.RPN.POST_NMS_TOPK_TEST)


def rounded(values) -> list[float]:
    """`values` to six digits, as they stand in a config."""
    return [float(f"{v:.6g}") for v in values]


# ---- One step --------------------------------------------------------------------------------------------


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


# ---- The trainer -----------------------------------------------------------------------------------------


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
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
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
        """As in Detectron2, with the number of parameters in the log instead of a page of layers.

        Raises:
            InputError: the config describes no network, or one whose parts do not fit together.
        """
        try:
            model = defaults.build_model(cfg)
        except InputError:
            raise
        except (KeyError, ValueError, TypeError, AssertionError, RuntimeError) as error:
            # What Detectron2 and torch raise for a depth, a norm or a feature map that does not exist.
            reason = f"{type(error).__name__} {error}".splitlines()[0]
            raise InputError(
                f"no network can be built from this config: {reason}. Compare MODEL.DEVICE and the other MODEL keys "
                "with configs/Base-FusionRCNN-FPN.yaml."
            ) from error
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
        """SGD or AdamW by SOLVER.OPTIMIZER; normalisation layers decay by SOLVER.WEIGHT_DECAY_NORM (0).

        What one stream has for itself learns by SOLVER.OPTICAL_LR_FACTOR or SAR_LR_FACTOR times the rate.

        Raises:
            InputError: one of these two factors is set, but the network has no stream of that modality alone.
        """
        bias_decay = cfg.SOLVER.WEIGHT_DECAY_BIAS
        groups = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            # v0.5 has a default of its own that does not follow WEIGHT_DECAY; later versions have None, which does.
            weight_decay_bias=None if bias_decay == get_cfg().SOLVER.WEIGHT_DECAY_BIAS else bias_decay,
            overrides={"task_log_scales": {"lr": _LOG_SCALE_LR, "weight_decay": 0.0}},
        )
        groups = _by_stream(cfg, model, groups)
        kind, options = torch.optim.AdamW, {}
        if cfg.SOLVER.OPTIMIZER == "SGD":
            kind, options = (
                torch.optim.SGD,
                {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV},
            )
        kind = maybe_add_gradient_clipping(cfg, kind)
        return kind(_merged(groups), lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, **options)

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

        if len(cfg.DATASETS.TEST):
            made.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate))
        if comm.is_main_process():
            made.append(BestCheckpoint(self.checkpointer, cfg.TEST.BEST_METRIC))
            if cfg.VIS_PERIOD > 0 and self.figures is not None:
                bands = BandSpec(cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS, cfg.INPUT.SAR_SCALE)
                made.append(PredictionPanel(cfg.VIS_PERIOD, bands, self.figures.predictions))
            made.append(hooks.PeriodicWriter(self.build_writers(), period=20))
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


def precision(cfg: CfgNode) -> str:
    """What is computed in: "float32", "float16" (SOLVER.AMP.ENABLED on CUDA), "bfloat16" (on CPU: BF16_ON_CPU too)."""
    if not cfg.SOLVER.AMP.ENABLED:
        return "float32"
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return "float16"
    return "bfloat16" if cfg.SOLVER.AMP.BF16_ON_CPU else "float32"


def load_weights(model: nn.Module, cfg: CfgNode) -> None:
    """Load MODEL.WEIGHTS: a checkpoint of this very network strictly, anything else through `modeling.weights`.

    Raises:
        InputError: they do not fit.
    """
    path = cfg.MODEL.WEIGHTS
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
    load_pretrained(
        model,
        path,
        optical_bands=cfg.INPUT.OPTICAL_BANDS,
        sar_bands=cfg.INPUT.SAR_BANDS,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        inflation=cfg.MODEL.FUSION.STEM_INFLATION,
    )


def _by_stream(cfg: CfgNode, model: nn.Module, groups: list[dict]) -> list[dict]:
    """A group per parameter; "lr" of those that one stream has for itself times the factor of its modality."""
    factors = {"optical": cfg.SOLVER.OPTICAL_LR_FACTOR, "sar": cfg.SOLVER.SAR_LR_FACTOR}
    of_one = modality_of_parameters(model)
    idle = [m for m in MODALITIES if factors[m] != 1 and m not in of_one.values()]
    if idle:
        network = f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}"
        if architecture_of(cfg).reads_dense_net:
            network = f"MODEL.DENSE_NET.NAME is {cfg.MODEL.DENSE_NET.NAME}"
        raise InputError(
            f"SOLVER.{idle[0].upper()}_LR_FACTOR is {factors[idle[0]]:g}, but the network has no stream that sees "
            f"{idle[0]} bands alone: {network}, INPUT.MODALITIES {list(cfg.INPUT.MODALITIES)}. Leave it at 1.0."
        )
    return [
        {**group, "params": [p], "lr": group["lr"] * factors.get(of_one.get(p), 1.0)}
        for group in groups
        for p in group["params"]
    ]


def _merged(groups: list[dict]) -> list[dict]:
    """Parameter groups with equal settings as one: Detectron2 makes one per tensor, and optimizers loop over groups."""
    merged: dict[tuple, dict] = {}
    for group in groups:
        settings = {k: v for k, v in group.items() if k != "params"}
        merged.setdefault(tuple(sorted(settings.items())), {**settings, "params": []})["params"] += group[
            "params"
        ]
    return list(merged.values())
