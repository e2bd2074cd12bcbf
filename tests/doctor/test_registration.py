"""Outlines that are turned, mirrored or shifted against the optical image are found."""

from dataclasses import replace

from fusiondet.doctor.registration import LabelCheck
from tests.support.doctor_cases import looked, with_outlines

import numpy as np
import pytest

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
