"""Values of a scene against those that a network was trained on, by quantiles of sampled pixels.

A checkpoint stores the mean and standard deviation of each band of its training images. Other units (8 or 16 bit,
reflectance, dB) differ from them by large factors. What cannot be in the unit of the training is refused, what would be
unusual in it is noted.
"""

import math
from collections.abc import Sequence

from fusiondet.errors import InputError
from fusiondet.inference.checks import names_of
from fusiondet.inference.options import SceneOptions
from fusiondet.inference.predictor import Predictor
from fusiondet.io.calibration import MAX_NEGATIVE, MIN_SAMPLE
from fusiondet.io.colour_signs import colour_signs, logs_of, without_clouds
from fusiondet.io.scene_reader import SceneReader

import numpy as np

# Fewer sampled pixels do not tell.
_MIN_PIXELS = 1000
# Quantiles that stand for the range of a band: few outliers are beyond them. In a normal distribution they are this
# many standard deviations apart.
_QUANTILES, _NORMAL_WIDTH = (0.02, 0.5, 0.98), 4.107
# Refused: so many standard deviations of the training above its mean, and beyond what its unit holds; or this share of
# its mean and deviation. Noted: these deviations off, or this factor in mean and spread alike.
_REFUSED_ABOVE, _REFUSED_SHARE = 3.0, 1 / 20
_UNUSUAL_OFF, _UNUSUAL_FACTOR = 2.5, 2.0
# Factors between the units that images are delivered in.
_USUAL_FACTORS = (1 / 257, 1 / 16, 1 / 8, 1 / 4, 4, 8, 16, 255, 10_000, 1 / 10_000)
_NEAR_FACTOR = 1.35
# Signs, of three, that red and blue are exchanged; as the doctor takes them for a warning.
_SIGNS_AGAINST = -1.0
_COLOUR_PIXELS = 20_000
# The exchange has to bring the ratio of red and blue, in logs, nearer to that of the training by this much.
_NEARER = 0.03


def value_notes(
    predictor: Predictor, reader: SceneReader, paths: dict[str, Sequence], options: SceneOptions
) -> list[str]:
    """Return notes on values that are unusual for a network.

    Args:
        reader: of the scene, of which few pixels are read.
        paths: modality -> its rasters, for messages.

    Raises:
        InputError: optical values that cannot be in the unit of the training, unless `optical_scale` says that they
            are; SAR in other units than dB, where the network was trained on dB.
    """
    sar = reader.sample("sar")
    if sar:
        _check_sar(predictor, sar, names_of(paths["sar"]))
    optical = reader.sample("optical")
    if not optical or min(values.size for values in optical) < _MIN_PIXELS:
        return []
    names = names_of(paths["optical"])
    notes = _optical_notes(predictor, optical, names, options.optical_scale is not None)
    if options.rgb_bands is None:
        notes += _order_notes(predictor, optical, names)
    return notes


def _check_sar(predictor: Predictor, sampled: list[np.ndarray], names: str) -> None:
    if predictor.bands.sar_scale in ("", "stretched_uint8"):
        return
    mean, values = max(_trained(predictor, "sar")[0]), np.concatenate(sampled)
    # A calibrated image in dB has more; powers have some below 0 where noise was subtracted.
    if values.size >= MIN_SAMPLE and mean < 0 and np.mean(values < 0) <= MAX_NEGATIVE:
        low, high = np.quantile(values, (0.02, 0.98))
        raise InputError(
            f"{names}: its values, {low:.3g} to {high:.3g} for the most part, are not the dB that "
            f"{predictor.weights.name} was trained on (mean {mean:.3g}). Pass `sar_scale` (linear_power or amplitude), "
            "and calibrate it to backscatter if it is not."
        )


