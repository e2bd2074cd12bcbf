"""The numbers: what a network predicts with a modality replaced or cut off, and what that costs its scores."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.buildings import Tile
from fusiondet.cli import progress
from fusiondet.config_loading import config_from_yaml_text
from fusiondet.data import catalog
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.data.sampler import evaluation_loader
from fusiondet.engine.checkpoint import load_model, read_checkpoint
from fusiondet.engine.complete_config import complete_config
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError
from fusiondet.evaluation.dense import GROUND_M, dense_counts, tile_truth
from fusiondet.evaluation.evaluator import predicted_maps, prediction_records
from fusiondet.evaluation.resampling import (
    TileScores,
    interval,
    maps_alone,
    resampled,
    summarize,
    tile_scores,
)
from fusiondet.inference import device_name
from fusiondet.io.coco import Dataset
from fusiondet.modeling.architecture import architecture_of
from fusiondet.modeling.fusion import MODALITIES, cut_off, exchanges, mean_messages

import numpy as np
import torch
from torch import nn

# Larger is better in all of them; segm/AP50 and joint/AP50 are in 0-100, the others in 0-1. Pixel F1 is taken at the
# limit of the score that is best for each prediction: merged detectors give lower scores where one of them sees
# nothing, and a fixed limit would take that for buildings lost.
SCORES = ("segm/AP50", "joint/AP50", "pixel/best_f1", "height/delta1")
# Of networks that say maps alone: pixel F1, which is Dice, at p >= 0.5, as A in P3 is; of heights these, too.
MAP_SCORES, HEIGHT_MAP_SCORES = ("dense/dice",), ("dense/delta1_building", "dense/delta1_all")
REPLACEMENTS = ("mean", "stand_in", "other_tile")
UTILIZATIONS = ("u_sar_given_opt", "u_opt_given_sar", "d_util")


@dataclass
class Estimate:
    """A number with its 95 % interval; None where not defined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass
class Utilization:
    """What `analyze` found.

    Attributes:
        scores: prediction ("as_is", "sar/mean", "optical_branch", ...) -> SCORE -> number or None.
        drop_sensitivity: (modality, replacement) -> SCORE -> Estimate.
        conditional: name of UTILIZATIONS -> SCORE -> Estimate; {} where it is not defined for the network.
        facts: the plain entries of the report. notes: what has to be known to read it.
        keys: every SCORE.
    """

    scores: dict[str, dict[str, float | None]]
    drop_sensitivity: dict[tuple[str, str], dict[str, Estimate]]
    conditional: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    keys: tuple[str, ...] = SCORES

    def to_dict(self) -> dict:
        """The flat document of this module's docstring."""
        flat = dict(self.facts)
        for name, scores in self.scores.items():
            flat |= {f"score/{name}/{key}": value for key, value in scores.items()}
        groups = {"drop_sensitivity/" + "/".join(k): v for k, v in self.drop_sensitivity.items()}
        groups |= {f"utilization/{name}": v for name, v in self.conditional.items()}
        for name, estimates in groups.items():
            for key, one in estimates.items():
                flat |= {
                    f"{name}/{key}": one.value,
                    f"{name}/{key}/low": one.low,
                    f"{name}/{key}/high": one.high,
                }
        return {**flat, "notes": self.notes}


# ---- The formulas ----------------------------------------------------------------------------------------


def conditional_utilization(score, score_cut_off):
    """P3's u = (A - A') / A; NaN where A is 0 or a score is not defined (NaN). Numbers or arrays of draws."""
    score, score_cut_off = np.asarray(score, dtype=float), np.asarray(score_cut_off, dtype=float)
    return (score - score_cut_off) / np.where(score == 0, np.nan, score)


