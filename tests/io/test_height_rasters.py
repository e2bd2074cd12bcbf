"""Heights as rasters: painted on the right pixels, filled window by window, whole or not there at all."""

import json
import math
import resource

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.geometry.painting import paint_heights
from fusiondet.io.height_rasters import NO_CLASS, check_height_raster, class_raster, height_raster
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin
from shapely.geometry import box

TRANSFORM = Affine(0.5, 0, 600000, 0, -0.5, 5750000)
EVERYTHING = (-math.inf, -math.inf, math.inf, math.inf)


def test_heights_are_painted_on_pixels_whose_centre_is_covered():
    low = Building(box(0, 0, 4, 4), 3.0, score=0.9)
    high = Building(box(2.6, 0, 6, 2), 10.0, score=0.5)
    unknown = Building(box(0, 5, 3, 6))
    got = paint_heights([low, high, unknown], (6, 8))
    assert got.dtype == np.float32 and got.shape == (6, 8)
    assert got[0].tolist()[:6] == [3, 3, 3, 3, 10, 10] and np.isnan(got[0, 6:]).all()
    assert (got[2:4, :4] == 3).all() and np.isnan(got[4:]).all()
    assert np.isnan(paint_heights([unknown], (2, 2))).all()


def test_a_part_is_painted_like_the_whole():
    buildings = [Building(box(3, 2, 9, 7), 4.0), Building(box(6, 5, 12, 11), 9.0, score=0.5)]
    whole = paint_heights(buildings, (12, 14))
    np.testing.assert_array_equal(paint_heights(buildings, (5, 6), origin_px=(4, 3)), whole[3:8, 4:10])


def written(path, shape, sources=("dense",), **options):
    """The context of a raster in EPSG:32631."""
    return height_raster(path, shape, TRANSFORM, "EPSG:32631", sources, **options)


def coordinates(shape):
    """(H, W) float32, another number in every pixel."""
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


def test_the_file_says_what_and_where_it_is(tmp_path):
    path = tmp_path / "new folder" / "h.tif"
    heights_m = coordinates((600, 700))
    heights_m[:50] = np.nan
    with written(path, (600, 700), ("dense", "instances"), tags={"weights": "model.pth"}) as raster:
        layers = {"dense": heights_m, "instances": np.where(np.isnan(heights_m), np.nan, 0)}
        raster.fill(layers, (0, 0, 700, 600), EVERYTHING)
        raster.paint([Building(box(100, 40, 110, 60), 7.5)])
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 32631 and file.transform == TRANSFORM
        assert file.dtypes == ("float32", "float32") and math.isnan(file.nodata) and file.units == ("m", "m")
        assert [d.rsplit(", ")[1] for d in file.descriptions] == ["per pixel", "one per building"]
        assert file.block_shapes[0] == (512, 512) and file.overviews(1) == [2]
        structure = file.tags(ns="IMAGE_STRUCTURE")
        assert (structure["COMPRESSION"], structure["PREDICTOR"]) == ("DEFLATE", "3")
        assert structure["LAYOUT"] == "COG", "GDAL finds the directories before the data, as the file says"
        assert {"weights": "model.pth", "zero": "no building"}.items() <= file.tags().items()
        dense, instances = file.read()
        np.testing.assert_array_equal(dense, heights_m)
        assert (file.read_masks(2)[:50] == 0).all() and (file.read_masks(2)[50:] == 255).all()
    assert np.isnan(instances[:50]).all(), "nothing is painted where the images have no data"
    assert (instances[50:60, 100:110] == 7.5).all() and np.nansum(instances) == 7.5 * 100
    assert [p.name for p in path.parent.iterdir()] == ["h.tif"]


def test_nothing_filled_is_all_nodata(tmp_path):
    with written(tmp_path / "h.tiff", (3, 5)):
        pass
    with rasterio.open(tmp_path / "h.tiff") as file:
        assert np.isnan(file.read(1)).all() and file.shape == (3, 5)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.lists(st.floats(0, 70), max_size=2, unique=True),
    st.lists(st.floats(0, 70), max_size=2, unique=True),
)
def test_cores_on_any_grid_fill_every_pixel_with_what_is_at_its_centre(tmp_path, shape, grid, xs, ys):
    values = coordinates(grid)
    x_cuts, y_cuts = [-math.inf, *sorted(xs), math.inf], [-math.inf, *sorted(ys), math.inf]
    with written(tmp_path / "h.tif", shape, grid_shape=grid) as raster:
        for y0, y1 in zip(y_cuts, y_cuts[1:]):
            for x0, x1 in zip(x_cuts, x_cuts[1:]):
                raster.fill({"dense": values}, (0, 0, grid[1], grid[0]), (x0, y0, x1, y1))
    rows, columns = (((np.arange(n) + 0.5) * g / n).astype(int) for n, g in zip(shape, grid, strict=True))
    with rasterio.open(tmp_path / "h.tif") as file:
        np.testing.assert_array_equal(file.read(1), values[rows][:, columns])


