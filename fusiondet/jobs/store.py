"""Finished pieces of one output on disk, from which a run that was stopped is resumed.

The pieces of `city.gpkg` are in the hidden folder `.city.gpkg.parts` beside it:

    lock               held by the run that works on the output; released when its process ends, however it ends
    fingerprint.json   plain values that the result follows from
    pieces/            a file per piece; its name holds a hash of its content, so that damage is noticed
    made/              where an output that is a folder grows, see `Store.publish`
    outputs.json       the files that this run makes, where they are several: a killed run may have finished some

A piece appears whole or not at all. Hidden files and folders in there are what a killed run has left half-written.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.files import naming, parts_folder, read_json, remove_half_written, replace_dir, write_json
from fusiondet.jobs.hashing import sha256
from fusiondet.locks import LOCK_FILE, lock

_FINGERPRINT, _OUTPUTS = "fingerprint.json", "outputs.json"
_HASH_DIGITS = 16


class Store:
    """The hidden folder of one output; see the module. A context manager, which unlocks the output at its end.

    It can be sent to other processes, which may `save` and `load`.

    Attributes:
        folder: of the store, absolute.
        made: folder in it that `publish` moves to the output.
    """

    def __init__(self, out: Path, fingerprint: dict, *, resume: bool | None = None, overwrite: bool = False):
        """Lock the output, and make the folder or take up what an earlier run has left in it.

        Args:
            out: file or folder that is to be made.
            fingerprint: plain values (of JSON) that the result follows from.
            resume: True: go on with the pieces that are there. False: refuse them, unless `overwrite`. None: go on
                where the fingerprint is the same, else begin again.
            overwrite: remove what is there, if not `resume`.

        Raises:
            InputError: another run works on the output; there are pieces, and neither `resume` nor `overwrite` is asked
                for; they follow from other values, or another version has left them; or the folder cannot be made.
        """
        self.out = Path(os.path.abspath(out))  # "." and ".." have no name to put beside
        self.folder = parts_folder(self.out)
        self.made, self._pieces = self.folder / "made", self.folder / "pieces"
        self._lock = lock(self.folder / LOCK_FILE, Path(out))
        self._paths = self._found()
        try:
            self._fingerprint = json.loads(json.dumps(fingerprint))
            self._begin(self._fingerprint, resume, overwrite)
        except BaseException:
            self._unlock()
            raise

    def _begin(self, fingerprint: dict, resume: bool | None, overwrite: bool) -> None:
        known = self.folder / _FINGERPRINT
        there = read_json(known) if known.is_file() else _announcement(self.out).get("fingerprint")
        # Finished blocks of a scene of 0.5, which had no fingerprint of this name.
        foreign = there is None and bool(self._paths or [*self.folder.glob("block-*.parquet")])
        if resume is None:
            resume, overwrite = there == fingerprint, True
        if foreign and not overwrite:
            raise InputError(
                f"{self.folder}: another version of fusiondet left it, which cannot be resumed. Pass "
                "`overwrite=True` to begin again."
            )
        if self._paths and not resume and not overwrite:
            raise InputError(
                f"{self.folder}: an earlier run left {len(self._paths)} finished pieces there. Pass `resume=True` to "
                "go on with them, or `overwrite=True` to begin again."
            )
        if (self._paths or announced(self.out)) and resume and not foreign and there != fingerprint:
            raise InputError(
                f"{self.folder}: the pieces there follow from other values ({'; '.join(changes(there, fingerprint))}). "
                "Give the options of the first run, or pass `overwrite=True` instead of `resume=True` to begin again."
            )
        # Without `made`, its run was killed when the output had just got there.
        if not (resume and there == fingerprint and self.made.is_dir()):
            self._clear()
        remove_half_written(self.folder)
        remove_half_written(self._pieces)
        write_json(fingerprint, known, indent=1)
        for folder in (self._pieces, self.made):
            folder.mkdir(exist_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __getstate__(self):
        return {**vars(self), "_lock": None}

    def finished(self) -> set[str]:
        """Return the names of the pieces that are there."""
        self._paths = self._found()
        return set(self._paths)

    def lacking(self, names: Iterable[str]) -> set[str]:
        """Return those of `names` whose piece is not there, or damaged."""
        there = self.finished()
        return {name for name in names if name not in there or self.load(name) is None}

    def save(self, name: str, content: bytes) -> None:
        """Keep a piece, in the place of what may be there under its name.

        Args:
            name: of a file, with a suffix, such as "block-0007.parquet".

        Raises:
            OSError: it could not be written; names the file.
        """
        path = self._path(name, content)
        unfinished = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            with naming(path):
                unfinished.write_bytes(content)
                os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        before = self._paths.get(name, path)
        if before != path:
            before.unlink(missing_ok=True)
        self._paths[name] = path

    def load(self, name: str) -> bytes | None:
        """Return a piece; None where it is not there, or damaged, which removes it."""
        if name not in self._paths:
            self._paths = self._found()
        path = self._paths.get(name)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:
            content = None
        if content is not None and self._path(name, content) == path:
            return content
        self.discard(name)
        return None

    def discard(self, name: str) -> None:
        """Remove a piece that is there."""
        self._paths.pop(name).unlink(missing_ok=True)

    def announce(self, outputs: Iterable[Path]) -> None:
        """Note the files that are going to be made, before the first of them is; see `announced`."""
        paths = [os.path.abspath(path) for path in outputs]
        write_json({"outputs": paths, "fingerprint": self._fingerprint}, self.folder / _OUTPUTS)

    def publish(self) -> None:
        """Move the folder `made` to the output, in the place of what may be there, and remove the store.

        What is hidden in it goes: processes that were killed have left it.
        """
        for folder, _, _ in os.walk(self.made):
            remove_half_written(Path(folder))
        replace_dir(self.made, self.out, self.folder / ".replaced")
        self.remove()

    def remove(self) -> None:
        """Remove the folder: the output is whole, or what is there is of no use."""
        self._clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._unlock()

    def close(self) -> None:
        """Unlock the output; where nothing is finished, remove the folder."""
        if self._lock is not None and not self.finished():
            self.remove()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            # Before it is unlocked: another run may take it up then.
            if self.folder.is_dir() and not self._content():
                shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.close()
            self._lock = None

    def _content(self) -> list[Path]:
        """What is in the folder but the lock, the announced outputs last: what is removed may be cut short."""
        found = [path for path in self.folder.iterdir() if path.name != LOCK_FILE]
        return sorted(found, key=lambda path: path.name == _OUTPUTS)

    def _clear(self) -> None:
        # Pieces first: what they tell of in `made` has to be there as long as they are.
        shutil.rmtree(self._pieces, ignore_errors=True)
        self._paths = {}
        for path in self._content():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _path(self, name: str, content: bytes) -> Path:
        stem, dot, suffix = name.rpartition(".")
        return self._pieces / f"{stem}-{sha256(content)[:_HASH_DIGITS]}{dot}{suffix}"

    def _found(self) -> dict[str, Path]:
        """Name -> file of the pieces on disk."""
        found = {}
        if self._pieces.is_dir():
            for path in self._pieces.iterdir():
                if not path.name.startswith("."):
                    found[f"{path.stem.rpartition('-')[0]}{path.suffix}"] = path
        return found


def clear_published(out: Path) -> None:
    """Remove the store of a folder that had just got its place when its run was killed."""
    folder = parts_folder(Path(os.path.abspath(out)))
    if folder.is_dir() and not (folder / "made").is_dir():
        with lock(folder / LOCK_FILE, Path(out)):
            if not (folder / "made").is_dir():
                shutil.rmtree(folder, ignore_errors=True)


def announced(out: Path) -> set[Path]:
    """Return the files that a run of `out` which did not end was going to make, absolute; see `Store.announce`.

    Those of them that are there have been made by it.
    """
    return set(map(Path, _announcement(out).get("outputs", [])))


def _announcement(out: Path) -> dict:
    path = parts_folder(Path(os.path.abspath(out))) / _OUTPUTS
    return read_json(path) if path.is_file() else {}


def changes(old: dict, new: dict) -> list[str]:
    """Return what differs between two fingerprints, as "key was a, is b"; of two lists their first difference."""
    found = []
    for key in {**old, **new}:
        was, now = old.get(key), new.get(key)
        if was == now:
            continue
        if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
            was, now = next((a, b) for a, b in zip(was, now) if a != b)
        found.append(f"{key} was {_short(was)}, is {_short(now)}")
    return found


def _short(value) -> str:
    # The end is where two of them differ: the beginning is mostly one and the same folder.
    text = json.dumps(value)
    return text if len(text) < 80 else "... " + text[-76:]
