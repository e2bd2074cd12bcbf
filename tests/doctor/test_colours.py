"""Exchanged colour bands are found, in one split or in all."""

from dataclasses import replace

from fusiondet.doctor.colours import ColourCheck
from tests.support.doctor_cases import by_name, looked, with_bands


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
