"""Classes of a scene: every pixel once, whatever the windows, and what cannot be written."""

import errno
import os

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import load_config
from fusiondet.engine.checkpoint import FusionCheckpointer
from fusiondet.errors import InputError
from fusiondet.files import parts_folder, write_json
from fusiondet.inference import Predictor, SceneFiles, blocks, predict_scenes, predict_to_file
from fusiondet.io.height_rasters import NO_CLASS
from tests.support.projects import needs_network
from tests.support.tiny_city import GSD_M, ROOT

import numpy as np
import pytest
import rasterio
import torch
from detectron2.modeling import build_model

pytestmark = needs_network("UREC")
NAMES = ["water", "building", "road"]


class ByBrightness:
    """Below 150 water, up to 220 building, above that road."""

    def outputs(self, inputs, do_postprocess):
        found = []
        for x in inputs:
            value = x["image"][0].nan_to_num()
            numbers = (value > 150).long() + (value > 220).long()
            found.append({"class_map": torch.nn.functional.one_hot(numbers, 3).movedim(-1, 0).float()})
        return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    cfg = load_config(ROOT / "configs/synthetic/u_rec_small.yaml")
    cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.GSD_RANGE_M = ["red", "green", "blue"], [GSD_M, GSD_M]
    cfg.INPUT.MODALITIES, cfg.MODEL.FUSION.OPTICAL_CHANNELS = ["optical"], 3
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0] * 3, [50.0] * 3
    cfg.MODEL.DENSE_NET.CLASSES, cfg.MODEL.DENSE_NET.WIDTH = NAMES, 4
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classes")
    FusionCheckpointer(build_model(cfg), str(folder), config_yaml=cfg.dump()).save("model")
    return folder / "model.pth"


@pytest.fixture
def by_brightness(weights):
    predictor = Predictor(weights, "cpu", build=False)
    predictor.model = ByBrightness()
    return predictor


BLOCKS = {(0, 0, 40, 30): 0, (90, 80, 200, 170): 200, (150, 120, 160, 260): 250, (480, 380, 500, 400): 200}


def expected():
    numbers = np.zeros((400, 500), int)
    for (x0, y0, x1, y1), value in BLOCKS.items():
        numbers[y0:y1, x0:x1] = {0: NO_CLASS, 200: 1, 250: 2}[value]
    return numbers


@pytest.mark.parametrize(
    "windows", [{"window_px": 160, "overlap_px": 48}, {"window_px": 99, "overlap_px": 0}, {}]
)
def test_every_pixel_has_the_class_that_the_network_says(by_brightness, write_scene, tmp_path, windows):
    scene, out = write_scene(BLOCKS, nodata=0), tmp_path / "classes.tif"
    predict_to_file(
        by_brightness.weights, scene, None, None, class_path=out, predictor=by_brightness, **windows
    )
    with rasterio.open(out) as written, rasterio.open(scene) as raster:
        np.testing.assert_array_equal(written.read(1), expected())
        assert (written.transform, written.crs, written.nodata) == (raster.transform, raster.crs, NO_CLASS)
    assert "<Category>road</Category>" in (tmp_path / "classes.tif.aux.xml").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.tif", "classes.tif.aux.xml", "rgb.tif"]


def test_outside_of_the_area_of_interest_there_is_no_class(by_brightness, write_scene, tmp_path):
    scene, out = write_scene(BLOCKS), tmp_path / "classes.tif"
    with rasterio.open(scene) as raster:
        x, y = raster.transform * (20, 20)
    area = {"type": "Polygon", "coordinates": [[[x, y], [x + 5, y], [x + 5, y - 5], [x, y - 5], [x, y]]]}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    features = [{"type": "Feature", "properties": {}, "geometry": area}]
    write_json({"type": "FeatureCollection", "crs": crs, "features": features}, tmp_path / "area.geojson")
    options = {"window_px": 100, "overlap_px": 20, "aoi": tmp_path / "area.geojson"}
    predict_to_file(
        by_brightness.weights, scene, None, None, class_path=out, predictor=by_brightness, **options
    )
    with rasterio.open(out) as written:
        found = written.read(1)
    assert (found[:80, :80] == 0).all() and (found[150:] == NO_CLASS).all()


def test_the_network_itself(weights, write_scene, tmp_path):
    """No stand-in: windows of other sizes than a multiple of its stride, and a name for each scene."""
    scenes = [SceneFiles(name, (write_scene(BLOCKS, 70, 90, name=f"{name}.tif"),), ()) for name in ("a", "b")]
    done = []
    out = str(tmp_path / "{name}-classes.tif")
    predict_scenes(
        weights,
        scenes,
        None,
        lambda scene, _: done.append(scene.name),
        class_path=out,
        device="cpu",
        window_px=64,
    )
    assert done == ["a", "b"]
    for name in done:
        with rasterio.open(tmp_path / f"{name}-classes.tif") as written:
            assert written.shape == (70, 90) and set(np.unique(written.read(1))) <= {0, 1, 2}


def test_processes_and_a_run_that_was_stopped_make_the_same_bytes(
    weights, write_scene, tmp_path, monkeypatch
):
    scene = write_scene(BLOCKS, 60, 90)
    options = {"window_px": 20, "overlap_px": 8, "device": "cpu"}  # 35 windows, three blocks

    def run(name, **more):
        out = tmp_path / f"{name}.tif"
        predict_to_file(weights, scene, None, None, class_path=out, **options, **more)
        return out.read_bytes()

    def full(store, block, *content):
        if block == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(store.folder))
        real(store, block, *content)

    one, real = run("one"), blocks.save_block
    with rasterio.open(tmp_path / "one.tif") as written:
        assert len(np.unique(written.read(1))) > 1, "bytes that are the same for a reason"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(blocks, "save_block", full)
        run("stopped")
    assert not (tmp_path / "stopped.tif").exists()
    assert len(list(parts_folder(tmp_path / "stopped.tif").glob("pieces/block-*.parquet"))) == 1
    assert run("stopped", resume=True, workers=2) == one
    assert not parts_folder(tmp_path / "stopped.tif").exists()


def test_what_cannot_be_written(by_brightness, write_scene, tmp_path):
    scene, out = write_scene(BLOCKS), tmp_path / "classes.tif"

    def refused(message, out=None, **outputs):
        with pytest.raises(InputError, match=message):
            predict_to_file(by_brightness.weights, scene, None, out, predictor=by_brightness, **outputs)

    refused(
        r"only classes per pixel \(water, building, road\). Pass `class_path` instead of `out`",
        out=tmp_path / "a.gpkg",
    )
    refused("predicts no heights", height_path=tmp_path / "h.tif")
    refused("nothing to write.*`class_path`")
    refused("classes are written as GeoTIFF", class_path=tmp_path / "c.png")
    refused("is an image to predict from", class_path=scene, overwrite=True)
    out.write_text("there")
    refused("classes.tif.*exists", class_path=out)
    by_brightness.class_names = ()
    refused("model.pth: tells neither classes nor footprints of pixels", class_path=tmp_path / "other.tif")
