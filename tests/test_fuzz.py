"""Bad inputs for the tools (`make fuzz`): failures are recognised as what they are, and inputs can be made again."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from fusiondet.errors import InputError
from tests.fuzz import runner
from tests.fuzz.mutations import change_bytes, change_json, change_text

import pytest


def refuse(text, *writes):
    def main():
        for name in writes:
            Path(name).write_text("x")
        raise InputError(text)

    return main


def _write_all():
    for name in ("out.json", "out/a.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")


def _fill_memory():
    return len(bytearray(runner.MEMORY_BYTES + (1 << 30)))


def _leave_a_process():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(60)


def _fail_to_write():
    raise OSError(errno.ENOSPC, "No space left on device", "out.json")


@pytest.mark.parametrize(
    ("main", "outcome"),
    [
        (lambda: None, "ok"),
        (_write_all, "ok"),
        (refuse("a.json: expected a list."), "refused"),
        (refuse("`overlap=3`: expected 1."), "refused"),
        (refuse("expected a list."), "unnamed"),
        (refuse("a.json: expected a list.", "out.json"), "leftover"),
        (refuse("a.json: expected a list.", "sound.json"), "leftover"),
        (
            lambda: Path("out.x").write_text("") and None or Path(".out.parts").write_text("") and None,
            "leftover",
        ),
        (lambda: Path("b.aux.xml").write_text("") and None, "leftover"),
        (lambda: 1 / 0, "traceback"),
        (_fill_memory, "traceback"),
        (lambda: Path("missing.json").read_text(), "refused"),
        (_fail_to_write, "own failure"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "crash"),
        (_leave_a_process, "hang"),
    ],
)
def test_outcomes_of_runs(tmp_path, main, outcome):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "sound.json").write_text("{}")
    found, text = runner.run({"tool": main}, ["tool"], folder, limit_s=1 if outcome == "hang" else 60)
    assert found == outcome, text


def test_inputs_are_determined_by_their_seed(tmp_path):
    sound = json.dumps({"a": [1, 2.5, {"b": "text", "c": None}], "d": [[0, 1], [2, 3]]}, indent=1)
    changed = {}
    for change in (change_json, change_bytes, change_text):
        for seed in range(40):
            twice = []
            for name in "xy":
                (tmp_path / name).write_text(sound)
                change(tmp_path / name, random.Random(seed))
                twice.append((tmp_path / name).read_bytes())
            assert twice[0] == twice[1]
            changed.setdefault(change, set()).add(twice[0])
    assert min(len(kinds) for kinds in changed.values()) > 25
