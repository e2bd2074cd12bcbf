"""What the numbers of a SAR file can be, told from the numbers, and the factor that a file states for them."""

import math

from fusiondet.errors import InputError
from fusiondet.files import parse_json

import numpy as np

# Share of negative numbers above which a file cannot be linear power or amplitude, whatever was declared.
MAX_NEGATIVE = 0.1
# So many pixels are needed to tell a scale without negative numbers.
MIN_SAMPLE = 10_000
# So many different ones: an image of speckle has thousands, a drawn one a few.
_MIN_DIFFERENT = 100
# Largest decibel that a file may hold: 16-bit counts reach 96 dB, 32-bit ones 193, but no image comes near those.
_MAX_DB = 150
# Ratio of the 99th percentile to the median of positive numbers. In city, port and field, X and C band, 1 to 25 looks:
# dB 1.1 to 1.4, amplitude 1.8 and more, power 3.2 and more. Between the limits the numbers do not tell.
_MAX_SPREAD_DB, _MIN_SPREAD_LINEAR = 4.0, 1.5
# Median of dB without negative numbers (those of uncalibrated counts). Linear numbers may be there too.
_MIN_MEDIAN_DB = 10

# A description of a TIFF is read as JSON up to this size: Capella's are some kilobytes.
_MAX_DESCRIPTION = 1 << 20


def plausible_sar_scales(values: np.ndarray) -> tuple[str, ...]:
    """Which of "linear_power", "amplitude" and "db" real numbers of a SAR file can be; two look alike: the first two.

    Args:
        values: numbers as the file has them, any shape, best of several tiles; NaN and 0 are not counted (0 is the
            fill of files in any scale).

    Returns:
        ("db",) where a tenth is negative, or where all are within a few decibels of a median that only uncalibrated
        dB have, and are no whole numbers; ("linear_power", "amplitude") where they spread too far for decibels; all
        three where they do not tell, as fewer than MIN_SAMPLE pixels or few different ones do not.
    """
    known = np.asarray(values, np.float64).ravel()
    known = known[np.isfinite(known) & (known != 0)]
    both, linear = ("linear_power", "amplitude", "db"), ("linear_power", "amplitude")
    if known.size and np.mean(known < 0) > MAX_NEGATIVE:
        return ("db",)
    if known.size < MIN_SAMPLE or len(np.unique(known)) < _MIN_DIFFERENT:
        return both
    if known.max() > _MAX_DB:
        return linear
    median, high = np.percentile(known, (50, 99))
    counts = bool((known == np.rint(known)).all())
    # Where noise was subtracted, some powers are below 0, by less than the power of most pixels. dB reach further.
    if np.percentile(known, 0.5) > -median and high > _MAX_SPREAD_DB * median:
        return linear
    if not counts and median >= _MIN_MEDIAN_DB and high < _MIN_SPREAD_LINEAR * median:
        return ("db",)
    return both


def check_sar_scale(values: np.ndarray, scale: str, name) -> None:
    """InputError naming `name` where its numbers cannot be in `scale`, so that nothing becomes dB twice, or never.

    Args:
        values: as for `plausible_sar_scales`. scale: one of bands.SAR_SCALES; stretched_uint8 and complex are told by
            the dtype, and pass.
    """
    if scale not in ("linear_power", "amplitude", "db"):
        return
    plausible = plausible_sar_scales(values)
    if scale not in plausible:
        known = values[np.isfinite(values) & (values != 0)]
        low, median, high = np.percentile(known, (1, 50, 99))
        raise InputError(
            f"{name}: its values (1 % below {low:.3g}, median {median:.3g}, 1 % above {high:.3g}, at most "
            f"{known.max():.3g}) are not {scale}. They look like {' or '.join(plausible)}: say so with `sar_scale`."
        )


def check_not_db(values: np.ndarray, scale: str, name) -> None:
    """InputError where more than a tenth of linear `values` is negative; quick enough for every read."""
    negative = np.mean(values < 0) if values.size else 0
    if negative > MAX_NEGATIVE:
        raise InputError(
            f"{name}: {100 * negative:.0f} % of its values are negative, so it is not {scale}. "
            'Is it in dB (`sar_scale="db"`)?'
        )


def stated_scale_factor(source) -> float | None:
    """What an open raster's amplitudes are to be multiplied by to be the root of backscatter; None where it is silent.

    Capella writes its metadata as JSON into the TIFF's description; the factor is `collect.image.scale_factor` (Capella
    SAR Products Format Specification). Power is then scaled by its square.

    Raises:
        InputError: the factor is there, but is no positive number.
    """
    text = source.tags().get("TIFFTAG_IMAGEDESCRIPTION", "")
    if not text.lstrip().startswith("{") or len(text) > _MAX_DESCRIPTION:
        return None
    try:
        factor = parse_json(text)["collect"]["image"]["scale_factor"]
    except (ValueError, LookupError, TypeError):
        return None
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise InputError(
            f"{source.name}: states a scale factor of {str(factor)[:40]}, expected a positive number. Give the right "
            "one with `sar_factor`; 1 leaves the numbers as they are."
        )
    return float(factor)
