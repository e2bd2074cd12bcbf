"""SpaceNet 1 to 4: labels from a file per tile or from the competition's table lie on what is bright; both agree."""

import argparse
import csv
import json
import shutil

from fusiondet.buildings import pixel_to_map
from fusiondet.converters import spacenet
from fusiondet.converters.conversion import Options, convert
from fusiondet.converters.spacenet import TileRules, match_names, source_of
from fusiondet.errors import InputError
from fusiondet.io.coco import read_coco
from fusiondet.io.tile_rasters import read_tile
from tests.support import spacenet_replica as replica
from tests.support.messages import raises_naming

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer


@pytest.fixture
def rio(tmp_path):
    root = tmp_path / "rio"
    replica.spacenet1(root)
    return root


def make(root, out, images="3band", labels=True, table=True, options=None, **asked):
    source = source_of(
        [str(root / images)],
        [str(root / "geoJson" / "*.geojson")] if labels else [],
        root / "table.csv" if table else None,
        asked.pop("rules", TileRules()),
        **asked,
    )
    report = convert(source, out, options or Options(skip_invalid=True), {"test": 1})
    return read_coco(out / "annotations" / "train.json"), report


def tile_of(data, number):
    (tile,) = [tile for tile in data.tiles if f"img{number}." in tile.file_name]
    return tile


class TestLabels:
    @pytest.mark.parametrize(("labels", "table"), [(True, True), (True, False), (False, True)])
    def test_lie_on_what_is_bright(self, rio, tmp_path, labels, table):
        data, report = make(rio, tmp_path / "out", labels=labels, table=table)
        assert len(data.tiles) == 4 and not tile_of(data, 1).buildings
        assert len(tile_of(data, 2).buildings) == 1
        # A building in two parts is one feature, or two rows.
        assert len(tile_of(data, 3).buildings) == (2 if labels else 3)
        for tile in data.tiles:
            assert replica.covered(data, tile, 120) > 0.99
            assert tile.gsd_m == pytest.approx(0.477, abs=0.01)
            assert all(b.height_m is None and b.polygon.has_z is False for b in tile.buildings)
        assert not report.problems and report.tiles["without buildings"] == 1
        assert any("every height is unknown" in note for note in report.notes)

    def test_moved_ones_would_be_noticed(self, rio, tmp_path):
        data, _ = make(rio, tmp_path / "out")
        tile = tile_of(data, 3)
        for move in (
            lambda p: shapely.affinity.translate(p, 1, 0),
            lambda p: shapely.affinity.translate(p, 0, -1),
            lambda p: shapely.affinity.scale(p, -1, 1, origin=(60, 60)),
            lambda p: shapely.affinity.scale(p, 1, -1, origin=(60, 60)),
        ):
            assert replica.covered(data, tile, 120, move=move) < 0.97

    def test_black_border_is_no_data_and_nothing_is_copied(self, rio, tmp_path):
        data, report = make(rio, tmp_path / "out")
        pixels = read_tile(data, data.tiles[0])
        assert np.isnan(pixels[:, :, :10]).all() and np.isfinite(pixels[:, :, 10:]).all()
        assert report.more["rasters"] == {"optical as it is": 4}
        assert (tmp_path / "out" / data.tiles[0].file_name).is_symlink()
        cut, report = make(rio, tmp_path / "cut", rules=TileRules(cut=True))
        assert report.more["rasters"] == {"optical written": 4}
        np.testing.assert_array_equal(read_tile(cut, cut.tiles[0]), pixels)

    def test_table_of_other_pixels_is_read_from_the_map(self, rio, tmp_path):
        """8-band images have a quarter of the pixels that the 3-band table counts in."""
        data, report = make(rio, tmp_path / "out", images="8band", labels=False)
        assert data.bands.optical[4] == "red" and len(data.bands) == 8
        # On img3 the two rows of the building in parts are the whole of it, twice.
        assert [len(tile_of(data, n).buildings) for n in (1, 2, 3)] == [0, 1, 2]
        assert report.labels["repeated outlines"] == 2
        assert report.labels["taken from PolygonWKT_Geo (pixels of another image)"] == 7
        for tile in data.tiles:
            assert replica.covered(data, tile, 2400) > 0.8

    def test_view_angles_share_a_label_file(self, tmp_path):
        crs, grid = "EPSG:32616", Affine(0.5, 0, 732701, 0, -0.5, 3730989)
        outline = shapely.box(10, 20, 40, 35)
        image = np.full((1, 60, 60), 300, np.uint16)
        image[0, 20:35, 10:40] = 2000
        for angle in (7, 25):
            name = f"Atlanta_nadir{angle}_catid_1030010003D22F0{angle}_732701_3730989.tif"
            replica.write_raster(tmp_path / "images" / name, image, grid, crs, nodata=0)
        for place in ("732701_3730989", "733151_3730989"):
            moved = [(pixel_to_map(outline, grid), {})] if place.startswith("732701") else []
            replica.write_features(tmp_path / "labels" / f"Atlanta_{place}.geojson", crs, moved)
        source = source_of([str(tmp_path / "images")], [str(tmp_path / "labels")], None, TileRules())
        report = convert(source, tmp_path / "out", Options(skip_invalid=True), {})
        data = read_coco(tmp_path / "out/annotations/train.json")
        assert data.bands.optical == ("pan",) and len(data.tiles) == 2
        assert all(replica.covered(data, tile, 1000) == 1 for tile in data.tiles)
        assert report.problems == {"labels without an image": 1}
        assert "733151" in report.named["labels without an image"][0]

    @pytest.mark.parametrize("degrees", [True, False])
    def test_map_column_in_degrees_or_in_the_images_own_crs(self, tmp_path, degrees):
        crs, grid = "EPSG:32616", Affine(0.5, 0, 732701, 0, -0.5, 3730989)
        image = np.full((1, 60, 60), 300, np.uint16)
        image[0, 20:35, 10:40] = 2000
        replica.write_raster(tmp_path / "Atlanta_732701.tif", image, grid, crs)
        outline = pixel_to_map(shapely.box(10, 20, 40, 35), grid)
        if degrees:
            convert_ = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform
            outline = shapely.transform(outline, convert_, interleaved=False)
        # In pixels of an image four times as coarse.
        pixels = shapely.box(2.5, 5, 10, 8.75)
        (tmp_path / "t.csv").write_text(
            f'ImageId,BuildingId,PolygonWKT_Pix,PolygonWKT_Geo\nAtlanta_732701,1,"{pixels.wkt}","{outline.wkt}"\n'
        )
        source = source_of([str(tmp_path / "*.tif")], [], tmp_path / "t.csv", TileRules())
        report = convert(source, tmp_path / "out", Options(), {})
        data = read_coco(tmp_path / "out/annotations/train.json")
        assert report.labels["taken from PolygonWKT_Geo (pixels of another image)"] == 1
        assert replica.covered(data, data.tiles[0], 1000) == 1