def _conditional(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """UTILIZATIONS of the SCORE arrays of the four branch predictions."""
    u_sar = conditional_utilization(scores["optical_branch"], scores["optical_branch_cut_off"])
    u_opt = conditional_utilization(scores["sar_branch"], scores["sar_branch_cut_off"])
    return dict(zip(UTILIZATIONS, (u_sar, u_opt, u_sar - u_opt), strict=True))


def _estimate(value, drawn: np.ndarray) -> Estimate:
    return Estimate(float(value), *interval(drawn)) if np.isfinite(value) else Estimate(None, None, None)


# ---- The predictions -------------------------------------------------------------------------------------


def replace_modality(image, other, how: str, part: slice, mean) -> torch.Tensor:
    """`image` with the bands `part` replaced by one of REPLACEMENTS.

    Args:
        image, other: (C, H, W) and (C, H', W') in the units of the network, NaN = no data. A smaller `other` is
            repeated, a larger one cut.
        mean: (C,) of the training data.
    """
    image = image.clone()
    own = image[part]
    if how == "mean":
        image[part] = torch.where(torch.isnan(own), own, mean[part].to(own)[:, None, None])
    elif how == "stand_in":
        image[part] = torch.nan
    else:
        rows, columns = (torch.arange(n) % m for n, m in zip(own.shape[1:], other.shape[1:], strict=True))
        image[part] = other[part][:, rows[:, None], columns]
    return image


def other_tiles(n: int, seed: int) -> np.ndarray:
    """(n,) for every tile another one, each once: a random cycle through all of them."""
    order = np.random.default_rng(seed).permutation(n)
    partner = np.empty(n, dtype=int)
    partner[order] = np.roll(order, -1)
    return partner


def prediction_names(means: dict | None) -> list[str]:
    """The keys of `Utilization.scores`; with `means` those of branches, too."""
    names = ["as_is", *(f"{m}/{how}" for m in MODALITIES for how in REPLACEMENTS)]
    return names + ([f"{m}_branch{end}" for m in MODALITIES for end in ("", "_cut_off")] if means else [])


def predictions(
    model: nn.Module, tiles: Iterable[tuple[dict, dict]], means: dict | None = None
) -> dict[str, list[dict]]:
    """COCO results of `model` under every replacement and, with `means`, of its branches with and without cut-off.

    Args:
        model: FusionRCNN in eval mode, with `branch_predictions` if `means` is given.
        tiles: an input of the model, and the other one whose pixels replace its own.
        means: of `mean_messages`.

    Returns:
        Prediction (as in `Utilization.scores`) -> records.
    """
    records: dict[str, list[dict]] = {name: [] for name in prediction_names(means)}
    for x, outputs in _predicted(model, tiles, means):
        for name, output in outputs.items():
            records[name] += prediction_records(x, output["instances"].to("cpu"))
    return records


def map_counts(
    model: nn.Module,
    tiles: Iterable[tuple[dict, dict]],
    dataset: Dataset,
    means: dict | None = None,
    height_labels: str = "auto",
) -> dict[str, list[TileScores]]:
    """As `predictions`, of a network that says maps alone: what its maps score, tile by tile.

    Args:
        dataset: truth of the tiles, in their order.
        height_labels: as INPUT.HEIGHT_LABELS.

    Raises:
        InputError: the maps are of something else than buildings, or a tile has no data at all.
    """
    counts: dict[str, list[TileScores]] = {name: [] for name in prediction_names(means)}
    for (_, outputs), tile in zip(_predicted(model, tiles, means), dataset.tiles, strict=True):
        truth_m, truth_footprint = tile_truth(dataset, tile, height_labels)
        for name, scores in counts.items():
            # Where no band is left, nothing is said.
            output = outputs.get(name) or {k: torch.zeros_like(v) for k, v in _any(outputs, tile).items()}
            maps = predicted_maps(output)
            if maps is None:
                raise InputError(
                    f"{type(model).__name__} says {', '.join(output) or 'nothing'} of pixels, and how much of each "
                    "modality is used is measured by buildings: instances, footprints or heights."
                )
            scores.append(maps_alone(tile.id, dense_counts(maps[0], truth_m, maps[1], truth_footprint)))
    return counts


def _any(outputs: dict[str, dict], tile: Tile) -> dict:
    """Maps of one prediction of a tile, whichever; InputError where there is none, as no pixel has data."""
    if not outputs:
        raise InputError(f"{tile.file_name}: no pixel has data. Leave such tiles out of the data set.")
    return next(iter(outputs.values()))


@torch.no_grad()
def _predicted(model: nn.Module, tiles: Iterable[tuple[dict, dict]], means: dict | None):
    """(input, {prediction: output}) of every tile; see `predictions`."""
    for x, other in tiles:
        outputs = _outputs(model, x, other)
        yield x, outputs | (_branch_outputs(model, x, means) if means else {})


def _outputs(model: nn.Module, x: dict, other: dict) -> dict[str, dict]:
    inputs, mean = {"as_is": x}, model.preprocessing.pixel_mean.flatten().cpu()
    for modality in MODALITIES:
        for how in REPLACEMENTS:
            image = replace_modality(x["image"], other["image"], how, model.channels[modality], mean)
            inputs[f"{modality}/{how}"] = {**x, "image": image}
    # Where no band is left there is nothing to predict from.
    seen = {name: one for name, one in inputs.items() if not torch.isnan(one["image"]).all()}
    return {name: model([one])[0] for name, one in seen.items()}


def _branch_outputs(model: nn.Module, x: dict, means: dict) -> dict[str, dict]:
    outputs = {}
    for silent in (None, *MODALITIES):
        with nullcontext() if silent is None else cut_off(model, means, silent):
            branches = model.branch_predictions([x])
        for name in MODALITIES:
            if silent is None:
                outputs[f"{name}_branch"] = branches[name][0]
            elif silent != name:
                outputs[f"{name}_branch_cut_off"] = branches[name][0]
    return outputs


# ---- The analysis ----------------------------------------------------------------------------------------


def analyze(
    weights: Path,
    dataset_name: str,
    *,
    calibration: str | None = None,
    limit: int | None = None,
    draws: int = 1000,
    seed: int = 0,
    device: str | None = None,
) -> Utilization:
    """How much the network in the checkpoint `weights` uses each modality of `dataset_name`.

    Args:
        calibration: data set of the mean messages that the cut-off needs; None: the one it was trained on.
        limit: only the first so many tiles, of both data sets.
        draws, seed: of the intervals; `seed` also says which other tile replaces a tile's own pixels.
        device: as in `fusiondet.inference.Predictor`.

    Raises:
        InputError: not a checkpoint of fusiondet, a network of one modality or one that says nothing of buildings, an
            unknown data set, one that lacks a band, fewer than two tiles, no calibration set where one is needed, or
            one where none is.
    """
    stored, cfg, model = _network(weights, dataset_name, device)
    dataset = _first_tiles(catalog.load_split(dataset_name), limit)
    if len(dataset.tiles) < 2:
        found = f"{dataset_name}: {len(dataset.tiles)} tile"
        raise InputError(f"{found}, expected at least 2, so that one can be replaced by another.")
    means, calibrated, notes = _calibrated(model, stored, calibration, limit)
    pairs, keys = _pairs(cfg, dataset, seed), _keys(cfg)
    if keys == SCORES:
        records, per_tile = predictions(model, pairs, means), cfg.TEST.DETECTIONS_PER_IMAGE
        groups = {name: tile_scores(dataset, r, max_detections=per_tile) for name, r in records.items()}
    else:
        groups = map_counts(model, pairs, dataset, means, cfg.INPUT.HEIGHT_LABELS)
    drawn = dict(zip(groups, resampled([*groups.values()], draws=draws, seed=seed), strict=True))
    facts = {
        "weights": Path(weights).name,
        "dataset": catalog.folder_name(dataset_name),
        "n_tiles": len(dataset.tiles),
        "draws": draws,
    }
    scores = {name: summarize(tiles) for name, tiles in groups.items()}
    notes += _reading_notes(stored, keys)
    return estimated(scores, drawn, {**facts, "seed": seed, **calibrated}, notes, keys)


def _keys(cfg) -> tuple[str, ...]:
    """Every SCORE of a network of `cfg`."""
    if architecture_of(cfg).finds_instances:
        return SCORES
    return MAP_SCORES + (HEIGHT_MAP_SCORES if "height" in architecture_of(cfg).pixel_tasks(cfg) else ())


def estimated(
    scores: dict, drawn: dict, facts: dict, notes: list[str], keys: tuple[str, ...] = SCORES
) -> Utilization:
    """The estimates from `scores` and `drawn`: prediction -> SCORE (each of `keys`) -> number, or (draws,)."""
    drop = {(m, how): {} for m in MODALITIES for how in REPLACEMENTS}
    conditional: dict = {name: {} for name in UTILIZATIONS} if "sar_branch" in scores else {}
    for key in keys:
        # None becomes NaN.
        value = {name: np.array(s[key], dtype=float) for name, s in scores.items()}
        draw = {name: d[key] for name, d in drawn.items()}
        for modality, how in drop:
            one = f"{modality}/{how}"
            drop[modality, how][key] = _estimate(value["as_is"] - value[one], draw["as_is"] - draw[one])
        if conditional:
            of_draws = _conditional(draw)
            for name, u in _conditional(value).items():
                conditional[name][key] = _estimate(u, of_draws[name])
    kept = {name: {key: s[key] for key in keys} for name, s in scores.items()}
    return Utilization(kept, drop, conditional, facts, notes, keys)


def _network(weights: Path, dataset_name: str, device: str | None):
    """(config as stored, the same completed for the data set, model) of a checkpoint."""
    checkpoint = read_checkpoint(weights)
    stored = config_from_yaml_text(checkpoint["config_yaml"], str(weights))
    if len(stored.INPUT.MODALITIES) < 2:
        raise InputError(
            f"{weights}: takes {' and '.join(stored.INPUT.MODALITIES)} alone. How much of each modality is used "
            "is a question to networks of two, INPUT.MODALITIES [optical, sar]."
        )
    cfg = _on_data(stored, [dataset_name])
    cfg.MODEL.DEVICE = device_name(device)
    # What was hidden in a run with --eval-only says nothing about the network.
    cfg.MODEL.FUSION.DISABLED = ""
    model = FusionTrainer.build_model(cfg).eval()
    if not architecture_of(cfg).has_modalities:
        raise InputError(
            f"{weights}: {cfg.MODEL.META_ARCHITECTURE} is no FusionRCNN, so its bands have no modality."
        )
    load_model(model, checkpoint["model"], weights)
    return stored, cfg, model


def _on_data(stored, names: list[str]):
    """The config of a checkpoint for the data sets `names`; InputError when one is unknown or lacks a band."""
    cfg = stored.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), tuple(names)
    complete_config(cfg, stored)
    return cfg


