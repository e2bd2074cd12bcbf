"""What a config leaves open and the training data decide: bands, statistics, ranges, the prior of heights."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.buildings import Tile
from fusiondet.data import catalog
from fusiondet.data.sampler import choose_labelled
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from fusiondet.io.labels import check_height_labels, tallest_label_m
from fusiondet.io.pixel_classes import absent_classes, class_list, class_names
from fusiondet.io.tile_rasters import band_statistics
from fusiondet.modeling.architecture import architecture_of
from fusiondet.modeling.height_head import DEFAULT_CONTEXT_M, DEFAULT_LOG_SCALE, DEFAULT_MEDIAN_M
from fusiondet.modeling.sensor_geometry import FACTS

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm

_log = logging.getLogger(__name__)

_CONTEXT_RANGE_M = (10.0, 100.0)


def complete_config(cfg: CfgNode, stored: CfgNode | None = None) -> None:
    """Fill in, in place, what fusiondet/config.py marks "from the training data".

    Args:
        cfg: with DATASETS.TRAIN and TEST; their names are registered.
        stored: config of a checkpoint that the weights come from. Bands and statistics are then taken from it, because
            weights mean nothing under others; values that `cfg` sets itself stay.

    Raises:
        InputError: an unknown data set; a modality or band that a data set does not have; data sets that disagree;
            heights per pixel to be learned, and none or no heights there (see `check_height_labels`).
    """
    train, test, bands = settle_data(cfg, stored)
    check_batch_memory(cfg, [tile for dataset in train for tile in dataset.tiles], len(bands.names))
    draw_seed(cfg)
    # Of tiles whose labels are not used, no building may be known here either.
    labelled = _labelled_parts(cfg, train)
    if "height" in architecture_of(cfg).pixel_tasks(cfg):
        for note in check_height_labels(dict(zip(cfg.DATASETS.TRAIN, labelled)), cfg.INPUT.HEIGHT_LABELS):
            _log.warning(note)

    datasets = train or test
    settle_statistics(
        cfg,
        bands.names,
        lambda: [band_statistics(d, d.bands.select(bands.optical, bands.sar)) for d in datasets],
        [len(dataset.tiles) for dataset in datasets],
    )

    numbers = {dataset.nodata for dataset in datasets}
    if not len(cfg.INPUT.NODATA) and len(numbers) == 1 and None not in numbers:
        cfg.INPUT.NODATA = [float(numbers.pop())]

    tiles = [tile for dataset in datasets for tile in dataset.tiles]
    known = [tile for dataset in (labelled or test) for tile in dataset.tiles]
    _complete_geometry(cfg, tiles, known)
    _complete_height_prior(cfg, known)
    if architecture_of(cfg).reads_dense_net and "height" in architecture_of(cfg).pixel_tasks(cfg):
        _complete_height_scale(cfg, labelled or test)
    if "classes" in architecture_of(cfg).pixel_tasks(cfg):
        _complete_classes(cfg, train, labelled, test)
    _note_unknown_heights(cfg, known)
    _choose_best_metric(cfg, [tile for dataset in test for tile in dataset.tiles])
    _raise_detection_limit(cfg, [tile for dataset in (*labelled, *test) for tile in dataset.tiles])


def check_batch_memory(cfg: CfgNode, tiles: Sequence[Tile], bands: int) -> None:
    """Check that the images of a batch fit DATALOADER.MAX_BATCH_GIB.

    Raises:
        InputError: they would take more, with the largest tile, crop and scale that training may draw.
    """
    per_process = (cfg.SOLVER.IMS_PER_BATCH + cfg.DATALOADER.UNLABELLED_PER_BATCH) / comm.get_world_size()
    scale, crop = float(cfg.INPUT.SCALE_RANGE[1]), cfg.INPUT.CROP
    largest_px = max((tile.width * tile.height for tile in tiles), default=0) * scale**2
    if crop.ENABLED and crop.TYPE.startswith("absolute"):
        largest_px = min(largest_px, math.prod(crop.SIZE))
    needed_gib = per_process * largest_px * bands * 4 / 2**30
    if needed_gib > cfg.DATALOADER.MAX_BATCH_GIB:
        raise InputError(
            f"a batch would take {needed_gib:.3g} GiB: SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}, "
            f"INPUT.SCALE_RANGE {list(cfg.INPUT.SCALE_RANGE)}, {bands} bands, tiles of up to {largest_px:.3g} pixels "
            "when scaled. Take smaller numbers, or raise DATALOADER.MAX_BATCH_GIB, which is "
            f"{cfg.DATALOADER.MAX_BATCH_GIB:g}."
        )


def _note_unknown_heights(cfg: CfgNode, tiles: Sequence[Tile]) -> None:
    """A warning where the network is to learn a height per building, and none is known."""
    if cfg.MODEL.HEIGHT_ON and tiles and not _known_heights_m(tiles):
        _log.warning(
            "MODEL.HEIGHT_ON is True, but no building of the training data has a known height: the network learns "
            "none, and those it predicts mean nothing. Set MODEL.HEIGHT_ON False, or add heights to the annotations"
        )


_OF_HEIGHTS = ("mae_", "rmse_", "mse_", "delta", "skill")


def _choose_best_metric(cfg: CfgNode, tiles: Sequence[Tile]) -> None:
    """Set TEST.BEST_METRIC to a score that the test data define, where it is none: else `model_best.pth` never came."""
    if not tiles:
        return
    architecture, metric = architecture_of(cfg), cfg.TEST.BEST_METRIC
    group, _, name = metric.partition("/")
    per_building = bool(_known_heights_m(tiles))
    per_pixel = per_building or any(tile.ndsm_file_name or tile.building_height_file_name for tile in tiles)
    lacks_heights = (group in ("joint", "height", "height_gt_boxes") and not per_building) or (
        group in ("dense", "painted") and name.startswith(_OF_HEIGHTS) and not per_pixel
    )
    found = any(tile.buildings for tile in tiles)
    instead, reason = metric, "no building of the test data has a known height"
    if lacks_heights:
        instances = "segm/AP50" if cfg.MODEL.MASK_ON else "bbox/AP50"
        instead = instances if architecture.finds_instances else "dense/dice"
    if not found and instead.partition("/")[0] in ("segm", "bbox", "joint", "dense", "painted", "height"):
        reason = "the test data have no buildings"
        if "classes" in architecture.pixel_tasks(cfg):
            instead = "classes/oa"
        elif architecture.reads_dense_heads or architecture.reads_dense_net:
            instead = "dense/accuracy"
    if instead != metric:
        _log.warning("TEST.BEST_METRIC is %s instead of %s: %s", instead, metric, reason)
        cfg.TEST.BEST_METRIC = instead


def draw_seed(cfg: CfgNode) -> None:
    """Draw SEED, the same in all processes, where it is negative."""
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed() % 2**31
        _log.info("SEED %d was drawn; it is part of the config that is saved", cfg.SEED)


def settle_statistics(
    cfg: CfgNode,
    names: Sequence[str],
    statistics: Callable[[], list[tuple[np.ndarray, np.ndarray]]],
    counts: Sequence[int],
) -> None:
    """Fill in MODEL.PIXEL_MEAN and PIXEL_STD where they are open.

    Args:
        names: of the bands.
        statistics: computes (mean, standard deviation) per band of each data set; called if anything is open.
        counts: tiles or patches of each data set, its weight.

    Raises:
        InputError: a number of values that is not that of the bands.
    """
    model = cfg.MODEL
    if not len(model.PIXEL_MEAN) or not len(model.PIXEL_STD):
        mean, std = _pooled(statistics(), counts)
        model.PIXEL_MEAN = list(model.PIXEL_MEAN) or rounded(mean)
        # A band of one value would become infinite.
        model.PIXEL_STD = list(model.PIXEL_STD) or rounded(np.where(std > 0, std, 1.0))
        _log.info(
            "MODEL.PIXEL_MEAN %s, PIXEL_STD %s of bands %s", model.PIXEL_MEAN, model.PIXEL_STD, tuple(names)
        )
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(model[key]) != len(names):
            raise InputError(
                f"MODEL.{key} has {len(model[key])} numbers, expected one per band ({', '.join(names)}), or [] to have "
                "them computed from the training data."
            )


def settle_data(cfg: CfgNode, stored: CfgNode | None = None) -> tuple[list[Dataset], list[Dataset], BandSpec]:
    """The first part of `complete_config`, which reads annotations alone: the bands, and whether all data have them.

    Returns:
        Data sets of DATASETS.TRAIN, of DATASETS.TEST, and the bands of the network, which are then in `cfg`, too.

    Raises:
        InputError: as `complete_config`.
    """
    train, test = (
        [catalog.load_split(catalog.ensure_registered(name, tuple(cfg.INPUT.CLASSES))) for name in names]
        for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    )
    if stored is not None:
        take_over(cfg, stored)
    if not train and (stored is None or not test):
        raise InputError("DATASETS.TRAIN is empty: name a data set such as synthcity_train, or a COCO file.")
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    bands = _settle_bands(cfg, names[0], (train or test)[0].bands)
    for name, dataset in zip(names, (*train, *test), strict=True):
        _check_bands(name, dataset.bands, bands)
    if cfg.MODEL.HEIGHT_ON:
        _check_facts(cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY, cfg.DATASETS.TRAIN, train)
    return train, test, bands


# What weights mean nothing without. Ranges of GSD and angles are not among them: they say what was trained on, last.
_DATA_KEYS = (
    "INPUT.OPTICAL_BANDS",
    "INPUT.SAR_BANDS",
    "INPUT.SAR_SCALE",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.ROI_HEIGHT_HEAD.CONTEXT_M",
    "MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M",
    "MODEL.ROI_HEIGHT_HEAD.PRIOR_LOG_SCALE",
    "MODEL.DENSE_NET.HEIGHT_SCALE_M",
    "MODEL.DENSE_NET.CLASSES",
)


def take_over(cfg: CfgNode, stored: CfgNode) -> None:
    """Bands, statistics and seed of `stored`, the config of the weights, for those that `cfg` leaves open, in place."""
    # A network of other bands, RGB weights going on with SAR say, needs statistics of its own bands.
    other_bands = list(cfg.INPUT.MODALITIES) != list(stored.INPUT.MODALITIES) or any(
        len(cfg.INPUT[name]) and list(cfg.INPUT[name]) != list(stored.INPUT[name])
        for name in ("OPTICAL_BANDS", "SAR_BANDS")
    )
    for key in _DATA_KEYS:
        if other_bands and key.startswith("MODEL.PIXEL_"):
            continue
        *path, name = key.split(".")
        ours, theirs = cfg, stored
        for part in path:
            ours, theirs = ours[part], theirs[part]
        if not ours[name]:
            ours[name] = theirs[name]
    if cfg.SEED < 0:
        cfg.SEED = stored.SEED


def _settle_bands(cfg: CfgNode, name: str, found: BandSpec) -> BandSpec:
    """The bands of the network, written to the config: those it names, else all that data set `name` has."""
    for modality, known in (("optical", found.optical), ("sar", found.sar)):
        if modality in cfg.INPUT.MODALITIES and not known:
            others = [m for m in cfg.INPUT.MODALITIES if m != modality]
            raise InputError(
                f"INPUT.MODALITIES asks for {modality}, but data set {name} has no {modality} band. "
                f'Train on the other modality with INPUT.MODALITIES "{others}".'
            )
    optical = (cfg.INPUT.OPTICAL_BANDS or None) if "optical" in cfg.INPUT.MODALITIES else ()
    sar = (cfg.INPUT.SAR_BANDS or None) if "sar" in cfg.INPUT.MODALITIES else ()
    _refuse_missing(name, found, (*(optical or ()), *(sar or ())))
    bands = found.select(optical, sar)
    cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.SAR_BANDS = list(bands.optical), list(bands.sar)
    cfg.INPUT.SAR_SCALE = (cfg.INPUT.SAR_SCALE or bands.sar_scale) if bands.sar else ""
    cfg.MODEL.FUSION.OPTICAL_CHANNELS = len(bands.optical)
    return BandSpec(bands.optical, bands.sar, cfg.INPUT.SAR_SCALE)


def _check_bands(name: str, found: BandSpec, wanted: BandSpec) -> None:
    _refuse_missing(name, found, wanted.names)
    # Power, amplitude and dB all reach the network as dB; a display stretch is something else.
    stretched = {scale == "stretched_uint8" for scale in (found.sar_scale, wanted.sar_scale)}
    if wanted.sar and len(stretched) > 1:
        raise InputError(
            f"data set {name} holds SAR as {found.sar_scale}, the network was set up for {wanted.sar_scale}; a display "
            "stretch cannot be turned into dB. Use data of one kind."
        )


def _refuse_missing(name: str, found: BandSpec, wanted: tuple[str, ...]) -> None:
    missing = [band for band in wanted if not found.has(band)]
    if missing:
        raise InputError(
            f"data set {name} lacks band {', '.join(missing)}: it has {', '.join(found.names)}, the network takes "
            f"{', '.join(wanted)}, as the config says, or the checkpoint that the weights come from. To train on "
            "others, set INPUT.OPTICAL_BANDS, INPUT.SAR_BANDS or INPUT.MODALITIES; weights are then adapted."
        )


def _pooled(
    parts: list[tuple[np.ndarray, np.ndarray]], counts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per band over all data sets, each weighted by its number of samples."""
    weight = np.array(counts, float)[:, None] / sum(counts)
    means, stds = np.array([m for m, _ in parts]), np.array([s for _, s in parts])
    mean = (weight * means).sum(axis=0)
    return mean, np.sqrt((weight * (stds**2 + (means - mean) ** 2)).sum(axis=0))