class TestBadInput:
    def test_missing_partners_are_named_on_both_sides(self, rio, tmp_path):
        (rio / "3band" / "3band_013022223130_Public_img2.tif").unlink()
        (rio / "geoJson" / "013022223130_Public_img3_Geo.geojson").unlink()
        data, report = make(rio, tmp_path / "out", table=False)
        assert report.problems == {"labels without an image": 1, "images without labels": 1}
        assert "img2_Geo.geojson" in report.named["labels without an image"][0]
        assert "img3.tif" in report.named["images without labels"][0]
        assert len(data.tiles) == 2
        # The table steps in for the file that is missing.
        data, report = make(rio, tmp_path / "both")
        assert len(data.tiles) == 3 and report.problems == {"labels without an image": 2}
        with raises_naming("img2_Geo.geojson"):
            make(rio, tmp_path / "strict", table=False, options=Options(strict=True))
        assert not (tmp_path / "strict").exists()

    def test_file_and_table_that_differ_are_named(self, rio, tmp_path):
        lines = (rio / "table.csv").read_text().splitlines()
        (rio / "table.csv").write_text("\n".join(lines[:-1]) + "\n")
        _, report = make(rio, tmp_path / "out")
        assert report.problems == {"images whose label file and table differ": 1}
        (message,) = report.named["images whose label file and table differ"]
        assert "img4" in message and "2 features with 3 parts, but 2 rows" in message

    def test_rows_that_are_cut_off_are_named(self, rio, tmp_path):
        lines = (rio / "table.csv").read_text().splitlines()
        lines[2] = lines[2][: lines[2].index("POLYGON") + 30]
        lines[3] = lines[3].split(",")[0]
        lines[4] = lines[4].replace("POLYGON Z", "POLYGON X", 1)
        (rio / "table.csv").write_text("\n".join(lines))
        data, report = make(rio, tmp_path / "out", labels=False)
        assert report.problems == {"rows with a damaged outline": 3}
        named = report.named["rows with a damaged outline"]
        assert [message.split("line ")[1].split()[0] for message in named] == ["3", "4", "5"]
        assert sum(len(tile.buildings) for tile in data.tiles) == 4
        with raises_naming("table.csv", "line 3", "013022223130_Public_img2", "building 1"):
            make(rio, tmp_path / "strict", labels=False, options=Options(strict=True))

    def test_one_id_twice(self, rio, tmp_path):
        rows = list(csv.reader((rio / "table.csv").read_text().splitlines()))
        rows[-1][1] = rows[-2][1]
        with (rio / "table.csv").open("w", newline="") as f:
            csv.writer(f).writerows(rows)
        data, report = make(rio, tmp_path / "out", labels=False)
        assert report.problems == {"identifiers of several buildings": 1}
        assert len(tile_of(data, 4).buildings) == 3

    def test_options_that_lead_nowhere(self, rio):
        rules = TileRules()
        images = [str(rio / "3band")]
        with raises_naming("labels", "table"):
            source_of(images, [], None, rules)
        with pytest.raises(InputError, match="`images=.*nothing`: no such file"):
            source_of([str(rio / "nothing")], [str(rio / "geoJson")], None, rules)
        with raises_naming("table.txt"):
            source_of(images, [], rio / "table.txt", rules)
        (rio / "table.txt").write_text("ImageId,Something\na,1\n")
        with raises_naming("'BuildingId'", "ImageId, Something"):
            source_of(images, [], rio / "table.txt", rules)
        with raises_naming("min_area_m2=-1"):
            TileRules(min_area_m2=-1)
        replica.write_raster(
            rio / "two.tif", np.ones((2, 9, 9), np.uint8), Affine(2, 0, 0, 0, -2, 0), "EPSG:32631"
        )
        with raises_naming("2 bands", "band_names"):
            source_of([str(rio / "two.tif")], [str(rio / "geoJson")], None, rules)
        with raises_naming("band_names", "1 bands", "two.tif", "2"):
            source_of([str(rio / "two.tif")], [str(rio / "geoJson")], None, rules, ["a"])

    def test_labels_of_another_place_make_no_empty_tile(self, rio, tmp_path):
        (path,) = (rio / "geoJson").glob("*img2_*")
        document = json.loads(path.read_text())
        for feature in document["features"]:
            moved = shapely.affinity.translate(shapely.geometry.shape(feature["geometry"]), 1)
            feature["geometry"] = shapely.geometry.mapping(moved)
        path.write_text(json.dumps(document))
        data, report = make(rio, tmp_path / "out", table=False)
        assert len(data.tiles) == 3 and not any("img2." in tile.file_name for tile in data.tiles)
        assert "none of the 1 buildings" in report.named["unusable images"][0]

    def test_a_first_image_that_is_damaged_stops_nothing(self, rio, tmp_path):
        path = sorted((rio / "3band").iterdir())[0]
        path.write_bytes(b"nothing")
        data, report = make(rio, tmp_path / "out")
        assert len(data.tiles) == 3 and path.name in report.named["unusable images"][0]

    def test_columns_in_another_order_with_a_byte_order_mark(self, rio, tmp_path):
        with (rio / "table.csv").open(newline="") as f:
            rows = [[row[2], row[1], row[0]] for row in csv.reader(f)]
        with (rio / "table.csv").open("w", newline="", encoding="utf-8-sig") as f:
            csv.writer(f).writerows(rows)
        data, report = make(rio, tmp_path / "out", labels=False)
        assert not report.problems and [len(tile_of(data, n).buildings) for n in (1, 2, 3, 4)] == [0, 1, 3, 3]


