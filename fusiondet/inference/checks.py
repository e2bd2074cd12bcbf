"""What a scene lacks, has too much of, or cannot be for a network: notes for the user, and refusals."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from fusiondet.buildings import SensorGeometry
from fusiondet.errors import InputError, unknown_name
from fusiondet.inference.predictor import Predictor, has_two_detectors
from fusiondet.io.bands import SAR_SCALES
from fusiondet.io.height_rasters import HEIGHT_BANDS
from fusiondet.io.scene_reader import SceneReader
from fusiondet.modeling.sensor_geometry import FACTS

from affine import Affine

# A raster this much coarser or finer than any training image is resampled; this much, and it is refused.
RESAMPLE_FACTOR = 1.25
REFUSE_FACTOR = 4.0
# An image turned by less is level.
_LEVEL_DEG = 1.0
_NAMES = {"optical": "optical", "sar": "SAR"}
# Pixels without any power are in every SAR image; a share of them up to this is not worth a word.
_FEW_LACKING = 0.02
_PATH_OPTIONS = {"optical": "`rgb`", "sar": "`sar`"}


def modality_notes(predictor: Predictor, paths: dict[str, Sequence[Path]]) -> list[str]:
    """What is missing and what is not used; InputError when nothing is there that the network takes.

    `paths`: modality -> its rasters.
    """
    taken = {m: getattr(predictor.bands, m) for m in paths if getattr(predictor.bands, m)}
    if not any(paths.values()):
        raise InputError("no raster given. Pass `rgb`, and `sar` if the network takes both.")
    if not any(paths[m] for m in taken):
        ((modality, names),) = taken.items()
        raise InputError(
            f"{predictor.weights}: takes {_NAMES[modality]} only ({', '.join(names)}). Pass {_PATH_OPTIONS[modality]}."
        )
    notes = []
    for modality, path in paths.items():
        if modality in taken and not path:
            notes.append(f"no {_PATH_OPTIONS[modality]}: {_what_to_expect_without(predictor, modality)}")
        elif modality not in taken and path:
            notes.append(
                f"{names_of(path)}: is not used, {predictor.weights.name} was trained without {_NAMES[modality]}."
            )
    threshold = predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    if has_two_detectors(predictor.cfg) and all(paths.values()) and threshold >= 0.5:
        notes.append(
            f"{predictor.weights.name} has two detectors, and what only one of them finds has half its score at most: "
            f"pass a `score_threshold` below 0.5 to see such buildings, under clouds say."
        )
    return notes


def nodata_notes(
    predictor: Predictor, paths: dict[str, Sequence], data_px: dict[str, int], seen_px: int
) -> list[str]:
    """Which modalities turned out to have no data, anywhere or in a part of the scene that is worth a word.

    `data_px`: modality -> how many of the pixels that were seen have data of it; `seen_px`: how many have any.
    """
    given = {m: names_of(path) for m, path in paths.items() if path and getattr(predictor.bands, m)}
    if not seen_px:
        return [f"{' and '.join(given.values())}: all of it is no data, so there is nothing to predict."]
    notes = []
    for modality, names in given.items():
        lacking = 1 - data_px[modality] / seen_px
        if lacking > _FEW_LACKING:
            other = " and ".join(_NAMES[m] for m in given if m != modality)
            where = (
                "all of it" if lacking == 1 else f"about {min(lacking, 0.99):.0%} of where {other} has data"
            )
            notes.append(f"{names}: {where} is no data; {_what_to_expect_without(predictor, modality)}")
    return notes


def extent_for(predictor: Predictor) -> str:
    """Which of EXTENTS to predict a pair of rasters on: also where SAR is missing if the network copes with that."""
    learned = predictor.cfg.MODEL.FUSION.MODALITY_DROPOUT.sar > 0
    return "optical" if learned or _detects_apart(predictor) else "intersection"


def extent_notes(predictor: Predictor, reader: SceneReader, extent: str) -> list[str]:
    """What becomes of ground that not all rasters cover, where there is some."""
    if reader.shared >= 1 or not (predictor.bands.optical and predictor.bands.sar):
        return []
    if extent == "intersection":
        return [
            'predicted where both optical and SAR rasters are, and nowhere else (`extent="optical"` '
            "predicts without SAR, too)."
        ]
    return [
        f'where SAR is missing: {_what_to_expect_without(predictor, "sar")} `extent="intersection"` predicts only '
        "where both are."
    ]


def _detects_apart(predictor: Predictor) -> bool:
    """Whether each modality has a detector that never sees the other."""
    return has_two_detectors(predictor.cfg) and not any(predictor.cfg.MODEL.FUSION.EXCHANGE.values())


def _what_to_expect_without(predictor: Predictor, modality: str) -> str:
    fusion, name, weights = predictor.cfg.MODEL.FUSION, _NAMES[modality], predictor.weights.name
    share = fusion.MODALITY_DROPOUT[modality]
    if share > 0:
        return f"predicted without {name}, as {share:.0%} of the images that {weights} was trained on were."
    if _detects_apart(predictor):
        return f"predicted by the other detector of {weights} alone, which never sees {name}."
    return (
        f"{weights} was never trained without {name}, so expect much less of it; one trained with "
        f"MODEL.FUSION.MODALITY_DROPOUT.{modality} above 0 copes."
    )


def sensor_notes(predictor: Predictor, sensor: SensorGeometry, paths: dict[str, Sequence[Path]]) -> list[str]:
    """What of `sensor` the network lacks, does not use, or was not trained on."""
    given = {name: value for name, value in sensor.to_dict().items() if value is not None}
    cfg = predictor.cfg
    told = [FACTS[fact] for fact in cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY] if cfg.MODEL.HEIGHT_ON else []
    used = {fact.field for fact in told}
    # Without SAR nothing in the image depends on where its sensor was.
    lacking = [f"`{f.field}`" for f in told if f.modality and f.field not in given and paths[f.modality]]
    notes = []
    if lacking:
        notes.append(
            f"{predictor.weights.name} reads heights off with known angles; without {', '.join(lacking)} they are less "
            "certain."
        )
    idle = [f"`{name}`" for name in given if name not in used]
    if idle:
        notes.append(
            f"{predictor.weights.name} makes no use of {', '.join(idle)} (its MODEL.ROI_HEIGHT_HEAD.GEOMETRY is "
            f"{list(cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY)})."
        )
    ranges = {
        "sun_elevation_deg": cfg.INPUT.SUN_ELEVATION_RANGE_DEG,
        "sar_incidence_deg": cfg.INPUT.SAR_INCIDENCE_RANGE_DEG,
    }
    for name, (low, high) in ((name, pair) for name, pair in ranges.items() if len(pair)):
        if name in given and not low <= given[name] <= high:
            notes.append(
                f"`{name}` {given[name]:g} is outside of what {predictor.weights.name} was trained on, "
                f"{low:g} to {high:g} degrees: its heights may be off."
            )
    return notes


def check_sar_scale(predictor: Predictor, scale: str | None) -> None:
    """Power, amplitude and dB all reach the network as dB; a display stretch is something else."""
    trained = predictor.bands.sar_scale
    if scale is None or not trained:
        return
    if scale not in SAR_SCALES:
        raise unknown_name("`sar_scale`", scale, SAR_SCALES)
    if (scale == "stretched_uint8") != (trained == "stretched_uint8"):
        raise InputError(
            f"`sar_scale` is {scale}, but {predictor.weights.name} was trained on {trained}; a display stretch and dB "
            "cannot be turned into each other."
        )


def turn_note(transform: Affine, name) -> list[str]:
    """That an image is turned against the map, by an angle that reading it from the other end does not undo."""
    angle_deg = math.degrees(math.atan2(transform.d, transform.a))
    if abs(angle_deg) <= _LEVEL_DEG:
        return []
    return [
        f"{name}: its columns run at {abs(angle_deg):.3g} degrees to the east, and so the network sees it turned; "
        "outlines are right on the map. gdalwarp IN OUT makes it north-up."
    ]


def usual_gsd(predictor: Predictor, name) -> float:
    """Return the middle of the pixel sizes that the network was trained on, metres.

    Raises:
        InputError: the checkpoint does not state them; `name` is the scene's.
    """
    if not predictor.gsd_range_m:
        raise InputError(
            f"{name}: has no georeference, and {predictor.weights} does not state the pixel size of its training. "
            "Pass `gsd_m`, the metres per pixel."
        )
    return math.sqrt(math.prod(predictor.gsd_range_m))


def target_gsd(predictor: Predictor, gsd_m: float, name, force_gsd: bool) -> float | None:
    """GSD to resample a scene of `gsd_m` metres per pixel to, or None where it fits the training.

    Args:
        name: of the scene, for messages.
        force_gsd: resample however far it is from the training.

    Raises:
        InputError: it is too far from the training.
    """
    if not predictor.gsd_range_m:
        return None
    finest, coarsest = predictor.gsd_range_m
    nearest = min(max(gsd_m, finest), coarsest)
    trained = f"{finest:.3g}" if finest == coarsest else f"{finest:.3g} to {coarsest:.3g}"
    factor = max(gsd_m / nearest, nearest / gsd_m)
    if factor > REFUSE_FACTOR and not force_gsd:
        raise InputError(
            f"{name}: {gsd_m:.3g} m per pixel, but {predictor.weights.name} was trained on {trained} m: "
            "buildings look too different to expect a result. Pass `force_gsd=True` to try all the same."
        )
    return nearest if factor > RESAMPLE_FACTOR else None


# What a raster of classes holds, where one of heights holds `HEIGHT_BANDS`.
CLASS_SOURCES = ("classes",)


def check_tells_classes(predictor: Predictor) -> None:
    """InputError when the network tells no classes to write, and no footprints either."""
    if not predictor.class_names:
        raise InputError(
            f"{predictor.weights.name}: tells neither classes nor footprints of pixels, so there is nothing to write "
            "to `class_path`."
        )


def wanted_sources(predictor: Predictor, wanted: str | None) -> list[str]:
    """Sources of the bands of a height raster; InputError when the network lacks what is `wanted`."""
    name, has = predictor.weights.name, predictor.height_sources
    if not has:
        raise InputError(f"{name}: predicts no heights, so there is nothing to write to `height_path`.")
    sources = list(HEIGHT_BANDS) if wanted == "both" else [wanted or has[0]]
    lacking = {
        "dense": 'has no head for heights per pixel ("DenseHeight" is not in its MODEL.DENSE_HEADS.NAMES)',
        "instances": "finds no buildings with heights, only heights per pixel",
    }
    for source in sources:
        if source not in has:
            raise InputError(
                f"{name}: {lacking[source]}, so `height_source` {wanted} cannot be written. "
                f'Pass `height_source="{has[0]}"`, or other weights.'
            )
    return sources


def names_of(paths: Iterable) -> str:
    """The rasters of a modality, for messages."""
    return ", ".join(map(str, paths))
