#!/usr/bin/env python
"""Measure what fusion and heights cost beside Detectron2's own Mask R-CNN, in one run on this machine."""

import argparse
from pathlib import Path

from fusiondet import cli


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        help="training steps: early fusion / 3 channels, height head / without, and an A/A control",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.add_argument(
        "--config-file",
        type=Path,
        default=Path("configs/dfc2023/early_fusion_r50.yaml"),
        help="network to measure",
    )
    train.add_argument("--size", type=int, default=512, help="side of the images, pixels")
    train.add_argument("--batch", type=int, default=2, help="images per step")
    train.add_argument("--steps", type=int, default=20, help="timed steps of each network")
    train.add_argument("--warmup", type=int, default=3, help="steps before the clock starts")
    train.add_argument("--sar-bands", type=int, default=1, help="bands beside red, green and blue")
    train.add_argument("--buildings", type=int, default=40, help="random buildings per image")
    train.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    train.add_argument(
        "--precision",
        default="float32",
        help="float32, bfloat16, or float16 (loss-scaled, GPU only): autocast",
    )
    train.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own choice")
    train.add_argument("--out", type=Path, help="also write all numbers to this JSON file")
    train.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    cli.seed_argument(train)
    train.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config overrides, e.g. MODEL.RESNETS.DEPTH 101"
    )
    return top


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    from fusiondet.files import require_new, write_json

    if args.out:
        require_new(args.out, args.overwrite)
    from fusiondet.benchmarking import Settings, benchmark_training
    from fusiondet.benchmarking.training import format_table
    from fusiondet.config import load_config

    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    settings = Settings(
        size_px=args.size,
        batch=args.batch,
        rounds=args.steps,
        warmup=args.warmup,
        sar_bands=args.sar_bands,
        buildings=args.buildings,
        device=args.device,
        precision=args.precision,
        seed=args.seed,
    )
    result = benchmark_training(load_config(args.config_file, args.opts), settings)
    print(format_table(result))
    if args.out:
        write_json(result, args.out, indent=1)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.run(main)
