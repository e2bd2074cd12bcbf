"""The exception of bad input, and its message for a misspelt name."""

from fusiondet.errors import InputError, unknown_name
from tests.support.messages import missing_facts

import pytest


def test_bad_input_is_a_value_error():
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize(
    ("name", "known", "guess"),
    [
        ("dfc203", ["dfc2023", "spacenet"], "dfc2023"),
        ("DFC2023", ["dfc2023", "spacenet"], "dfc2023"),
        ("spacenet", {"SpaceNet": 1, "dfc2023": 2}, "SpaceNet"),
    ],
)
def test_the_nearest_name_is_suggested(name, known, guess):
    message = str(unknown_name("data set", name, known))
    assert missing_facts(message, "data set", repr(name), f"{guess!r}?", *known) == []


def test_nothing_near_lists_all_sorted():
    message = str(unknown_name("number", 7, [3, 1, 2]))
    assert missing_facts(message, 7, "1, 2, 3") == [] and "?" not in message


def test_without_any_known_name_the_message_is_complete():
    assert missing_facts(str(unknown_name("layer", "a", [])), "layer", "'a'", "none") == []
