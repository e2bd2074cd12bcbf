"""Finished tiles of a conversion on disk: made by several processes, and not made again after a stop."""

import contextlib
import functools
import json
import os
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from fusiondet import cli
from fusiondet.converters.reports import Problems
from fusiondet.converters.source import Place, Source
from fusiondet.errors import InputError
from fusiondet.io.coco import tile_records
from fusiondet.jobs.dask_cluster import ClusterError, run_on_workers

# Tiles that a process makes at a time; what a stopped run loses.
CHUNK = 16


class Shards:
    """Finished tiles on disk, in files of `CHUNK` tiles in the order of their places.

    A line of a file is JSON: i (number of the place), and either unusable (message), or image (record, null when the
    tile was left out), annotations, counts, problems [[kind, message]], notes.
    """

    def __init__(self, folder: Path, places: list[Place], workers: int = 1, scheduler: str | None = None):
        """Settle who makes them.

        Args:
            folder: may hold what a stopped run has finished.
            workers: processes of this machine. scheduler: of dask.distributed, whose workers are used instead.
        """
        self.folder, self.places = folder, places
        self._workers, self._scheduler = workers, scheduler
        self._names: list[str] = []
        self._remade: list[str] = []

    def make(self, source: Source, out: Path, strict: bool) -> None:
        """Make what is not there yet."""
        jobs = {
            f"{first:09d}": [(i, self.places[i]) for i in range(first, min(first + CHUNK, len(self.places)))]
            for first in range(0, len(self.places), CHUNK)
        }
        self._names = list(jobs)
        self._run(source, out, strict, jobs, "tiles")

    def remake(self, source: Source, out: Path, strict: bool, replaced: dict[int, Place]) -> None:
        """Make tiles anew at smaller places; what they had written before is removed."""
        for line in self.lines():
            if line["i"] in replaced:
                remove_own(out, line["image"])
        pairs = sorted(replaced.items())
        jobs = {f"remade{k:09d}": pairs[k : k + CHUNK] for k in range(0, len(pairs), CHUNK)}
        self._remade = list(jobs)
        self._run(source, out, strict, jobs, "tiles at splits")

    def lines(self) -> Iterator[dict]:
        """Every tile as it was made first."""
        return (line for name in self._names for line in self._read(name))

    def remade(self) -> Iterator[dict]:
        """Tiles that were made anew."""
        return (line for name in self._remade for line in self._read(name))

    def _read(self, name: str) -> Iterator[dict]:
        with open(self.folder / f"{name}.jsonl", encoding="utf-8") as f:
            yield from map(json.loads, f)

    def _run(self, source: Source, out: Path, strict: bool, jobs: dict, label: str) -> None:
        left = [
            (self.folder / f"{name}.jsonl", job, out, strict)
            for name, job in jobs.items()
            if not (self.folder / f"{name}.jsonl").exists()
        ]
        bar = functools.partial(cli.progress, total=len(left), label=label, unit=f"{CHUNK} tiles")
        if self._scheduler:
            for _ in bar(self._run_on_cluster(source, left) if left else ()):
                pass
            return
        workers = min(self._workers, len(left))
        if workers <= 1:
            for work in bar(left):
                _make_shard(source, *work)
            return
        # A fork would inherit open files and threads of GDAL.
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _hold, (source,))
        try:
            for _ in bar(pool.map(_make_shard_here, left)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def _run_on_cluster(self, source: Source, left: list[tuple]) -> Iterator[None]:
        """Rasters are written by the workers, and so lie in a folder that all see; lines come back and are kept here.

        So a worker that is taken for lost, and still works, disturbs no file of lines.
        """
        # A name that nobody looked for before: network file systems remember what was not there.
        mark = self.folder / f"{uuid.uuid4().hex}.mark"
        mark.touch()
        results = run_on_workers(
            self._scheduler,
            _make_shard_there,
            (source, Path.cwd(), mark),
            left,
            lighter="use smaller tiles",
            again="repeat the command",
        )
        try:
            with contextlib.closing(results):
                for path, text in results:
                    _save(path, text)
                    yield
        finally:
            mark.unlink(missing_ok=True)


_held: Source | None = None


def _hold(source: Source) -> None:
    global _held
    _held = source


def _make_shard_here(work) -> None:
    _make_shard(_held, *work)


def _make_shard_there(source: Source, folder: Path, mark: Path, path: Path, job, out: Path, strict: bool):
    """(path, text) of a shard, on a worker of a cluster, where `folder` is what relative paths start from."""
    if not mark.exists():
        raise ClusterError(
            f"{out.parent}: a worker on {socket.gethostname()} does not see this folder, beside --out. With "
            "--scheduler, the data and --out have to be on a file system that all workers share under the same paths."
        )
    before = Path.cwd()
    try:
        # Not absolute paths instead: messages name files as the user did, whoever makes the tiles.
        os.chdir(folder)
        return path, _shard_text(source, job, out, strict)
    finally:
        os.chdir(before)


def _make_shard(source: Source, path: Path, job: list[tuple[int, Place]], out: Path, strict: bool) -> None:
    _save(path, _shard_text(source, job, out, strict))


def _shard_text(source: Source, job: list[tuple[int, Place]], out: Path, strict: bool) -> str:
    return "".join(
        json.dumps({"i": i, **_make_line(source, place, out, strict)}, allow_nan=False) + "\n"
        for i, place in job
    )


def _save(path: Path, text: str) -> None:
    # In a hidden folder of its own, so that a name serves where `atomic_path` would make a folder.
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


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


def remove_own(out: Path, image: dict) -> None:
    """Remove the rasters of a tile that were written for it; not what it refers to by a link."""
    for name in (value for key, value in image.items() if key.endswith("file_name") and value):
        path = out / name
        if path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(out.resolve()):
            path.unlink()
