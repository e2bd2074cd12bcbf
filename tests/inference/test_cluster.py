"""A dask cluster does what one process does; workers and schedulers that go away cost nothing that was finished."""

import builtins
import os
import signal

from fusiondet.errors import InputError
from fusiondet.files import parts_folder
from fusiondet.inference import predict_to_file, workers
from fusiondet.inference.parts import PartStore
from fusiondet.jobs import dask_cluster as cluster
from tests.support.dask_workers import start_workers

import pytest

OPTIONS = {"window_px": 100, "overlap_px": 40, "score_threshold": 0.0, "device": "cpu"}


@pytest.fixture
def path(write_scene, city):
    """A scene of 40 windows: three blocks."""
    return write_scene(city, height=300, nodata=0)


@pytest.fixture
def distributed():
    module = pytest.importorskip("distributed", reason=f"needs {cluster.REQUIREMENT}")
    import dask

    with dask.config.set(
        {"distributed.worker.memory.terminate": False, "distributed.admin.tick.limit": "60s"}
    ):
        yield module


def start(distributed, **options):
    return distributed.LocalCluster(
        threads_per_worker=1, dashboard_address=None, worker_dashboard_address=None, memory_limit=0, **options
    )


@pytest.fixture
def two_workers(distributed):
    """A cluster whose two workers are processes, of their own, that nobody starts again."""
    with start(distributed, n_workers=0, processes=True) as running:
        processes = start_workers(workers._context(), running.scheduler_address, 2)
        with distributed.Client(running, set_as_default=False) as client:
            client.wait_for_workers(2)
        yield running
        for process in processes:
            process.kill()
            process.join()


def test_the_bytes_are_those_of_one_process_even_if_a_worker_is_killed(
    distributed, two_workers, path, weights, tmp_path, monkeypatch
):
    predict_to_file(weights, path, None, tmp_path / "one.parquet", **OPTIONS)
    real, killed = PartStore.save_bytes, []

    def kill_a_worker(self, *args):
        real(self, *args)
        if not killed:
            with distributed.Client(two_workers, set_as_default=False) as client:
                pids = client.run(os.getpid)
                busy = [w for w, keys in client.processing().items() if keys] or list(pids)
                killed.append(pids[busy[0]])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(PartStore, "save_bytes", kill_a_worker)
    address = two_workers.scheduler_address
    result = predict_to_file(weights, path, None, tmp_path / "two.parquet", scheduler=address, **OPTIONS)
    assert killed and result.count > 40
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert not parts_folder(tmp_path / "two.parquet").exists()


def test_a_scheduler_that_goes_away_is_told_and_what_is_finished_kept(
    distributed, path, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(cluster, "_CONNECT_S", 2)
    running = start(distributed, n_workers=1, processes=False)
    real = PartStore.save_bytes

    def close_the_cluster(self, *args):
        real(self, *args)
        running.close()

    monkeypatch.setattr(PartStore, "save_bytes", close_the_cluster)
    with pytest.raises(InputError, match="--scheduler .*: is gone .*--resume"):
        predict_to_file(
            weights, path, None, tmp_path / "b.fgb", scheduler=running.scheduler_address, **OPTIONS
        )
    assert len(list(parts_folder(tmp_path / "b.fgb").glob("block-*.parquet"))) == 1
    monkeypatch.undo()
    assert predict_to_file(weights, path, None, tmp_path / "b.fgb", resume=True, **OPTIONS).count > 40


def test_what_a_worker_says_of_its_input_is_said(distributed, path, weights, tmp_path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with start(distributed, n_workers=1, processes=False) as running:
        with pytest.raises(InputError, match="rgb.tif.*--skip-invalid"):
            address = running.scheduler_address
            predict_to_file(weights, path, None, tmp_path / "b.fgb", scheduler=address, **OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["rgb.tif"]


def test_nobody_answers(distributed, path, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.5)
    with pytest.raises(InputError, match="--scheduler tcp://127.0.0.1:9: no scheduler .*`dask scheduler`"):
        predict_to_file(weights, path, None, tmp_path / "b.fgb", scheduler="tcp://127.0.0.1:9", **OPTIONS)
    with pytest.raises(InputError, match="--scheduler nonsense://x"):
        predict_to_file(weights, path, None, tmp_path / "b.fgb", scheduler="nonsense://x", **OPTIONS)


def test_what_to_install_is_said(path, weights, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, namespace=None, *args, **kwargs):
        # For this module alone: what is left of clusters of other tests imports it, too, when it is collected.
        if name == "distributed" and namespace and namespace["__name__"] == cluster.__name__:
            raise ModuleNotFoundError(name)
        return real(name, namespace, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install 'distributed>="):
        predict_to_file(weights, path, None, tmp_path / "b.fgb", scheduler="tcp://127.0.0.1:9", **OPTIONS)
