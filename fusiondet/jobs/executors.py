"""Many pieces of work, done in this process, in processes of this machine, or by the workers of a Dask cluster.

`open_executor` returns a `concurrent.futures.Executor` for each of them; `completed` hands out tasks and yields their
results.

Workers of a cluster need this package, and see files under the same paths as this machine does. Dask's messages are
pickles: whoever reaches a scheduler runs code on its workers. Beyond localhost, use tls:// with certificates
(`distributed.comm.tls` of Dask's configuration).
"""

import contextlib
import functools
import itertools
import multiprocessing
import numbers
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from fusiondet.errors import InputError

# Only needed for clusters, so it is no requirement of the package.
REQUIREMENT = "distributed>=2024.5"
_CONNECT_S = 15
_STOP_S = 10
# Open rasters and networks serve one thread of a worker at a time.
_ONE_AT_A_TIME = threading.Lock()
# Two threads that ask multiprocessing about the same process may both wait for its exit code, and one reads none.
_PROCESSES = threading.Lock()


class WorkerError(InputError):
    """Failure of the processes or of the cluster that do the work, not of the data: finished results are kept."""


class WorkerLostError(WorkerError):
    """A task ended several processes, each time that it was begun.

    Attributes:
        exit_code: of the last process; negative: the signal that ended it.
    """

    def __init__(self, task: str, tries: int, exit_code: int | None, advice: str):
        self.tries, self.exit_code, self.advice = tries, exit_code, advice
        times = "its process" if tries == 1 else f"{tries} processes"
        super().__init__(
            f"{task} ended {times} (exit code {exit_code}; -9 is what a machine without memory does). {advice}"
        )


def check_workers(workers: int, scheduler: str | None, default: int = 1) -> None:
    """Refuse what `open_executor` cannot offer, before anything else is done.

    Args:
        default: largest number of `workers` that a caller with a cluster may have left as it was.

    Raises:
        InputError: fewer than 0 workers; or processes of this machine and a cluster at once.
    """
    if not isinstance(workers, numbers.Integral) or workers < 0:
        raise InputError(f"`workers` is {workers}, expected 0 (this process) or more.")
    if scheduler and workers > default:
        raise InputError(
            "`workers` are processes of this machine, `scheduler` is a cluster: pass one of them."
        )


def open_executor(
    workers: int = 0,
    scheduler: str | None = None,
    *,
    initializer: Callable | None = None,
    initargs: tuple = (),
    preload: Sequence[str] = (),
    lighter: str = "use smaller tasks",
    again: str = "repeat the call",
) -> "JobExecutor":
    """Return an executor, a context manager: leaving it ends its processes, at once where an error is raised.

    Args:
        workers: processes of this machine; 0 or 1: this process does the work.
        scheduler: address of a scheduler of dask.distributed, whose workers do it instead.
        initializer, initargs: called once in each process of this machine before its first task, but not in this one.
        preload: modules that the processes need, imported once for all of them.
        lighter, again: what the user can do where a task is too large for a worker, and how a stopped run is resumed.

    Raises:
        InputError: see `check_workers`.
        WorkerError: dask.distributed is not installed, or no scheduler answers.
    """
    check_workers(workers, scheduler)
    if scheduler:
        return DaskExecutor(scheduler, lighter=lighter, again=again)
    if workers <= 1:
        return SerialExecutor()
    advice = f"Pass fewer `workers`, or {lighter}. What is finished is kept: {again}."
    return ProcessExecutor(
        workers, initializer=initializer, initargs=initargs, preload=preload, advice=advice
    )


