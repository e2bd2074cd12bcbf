"""Cutting tiles without more work than they need: the same result as by way of the scene."""

from collections import Counter
from pathlib import Path

from fusiondet.buildings import Building
from fusiondet.converters import cutting
from fusiondet.converters.conversion import Options, convert
from fusiondet.converters.cutting import Image, Mosaic, clip_labels, windows
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import read_coco
from fusiondet.io.scene_reader import SceneReader
from fusiondet.io.tile_rasters import read_tile
from fusiondet.io.vectors import Layer
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

GRID = Affine(0.5, 0, 600_000, 0, -0.5, 5_750_000)
NO_HEIGHTS = {"ndsm": None, "dsm": None, "dtm": None}


def raster(path, dtype="uint8", gaps=None, **options) -> Path:
    """96 x 64 px of four bands whose left third is no data, as `gaps` says: by number, mask, alpha or NaN."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 200, (4, 64, 96)).astype(dtype)
    missing = np.zeros((64, 96), bool)
    missing[:, :32] = True
    if gaps in ("number", "user"):
        pixels[:, missing] = 0
    if gaps == "alpha":
        pixels[3] = np.where(missing, 0, 255)
    if gaps == "nan":
        pixels[1, missing] = np.nan
    profile = {"driver": "GTiff", "width": 96, "height": 64, "count": 4, "dtype": dtype, "crs": "EPSG:32631"}
    profile |= {"transform": GRID, "nodata": 0 if gaps == "number" else None, **options}
    profile |= {"photometric": "RGB", "alpha": "YES" if gaps == "alpha" else "NO"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as target:
        target.write(pixels)
        if gaps == "mask":
            target.write_mask(~missing)
    return path


def mosaic(path, **changes) -> Mosaic:
    houses = [Building(shapely.box(*b), id=i) for i, b in enumerate([(10, -8, 14, -4), (30, -30, 40, -20)])]
    for house in houses:
        house.polygon = shapely.affinity.translate(house.polygon, 600_000, 5_750_000)
    options = {"rgb_bands": changes.pop("rgb_bands", None)}
    return Mosaic(
        [Image("a", [path], [], 0, NO_HEIGHTS)], [Layer(houses, "EPSG:32631")], BandSpec(), changes.pop("nodata", None),
        [], options, tile_size=32, **changes,
    )  # fmt: skip


def result(source, out):
    convert(source, out, Options(), {})
    data = read_coco(out / "annotations" / "train.json")
    return data, [read_tile(data, tile) for tile in data.tiles]


CASES = [
    {},
    {"gaps": "number"},
    {"gaps": "mask"},
    {"gaps": "alpha"},
    {"gaps": "user"},
    {"gaps": "number", "dtype": "uint16", "rgb_bands": [3, 1, 4]},
    {"gaps": "nan", "dtype": "float32"},
    {"gaps": "mask", "dtype": "int16", "compress": "lzw"},
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: " ".join(map(str, c.values())) or "plain")
def test_copied_numbers_are_those_of_the_scene(tmp_path, monkeypatch, case):
    bands = {"rgb_bands": case["rgb_bands"]} if "rgb_bands" in case else {}
    path = raster(tmp_path / "a.tif", **{k: v for k, v in case.items() if k != "rgb_bands"})
    options = {**bands, "nodata": 0 if case.get("gaps") == "user" else None}
    reads = []
    read = SceneReader.read
    monkeypatch.setattr(SceneReader, "read", lambda *a: reads.append(a) or read(*a))
    copied, images = result(mosaic(path, cut=True, **options), tmp_path / "copied")
    referring, windows = result(mosaic(path, **options), tmp_path / "referring")
    assert reads == [], "float32 of everything was made for nothing"
    monkeypatch.setattr(cutting._OpenImage, "_is_copied", False)
    scenes, expected = result(mosaic(path, cut=True, **options), tmp_path / "scenes")
    assert len(reads) == 6
    assert len(images) == len(windows) == len(expected) == (4 if case.get("gaps") else 6)
    for image, window, other in zip(images, windows, expected, strict=True):
        assert np.array_equal(image, other, equal_nan=True) and np.array_equal(window, other, equal_nan=True)
    assert copied.tiles == scenes.tiles
    for tile in copied.tiles:
        a, b = (rasterio.open(tmp_path / name / tile.file_name) for name in ("copied", "scenes"))
        with a, b:
            for name in ("dtypes", "descriptions", "transform", "crs"):
                assert getattr(a, name) == getattr(b, name), name
            assert a.nodata == b.nodata or np.isnan([a.nodata, b.nodata]).all()
            assert (a.dataset_mask() == b.dataset_mask()).all()
            # As easy to read as the file it comes from.
            assert bool(a.compression) == bool(case.get("compress"))
    assert [len(t.buildings) for t in referring.tiles] == [len(t.buildings) for t in copied.tiles]


def test_a_tile_without_gaps_is_not_read(tmp_path, monkeypatch):
    source = mosaic(raster(tmp_path / "a.tif"))
    monkeypatch.setattr(SceneReader, "read", None)
    monkeypatch.setattr(SceneReader, "read_file", None)
    convert(source, tmp_path / "out", Options(), {})
    assert len(read_coco(tmp_path / "out" / "annotations" / "train.json").tiles) == 6


class TestClipLabels:
    VALID = np.ones((50, 50), bool)

    def clip(self, *polygons):
        labels = [Building(polygon, id=i) for i, polygon in enumerate(polygons)]
        kept = clip_labels(labels, (100, 100, 50, 50), self.VALID, 2, counts := Counter())
        return {b.id: b.polygon for b in kept}, +counts

    def test_none(self):
        assert self.clip() == ({}, {})

    def test_only_what_shares_ground(self):
        inside, edge = shapely.box(100, 100, 110, 110), shapely.box(90, 90, 100, 100)
        beside, across = shapely.box(150, 100, 160, 150), shapely.box(140, 140, 160, 160)
        kept, counts = self.clip(inside, edge, beside, across, shapely.box(0, 0, 9, 9))
        expected = {0: shapely.box(0, 0, 10, 10), 3: shapely.box(40, 40, 50, 50)}
        assert {i: p.normalize() for i, p in kept.items()} == {i: p.normalize() for i, p in expected.items()}
        assert counts == {"kept": 2, "cut by a tile's edge": 1}

    def test_outlines_that_were_not_cleaned(self):
        bow = shapely.Polygon([(110, 110), (120, 120), (120, 110), (110, 120)])
        tall = shapely.Polygon([(130, 130, 5), (140, 130, 5), (140, 140, 9)])
        parts = shapely.MultiPolygon([shapely.box(101, 101, 105, 105), shapely.box(105, 101, 109, 105)])
        kept, _ = self.clip(bow, tall, parts, shapely.Polygon())
        assert [p.geom_type for p in kept.values()] == ["MultiPolygon", "Polygon", "Polygon"]
        assert kept[0].area == 50 and not kept[1].has_z and kept[2].equals(shapely.box(1, 1, 9, 5))

    def test_labels_keep_their_own_outlines(self):
        building = Building(shapely.box(110, 110, 120, 120))
        clip_labels([building], (100, 100, 50, 50), self.VALID, 0, {"kept": 0, "cut by a tile's edge": 0})
        assert building.polygon.bounds == (110, 110, 120, 120)


@pytest.mark.parametrize("cut", [False, True])
def test_linked_and_cut_tiles_read_the_same_scaled_numbers(tmp_path, cut):
    path = raster(tmp_path / "a.tif", "int16", "number")
    _, plain = result(mosaic(path), tmp_path / "plain")
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = [0.01] * 4, [-1.0] * 4
    data, images = result(mosaic(path, cut=cut), tmp_path / "tagged")
    assert all((tile.window is None) == cut for tile in data.tiles)
    for image, stored in zip(images, plain, strict=True):
        np.testing.assert_allclose(image, stored * 0.01 - 1, rtol=1e-5, atol=1e-6)


def test_more_tiles_than_a_disk_holds_are_refused_before_they_are_listed():
    with raises_naming("tiles", "`tile_size`"):
        windows(10**8, 10**8, 512, 0)
