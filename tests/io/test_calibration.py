"""SAR as it comes: complex, several polarisations, a file for each, other grids, and scales not as declared."""

import json
import math

from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec, band_numbers
from fusiondet.io.calibration import check_sar_scale, plausible_sar_scales
from fusiondet.io.rasters import SAR_FLOOR_DB, Bands, open_raster, sample_values
from fusiondet.io.scene_reader import SceneReader, read_scene
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint

METRE = Affine(1, 0, 600_000, 0, -1, 5_750_000)
QUAD = ("HH", "HV", "VH", "VV")
FACTOR = "TIFFTAG_IMAGEDESCRIPTION"


def write(path, array, transform=METRE, crs="EPSG:32631", names=None, tags=None, **profile):
    array = np.asarray(array)
    dtype = profile.pop("dtype", array.dtype)
    with rasterio.open(
        path, "w", driver="GTiff", width=array.shape[2], height=array.shape[1], count=len(array), dtype=dtype,
        crs=crs, transform=transform, **profile,
    ) as target:  # fmt: skip
        target.write(array)
        if names:
            target.descriptions = names
        target.update_tags(**(tags or {}))
    return path


def sar(scale, *names):
    return BandSpec((), names, scale)


def noise(shape, power=1.0, seed=0):
    """Single-look speckle: complex Gaussian numbers of the given mean power."""
    rng = np.random.default_rng(seed)
    return (math.sqrt(power / 2) * (rng.normal(size=shape) + 1j * rng.normal(size=shape))).astype("complex64")


def capella(factor) -> dict[str, str]:
    return {FACTOR: json.dumps({"collect": {"image": {"scale_factor": factor}}})}


class TestComplex:
    @pytest.mark.parametrize("dtype", ["complex64", "complex_int16", "complex128"])
    def test_is_detected_to_power(self, tmp_path, dtype):
        values = np.array([[[3 + 4j, -10j, 0.0]]], "complex64")
        path = write(tmp_path / "slc.tif", values, dtype=dtype)
        image = read_scene(None, path, sar("complex", "HH")).image
        assert image[0, 0, :2] == pytest.approx([10 * math.log10(25), 20], abs=1e-4)
        assert np.isnan(image[0, 0, 2])

    def test_no_data_is_zero_nan_infinite_or_the_declared_number(self, tmp_path):
        values = np.array([[[1, 0, np.nan, np.inf, 1j * np.nan, 1e30, 7]]], "complex64")
        path = write(tmp_path / "slc.tif", values, nodata=7)
        image = read_scene(None, path, sar("complex", "HH")).image[0, 0]
        assert np.isfinite(image).tolist() == [True] + [False] * 6 and image[0] == 0

    def test_looks_are_averaged_in_power(self, tmp_path):
        """4 x 4 single looks to a pixel: the mean stays, the deviation of power is a quarter of its mean."""
        rgb = write(tmp_path / "rgb.tif", np.ones((3, 64, 64), "uint8"), METRE * Affine.scale(4))
        slc = write(tmp_path / "slc.tif", noise((1, 256, 256), 20.0))
        scene = read_scene(rgb, slc, BandSpec(sar=("HH",), sar_scale="complex"))
        power = 10 ** (scene.image[3] / 10)
        assert power.mean() == pytest.approx(20, rel=0.02)
        assert power.std() / power.mean() == pytest.approx(0.25, rel=0.05)

    def test_undeclared_is_refused_and_so_is_declared_of_real_numbers(self, tmp_path):
        slc = write(tmp_path / "slc.tif", noise((3, 4, 4)))
        real = write(tmp_path / "real.tif", np.ones((1, 4, 4), "float32"))
        for scale in ("linear_power", "amplitude", "db"):
            with raises_naming("complex64", "sar_scale", "complex"):
                read_scene(None, slc, sar(scale, "HH"))
        with pytest.raises(InputError, match=r"complex numbers"):
            read_scene(slc, None, BandSpec())
        with raises_naming("float32", "complex"):
            read_scene(None, real, sar("complex", "HH"))

    def test_radar_geometry_is_refused(self, tmp_path):
        rgb = write(tmp_path / "rgb.tif", np.ones((3, 8, 8), "uint8"))
        points = [GroundControlPoint(r, c, 600_000 + c, 5_750_000 - r) for r, c in ((0, 0), (0, 8), (8, 0))]
        slc = write(tmp_path / "slc.tif", noise((1, 8, 8)), None, "EPSG:32631", gcps=points)
        with raises_naming("slc.tif", "ground control points"):
            read_scene(rgb, slc, BandSpec(sar=("HH",), sar_scale="complex"))


