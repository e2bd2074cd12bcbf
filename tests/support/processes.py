"""Processes of tests: which are alive, and what a session has left."""

import os
import signal
import subprocess
import sys
import time
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
