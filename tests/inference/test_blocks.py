"""Blocks of windows by this process, by others and by a cluster: the same bytes, whoever is killed."""

import contextlib
import functools
import multiprocessing
import os
import random
import signal
import subprocess
import sys

from fusiondet.files import parts_folder
from fusiondet.inference import blocks, predict_to_file
from fusiondet.inference.blocks import Network, results_in_order, worker_device
from fusiondet.inference.pieces import block_bytes, save_block
from fusiondet.inference.pipeline import WindowResult
from fusiondet.jobs import executors
from fusiondet.jobs.store import Store
from tests.support.dask_workers import start_workers
from tests.support.messages import raises_naming
from tests.support.processes import alive_in_session, contents, has_lock, kill, start_program, wait_for
from tests.support.tiny_city import ROOT

import numpy as np
import pytest
import rasterio

OPTIONS = {"window_px": 100, "overlap_px": 40, "score_threshold": 0.0, "device": "cpu"}


@pytest.fixture
def path(write_scene, city):
    """A scene of 40 windows: three blocks."""
    return write_scene(city, height=300, nodata=0)


def pieces(out):
    return sorted(parts_folder(out).glob("pieces/block-*.parquet"))


class TestProcesses:
    def test_two_make_the_bytes_of_one_even_if_one_is_killed(self, path, weights, tmp_path, monkeypatch):
        heights = {"height_path": tmp_path / "one.tif"}
        predict_to_file(weights, path, None, tmp_path / "one.parquet", **heights, **OPTIONS)
        real, killed = blocks.save_block, []

        def kill_one(*args):
            real(*args)
            if not killed:
                killed.append(
                    next(p.pid for p in multiprocessing.active_children() if p.name == "fusiondet-worker")
                )
                os.kill(killed[0], signal.SIGKILL)

        monkeypatch.setattr(blocks, "save_block", kill_one)
        heights = {"height_path": tmp_path / "two.tif", "workers": 2}
        result = predict_to_file(weights, path, None, tmp_path / "two.parquet", **heights, **OPTIONS)
        assert killed and result.count > 40
        assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
        assert (tmp_path / "two.tif").read_bytes() == (tmp_path / "one.tif").read_bytes()
        with rasterio.open(tmp_path / "one.tif") as one:
            assert np.nanmax(one.read()) > 0
        assert not parts_folder(tmp_path / "two.parquet").exists()

    def test_a_block_that_always_kills_is_named(self, path, weights, tmp_path, monkeypatch):
        monkeypatch.setattr(blocks, "predict_block", die)
        with raises_naming("block 1", "3 processes", "-9", "window_px", "workers", "resume"):
            predict_to_file(weights, path, None, tmp_path / "b.fgb", workers=2, **OPTIONS)
        assert not (tmp_path / "b.fgb").exists()
        assert finished(tmp_path / "b.fgb") == {0, 2}

    def test_the_refusal_of_a_worker_is_raised(self, path, weights, tmp_path):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with raises_naming("rgb.tif", "skip_invalid"):
            predict_to_file(weights, path, None, tmp_path / "b.fgb", workers=2, **OPTIONS)
        assert not (tmp_path / "b.fgb").exists()

    def test_or_a_cluster(self, path, weights, tmp_path):
        with raises_naming("workers", "scheduler"):
            predict_to_file(weights, path, None, tmp_path / "b.fgb", workers=2, scheduler="tcp://127.0.0.1:1")

    @pytest.mark.slow
    def test_a_killed_parent_leaves_no_process_and_the_next_run_clears_up(self, path, weights, tmp_path):
        out, code = tmp_path / "b.parquet", tmp_path / "killed.py"
        call = f"predict_to_file({str(weights)!r}, {str(path)!r}, None, {str(out)!r}, workers=2, **{OPTIONS})"
        code.write_text(
            f"from fusiondet.inference import predict_to_file\n\nif __name__ == '__main__':\n    {call}\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", code], start_new_session=True, env=environment
        )
        wait_for(lambda: pieces(out), 400, "the first block")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not alive_in_session(process.pid), 30, "the end of its workers")
        assert not out.exists()
        predict_to_file(weights, path, None, out, resume=True, **OPTIONS)
        predict_to_file(weights, path, None, tmp_path / "whole.parquet", **OPTIONS)
        assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
        names = {"b.parquet", "whole.parquet", "killed.py", "rgb.tif"}
        assert {p.name for p in tmp_path.iterdir()} == names


