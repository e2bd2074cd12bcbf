"""One run of a tool on a changed input, in a process of its own with limits of time and memory."""

import contextlib
import importlib.util
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fusiondet import cli

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    *("prepare_dataset", "evaluate", "visualize", "predict_scene", "train_net", "doctor"),
    *("analyze_modalities", "ablate"),
)
# Failures first.
OUTCOMES = ("traceback", "crash", "hang", "leftover", "unnamed", "own failure", "refused", "ok")
FAILURES = OUTCOMES[:5]
MEMORY_BYTES = 6 << 30
# Home and temporary folder of a run: what is left there is a failure, too.
_ELSEWHERE = "elsewhere"
_FINISHED_PART = re.compile(r"\.[^/]+\.parts/pieces/.")
_TRACEBACK = "Traceback (most recent call last)"


def load_tools() -> dict[str, Callable]:
    """Name -> `main` of every tool that is tried."""
    mains = {}
    for name in TOOLS:
        spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        mains[name] = module.main
    return mains


def run(mains: dict[str, Callable], words: list[str], folder: Path, limit_s: float) -> tuple[str, str]:
    """Run `words`, a tool and its arguments, in `folder`.

    Args:
        folder: input of the run; what a sound run writes lies in `out*` in it.
        limit_s: seconds until the process is ended.

    Returns:
        One of `OUTCOMES`, and what the tool printed with the reason of the outcome.
    """
    log = folder.parent / f"{folder.name}.log"
    (folder / _ELSEWHERE).mkdir(exist_ok=True)
    before = _listing(folder)
    child = os.fork()
    if child == 0:
        _child(mains, words, folder, log)
    status = _wait(child, limit_s)
    text = log.read_text(encoding="utf-8", errors="replace")
    log.unlink()
    if status is None:
        return "hang", f"{text}\n(ended after {limit_s:g} s)"
    after = _listing(folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return _outcome(os.waitstatus_to_exitcode(status), text, changed, words, before)


def _child(mains, words: list[str], folder: Path, log: Path) -> None:
    """Never returns."""
    try:
        os.setsid()
        # An address space holds the libraries, too, which are large.
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 30,) * 2)
        os.chdir(folder)
        outside = str(folder / _ELSEWHERE)
        os.environ |= {
            "HOME": outside,
            "DETECTRON2_DATASETS": outside,
            "FVCORE_CACHE": outside,
            "TMPDIR": outside,
        }
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(out, stream)
        # As the interpreter opens them in a UTF-8 terminal.
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = [f"{words[0]}.py", *words[1:]]
        cli.run(mains[words[0]])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _wait(child: int, limit_s: float) -> int | None:
    """Exit status of the process; None when it was ended at the limit. Its own processes are ended with it."""
    deadline, pause = time.monotonic() + limit_s, 0.002
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            return status
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _listing(folder: Path) -> dict[str, tuple]:
    """Name below `folder` -> size and time of what lies there; links as links."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(parent, name)
            state = os.lstat(path)
            is_folder = os.path.isdir(path) and not os.path.islink(path)
            found[os.path.relpath(path, folder)] = (0, 0) if is_folder else (state.st_size, state.st_mtime_ns)
    return found


def _outcome(
    code: int, text: str, changed: list[str], words: list[str], before: dict[str, tuple]
) -> tuple[str, str]:
    if _TRACEBACK in text:
        return "traceback", text
    if code < 0:
        return "crash", f"{text}\n(ended by signal {-code})"
    if words[0] == "predict_scene" and any(_FINISHED_PART.match(name) for name in changed):
        # Documented: a scene that ends when parts are finished can be resumed.
        changed = [name for name in changed if not name.partition("/")[0].endswith(".parts")]
    names = ", ".join(changed[:8])
    # The doctor ends so where it found something.
    code = 0 if code == 1 and re.search(r"^\d+ checks: ", text, re.MULTILINE) else code
    if code == 2:
        if changed:
            return "leftover", f"{text}\n(refused, and left or changed {names})"
        return ("refused" if _names_something(text, words) else "unnamed"), text
    # Outputs are what the command line names, or lies beside it: a style, a table of attributes.
    new = [word for word in words[1:] if word and (word not in before or "--overwrite" in words)]
    named = ("out", *(os.path.splitext(word)[0] for word in new))
    debris = [name for name in changed if not name.startswith(named) or re.search(r"(^|/)\.[^/]+\.", name)]
    if debris and code == 0:
        return "leftover", f"{text}\n(left or changed {', '.join(debris[:8])})"
    return ("ok" if code == 0 else "own failure"), text


def _names_something(text: str, words: list[str]) -> bool:
    """Whether a refusal names a file, an option, a config key, or a word of the command line."""
    lines = [line for line in text.splitlines() if "error: " in line]
    names = re.compile(r"[/\\]|\.[a-z]{2,}|--?[a-z]|[A-Z]{3,}|'|`|\b[A-Z]+:")
    return any(
        names.search(line) or any(f"error: {word or '.'}: " in line for word in words) for line in lines
    )


def place(folder: Path, material: Path) -> None:
    """A fresh copy of `material` as `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(material, folder)
