"""Windows through the network: read ahead a little, once, whatever is damaged."""

import threading

from fusiondet.errors import InputError
from fusiondet.inference import pipeline, predict_scene, predict_to_file
from fusiondet.io.layers import read_metadata
from fusiondet.io.scene_reader import SceneReader
from fusiondet.visualization.report import write_layer_report
from tests.support.scene_cases import TOP, WINDOWS, boxes_px, expected, plan_of, windows_of

import pytest
import rasterio
import shapely


def test_windows_without_data_are_read_once_and_not_predicted(finder, write_scene, city, monkeypatch):
    path = write_scene({**city, (0, 0, 500, 200): 0}, nodata=0)
    read, real = [], pipeline._read_window
    monkeypatch.setattr(pipeline, "_read_window", lambda r, w, s: read.append(w) or real(r, w, s))
    result = predict_scene(finder, path, **WINDOWS)
    plan = plan_of(finder, path, **WINDOWS)
    assert read == [window for window, _ in plan.windows]
    with_data = [y0 + h > 200 for (_, y0, _, h), _ in plan.windows]
    assert sum(finder.model.batches) == sum(with_data) < len(plan.windows)
    assert all(b.polygon.bounds[3] <= TOP - 100 for b in result.buildings) and result.buildings


def test_windows_are_read_only_a_little_ahead(finder, write_scene, monkeypatch):
    read, ahead, real = [], [], pipeline._read_window
    monkeypatch.setattr(pipeline, "_read_window", lambda r, w, s: read.append(w) or real(r, w, s))
    plan = plan_of(finder, write_scene(), window_px=64, overlap_px=32)
    for done, _ in enumerate(windows_of(finder, plan)):
        ahead.append(len(read) - done)
    assert len(ahead) == len(plan.windows) > 100
    assert max(ahead) < 30, "the queues are short"


def test_an_error_in_the_network_ends_the_threads(finder, write_scene):
    before = threading.active_count()

    def fail(inputs, do_postprocess):
        raise MemoryError("no more")

    finder.model.outputs = fail
    with pytest.raises(MemoryError, match="no more"):
        predict_scene(finder, write_scene(), **WINDOWS)
    assert threading.active_count() == before


def test_who_stops_listening_ends_the_threads(finder, write_scene):
    before = threading.active_count()
    plan = plan_of(finder, write_scene(), **WINDOWS)
    results = windows_of(finder, plan)
    assert next(results).index == 0 and threading.active_count() > before
    results.close()
    assert threading.active_count() == before


class TestDamagedBlock:
    @pytest.fixture
    def damaged(self, write_scene, city):
        """A scene of 64-pixel blocks, that at column 128, row 192 of which is no DEFLATE stream."""
        path = write_scene(city, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
        with rasterio.open(path) as raster:
            offset = int(raster.get_tag_item("BLOCK_OFFSET_2_3", "TIFF", bidx=1))
        content = bytearray(path.read_bytes())
        content[offset : offset + 16] = b"\xff" * 16
        path.write_bytes(content)
        return path

    def test_it_is_named(self, finder, damaged):
        with pytest.raises(InputError, match=r"rgb.tif: damaged.*column \d+, row \d+.*`skip_invalid"):
            predict_scene(finder, damaged, **WINDOWS)

    def test_what_is_around_it_is_predicted(self, finder, damaged, city):
        result = predict_scene(finder, damaged, skip_invalid=True, **WINDOWS)
        hole = shapely.box(128, 192, 192, 256)
        clear = {b: v for b, v in city.items() if not shapely.box(*b).intersects(hole.buffer(40))}
        with rasterio.open(damaged) as raster:
            found = set(boxes_px(result, raster.transform))
        assert set(expected(clear)) <= found and len(clear) > len(city) // 2
        (note,) = [n for n in result.notes if "could not be read" in n]
        assert "windows could not be read and count as no data" in note and "rgb.tif" in note

    def test_the_layer_says_so(self, finder, damaged, tmp_path):
        out, options = tmp_path / "b.gpkg", {"skip_invalid": True, "predictor": finder}
        predict_to_file(finder.weights, damaged, None, out, **options, **WINDOWS)
        assert read_metadata(out)["unreadable_px"] >= 64 * 64

    def test_its_page_comes_without_the_picture(self, finder, damaged, write_scene, city, tmp_path):
        pages = {}
        for name, scene in (("bad", damaged), ("whole", write_scene(city, name="whole.tif"))):
            out, pages[name] = tmp_path / f"{name}.gpkg", tmp_path / f"{name}.html"
            options = {"skip_invalid": True, "predictor": finder, "report": pages[name]}
            options["write_report"] = write_layer_report
            count = predict_to_file(finder.weights, scene, None, out, **options, **WINDOWS).count
            assert f"<b>{count}</b><span>buildings</span>" in pages[name].read_text()
        assert 'id="picture"' in pages["whole"].read_text(), "what this test looks for"
        assert 'id="picture"' not in pages["bad"].read_text()
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []

    def test_another_complaint_is_not_skipped(self, finder, write_scene, monkeypatch):
        def complain(*args):
            raise InputError("not dB")

        monkeypatch.setattr(SceneReader, "read", complain)
        with pytest.raises(InputError, match="not dB"):
            predict_scene(finder, write_scene(), skip_invalid=True)
