"""Buildings wait on disk, and are painted strip by strip as all at once."""

from fusiondet.buildings import Building
from fusiondet.inference import strips
from fusiondet.inference.strips import HeightStrips
from fusiondet.io.height_rasters import height_raster

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

SHAPE = (90, 60)


def painted(path, buildings, paint, zoom=1):
    grid = (SHAPE[0] * zoom, SHAPE[1] * zoom)
    transform = Affine(0.5, 0, 600_000, 0, -0.5, 5_750_000)
    with height_raster(path, SHAPE, transform, "EPSG:32631", ["instances"], grid_shape=grid) as raster:
        everywhere = (-np.inf, -np.inf, np.inf, np.inf)
        raster.fill({"instances": np.zeros(grid, np.float32)}, (0, 0, grid[1], grid[0]), everywhere)
        paint(raster, buildings)
    with rasterio.open(path) as file:
        return file.read(1)


@pytest.mark.parametrize("zoom", [1, 2])
def test_strips_are_as_the_whole(tmp_path, monkeypatch, zoom):
    monkeypatch.setattr(strips, "STRIP_ROWS", 16)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 80 * zoom, (40, 2))
    buildings = [
        Building(shapely.box(x, y, x + 12 * zoom, y + 25 * zoom), height_m=float(h), score=float(s))
        for (x, y), h, s in zip(corners, rng.uniform(3, 30, 40), rng.uniform(0, 1, 40))
    ]
    buildings.append(Building(shapely.box(0, 0, 60, 60), height_m=None, score=1.0))

    def by_strips(raster, buildings):
        folder = tmp_path / f"waiting-{zoom}"
        folder.mkdir()
        waiting = HeightStrips(folder, raster)
        for building in buildings:
            waiting.add([building])
        assert len(list(folder.iterdir())) >= 6, "a file for each strip"
        waiting.paint()

    known = [b for b in buildings if b.height_m is not None]
    whole = painted(tmp_path / "whole.tif", known, lambda raster, found: raster.paint(found), zoom)
    parts = painted(tmp_path / "parts.tif", buildings, by_strips, zoom)
    np.testing.assert_array_equal(parts, whole)
    assert (parts > 0).any() and (parts == 0).any()
