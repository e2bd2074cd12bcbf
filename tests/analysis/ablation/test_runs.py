"""An ablation from end to end: what is finished stays, what was killed goes on, what changed is refused."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import fusiondet.analysis.ablation
from fusiondet.analysis.ablation import read_spec, run_ablation, runs
from fusiondet.config_loading import config_from_yaml_text
from fusiondet.data import catalog
from fusiondet.errors import InputError
from fusiondet.evaluation.dense import dense_counts, tile_truth
from fusiondet.evaluation.instances import evaluate_instances
from fusiondet.evaluation.resampling import TileScores
from fusiondet.files import atomic_path, read_json, write_json
from fusiondet.io.bands import BandSpec
from tests.support.ablation_cases import CONDITIONS, ROWS
from tests.support.messages import raises_naming
from tests.support.processes import changes_of, contents, die_at_change
from tests.support.tiny_city import ROOT, write_split

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def finished(write_spec, place):
    """(specification, directory) of an ablation that was run without interruption."""
    spec = read_spec(write_spec(name="whole.yaml"))
    run_ablation(spec, place / "whole")
    return spec, place / "whole"


def times(out: Path) -> dict:
    """Modification time of everything under `out` that a finished run is made of."""
    return {p: p.stat().st_mtime_ns for p in out.glob("runs/**/*") if p.is_file()}


def scores(out: Path) -> dict:
    """results.json without what differs from run to run: times, hashes of files that hold their own path."""
    found = read_json(out / "results.json")
    for row in found["rows"].values():
        for seed in row["seeds"].values():
            del seed["training"]["weights"], seed["training"]["finished"]
    costs = {name: (c["parameters"], c["gflops"]) for name, c in found.pop("costs")["rows"].items()}
    return {**found, "spec": "", "costs": costs}


def test_results_hold_every_cell_that_means_something(finished):
    spec, out = finished
    found = read_json(out / "results.json")
    cells = [(row, column) for row in ("rgb", "early") for column in ("clear", "no_sar")]
    in_table = {(x["row"], x["column"]) for x in found["table"]}
    assert in_table == {*cells} - {("rgb", "no_sar")} and found["missing"] == []
    for row, column in in_table:
        seed = found["rows"][row]["seeds"]["1"]
        own = runs.Run(row, 1, out / "runs" / row / "seed1", "", {}, ()).folder / column
        again = evaluate_instances(Path(spec.conditions[column].dataset), own / "predictions.json", 12)
        for key in ("segm/AP50", "joint/AP50", "height/mae_m"):
            assert (
                seed["scores"][column][key]
                == pytest.approx(again[key])
                == pytest.approx(seed["metrics"][column][key])
            )
    costs = found["costs"]["rows"]
    assert costs["early"]["parameters"] - costs["rgb"]["parameters"] == 8 * 7 * 7  # one band more in the stem
    assert costs["early"]["step_ratio"]["median"] == 1.0 and costs["rgb"]["inference_s"] > 0
    text = (out / "results.md").read_text()
    assert text.count("| RGB only |") == 4 and "best segm/AP50 on" in text
    assert (out / "results.png").stat().st_size > 10_000 and (out / "results.csv").stat().st_size > 500


def test_the_best_on_val_is_kept_without_the_state_of_the_optimizer(finished):
    _, out = finished
    folder = out / "runs" / "rgb" / "seed1"
    assert [p.name for p in folder.glob("*.pth")] == ["model.pth"]
    facts = read_json(folder / "trained.json")
    assert (facts["chosen"], facts["metric"], facts["iteration"]) == ("model_best.pth", "segm/AP50", 1)
    assert "optimizer" not in runs.read_checkpoint(folder / "model.pth")


def test_a_second_call_does_nothing_again(finished, capsys):
    spec, out = finished
    before, table = times(out), (out / "results.md").read_text()
    run_ablation(spec, out)
    assert times(out) == before and (out / "results.md").read_text() == table
    assert "5 of 5 parts were finished before" in capsys.readouterr().out


def children(pid: int) -> list[int]:
    """Processes below `pid`, its own children's children too."""
    own = [int(c) for f in Path(f"/proc/{pid}/task").glob("*/children") for c in f.read_text().split()]
    return own + [below for child in own for below in children(child)]


