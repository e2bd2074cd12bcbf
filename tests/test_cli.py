"""Exit codes of the command-line tools, one line per error, and the seed."""

import argparse
import subprocess
import sys

from fusiondet import cli
from fusiondet.errors import InputError

import pytest


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("main", "code", "message"),
    [
        (lambda: None, None, ""),
        (lambda: 3, 3, ""),
        (lambda: fail(InputError("a.tif: no such file.")), 2, "error: a.tif: no such file.\n"),
        (
            lambda: fail(OSError(28, "No space left on device", "a.gpkg")),
            1,
            "error: a.gpkg: No space left on device\n",
        ),
        (lambda: fail(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_exit_codes_and_one_line(main, code, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    assert exit_.value.code == code and capsys.readouterr().err == message


def test_own_failures_show_where(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(lambda: 1 / 0)
    error = capsys.readouterr().err
    assert exit_.value.code == 1 and "ZeroDivisionError" in error and "failure of fusiondet itself" in error


def test_output_that_cannot_be_written_is_one_line():
    code = "from fusiondet import cli\ncli.run(lambda: print('x' * 100))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr == "error: file system: No space left on device\n"


def test_seed_comes_from_the_option_else_the_environment(monkeypatch, capsys):
    def seed(*words):
        parser = argparse.ArgumentParser()
        cli.seed_argument(parser)
        return parser.parse_args(words).seed

    monkeypatch.delenv("FUSIONDET_SEED", raising=False)
    assert seed() == 0
    monkeypatch.setenv("FUSIONDET_SEED", "7")
    assert seed() == 7 and seed("--seed", "3") == 3
    monkeypatch.setenv("FUSIONDET_SEED", "seven")
    with pytest.raises(SystemExit) as exit_:
        seed()
    assert exit_.value.code == 2 and "invalid int value: 'seven'" in capsys.readouterr().err
