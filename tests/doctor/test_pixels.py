"""What is planted into the pixels or outlines of tiles in memory is found; the tiles as they are raise nothing."""

from dataclasses import replace

from fusiondet.buildings import SensorGeometry
from fusiondet.doctor.colours import ColourCheck
from fusiondet.doctor.echoes import EchoCheck
from fusiondet.doctor.pixel_values import PixelCheck
from fusiondet.doctor.radar import RadarCheck
from fusiondet.doctor.registration import LabelCheck
from fusiondet.doctor.samples import chosen_tiles, read_samples
from fusiondet.doctor.split_source import read_splits
from fusiondet.geometry.painting import footprint_label
from fusiondet.io.tile_rasters import read_tile
from tests.support.tiny_city import write_split

import numpy as np
import pytest
from shapely.affinity import affine_transform


def looked(check, samples):
    """`check` after all `samples`."""
    for sample in samples:
        check.add(sample)
    return check


def by_name(findings) -> dict:
    return {finding.name: finding for finding in findings}


def with_bands(sample, order):
    """`sample` with its bands in another order: indexes of the image's channels."""
    return replace(sample, image=sample.image[list(order)])


def with_sar(sample, change):
    image = sample.image.copy()
    with np.errstate(invalid="ignore", divide="ignore"):
        image[3:] = change(image[3:])
    return replace(sample, image=image)


def with_outlines(sample, matrix):
    """`sample` with its outlines moved: matrix (a, b, d, e, x, y) of shapely, in units of the side for x and y = 1."""
    side = sample.tile.width
    matrix = (*matrix[:4], matrix[4] * side, matrix[5] * side)
    moved = [replace(b, polygon=affine_transform(b.polygon, matrix)) for b in sample.tile.buildings]
    return replace(sample, tile=replace(sample.tile, buildings=moved))


# ---- colours


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


# ---- SAR scale


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda db: 10 * np.log10(np.where(db > 0, db, np.nan)), "dB taken of dB"),
        (lambda db: 10 * np.log10(np.maximum(db, 1e-3)), "dB taken of dB"),
        (lambda db: 10 * np.log10(np.abs(db) + 1e-6), "dB taken twice"),
        (lambda db: 10 * np.log10(np.maximum(db + 45, 0.1)), "dB taken twice"),  # uncalibrated, all positive
        (lambda db: 10 ** (db / 10), "linear power or amplitude"),
        (lambda db: 10 ** (db / 20), "linear power or amplitude"),
        (lambda db: 1e4 * 10 ** (db / 10), "linear power or amplitude"),  # counts
    ],
    ids=["no data", "floor", "absolute", "positive", "power", "amplitude", "counts"],
)
def test_wrong_scales_of_sar(samples, change, words):
    (found,) = looked(RadarCheck(), [with_sar(s, change) for s in samples]).findings()
    assert found.verdict == "FAIL" and words in found.detail


@pytest.mark.parametrize("offset_db", [-10, 0, 45])
def test_db_is_db_with_any_calibration(samples, offset_db):
    (found,) = looked(RadarCheck(), [with_sar(s, lambda db: db + offset_db) for s in samples]).findings()
    assert found.verdict == "ok"


def test_cross_polarisation_stronger_than_co_is_said(samples):
    spec = replace(samples[0].dataset.bands, sar=("HH", "HV"))

    def two(sample, cross_db):
        image = np.concatenate([sample.image, sample.image[3:] + cross_db])
        return replace(sample, image=image, dataset=replace(sample.dataset, bands=spec))

    right, wrong = (looked(RadarCheck(), [two(s, db) for s in samples[:4]]).findings()[1] for db in (-6, 6))
    assert (right.verdict, wrong.verdict) == ("ok", "warn")


# ---- outlines against the optical picture

MIRRORED = (-1, 0, 0, 1, 1, 0)
UPSIDE_DOWN = (1, 0, 0, -1, 0, 1)
TRANSPOSED = (0, 1, 1, 0, 0, 0)
TO_THE_LEFT = (0, 1, -1, 0, 0, 1)


@pytest.mark.parametrize(
    "matrix, back",
    [
        (MIRRORED, "mirrored left-right"),
        (UPSIDE_DOWN, "mirrored top-bottom"),
        (TRANSPOSED, "mirrored on the diagonal"),
        (TO_THE_LEFT, "turned by 90° to the right"),
    ],
)
def test_turned_and_mirrored_outlines(samples, matrix, back):
    found = looked(LabelCheck(), [with_outlines(s, matrix) for s in samples]).findings()[0]
    assert found.verdict == "FAIL" and f"train fits when {back}" in found.detail


def test_some_turned_tiles_among_many(samples):
    some = [with_outlines(s, UPSIDE_DOWN) if i in (2, 7, 11) else s for i, s in enumerate(samples)]
    found = looked(LabelCheck(), some).findings()[0]
    assert found.verdict == "FAIL" and found.numbers["turned_tiles"] == 3
    assert [case.image for case in found.cases] == [samples[i].tile.file_name for i in (2, 7, 11)]


@pytest.mark.parametrize(
    "shift_px, verdict", [((0, 0), "ok"), ((1, 0), "ok"), ((2, -1), "warn"), ((5, -3), "FAIL")]
)
def test_shifted_outlines(samples, shift_px, verdict):
    moved = [with_outlines(s, (1, 0, 0, 1, *np.divide(shift_px, s.tile.width))) for s in samples]
    found = looked(LabelCheck(), moved).findings()[1]
    assert found.verdict == verdict
    assert (found.numbers["train"]["right_px"], found.numbers["train"]["down_px"]) == (
        -shift_px[0],
        -shift_px[1],
    )


