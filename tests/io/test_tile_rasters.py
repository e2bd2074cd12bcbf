"""The image of a tile: windows of mosaics, bands by name, missing modalities, statistics."""

from fusiondet.buildings import Tile
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from fusiondet.io.tile_rasters import TileRaster, band_statistics, read_tile, read_tile_image, tile_rasters
from tests.support.messages import raises_naming
from tests.support.tiny_city import write_raster

import numpy as np
import pytest

SPEC = BandSpec(("red", "green"), ("HH",), "db")


@pytest.fixture
def data(tmp_path):
    """A data set with the tile a, 6 x 4 px: red is 10 y + x, green 100 more, HH -x dB."""
    rows, columns = np.indices((4, 6), np.float32)
    red = 10 * rows + columns
    red_green = np.stack([red, red + 100])
    red_green[:, 0, 3] = -1
    write_raster(tmp_path / "a.tif", red_green, nodata=-1)
    write_raster(tmp_path / "a_sar.tif", -columns[None])
    tile = Tile("a.tif", 6, 4, 0.5, sar_file_name="a_sar.tif")
    return Dataset([tile], SPEC, root=tmp_path), tile


def test_bands_are_stacked_in_the_order_asked_for(data):
    dataset, tile = data
    image = read_tile(dataset, tile)
    assert image.shape == (3, 4, 6) and image.dtype == np.float32
    assert image[0, 2, 3] == 23 and image[2, 2, 3] == -3 and np.isnan(image[:2, 0, 3]).all()
    other = read_tile(dataset, tile, BandSpec(("green",), (), ""))
    np.testing.assert_array_equal(other[0], image[1])


def test_a_window_is_that_part_of_the_image(data):
    dataset, tile = data
    whole = read_tile(dataset, tile)
    np.testing.assert_array_equal(read_tile(dataset, tile, window=(2, 1, 3, 2)), whole[:, 1:3, 2:5])


def test_a_tile_that_is_a_window_of_a_mosaic(data):
    dataset, tile = data
    whole = read_tile(dataset, tile)
    part = Tile("a.tif", 3, 2, 0.5, sar_file_name="a_sar.tif", window=(1, 1, 3, 2), sar_window=(1, 1, 3, 2))
    np.testing.assert_array_equal(read_tile(dataset, part), whole[:, 1:3, 1:4])
    np.testing.assert_array_equal(read_tile(dataset, part, window=(1, 0, 2, 1)), whole[:, 1:2, 2:4])
    with raises_naming("a.tif", (2, 0, 2, 1)):
        read_tile(dataset, part, window=(2, 0, 2, 1))


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        (None, None, None),
        (None, (1, 2, 3, 4), (1, 2, 3, 4)),
        ((5, 6, 7, 8), None, (5, 6, 7, 8)),
        ((5, 6, 7, 8), (1, 2, 3, 4), (6, 8, 3, 4)),
    ],
)
def test_windows_within_windows(own, asked, expected, tmp_path):
    assert TileRaster(tmp_path / "a.tif", own).part(asked) == expected


def test_a_missing_modality_is_nan(data):
    dataset, tile = data
    image = read_tile(dataset, Tile("a.tif", 6, 4, 0.5))
    assert np.isnan(image[2]).all() and np.isnan(image[0]).sum() == 1
    with raises_naming("optical", "SAR"):
        read_tile_image(None, None, SPEC, SPEC)


def test_the_only_raster_of_a_radar_data_set_is_its_sar_raster(tmp_path):
    dataset = Dataset([], BandSpec((), ("HH",), "db"), root=tmp_path)
    assert tile_rasters(dataset, Tile("a.tif", 6, 4, 0.5)) == (None, TileRaster(tmp_path / "a.tif"))


def test_files_that_do_not_fit_are_named(data, tmp_path):
    dataset, tile = data
    with raises_naming("a_sar.tif", 1, 2, "red, green"):
        read_tile(dataset, Tile("a_sar.tif", 6, 4, 0.5))
    write_raster(tmp_path / "large.tif", np.zeros((1, 5, 6), np.float32))
    with raises_naming("large.tif", "6 x 5", "a.tif", "6 x 4"):
        read_tile(dataset, Tile("a.tif", 6, 4, 0.5, sar_file_name="large.tif"))
    with raises_naming("gone.tif"):
        read_tile(dataset, Tile("gone.tif", 6, 4, 0.5))


def test_statistics_leave_no_data_out_and_a_constant_band_has_a_spread_of_one(data, tmp_path):
    dataset, tile = data
    mean, std = band_statistics(dataset)
    image = read_tile(dataset, tile)
    assert mean == pytest.approx(np.nanmean(image, axis=(1, 2)))
    assert std == pytest.approx(np.nanstd(image, axis=(1, 2)))
    write_raster(tmp_path / "flat.tif", np.full((2, 4, 6), 7, np.uint8))
    flat = Dataset([Tile("flat.tif", 6, 4, 0.5)], BandSpec(("red", "green")), root=tmp_path)
    assert [a.tolist() for a in band_statistics(flat)] == [[7, 7], [1, 1]]


def test_a_band_without_any_pixel_is_named(data):
    dataset, _ = data
    with raises_naming("'HH'", 1):
        band_statistics(Dataset([Tile("a.tif", 6, 4, 0.5)], SPEC, root=dataset.root))
