"""Scenes of many windows: each building once, in bounded memory, wherever it lies, whatever is wrong."""

import os
from collections import Counter
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.inference import ScenePredictor, blocks, predict_scene, predict_to_file
from fusiondet.inference.blocks import predict_block
from fusiondet.io.layers import read_buildings, read_metadata
from fusiondet.visualization.report import write_layer_report
from tests.support.scene_cases import (
    LEFT,
    TOP,
    TRANSFORM,
    WINDOWS,
    boxes_px,
    checkpoint,
    expected,
    raw_output,
)
from tests.support.tiny_city import write_raster

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("windows", [WINDOWS, {"window_px": 99, "overlap_px": 41}, {}])
def test_every_building_once_with_its_height(finder, write_scene, city, windows, batch):
    path = write_scene(city)
    result = predict_scene(finder, path, batch=batch, **windows)
    with rasterio.open(path) as raster:
        assert boxes_px(result, raster.transform) == expected(city)
    assert result.count == result.with_heights == len(city)
    assert max(finder.model.batches) == (batch if windows else 1)


SOUTH_UP = Affine(0.5, 0, LEFT, 0, 0.5, TOP)
TURNED = Affine.translation(LEFT, TOP) * Affine.rotation(30) * Affine.scale(0.5, -0.5)


@pytest.mark.parametrize("transform", [SOUTH_UP, TURNED, Affine(-0.5, 0, LEFT, 0, 0.5, TOP)])
def test_rasters_that_are_not_north_up_are_right_on_the_map(finder, write_scene, transform):
    blocks = {(20, 30, 60, 50): 200, (150, 200, 180, 240): 250}
    result = predict_scene(finder, write_scene(blocks, transform=transform), **WINDOWS)
    assert boxes_px(result, transform) == expected(blocks)
    first = min(result.buildings, key=lambda b: b.height_m).polygon
    corner = shapely.Point(transform * (20, 30))
    assert first.distance(corner) < 0.2 and first.area == pytest.approx(40 * 20 * 0.25, rel=0.02)
    assert all(b.polygon.is_valid for b in result.buildings)


def test_a_scene_without_buildings_is_a_valid_empty_layer(finder, write_scene, tmp_path):
    out = tmp_path / "none.gpkg"
    result = predict_to_file(finder.weights, write_scene(), None, out, predictor=finder, **WINDOWS)
    assert read_buildings(out) == ([], "EPSG:32631") and result.count == 0
    assert {"score", "height_m", "area_m2"} <= set(geopandas.read_file(out).columns)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["none.gpkg", "rgb.tif"]


def test_the_layer_says_where_it_comes_from(finder, write_scene, city, tmp_path):
    path, out = write_scene(city), tmp_path / "b.gpkg"
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(ns="IMAGERY", ACQUISITIONDATETIME="2023-05-01 10:30:00")
    predict_to_file(finder.weights, path, None, out, predictor=finder, **WINDOWS)
    said = read_metadata(out)
    assert said["weights"] == "model.pth" and len(said["weights_sha256"]) == 64
    assert said["acquired"] == {"optical": "2023-05-01T10:30:00"} and said["images"] == ["rgb.tif"]
    assert (said["window_px"], said["overlap_px"]) == (160, 48) and "torch" in said["versions"]
    assert "ROI_HEIGHT_HEAD" in said["config"]


def test_style_and_report_go_with_a_layer(finder, write_scene, city, tmp_path):
    out, report = tmp_path / "b.gpkg", tmp_path / "b.html"
    options = {"predictor": finder, "report": report, "write_report": write_layer_report}
    predict_to_file(finder.weights, write_scene(city), None, out, style=True, **options)
    assert report.stat().st_size > 10_000 and "height_m" in (tmp_path / "b.qml").read_text()
    with pytest.raises(InputError, match="b.html: already exists"):
        predict_to_file(
            finder.weights, write_scene(city), None, tmp_path / "c.gpkg", predictor=finder, report=report
        )
    with pytest.raises(InputError, match="`report` needs `write_report`"):
        predict_to_file(
            finder.weights, write_scene(city), None, tmp_path / "c.gpkg", report=tmp_path / "c.html"
        )
    with pytest.raises(InputError, match="no style beside a city model. Leave out .*style"):
        predict_to_file(finder.weights, write_scene(city), None, tmp_path / "c.city.json", style=True)
    with pytest.raises(InputError, match="`report` and `style` are about the buildings of `out`"):
        predict_to_file(
            finder.weights, write_scene(city), None, None, height_path=tmp_path / "h.tif", style=True
        )


