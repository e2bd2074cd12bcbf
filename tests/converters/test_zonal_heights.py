"""Zonal heights with pixel centres inside."""

from fusiondet.converters.zonal_heights import HeightRaster, statistic
from fusiondet.io.vectors import read_layer, transform_layer
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
from affine import Affine
from shapely.geometry import Polygon, box

GRID = Affine(2, 0, 1000, 0, -2, 2000)


def write(path, values, transform=GRID, crs="EPSG:28992", nodata=-9999.0):
    values = np.asarray(values, "float32")
    with rasterio.open(
        path, "w", driver="GTiff", width=values.shape[1], height=values.shape[0], count=1, dtype="float32",
        transform=transform, crs=crs, nodata=nodata,
    ) as target:  # fmt: skip
        target.write(values, 1)
    return path


def on_map(x0, y0, x1, y1):
    """Box in pixels of GRID (y down), on the map."""
    return box(1000 + 2 * x0, 2000 - 2 * y1, 1000 + 2 * x1, 2000 - 2 * y0)


@pytest.fixture
def stairs(tmp_path):
    """Column j is j + 1 metres high."""
    with HeightRaster(ndsm=write(tmp_path / "n.tif", np.arange(1.0, 11) * np.ones((10, 1)))) as raster:
        yield raster


def test_statistics_by_name():
    values = np.arange(101.0)
    named = {name: statistic(name)(values) for name in ("median", "mean", "min", "max", "p70", "p5")}
    assert named == {"median": 50, "mean": 50, "min": 0, "max": 100, "p70": 70, "p5": 5}
    with raises_naming("'mode'", "median"):
        statistic("mode")


def test_only_pixels_whose_centre_is_inside_count(stairs):
    assert stairs.of(on_map(2.6, 0, 4.4, 3), np.max) == (4.0, None)
    assert stairs.of(on_map(2.4, 0, 4.6, 3), np.max) == (5.0, None)
    courtyard = Polygon(on_map(0, 0, 9, 9).exterior, [on_map(1, 1, 9, 8).exterior])
    assert stairs.of(courtyard, np.median)[0] == np.median([1] * 9 + [*range(2, 10)] * 2)


def test_why_a_height_is_unknown(tmp_path, stairs):
    assert stairs.of(on_map(20, 20, 22, 22), np.median) == (None, "outside the height raster")
    assert stairs.of(on_map(2.6, 2.6, 3.4, 3.4), np.median) == (None, "no height pixel")
    values = np.full((10, 10), 5.0)
    values[:, 4:] = -9999
    values[0, 0], values[1, 0] = -2.0, 0.0
    with HeightRaster(ndsm=write(tmp_path / "m.tif", values)) as raster:
        assert raster.of(on_map(0, 2, 6, 4), np.median) == (5.0, None)
        assert raster.of(on_map(0, 2, 9, 4), np.median) == (None, "height raster has no data")
        assert raster.of(on_map(0, 0, 1, 1), np.median) == (None, "negative")
        assert raster.of(on_map(0, 1, 1, 2), np.median) == (None, "zero")


def test_building_at_the_edge_counts_what_is_inside(stairs):
    assert stairs.of(on_map(-1, -3, 2, 2), np.max) == (2.0, None)


def test_surface_minus_terrain_on_another_grid(tmp_path):
    dsm = write(tmp_path / "dsm.tif", np.full((10, 10), 30.0))
    dtm = write(tmp_path / "dtm.tif", np.full((4, 4), 22.0), Affine(7, 0, 998, 0, -7, 2003))
    with HeightRaster(dsm=dsm, dtm=dtm) as raster:
        assert raster.source == "dsm - dtm"
        assert raster.of(on_map(2, 2, 5, 5), np.median) == (8.0, None)
        fine = raster.onto(GRID * Affine.scale(0.5), raster.crs, (20, 20))
    assert np.allclose(fine, 8.0)


@pytest.mark.parametrize("files", [{}, {"dsm": "a"}, {"dtm": "a"}, {"ndsm": "a", "dsm": "a", "dtm": "a"}])
def test_files_that_do_not_make_a_height(files):
    with raises_naming("ndsm", "dsm", "dtm"):
        HeightRaster(**files)


def test_real_lidar_agrees_with_the_layers_own_heights(shared_data):
    """Pixel centres inside: MAE 0.55 m, bias -0.39 m (all touched pixels would give 1.08)."""
    folder = shared_data("alexandria-dsm-dtm-buildings")
    with HeightRaster(dsm=folder / "dsm.tif", dtm=folder / "dtm.tif") as raster:
        layer = transform_layer(read_layer(folder / "buildings.geojson", "HEIGHT"), "EPSG:26918")
        pairs = [
            (raster.of(b.polygon, np.median)[0], b.height_m)
            for b in layer.buildings
            if b.height_m is not None
        ]
    error = np.subtract(*np.array(pairs, float).T)
    assert len(error) == 82
    assert np.abs(error).mean() == pytest.approx(0.55, abs=0.03) and error.mean() == pytest.approx(
        -0.39, abs=0.03
    )


