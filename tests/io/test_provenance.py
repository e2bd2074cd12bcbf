"""What a layer was made with: the same for the same input, and read back from the file."""

import hashlib
import json

from fusiondet import __version__
from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.io.layer_writer import write_buildings
from fusiondet.io.layers import read_metadata
from fusiondet.io.provenance import acquisition_time, made_with

import numpy as np
import pytest
import rasterio
from shapely.geometry import box


def test_the_model_is_told_by_its_bytes(tmp_path):
    (tmp_path / "model_best.pth").write_bytes(b"weights" * 400_000)
    (tmp_path / "copy.pth").write_bytes(b"weights" * 400_000)
    facts = made_with(tmp_path / "model_best.pth", "MODEL:\n  A: 1\n", {"sar": None}, gsd_m=0.5)
    assert facts["weights"] == "model_best.pth"
    assert facts["weights_sha256"] == hashlib.sha256(b"weights" * 400_000).hexdigest()
    assert (
        facts["config"] == "MODEL:\n  A: 1\n" and facts["acquired"] == {"sar": None} and facts["gsd_m"] == 0.5
    )
    assert facts["versions"]["fusiondet"] == __version__ and facts["versions"]["shapely"]
    assert str(tmp_path) not in json.dumps(facts), "no path of the machine is in the file"
    assert made_with(tmp_path / "copy.pth")["weights_sha256"] == facts["weights_sha256"]
    assert list(made_with()) == ["versions"]
    write_buildings([Building(box(0, 0, 1, 1))], "EPSG:32631", tmp_path / "a.gpkg", facts)
    assert read_metadata(tmp_path / "a.gpkg") == facts
    with pytest.raises(InputError, match=r"gone.pth: cannot be read \(No such file"):
        made_with(tmp_path / "gone.pth")


@pytest.mark.parametrize(
    ("namespace", "stated", "expected"),
    [
        ("IMAGERY", "2019-08-22 07:06:10", "2019-08-22T07:06:10"),
        (None, "2019-08-22T07:06:10Z", "2019-08-22T07:06:10+00:00"),
        (None, "last summer", None),
        (None, None, None),
    ],
)
def test_the_time_is_the_one_that_the_image_states(tmp_path, namespace, stated, expected):
    place = {"crs": "EPSG:32631", "transform": rasterio.Affine(1, 0, 5e5, 0, -1, 5e6)}
    with rasterio.open(tmp_path / "a.tif", "w", "GTiff", 4, 4, 1, dtype="uint8", **place) as file:
        file.write(np.ones((1, 4, 4), np.uint8))
        file.update_tags(TIFFTAG_DATETIME="2024:01:01 00:00:00")
        if stated:
            file.update_tags(ns=namespace, ACQUISITIONDATETIME=stated)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert acquisition_time(file) == expected