def die(network, plan, block):
    if block == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return block, block_bytes([WindowResult(index) for index in plan.blocks[block]])


def finished(out):
    """Numbers of the blocks that a run has left."""
    return {int(path.name.split("-")[1]) for path in pieces(out)}


class TestInOrder:
    def numbers(self, blocks, compute, store):
        return [r.index for r in results_in_order(range(blocks), compute, store)]

    def test_blocks_that_come_in_another_order_wait(self, tmp_path):
        def compute(wanted):
            for block in reversed(wanted):
                save_block(store, block, *block_bytes([WindowResult(block)]))
                yield block, None

        with Store(tmp_path / "b.fgb", {}) as store:
            assert self.numbers(4, compute, store) == [0, 1, 2, 3]
            store.remove()

    @pytest.mark.parametrize("good_after", [1, 4])
    def test_a_piece_that_cannot_be_read_is_made_again_and_not_for_ever(self, tmp_path, good_after):
        """Of workers with another version of the package, say, whose pieces are of another kind."""
        made = []

        def compute(wanted):
            for block in wanted:
                made.append(block)
                content = (
                    block_bytes([WindowResult(0)]) if len(made) > good_after else (b"of another kind", None)
                )
                save_block(store, block, *content)
                yield block, None

        with Store(tmp_path / "b.fgb", {}) as store:
            if good_after == 1:
                assert self.numbers(1, compute, store) == [0] and made == [0, 0]
            else:
                with raises_naming("b.fgb", "block 0", "3 times", "version"):
                    self.numbers(1, compute, store)
            store.remove()

    def test_without_a_store_results_pass_through(self):
        def compute(wanted):
            for block in wanted:
                yield block, (WindowResult(2 * block + i) for i in range(2))

        assert self.numbers(3, compute, None) == [0, 1, 2, 3, 4, 5]


