"""One run at a time writes an output: a second one is refused, and told which process is at work.

A lock is a file that the system locks (`flock`) for a process, so it ends with that process, however it ends. File
systems without such locks have the process and host in the file instead, and a lock of a process that is gone is taken
over.
"""

import contextlib
import errno
import os
import re
import shutil
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.files import parts_folder, remove_half_written, require_new

try:
    import fcntl
except ImportError:  # a system without it
    fcntl = None

LOCK_FILE = "lock"
_HOLDER = re.compile(r"process (\d+) on (.+)")
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


class Lock:
    """A lock that this process holds until it is closed; a context manager."""

    def __init__(self, descriptor: int):
        """`descriptor`: of the locked file."""
        self._descriptor: int | None = descriptor
        self._process = os.getpid()
        _held.add(self)

    def close(self) -> None:
        """Unlock."""
        if self._descriptor is None:
            return
        if self._process == os.getpid():  # else a fork drops its copy: the lock is not its own
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        self.close()


_held: weakref.WeakSet = weakref.WeakSet()


def _forget_in_fork() -> None:
    # Loader processes of a training outlive it when it is killed, and would keep its lock so long.
    for held in list(_held):
        held.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_fork)


def lock(path: Path, out: Path) -> Lock:
    """Lock the output `out` by the file `path`, which is made, and its folder.

    Raises:
        InputError: another run has the lock; or the file cannot be made.
    """
    path = Path(path)
    while True:
        descriptor = _opened(path, out)
        if descriptor is None:  # its run has just removed the folder
            continue
        try:
            _take(descriptor, path, out)
            same = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except FileNotFoundError:
            same = False
        except BaseException:
            os.close(descriptor)
            raise
        if same:
            return Lock(descriptor)
        os.close(descriptor)


@contextlib.contextmanager
def sole_writer(*outs: Path | None) -> Iterator[None]:
    """Keep other runs from writing the outputs `outs` meanwhile.

    Each has its `fusiondet.files.parts_folder` meanwhile, so that what a killed run leaves of it is in there, and
    nowhere else. What an earlier run left half-written there is removed first; what it finished stays.

    Args:
        outs: files or folders; None is skipped.

    Raises:
        InputError: another run writes one of them; or it cannot be made there.
    """
    with contextlib.ExitStack() as held:
        for out in {os.path.abspath(out): Path(out) for out in outs if out is not None}.values():
            held.enter_context(_alone(out))
        yield


@contextlib.contextmanager
def new_files(*paths: Path | None, overwrite: bool = False) -> Iterator[None]:
    """`sole_writer` of files that are not there yet, unless `overwrite`; None is skipped.

    Raises:
        InputError: see `fusiondet.files.require_new` and `sole_writer`.
    """
    wanted = [path for path in paths if path is not None]
    for path in wanted:
        require_new(path, overwrite)
    with sole_writer(*wanted):
        for path in wanted:  # another run may have been at work until just now
            require_new(path, overwrite)
        yield


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    folder = parts_folder(Path(os.path.abspath(out)))
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        with lock(folder / LOCK_FILE, out):
            remove_half_written(folder)
            try:
                yield
            finally:
                # Before it is unlocked: another run may take it up then.
                if folder.is_dir() and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
                    shutil.rmtree(folder, ignore_errors=True)
    finally:
        for parent in made:  # a refused run leaves no folders that were made for it
            with contextlib.suppress(OSError):
                parent.rmdir()


def _opened(path: Path, out: Path) -> int | None:
    """Return the opened file; None where its folder is gone again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{out}: cannot be written there ({error.strerror}). Choose another place."
        ) from None
    return None


def _take(descriptor: int, path: Path, out: Path) -> None:
    """Lock an open file and write to it who has it."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refused(out, _written(descriptor) or "unknown process") from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _take_by_name(descriptor, path, out)
        return
    with contextlib.suppress(OSError):  # a full disk: this is only for messages
        _write(descriptor, _own_name())


def _take_by_name(descriptor: int, path: Path, out: Path) -> None:
    """`_take` where the file system has no locks."""
    holder = _written(descriptor)
    if match := _HOLDER.fullmatch(holder):
        process, host = int(match[1]), match[2]
        if host != socket.gethostname():
            raise _refused(out, holder, f" If that process is gone, remove {path}.")
        if _is_alive(process):
            raise _refused(out, holder)
    _write(descriptor, _own_name())
    if _written(descriptor) != _own_name():  # another run took it at the same moment
        raise _refused(out, _written(descriptor))


def _refused(out: Path, holder: str, more: str = "") -> InputError:
    return InputError(
        f"{out}: another run is working on it ({holder}). Wait until it is done, or choose another name.{more}"
    )


def _own_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _written(descriptor: int) -> str:
    return os.pread(descriptor, 300, 0).decode(errors="replace")


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
