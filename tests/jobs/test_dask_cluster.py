"""Tasks on dask: results as they come, and what a task or a worker's file system refuses."""

import errno
import threading
import time

from fusiondet.errors import InputError
from fusiondet.jobs import dask_cluster as cluster
from fusiondet.jobs.dask_cluster import ClusterError, run_on_workers

import pytest


def task(common, number):
    """The number, plus that of all tasks; some are refused."""
    if number == 5:
        raise InputError("5: is odd.")
    if number == 6:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/a.tif")
    time.sleep(0.01)
    return common + number


@pytest.fixture
def results():
    """Starts tasks on a worker of two threads."""
    distributed = pytest.importorskip("distributed", reason=f"needs {cluster.REQUIREMENT}")
    with distributed.LocalCluster(
        n_workers=1, processes=False, threads_per_worker=2, dashboard_address=None, memory_limit=0
    ) as running:
        yield lambda tasks: run_on_workers(
            running.scheduler_address, task, (100,), tasks, "use less", "repeat it"
        )


def test_everything_is_done_once(results):
    assert sorted(results((n,) for n in range(10, 40))) == list(range(110, 140))
    assert list(results([])) == []


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [(5, InputError, "^5: is odd.$"), (6, ClusterError, "on a worker: /data/a.tif: No space left")],
)
def test_a_refusal_comes_after_what_is_under_way(results, bad, kind, message):
    taken, got = [], []

    def tasks():
        for n in (10, bad, *range(11, 100)):
            taken.append(n)
            yield (n,)

    with pytest.raises(InputError, match=message) as error:
        for result in results(tasks()):
            got.append(result - 100)
    assert error.type is kind
    assert sorted(got) == sorted(n for n in taken if n != bad) and len(taken) < 10


def test_a_process_works_on_one_task_at_a_time(monkeypatch):
    inside, most = [], []

    def busy():
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.001)
        inside.pop()

    monkeypatch.setattr(cluster, "_loaded", lambda common: ())
    threads = [threading.Thread(target=cluster._call, args=(busy, b"", ())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
