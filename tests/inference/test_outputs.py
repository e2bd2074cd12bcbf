"""Outputs that cannot be written are refused before anything is computed."""

from fusiondet.errors import InputError
from fusiondet.inference import predict_to_file

import pytest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"report": "rgb.tif"}, "rgb.tif: is an image to predict from, and not replaced.*name for `report`"),
        ({"out": "aoi.gpkg", "aoi": "aoi.gpkg"}, "aoi.gpkg: is read to predict.*name for `out`"),
        ({"height_path": "dtm.tif", "dtm": "dtm.tif", "out": "b.city.json"}, "dtm.tif: is read to predict"),
        ({"report": "net.pth", "weights": "net.pth"}, "net.pth: is read to predict"),
        ({"report": "b.gpkg"}, "b.gpkg: is what `out` writes.*name for `report`"),
        ({"report": "sub/../h.tif", "height_path": "h.tif"}, "h.tif: is what `height_path` writes"),
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
        ({"workers": -1}, "`workers` is -1, expected .*0"),
        ({"batch": 0}, "`batch` is 0, expected .*1"),
        ({"regularize_m": 0.0}, "`regularize_m` is 0.0, expected metres above 0"),
        ({"regularize_m": float("nan")}, "`regularize_m` is nan"),
        ({"max_overlap": 0.0}, "`max_overlap` is 0.0, expected a share above 0"),
        ({"window_px": 0}, "`window_px` is 0"),
        ({"dtm": "dtm.tif"}, "dtm.tif|outlines lie flat"),
    ],
)
def test_numbers_that_cannot_be_leave_nothing(finder, write_scene, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        predict_to_file(finder.weights, write_scene(), None, tmp_path / "b.gpkg", predictor=finder, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["rgb.tif"]
