"""Which bands an image holds, in which order, and what their numbers mean. No raster library in here.

A SAR band is one polarisation, "HH", or the mean power of several, "HH+VV": the name says how to make it, in a data
set's JSON, in a config and in a checkpoint alike, and it can be made of any files that have the polarisations.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fusiondet.errors import InputError, unknown_name

# What a SAR file's numbers are. The network sees dB for all but stretched_uint8, which stays as it is, because a
# display stretch cannot be undone. Complex numbers are those of single-look images (SLC).
SAR_SCALES = ("linear_power", "amplitude", "db", "stretched_uint8", "complex")
# What becomes dB on reading.
LINEAR_SCALES = ("linear_power", "amplitude", "complex")
POLARISATIONS = ("HH", "HV", "VH", "VV")


@dataclass(frozen=True)
class BandSpec:
    """Names and scale of the bands of an image: optical first, SAR after. Part of the dataset and of the checkpoint.

    Attributes:
        optical: names in order, e.g. ("red", "green", "blue"); () for SAR only. Values are linear in the file's dtype.
        sar: names in order, polarisations or means of their power, e.g. ("HH", "HV+VH"); () for optical only.
        sar_scale: one of SAR_SCALES: what the *file* holds; "" when `sar` is empty.
    """

    optical: tuple[str, ...] = ("red", "green", "blue")
    sar: tuple[str, ...] = ()
    sar_scale: str = ""

    def __post_init__(self):
        """Normalise sequences to tuples and means to one spelling; refuse a SAR scale that is missing or unknown."""
        object.__setattr__(self, "optical", tuple(self.optical))
        object.__setattr__(self, "sar", tuple("+".join(sar_members(name)) for name in self.sar))
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise InputError(f"band {twice[0]!r} is named twice in {', '.join(self.names)}.")
        if self.sar and self.sar_scale not in SAR_SCALES:
            raise unknown_name("SAR scale", self.sar_scale, SAR_SCALES)
        if not self.sar and self.sar_scale:
            raise InputError(f"SAR scale {self.sar_scale!r} was given without SAR bands.")

    def __len__(self):
        """Number of channels of the stacked image."""
        return len(self.optical) + len(self.sar)

    @property
    def names(self) -> tuple[str, ...]:
        """All names in channel order."""
        return self.optical + self.sar

    def to_dict(self) -> dict:
        """Plain lists and strings, as stored in JSON; InputError for complex bands, which no data set holds."""
        self._refuse_complex()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, d: dict) -> "BandSpec":
        """Inverse of `to_dict`; InputError for unknown keys, names that are none, and complex bands."""
        extra = set(d) - {"optical", "sar", "sar_scale"}
        if extra:
            raise unknown_name("band key", min(map(str, extra)), ("optical", "sar", "sar_scale"))
        for key in ("optical", "sar"):
            names = d.get(key, ())
            if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
                raise InputError(f"{key} bands are {names!r}, expected a list of names.")
        bands = cls(**d)
        bands._refuse_complex()
        return bands

    def _refuse_complex(self):
        # Training would crop and resample single looks; detection and averaging belong before the cut into tiles.
        if self.sar_scale == "complex":
            raise InputError(
                'the tiles of a data set hold no complex SAR. Convert with `sar_scale="complex"`: '
                "the tiles are then dB."
            )

    def has(self, name: str) -> bool:
        """Whether `select` finds the band `name` here, in either modality, or all members of that mean."""
        if name in self.optical:
            return True
        members = sar_members(name)
        return "+".join(members) in self.sar or set(members) <= set(self.sar)

    def select(self, optical: Sequence[str] | None = None, sar: Sequence[str] | None = None) -> "BandSpec":
        """The spec reduced to the named bands (None: all of that modality, (): none).

        A mean of polarisations, "HH+VV", is there where its members are.

        Raises:
            InputError: a name is not in this spec, or a mean is asked for of numbers that are no power.
        """
        optical = self.optical if optical is None else tuple(optical)
        sar = self.sar if sar is None else tuple(sar)
        band_numbers(optical, self.optical, "optical")
        if any(isinstance(number, tuple) for number in band_numbers(sar, self.sar, "SAR")):
            check_averaging(self.sar_scale)
        return BandSpec(optical, sar, self.sar_scale if sar else "")


def sar_members(name: str) -> tuple[str, ...]:
    """The polarisations whose mean power a SAR band is, in alphabetical order; one for a band that is no mean.

    Raises:
        InputError: nothing on one side of a "+", or a polarisation twice.
    """
    members = tuple(sorted(part.strip() for part in name.split("+")))
    if len(members) > 1 and ("" in members or len(set(members)) < len(members)):
        raise InputError(f"SAR band {name!r}: a mean is written with each polarisation once, e.g. HH+VV.")
    return members


def band_numbers(wanted: Sequence[str], known: Sequence[str], kind: str) -> list[int | tuple[int, ...]]:
    """Where the wanted bands are among the known ones, from 1; a tuple for a mean of several.

    Args:
        kind: "optical" or "SAR"; only SAR has means. A mean that is itself among the known bands is that band.

    Raises:
        InputError: a name is not among the known ones.
    """
    numbers = []
    for name in wanted:
        members = sar_members(name) if kind == "SAR" else (name,)
        whole = "+".join(members)
        for part in (whole,) if whole in known else members:
            if part not in known:
                raise unknown_name(f"{kind} band", part, known)
        if whole in known:
            numbers.append(known.index(whole) + 1)
        else:
            numbers.append(tuple(known.index(member) + 1 for member in members))
    return numbers


def band_index(text: str) -> int | tuple[int, ...]:
    """A band's number from the command line: "2", or "1+4" for the mean power of bands 1 and 4.

    Raises:
        InputError: something else, a number below 1, or one twice.
    """
    try:
        numbers = tuple(int(part) for part in text.split("+"))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise InputError(
            f"{text!r} is no band: expected a number from 1, or several as 1+4 for their mean power."
        )
    return numbers[0] if len(numbers) == 1 else numbers


def band_number(text: str) -> int | tuple[int, ...]:
    """Argparse type of a band: `band_index`, whose error names the option then."""
    try:
        return band_index(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_averaging(sar_scale: str | None) -> None:
    """InputError where bands of that scale have no power that could be averaged."""
    if sar_scale is None or sar_scale == "stretched_uint8":
        raise InputError(
            f"a mean power is taken of SAR in {', '.join(s for s in SAR_SCALES if s != 'stretched_uint8')}; a display "
            "stretch cannot be undone. Choose a single band."
        )
