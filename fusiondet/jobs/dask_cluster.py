"""Work for a cluster of dask.distributed, which hands it out again where a worker is lost.

Workers need this package, and see files under the same paths as this machine does. dask's messages are pickles:
whoever reaches a scheduler runs code on its workers. Beyond localhost, use tls:// with certificates
(`distributed.comm.tls` of dask's configuration).
"""

import contextlib
import functools
import itertools
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fusiondet.errors import InputError

# Only needed here, so it is no requirement of the package.
REQUIREMENT = "distributed>=2024.5"
_CONNECT_S = 15
_TASKS_AHEAD = 2
# Open rasters and networks serve one thread of a worker at a time.
_ONE_AT_A_TIME = threading.Lock()


class ClusterError(InputError):
    """What is wrong with the cluster, or on it, not with the data: what is finished is worth keeping."""


@dataclass(frozen=True)
class _Refusal:
    """What a task found wrong, as text: what GDAL raised on the way cannot travel."""

    message: str
    of_data: bool


def run_on_workers(
    address: str, function: Callable, common: tuple, tasks: Iterable[tuple], lighter: str, again: str
) -> Iterator[Any]:
    """What `function(*common, *task)` returns for each of `tasks`, as they get finished, by the workers at `address`.

    Where a task is refused, no further ones are begun; the result of those that are under way is still given before
    the error is raised, so that nothing goes on behind the caller's back.

    Args:
        function: of a module; a process calls it once at a time. It may be called again for a task whose worker was
            lost, even while the lost one still works on it.
        common: what is sent to each worker only once.
        lighter, again: what the user can do where a task is too much for a worker, and where the scheduler is gone.

    Raises:
        InputError: what a task says of its input.
        ClusterError: dask.distributed is not installed; no scheduler there, or not any more; a task ended several
            workers, or met an error of a worker's file system.
    """
    distributed = _import_distributed()
    waiting, refusal = iter(tasks), None
    with _connect(distributed, address) as client:
        done = distributed.as_completed(loop=client.loop)
        # A task of its own, so that it is made again where the only worker that had it is lost.
        with _told(distributed, address, lighter, again):
            held = client.submit(_same, pickle.dumps(common), pure=False)
        while True:
            with _told(distributed, address, lighter, again):
                free = _TASKS_AHEAD * max(1, len(client.nthreads())) - done.count()
                for task in itertools.islice(waiting, 0 if refusal else max(0, free)):
                    done.add(client.submit(_call, function, held, task, pure=False))
                if not done.count():
                    break
                result = next(done).result()
            if isinstance(result, _Refusal):
                refusal = refusal or result
            else:
                yield result
    if refusal:
        raise InputError(refusal.message) if refusal.of_data else ClusterError(refusal.message)


def _connect(distributed, address: str):
    try:
        return distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        raise ClusterError(
            f"`scheduler={address}`: no scheduler of dask.distributed answers there within {_CONNECT_S} s "
            f"({type(error).__name__}: {error}). Start it with `dask scheduler`, and workers with "
            f"`dask worker {address}`."
        ) from None


@contextlib.contextmanager
def _told(distributed, address: str, lighter: str, again: str):
    """What goes wrong with a cluster, as ClusterError."""
    try:
        yield
    except distributed.KilledWorker as error:
        raise ClusterError(
            f"`scheduler={address}`: a task ended several workers ({error}). Give them more memory, or {lighter}. "
            f"What is finished is kept: {again}."
        ) from None
    except (OSError, TimeoutError, distributed.CancelledError) as error:
        raise ClusterError(
            f"`scheduler={address}`: is gone ({type(error).__name__}). Start it again and {again}: what is finished "
            "is kept."
        ) from None


def _import_distributed():
    try:
        import distributed
    except ImportError:
        raise ClusterError(
            f"`scheduler` needs dask.distributed, which is not installed: pip install '{REQUIREMENT}'."
        ) from None
    return distributed


def _same(common: bytes) -> bytes:
    return common


def _call(function: Callable, common: bytes, task: tuple):
    """What a worker does: `function`, or what it refuses."""
    with _ONE_AT_A_TIME:
        try:
            return function(*_loaded(common), *task)
        except InputError as error:
            return _Refusal(str(error), of_data=not isinstance(error, ClusterError))
        except OSError as error:  # else it would look like one of the network
            what = error.filename or "file system"
            return _Refusal(f"on a worker: {what}: {error.strerror or error}", of_data=False)


# Bytes, not what they stand for: dask may send them on while a task works with that.
@functools.lru_cache(maxsize=1)
def _loaded(common: bytes) -> tuple:
    return pickle.loads(common)
