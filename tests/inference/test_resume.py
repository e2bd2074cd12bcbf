"""Runs that are killed: what was finished is taken up, and the result is that of a run which was not."""

import errno
import multiprocessing
import os
import signal

from fusiondet.errors import InputError
from fusiondet.export import read_buildings
from fusiondet.inference import parts, pipeline, plan, predict_to_file
from fusiondet.inference.parts import PartStore, parts_folder

import numpy as np
import pytest
import rasterio

OPTIONS = {"window_px": 100, "overlap_px": 40}
N_WINDOWS = 48  # of 500 x 400 px


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of four windows, so that small scenes have many."""
    for module in (plan, pipeline):
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
    finished = len(list(parts_folder(tmp_path / "b.parquet").glob("block-*.parquet")))
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
    run("b.gpkg", height_path=tmp_path / "b.tif", resume=True)
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
    with pytest.raises(
        InputError, match=r"\.b\.fgb\.parts: an earlier run left \d finished blocks.*--resume"
    ):
        run("b.fgb")
    run("b.fgb", overwrite=True)
    assert len(finder.model.batches) == N_WINDOWS and not parts_folder(tmp_path / "b.fgb").exists()


def test_other_options_do_not_go_on(run, tmp_path):
    run("b.fgb", 21)
    with pytest.raises(InputError, match="follow from something else .overlap_px was 40, is 50"):
        run("b.fgb", resume=True, overlap_px=50)
    (tmp_path / "rgb.tif").touch()
    with pytest.raises(InputError, match="images was .*rgb.tif"):
        run("b.fgb", resume=True)


def test_a_damaged_part_is_made_again(run, finder, tmp_path):
    run("whole.fgb")
    run("b.fgb", 40)
    first, second, *_ = sorted(parts_folder(tmp_path / "b.fgb").glob("block-*.parquet"))
    first.write_bytes(first.read_bytes()[:-20])
    second.write_text("nothing of the kind")
    run("b.fgb", resume=True)
    assert (tmp_path / "b.fgb").read_bytes() == (tmp_path / "whole.fgb").read_bytes()


def test_a_full_disk_leaves_what_is_finished_and_no_layer(run, finder, tmp_path, monkeypatch):
    real, calls = parts.save_part, []

    def full(folder, block, results):
        calls.append(block)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        real(folder, block, results)

    monkeypatch.setattr(parts, "save_part", full)
    with pytest.raises(OSError, match="No space left"):
        run("b.fgb")
    assert visible(tmp_path) == ["rgb.tif"]
    assert len(list(parts_folder(tmp_path / "b.fgb").glob("block-*"))) == 2
    run("b.fgb", resume=True)
    assert visible(tmp_path) == ["b.fgb", "rgb.tif"]


def test_a_run_that_fails_at_once_leaves_nothing(run, finder, tmp_path):
    def fail(inputs, do_postprocess):
        raise InputError("no such thing")

    finder.model.outputs = fail
    with pytest.raises(InputError, match="no such thing"):
        run("b.fgb")
    assert [p.name for p in tmp_path.iterdir()] == ["rgb.tif"]


def test_parts_keep_every_bit(finder, write_scene, city, tmp_path):
    made = plan.plan_scene(finder, write_scene(city), **OPTIONS, sources=("instances",))
    results = list(pipeline.predict_windows(finder, made, range(4)))
    results[2].unreadable_px = 7
    store = PartStore(tmp_path / "p", {"a": 1}, False, False)
    store.save(0, results)
    store.save_bytes(1, *parts.part_bytes(results))
    for block in (0, 1):
        for kept, was in zip(store.load(block), results, strict=True):
            assert (kept.index, kept.has_data, kept.unreadable_px) == (
                was.index,
                was.has_data,
                was.unreadable_px,
            )
            assert kept.buildings == was.buildings
            np.testing.assert_array_equal(kept.layers["instances"], was.layers["instances"])
    assert store.load(2) is None
