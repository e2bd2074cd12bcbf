"""Exit codes of the command-line tools, one line per error, and the seed."""

import argparse
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

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
            "error: a.gpkg: No space left on device. It is not written, and what was there before is as it was. Make "
            "room and repeat the command.\n",
        ),
        (lambda: open("a" * 300), 2, f"error: {'a' * 300}: File name too long\n"),
        (
            lambda: open("a/\udcff".replace("/", "")).close() or 1,
            2,
            "error: a\\udcff: No such file or directory\n",
        ),
        (lambda: fail(cli.Terminated(15)), 143, "terminated\n"),
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


def tool(words=(), **options):
    """A parser with an option of every kind, and a subcommand; its arguments are parsed as those of a running tool."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("-n", "--num-gpus", type=int)
    parser.add_argument("--rgb-bands", nargs="+", type=int)
    parser.add_argument("--window", dest="window_px", type=int)
    parser.add_argument("--class", dest="classes", action="append")
    commands = parser.add_subparsers(dest="command")
    for name in ("tiles", "masks"):
        command = commands.add_parser(name)
        command.add_argument("--sar-scale" if name == "tiles" else "--threshold")
    return cli.parse(parser, words, **options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pass `overwrite` or", "Pass --overwrite or"),
        ("Pass `overwrite=True` to", "Pass --overwrite to"),
        ("`overwrite=False` is", "`overwrite=False` is"),
        ("`num_gpus=3`: this machine has 1.", "--num-gpus 3: this machine has 1."),
        ("see `window_px`.", "see --window."),
        ("`rgb_bands=(3, 2, 1)`, `rgb_bands=[4]`", "--rgb-bands 3 2 1, --rgb-bands 4"),
        ("""`sar_scale="db"` `sar_scale='db'`""", "--sar-scale db --sar-scale db"),
        ("`sar_scale=SCALE`", "--sar-scale SCALE"),
        ("`sar_scale=/a b/c.tif`", "--sar-scale /a b/c.tif"),
        ("`classes='flat roof=1'`", "--class 'flat roof=1'"),
        ("`threshold` of another command", "`threshold` of another command"),
        ("`gpus` by the library's name", "--num-gpus by the library's name"),
        ('`ndsm="a.tif"` of another tool', "--ndsm a.tif of another tool"),
        ("`overwrite` of an `unknown` word", "--overwrite of an `unknown` word"),
        (
            "`rio edit-info --crs EPSG:n FILE`, `overwrite()`",
            "`rio edit-info --crs EPSG:n FILE`, `overwrite()`",
        ),
        ("overwrite, 'overwrite', `window`", "overwrite, 'overwrite', `window`"),
    ],
)
def test_parameters_in_backticks_become_options_of_the_running_tool(text, expected, capsys):
    assert cli.translate(text) == text, "no tool is running"
    tool(["tiles"], aliases={"gpus": "num_gpus"}, others=lambda: {"ndsm": cli.Option("--ndsm")})
    assert cli.translate(text) == expected
    cli.note(text)
    assert capsys.readouterr().out == f"note: {expected}\n"


def test_errors_are_printed_with_options(capsys):
    def main():
        tool(["masks"])
        fail(InputError("a.gpkg: already exists. Pass `overwrite=True`, or see `threshold` and `sar_scale`."))

    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    expected = "error: a.gpkg: already exists. Pass --overwrite, or see --threshold and `sar_scale`.\n"
    assert exit_.value.code == 2 and capsys.readouterr().err == expected
    assert cli.translate("`overwrite`") == "`overwrite`", "the tool has ended"


def test_a_tool_in_a_tool_has_its_own_options():
    tool(["tiles"])
    with pytest.raises(InputError, match="^see --threshold, `sar_scale`.$"), cli.own_options():
        tool(["masks"])
        fail(InputError("see `threshold`, `sar_scale`."))
    assert cli.translate("`threshold` `sar_scale`") == "`threshold` --sar-scale"


def ended(code, *words, **environment):
    """Exit code and stderr of a program that calls `cli.run(main)`."""
    program = f"import sys, signal\nfrom fusiondet import cli\n{code}\ncli.run(main)"
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=60,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict"}]
)
def test_a_terminal_that_knows_ascii_only(environment):
    code = "def main():\n    cli.note('40 m² × 3 °')\n    raise cli.InputError('grün.tif: no')"
    environment |= {"PYTHONIOENCODING": "ascii:strict"}
    assert ended(code, **environment) == (2, "note: 40 m\\xb2 \\xd7 3 \\xb0\n", "error: gr\\xfcn.tif: no\n")


@pytest.mark.parametrize(
    "code",
    [
        "import rasterio\ndef main():\n    rasterio.open('a\\udcff.tif')",
        "def main():\n    'a\\udcff.tif'.encode()",
    ],
)
def test_a_name_that_is_not_utf8_is_bad_input(code):
    status, _, error = ended(code)
    assert status == 2 and "a\\udcff.tif" in error and "not UTF-8" in error and "Traceback" not in error


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_end_cleans_up(tmp_path, name):
    code = (
        "import os, time\nfrom fusiondet.files import atomic_path\n"
        f"def main():\n    with atomic_path({str(tmp_path / 'a')!r}) as path:\n        path.touch()\n"
        f"        os.kill(os.getpid(), signal.{name})\n        time.sleep(30)"
    )
    # Where the tests themselves were started with nohup, their programs would ignore a hangup.
    code = f"signal.signal(signal.{name}, signal.SIG_DFL)\n{code}"
    assert ended(code) == (128 + getattr(signal, name), "", "terminated\n")
    assert list(tmp_path.iterdir()) == []


def test_a_hangup_that_nohup_ignores_is_ignored():
    code = "import os\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    code += "def main():\n    os.kill(os.getpid(), signal.SIGHUP)"
    assert ended(code)[0] == 0


class TestNamesOfFiles:
    @pytest.fixture
    def parse(self):
        parser = argparse.ArgumentParser()
        parser.add_argument("--rgb", type=Path, nargs="+")
        parser.add_argument("--out", type=Path)
        parser.add_argument("--text")
        return lambda *words: cli.parse(parser, list(map(str, words)))

    def test_any_file_that_can_be_made_or_read(self, parse, tmp_path):
        (tmp_path / "grün.tif").touch()
        args = parse("--rgb", tmp_path / "grün.tif", "b.tif", "--out", tmp_path, "--text", "x" * 5000)
        assert args.out == tmp_path

    @pytest.mark.parametrize("option", ["--rgb", "--out"])
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("a\udcff.tif", r"a\\udcff\.tif.*not UTF-8"),
            ("a\0b.tif", "NUL"),
            ("a" * 256, "cannot be opened .File name too long"),
            ("loop", "loop: cannot be opened .Too many levels of symbolic links"),
            ("pipe", "pipe: is not a file, but a device"),
            ("socket", "socket: is not a file, but a device"),
            ("/dev/zero", "/dev/zero: is not a file, but a device"),
        ],
    )
    def test_names_that_no_file_can_have(self, parse, tmp_path, option, name, message, monkeypatch):
        monkeypatch.chdir(tmp_path)
        os.symlink("loop", "loop")
        os.mkfifo("pipe")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("socket")
            with pytest.raises(InputError, match=message):
                parse(option, name)


def test_on_a_full_disk_a_tool_that_resumes_says_how(capsys):
    def main():
        parser = argparse.ArgumentParser()
        parser.add_argument("--resume", action="store_true")
        cli.parse(parser, [])
        raise OSError(28, "No space left on device", "a.gpkg")

    with pytest.raises(SystemExit, match="1"):
        cli.run(main)
    assert "Make room and repeat the command with --resume." in capsys.readouterr().err