def _trained(predictor: Predictor, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each band of a modality in the training."""
    channels, model = predictor.channels[modality], predictor.cfg.MODEL
    return np.array(model.PIXEL_MEAN[channels], float), np.array(model.PIXEL_STD[channels], float)


def _optical_notes(
    predictor: Predictor, sampled: list[np.ndarray], names: str, is_declared: bool
) -> list[str]:
    mean, std = _trained(predictor, "optical")
    low, median, high = np.array([np.quantile(values, _QUANTILES) for values in sampled], float).T
    off, spread = (median - mean) / std, (high - low) / _NORMAL_WIDTH / std
    level = np.divide(median, mean, out=np.ones_like(mean), where=mean > std / 4)

    too_high = (off > _REFUSED_ABOVE) & (high > _largest(mean, std))
    too_low = (spread < _REFUSED_SHARE) & (np.abs(high) < _REFUSED_SHARE * np.abs(mean)) & (high > low)
    brighter = (level > _UNUSUAL_FACTOR) & (spread > _UNUSUAL_FACTOR)
    darker = (level < 1 / _UNUSUAL_FACTOR) & (spread < 1 / _UNUSUAL_FACTOR)
    unusual = (np.abs(off) > _UNUSUAL_OFF) | brighter | darker

    found = (
        f"{names}: its optical values ({low.min():.3g} to {high.max():.3g} for the most part, median "
        f"{np.median(median):.3g})"
    )
    trained = f"{predictor.weights.name} was trained on (mean {mean.mean():.3g}, deviation {std.mean():.3g})"
    factor = _factor(mean, std, median, spread)
    # Numbers around 0 were standardised: the unit of the training is not known then.
    has_unit = (mean > std / 4).all()
    if not is_declared and has_unit and (too_high.all() or too_low.all()):
        raise InputError(
            f"{found} are not in the unit of what {trained}. Pass `optical_scale`, which they are multiplied by (about "
            f"{factor:.4g} would fit), or `optical_scale=1` if they are right as they are."
        )
    if 2 * unusual.sum() > unusual.size:
        advice = "`optical_scale` multiplies them"
        if 1 / _UNUSUAL_FACTOR < factor < _UNUSUAL_FACTOR:
            return [f"{found} are unusual for what {trained}: expect less of it. {advice}."]
        return [
            f"{found} are unusual for what {trained}: expect less of it. {advice}, by about {factor:.4g} say."
        ]
    return []


def _largest(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return the largest value of the unit that bands of a mean and deviation are in: reflectance, 8 bit, or more."""
    return np.where(mean < 2, np.maximum(2, mean + 8 * std), np.where(mean < 255, 255, mean + 8 * std))


def _factor(mean: np.ndarray, std: np.ndarray, median: np.ndarray, spread: np.ndarray) -> float:
    """Return about what values have to be multiplied by: a factor between usual units if one is near."""
    by_spread = 1 / np.median(spread) if np.median(spread) > 0 else 1.0
    levels = mean[median > 0] / median[median > 0]
    by_level = np.median(levels) if levels.size and np.median(levels) > 0 else by_spread
    factor = math.sqrt(by_spread * by_level)
    nearest = min(_USUAL_FACTORS, key=lambda usual: abs(math.log(usual / factor)))
    return nearest if abs(math.log(nearest / factor)) < math.log(_NEAR_FACTOR) else factor


def _order_notes(predictor: Predictor, sampled: list[np.ndarray], names: str) -> list[str]:
    """Return a note where red and blue look exchanged, by what cities look like and by the training's mean colour."""
    bands = [name.lower() for name in predictor.bands.optical]
    if not {"red", "green", "blue"} <= set(bands) or len({values.size for values in sampled}) > 1:
        return []
    at = [bands.index(name) for name in ("red", "green", "blue")]
    mean = _trained(predictor, "optical")[0][at]
    step = max(1, sampled[0].size // _COLOUR_PIXELS)
    pixels = np.stack([sampled[i][::step] for i in at])
    pixels = without_clouds(pixels[:, (pixels > 0).all(axis=0)])
    if pixels.shape[1] < _MIN_PIXELS or mean.min() <= 0 or (pixels.max(axis=0) == pixels.min(axis=0)).all():
        return []
    trained = math.log(mean[0] / mean[2])
    here = math.log(pixels[0].mean() / pixels[2].mean())
    if (
        abs(-here - trained) + _NEARER < abs(here - trained)
        and colour_signs(logs_of(pixels)).sum() <= _SIGNS_AGAINST
    ):
        exchanged = tuple(
            {0: at[2], 2: at[0]}.get(at.index(i), i) + 1 if i in at else i + 1 for i in range(len(bands))
        )
        return [
            f"{names}: red and blue look exchanged (shadows, roofs, plants). If its first band is blue, pass "
            f"`rgb_bands={exchanged}`."
        ]
    return []
