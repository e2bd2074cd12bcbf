"""Rasters and footprints to tiles: pixels, labels, splits, and what goes wrong."""

import argparse
import dataclasses
import functools
import json
import math
import random
import shutil
import time
from collections import Counter

from fusiondet.buildings import Building, SensorGeometry
from fusiondet.converters.conversion import Options
from fusiondet.converters.cutting import clip_labels, windows, write_tile
from fusiondet.converters.tiles import Recipe, add_arguments, main, make_tiles
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import read_coco
from fusiondet.io.tile_rasters import read_tile
from tests.support.messages import raises_naming
from tests.support.processes import (
    changes_of,
    contents,
    die_at_change,
    has_lock,
    kill,
    start_program,
    wait_for,
)

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import MultiPolygon, Polygon, box

X0, Y0, GSD = 600_000, 5_750_000, 0.5
GRID = Affine(GSD, 0, X0, 0, -GSD, Y0)


def on_map(polygon_px):
    return shapely.transform(
        polygon_px, lambda xy: np.column_stack([X0 + GSD * xy[:, 0], Y0 - GSD * xy[:, 1]])
    )


def raster(path, values, transform=GRID, crs="EPSG:32631", **options):
    values = np.asarray(values)
    with rasterio.open(
        path, "w", driver="GTiff", width=values.shape[2], height=values.shape[1], count=len(values),
        dtype=values.dtype, transform=transform, crs=crs, **options,
    ) as target:  # fmt: skip
        target.write(values)
    return path


def layer(path, polygons_px, crs="EPSG:32631", to_crs=None, **columns):
    frame = geopandas.GeoDataFrame(columns, geometry=[on_map(p) for p in polygons_px], crs=crs)
    (frame.to_crs(to_crs) if to_crs else frame).to_file(path)
    return path


@pytest.fixture
def town(tmp_path):
    """A 200 x 120 px ortho whose red channel is the column and green the row, and three buildings."""
    rows, columns = np.indices((120, 200))
    rgb = raster(tmp_path / "ortho.tif", np.stack([columns, rows, np.full_like(rows, 7)]).astype("uint8"))
    houses = [
        box(10, 10, 30, 30),
        box(90, 40, 110, 60),
        Polygon(box(150, 20, 190, 60).exterior, [box(165, 35, 175, 45).exterior]),
    ]
    footprints = layer(
        tmp_path / "houses.gpkg", houses, to_crs="EPSG:28992", h=["6.5", "7 m", "9999"], id=["a", "b", "c"]
    )
    return {"rgb": [rgb], "footprints": [footprints], "tile_size": 100, "height_field": "h"}


def make(town, tmp_path, **changes):
    out = tmp_path / "out"
    options = {name: changes.pop(name) for name in vars(Options()) if name in changes}
    report = make_tiles(Recipe(**{**town, **changes}), out, Options(overwrite=True, **options))
    return report, read_coco(out / "annotations" / "train.json")


@pytest.mark.parametrize("cut", [False, True])
def test_tiles_pixels_and_labels_are_where_they_were(town, tmp_path, cut):
    report, dataset = make(town, tmp_path, cut=cut)
    corners = [(x, y) for y in (0, 20) for x in (0, 100)]
    if cut:
        assert [t.file_name for t in dataset.tiles] == [
            f"rgb/ortho_x{x:05d}_y{y:05d}.tif" for x, y in corners
        ]
        assert all(t.window is None for t in dataset.tiles)
    else:
        assert {t.file_name for t in dataset.tiles} == {"rgb/ortho.tif"}
        assert [t.window for t in dataset.tiles] == [(x, y, 100, 100) for x, y in corners]
        assert (dataset.root / "rgb/ortho.tif").resolve() == town["rgb"][0].resolve()
    for tile, (x, y) in zip(dataset.tiles, ((0, 0), (100, 0), (0, 20), (100, 20)), strict=True):
        image = read_tile(dataset, tile)
        assert image.shape == (3, 100, 100) and image[:, 0, 0].tolist() == [x, y, 7]
        assert tile.transform == tuple(GRID * Affine.translation(x, y))[:6]
        assert (tile.crs, tile.gsd_m) == ("EPSG:32631", 0.5)
    first = dataset.tiles[0].buildings
    assert [b.id for b in first] == ["a", "b"]
    assert (
        shapely.hausdorff_distance(first[0].polygon, box(10, 10, 30, 30)) < 0.1
    )  # through EPSG:28992 and back
    assert first[1].polygon.bounds == pytest.approx((90, 40, 100, 60), abs=0.1)  # clipped at the tile's edge
    ring = dataset.tiles[1].buildings[1].polygon
    assert len(ring.interiors) == 1 and ring.area == pytest.approx(1500, abs=5)
    assert report.tiles["written"] == 4 and report.more["footprints"] == Counter(read=3)


def test_heights_and_reasons(town, tmp_path):
    report, dataset = make(town, tmp_path)
    heights = {b.id: b.height_m for t in dataset.tiles for b in t.buildings}
    assert heights == {"a": 6.5, "b": None, "c": None}
    # Of labels: "b" reaches into four tiles that overlap, "c" into two.
    assert report.unknown_heights == Counter({"not a number": 4, "absurd": 2})
    assert report.heights == Counter(known=2, unknown=6)
    building = dataset.tiles[0].buildings[0]
    assert (building.height_source, building.height_datum) == ("h", "unverified")


def test_tile_on_disk_keeps_dtype_nodata_and_names(town, tmp_path):
    values = np.full((3, 120, 200), 40_000, "uint16")
    values[:, :, :10] = 65_535
    raster(tmp_path / "deep.tif", values, nodata=65_535)
    _, dataset = make(town, tmp_path, rgb=[tmp_path / "deep.tif"], cut=True)
    with rasterio.open(dataset.root / dataset.tiles[0].file_name) as tile:
        assert tile.dtypes == ("uint16",) * 3 and tile.nodata == 65_535
        assert tile.descriptions == ("red", "green", "blue") and tile.crs.to_epsg() == 32631
        assert (tile.read()[:, :, :10] == 65_535).all() and (tile.read()[:, :, 10:] == 40_000).all()
    assert np.isnan(read_tile(dataset, dataset.tiles[0])[:, :, :10]).all()


