#!/usr/bin/env python3
"""The whole main job on the synthetic city: prepare, train, evaluate, predict a scene, export, draw.

Every step is a command of this folder that is printed before it runs; a step whose result is there is skipped.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fusiondet import cli
from fusiondet.errors import InputError
from fusiondet.files import atomic_path, read_json, write_json

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
SHOWN = {
    "segm/AP50": "mask AP50",
    "bbox/AP50": "box AP50",
    "joint/AP50": "AP50 of mask and height",
    "height/mae_m": "height error (MAE), m",
    "height/delta1": "share of heights within a factor of 1.25",
    "height/skill": "height skill against the best constant",
    "height/interval_coverage": "truth inside the 16-84 % interval (68 % is honest)",
    "height/crps_m": "CRPS of the heights, m",
    "height/crps_constant_width_m": "CRPS with one width for all, m",
}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("output/demo"), help="folder for everything")
    parser.add_argument("--preset", default="easy", help="synthetic city: easy or realistic")
    parser.add_argument(
        "--config-file", type=Path, default=ROOT / "configs/synthetic/early_r18.yaml", help="what to train"
    )
    parser.add_argument(
        "--split", nargs="+", default=["train=300", "val=40", "test=40"], help="tiles per split"
    )
    parser.add_argument("--overwrite", action="store_true", help="start again from nothing")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys to change")
    cli.seed_argument(parser)
    parser.set_defaults(seed=1)
    return parser.parse_args()


def main():
    args = parse_args()
    out, started = args.out.resolve(), time.time()
    if args.overwrite and (out / "train").exists() | (out / "datasets").exists():
        for name in ("train", "datasets", "scene"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (
            "metrics.json",
            "buildings.gpkg",
            "overview.png",
            "heights.png",
            "model_final.pth",
            "config.yaml",
        ):
            (out / name).unlink(missing_ok=True)
    city, train = out / "datasets" / "synthcity", out / "train"
    os.environ["DETECTRON2_DATASETS"] = str(city.parent)
    test = city / "annotations/test.json"
    if not test.exists():
        tool(
            "prepare_dataset",
            "synthetic",
            "--out",
            city,
            "--preset",
            args.preset,
            "--split",
            *args.split,
            "--seed",
            args.seed,
        )
    checkpoint = train / "model_final.pth"
    train_net = ["--config-file", args.config_file]
    keys = ["OUTPUT_DIR", train, "SEED", args.seed, *args.overrides]
    if not checkpoint.exists():
        tool("train_net", *train_net, "--resume", *keys)
    tool(
        "train_net",
        *train_net,
        "--eval-only",
        "MODEL.WEIGHTS",
        checkpoint,
        "DATASETS.TEST",
        "('synthcity_test',)",
        *keys,
    )
    inference = train / "inference/synthcity_test"
    rgb, sar = (
        mosaic(city, read_json(test), "file_name", out),
        mosaic(city, read_json(test), "sar_file_name", out),
    )
    tool(
        "predict_scene",
        "--weights",
        checkpoint,
        "--rgb",
        rgb,
        "--sar",
        sar,
        "--out",
        out / "buildings.gpkg",
        "--overwrite",
    )
    predictions = ["--annotations", test, "--predictions", inference / "predictions.json"]
    tool("visualize", "predictions", *predictions, "--out", out, "--overwrite")
    for source in (checkpoint, train / "config.yaml"):
        with atomic_path(out / source.name) as temporary:
            shutil.copyfile(source, temporary)
    metrics = read_json(inference / "metrics.json")
    write_json(metrics, out / "metrics.json", indent=1)
    report(metrics, out, time.time() - started)


def tool(name, *arguments):
    """Run one of our commands, shown as a user would type it."""
    words = [str(a) for a in arguments]
    print(
        f"\n$ tools/{name}.py " + " ".join(os.path.relpath(w) if w.startswith("/") else w for w in words),
        flush=True,
    )
    done = subprocess.run([sys.executable, TOOLS / f"{name}.py", *words])
    if done.returncode:
        raise InputError(f"tools/{name}.py failed with status {done.returncode}; see above.")


def mosaic(city, annotations, key, out):
    """One raster of the test strip with the most buildings: what a user would call a scene."""
    from rasterio.merge import merge

    counts = {image["id"]: 0 for image in annotations["images"]}
    for annotation in annotations["annotations"]:
        counts[annotation["image_id"]] += 1
    strips = {}
    for image in annotations["images"]:
        strips.setdefault(json.dumps(image["sensor"]), []).append(image)
    strip = max(strips.values(), key=lambda images: sum(counts[image["id"]] for image in images))
    path = out / "scene" / ("rgb.tif" if key == "file_name" else "sar.tif")
    with atomic_path(path) as temporary:
        merge([city / image[key] for image in strip], dst_path=temporary)
    return path


def report(metrics, out, seconds):
    print("\nHeld-out tiles:")
    for key, label in SHOWN.items():
        value = metrics.get(key)
        print(f"  {label:52s} {'-' if value is None else format(value, '.3g'):>8}   {key}")
    print(f"\n{seconds / 60:.1f} minutes. In {os.path.relpath(out)}/:")
    for name in (
        "buildings.gpkg",
        "overview.png",
        "heights.png",
        "metrics.json",
        "model_final.pth",
        "config.yaml",
    ):
        print(f"  {name}")


if __name__ == "__main__":
    cli.run(main)
