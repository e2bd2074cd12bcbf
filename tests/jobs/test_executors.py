"""One interface for this process, processes and Dask: results, refusals, lost workers, and no orphans."""

import builtins
import contextlib
import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.jobs import executors
from fusiondet.jobs.executors import (
    ProcessExecutor,
    SerialExecutor,
    WorkerError,
    WorkerLostError,
    check_workers,
    completed,
    open_executor,
    slot,
)
from tests.support.processes import alive_in_session, is_alive, wait_for

import pytest


def task(common, number):
    """The number plus that of all tasks; some are refused, or fail."""
    if number == 5:
        raise InputError("5: is odd.")
    if number == 6:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/a.tif")
    if number == 7:
        time.sleep(0.3)
        raise InputError("7: is odd.")
    if number == 8:
        raise ZeroDivisionError("8")
    time.sleep(0.01)
    return common + number


@pytest.fixture(scope="module")
def scheduler():
    """The address of a scheduler with a worker of two threads."""
    distributed = pytest.importorskip("distributed", reason=f"needs {executors.REQUIREMENT}")
    with distributed.LocalCluster(
        n_workers=1, processes=False, threads_per_worker=2, dashboard_address=None, memory_limit=0
    ) as running:
        yield running.scheduler_address


@pytest.fixture(params=["serial", "processes", "dask"])
def executor(request):
    """One of each kind."""
    kind = request.param
    where = {"scheduler": request.getfixturevalue("scheduler")} if kind == "dask" else {}
    with open_executor(2 if kind == "processes" else 0, **where) as opened:
        yield opened


class TestCompleted:
    def test_everything_is_done_once(self, executor):
        results = list(completed(executor, task, (100,), ((n,) for n in range(10, 40))))
        assert sorted(results) == list(range(110, 140))
        if isinstance(executor, SerialExecutor):
            assert results == sorted(results)
        assert list(completed(executor, task, (100,), [])) == []
        assert list(completed(executor, task, (200,), [(10,)])) == [210]

    @pytest.mark.parametrize("bad", [(5,), (7, 5)])
    def test_a_refusal_comes_after_what_is_under_way(self, executor, bad):
        """And it is that of the first task that is refused, whichever is found first."""
        taken, got = [], []

        def tasks():
            for n in (10, *bad, *range(11, 100)):
                taken.append(n)
                yield (n,)

        with pytest.raises(InputError, match=f"^{bad[0]}: is odd.$"):
            for result in completed(executor, task, (100,), tasks()):
                got.append(result - 100)
        assert sorted(got) == sorted(n for n in taken if n not in bad) and len(taken) < 60

    def test_few_tasks_are_handed_out(self, executor):
        taken = []
        results = completed(executor, task, (0,), ((taken.append(n), n)[1:] for n in range(10, 60)))
        for done, _ in enumerate(results, 1):
            assert len(taken) - done <= 4
        assert done == 50

    def test_an_error_of_a_file_system(self, executor):
        with pytest.raises((OSError, WorkerError), match="No space left on device") as caught:
            list(completed(executor, task, (100,), [(6,)]))
        if isinstance(caught.value, OSError):
            assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/data/a.tif")
        else:
            assert "/data/a.tif" in str(caught.value)

    def test_a_failure_of_our_own_keeps_its_kind(self, executor):
        with pytest.raises(ZeroDivisionError, match="8"):
            list(completed(executor, task, (100,), [(8,)]))


def test_an_interrupt_in_this_process_is_not_held_back():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_executor() as executor:
        list(completed(executor, interrupted, (), [()]))


def test_what_cannot_be_asked_for():
    with pytest.raises(InputError, match="`workers` is -1"):
        open_executor(-1)
    with pytest.raises(InputError, match="`workers`.*`scheduler`.*one of them"):
        check_workers(2, "tcp://127.0.0.1:9")
    check_workers(1, "tcp://127.0.0.1:9")


# ---- Processes -------------------------------------------------------------------------------------------


class Counted:
    """Counts how often it is pickled."""

    count = 0

    def __reduce__(self):
        Counted.count += 1
        return Counted, ()


class Unsendable(InputError):
    def __init__(self, path, line):
        super().__init__(f"{path}: line {line} is odd.")


def pid_of(*_):
    time.sleep(0.02)
    return os.getpid()


def slot_of(*_):
    time.sleep(0.02)
    return slot(), os.getpid(), os.environ.get("FUSIONDET_TEST")


def set_variable(value):
    os.environ["FUSIONDET_TEST"] = value


