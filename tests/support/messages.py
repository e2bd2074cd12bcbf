"""Messages are checked by the facts in them, so that their wording can be mended without touching a test."""

import contextlib
import re
from collections.abc import Iterator

from fusiondet.errors import InputError

import pytest


@contextlib.contextmanager
def raises_naming(*facts, error: type[Exception] = InputError) -> Iterator[pytest.ExceptionInfo]:
    """Expect an `error` whose message contains every fact: `with raises_naming("scene.tif", "3 bands", 4): ...`."""
    with pytest.raises(error) as caught:
        yield caught
    assert missing_facts(str(caught.value), *facts) == [], str(caught.value)


def missing_facts(text: str, *facts) -> list[str]:
    """Facts that `text` does not contain.

    A fact is a name, a number, a path, a key or a few words, compared as text; spaces match line breaks. It has to
    stand alone: 4 is not in "14" or "4.5". `sar_scale` also matches the spelling of an option, `--sar-scale`.
    """
    return [str(fact) for fact in facts if not re.search(_pattern(str(fact)), text)]


def _pattern(fact: str) -> str:
    escaped = re.escape(fact).replace("\\ ", r"\s+").replace("_", "[_-]")
    before = r"(?<![A-Za-z0-9])(?<!\d\.)" if fact[:1].isalnum() else ""
    after = r"(?![A-Za-z0-9])(?!\.\d)" if fact[-1:].isalnum() else ""
    return before + escaped + after