def _reading_notes(stored, keys: tuple[str, ...]) -> list[str]:
    tasks = architecture_of(stored).pixel_tasks(stored)
    notes = ["pixel F1 is of the map where its probability is 0.5 or more, pooled over all pixels."]
    if keys == SCORES:
        notes = [
            "δ1 is of the buildings that are found: where few are left, it says little.",
            "pixel F1 is at the limit of the score that is best for each prediction, chosen on these very tiles.",
        ]
    elif "height" in tasks and "footprint" not in tasks:
        notes = [
            f"pixel F1 is of the map where its height is {GROUND_M:g} m or more, pooled over all pixels."
        ]
    if not any(stored.MODEL.FUSION.MODALITY_DROPOUT.values()):
        notes.append(
            "trained without MODALITY_DROPOUT, so its stand-in is the mean, and it never had to do with it."
        )
    return notes


def _first_tiles(dataset: Dataset, limit: int | None) -> Dataset:
    return replace(dataset, tiles=dataset.tiles[:limit])


def _pairs(cfg, dataset: Dataset, seed: int) -> Iterator[tuple[dict, dict]]:
    """Every tile with the one that replaces it."""
    records, mapper = catalog.records(dataset), FusionDatasetMapper(cfg, False)
    others = [records[i] for i in other_tiles(len(records), seed)]
    loaders = (evaluation_loader(r, mapper, cfg.DATALOADER.NUM_WORKERS) for r in (records, others))
    for (x,), (other,) in progress(zip(*loaders, strict=True), len(records), "predicting"):
        yield x, other


