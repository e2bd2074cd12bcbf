"""Changes of sound inputs: numbers, values and structure of JSON, text, and bytes.

Every function takes a `random.Random`, so that an input is determined by its seed.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Written as text and replaced after the dump: Python's own encoder would refuse them.
_RAW = {
    "@@DIGITS@@": "9" * 5000,
    "@@NEST@@": "[" * 20_000 + "]" * 20_000,
    "@@HUGE@@": "1" + "0" * 400,
    "@@OVERFLOW@@": "1e999",
}
NASTY_NUMBERS = (
    *(
        0,
        -1,
        1,
        2,
        -0.0,
        0.5,
        1e-320,
        1e-9,
        1e9,
        1e18,
        1e308,
        -1e308,
        float("nan"),
        float("inf"),
        -float("inf"),
    ),
    *(2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1),
    *("@@DIGITS@@", "@@HUGE@@", "@@OVERFLOW@@"),
)
NASTY_TEXTS = (
    *(
        "",
        " ",
        "x",
        "NaN",
        "0",
        "-1",
        "1e999",
        "true",
        "null",
        "é",
        "\udc80",
        "a\x00b",
        "a\nb",
        "..",
        "/",
        "../../x",
    ),
    *("x" * 300, "/dev/null", "/dev/zero", "{name}", "%s", "*", "a!b", "a;b", "http://127.0.0.1:9/x.json"),
)
NASTY_VALUES = (
    *NASTY_NUMBERS,
    *NASTY_TEXTS,
    *(None, True, False, [], [[]], [None], {}, {"a": 1}, {"": []}, [1, 2], [[0, 0, 1, 1]], ["x"], "@@NEST@@"),
)
NASTY_WORDS = (
    *("nan", "inf", "-inf", "-1", "0", "1", "2", "7", "0.5", "1e308", "-1e308", "1e-320", "1e999", "9" * 400),
    *("4294967296", "9223372036854775808", "-9223372036854775809", "1_000", "0x10", "٣", "1,5", "", " ", "x"),
    *(
        "true",
        "None",
        "[]",
        "{}",
        "[1,",
        "'",
        "\udcff",
        "é",
        "a\nb",
        "..",
        "x" * 300,
        "1+2",
        "a=b",
        "a=",
        "=",
        "*",
    ),
    *("EPSG:4326", "EPSG:99999999", "cuda:99", "meta", "/dev/null", "{name}", "%s", "--", "-"),
)


def change_json(path: Path, rng: random.Random, times: int | None = None) -> None:
    """Change the JSON document of a file in one to three places."""
    document = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        document = change_value(document, rng)
    text = json.dumps(document)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


def change_value(document: Any, rng: random.Random) -> Any:
    """Return the document with one change at a random place; every kind of place is as likely as any other."""
    places: dict[tuple, list[tuple]] = {}
    for place in _places(document):
        kind = tuple("*" if isinstance(key, int) else key for key in place)
        places.setdefault(kind, []).append(place)
    place = rng.choice(places[rng.choice(sorted(places, key=str))])
    if not place:
        return rng.choice(NASTY_VALUES)
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    rng.choice(_OPERATIONS)(parent, place[-1], rng)
    return document


def _places(value: Any, at: tuple = ()) -> list[tuple]:
    found = [at]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += _places(item, (*at, key))
    return found


def _replace(parent, key, rng: random.Random) -> None:
    parent[key] = rng.choice(NASTY_VALUES)


def _replace_number(parent, key, rng: random.Random) -> None:
    parent[key] = rng.choice(NASTY_NUMBERS)


def _delete(parent, key, rng: random.Random) -> None:
    del parent[key]


def _wrap(parent, key, rng: random.Random) -> None:
    parent[key] = rng.choice((lambda v: [v], lambda v: {"a": v}, str, lambda v: [v, v]))(parent[key])


def _scale(parent, key, rng: random.Random) -> None:
    value = parent[key]
    if isinstance(value, int | float):
        parent[key] = value * rng.choice((-1, 0, 1e9, 1e-9, 1e300, 1000))
    else:
        _replace(parent, key, rng)


def _rename(parent, key, rng: random.Random) -> None:
    if isinstance(parent, dict):
        parent[rng.choice(("", "x", f"{key} ", "id", str(key).upper()))] = parent.pop(key)
    else:
        parent.insert(key, parent[key])


def _move(parent, key, rng: random.Random) -> None:
    """Swap with a neighbour: a value of another type, often."""
    others = [k for k in (parent if isinstance(parent, dict) else range(len(parent))) if k != key]
    if others:
        other = rng.choice(others)
        parent[key], parent[other] = parent[other], parent[key]


def _shorten(parent, key, rng: random.Random) -> None:
    if isinstance(parent[key], list | str):
        parent[key] = parent[key][: rng.randrange(len(parent[key]) + 1)]
    else:
        _replace(parent, key, rng)


_OPERATIONS: tuple[Callable, ...] = (
    *(_replace, _replace, _replace, _replace_number, _replace_number),
    *(_delete, _delete, _wrap, _scale, _rename, _move, _shorten),
)


def change_bytes(path: Path, rng: random.Random) -> None:
    """Damage a file: cut, flip, overwrite, insert, or empty it."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) or 1)
        # Heads of files decide how the rest is read.
        at = at % 512 if rng.random() < 0.5 else at
        match rng.randrange(6):
            case 0:
                del data[at:]
            case 1:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                data[at : at + 8] = rng.randbytes(8)
            case 3:
                data[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
            case 4:
                data[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80"))
            case 5:
                del data[at : at + rng.choice((1, 16, 1000))]
    path.write_bytes(rng.choice((b"", b"\0" * 1000)) if rng.random() < 0.03 else bytes(data))


def change_text(path: Path, rng: random.Random) -> None:
    """Change lines or words of a text: dropped, doubled, replaced."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                del lines[at]
                lines = lines or [""]
            case 1:
                lines.insert(at, lines[at])
            case 2:
                words = lines[at].split(" ")
                words[rng.randrange(len(words))] = rng.choice(NASTY_WORDS)
                lines[at] = " ".join(words)
            case 3:
                cells = lines[at].split(",")
                cells[rng.randrange(len(cells))] = rng.choice(NASTY_WORDS)
                lines[at] = ",".join(cells)
            case 4:
                lines[at] = rng.choice(
                    ("\t", "&a [*a]", "? x", "!!python/name:os.system", "- 1", ": :", "2024-01-01")
                )
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