class TestCalibration:
    """Capella's factor is for amplitudes: power is multiplied by its square."""

    @pytest.mark.parametrize("scale", ["complex", "amplitude"])
    def test_stated_in_the_file(self, tmp_path, scale):
        values = np.full((1, 2, 2), 100, "complex64" if scale == "complex" else "float32")
        scene = read_scene(None, write(tmp_path / "a.tif", values, tags=capella(1e-2)), sar(scale, "HH"))
        assert np.allclose(scene.image, 0, atol=1e-4) and "multiplied by 0.01" in scene.notes[-1]

    def test_given_wins(self, tmp_path):
        path = write(tmp_path / "a.tif", np.full((1, 2, 2), 100, "complex64"), tags=capella(1e-2))
        assert read_scene(None, path, sar("complex", "HH"), sar_factor=1.0).image.mean() == pytest.approx(40)
        assert read_scene(None, path, sar("complex", "HH"), sar_factor=0.1).image.mean() == pytest.approx(20)
        for factor in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(InputError, match="`sar_factor` .* expected a positive number"):
                read_scene(None, path, sar("complex", "HH"), sar_factor=factor)

    def test_power_and_decibels_are_what_they_are(self, tmp_path):
        path = write(tmp_path / "a.tif", np.full((1, 2, 2), 100, "float32"), tags=capella(1e-2))
        assert read_scene(None, path, sar("linear_power", "HH")).image.mean() == pytest.approx(20)
        assert read_scene(None, path, sar("db", "HH")).image.mean() == 100

    @pytest.mark.parametrize("factor", [0, -1, "1", None, True, math.inf, math.nan])
    def test_absurd(self, tmp_path, factor):
        path = write(tmp_path / "a.tif", np.ones((1, 2, 2), "complex64"), tags=capella(factor))
        with raises_naming("a.tif", "sar_factor"):
            read_scene(None, path, sar("complex", "HH"))

    @pytest.mark.parametrize(
        "text", ["a picture", "{", "{}", '{"collect": 3}', '{"collect": []}', "[" * 5000, '{"a":' * 100_000]
    )
    def test_silent(self, tmp_path, text):
        path = write(tmp_path / "a.tif", np.ones((1, 2, 2), "complex64"), tags={FACTOR: text})
        assert (read_scene(None, path, sar("complex", "HH")).image == 0).all()


