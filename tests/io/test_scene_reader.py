"""Rasters in, float32 with NaN out: every kind of no data, SAR scale, grid and broken file."""

import math

from fusiondet.buildings import Tile
from fusiondet.errors import InputError
from fusiondet.io import rasters
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from fusiondet.io.grids import gsd_m_of, metric_crs
from fusiondet.io.rasters import open_raster
from fusiondet.io.scene_reader import SceneReader, read_scene
from fusiondet.io.tile_rasters import band_statistics, read_tile, read_tile_image
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
import rasterio.features
import rasterio.warp
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.rio.main import main_group
from rasterio.rpc import RPC

RGB = BandSpec()
PAN = BandSpec(("pan",))
RPCS = RPC(
    err_bias=None, err_rand=None, height_off=20, height_scale=500, lat_off=51.2, lat_scale=0.01,
    line_den_coeff=[1, *[0] * 19],
    line_num_coeff=[0, 0, -1, *[0] * 17], line_off=20, line_scale=20, long_off=3, long_scale=0.01,
    samp_den_coeff=[1, *[0] * 19], samp_num_coeff=[0, 1, *[0] * 18], samp_off=30, samp_scale=30,
)  # fmt: skip
HALF_METRE = Affine(0.5, 0, 600_000, 0, -0.5, 5_750_000)


def write(
    path, array, transform=HALF_METRE, crs="EPSG:32631", driver="GTiff", mask=None, names=None, **profile
):
    array = np.asarray(array)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver=driver, width=array.shape[2], height=array.shape[1], count=len(array), dtype=array.dtype,
            transform=transform, crs=crs, **profile,
        ) as target,
    ):  # fmt: skip
        target.write(array)
        if mask is not None:
            target.write_mask(mask)
        if names:
            target.descriptions = names
    return path


def sar_spec(scale="linear_power", names=("HH",)):
    return BandSpec((), names, scale)


def test_optical_values_and_order_are_the_files(tmp_path):
    path = write(tmp_path / "a.tif", np.arange(3 * 4 * 5, dtype="uint16").reshape(3, 4, 5) * 100)
    image = read_tile_image(path, None, BandSpec(("blue", "red")), RGB)
    assert image.dtype == np.float32 and image.shape == (2, 4, 5)
    assert image[0, 0, 0] == 4000 and image[1, 3, 4] == 1900


@pytest.mark.parametrize(
    ("scale", "value", "db"),
    [("linear_power", 100.0, 20.0), ("amplitude", 10.0, 20.0), ("db", 20.0, 20.0), ("db", -31.25, -31.25)],
)
def test_sar_is_in_db(tmp_path, scale, value, db):
    path = write(tmp_path / "s.tif", np.full((1, 2, 2), value, "float32"))
    assert np.allclose(read_tile_image(None, path, sar_spec(scale), sar_spec(scale)), db, atol=1e-5)


def test_stretched_sar_is_untouched(tmp_path):
    path = write(tmp_path / "s.tif", np.array([[[0, 255]]], "uint8"))
    spec = sar_spec("stretched_uint8")
    assert read_tile_image(None, path, spec, spec).tolist() == [[[0.0, 255.0]]]


def test_zero_power_in_all_polarisations_is_no_data_and_in_one_is_the_floor(tmp_path):
    spec = sar_spec(names=("VV", "VH"))
    path = write(tmp_path / "s.tif", np.array([[[1, 1, 0]], [[1, 0, 0]]], "float32"))
    image = read_tile_image(None, path, spec, spec)
    assert image[:, 0, 0].tolist() == [0.0, 0.0]
    assert image[:, 0, 1].tolist() == [0.0, rasters.SAR_FLOOR_DB]
    assert np.isnan(image[:, 0, 2]).all()


def test_scale_that_the_numbers_contradict_is_refused(tmp_path):
    path = write(tmp_path / "s.tif", np.full((1, 2, 2), -12.0, "float32"))
    with pytest.raises(InputError, match="100 % of its values are negative.*`sar_scale=.db.`"):
        read_tile_image(None, path, sar_spec(), sar_spec())
    with pytest.raises(InputError, match="float32, but its SAR scale was declared stretched_uint8"):
        read_tile_image(None, path, sar_spec("stretched_uint8"), sar_spec("stretched_uint8"))