def test_outlines_of_other_tiles_tell_nothing(samples):
    others = [
        replace(s, tile=replace(s.tile, buildings=o.tile.buildings))
        for s, o in zip(samples, samples[6:] + samples[:6], strict=True)
    ]
    assert [finding.verdict for finding in looked(LabelCheck(), others).findings()] == ["n/a", "n/a"]


def test_tiles_need_not_be_square(samples):
    def cut(sample):
        tile = replace(
            sample.tile, height=120, buildings=[b for b in sample.tile.buildings if b.polygon.bounds[3] < 119]
        )
        return replace(sample, tile=tile, image=sample.image[:, :120])

    found = looked(LabelCheck(), map(cut, samples)).findings()
    assert [finding.verdict for finding in found] == ["ok", "ok"]
    assert found[0].to_dict()["numbers"]["train"]["fit"]["turned by 90° to the left"] is None


# ---- SAR against the optical picture


def echoes(samples, labels=None):
    labels = looked(LabelCheck(), samples) if labels is None else labels
    return by_name(looked(EchoCheck(), samples).findings(labels))


def test_sar_lies_on_the_pictures_of_a_clean_city(samples):
    found = echoes(samples)
    assert [finding.verdict for finding in found.values()] == ["ok", "ok"]
    assert found["SAR against pictures"].numbers["worst_px"] <= 1.5


def test_shifted_sar_by_acquisition(shifted_samples):
    found = echoes(shifted_samples)["SAR against pictures"]
    assert found.verdict == "FAIL" and found.numbers["acquisitions_off"] == 3
    assert 5 <= found.numbers["worst_px"] <= 7.5


def test_shifted_outlines_are_not_taken_for_shifted_sar(samples):
    moved = [with_outlines(s, (1, 0, 0, 1, 5 / s.tile.width, -4 / s.tile.width)) for s in samples]
    assert echoes(moved)["SAR against pictures"].verdict == "ok"


def test_a_look_direction_from_the_other_side(samples):
    def turned(sample):
        sensor = sample.tile.sensor
        other = replace(sensor, sar_look_azimuth_deg=(sensor.sar_look_azimuth_deg + 180) % 360)
        return replace(sample, tile=replace(sample.tile, sensor=other))

    found = echoes([turned(s) for s in samples])
    assert found["look direction"].verdict == "FAIL"
    assert found["look direction"].numbers == {"acquisitions": 3, "opposite": 3}
    assert found["SAR against pictures"].verdict == "n/a"


def without_facts(sample):
    """Neither angles nor heights known."""
    buildings = [replace(b, height_m=None) for b in sample.tile.buildings]
    return replace(sample, tile=replace(sample.tile, sensor=SensorGeometry(), buildings=buildings))


def test_without_angles_and_heights_a_clean_city_still_raises_nothing(samples):
    found = echoes([without_facts(s) for s in samples])
    assert {finding.verdict for finding in found.values()} <= {"ok", "n/a"}


def test_sar_of_other_tiles_tells_nothing(samples):
    def other(sample, of):
        return replace(sample, image=np.concatenate([sample.image[:3], of.image[3:]]))

    mixed = [other(s, o) for s, o in zip(samples, samples[7:] + samples[:7], strict=True)]
    found = echoes(mixed)
    assert found["SAR against pictures"].verdict == "n/a" and found["look direction"].verdict == "ok"


# ---- ranges and no data


def pixel_findings(samples):
    return by_name(looked(PixelCheck(), samples).findings([], 10))


def test_pixels_of_a_clean_city(samples):
    assert {finding.verdict for finding in pixel_findings(samples).values()} == {"ok"}


def test_holes_under_footprints(samples):
    def hide(sample):
        image = np.where(sample.footprint, np.nan, sample.image).astype(np.float32)
        image[3:] = sample.image[3:]
        return replace(sample, image=image)

    found = pixel_findings([hide(s) if i < 5 else s for i, s in enumerate(samples)])["no data under labels"]
    shares = [len(s.tile.buildings) for s in samples]
    assert found.verdict == "FAIL"
    assert found.numbers["optical_share"] == pytest.approx(sum(shares[:5]) / sum(shares))
    assert found.numbers["SAR_share"] == 0


def test_black_borders_constant_and_clipped_bands(samples):
    image = samples[0].image.copy()
    image[:3, :40] = 0
    found = pixel_findings([replace(samples[0], image=image)])["undeclared borders"]
    assert found.verdict == "warn" and found.cases[0].note == "25 % black"
    image = samples[0].image.copy()
    image[1] = 7
    found = pixel_findings([replace(samples[0], image=image)])["ranges of the bands"]
    assert found.verdict == "FAIL" and found.detail.startswith("Constant: green of train")
    image = np.minimum(samples[0].image, np.percentile(samples[0].image[0], 80))
    found = pixel_findings([replace(samples[0], image=image)])["ranges of the bands"]
    assert found.verdict == "warn" and "clipped" in found.detail


def test_unreadable_tiles_are_named(samples):
    broken = replace(samples[0], image=None, error="damaged")
    found = pixel_findings([broken, *samples[1:]])["pixels"]
    assert found.verdict == "FAIL" and found.cases[0].note == "damaged"


# ---- large tiles


def test_of_a_mosaic_the_middle_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("fusiondet.doctor.samples.MAX_SIDE_PX", 32)
    write_split(tmp_path, "train", (9,))
    ((split, tile),) = chosen_tiles(read_splits(tmp_path), 1)
    (sample,) = read_samples([(split, tile)])
    whole = read_tile(split.dataset, tile)
    assert np.array_equal(sample.image, whole[:, 16:48, 16:48])
    assert np.array_equal(sample.footprint, footprint_label(tile)[16:48, 16:48]) and sample.footprint.any()
