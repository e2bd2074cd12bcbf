"""Rasters of classes: numbers, colours and names, what is never filled, and parts of windows."""

import json

from fusiondet.errors import InputError
from fusiondet.io.height_rasters import NO_CLASS, check_height_raster, class_raster

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

INF = float("inf")
GRID = from_origin(600_000, 5_800_000, 0.5, 0.5)
NAMES = ["low <vegetation>", "building", "tree"]


def test_a_raster_of_two_windows_and_a_part_that_is_never_filled(tmp_path):
    path = tmp_path / "classes.tif"
    numbers = np.arange(6 * 8).reshape(6, 8).astype(np.uint8) % 3
    with class_raster(path, (9, 8), GRID, "EPSG:32631", NAMES, {"weights": "model.pth"}) as raster:
        raster.fill({"classes": numbers[:, :5]}, (0, 0, 5, 6), (-INF, -INF, 4, 6))
        raster.fill({"classes": numbers[:, 3:]}, (3, 0, 5, 6), (4, -INF, INF, 6))
    with rasterio.open(path) as written:
        found, colours, tags = written.read(1), written.colormap(1), written.tags()
        assert (written.dtypes[0], written.nodata, written.crs) == ("uint8", NO_CLASS, "EPSG:32631")
        assert tags["weights"] == "model.pth" and json.loads(tags["CLASSES"]) == NAMES
        assert written.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    np.testing.assert_array_equal(found[:6], numbers)
    assert (found[6:] == NO_CLASS).all(), "not the first class"
    assert len({colours[i] for i in range(3)}) == 3 and all(colours[i][3] == 255 for i in range(3))
    text = (tmp_path / "classes.tif.aux.xml").read_text()
    assert "<Category>low &lt;vegetation&gt;</Category><Category>building</Category>" in text


def test_a_coarser_grid_gives_each_pixel_the_class_at_its_centre(tmp_path):
    numbers = np.array([[0, 1], [2, 0]], np.uint8)
    with class_raster(tmp_path / "c.tif", (4, 4), GRID, None, NAMES, grid_shape=(2, 2)) as raster:
        raster.fill({"classes": numbers}, (0, 0, 2, 2), (-INF, -INF, INF, INF))
    with rasterio.open(tmp_path / "c.tif") as written:
        np.testing.assert_array_equal(written.read(1), np.kron(numbers, np.ones((2, 2), int)))


def test_on_an_error_nothing_is_written(tmp_path):
    with pytest.raises(RuntimeError), class_raster(tmp_path / "c.tif", (4, 4), GRID, None, NAMES):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_another_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="c.png: classes are written as GeoTIFF"):
        check_height_raster(tmp_path / "c.png", what="classes")
