"""Outlines as points along their edges, and how well arrays fit each other when one is shifted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import shapely
from shapely.geometry.base import BaseGeometry

_STEP_PX = 0.5
# Of larger tiles the middle is compared.
_MAX_SIDE_PX = 512


@dataclass(frozen=True)
class EdgePoints:
    """Points along the edges of outlines, all in pixels.

    Attributes:
        xy: (N, 2). outward: (N, 2) unit normals, away from the building.
        length: (N,) of edge that each point stands for. building: (N,) index of its outline.
    """

    xy: np.ndarray
    outward: np.ndarray
    length: np.ndarray
    building: np.ndarray


def edge_points(polygons_px: Sequence[BaseGeometry], width: int, height: int) -> EdgePoints:
    """Points every half pixel; edges along the border of the image, where outlines were cut, are left out."""
    starts, ends, owner = [], [], []
    for i, polygon in enumerate(polygons_px):
        for part in shapely.get_parts(shapely.normalize(polygon)):
            for ring in (part.exterior, *part.interiors):
                xy = np.asarray(ring.coords)
                # So that outward is on the same side of all edges: of holes, too, it is away from the walls.
                if ring.is_ccw != (ring is part.exterior or ring.equals(part.exterior)):
                    xy = xy[::-1]
                starts.append(xy[:-1])
                ends.append(xy[1:])
                owner.append(np.full(len(xy) - 1, i))
    if not starts:
        return EdgePoints(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), np.zeros(0, int))
    start, end, owner = (np.concatenate(v) for v in (starts, ends, owner))
    length = np.hypot(*(end - start).T)
    start, end, owner, length = (v[length > 0] for v in (start, end, owner, length))
    n = np.maximum((length / _STEP_PX).astype(int), 1)
    edge = np.repeat(np.arange(len(n)), n)
    along = (np.arange(len(edge)) - np.repeat(np.cumsum(n) - n, n) + 0.5) / n[edge]
    xy = start[edge] + along[:, None] * (end - start)[edge]
    tangent = (end - start)[edge] / length[edge, None]
    outward = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    inside = (xy > 1).all(axis=1) & (xy < np.array([width, height]) - 1).all(axis=1)
    return EdgePoints(xy[inside], outward[inside], (length / n)[edge][inside], owner[edge][inside])


def splat(xy: np.ndarray, values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) sum of `values` (N,), each shared out among the four pixels whose centres surround its point."""
    corner = np.floor(xy - 0.5).astype(int)
    part = xy - 0.5 - corner
    total = np.zeros(height * width, values.dtype)
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = corner[:, 0] + dx, corner[:, 1] + dy
            weight = np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1])
            inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
            np.add.at(total, y[inside] * width + x[inside], (weight * values)[inside])
    return total.reshape(height, width)


def correlation(image: np.ndarray, templates: Sequence[np.ndarray], reach_px: int) -> np.ndarray:
    """(T, 2 reach + 1, 2 reach + 1) real parts of how each template fits `image` when shifted by (dy, dx).

    Shifts go from -reach to +reach; the middle is no shift. All arrays are (H, W), complex or real, 0 = no evidence.
    """
    shape = [scipy.fft.next_fast_len(n + reach_px) for n in image.shape]
    spectrum = scipy.fft.fft2(np.asarray(image, np.complex64), shape)
    steps = np.arange(-reach_px, reach_px + 1)
    rows, columns = np.ix_(steps % shape[0], steps % shape[1])
    found = []
    for template in templates:
        other = scipy.fft.fft2(np.asarray(template, np.complex64), shape)
        found.append(scipy.fft.ifft2(spectrum * np.conj(other)).real[rows, columns])
    return np.array(found)


def peak_px(surface: np.ndarray) -> tuple[float, float]:
    """(right, down) shift in pixels at which a surface of `correlation` is highest."""
    row, column = np.unravel_index(int(surface.argmax()), surface.shape)
    reach = surface.shape[0] // 2
    return float(column - reach), float(row - reach)


def middle(array: np.ndarray) -> np.ndarray:
    """The middle of an (H, W) array, at most 512 pixels a side: turning and mirroring keeps it in place."""
    top, left = (max(0, (n - _MAX_SIDE_PX) // 2) for n in array.shape)
    return array[top : array.shape[0] - top, left : array.shape[1] - left]
