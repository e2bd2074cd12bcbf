"""Figures of datasets and predictions on disk: which tiles, read how, matched how."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from fusiondet.buildings import Building, Tile
from fusiondet.errors import InputError
from fusiondet.evaluation.dense import painted, tile_truth
from fusiondet.evaluation.instances import compressed_rle
from fusiondet.evaluation.matching import mask_iou, match_greedily
from fusiondet.geometry.contours import mask_to_polygon_px
from fusiondet.geometry.painting import mask_to_polygon
from fusiondet.io.coco import Dataset, decode_rle, polygon_from_segmentation, segmentation_from_polygon
from fusiondet.io.pixel_classes import class_list, tile_classes
from fusiondet.io.tile_rasters import read_tile
from fusiondet.visualization.tile_figures import MATCH_IOU, TileView, overview_figure, tile_figure

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from shapely.geometry.base import BaseGeometry

MAX_TILES = 60


def dataset_overview(
    dataset: Dataset, n: int = 6, name: str | None = None, height_labels: str | None = None
) -> Figure:
    """Tiles of `dataset`: image panels and true buildings, or true heights per pixel; and classes, where it has them.

    Args:
        n: number of tiles, spread evenly over the dataset, tiles with buildings or classes first.
        name: only the tile with this file name (or its last part), drawn large.
        height_labels: draw heights per pixel from this source, see INPUT.HEIGHT_LABELS; None: outlines.

    Raises:
        InputError: no such tile, an empty dataset, n outside 1...60, or a raster that cannot be read.
    """
    tiles = _wanted(dataset, n, name, [t.buildings or t.class_file_name for t in dataset.tiles])
    classes = class_list(dataset)
    views = []
    for tile in tiles:
        truth_m = None if height_labels is None else tile_truth(dataset, tile, height_labels)[0]
        class_map = None if classes is None else tile_classes(dataset, tile, classes.names)
        labels = {"truth_map_m": truth_m, "class_map": class_map, "classes": classes}
        views.append(TileView(tile, read_tile(dataset, tile), dataset.bands, **labels))
    return tile_figure(views[0]) if name else overview_figure(views)


def prediction_overview(
    dataset: Dataset,
    records: Sequence[dict],
    n: int = 4,
    name: str | None = None,
    min_score: float = 0.5,
    height_labels: str | None = None,
) -> Figure:
    """Truth beside predictions: as `dataset_overview`, with predicted heights and what matched, or errors per pixel.

    Args:
        records: COCO results, see `fusiondet.io.coco.prediction_record`; those of other images are left out.
        min_score: predictions below this score are not drawn (and do not match).
        height_labels: draw heights per pixel: true ones from this source, predicted ones painted; None: outlines.
    """
    per_image = records_by_image([r for r in records if r["score"] >= min_score])
    tiles = _wanted(dataset, n, name, [t.buildings or per_image.get(t.id) for t in dataset.tiles])
    views = []
    for tile in tiles:
        if height_labels is not None:
            views.append(_painted_view(dataset, tile, per_image.get(tile.id, []), height_labels))
            continue
        predictions, matches = _drawable(tile, per_image.get(tile.id, []))
        views.append(TileView(tile, read_tile(dataset, tile), dataset.bands, predictions, matches))
    return tile_figure(views[0], panel_in=3.2) if name else overview_figure(views)


def _painted_view(dataset: Dataset, tile: Tile, records: Sequence[dict], height_labels: str) -> TileView:
    """Heights per pixel of `tile`, true ones and those of `records`, as the evaluation sees them."""
    size = tile.height, tile.width
    records = [{**r, "segmentation": compressed_rle(r["segmentation"], *size)} for r in records]
    image, (truth_m, _) = read_tile(dataset, tile), tile_truth(dataset, tile, height_labels)
    height_m, _ = painted(records, size, score_threshold=0.0)
    unseen = np.isnan(image).all(axis=0)
    truth_m, height_m = (np.where(unseen, np.nan, m) for m in (truth_m, height_m))
    return TileView(tile, image, dataset.bands, truth_map_m=truth_m, height_map_m=height_m)


def _wanted(dataset: Dataset, n: int, name: str | None, content: Sequence) -> list[Tile]:
    return choose_tiles(dataset.tiles, n, content) if name is None else [find_tile(dataset, name)]


def _drawable(tile: Tile, best_first: Sequence[dict]) -> tuple[list[Building], list[int]]:
    """Predictions of `tile` that have an outline, and the true building that each matches, or -1."""
    buildings = [building_from_prediction(record, tile.height, tile.width) for record in best_first]
    pairs = zip(buildings, match_tile(tile, best_first), strict=True)
    kept = [(building, int(truth)) for building, truth in pairs if building is not None]
    return [building for building, _ in kept], [truth for _, truth in kept]


def choose_tiles(tiles: Sequence[Tile], n: int, content: Sequence) -> list[Tile]:
    """`n` tiles spread evenly over those with `content` (truthy), filled up with others, in the dataset's order.

    Raises:
        InputError: n outside 1...MAX_TILES, or no tile at all.
    """
    if not 1 <= n <= MAX_TILES:
        raise InputError(f"number of tiles {n}: expected 1 to {MAX_TILES} in one picture.")
    if not tiles:
        raise InputError("no tile to draw: the annotations list no image.")
    full = [i for i, something in enumerate(content) if something]
    empty = [i for i, something in enumerate(content) if not something]
    chosen = _spread(full, n) + _spread(empty, n - min(n, len(full)))
    return [tiles[i] for i in sorted(chosen)]


def _spread(items: list[int], n: int) -> list[int]:
    if n >= len(items):
        return list(items)
    return [items[int((k + 0.5) * len(items) / n)] for k in range(n)]


def find_tile(dataset: Dataset, name: str) -> Tile:
    """The tile whose file name, or the last part of it, is `name`.

    Raises:
        InputError: none; the message names similar ones.
    """
    for tile in dataset.tiles:
        if name in (tile.file_name, Path(tile.file_name).name, Path(tile.file_name).stem):
            return tile
    near = difflib.get_close_matches(name, [t.file_name for t in dataset.tiles], n=3, cutoff=0.0)
    raise InputError(
        f"image {name!r} is not in the annotations ({len(dataset.tiles)} images). Similar: {', '.join(near) or 'none'}."
    )


def records_by_image(records: Sequence[dict]) -> dict[int, list[dict]]:
    """COCO results per image id, best score first."""
    per_image: dict[int, list[dict]] = {}
    for record in sorted(records, key=lambda r: -r["score"]):
        per_image.setdefault(record["image_id"], []).append(record)
    return per_image


def building_from_prediction(record: dict, height: int, width: int) -> Building | None:
    """A COCO result as a building for drawing; None when its mask is empty.

    The outline of a mask is drawn without its stairs: the mask is blurred by less than a pixel and contoured, which
    keeps its area within a few percent. Polygons are taken as they are.
    """
    segmentation = record["segmentation"]
    if isinstance(segmentation, dict):
        polygon = _smooth_outline(decode_rle(segmentation, height, width))
    else:
        polygon = polygon_from_segmentation(segmentation, height, width)
    if polygon is None:
        return None
    heights = {key: record.get(key) for key in ("height_m", "height_p16_m", "height_p84_m")}
    return Building(polygon=polygon, score=record["score"], **heights)


def _smooth_outline(mask: np.ndarray) -> BaseGeometry | None:
    """Outline of (H, W) bool `mask` in its pixels; of masks too thin to survive the blur, the pixels' own."""
    if not mask.any():
        return None
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    soft = gaussian_filter(mask[y0:y1, x0:x1].astype(np.float32), sigma=0.8, mode="nearest")
    outline = mask_to_polygon_px(soft, (x0, y0, x1, y1), tolerance_px=0.3)
    return mask_to_polygon(mask) if outline is None else outline


def match_tile(tile: Tile, records: Sequence[dict]) -> np.ndarray:
    """Truth index of every record (best score first) of `tile`, -1 for none: the evaluation's rule at IoU >= 0.5."""
    size = tile.height, tile.width
    truth = [compressed_rle(segmentation_from_polygon(b.polygon, *size), *size) for b in tile.buildings]
    predicted = [compressed_rle(r["segmentation"], *size) for r in records]
    iou = mask_iou(predicted, truth, np.zeros(len(truth), bool))
    return match_greedily(iou, [MATCH_IOU])[0]