class TestNodata:
    """A pixel that is invalid is NaN in all bands of its modality, and only there."""

    values = np.array([[[7, 0, 0]], [[7, 7, 0]], [[7, 7, 0]]])

    def invalid(self, path, **options):
        image = read_tile_image(path, None, RGB, RGB, **options)
        assert (np.isnan(image).any(axis=0) == np.isnan(image).all(axis=0)).all()
        return np.isnan(image[0, 0]).tolist()

    def test_declared_number_means_all_bands(self, tmp_path):
        path = write(tmp_path / "a.tif", self.values.astype("uint8"), nodata=0)
        assert self.invalid(path) == [False, False, True]

    def test_dataset_number_counts_where_the_file_declares_none(self, tmp_path):
        path = write(tmp_path / "a.tif", self.values.astype("uint8"))
        assert self.invalid(path) == [False, False, False]
        assert self.invalid(path, nodata=0) == [False, False, True]
        declared = write(tmp_path / "b.tif", self.values.astype("uint8"), nodata=7)
        assert self.invalid(declared, nodata=0) == [True, False, False]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite_in_one_band(self, tmp_path, bad):
        values = self.values.astype("float32") + 1
        values[1, 0, 0] = bad
        assert self.invalid(write(tmp_path / "a.tif", values)) == [True, False, False]

    def test_number_that_the_dtype_cannot_hold_is_ignored(self, tmp_path):
        assert (
            self.invalid(write(tmp_path / "a.tif", self.values.astype("uint8")), nodata=-9999.0)
            == [False] * 3
        )
        assert self.invalid(write(tmp_path / "b.tif", self.values.astype("uint8")), nodata=0.5) == [False] * 3

    def test_lowest_float(self, tmp_path):
        values = self.values.astype("float32")
        values[:, 0, 1] = np.finfo("float32").min
        path = write(tmp_path / "a.tif", values, nodata=float(np.finfo("float32").min))
        assert self.invalid(path) == [False, True, False]

    def test_mask_of_the_file(self, tmp_path):
        mask = np.array([[True, False, True]])
        assert self.invalid(write(tmp_path / "a.tif", self.values.astype("uint8"), mask=mask)) == [
            False,
            True,
            False,
        ]

    def test_alpha(self, tmp_path):
        rgba = np.concatenate([self.values, [[[255, 0, 9]]]]).astype("uint8")
        path = write(tmp_path / "a.tif", rgba, photometric="RGB", alpha="yes")
        assert self.invalid(path) == [False, True, False]

    def test_alpha_of_a_png(self, tmp_path):
        rgba = np.concatenate([self.values, [[[255, 0, 9]]]]).astype("uint8")
        path = write(tmp_path / "a.png", rgba, driver="PNG", transform=Affine.identity(), crs=None)
        assert self.invalid(path) == [False, True, False]

    def test_the_other_modality_keeps_its_pixels(self, tmp_path):
        optical = write(tmp_path / "a.tif", self.values.astype("uint8"), nodata=0)
        sar = write(tmp_path / "s.tif", np.array([[[np.nan, 1, 1]]], "float32"))
        spec = BandSpec(sar=("HH",), sar_scale="linear_power")
        image = read_tile_image(optical, sar, spec, spec)
        assert np.isnan(image[:, 0]).tolist() == [[False, False, True]] * 3 + [[True, False, False]]


def test_missing_modality_is_nan(tmp_path):
    path = write(tmp_path / "a.tif", np.ones((3, 2, 3), "uint8"))
    spec = BandSpec(sar=("HH", "HV"), sar_scale="db")
    image = read_tile_image(path, None, spec, spec)
    assert image.shape == (5, 2, 3) and np.isnan(image[3:]).all() and (image[:3] == 1).all()
    with pytest.raises(InputError, match="both are missing"):
        read_tile_image(None, None, spec, spec)


def test_window(tmp_path):
    path = write(tmp_path / "a.tif", np.arange(20, dtype="uint8").reshape(1, 4, 5))
    assert read_tile_image(path, None, PAN, PAN, window=(3, 1, 2, 2)).tolist() == [[[8, 9], [13, 14]]]
    with pytest.raises(InputError, match="5 x 4 px; window .* is not inside"):
        read_tile_image(path, None, PAN, PAN, window=(3, 1, 3, 2))


