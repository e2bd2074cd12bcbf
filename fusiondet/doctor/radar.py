"""Is the SAR picture in dB, and once? Told by ranges and by how speckle grows with brightness; heuristics, and so said.

Speckle multiplies: in dB its spread is the same everywhere. In linear numbers it grows with the mean; in dB taken of
dB everything is squeezed into a few numbers, since 10 log10 of 5 to 50 is 7 to 17, and what was negative has no
logarithm.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from fusiondet.doctor.findings import MAX_CASES, Case, Finding, percent
from fusiondet.doctor.samples import Sample
from fusiondet.io.calibration import plausible_sar_scales

import cv2
import numpy as np

SAR_SCALE = "SAR scale"
# 10 log10 of the largest numbers that dB have (80, uncalibrated), and of small ones.
_TWICE_DB = (4.0, 19.5)
# Cities have corners 8 dB and more above the rest; after a second logarithm this much is left.
_TWICE_SPAN_DB = 6.0
_WINDOW_PX = 5
_PIXELS = 4000  # per band and tile


@dataclass
class _Band:
    values: list[np.ndarray] = field(default_factory=list)
    means: list[np.ndarray] = field(default_factory=list)
    spreads: list[np.ndarray] = field(default_factory=list)
    pixels: int = 0
    lost: int = 0  # no data, or at the lowest number, where the optical picture has data
    cases: list[tuple[float, Case]] = field(default_factory=list)


@dataclass
class RadarCheck:
    """The scale of the SAR bands and the order of the polarisations, over samples that are added one by one."""

    bands: dict[tuple[str, str], _Band] = field(default_factory=lambda: defaultdict(_Band))
    scales: set[str] = field(default_factory=set)

    def add(self, sample: Sample) -> None:
        """Look at one tile."""
        if sample.image is None or not len(sample.sar) or not np.isfinite(sample.sar).any():
            return
        self.scales.add(sample.dataset.bands.sar_scale)
        seen = (
            np.isfinite(sample.optical).any(axis=0)
            if len(sample.optical)
            else np.ones(sample.footprint.shape, bool)
        )
        for name, channel in zip(sample.dataset.bands.sar, sample.sar, strict=True):
            self._add(self.bands[sample.split, name], channel, seen, sample)

    def _add(self, band: _Band, channel: np.ndarray, seen: np.ndarray, sample: Sample) -> None:
        known = np.isfinite(channel)
        values = channel[known]
        if not values.size:
            return
        step = max(1, values.size // _PIXELS)
        band.values.append(values[::step])
        low = values.min()
        lost = seen & (~known | (np.where(known, channel, 0) == low))
        share = float(lost.sum()) / max(int(seen.sum()), 1)
        band.pixels += int(seen.sum())
        band.lost += int(lost.sum())
        band.cases.append((share, Case(sample.split, sample.tile.file_name)))
        mean, spread = _local(channel, known)
        step = max(1, mean.size // _PIXELS)
        band.means.append(mean[::step])
        band.spreads.append(spread[::step])

    def findings(self) -> list[Finding]:
        """What the samples say."""
        several = len({band for _, band in self.bands}) > 1
        return [self._scale(), self._polarisations()] if several else [self._scale()]

    def _scale(self) -> Finding:
        name = SAR_SCALE
        if not self.bands:
            return Finding(name, "n/a", "There is no SAR picture.")
        if self.scales == {"stretched_uint8"}:
            return Finding(name, "n/a", "A display stretch (stretched_uint8) cannot be checked, nor undone.")
        numbers: dict = {}
        failed: list[tuple[str, str]] = []
        for (split, band), b in self.bands.items():
            facts = _facts(b)
            numbers.setdefault(split, {})[band] = facts
            what = _diagnosis(facts)
            if what:
                failed.append((f"{band} of {split}", what))
        some = next(iter(next(iter(numbers.values())).values()))
        detail = (
            f"{some['p1']:.1f} to {some['p99']:.1f} dB (1 to 99 %), {some['median']:.1f} dB in the middle; local "
            f"spread {some['local_std']:.2g} dB."
        )
        if not failed:
            return Finding(name, "ok", detail, "", numbers)
        which, what = failed[0]
        first = self.bands[tuple(which.split(" of ", 1)[::-1])]
        rest = f" ({len(failed)} of {len(self.bands)} bands)" if len(self.bands) > 1 else ""
        remedy = (
            "Say what the files hold (`sar_scale`: linear_power, amplitude, db) and make the data again: the "
            "conversion to dB is done once, on reading."
        )
        cases = tuple(case for _, case in sorted(first.cases, key=lambda c: -c[0])[:MAX_CASES])
        facts = numbers[which.split(" of ", 1)[1]][which.split(" of ", 1)[0]]
        range_words = f"{facts['p1']:.2f} to {facts['p99']:.2f} (1 to 99 %)"
        return Finding(
            name, "FAIL", f"{which}{rest}: {what}; its numbers are {range_words}.", remedy, numbers, cases
        )

    def _polarisations(self) -> Finding:
        name = "polarisations"
        medians = defaultdict(list)
        for (_, band), b in self.bands.items():
            medians[band].append(float(np.median(np.concatenate(b.values))))
        levels = {band: float(np.mean(v)) for band, v in medians.items()}
        co = [v for band, v in levels.items() if band.upper() in ("HH", "VV")]
        cross = [v for band, v in levels.items() if band.upper() in ("HV", "VH")]
        numbers = {"median": levels}
        if not co or not cross:
            return Finding(name, "n/a", "Needs a co- and a cross-polarised band.", "", numbers)
        words = ", ".join(f"{band} {v:.1f}" for band, v in levels.items())
        if max(cross) > min(co):
            remedy = (
                "Cross-polarised echoes are weaker, by 3 to 10 dB in cities: are the bands in the order of their "
                "names?"
            )
            return Finding(name, "warn", f"Medians {words}: cross is not below co.", remedy, numbers)
        return Finding(name, "ok", f"Medians {words}.", "", numbers)


def _local(channel: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in small windows without a hole, both (N,)."""
    size = (_WINDOW_PX, _WINDOW_PX)
    offset = float(channel[known].mean())
    values = np.where(known, channel - offset, 0).astype(np.float64)
    mean, square = cv2.blur(values, size), cv2.blur(values**2, size)
    whole = cv2.blur(known.astype(np.float64), size) > 0.999
    return (mean + offset)[whole], np.sqrt(np.maximum(square - mean**2, 0))[whole]


