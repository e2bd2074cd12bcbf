"""Runs that are killed: what was finished is taken up, and the result is that of a run which was not."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

from fusiondet.errors import InputError
from fusiondet.files import parts_folder
from fusiondet.inference import blocks, pipeline, plan, predict_to_file
from fusiondet.io.layers import read_buildings
from fusiondet.locks import sole_writer
from tests.support.processes import changes_of, contents, die_at_change
from tests.support.scene_cases import plain_report

import numpy as np
import pytest
import rasterio

OPTIONS = {"window_px": 100, "overlap_px": 40}
N_WINDOWS = 48  # of 500 x 400 px


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of four windows, so that small scenes have many."""
    for module in (plan, pipeline, blocks):
        monkeypatch.setattr(module, "BLOCK_WINDOWS", 4)


@pytest.fixture
def run(finder, write_scene, city, tmp_path):
    """run(out, kill_after=None, **options): predict the city, in a process that dies after so many windows."""
    path = write_scene(city)

    def predict(out, **options):
        return predict_to_file(
            finder.weights, path, None, tmp_path / out, predictor=finder, **{**OPTIONS, **options}
        )

    def call(out, kill_after=None, **options):
        if kill_after is None:
            finder.model.batches.clear()
            return predict(out, **options)
        process = multiprocessing.get_context("fork").Process(
            target=_die, args=(finder, kill_after, predict, out, options)
        )
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / out).exists(), "nothing half-written"
        return None

    return call


def _die(finder, kill_after, predict, out, options):
    real = finder.model.outputs

    def outputs(inputs, do_postprocess):
        if len(finder.model.batches) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(inputs, do_postprocess)

    finder.model.batches.clear()
    finder.model.outputs = outputs
    predict(out, **options)


def visible(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


@pytest.mark.parametrize("kill_after", [21, 40])
def test_a_killed_run_goes_on_with_the_same_bytes(run, finder, tmp_path, kill_after):
    run("whole.parquet")
    assert len(finder.model.batches) == N_WINDOWS
    run("b.parquet", kill_after)
    finished = len(list(parts_folder(tmp_path / "b.parquet").glob("pieces/block-*.parquet")))
    assert 0 < finished <= kill_after // 4
    result = run("b.parquet", resume=True)
    assert len(finder.model.batches) == N_WINDOWS - 4 * finished, "only what was not finished is predicted"
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert result.count == len(read_buildings(tmp_path / "whole.parquet")[0]) > 50
    assert not parts_folder(tmp_path / "b.parquet").exists()


def test_a_run_may_be_killed_twice_and_its_heights_come_back_too(run, tmp_path):
    run("whole.gpkg", height_path=tmp_path / "whole.tif")
    run("b.gpkg", 17, height_path=tmp_path / "b.tif")
    run("b.gpkg", 17, height_path=tmp_path / "b.tif", resume=True)
    hidden = sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("."))
    assert hidden == [".b.gpkg.parts", ".b.tif.parts"], "all that it left is in there"
    assert len(list(parts_folder(tmp_path / "b.tif").glob(".b.tif.*"))) == 1, "not one for each run"
    run("b.gpkg", height_path=tmp_path / "b.tif", resume=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "b.gpkg",
        "b.tif",
        "rgb.tif",
        "whole.gpkg",
        "whole.tif",
    ]
    layers = [read_buildings(tmp_path / name) for name in ("whole.gpkg", "b.gpkg")]
    assert layers[0] == layers[1]
    with rasterio.open(tmp_path / "whole.tif") as whole, rasterio.open(tmp_path / "b.tif") as resumed:
        np.testing.assert_array_equal(whole.read(), resumed.read())
        assert whole.read().max() > 16


def test_resume_without_a_beginning_begins(run, tmp_path):
    run("b.fgb", resume=True)
    run("whole.fgb")
    assert (tmp_path / "b.fgb").read_bytes() == (tmp_path / "whole.fgb").read_bytes()