def tagged(path, scale=1.0, offset=0.0, unit=None):
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = [scale], [offset]
        if unit:
            raster.units = [unit]
    return path


def test_scale_offset_and_unit_are_applied_after_no_data(tmp_path):
    values = np.full((10, 10), 150.0)
    values[:, :4] = -9999
    path = tagged(write(tmp_path / "n.tif", values), 0.1, 5.0, "US survey foot")
    with HeightRaster(ndsm=path) as raster:
        assert raster.of(on_map(3, 0, 8, 5), np.median)[0] == pytest.approx(20 * 1200 / 3937)
        assert raster.of(on_map(0, 0, 4, 4), np.median) == (None, "height raster has no data")
        assert len(raster.notes) == 2 and "0.1" in raster.notes[0] and "us-ft" in raster.notes[1]


def test_a_surface_in_feet_above_a_terrain_in_metres(tmp_path):
    dsm = tagged(write(tmp_path / "dsm.tif", np.full((10, 10), 100.0)), unit="ft")
    dtm = write(tmp_path / "dtm.tif", np.full((10, 10), 10.0))
    with HeightRaster(dsm=dsm, dtm=dtm) as raster:
        assert raster.of(on_map(0, 0, 4, 4), np.median)[0] == pytest.approx(20.48)


def test_heights_are_warped_in_metres(tmp_path):
    path = tagged(write(tmp_path / "n.tif", np.full((10, 10), 100.0)), unit="ft")
    with HeightRaster(ndsm=path) as raster:
        finer = raster.onto(Affine(1, 0, 1003.3, 0, -1, 1996.7), raster.crs, (4, 4))
    assert finer == pytest.approx(30.48)


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_an_impossible_scale_is_refused(tmp_path, scale):
    path = write(tmp_path / "n.tif", np.ones((4, 4)))
    with rasterio.open(path, "r+") as raster:
        raster.scales = [scale]
    with raises_naming("n.tif", "scale"):
        HeightRaster(ndsm=path)


class TestTerrainWithoutData:
    @pytest.fixture
    def raster(self, tmp_path):
        """Roofs at 17 m over a terrain of 5 m, that has no data in the middle of its 40 m."""
        terrain = np.full((20, 20), 5.0)
        terrain[8:12, 8:12] = -9999
        dsm, dtm = write(tmp_path / "dsm.tif", np.full((20, 20), 17.0)), write(tmp_path / "dtm.tif", terrain)
        with HeightRaster(dsm=dsm, dtm=dtm) as raster:
            yield raster

    def test_the_ground_around_the_outline(self, raster):
        house = on_map(8, 8, 12, 12)
        assert raster.of(house, np.median) == (None, "height raster has no data")
        assert raster.ground_around(house) == 5
        assert raster.of(house, np.median, 5.0) == (12.0, None)
        assert raster.ground_around(on_map(50, 50, 54, 54)) is None

    def test_heights_per_pixel_get_it_inside_the_outline(self, raster):
        heights_m = raster.onto(GRID, raster.crs, (20, 20), [(box(8, 8, 10, 12), 7.0)])
        assert (heights_m[8:12, 8:10] == 10).all() and np.isnan(heights_m[8:12, 10:12]).all()
        assert (heights_m[:8] == 12).all()

    def test_heights_above_ground_have_no_terrain(self, stairs):
        assert stairs.ground_around(on_map(2, 2, 4, 4)) is None


def test_heights_without_unit_on_a_map_in_feet_need_one(tmp_path):
    path = write(tmp_path / "n.tif", np.full((10, 10), 100.0), crs="EPSG:2263")
    with raises_naming("n.tif", "feet", "`height_unit`", "us-ft"):
        HeightRaster(ndsm=path)
    for unit, height_m in (("m", 100.0), ("us-ft", 100 * 1200 / 3937)):
        with HeightRaster(ndsm=path, height_unit=unit) as raster:
            assert raster.of(on_map(0, 0, 4, 4), np.median)[0] == pytest.approx(height_m)


def test_what_a_file_states_goes_before_the_unit_that_is_passed(tmp_path):
    path = tagged(write(tmp_path / "n.tif", np.full((10, 10), 100.0)), unit="ft")
    with HeightRaster(ndsm=path, height_unit="m") as raster:
        assert raster.of(on_map(0, 0, 4, 4), np.median)[0] == pytest.approx(30.48)
        assert "not in m" in raster.notes[0]
