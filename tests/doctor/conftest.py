"""Two small cities that differ in one thing, made once: the SAR pictures of the second are 6 pixels off."""

import shutil
from dataclasses import replace

from fusiondet.doctor.samples import chosen_tiles, read_samples
from fusiondet.doctor.split_source import read_splits
from fusiondet.synthetic.dataset import Faults, Recipe, write_dataset
from fusiondet.synthetic.presets import preset

import pytest

RECIPE = Recipe(preset("realistic"), size_px=160, seed=21)


@pytest.fixture(scope="session")
def city(tmp_path_factory):
    """A data set without faults: 10 tiles to train, 5 to validate on, three acquisitions. Copy it to change it."""
    root = tmp_path_factory.mktemp("doctor") / "city"
    write_dataset(RECIPE, {"train": 10, "val": 5}, root)
    return root


@pytest.fixture(scope="session")
def shifted_city(tmp_path_factory):
    """The same with every SAR picture 6 pixels off."""
    root = tmp_path_factory.mktemp("doctor") / "shifted"
    write_dataset(replace(RECIPE, faults=Faults(sar_shift_px=(6.0, 6.0))), {"train": 10, "val": 5}, root)
    return root


@pytest.fixture
def copy_of_city(city, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(city, tmp_path / "city")


@pytest.fixture(scope="session")
def samples(city):
    """All tiles of the city with their pixels. Replace, never write into them."""
    return list(read_samples(chosen_tiles(read_splits(city), 15)))


@pytest.fixture(scope="session")
def shifted_samples(shifted_city):
    """All tiles of the shifted city."""
    return list(read_samples(chosen_tiles(read_splits(shifted_city), 15)))