def test_tiles_of_different_size_are_refused_with_both_names(tmp_path):
    optical = write(tmp_path / "a.tif", np.ones((3, 4, 5), "uint8"))
    sar = write(tmp_path / "s.tif", np.ones((1, 4, 4), "float32"))
    spec = BandSpec(sar=("HH",), sar_scale="linear_power")
    with pytest.raises(InputError, match=r"s\.tif: 4 x 4 px, but .*a\.tif has 5 x 4 px.*one grid"):
        read_tile_image(optical, sar, spec, spec)


class TestBrokenFiles:
    def test_missing_and_directory(self, tmp_path):
        with pytest.raises(InputError, match=r"x\.tif: no such file"):
            open_raster(tmp_path / "x.tif")
        with pytest.raises(InputError, match="is a directory"):
            open_raster(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"not a raster", b"<html>", b"II*"])
    def test_not_a_raster(self, tmp_path, content):
        path = tmp_path / "a.tif"
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a raster of a kind that is read here"):
            open_raster(path)

    @pytest.mark.parametrize("compress", ["none", "deflate"])
    def test_truncated_pixels(self, tmp_path, compress):
        noise = np.random.default_rng(0).integers(1, 255, (3, 200, 200)).astype("uint8")
        path = write(tmp_path / "a.tif", noise, compress=compress)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=r"a\.tif: damaged or truncated"):
            read_tile_image(path, None, RGB, RGB)

    def test_truncated_header(self, tmp_path):
        path = write(tmp_path / "a.tif", np.ones((1, 2, 2), "uint8"))
        path.write_bytes(path.read_bytes()[:20])
        with pytest.raises(InputError, match="damaged or truncated, GDAL cannot open it as GTiff"):
            open_raster(path)

    def test_vrt_only_under_its_own_name_and_when_typed(self, tmp_path):
        secret = write(tmp_path / "secret.tif", np.ones((1, 2, 2), "uint8"))
        vrt = (
            '<VRTDataset rasterXSize="2" rasterYSize="2"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
            f'<SourceFilename relativeToVRT="0">{secret}</SourceFilename><SourceBand>1</SourceBand>'
            "</SimpleSource></VRTRasterBand></VRTDataset>"
        )
        renamed, honest = tmp_path / "tile.tif", tmp_path / "mosaic.vrt"
        renamed.write_text(vrt)
        honest.write_text(vrt)
        for path, allowed in ((renamed, True), (renamed, False), (honest, False)):
            with pytest.raises(InputError, match="A VRT is read only under its own suffix"):
                open_raster(path, allow_vrt=allowed)
        with open_raster(honest, allow_vrt=True) as source:
            assert source.read().sum() == 4

    def test_too_few_bands_names_both(self, tmp_path):
        path = write(tmp_path / "a.tif", np.ones((1, 2, 2), "uint8"))
        with pytest.raises(
            InputError, match=r"a\.tif: has 1 band \(gray\), but the dataset says 3: red, green, blue"
        ):
            read_tile_image(path, None, RGB, RGB)
        with pytest.raises(InputError, match=r"has 1 band \(gray\), but 3 are needed: red, green, blue"):
            read_scene(path, None, RGB)

    def test_size_is_checked_before_memory_is_taken(self, tmp_path, monkeypatch):
        path = write(tmp_path / "a.tif", np.ones((3, 64, 64), "uint8"))
        monkeypatch.setattr(rasters, "MAX_READ_BYTES", 40_000)
        with pytest.raises(InputError, match="3 x 64 x 64 values would take"):
            read_tile_image(path, None, RGB, RGB)
        assert read_tile_image(path, None, RGB, RGB, window=(0, 0, 32, 32)).shape == (3, 32, 32)

    @pytest.mark.parametrize(
        "name", ["/etc/passwd", "../a.tif", "/vsicurl/http://x/a.tif", "C:\\a.tif", "..\\a.tif"]
    )
    def test_names_in_a_dataset_stay_inside_it(self, tmp_path, name):
        tile = Tile(name, 2, 2, 1.0)
        with pytest.raises(InputError, match="points outside its folder"):
            read_tile(Dataset([tile], RGB, root=tmp_path), tile)

    def test_complex_sar_says_what_to_do(self, tmp_path):
        path = write(tmp_path / "s.tif", np.ones((1, 2, 2), "complex64"))
        with pytest.raises(InputError, match="complex numbers .complex64.*`sar_scale=.complex.`"):
            read_scene(None, path, sar_spec())

    def test_pixels_without_area_are_refused(self, tmp_path):
        path = write(tmp_path / "a.tif", np.ones((3, 2, 2), "uint8"), Affine(0.5, 0, 6, 0, 0, 5))
        with pytest.raises(InputError, match="gives pixels no area"):
            read_scene(path, None, RGB)

    def test_crs_that_is_nowhere(self, tmp_path):
        local = 'LOCAL_CS["site",UNIT["metre",1]]'
        path = write(tmp_path / "a.tif", np.ones((3, 2, 2), "uint8"), crs=local)
        with pytest.raises(InputError, match="cannot be placed on earth"):
            read_scene(path, None, RGB)

    def test_palette_is_refused(self, tmp_path):
        path = tmp_path / "a.tif"
        with rasterio.open(path, "w", driver="GTiff", width=2, height=2, count=1, dtype="uint8") as target:
            target.write(np.ones((1, 2, 2), "uint8"))
            target.write_colormap(1, {0: (0, 0, 0, 255), 1: (9, 9, 9, 255)})
        with pytest.raises(InputError, match="colour table"):
            read_scene(path, None, PAN, gsd_m=1.0)


