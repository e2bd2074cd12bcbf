"""SpaceNet 6: labels lie on what is bright, whatever the product, the turn and the split; bad archives are named."""

import argparse
import csv
import dataclasses
import json
import shutil

from fusiondet import cli
from fusiondet.buildings import building_to_map
from fusiondet.converters import spacenet6
from fusiondet.converters.conversion import Options, convert
from fusiondet.converters.spacenet import TileRules
from fusiondet.errors import InputError
from fusiondet.io.coco import read_coco
from fusiondet.io.tile_rasters import read_tile
from tests.support import spacenet_replica as replica
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
import shapely
import yaml
from affine import Affine

# Above the ground and below the buildings, in the first channel of each product.
THRESHOLDS = {"PS-RGB": 120, "PS-RGBNIR": 700, "PAN": 600, "RGBNIR": 700, "none": 65}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("sn6") / "train" / "AOI_11_Rotterdam"
    replica.spacenet6(root)
    return root


@pytest.fixture
def own_archive(tmp_path):
    """A small archive to spoil: four places, two strips. Tile 2 has three buildings."""
    root = tmp_path / "AOI_11_Rotterdam"
    replica.spacenet6(root, columns=4, rows=1)
    return root


def make(root, out, options=None, rules=None, **asked):
    """(dataset of all tiles by split, report) of a conversion."""
    source = spacenet6.source_of(root, rules or TileRules(), **asked)
    report = convert(
        source, out, options or Options(skip_invalid=True, min_side_px=16), {"asked": str(asked)}
    )
    return {split: read_coco(out / "annotations" / f"{split}.json") for split in report.splits}, report


def command(root, out, *words):
    parser = argparse.ArgumentParser()
    spacenet6.add_arguments(parser)
    spacenet6.main(parser.parse_args(["--root", str(root), "--out", str(out), *map(str, words)]))


def on_map(dataset):
    """Building id -> outlines on the map, of all tiles."""
    found = {}
    for tile in dataset.tiles:
        for building in tile.buildings:
            found.setdefault(building.id, []).append(building_to_map(building, tile.transform).polygon)
    return found


class TestLabels:
    @pytest.mark.parametrize(
        ("optical", "labels"),
        [*((product, "geojson") for product in THRESHOLDS), ("PS-RGB", "csv"), ("RGBNIR", "csv")],
    )
    def test_lie_on_what_is_bright(self, archive, tmp_path, optical, labels):
        data, report = make(archive, tmp_path / "out", optical=optical, labels=labels)
        tiles = data["train"].tiles
        assert len(tiles) == 16 and sum(not tile.buildings for tile in tiles) == 2
        assert sum(len(tile.buildings) for tile in tiles) > 40
        threshold = THRESHOLDS[optical]
        for tile in tiles:
            # SAR has speckle, and small pixels at the edges of coarse ones are half covered.
            least = 0.93 if optical == "none" else 0.99
            assert replica.covered(data["train"], tile, threshold) > least
        assert report.labels["dropped on no data"] + report.labels["clipped at no data"] > 0

    @pytest.mark.parametrize(
        "move",
        [
            lambda p: shapely.affinity.translate(p, 1, 0),
            lambda p: shapely.affinity.translate(p, 0, 1),
            lambda p: shapely.affinity.scale(p, -1, 1, origin=(60, 60)),
            lambda p: shapely.affinity.scale(p, 1, -1, origin=(60, 60)),
            lambda p: shapely.affinity.rotate(p, 180, origin=(60, 60)),
        ],
        ids=["right", "down", "left-right", "up-down", "turned"],
    )
    def test_moved_ones_would_be_noticed(self, archive, tmp_path, move):
        data, _ = make(archive, tmp_path / "out")
        tiles = [tile for tile in data["train"].tiles if tile.buildings]
        assert max(replica.covered(data["train"], tile, 120, move=move) for tile in tiles) < 0.97

    def test_refer_to_the_archive_and_copy_nothing(self, archive, tmp_path):
        data, report = make(archive, tmp_path / "out")
        tile = data["train"].tiles[0]
        assert tile.file_name.startswith(f"images/PS-RGB/{replica.PREFIX}_PS-RGB_2019")
        assert tile.sar_file_name.startswith(f"images/SAR-Intensity/{replica.PREFIX}_SAR-Intensity_2019")
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
            "annotations",
            "conversion.json",
            "images",
        ]
        assert report.more["rasters"] == {"optical as it is": 16, "sar as it is": 16}

    def test_cut_writes_the_same_pixels(self, archive, tmp_path):
        referred, _ = make(archive, tmp_path / "a")
        written, report = make(archive, tmp_path / "b", rules=TileRules(cut=True))
        assert report.more["rasters"] == {"optical written": 16, "sar written": 16}
        for a, b in zip(referred["train"].tiles, written["train"].tiles, strict=True):
            np.testing.assert_array_equal(read_tile(referred["train"], a), read_tile(written["train"], b))
            assert a.buildings == b.buildings

    def test_several_processes_make_the_same(self, archive, tmp_path):
        make(archive, tmp_path / "a")
        make(archive, tmp_path / "b", Options(skip_invalid=True, workers=2))
        texts = [(tmp_path / name / "annotations/train.json").read_text() for name in "ab"]
        assert json.loads(texts[0])["annotations"] == json.loads(texts[1])["annotations"]