@given(
    st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    st.sampled_from([None, 0.0, -9999.0]),
    st.booleans(),
)
def test_written_tile_reads_back_equal(tmp_path, dtype, nodata, holes):
    image = np.random.default_rng(0).integers(1, 200, (2, 20, 30)).astype("float32")
    if holes:
        image[:, 3:7, 4:9] = np.nan
    write_tile(tmp_path / "t.tif", image, dtype, nodata, ("a", "b"), GRID, "EPSG:32631")
    from fusiondet.io.tile_rasters import read_tile_image

    spec = BandSpec(("a", "b"))
    assert np.array_equal(read_tile_image(tmp_path / "t.tif", None, spec, spec), image, equal_nan=True)


class TestWindows:
    def test_last_one_ends_at_the_edge(self):
        assert windows(200, 120, 100, 0) == [
            (0, 0, 100, 100),
            (100, 0, 100, 100),
            (0, 20, 100, 100),
            (100, 20, 100, 100),
        ]
        assert [w[0] for w in windows(250, 100, 100, 50)] == [0, 50, 100, 150]

    def test_cropped_edges_leave_each_pixel_to_one_window(self):
        assert windows(300, 100, 256, 0, "crop") == [(0, 0, 256, 100), (256, 0, 44, 100)]
        assert windows(512, 10, 256, 0, "crop") == windows(512, 10, 256, 0)
        assert [w[::2] for w in windows(300, 9, 100, 20, "crop")] == [
            (0, 100),
            (80, 100),
            (160, 100),
            (240, 60),
        ]
        assert [w[::2] for w in windows(260, 9, 100, 20, "crop")] == [(0, 100), (80, 100), (160, 100)]

    def test_small_raster_is_one_tile(self):
        assert windows(40, 30, 100, 10) == [(0, 0, 40, 30)]

    @given(st.integers(1, 300), st.integers(1, 300), st.integers(32, 100), st.integers(0, 31))
    def test_everything_is_covered(self, width, height, size, overlap):
        seen = np.zeros((height, width), bool)
        for x, y, w, h in windows(width, height, size, overlap):
            assert x + w <= width and y + h <= height and w == min(size, width) and h == min(size, height)
            seen[y : y + h, x : x + w] = True
        assert seen.all()
        times = np.zeros((height, width), int)
        for x, y, w, h in windows(width, height, size, overlap, "crop"):
            assert w > 0 and h > 0 and x + w <= width and y + h <= height
            times[y : y + h, x : x + w] += 1
        assert times.min() == 1 and (overlap or times.max() == 1)


class TestClipping:
    valid = np.ones((20, 20), bool)

    def clip(self, *polygons, valid=None, min_area_px=4.0, window=(100, 100, 20, 20)):
        counts = Counter()
        labels = [Building(shapely.affinity.translate(p, 100, 100), height_m=5.0) for p in polygons]
        kept = clip_labels(labels, window, self.valid if valid is None else valid, min_area_px, counts)
        return [b.polygon for b in kept], counts

    def test_inside_outside_and_across(self):
        kept, counts = self.clip(box(2, 2, 6, 6), box(-5, 5, 5, 8), box(30, 0, 40, 10), box(20, 0, 25, 5))
        assert [p.bounds for p in kept] == [(2, 2, 6, 6), (0, 5, 5, 8)]
        assert counts == Counter({"kept": 2, "cut by a tile's edge": 1})

    def test_slivers(self):
        kept, counts = self.clip(box(-9, 0, 0.1, 20), box(1, 1, 2, 2))
        assert kept == [] and counts == Counter({"slivers dropped": 2})

    def test_parts_and_holes_survive_clipping(self):
        ring = Polygon(box(10, 5, 30, 15).exterior, [box(12, 7, 28, 13).exterior])
        two = MultiPolygon([box(0, 0, 3, 3), box(5, 0, 8, 3)])
        kept, _ = self.clip(ring, two)
        assert kept[0].area == 10 * 10 - 8 * 6 and kept[1].equals(two)

    def test_a_u_becomes_two_parts_of_one_building(self):
        u_shape = box(5, 10, 15, 30).difference(box(8, 10, 12, 25))
        kept, _ = self.clip(u_shape)
        assert kept[0].geom_type == "MultiPolygon" and kept[0].area == 2 * 3 * 10

    def test_no_data(self):
        valid = self.valid.copy()
        valid[:, 10:] = False
        kept, counts = self.clip(box(2, 2, 8, 8), box(4, 10, 16, 18), box(12, 2, 18, 8), valid=valid)
        assert kept[0].equals(box(2, 2, 8, 8))
        assert kept[1].bounds[2] <= 10 and kept[1].area == pytest.approx(48, abs=9)
        assert counts["dropped on no data"] == 1 and counts["clipped at no data"] == 1

    def test_dark_pixels_that_look_like_no_data_do_not_punch_holes(self):
        valid = self.valid.copy()
        valid[5, 5] = valid[8:10, 8:10] = False
        kept, counts = self.clip(box(2, 2, 18, 18), valid=valid)
        assert kept[0].equals(box(2, 2, 18, 18)) and counts == Counter({"kept": 1, "cut by a tile's edge": 0})


