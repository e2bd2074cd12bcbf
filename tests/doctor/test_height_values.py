"""Elevations, other units and missing heights are found; plausible heights raise nothing."""

from fusiondet.doctor.height_values import check_heights
from tests.support.doctor_cases import found, squares, tile
from tests.support.tiny_city import write_tiles

import numpy as np
import pytest


def city_of_heights(root, heights_m):
    """Ten buildings per tile with these heights, row by row."""
    rows = np.reshape(heights_m, (-1, 10))
    tiles = []
    for i, row in enumerate(rows):
        own = squares(10)
        for building, height_m in zip(own, row, strict=True):
            building.height_m, building.height_datum = float(height_m), "ground"
        tiles.append(tile(f"{i}.tif", buildings=own))
    write_tiles(root, "train", tiles)
    return found(check_heights, root)


def log_normal(n=100):
    return np.clip(9 * np.exp(0.55 * np.random.default_rng(0).normal(size=n)), 2.5, 60)


@pytest.mark.parametrize(("unit_m", "verdict"), [(1.0, "ok"), (0.3048, "warn")])
def test_houses_whose_heights_are_in_feet_are_too_slender(tmp_path, unit_m, verdict):
    heights_m, tiles = np.clip(log_normal(), 4, 12), []
    for i, row in enumerate(heights_m.reshape(-1, 10)):
        own = squares(10)  # of 12 m
        for building, height_m in zip(own, row, strict=True):
            building.height_m, building.height_datum = float(height_m / unit_m), "ground"
        tiles.append(tile(f"{i}.tif", buildings=own, gsd_m=1.5))
    write_tiles(tmp_path, "train", tiles)
    finding = found(check_heights, tmp_path)["heights of buildings"]
    assert finding.verdict == verdict
    if verdict == "warn":
        assert f"Are these feet (then they are {np.median(heights_m):.1f} m)" in finding.remedy
        assert finding.cases and "times as high as wide" in finding.detail


@pytest.mark.parametrize(
    "ground_m, verdict",
    [(0.0, "ok"), (10.0, "FAIL"), (60.0, "FAIL"), (np.repeat(np.arange(10) * 20.0, 10), "FAIL")],
)
def test_elevations_are_told_by_the_low_buildings_that_are_missing(tmp_path, ground_m, verdict):
    heights_m = log_normal() + ground_m
    assert city_of_heights(tmp_path, heights_m)["heights, not elevations"].verdict == verdict


def test_towers_alone_are_looked_at_and_not_refused(tmp_path):
    towers_m = np.random.default_rng(1).uniform(15, 150, 100)
    assert city_of_heights(tmp_path, towers_m)["heights, not elevations"].verdict == "warn"


def test_other_units_unknown_and_unverified_heights(tmp_path):
    assert (
        city_of_heights(tmp_path, np.minimum(log_normal() * 30.48, 900))["heights of buildings"].verdict
        == "FAIL"
    )
    write_tiles(tmp_path, "train", [tile(buildings=squares(5, 6.0) + squares(20)[5:])])
    result = found(check_heights, tmp_path)
    assert result["heights of buildings"].numbers["unknown_share"] == 0.75
    assert result["heights of buildings"].verdict == result["datum of heights"].verdict == "warn"


def test_heights_of_no_building_and_of_none_known(tmp_path):
    write_tiles(tmp_path, "train", [tile()])
    result = found(check_heights, tmp_path)
    assert {result[name].verdict for name in ("heights of buildings", "datum of heights")} == {"n/a"}
    write_tiles(tmp_path, "train", [tile(buildings=squares(30))])
    finding = found(check_heights, tmp_path)["heights of buildings"]
    assert finding.verdict == "warn" and finding.numbers["unknown"] == 30


def test_a_few_buildings_that_are_far_too_tall_are_named(tmp_path):
    heights_m = log_normal()
    heights_m[[41, 42, 43]] = 700
    finding = city_of_heights(tmp_path, heights_m)["heights of buildings"]
    assert finding.verdict == "warn" and finding.numbers["above_300_m"] == 3
    assert [(case.image, case.note) for case in finding.cases] == [("4.tif", "700 m")]
