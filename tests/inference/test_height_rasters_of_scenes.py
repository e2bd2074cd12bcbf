"""Rasters of heights of whole scenes, from a stand-in network whose maps tell which pixels it was shown."""

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import load_config
from fusiondet.engine.checkpoint import FusionCheckpointer
from fusiondet.errors import InputError
from fusiondet.inference import Predictor, predict_scene, predict_to_file
from tests.support.scene_cases import bands_of, number_scene, raw_output
from tests.support.tiny_city import GSD_M, ROOT

import numpy as np
import pytest
import rasterio
import torch
from detectron2.modeling import build_model

SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.DENSE_HEADS.CONV_DIM", "8"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """weights("joint", "dense", "rgb" or "footprints") -> file of an untrained network.

    It takes one optical band in metres, at 0.5 m.
    """
    made = {}

    def get(kind):
        if kind not in made:
            config = kind.replace("footprints", "dense")
            heads = ["MODEL.DENSE_HEADS.NAMES", ["Footprint"]] if kind == "footprints" else []
            cfg = load_config(ROOT / "configs" / "synthetic" / f"{config}_r18_small.yaml", [*SMALL, *heads])
            cfg.INPUT.MODALITIES, cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS = ["optical"], ["pan"], []
            cfg.INPUT.GSD_RANGE_M, cfg.INPUT.SAR_SCALE = [GSD_M, GSD_M], ""
            cfg.MODEL.FUSION.OPTICAL_CHANNELS = 1
            cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0], [1000.0]
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(kind)
            FusionCheckpointer(build_model(cfg), str(folder), config_yaml=cfg.dump()).save("model")
            made[kind] = folder / "model.pth"
        return made[kind]

    return get


class Echo:
    """A network whose height map is the image, and which finds the given boxes wherever it looks."""

    def __init__(self):
        self.boxes, self.heights_m, self.shapes = [], None, []

    def outputs(self, inputs, do_postprocess):
        assert not do_postprocess
        image = inputs[0]["image"]
        self.shapes.append(tuple(image.shape[1:]))
        found = raw_output(self.boxes, heights_m=self.heights_m)
        return [{"instances": found, "height_map_m": torch.nan_to_num(image[0], nan=-1.0)}]


@pytest.fixture
def echo(weights):
    predictor = Predictor(weights("joint"), "cpu")
    predictor.model = Echo()
    return predictor


@pytest.mark.parametrize("shape", [(150, 211), (64, 200), (33, 17)])
@pytest.mark.parametrize(("window_px", "overlap_px"), [(64, 16), (64, 0), (65, 31)])
def test_a_map_comes_back_seamless_from_windows_of_any_size(echo, tmp_path, shape, window_px, overlap_px):
    path, numbers = number_scene(tmp_path, shape)
    out = tmp_path / "h.tif"
    predict_scene(echo, path, window_px=window_px, overlap_px=overlap_px, height_path=out)
    (dense,) = bands_of(out)
    np.testing.assert_array_equal(dense, numbers)
    assert max(max(s) for s in echo.model.shapes) <= window_px, "no window is larger than asked for"
    with rasterio.open(out) as written, rasterio.open(path) as source:
        assert (written.crs, written.transform, written.shape) == (source.crs, source.transform, source.shape)


def test_a_window_writes_its_core_alone(echo, tmp_path):
    """Every pixel says how far it is from the nearest border of the window that it comes from."""

    def outputs(inputs, do_postprocess):
        h, w = inputs[0]["image"].shape[1:]
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        near = torch.stack([rows, h - 1 - rows, columns, w - 1 - columns]).amin(0)
        return [{"instances": raw_output([]), "height_map_m": near.float()}]

    echo.model.outputs = outputs
    path, _ = number_scene(tmp_path, (150, 211))
    predict_scene(echo, path, window_px=64, overlap_px=20, height_path=tmp_path / "h.tif")
    (depth_px,) = bands_of(tmp_path / "h.tif")
    assert depth_px[10:-10, 10:-10].min() >= 9, "half of the overlap"


def test_where_the_image_has_no_data_there_is_no_height(echo, tmp_path):
    rows, columns = np.mgrid[:100, :120]
    path, numbers = number_scene(tmp_path, (100, 120), unseen=rows + columns < 90)
    echo.model.boxes = [[10, 10, 40, 40]]
    options = {"window_px": 48, "overlap_px": 8, "height_source": "both"}
    predict_scene(echo, path, height_path=tmp_path / "h.tif", **options)
    dense, instances = bands_of(tmp_path / "h.tif")
    np.testing.assert_array_equal(dense, numbers)
    np.testing.assert_array_equal(np.isnan(instances), np.isnan(numbers))


def test_a_scene_without_any_data_is_all_nodata(echo, tmp_path):
    path, _ = number_scene(tmp_path, (20, 30), unseen=np.s_[:])
    predict_scene(echo, path, height_path=tmp_path / "h.tif", height_source="both")
    assert np.isnan(bands_of(tmp_path / "h.tif")).all() and echo.model.shapes == []


def test_two_bands_say_what_they_are_and_where_they_come_from(echo, tmp_path):
    path, numbers = number_scene(tmp_path, (80, 90))
    echo.model.boxes, echo.model.heights_m = [[20, 10, 40, 30]], [12.0]
    result = predict_scene(echo, path, height_path=tmp_path / "h.tif", height_source="both")
    with rasterio.open(tmp_path / "h.tif") as file:
        dense, instances = file.read()
        assert [d.rsplit(", ")[1] for d in file.descriptions] == ["per pixel", "one per building"]
        tags = {
            "weights": "model.pth",
            "gsd_m": "0.5",
            "zero": "no building",
            "nodata": "NaN: the images have no data",
        }
        assert tags.items() <= file.tags().items() and "fusiondet" in file.tags()
    np.testing.assert_array_equal(dense, numbers)
    assert set(np.unique(instances)) == {0, 12} and (instances[12:28, 22:38] == 12).all()
    assert (instances == 12).sum() == pytest.approx(400, abs=8) and len(result.buildings) == 1


@pytest.mark.parametrize(("gsd_m", "zoom"), [(1.0, 2), (0.25, 0.5)])
def test_a_resampled_scene_comes_back_on_its_own_pixels(echo, tmp_path, gsd_m, zoom):
    path, _ = number_scene(tmp_path, (60, 80), gsd_m=gsd_m)
    shape = int(60 * zoom), int(80 * zoom)
    numbers = torch.arange(shape[0] * shape[1]).reshape(shape).float()
    found = [{"instances": raw_output([[8, 12, 24, 28]], heights_m=[7.0]), "height_map_m": numbers}]
    echo.model.outputs = lambda inputs, do_postprocess: found
    result = predict_scene(echo, path, height_path=tmp_path / "h.tif", height_source="both")
    dense, instances = bands_of(tmp_path / "h.tif")
    at = [((np.arange(n) + 0.5) * zoom).astype(int) for n in (60, 80)]
    np.testing.assert_array_equal(dense, numbers.numpy()[at[0]][:, at[1]])
    rows, columns = (slice(int(a / zoom) + 1, int(b / zoom) - 1) for a, b in ((12, 28), (8, 24)))
    assert (instances[rows, columns] == 7).all()
    assert (instances == 7).sum() == pytest.approx(256 / zoom**2, rel=0.15)
    assert any("resampled" in note for note in result.notes)


@pytest.mark.parametrize(
    ("kind", "sources", "default"),
    [("joint", ("dense", "instances"), "per pixel"), ("dense", ("dense",), "per pixel"),
     ("rgb", ("instances",), "one per building")],
)  # fmt: skip
def test_real_networks_write_what_they_have(weights, tmp_path, kind, sources, default):
    predictor = Predictor(weights(kind), "cpu")
    assert predictor.height_sources == sources
    path, numbers = number_scene(tmp_path, (70, 90), unseen=np.s_[:9])
    result = predict_scene(predictor, path, height_path=tmp_path / "h.tif", window_px=64, overlap_px=32)
    (heights_m,) = bands_of(tmp_path / "h.tif")
    assert np.isnan(heights_m[:9]).all() and (heights_m[9:] >= 0).all()
    with rasterio.open(tmp_path / "h.tif") as file:
        assert file.descriptions[0].endswith(default)
    assert bool(result.buildings) == (kind != "dense")


def test_maps_of_one_image_have_its_size_and_its_holes(weights):
    image = np.ones((1, 45, 70), np.float32)
    image[:, :5] = np.nan
    joint, detector = (Predictor(weights(kind), "cpu") for kind in ("joint", "rgb"))
    for prediction in (joint.predict_image(image, GSD_M), joint.predict_image(image * np.nan, GSD_M)):
        for values in (prediction.height_map_m, prediction.footprint_map):
            assert values.shape == (45, 70) and values.dtype == np.float32 and np.isnan(values[:5]).all()
    assert prediction.buildings == [] and np.isnan(prediction.height_map_m).all()
    prediction = detector.predict_image(image, GSD_M)
    assert prediction.height_map_m is None and prediction.footprint_map is None


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("rgb", "dense", r'no head for heights per pixel \("DenseHeight".*Pass `height_source=.instances'),
        ("rgb", "both", r"no head for heights per pixel.*`height_source` both cannot be written"),
        ("dense", "instances", "finds no buildings with heights.*Pass `height_source=.dense"),
        ("joint", "lidar", "unknown `height_source` 'lidar'.*both, dense, instances"),
    ],
)
def test_heights_that_the_network_does_not_have_are_refused(weights, tmp_path, kind, source, message):
    path, _ = number_scene(tmp_path, (30, 30))
    with pytest.raises(InputError, match=message):
        predict_scene(
            Predictor(weights(kind), "cpu"), path, height_path=tmp_path / "h.tif", height_source=source
        )
    assert [p.name for p in tmp_path.iterdir()] == ["pan.tif"]


def test_a_network_without_heights_has_no_raster(echo, tmp_path):
    echo.height_sources = ()
    path, _ = number_scene(tmp_path, (30, 30))
    with pytest.raises(InputError, match="model.pth: predicts no heights, so there is nothing to write"):
        predict_scene(echo, path, height_path=tmp_path / "h.tif")


def test_a_network_of_footprints_per_pixel_writes_them_as_classes(weights, tmp_path):
    path, _ = number_scene(tmp_path, (40, 50))
    with pytest.raises(
        InputError, match=r"only classes per pixel \(background, building\). Pass `class_path`"
    ):
        predict_to_file(weights("footprints"), path, None, tmp_path / "b.gpkg")
    assert not list(tmp_path.glob("b.*"))
    predictor = Predictor(weights("footprints"), "cpu")
    predictor.model.outputs = lambda batch, do_postprocess: [
        {"footprint_map": torch.linspace(0, 1, 50).expand(40, 50)} for _ in batch
    ]
    predict_to_file(predictor.weights, path, None, None, class_path=tmp_path / "b.tif", predictor=predictor)
    with rasterio.open(tmp_path / "b.tif") as written:
        np.testing.assert_array_equal(written.read(1), np.tile(np.arange(50) >= 25, (40, 1)))
    assert "<Category>building</Category>" in (tmp_path / "b.tif.aux.xml").read_text()


def test_a_network_that_finds_buildings_writes_them_and_another_does_not(weights, tmp_path):
    path, _ = number_scene(tmp_path, (40, 40))
    out, heights = tmp_path / "b.gpkg", tmp_path / "h.tif"
    with pytest.raises(InputError, match="finds buildings. Pass `out`"):
        predict_to_file(weights("joint"), path, None, None, height_path=heights)
    with pytest.raises(InputError, match="finds no buildings, only heights.*`height_path` instead of `out`"):
        predict_to_file(weights("dense"), path, None, out, height_path=heights)
    assert [p.name for p in tmp_path.iterdir()] == ["pan.tif"]
    assert predict_to_file(weights("dense"), path, None, None, height_path=heights).buildings == []
    predict_to_file(weights("joint"), path, None, out, height_path=heights, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.gpkg", "h.tif", "pan.tif"]


def test_outputs_are_checked_before_the_network_is_built(tmp_path):
    nowhere, (path, _) = tmp_path / "missing.pth", number_scene(tmp_path, (20, 20))
    (tmp_path / "taken.tif").write_text("mine")
    with pytest.raises(InputError, match="nothing to write. Pass `out`"):
        predict_to_file(nowhere, path, None, None)
    with pytest.raises(InputError, match="taken.tif: already exists"):
        predict_to_file(nowhere, path, None, None, height_path=tmp_path / "taken.tif")
    with pytest.raises(InputError, match="h.png: heights are written as GeoTIFF"):
        predict_to_file(nowhere, path, None, None, height_path=tmp_path / "h.png")
    with pytest.raises(InputError, match="pan.tif: is an image to predict from"):
        predict_to_file(nowhere, path, None, None, height_path=path, overwrite=True)
    with pytest.raises(InputError, match="`height_source` .*`height_path`"):
        predict_to_file(nowhere, path, None, tmp_path / "b.gpkg", height_source="dense")
    with pytest.raises(InputError, match="no such checkpoint"):
        predict_to_file(nowhere, path, None, None, height_path=tmp_path / "h.tif")


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("a damaged tile")])
def test_an_interrupted_prediction_leaves_nothing(echo, tmp_path, error):
    path, _ = number_scene(tmp_path, (100, 100))
    real, windows = echo.model.outputs, []

    def outputs(inputs, do_postprocess):
        windows.append(inputs)
        if len(windows) == 3:
            raise error
        return real(inputs, do_postprocess)

    echo.model.outputs = outputs
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        predict_scene(echo, path, window_px=48, overlap_px=8, height_path=tmp_path / "h.tif")
    assert len(windows) == 3 and [p.name for p in tmp_path.iterdir()] == ["pan.tif"]