class TestSar:
    def test_decibels_stay_as_they_are(self, archive, tmp_path):
        data, report = make(archive, tmp_path / "out", sar="VH")
        (tile,) = [
            t for t in data["train"].tiles if t.file_name.endswith(f"{replica.NORTH_STRIP}_tile_2.tif")
        ]
        with rasterio.open(tmp_path / "out" / tile.sar_file_name) as raster:
            np.testing.assert_array_equal(read_tile(data["train"], tile)[3], raster.read(3))
        assert data["train"].bands.sar == ("VH",) and data["train"].bands.sar_scale == "db"
        assert any("is in dB already" in note for note in report.notes)
        assert "is in dB already" in data["train"].info["sar_numbers"]

    def test_linear_power_becomes_decibels_once(self, own_archive, tmp_path):
        before, _ = make(own_archive, tmp_path / "a")
        pixels = [read_tile(before["train"], tile) for tile in before["train"].tiles]
        for path in (own_archive / spacenet6.SAR).iterdir():
            with rasterio.open(path, "r+") as raster:
                db = raster.read()
                raster.write(np.where(db == 0, 0, 10 ** (db / 10)).astype(np.float32))
        after, report = make(own_archive, tmp_path / "b")
        assert any("is linear" in note for note in report.notes)
        assert after["train"].bands == before["train"].bands
        for tile, expected in zip(after["train"].tiles, pixels, strict=True):
            np.testing.assert_allclose(read_tile(after["train"], tile), expected, atol=1e-3)

    def test_a_scale_that_contradicts_the_numbers_is_refused(self, archive):
        with raises_naming("SAR-Intensity", "linear_power"):
            spacenet6.source_of(archive, TileRules(), sar_scale="linear_power")

    def test_mean_power_of_polarisations(self, archive, tmp_path):
        data, report = make(archive, tmp_path / "out", sar="mean")
        assert data["train"].bands.sar == ("HH+HV+VH+VV",) and report.more["rasters"]["sar written"] == 16
        tile = data["train"].tiles[0]
        with rasterio.open(
            archive / tile.file_name.replace("PS-RGB", spacenet6.SAR).removeprefix("images/")
        ) as raster:
            power = 10 ** (raster.read().astype(float) / 10)
        expected = 10 * np.log10(power.mean(axis=0))
        np.testing.assert_allclose(read_tile(data["train"], tile)[3], expected, atol=1e-3)
        # The same without a copy: all polarisations, of which a config takes the mean.
        data, _ = make(archive, tmp_path / "all")
        mean = data["train"].bands.select(sar=["HH+HV+VH+VV"])
        np.testing.assert_allclose(
            read_tile(data["train"], data["train"].tiles[0], mean)[3], expected, atol=1e-3
        )

    def test_on_another_grid_is_warped_and_still_fits(self, tmp_path):
        root = tmp_path / "AOI_11_Rotterdam"
        replica.spacenet6(root, columns=2, rows=1, origin_shift_m=0.2)
        data, report = make(root, tmp_path / "out")
        assert report.more["rasters"] == {"optical as it is": 4, "sar written": 4}
        for tile in data["train"].tiles:
            assert read_tile(data["train"], tile).shape == (7, 120, 120)
            assert replica.covered(data["train"], tile, 65, band=3) > 0.9

    def test_direction_of_look_comes_from_the_list(self, archive, tmp_path):
        data, _ = make(archive, tmp_path / "out")
        for tile in data["train"].tiles:
            flag = replica.FLAGS["_".join(tile.file_name.split("_")[-4:-2])]
            # 0: imaged from the north, so the antenna looks south.
            assert tile.sensor.sar_look_azimuth_deg == {0: 180.0, 1: 0.0}[flag]
            assert tile.sensor.sar_incidence_deg == 35.0
        without, _ = make(archive, tmp_path / "rgb", sar="none")
        assert {t.sensor.sar_look_azimuth_deg for t in without["train"].tiles} == {None}