def labelled_tiles(cfg: CfgNode, count: int) -> np.ndarray:
    """(count,) bool: which training tiles, of all data sets in order, are labelled."""
    return choose_labelled(count, cfg.DATASETS.LABEL_SHARE, max(cfg.SEED, 0))


def _labelled_parts(cfg: CfgNode, train: list[Dataset]) -> list[Dataset]:
    """The training data without the tiles that are not labelled."""
    flags = iter(labelled_tiles(cfg, sum(len(dataset.tiles) for dataset in train)))
    return [replace(dataset, tiles=[t for t in dataset.tiles if next(flags)]) for dataset in train]


def _check_facts(facts: Iterable[str], names: Iterable[str], datasets: list[Dataset]) -> None:
    """InputError when a fact that the height head is to be told is known for no tile; a warning when for some not."""
    tiles = [tile for dataset in datasets for tile in dataset.tiles]
    for fact in facts:
        known = sum(math.isfinite(_fact_of(tile, fact)) for tile in tiles)
        if tiles and not known:
            raise InputError(
                f"MODEL.ROI_HEIGHT_HEAD.GEOMETRY names {fact}, but no tile of {', '.join(names)} states its "
                f"{FACTS[fact].field}. Add it to the annotations (see datasets/README.md), or leave {fact} out."
            )
        if known < len(tiles):
            _log.warning(
                "%d of %d training tiles do not state %s: the height head learns from them to do without",
                *(len(tiles) - known, len(tiles), FACTS[fact].field),
            )


