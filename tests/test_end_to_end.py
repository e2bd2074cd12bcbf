"""The README's first command with a shrunken city and network: every file it promises, and that they agree."""

import json
import os
import subprocess
import sys
from pathlib import Path

from fusiondet.io.coco import read_coco
from fusiondet.io.layers import read_buildings

import pytest
import rasterio
import shapely
import torch

ROOT = Path(__file__).resolve().parents[1]
SHRUNKEN = """
    MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16
    MODEL.ROI_MASK_HEAD.NUM_CONV 1 MODEL.ROI_HEIGHT_HEAD.CONV_DIM 32 MODEL.ROI_HEIGHT_HEAD.FC_DIM 32
    MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0
    SOLVER.MAX_ITER 4 SOLVER.CHECKPOINT_PERIOD 100 SOLVER.IMS_PER_BATCH 2
""".split()


def demo(out, *more):
    command = [
        sys.executable,
        ROOT / "tools/demo.py",
        "--out",
        out,
        "--split",
        "train=5",
        "val=1",
        "test=5",
        *more,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["--set", *SHRUNKEN]
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    run = demo(out)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return out, run.stdout


def test_every_promised_file_is_there_and_named(done):
    out, text = done
    for name in (
        "metrics.json",
        "buildings.gpkg",
        "overview.png",
        "heights.png",
        "model_final.pth",
        "config.yaml",
    ):
        assert (out / name).stat().st_size > 100, name
        assert f"  {name}\n" in text


def test_the_numbers_are_those_of_the_evaluation(done):
    out, text = done
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["dataset/n_images"] == 5
    for key in ("segm/AP50", "bbox/AP50", "joint/AP50", "height/mae_m", "height_gt_boxes/mae_m"):
        assert key in metrics
    assert format(metrics["segm/AP50"], ".3g") in text


def test_the_layer_lies_on_the_scene(done):
    out, _ = done
    buildings, crs = read_buildings(out / "buildings.gpkg")
    with rasterio.open(out / "scene/rgb.tif") as rgb, rasterio.open(out / "scene/sar.tif") as sar:
        assert rgb.bounds == sar.bounds and crs == "EPSG:32631"
        extent = shapely.box(*rgb.bounds)
    assert all(extent.buffer(0.01).contains(b.polygon) for b in buildings)


def test_the_checkpoint_is_plain_data_and_knows_its_bands(done):
    out, _ = done
    content = torch.load(out / "model_final.pth", weights_only=True)
    assert "HH" in content["config_yaml"] and "PIXEL_MEAN" in content["config_yaml"]


def test_the_dataset_is_plain_coco(done):
    out, _ = done
    from pycocotools.coco import COCO

    path = out / "datasets/synthcity/annotations/test.json"
    assert len(COCO(str(path)).getImgIds()) == len(read_coco(path).tiles) == 5


def test_a_second_run_repeats_nothing(done):
    out, _ = done
    before = {path: path.stat().st_mtime_ns for path in out.glob("train/**/*.*")}
    run = demo(out)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "$ tools/" not in run.stdout and "mask AP50" in run.stdout
    assert {path: path.stat().st_mtime_ns for path in out.glob("train/**/*.*")} == before