class TestBands:
    def test_by_description(self, tmp_path):
        values = np.arange(1, 5, dtype="float32")[:, None, None] * np.ones((4, 2, 2), "float32")
        path = write(tmp_path / "s.tif", values, names=("Sigma0_HH_db", "HV", "sigma vh", "VVX"))
        scene = read_scene(None, path, sar_spec("db", ("VH", "HH")))
        assert scene.image[:, 0, 0].tolist() == [3.0, 1.0] and scene.notes == []

    def test_by_colour(self, tmp_path):
        path = write(
            tmp_path / "a.tif", np.arange(1, 5, dtype="uint8")[:, None, None] * np.ones((4, 2, 2), "uint8")
        )
        with rasterio.open(path, "r+") as target:
            target.colorinterp = [rasterio.enums.ColorInterp[c] for c in ("nir", "blue", "green", "red")]
        scene = read_scene(path, None, RGB)
        assert scene.image[:, 0, 0].tolist() == [4.0, 3.0, 2.0] and scene.notes == []

    def test_first_ones_with_a_note(self, tmp_path):
        path = write(tmp_path / "s.tif", np.array([[[1, 1]], [[2, 2]]], "float32"))
        scene = read_scene(None, path, sar_spec("db"))
        assert scene.image[:, 0, 0].tolist() == [1.0]
        assert "the first is taken as HH (see `sar_bands`)" in scene.notes[0]

    def test_by_number(self, tmp_path):
        path = write(
            tmp_path / "a.tif", np.arange(1, 5, dtype="uint8")[:, None, None] * np.ones((4, 2, 2), "uint8")
        )
        assert read_scene(path, None, RGB, rgb_bands=[4, 2, 1]).image[:, 0, 0].tolist() == [4.0, 2.0, 1.0]
        for wrong in ([1, 2], [1, 2, 5], [0, 1, 2]):
            with pytest.raises(InputError, match=r"`rgb_bands` .* must be 3 of 1\.\.4"):
                read_scene(path, None, RGB, rgb_bands=wrong)


BOTH = BandSpec(sar=("HH",), sar_scale="linear_power")