def completed(
    executor: "JobExecutor",
    function: Callable,
    common: tuple,
    tasks: Iterable[tuple],
    *,
    ahead: int = 2,
    unit: str = "task",
) -> Iterator[Any]:
    """Yield `function(*common, *task)` for each of `tasks`, as they get finished; in order where this process works.

    The first InputError stops further tasks from being begun. Results of tasks that are under way are yielded before it
    is raised, so that nothing goes on behind the caller's back; of several errors that of the first task is raised,
    which does not depend on the number of workers. Other errors are raised at once.

    Args:
        function: of a module, so that it can be sent. It is called again for a task whose worker was lost; on a
            cluster perhaps while the lost worker still works on it.
        common: sent to each worker only once.
        tasks: consumed as workers become free.
        ahead: tasks that are handed out per worker.
        unit: name of a task in messages, followed by its first value.

    Raises:
        InputError: a task refuses its input.
        WorkerError: a task ended several workers; the scheduler is gone; a file system of a cluster's worker failed.
    """
    waiting = enumerate(tasks)
    running: dict[Future, tuple[int, tuple]] = {}
    refused: tuple[int, InputError] | None = None
    shared = executor.share(common)
    try:
        while True:
            free = 0 if refused else executor.room(ahead) - len(running)
            for number, task in itertools.islice(waiting, max(0, free)):
                running[executor.submit(_call, function, shared, task)] = number, task
            if not running:
                break

            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, task = running.pop(future)
                try:
                    result = future.result()
                except InputError as error:
                    if isinstance(error, WorkerLostError):
                        error = WorkerLostError(
                            f"{unit} {task[0]}", error.tries, error.exit_code, error.advice
                        )
                    if refused is None or number < refused[0]:
                        refused = number, error
                else:
                    yield result
    finally:
        for future in running:
            future.cancel()

    if refused:
        raise refused[1]


def slot() -> int:
    """Return the number of this worker process among those of its executor, from 0 on; 0 in any other process.

    A process that replaces a lost one has the same number. Use it to take GPUs in turn.
    """
    return _slot


def report(value) -> None:
    """Send a value from a call to the `on_report` of its `ProcessExecutor`; nothing happens elsewhere."""
    if _pipe is not None:
        _pipe.send_bytes(pickle.dumps(value))


class JobExecutor(Executor):
    """What `completed` needs of an executor: values sent once, and how many tasks are handed out."""

    def share(self, values: tuple):
        """Return what stands for `values` among the arguments of `submit`, so that they are sent only once."""
        raise NotImplementedError

    def room(self, ahead: int) -> int:
        """Return how many tasks may be under way, `ahead` of them per worker."""
        raise NotImplementedError


class SerialExecutor(JobExecutor):
    """Calls are done when they are submitted, in this process."""

    def share(self, values):  # noqa: D102
        return values

    def room(self, ahead):  # noqa: D102
        return 1

    def submit(self, function, /, *args, **kwargs):  # noqa: D102
        future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


# ---- Processes of this machine ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """Pickled values that a process keeps; as an argument their number is sent."""

    number: int
    content: bytes = field(repr=False)

    def __reduce__(self):
        return _kept_content, (self.number,)