class TestMeanPower:
    POWER = np.array(
        [[[1, 1, 0, np.nan]], [[10, 0, 0, np.nan]], [[100, np.nan, 0, 5]], [[1000, 3, 0, np.nan]]]
    )

    def read(self, path, names, scale="linear_power", **options):
        return read_scene(None, path, sar(scale, *names), **options).image[:, 0]

    def test_of_known_polarisations_only(self, tmp_path):
        path = write(tmp_path / "a.tif", self.POWER.astype("float32"), names=QUAD)
        mean = self.read(path, ["HH+HV+VH+VV"])
        assert mean[0, [0, 1, 3]] == pytest.approx(10 * np.log10([1111 / 4, 4 / 2, 5]), abs=1e-4)
        assert np.isnan(mean[0, 2])

    @pytest.mark.parametrize("scale", ["linear_power", "amplitude", "db", "complex"])
    def test_is_of_power_in_every_scale(self, tmp_path, scale):
        power = np.random.default_rng(0).gamma(2, 3, (4, 9, 9)) + 0.1
        values = {"amplitude": np.sqrt(power), "db": 10 * np.log10(power), "complex": -1j * np.sqrt(power)}
        array = values.get(scale, power).astype("complex64" if scale == "complex" else "float32")
        path = write(tmp_path / "a.tif", array, names=QUAD)
        image = read_scene(None, path, sar(scale, "HV", "VV+HH")).image
        expected = 10 * np.log10([power[1], (power[0] + power[3]) / 2])
        assert np.allclose(image, expected, atol=1e-3)

    def test_no_data_of_the_single_band_is_no_data_of_the_image(self, tmp_path):
        path = write(tmp_path / "a.tif", self.POWER.astype("float32"), names=QUAD)
        image = self.read(path, ["HH", "VH+VV"])
        assert np.isfinite(image).tolist() == [[True, True, False, False]] * 2
        assert image[1, 1] == pytest.approx(10 * math.log10(3), abs=1e-4)

    def test_declared_number_of_one_polarisation(self, tmp_path):
        path = write(
            tmp_path / "a.tif", np.array([[[-99.0]], [[-10.0]]], "float32"), names=("HH", "VV"), nodata=-99
        )
        assert self.read(path, ["HH+VV"], "db")[0, 0] == pytest.approx(-10, abs=1e-5)

    def test_numbers_choose_bands(self, tmp_path):
        path = write(tmp_path / "a.tif", self.POWER[:, :, :1].astype("float32"))
        assert self.read(path, ["HH+VV"], sar_bands=[(2, 4)])[0, 0] == pytest.approx(
            10 * math.log10(505), abs=1e-4
        )
        with pytest.raises(InputError, match=r"`sar_bands` 2\+5 must be 1 of 1\.\.4"):
            self.read(path, ["HH+VV"], sar_bands=[(2, 5)])

    def test_of_unnamed_bands_is_refused_unless_there_are_no_others(self, tmp_path):
        path = write(tmp_path / "a.tif", self.POWER[:, :, :1].astype("float32"))
        with pytest.raises(InputError, match=r"do not tell which .* HH\+VV.*`sar_bands` 1\+2"):
            self.read(path, ["HH+VV"])
        assert self.read(path, ["HH+HV+VH+VV"])[0, 0] == pytest.approx(10 * math.log10(1111 / 4), abs=1e-4)

    def test_that_a_file_holds_is_found_and_stands_for_no_polarisation(self, tmp_path):
        path = write(tmp_path / "a.tif", np.full((1, 2, 2), 10, "float32"), names=("HH+VV",))
        assert self.read(path, ["VV+HH"])[0].tolist() == [10, 10]
        with raises_naming("HH"):
            self.read(path, ["HH"])

    def test_of_a_display_stretch_is_refused(self, tmp_path):
        path = write(tmp_path / "a.tif", np.ones((2, 2, 2), "uint8"), names=("HH", "VV"))
        with pytest.raises(InputError, match="display stretch"):
            self.read(path, ["HH+VV"], "stretched_uint8")

    def test_of_a_tile_without_writing_it_anew(self, tmp_path):
        """As tiles are read: bands by the data set's names, several channels of one band."""
        rng = np.random.default_rng(1)
        db = rng.normal(-10, 4, (4, 20, 30)).astype("float32")
        path = write(tmp_path / "t.tif", db)
        wanted = sar("db", *QUAD).select(sar=("VV", "HH+HV+VH+VV", "HH")).sar
        with open_raster(path) as source:
            bands = Bands(source, band_numbers(wanted, QUAD, "SAR"), None, "db")
            image, window = bands.read_final(), bands.read_final((5, 3, 7, 8))
        assert np.array_equal(image[[0, 2]], db[[3, 0]])
        assert np.allclose(image[1], 10 * np.log10((10 ** (db.astype(float) / 10)).mean(axis=0)), atol=1e-4)
        assert image.dtype == np.float32 and np.array_equal(window, image[:, 3:11, 5:12])

    def test_power_too_small_for_float32_is_the_floor(self, tmp_path):
        path = write(tmp_path / "a.tif", np.full((2, 1, 1), -900, "float32"), names=("HH", "VV"))
        assert self.read(path, ["HH+VV"], "db").tolist() == [[SAR_FLOOR_DB]]