class TestGrids:
    """A 40 x 40 px optical raster at 0.5 m; SAR on other grids."""

    @pytest.fixture
    def optical(self, tmp_path):
        return write(tmp_path / "rgb.tif", np.full((3, 40, 40), 9, "uint8"))

    def sar(self, tmp_path, array, transform, crs="EPSG:32631", **options):
        return write(tmp_path / "sar.tif", np.asarray(array, "float32")[None], transform, crs, **options)

    def test_whole_pixel_shift_is_not_resampled(self, tmp_path, optical):
        values = np.random.default_rng(0).gamma(1, 1, (40, 40)) + 0.1
        sar = self.sar(tmp_path, values, HALF_METRE * Affine.translation(10, -5))
        scene = read_scene(optical, sar, BOTH)
        expected = np.full((40, 40), np.nan)
        expected[:35, 10:] = 10 * np.log10(values[5:, :30])
        assert np.allclose(scene.image[3], expected, atol=1e-4, equal_nan=True)
        assert len(scene.notes) == 1 and "overlap only in part" in scene.notes[0]

    def test_pixel_size_off_in_the_fourth_digit_is_the_same_grid(self, tmp_path, optical):
        values = np.random.default_rng(0).gamma(1, 1, (40, 40)) + 0.1
        scene = read_scene(optical, self.sar(tmp_path, values, HALF_METRE * Affine.scale(1.0001)), BOTH)
        assert np.allclose(scene.image[3], 10 * np.log10(values), atol=1e-4) and scene.notes == []

    def test_half_a_pixel_is_warped_in_power(self, tmp_path, optical):
        columns = np.where(np.arange(40) % 2, 1.0, 3.0) * np.ones((40, 1))
        scene = read_scene(
            optical, self.sar(tmp_path, columns, HALF_METRE * Affine.translation(0.5, 0)), BOTH
        )
        # Halfway between power 1 and 3 is 2 (3.01 dB), not the mean of the decibels (2.39 dB).
        assert np.allclose(scene.image[3, :, 2:-2], 10 * math.log10(2), atol=1e-4)
        assert "warped onto the optical grid" in scene.notes[0]

    def test_shrinking_averages_power(self, tmp_path, optical):
        fine = np.indices((160, 160)).sum(axis=0) % 2 * 4.0 + 1e-9
        scene = read_scene(optical, self.sar(tmp_path, fine, HALF_METRE * Affine.scale(0.25)), BOTH)
        assert np.allclose(scene.image[3], 10 * math.log10(2), atol=1e-3)

    @pytest.mark.parametrize(
        "transform",
        [HALF_METRE * Affine.scale(0.7), HALF_METRE * Affine.scale(3.1), HALF_METRE * Affine.translation(0.5, 0.5),
         HALF_METRE * Affine.rotation(20, (20, 20)), Affine(0.5, 0, 600_000, 0, 0.5, 5_750_000 - 20)],
        ids=["finer", "coarser", "shifted", "rotated", "south-up"],
    )  # fmt: skip
    @pytest.mark.parametrize("nodata", [np.nan, -9999.0, 0.0])
    def test_no_data_never_bleeds(self, tmp_path, optical, transform, nodata):
        values = np.full((60, 60), 4.0)
        values[5:15, 5:12] = nodata
        declared = None if math.isnan(nodata) else nodata
        scene = read_scene(optical, self.sar(tmp_path, values, transform, nodata=declared), BOTH)
        known = scene.image[3][np.isfinite(scene.image[3])]
        assert 0 < known.size < 1600
        assert np.allclose(known, 10 * math.log10(4), atol=1e-3)

    def test_south_up_is_turned(self, tmp_path, optical):
        rows = np.arange(1.0, 41)[:, None] * np.ones((1, 40))
        sar = self.sar(tmp_path, rows, Affine(0.5, 0, 600_000, 0, 0.5, 5_750_000 - 20))
        assert np.allclose(read_scene(optical, sar, BOTH).image[3], 10 * np.log10(rows[::-1]), atol=1e-3)

    def test_other_crs_lands_where_it_belongs(self, tmp_path, optical):
        """A bright 10 m square, drawn in longitude and latitude, is found at its place in the UTM grid."""
        west, south, east, north = rasterio.warp.transform_bounds(
            "EPSG:32631", "EPSG:4326", 599_990, 5_749_970, 600_030, 5_750_010
        )
        grid = rasterio.transform.from_bounds(west, south, east, north, 400, 400)
        square = shapely.geometry.mapping(shapely.box(600_005, 5_749_985, 600_015, 5_749_995))
        square = rasterio.warp.transform_geom("EPSG:32631", "EPSG:4326", square)
        power = rasterio.features.rasterize(
            [(square, 100)], (400, 400), fill=1, transform=grid, dtype="float32"
        )
        bright = read_scene(optical, self.sar(tmp_path, power, grid, "EPSG:4326"), BOTH).image[3] > 10
        rows, columns = np.nonzero(bright)
        assert abs(bright.sum() - 400) <= 25
        assert abs(rows.mean() + 0.5 - 20) < 0.25 and abs(columns.mean() + 0.5 - 20) < 0.25

    def test_windows_fit_together(self, tmp_path, optical):
        values = np.random.default_rng(0).gamma(1, 1, (60, 60)) + 0.01
        values[20:30, 20:30] = np.nan
        sar = self.sar(tmp_path, values, HALF_METRE * Affine.rotation(7) * Affine.scale(0.9))
        for target in (None, 0.8):
            with SceneReader(optical, sar, BOTH, target_gsd_m=target) as reader:
                whole = reader.read().image
                for x0, y0, width, height in ((0, 0, 9, 11), (7, 5, 13, 8), (17, 13, 8, 12)):
                    part = reader.read((x0, y0, width, height)).image
                    assert np.allclose(
                        part, whole[:, y0 : y0 + height, x0 : x0 + width], atol=1e-3, equal_nan=True
                    )

    def test_window_beyond_the_edge_is_nan(self, optical):
        with SceneReader(optical, None, RGB) as reader:
            scene = reader.read((-3, 38, 5, 4))
        assert np.isfinite(scene.image[0]).tolist() == [[False] * 3 + [True] * 2] * 2 + [[False] * 5] * 2
        assert scene.transform * (3, 0) == (600_000, 5_750_000 - 19)

    def test_no_overlap_names_both_extents(self, tmp_path, optical):
        sar = self.sar(tmp_path, np.ones((40, 40)), HALF_METRE * Affine.translation(100, 0))
        with pytest.raises(InputError, match=r"sar\.tif and .*rgb\.tif do not overlap: x 600050\.\.600070"):
            read_scene(optical, sar, BOTH)

    def test_crs_on_one_side_only(self, tmp_path, optical):
        sar = self.sar(tmp_path, np.ones((40, 40)), HALF_METRE, crs=None)
        with pytest.raises(
            InputError, match="has a transform without CRS, but .* has EPSG:32631.*Both need a CRS"
        ):
            read_scene(optical, sar, BOTH)

    def test_sar_without_georeference_is_taken_pixel_by_pixel_if_the_size_is_the_same(
        self, tmp_path, optical
    ):
        sar = self.sar(tmp_path, np.ones((40, 40)), Affine.identity(), crs=None)
        scene = read_scene(optical, sar, BOTH)
        assert (scene.image[3] == 0).all() and "taken pixel by pixel" in scene.notes[0]
        with pytest.raises(InputError, match="no georeference and another size"):
            read_scene(optical, self.sar(tmp_path, np.ones((40, 41)), Affine.identity(), crs=None), BOTH)

    def test_target_gsd(self, optical):
        scene = read_scene(optical, None, RGB, target_gsd_m=1.0)
        assert scene.image.shape == (3, 20, 20) and (scene.image == 9).all()
        assert scene.gsd_m == 1.0 and scene.transform == HALF_METRE * Affine.scale(2)
        assert "resampled from 0.5 m to 1 m" in scene.notes[0]