def _without_utilization(model: nn.Module) -> str:
    """Why conditional utilisation has no meaning for `model`; empty where it has one."""
    if not model.has_branches:
        return "one head for both modalities: conditional utilisation (P3) is not defined for it."
    if not exchanges(model):
        return "the branches exchange nothing: conditional utilisation is 0 by construction and left out."
    return ""


def _calibrated(model: nn.Module, stored, calibration: str | None, limit: int | None):
    """(mean messages or None, facts, notes): the pass over the training set, where branches talk to each other."""
    why_not = _without_utilization(model)
    if why_not and calibration:
        raise InputError(
            f"`calibration={calibration}` is of no use for this network, leave it out: {why_not}"
        )
    if why_not:
        return None, {}, [why_not]
    names = [calibration] if calibration else list(stored.DATASETS.TRAIN)
    try:
        cfg = _on_data(stored, names)
    except InputError as error:
        raise InputError(
            f"the mean messages of the cut-off come from the training set, here {', '.join(names) or 'none'}: "
            f"{error} Name it with `calibration`."
        ) from None
    datasets = [_first_tiles(catalog.load_split(name), limit) for name in names]
    records = [record for dataset in datasets for record in catalog.records(dataset)]
    loader = evaluation_loader(records, FusionDatasetMapper(cfg, False), cfg.DATALOADER.NUM_WORKERS)

    def backbone(batch):
        model.backbone(model.preprocess_image(batch).tensor)

    with torch.no_grad():
        means = mean_messages(model, progress(loader, len(records), "calibrating"), backbone)
    return (
        means,
        {"calibration": ", ".join(map(catalog.folder_name, names)), "n_calibration_tiles": len(records)},
        [],
    )
