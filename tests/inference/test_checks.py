"""Scenes in which a modality or an angle is missing, in whole or for some pixels."""

from pathlib import Path

import fusiondet.compat  # noqa: F401
from fusiondet.buildings import SensorGeometry
from fusiondet.errors import InputError
from fusiondet.inference import Predictor, predict_scene
from tests.support.scene_cases import checkpoint, raw_output
from tests.support.tiny_city import write_raster

import numpy as np
import pytest
import torch
from affine import Affine

SIDE = 64
LATE = ("MODEL.META_ARCHITECTURE", "LateFusionRCNN")
LAYOUTS = {
    "early": (),
    "intermediate": ("MODEL.BACKBONE.NAME", "build_intermediate_fusion_resnet_fpn_backbone"),
    "late feature": ("MODEL.BACKBONE.NAME", "build_late_fusion_resnet_fpn_backbone"),
    "late decision": (*LATE, "MODEL.BACKBONE.NAME", "build_two_pyramids_resnet_fpn_backbone"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """weights(layout or modalities, *overrides) -> file, made once."""
    made = {}

    def get(layout="early", *overrides, modalities=("optical", "sar")):
        key = (layout, overrides, modalities)
        if key not in made:
            folder = tmp_path_factory.mktemp("weights")
            made[key] = checkpoint(folder, *LAYOUTS[layout], *overrides, modalities=modalities)
        return made[key]

    return get


@pytest.fixture
def rasters(tmp_path):
    """rasters(optical mask of missing pixels, SAR's) -> paths of a pair of rasters, textured."""

    def write(optical_missing=None, sar_missing=None, side=SIDE, **options):
        rng = np.random.default_rng(0)
        optical = rng.integers(1, 255, (3, side, side)).astype(np.uint8)
        sar = rng.normal(-10, 5, (1, side, side)).astype(np.float32)
        if optical_missing is not None:
            optical[:, optical_missing] = 0
        if sar_missing is not None:
            sar[:, sar_missing] = np.nan
        write_raster(tmp_path / "rgb.tif", optical, nodata=0, photometric="RGB")
        write_raster(tmp_path / "sar.tif", sar, **options)
        return tmp_path / "rgb.tif", tmp_path / "sar.tif"

    return write


EVERYWHERE = np.ones((SIDE, SIDE), bool)


def facts(result):
    return [(b.polygon.wkt, b.score, b.height_m, b.height_p16_m) for b in result.buildings]


@pytest.mark.parametrize(("layout", "dropout"), [*((name, 0.0) for name in LAYOUTS), ("late decision", 0.3)])
def test_an_absent_modality_is_one_without_any_data(weights, rasters, layout, dropout):
    learned = (
        "MODEL.FUSION.MODALITY_DROPOUT.sar",
        str(dropout),
        "MODEL.FUSION.MODALITY_DROPOUT.optical",
        str(dropout),
    )
    predictor = Predictor(weights(layout, *learned), "cpu", score_threshold=0.0)
    rgb, sar = rasters(sar_missing=EVERYWHERE)
    without, empty = predict_scene(predictor, rgb), predict_scene(predictor, rgb, sar)
    assert facts(without) == facts(empty) and without.buildings
    rgb, sar = rasters(optical_missing=EVERYWHERE)
    without, empty = predict_scene(predictor, None, sar), predict_scene(predictor, rgb, sar)
    assert facts(without) == facts(empty) and without.buildings
    both = predict_scene(predictor, *rasters())
    assert both.buildings and facts(both) != facts(without)


@pytest.mark.parametrize(
    ("layout", "overrides", "note"),
    [
        ("early", (), "model.pth was never trained without SAR, so expect much less"),
        ("intermediate", (), "MODALITY_DROPOUT.sar above 0 copes"),
        ("early", ("MODEL.FUSION.MODALITY_DROPOUT.sar", "0.3"), "without SAR, as 30% of the images"),
        ("early", ("MODEL.FUSION.MODALITY_DROPOUT.optical", "0.3"), "never trained without SAR"),
        ("late decision", (), "by the other detector of model.pth alone"),
        ("late decision", ("MODEL.FUSION.EXCHANGE.res5", "MMTM"), "never trained without SAR"),
    ],
)
def test_what_to_expect_without_a_modality_is_said(weights, rasters, layout, overrides, note):
    predictor = Predictor(weights(layout, *overrides), "cpu", score_threshold=0.4)
    rgb, sar = rasters(sar_missing=EVERYWHERE)
    keep_all = {
        "max_overlap": 1.0
    }  # an untrained network finds everything many times, which would be said, too
    assert [note in n for n in predict_scene(predictor, rgb, **keep_all).notes] == [True]
    (said,) = predict_scene(predictor, rgb, sar, **keep_all).notes
    assert note in said and said.startswith(f"{sar}: all of it is no data; ")
    assert predict_scene(predictor, *rasters(), **keep_all).notes == []


@pytest.mark.parametrize(("threshold", "said"), [(0.5, True), (0.49, False)])
def test_a_threshold_that_drops_what_one_detector_finds_is_said(weights, rasters, threshold, said):
    predictor = Predictor(weights("late decision"), "cpu", score_threshold=threshold)
    rgb, sar = rasters()
    assert any("`score_threshold` below 0.5" in n for n in predict_scene(predictor, rgb, sar).notes) == said
    assert not any("`score_threshold`" in n for n in predict_scene(predictor, rgb).notes)


@pytest.mark.parametrize(("layout", "expected"), [("early", 0.5), ("late decision", 0.25)])
def test_a_layer_takes_what_one_of_two_detectors_is_sure_of(weights, layout, expected):
    predictor = Predictor(weights(layout), "cpu", score_threshold="layer")
    assert predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == expected


def test_no_data_in_both_is_said_once(weights, rasters):
    result = predict_scene(Predictor(weights(), "cpu"), *rasters(EVERYWHERE, EVERYWHERE))
    assert result.buildings == []
    assert [n for n in result.notes if "rgb.tif and" in n and "nothing to predict" in n] == result.notes


@pytest.mark.parametrize(
    ("modalities", "given", "message"),
    [
        (("optical", "sar"), (), "no raster given. Pass `rgb`, and `sar`"),
        (("optical",), ("sar",), r"takes optical only \(red, green, blue\). Pass `rgb`"),
        (("sar",), ("rgb",), r"takes SAR only \(HH\). Pass `sar`"),
    ],
)
def test_nothing_that_the_network_takes_is_bad_input(weights, rasters, modalities, given, message):
    paths = dict(zip(("rgb", "sar"), rasters()))
    predictor = Predictor(weights(modalities=modalities), "cpu")
    with pytest.raises(InputError, match=message):
        predict_scene(predictor, *(paths[name] if name in given else None for name in paths))


@pytest.mark.parametrize(("modalities", "unused"), [(("optical",), "sar.tif"), (("sar",), "rgb.tif")])
def test_a_raster_that_is_not_used_is_named(weights, rasters, modalities, unused):
    predictor = Predictor(weights(modalities=modalities), "cpu")
    # Without one more note on outlines that others cover: an untrained network has some.
    (note,) = predict_scene(predictor, *rasters(), max_overlap=1.0).notes
    assert unused in note and "is not used, model.pth was trained without" in note


# ---- Pixel by pixel ----


@pytest.fixture
def oracle(weights):
    """A Predictor of both modalities whose network predicts given boxes, and keeps what it was shown."""
    predictor = Predictor(weights(), "cpu")

    class Oracle:
        boxes, seen = [], []

        def outputs(self, inputs, do_postprocess):
            self.seen.append(inputs[0])
            return [{"instances": raw_output(self.boxes)}]

    predictor.model = Oracle()
    predictor.model.seen = []
    return predictor


def test_a_strip_of_sar_over_half_the_scene(oracle, tmp_path, rasters):
    rgb, _ = rasters()
    strip = np.full((1, SIDE, SIDE // 2), -8, np.float32)
    write_raster(tmp_path / "strip.tif", strip)
    oracle.model.boxes = [[4, 4, 20, 20], [40, 40, 60, 60], [26, 10, 38, 20]]
    result = predict_scene(oracle, rgb, tmp_path / "strip.tif", extent="optical")
    image = oracle.model.seen[0]["image"]
    assert (
        torch.isfinite(image[:3]).all() and (image[3, :, :32] == -8).all() and image[3, :, 32:].isnan().all()
    )
    assert sorted(round(b.polygon.area / 0.25) for b in result.buildings) == [120, 256, 400]
    assert any("overlap only in part" in note for note in result.notes)


def test_a_wedge_without_optical_is_predicted_from_sar_and_one_without_both_is_not(oracle, rasters):
    rows, columns = np.mgrid[:SIDE, :SIDE]
    wedge, corner = rows + columns < 60, rows + columns < 30
    oracle.model.boxes = [[0, 0, 10, 10], [18, 18, 28, 28], [50, 50, 60, 60]]
    result = predict_scene(oracle, *rasters(wedge, corner))
    image = oracle.model.seen[0]["image"].numpy()
    assert (np.isnan(image[0]) == wedge).all() and (np.isnan(image[3]) == corner).all()
    found = sorted(b.polygon.bounds[0] for b in result.buildings)
    assert found == pytest.approx([600000 + 9, 600000 + 25], abs=0.1), "the corner holds nothing to see"
    share = (wedge & ~corner).sum() / (~corner).sum()
    (note,) = [n for n in result.notes if "no data" in n]
    assert (
        "rgb.tif: about" in note
        and f"about {share:.0%} of where SAR has data is no data; model.pth was" in note
    )


def test_pixels_without_power_here_and_there_are_not_worth_a_word(oracle, rasters):
    few = np.zeros((SIDE, SIDE), bool)
    few.flat[::100] = True
    assert predict_scene(oracle, *rasters(None, few)).notes == []


# ---- SAR of another kind ----


def test_another_polarisation_is_refused_unless_chosen(oracle, tmp_path, rasters):
    import rasterio

    rgb, sar = rasters()
    with rasterio.open(sar, "r+") as file:
        file.set_band_description(1, "Sigma0_VV")
    with pytest.raises(InputError, match=r"sar.tif: has 1 band \(Sigma0_VV\), but HH is needed.*`sar_bands`"):
        predict_scene(oracle, rgb, sar)
    predict_scene(oracle, rgb, sar, sar_bands=[1])
    with rasterio.open(sar, "r+") as file:
        file.set_band_description(1, "backscatter")
    predict_scene(oracle, rgb, sar)


@pytest.mark.parametrize(
    ("scale", "ok"), [(None, False), ("db", False), ("linear_power", True), ("amplitude", True)]
)
def test_power_is_not_taken_for_db(oracle, tmp_path, rasters, scale, ok):
    rgb, sar = rasters(side=128)
    power = np.random.default_rng(0).gamma(1, 0.1, (1, 128, 128)).astype(np.float32)
    write_raster(sar, power)
    if ok:
        predict_scene(oracle, rgb, sar, sar_scale=scale)
        assert oracle.model.seen[0]["image"][3].median() < -5
    else:
        with pytest.raises(
            InputError, match=r"sar.tif: its values, .* are not the dB that model.pth was trained on"
        ):
            predict_scene(oracle, rgb, sar, sar_scale=scale)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_whole_numbers_are_not_db(oracle, rasters, dtype):
    rgb, sar = rasters()
    write_raster(sar, np.full((1, SIDE, SIDE), 90, dtype))
    with pytest.raises(InputError, match=f"sar.tif: is {dtype}, .*sar.scale"):
        predict_scene(oracle, rgb, sar)


# ---- Angles ----

SENSOR = SensorGeometry(
    sun_azimuth_deg=150,
    sun_elevation_deg=40,
    sar_look_azimuth_deg=80,
    sar_incidence_deg=35,
    view_off_nadir_deg=5,
)


def test_angles_reach_the_network_and_gsd_follows_a_resampling(oracle, rasters):
    predict_scene(oracle, *rasters(), sensor=SENSOR)
    assert oracle.model.seen[0]["sensor"] == pytest.approx(SENSOR.to_dict())
    oracle.gsd_range_m = (1.0, 1.0)
    predict_scene(oracle, *rasters(), sensor=SENSOR)
    assert oracle.model.seen[1]["gsd_m"] == 1.0 and oracle.model.seen[1]["image"].shape == (4, 32, 32)
    predict_scene(oracle, *rasters())
    assert set(oracle.model.seen[2]["sensor"].values()) == {None}


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (Affine.scale(0.5, -0.5), 150),  # north-up
        (Affine.scale(0.5, 0.5), 150),  # south-up: read from the other end
        (Affine(0, 0.5, 0, 0.5, 0, 0), 240),  # right is north, down is east: the upper edge faces west
        (Affine.rotation(30) * Affine.scale(0.5, -0.5), 180),  # upper edge faces 30 degrees west of north
    ],
)
def test_azimuths_are_turned_into_the_axes_of_the_image(oracle, tmp_path, turn, expected):
    transform = Affine.translation(600000, 5800000) * turn
    write_raster(
        tmp_path / "rgb.tif", np.full((3, 32, 32), 9, np.uint8), transform=transform, photometric="RGB"
    )
    predict_scene(oracle, tmp_path / "rgb.tif", sensor=SENSOR)
    sensor = oracle.model.seen[0]["sensor"]
    assert sensor["sun_azimuth_deg"] == pytest.approx(expected) and sensor["sun_elevation_deg"] == 40


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sun_elevation_deg", 0, "`sun_elevation_deg` is 0, expected above 0 and at most 90 degrees"),
        ("sun_elevation_deg", float("nan"), "`sun_elevation_deg` is nan"),
        ("sar_incidence_deg", 90, "`sar_incidence_deg` is 90, expected above 0 and below 90"),
        ("view_off_nadir_deg", -3, "`view_off_nadir_deg` is -3"),
        ("sun_azimuth_deg", 361, "`sun_azimuth_deg` is 361, expected from 0 to 360 degrees"),
        ("sar_look_azimuth_deg", -90, "`sar_look_azimuth_deg` is -90"),
    ],
)
def test_angles_that_cannot_be_are_refused(oracle, rasters, field, value, message):
    with pytest.raises(InputError, match=message):
        predict_scene(oracle, *rasters(), sensor=SensorGeometry(**{field: value}))