class TestTurn:
    @pytest.mark.parametrize(("turn", "up_deg"), [("south", 0.0), ("north", 180.0)])
    def test_all_look_one_way_and_stay_where_they_are(self, archive, tmp_path, turn, up_deg):
        plain, _ = make(archive, tmp_path / "a")
        data, report = make(archive, tmp_path / "b", turn=turn)
        assert report.more["rasters"]["optical written"] == 8 == report.more["rasters"]["sar as it is"]
        count = 0
        for tile, turned in zip(plain["train"].tiles, data["train"].tiles, strict=True):
            assert turned.sensor.in_image_axes(turned.transform).sar_look_azimuth_deg == up_deg
            assert replica.covered(data["train"], turned, 120) > 0.99
            pixels, before = read_tile(data["train"], turned), read_tile(plain["train"], tile)
            if turned.file_name.startswith("images/"):
                np.testing.assert_array_equal(pixels, before)
                continue
            count += 1
            np.testing.assert_array_equal(pixels, before[:, ::-1, ::-1])
            for a, b in zip(tile.buildings, turned.buildings, strict=True):
                there, here = (building_to_map(x, t.transform).polygon for x, t in ((a, tile), (b, turned)))
                assert there.symmetric_difference(here).area < 1e-6 * there.area
                assert (a.height_m, a.id) == (b.height_m, b.id)
            # Files and records agree about the place, so predictions from either come back right.
            with rasterio.open(tmp_path / "b" / turned.file_name) as raster:
                assert raster.transform.almost_equals(Affine(*turned.transform), 1e-6)
        assert count == 8

    def test_the_configs_flip_left_and_right_alone(self, archive, tmp_path):
        from fusiondet.data.augmentations import allowed_dihedral

        path = replica.ROOT / "configs" / "spacenet6" / "Base-SpaceNet6.yaml"
        look_range = yaml.safe_load(path.read_text(encoding="utf-8"))["INPUT"]["SAR_LOOK_AZIMUTH_RANGE_DEG"]
        data, _ = make(archive, tmp_path / "out", turn="north")
        for tile in data["train"].tiles:
            sensor = tile.sensor.in_image_axes(tile.transform)
            assert allowed_dihedral(sensor, look_range) == [(False, 0), (True, 0)]

    def test_a_turned_tile_that_gives_way_to_a_split_is_cut_on_the_right_side(self, archive, tmp_path):
        options = Options(skip_invalid=True, split=["train=50", "val=50"], block_m=70, min_side_px=16, seed=1)
        data, report = make(archive, tmp_path / "out", options, turn="south")
        assert report.leaked_m2 == 0 and report.tiles["cut back at another split"] > 3
        cut = [
            t
            for t in data["train"].tiles
            if (t.width, t.height) != (120, 120) and not t.file_name[:6] == "images"
        ]
        assert cut
        for tile in [*data["train"].tiles, *data["val"].tiles]:
            assert replica.covered(data["train"], tile, 120) > 0.98
            with rasterio.open(tmp_path / "out" / tile.file_name) as raster:
                assert tile.window or raster.shape == (tile.height, tile.width)


