#!/usr/bin/env python3
"""The whole main job on the synthetic city: prepare, train, evaluate, predict a scene, export, draw.

Every step is a command of this folder that is printed before it runs; a step whose result is there is skipped.
"""

import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fusiondet import cli
from fusiondet.files import atomic_path, read_json

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
RESULTS = ("buildings.gpkg", "overview.png", "heights.png", "metrics.json", "model_final.pth", "config.yaml")
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
        "--config-file",
        type=Path,
        default=ROOT / "configs/synthetic/fusion_r18_small.yaml",
        help="what to train",
    )
    parser.add_argument(
        "--split", nargs="+", default=["train=300", "val=40", "test=40"], help="tiles per split"
    )
    parser.add_argument("--overwrite", action="store_true", help="start again from nothing")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY VALUE", dest="overrides", help="config keys to change"
    )
    cli.seed_argument(parser)
    parser.set_defaults(seed=1)
    return cli.parse(parser)


def main():
    args = parse_args()
    out, started = args.out.resolve(), time.time()
    if args.overwrite:
        remove(out)
    city, train, scene = out / "datasets/synthcity", out / "train", out / "scene"
    os.environ["DETECTRON2_DATASETS"] = str(city.parent)
    test = city / "annotations/test.json"
    if not test.exists():
        split = ["--split", *args.split, "--seed", args.seed]
        tool("prepare_dataset", "synthetic", "--out", city, "--preset", args.preset, *split)
    checkpoint, inference = train / "model_final.pth", train / "inference/synthcity_test"
    keys = ["OUTPUT_DIR", train, "SEED", args.seed, *args.overrides]
    if not checkpoint.exists():
        tool("train_net", "--config-file", args.config_file, "--resume", *keys)
    if not (inference / "metrics.json").exists():
        what = ["MODEL.WEIGHTS", checkpoint, "DATASETS.TEST", "('synthcity_test',)"]
        tool("train_net", "--config-file", args.config_file, "--eval-only", *what, *keys)
    if not (out / "buildings.gpkg").exists():
        strip = fullest_strip(read_json(test))
        mosaic([city / image["file_name"] for image in strip], scene / "rgb.tif")
        mosaic([city / image["sar_file_name"] for image in strip], scene / "sar.tif")
        rasters = ["--rgb", scene / "rgb.tif", "--sar", scene / "sar.tif"]
        tool("predict_scene", "--weights", checkpoint, *rasters, "--out", out / "buildings.gpkg")
    if not (out / "heights.png").exists():
        files = ["--annotations", test, "--predictions", inference / "predictions.json"]
        tool("visualize", "predictions", *files, "--out", out, "--overwrite")
    for source in (checkpoint, train / "config.yaml", inference / "metrics.json"):
        with atomic_path(out / source.name) as temporary:
            shutil.copyfile(source, temporary)
    report(read_json(out / "metrics.json"), out, time.time() - started)


def remove(out):
    """Delete what an earlier run left in `out`, and nothing else."""
    for name in ("train", "datasets", "scene"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in RESULTS:
        (out / name).unlink(missing_ok=True)


def tool(name, *arguments):
    """Run one of our commands, shown as a user would type it."""
    words = [str(a) for a in arguments]
    print(
        f"\n$ tools/{name}.py " + " ".join(os.path.relpath(w) if w.startswith("/") else w for w in words),
        flush=True,
    )
    done = subprocess.run([sys.executable, TOOLS / f"{name}.py", *words])
    if done.returncode:
        print(f"error: tools/{name}.py failed with status {done.returncode}; see above.", file=sys.stderr)
        sys.exit(done.returncode)


def fullest_strip(annotations):
    """Images of the acquisition with the most buildings; its tiles are neighbours."""
    counts = collections.Counter(a["image_id"] for a in annotations["annotations"])
    strips = collections.defaultdict(list)
    for image in annotations["images"]:
        strips[json.dumps(image["sensor"])].append(image)
    return max(strips.values(), key=lambda images: sum(counts[image["id"]] for image in images))


def mosaic(tiles, path):
    """One raster of neighbouring tiles: what a user would call a scene."""
    from rasterio.merge import merge

    with atomic_path(path) as temporary:
        merge(tiles, dst_path=temporary)


def report(metrics, out, seconds):
    print("\nHeld-out tiles:")
    for key, label in SHOWN.items():
        value = metrics.get(key)
        print(f"  {label:52s} {'-' if value is None else format(value, '.3g'):>8}   {key}")
    print(f"\n{seconds / 60:.1f} minutes. In {os.path.relpath(out)}/:")
    for name in RESULTS:
        print(f"  {name}")


if __name__ == "__main__":
    cli.run(main)
