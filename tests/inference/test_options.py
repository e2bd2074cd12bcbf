"""Options of a scene: refused by name where they are unknown or cannot be."""

import dataclasses

from fusiondet.buildings import SensorGeometry
from fusiondet.geometry.overlaps import MAX_OVERLAP
from fusiondet.inference import SceneOptions, ScenePredictor, predict_scene, predict_scenes, predict_to_file
from fusiondet.inference.options import FILE_OPTIONS, HEIGHT_OPTIONS
from tests.support.messages import raises_naming

import pytest


def test_every_option_has_a_default_and_is_documented():
    documented = SceneOptions.__doc__
    for option in dataclasses.fields(SceneOptions):
        assert f"        {option.name}: " in documented, option.name
    options = SceneOptions()
    assert (options.window_px, options.max_overlap, options.score_threshold) == (1024, MAX_OVERLAP, "layer")
    assert options.reading == {} and not options.elsewhere


def test_an_unknown_option_is_refused_with_the_names_that_are_near(finder, write_scene, tmp_path):
    path = write_scene()
    calls = [
        lambda **o: predict_scene(finder, path, **o),
        lambda **o: ScenePredictor(finder).predict(path, **o),
        lambda **o: next(ScenePredictor(finder).iterate(path, **o)),
        lambda **o: predict_to_file(finder.weights, path, None, tmp_path / "b.gpkg", **o),
        lambda **o: predict_scenes(finder.weights, [], tmp_path / "{name}.gpkg", print, **o),
    ]
    for call in calls:
        with raises_naming("windows_px", "window_px"):
            call(windows_px=512)
    assert [p.name for p in tmp_path.iterdir()] == ["rgb.tif"]


@pytest.mark.parametrize("name", sorted(FILE_OPTIONS))
def test_options_of_files_are_refused_where_nothing_is_written(finder, write_scene, name):
    value = dataclasses.asdict(SceneOptions())[name]
    with raises_naming(name):
        predict_scene(finder, write_scene(), **{name: value})


@pytest.mark.parametrize("name", sorted(HEIGHT_OPTIONS))
def test_frames_have_no_rasters(finder, write_scene, name):
    with raises_naming(name):
        ScenePredictor(finder).predict(write_scene(), **{name: None})


@pytest.mark.parametrize(
    ("name", "value", "facts"),
    [
        ("workers", -1, ["-1", "0"]),
        ("batch", 0, ["0", "1"]),
        ("window_px", 0, ["0"]),
        ("window_px", 99.5, ["99.5"]),
        ("overlap_px", -1, ["-1"]),
        ("overlap_px", 1024, ["1024", "window_px"]),
        ("regularize_m", 0.0, ["0.0"]),
        ("regularize_m", float("nan"), ["nan"]),
        ("regularize_m", float("inf"), ["inf"]),
        ("gsd_m", -1.0, ["-1.0"]),
        ("max_overlap", 0.0, ["0.0"]),
        ("max_overlap", 1.1, ["1.1"]),
        ("extent", "sar", ["intersection", "optical"]),
        ("height_source", "lidar", ["dense", "instances", "both"]),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(name, value, facts):
    with raises_naming(name, *facts):
        SceneOptions(**{name: value})


@pytest.mark.parametrize(
    ("field", "value", "facts"),
    [
        ("sun_elevation_deg", 0, ["0", "90"]),
        ("sun_elevation_deg", float("nan"), ["nan"]),
        ("sar_incidence_deg", 90, ["90"]),
        ("view_off_nadir_deg", -3, ["-3"]),
        ("sun_azimuth_deg", 361, ["361", "0 to 360"]),
        ("sar_look_azimuth_deg", -90, ["-90"]),
    ],
)
def test_angles_that_cannot_be_are_refused(field, value, facts):
    with raises_naming(field, *facts):
        SceneOptions(sensor=SensorGeometry(**{field: value}))


def test_one_worker_is_this_process():
    assert not SceneOptions(workers=1).elsewhere and SceneOptions(workers=2).elsewhere
    assert SceneOptions(scheduler="tcp://127.0.0.1:1").elsewhere
    for workers in (1, 2):
        with raises_naming("workers", "scheduler"):
            SceneOptions(workers=workers, scheduler="tcp://127.0.0.1:1")