class TestHeights:
    def test_are_unverified_until_the_ground_is_known(self, archive, tmp_path):
        data, report = make(archive, tmp_path / "out")
        buildings = [b for tile in data["train"].tiles for b in tile.buildings]
        assert {(b.height_source, b.height_stat, b.height_datum) for b in buildings} == {
            ("roof_075mean", "p75 (mean of parts)", "unverified")
        }
        roofs = {roof.id: roof.roof_m for roof in replica.town(4, 2, 50.0)}
        assert all(b.height_m == roofs[b.id] for b in buildings)
        (note,) = [note for note in report.notes if note.startswith("heights: ")]
        assert "roof_075mean of geojson_buildings" in note and "datum unverified" in note
        info = data["train"].info
        assert info["height_source"] == "roof_075mean" and info["height_datum"] == "unverified"
        assert info["heights"] == {"known": len(buildings)}

    def test_of_the_table_and_of_the_other_statistic(self, archive, tmp_path):
        data, _ = make(archive, tmp_path / "out", labels="csv", statistic="median")
        building = data["train"].tiles[0].buildings[0]
        assert building.height_source == "Median_Building_Height" and building.height_m == 4.25
        assert data["train"].info["label_source"] == f"{replica.PREFIX}_Buildings.csv"

    def test_none_asked_for(self, archive, tmp_path):
        data, report = make(archive, tmp_path / "out", statistic="none")
        assert {b.height_m for tile in data["train"].tiles for b in tile.buildings} == {None}
        assert not report.unknown_heights

    def test_ground_of_one_elevation(self, archive, tmp_path):
        data, _ = make(archive, tmp_path / "out", ground=-1.5)
        building = data["train"].tiles[0].buildings[0]
        assert (building.height_m, building.height_datum) == (5.5, "ground")
        assert building.height_source == "roof_075mean - -1.5 m"

    def test_ground_from_a_terrain_model(self, archive, tmp_path):
        # Falls towards the east by 2 m in 100 m; no data in the first column of tiles.
        dtm = tmp_path / "dtm.tif"
        x = np.arange(300) + 0.5
        elevations = np.broadcast_to(-0.02 * x, (1, 200, 300)).astype(np.float32).copy()
        elevations[:, :, :48] = -9999
        grid = Affine(1, 0, replica.LEFT, 0, -1, replica.TOP)
        replica.write_raster(dtm, elevations, grid, "EPSG:32631", nodata=-9999)
        data, report = make(archive, tmp_path / "out", ground=dtm)
        roofs = {roof.id: roof for roof in replica.town(4, 2, 50.0)}
        known = 0
        for tile in data["train"].tiles:
            for building in tile.buildings:
                outline = building_to_map(building, tile.transform).polygon
                if building.height_m is None:
                    assert outline.bounds[0] < replica.LEFT + 48
                    continue
                known += 1
                ground_m = -0.02 * (outline.centroid.x - replica.LEFT)
                assert building.height_m == pytest.approx(roofs[building.id].roof_m - ground_m, abs=0.15)
                assert (
                    building.height_datum == "ground" and building.height_source == "roof_075mean - dtm.tif"
                )
        assert known > 20 and report.unknown_heights["no ground"] == report.heights["unknown"] > 0

    def test_terrain_of_another_place_is_refused(self, archive, tmp_path):
        dtm = tmp_path / "dtm.tif"
        far = Affine(5, 0, replica.LEFT + 1e5, 0, -5, replica.TOP)
        replica.write_raster(dtm, np.ones((1, 9, 9), np.float32), far, "EPSG:32631")
        with raises_naming("ground", "dtm.tif"):
            make(archive, tmp_path / "out", ground=dtm)
        assert not (tmp_path / "out").exists()

    def test_missing_ones_are_unknown_and_counted(self, own_archive, tmp_path):
        table = own_archive / "SummaryData" / f"{replica.PREFIX}_Buildings.csv"
        rows = list(csv.reader(table.read_text().splitlines()))
        first, second, third, *_ = (row for row in rows if row[0] == f"{replica.NORTH_STRIP}_tile_2")
        first[3], second[3], third[3] = "nan", "", "-2.5"
        with table.open("w", newline="") as f:
            csv.writer(f).writerows(rows)
        _, report = make(own_archive, tmp_path / "a", labels="csv")
        assert report.unknown_heights == {"missing": 2, "negative": 1}
        # A roof below sea level is a height above a ground that is lower still.
        _, report = make(own_archive, tmp_path / "b", labels="csv", ground=-5.0)
        assert report.unknown_heights == {"missing": 2}
        (path,) = (own_archive / spacenet6.LABELS).glob(f"*_{replica.NORTH_STRIP}_tile_2.geojson")
        document = json.loads(path.read_text())
        document["features"][0]["properties"]["roof_075mean"] = None
        document["features"][1]["properties"]["roof_075mean"] = float("nan")
        document["features"][2]["properties"]["roof_075mean"] = -2.5
        path.write_text(json.dumps(document))
        data, report = make(own_archive, tmp_path / "c", labels="geojson")
        assert report.unknown_heights == {"missing": 2, "negative": 1}
        assert data["train"].info["unknown_heights"] == {"missing": 2, "negative": 1}
        unknown = [b for t in data["train"].tiles for b in t.buildings if b.height_m is None]
        assert {(b.height_source, b.height_datum) for b in unknown} == {(None, None)}
        data, report = make(own_archive, tmp_path / "d", labels="geojson", ground=-5.0)
        assert report.unknown_heights == {"missing": 2}
        assert 2.5 in [b.height_m for t in data["train"].tiles for b in t.buildings]


