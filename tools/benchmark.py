#!/usr/bin/env python
"""Measure what fusion, heights, dense heads and conversions cost, as ratios of what takes turns on this machine."""

import argparse
import sys
from pathlib import Path

# The benchmarks lie beside the package, in the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fusiondet import cli


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        help="training steps: early fusion / 3 channels, height head / without, and an A/A control",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _common_arguments(train, Path("dfc2023/early_fusion_r50.yaml"), batch=2, steps=20)
    fusion = commands.add_parser(
        "fusion",
        help="every way of fusing / early fusion: step, backbone and inference time, parameters, FLOPs, memory",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _common_arguments(fusion, Path("dfc2023/early_fusion_r50_height.yaml"), batch=1, steps=8)
    joint = commands.add_parser(
        "joint",
        help="one network for instances and dense maps / a network for each, one after the other; A/A control",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _common_arguments(joint, Path("synthetic/joint_r18_small.yaml"), batch=1, steps=20, size=256)
    convert = commands.add_parser(
        "convert",
        help="tiles of a mosaic with footprints / a plain loop; time and memory as tiles and buildings grow",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _convert_arguments(convert)
    scene = commands.add_parser(
        "scene",
        help="scenes with a stand-in for the network: time beside it, memory as they grow, and the usual way",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _scene_arguments(scene)
    polygons = commands.add_parser(
        "polygons",
        help="regular outlines of noisy masks against the truth, beside buildingregulariser and simplification; growth",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _polygons_arguments(polygons)
    return top


def _common_arguments(
    command: argparse.ArgumentParser, config_file: Path, batch: int, steps: int, size: int = 512
) -> None:
    command.add_argument("--config-file", type=Path, default=config_file, help="network to measure")
    command.add_argument("--size", type=int, default=size, help="side of the images, pixels")
    command.add_argument("--batch", type=int, default=batch, help="images at a time")
    command.add_argument(
        "--steps", type=int, default=steps, help="timed rounds: one run of each network in each"
    )
    command.add_argument("--warmup", type=int, default=3, help="rounds before the clock starts")
    command.add_argument("--sar-bands", type=int, default=1, help="bands beside red, green and blue")
    command.add_argument("--buildings", type=int, default=40, help="random buildings per image")
    command.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    command.add_argument(
        "--precision",
        default="float32",
        help="float32, bfloat16, or float16 (loss-scaled, GPU only): autocast",
    )
    command.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own choice")
    _result_arguments(command)
    command.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config overrides, e.g. MODEL.RESNETS.DEPTH 101"
    )


def _convert_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--size", type=int, default=20_000, help="side of the mosaic, pixels")
    command.add_argument("--tile-size", type=int, default=512, help="side of its tiles, pixels")
    command.add_argument("--buildings", type=int, default=10_000, help="footprints on it")
    command.add_argument("--city", type=int, default=10_000, help="buildings of the CityJSON")
    command.add_argument(
        "--tiles", type=int, default=400, help="growth: from so many tiles to ten times as many"
    )
    command.add_argument(
        "--grown-buildings",
        type=int,
        default=2_000,
        help="growth: from so many footprints to ten times as many",
    )
    command.add_argument("--rounds", type=int, default=3, help="runs of each contestant")
    command.add_argument(
        "--compress", help="compression of the mosaic, and of tiles copied from it, e.g. deflate"
    )
    command.add_argument(
        "--folder", type=Path, help="for rasters, some GB; default: the system's temporary one"
    )
    _result_arguments(command)


def _polygons_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--buildings", type=int, default=1000, help="footprints at most")
    command.add_argument(
        "--footprints", type=Path, help="CityJSON to take them from; default: the synthetic city"
    )
    command.add_argument("--gsd", type=float, default=0.5, help="pixel size of the masks' picture, metres")
    command.add_argument("--noise", type=float, default=0.15, help="errors of the mask's probabilities")
    command.add_argument("--tolerance", type=float, default=1.0, help="of the regularisation, metres")
    command.add_argument("--min-iou", type=float, default=0.9, help="to the given outline, or that stays")
    command.add_argument(
        "--grown",
        type=int,
        default=10_000,
        help="growth: from so many buildings to ten times as many; 0: none",
    )
    _result_arguments(command)


def _scene_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--size", type=int, default=12_000, help="side of the scene for time, about, pixels")
    command.add_argument("--window", type=int, default=512, help="side of its windows, pixels")
    command.add_argument("--model-ms", type=float, default=25.0, help="what the stand-in takes for a window")
    command.add_argument("--batch", type=int, default=1, help="windows at a time")
    command.add_argument("--small", type=int, default=4_000, help="memory: from a scene of this side")
    command.add_argument("--large", type=int, default=40_000, help="memory: to one of this side")
    command.add_argument("--rounds", type=int, default=3, help="runs of each contestant")
    command.add_argument("--folder", type=Path, help="for rasters; default: the system's temporary one")
    _result_arguments(command)


def _result_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, help="also write all numbers to this JSON file")
    command.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    cli.seed_argument(command)


def main(argv: list[str] | None = None) -> None:
    args = cli.parse(parser(), argv)
    from fusiondet.files import write_json
    from fusiondet.locks import new_files

    measure = {"convert": _measure_conversion, "polygons": _measure_polygons, "scene": _measure_scenes}
    with new_files(args.out, overwrite=args.overwrite):
        result, table = measure.get(args.command, _measure_networks)(args)
        print(table)
        if args.out:
            write_json(result, args.out, indent=1)
            print(f"wrote {args.out}")


def _measure_conversion(args) -> tuple[dict, str]:
    from benchmarks import conversion_cost as convert

    names = ("buildings", "city", "tiles", "grown_buildings", "rounds", "seed", "folder", "compress")
    settings = convert.ConversionSettings(
        mosaic_px=args.size, tile_px=args.tile_size, **{name: getattr(args, name) for name in names}
    )
    result = convert.benchmark_conversion(settings)
    return result, convert.format_table(result)


def _measure_polygons(args) -> tuple[dict, str]:
    from benchmarks import polygon_cost as polygons

    settings = polygons.PolygonSettings(
        buildings=args.buildings,
        footprints=args.footprints,
        gsd_m=args.gsd,
        noise=args.noise,
        tolerance_m=args.tolerance,
        min_iou=args.min_iou,
        grown=args.grown,
        seed=args.seed,
    )
    result = polygons.benchmark_polygons(settings)
    return result, polygons.format_table(result)


def _measure_scenes(args) -> tuple[dict, str]:
    from benchmarks import scene_cost as scene

    settings = scene.SceneSettings(
        size_px=args.size,
        window_px=args.window,
        small_px=args.small,
        large_px=args.large,
        **{name: getattr(args, name) for name in ("model_ms", "batch", "rounds", "seed", "folder")},
    )
    result = scene.benchmark_scene(settings)
    return result, scene.format_table(result)


def _measure_networks(args) -> tuple[dict, str]:
    from benchmarks import TimingSettings
    from benchmarks import fusion_cost as fusion
    from benchmarks import joint_cost as joint
    from benchmarks import training_cost as training
    from fusiondet.config_loading import load_config

    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    settings = TimingSettings(
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
    cfg = load_config(args.config_file, args.opts)
    compare, format_table = {
        "train": (training.benchmark_training, training.format_table),
        "fusion": (fusion.benchmark_fusion, fusion.format_table),
        "joint": (joint.benchmark_joint, joint.format_table),
    }[args.command]
    result = compare(cfg, settings)
    return result, format_table(result)


if __name__ == "__main__":
    cli.run(main)
