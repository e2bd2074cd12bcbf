"""Elevation of the ground under outlines, from terrain models whose numbers are known."""

from fusiondet.io.terrain import HIGHEST_M, LOWEST_M, GroundRaster
from tests.support.messages import raises_naming
from tests.support.tiny_city import write_raster

import numpy as np
import pytest
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
    assert np.isnan(ground(tmp_path / "dtm.tif", [under(0, 0, 4, 1)])).all()


def test_the_vertical_system_is_that_of_the_file(slope, tmp_path):
    with GroundRaster(slope, UTM) as raster:
        assert raster.vertical_crs is None
    write_raster(tmp_path / "nap.tif", np.zeros((1, 2, 2), np.float32), crs="EPSG:7415")
    with GroundRaster(tmp_path / "nap.tif", UTM) as raster:
        assert raster.vertical_crs == "EPSG:5709"


def test_a_model_without_crs_or_in_feet_is_refused(tmp_path):
    write_raster(tmp_path / "plain.tif", np.zeros((1, 2, 2), np.float32), crs=None)
    with raises_naming("plain.tif", "CRS"):
        GroundRaster(tmp_path / "plain.tif", UTM)
    write_raster(tmp_path / "feet.tif", np.zeros((1, 2, 2), np.float32), crs="EPSG:6551+6360")
    with raises_naming("feet.tif", "US survey foot"):
        GroundRaster(tmp_path / "feet.tif", UTM)
