"""tools/evaluate.py: what it prints, writes and refuses."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from fusiondet import cli
from fusiondet.buildings import Building, Tile
from fusiondet.errors import InputError
from fusiondet.evaluation.dense import DenseCounts, DenseScores
from fusiondet.files import write_json
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset, encode_rle, prediction_record, read_coco, write_coco
from fusiondet.io.layer_writer import write_buildings
from tests.support.contest_cases import Contest
from tests.support.messages import raises_naming
from tests.support.tiny_city import write_raster

import numpy as np
import pytest
from shapely.geometry import box

TOOL = Path(__file__).resolve().parents[2] / "tools" / "evaluate.py"


@pytest.fixture
def files(tmp_path):
    """(annotations, predictions) of one tile with one house found and one of unknown height."""
    houses = [Building(box(2, 2, 12, 12), 6.0), Building(box(20, 2, 32, 12))]
    write_coco(Dataset([Tile("a.tif", 64, 64, 0.5, buildings=houses)], BandSpec()), tmp_path / "truth.json")
    rle = encode_rle(polygon_to_mask(houses[0].polygon, 64, 64))
    records = [prediction_record(1, 0.9, (2, 2, 12, 12), rle, (5.0, 6.5, 8.0))]
    write_json(records, tmp_path / "predictions.json")
    return tmp_path / "truth.json", tmp_path / "predictions.json"


def test_instances_are_printed_and_written(files, tmp_path, capsys, load_tool):
    out = tmp_path / "metrics.json"
    arguments = [
        "instances",
        "--annotations",
        str(files[0]),
        "--predictions",
        str(files[1]),
        "--out",
        str(out),
    ]
    load_tool("evaluate").main(arguments)
    metrics = json.loads(out.read_text())
    assert metrics["joint/AP50"] == pytest.approx(100) and metrics["height/mae_m"] == 0.5
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["joint", "100.0", "100.0", "100.0"]
    assert "MAE 0.500 m" in "\n".join(lines) and lines[-1] == f"wrote {len(metrics)} numbers to {out}"
    with pytest.raises(InputError, match="`overwrite=True`"):
        load_tool("evaluate").main(arguments)
    load_tool("evaluate").main([*arguments, "--overwrite", "--metrics", "joint"])
    assert "segm/AP" not in json.loads(out.read_text())


def test_vectors_are_compared_across_crs_and_formats(tmp_path, capsys, load_tool):
    truth = [Building(box(155_000 + x, 463_000, 155_010 + x, 463_010), 5.0 + x, id=x) for x in (0, 20, 40)]
    write_buildings(truth, "EPSG:28992", tmp_path / "truth.gpkg")
    write_buildings(truth[:2], "EPSG:28992", tmp_path / "found.geojson")
    load_tool("evaluate").main(
        ["vectors", "--truth", str(tmp_path / "truth.gpkg"), "--truth-height", "height_m"]
        + ["--predictions", str(tmp_path / "found.geojson"), "--prediction-height", "height_m"]
        + ["--out", str(tmp_path / "metrics.json")]
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["match/n"], metrics["match/recall"], metrics["height/mae_m"]) == (
        2,
        pytest.approx(2 / 3),
        0,
    )
    assert "2 pairs of 3 true and 2 predicted features" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--annotations": "missing.json"}, "missing.json: no such file"),
        ({"--predictions": "missing.json"}, "missing.json: no such file"),
        ({"--metrics": "coco,hight"}, "unknown metric 'hight'. Did you mean 'height'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(files, change, message):
    arguments = {"--annotations": str(files[0]), "--predictions": str(files[1])} | change
    flat = [word for pair in arguments.items() for word in pair]
    done = subprocess.run(
        [sys.executable, str(TOOL), "instances", *flat], capture_output=True, text=True, cwd=TOOL.parents[1]
    )
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "error: " in done.stderr


def test_predictions_instead_of_annotations_are_refused(files, load_tool):
    with pytest.raises(InputError, match="expected a COCO file"):
        load_tool("evaluate").main(
            ["instances", "--annotations", str(files[1]), "--predictions", str(files[1])]
        )
    with pytest.raises(InputError, match="expected a list of COCO results"):
        load_tool("evaluate").main(
            ["instances", "--annotations", str(files[0]), "--predictions", str(files[0])]
        )


def test_an_unknown_column_lists_the_right_ones(tmp_path, load_tool):
    write_buildings([Building(box(0, 0, 9, 9))], "EPSG:28992", tmp_path / "a.gpkg")
    both = ["--truth", str(tmp_path / "a.gpkg"), "--predictions", str(tmp_path / "a.gpkg")]
    with pytest.raises(InputError, match="height_m"):
        load_tool("evaluate").main(
            ["vectors", *both, "--truth-height", "hight_m", "--prediction-height", "height_m"]
        )


def test_outlines_alone_and_heights_in_feet(tmp_path, capsys, load_tool):
    import geopandas

    outlines = [box(985_000 + x, 210_000, 985_050 + x, 210_040) for x in (0, 100, 200)]
    frame = geopandas.GeoDataFrame(
        {"top": [10.0, 20.0, 30.0], "id": [1, 2, 3]}, geometry=outlines, crs="EPSG:2263"
    )
    frame.to_file(tmp_path / "truth.gpkg")
    found = [Building(p, h * 1200 / 3937) for p, h in zip(outlines, (10, 20, 30), strict=True)]
    write_buildings(found, "EPSG:2263", tmp_path / "found.gpkg")
    main, out = load_tool("evaluate").main, tmp_path / "metrics.json"
    layers = [
        "vectors",
        "--truth",
        str(tmp_path / "truth.gpkg"),
        "--predictions",
        str(tmp_path / "found.gpkg"),
    ]
    main([*layers, "--out", str(out)])
    numbers = json.loads(out.read_text())
    assert numbers["match/f1"] == 1 and numbers["match/polis_m"] == 0 and "height/n" not in numbers
    assert "PoLiS 0.000 m" in capsys.readouterr().out
    columns = ["--truth-height", "top", "--prediction-height", "height_m"]
    main([*layers, *columns, "--height-unit", "us-ft", "--out", str(out), "--overwrite"])
    assert json.loads(out.read_text())["height/mae_m"] == pytest.approx(0, abs=1e-9)
    with raises_naming("truth.gpkg", "height_unit"):
        main([*layers, *columns])
    with raises_naming("truth_height", "prediction_height"):
        main([*layers, *columns[:2]])
    with raises_naming("truth.gpkg", "id", "identifier"):
        main([*layers, "--truth-height", "id", *columns[2:]])


def arguments_of(files, *more):
    return ["instances", "--annotations", str(files[0]), "--predictions", str(files[1]), *map(str, more)]


def test_two_predictions_are_compared_on_the_same_tiles(files, tmp_path, capsys, load_tool):
    write_json([], tmp_path / "nothing.json")
    out = tmp_path / "difference.json"
    more = ("--compare", tmp_path / "nothing.json", "--draws", 20, "--seed", 1, "--out", out)
    load_tool("evaluate").main(arguments_of(files, *more))
    numbers = json.loads(out.read_text())
    names = ("a", "b", "difference", "low", "high")
    assert [numbers[f"match/recall/{name}"] for name in names] == [0, 0.5, 0.5, 0.5, 0.5]
    assert [numbers[f"height/mae_m/{name}"] for name in names] == [None, 0.5, None, None, None]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["other", "predictions", "difference"]
    recall = next(line.split() for line in lines if "match/recall" in line)
    assert recall == ["match/recall", "0.000", "0.500", "+0.500", "[+0.500,", "+0.500]", "*"]


def test_a_region_is_scored_apart(files, tmp_path, capsys, load_tool):
    dataset = read_coco(files[0])
    cloud = np.zeros((1, 64, 64), np.uint8)
    cloud[:, :, 16:] = 255
    write_raster(tmp_path / "cloud.tif", cloud)
    dataset.tiles[0].cloud_file_name = "cloud.tif"
    write_coco(dataset, files[0])
    for region, recall in (("in_the_clear", "1.000"), ("under_cloud", "0.000")):
        load_tool("evaluate").main(arguments_of(files, "--region", region))
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["match/recall", recall] in lines and ["match/n_truth", "1"] in lines


@pytest.mark.parametrize(
    ("region", "message"),
    [("under_cloud", "no tile of .* has a cloud raster"), ("cloudy", "Known: in_the_clear")],
)
def test_a_region_that_cannot_be_scored_is_refused(files, load_tool, region, message):
    with pytest.raises(InputError, match=message):
        load_tool("evaluate").main(arguments_of(files, "--region", region))


def test_maps_are_scored_where_asked_for(files, tmp_path, capsys, load_tool):
    out = tmp_path / "metrics.json"
    load_tool("evaluate").main(arguments_of(files, "--metrics", "dense,joint", "--out", out))
    metrics = json.loads(out.read_text())
    # 100 px of a house at 6.5 m instead of 6; one of 120 px and unknown height was not found.
    assert metrics["dense/precision"] == 1 and metrics["dense/recall"] == pytest.approx(100 / 220)
    assert metrics["dense/mae_m_building"] == 0.5 and metrics["dense/mae_norm_building"] == 0.5 / 6
    assert metrics["joint/AP50"] == pytest.approx(100) and "segm/AP" not in metrics
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["pooled", "0.625", "0.455", "0.971", "1.000", "0.455"] in lines
    assert ["on", "buildings", "0.500", "0.500", "1.000", "1.000", "1.000", "0.083"] in lines
    load_tool("evaluate").main(
        arguments_of(files, "--metrics", "dense", "--score-threshold", 0.95, "--out", out, "--overwrite")
    )
    metrics = json.loads(out.read_text())
    assert metrics["dense/recall"] == 0 and metrics["dense/mae_m_building"] == 6


def test_maps_of_dense_heads_are_scored_from_their_counts(files, tmp_path, load_tool):
    counts = DenseCounts(100, 0, 120, 3876, 100, 200.0, 400.0, 0, 0, 100, tallest_m=6.0)
    DenseScores("instances", True, {1: {"all": counts}}).write(tmp_path / "dense_scores.json")
    out = tmp_path / "metrics.json"
    load_tool("evaluate").main(arguments_of(files, "--metrics", "dense", "--out", out))
    metrics = json.loads(out.read_text())
    assert (metrics["dense/mae_m_building"], metrics["dense/delta3_building"]) == (2, 1)
    assert metrics["painted/mae_m_building"] == 0.5
    with pytest.raises(InputError, match="scored against 'instances' heights, not 'ndsm'"):
        load_tool("evaluate").main(arguments_of(files, "--metrics", "dense", "--height-labels", "ndsm"))


def test_two_networks_are_compared_against_one_truth(files, tmp_path, load_tool):
    # The height raster says 3 m, the annotations 6: dense heads were scored on these, and so is the detector.
    truth = read_coco(files[0])
    write_raster(tmp_path / "h.tif", np.full((1, 64, 64), 3, np.float32))
    truth.tiles[0].building_height_file_name = "h.tif"
    write_coco(truth, files[0])
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "predictions.json"
    other.write_text(files[1].read_text())
    counts = DenseCounts(100, 0, 120, 3876, 100, 200.0, 400.0, 0, 0, 100, tallest_m=6.0)
    DenseScores("instances", True, {1: {"all": counts}}).write(tmp_path / "dense_scores.json")
    for first, second in ((files[1], other), (other, files[1])):
        out = tmp_path / "difference.json"
        words = ("--compare", second, "--draws", 3, "--out", out, "--overwrite")
        load_tool("evaluate").main(arguments_of((files[0], first), *words))
        found = json.loads(out.read_text())
        sides = {name: found[f"dense/mae_m_building/{name}"] for name in "ab"}
        assert sides == ({"a": 0.5, "b": 2} if second == other else {"a": 2, "b": 0.5})
    DenseScores("auto", True, {1: {"all": counts}}).write(other.with_name("dense_scores.json"))
    with pytest.raises(InputError, match="scored against 'auto' heights, not 'instances'"):
        load_tool("evaluate").main(arguments_of((files[0], files[1]), "--compare", other))


def test_a_network_without_instances_is_not_scored_as_a_blind_detector(files, tmp_path, load_tool):
    files[1].write_text("[]")
    counts = DenseCounts(100, 0, 120, 3876)
    DenseScores("auto", False, {1: {"all": counts}}).write(tmp_path / "dense_scores.json")
    with pytest.raises(InputError, match="maps and no instances.*`metrics=.dense.`"):
        load_tool("evaluate").main(arguments_of(files))
    load_tool("evaluate").main(arguments_of(files, "--metrics", "dense"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--score-threshold", 50), r"score threshold 50.0: expected a number in \[0, 1\]"),
        (("--height-labels", "dsm"), "Did you mean 'ndsm'"),
    ],
)
def test_maps_that_cannot_be_scored_are_refused(files, load_tool, more, message):
    with pytest.raises(InputError, match=message):
        load_tool("evaluate").main(arguments_of(files, "--metrics", "dense", *more))


# ---- The contests ----------------------------------------------------------------------------------------


def test_outlines_are_scored_as_spacenet_does_where_asked_for(files, tmp_path, capsys, load_tool):
    out = tmp_path / "metrics.json"
    load_tool("evaluate").main(arguments_of(files, "--metrics", "spacenet,joint", "--out", out))
    metrics = json.loads(out.read_text())
    assert [metrics[f"spacenet/{key}"] for key in ("tp", "fp", "fn", "min_area_px")] == [1, 0, 1, 80]
    assert metrics["spacenet/f1"] == pytest.approx(2 / 3) and "joint/AP50" in metrics
    assert "spacenet: F1 0.667, precision 1.000, recall 0.500 (1 tp, 0 fp, 1 fn" in capsys.readouterr().out
    more = ("--metrics", "spacenet", "--min-area-px", 110, "--out", out, "--overwrite")
    load_tool("evaluate").main(arguments_of(files, *more))
    assert json.loads(out.read_text())["spacenet/fn"] == 1 and capsys.readouterr().out.startswith("spacenet:")


@pytest.fixture
def track2(tmp_path):
    """Arguments of `dfc2023` for the truth of a small contest; its submission is in tmp_path / "res"."""
    Contest(3).write(tmp_path)
    truth = tmp_path / "ref" / "buildings_only_val.json"
    return ["dfc2023", "--annotations", str(truth), "--heights", str(tmp_path / "ref" / "height")]


def zip_of(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
    return str(path)


def test_a_zip_is_scored_as_in_the_contest(track2, tmp_path, capsys, load_tool):
    out = tmp_path / "metrics.json"
    submission = zip_of(tmp_path / "res", tmp_path / "s.zip")
    load_tool("evaluate").main([*track2, "--submission", submission, "--strict", "--out", str(out)])
    metrics, text = json.loads(out.read_text()), capsys.readouterr().out
    assert metrics["dfc2023/score"] == pytest.approx(0.60365625)
    assert metrics["dfc2023_strict/n_tiles"] == 4 and "Score:0.6036" in text
    assert text.splitlines()[-1] == f"wrote {len(metrics)} numbers to {out}"


def test_a_fault_is_named_and_with_strict_exit_2(track2, tmp_path, capsys, load_tool):
    (tmp_path / "res" / "height" / "P_0002.tif").rename(tmp_path / "res" / "height" / "P_2.tif")
    submission = zip_of(tmp_path / "res", tmp_path / "s.zip")
    load_tool("evaluate").main([*track2, "--submission", submission])
    text = capsys.readouterr().out
    assert "1 files in height/ that no image has the name of" in text and "P_2.tif" in text
    assert "the contest's scorer gives this submission no score" in text
    words = [sys.executable, str(TOOL), *track2, "--submission", submission, "--strict", "--out", "m.json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "P_2.tif" in done.stderr
    assert not (tmp_path / "m.json").exists()


def test_predictions_are_scored_without_and_with_a_zip(track2, tmp_path, capsys, load_tool):
    records = [{**r, "height_m": 6.0} for r in Contest(3).results]
    write_json(records, tmp_path / "predictions.json")
    words = [*track2, "--predictions", str(tmp_path / "predictions.json"), "--out", str(tmp_path / "m.json")]
    load_tool("evaluate").main(words)
    direct = json.loads((tmp_path / "m.json").read_text())
    assert not list(tmp_path.glob("*.zip"))
    load_tool("evaluate").main([*words, "--overwrite", "--write-submission", str(tmp_path / "s.zip")])
    assert f"wrote 4 tiles and {len(records)} instances to {tmp_path / 's.zip'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "m.json").read_text()) == direct
    load_tool("evaluate").main(
        [*track2, "--submission", str(tmp_path / "s.zip"), "--strict", *words[-2:], "--overwrite"]
    )
    assert json.loads((tmp_path / "m.json").read_text()) == direct
    with pytest.raises(InputError, match="s.zip: already exists"):
        load_tool("evaluate").main([*words[:-2], "--write-submission", str(tmp_path / "s.zip")])


def test_a_zip_is_written_where_there_is_no_truth(tmp_path, capsys, load_tool):
    images = Contest(3).document["images"]
    write_json({"images": images}, tmp_path / "test.json")
    write_json([], tmp_path / "predictions.json")
    words = ["dfc2023", "--annotations", str(tmp_path / "test.json")]
    words += ["--predictions", str(tmp_path / "predictions.json")]
    load_tool("evaluate").main([*words, "--write-submission", str(tmp_path / "s.zip")])
    lines = capsys.readouterr().out.splitlines()
    assert "wrote 4 tiles and 0 instances" in lines[0] and "gives no score" in lines[1]
    assert lines[-1].startswith("not scored")
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert sorted(archive.namelist()) == [
            *(f"height/P_000{n}.tif" for n in (1, 2, 3, 4)),
            "seg_results.json",
        ]
    with pytest.raises(InputError, match="expected a COCO file with a list 'annotations'"):
        load_tool("evaluate").main(words)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give either --submission, a zip, or --predictions"),
        (["--submission", "a.zip", "--predictions", "p.json"], "give either --submission"),
        (
            ["--submission", "a.zip", "--write-submission", "b.zip"],
            "--write-submission makes a zip of --predictions",
        ),
        (["--submission", "missing.zip"], "missing.zip: no such file"),
    ],
)
def test_options_of_the_contest_that_do_not_go_together_are_refused(track2, load_tool, more, message):
    with pytest.raises(InputError, match=message), cli.own_options():
        load_tool("evaluate").main([*track2, *more])
