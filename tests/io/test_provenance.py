"""What a layer was made with: the same for the same input, and read back from the file."""

import json

from fusiondet import __version__
from fusiondet.buildings import Building
from fusiondet.io.layer_writer import write_buildings
from fusiondet.io.layers import read_metadata
from fusiondet.io.provenance import acquisition_time, made_with

import numpy as np
import pytest
import rasterio
from shapely.geometry import box


def test_the_model_is_told_by_its_bytes(tmp_path):
    facts = made_with(tmp_path / "model_best.pth", "0f" * 32, "MODEL:\n  A: 1\n", {"sar": None}, gsd_m=0.5)
    assert facts["weights"] == "model_best.pth"
    assert facts["weights_sha256"] == "0f" * 32
    assert (
        facts["config"] == "MODEL:\n  A: 1\n" and facts["acquired"] == {"sar": None} and facts["gsd_m"] == 0.5
    )
    assert facts["versions"]["fusiondet"] == __version__ and facts["versions"]["shapely"]
    assert str(tmp_path) not in json.dumps(facts), "no path of the machine is in the file"
    assert list(made_with()) == ["versions"]
    write_buildings([Building(box(0, 0, 1, 1))], "EPSG:32631", tmp_path / "a.gpkg", facts)
    assert read_metadata(tmp_path / "a.gpkg") == facts


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