class TestSar:
    @pytest.mark.parametrize("cut", [False, True])
    def test_on_another_grid_is_warped_and_written(self, town, tmp_path, cut):
        power = np.full((1, 200, 300), 100.0, "float32")
        sar = raster(
            tmp_path / "sar.tif", power, GRID * Affine.translation(-10, -10) * Affine.scale(0.8), nodata=0
        )
        report, dataset = make(town, tmp_path, sar=[sar], sar_names=["VV"], sar_scale="linear_power", cut=cut)
        assert dataset.bands == BandSpec(sar=("VV",), sar_scale="db" if cut else "linear_power")
        assert all(t.sar_window is None for t in dataset.tiles)
        image = read_tile(dataset, dataset.tiles[0])
        assert image.shape == (4, 100, 100) and np.allclose(image[3], 20, atol=1e-4)
        assert any("warped onto the optical grid" in note for note in report.notes)

    def test_tile_outside_sar_has_none(self, town, tmp_path):
        sar = raster(tmp_path / "sar.tif", np.ones((1, 120, 100), "float32"))
        _, dataset = make(town, tmp_path, sar=[sar], sar_names=["VV"], sar_scale="db")
        assert [t.sar_file_name is None for t in dataset.tiles] == [False, True, False, True]
        assert np.isnan(read_tile(dataset, dataset.tiles[1])[3]).all()

    def test_alone(self, town, tmp_path):
        sar = raster(tmp_path / "sar.tif", np.ones((2, 120, 200), "float32"))
        _, dataset = make(
            town, tmp_path, rgb=[], sar=[sar], sar_names=["VV", "VH"], sar_scale="amplitude", cut=True
        )
        assert dataset.bands == BandSpec((), ("VV", "VH"), "db")
        assert dataset.tiles[0].file_name.startswith("sar/")
        assert (read_tile(dataset, dataset.tiles[0]) == 0).all()

    def test_stretched_stays_uint8(self, town, tmp_path):
        sar = raster(tmp_path / "sar.tif", np.full((1, 120, 200), 77, "uint8"))
        _, dataset = make(town, tmp_path, sar=[sar], sar_names=["HH"], sar_scale="stretched_uint8")
        assert dataset.bands.sar_scale == "stretched_uint8"
        assert (read_tile(dataset, dataset.tiles[0])[3] == 77).all()

    def test_in_its_own_scale_nothing_is_copied(self, town, tmp_path):
        power = np.stack([np.full((120, 200), 10.0), np.full((120, 200), 1000.0)]).astype("float32")
        sar = raster(tmp_path / "sar.tif", power)
        recipe = {"sar": [sar], "sar_names": ["HH", "VV"], "sar_scale": "linear_power"}
        _, dataset = make(town, tmp_path, **recipe)
        assert dataset.bands == BandSpec(sar=("HH", "VV"), sar_scale="linear_power")
        tile = dataset.tiles[3]
        assert (tile.sar_file_name, tile.sar_window) == ("sar/ortho.tif", (100, 20, 100, 100))
        assert read_tile(dataset, tile)[3:, 0, 0].tolist() == pytest.approx([10, 30])
        mean = read_tile(dataset, tile, dataset.bands.select((), ("HH+VV",)))
        assert np.allclose(mean, 10 * np.log10(505))
        image = read_tile(dataset, tile)
        _, cut = make(town, tmp_path, **recipe, cut=True)
        assert cut.bands.sar_scale == "db" and cut.tiles[3].sar_window is None
        assert np.allclose(read_tile(cut, cut.tiles[3]), image, atol=1e-5)

    def test_mean_power_and_chosen_bands(self, town, tmp_path):
        power = np.stack([np.full((120, 200), v) for v in (1.0, 10.0, 100.0)]).astype("float32")
        sar = raster(tmp_path / "sar.tif", power)
        recipe = {
            "sar": [sar],
            "sar_names": ["VV", "HH+HV"],
            "sar_bands": [3, (1, 2)],
            "sar_scale": "linear_power",
        }
        _, dataset = make(town, tmp_path, **recipe)
        assert dataset.bands.sar == ("VV", "HH+HV")
        image = read_tile(dataset, dataset.tiles[0])
        assert np.allclose(image[3], 20) and np.allclose(image[4], 10 * np.log10(5.5), atol=1e-5)

    def test_complex_and_a_file_for_each_polarisation(self, town, tmp_path):
        for name, value in (("VV", 3 + 4j), ("VH", 1j)):
            raster(tmp_path / f"slc_{name}.tif", np.full((1, 120, 200), value, "complex64"))
        files = [tmp_path / "slc_VH.tif", tmp_path / "slc_VV.tif"]
        _, dataset = make(
            town, tmp_path, sar=files, sar_names=["VV", "VH"], sar_scale="complex", sar_factor=2.0
        )
        assert dataset.bands == BandSpec(sar=("VV", "VH"), sar_scale="db")
        image = read_tile(dataset, dataset.tiles[0])
        assert np.allclose(image[3], 20, atol=1e-5) and np.allclose(image[4], 10 * np.log10(4), atol=1e-5)

    def test_scale_and_names_are_never_guessed(self, town, tmp_path):
        sar = raster(tmp_path / "sar.tif", np.ones((1, 120, 200), "float32"))
        for missing in ({"sar_names": ["HH"]}, {"sar_scale": "db"}):
            with raises_naming("sar", "sar_names", "sar_scale"):
                make(town, tmp_path, sar=[sar], **missing)