class TestGsd:
    def test_metres(self):
        assert gsd_m_of(HALF_METRE, "EPSG:32631", 100, 100) == 0.5
        assert gsd_m_of((0.3, 0, 0, 0, -1.2, 0), None, 10, 10) == pytest.approx(0.6)

    def test_degrees_feet_and_web_mercator_through_utm(self):
        degree_m = 111_320  # of latitude, and of longitude at the equator, within 1 %
        assert gsd_m_of(Affine(1e-5, 0, 9, 0, -1e-5, 0), "EPSG:4326", 2, 2) == pytest.approx(
            1e-5 * degree_m, rel=0.01
        )
        at_60 = gsd_m_of(Affine(1e-5, 0, 9, 0, -1e-5, 60), "EPSG:4326", 2, 2)
        assert at_60 == pytest.approx(1e-5 * degree_m * math.sqrt(0.5), rel=0.01)
        north = 8_399_738  # 60 degrees
        assert gsd_m_of(Affine(1, 0, 0, 0, -1, north), "EPSG:3857", 2, 2) == pytest.approx(0.5, rel=0.01)
        assert gsd_m_of(Affine(1, 0, 6e6, 0, -1, 2e6), "EPSG:2263", 2, 2) == pytest.approx(0.3048, rel=0.02)

    def test_metric_crs(self):
        assert metric_crs("EPSG:28992", 190_000, 343_000) == "EPSG:28992"
        assert metric_crs("EPSG:4326", -43.7, -22.9) == "EPSG:32723"
        assert metric_crs("EPSG:4326", 179.99, 10) == "EPSG:32660"

    def test_without_georeference_the_user_has_to_say(self, tmp_path):
        path = write(tmp_path / "a.tif", np.ones((3, 2, 2), "uint8"), Affine.identity(), None)
        with pytest.raises(InputError, match="neither a CRS nor a pixel size.*gdal_translate"):
            read_scene(path, None, RGB)
        assert read_scene(path, None, RGB, gsd_m=0.4).gsd_m == 0.4

    def test_a_crs_without_transform_is_no_place_and_the_advice_gives_it_one(self, tmp_path):
        path = write(tmp_path / "a.tif", np.ones((3, 40, 60), "uint8"), Affine.identity())
        with raises_naming("a.tif", "EPSG:32631", "no transform", "rio edit-info --transform"):
            read_scene(path, None, RGB)
        with raises_naming("no transform"):
            read_scene(path, None, RGB, gsd_m=0.5)
        # What the command does:
        with rasterio.open(path, "r+") as target:
            target.transform = HALF_METRE
        assert read_scene(path, None, RGB).gsd_m == pytest.approx(0.5, rel=1e-2)

    def test_ground_control_points_alone_are_no_place(self, tmp_path):
        corners = [(0, 0), (0, 60), (40, 0), (40, 60)]
        gcps = [GroundControlPoint(r, c, 600_000 + c / 2, 5_750_000 - r / 2) for r, c in corners]
        path = write(tmp_path / "a.tif", np.ones((3, 40, 60), "uint8"), None, "EPSG:32631", gcps=gcps)
        with raises_naming(
            "a.tif", "4 ground control points", "rio warp IN OUT --dst-crs", "gdalwarp -t_srs"
        ):
            read_scene(path, None, RGB)
        placed = tmp_path / "warped.tif"
        assert (
            main_group.main(
                ["warp", str(path), str(placed), "--dst-crs", "EPSG:32631"], standalone_mode=False
            )
            is None
        )
        assert read_scene(placed, None, RGB).gsd_m == pytest.approx(0.5, rel=1e-2)

    @pytest.mark.parametrize("sensor", ["optical", "SAR"])
    def test_rational_polynomials_alone_are_no_place(self, tmp_path, sensor):
        path = write(tmp_path / "a.tif", np.ones((1, 40, 60), "float32"), None, None, rpcs=RPCS)
        other = write(tmp_path / "b.tif", np.ones((1, 40, 60), "float32"))
        rgb, sar = (path, None) if sensor == "optical" else (other, path)
        with raises_naming("a.tif", "RPCs", "gdalwarp -rpc"):
            read_scene(rgb, sar, BandSpec(("pan",), ("HH",), "linear_power"))

    def test_beyond_the_pole_is_no_place(self, tmp_path):
        grid = Affine(1e-5, 0, 4, 0, -1e-5, 95)
        path = write(tmp_path / "a.tif", np.ones((3, 2, 2), "uint8"), grid, "EPSG:4326")
        with pytest.raises(InputError, match=r"a\.tif: the point .* is not a place in WGS 84"):
            read_scene(path, None, RGB)

    def test_unknown_sar_scale_lists_the_right_ones(self, tmp_path):
        path = write(tmp_path / "a.tif", np.ones((1, 2, 2), "float32"))
        with pytest.raises(InputError, match="unknown SAR scale 'decibel'.*linear_power"):
            read_scene(None, path, BandSpec((), ("HH",), "db"), sar_scale="decibel")

    @pytest.mark.parametrize("target_gsd_m", [0, -1, math.nan, 1e-4, 1e4])
    def test_a_grid_that_is_no_grid_is_refused(self, tmp_path, target_gsd_m):
        path = write(tmp_path / "a.tif", np.ones((3, 2, 2), "uint8"))
        with pytest.raises(InputError, match="cannot be resampled"):
            read_scene(path, None, RGB, target_gsd_m=target_gsd_m)

    def test_without_crs_map_units_are_metres_and_it_says_so(self, tmp_path):
        scene = read_scene(write(tmp_path / "a.tif", np.ones((3, 2, 2), "uint8"), crs=None), None, RGB)
        assert scene.gsd_m == 0.5 and scene.crs is None and "taken as metres" in scene.notes[0]


