"""Processes of tests: which are alive, and what a session has left."""

import os
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


def command_line(pid: int) -> str:
    """Of a process, words separated by blanks."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
