"""Try the tools on bad inputs: `python -m tests.fuzz [--count N] [--door NAME ...] [--seed N]`.

Prints how many inputs had which outcome. Inputs that failed are kept below --out, each with the command that repeats
it. Exit status: 0 no failure, 1 failures.
"""

import argparse
import functools
import os
import pickle
import random
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fusiondet import cli
from fusiondet.errors import InputError
from tests.fuzz import doors, runner
from tests.fuzz.material import make


class Result(NamedTuple):
    """One input: its door and number, the words that were run on it, their outcome, what was printed, seconds."""

    door: str
    number: int
    words: list[str]
    outcome: str
    text: str
    seconds: float


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    top = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n\n")[1])
    top.add_argument(
        "--count", type=cli.positive, default=2000, metavar="N", help="inputs, shared by the doors"
    )
    top.add_argument("--door", nargs="+", choices=DOORS, default=list(DOORS), help="doors (default: all)")
    top.add_argument("--only", metavar="DOOR:NUMBER", help="repeat this input alone")
    top.add_argument("--seconds", type=float, default=60, metavar="S", help="limit of a run (default: 60)")
    top.add_argument("--minutes", type=float, default=60, metavar="M", help="limit of all runs (default: 60)")
    top.add_argument(
        "--jobs", type=cli.positive, default=2, metavar="N", help="runs side by side (default: 2)"
    )
    top.add_argument(
        "--out", type=Path, default=Path("output/fuzz"), metavar="DIR", help="folder for failures"
    )
    cli.seed_argument(top)
    return top


DOORS = ("json", "vectors", "rasters", "config", "arguments")


def main() -> int:
    """Try the inputs that the arguments ask for."""
    args = cli.parse(parser())
    out = args.out.resolve()
    with tempfile.TemporaryDirectory(prefix="fusiondet-fuzz-") as folder:
        root = Path(folder)
        material = make(root / "material")
        mains = runner.load_tools()
        if not args.only:
            _check_sound(mains, material, root / "sound")
        try_door = _doors(mains)
        jobs = _asked(args)
        deadline = time.monotonic() + 60 * args.minutes
        shutil.rmtree(out, ignore_errors=True)
        started, results = time.monotonic(), root / "results"
        results.mkdir()
        children = []
        for worker in range(args.jobs):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    mine = jobs[worker :: args.jobs]
                    _work(
                        mains, try_door, material, root / f"run{worker}", mine, args, deadline, results, out
                    )
                    status = 0
                finally:
                    sys.stdout.flush()
                    os._exit(status)
            children.append(child)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        found = [pickle.loads(path.read_bytes()) for path in sorted(results.iterdir())]
        print(_table(found), f"\n{len(found)} inputs in {time.monotonic() - started:.0f} s, seed {args.seed}")
        failed = [result for result in found if result.outcome in runner.FAILURES]
        if failed:
            print(f"{len(failed)} failures, each with its input and command below {out}")
        if len(found) < len(jobs):
            print(f"{len(jobs) - len(found)} inputs were not tried: out of time, or not to be made")
        return int(bool(failed) or any(statuses))


def _asked(args) -> list[tuple[str, int]]:
    """(door, number) of the inputs to try, the doors in turn."""
    if args.only:
        door, _, number = args.only.partition(":")
        if door not in DOORS or not number.isdigit():
            raise InputError(f"`only={args.only}`: expected DOOR:NUMBER, e.g. json:17.")
        return [(door, int(number))]
    return [(args.door[i % len(args.door)], i // len(args.door)) for i in range(args.count)]


def _doors(mains) -> dict[str, Callable]:
    options = doors.options_of_commands(mains)
    functions = (
        doors.json_door,
        doors.vector_door,
        doors.raster_door,
        doors.config_door,
        functools.partial(doors.argument_door, options=options),
    )
    return dict(zip(DOORS, functions, strict=True))


def _check_sound(mains, material: Path, folder: Path) -> None:
    """Every command has to work on sound inputs: else changes of them show nothing."""
    for name, command in doors.COMMANDS.items():
        runner.place(folder, material)
        outcome, text = runner.run(mains, command.split(), folder, 300)
        if outcome != "ok":
            raise RuntimeError(f"{name!r} does not work on sound inputs, {outcome}:\n{text[-3000:]}")
    shutil.rmtree(folder)


def _work(mains, try_door, material, folder, jobs, args, deadline, results, out) -> None:
    """Try `jobs` one after another."""
    warnings.simplefilter("ignore")
    for door, number in jobs:
        if time.monotonic() > deadline:
            return
        words = _made(try_door[door], material, folder, f"{args.seed}-{door}-{number}")
        if words is None:
            continue
        started = time.monotonic()
        outcome, text = runner.run(mains, words, folder, args.seconds)
        result = Result(door, number, words, outcome, text, time.monotonic() - started)
        (results / f"{door}-{number}").write_bytes(pickle.dumps(result))
        if outcome in runner.FAILURES:
            _keep(result, try_door[door], material, out, args.seed)
            last = next((line for line in reversed(text.splitlines()) if _telling(line)), "")
            print(f"{outcome}: {door}:{number} {words[0]}: {last[:160]}", flush=True)


def _telling(line: str) -> bool:
    return bool(line.strip()) and "failure of fusiondet itself" not in line


def _made(door: Callable, material: Path, folder: Path, seed: str) -> list[str] | None:
    """Make an input in `folder`; its words. In a process of its own: odd files can end the one that writes them."""
    words = folder.parent / f"{folder.name}.words"
    words.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            runner.place(folder, material)
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            os.chdir(folder)
            words.write_bytes(pickle.dumps(door(folder, random.Random(seed))))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return pickle.loads(words.read_bytes()) if words.is_file() else None


def _keep(result: Result, door: Callable, material: Path, out: Path, seed: int) -> None:
    """Copy a failing input to `out`, with the command and what it printed."""
    kept = out / f"{result.outcome}-{result.door}-{result.number}"
    _made(door, material, kept, f"{seed}-{result.door}-{result.number}")
    tool = runner.ROOT / "tools" / f"{result.words[0]}.py"
    line = shlex.join([sys.executable, str(tool), *result.words[1:]])
    again = f"{sys.executable} -m tests.fuzz --seed {seed} --only {result.door}:{result.number}"
    text = f"{result.text}\ncd {shlex.quote(str(kept))} && PYTHONPATH={runner.ROOT} {line}\n{again}\n"
    (out / f"{kept.name}.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
    (out / f"{kept.name}.words").unlink(missing_ok=True)


def _table(found: list[Result]) -> str:
    """Counts by door and outcome."""
    counts = Counter((result.door, result.outcome) for result in found)
    lines = [f"{'':10}" + "".join(f"{outcome:>13}" for outcome in runner.OUTCOMES)]
    for door in (*DOORS, "all"):
        chosen = [
            counts[door, o] if door != "all" else sum(counts[d, o] for d in DOORS) for o in runner.OUTCOMES
        ]
        lines.append(f"{door:10}" + "".join(f"{n:13}" for n in chosen))
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