class TestStatistics:
    def dataset(self, tmp_path, *arrays):
        names = [write(tmp_path / f"{i}.tif", np.asarray(a, "float32")).name for i, a in enumerate(arrays)]
        return Dataset([Tile(name, 2, 1, 1.0) for name in names], PAN, root=tmp_path)

    def test_over_valid_pixels(self, tmp_path):
        mean, std = band_statistics(self.dataset(tmp_path, [[[1, 3]]], [[[np.nan, 5]]]))
        assert mean.tolist() == [3.0] and std == pytest.approx([math.sqrt(8 / 3)])

    def test_constant_band_has_std_1(self, tmp_path):
        assert band_statistics(self.dataset(tmp_path, [[[4, 4]]]))[1].tolist() == [1.0]

    def test_evenly_spread_tiles(self, tmp_path):
        dataset = self.dataset(tmp_path, *([[[i, i]]] for i in range(4)))
        assert band_statistics(dataset, max_tiles=2)[0].tolist() == [1.0]

    def test_nothing_valid(self, tmp_path):
        with pytest.raises(InputError, match="band 'pan' has no valid pixel in 1 tiles"):
            band_statistics(self.dataset(tmp_path, [[[np.nan, np.nan]]]))


class TestRealPixels:
    def test_co_registered_pair(self, shared_data):
        """Pixel sizes differ in the fourth digit, NaN without a tag: nothing is resampled, 61 % of SAR is valid."""
        folder = shared_data("solaris-sn6-preproc")
        spec = BandSpec(sar=("HH", "HV", "VH", "VV"), sar_scale="db")
        scene = read_scene(folder / "rgb_unmasked.tif", folder / "sar_masked.tif", spec)
        with rasterio.open(folder / "sar_masked.tif") as source:
            assert np.array_equal(scene.image[3:], source.read(), equal_nan=True)
        assert scene.image.shape == (7, 200, 200) and scene.crs == "EPSG:32631" and scene.notes == []
        assert scene.gsd_m == pytest.approx(4.5, rel=1e-4)
        assert np.isfinite(scene.image[3]).mean() == pytest.approx(0.608, abs=0.001)

    def test_slc_is_refused(self, shared_data):
        folder = shared_data("solaris-sn6-preproc")
        with pytest.raises(InputError, match="complex64"):
            read_scene(folder / "rgb_unmasked.tif", folder / "sar_hh.tif", BOTH)

    def test_other_place_does_not_overlap(self, shared_data):
        pair = (
            shared_data("solaris-sn6-preproc") / "rgb_unmasked.tif",
            shared_data("alexandria-dsm-dtm-buildings") / "dsm.tif",
        )
        with pytest.raises(InputError, match="do not overlap"):
            read_scene(*pair, BOTH)

    def test_sentinel_pair_of_equal_shape_on_two_grids_is_warped(self, shared_data):
        """S1 lies four pixels off S2 with the same array shape: stacking by index would be wrong."""
        folder = shared_data("ssl4eo-ben-s1s2") / "SSL4EO-S12"
        optical = folder / "s2a/0000200/20200604T054639_20200604T054831_T43RCP/B4.tif"
        sar = next((folder / "s1/0000200").glob("*/VV.tif"))
        scene = read_scene(optical, sar, BandSpec(("red",), ("VV",), "db"))
        with rasterio.open(sar) as source:
            x, y = scene.transform * (130.5, 130.5)
            row, column = source.index(x, y)
            around = source.read(1)[row - 1 : row + 2, column - 1 : column + 2]
        assert (row, column) != (130, 130)
        assert around.min() <= scene.image[1, 130, 130] <= around.max()
        assert any("warped" in note for note in scene.notes)

    def test_declared_and_undeclared_black(self, shared_data):
        tile = next(shared_data("sn6-psrgb-3721").glob("*.tif"))
        assert np.isfinite(read_scene(tile, None, RGB).image[0]).mean() == pytest.approx(0.628, abs=0.001)
        strip = shared_data("spacenet1-rio-aoi0") / "3band/3band_013022223130_Public_img10.tif"
        scene = read_scene(strip, None, RGB, nodata=0)
        assert np.isfinite(scene.image[0]).mean() == pytest.approx(0.319, abs=0.001)
        assert scene.crs == "EPSG:4326" and scene.gsd_m == pytest.approx(0.478, abs=0.001)
