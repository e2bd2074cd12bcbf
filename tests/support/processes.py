"""Processes of tests: which are alive, and what a session has left."""

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path


def wait_for(condition, seconds: float = 60, what: str = "it"):
    """Wait until `condition()` is true and return that; an assertion fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.01)
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def alive_in_session(session: int) -> list[int]:
    """Processes of a session, as `subprocess.Popen(start_new_session=True).pid`, without their leader."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            if pid != session and os.getsid(pid) == session and is_alive(pid):
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


def workers_of(program: int) -> list[int]:
    """Worker processes of a program that leads its session: those that a server of its own has forked."""
    found = []
    for pid in alive_in_session(program):
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent != program:
            found.append(pid)
    return found


def start_program(code: str, *words) -> subprocess.Popen:
    """Start Python code, with the package and tests as they are here, in a session of its own."""
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, words)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(program: subprocess.Popen, *others: int) -> None:
    """Kill a program, as a machine without memory does, and other processes with it; nothing of it may stay alive."""
    for pid in others:
        os.kill(pid, signal.SIGKILL)
    program.kill()
    program.communicate()
    assert program.returncode == -signal.SIGKILL, "it had ended before"
    wait_for(lambda: not alive_in_session(program.pid), 20, "the end of all its processes")


# What changes a folder, as Python's audit events call it. GDAL's own writing is none of them, but its files get their
# names by one.
_COMMITS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


def die_at_change(number: int, function) -> bool:
    """Call `function()` in a fork that is killed just before its `number`-th change of the file system.

    Returns:
        Whether it was killed; else it has ended by itself, without an error.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.addaudithook(_Counter(lambda at: at == number and os.kill(os.getpid(), signal.SIGKILL)))
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"exit code {status}"
    return status != 0


def changes_of(function) -> int:
    """Return how many changes of the file system `function()` makes, in a fork."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        hook = _Counter()
        sys.addaudithook(hook)
        function()
        os.write(write_end, str(hook.count).encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end) as found:
        text = found.read()
    os.waitpid(child, 0)
    return int(text)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, by their relative names."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class _Counter:
    """An audit hook that counts changes, and calls `at` with the number of each before it is made."""

    def __init__(self, at=lambda number: None):
        self.count, self._at = 0, at

    def __call__(self, event: str, args: tuple) -> None:
        written = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if event in _COMMITS or written:
            self.count += 1
            self._at(self.count)


def show_and_sleep(folder: str) -> None:
    """Write a file named after this process to `folder`, then sleep for minutes: a worker that is to be stopped."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(300)


def has_lock(program: subprocess.Popen, parts: Path) -> bool:
    """Whether a program has ended or has locked an output by its `parts_folder`: it has imported everything by then."""
    if program.poll() is not None:
        return True
    try:
        return f"process {program.pid} on" in (parts / "lock").read_text()
    except OSError:
        return False