def test_angles_that_are_lacking_idle_or_untrained_are_said(oracle, rasters):
    rgb, sar = rasters()
    (idle,) = predict_scene(oracle, rgb, sar, sensor=SensorGeometry(sar_incidence_deg=35)).notes
    assert "makes no use of `sar_incidence_deg`" in idle
    oracle.cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY = [
        "gsd",
        "sun_elevation",
        "sun_azimuth",
        "incidence",
        "look_azimuth",
    ]
    oracle.cfg.INPUT.SUN_ELEVATION_RANGE_DEG = [30.0, 60.0]
    lacking, outside = predict_scene(oracle, rgb, sar, sensor=SensorGeometry(sun_elevation_deg=20)).notes
    assert (
        "without `sun_azimuth_deg`, `sar_incidence_deg`, `sar_look_azimuth_deg` they are less certain"
        in lacking
    )
    assert "`sun_elevation_deg` 20 is outside of what model.pth was trained on, 30 to 60 degrees" in outside
    notes = predict_scene(oracle, rgb, sensor=SensorGeometry(sun_azimuth_deg=180, sun_elevation_deg=45)).notes
    assert not any("less certain" in note for note in notes), "without SAR its angles are not missed"
    assert predict_scene(oracle, rgb, sar, sensor=SENSOR).notes == [
        "model.pth makes no use of `view_off_nadir_deg` (its MODEL.ROI_HEIGHT_HEAD.GEOMETRY is ['gsd', "
        "'sun_elevation', 'sun_azimuth', 'incidence', 'look_azimuth'])."
    ]