class TestSplits:
    def test_blocks_share_no_ground(self, tmp_path, capsys):
        root = tmp_path / "AOI_11_Rotterdam"
        replica.spacenet6(root, columns=6, rows=1, step_m=75)
        command(root, tmp_path / "out", "--block-m", 75)
        text = capsys.readouterr().out
        assert "ground in two splits: 0.0 m2" in text and "tiles lie on each place" in text
        splits = [read_coco(tmp_path / "out/annotations" / f"{name}.json") for name in ("train", "val")]
        ids = [{b.id for tile in split.tiles for b in tile.buildings} for split in splits]
        assert ids[0] and ids[1] and not ids[0] & ids[1]
        before = (tmp_path / "out/annotations/train.json").stat().st_mtime_ns
        command(root, tmp_path / "out", "--block-m", 75)
        assert "is up to date" in capsys.readouterr().out
        assert (tmp_path / "out/annotations/train.json").stat().st_mtime_ns == before

    def test_of_the_paper_goes_by_longitude_and_says_what_leaks(self, archive, tmp_path, monkeypatch):
        monkeypatch.setattr(spacenet6, "PAPER_CROP_PX", 100)
        data, report = make(archive, tmp_path / "out", paper_split=True)
        assert {name: counts["tiles"] for name, counts in report.splits.items()} == {"train": 12, "val": 4}
        tiles = [*data["train"].tiles, *data["val"].tiles]
        assert {t.window for t in tiles} == {(10, 10, 100, 100)} == {t.sar_window for t in tiles}
        assert max(t.transform[2] for t in data["train"].tiles) < min(
            t.transform[2] for t in data["val"].tiles
        )
        for name in data:
            assert all(replica.covered(data[name], tile, 120) > 0.99 for tile in data[name].tiles)
        assert any("`paper_split`" in note for note in report.notes)
        assert report.leaked_m2 == pytest.approx(self._shared(data), rel=1e-3) and report.leaked_m2 > 0

    def _shared(self, data):
        def grounds(split):
            boxes = [(Affine(*t.transform), t) for t in split.tiles]
            return [shapely.box(*(a * (0, t.height)), *(a * (t.width, 0))) for a, t in boxes]

        return sum(a.intersection(b).area for a in grounds(data["train"]) for b in grounds(data["val"]))

    def test_published_numbers_of_tiles(self):
        assert round(3401 * spacenet6.PAPER_TEST_SHARE) == 747

    def test_a_prescribed_split_takes_no_other(self, archive, tmp_path):
        with pytest.raises(InputError, match="prescribe their splits"):
            command(archive, tmp_path / "out", "--paper-split", "--split", "train=1")