def alive(pid: int) -> bool:
    """Whether process `pid` runs: there, and no zombie that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_killed_after_the_first_row_it_goes_on_and_ends_the_same(finished, write_spec, place):
    path, out = write_spec(name="killed.yaml"), place / "killed"
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(ROOT / "tools" / "ablate.py"),
        str(path),
        "--out",
        str(out),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "rgb, seed 1: clear" in line:
                break
        # In the middle of the second training.
        while process.poll() is None and not list(out.glob("runs/early/seed1/log.txt")):
            time.sleep(0.01)
        below = children(process.pid)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in below) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert below and not any(alive(pid) for pid in below), "a training outlived the ablation"
    before = times(out / "runs" / "rgb") or {
        p: p.stat().st_mtime_ns for p in (out / "runs" / "rgb").rglob("*.json")
    }
    assert (
        not (out / "results.json").exists()
        and not (out / "runs" / "early" / "seed1" / "trained.json").exists()
    )
    run_ablation(read_spec(path), out)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert scores(out) == scores(finished[1])


def test_networks_with_and_without_instances_meet_in_one_table(write_spec, place):
    rows = """
  early: {}
  dense:
    label: Maps alone
    overrides:
      MODEL.META_ARCHITECTURE: FusionDense
      MODEL.MASK_ON: False
      MODEL.HEIGHT_ON: False
      MODEL.DENSE_HEADS.NAMES: [Footprint, DenseHeight]
      MODEL.DENSE_HEADS.CONV_DIM: 8
      TEST.BEST_METRIC: dense/mae_m_all
