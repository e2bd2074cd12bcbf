"""What every command-line tool shares: exit codes, the progress bar, the seed."""

import os
import sys
import traceback

from fusiondet.errors import InputError


def run(main) -> None:
    """Call `main()` and exit: 0 when done, 2 with one line on stderr for bad input, 1 for a failure of our own."""
    try:
        code = main()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except OSError as error:
        print(f"error: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        code = 1
        _mute_broken_stdout()
    except Exception:
        traceback.print_exc()
        print(
            "error: this is a failure of fusiondet itself; please report it with the lines above.",
            file=sys.stderr,
        )
        code = 1
    sys.exit(code)


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
    import argparse

    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def band_number(text: str):
    """Argparse type of a band: a number from 1 on, or 1+4 for the mean power of bands 1 and 4, a tuple."""
    import argparse

    from fusiondet.io.bands import band_index

    try:
        return band_index(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seed_argument(parser) -> None:
    """Add `--seed`: default 0, or the environment's FUSIONDET_SEED."""
    parser.add_argument(
        "--seed",
        type=int,
        default=os.environ.get("FUSIONDET_SEED", "0"),  # text: argparse converts it, or says what is wrong
        help="random seed; the same seed gives the same result (default: %(default)s)",
    )
