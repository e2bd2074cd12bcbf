"""SAR values that are not dB, or dB taken twice, are found; dB of any calibration are accepted."""

from dataclasses import replace

from fusiondet.doctor.radar import RadarCheck
from tests.support.doctor_cases import looked, with_sar

import numpy as np
import pytest


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