class TestSeveralFiles:
    """A list of files counts as one file with their bands one after another."""

    def files(self, tmp_path, *names, **options):
        return [
            write(tmp_path / f"{name}.tif", np.full((1, 8, 8), 10.0**i, "float32"), **options)
            for i, name in enumerate(names)
        ]

    def test_polarisations_by_file_name(self, tmp_path):
        paths = self.files(tmp_path, "S1A_33UUP_70_48_VV", "sar_hh", "x-VH")
        scene = read_scene(None, paths, sar("linear_power", "HH", "VH", "HH+VV"))
        assert scene.image[:, 0, 0] == pytest.approx([10, 20, 10 * math.log10(5.5)], abs=1e-4)
        assert scene.notes == []

    def test_in_order_where_names_do_not_tell(self, tmp_path):
        paths = self.files(tmp_path, "b", "a", "c")
        assert read_scene(paths, None, BandSpec()).image[:, 0, 0].tolist() == [1, 10, 100]
        assert read_scene(paths, None, BandSpec(("c", "b"))).image[:, 0, 0].tolist() == [100, 1]

    def test_a_name_that_tells_is_not_given_to_another(self, tmp_path):
        paths = self.files(tmp_path, "sar_hv", "other")
        assert read_scene(None, paths, sar("linear_power", "HH", "HV")).image[:, 0, 0].tolist() == [10, 0]
        with raises_naming("VV"):
            read_scene(None, paths[:1], sar("linear_power", "VV"))
        with raises_naming("2 bands", "3"):
            read_scene(None, paths, sar("linear_power", "HH", "VH", "VV"))

    def test_first_band_of_each_file(self, tmp_path):
        values = np.arange(1, 3, dtype="float32")[:, None, None] * np.ones((2, 4, 4), "float32")
        paths = [write(tmp_path / f"{n}.tif", values * k) for n, k in (("p", 1), ("q", 100))]
        scene = read_scene(None, paths, sar("linear_power", "HH", "VV"))
        assert (
            scene.image[:, 0, 0] == pytest.approx([0, 20], abs=1e-4)
            and "whose names do not tell" in scene.notes[0]
        )
        scene = read_scene(None, paths, sar("linear_power", "HH", "VV"), sar_bands=[4, 1])
        assert scene.image[:, 0, 0] == pytest.approx([10 * math.log10(200), 0], abs=1e-4)

    def test_each_on_its_own_grid(self, tmp_path):
        """A bright square of 4 m at (8..12, 8..12) in three files of other pixels and origins: one place."""
        rgb = write(tmp_path / "rgb.tif", np.ones((3, 20, 20), "uint8"))
        paths = []
        for name, size, start in (("hh", 0.5, -3), ("hv", 1, -2), ("vv", 2, 0)):
            at = start + (np.arange(int(30 / size)) + 0.5) * size
            inside = (at > 8) & (at < 12)
            power = np.where(inside[:, None] & inside, 100.0, 1.0).astype("float32")
            grid = METRE * Affine.translation(start, start) * Affine.scale(size)
            paths.append(write(tmp_path / f"{name}.tif", power[None], grid))
        bands = BandSpec(sar=("HH", "HV", "VV", "HH+HV+VV"), sar_scale="linear_power")
        with SceneReader(rgb, paths, bands) as reader:
            image = reader.read().image
            window = reader.read((7, 6, 6, 9)).image
        expected = np.zeros((20, 20))
        expected[8:12, 8:12] = 20
        assert np.abs(image[[3, 4]] - expected).max() < 1e-3
        centre = image[5] > 16  # bilinear from 2 m
        assert centre[8:12, 8:12].all() and centre.sum() == 16
        assert np.allclose(image[6], 10 * np.log10((10 ** (image[3:6] / 10)).mean(axis=0)), atol=1e-3)
        assert np.allclose(window, image[:, 6:15, 7:13], atol=1e-3)

    def test_no_data_of_one_file_is_no_data_of_the_modality(self, tmp_path):
        first = write(tmp_path / "a.tif", np.array([[[1, np.nan, 3]]], "float32"))
        second = write(tmp_path / "b.tif", np.array([[[4, 5, 6]]], "float32"))
        image = read_scene([first, second], None, BandSpec(("x", "y"))).image[:, 0]
        assert np.isnan(image).tolist() == [[False, True, False]] * 2 and image[1, 2] == 6

    def test_what_a_tile_may_refer_to(self, tmp_path):
        """Only one file's own numbers: not two files, a mean, a complex image or the user's factor."""
        one, two = self.files(tmp_path, "sar_hh", "sar_vv")
        slc = write(tmp_path / "slc.tif", noise((1, 8, 8)))
        both = write(tmp_path / "both.tif", np.ones((2, 8, 8), "float32"), names=("HH", "VV"))
        for path, bands, options, ok in (
            (one, sar("linear_power", "HH"), {}, True),
            (both, sar("linear_power", "VV"), {}, True),
            (both, sar("linear_power", "HH+VV"), {}, False),
            ([one, two], sar("linear_power", "HH", "VV"), {}, False),
            (slc, sar("complex", "HH"), {}, False),
            (one, sar("amplitude", "HH"), {"sar_factor": 2.0}, False),
        ):
            with SceneReader(None, path, bands, **options) as reader:
                assert (reader.in_file("sar", (0, 0, 4, 4)) is not None) == ok

    def test_georeference_of_one_file_only(self, tmp_path):
        rgb = write(tmp_path / "rgb.tif", np.ones((3, 8, 8), "uint8"), Affine.identity(), None)
        placed = self.files(tmp_path, "sar_hh")
        bands = BandSpec(sar=("HH",), sar_scale="linear_power")
        with raises_naming("EPSG:32631", "rgb.tif"):
            read_scene(rgb, placed, bands, gsd_m=1.0)
        half = write(tmp_path / "half.tif", np.ones((1, 8, 8), "float32"), crs=None)
        with raises_naming("CRS", "rgb.tif"):
            read_scene(rgb, half, bands, gsd_m=1.0)
        with raises_naming("sar_vv.tif", "CRS", "sar_hh.tif", "EPSG:32631"):
            other = self.files(tmp_path, "sar_vv", crs=None)
            read_scene(None, placed + other, sar("linear_power", "HH", "VV"))


