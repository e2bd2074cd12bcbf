"""Hashes of content: the same bytes or values give the same text, on any machine."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from fusiondet.errors import InputError

_BLOCK_BYTES = 1 << 20


def sha256(parts: bytes | Iterable[bytes]) -> str:
    """Return the SHA-256 of bytes, or of several one after another, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in [parts] if isinstance(parts, bytes) else parts:
        digest.update(part)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content; InputError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return sha256(iter(lambda: file.read(_BLOCK_BYTES), b""))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None


def values_sha256(values) -> str:
    """Return the SHA-256 of plain values (whatever JSON can hold); the order of keys does not count."""
    return sha256(json.dumps(values, sort_keys=True).encode())


def file_state(path: Path) -> list | None:
    """Return [absolute path, bytes, time of the last change in ns], which changes when the file does; None: no file."""
    path = Path(path)
    try:
        state = path.stat()
    except OSError:
        return None
    return [str(path.absolute()), state.st_size, state.st_mtime_ns]