class TestHeightRasters:
    def test_zonal_height_wins_and_is_compared(self, town, tmp_path):
        ndsm = np.zeros((1, 60, 100), "float32")
        ndsm[0, 5:15, 5:15] = 8.0
        path = raster(tmp_path / "ndsm.tif", ndsm, GRID * Affine.scale(2))
        report, dataset = make(town, tmp_path, ndsm=[path])
        building = dataset.tiles[0].buildings[0]
        assert (building.height_m, building.height_source) == (8.0, "ndsm")
        assert (building.height_stat, building.height_datum) == ("median", "ground")
        assert report.compared.endswith("n = 1, MAE 1.50 m, bias +1.50 m")
        assert report.unknown_heights == Counter({"zero": 6})
        with rasterio.open(dataset.root / dataset.tiles[0].ndsm_file_name) as tile:
            assert tile.shape == (100, 100) and tile.read(1)[20, 20] == 8.0

    def test_elevations_are_refused_and_nothing_is_left(self, town, tmp_path):
        surface = np.full((1, 120, 200), 52, "float32")
        surface[0, 10:30, 10:30] = 60
        path = raster(tmp_path / "dsm.tif", surface)
        message = r"^dsm.tif: tile ndsm/ortho_x00000_y00000.tif: the ground .* 52.0 m.*with `dsm` and `dtm`"
        with pytest.raises(InputError, match=message):
            make(town, tmp_path, ndsm=[path])
        assert not (tmp_path / "out").exists()
        ground = raster(tmp_path / "dtm.tif", np.full((1, 120, 200), 52, "float32"))
        _, dataset = make(town, tmp_path, dsm=[path], dtm=[ground])
        assert dataset.tiles[0].buildings[0].height_m == 8

    def test_holes_under_footprints_are_told(self, town, tmp_path):
        ndsm = np.zeros((1, 120, 200), "float32")
        ndsm[0, 10:20, 10:30] = np.nan
        report, _ = make(town, tmp_path, ndsm=[raster(tmp_path / "ndsm.tif", ndsm)])
        assert any("ndsm.tif: no height under" in note and "in 1 of" in note for note in report.notes)


class TestTerrainWithoutData:
    def test_the_ground_is_that_around_the_house_and_said(self, town, tmp_path):
        ground_m = np.full((1, 120, 200), 4.0, "float32")
        ground_m[0, 8:32, 8:32] = -9999  # the first house and 1 m around it
        surface_m = np.full((1, 120, 200), 4.0, "float32")
        surface_m[0, 10:30, 10:30], surface_m[0, 40:60, 90:110] = 11.0, 13.0
        dsm, dtm = (
            raster(tmp_path / "dsm.tif", surface_m),
            raster(tmp_path / "dtm.tif", ground_m, nodata=-9999),
        )
        report, dataset = make(town, tmp_path, dsm=[dsm], dtm=[dtm], tile_size=200, height_field=None)
        first, second = dataset.tiles[0].buildings[:2]
        assert (first.height_m, second.height_m) == (7.0, 9.0)
        assert first.height_source != second.height_source == "dsm - dtm"
        assert report.labels["on ground around the outline"] == 1
        assert any("1 of 3 labels" in note and "terrain" in note for note in report.notes)
        with rasterio.open(dataset.root / dataset.tiles[0].ndsm_file_name) as ndsm:
            heights_m = ndsm.read(1)
        assert (heights_m[11:29, 11:29] == 7).all() and np.isnan(heights_m[8, 8])


def test_unknown_heights_are_counted_per_building_too(town, tmp_path):
    report, _ = make(town, tmp_path, tile_size=64, overlap=32)
    assert report.more["footprints of unknown height"] == Counter({"not a number": 1, "absurd": 1})
    assert sum(report.unknown_heights.values()) > 2  # labels, of which overlapping tiles have more
    known, _ = make(town, tmp_path, height_field=None)
    assert "footprints of unknown height" not in known.more


class TestPartsInside:
    @pytest.fixture
    def parts(self, town, tmp_path):
        """The town's houses, 6 m, with two halves of the first one, 8 m and 4 m, in a file of their own."""
        outlines = [box(10, 10, 30, 30), box(90, 40, 110, 60)]
        halves = layer(tmp_path / "halves.gpkg", [box(10, 10, 30, 20), box(10, 20, 30, 30)], h=[8.0, 2.0])
        both = layer(tmp_path / "all.gpkg", outlines, h=[6.0, 6.0])
        return town | {"footprints": [both, halves], "tile_size": 200}

    @pytest.mark.parametrize(
        ("parts_inside", "heights"), [("keep", [6, 6, 8, 2]), ("drop", [6, 6]), ("heights", [5, 6])]
    )
    def test_outlines_of_several_files(self, parts, tmp_path, parts_inside, heights):
        report, dataset = make(parts, tmp_path, parts_inside=parts_inside)
        assert [b.height_m for b in dataset.tiles[0].buildings] == pytest.approx(heights)
        name = "inside another outline" if parts_inside == "keep" else "dropped: inside another outline"
        assert report.more["footprints"]["read"] == 4 and report.more["footprints"][name] == 2
        assert any("2 of 4 outlines lie inside" in note for note in report.notes)


class TestSplits:
    options = Options(split=["train=6", "val=2", "test=2"])

    def recipe(self, tmp_path, overlap, **more):
        rgb = raster(tmp_path / "big.tif", np.ones((3, 640, 640), "uint8"))
        houses = [box(x, y, x + 20, y + 20) for x in range(10, 620, 40) for y in range(10, 620, 40)]
        return Recipe(
            rgb=[rgb], footprints=[layer(tmp_path / "h.gpkg", houses, n=range(len(houses)))], tile_size=64,
            overlap=overlap, **more,
        )  # fmt: skip

    @pytest.mark.parametrize(("overlap", "cut"), [(0, False), (16, False), (16, True)])
    def test_no_ground_is_in_two_splits(self, tmp_path, overlap, cut):
        report = make_tiles(self.recipe(tmp_path, overlap, cut=cut), tmp_path / "out", self.options)
        ground = {}
        for name in ("train", "val", "test"):
            seen = np.zeros((640, 640), bool)
            for tile in read_coco(tmp_path / "out" / "annotations" / f"{name}.json").tiles:
                x, y = round((tile.transform[2] - X0) / GSD), round((Y0 - tile.transform[5]) / GSD)
                seen[y : y + tile.height, x : x + tile.width] = True
            ground[name] = seen
        assert not (ground["train"] & (ground["val"] | ground["test"])).any()
        assert not (ground["val"] & ground["test"]).any()
        assert sum(g.sum() for g in ground.values()) > 0.9 * 640**2  # cut back, not thrown away
        assert report.leaked_m2 == 0 and "ground in two splits: 0.0 m2" in report.lines()
        on_disk = list((tmp_path / "out" / "rgb").iterdir())
        assert report.tiles["written"] == sum(s["tiles"] for s in report.splits.values())
        assert len(on_disk) == (report.tiles["written"] if cut else 1)

    def test_same_seed_same_bytes(self, tmp_path):
        recipe = self.recipe(tmp_path, 16, cut=True)
        for name, workers in (("a", 1), ("b", 2)):
            make_tiles(recipe, tmp_path / name, dataclasses.replace(self.options, workers=workers))
        files = [p.relative_to(tmp_path / "a") for p in sorted((tmp_path / "a").rglob("*")) if p.is_file()]
        assert (
            all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
            and files
        )

    def test_too_few_tiles(self, town, tmp_path):
        with raises_naming("'test'", "1 tiles"):
            make(town, tmp_path, tile_size=200, split=["train=1", "val=1", "test=1"][::2] + ["val=1"])


