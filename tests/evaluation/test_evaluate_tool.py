"""tools/evaluate.py: what it prints, writes and refuses."""

import json
import subprocess
import sys
from pathlib import Path

from fusiondet.buildings import Building, Tile
from fusiondet.data.bands import BandSpec
from fusiondet.data.coco import Dataset, encode_rle, polygon_to_mask, prediction_record, read_coco, write_coco
from fusiondet.errors import InputError
from fusiondet.evaluation.dense import DenseCounts, DenseScores
from fusiondet.evaluation.table import metrics_table
from fusiondet.export import write_buildings
from fusiondet.files import write_json
from tests.tiny_city import write_raster

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
    with pytest.raises(InputError, match="--overwrite"):
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


def test_undefined_numbers_are_printed_as_a_dash():
    from fusiondet.evaluation.instances import evaluate_instances

    metrics = evaluate_instances(Dataset([Tile("a.tif", 64, 64, 0.5)], BandSpec()), [])
    text = metrics_table(metrics)
    assert text.splitlines()[1].split() == ["bbox", "-", "-", "-"]
    assert "MAE - m" in text and "None" not in text


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
    with pytest.raises(InputError, match="maps and no instances.*--metrics dense"):
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
