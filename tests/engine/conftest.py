"""A data set for the tests of a training."""

from tests.support.tiny_city import write_split

import pytest


@pytest.fixture
def root(tmp_path):
    """Folder of two splits: four tiles to train on and two to test on, one of each without a building."""
    write_split(tmp_path, "train", (3, 2, 0, 4))
    write_split(tmp_path, "val", (2, 0), seed=5)
    return tmp_path