class TestManyImages:
    def pieces(self, tmp_path, names=("t_img1", "t_img10"), labels=("img10_Geo", "img1_Geo")):
        rgb = [raster(tmp_path / f"{n}.tif", np.ones((3, 40, 40), "uint8"), GRID * Affine.translation(40 * i, 0))
               for i, n in enumerate(names)]  # fmt: skip
        places = {labels[1]: box(5, 5, 15, 15), labels[0]: box(50, 5, 60, 15)}
        files = [layer(tmp_path / f"{n}.geojson", [p], to_crs="EPSG:4326", id=[n]) for n, p in places.items()]
        return {"rgb": rgb, "footprints": files[::-1], "tile_size": 40}

    def test_label_files_are_paired_by_name(self, tmp_path):
        _, dataset = make(self.pieces(tmp_path), tmp_path)
        assert [[b.id for b in t.buildings] for t in dataset.tiles] == [["img1_Geo"], ["img10_Geo"]]

    def test_unrelated_names_are_one_layer_for_all(self, tmp_path):
        report, dataset = make(self.pieces(tmp_path, labels=("north", "south")), tmp_path)
        assert [[b.id for b in t.buildings] for t in dataset.tiles] == [["south"], ["north"]]
        assert "2 footprint files taken as one layer for all images." in report.notes

    def test_equal_names_in_two_folders(self, tmp_path):
        paths = []
        for i, folder in enumerate("ab"):
            (tmp_path / folder).mkdir()
            paths.append(raster(tmp_path / folder / "x.tif", np.full((3, 40, 40), i, "uint8")))
        houses = layer(tmp_path / "h.gpkg", [box(5, 5, 15, 15)], n=[0])
        _, dataset = make({"rgb": paths, "footprints": [houses], "tile_size": 40}, tmp_path)
        assert [read_tile(dataset, t).max() for t in dataset.tiles] == [0, 1]

    def test_every_bad_image_is_named_and_skipped_only_on_request(self, tmp_path):
        recipe = self.pieces(tmp_path)
        (tmp_path / "bad1.tif").write_bytes(b"nothing")
        recipe["rgb"] += [tmp_path / "bad1.tif", tmp_path / "bad2.tif"]
        with pytest.raises(
            InputError, match=r"(?s)2 images cannot be used.*bad1\.tif: not a raster.*bad2\.tif: no such"
        ):
            make(recipe, tmp_path)
        assert not (tmp_path / "out").exists()
        report, dataset = make(recipe, tmp_path, skip_invalid=True)
        assert len(dataset.tiles) == 2 and report.problems == dataset.info["problems"] == {
            "unusable images": 2
        }

    def test_wrong_number_of_sar_rasters(self, tmp_path):
        recipe = self.pieces(tmp_path)
        with raises_naming("3 SAR", "2 images"):
            make(recipe, tmp_path, sar=recipe["rgb"] + recipe["rgb"][:1], sar_names=["HH"], sar_scale="db")


class TestThreeDBag:
    def test_one_building_in_two_files_counts_once(self, town, tmp_path):
        a = layer(tmp_path / "a.gpkg", [box(10, 10, 30, 30), box(90, 40, 110, 60)],
                  identificatie=["P1", "P2"], b3_h_70p=[12.0, 20.0], b3_h_maaiveld=[2.0, 2.0])  # fmt: skip
        b = layer(tmp_path / "b.gpkg", [box(90, 40, 110, 60), box(150, 20, 190, 60)],
                  identificatie=["P2", "P3"], b3_h_70p=[20.0, None], b3_h_maaiveld=[2.0, 2.0])  # fmt: skip
        report, dataset = make(town, tmp_path, footprints=[a, b], height_field=None, tile_size=200)
        (tile,) = dataset.tiles
        assert {x.id: x.height_m for x in tile.buildings} == {"P1": 10.0, "P2": 18.0, "P3": None}
        assert report.more["footprints"] == {"read": 4, "in several files, counted once": 1}

    def test_filters_and_parts(self, town, tmp_path):
        houses = layer(
            tmp_path / "f.gpkg", [box(10, 10, 30, 30), box(30, 10, 40, 30), box(60, 20, 80, 60)],
            identificatie=["P1", "P1", "P2"], b3_h_70p=[12.0, 6.0, 9.0], b3_h_maaiveld=[2.0, 2.0, 2.0],
            oorspronkelijkbouwjaar=[1990, 1990, 2020],
        )  # fmt: skip
        recipe = {"footprints": [houses], "height_field": None, "tile_size": 200, "image_year": 2018}
        report, dataset = make(town, tmp_path, **recipe, join_parts=True)
        (building,) = dataset.tiles[0].buildings
        assert building.id == "P1" and building.polygon.bounds == pytest.approx((10, 10, 40, 30))
        assert building.height_m == pytest.approx((400 * 10 + 200 * 4) / 600)
        assert report.more["footprints"]["dropped: later"] == 1 and report.more["footprints"]["read"] == 3
        with raises_naming("'glass'"):
            make(town, tmp_path, **recipe, filter=["glass=drop"])


