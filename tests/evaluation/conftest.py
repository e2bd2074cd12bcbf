"""A submission to DFC2023 that tests may spoil."""

from fusiondet.evaluation.dfc2023_scoring import (
    read_truth,
)
from tests.support.contest_cases import Contest

import pytest


@pytest.fixture
def small(tmp_path):
    """(truth, folder of a submission without fault) of `Contest(3)`."""
    Contest(3).write(tmp_path)
    return read_truth(tmp_path / "ref/buildings_only_val.json", tmp_path / "ref/height"), tmp_path / "res"