def refuse(*_):
    raise Unsendable("a.tif", 3)


def unpicklable(*_):
    return threading.Lock()


def end_of_file(*_):
    raise EOFError("a.npz is empty")


def kill_oneself(folder: Path, number: int, times: int):
    """Die as one who finds no memory, `times` times."""
    marks = len(list(folder.glob(f"{number}.*")))
    (folder / f"{number}.{marks}").touch()
    if marks < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


class TestProcesses:
    def test_common_values_are_pickled_once_and_sent_to_each(self):
        Counted.count = 0
        with open_executor(2) as executor:
            pids = set(completed(executor, pid_of, (Counted(),), [(n,) for n in range(20)]))
        assert len(pids) == 2 and os.getpid() not in pids and Counted.count == 1
        assert not any(map(is_alive, pids))

    def test_they_are_numbered_and_have_the_environment(self, monkeypatch):
        monkeypatch.setenv("FUSIONDET_TEST", "1")
        with open_executor(3) as executor:
            found = set(completed(executor, slot_of, (), [(n,) for n in range(30)]))
        assert {number for number, _, _ in found} == {0, 1, 2} and len(found) == 3
        assert {variable for *_, variable in found} == {"1"} and slot() == 0

    def test_an_initializer_is_called_in_each(self):
        with open_executor(2, initializer=set_variable, initargs=("x",)) as executor:
            found = set(completed(executor, slot_of, (), [(n,) for n in range(20)]))
        assert {variable for *_, variable in found} == {"x"}

    def test_a_fresh_process_for_each_call(self):
        with ProcessExecutor(2, fresh=True) as executor:
            pids = [future.result() for future in [executor.submit(pid_of) for _ in range(5)]]
            assert len(set(pids)) == 5
            wait_for(lambda: not any(map(is_alive, pids)))

    @pytest.mark.parametrize(
        ("function", "kind", "message"),
        [
            (refuse, InputError, "a.tif: line 3"),
            (unpicklable, TypeError, "pickle"),
            (end_of_file, EOFError, "a.npz"),
        ],
    )
    def test_whatever_happens_there_is_raised_here(self, function, kind, message):
        with pytest.raises(kind, match=message) as caught, open_executor(2) as executor:
            list(completed(executor, function, (), [(1,)]))
        assert f"in {function.__name__}" in str(caught.value.__cause__) or function is unpicklable

    def test_a_lost_process_is_replaced_and_its_task_done_again(self, tmp_path):
        with open_executor(2) as executor:
            tasks = [(n, 2 if n == 4 else 0) for n in range(12)]
            assert sorted(completed(executor, kill_oneself, (tmp_path,), tasks)) == list(range(12))
        assert len(list(tmp_path.iterdir())) == 14, "no other task was done again"

    def test_a_task_that_always_kills_is_named_after_the_others_are_yielded(self, tmp_path):
        got = []
        with pytest.raises(
            WorkerLostError, match="block 4 ended 3 processes .*-9.*a smaller window.*resume it"
        ):
            with open_executor(2, lighter="a smaller window", again="resume it") as executor:
                for number in completed(
                    executor, kill_oneself, (tmp_path,), [(n, 9 * (n == 4)) for n in range(50)], unit="block"
                ):
                    got.append(number)
        assert {0, 1, 2, 3} <= set(got) and 4 not in got
        assert len(list(tmp_path.glob("4.*"))) == 3

    def test_an_error_here_ends_calls_that_are_under_way(self):
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt), open_executor(2) as executor:
            futures = [executor.submit(time.sleep, 60) for _ in range(3)]
            wait_for(lambda: len(executor._workers) == 2)
            pids = [worker.process.pid for worker in executor._workers]
            raise KeyboardInterrupt
        assert time.monotonic() - start < 30 and all(future.done() for future in futures)
        assert not any(map(is_alive, pids))


# Processes are in the session of the program, and so is the server that starts them.
_PROGRAM = """
import sys, time
from pathlib import Path
from fusiondet.jobs.executors import completed, open_executor
from tests.jobs.test_executors import stay

if __name__ == "__main__":
    with open_executor(2) as executor:
        for result in completed(executor, stay, (Path(sys.argv[1]),), [(n,) for n in range(4)]):
            print(result, flush=True)
"""


def stay(folder: Path, number: int):
    """Work for ever, once this is known to the test."""
    (folder / f"{number}.{os.getpid()}").touch()
    while True:
        sum(range(10_000))


def tell(*_):
    for i in range(3):
        executors.report(i)
    return "done"


