"""Scenes of many windows: each building once, in bounded memory, wherever it lies, whatever is wrong."""

import threading

from fusiondet.buildings import map_to_pixel
from fusiondet.errors import InputError
from fusiondet.inference import ScenePredictor, pipeline, predict_scene, predict_to_file
from fusiondet.inference.plan import plan_scene
from fusiondet.io.layers import read_buildings, read_metadata
from tests.inference.test_predictor import raw_output

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

WINDOWS = {"window_px": 160, "overlap_px": 48}
LEFT, TOP = 600_000, 5_750_000


def boxes_px(result, transform):
    """(n, 5) rounded outlines in pixels with heights, sorted."""
    rows = [(*map_to_pixel(b.polygon, transform).bounds, b.height_m) for b in result.buildings]
    return sorted([tuple(round(v) for v in row) for row in rows])


def expected(blocks):
    return sorted((*block, round(value / 10)) for block, value in blocks.items())


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


def test_a_sheared_raster_is_refused(finder, write_scene):
    path = write_scene(transform=TURNED * Affine.shear(8, 0))
    with pytest.raises(InputError, match="rows and columns meet at 8[0-9.]* degrees.*gdalwarp"):
        predict_scene(finder, path)


def test_windows_without_data_are_read_once_and_not_predicted(finder, write_scene, city, monkeypatch):
    path = write_scene({**city, (0, 0, 500, 200): 0}, nodata=0)
    read, real = [], pipeline._read_window
    monkeypatch.setattr(pipeline, "_read_window", lambda r, w, s: read.append(w) or real(r, w, s))
    result = predict_scene(finder, path, **WINDOWS)
    plan = plan_scene(finder, path, **WINDOWS)
    assert read == [window for window, _ in plan.windows]
    with_data = [y0 + h > 200 for (_, y0, _, h), _ in plan.windows]
    assert sum(finder.model.batches) == sum(with_data) < len(plan.windows)
    assert all(b.polygon.bounds[3] <= TOP - 100 for b in result.buildings) and result.buildings


def test_windows_are_read_only_a_little_ahead(finder, write_scene, monkeypatch):
    read, ahead, real = [], [], pipeline._read_window
    monkeypatch.setattr(pipeline, "_read_window", lambda r, w, s: read.append(w) or real(r, w, s))
    plan = plan_scene(finder, write_scene(), window_px=64, overlap_px=32)
    for done, _ in enumerate(pipeline.predict_windows(finder, plan, range(len(plan.windows)))):
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
    plan = plan_scene(finder, write_scene(), **WINDOWS)
    results = pipeline.predict_windows(finder, plan, range(len(plan.windows)))
    assert next(results).index == 0 and threading.active_count() > before
    results.close()
    assert threading.active_count() == before


class TestOverlap:
    def test_it_follows_from_gsd_and_context_and_is_said(self, finder, write_scene):
        finder.cfg.MODEL.ROI_HEIGHT_HEAD.CONTEXT_M = 20.0
        path = write_scene(height=900, width=1100)
        plan = plan_scene(finder, path)
        assert plan.overlap_px == 160  # (20 m + 60 m) / 0.5 m
        assert any("windows of 1024 px overlap by 160 px, 80 m" in note for note in plan.notes)
        assert plan_scene(finder, path, window_px=200).overlap_px == 100
        assert plan_scene(finder, path, overlap_px=7).overlap_px == 7

    def test_nothing_is_said_of_a_scene_of_one_window(self, finder, write_scene):
        assert plan_scene(finder, write_scene()).notes == ()


