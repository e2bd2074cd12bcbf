"""Invented patches: exact extents, spectra and echoes of the covers that they are drawn from."""

from fusiondet.projects.hse_lcz import synthetic_patches as patches
from fusiondet.projects.hse_lcz.patches import LCZ_CLASSES, OPTICAL_BANDS, SIZE_PX
from fusiondet.projects.hse_lcz.synthetic_patches import draw_patch, write_patches

import h5py
import numpy as np
import pytest
from scipy.ndimage import uniform_filter

FINE_PX = 2 * SIZE_PX


def city_of(zone):
    """A city without haze that is of one zone everywhere."""
    return patches._City(
        gain=np.ones(len(OPTICAL_BANDS)),
        haze=np.zeros(len(OPTICAL_BANDS)),
        roofs=np.array([1.0, 0.0, 0.0]),
        green=1.0,
        zones=np.eye(len(LCZ_CLASSES))[zone],
    )


def test_the_same_seed_gives_the_same_patches_and_another_one_others(tmp_path):
    pixels = []
    for i, seed in enumerate((1, 1, 2)):
        file, extents = tmp_path / f"{i}.h5", tmp_path / f"{i}.npy"
        write_patches(file, extents, 18, cities=2, seed=seed)
        with h5py.File(file) as f:
            pixels.append((f["sen1"][:], f["sen2"][:], np.load(extents)))
    assert all((a == b).all() for a, b in zip(pixels[0], pixels[1]))
    assert all((a != b).any() for a, b in zip(pixels[0], pixels[2]))


def test_the_first_patches_have_every_class_and_every_patch_a_city(tmp_path):
    count = len(LCZ_CLASSES) + 3
    write_patches(tmp_path / "a" / "train.h5", tmp_path / "b" / "train.npy", count, cities=2, seed=0)
    with h5py.File(tmp_path / "a" / "train.h5") as f:
        label, city = f["label"][:], f["city"][:]
        assert f["sen1"].shape == (count, 32, 32, 8) and f["sen2"].shape == (count, 32, 32, 10)
    assert (label[: len(LCZ_CLASSES)] == np.eye(len(LCZ_CLASSES))).all() and (label.sum(1) == 1).all()
    assert set(city) == {0, 1}


@pytest.mark.parametrize("unknown", [0.0, 1.0])
def test_extents_are_unknown_on_request_and_pixels_stay(tmp_path, unknown):
    write_patches(tmp_path / "all.h5", tmp_path / "all.npy", 6, cities=1, seed=0)
    write_patches(tmp_path / "some.h5", tmp_path / "some.npy", 6, cities=1, seed=0, unknown=unknown)
    extents = np.load(tmp_path / "some.npy")
    expected = np.load(tmp_path / "all.npy") if unknown == 0 else np.full(6, np.nan)
    np.testing.assert_array_equal(extents, expected)
    with h5py.File(tmp_path / "all.h5") as a, h5py.File(tmp_path / "some.h5") as b:
        assert (a["sen2"][:] == b["sen2"][:]).all()


def test_an_extent_is_the_share_of_roofs_and_sealed_ground(monkeypatch):
    """Roofs on a quarter, sealed ground on another, trees on the rest: 0.5."""
    cover = np.full((FINE_PX, FINE_PX), 2)
    cover[: FINE_PX // 2, : FINE_PX // 2] = 0
    cover[: FINE_PX // 2, FINE_PX // 2 :] = 1
    assert extent_of(cover, monkeypatch) == 0.5


def test_an_extent_is_at_most_two_and_a_half_times_that_of_roofs(monkeypatch):
    """Roofs on a sixteenth of an airport: 2.5 / 16; without any roof it is no settlement."""
    cover = np.ones((FINE_PX, FINE_PX), int)
    assert extent_of(cover, monkeypatch) == 0
    cover[: FINE_PX // 4, : FINE_PX // 4] = 0
    assert extent_of(cover, monkeypatch) == 2.5 / 16


def extent_of(cover, monkeypatch):
    covers = cover, np.where(cover == 0, 10.0, 0.0), np.zeros_like(cover)
    monkeypatch.setattr(patches, "_covers", lambda *_: covers)
    return draw_patch(0, city_of(0), np.random.default_rng(0))[2]


def test_water_is_no_settlement_and_a_compact_zone_mostly_is():
    rng = np.random.default_rng(0)
    water, compact = LCZ_CLASSES.index("water"), LCZ_CLASSES.index("compact_mid_rise")
    assert [draw_patch(water, city_of(water), rng)[2] for _ in range(8)] == [0] * 8
    # Its shares are 0.90 on average, before each is drawn.
    extents = [draw_patch(compact, city_of(compact), rng)[2] for _ in range(24)]
    assert np.mean(extents) == pytest.approx(0.9, abs=0.1) and max(extents) <= 1


def test_the_other_zone_has_less_than_half_of_a_patch():
    rng = np.random.default_rng(0)
    shares = [patches._corner(rng, (FINE_PX, FINE_PX)).mean() for _ in range(50)]
    assert 0 < min(shares) < 0.15 and 0.35 < max(shares) < 0.5


def test_a_patch_of_one_cover_has_its_spectrum():
    """Noise of 0.01 over 1024 pixels; brightness, drawn once for a patch, leaves the ratios of bands alone."""
    cover = np.full((FINE_PX, FINE_PX), 1 + 1)
    nothing = np.zeros(cover.shape)
    seen = patches._optical(cover, nothing.astype(int), nothing, city_of(0), np.random.default_rng(0))
    spectrum = patches._SPECTRA[1]
    mean = seen.mean((0, 1))
    brightness = mean.sum() / spectrum.sum()
    assert brightness == pytest.approx(1, abs=0.2)
    np.testing.assert_allclose(mean, brightness * spectrum, atol=0.002)


@pytest.mark.parametrize(
    ("height_m", "power"), [(5.0, (0.016, 0.14)), (30.0, (0.046, 0.44)), (0.0, (0.004, 0.03))]
)
def test_echoes_grow_with_the_height_of_roofs(height_m, power):
    """VH 0.01 + 0.0012 h, VV 0.08 + 0.012 h; at 0 m there is sealed ground. Speckle over 1024 pixels is 3 %."""
    cover = np.zeros((FINE_PX, FINE_PX), int) if height_m else np.ones((FINE_PX, FINE_PX), int)
    radar = patches._radar(cover, np.full(cover.shape, height_m), np.random.default_rng(0)).astype(float)
    vh, vv = radar[..., 0] + 1j * radar[..., 1], radar[..., 2] + 1j * radar[..., 3]
    assert (abs(vh) ** 2).mean() == pytest.approx(power[0], rel=0.12)
    assert (abs(vv) ** 2).mean() == pytest.approx(power[1], rel=0.12)
    # The last four bands are the covariance of the first four, smoothed.
    product = vh * vv.conj()
    filtered = [uniform_filter(part, 5) for part in (abs(vh) ** 2, abs(vv) ** 2, product.real, product.imag)]
    np.testing.assert_allclose(radar[..., 4:], np.stack(filtered, axis=-1), atol=1e-5)