class TestScales:
    SPECKLE = np.abs(noise((200, 200))) ** 2 * np.random.default_rng(1).lognormal(0, 1, (200, 200))

    @pytest.mark.parametrize(
        ("name", "possible"),
        [("power", "linear_power amplitude"), ("amplitude", "linear_power amplitude"), ("db", "db"),
         ("counts", "linear_power amplitude"), ("counts in db", "db"), ("few", "linear_power amplitude db"),
         ("drawn", "linear_power amplitude db"), ("nothing", "linear_power amplitude db")],
    )  # fmt: skip
    def test_told_by_the_numbers(self, name, possible):
        power = self.SPECKLE
        values = {
            "power": power,
            "amplitude": np.sqrt(power),
            "db": 10 * np.log10(power) - 10,
            "counts": np.rint(300 * np.sqrt(power)),
            "counts in db": 10 * np.log10(power * 1e6),
            "few": power[:50, :50],
            "drawn": np.where(power > 1, 40.0, 30.0),
            "nothing": np.full((200, 200), np.nan),
        }[name]
        assert plausible_sar_scales(values) == tuple(possible.split())
        zeros = np.where(np.random.default_rng(0).random(values.shape) < 0.5, 0, values)
        assert name == "few" or plausible_sar_scales(np.concatenate([values, zeros])) == tuple(
            possible.split()
        )

    def test_decibels_are_not_made_decibels_again(self, tmp_path):
        """Uncalibrated counts in dB have no negative number, and pass for power in any other check."""
        db = (10 * np.log10(self.SPECKLE * 1e6)).astype("float32")
        path = write(tmp_path / "a.tif", db[None])
        for scale in ("linear_power", "amplitude"):
            with pytest.raises(
                InputError, match=rf"a\.tif: its values .* are not {scale}. They look like db"
            ):
                read_scene(None, path, sar(scale, "HH"))
        assert np.array_equal(read_scene(None, path, sar("db", "HH")).image[0], db)

    def test_power_that_is_called_decibels_is_noted(self, tmp_path):
        path = write(tmp_path / "a.tif", self.SPECKLE[None].astype("float32"))
        notes = read_scene(None, path, sar("db", "HH")).notes
        assert any("are not db. They look like linear_power or amplitude" in note for note in notes)
        assert read_scene(None, path, sar("linear_power", "HH")).notes == []

    def test_check(self):
        db = 10 * np.log10(self.SPECKLE)
        check_sar_scale(db, "db", "a.tif")
        for scale in ("complex", "stretched_uint8"):
            check_sar_scale(db, scale, "a.tif")
        with raises_naming("a.tif", "amplitude"):
            check_sar_scale(db, "amplitude", "a.tif")

    def test_sample_is_of_all_places_and_leaves_no_data_out(self, tmp_path):
        values = np.zeros((1, 900, 900), "float32")
        values[0, 600:, 600:] = np.arange(90_000).reshape(300, 300) + 1
        values[0, 750, 750:] = np.nan
        path = write(tmp_path / "a.tif", values)
        sample = sample_values([path, path])
        assert len(sample) > 20_000 and np.isfinite(sample).all() and (sample > 0).all()
        assert sample_values([]).shape == (0,)