class TestMatching:
    def test_by_the_parts_that_tell(self):
        images = ["3band_AOI_2_Vegas_img1", "3band_AOI_2_Vegas_img10", "3band_AOI_3_Paris_img1"]
        labels = ["buildings_AOI_3_Paris_img1", "buildings_AOI_2_Vegas_img10", "buildings_AOI_2_Vegas_img1"]
        assert match_names(images, labels) == ([2, 1, 0], [])

    def test_what_fits_nothing(self):
        assert match_names(["a_img1", "a_img2"], ["img2_geo", "img3_geo"]) == ([None, 0], [1])
        assert match_names(["a_img1", "a_img2"], ["img3_geo"]) == ([None, None], [0])
        assert match_names(["a_img1", "a_img2"], ["img2_geo"]) == ([None, 0], [])
        assert match_names(["sample"], ["labels"]) == ([0], [])
        assert match_names(["sample"], []) == ([None], [])
        # A label of x = 1, y = 9 is not that of x = 1, y = 2.
        assert match_names(["t_1_2", "t_3_2"], ["1_9", "3_2"]) == ([None, 1], [0])

    def test_two_that_fit_equally(self):
        with raises_naming("x_img1", "y_img1"):
            match_names(["x_y_img1"], ["x_img1", "y_img1"])

    @given(st.lists(st.integers(0, 10**6), min_size=2, max_size=30, unique=True), st.randoms())
    def test_any_order_finds_its_own(self, numbers, random):
        labels = [f"{n}_Public_Geo" for n in numbers]
        random.shuffle(labels)
        chosen, left = match_names([f"3band_{n}_Public" for n in numbers], labels)
        assert [labels[k] for k in chosen] == [f"{n}_Public_Geo" for n in numbers] and not left


