"""Hashes of bytes, files and values."""

import hashlib
import os

from fusiondet.errors import InputError
from fusiondet.jobs.hashing import file_sha256, file_state, sha256, values_sha256

import pytest


def test_parts_hash_as_their_sum(tmp_path):
    content = os.urandom(3_000_000)
    expected = hashlib.sha256(content).hexdigest()
    (tmp_path / "a").write_bytes(content)
    assert sha256(content) == sha256(content[i : i + 7919] for i in range(0, len(content), 7919)) == expected
    assert file_sha256(tmp_path / "a") == expected


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="gone.pth"):
        file_sha256(tmp_path / "gone.pth")
    with pytest.raises(InputError, match=str(tmp_path)):
        file_sha256(tmp_path)


def test_values_hash_without_the_order_of_keys():
    assert values_sha256({"a": 1, "b": [2.5, None]}) == values_sha256({"b": [2.5, None], "a": 1})
    assert values_sha256({"a": 1}) != values_sha256({"a": 2})


def test_the_state_of_a_file_changes_with_it(tmp_path):
    path = tmp_path / "a"
    assert file_state(path) is None
    path.write_text("1")
    first = file_state(path)
    os.utime(path, ns=(0, 1))
    assert first != file_state(path) == [str(path), 1, 1]