def test_the_tool_passes_angles_and_outputs_on(load_tool, monkeypatch, capsys):
    import fusiondet.inference

    tool, passed = load_tool("predict_scene"), {}

    def fake(*args, **options):
        passed.update(options)
        options["tell"](["one note"])
        return fusiondet.inference.ScenePrediction([], "EPSG:32631", 0.5, ["one note"])

    monkeypatch.setattr(fusiondet.inference, "predict_to_file", fake)
    outputs = "--out b.gpkg --height-raster h.tif --height-source both"
    words = f"--weights w.pth --rgb a.tif {outputs} --sun-azimuth 150 --sun-elevation 40 --look-azimuth 80"
    monkeypatch.setattr(
        "sys.argv", ["predict_scene.py", *words.split(), *"--incidence 35 --off-nadir 5".split()]
    )
    tool.main()
    assert (passed["height_path"], passed["height_source"]) == (Path("h.tif"), "both")
    assert passed["sensor"] == SENSOR and "note: one note" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["early", "late decision"])
def test_a_large_window_holds_more_buildings_than_a_tile_of_the_training(weights, rasters, layout):
    """A limit for tiles left 60 of 400 buildings in a window of 1536 pixels."""
    predictor = Predictor(weights(layout, "TEST.DETECTIONS_PER_IMAGE", "5"), "cpu", score_threshold=0.0)
    # Nothing is like anything else, so that no box is taken for another one.
    small = predict_scene(predictor, *rasters(), max_overlap=1.0)
    large = predict_scene(predictor, *rasters(side=4 * SIDE), max_overlap=1.0)
    assert 5 < small.count <= (SIDE // 16) ** 2 < large.count <= (4 * SIDE // 16) ** 2
    again = predict_scene(predictor, *rasters(), max_overlap=1.0)
    assert facts(again) == facts(small), "whatever was predicted before"
