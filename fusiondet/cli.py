"""The parts that all command-line tools share: exit codes, options in messages, the progress bar, the seed.

The library names parameters in its messages, in backticks: "Pass `overwrite=True` to replace it." A user of a tool
reads the tool's option instead: "Pass --overwrite to replace it." Tools therefore parse their arguments by `parse`,
print the library's notes by `say` and `note`, and are called by `run`, which prints errors.
"""

import argparse
import ast
import contextlib
import errno
import itertools
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fusiondet.errors import InputError
from fusiondet.files import check_name

# Errors of the file system that another name or place mends.
_BAD_NAME = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS
}  # fmt: skip
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PARAMETER = re.compile(r"`([A-Za-z_]\w*)(?:=([^`]*))?`")


class Option(NamedTuple):
    """An option of a tool, e.g. `--overwrite`; a switch takes no value."""

    flag: str
    is_switch: bool = False


@dataclass
class _Tool:
    """Parameter -> option of the tool that runs in this process; of tools that its messages also refer to."""

    options: Mapping[str, Option] = field(default_factory=dict)
    others: Callable[[], Mapping[str, Option]] = dict


_tool = _Tool()  # no tool is running: a program that uses the library reads the names of its parameters


def parse(
    parser: argparse.ArgumentParser,
    words: Sequence[str] | None = None,
    *,
    aliases: Mapping[str, str] | None = None,
    others: Callable[[], Mapping[str, Option]] = dict,
    intermixed: bool = False,
) -> argparse.Namespace:
    """Parse the arguments of the running tool, whose options messages name from then on.

    Args:
        words: the arguments; None takes the process's own.
        aliases: parameter of the library -> `dest` of the option that sets it, where they differ.
        others: returns the options of another tool that messages refer to, e.g. of the converter that made the data.
            It is called for a name that is no option of this tool.
        intermixed: positional arguments may stand between options.
    """
    global _tool
    args = (parser.parse_intermixed_args if intermixed else parser.parse_args)(words)
    options = options_of(parser, args)
    options |= {name: options[dest] for name, dest in (aliases or {}).items() if dest in options}
    _tool = _Tool(options, others)
    _check_files(args)
    return args


def _check_files(args: argparse.Namespace) -> None:
    """Refuse arguments that cannot be names of files; what is a name and what another text is not told apart."""
    values = itertools.chain.from_iterable(
        v if isinstance(v, list | tuple) else [v] for v in vars(args).values()
    )
    for value in values:
        if isinstance(value, Path) or (isinstance(value, str) and len(os.fsencode(value)) < 255):
            check_name(value)


def options_of(parser: argparse.ArgumentParser, args: argparse.Namespace | None = None) -> dict[str, Option]:
    """Return `dest` -> option of a parser, and of its subcommand that `args` chose (subparsers need a `dest`)."""
    options = {}
    for action in parser._actions:  # argparse offers no other way to ask for them
        if isinstance(action, argparse._SubParsersAction):
            chosen = action.choices.get(getattr(args, action.dest, None))
            if chosen is not None:
                options |= options_of(chosen, args)
        elif action.option_strings:
            flag = next((s for s in action.option_strings if s.startswith("--")), action.option_strings[0])
            options[action.dest] = Option(flag, action.nargs == 0)
    return options


def translate(text: str) -> str:
    """Replace parameters in backticks by options of the running tool; other words in backticks stay as they are.

    `overwrite` and `overwrite=True` become --overwrite, `sar_scale="db"` becomes --sar-scale db, and
    `rgb_bands=(3, 2, 1)` becomes --rgb-bands 3 2 1.
    """
    return _PARAMETER.sub(_option_text, text)


def _option_text(match: re.Match) -> str:
    name, value = match.groups()
    option = _tool.options.get(name) or _tool.others().get(name)
    if option is None:
        return match.group()
    if value is None or (option.is_switch and value == "True"):
        return option.flag
    if option.is_switch:
        return match.group()
    return f"{option.flag} {_words(value)}"


def _words(value: str) -> str:
    """Return a string or list of Python as it is typed in a shell; other text (a number, a path) stays as it is."""
    if not value.startswith(("'", '"', "[", "(")):
        return value
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    values = literal if isinstance(literal, list | tuple) else [literal]
    return " ".join(shlex.quote(str(item)) for item in values)


@contextlib.contextmanager
def own_options() -> Iterator[None]:
    """Keep the options of a tool to the block that parses them: errors leave it translated, then they are forgotten.

    A tool may run another one so (an ablation prepares its data sets), whose messages name the other one's options.
    """
    global _tool
    outer = _tool
    try:
        yield
    except InputError as error:
        error.args = tuple(translate(arg) if isinstance(arg, str) else arg for arg in error.args)
        raise
    except OSError as error:
        if error.filename is not None and error.errno in _FULL:
            again = translate(" with `resume=True`") if "resume" in _tool.options else ""
            error.advice = (
                ". It is not written, and what was there before is as it was. Make room and repeat the "
                f"command{again}."
            )
        raise
    finally:
        _tool = outer


def say(text: str) -> None:
    """Print a text of the library with the options of the running tool."""
    print(translate(text), flush=True)


def note(text: str) -> None:
    """Print a note of the library, "note: ...", with the options of the running tool."""
    say(f"note: {text}")


class Terminated(KeyboardInterrupt):
    """This process is to end, by SIGTERM or SIGHUP; what it has half-written is removed, and its workers end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number


def run(main) -> None:
    """Call `main()` and exit: 0 when done, 2 with one line on stderr for bad input, 1 for a failure of our own."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows ASCII only is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        with own_options(), _ended_by_signals():
            code = main()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as error:
        print("terminated" if isinstance(error, Terminated) else "interrupted", file=sys.stderr)
        code = getattr(error, "exit_code", 130)
    except OSError as error:
        print(_os_error_text(error), file=sys.stderr)
        code = 2 if error.filename is not None and error.errno in _BAD_NAME else 1
        _mute_broken_stdout()
    except Exception as error:
        code = _unexpected(error)
    sys.exit(code)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise `Terminated` meanwhile, unless the program that started this one handles them."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, _) -> None:
    raise Terminated(number)


def _os_error_text(error: OSError) -> str:
    text = f"error: {error.filename or 'file system'}: {error.strerror or error}"
    return text + getattr(error, "advice", "")


def _unexpected(error: Exception) -> int:
    """Print an error that no door has refused; returns the exit code."""
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        print(
            f"error: {ascii(error.object)}: the file name is not UTF-8, which the libraries that open it need. Rename "
            "the file.",
            file=sys.stderr,
        )
        return 2
    traceback.print_exc()
    print(
        "error: this is a failure of fusiondet itself; please report it with the lines above.",
        file=sys.stderr,
    )
    return 1


def _mute_broken_stdout() -> None:
    """Where the output cannot be written (full disk, closed pipe), spare the user Python's second complaint at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress(iterable, total: int | None = None, label: str = "", unit: str = "tile"):
    """`iterable` with a progress bar on stderr after two seconds; silent when stderr is not a terminal."""
    from tqdm import tqdm

    return tqdm(iterable, total=total, desc=label, unit=unit, delay=2, disable=not sys.stderr.isatty())


def positive(text: str) -> int:
    """Argparse type of a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def seed_argument(parser) -> None:
    """Add `--seed`: default 0, or the environment's FUSIONDET_SEED."""
    parser.add_argument(
        "--seed",
        type=int,
        default=os.environ.get("FUSIONDET_SEED", "0"),  # text: argparse converts it, or says what is wrong
        help="random seed; the same seed gives the same result (default: %(default)s)",
    )
