"""Tables of scenes: a layer each, one network, and what cannot be used is named."""

import os

from fusiondet.errors import InputError
from fusiondet.inference import predict_scenes, read_scenes, scene_table
from fusiondet.io.layers import read_buildings

import pytest

WINDOWS = {"window_px": 160, "overlap_px": 48}


def write(tmp_path, text):
    (tmp_path / "scenes.csv").write_text(text)
    return tmp_path / "scenes.csv"


def test_a_table_names_rasters_beside_it(tmp_path):
    text = "rgb,sar,name\na.tif,radar/a.tif,east\nred.tif; green.tif ;blue.tif,,\n,/data/c.tif,\n"
    first, second, third = read_scenes(write(tmp_path, text))
    assert (first.name, first.rgb, first.sar) == ("east", (tmp_path / "a.tif",), (tmp_path / "radar/a.tif",))
    assert second.name == "red" and [p.name for p in second.rgb] == ["red.tif", "green.tif", "blue.tif"]
    assert third.name == "c" and third.rgb == () and str(third.sar[0]) == "/data/c.tif"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.tif\nb.tif\n", "its columns are a.tif; expected a first line of rgb, sar, name"),
        ("rgb,sar,date\na.tif,b.tif,1\n", "its columns are rgb, sar, date"),
        ("", "its columns are none"),
        ("rgb,sar\n", "lists no scene"),
        ("rgb,sar\n,\n , \n", "lists no scene"),
        ("rgb,sar,name\n,,west\n", "a row names no raster"),
        ("rgb\nx/a.tif\ny/a.tif\n", r"1 names occur twice \(a\)"),
        ("rgb,name\na.tif,../b\n", "'../b' cannot be part of a file's name"),
        ("rgb,name\na.tif,b\x01\n", r"'b\\x01' cannot be part of a file's name"),
        ("rgb,name\na.tif,b\0c\n", "cannot be part of a file's name|cannot be read"),
        ("rgb\na\0.tif\n", "cannot be part of a file's name|cannot be read"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_scenes(write(tmp_path, text))


def test_a_table_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="pipe.csv: is not a file"):
        read_scenes(tmp_path / "pipe.csv")


def test_no_table(tmp_path):
    with pytest.raises(InputError, match="none.csv: cannot be read as a table of scenes"):
        read_scenes(tmp_path / "none.csv")


@pytest.fixture
def many(finder, write_scene, city, tmp_path, monkeypatch):
    """predict(**options) of three scenes, the second of which is none -> (done, left out)."""
    made = []
    monkeypatch.setattr(scene_table, "Predictor", lambda *a, **k: made.append(a) or finder)
    half = dict(list(city.items())[:20])
    for name, blocks in {"a": city, "c": half}.items():
        write_scene(blocks, name=f"{name}.tif")
    (tmp_path / "b.tif").write_text("no raster")
    scenes = read_scenes(write(tmp_path, "rgb\na.tif\nb.tif\nc.tif\n"))

    def predict(out="out/{name}.fgb", scenes=scenes, **options):
        done = []

        def on_done(scene, result):
            done.append((scene.name, None if result is None else result.count))

        left_out = predict_scenes(finder.weights, scenes, tmp_path / out, on_done, **{**WINDOWS, **options})
        assert len(made) == 1, "one network for all"
        made.clear()
        return done, left_out

    predict.scenes, predict.made = scenes, made
    return predict


def test_a_layer_for_each_scene(many, city, tmp_path):
    done, left_out = many(skip_invalid=True)
    assert done == [("a", len(city)), ("c", 20)]
    (reason,) = left_out
    assert reason.startswith("scene b: ") and "b.tif: not a raster" in reason
    assert len(read_buildings(tmp_path / "out/c.fgb")[0]) == 20 and not (tmp_path / "out/b.fgb").exists()


def test_the_first_that_cannot_be_used_ends_it(many, tmp_path):
    with pytest.raises(InputError, match="scene b: .*b.tif: not a raster"):
        many()
    assert (tmp_path / "out/a.fgb").exists() and not (tmp_path / "out/c.fgb").exists()


def test_what_is_there_is_taken_as_it_is(many, city, finder):
    good = [s for s in many.scenes if s.name != "b"]
    many(scenes=good[:1])
    seen = len(finder.model.batches)
    done, _ = many(scenes=good, resume=True)
    assert done == [("a", None), ("c", 20)] and len(finder.model.batches) == 2 * seen


def test_each_output_needs_a_place_for_the_name(many, tmp_path):
    with pytest.raises(
        InputError, match=r"`out` .*all.gpkg: with several scenes it needs \{name\}.*\{name\}-all.gpkg"
    ):
        many(out="all.gpkg")
    with pytest.raises(InputError, match="`height_path` h.tif: with several scenes"):
        many(height_path="h.tif")


def test_the_tool_says_what_became_of_each(load_tool, many, city, tmp_path, monkeypatch, capsys):
    words = (
        f"--weights model.pth --scenes {tmp_path}/scenes.csv --out {tmp_path}/o/{{name}}.gpkg --skip-invalid"
    )
    monkeypatch.setattr(
        "sys.argv", ["predict_scene.py", *words.split(), "--window", "160", "--overlap", "48"]
    )
    tool = load_tool("predict_scene")
    tool.main()
    printed = capsys.readouterr().out
    assert f"o/a.gpkg: {len(city)} buildings, {len(city)} with heights, EPSG:32631" in printed
    assert "left out: scene b: " in printed
    assert printed.rstrip().endswith(
        f"wrote 2 of 3 scenes, {len(city) + 20} buildings; 0 were there already, 1 were left out"
    )
    monkeypatch.setattr("sys.argv", ["predict_scene.py", *words.split(), "--rgb", "a.tif"])
    with pytest.raises(InputError, match="leave out --rgb and --sar"):
        tool.main()


def test_rows_of_empty_cells_are_skipped(tmp_path):
    (tmp_path / "scenes.csv").write_text("rgb,sar,name\n,,\na.tif,,west\n  , ,\n\nb.tif,,east\n")
    assert [scene.name for scene in read_scenes(tmp_path / "scenes.csv")] == ["west", "east"]
