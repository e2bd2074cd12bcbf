"""What `tools/train_net.py` does: from arguments to a complete config, then training or evaluation in every process."""

import argparse
import logging
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet import cli, plugins
from fusiondet.config import find_config
from fusiondet.config_loading import load_config
from fusiondet.data import catalog
from fusiondet.engine.checkpoint import FusionCheckpointer, is_own_checkpoint, stored_config
from fusiondet.engine.hooks import TrainingFigures
from fusiondet.engine.run_output import KeptLog, RunOutput
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

_EPILOG = """
KEY VALUE pairs at the end change the config; fusiondet/config.py describes every key of ours, projects have their own.
OUTPUT_DIR gets config.yaml (complete), metrics.json, TensorBoard events, checkpoints with last_checkpoint,
model_best.pth, and inference/<data set>/{predictions,metrics}.json.

    tools/train_net.py --config-file configs/synthetic/fusion_r18_small.yaml OUTPUT_DIR output/first
    tools/train_net.py --config-file output/first/config.yaml --resume
    tools/train_net.py --config-file output/first/config.yaml --eval-only MODEL.WEIGHTS output/first/model_best.pth
    tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS ... OUTPUT_DIR ... MODEL.FUSION.DISABLED sar

Without a GPU, --num-gpus N starts N processes on the CPU. Data sets are looked up under $DETECTRON2_DATASETS
(default: datasets/).
"""


def parse_arguments(argv: list[str] | None = None, others=dict) -> argparse.Namespace:
    """Detectron2's arguments, with a free port by default on one machine; `others` as in `cli.parse`."""
    parser = default_argument_parser(epilog=_EPILOG)
    parser.description = (
        "Train (or, with --eval-only, evaluate) a network: buildings with heights, maps, or what a patch is."
    )
    parser.set_defaults(dist_url="auto")
    aliases = {"num_gpus_per_machine": "num_gpus"}
    return cli.parse(parser, argv, aliases=aliases, others=others)


def trainer_of(cfg: CfgNode) -> type[FusionTrainer]:
    """Return the trainer of the network of `cfg`: its project's, where that has one, else the one of tiles.

    Raises:
        InputError: a library that the project needs is not installed.
    """
    return plugins.load("trainers", cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE") or FusionTrainer


def prepare(args: argparse.Namespace) -> CfgNode:
    """The complete, frozen config of a run. What can be wrong with config and data is found here, once.

    Nothing is written. `args` keeps what was logged, for the log.txt of `work`.

    Raises:
        InputError: no or bad config file, data set, bands, or checkpoint.
    """
    if not args.config_file:
        raise InputError("`config_file` is missing, e.g. configs/synthetic/fusion_r18_small.yaml.")
    setup_logger(distributed_rank=comm.get_rank(), name="fusiondet")
    with KeptLog() as args.log_lines:
        return _prepare(args)


def _prepare(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args.config_file, args.opts or [])
    # A name is a file from here on: Detectron2 prints it.
    args.config_file = str(find_config(args.config_file))
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.FUSION.DISABLED:
        _check_hiding(cfg, args)
    if args.eval_only and not cfg.DATASETS.TEST:
        raise InputError("`eval_only` needs DATASETS.TEST.")
    if cfg.MODEL.DEVICE == "cpu":
        logging.getLogger(__name__).info("training on the CPU with %d threads", torch.get_num_threads())
    if cfg.SEED < 0 and args.num_machines > 1:
        cfg.SEED = 0  # every machine completes the config for itself, and all have to shuffle alike
    weights = _weights_to_continue(cfg, args)
    trainer_of(cfg).complete_config(cfg, stored_config(weights) if weights else None)
    cfg.freeze()
    return cfg


def _check_hiding(cfg: CfgNode, args: argparse.Namespace) -> None:
    """InputError when MODEL.FUSION.DISABLED is set for a training, or would take the place of a training's results."""
    hidden = cfg.MODEL.FUSION.DISABLED
    if not args.eval_only:
        others = [m for m in cfg.INPUT.MODALITIES if m != hidden]
        raise InputError(
            f"MODEL.FUSION.DISABLED {hidden} is for `eval_only`. To train a network without it, set "
            f'INPUT.MODALITIES "{others}"; to train one that copes with both, MODEL.FUSION.MODALITY_DROPOUT.'
        )
    if Path(cfg.MODEL.WEIGHTS).resolve().parent == Path(cfg.OUTPUT_DIR).resolve():
        raise InputError(
            f"MODEL.FUSION.DISABLED {hidden}: OUTPUT_DIR is {cfg.OUTPUT_DIR}, where the weights are, and whose "
            f"config.yaml and scores would become those without {hidden}. Name another OUTPUT_DIR."
        )


def _weights_to_continue(cfg: CfgNode, args: argparse.Namespace) -> Path | None:
    """The checkpoint of ours whose bands and statistics this run inherits; None for a fresh start."""
    tag = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
    if args.resume and not args.eval_only and tag.is_file():
        return tag.parent / tag.read_text(encoding="utf-8", errors="replace").strip()
    path = cfg.MODEL.WEIGHTS
    if args.eval_only:
        if not path:
            raise InputError("`eval_only` needs MODEL.WEIGHTS, the checkpoint to evaluate.")
        return Path(path)
    return Path(path) if path and is_own_checkpoint(path) else None


def work(cfg: CfgNode, args: argparse.Namespace, figures: TrainingFigures | None = None) -> dict:
    """Train or evaluate in this process.

    Args:
        figures: draws predictions and scores, e.g. `fusiondet.visualization.training.FIGURES`; None: nothing is drawn.

    Returns:
        {task: {metric: number}} of the last evaluation.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        catalog.ensure_registered(name)
    lines = vars(args).pop("log_lines", [])
    with RunOutput(cfg.OUTPUT_DIR, lines) as output:
        _setup(cfg, args)
        if args.eval_only:
            model = trainer_of(cfg).build_model(cfg)
            # Strict, never adapted to other bands.
            FusionCheckpointer(model, config_yaml=cfg.dump()).load(cfg.MODEL.WEIGHTS, checkpointables=[])
            output.begin(cfg.dump())
            return _verified(cfg, trainer_of(cfg).test(cfg, model, figures=figures))
        trainer = trainer_of(cfg)(cfg, figures)
        trainer.resume_or_load(resume=args.resume)
        output.begin(cfg.dump())
        trainer.train()
        return _verified(cfg, trainer._last_eval_results)


def _verified(cfg: CfgNode, results: dict) -> dict:
    """`results`; the process ends with status 1 when they are not the TEST.EXPECTED_RESULTS of the config."""
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Detectron2's set-up: loggers, environment, seeds. It writes nothing: `RunOutput` does, later."""
    logging.getLogger("detectron2").addFilter(_without_pages_of_config)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_without_known_errors)
    silent = cfg.clone()
    silent.defrost()
    silent.OUTPUT_DIR = None
    default_setup(silent, args)
    setup_logger(distributed_rank=comm.get_rank(), name="fusiondet")


def _without_pages_of_config(record: logging.LogRecord) -> bool:
    # 500 lines that config.yaml holds too; what follows them on the screen is what a user waits for.
    return not str(record.msg).startswith(("Running with full config", "Contents of args.config_file"))


def _without_known_errors(record: logging.LogRecord) -> bool:
    # A full disk or a damaged image is reported in one line at the end; where in the code tells nothing.
    return not (record.exc_info and isinstance(record.exc_info[1], InputError | OSError))
