"""Files on disk: outputs appear whole or not at all, and names found in data never leave their folder."""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from fusiondet.errors import InputError

# Of the hidden directories of `atomic_path`: characters that `tempfile` draws, and the name of what is replaced.
_DRAWN, _REPLACED = 8, "replaced"
_WRITING_FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Whole numbers of fewer digits are within the range of floating point.
_FLOAT_DIGITS = 309
_DIGITS = re.compile(f"[0-9]{{{_FLOAT_DIGITS // 10}}}")


def check_name(path: str | Path) -> None:
    """Refuse a name that no file can be opened by, whether it is to be read or written.

    Raises:
        InputError: it holds a NUL or is not UTF-8; it is too long; it is a link that leads to itself; it cannot be
            looked at; or there is a device, pipe or socket, reading which may never end.
    """
    mode = _mode(path)
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: is not a file, but a device, a pipe or a socket. Name a file.")


def _mode(path: str | Path) -> int | None:
    """Return what kind of thing `path` is; None where there is nothing."""
    text = str(path)
    if "\0" in text:
        raise InputError(f"{text!r}: a file name cannot hold a NUL character. Name another file.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{ascii(text)}: the file name is not UTF-8, which the libraries that open it need. Rename the file."
        ) from None
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}). Name another file.") from None


def require_new(path: Path, overwrite: bool = False) -> Path:
    """`path` of a file to write, as a Path.

    Raises:
        InputError: it exists and `overwrite` is false; it is a directory or a device; or no file can be made there.
    """
    path = Path(path)
    check_name(path)
    if path.is_dir():
        raise InputError(f"{path}: is a directory, expected the name of a file to write.")
    if path.exists():
        _refuse_taken(path, overwrite)
    return _with_writable_parent(path)


def require_new_dir(path: Path, mark: str, overwrite: bool = False) -> Path:
    """`path` of a directory to make, as a Path; an empty one counts as new.

    Args:
        mark: name that every directory of this kind holds. One without it is never replaced: `--out` was mistyped.

    Raises:
        InputError: it exists and `overwrite` is false; it is not a directory of this kind; or it cannot be made there.
    """
    path = Path(path)
    mode = _mode(path)
    if mode is not None and not stat.S_ISDIR(mode):
        raise InputError(f"{path}: is not a directory. Choose another name for the directory to make.")
    if path.is_dir() and any(path.iterdir()):
        _refuse_taken(path, overwrite)
        if not (path / mark).exists():
            raise InputError(
                f"{path}: holds no {mark!r}, so it was not made by this tool and is not replaced. Choose another name."
            )
    return _with_writable_parent(path)


def _refuse_taken(path: Path, overwrite: bool) -> None:
    if not overwrite:
        raise InputError(
            f"{path}: already exists. Choose another name, or pass `overwrite=True` to replace it."
        )


def _with_writable_parent(path: Path) -> Path:
    there = next(p for p in path.absolute().parents if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"{path}: cannot be made, {there} is not a directory that may be written to. Choose another place."
        )
    # Under the name that a run uses: one that is killed just now leaves nothing that the next one does not remove.
    parts = there / parts_folder(path.absolute()).name
    try:
        # Permissions say yes to root also where nothing can be made (/proc), and nothing of long names and full disks.
        parts.mkdir(exist_ok=True)
        probe = tempfile.mkdtemp(prefix=f".{path.name}.", dir=parts)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be made in {there} ({error.strerror}). Choose another place or name."
        ) from None
    for made in (probe, parts):
        with contextlib.suppress(OSError):  # another run uses the folder
            os.rmdir(made)
    return path


def parts_folder(path: Path) -> Path:
    """The hidden folder beside `path` where a run that may be killed keeps what it has of it until it is whole."""
    path = Path(path)
    return path.with_name(f".{path.name}.parts")