def test_what_an_earlier_run_left_is_not_lost_by_accident(run, finder, tmp_path):
    run("b.fgb", 21)
    with pytest.raises(InputError, match=r"\.b\.fgb\.parts: .*\d finished.*`resume"):
        run("b.fgb")
    run("b.fgb", overwrite=True)
    assert len(finder.model.batches) == N_WINDOWS and not parts_folder(tmp_path / "b.fgb").exists()


def test_other_options_do_not_go_on(run, tmp_path):
    run("b.fgb", 21)
    with pytest.raises(InputError, match="overlap_px was 40, is 50"):
        run("b.fgb", resume=True, overlap_px=50)
    (tmp_path / "rgb.tif").touch()
    with pytest.raises(InputError, match="images was .*rgb.tif"):
        run("b.fgb", resume=True)


def test_a_damaged_part_is_made_again(run, finder, tmp_path):
    run("whole.fgb")
    run("b.fgb", 40)
    first, second, *_ = sorted(parts_folder(tmp_path / "b.fgb").glob("pieces/block-*.parquet"))
    first.write_bytes(first.read_bytes()[:-20])
    second.write_text("nothing of the kind")
    run("b.fgb", resume=True)
    assert (tmp_path / "b.fgb").read_bytes() == (tmp_path / "whole.fgb").read_bytes()