def _fact_of(tile: Tile, fact: str) -> float:
    """A number of the metadata of `tile`; NaN when unknown."""
    field = FACTS[fact].field
    value = tile.gsd_m if field == "gsd_m" else getattr(tile.sensor, field)
    return math.nan if value is None else value


def _complete_geometry(cfg: CfgNode, tiles: list, labelled: list) -> None:
    low, high = cfg.INPUT.SCALE_RANGE
    for key, fact, (smaller, larger) in (
        ("GSD_RANGE_M", "gsd", (high, low)),
        ("SUN_ELEVATION_RANGE_DEG", "sun_elevation", (1, 1)),
        ("SAR_INCIDENCE_RANGE_DEG", "incidence", (1, 1)),
    ):
        known = [value for value in (_fact_of(tile, fact) for tile in tiles) if math.isfinite(value)]
        seen = FACTS[fact].modality in ("", *cfg.INPUT.MODALITIES)
        if known and seen and not len(cfg.INPUT[key]):
            cfg.INPUT[key] = [round(min(known) / smaller, 6), round(max(known) / larger, 6)]
    if cfg.MODEL.ROI_HEIGHT_HEAD.CONTEXT_M == 0:
        cfg.MODEL.ROI_HEIGHT_HEAD.CONTEXT_M = context_m(labelled, cfg.INPUT.MODALITIES)