class TestBadArchives:
    @pytest.mark.parametrize("given", ["..", "../..", "PAN", "SummaryData"])
    def test_root_too_high_or_too_low(self, archive, given):
        with pytest.raises(InputError) as error:
            spacenet6.source_of((archive / given).resolve(), TileRules())
        assert f"Did you mean {archive.resolve()}?" in str(error.value)

    def test_root_that_is_none(self, tmp_path):
        with pytest.raises(InputError, match="no such folder"):
            spacenet6.source_of(tmp_path / "nothing", TileRules())
        with pytest.raises(InputError, match="holds none of the folders") as error:
            spacenet6.source_of(tmp_path, TileRules())
        assert "Did you mean" not in str(error.value)

    def test_product_that_is_not_there(self, own_archive):
        shutil.rmtree(own_archive / "PAN")
        with raises_naming("PAN", "PS-RGB, PS-RGBNIR, RGBNIR, SAR"):
            spacenet6.source_of(own_archive, TileRules(), optical="PAN")
        shutil.rmtree(own_archive / spacenet6.SAR)
        with raises_naming('sar="none"'):
            spacenet6.source_of(own_archive, TileRules())
        shutil.rmtree(own_archive / spacenet6.LABELS)
        shutil.rmtree(own_archive / "SummaryData")
        with pytest.raises(InputError, match="has no labels"):
            spacenet6.source_of(own_archive, TileRules(), sar="none")

    def test_files_that_are_missing_are_named(self, own_archive, tmp_path):
        one, two = (f"{replica.NORTH_STRIP}_tile_{n}" for n in (1, 2))
        three = f"{replica.SOUTH_STRIP}_tile_1"
        (own_archive / "PS-RGB" / f"{replica.PREFIX}_PS-RGB_{one}.tif").unlink()
        (own_archive / spacenet6.LABELS / f"{replica.PREFIX}_Buildings_{two}.geojson").unlink()
        (own_archive / spacenet6.SAR / f"{replica.PREFIX}_SAR-Intensity_{three}.tif").unlink()
        lone = (
            own_archive
            / spacenet6.LABELS
            / f"{replica.PREFIX}_Buildings_{replica.SOUTH_STRIP}_tile_77.geojson"
        )
        replica.write_features(lone, "EPSG:32631", [])
        # What macOS leaves behind is no tile.
        (own_archive / "PS-RGB" / f"._{replica.PREFIX}_PS-RGB_{one}.tif").write_bytes(b"\0")
        data, report = make(own_archive, tmp_path / "out")
        assert report.problems == {
            "missing products": 2,
            "images without labels": 1,
            "labels without an image": 1,
        }
        named = report.named
        assert f"tile {one} has no PS-RGB; left out." in named["missing products"][0]
        assert f"tile {three} has no SAR-Intensity" in named["missing products"][1]
        assert f"tile {two} has no labels" in named["images without labels"][0]
        assert "tile_77 has no PS-RGB" in named["labels without an image"][0]
        assert len(data["train"].tiles) == 6
        (without,) = [t for t in data["train"].tiles if t.sar_file_name is None]
        assert np.isnan(read_tile(data["train"], without)[3:]).all()
        with raises_naming("PS-RGB"):
            make(own_archive, tmp_path / "strict", Options(strict=True))
        assert not (tmp_path / "strict").exists()

    def test_damaged_rows_of_the_table_are_named(self, own_archive, tmp_path):
        table = own_archive / "SummaryData" / f"{replica.PREFIX}_Buildings.csv"
        lines = table.read_text().splitlines()
        lines[1] = lines[1][: lines[1].index("POLYGON") + 40]  # in the middle of a number, no closing quote
        table.write_text("\n".join(lines) + "\n")
        whole, _ = make(own_archive, tmp_path / "a", labels="geojson")
        data, report = make(own_archive, tmp_path / "b", labels="csv")
        assert report.problems == {"rows with a damaged outline": 1}
        assert (
            f"{table}, line 2 (image {replica.NORTH_STRIP}_tile_1)"
            in report.named["rows with a damaged outline"][0]
        )
        counts = [sum(len(t.buildings) for t in d["train"].tiles) for d in (whole, data)]
        assert counts[1] == counts[0] - 1

    def test_one_id_for_two_buildings(self, own_archive, tmp_path):
        table = own_archive / "SummaryData" / f"{replica.PREFIX}_Buildings.csv"
        rows = list(csv.reader(table.read_text().splitlines()))
        first, second, *_ = (row for row in rows if row[0] == f"{replica.NORTH_STRIP}_tile_2")
        second[1] = first[1]
        with table.open("w", newline="") as f:
            csv.writer(f).writerows(rows)
        _, report = make(own_archive, tmp_path / "a", labels="csv")
        assert report.problems == {"identifiers of several buildings": 1}
        (path,) = (own_archive / spacenet6.LABELS).glob(f"*_{replica.NORTH_STRIP}_tile_2.geojson")
        document = json.loads(path.read_text())
        document["features"][1]["properties"]["Building_ID"] = document["features"][0]["properties"][
            "Building_ID"
        ]
        path.write_text(json.dumps(document))
        _, report = make(own_archive, tmp_path / "b", labels="geojson")
        assert report.problems == {"label files with one identifier for several buildings": 1}
        (message,) = report.named["label files with one identifier for several buildings"]
        assert path.name in message and "(2)" in message and "join_parts" not in message

    def test_labels_of_another_place(self, own_archive, tmp_path):
        (path,) = (own_archive / spacenet6.LABELS).glob(f"*_{replica.NORTH_STRIP}_tile_1.geojson")
        far = shapely.box(replica.LEFT + 5000, replica.TOP, replica.LEFT + 5010, replica.TOP + 10)
        replica.write_features(path, "EPSG:32631", [(far, {"roof_075mean": 3.0, "Building_ID": 1})])
        _, report = make(own_archive, tmp_path / "out")
        assert report.problems == {"unusable images": 1} and report.tiles["unusable"] == 1
        assert "none of the 1 buildings" in report.named["unusable images"][0]

    def test_a_damaged_sar_file_does_not_hide_the_scale_of_the_others(self, own_archive, tmp_path):
        path = sorted((own_archive / spacenet6.SAR).iterdir())[0]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        _, report = make(own_archive, tmp_path / "out")
        assert report.problems == {"unusable images": 1} and path.name in report.named["unusable images"][0]
        for other in (own_archive / spacenet6.SAR).iterdir():
            other.write_bytes(b"nothing")
        with pytest.raises(InputError, match="all no data or damaged"):
            make(own_archive, tmp_path / "b")

    def test_labels_without_heights(self, own_archive, tmp_path):
        (path,) = (own_archive / spacenet6.LABELS).glob(f"*_{replica.NORTH_STRIP}_tile_1.geojson")
        document = json.loads(path.read_text())
        for feature in document["features"]:
            del feature["properties"]["roof_075mean"]
        path.write_text(json.dumps(document))
        with raises_naming("'roof_075mean'"):
            make(own_archive, tmp_path / "out", Options())

    @pytest.mark.parametrize("line", ["20190822070610_20190822070846 2", "20190822070610 0", "a b c"])
    def test_list_of_directions_that_is_none(self, own_archive, line):
        path = own_archive / "SummaryData" / spacenet6.ORIENTATIONS
        path.write_text(f"{replica.SOUTH_STRIP} 1\n\n{line}\n")
        with pytest.raises(InputError, match="line 3: expected"):
            spacenet6.source_of(own_archive, TileRules())

    def test_strip_that_is_not_listed(self, own_archive, tmp_path):
        (own_archive / "SummaryData" / spacenet6.ORIENTATIONS).write_text(f"{replica.SOUTH_STRIP} 1\n")
        data, report = make(own_archive, tmp_path / "out")
        assert report.problems == {"tiles without a look direction": 4}
        assert [t.sensor.sar_look_azimuth_deg for t in data["train"].tiles].count(None) == 4

    def test_damaged_raster_is_left_out_and_named(self, own_archive, tmp_path):
        (path,) = (own_archive / "PS-RGB").glob(f"*_{replica.NORTH_STRIP}_tile_1.tif")
        path.write_bytes(path.read_bytes()[:100])
        data, report = make(own_archive, tmp_path / "out")
        assert len(data["train"].tiles) == 7 and path.name in report.named["unusable images"][0]

    def test_blue_before_red(self, own_archive):
        for path in (own_archive / "PS-RGBNIR").iterdir():
            with rasterio.open(path, "r+") as raster:
                image = raster.read()
                # As in a real picture, bands are not copies of each other.
                image[0, ::3] += 150
                image[2, ::5] += 170
                raster.write(image[[2, 1, 0, 3]])
            with rasterio.open(
                own_archive / "PS-RGB" / path.name.replace("PS-RGBNIR", "PS-RGB"), "r+"
            ) as raster:
                raster.write((image[:3] / 6).astype(np.uint8))
        with raises_naming("blue, green, red", "PS-RGB"):
            spacenet6.source_of(own_archive, TileRules(), optical="PS-RGBNIR")

    def test_strict_ends_the_process_with_2(self, own_archive, tmp_path, monkeypatch, capsys, load_tool):
        (own_archive / "PS-RGB" / f"{replica.PREFIX}_PS-RGB_{replica.NORTH_STRIP}_tile_1.tif").unlink()
        words = ["spacenet6", "--root", str(own_archive), "--out", str(tmp_path / "out"), "--strict"]
        monkeypatch.setattr("sys.argv", ["prepare_dataset.py", *words])
        with pytest.raises(SystemExit) as end:
            cli.run(load_tool("prepare_dataset").main)
        assert end.value.code == 2 and "tile_1 has no PS-RGB" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "words", [["--ground", "nowhere.tif"], ["--ground", "4000"], ["--max-nodata", "2.0"]]
    )
    def test_options_without_sense(self, archive, tmp_path, words):
        with raises_naming(words[0].removeprefix("--").replace("-", "_"), words[1]):
            command(archive, tmp_path / "out", *words)

    def test_nothing_left(self, archive):
        with pytest.raises(InputError, match="nothing is left"):
            spacenet6.source_of(archive, TileRules(), optical="none", sar="none")