class TestRealPixels:
    FACTORS = {"hh": 2.777517938e-4, "hv": 5.98785229e-5, "vh": 8.06645364e-5, "vv": 2.808831689e-4}

    def test_single_look_complex_onto_a_map_grid(self, tmp_path, shared_data):
        """Four rotated SLC files: 4 x 4 looks on a north-up grid are what binning the pixels' centres gives."""
        folder = shared_data("solaris-sn6-preproc")
        paths = [folder / f"sar_{name}.tif" for name in self.FACTORS]
        grid = Affine(10, 0, 592_680, 0, -10, 5_749_650)
        rgb = write(tmp_path / "rgb.tif", np.ones((3, 36, 36), "uint8"), grid)
        bands = BandSpec(sar=(*QUAD, "HH+VV"), sar_scale="complex")
        scene = read_scene(rgb, paths, bands)
        image = scene.image[3:]
        assert np.isfinite(image).all()
        for channel, (path, factor) in enumerate(zip(paths, self.FACTORS.values())):
            with rasterio.open(path) as source:
                power = np.abs(source.read(1).astype("complex128")) ** 2 * factor**2
                rows, columns = np.indices(power.shape) + 0.5
                x, y = ~grid * (source.transform * (columns, rows))
            inside = (x >= 0) & (x < 36) & (y >= 0) & (y < 36)
            at = y[inside].astype(int), x[inside].astype(int)
            total, count = np.zeros((36, 36)), np.zeros((36, 36))
            np.add.at(total, at, power[inside])
            np.add.at(count, at, 1)
            difference = image[channel] - 10 * np.log10(total / count)
            assert (
                abs(np.median(difference)) < 0.1
                and np.corrcoef(image[channel].ravel(), (10 * np.log10(total / count)).ravel())[0, 1] > 0.95
            )
            assert -16 < np.median(image[channel]) < -8  # calibrated: as the tutorial's dB of the same city
        mean = 10 * np.log10((10 ** (image[[0, 3]].astype(float) / 10)).mean(axis=0))
        assert np.allclose(image[4], mean, atol=1e-3)

    def test_single_look_complex_and_the_published_decibels_agree(self, shared_data):
        """The same ground, once as four SLC files with their factors, once in dB at 4.5 m as the publisher made it."""
        folder = shared_data("solaris-sn6-preproc")
        paths = [folder / f"sar_{name}.tif" for name in self.FACTORS]
        bands = BandSpec(sar=QUAD, sar_scale="complex")
        ours = read_scene(folder / "rgb_unmasked.tif", paths, bands).image[3:]
        with rasterio.open(folder / "sar_masked.tif") as source:
            theirs = source.read()
        both = np.isfinite(ours) & np.isfinite(theirs)
        assert both.sum() > 45_000
        for a, b, known in zip(ours, theirs, both):
            assert abs(np.median(a[known] - b[known])) < 0.5  # without the square of the factor: 71 to 84 dB
            assert np.corrcoef(a[known], b[known])[0, 1] > 0.5

    def test_scales(self, shared_data):
        folder = shared_data("solaris-sn6-preproc")
        assert plausible_sar_scales(sample_values([folder / "sar_masked.tif"])) == ("db",)
        power = sample_values([folder / f"sar_{name}.tif" for name in self.FACTORS])
        assert (
            plausible_sar_scales(power)
            == plausible_sar_scales(np.sqrt(power))
            == ("linear_power", "amplitude")
        )
        # As SpaceNet 6 writes SAR-Intensity: counts of 16 bits, not calibrated, in dB; sqrt(2) * 32767 is 93.3 dB.
        assert plausible_sar_scales(10 * np.log10(power)) == ("db",)
        patches = shared_data("ssl4eo-ben-s1s2")
        db = sample_values(sorted(patches.glob("SSL4EO-S12/s1/*/*/V[HV].tif")))
        assert plausible_sar_scales(db) == ("db",)
        assert "linear_power" in plausible_sar_scales(10 ** (db / 10))

    def test_sentinel_pair_lies_on_the_map(self, shared_data):
        """S1 and S2 have 264 x 264 px each, four of them apart: every pixel is found by its place, not its number."""
        folder = shared_data("ssl4eo-ben-s1s2") / "SSL4EO-S12"
        optical = [
            folder / f"s2a/0000200/20200604T054639_20200604T054831_T43RCP/{band}.tif"
            for band in ("B4", "B3", "B2")
        ]
        paths = sorted(next((folder / "s1/0000200").glob("*/VV.tif")).parent.glob("V?.tif"))
        scene = read_scene(optical, paths, BandSpec(sar=("VV", "VH"), sar_scale="db"))
        assert scene.image.shape == (5, 264, 264) and scene.gsd_m == pytest.approx(9.74, abs=0.05)
        rows, columns = np.indices((264, 264))
        for channel, name in ((3, "VV"), (4, "VH")):
            with rasterio.open(next(p for p in paths if p.stem == name)) as source:
                x, y = ~source.transform * (scene.transform * (columns + 0.5, rows + 0.5))
                there = (x >= 0) & (x < 264) & (y >= 0) & (y < 264)
                raw = source.read(1)
                nearest = raw[y[there].astype(int), x[there].astype(int)]
            image = scene.image[channel]
            assert np.array_equal(np.isfinite(image), there)
            assert np.corrcoef(image[there], nearest)[0, 1] > 0.9
            assert np.corrcoef(image[there], raw[there])[0, 1] < 0.6

    def test_sentinel_2_bands_of_three_grids(self, shared_data):
        """B1 has 60 m pixels and another corner than B4: it is warped, B4 and B3 are not."""
        folder = (
            shared_data("ssl4eo-ben-s1s2") / "SSL4EO-S12/s2a/0000200/20200604T054639_20200604T054831_T43RCP"
        )
        scene = read_scene(
            [folder / f"{band}.tif" for band in ("B4", "B3", "B1")], None, BandSpec(("B4", "B3", "B1"))
        )
        with rasterio.open(folder / "B4.tif") as b4, rasterio.open(folder / "B1.tif") as b1:
            assert np.array_equal(
                scene.image[0][np.isfinite(scene.image[0])], b4.read(1)[np.isfinite(scene.image[0])]
            )
            x, y = scene.transform * (100.5, 60.5)
            around = b1.read(1)[tuple(slice(i - 1, i + 2) for i in b1.index(x, y))]
        assert around.min() <= scene.image[2, 60, 100] <= around.max()
        assert [note for note in scene.notes if "warped" in note][0].startswith(str(folder / "B1.tif"))
