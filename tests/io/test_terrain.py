"""Elevation of the ground under outlines, from terrain models whose numbers are known."""

from fusiondet.io.terrain import GROUND_RINGS_M, HIGHEST_M, LOWEST_M, GroundRaster, ground_around
from tests.support.messages import raises_naming
from tests.support.tiny_city import write_raster

import numpy as np
import pytest
import rasterio
from pyproj import CRS
from rasterio.transform import from_origin
from shapely.affinity import translate
from shapely.geometry import box

UTM = CRS("EPSG:32631")
METRE = from_origin(600000, 5800000, 1, 1)


def ground(path, outlines, crs=UTM):
    with GroundRaster(path, crs) as raster:
        return raster(np.array(outlines, object))


def under(x0, y0, x1, y1):
    """Box in metres right and down of the upper left corner."""
    return box(600000 + x0, 5800000 - y1, 600000 + x1, 5800000 - y0)


@pytest.fixture
def slope(tmp_path):
    """20 x 20 m that rise by 1 m per metre to the east; column i is i m high."""
    path = tmp_path / "dtm.tif"
    write_raster(path, np.tile(np.arange(20, dtype=np.float32), (1, 20, 1)), transform=METRE, nodata=-9999)
    return path


def test_the_median_of_the_pixels_under_an_outline(slope):
    found = ground(slope, [under(0, 0, 3, 3), under(10, 5, 15, 9), under(19, 19, 40, 40)])
    assert found.tolist() == [1.0, 12.0, 19.0]


def test_an_outline_smaller_than_a_pixel_and_one_elsewhere(slope):
    found = ground(slope, [under(7.4, 3.4, 7.5, 3.5), under(50, 50, 60, 60), under(-9, 0, -1, 9)])
    assert found[0] == 7.0 and np.isnan(found[1:]).all()


def test_outlines_come_in_their_own_crs(slope):
    from pyproj import Transformer
    from shapely import transform

    to_degrees = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    degrees = transform(under(10, 5, 15, 9), to_degrees.transform, interleaved=False)
    assert ground(slope, [degrees, translate(degrees, 90)], CRS("EPSG:4326")) == pytest.approx(
        [12.0, np.nan], nan_ok=True
    )


def test_no_data_and_impossible_elevations_do_not_count(tmp_path):
    elevation_m = np.full((1, 4, 4), 5.0, np.float32)
    elevation_m[0, 0] = [-9999, LOWEST_M - 1, HIGHEST_M + 1, np.nan]
    write_raster(tmp_path / "dtm.tif", elevation_m, transform=METRE, nodata=-9999)
    assert ground(tmp_path / "dtm.tif", [under(0, 0, 4, 4)]).tolist() == [5.0]
    assert ground(tmp_path / "dtm.tif", [under(0, 0, 4, 1)]).tolist() == [5.0]  # of what is around it
    write_raster(tmp_path / "none.tif", elevation_m[:, :1], transform=METRE, nodata=-9999)
    assert np.isnan(ground(tmp_path / "none.tif", [under(0, 0, 4, 1)])).all()


def test_the_vertical_system_is_that_of_the_file(slope, tmp_path):
    with GroundRaster(slope, UTM) as raster:
        assert raster.vertical_crs is None
    write_raster(tmp_path / "nap.tif", np.zeros((1, 2, 2), np.float32), crs="EPSG:7415")
    with GroundRaster(tmp_path / "nap.tif", UTM) as raster:
        assert raster.vertical_crs == "EPSG:5709"


def test_a_model_without_crs_is_refused(tmp_path):
    write_raster(tmp_path / "plain.tif", np.zeros((1, 2, 2), np.float32), crs=None)
    with raises_naming("plain.tif", "CRS"):
        GroundRaster(tmp_path / "plain.tif", UTM)


def test_elevations_in_feet_are_read_in_metres_and_lose_their_vertical_crs(tmp_path):
    path, crs = tmp_path / "feet.tif", CRS("EPSG:32618")
    grid = from_origin(600000, 4500000, 1, 1)
    write_raster(path, np.full((1, 4, 4), 100, np.float32), crs="EPSG:32618+6360", transform=grid)
    with GroundRaster(path, crs) as raster:
        assert raster(np.array([box(600000, 4499996, 600004, 4500000)], object)) == pytest.approx(30.48006)
        assert raster.vertical_crs is None
        assert "us-ft" in raster.notes[0]


def test_elevations_in_decimetres_by_a_scale_tag(tmp_path):
    path = tmp_path / "dm.tif"
    write_raster(path, np.full((1, 4, 4), 132, np.int16), transform=METRE)
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = [0.1], [5.0]
    assert ground(path, [under(0, 0, 4, 4)]) == pytest.approx([18.2])


def test_a_model_of_depths_or_of_no_length_is_refused(tmp_path):
    write_raster(tmp_path / "depth.tif", np.zeros((1, 2, 2), np.float32), crs="EPSG:32631+5715")
    with raises_naming("depth.tif", "depths"):
        GroundRaster(tmp_path / "depth.tif", UTM)
    write_raster(tmp_path / "db.tif", np.zeros((1, 2, 2), np.float32))
    with rasterio.open(tmp_path / "db.tif", "r+") as raster:
        raster.units = ["dB"]
    with raises_naming("db.tif", "'dB'", "rio edit-info"):
        GroundRaster(tmp_path / "db.tif", UTM)


class TestGroundAround:
    @pytest.fixture
    def holes(self, tmp_path):
        """100 x 100 m that rise by 1 m per metre to the east, without data under two houses and in the last 50 m."""
        elevation_m = np.tile(np.arange(100, dtype=np.float32), (1, 100, 1))
        elevation_m[0, 20:30, 20:31] = elevation_m[0, 5:8, 5:8] = -9999
        elevation_m[0, 50:] = -9999
        write_raster(tmp_path / "dtm.tif", elevation_m, transform=METRE, nodata=-9999)
        return tmp_path / "dtm.tif"

    def test_no_data_under_a_building(self, holes):
        with GroundRaster(holes, UTM) as raster:
            found = raster(
                np.array([under(20, 20, 31, 30), under(5, 5, 8, 8), under(60, 10, 63, 13)], object)
            )
            assert found.tolist() == [25.0, 6.0, 61.0] and raster.from_around == 2

    def test_ground_that_is_too_far_away(self, holes):
        reach = GROUND_RINGS_M[-1]
        with GroundRaster(holes, UTM) as raster:
            near = raster(np.array([under(40, 50 + reach - 2, 43, 95)], object))
            far = raster(np.array([under(40, 50 + reach + 1, 43, 95)], object))
            assert near[0] == 41 and np.isnan(far[0]) and raster.from_around == 1

    def test_any_array(self):
        elevation_m = np.full((20, 20), np.nan)
        elevation_m[:, 12] = [3.0] * 19 + [HIGHEST_M + 1]
        assert ground_around(box(5, 5, 10, 10), elevation_m, 1.0) == 3
        assert ground_around(box(5, 5, 10, 10), elevation_m, 0.01) == 3  # 2 px are 2 cm
        assert ground_around(box(5, 5, 10, 10), elevation_m[:, :12], 1.0) is None
        assert ground_around(box(90, 90, 95, 95), elevation_m, 1.0) is None