def test_a_full_disk_leaves_what_is_finished_and_no_layer(run, finder, tmp_path, monkeypatch):
    real, calls = blocks.save_block, []

    def full(store, block, *content):
        calls.append(block)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(store.folder))
        real(store, block, *content)

    monkeypatch.setattr(blocks, "save_block", full)
    with pytest.raises(OSError, match="No space left"):
        run("b.fgb")
    assert visible(tmp_path) == ["rgb.tif"]
    assert len(list(parts_folder(tmp_path / "b.fgb").glob("pieces/block-*"))) == 2
    run("b.fgb", resume=True)
    assert visible(tmp_path) == ["b.fgb", "rgb.tif"]


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(KiB) -> a folder on a file system of that size."""
    made = []

    def mount(size_kib):
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a file system")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


# KiB: for some parts; for all of them and not for the raster of heights; for these and not for the layer.
@pytest.mark.parametrize("size_kib", [60, 700])
@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_a_disk_that_is_really_full(run, tmp_path, small_disk, size_kib, suffix):
    disk = small_disk(size_kib)
    out, heights = f"disk/b{suffix}", disk / "b.tif"
    with pytest.raises(OSError) as caught:
        run(out, height_path=heights)
    assert caught.value.filename and str(disk) in str(caught.value.filename)
    assert not visible(disk)
    assert not list(disk.glob("*/.*")), "nothing half-written is left to fill it"
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    result = run(out, height_path=heights, resume=True)
    assert result.count > 50 and sorted(p.name for p in disk.iterdir()) == [f"b{suffix}", "b.tif"]


def test_an_output_that_cannot_be_made_is_found_before_the_prediction(run, finder):
    for options in ({}, {"height_path": "/proc/h.tif"}, {"report": "/proc/r.html"}):
        with pytest.raises(InputError, match="/proc/.*: cannot be made in /proc"):
            run("b.gpkg" if options else "/proc/b.gpkg", **options)
    assert finder.model.batches == []


def test_notes_are_told_before_the_prediction_and_once(run, finder, tmp_path):
    told = []

    def tell(notes):
        told.append((len(finder.model.batches), notes))

    result = run("b.gpkg", tell=tell, window_px=64, overlap_px=None, style=True)
    (before, first), (after, rest) = told
    assert before == 0 and after > 0 and first + rest == result.notes
    assert any("windows of 64 px overlap by" in note for note in first)
    (tmp_path / "b.gpkg").unlink()
    notes = run("b.gpkg", style=True).notes
    assert any("b.qml: is there already and stays" in note for note in notes)


def test_a_run_that_fails_at_once_leaves_nothing(run, finder, tmp_path):
    def fail(inputs, do_postprocess):
        raise InputError("no such thing")

    finder.model.outputs = fail
    with pytest.raises(InputError, match="no such thing"):
        run("b.fgb")
    assert [p.name for p in tmp_path.iterdir()] == ["rgb.tif"]


class TestSeveralOutputs:
    """A layer, its heights and its report, by runs that are killed at any moment, between two of them too."""

    def options(self, folder):
        outputs = {"height_path": folder / "b.tif", "report": folder / "b.html", "style": True}
        return {**outputs, "write_report": plain_report}

    @pytest.fixture
    def straight(self, run, tmp_path):
        (tmp_path / "straight").mkdir()
        run("straight/b.parquet", **self.options(tmp_path / "straight"))
        found = contents(tmp_path / "straight")
        assert sorted(found) == ["b.html", "b.parquet", "b.qml", "b.tif"]
        return found

    @pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
    def test_killed_at_every_change_of_the_folder(self, run, straight, tmp_path, kills):
        def begin(folder="out"):
            (tmp_path / folder).mkdir()
            run(f"{folder}/b.parquet", **self.options(tmp_path / folder))

        count = changes_of(lambda: begin("counted"))
        # The last ones are those that give the outputs their names, and that tidy up.
        numbers = [*range(2, count - 40, max(1, count // kills)), *range(max(2, count - 40), count + 1)]
        for number in numbers if kills > 12 else numbers[:: max(1, len(numbers) // kills)] + numbers[-6:]:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            assert die_at_change(number, begin)
            try:
                run("out/b.parquet", resume=True, **self.options(tmp_path / "out"))
            except InputError as error:  # all was done
                assert "already exists" in str(error) and number > count - 12
            assert contents(tmp_path / "out") == straight, f"killed at change {number} of {count}"
            assert [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")] == []

    def killed_between(self, run, tmp_path):
        """A run that is killed when its raster is there, and its layer is not."""
        (tmp_path / "out").mkdir()

        def begin():
            sys.addaudithook(die)
            run("out/b.parquet", **self.options(tmp_path / "out"))

        def die(event, args):
            if event == "os.rename" and str(args[1]).endswith("out/b.parquet"):
                os.kill(os.getpid(), signal.SIGKILL)

        assert die_at_change(10**9, begin)
        assert visible(tmp_path / "out") == ["b.tif"]

    def test_without_resume_what_is_there_is_not_replaced(self, run, tmp_path):
        self.killed_between(run, tmp_path)
        with pytest.raises(InputError, match=r"b\.tif: already exists"):
            run("out/b.parquet", **self.options(tmp_path / "out"))

    def test_what_the_killed_run_has_not_made_is_not_replaced(self, run, tmp_path):
        self.killed_between(run, tmp_path)
        mine = tmp_path / "out" / "mine.tif"
        mine.write_text("mine")
        with pytest.raises(InputError, match=r"mine\.tif: already exists"):
            run("out/b.parquet", resume=True, **{**self.options(tmp_path / "out"), "height_path": mine})
        with pytest.raises(InputError, match="overlap_px was 40, is 50"):
            run("out/b.parquet", resume=True, **{**self.options(tmp_path / "out"), "overlap_px": 50})
        assert visible(tmp_path / "out") == ["b.tif", "mine.tif"] and mine.read_text() == "mine"

    def test_each_output_is_of_one_run(self, run, tmp_path):
        for name in ("b.parquet", "b.tif", "b.html"):
            with sole_writer(tmp_path / name):
                with pytest.raises(InputError, match=rf"{name}: another run .*process {os.getpid()}"):
                    run("b.parquet", **self.options(tmp_path))
            assert visible(tmp_path) == ["rgb.tif"]
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