class TestBadInput:
    def test_no_data_tiles_are_left_out_and_counted(self, town, tmp_path):
        values = np.ones((3, 120, 200), "uint8")
        values[:, :, 100:] = 0
        raster(tmp_path / "half.tif", values)
        report, dataset = make(town, tmp_path, rgb=[tmp_path / "half.tif"], nodata=0)
        assert len(dataset.tiles) == 2 and report.tiles["left out as no data"] == 2 and dataset.nodata == 0
        raster(tmp_path / "black.tif", values * 0)
        with raises_naming("4 tiles", "4 left out", "no data"):
            make(town, tmp_path, rgb=[tmp_path / "black.tif"], nodata=0)

    def test_nan_and_inf(self, town, tmp_path):
        values = np.ones((1, 120, 200), "float32")
        values[0, :50], values[0, 50:60] = math.nan, math.inf
        raster(tmp_path / "f.tif", values)
        _, dataset = make(town, tmp_path, rgb=[tmp_path / "f.tif"])
        assert np.isnan(read_tile(dataset, dataset.tiles[0])[0]).sum() == 60 * 100
        assert "NaN" not in (dataset.root / "annotations" / "train.json").read_text()

    def test_no_footprints_at_all_gives_negatives(self, town, tmp_path):
        empty = tmp_path / "none.geojson"
        empty.write_text('{"type": "FeatureCollection", "features": []}')
        report, dataset = make(town, tmp_path, footprints=[empty])
        assert len(dataset.tiles) == 4 and not any(t.buildings for t in dataset.tiles)
        assert "every tile is a negative" in report.notes[-1]

    def test_footprints_elsewhere(self, town, tmp_path):
        far = layer(tmp_path / "far.gpkg", [box(9000, 9000, 9010, 9010)], h=["5"])
        with raises_naming("1 footprints", "CRS"):
            make(town, tmp_path, footprints=[far])

    def test_odd_geometry(self, town, tmp_path):
        bowtie = Polygon([(10, 10), (30, 30), (30, 10), (10, 30)])
        solid = shapely.force_3d(on_map(box(40, 40, 60, 60)), 9.0)
        frame = geopandas.GeoDataFrame(
            {"h": [5.0] * 4},
            geometry=[on_map(bowtie), solid, None, Polygon()],
            crs="EPSG:32631",
        )
        frame.to_parquet(tmp_path / "odd.parquet")
        report, dataset = make(town, tmp_path, footprints=[tmp_path / "odd.parquet"])
        assert sorted(round(b.polygon.area) for b in dataset.tiles[0].buildings) == [200, 400]
        assert report.more["footprints"] == Counter({"read": 4, "repaired": 1, "no geometry": 2})

    def test_missing_crs(self, town, tmp_path):
        raster(tmp_path / "plain.tif", np.ones((3, 120, 200), "uint8"), crs=None)
        message = "^[^ ]*plain.tif: the image has no CRS, but the footprints are in EPSG:28992"
        with pytest.raises(InputError, match=message):
            make(town, tmp_path, rgb=[tmp_path / "plain.tif"], tile_size=60)
        nameless = tmp_path / "nameless.parquet"
        geopandas.GeoDataFrame({"h": [5]}, geometry=[on_map(box(5, 5, 15, 15))], crs=None).to_parquet(
            nameless
        )
        with raises_naming("footprints_crs"):
            make(town, tmp_path, footprints=[nameless])
        _, dataset = make(town, tmp_path, footprints=[nameless], footprints_crs="EPSG:32631")
        assert dataset.tiles[0].buildings[0].polygon.equals(box(5, 5, 15, 15))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"rgb": []}, "no image: pass `rgb`"),
            ({"tile_size": 8}, "expected 32 to 8192"),
            ({"overlap": 100}, "less than the tile size"),
            ({"zonal": "mode"}, "unknown statistic"),
            ({"height_field": "hoehe"}, "unknown column 'hoehe'"),
            ({"sensor": SensorGeometry(sar_incidence_deg=120.0)}, "sar_incidence_deg is 120"),
            ({"rgb_bands": [1, 2]}, "say what they are with `rgb_names`"),
            ({"rgb_bands": [1, 2, 4]}, "must be 3 of 1..3"),
            ({"split": ["train"]}, "expected NAME=SHARE"),
            ({"sensor": SensorGeometry(sun_azimuth_deg=math.nan)}, "sun_azimuth_deg is nan"),
            ({"gsd": 0.0}, "`gsd=0.0`: expected 0.01 to 1000"),
            ({"max_nodata": 7.0}, "`max_nodata=7.0`: expected 0 to 1"),
            ({"min_area_m2": -3.0}, "`min_area_m2=-3.0`"),
            ({"block_m": 0.0}, "block_m. is 0.0"),
            ({"nodata": math.nan}, "`nodata=nan`: expected a finite number"),
            ({"footprints_crs": "EPSG:nonsense"}, "`footprints_crs='EPSG:nonsense'` is not a CRS"),
        ],
    )
    def test_options(self, town, tmp_path, changes, message):
        with pytest.raises(InputError, match=message):
            make(town, tmp_path, **changes)
        assert not (tmp_path / "out").exists()

    def test_height_raster_without_crs(self, town, tmp_path):
        raster(tmp_path / "plain.tif", np.ones((1, 120, 200), "float32"), crs=None)
        with raises_naming("plain.tif", "CRS None", "EPSG:32631"):
            make(town, tmp_path, ndsm=[tmp_path / "plain.tif"])

    def test_a_folder_of_something_else_is_not_replaced(self, town, tmp_path):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter.txt").touch()
        with raises_naming("conversion.json"):
            make_tiles(Recipe(**town), tmp_path / "thesis", Options(overwrite=True))
        assert (tmp_path / "thesis" / "chapter.txt").exists()

    def test_output_exists(self, town, tmp_path):
        make_tiles(Recipe(**town), tmp_path / "out")
        before = (tmp_path / "out" / "annotations" / "train.json").stat().st_mtime_ns
        with pytest.raises(InputError, match="already exists.*overwrite"):
            make_tiles(Recipe(**{**town, "overlap": 5}), tmp_path / "out")
        with pytest.raises(InputError):  # a failing run leaves the old result alone
            make(town, tmp_path, height_field="x")
        assert (tmp_path / "out" / "annotations" / "train.json").stat().st_mtime_ns == before
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def run(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    main(parser.parse_args([str(w) for w in words]))


def test_command_line(town, tmp_path, capsys):
    run("--rgb", *town["rgb"], "--footprints", *town["footprints"], "--height-field", "h", "--tile-size", 100,
        "--sun-azimuth", 150, "--sun-elevation", 40, "--out", tmp_path / "o")  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["images: 1 read", "footprints: 3 read"]
    assert "unknown heights: 4 not a number, 2 absurd" in lines
    assert lines[-1] == f"wrote {tmp_path / 'o'}: annotations/train.json"
    dataset = read_coco(tmp_path / "o" / "annotations" / "train.json")
    assert dataset.tiles[0].sensor == SensorGeometry(sun_azimuth_deg=150.0, sun_elevation_deg=40.0)
    assert dataset.info["unknown_heights"] == {"not a number": 4, "absurd": 2}


class TestRealData:
    def test_rio(self, shared_data, tmp_path, capsys):
        """Ten tiles, 119 polygons (six below 2 m2, one on black), three truly empty tiles, GSD in metres."""
        folder = shared_data("spacenet1-rio-aoi0")
        run("--rgb", *sorted((folder / "3band").glob("*.tif")), "--nodata", 0, "--out", tmp_path / "o",
            "--footprints", *sorted((folder / "vectorData/geoJson").glob("*.geojson")))  # fmt: skip
        out = capsys.readouterr().out
        assert (
            "images: 10 read\nfootprints: 119 read\n" in out
            and "tiles: 10 written, 3 without buildings" in out
        )
        dataset = read_coco(tmp_path / "o" / "annotations" / "train.json")
        counts = {t.file_name.split("img")[1].split(".")[0]: len(t.buildings) for t in dataset.tiles}
        assert [counts[str(i)] for i in range(1, 11)] == [0, 0, 0, 13, 10, 5, 6, 31, 24, 23]
        assert all(0.47 < t.gsd_m < 0.49 and t.crs == "EPSG:4326" for t in dataset.tiles)
        black = [np.isnan(read_tile(dataset, t)[0]).mean() for t in dataset.tiles]
        assert 0.68 <= min(black) and max(black) <= 0.90
        assert dataset.nodata == 0

    def test_rio_split_shares_no_ground(self, shared_data, tmp_path, capsys):
        """Neighbouring tiles overlap by four pixels: they are cut back, not lost."""
        folder = shared_data("spacenet1-rio-aoi0")
        run("--rgb", *sorted((folder / "3band").glob("*.tif")), "--nodata", 0, "--out", tmp_path / "o",
            "--split", "train=6", "val=2", "test=2",
            "--footprints", *sorted((folder / "vectorData/geoJson").glob("*.geojson")))  # fmt: skip
        out = capsys.readouterr().out
        assert "10 written" in out and "ground in two splits: 0.0 m2" in out

    def test_atlanta_agrees_with_another_tools_annotations(self, shared_data, tmp_path):
        folder = shared_data("solaris-sn4-atlanta-pan")
        recipe = Recipe(
            rgb=[folder / "sample_geotiff.tif"], footprints=[folder / "geotiff_labels.geojson"], tile_size=900
        )
        _, dataset = make(vars(recipe), tmp_path)
        other = json.loads((folder / "coco_sample_2.json").read_text())["annotations"]
        ours = dataset.tiles[0].buildings
        assert dataset.bands == BandSpec(("pan",)) and len(ours) == len(other) == 43
        assert all(b.height_m is None for b in ours)
        key = sorted(range(43), key=lambda i: ours[i].polygon.bounds)
        reference = sorted(other, key=lambda a: (a["bbox"][0], a["bbox"][1]))
        for index, annotation in zip(key, reference, strict=True):
            x0, y0, x1, y1 = ours[index].polygon.bounds
            assert (x0, y0, x1 - x0, y1 - y0) == pytest.approx(annotation["bbox"], abs=0.05)
            assert ours[index].polygon.area == pytest.approx(annotation["area"], rel=1e-3)
        with rasterio.open(dataset.root / dataset.tiles[0].file_name) as tile:
            assert tile.dtypes == ("uint16",) and tile.nodata == 0

    def test_alexandria_heights_from_two_rasters(self, shared_data, tmp_path):
        folder = shared_data("alexandria-dsm-dtm-buildings")
        report, dataset = make(
            {"rgb": [folder / "dsm.tif"], "rgb_names": ["elevation"], "footprints": [folder / "buildings.geojson"],
             "dsm": [folder / "dsm.tif"], "dtm": [folder / "dtm.tif"], "height_field": "HEIGHT"}, tmp_path,
        )  # fmt: skip
        assert report.compared == "height raster against the height field: n = 82, MAE 0.55 m, bias -0.39 m"
        assert len(dataset.tiles[0].buildings) == 84 and dataset.tiles[0].ndsm_file_name

    def test_alexandria_surface_is_no_height(self, shared_data, tmp_path):
        folder = shared_data("alexandria-dsm-dtm-buildings")
        recipe = {
            "rgb": [folder / "dsm.tif"],
            "rgb_names": ["elevation"],
            "footprints": [folder / "buildings.geojson"],
        }
        with raises_naming("10.6 m", "subtract"):
            make(recipe, tmp_path, ndsm=[folder / "dsm.tif"])
        report, _ = make(recipe, tmp_path, ndsm=[folder / "hag.tif"])
        assert report.notes == []

    def test_spacenet6_tile_a_third_black(self, shared_data, tmp_path):
        folder = shared_data("sn6-psrgb-3721")
        report, dataset = make(
            {"rgb": list(folder.glob("*.tif")), "footprints": list(folder.glob("*.geojson")), "tile_size": 450,
             "height_field": "roof_075median", "height_datum": "ground", "height_stat": "p75"}, tmp_path,
        )  # fmt: skip
        (building,) = [b for t in dataset.tiles for b in t.buildings]
        assert building.height_m == pytest.approx(9.96) and building.id == 15568
        assert building.polygon.area * 0.25 == pytest.approx(246.0, rel=1e-3)
        assert report.splits["train"]["known heights"] == 1

    def test_spacenet6_pair(self, shared_data, tmp_path):
        folder = shared_data("solaris-sn6-preproc")
        empty = tmp_path / "none.geojson"
        empty.write_text('{"type": "FeatureCollection", "features": []}')
        _, dataset = make(
            {"rgb": [folder / "rgb_unmasked.tif"], "sar": [folder / "sar_masked.tif"], "footprints": [empty],
             "sar_names": ["HH", "HV", "VH", "VV"], "sar_scale": "db", "tile_size": 100}, tmp_path,
        )  # fmt: skip
        assert dataset.bands.sar_scale == "db" and len(dataset.tiles) == 4
        with rasterio.open(folder / "sar_masked.tif") as source:
            expected = source.read(window=((100, 200), (100, 200)))
        assert np.array_equal(read_tile(dataset, dataset.tiles[3])[3:], expected, equal_nan=True)


class TestKilled:
    """Tiles that are cut out and dealt out, some of them cut back, killed and begun again by the same command."""

    # Half of a tile overlaps with the next one: tiles that are cut back get the corners of others.
    OPTIONS = {
        "tile_size": 64,
        "overlap": 32,
        "cut": True,
        "split": ["train=60", "val=20", "test=20"],
        "block_m": 40,
    }

    @pytest.fixture
    def wide(self, tmp_path):
        rows, columns = np.indices((192, 256))
        pixels = np.stack([columns, rows, (columns + rows) % 251]).astype("uint8")
        rgb = raster(tmp_path / "ortho.tif", pixels)
        houses = [box(x, y, x + 12, y + 12) for x in range(5, 240, 30) for y in range(5, 180, 30)]
        footprints = layer(tmp_path / "houses.gpkg", houses, h=["6.5"] * len(houses))
        return {"rgb": [rgb], "footprints": [footprints], "height_field": "h"}

    def run(self, wide, out, **options):
        named = {"split", "block_m", "workers"}
        settings = {**self.OPTIONS, **options}
        recipe = Recipe(**wide, **{k: v for k, v in settings.items() if k not in named})
        return make_tiles(recipe, out, Options(**{k: v for k, v in settings.items() if k in named}))

    @pytest.fixture
    def straight(self, wide, tmp_path):
        report = self.run(wide, tmp_path / "straight")
        assert report.tiles["cut back at another split"] > 3 and report.leaked_m2 == 0
        return contents(tmp_path / "straight")

    def test_annotations_and_rasters_fit(self, wide, straight, tmp_path):
        for path in (tmp_path / "straight" / "annotations").iterdir():
            dataset = read_coco(path)
            for tile in dataset.tiles:
                image = read_tile(dataset, tile)
                assert image.shape[1:] == (tile.height, tile.width)
                column, row = ~GRID * (tile.transform[2], tile.transform[5])
                assert image[:2, 0, 0].tolist() == [column, row], "its own pixels, not those of a namesake"
        named = {
            tile.file_name
            for path in (tmp_path / "straight" / "annotations").iterdir()
            for tile in read_coco(path).tiles
        }
        assert named == {name for name in straight if name.startswith("rgb/")}

    @pytest.mark.parametrize("kills", [10, pytest.param(400, marks=pytest.mark.slow)])
    def test_at_every_change_of_the_folder(self, wide, straight, tmp_path, kills):
        out = tmp_path / "out"
        count = changes_of(lambda: self.run(wide, tmp_path / "counted"))
        for number in range(1, count + 1, max(1, count // kills)):
            assert die_at_change(number, lambda: self.run(wide, out)), f"change {number} of {count}"
            self.run(wide, out)
            assert contents(out) == straight, f"killed at change {number} of {count}"
            assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
            shutil.rmtree(out)

    def test_killed_again_and_again(self, wide, straight, tmp_path):
        """Each run gets a little further than the one before."""
        number = 40
        while die_at_change(number, lambda: self.run(wide, tmp_path / "out")):
            number = number * 21 // 20
        assert contents(tmp_path / "out") == straight
        assert [p for p in tmp_path.rglob("*") if ".parts" in str(p)] == []

    @pytest.mark.slow
    @pytest.mark.parametrize("kills", [30])
    def test_with_two_workers_at_any_moment(self, wide, tmp_path, kills):
        words = [
            "tiles",
            "--rgb",
            *wide["rgb"],
            "--footprints",
            *wide["footprints"],
            "--height-field",
            "h",
            "--cut",
        ]
        words += ["--tile-size", 64, "--overlap", 32, "--split", *self.OPTIONS["split"], "--block-m", 40]
        words += ["--workers", 2, "--out", tmp_path / "out"]
        code = "import sys\nfrom fusiondet.converters.prepare import prepare\nprepare(sys.argv[1:])"
        program = start_program(code, *words)
        assert program.wait() == 0, program.communicate()[1]
        straight = contents(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
        rng, killed = random.Random(0), 0
        for _ in range(10 * kills):
            program = start_program(code, *words)
            begun = functools.partial(has_lock, program, tmp_path / ".out.parts")
            wait_for(begun)
            time.sleep(rng.uniform(0, 2))
            if program.poll() is None:
                kill(program)
                killed += 1
            else:
                assert program.returncode == 0, program.communicate()[1]
                program.communicate()
                assert contents(tmp_path / "out") == straight
                shutil.rmtree(tmp_path / "out")
                if killed >= kills:
                    break
        assert killed >= kills
        assert [p for p in tmp_path.rglob("*") if ".parts" in str(p)] == []
