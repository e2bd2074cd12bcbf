"""Tiles of a conversion as pieces of its store: made by any executor, and not made again after a stop."""

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from fusiondet import cli
from fusiondet.converters.reports import Problems
from fusiondet.converters.source import Place, Source
from fusiondet.errors import InputError
from fusiondet.io.coco import tile_records
from fusiondet.jobs.executors import WorkerError, completed, open_executor
from fusiondet.jobs.store import Store

# Tiles of a piece: what a worker makes at a time, and what a stopped run loses.
CHUNK = 16
# Begin of the names of pieces with tiles that were made anew.
_REMADE = "remade"


class Shards:
    """Finished tiles in pieces of `CHUNK` tiles, in the order of their places; their rasters are in `store.made`.

    A line of a piece is JSON: i (number of the place), and either unusable (message), or image (record, null when the
    tile was left out), annotations, counts, problems [[kind, message]], notes.
    """

    def __init__(self, store: Store, places: list[Place], workers: int = 1, scheduler: str | None = None):
        """Settle who makes them; for `workers` and `scheduler` see `open_executor`."""
        self._store, self._places = store, places
        self._workers, self._scheduler = workers, scheduler
        self._names: list[str] = []
        self._remade: list[str] = []

    def make(self, source: Source, strict: bool) -> None:
        """Make what is not there yet."""
        jobs = {
            f"{first:09d}.jsonl": [
                (i, self._places[i]) for i in range(first, min(first + CHUNK, len(self._places)))
            ]
            for first in range(0, len(self._places), CHUNK)
        }
        self._names = list(jobs)
        lacking = self._store.lacking(jobs)
        if lacking:
            # Tiles made anew have taken the place of rasters that are about to be written again.
            for name in self._store.finished():
                if name.startswith(_REMADE):
                    self._store.discard(name)
        self._run(source, strict, jobs, lacking, "tiles")

    def remake(self, source: Source, strict: bool, replaced: dict[int, Place]) -> None:
        """Make tiles anew at smaller places; what they had written before is removed."""
        pairs = sorted(replaced.items())
        jobs = {f"{_REMADE}{k:09d}.jsonl": pairs[k : k + CHUNK] for k in range(0, len(pairs), CHUNK)}
        self._remade = list(jobs)
        lacking = self._store.lacking(jobs)
        # A tile that an earlier run made anew may have the name of the one that it replaces.
        to_make = {i for name in lacking for i, _ in jobs[name]}
        made_anew = self.remade_files(without=lacking)
        for line in self.lines():
            if line["i"] in to_make:
                remove_own(self._store.made, line["image"], made_anew)
        self._run(source, strict, jobs, lacking, "tiles at splits")

    def lines(self) -> Iterator[dict]:
        """Every tile as it was made first."""
        return (line for name in self._names for line in self._read(name))

    def remade(self) -> Iterator[dict]:
        """Tiles that were made anew."""
        return (line for name in self._remade for line in self._read(name))

    def remade_files(self, without: Collection[str] = ()) -> set[str]:
        """Return the names of the rasters of tiles that were made anew, but of those in the pieces `without`."""
        lines = (line for name in self._remade if name not in without for line in self._read(name))
        return {name for line in lines if line.get("image") for name in _own_files(line["image"])}

    def _read(self, name: str) -> Iterator[dict]:
        return map(json.loads, self._store.load(name).splitlines())

    def _run(
        self, source: Source, strict: bool, jobs: dict[str, list], lacking: set[str], label: str
    ) -> None:
        left = [(name, job) for name, job in jobs.items() if name in lacking]
        if not left:
            return

        function, common = _make_piece, (source, self._store.made, strict)
        with contextlib.ExitStack() as opened:
            if self._scheduler:
                mark = opened.enter_context(self._mark())
                function, common = _make_piece_on_cluster, (Path.cwd(), mark, *common)
            executor = opened.enter_context(
                open_executor(
                    self._workers,
                    self._scheduler,
                    preload=[__name__, type(source).__module__],
                    lighter="use smaller tiles",
                    again="repeat the command",
                )
            )
            pieces = completed(executor, function, common, left)
            for name, content in cli.progress(pieces, total=len(left), label=label, unit=f"{CHUNK} tiles"):
                self._store.save(name, content)

    @contextlib.contextmanager
    def _mark(self):
        """Have a file in the store, by which workers of a cluster find out that they see it."""
        # A name that nobody looked for before: network file systems remember what was not there.
        mark = self._store.folder / f"{uuid.uuid4().hex}.mark"
        mark.touch()
        try:
            yield mark
        finally:
            mark.unlink(missing_ok=True)


def _make_piece(source: Source, made: Path, strict: bool, name: str, job: list) -> tuple[str, bytes]:
    """Return the name and the content of a piece; its rasters are written to `made`."""
    lines = [{"i": i, **_make_line(source, place, made, strict)} for i, place in job]
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    return name, text.encode()


def _make_piece_on_cluster(folder: Path, mark: Path, source: Source, made: Path, *arguments):
    """`_make_piece` on a worker of a cluster, where `folder` is what relative paths start from.

    A worker that is taken for lost may still work: it writes the same rasters, and its piece is not kept.
    """
    if not mark.exists():
        raise WorkerError(
            f"{made.parent}: a worker on {socket.gethostname()} does not see this folder, beside `out`. With "
            "`scheduler`, the data and `out` have to be on a file system that all workers share under the same paths."
        )
    before = Path.cwd()
    try:
        # Not absolute paths instead: messages name files as the user did, whoever makes the tiles.
        os.chdir(folder)
        return _make_piece(source, made, *arguments)
    finally:
        os.chdir(before)


def _make_line(source: Source, place: Place, out: Path, strict: bool) -> dict:
    problems = Problems(strict)
    try:
        made = source.make(place, out, problems)
    except InputError as error:
        if strict:
            raise
        return {"unusable": str(error)}
    image, annotations = (None, []) if made.tile is None else tile_records(made.tile)
    return {
        "image": image,
        "annotations": annotations,
        "counts": made.counts,
        "notes": made.notes,
        "problems": [[kind, message] for kind, messages in problems.named.items() for message in messages],
        "problem_counts": problems.counts,
    }


def remove_own(out: Path, image: dict, kept: Collection[str] = ()) -> None:
    """Remove the rasters of a tile that were written for it; not what it refers to by a link, nor names in `kept`."""
    for name in _own_files(image):
        path = out / name
        owned = path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(out.resolve())
        if owned and name not in kept:
            path.unlink()


def _own_files(image: dict) -> list[str]:
    return [value for key, value in image.items() if key.endswith("file_name") and value]