def remove_half_written(folder: Path) -> None:
    """Remove what is hidden in `folder`, which is of one run alone: what an earlier one did not finish."""
    for left in folder.glob(".*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def remove_debris(folder: Path) -> None:
    """Remove what killed runs have left of `atomic_path` in `folder`, in which no other run works."""
    for left in Path(folder).glob(".*.*"):
        name, _, drawn = left.name[1:].rpartition(".")
        if len(drawn) == _DRAWN and left.is_dir() and not left.is_symlink():
            if {path.name for path in left.iterdir()} <= {name, _REPLACED}:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def naming(path: Path):
    """Errors of the file system in this block, which writes `path`, say so: libraries and full disks do not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


@contextlib.contextmanager
def _naming_failed_writes(path: Path):
    """`naming`, for a block that also reads: errors of reading, which name no file and have no number, stay."""
    try:
        yield
    except OSError as error:
        if error.errno not in _WRITING_FAILED:
            raise
        with naming(path):
            raise


def _holder(path: Path) -> Path:
    """A new hidden directory, in the `parts_folder` of `path` if there is one, else beside it; parents are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = parts_folder(path)
        folder = parts if parts.is_dir() else path.parent
        return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=folder))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _not_there(path, error) from None


def _not_there(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written there ({error.strerror}). Choose another place.")


@contextlib.contextmanager
def atomic_path(path: Path):
    """Yield a temporary path beside `path`, with its suffix; on success it replaces `path`, on any error it is removed.

    The parent directory is created. A killed process leaves at most a hidden directory `.name.*`, in the `parts_folder`
    of `path` where there is one, never half an output.
    """
    path = Path(path)
    holder = _holder(path)
    try:
        with _naming_failed_writes(path):
            yield holder / path.name
            os.replace(holder / path.name, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@contextlib.contextmanager
def atomic_dir(path: Path):
    """Like `atomic_path` for a directory: yields an empty one beside `path` that takes its place at the end."""
    path = Path(path)
    holder = _holder(path)
    fresh = holder / path.name
    fresh.mkdir()
    try:
        with _naming_failed_writes(path):
            yield fresh
            replace_dir(fresh, path, holder / _REPLACED)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def replace_dir(fresh: Path, path: Path, replaced: Path) -> None:
    """Move the directory `fresh` to `path`; what is there goes to `replaced`, and comes back where that fails."""
    if path.exists():
        os.replace(path, replaced)
    try:
        os.replace(fresh, path)
    except BaseException:
        if replaced.exists():
            os.replace(replaced, path)
        raise


def finite_or_none(value: float | None) -> float | None:
    """Return `value` as JSON can hold it: None for NaN and infinity."""
    return None if value is None or not math.isfinite(value) else float(value)


def write_json(data, path: Path, indent: int | None = None) -> None:
    """Write `data` as standard JSON (NaN and infinity refused with ValueError), whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump(data, f, indent=indent, allow_nan=False)


def read_json(path: Path):
    """The JSON document in `path`; InputError when missing, not a file, or not JSON."""
    path = Path(path)
    check_name(path)
    try:
        with open(path, encoding="utf-8") as f:
            return parse_json(f.read())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory, expected a JSON file.") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}). Is it the right file, and complete?") from None


def parse_json(text: str | bytes):
    """The JSON document `text`, from whomever it comes.

    A whole number beyond the range of floating point becomes infinite, as 1e400 does: no computation takes it, and
    Python refuses to read one of more than 4300 digits.

    Raises:
        ValueError: not JSON, or nested too deeply.
    """
    # Looking at each number costs half as much again as reading; a run of 309 digits shows in every tenth character.
    long = isinstance(text, bytes) or _DIGITS.search(text[::10])
    try:
        return json.loads(text, parse_int=_whole_number) if long else json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _whole_number(text: str) -> int | float:
    return int(text) if len(text) < _FLOAT_DIGITS else float(text)


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
        or not _has_bytes(name)
    ):
        raise InputError(
            f"file name {name!r} points outside its folder {root}. Use a name relative to that folder, without '..'."
        )
    return Path(root) / name


def _has_bytes(name: str) -> bool:
    """Whether a file system can have `name`: JSON can hold halves of characters."""
    try:
        return bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False