class ProcessExecutor(ThreadPoolExecutor, JobExecutor):
    """Each thread has a process of its own, which does one call at a time.

    Processes are started when they are needed, ignore SIGINT, and end when this process does, however it ends. A
    process that is lost is replaced, and its call is done again.
    """

    def __init__(
        self,
        workers: int,
        *,
        initializer: Callable | None = None,
        initargs: tuple = (),
        preload: Sequence[str] = (),
        tries: int = 3,
        fresh: bool = False,
        advice: str = "",
        on_report: Callable[[Any], None] | None = None,
    ):
        """Args as of `open_executor`, and:

        tries: how often a call may be begun whose process is lost.
        fresh: every call has a new process.
        advice: sentences for the user where a call ended so many processes.
        on_report: called with what a call hands to `report`, by one thread at a time.
        """
        super().__init__(workers, thread_name_prefix="fusiondet-worker")
        self._initializer, self._initargs, self._preload = initializer, initargs, list(preload)
        self._tries, self._fresh, self._advice = tries, fresh, advice
        self._on_report, self._reporting = on_report, threading.Lock()
        self._own = threading.local()
        self._slots, self._shares = itertools.count(), itertools.count()
        self._workers: set[_Worker] = set()
        self._changing, self._stopped = threading.Lock(), False

    def share(self, values):  # noqa: D102
        return _Shared(next(self._shares), pickle.dumps(values))

    def room(self, ahead):  # noqa: D102
        return ahead * self._max_workers

    def submit(self, function, /, *args, **kwargs):  # noqa: D102
        return super().submit(self._run, function, args, kwargs)

    def __exit__(self, kind, error, trace):
        if kind is not None:
            self.kill()
        try:
            self.shutdown()
        except BaseException:  # interrupted while it waited
            self.kill()
            raise

    def shutdown(self, wait=True, *, cancel_futures=True):
        """End the processes after the calls that have been begun; the others are cancelled if `cancel_futures`."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            with self._changing:
                self._stopped = True
                workers, self._workers = self._workers, set()
            for worker in workers:
                worker.end()

    def kill(self) -> None:
        """End the processes now; calls that have been begun are lost."""
        with self._changing:
            self._stopped = True
            for worker in self._workers:
                worker.process.terminate()

    def _run(self, function, args, kwargs):
        for tries in itertools.count(1):
            worker = self._worker()
            try:
                outcome = worker.call(function, args, kwargs)
            except (EOFError, ConnectionError):
                exit_code = self._discard(worker)
                if self._stopped:
                    raise CancelledError from None
                if tries == self._tries:
                    raise WorkerLostError("a task", tries, exit_code, self._advice) from None
                continue
            if self._fresh:
                self._discard(worker)
            return outcome.value()

    def _worker(self) -> "_Worker":
        """The process of this thread."""
        worker = getattr(self._own, "worker", None)
        if worker is not None:
            return worker
        if not hasattr(self._own, "slot"):
            self._own.slot = next(self._slots)
        with self._changing:
            if self._stopped:
                raise CancelledError
            worker = _Worker(self._own.slot, self._preload, self._take_report)
            self._workers.add(worker)
        if self._initializer is not None:
            with contextlib.suppress(EOFError, ConnectionError):  # lost, which the first call finds out
                worker.call(self._initializer, self._initargs, {}).value()
        self._own.worker = worker
        return worker

    def _take_report(self, value) -> None:
        with self._reporting:
            if self._on_report is not None:
                self._on_report(value)

    def _discard(self, worker: "_Worker") -> int | None:
        self._own.worker = None
        with self._changing:
            self._workers.discard(worker)
        return worker.end()


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, slot: int, preload: list[str], on_report: Callable[[Any], None]):
        context = start_context(preload)
        self._on_report = on_report
        self._pipe, theirs = context.Pipe()
        self._kept: int | None = None
        self.process = context.Process(
            target=_work, args=(theirs, slot, dict(os.environ)), name="fusiondet-worker"
        )
        with _PROCESSES:
            self.process.start()
        # The only open end is the process's then, so that its end is noticed here.
        theirs.close()

    def call(self, function, args, kwargs) -> "_Outcome":
        """What becomes of a call in the process; EOFError or ConnectionError where it is lost."""
        for value in args:
            if isinstance(value, _Shared) and value.number != self._kept:
                self._pipe.send_bytes(pickle.dumps((_keep, (value.number, value.content), {})))
                self._pipe.recv_bytes()
                self._kept = value.number
        self._pipe.send_bytes(pickle.dumps((function, args, kwargs)))
        while not isinstance(answer := pickle.loads(self._pipe.recv_bytes()), _Outcome):
            self._on_report(answer)
        return answer

    def end(self) -> int | None:
        """End the process, which has nothing to do; returns its exit code."""
        self._pipe.close()
        with _PROCESSES:
            self.process.join(_STOP_S)
            if self.process.exitcode is None:
                self.process.kill()
                self.process.join()
            return self.process.exitcode


@dataclass(frozen=True)
class _Outcome:
    """What a call returned or raised."""

    result: Any = None
    error: Exception | None = None
    trace: str = ""

    def value(self):
        """The result; raises the error, with the traceback of the other process."""
        if self.error is not None:
            raise self.error from _RemoteTraceback(self.trace)
        return self.result


class _RemoteTraceback(Exception):
    """Traceback of another process, as text."""

    def __str__(self):
        return f"\n{self.args[0]}"


def start_context(preload: Sequence[str] = ()):
    """Return how processes are started: as forks of a server that has only imported, since threads survive no fork.

    Args:
        preload: modules to import once for all processes. The first call of a program settles them.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *preload])
    return context


_slot = 0
_pipe = None
_kept: tuple[int, bytes] = (-1, b"")


def _work(pipe, slot: int, environment: dict[str, str]) -> None:
    """Do calls until the other end of `pipe` is closed, or the process that has it is gone."""
    global _slot, _pipe
    _slot, _pipe = slot, pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process decides when to end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)  # the server that forked this one has that of its own start
    while True:
        try:
            message = pipe.recv_bytes()
        except (EOFError, ConnectionError):
            return
        try:
            function, args, kwargs = pickle.loads(message)
            answer = pickle.dumps(_Outcome(function(*args, **kwargs)))
        except Exception as error:
            answer = pickle.dumps(_Outcome(error=_portable(error), trace=traceback.format_exc()))
        with contextlib.suppress(ConnectionError):
            pipe.send_bytes(answer)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _keep(number: int, content: bytes) -> None:
    global _kept
    _kept = number, content


