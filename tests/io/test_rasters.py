"""Overviews are read where they serve: near the same numbers from far fewer pixels, and the same no data."""

import os

from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.io.rasters import MAX_BANDS, FileBands, open_raster
from fusiondet.io.scene_reader import SceneReader
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling

PAN = BandSpec(("pan",))
GRID = Affine(0.5, 0, 600_000, 0, -0.5, 5_750_000)


def write(path, array, levels=(2, 4), resampling=Resampling.average, mask=None, beside=False, **profile):
    """A tiled GeoTIFF of 0.5 m with overviews; without `levels`, one that has none."""
    options = {"driver": "GTiff", "crs": "EPSG:32631", "transform": GRID, "tiled": True, **profile}
    count, height, width = array.shape
    shape = {"count": count, "height": height, "width": width, "dtype": array.dtype}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, TIFF_USE_OVR=beside):
        with rasterio.open(path, "w", **shape, **options) as target:
            target.write(array)
            if mask is not None:
                target.write_mask(mask)
        if levels:
            with rasterio.open(path, "r+") as target:
                target.build_overviews(levels, resampling)
    return path


def picture(size, seed=0):
    """(1, size, size) uint8: blocks of 16 px with noise, nowhere 0."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(40, 200, (size // 16, size // 16)), np.ones((16, 16)))
    return (blocks + rng.integers(-20, 20, blocks.shape)).astype(np.uint8)[None]


@pytest.fixture
def pixels_read(monkeypatch):
    """One number for each read: of pixels."""
    real, counts = FileBands.read_raw, []

    def counted(self, window=None):
        raw, valid = real(self, window)
        counts.append(raw.size)
        return raw, valid

    monkeypatch.setattr(FileBands, "read_raw", counted)
    return counts


def read(path, target_gsd_m, bands=PAN, window=None, sar=None, **options):
    with SceneReader(path, sar, bands, target_gsd_m=target_gsd_m, **options) as reader:
        return reader.read(window)


def both(tmp_path, array, target_gsd_m, window=None, **how):
    """Images of the same pixels, without overviews and with them."""
    plain = read(write(tmp_path / "plain.tif", array, **{**how, "levels": ()}), target_gsd_m, window=window)
    scene = read(write(tmp_path / "overviews.tif", array, **how), target_gsd_m, window=window)
    return plain.image, scene.image


@pytest.mark.parametrize("beside", [False, True])
def test_far_less_is_read_for_nearly_the_same_numbers(tmp_path, pixels_read, beside):
    full, image = both(tmp_path, picture(4096), 2.0, beside=beside)
    assert full.shape == image.shape == (1, 1024, 1024)
    assert np.abs(full - image).max() <= 1 and full.std() > 20
    assert pixels_read == [4096**2, 1024**2]
    assert (tmp_path / "overviews.tif.ovr").exists() == beside


@pytest.mark.parametrize(
    ("target_gsd_m", "factor"), [(0.9, 1), (1.0, 2), (1.99, 4), (1.9, 2), (2.5, 4), (10.0, 4)]
)
def test_never_one_that_is_coarser_than_the_target(tmp_path, pixels_read, target_gsd_m, factor):
    full, image = both(tmp_path, picture(512), target_gsd_m)
    assert pixels_read == [512**2, (512 // factor) ** 2]
    assert np.abs(full - image).mean() < 3


def test_windows_of_a_grid_fit_together(tmp_path):
    path = write(tmp_path / "a.tif", picture(500 // 16 * 16 + 16))
    whole = read(path, 1.7)
    part = read(path, 1.7, window=(40, 30, 60, 50))
    np.testing.assert_allclose(part.image, whole.image[:, 30:80, 40:100], atol=0.01)
    assert whole.notes[-1] == f"{path}: read from its overview of 256 x 256 px."


def test_sizes_that_no_factor_divides_keep_their_place(tmp_path):
    ramp = np.broadcast_to(np.arange(1001) * 0.2 + 20, (1, 777, 1001)).astype(np.uint8)
    full, image = both(tmp_path, ramp, 2.0)
    assert np.abs(full - image).max() <= 1


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha"])
def test_no_data_stays_no_data_and_does_not_bleed(tmp_path, pixels_read, kind):
    array, known = picture(512), np.ones((512, 512), bool)
    known[100:231, 50:303] = False
    array[:, ~known] = 0
    marks = known.astype(np.uint8) * 255
    how = {"nodata": {"nodata": 0}, "mask": {"mask": marks}, "alpha": {"alpha": "yes"}}[kind]
    if kind == "alpha":
        array = np.stack([array[0], marks])
    full, image = both(tmp_path, array, 2.0, **how)
    assert pixels_read == [512**2, 128**2]
    missing, also = np.isnan(full[0]), np.isnan(image[0])
    assert missing[26:57, 13:75].all() and also[26:57, 13:75].all()
    assert not missing[:25].any() and not also[:25].any() and not also[59:].any()
    both_known = ~missing & ~also
    assert np.abs(full[0] - image[0])[both_known].max() <= 1


def test_the_users_no_data_is_not_that_of_the_overviews(tmp_path, pixels_read):
    array = picture(512)
    array[:, :, 250:] = 0
    path = write(tmp_path / "a.tif", array)
    image = read(path, 2.0, nodata=0).image
    assert pixels_read == [512**2]
    assert np.nanmin(image) > 15


@pytest.mark.parametrize("internal", [True, False])
def test_a_mask_that_the_overviews_lack(tmp_path, pixels_read, internal):
    """One that was written later: GDAL calls everything known in the overviews."""
    path = write(tmp_path / "a.tif", picture(512))
    known = np.zeros((512, 512), np.uint8)
    known[:256] = 255
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as target:
        target.write_mask(known)
    image = read(path, 2.0).image
    assert pixels_read == [512**2]
    assert np.isnan(image[0, 64:]).all() and not np.isnan(image[0, :64]).any()


def test_sar_is_averaged_in_power_from_full_resolution(tmp_path, pixels_read):
    power = np.random.default_rng(0).exponential(1.0, (1, 256, 256)).astype(np.float32)
    decibel = 10 * np.log10(np.maximum(power, 1e-4))
    path = write(tmp_path / "sar.tif", decibel, nodata=-99.0)
    spec = BandSpec((), ("HH",), "db")
    image = read(None, 2.0, spec, sar=path).image
    assert max(pixels_read) == 256**2
    expected = 10 * np.log10(power[0].reshape(64, 4, 64, 4).mean(axis=(1, 3)))
    np.testing.assert_allclose(image[0], expected, atol=0.05)


def test_fractions_without_a_declared_number_may_hold_nan(tmp_path, pixels_read):
    array = picture(256).astype(np.float32)
    read(write(tmp_path / "a.tif", array), 2.0)
    read(write(tmp_path / "b.tif", array, nodata=float("nan")), 2.0)
    assert pixels_read == [256**2, 64**2]


@pytest.mark.parametrize("how", ["beside", "named"])
def test_overviews_of_another_kind_are_left_alone(tmp_path, pixels_read, how):
    """GDAL would follow a VRT, or a name in the metadata, to any file."""
    other = write(tmp_path / "other.tif", np.full((1, 128, 128), 7, np.uint8), levels=())
    path = write(tmp_path / "a.tif", picture(256), levels=())
    if how == "beside":
        xml = (
            '<VRTDataset rasterXSize="128" rasterYSize="128"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
            f"<SourceFilename>{other}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
            "</VRTDataset>"
        )
        (tmp_path / "a.tif.ovr").write_text(xml)
    else:
        with rasterio.open(path, "r+") as target:
            target.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(other))
    with rasterio.open(path) as source:
        assert source.overviews(1) == [2]  # the attack is one
    assert read(path, 1.0).image.min() > 15 and pixels_read == [256**2]


def tag(path, scales, offsets):
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = scales, offsets
    return path


def test_scale_and_offset_tags_are_applied_after_no_data(tmp_path, pixels_read):
    array = picture(64)
    array[0, 0, :5] = 255
    path = tag(write(tmp_path / "a.tif", array, levels=(), nodata=255), [0.5], [-3])
    scene = read(path, None)
    assert np.isnan(scene.image[0, 0, :5]).all()
    np.testing.assert_array_equal(scene.image[0, 1:], array[0, 1:] * np.float32(0.5) - 3)
    assert any("0.5" in note and "-3" in note for note in scene.notes)


def test_overviews_are_scaled_as_their_file(tmp_path, pixels_read):
    array = picture(512)
    plain = read(write(tmp_path / "plain.tif", array), 2.0).image
    tagged = read(tag(write(tmp_path / "tagged.tif", array), [0.1], [7]), 2.0).image
    assert pixels_read == [128**2, 128**2]
    np.testing.assert_allclose(tagged, plain * 0.1 + 7, rtol=1e-5)


def test_each_band_has_its_own_scale(tmp_path):
    array = np.stack([np.full((64, 64), v, np.uint16) for v in (100, 200, 300)])
    path = tag(write(tmp_path / "a.tif", array, levels=()), [1, 0.1, 2], [0, 1, 0])
    image = read(path, None, BandSpec(("red", "green", "blue"))).image
    np.testing.assert_allclose(image[:, 0, 0], [100, 21, 600], rtol=1e-6)


def test_decibels_times_hundred_are_decibels_by_their_tag(tmp_path):
    hundredths = np.random.default_rng(0).normal(-1000, 300, (1, 128, 128)).astype(np.int16)
    path = tag(write(tmp_path / "s.tif", hundredths, levels=()), [0.01], [0])
    image = read(None, None, BandSpec((), ("VV",), "db"), sar=path).image
    np.testing.assert_allclose(image, hundredths / 100, rtol=1e-5)


@pytest.mark.parametrize("driver", ["PNG", "JPEG", "JP2OpenJPEG", "GTiff"])
@pytest.mark.parametrize("share", [0.4, 0.97])
def test_truncated_files_are_refused_in_every_format(tmp_path, driver, share):
    noise = np.random.default_rng(0).integers(0, 256, (3, 200, 300), np.uint8)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with rasterio.open(whole, "w", driver=driver, count=3, height=200, width=300, dtype="uint8") as target:
        target.write(noise)
    content = whole.read_bytes()
    cut.write_bytes(content[: int(len(content) * share)])
    with raises_naming("cut", "damaged or truncated"), open_raster(cut) as source:
        FileBands(source, [1, 2, 3], None, None).read_raw()


def test_absurd_sizes_are_refused_by_the_header(tmp_path):
    place = {"driver": "GTiff", "dtype": "uint8", "crs": "EPSG:32631", "transform": GRID, "sparse_ok": True}
    with rasterio.open(
        tmp_path / "tall.tif",
        "w",
        count=1,
        width=16,
        height=2**31 - 1,
        blockysize=2**27,
        bigtiff="YES",
        **place,
    ):
        pass
    with raises_naming("tall.tif", "16 x 2147483647 px"):
        open_raster(tmp_path / "tall.tif")
    with rasterio.open(tmp_path / "deep.tif", "w", count=MAX_BANDS + 1, width=16, height=16, **place):
        pass
    with raises_naming("deep.tif", f"{MAX_BANDS + 1} bands", "gdal_translate -b"):
        open_raster(tmp_path / "deep.tif")


@pytest.mark.parametrize("name", ["pipe", "a\udcff.tif", "a" * 300, "loop", "/dev/zero", "a\0.tif"])
def test_names_that_no_raster_can_have_are_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(InputError, match="is not a file|not UTF-8|cannot be opened|NUL"):
        open_raster(tmp_path / name)


@pytest.mark.parametrize("nodata", [float("nan"), float("inf")])
def test_a_no_data_number_that_is_none_is_refused(tmp_path, nodata):
    with raises_naming("`nodata`", "finite"):
        read(write(tmp_path / "a.tif", picture(64), levels=()), None, nodata=nodata)
