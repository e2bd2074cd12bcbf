"""Several processes do what one does, and a process that is lost loses nothing."""

import os
import signal
from collections import Counter, deque
from types import SimpleNamespace

from fusiondet.errors import InputError
from fusiondet.files import parts_folder
from fusiondet.inference import predict_to_file, workers
from fusiondet.inference.parts import PartStore
from fusiondet.inference.pipeline import WindowResult
from fusiondet.inference.scene import gathered_results

import numpy as np
import pytest
import rasterio

OPTIONS = {"window_px": 100, "overlap_px": 40, "score_threshold": 0.0, "device": "cpu"}


@pytest.fixture
def path(write_scene, city):
    """A scene of 40 windows: three blocks."""
    return write_scene(city, height=300, nodata=0)


def test_two_processes_make_the_bytes_of_one_even_if_one_is_killed(path, weights, tmp_path, monkeypatch):
    heights = {"height_path": tmp_path / "one.tif"}
    predict_to_file(weights, path, None, tmp_path / "one.parquet", **heights, **OPTIONS)
    real, killed = workers._answers, []

    def kill_one_that_has_more_to_do(worker):
        answers = real(worker)
        if answers[0] and set(worker.blocks) - set(answers[0]) and not killed:
            killed.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)
        return answers

    monkeypatch.setattr(workers, "_answers", kill_one_that_has_more_to_do)
    heights = {"height_path": tmp_path / "two.tif", "workers": 2}
    result = predict_to_file(weights, path, None, tmp_path / "two.parquet", **heights, **OPTIONS)
    assert killed and result.count > 40
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    with rasterio.open(tmp_path / "one.tif") as one, rasterio.open(tmp_path / "two.tif") as two:
        np.testing.assert_array_equal(one.read(), two.read())
        assert np.nanmax(one.read()) > 0
    assert not parts_folder(tmp_path / "two.parquet").exists()


class TestLosses:
    """Without processes: what is done about a worker that is gone."""

    class Gone:
        def __init__(self, blocks):
            self.blocks, self.process = blocks, self
            self.exitcode = -9

        def join(self):
            pass

    def test_what_it_had_finished_counts_and_the_rest_waits_first(self, tmp_path):
        store = PartStore(tmp_path / "p", {}, False, False)
        store.save(4, [])
        waiting, losses = deque([7]), Counter()
        assert list(workers._take_back(self.Gone([4, 5, 6]), store, waiting, losses)) == [4]
        assert list(waiting) == [5, 6, 7] and losses == {5: 1}

    def test_a_block_that_always_kills_is_told(self, tmp_path):
        store = PartStore(tmp_path / "p", {}, False, False)
        losses = Counter({5: 2})
        with pytest.raises(InputError, match="block 5 .*ended 3 workers .exit code -9.*smaller --window"):
            list(workers._take_back(self.Gone([5]), store, deque(), losses))


@pytest.mark.parametrize("good_after", [1, 4])
def test_a_part_that_cannot_be_read_is_made_again_and_not_for_ever(tmp_path, good_after):
    """Of workers with another version of the package, say, whose parts are of another kind."""
    store, made = PartStore(tmp_path / "p", {}, False, False), []

    def compute(blocks):
        for block in blocks:
            made.append(block)
            if len(made) > good_after:
                store.save(block, [WindowResult(0)])
            else:
                store.path(block).write_text("of another kind")
            yield block

    results = gathered_results(SimpleNamespace(blocks=[range(1)]), store, compute)
    if good_after == 1:
        assert [r.index for r in results] == [0] and made == [0, 0]
    else:
        with pytest.raises(InputError, match="block-000000.parquet: was made again 3 times.*same version"):
            list(results)


def test_gpus_are_taken_in_turn(monkeypatch):
    monkeypatch.setattr(workers.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: 2)
    assert workers._devices(None, 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert workers._devices("cuda:1", 2) == ["cuda:1"] * 2 and workers._devices("cpu", 2) == ["cpu"] * 2


def test_workers_or_a_cluster(path, weights, tmp_path):
    with pytest.raises(InputError, match="--workers are processes of this machine, --scheduler is a cluster"):
        predict_to_file(weights, path, None, tmp_path / "b.fgb", workers=2, scheduler="tcp://127.0.0.1:1")


def test_what_a_worker_says_of_its_input_is_said(path, weights, tmp_path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="rgb.tif.*--skip-invalid"):
        predict_to_file(weights, path, None, tmp_path / "b.fgb", workers=1, **OPTIONS)
    assert not (tmp_path / "b.fgb").exists()