def context_m(tiles: Iterable, modalities: Iterable[str]) -> float:
    """How far from a building its shadow and layover reach: h * max(cot(sun elevation), cot and tan of incidence).

    h is the 95th percentile of the known heights; the result is rounded to metres and kept within 10 to 100 m. 40 m
    where heights or geometry are unknown.
    """
    heights_m, reaches = _known_heights_m(tiles), []
    for tile in tiles:
        sun, incidence = tile.sensor.sun_elevation_deg, tile.sensor.sar_incidence_deg
        if sun is not None and "optical" in modalities:
            reaches.append(1 / math.tan(math.radians(sun)))
        if incidence is not None and "sar" in modalities:
            tangent = math.tan(math.radians(incidence))
            reaches.append(max(tangent, 1 / tangent))
    if not heights_m or not reaches:
        return DEFAULT_CONTEXT_M
    return float(np.clip(round(np.percentile(heights_m, 95) * max(reaches)), *_CONTEXT_RANGE_M))


def _complete_height_prior(cfg: CfgNode, tiles: list) -> None:
    head, heights_m = cfg.MODEL.ROI_HEIGHT_HEAD, _known_heights_m(tiles)
    median_m = float(np.median(heights_m)) if heights_m else DEFAULT_MEDIAN_M
    spread = float(np.std(np.log(heights_m))) if len(heights_m) > 1 else DEFAULT_LOG_SCALE
    head.PRIOR_MEDIAN_M = head.PRIOR_MEDIAN_M or round(median_m, 4)
    # Equal heights would start the likelihood at a singularity.
    head.PRIOR_LOG_SCALE = head.PRIOR_LOG_SCALE or round(max(spread, 0.1), 4)


