"""Exchanged colour bands are found, in one split or in all."""

from dataclasses import replace

from fusiondet.buildings import Tile
from fusiondet.doctor.colours import ColourCheck
from fusiondet.doctor.samples import Sample
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from tests.support.doctor_cases import by_name, looked, with_bands

import numpy as np
import pytest
import rasterio


def test_colours_of_a_clean_city_fit(samples):
    found = looked(ColourCheck(), samples).findings()
    assert [finding.verdict for finding in found] == ["ok", "ok"]


def test_red_and_blue_exchanged_in_one_split(samples):
    swapped = [with_bands(s, (2, 1, 0, 3)) if s.split == "val" else s for s in samples]
    found = by_name(looked(ColourCheck(), swapped).findings())
    between = found["order of colours between tiles"]
    assert between.verdict == "FAIL" and between.numbers["odd_share"] == {"train": 0.0, "val": 1.0}
    assert {case.note for case in between.cases} == {"fits better as blue, green, red"}
    assert found["red and blue"].verdict == "FAIL" and "val" in found["red and blue"].detail


def test_red_and_blue_exchanged_in_all_tiles_is_told_by_what_cities_look_like(samples):
    found = looked(ColourCheck(), [with_bands(s, (2, 1, 0, 3)) for s in samples]).findings()
    assert found[1].name == "red and blue" and found[1].verdict == "FAIL"


def test_bands_in_another_order_whose_names_say_so_are_fine(samples):
    spec = replace(samples[0].dataset.bands, optical=("blue", "green", "red"))
    renamed = [replace(with_bands(s, (2, 1, 0, 3)), dataset=replace(s.dataset, bands=spec)) for s in samples]
    assert [finding.verdict for finding in looked(ColourCheck(), renamed).findings()] == ["ok", "ok"]


def test_colours_need_red_green_and_blue(samples):
    spec = replace(samples[0].dataset.bands, optical=("pan",))
    grey = [replace(with_bands(s, (0, 3)), dataset=replace(s.dataset, bands=spec)) for s in samples]
    assert [finding.verdict for finding in looked(ColourCheck(), grey).findings()] == ["n/a", "n/a"]


def plants_and_roofs(sample, plants, roofs):
    """`sample` as a lawn with red roofs, each of one colour (red, green, blue) under the light of the picture."""
    light = 0.6 + sample.image[0] / sample.image[0].max()
    roof = sample.footprint & (np.arange(len(light)) % 2 == 0)[:, None]
    rgb = np.where(roof, np.reshape(roofs, (3, 1, 1)), np.reshape(plants, (3, 1, 1))) * light
    return replace(sample, image=np.concatenate([rgb, sample.image[3:]]).astype(np.float32))


@pytest.mark.parametrize(
    ("plants", "roofs", "order"),
    [
        ((50, 70, 45), (120, 80, 60), None),
        ((160, 50, 70), (110, 120, 80), "nir, red, green"),
        ((70, 50, 160), (80, 120, 110), "green, red, nir"),
    ],
)
def test_near_infrared_that_is_called_red_is_told_by_plants(samples, plants, roofs, order):
    found = looked(ColourCheck(), [plants_and_roofs(s, plants, roofs) for s in samples]).findings()[1]
    assert ("near infrared" in found.detail) == (order is not None)
    if order:
        assert found.verdict == "FAIL" and order in found.detail and "rgb_names=(" in found.remedy


def test_false_colours_of_a_real_town_and_true_ones_of_another(shared_data):
    towns = {True: "isprs-vaihingen-05m/train_img.tif", False: "solaris-sn6-preproc/rgb_unmasked.tif"}
    for false_colours, name in towns.items():
        with rasterio.open(shared_data(name)) as file:
            image = file.read(window=((0, 200), (0, 200))).astype(np.float32)
        tile = Tile("a.tif", 200, 200, 0.5)
        sample = Sample("train", Dataset([tile], BandSpec()), tile, image)
        found = looked(ColourCheck(), [sample]).findings()[1]
        assert ("near infrared" in found.detail) == false_colours


def test_an_even_picture_has_no_sign(samples):
    colours = np.reshape([50, 70, 60, -12], (4, 1, 1))
    even = [replace(s, image=np.zeros_like(s.image) + colours) for s in samples]
    found = looked(ColourCheck(), even).findings()[1]
    assert found.verdict == "ok" and "+0.0 of 3 signs" in found.detail
