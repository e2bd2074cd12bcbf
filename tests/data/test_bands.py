"""Band names, order and scale."""

from fusiondet.data.bands import BandSpec
from fusiondet.errors import InputError

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