def _complete_height_scale(cfg: CfgNode, datasets: list[Dataset]) -> None:
    """MODEL.DENSE_NET.HEIGHT_SCALE_M: the greatest height per pixel of the labels, metres, rounded up."""
    net = cfg.MODEL.DENSE_NET
    if not net.HEIGHT_SCALE_M:
        net.HEIGHT_SCALE_M = float(math.ceil(tallest_label_m(datasets, cfg.INPUT.HEIGHT_LABELS))) or 1.0
        _log.info(
            "MODEL.DENSE_NET.HEIGHT_SCALE_M %g, the greatest height of the training data", net.HEIGHT_SCALE_M
        )


def _complete_classes(
    cfg: CfgNode, train: list[Dataset], labelled: list[Dataset], test: list[Dataset]
) -> None:
    """MODEL.DENSE_NET.CLASSES: those of the first data set; all others have to have the same.

    A warning names classes that are in none of the tiles looked at: nothing is learned of them, or no score is defined.

    Raises:
        InputError: data sets of different classes, or see `tile_classes`.
    """
    net, full = cfg.MODEL.DENSE_NET, [*train, *test]
    if not len(net.CLASSES):
        net.CLASSES = list(class_names(full[0]))
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for name, dataset, known in zip(names, full, [*labelled, *test], strict=True):
        found = class_names(dataset)
        if {*found} != {*net.CLASSES}:
            raise InputError(
                f"data set {name} has the classes {', '.join(found)}, expected {', '.join(net.CLASSES)}, as the config "
                f"says, or the data set that is named first ({names[0]}), or the checkpoint that the weights come from."
            )
        if class_list(dataset) is not None and class_list(known) is None:
            raise InputError(
                f"data set {name}: no tile whose labels are used (DATASETS.LABEL_SHARE) has a raster of classes."
            )
        absent, looked_at = absent_classes(known, net.CLASSES)
        if absent:
            _log.warning(
                "data set %s: no pixel of %s in the %d tiles looked at", name, " or ".join(absent), looked_at
            )


def _known_heights_m(tiles: Iterable) -> list[float]:
    return [b.height_m for tile in tiles for b in tile.buildings if b.height_m is not None]


def _raise_detection_limit(cfg: CfgNode, tiles: list) -> None:
    densest = max((len(tile.buildings) for tile in tiles), default=0)
    if cfg.TEST.DETECTIONS_PER_IMAGE <= densest:
        limit = math.ceil(1.5 * densest)
        _log.warning(
            "TEST.DETECTIONS_PER_IMAGE raised from %d to %d: the densest tile has %d buildings.",
            *(cfg.TEST.DETECTIONS_PER_IMAGE, limit, densest),
        )
        cfg.TEST.DETECTIONS_PER_IMAGE = limit
    if cfg.MODEL.RPN.POST_NMS_TOPK_TEST < cfg.TEST.DETECTIONS_PER_IMAGE:
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 2 * cfg.TEST.DETECTIONS_PER_IMAGE
        _log.warning("MODEL.RPN.POST_NMS_TOPK_TEST raised to %d for that.", cfg.MODEL.RPN.POST_NMS_TOPK_TEST)


def rounded(values) -> list[float]:
    """`values` to six digits, as they stand in a config."""
    return [float(f"{v:.6g}") for v in values]
