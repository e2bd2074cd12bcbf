"""Training and evaluation of networks that say one thing of a whole patch: FusionTrainer with other data and scores."""

import bisect
import logging
from collections.abc import Sequence
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.buildings import SensorGeometry
from fusiondet.data import catalog
from fusiondet.data.augmentations import allowed_dihedral
from fusiondet.data.sampler import TileLoader, TrainingSampler
from fusiondet.engine.checkpoint import is_own_checkpoint, network_differences, stored_config
from fusiondet.engine.complete_config import draw_seed, settle_statistics, take_over
from fusiondet.engine.hooks import TrainingFigures
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError
from fusiondet.evaluation.classification import ConfusionMatrix, class_metrics
from fusiondet.evaluation.evaluator import nested
from fusiondet.files import atomic_path, write_json
from fusiondet.projects.hse_lcz.hse_lcz_net import N_ZONES
from fusiondet.projects.hse_lcz.patches import GSD_M, LCZ_CLASSES, PatchSplit, check_bands, read_patches
from fusiondet.projects.hse_lcz.regression import regression_metrics

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

assert len(LCZ_CLASSES) == N_ZONES

_log = logging.getLogger(__name__)

# Patches that are evaluated at a time; no influence on what is said of each.
_EVALUATED_AT_ONCE = 64


def load_patches(name: str) -> PatchSplit:
    """Return the split of patches `name`, found as one of tiles is, read once per version of its file. Read-only.

    Raises:
        InputError: see `fusiondet.data.catalog.annotation_file` and `read_patches`.
    """
    return catalog.load_annotations(name, read_patches)


def complete_config(cfg: CfgNode, stored: CfgNode | None = None) -> None:
    """Fill in, in place, the bands and statistics that `cfg` leaves open, for networks of patches.

    Args:
        stored: config of the checkpoint that the weights come from; see `fusiondet.engine.complete_config`.

    Raises:
        InputError: an unknown data set, or one of tiles; a band that patches do not have; no settlement extent or zone
            to learn.
    """
    train = [load_patches(catalog.ensure_registered(name)) for name in cfg.DATASETS.TRAIN]
    test = [load_patches(catalog.ensure_registered(name)) for name in cfg.DATASETS.TEST]
    if stored is not None:
        take_over(cfg, stored)
    if not train and (stored is None or not test):
        raise InputError("DATASETS.TRAIN is empty: name a split of patches such as so2sat_train.")
    _check_truth(cfg, train)
    for name, split in zip((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST), (*train, *test)):
        if "lcz" in cfg.MODEL.HSE_LCZ.TASKS and split.absent_classes():
            _log.warning("%s has no patch of the classes %s", name, ", ".join(split.absent_classes()))
    draw_seed(cfg)
    optical, sar = _settle_bands(cfg)
    splits = train or test
    settle_statistics(
        cfg,
        (*optical, *sar),
        lambda: [split.statistics(optical, sar) for split in splits],
        [len(split) for split in splits],
    )
    if not len(cfg.INPUT.GSD_RANGE_M):
        cfg.INPUT.GSD_RANGE_M = [GSD_M, GSD_M]


def _check_truth(cfg: CfgNode, train: list[PatchSplit]) -> None:
    """InputError when the extent is to be learned and known of no training patch; a note when of some not."""
    if not train or "hse" not in cfg.MODEL.HSE_LCZ.TASKS:
        return
    known, count = sum(int(np.isfinite(split.hse).sum()) for split in train), sum(len(s) for s in train)
    if not known:
        raise InputError(
            f"MODEL.HSE_LCZ.TASKS names hse, but no patch of {', '.join(cfg.DATASETS.TRAIN)} has a settlement extent. "
            "Convert the data again with `hse_train`, or set MODEL.HSE_LCZ.TASKS \"['lcz']\"."
        )
    if known < count:
        _log.warning(
            "%d of %d training patches have a settlement extent; others train the zone alone", known, count
        )