class TestRealTile:
    def archive(self, shared_data, tmp_path):
        folder = shared_data("sn6-psrgb-3721")
        root = tmp_path / "AOI_11_Rotterdam"
        name = f"{replica.PREFIX}_PS-RGB_{replica.NORTH_STRIP}_tile_3721.tif"
        for part in ("PS-RGB", spacenet6.LABELS, "SummaryData"):
            (root / part).mkdir(parents=True)
        shutil.copy(folder / name, root / "PS-RGB" / name)
        return folder, root

    def test_one_real_label(self, shared_data, tmp_path):
        folder, root = self.archive(shared_data, tmp_path)
        label = (
            root / spacenet6.LABELS / f"{replica.PREFIX}_Buildings_{replica.NORTH_STRIP}_tile_3721.geojson"
        )
        shutil.copy(folder / "derived_tile_3721_one_building.geojson", label)
        data, report = make(root, tmp_path / "out", sar="none")
        (tile,) = data["train"].tiles
        (building,) = tile.buildings
        assert (tile.width, tile.height, building.id) == (900, 900, 15568)
        assert building.height_m == pytest.approx(9.962, abs=1e-3) and building.height_datum == "unverified"
        # The table's first vertex, which is in pixels of 0.5 m, is a corner of the outline.
        corner = shapely.Point(299.6396801332012, 349.3765436094254)
        assert min(corner.distance(shapely.Point(p)) for p in building.polygon.exterior.coords) < 0.01
        # Of a whole building, in the middle of the tile, the file says partialDec 1: not read.
        assert report.labels["at a tile's edge"] == 0

    def test_table_whose_outlines_were_cut_off(self, shared_data, tmp_path):
        folder, root = self.archive(shared_data, tmp_path)
        with open(folder / "derived_tile_3721_heights_from_notebook.csv", newline="") as f:
            rows = list(csv.DictReader(f))
        with open(root / "SummaryData" / f"{replica.PREFIX}_Buildings.csv", "w", newline="") as f:
            columns = ["ImageId", "TileBuildingId", "PolygonWKT_Pix", "Mean_Building_Height"]
            writer = csv.DictWriter(f, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows({**row, "PolygonWKT_Pix": row["PolygonWKT_Pix_truncated"]} for row in rows)
        data, report = make(root, tmp_path / "out", sar="none")
        assert report.problems == {"rows with a damaged outline": len(rows)} and len(rows) == 58
        assert not data["train"].tiles[0].buildings

    def test_real_sar_counts_are_told_to_be_decibels(self, shared_data, tmp_path):
        folder = shared_data("solaris-sn6-preproc")
        powers = []
        for pol in ("hh", "hv", "vh", "vv"):
            with rasterio.open(folder / f"sar_{pol}.tif") as raster:
                z = raster.read(1)
            power = np.abs(z.astype(np.complex128)) ** 2
            powers.append((power[:-1, :-1] + power[1:, :-1] + power[:-1, 1:] + power[1:, 1:]) / 4)
        path = tmp_path / "a.tif"
        image = (10 * np.log10(powers)).astype(np.float32)
        replica.write_raster(path, image, Affine(0.5, 0, 0, 0, -0.5, 0), "EPSG:32631")
        # Counts of 16 bits end at 93.3 dB; the published product, a mean of four, at 92.88.
        assert 89 < image.max() < 93.3
        assert spacenet6.settle_sar_scale([path], "auto")[0] == "db"
        assert spacenet6.settle_sar_scale([path], "auto")[1].startswith("SAR-Intensity is in dB already")


def test_source_can_be_sent_to_another_process(archive):
    import pickle

    source = spacenet6.source_of(archive, TileRules())
    assert dataclasses.asdict(pickle.loads(pickle.dumps(source))) == dataclasses.asdict(source)