class TestDevices:
    @pytest.fixture(autouse=True)
    def two_gpus(self, monkeypatch):
        monkeypatch.setattr(blocks.torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(blocks.torch.cuda, "device_count", lambda: 2)

    def device(self, device, on_cluster=False):
        return worker_device(Network("w.pth", "0", device, 0.5, on_cluster))

    def test_processes_take_gpus_in_turn(self, monkeypatch):
        found = []
        for number in range(3):
            monkeypatch.setattr(blocks, "slot", lambda number=number: number)
            found.append(self.device(None))
        assert found == ["cuda:0", "cuda:1", "cuda:0"]
        assert self.device("cuda:1") == "cuda:1" and self.device("cpu") == "cpu"

    def test_workers_of_a_cluster_take_the_one_with_most_memory_left(self, monkeypatch):
        monkeypatch.setattr(blocks.torch.cuda, "mem_get_info", lambda i: (10 + i, 99))
        assert self.device("cuda", on_cluster=True) == "cuda:1"


# ---- A cluster ----


@pytest.fixture
def distributed():
    module = pytest.importorskip("distributed", reason=f"needs {executors.REQUIREMENT}")
    import dask

    with dask.config.set(
        {"distributed.worker.memory.terminate": False, "distributed.admin.tick.limit": "60s"}
    ):
        yield module


def start(distributed, **options):
    return distributed.LocalCluster(
        threads_per_worker=1, dashboard_address=None, worker_dashboard_address=None, memory_limit=0, **options
    )


class TestCluster:
    @pytest.fixture
    def two_workers(self, distributed):
        """A cluster whose two workers are processes, of their own, that nobody starts again."""
        with start(distributed, n_workers=0, processes=True) as running:
            processes = start_workers(executors.start_context(), running.scheduler_address, 2)
            with distributed.Client(running, set_as_default=False) as client:
                client.wait_for_workers(2)
            yield running
            for process in processes:
                process.kill()
                process.join()

    def test_the_bytes_are_those_of_one_process_even_if_a_worker_is_killed(
        self, distributed, two_workers, path, weights, tmp_path, monkeypatch
    ):
        predict_to_file(weights, path, None, tmp_path / "one.parquet", **OPTIONS)
        real, killed = blocks.save_block, []

        def kill_a_worker(*args):
            real(*args)
            if not killed:
                with distributed.Client(two_workers, set_as_default=False) as client:
                    pids = client.run(os.getpid)
                    busy = [w for w, keys in client.processing().items() if keys] or list(pids)
                    killed.append(pids[busy[0]])
                os.kill(killed[0], signal.SIGKILL)

        monkeypatch.setattr(blocks, "save_block", kill_a_worker)
        address = two_workers.scheduler_address
        result = predict_to_file(weights, path, None, tmp_path / "two.parquet", scheduler=address, **OPTIONS)
        assert killed and result.count > 40
        assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
        assert not parts_folder(tmp_path / "two.parquet").exists()

    def test_where_the_scheduler_goes_away_what_is_finished_is_kept(
        self, distributed, path, weights, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(executors, "_CONNECT_S", 2)
        running = start(distributed, n_workers=1, processes=False)
        real = blocks.save_block

        def close_the_cluster(*args):
            real(*args)
            running.close()

        monkeypatch.setattr(blocks, "save_block", close_the_cluster)
        out, address = tmp_path / "b.fgb", running.scheduler_address
        with raises_naming("scheduler", "is gone", "resume"):
            predict_to_file(weights, path, None, out, scheduler=address, **OPTIONS)
        assert len(pieces(out)) == 1
        monkeypatch.undo()
        assert predict_to_file(weights, path, None, out, resume=True, **OPTIONS).count > 40

    def test_the_refusal_of_a_worker_is_raised(self, distributed, path, weights, tmp_path):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with start(distributed, n_workers=1, processes=False) as running:
            address = running.scheduler_address
            with raises_naming("rgb.tif", "skip_invalid"):
                predict_to_file(weights, path, None, tmp_path / "b.fgb", scheduler=address, **OPTIONS)
        assert [p.name for p in tmp_path.iterdir()] == ["rgb.tif"]

    def test_nobody_answers(self, distributed, path, weights, tmp_path, monkeypatch):
        monkeypatch.setattr(executors, "_CONNECT_S", 0.5)
        for address in ("tcp://127.0.0.1:9", "nonsense://x"):
            with raises_naming("scheduler", address):
                predict_to_file(weights, path, None, tmp_path / "b.fgb", scheduler=address, **OPTIONS)
        assert [p.name for p in tmp_path.iterdir()] == ["rgb.tif"]


# A layer, heights and a report by two processes, as `predict_scene.py --resume` makes them.
_SEVERAL = """
import sys
from pathlib import Path
from fusiondet.inference import predict_to_file
from tests.support.scene_cases import plain_report
weights, rgb, folder = map(Path, sys.argv[1:])
predict_to_file(
    weights, rgb, None, folder / "b.parquet", height_path=folder / "b.tif", report=folder / "b.html", style=True,
    write_report=plain_report, workers=2, resume=True, score_threshold=0.0, window_px=64, overlap_px=24, device="cpu",
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [30])
def test_killed_at_any_moment_with_two_workers_and_several_outputs(weights, write_scene, tmp_path, kills):
    path = write_scene({(10, 10, 60, 60): 200}, height=500, width=600)
    straight, out, rng, killed = tmp_path / "straight", tmp_path / "out", random.Random(0), 0
    for folder in (straight, out):
        folder.mkdir()
    program = start_program(_SEVERAL, weights, path, straight)
    assert program.wait() == 0, program.communicate()[1]
    wanted = contents(straight)
    assert sorted(wanted) == ["b.html", "b.parquet", "b.qml", "b.tif"]
    for _ in range(4 * kills):
        program = start_program(_SEVERAL, weights, path, out)
        wait_for(functools.partial(has_lock, program, out / ".b.parquet.parts"))
        # From one call to the next a little later, then from the beginning again.
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(rng.uniform(0, 9))
        if program.poll() is None:
            kill(program)
            killed += 1
            continue
        assert program.returncode == 0, program.communicate()[1]
        program.communicate()
        assert contents(out) == wanted and not [p for p in out.iterdir() if p.name.startswith(".")]
        if killed >= kills:
            break
        for made in out.iterdir():
            made.unlink()
    assert killed >= kills and contents(out) == wanted
