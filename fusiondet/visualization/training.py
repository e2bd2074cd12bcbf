"""Figures of a training: predictions for its latest tile, and confusion matrices of its evaluations."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.buildings import Building, SensorGeometry, Tile
from fusiondet.engine.hooks import TrainingFigures
from fusiondet.evaluation.evaluator import prediction_records
from fusiondet.geometry.painting import mask_to_polygon
from fusiondet.io.bands import BandSpec
from fusiondet.visualization.canvas import figure_array, save_figure
from fusiondet.visualization.confusion import confusion_figure
from fusiondet.visualization.datasets import building_from_prediction, match_tile
from fusiondet.visualization.tile_figures import TileView, tile_figure

import numpy as np
import torch
from detectron2.structures.masks import polygons_to_bitmask


def draw_predictions(inputs: dict, output: dict, bands: BandSpec) -> dict[str, np.ndarray]:
    """{name: (H, W, 3) uint8} images of one tile, whatever its bands.

    "predictions": optical and SAR panel, true outlines coloured by height, predicted ones, and which of them match.
    "height_maps", where there are dense heads: true and predicted height per pixel, errors, and predicted footprints.

    Args:
        inputs: input dict of the model, with its truth. output: what the model predicts for it.
        bands: what the channels of the image are.
    """
    view = TileView(_tile_of(inputs), inputs["image"].cpu().numpy(), bands)
    views = {
        "predictions": _with_instances(view, inputs, output),
        "height_maps": _with_maps(view, inputs, output),
    }
    return {name: figure_array(tile_figure(shown)) for name, shown in views.items() if shown}


def draw_confusion(counts: np.ndarray, class_names: Sequence[str], title: str, path: Path) -> None:
    """Write an image of (K, K) `counts` of true by predicted class."""
    save_figure(confusion_figure(counts, class_names, title), path)


def _with_instances(view: TileView, inputs: dict, output: dict) -> TileView | None:
    """`view` with the buildings that the network found, and which of them match; None for one that finds none."""
    if "instances" not in output:
        return None
    tile, records = view.tile, prediction_records(inputs, output["instances"].to("cpu"))
    predictions = [building_from_prediction(r, tile.height, tile.width) for r in records]
    kept = [i for i, building in enumerate(predictions) if building is not None]
    matches = match_tile(tile, [records[i] for i in kept])
    return dataclasses.replace(view, predictions=[predictions[i] for i in kept], matches=matches)


def _with_maps(view: TileView, inputs: dict, output: dict) -> TileView | None:
    """`view` with the maps that the network predicts, and the true one where it was read; None without any."""
    unseen = torch.isnan(inputs["image"]).all(dim=0).cpu()
    maps = {n: output[n].float().cpu() for n in ("height_map_m", "footprint_map") if n in output}
    maps = {name: m.masked_fill(unseen, math.nan).numpy() for name, m in maps.items()}
    truth_m = inputs.get("building_height_m")
    if "height_map_m" in maps and truth_m is not None:
        maps["truth_map_m"] = torch.as_tensor(truth_m).numpy()
    return dataclasses.replace(view, **maps) if maps else None


def _tile_of(inputs: dict) -> Tile:
    """The tile as the network saw it, augmented: outlines from its masks."""
    instances = inputs["instances"]
    height, width = instances.image_size
    masks = instances.gt_masks.tensor.numpy() if hasattr(instances.gt_masks, "tensor") else None
    if masks is None:
        masks = [polygons_to_bitmask(rings, height, width) for rings in instances.gt_masks.polygons]
    buildings = []
    for mask, height_m in zip(masks, instances.gt_heights.tolist(), strict=True):
        polygon = mask_to_polygon(mask)
        if polygon is not None:
            buildings.append(Building(polygon.simplify(0.7), None if math.isnan(height_m) else height_m))
    sensor = {k: None if math.isnan(v) else v for k, v in inputs["sensor"].items()}
    name = Path(inputs["file_name"]).name
    return Tile(
        name, width, height, inputs["gsd_m"], sensor=SensorGeometry.from_dict(sensor), buildings=buildings
    )


FIGURES = TrainingFigures(draw_predictions, draw_confusion)