class TestAreaOfInterest:
    AREA = shapely.box(LEFT + 60, TOP - 110, LEFT + 150, TOP - 20)

    def write(self, tmp_path, area=None, crs="EPSG:32631", to_crs="EPSG:4326", name="aoi.geojson"):
        frame = geopandas.GeoDataFrame(geometry=[area or self.AREA], crs=crs).to_crs(to_crs)
        frame.to_file(tmp_path / name)
        return tmp_path / name

    def test_buildings_with_their_middle_inside_are_those_of_the_whole_scene(
        self, finder, write_scene, city, tmp_path
    ):
        path = write_scene(city, height=900)
        whole = predict_scene(finder, path, **WINDOWS)
        seen = len(finder.model.batches)
        part = predict_scene(finder, path, aoi=self.write(tmp_path), **WINDOWS)
        inside = [b for b in whole.buildings if self.AREA.contains(b.polygon.representative_point())]
        assert 0 < len(part.buildings) == len(inside) < len(whole.buildings)
        assert {b.polygon.wkb for b in part.buildings} == {b.polygon.wkb for b in inside}
        assert any(not self.AREA.contains(b.polygon) for b in inside), "one is cut by the border, and whole"
        assert len(finder.model.batches) - seen < seen, "windows far outside are not predicted"

    def test_frames_and_geometries_do_as_well(self, finder, write_scene, city, tmp_path):
        path = write_scene(city)
        frame = geopandas.read_file(self.write(tmp_path))
        counts = [
            predict_scene(finder, path, aoi=aoi, **WINDOWS).count
            for aoi in (self.AREA, frame, frame.geometry, self.write(tmp_path))
        ]
        assert len(set(counts)) == 1 and counts[0]

    def test_what_is_outside_is_no_data_in_the_heights(self, finder, write_scene, city, tmp_path):
        small = shapely.box(LEFT + 5, TOP - 20, LEFT + 20, TOP - 5)
        predict_scene(
            finder, write_scene(city), aoi=small, height_path=tmp_path / "h.tif", window_px=100, overlap_px=36
        )
        with rasterio.open(tmp_path / "h.tif") as raster:
            heights_m = raster.read(1)
        assert np.isnan(heights_m[-1, -1]) and heights_m[15, 20] > 0

    def test_elsewhere_is_refused(self, finder, write_scene, tmp_path):
        far = self.write(tmp_path, shapely.box(0, 0, 10, 10), "EPSG:4326")
        with pytest.raises(InputError, match="aoi.geojson: lies outside of .*rgb.tif everywhere"):
            predict_scene(finder, write_scene(), aoi=far)
        lines = geopandas.GeoDataFrame(geometry=[shapely.LineString([(0, 0), (1, 1)])], crs="EPSG:4326")
        with pytest.raises(InputError, match="holds no polygon"):
            predict_scene(finder, write_scene(), aoi=lines)
        with pytest.raises(InputError, match="has no CRS"):
            predict_scene(finder, write_scene(), aoi=geopandas.GeoSeries([self.AREA]))
        with pytest.raises(InputError, match="nowhere.gpkg: no such file"):
            predict_scene(finder, write_scene(), aoi=tmp_path / "nowhere.gpkg")


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
        with pytest.raises(InputError, match=r"rgb.tif: damaged.*column \d+, row \d+.*--skip-invalid"):
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
            count = predict_to_file(finder.weights, scene, None, out, **options, **WINDOWS).count
            assert f"<b>{count}</b><span>buildings</span>" in pages[name].read_text()
        assert 'id="picture"' in pages["whole"].read_text(), "what this test looks for"
        assert 'id="picture"' not in pages["bad"].read_text()
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []

    def test_another_complaint_is_not_skipped(self, finder, write_scene, monkeypatch):
        def complain(*args):
            raise InputError("not dB")

        monkeypatch.setattr(pipeline, "check_sar_values", complain)
        with pytest.raises(InputError, match="not dB"):
            predict_scene(finder, write_scene(), skip_invalid=True)


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
    predict_to_file(finder.weights, write_scene(city), None, out, predictor=finder, report=report, style=True)
    assert report.stat().st_size > 10_000 and "height_m" in (tmp_path / "b.qml").read_text()
    with pytest.raises(InputError, match="b.html: already exists"):
        predict_to_file(
            finder.weights, write_scene(city), None, tmp_path / "c.gpkg", predictor=finder, report=report
        )
    with pytest.raises(InputError, match="no style beside a city model. Leave out --style"):
        predict_to_file(finder.weights, write_scene(city), None, tmp_path / "c.city.json", style=True)
    with pytest.raises(InputError, match="--report and --style are about the buildings of --out"):
        predict_to_file(
            finder.weights, write_scene(city), None, None, height_path=tmp_path / "h.tif", style=True
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"report": "rgb.tif"}, "rgb.tif: is an image to predict from, and not replaced.*name for --report"),
        ({"out": "aoi.gpkg", "aoi": "aoi.gpkg"}, "aoi.gpkg: is read to predict.*name for --out"),
        ({"height_path": "dtm.tif", "dtm": "dtm.tif", "out": "b.city.json"}, "dtm.tif: is read to predict"),
        ({"report": "net.pth", "weights": "net.pth"}, "net.pth: is read to predict"),
        ({"report": "b.gpkg"}, "b.gpkg: is what --out writes.*name for --report"),
        ({"report": "sub/../h.tif", "height_path": "h.tif"}, "h.tif: is what --height-raster writes"),
        ({"dtm": "dtm.tif"}, "b.gpkg: outlines lie flat in this format"),
    ],
)
def test_outputs_replace_neither_inputs_nor_each_other(write_scene, tmp_path, options, message):
    image = write_scene()
    for name in ("aoi.gpkg", "dtm.tif", "net.pth"):
        (tmp_path / name).write_text(name)
    (tmp_path / "sub").mkdir()
    before = {p: p.read_bytes() for p in tmp_path.glob("*.*")}
    paths = {k: tmp_path / v for k, v in {"weights": "none.pth", "out": "b.gpkg", **options}.items()}
    weights, out = paths.pop("weights"), paths.pop("out")
    with pytest.raises(InputError, match=message):
        predict_to_file(weights, image, None, out, overwrite=True, **paths)
    assert {p: p.read_bytes() for p in tmp_path.glob("*.*")} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "--workers is -1, expected 0"),
        ({"batch": 0}, "--batch is 0, expected 1 or more"),
        ({"regularize_m": 0.0}, "--regularize is 0.0, expected metres above 0"),
        ({"regularize_m": float("nan")}, "--regularize is nan"),
        ({"max_overlap": 0.0}, "--max-overlap is 0.0, expected a share above 0"),
        ({"window_px": 0}, "0 <= overlap < window"),
        ({"dtm": "dtm.tif"}, "dtm.tif|outlines lie flat"),
    ],
)
def test_numbers_that_cannot_be_leave_nothing(finder, write_scene, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        predict_to_file(finder.weights, write_scene(), None, tmp_path / "b.gpkg", predictor=finder, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["rgb.tif"]


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
            f"{gone} outlines were left out" in note and "--max-overlap" in note for note in once.notes
        )
        assert not any("--max-overlap" in note for note in both.notes)

    def test_an_area_of_interest_has_what_the_scene_has(self, twice, write_scene, city):
        path, area = write_scene(city), shapely.box(LEFT + 60, TOP - 110, LEFT + 150, TOP - 20)
        whole, part = (predict_scene(twice, path, aoi=aoi, **WINDOWS) for aoi in (None, area))
        inside = [b for b in whole.buildings if area.contains(b.polygon.representative_point())]
        assert {b.polygon.wkb for b in part.buildings} == {b.polygon.wkb for b in inside} and inside

    def test_from_python_too(self, twice, write_scene, city):
        predictor, path = ScenePredictor(twice), write_scene(city)
        assert len(predictor.predict(path, **WINDOWS)) == len(city)
        assert len(predictor.predict(path, max_overlap=1.0, **WINDOWS)) > len(city)
