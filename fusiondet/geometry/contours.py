"""The outline of a ROI mask, between its samples: where the mask probability crosses the threshold.

A ROI mask is an (h, w) grid of probabilities spread over its box: the box is cut into h x w cells and sample (i, j)
stands at the centre of cell (row i, column j). Between samples the probability is linear, beyond the box it is 0 one
cell away: what Detectron2's `paste_masks_in_image` assumes too, but no full-size mask is painted here.
"""

import functools

from fusiondet.buildings import clean_polygon

import numpy as np
import shapely
from contourpy import FillType, LineType, SerialContourGenerator, ZInterp
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

_CONTOURS = {
    "corner_mask": True,
    "line_type": LineType.Separate,
    "fill_type": FillType.OuterOffset,
    "quad_as_tri": False,
    "z_interp": ZInterp.Linear,
}


def mask_to_polygon_px(
    prob: np.ndarray,
    box_xyxy: np.ndarray,
    threshold: float = 0.5,
    min_part_share: float = 0.2,
    min_hole_px2: float = 1.0,
    tolerance_px: float = 0.0,
) -> BaseGeometry | None:
    """Outline of a ROI mask.

    Args:
        prob: (h, w) probabilities in [0, 1]; NaN counts as 0.
        box_xyxy: (4,) x0, y0, x1, y1 of the box in the image's pixels; (0, 0) is the image's outer corner.
        threshold: in (0, 1); inside is where the probability is larger.
        min_part_share: parts smaller than this share of the largest one are dropped; 1 keeps the largest alone.
        min_hole_px2: smaller holes are filled; px².
        tolerance_px: see `simplify`; 0 keeps every vertex that bends.

    Returns:
        Valid Polygon or MultiPolygon, with holes, inside the box; None when nothing exceeds the threshold or the box
        has no area.
    """
    box_xyxy = np.asarray(box_xyxy, dtype=float)
    if not np.isfinite(box_xyxy).all() or (box_xyxy[2:] <= box_xyxy[:2]).any():
        return None
    parts = [
        Polygon(rings[0], rings[1:])
        for rings in (
            [sample_to_pixel(ring, box_xyxy, prob.shape) for ring in r] for r in _rings(prob, threshold)
        )
    ]
    polygon = clean_polygon(MultiPolygon(parts)) if parts else None
    polygon = _without_crumbs(polygon, min_part_share, min_hole_px2) if polygon is not None else None
    return None if polygon is None else simplify(polygon, tolerance_px)


def masks_to_polygons_px(
    probs: np.ndarray, boxes_xyxy: np.ndarray, tolerance_px: float = 0.0
) -> list[BaseGeometry | None]:
    """`mask_to_polygon_px` of (R, h, w) masks in (R, 4) boxes, several times as fast for many of them."""
    boxes_xyxy = np.asarray(boxes_xyxy, dtype=float).reshape(-1, 4)
    polygons: list[BaseGeometry | None] = [None] * len(boxes_xyxy)
    usable = np.isfinite(boxes_xyxy).all(axis=1) & (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1)
    # Nearly all masks are one ring, whose outline is a matter of whole arrays.
    rings, of_ring = [], []
    for i in np.flatnonzero(usable):
        parts = list(_rings(probs[i], 0.5))
        if len(parts) == 1 and len(parts[0]) == 1 and len(parts[0][0]) > 3:
            rings.append(sample_to_pixel(parts[0][0], boxes_xyxy[i], probs[i].shape))
            of_ring.append(i)
        elif parts:
            polygons[i] = mask_to_polygon_px(probs[i], boxes_xyxy[i], tolerance_px=tolerance_px)
    if not rings:
        return polygons
    owner = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    raw = shapely.polygons(shapely.linearrings(np.concatenate(rings), indices=owner))
    simple = shapely.simplify(raw, max(tolerance_px, 1e-6), preserve_topology=True)
    sound = (
        shapely.is_valid(raw)
        & shapely.is_valid(simple)
        & (shapely.area(raw) > 0)
        & (shapely.area(simple) > 0)
    )
    for i, polygon, is_sound in zip(of_ring, simple, sound, strict=True):
        polygons[i] = (
            polygon if is_sound else mask_to_polygon_px(probs[i], boxes_xyxy[i], tolerance_px=tolerance_px)
        )
    return polygons


def sample_to_pixel(points: np.ndarray, box_xyxy: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N, 2) pixel positions (x, y) of (N, 2) mask positions (column, row), where samples lie at whole numbers.

    The only place where a ROI mask's frame meets the image's: sample (0, 0) is the centre of the first cell.
    """
    corner, size = np.asarray(box_xyxy[:2]), np.asarray(box_xyxy[2:]) - np.asarray(box_xyxy[:2])
    cells = np.array([shape[1], shape[0]])
    return corner + (np.asarray(points) + 0.5) * size / cells


def simplify(polygon: BaseGeometry, tolerance_px: float) -> BaseGeometry:
    """`polygon` with fewer vertices, nowhere further than `tolerance_px` from the old outline; valid.

    Douglas-Peucker that keeps the topology. Round outlines lose area (their vertices stay, their bows go), so use a
    tolerance only after measuring.
    """
    # Even a tolerance of 0 has to drop the vertices that marching squares leaves on straight edges.
    simple = clean_polygon(shapely.simplify(polygon, max(tolerance_px, 1e-6), preserve_topology=True))
    return polygon if simple is None else simple


def _rings(prob: np.ndarray, threshold: float):
    """Per part: its rings, outer one first, in mask positions."""
    padded = np.zeros((prob.shape[0] + 2, prob.shape[1] + 2))
    padded[1:-1, 1:-1] = np.nan_to_num(prob)
    # The class itself: what `contour_generator` does before takes longer than the contour of a ROI mask.
    contours = SerialContourGenerator(*_grid(prob.shape), padded, None, **_CONTOURS)
    # "Filled" between the threshold and anything: outer rings come with their holes.
    for points, offsets in zip(*contours.filled(threshold, np.inf), strict=True):
        yield [points[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


@functools.lru_cache(maxsize=16)
def _grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of the samples of a mask and of the border around it."""
    rows, columns = (np.arange(-1, n + 1, dtype=float) for n in shape)
    return tuple(np.meshgrid(columns, rows))


def _without_crumbs(polygon: BaseGeometry, min_part_share: float, min_hole_px2: float) -> BaseGeometry:
    parts = list(getattr(polygon, "geoms", [polygon]))
    largest = max(part.area for part in parts)
    parts = [part for part in parts if part.area >= min_part_share * largest]
    parts = [Polygon(p.exterior, [h for h in p.interiors if Polygon(h).area >= min_hole_px2]) for p in parts]
    return parts[0] if len(parts) == 1 else shapely.unary_union(parts)
