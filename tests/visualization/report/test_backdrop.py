"""The picture under the buildings: the right part, in its place, no larger than needed, out of overviews."""

from fusiondet.visualization.report.backdrop import MAX_SIDE_PX, picture_crs, read_picture
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, Resampling


def write(path, pixels: np.ndarray, **options):
    count, height, width = pixels.shape
    profile = {
        "driver": "GTiff",
        "crs": "EPSG:32631",
        "transform": Affine(2, 0, 5000, 0, -2, 9000),
        **options,
    }
    with rasterio.open(
        path, "w", count=count, height=height, width=width, dtype=pixels.dtype, **profile
    ) as target:
        target.write(pixels)
    return path


def test_part_around_the_buildings_lies_where_it_lay(tmp_path):
    pixels = np.zeros((1, 400, 400), np.uint8)
    pixels[0, 100:110, 200:210] = 200  # x 5400-5420, y 8780-8800
    path = write(tmp_path / "a.tif", pixels)
    picture = read_picture(path, (5380, 8760, 5440, 8820))
    left, bottom, right, top = picture.bounds
    assert left <= 5380 < 5440 <= right and bottom <= 8760 < 8820 <= top
    assert right - left <= 70 and picture.pixels.shape[:2] == ((top - bottom) / 2, (right - left) / 2)
    rows, columns = np.nonzero(picture.pixels[:, :, 0] > 128)
    assert picture.transform * (columns.min(), rows.min()) == (5400, 8800)
    assert picture.transform * (columns.max() + 1, rows.max() + 1) == (5420, 8780)
    assert picture.data_url().startswith("data:image/jpeg;base64,/9j/")
    assert picture_crs(path).to_epsg() == 32631


def test_large_raster_is_read_from_its_overview_and_covers_the_same_ground(tmp_path):
    halves = np.zeros((1, 5000, 4400), np.uint8)
    halves[:, :, 2200:] = 200
    path = write(tmp_path / "large.tif", halves, tiled=True, compress="deflate")
    with rasterio.open(path, "r+") as target:
        target.build_overviews([2], Resampling.nearest)
    # The overview stays what it was: who sees the halves has read it and not the pixels.
    with rasterio.open(path, "r+") as target:
        target.write(np.full_like(halves, 90))
    picture = read_picture(path, None)
    assert max(picture.pixels.shape) == MAX_SIDE_PX
    assert picture.bounds == pytest.approx((5000, -1000, 13800, 9000))
    middle = picture.pixels.shape[1] // 2
    assert picture.pixels[:, : middle - 2].max() < picture.pixels[:, middle + 2 :].min() - 100


def test_red_green_and_blue_are_found_by_name_and_other_rasters_are_grey(tmp_path):
    pixels = np.zeros((4, 20, 20), np.uint8)
    pixels[3, :, :10] = 200
    pixels[:3, :, 10:] = 20
    path = write(tmp_path / "irgb.tif", pixels)
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [ColorInterp.undefined, ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    red, green, blue = read_picture(path, None).pixels[10, 5]
    assert red > green + 100 and red > blue + 100
    grey = read_picture(
        write(tmp_path / "height.tif", np.arange(400, dtype=np.float32).reshape(1, 20, 20)), None
    )
    assert (grey.pixels[:, :, 0] == grey.pixels[:, :, 2]).all() and np.ptp(grey.pixels) > 200


def test_pixels_without_data_are_hatched_and_no_black(tmp_path):
    pixels = np.full((1, 40, 40), -9999, np.float32)
    pixels[0, :, 20:] = np.linspace(0, 50, 20)
    picture = read_picture(write(tmp_path / "a.tif", pixels, nodata=-9999), None)
    assert set(np.unique(picture.pixels[:, :20])) == {190, 214}


def test_raster_elsewhere_or_broken_is_refused(tmp_path):
    path = write(tmp_path / "a.tif", np.ones((1, 300, 300), np.uint8), compress="deflate")
    with raises_naming("a.tif", "EPSG:32631"):
        read_picture(path, (90_000, 8000, 91_000, 8100))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    (tmp_path / "cut.tif").write_bytes(data)
    with raises_naming("cut.tif"):
        read_picture(tmp_path / "cut.tif", None)