def _facts(band: _Band) -> dict:
    values = np.concatenate(band.values)
    p1, median, p99 = (float(v) for v in np.percentile(values, (1, 50, 99)))
    mean, spread = np.concatenate(band.means), np.concatenate(band.spreads)
    return {
        "p1": p1,
        "median": median,
        "p99": p99,
        "negative_share": float(np.mean(values < 0)),
        "lost_share": band.lost / max(band.pixels, 1),
        "can_be": plausible_sar_scales(values),
        "local_std": float(np.median(spread)) if spread.size else float("nan"),
        "local_std_growth": _growth(mean, spread),
    }


def _growth(mean: np.ndarray, spread: np.ndarray, bins: int = 5) -> float:
    """Spread in the brightest fifth over that in the darkest; about 1 in dB, the ratio of the means in linear power."""
    if mean.size < 50 * bins:
        return float("nan")
    order = np.argsort(mean)
    dark, bright = (
        float(np.median(spread[part])) for part in (order[: len(order) // bins], order[-len(order) // bins :])
    )
    return bright / dark if dark > 0 else float("inf")


def _diagnosis(facts: dict) -> str | None:
    if facts["lost_share"] > 0.5:
        return (
            f"{percent(facts['lost_share'])} of its pixels are no data or the lowest number, where the optical "
            "picture has data: a logarithm of negative numbers, that is, dB taken of dB"
        )
    low, high = _TWICE_DB
    if (
        low < facts["median"] < high
        and facts["p99"] < high
        and facts["p99"] - facts["median"] < _TWICE_SPAN_DB
    ):
        return "looks like dB taken twice (10 log10 of numbers that were dB already)"
    if "db" not in facts["can_be"] or (facts["negative_share"] < 1e-3 and facts["local_std_growth"] > 4):
        return (
            "looks like linear power or amplitude that is called dB: no number is negative, and speckle grows "
            "with it"
        )
    if facts["median"] < -60 or facts["median"] > 90:
        return "no backscatter in dB is there"
    return None