class TestTwoSightsOfOneBuilding:
    """A network that shows each block twice: as it is, and a little smaller and with a lower score."""

    @pytest.fixture
    def twice(self, finder):
        real = finder.model.instances

        def instances(image):
            found = real(image)
            boxes, scores = found.pred_boxes.tensor.numpy(), found.scores.tolist()
            smaller = boxes + [[5.0, 5.0, -5.0, -5.0]] if len(boxes) else boxes
            heights_m = found.pred_heights.tolist()
            return raw_output(
                [*boxes.tolist(), *np.asarray(smaller).tolist()],
                scores + [0.6] * len(scores),
                heights_m * 2 or None,
            )

        finder.model.instances = instances
        return finder

    @pytest.mark.parametrize("windows", [WINDOWS, {}])
    def test_one_stays_and_it_is_said(self, twice, write_scene, city, windows):
        path = write_scene(city)
        once, both = (
            predict_scene(twice, path, **windows),
            predict_scene(twice, path, max_overlap=1.0, **windows),
        )
        assert once.count == len(city) < both.count
        with rasterio.open(path) as raster:
            assert boxes_px(once, raster.transform) == expected(city)
        gone = both.count - once.count
        assert any(
            f"{gone} outlines were left out" in note and "`max_overlap`" in note for note in once.notes
        )
        assert not any("`max_overlap`" in note for note in both.notes)

    def test_an_area_of_interest_has_what_the_scene_has(self, twice, write_scene, city):
        path, area = write_scene(city), shapely.box(LEFT + 60, TOP - 110, LEFT + 150, TOP - 20)
        whole, part = (predict_scene(twice, path, aoi=aoi, **WINDOWS) for aoi in (None, area))
        inside = [b for b in whole.buildings if area.contains(b.polygon.representative_point())]
        assert {b.polygon.wkb for b in part.buildings} == {b.polygon.wkb for b in inside} and inside

    def test_from_python_too(self, twice, write_scene, city):
        predictor, path = ScenePredictor(twice), write_scene(city)
        assert len(predictor.predict(path, **WINDOWS)) == len(city)
        assert len(predictor.predict(path, max_overlap=1.0, **WINDOWS)) > len(city)


# ---- Each raster is opened once ----


@pytest.fixture
def opens(monkeypatch, tmp_path):
    """opens() -> {(process, file): how often it was opened to be read}, in all processes of a prediction."""
    log = tmp_path / "opens.txt"
    monkeypatch.setenv("TEST_OPENS", str(log))
    monkeypatch.setattr(rasterio, "open", rasterio.open)
    count_opens()
    monkeypatch.setattr(blocks, "predict_block", predict_block_counted)
    return lambda: Counter(tuple(line.split(" ", 1)) for line in log.read_text().splitlines())


def count_opens():
    real = rasterio.open

    def counted(path, mode="r", *args, **options):
        if mode == "r":
            with open(os.environ["TEST_OPENS"], "a") as log:
                log.write(f"{os.getpid()} {Path(path).name}\n")
        return real(path, mode, *args, **options)

    counted.counts = True
    rasterio.open = counted


def predict_block_counted(*args):
    """What a worker does, with its opens counted."""
    if not hasattr(rasterio.open, "counts"):
        count_opens()
    return predict_block(*args)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_raster_is_opened_once_in_a_process(
    opens, tmp_path_factory, write_scene, city, tmp_path, workers
):
    weights = checkpoint(tmp_path_factory.mktemp("weights"))
    rgb = write_scene(city, height=300)
    write_raster(tmp_path / "sar.tif", np.full((1, 300, 500), -8, np.float32), transform=TRANSFORM)
    options = {"window_px": 100, "overlap_px": 40, "device": "cpu", "workers": workers}
    options |= {"height_path": tmp_path / "h.tif"}
    predict_to_file(weights, rgb, tmp_path / "sar.tif", tmp_path / "b.gpkg", **options)
    counts = {key: n for key, n in opens().items() if key[1] in ("rgb.tif", "sar.tif")}
    assert set(counts.values()) == {1}
    processes = {pid for pid, _ in counts}
    assert len(processes) == 1 + workers and str(os.getpid()) in processes
    assert len(counts) == 2 * len(processes)
