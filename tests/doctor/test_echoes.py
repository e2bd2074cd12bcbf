"""A SAR image that is shifted, or seen from the other side than recorded, is found."""

from dataclasses import replace

from fusiondet.buildings import SensorGeometry
from fusiondet.doctor.echoes import EchoCheck
from fusiondet.doctor.registration import LabelCheck
from tests.support.doctor_cases import by_name, looked, with_outlines, with_sar

import numpy as np
import pytest


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


@pytest.mark.parametrize("odd", [(8,), (1, 6, 9)])
def test_files_whose_sar_alone_is_shifted_are_named(samples, odd):
    def moved(sample):
        return with_sar(sample, lambda sar: np.roll(sar, (-4, 18), (1, 2)))

    found = echoes([moved(s) if i in odd else s for i, s in enumerate(samples)])["SAR against pictures"]
    assert found.verdict == "FAIL" and found.numbers["files_off"] == len(odd)
    assert {case.image for case in found.cases} == {samples[i].tile.file_name for i in odd}
    assert 17 <= found.numbers["worst_px"] <= 20


def test_a_file_whose_optical_and_sar_pictures_are_shifted_alike_is_no_fault_of_sar(samples):
    both = replace(samples[4], image=np.roll(samples[4].image, (-4, 18), (1, 2)))
    found = echoes([*samples[:4], both, *samples[5:]])["SAR against pictures"]
    assert found.verdict == "ok" and found.numbers["files_off"] == 0