"""
    claim = "{metric: %s, from: [early, clear], to: [dense, clear]}"
    maps = ("dense/dice", "dense/mae_m_building")
    keys = {"metrics": f"[segm/AP50, {', '.join(maps)}]", "name": "maps.yaml"}
    keys["galleries"] = "[{title: 'Both <of them>', rows: [early, dense], tiles: 2}]"
    keys["claims"] = f"[{', '.join(claim % metric for metric in ('segm/AP50', *maps))}]"
    run_ablation(read_spec(write_spec(rows, "\n  clear: {dataset: TEST}", **keys)), place / "maps")
    found, folder = read_json(place / "maps" / "results.json"), place / "maps" / "runs" / "dense" / "seed1"
    means = {(line["row"], line["metric"]): line["mean"] for line in found["table"]}
    assert means["early", "segm/AP50"] is not None and means["dense", "segm/AP50"] is None
    own = read_json(folder / "clear" / "metrics.json")
    for metric in maps:
        # An untrained detector may have nothing to paint; a map says something everywhere.
        assert means["dense", metric] == pytest.approx(own[metric])
    assert [c["verdict"] for c in found["claims"]][0] == "missing"
    assert own["dense/mae_m_building"] > 0 and "segm/AP50" not in own
    assert (
        read_json(folder / "trained.json")["metric"]
        == found["rows"]["dense"]["best_metric"]
        == "dense/mae_m_all"
    )
    assert {"early", "dense"} == found["costs"]["rows"].keys() and found["missing"] == []
    assert "| Maps alone | – | " in (place / "maps" / "results.md").read_text()
    check_gallery(place / "maps", place)


def check_gallery(out, place):
    """Pictures of both networks on the page, from maps that are those of the evaluation and are not made again."""
    page = (out / "results.html").read_text(encoding="utf-8")
    assert "<h2>Both &lt;of them&gt;</h2>" in page and "<script" not in page and "http" not in page
    assert page.count("data:image/png;base64,") == 2
    spec, files = read_spec(place / "maps.yaml"), sorted(out.glob("runs/*/seed1/maps.npz"))
    assert len(files) == 2
    before = [f.stat().st_mtime_ns for f in files]
    run_ablation(spec, out)
    assert [f.stat().st_mtime_ns for f in files] == before
    # Heights of the dense network are those that were scored, tile by tile.
    counts = read_json(out / "runs" / "dense" / "seed1" / "clear" / "dense_scores.json")["tiles"]
    truth = {x["image_id"]: x["parts"]["all"] for x in counts}
    split = catalog.load_split(str(place / "annotations" / "test.json"))
    with np.load(out / "runs" / "dense" / "seed1" / "maps.npz") as maps:
        assert sorted(maps.files) == ["footprint_0", "footprint_1", "height_0", "height_1", "key"]
        for i, tile in enumerate(split.tiles):
            label_m, footprint = tile_truth(split, tile)
            again = dense_counts(maps[f"height_{i}"], label_m, maps[f"footprint_{i}"], footprint)
            assert again.tp == truth[tile.id]["tp"] and again.fp == truth[tile.id]["fp"]
            assert again.all_abs_m == pytest.approx(truth[tile.id]["all_abs_m"], rel=1e-4)
    path = files[0]
    with np.load(path) as maps:
        stale = {name: maps[name] for name in maps.files} | {"key": "of other weights"}
    np.savez_compressed(path, **stale)
    run_ablation(spec, out)
    with np.load(path) as maps:
        assert str(maps["key"]) != "of other weights", "maps of other weights are made anew"


def test_scores_that_came_later_are_computed_from_the_predictions(finished, write_spec, place):
    _, out = finished
    later = shutil.copytree(out, place / "later")
    for path in later.glob("runs/*/*/*/scores.json"):
        content = read_json(path)
        for column in content["columns"].values():
            del column["score"]["dense/dice"], column["drawn"]["dense/dice"]
        write_json(content, path)
    assert not any(run.parts_left() for run in runs.plan(finished[0], later))
    asked = read_spec(write_spec(name="later.yaml", metrics="[segm/AP50, dense/dice]"))
    rgb, early = runs.plan(asked, later)
    assert (rgb.parts_left(), early.parts_left()) == (["clear"], ["clear", "no_sar"])
    before = times(later)
    assert list(runs.work(rgb)) == ["clear"] and rgb.parts_left() == []
    folder = rgb.folder / "clear"
    assert [p for p, time_ns in times(later).items() if before[p] != time_ns] == [folder / "scores.json"]
    assert read_json(folder / "scores.json") == read_json(
        out / "runs" / "rgb" / "seed1" / "clear" / "scores.json"
    )


def test_changed_configs_are_refused_and_nothing_is_touched(finished, write_spec):
    _, out = finished
    before = times(out)
    for spec, message in (
        (
            read_spec(write_spec(name="more.yaml", steps=3)),
            r"row rgb was begun with another SOLVER.MAX_ITER: 2 -> 3\.",
        ),
        (
            read_spec(
                write_spec(
                    ROWS.replace("early: {}", "early: {overrides: {MODEL.MASK_ON: False}}"), name="m.yaml"
                )
            ),
            r"row early was begun with another MODEL.MASK_ON: True -> False",
        ),
        (
            read_spec(write_spec(name="x.yaml"), ["SOLVER.BASE_LR", "0.1"]),
            "row rgb.*SOLVER.BASE_LR: 0.0004 -> 0.1",
        ),
    ):
        with pytest.raises(InputError, match=message) as raised:
            run_ablation(spec, out)
        assert "`overwrite=True`" in str(raised.value) and "another `out`" in str(raised.value)
    assert times(out) == before


def test_changed_training_data_are_refused(finished, write_spec, place):
    _, out = finished
    train = place / "annotations" / "train.json"
    content = train.read_text()
    try:
        train.write_text(content.replace("HH", "VV"))
        with pytest.raises(
            InputError, match=r"row rgb was begun with another train: .*train.json \(\w{8}\) -> .*json"
        ):
            run_ablation(read_spec(write_spec(name="data.yaml")), out)
    finally:
        train.write_text(content)


def test_overwrite_trains_the_changed_row_anew_and_a_new_condition_scores_old_weights(
    finished, write_spec, place
):
    out = place / "copy"
    shutil.copytree(finished[1], out)
    rows = ROWS.replace("early: {}", "early: {overrides: {SOLVER.BASE_LR: 0.001}}")
    conditions = CONDITIONS + "  again: {dataset: TEST}\n"
    spec = read_spec(write_spec(rows, conditions, name="copy.yaml"))
    old = read_json(out / "runs" / "early" / "seed1" / "trained.json")
    assert "early, seed 1: changed, SOLVER.BASE_LR: 0.0004 -> 0.001" in fusiondet.analysis.ablation.describe(
        spec, out
    )
    run_ablation(spec, out, overwrite=True)
    assert read_json(out / "runs" / "early" / "seed1" / "trained.json")["weights"] != old["weights"]
    same = "runs/rgb/seed1/trained.json"
    assert (out / same).read_text() == (finished[1] / same).read_text()
    found = read_json(out / "results.json")["rows"]["rgb"]["seeds"]["1"]["scores"]
    assert found["again"] == found["clear"]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("{dataset: OTHER}", r"row early: data set .*vv.json lacks band HH: it has .*VV"),
        (
            "{dataset: TEST, regions: [under_cloud]}",
            "row rgb: region under_cloud: no tile of .* cloud raster",
        ),
    ],
)
def test_data_that_a_condition_cannot_use_are_found_before_anything_is_trained(
    write_spec, place, tmp_path, condition, message
):
    vv = write_split(place, "vv", (1,), bands=BandSpec(sar=("VV",), sar_scale="db"))
    conditions = f"{CONDITIONS}  other: {condition.replace('OTHER', str(vv))}\n"
    with pytest.raises(InputError, match=message):
        run_ablation(read_spec(write_spec(conditions=conditions, name="cannot.yaml")), tmp_path)
    assert not (tmp_path / "runs").exists()


def test_rows_alone_leave_the_others_for_later(write_spec, place, finished):
    out = place / "part"
    shutil.copytree(finished[1], out)
    shutil.rmtree(out / "runs" / "early")
    spec = read_spec(write_spec(name="part.yaml"))
    with raises_naming("'rbg'", "'rgb'"):
        run_ablation(spec, out, rows=["rbg"])
    with raises_naming("'rbg'"):
        fusiondet.analysis.ablation.describe(spec, out, rows=["rbg"])
    run_ablation(spec, out, rows=["rgb"])
    found = read_json(out / "results.json")
    assert found["missing"] == ["early, seed 1: training, clear, no_sar"]
    assert found["costs"]["rows"].keys() == {"rgb"} and {line["row"] for line in found["table"]} == {"rgb"}
    assert "**Not finished**: early, seed 1" in (out / "results.md").read_text()
    lines = fusiondet.analysis.ablation.describe(spec, out).splitlines()
    assert lines == [
        "rgb, seed 1: finished",
        "early, seed 1: left: training, clear, no_sar",
        "3 parts left of 5",
    ]


def test_what_was_begun_with_other_settings_is_not_in_the_table(finished, write_spec, place):
    out = place / "other"
    shutil.copytree(finished[1], out)
    rows = ROWS.replace("early: {}", "early: {overrides: {SOLVER.BASE_LR: 0.002}}")
    run_ablation(read_spec(write_spec(rows, name="other.yaml", cost_rounds=0)), out, rows=["rgb"])
    found = read_json(out / "results.json")
    assert found["missing"] == ["early, seed 1: was begun with other settings"]
    assert {line["row"] for line in found["table"]} == {"rgb"} and found["costs"] is None


# ---- Directories and data --------------------------------------------------------------------------------


def test_a_directory_of_something_else_is_not_written_to(finished, tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(InputError, match="was not made by this tool"):
        run_ablation(finished[0], tmp_path)


def test_one_at_a_time_in_a_directory(finished):
    spec, out = finished
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run"):
            run_ablation(spec, out)
    with raises_naming("jobs=0", "1"):
        run_ablation(spec, out, jobs=0)


@pytest.fixture
def city(write_spec, place, tmp_path, monkeypatch):
    """(path of a specification with data of its own, directory, list of the words that data were made by)."""
    calls = []

    def prepare(words, parser):
        calls.append(words)
        folder = Path(words[words.index("--out") + 1])
        shutil.copytree(place / "annotations", folder / "annotations", dirs_exist_ok=True)

    monkeypatch.setattr(fusiondet.analysis.ablation, "prepare", prepare)
    (tmp_path / "out").mkdir()
    write_json({"data": {}}, tmp_path / "out" / fusiondet.analysis.ablation.MARK)
    return (
        partial(write_spec, name="city.yaml", train="[abl_train]", val="[abl_val]"),
        tmp_path / "out",
        calls,
    )


def test_data_are_made_once_and_their_names_known(city):
    write, out, calls = city
    spec = read_spec(write(data="{abl: [synthetic, --seed, 3]}"))
    for _ in range(2):
        fusiondet.analysis.ablation.make_data(spec, out)
    assert calls == [["synthetic", "--seed", "3", "--out", str(out / "datasets" / "abl"), "--overwrite"]]
    assert runs.dataset_file(spec, out, "abl_train") == str(
        out / "datasets" / "abl" / "annotations" / "train.json"
    )
    with raises_naming("'abl_tset'", "'tset'", "test, train, val"):
        runs.dataset_file(spec, out, "abl_tset")


def test_data_made_by_another_command_are_refused(city):
    write, out, calls = city
    fusiondet.analysis.ablation.make_data(read_spec(write(data="{abl: [synthetic, --seed, 3]}")), out)
    spec = read_spec(write(data="{abl: [synthetic, --seed, 4]}"))
    with raises_naming("abl", "'synthetic --seed 3'", "city.yaml", "--seed 4"):
        fusiondet.analysis.ablation.make_data(spec, out)
    assert fusiondet.analysis.ablation.describe(spec, out).startswith("data set abl: made by another command")
    fusiondet.analysis.ablation.make_data(spec, out, overwrite=True)
    assert len(calls) == 2


def test_data_half_replaced_when_killed_count_as_not_made(city, monkeypatch):
    write, out, calls = city
    before = read_spec(write(data="{abl: [synthetic, --seed, 3]}"))
    fusiondet.analysis.ablation.make_data(before, out)
    made = fusiondet.analysis.ablation.prepare

    def killed(words, parser):
        made(words, parser)
        raise KeyboardInterrupt

    monkeypatch.setattr(fusiondet.analysis.ablation, "prepare", killed)
    with pytest.raises(KeyboardInterrupt):
        fusiondet.analysis.ablation.make_data(
            read_spec(write(data="{abl: [synthetic, --seed, 4]}")), out, overwrite=True
        )
    monkeypatch.setattr(fusiondet.analysis.ablation, "prepare", made)
    fusiondet.analysis.ablation.make_data(before, out)
    assert [words[2] for words in calls] == ["3", "4", "3"]


def test_a_wrong_command_for_data_names_the_file(write_spec, tmp_path):
    (tmp_path / fusiondet.analysis.ablation.MARK).write_text('{"data": {}}')
    for words, message in (
        ("[moon]", "invalid choice: 'moon'"),
        ("[synthetic, --preset, x]", "unknown preset 'x'"),
        ("[synthetic, --szie, 3]", "unrecognized arguments: --szie 3"),
    ):
        path = write_spec(name="moon.yaml", data=f"{{abl: {words}}}", train="[abl_train]")
        with pytest.raises(InputError, match=f"moon.yaml: data: abl: .*{message}"):
            fusiondet.analysis.ablation.make_data(read_spec(path), tmp_path)


# ---- Processes and files ---------------------------------------------------------------------------------


def count(n):
    """A job: n messages."""
    for i in range(n):
        print("working")
        yield str(i)


def fail(error):
    """A job that raises after its first message."""
    yield "begun"
    raise error


def die():
    """A job whose process ends without a word."""
    yield from ()
    os._exit(3)


def test_jobs_report_and_fail_apart(tmp_path):
    told = []
    jobs = {
        "good": (partial(count, 3), tmp_path / "good"),
        "bad input": (partial(fail, InputError("no such band")), tmp_path / "bad"),
        "broken": (partial(fail, ZeroDivisionError("oops")), tmp_path / "broken"),
        "dead": (die, tmp_path / "dead"),
        "last": (partial(count, 1), tmp_path / "last"),
    }
    failures = {f.name: f for f in runs.in_processes(jobs, 2, lambda *message: told.append(message))}
    assert [m for name, m in told if name == "good"] == ["0", "1", "2"] and ("last", "0") in told
    assert failures.keys() == {"bad input", "broken", "dead"}
    assert failures["bad input"].bad_input and failures["bad input"].message == "no such band"
    assert "ZeroDivisionError: oops" in failures["broken"].message and not failures["broken"].bad_input
    assert "status 3" in failures["dead"].message
    assert (tmp_path / "good" / "console.txt").read_text() == "working\n" * 3


def test_counts_of_a_tile_go_into_a_file():
    tile = TileScores(
        *(7, np.array([0.9, 0.25]), np.array([True, False]), np.array([False, False])),
        *(np.array([False, False]), np.array([False, True]), 3, 2),
        *(np.array([[np.nan, 8.0, 7.0, 9.5]]), np.array([5, 1, 2])),
    )
    plain = json.loads(json.dumps(runs._plain(tile), allow_nan=False))
    assert plain["heights_m"] == [[None, 8.0, 7.0, 9.5]] and plain["true"] == [True, False]
    assert (plain["image_id"], plain["scores"], plain["n_truth"], plain["pixels"]) == (
        7,
        [0.9, 0.25],
        3,
        [5, 1, 2],
    )


class TestKilledAtAnyChange:
    """The parts of a run, with stand-ins for training and prediction, killed and done again by the next call."""

    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        """work(folder) -> a run with a training and two conditions."""

        def train(cfg, args, figures):
            folder = Path(cfg.OUTPUT_DIR)
            for name in ("model_0000001", "model_best", "model_final"):
                with atomic_path(folder / f"{name}.pth") as temporary:
                    content = {
                        "model": {"w": torch.zeros(3)},
                        "config_yaml": "",
                        "iteration": 2,
                        "fusiondet": {},
                    }
                    torch.save(content, temporary)

        def test(cfg, model, figures):
            written = Path(cfg.OUTPUT_DIR) / "inference" / catalog.folder_name("set.json")
            written.mkdir(parents=True)
            write_json([1, 2], written / "predictions.json")
            write_json({"AP": 3}, written / "metrics.json")

        cfg = config_from_yaml_text("", "test")
        monkeypatch.setattr(runs.launch, "prepare", lambda args: cfg)
        monkeypatch.setattr(runs.launch, "work", train)
        monkeypatch.setattr(runs, "load_trained", lambda run, overrides: (cfg, None))
        monkeypatch.setattr(runs.FusionTrainer, "test", test)
        monkeypatch.setattr(runs, "_columns", lambda *_: {"clear": {"score": {"AP": 3}}})
        monkeypatch.setattr(runs.time, "strftime", lambda *_: "then")

        def work(folder):
            cfg.OUTPUT_DIR = str(folder)
            folder.mkdir(parents=True, exist_ok=True)
            scorings = tuple(
                runs.Scoring(name, "set.json", (), (), ("AP",), {"dataset": "1"})
                for name in ("clear", "cloudy")
            )
            return list(runs.work(runs.Run("row", 1, folder, "text", {"key": 1}, scorings)))

        return work

    @pytest.mark.parametrize("kills", [30, pytest.param(1000, marks=pytest.mark.slow)])
    def test_the_bytes_are_those_of_a_run_that_nobody_disturbs(self, run, tmp_path, kills):
        assert run(tmp_path / "straight") == ["training", "clear", "cloudy"]
        straight = contents(tmp_path / "straight")
        assert {"model.pth", "trained.json", "clear/scores.json", "cloudy/predictions.json"} <= set(straight)
        count = changes_of(lambda: run(tmp_path / "counted"))
        assert count >= 30
        for number in range(1, count + 1, max(1, count // kills)):
            out = tmp_path / f"out{number}"
            assert die_at_change(number, lambda: run(out))  # noqa: B023
            run(out)
            assert contents(out) == straight, f"killed at change {number} of {count}"