def test_large_rasters_are_filled_and_painted_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("fusiondet.io.height_rasters._PART_PX", 7)
    values = coordinates((20, 25))
    buildings = [Building(box(5.2, 3, 16, 9), 3.0, score=0.4), Building(box(12, 6, 20, 18), 8.0, score=0.9)]
    with written(tmp_path / "h.tif", (20, 25), ("dense", "instances")) as raster:
        raster.fill({"dense": values, "instances": np.zeros_like(values)}, (0, 0, 25, 20), EVERYTHING)
        raster.paint(buildings)
    with rasterio.open(tmp_path / "h.tif") as file:
        dense, instances = file.read()
    np.testing.assert_array_equal(dense, values)
    np.testing.assert_array_equal(instances, np.nan_to_num(paint_heights(buildings, (20, 25))))


def test_outlines_of_another_grid_land_on_the_pixels_of_the_raster(tmp_path):
    with written(tmp_path / "h.tif", (10, 12), ("instances",), grid_shape=(20, 36)) as raster:
        raster.fill({"instances": np.zeros((20, 36))}, (0, 0, 36, 20), EVERYTHING)
        raster.paint([Building(box(3, 4, 12, 10), 5.0)])
    expected = np.zeros((10, 12))
    expected[2:5, 1:4] = 5
    with rasterio.open(tmp_path / "h.tif") as file:
        np.testing.assert_array_equal(file.read(1), expected)


def test_an_error_leaves_nothing_and_what_was_there(tmp_path):
    (tmp_path / "h.tif").write_text("mine")
    with pytest.raises(KeyboardInterrupt), written(tmp_path / "h.tif", (40, 40)) as raster:
        raster.fill({"dense": coordinates((40, 40))}, (0, 0, 40, 40), EVERYTHING)
        raise KeyboardInterrupt
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("h.tif", "mine")]


@pytest.mark.parametrize("limit_bytes", [1_000_000, 4_194_000, 4_400_000])
def test_a_full_disk_leaves_no_file(tmp_path, limit_bytes):
    """The limit hits a window, the last tile, and the compressed file, which noise makes larger than the draft."""
    noise = np.random.default_rng(0).random((1024, 1024)).astype(np.float32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        with pytest.raises(OSError, match="Is the disk full") as caught:
            with written(tmp_path / "h.tif", noise.shape) as raster:
                raster.fill({"dense": noise}, (0, 0, 1024, 1024), EVERYTHING)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "h.tif") and list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "h.tif").write_text("mine")
    with raises_naming("a.gpkg", "GeoTIFF", ".tif"):
        check_height_raster(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match="already exists"):
        check_height_raster(tmp_path / "h.tif")
    assert check_height_raster(tmp_path / "h.tif", overwrite=True) == tmp_path / "h.tif"


INF = float("inf")


CLASS_GRID = from_origin(600_000, 5_800_000, 0.5, 0.5)


CLASS_NAMES = ["low <vegetation>", "building", "tree"]


def test_a_raster_of_two_windows_and_a_part_that_is_never_filled(tmp_path):
    path = tmp_path / "classes.tif"
    numbers = np.arange(6 * 8).reshape(6, 8).astype(np.uint8) % 3
    with class_raster(
        path, (9, 8), CLASS_GRID, "EPSG:32631", CLASS_NAMES, {"weights": "model.pth"}
    ) as raster:
        raster.fill({"classes": numbers[:, :5]}, (0, 0, 5, 6), (-INF, -INF, 4, 6))
        raster.fill({"classes": numbers[:, 3:]}, (3, 0, 5, 6), (4, -INF, INF, 6))
    with rasterio.open(path) as written:
        found, colours, tags = written.read(1), written.colormap(1), written.tags()
        assert (written.dtypes[0], written.nodata, written.crs) == ("uint8", NO_CLASS, "EPSG:32631")
        assert tags["weights"] == "model.pth" and json.loads(tags["CLASSES"]) == CLASS_NAMES
        assert written.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    np.testing.assert_array_equal(found[:6], numbers)
    assert (found[6:] == NO_CLASS).all(), "not the first class"
    assert len({colours[i] for i in range(3)}) == 3 and all(colours[i][3] == 255 for i in range(3))
    text = (tmp_path / "classes.tif.aux.xml").read_text()
    assert "<Category>low &lt;vegetation&gt;</Category><Category>building</Category>" in text


def test_a_coarser_grid_gives_each_pixel_the_class_at_its_centre(tmp_path):
    numbers = np.array([[0, 1], [2, 0]], np.uint8)
    with class_raster(tmp_path / "c.tif", (4, 4), CLASS_GRID, None, CLASS_NAMES, grid_shape=(2, 2)) as raster:
        raster.fill({"classes": numbers}, (0, 0, 2, 2), (-INF, -INF, INF, INF))
    with rasterio.open(tmp_path / "c.tif") as written:
        np.testing.assert_array_equal(written.read(1), np.kron(numbers, np.ones((2, 2), int)))


def test_on_an_error_nothing_is_written(tmp_path):
    with pytest.raises(RuntimeError), class_raster(tmp_path / "c.tif", (4, 4), CLASS_GRID, None, CLASS_NAMES):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_another_format_is_refused(tmp_path):
    with raises_naming("c.png", "GeoTIFF"):
        check_height_raster(tmp_path / "c.png", what="classes")
