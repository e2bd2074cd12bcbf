"""Regular outlines of a scene that comes in row by row: blocks of houses are set straight as in one piece."""

from fusiondet.buildings import Building, pixel_to_map
from fusiondet.inference.outlines import Regularizer, buildings_to_map
from fusiondet.inference.windows import scene_windows
from fusiondet.polygons.regularize import regularize

import numpy as np
import pytest
import shapely
from shapely.affinity import rotate

PIXEL_M = (0.5, 0.5)


def houses(rng, rows=6, columns=9):
    """Rows of houses, wall to wall, with outlines a little off, in pixels."""
    found = []
    for row in range(rows):
        for column in range(columns):
            x, y = 10 + 40 * column, 15 + 90 * row
            ring = np.array(
                [(x, y), (x + 20, y), (x + 40, y), (x + 40, y + 30), (x + 20, y + 30), (x, y + 30)], float
            )
            ring[[1, 4]] += rng.normal(0, 0.6, (2, 2))
            found.append(Building(shapely.Polygon(ring)))
    return found


def given(windows, buildings, regularizer):
    """What comes out when each building comes with the last window that sees it; and after which window."""
    out = []
    for index, (x0, y0, w, h) in enumerate(windows):
        box = shapely.box(x0, y0, x0 + w, y0 + h)
        later = [shapely.box(x, y, x + a, y + b) for x, y, a, b in windows[index + 1 :]]
        mine = [
            b for b in buildings
            if b.polygon.intersects(box) and not any(b.polygon.intersects(other) for other in later)
        ]  # fmt: skip
        out += [(index, b) for b in regularizer.add(index, mine)]
    return out + [(len(windows), b) for b in regularizer.finish([])]


@pytest.mark.parametrize(("side", "overlap"), [(128, 48), (200, 64), (1000, 0)])
def test_the_result_is_that_of_the_whole_layer(side, overlap):
    buildings = houses(np.random.default_rng(0))
    windows = [window for window, _ in scene_windows(400, 580, side, overlap)]
    found = given(windows, buildings, Regularizer(windows, PIXEL_M, tolerance_m=1.0))
    whole = regularize([shapely.transform(b.polygon, lambda xy: xy * 0.5) for b in buildings], 1.0)
    by_place = {tuple(np.round(p.centroid.coords[0])): p for p in whole}
    assert len(found) == len(buildings) == len(by_place)
    for _, building in found:
        metres = shapely.transform(building.polygon, lambda xy: xy * 0.5)
        same = by_place[tuple(np.round(metres.centroid.coords[0]))]
        assert metres.symmetric_difference(same).area < 1e-6
        assert len(building.polygon.exterior.coords) <= 7
    raw = sum(b.polygon.area for b in buildings)
    together = shapely.union_all([b.polygon for _, b in found])
    assert together.area == pytest.approx(raw, rel=0.02)


def test_buildings_are_not_held_to_the_end():
    buildings = houses(np.random.default_rng(1), rows=30)
    windows = [window for window, _ in scene_windows(400, 2760, 128, 48)]
    regularizer = Regularizer(windows, PIXEL_M, tolerance_m=1.0)
    found = given(windows, buildings, regularizer)
    waited = [index for index, _ in found]
    assert waited.count(len(windows)) < len(buildings) / 5


def test_pixels_that_are_not_square_are_square_on_the_ground():
    house = rotate(shapely.box(0, 0, 40, 20), 30, origin=(0, 0))  # metres
    stretched = shapely.transform(house, lambda xy: xy / (0.5, 1.0) + 100)
    regularizer = Regularizer([(0, 0, 500, 500)], (0.5, 1.0), tolerance_m=0.5)
    regularizer.add(0, [Building(stretched)])
    (found,) = regularizer.finish([])
    metres = shapely.transform(found.polygon, lambda xy: (xy - 100) * (0.5, 1.0))
    assert metres.symmetric_difference(house).area < 0.01


def test_many_buildings_on_the_map_are_each_of_them_on_the_map():
    buildings = [
        *houses(np.random.default_rng(2)),
        Building(shapely.box(0, 0, 9, 9).difference(shapely.box(3, 3, 6, 6))),
    ]
    transform = (0.4, 0.3, 6e5, 0.3, -0.4, 5.7e6)
    for moved, building in zip(buildings_to_map(buildings, transform), buildings, strict=True):
        assert moved.polygon.equals_exact(pixel_to_map(building.polygon, transform), 1e-6)
    assert buildings_to_map([], transform) == []
