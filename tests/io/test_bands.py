"""Band names, order and scale."""

from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec, band_index, band_numbers
from tests.support.messages import raises_naming

import pytest

FIVE = BandSpec(("red", "green", "blue"), ("HH", "HV"), "db")


def test_optical_first_sar_after():
    assert FIVE.names == ("red", "green", "blue", "HH", "HV") and len(FIVE) == 5
    assert BandSpec() == BandSpec(["red", "green", "blue"], [], "")


def test_round_trip_through_plain_json_types():
    plain = FIVE.to_dict()
    assert plain == {"optical": ["red", "green", "blue"], "sar": ["HH", "HV"], "sar_scale": "db"}
    assert BandSpec.from_dict(plain) == FIVE


def test_select():
    assert FIVE.select() == FIVE
    assert FIVE.select(sar=()) == BandSpec()
    assert FIVE.select(("blue",), ("HV",)) == BandSpec(("blue",), ("HV",), "db")
    assert FIVE.select(()) == BandSpec((), ("HH", "HV"), "db")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BandSpec(sar=("HH",)), "unknown SAR scale ''.*linear_power"),
        (lambda: BandSpec(sar=("HH",), sar_scale="dB"), "Did you mean 'db'"),
        (lambda: BandSpec(sar_scale="db"), "without SAR bands"),
        (lambda: BandSpec(("red", "red")), "'red' is named twice"),
        (lambda: BandSpec.from_dict({"optics": []}), "unknown band key 'optics'. Did you mean 'optical'"),
        (lambda: FIVE.select(("rad",)), "unknown optical band 'rad'. Did you mean 'red'"),
        (lambda: FIVE.select(sar=("VV",)), "unknown SAR band 'VV'.*Known: HH, HV"),
    ],
)
def test_mistakes_list_what_is_right(call, message):
    with pytest.raises(InputError, match=message):
        call()


QUAD = BandSpec((), ("HH", "HV", "VH", "VV"), "linear_power")


class TestMeans:
    """ "HH+VV" is the mean power of HH and VV: the same band in any spelling, JSON and checkpoint."""

    def test_one_spelling(self):
        spec = BandSpec((), ("VV+ HH", "HV"), "db")
        assert spec.sar == ("HH+VV", "HV") and spec == BandSpec((), ("HH+VV", "HV"), "db")
        assert BandSpec.from_dict(spec.to_dict()) == spec and len(spec) == 2

    def test_is_selected_where_its_members_are(self):
        spec = QUAD.select(sar=("VV+HH", "HV"))
        assert spec == BandSpec((), ("HH+VV", "HV"), "linear_power")
        assert band_numbers(spec.sar, QUAD.sar, "SAR") == [(1, 4), 2]
        assert band_numbers(("VV+VH+HV+HH",), QUAD.sar, "SAR") == [(1, 2, 3, 4)]

    def test_what_a_spec_has(self):
        spec = BandSpec(("red",), ("HH", "HV+VV"), "db")
        assert [spec.has(n) for n in ("red", "HH", "VV+HV", "HV", "HH+HV", "blue")] == [True] * 3 + [
            False
        ] * 3
        assert QUAD.has("VV+HH")

    def test_that_a_file_holds_is_one_band(self):
        mean = BandSpec((), ("HV", "HH+VV"), "db")
        assert mean.select(sar=("VV+HH",)).sar == ("HH+VV",)
        assert band_numbers(("VV+HH",), mean.sar, "SAR") == [2]
        with raises_naming("SAR", "'HH'"):
            mean.select(sar=("HH",))
        with raises_naming("SAR", "'HH'"):
            mean.select(sar=("HH+HV",))

    def test_a_display_stretch_has_no_mean_power(self):
        with pytest.raises(InputError, match="display stretch.*Choose a single band"):
            BandSpec((), ("HH", "VV"), "stretched_uint8").select(sar=("HH+VV",))
        assert BandSpec((), ("HH+VV",), "stretched_uint8").select().sar == ("HH+VV",)

    @pytest.mark.parametrize("name", ["HH+", "+", "HH+HH", "HH++VV"])
    def test_that_is_none(self, name):
        with pytest.raises(InputError, match="each polarisation once, e.g. HH.VV"):
            BandSpec((), (name,), "db")

    def test_optical_names_are_names(self):
        assert BandSpec(("nir+red",)).optical == ("nir+red",)
        with raises_naming("red+green"):
            BandSpec().select(("red+green",))


def test_a_data_set_holds_no_complex_bands():
    spec = BandSpec((), ("HH",), "complex")
    for call in (spec.to_dict, lambda: BandSpec.from_dict({**QUAD.to_dict(), "sar_scale": "complex"})):
        with raises_naming("complex SAR", "sar_scale", "complex", "dB"):
            call()


def test_band_numbers_of_the_command_line():
    assert [band_index(text) for text in ("3", "1+4", "4+1")] == [3, (1, 4), (4, 1)]
    for text in ("0", "1+", "HH", "1+1", "", "-1", "1+0"):
        with pytest.raises(InputError, match="is no band"):
            band_index(text)
