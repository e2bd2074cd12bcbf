"""Which bands an image holds, in which order, and what their numbers mean. No raster library in here."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fusiondet.errors import InputError, unknown_name

# What a SAR file's numbers are. The network sees dB for the first three; stretched_uint8 stays as it is, because a
# display stretch cannot be undone.
SAR_SCALES = ("linear_power", "amplitude", "db", "stretched_uint8")
POLARISATIONS = ("HH", "HV", "VH", "VV")


@dataclass(frozen=True)
class BandSpec:
    """Names and scale of the bands of an image: optical first, SAR after. Part of the dataset and of the checkpoint.

    Attributes:
        optical: names in order, e.g. ("red", "green", "blue"); () for SAR only. Values are linear in the file's dtype.
        sar: names in order, usually polarisations, e.g. ("HH",); () for optical only.
        sar_scale: one of SAR_SCALES: what the *file* holds; "" when `sar` is empty.
    """

    optical: tuple[str, ...] = ("red", "green", "blue")
    sar: tuple[str, ...] = ()
    sar_scale: str = ""

    def __post_init__(self):
        """Normalise sequences to tuples and refuse a SAR scale that is missing or unknown."""
        object.__setattr__(self, "optical", tuple(self.optical))
        object.__setattr__(self, "sar", tuple(self.sar))
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
        """Plain lists and strings, as stored in JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, d: dict) -> "BandSpec":
        """Inverse of `to_dict`; InputError for unknown keys, and for names that are none."""
        extra = set(d) - {"optical", "sar", "sar_scale"}
        if extra:
            raise unknown_name("band key", min(map(str, extra)), ("optical", "sar", "sar_scale"))
        for key in ("optical", "sar"):
            names = d.get(key, ())
            if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
                raise InputError(f"{key} bands are {names!r}, expected a list of names.")
        return cls(**d)

    def select(self, optical: Sequence[str] | None = None, sar: Sequence[str] | None = None) -> "BandSpec":
        """The spec reduced to the named bands (None: all of that modality, (): none).

        Raises:
            InputError: a name is not in this spec.
        """

        def pick(wanted, known, kind):
            for name in wanted if wanted is not None else ():
                if name not in known:
                    raise unknown_name(f"{kind} band", name, known)
            return known if wanted is None else tuple(wanted)

        sar = pick(sar, self.sar, "SAR")
        return BandSpec(pick(optical, self.optical, "optical"), sar, self.sar_scale if sar else "")
