"""Scenes to frames, from Python; and the example in the documentation does what it says."""

import hashlib
import textwrap

from fusiondet.inference import ScenePredictor, api, predict_to_file
from fusiondet.io.layers import read_buildings
from tests.support.messages import raises_naming
from tests.support.tiny_city import write_raster

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from geopandas.testing import assert_geodataframe_equal

WINDOWS = {"window_px": 160, "overlap_px": 48}


@pytest.fixture
def predictor(finder):
    return ScenePredictor(finder)


def test_a_frame_has_what_the_layer_has(predictor, write_scene, city, tmp_path):
    path = write_scene(city)
    frame = predictor.predict(path, **WINDOWS)
    predict_to_file(None, path, None, tmp_path / "b.gpkg", predictor=predictor.predictor, **WINDOWS)
    layer = geopandas.read_file(tmp_path / "b.gpkg")
    assert_geodataframe_equal(frame, layer[frame.columns], check_less_precise=True)
    assert frame.crs == "EPSG:32631" and len(frame) == len(city)
    np.testing.assert_allclose(frame.volume_m3, frame.area_m2 * frame.height_m)
    assert frame.attrs["metadata"]["weights"] == "model.pth" and frame.attrs["notes"] == []
    expected = hashlib.sha256(predictor.predictor.weights.read_bytes()).hexdigest()
    assert frame.attrs["metadata"]["weights_sha256"] == expected
    assert len(read_buildings(tmp_path / "b.gpkg")[0]) == len(city)


def test_parts_are_the_whole(predictor, write_scene, city, monkeypatch):
    monkeypatch.setattr(api, "_FRAME_ROWS", 9)
    path = write_scene(city, nodata=0)
    windows = {"window_px": 96, "overlap_px": 40}  # buildings wait for the next row of windows: many rows
    whole, parts = predictor.predict(path, **windows), list(predictor.iterate(path, **windows))
    assert len(parts) > 3 and min(len(p) for p in parts[:-1]) >= 9
    together = np.concatenate([p.geometry.values for p in parts])
    assert list(shapely.to_wkb(together)) == list(shapely.to_wkb(whole.geometry.values))


def test_an_area_and_regular_outlines(predictor, write_scene, city):
    path = write_scene(city)
    whole = predictor.predict(path, **WINDOWS)
    area = whole.geometry.iloc[[0]].buffer(5)
    part = predictor.predict(path, aoi=area, regularize_m=0.5, **WINDOWS)
    assert len(part) == 1 and len(part.geometry.iloc[0].exterior.coords) == 5


def test_nothing_is_a_frame_too(predictor, write_scene):
    path = write_scene({(0, 0, 500, 400): 0}, nodata=0)
    frame = predictor.predict(path)
    (part,) = predictor.iterate(path)
    for empty in (frame, part):
        assert len(empty) == 0 and empty.crs == "EPSG:32631" and "height_m" in empty
        assert "nothing to predict" in empty.attrs["notes"][0]


def test_without_a_crs_areas_are_in_map_units(predictor, write_scene):
    frame = predictor.predict(write_scene({(20, 20, 60, 60): 200}, crs=None))
    assert frame.crs is None and frame.area_m2.tolist() == pytest.approx([400], rel=0.02)


def test_the_example_runs(weights, write_scene, city, tmp_path, monkeypatch, capsys):
    (tmp_path / "model.pth").write_bytes(weights.read_bytes())
    write_scene(city)
    write_scene(city, name="sar.tif")
    monkeypatch.chdir(tmp_path)
    example = textwrap.dedent(api.__doc__.partition("\n\n")[2].rpartition("\n\n")[0])
    exec(compile(example, "example", "exec"), {})
    printed = capsys.readouterr().out
    assert "area_m2" in printed and "buildings" in printed


def test_a_damaged_terrain_leaves_neither_layer_nor_raster(predictor, write_scene, city, tmp_path):
    path = write_scene(city)
    with rasterio.open(path) as scene:
        shape, place = scene.shape, {"crs": scene.crs, "transform": scene.transform}
    write_raster(tmp_path / "dtm.tif", np.full((1, *shape), 3, np.float32), **place)
    whole = (tmp_path / "dtm.tif").read_bytes()
    (tmp_path / "dtm.tif").write_bytes(whole[: len(whole) // 3])
    outputs = {"height_path": tmp_path / "h.tif", "dtm": tmp_path / "dtm.tif"}
    with raises_naming("dtm.tif", "damaged"):
        predict_to_file(
            None, path, None, tmp_path / "b.city.json", predictor=predictor.predictor, **outputs, **WINDOWS
        )
    assert not (tmp_path / "h.tif").exists() and not (tmp_path / "b.city.json").exists()