def _kept_content(number: int) -> bytes:
    assert number == _kept[0], "another value is kept"
    return _kept[1]


def _portable(error: Exception) -> Exception:
    """`error`, or what can be sent in its place: errors of GDAL, say, cannot."""
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(error))
        return error
    if isinstance(error, InputError):
        return InputError(str(error))
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    return RuntimeError(f"{type(error).__name__}: {error}")


def _call(function: Callable, common: tuple | bytes, task: tuple):
    """What a worker does."""
    if isinstance(common, bytes):
        common = _loaded(common)
    return function(*common, *task)


# Bytes, not what they stand for: Dask may send them on while a task works with that.
@functools.lru_cache(maxsize=1)
def _loaded(common: bytes) -> tuple:
    return pickle.loads(common)


# ---- Dask ------------------------------------------------------------------------------------------------


class DaskExecutor(JobExecutor):
    """The workers of a scheduler of dask.distributed, which does a task again whose worker was lost."""

    def __init__(self, address: str, *, lighter: str, again: str):
        """Connect; arguments and errors as of `open_executor`."""
        self._distributed = _import_distributed()
        self._address, self._lighter, self._again = address, lighter, again
        self._client = self._connect()
        self._executor = self._client.get_executor(pure=False)

    def share(self, values):  # noqa: D102
        # A task of its own, so that it is done again where the only worker that had it is lost.
        with self._translated():
            return self._client.submit(_same, pickle.dumps(values), pure=False)

    def room(self, ahead):  # noqa: D102
        with self._translated():
            return ahead * max(1, len(self._client.nthreads()))

    def submit(self, function, /, *args, **kwargs):  # noqa: D102
        future = Future()
        with self._translated():
            theirs = self._executor.submit(_on_cluster, function, *args, **kwargs)
        theirs.add_done_callback(functools.partial(self._finish, future))
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Disconnect; tasks that have not been begun are dropped."""
        self._client.close()

    def _finish(self, future: Future, theirs: Future) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self._translated():
                outcome = theirs.result()
            future.set_result(outcome.value())
        except BaseException as error:
            future.set_exception(error)

    def _connect(self):
        try:
            return self._distributed.Client(self._address, timeout=_CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
            raise WorkerError(
                f"`scheduler` {self._address}: no scheduler of dask.distributed answers there within {_CONNECT_S} s "
                f"({type(error).__name__}: {error}). Start it with `dask scheduler`, and workers with "
                f"`dask worker {self._address}`."
            ) from None

    @contextlib.contextmanager
    def _translated(self):
        """Raise as WorkerError what goes wrong with the cluster."""
        try:
            yield
        except self._distributed.KilledWorker as error:
            raise WorkerError(
                f"`scheduler` {self._address}: a task ended several workers ({error}). Give them more memory, or "
                f"{self._lighter}. What is finished is kept: {self._again}."
            ) from None
        except (OSError, TimeoutError, CancelledError, self._distributed.CancelledError) as error:
            raise WorkerError(
                f"`scheduler` {self._address}: is gone ({type(error).__name__}). Start it again and {self._again}: "
                "what is finished is kept."
            ) from None


def _import_distributed():
    try:
        import distributed
    except ImportError:
        raise WorkerError(
            f"`scheduler` needs dask.distributed, which is not installed: pip install '{REQUIREMENT}'."
        ) from None
    return distributed


def _same(common: bytes) -> bytes:
    return common


def _on_cluster(function, *args, **kwargs) -> _Outcome:
    """What a worker of a cluster does: a call, or the error that it refuses its input with."""
    with _ONE_AT_A_TIME:
        try:
            return _Outcome(function(*args, **kwargs))
        except InputError as error:
            return _Outcome(error=_portable(error), trace=traceback.format_exc())
        except OSError as error:  # else it would look like one of the network
            what = error.filename or "file system"
            return _Outcome(error=WorkerError(f"on a worker: {what}: {error.strerror or error}"))