def test_calls_report_while_they_are_under_way():
    got = []
    with ProcessExecutor(2, on_report=got.append) as executor:
        assert [f.result() for f in [executor.submit(tell) for _ in range(2)]] == ["done"] * 2
    assert sorted(got) == [0, 0, 1, 1, 2, 2]
    with SerialExecutor() as executor:
        assert executor.submit(tell).result() == "done"


class TestNoOrphans:
    @pytest.fixture
    def program(self, tmp_path):
        """A program with two busy processes, and these."""
        path = tmp_path / "program.py"
        path.write_text(_PROGRAM)
        (tmp_path / "busy").mkdir()
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": root}
        process = subprocess.Popen(
            [sys.executable, str(path), str(tmp_path / "busy")],
            cwd=root,
            env=environment,
            start_new_session=True,
            stderr=subprocess.PIPE,
        )
        busy = lambda: list((tmp_path / "busy").iterdir())  # noqa: E731
        wait_for(lambda: len(busy()) == 2 or process.poll() is not None, what="two busy processes")
        assert process.poll() is None, process.stderr.read().decode()
        yield process, [int(path.name.partition(".")[2]) for path in busy()]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def assert_nothing_is_left(self, process, workers):
        wait_for(lambda: not alive_in_session(process.pid), 20, "the end of all processes")
        assert not any(map(is_alive, workers))

    def test_killed_alone(self, program):
        process, workers = program
        process.kill()
        assert process.wait() == -signal.SIGKILL
        self.assert_nothing_is_left(process, workers)

    def test_killed_with_a_worker(self, program):
        process, workers = program
        os.kill(workers[0], signal.SIGKILL)
        process.kill()
        process.wait()
        self.assert_nothing_is_left(process, workers)

    def test_interrupted_from_a_terminal_it_ends_them_quietly(self, program):
        process, workers = program
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=30)[1].decode()
        assert process.returncode in (-signal.SIGINT, 130) and errors.count("KeyboardInterrupt") <= 2
        assert "in stay" not in errors, "a worker was interrupted"
        self.assert_nothing_is_left(process, workers)

    def test_terminated(self, program):
        process, workers = program
        process.terminate()
        process.wait()
        self.assert_nothing_is_left(process, workers)


# ---- Dask ------------------------------------------------------------------------------------------------


class TestDask:
    def test_nobody_answers(self, monkeypatch):
        pytest.importorskip("distributed", reason=f"needs {executors.REQUIREMENT}")
        monkeypatch.setattr(executors, "_CONNECT_S", 0.5)
        for address in ("tcp://127.0.0.1:9", "nonsense://x"):
            message = f"`scheduler` {address}: no scheduler .*`dask scheduler`"
            with pytest.raises(WorkerError, match=message):
                open_executor(scheduler=address)

    def test_what_to_install_is_said(self, monkeypatch):
        real = builtins.__import__

        def without(name, namespace=None, *args, **kwargs):
            # For this module alone: what is left of other clusters imports it, too, when it is collected.
            if name == "distributed" and namespace and namespace["__name__"] == executors.__name__:
                raise ModuleNotFoundError(name)
            return real(name, namespace, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(WorkerError, match="pip install 'distributed>="):
            open_executor(scheduler="tcp://127.0.0.1:9")

    def test_a_scheduler_that_goes_away(self, monkeypatch):
        distributed = pytest.importorskip("distributed", reason=f"needs {executors.REQUIREMENT}")
        monkeypatch.setattr(executors, "_CONNECT_S", 2)
        running = distributed.LocalCluster(
            n_workers=1, processes=False, threads_per_worker=2, dashboard_address=None, memory_limit=0
        )
        got = []
        with pytest.raises(WorkerError, match="is gone .*repeat it"):
            with open_executor(scheduler=running.scheduler_address, again="repeat it") as executor:
                for result in completed(executor, task, (0,), [(n,) for n in range(10, 500)]):
                    got.append(result)
                    if len(got) == 1:
                        running.close()
        assert 1 <= len(got) < 490

    def test_a_process_works_on_one_task_at_a_time(self):
        inside, most = [], []

        def busy():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.001)
            inside.pop()

        threads = [threading.Thread(target=executors._on_cluster, args=(busy,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1] * 8

    def test_errors_come_back_as_values_that_can_be_sent(self):
        outcome = pickle.loads(pickle.dumps(executors._on_cluster(refuse)))
        with pytest.raises(InputError, match="a.tif: line 3"):
            outcome.value()
