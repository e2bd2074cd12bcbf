"""Annotation files are found from any folder nearby; a damaged one does not hide the others."""

import json

from fusiondet.doctor.split_source import annotation_files, read_splits
from tests.support.messages import missing_facts, raises_naming
from tests.support.tiny_city import write_split

import pytest


@pytest.fixture
def data(tmp_path):
    """A data set of two splits with 2 and 1 tiles."""
    write_split(tmp_path / "data", "train", (1, 2))
    write_split(tmp_path / "data", "val", (1,))
    return tmp_path / "data"


def test_splits_are_named_after_their_files(data):
    splits = read_splits(data)
    assert [(s.name, len(s.dataset.tiles), s.error) for s in splits] == [("train", 2, None), ("val", 1, None)]
    assert splits[0].document == json.loads((data / "annotations/train.json").read_text())


def test_one_file_is_one_split(data):
    (split,) = read_splits(data / "annotations/val.json")
    assert split.name == "val" and len(split.dataset.tiles) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "no JSON", '{"images": 3}'])
def test_a_damaged_file_is_named_and_the_others_are_read(data, content):
    (data / "annotations/val.json").write_text(content)
    train, val = read_splits(data)
    assert train.dataset is not None and val.dataset is None
    assert missing_facts(val.error, "val.json") == []
    assert isinstance(val.document, dict)


def test_no_readable_file_is_refused(data):
    for name in ("train", "val"):
        (data / f"annotations/{name}.json").write_text("[]")
    with raises_naming("train.json"):
        read_splits(data)


@pytest.mark.parametrize("place", ["..", "images", "annotations"])
def test_a_folder_beside_the_data_set_names_it(data, place):
    with raises_naming(data, "annotations/*.json"):
        annotation_files((data / place).resolve())


def test_nothing_near_is_refused(tmp_path):
    (tmp_path / "a/b/c").mkdir(parents=True)
    with raises_naming(tmp_path / "a/b/c", "annotations/*.json", "prepare_dataset.py"):
        annotation_files(tmp_path / "a/b/c")
    with raises_naming(tmp_path / "nowhere"):
        annotation_files(tmp_path / "nowhere")
