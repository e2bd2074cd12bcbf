"""Values of scenes in other units than those of the training: refused, noted, or mapped."""

from pathlib import Path
from types import SimpleNamespace

from fusiondet.errors import InputError
from fusiondet.inference.options import SceneOptions
from fusiondet.inference.value_ranges import value_notes
from fusiondet.io.bands import BandSpec
from fusiondet.io.scene_reader import SceneReader
from tests.support.tiny_city import write_raster

import numpy as np
import pytest

BANDS = BandSpec(("red", "green", "blue"), ("HH",), "db")
MEAN, STD = [101.2, 111.0, 90.1, -11.7], [42.4, 37.0, 40.9, 6.1]
SIDE = 128


@pytest.fixture
def predictor():
    """What the checks ask of a predictor, trained on 8 bit and dB."""
    model = SimpleNamespace(PIXEL_MEAN=MEAN, PIXEL_STD=STD)
    return SimpleNamespace(
        cfg=SimpleNamespace(MODEL=model),
        bands=BANDS,
        channels={"optical": slice(0, 3), "sar": slice(3, None)},
        weights=Path("model.pth"),
    )


def optical():
    """(3, H, W) in 8 bit: bluish shadows, red roofs, plants, about the colours of the training."""
    rng = np.random.default_rng(0)
    colours = np.array([[100, 108, 92], [30, 37, 42], [190, 120, 95], [75, 120, 50]], float)
    kinds = rng.choice(4, (SIDE, SIDE), p=(0.5, 0.15, 0.15, 0.2))
    return np.moveaxis(np.clip(colours[kinds] * rng.normal(1, 0.15, (SIDE, SIDE, 1)), 1, 255), -1, 0)


def decibels():
    return np.random.default_rng(1).normal(-11, 6, (1, SIDE, SIDE)).astype(np.float32)


@pytest.fixture
def notes(tmp_path, predictor):
    def check(image=None, sar=None, **options):
        rgb_path = sar_path = None
        if image is not None:
            rgb_path = tmp_path / "rgb.tif"
            write_raster(rgb_path, image, photometric="RGB")
        if sar is not None:
            sar_path = tmp_path / "sar.tif"
            write_raster(sar_path, sar)
        settled = SceneOptions(**options)
        with SceneReader(rgb_path, sar_path, BANDS, **settled.reading) as reader:
            return value_notes(predictor, reader, {"optical": [rgb_path], "sar": [sar_path]}, settled)

    return check


def test_the_unit_of_the_training_passes(notes):
    assert notes(optical().astype(np.uint8), decibels()) == []


@pytest.mark.parametrize(
    ("factor", "dtype", "proposed"),
    [
        (257, "uint16", 1 / 257),
        (8, "uint16", 1 / 8),
        (10_000 / 850, "uint16", None),
        (1 / 255, "float32", 255),
    ],
)
def test_another_unit_is_refused_and_mapped_by_the_factor(notes, factor, dtype, proposed):
    image = (optical() * factor).astype(dtype)
    with pytest.raises(
        InputError, match="not in the unit of what model.pth was trained on .*`optical_scale`"
    ) as e:
        notes(image)
    if proposed:
        assert f"(about {proposed:.4g} would fit)" in str(e.value)
    assert notes(image, optical_scale=1 / factor) == []


def test_a_declared_scale_is_never_refused_but_noted(notes):
    (note,) = notes((optical() * 257).astype("uint16"), optical_scale=1)
    assert "unusual" in note


def test_a_darker_scene_is_unusual(notes):
    (note,) = notes((optical() * 0.3).astype("float32"))
    assert "unusual for what model.pth was trained on" in note


def test_a_few_outliers_change_nothing(notes):
    image = optical().astype("float32")
    image[:, 0, :50] = 60_000
    assert notes(image) == []


def test_exchanged_red_and_blue_are_noted_unless_the_bands_were_given(notes):
    image = optical()[::-1].astype(np.uint8)
    (note,) = notes(image)
    assert "red and blue look exchanged" in note and "`rgb_bands=(3, 2, 1)`" in note
    assert notes(image, rgb_bands=(3, 2, 1)) == []


@pytest.mark.parametrize("share", [0, 0.002, 0.05])
def test_powers_are_no_decibels_though_some_are_below_zero(notes, share):
    power = (10 ** (decibels() / 10)).astype(np.float32)
    power[:, np.random.default_rng(2).random((SIDE, SIDE)) < share] = -1e-4
    with pytest.raises(InputError, match="are not the dB that model.pth was trained on"):
        notes(None, power)
