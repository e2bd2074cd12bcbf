"""Files on disk: outputs appear whole or not at all, and names found in data never leave their folder."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from fusiondet.errors import InputError


def require_new(path: Path, overwrite: bool = False) -> Path:
    """`path` as a Path, or InputError when it exists (an empty directory counts as new) and `overwrite` is false."""
    path = Path(path)
    taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if taken and not overwrite:
        raise InputError(f"{path}: already exists. Choose another name, or pass --overwrite to replace it.")
    return path


@contextlib.contextmanager
def atomic_path(path: Path):
    """Yield a temporary path beside `path`, with its suffix; on success it replaces `path`, on any error it is removed.

    The parent directory is created. A killed process leaves at most a hidden `.name.*` file, never half an output.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield holder / path.name
        os.replace(holder / path.name, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@contextlib.contextmanager
def atomic_dir(path: Path):
    """Like `atomic_path` for a directory: yields an empty one beside `path` that takes its place at the end."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    fresh = holder / path.name
    fresh.mkdir()
    try:
        yield fresh
        if path.exists():
            os.replace(path, holder / "replaced")
        try:
            os.replace(fresh, path)
        except BaseException:
            if (holder / "replaced").exists():
                os.replace(holder / "replaced", path)
            raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def write_json(data, path: Path, indent: int | None = None) -> None:
    """Write `data` as standard JSON (NaN and infinity refused with ValueError), whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump(data, f, indent=indent, allow_nan=False)


def read_json(path: Path):
    """The JSON document in `path`; InputError when missing, not a file, or not JSON."""
    path = Path(path)
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory, expected a JSON file.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}). Is it the right file, and complete?") from None


def safe_join(root: Path, name: str) -> Path:
    """`root / name` for a relative `name` from a data file; InputError if it could point outside `root`.

    Refused: absolute names, `..`, drive letters, URLs and GDAL's `/vsi…` file systems.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if (
        not name
        or "\0" in name
        or posix.is_absolute()
        or windows.drive
        or windows.root
        or ".." in windows.parts
        or "://" in name
    ):
        raise InputError(
            f"file name {name!r} points outside its folder {root}. Use a name relative to that folder, without '..'."
        )
    return Path(root) / name
