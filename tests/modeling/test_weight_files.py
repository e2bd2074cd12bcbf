"""Weight files are found and opened: the model zoo's names, pickles of both numpys."""

import collections
import pickle

from fusiondet.errors import InputError
from fusiondet.modeling.weight_files import local_path, read_pickle

import numpy as np
import pytest


def test_missing_file_and_model_zoo_names(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="nowhere.pth: no such file"):
        local_path("nowhere.pth")
    name = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    expected = tmp_path / "detectron2" / "ImageNetPretrained" / "MSRA" / "R-50.pkl"
    with pytest.raises(
        InputError, match=f"https://dl.fbaipublicfiles.com/.*/R-50.pkl and store it as {expected}"
    ):
        local_path(name)
    expected.parent.mkdir(parents=True)
    expected.touch()
    assert local_path(name) == expected


def test_numpy_1_and_2_pickles_and_scalars_are_read(tmp_path):
    content = {
        "stem.conv1.weight": np.ones((2, 3, 7, 7), np.float32),
        "n": np.float32(3),
        "o": collections.OrderedDict(a=1),
    }
    for protocol in (2, 4, 5):
        data = pickle.dumps(content, protocol=protocol)
        for text in (data, data.replace(b"numpy._core", b"numpy.core")) if protocol == 2 else (data,):
            (tmp_path / "w.pkl").write_bytes(text)
            read = read_pickle(tmp_path / "w.pkl")
            assert np.array_equal(read["stem.conv1.weight"], content["stem.conv1.weight"]) and read["n"] == 3