def _settle_bands(cfg: CfgNode) -> tuple[list[str], list[str]]:
    """The bands of the network, written to the config: those it names, else all of its modalities."""
    for modality, key, known in (
        ("optical", "OPTICAL_BANDS", PatchSplit.optical),
        ("sar", "SAR_BANDS", PatchSplit.sar),
    ):
        wanted = list(cfg.INPUT[key] or known) if modality in cfg.INPUT.MODALITIES else []
        check_bands(wanted, known)
        cfg.INPUT[key] = wanted
    cfg.MODEL.FUSION.OPTICAL_CHANNELS = len(cfg.INPUT.OPTICAL_BANDS)
    return list(cfg.INPUT.OPTICAL_BANDS), list(cfg.INPUT.SAR_BANDS)


class PatchRecords(Sequence):
    """The records of some splits one after the other, each made when it is asked for: there may be 400,000."""

    def __init__(self, splits: list[PatchSplit]):
        self.splits = splits
        self._ends = np.cumsum([len(split) for split in splits]).tolist()

    def __len__(self):
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict:
        """See `PatchSplit.record`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        return self.splits[number].record(index - (self._ends[number - 1] if number else 0))


class PatchMapper:
    """`mapper(record, counter)`: a record of `PatchSplit` -> the input dict of `HseLczNet`.

    In training a patch is flipped and turned, as INPUT.DIHEDRAL and QUARTER_TURNS allow, by (seed, counter) alone.
    """

    def __init__(self, cfg: CfgNode, is_train: bool):
        self.optical, self.sar = tuple(cfg.INPUT.OPTICAL_BANDS), tuple(cfg.INPUT.SAR_BANDS)
        self.seed = max(cfg.SEED, 0)
        self.choices = [(False, 0)]
        if is_train and cfg.INPUT.DIHEDRAL:
            self.choices = allowed_dihedral(SensorGeometry(), (), (), cfg.INPUT.QUARTER_TURNS)

    def __call__(self, record: dict, counter: int = 0) -> dict:
        """Returns: image (C, 32, 32) float32 tensor, NaN = no data; hse, lcz, image_id and file_name of the record.

        Raises:
            InputError: the patch cannot be read.
        """
        image = record["split"].read(record["image_id"], self.optical, self.sar)
        rng = np.random.default_rng((self.seed, counter))
        mirror, quarters = self.choices[rng.integers(len(self.choices))]
        image = np.rot90(image[:, :, ::-1] if mirror else image, quarters, axes=(1, 2))
        kept = {key: record[key] for key in ("image_id", "file_name", "hse", "lcz")}
        return {**kept, "image": torch.from_numpy(np.ascontiguousarray(image))}


class PatchTrainer(FusionTrainer):
    """FusionTrainer of networks of patches: steps, checkpoints, hooks and --resume are the same."""

    @classmethod
    def complete_config(cls, cfg: CfgNode, stored: CfgNode | None = None) -> None:
        """Fill in what `cfg` leaves open, see the function of this name."""
        complete_config(cfg, stored)

    def resume_or_load(self, resume: bool = True) -> None:
        """As FusionTrainer's; MODEL.WEIGHTS can be a checkpoint of this very network alone.

        Raises:
            InputError: they are something else.
        """
        path = self.cfg.MODEL.WEIGHTS
        if path and not (resume and self.checkpointer.has_checkpoint()):
            if not is_own_checkpoint(path):
                raise InputError(
                    f"MODEL.WEIGHTS {path}: networks of patches start from checkpoints of their own, or from none."
                )
            differing = network_differences(stored_config(path), self.cfg)
            if differing:
                raise InputError(f"MODEL.WEIGHTS {path}: is of another network: {', '.join(differing)}.")
        super().resume_or_load(resume)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TileLoader:
        """Endless batches from all of DATASETS.TRAIN, of this process's part of SOLVER.IMS_PER_BATCH.

        Raises:
            InputError: that does not divide among the processes.
        """
        processes, batch = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
        if batch % processes:
            raise InputError(
                f"SOLVER.IMS_PER_BATCH is {batch}, expected a multiple of the {processes} processes."
            )
        records = PatchRecords([load_patches(name) for name in cfg.DATASETS.TRAIN])
        sampler = TrainingSampler(len(records), max(cfg.SEED, 0), comm.get_rank(), processes)
        return TileLoader(
            records, PatchMapper(cfg, True), sampler, batch // processes, cfg.DATALOADER.NUM_WORKERS
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> TileLoader:
        """Every patch of a data set once, unchanged, split over the processes."""
        records = PatchRecords([load_patches(dataset_name)])
        sampler = InferenceSampler(len(records))
        return TileLoader(
            records, PatchMapper(cfg, False), sampler, _EVALUATED_AT_ONCE, cfg.DATALOADER.NUM_WORKERS
        )

    @classmethod
    def build_evaluator(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        model: nn.Module | None = None,
        figures: TrainingFigures | None = None,
    ):
        """Scores of patches, see `PatchEvaluator`."""
        return PatchEvaluator(
            load_patches(dataset_name),
            output_dir=f"{cfg.OUTPUT_DIR}/inference/{catalog.folder_name(dataset_name)}",
            draw_confusion=None if figures is None else figures.confusion,
        )


class PatchEvaluator(DatasetEvaluator):
    """Settlement extents and zones of one split; keys are those of `fusiondet.evaluation`, hse/... and lcz/...

    Writes `metrics.json` (flat keys, null where not defined), `predictions.npz` (hse (N,) float32 and lcz (N, 17)
    float32 probabilities, in the order of the split) and, of zones, with `draw_confusion`, `confusion.png` into
    `output_dir`.
    """

    def __init__(self, split: PatchSplit, *, output_dir: str | Path | None = None, draw_confusion=None):
        """`draw_confusion`: as of `BuildingEvaluator`."""
        self.split, self.output_dir = split, None if output_dir is None else Path(output_dir)
        self.draw_confusion = draw_confusion
        self.reset()

    def reset(self) -> None:
        """Forget what was processed."""
        self._said: dict[int, dict[str, np.ndarray]] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in what the model made of `inputs`."""
        for one, output in zip(inputs, outputs, strict=True):
            self._said[one["image_id"]] = {
                name: values.detach().float().cpu().numpy() for name, values in output.items()
            }

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Gather from all processes and score on the main one.

        Returns:
            {task: {metric: number}} without undefined numbers, on the main process; {} on the others.
        """
        everyone = comm.all_gather(self._said)
        if not comm.is_main_process():
            return {}
        said = {index: output for part in everyone for index, output in part.items()}
        order = sorted(said)
        predictions = {
            name: np.stack([said[index][name] for index in order])
            for name in (said[order[0]] if order else ())
        }
        numbers, matrix = self._scores(order, predictions)
        if self.output_dir is not None:
            self._write(order, predictions, numbers, matrix)
        return nested(numbers)

    def _scores(self, order: list[int], predictions: dict) -> tuple[dict, ConfusionMatrix | None]:
        numbers: dict[str, float | None] = {"dataset/n_patches": len(self.split)}
        matrix = None
        if "hse" in predictions:
            numbers |= regression_metrics(self.split.hse[order], predictions["hse"], "hse")
        if "lcz" in predictions:
            matrix = ConfusionMatrix(N_ZONES).add(self.split.lcz[order], predictions["lcz"].argmax(axis=1))
            numbers |= class_metrics(matrix, LCZ_CLASSES, "lcz")
        return numbers, matrix

    def _write(self, order, predictions: dict, numbers: dict, matrix: ConfusionMatrix | None) -> None:
        write_json(numbers, self.output_dir / "metrics.json", indent=1)
        with atomic_path(self.output_dir / "predictions.npz") as temporary:
            np.savez_compressed(temporary, index=np.array(order), **predictions)
        picture = self.output_dir / "confusion.png"
        # What another network left here would be taken for this one's.
        picture.unlink(missing_ok=True)
        if matrix is not None and self.draw_confusion is not None:
            names = [name.replace("_", " ") for name in LCZ_CLASSES]
            title = f"{numbers['lcz/n']} patches, overall accuracy {numbers['lcz/oa']:.3f}"
            self.draw_confusion(matrix.counts, names, title, picture)