class TestRealTiles:
    def test_rio(self, shared_data, tmp_path):
        folder = shared_data("spacenet1-rio-aoi0")
        table = folder / "vectorData" / "summaryData" / "public_polygons_solution_3Band_short.csv"
        images, labels = [str(folder / "3band")], [str(folder / "vectorData" / "geoJson")]
        counts, outlines = {}, {}
        for name, source in (
            ("both", source_of(images, labels, table, TileRules(min_area_m2=0))),
            ("table", source_of(images, [], table, TileRules(min_area_m2=0))),
        ):
            report = convert(source, tmp_path / name, Options(strict=True), {})
            data = read_coco(tmp_path / name / "annotations/train.json")
            # img9's 27 features have 28 parts, which are the table's 28 rows: no difference to be named.
            assert not report.problems
            counts[name] = [len(tile_of(data, n).buildings) for n in range(1, 11)]
            outlines[name] = [
                shapely.union_all([b.polygon for b in tile_of(data, n).buildings]) for n in range(1, 11)
            ]
        assert counts["both"] == [0, 0, 0, 13, 12, 5, 6, 32, 27, 24]
        assert counts["table"] == [0, 0, 0, 13, 12, 5, 6, 32, 28, 24]
        for a, b in zip(outlines["both"], outlines["table"], strict=True):
            assert a.symmetric_difference(b).area <= 1e-3 * a.area

    def test_atlanta(self, shared_data, tmp_path):
        folder = shared_data("solaris-sn4-atlanta-pan")
        source = source_of([str(folder / "*.tif")], [str(folder / "*.geojson")], None, TileRules())
        convert(source, tmp_path / "out", Options(strict=True), {})
        (tile,) = read_coco(tmp_path / "out/annotations/train.json").tiles
        assert len(tile.buildings) == 43 and (tile.width, tile.height, tile.gsd_m) == (900, 900, 0.5)


def test_command_line(rio, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    spacenet.add_arguments(parser)
    words = ["--images", f"{rio}/3band/*.tif", "--labels", f"{rio}/geoJson", "--out", str(tmp_path / "out")]
    spacenet.main(parser.parse_args(words))
    assert "4 written, 1 without buildings" in capsys.readouterr().out
    spacenet.main(parser.parse_args(words))
    assert "is up to date" in capsys.readouterr().out
    shutil.rmtree(rio / "geoJson")
    with pytest.raises(InputError, match="`labels="):
        spacenet.main(parser.parse_args(words))
