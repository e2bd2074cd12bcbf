"""A rendered data set on disk: labels, splits, faults, seeds, and options that are refused."""

import argparse
import contextlib
import dataclasses
import hashlib
import math
import os
import signal
import time

from fusiondet import synthetic
from fusiondet.errors import InputError
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.coco import read_coco
from fusiondet.synthetic import dataset
from fusiondet.synthetic.dataset import Faults, Recipe, draw_sensor, write_dataset
from fusiondet.synthetic.presets import PRESETS, preset
from tests.support.messages import raises_naming
from tests.support.processes import kill, start_program, wait_for, workers_of

import cv2
import numpy as np
import pytest
import rasterio
import shapely

SMALL = Recipe(preset("easy"), size_px=128, seed=3, strip_tiles=2)


def files_of(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def labels_of(folder, split="train"):
    return [b for tile in read_coco(folder / "annotations" / f"{split}.json").tiles for b in tile.buildings]


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    out = tmp_path_factory.mktemp("easy") / "city"
    counts = write_dataset(SMALL, {"train": 5, "val": 2}, out)
    return out, counts


@pytest.fixture(scope="module")
def realistic(tmp_path_factory):
    out = tmp_path_factory.mktemp("realistic") / "city"
    write_dataset(Recipe(preset("realistic"), seed=1), {"train": 5}, out)
    return out


def test_the_tree_on_disk_is_what_the_annotations_say(easy):
    out, counts = easy
    assert sorted(p.name for p in out.iterdir()) == ["annotations", "train", "val"]
    for split, (tiles, buildings) in counts.items():
        dataset = read_coco(out / "annotations" / f"{split}.json")
        assert (len(dataset.tiles), sum(len(t.buildings) for t in dataset.tiles)) == (tiles, buildings)
        assert dataset.bands.names == ("red", "green", "blue", "HH") and dataset.bands.sar_scale == "db"
        assert dataset.info["preset"] == "easy" and dataset.info["preset_version"] == 1
        for tile in dataset.tiles:
            files = (tile.file_name, tile.sar_file_name, tile.ndsm_file_name, tile.building_height_file_name)
            for name, kind, dtype, bands in zip(
                files,
                ("rgb", "sar", "ndsm", "building_height"),
                ("uint8", "float32", "float32", "float32"),
                (3, 1, 1, 1),
                strict=True,
            ):
                assert name.startswith(f"{split}/{kind}/")
                with rasterio.open(out / name) as raster:
                    assert (raster.count, raster.width, raster.height) == (bands, 128, 128)
                    assert raster.dtypes[0] == dtype and raster.crs.to_epsg() == 32631
                    assert tuple(raster.transform)[:6] == tile.transform and raster.res == (0.5, 0.5)


def test_building_height_equals_the_label_inside_every_outline_and_0_outside(easy):
    out, _ = easy
    for tile in read_coco(out / "annotations" / "train.json").tiles:
        with rasterio.open(out / tile.building_height_file_name) as raster:
            heights = raster.read(1)
        expected = np.zeros_like(heights)
        for b in tile.buildings:
            expected[polygon_to_mask(b.polygon, tile.height, tile.width)] = b.height_m
        # Slivers without label are still in the raster: allow them, and nothing else.
        labelled = expected > 0
        np.testing.assert_allclose(heights[labelled], expected[labelled], atol=1e-3)
        assert (heights[~labelled] > 0).sum() * 0.25 < 3 * SMALL.min_area_m2


def test_flat_roofs_stand_in_the_ndsm_as_high_as_their_label(easy):
    out, _ = easy
    errors = []
    for tile in read_coco(out / "annotations" / "train.json").tiles:
        with rasterio.open(out / tile.ndsm_file_name) as raster:
            ndsm = raster.read(1)
        for b in tile.buildings:
            inside = polygon_to_mask(b.polygon.buffer(-2), tile.height, tile.width)
            if inside.sum() > 30:
                errors.append(np.percentile(ndsm[inside], 70) - b.height_m)
    errors = np.abs(errors)
    assert len(errors) > 15 and np.median(errors) < 1e-3 and errors.max() < 2.0


def test_labels_carry_their_datum_and_statistic(easy):
    labels = labels_of(easy[0])
    assert {(b.height_source, b.height_stat, b.height_datum, b.outline) for b in labels} == {
        ("synthetic", "p70", "ground", "footprint")
    }
    assert all(3 <= b.height_m <= 47 for b in labels)
    frame = shapely.box(0, 0, 128, 128)
    assert all(frame.covers(b.polygon) and b.polygon.area * 0.25 >= 5.9 for b in labels)


def test_tiles_of_a_strip_are_neighbours_and_share_the_sensor(easy):
    tiles = read_coco(easy[0] / "annotations" / "train.json").tiles
    for a, b in zip(tiles[0::2], tiles[1::2], strict=False):
        assert a.sensor == b.sensor
        assert b.transform[2] - a.transform[2] == 64.0 and b.transform[5] == a.transform[5]
    assert tiles[0].sensor != tiles[2].sensor


def test_a_building_on_the_seam_is_whole_in_both_halves(realistic):
    left, right = read_coco(realistic / "annotations" / "train.json").tiles[:2]
    cut = {b.id: b for b in left.buildings if b.polygon.bounds[2] > 255.999}
    both = [(cut[b.id], b) for b in right.buildings if b.id in cut and b.polygon.bounds[0] < 0.001]
    assert both
    for a, b in both:
        assert a.height_m == b.height_m
        moved = shapely.affinity.translate(b.polygon, 256)
        assert shapely.union(a.polygon, moved).area == pytest.approx(
            a.polygon.area + b.polygon.area, abs=0.01
        )


def test_splits_share_no_ground(easy):
    ground = {}
    for split in ("train", "val"):
        tiles = read_coco(easy[0] / "annotations" / f"{split}.json").tiles
        ground[split] = shapely.union_all(
            [
                shapely.box(t.transform[2], t.transform[5] - 64, t.transform[2] + 64, t.transform[5])
                for t in tiles
            ]
        )
    assert ground["train"].distance(ground["val"]) > 100


def test_same_seed_same_bytes_whatever_the_number_of_processes_and_the_other_splits(easy, tmp_path):
    write_dataset(SMALL, {"train": 5, "val": 2}, tmp_path / "again", workers=2)
    assert files_of(tmp_path / "again") == files_of(easy[0])
    write_dataset(dataclasses.replace(SMALL, seed=4), {"val": 2}, tmp_path / "other")
    assert (
        files_of(tmp_path / "other")["val/rgb/val_0000_00.tif"]
        != files_of(easy[0])["val/rgb/val_0000_00.tif"]
    )


def test_same_layout_other_heights(easy, tmp_path):
    write_dataset(dataclasses.replace(SMALL, height_seed=99), {"train": 5}, tmp_path / "tall")
    before, after = ({b.id: b for b in labels_of(f)[:10]} for f in (easy[0], tmp_path / "tall"))
    common = before.keys() & after.keys()
    assert len(common) > 3
    assert all(before[i].polygon.equals_exact(after[i].polygon, 1e-6) for i in common)
    assert all(before[i].height_m != after[i].height_m for i in common)


def test_label_faults_are_in_train_alone_and_leave_the_pictures_alone(easy, tmp_path):
    faults = Faults(footprint_offset_m=3.0, missing_labels=0.3, height_noise_m=2.0)
    write_dataset(dataclasses.replace(SMALL, faults=faults), {"train": 5, "val": 2}, tmp_path / "bad")
    clean, bad = files_of(easy[0]), files_of(tmp_path / "bad")
    assert {k: v for k, v in clean.items() if k.endswith(".tif")} == {
        k: v for k, v in bad.items() if k.endswith(".tif")
    }
    a, b = labels_of(easy[0], "val"), labels_of(tmp_path / "bad", "val")
    assert [(x.polygon.wkb, x.height_m) for x in a] == [(x.polygon.wkb, x.height_m) for x in b]
    before, after = {b.id: b for b in labels_of(easy[0])}, {b.id: b for b in labels_of(tmp_path / "bad")}
    assert 0.4 < len(after) / len(before) < 0.95
    whole = [i for i in after if 5 < before[i].polygon.bounds[0] and before[i].polygon.bounds[2] < 110]
    moved = [shapely.distance(before[i].polygon.centroid, after[i].polygon.centroid) * 0.5 for i in whole]
    assert 0.1 < max(moved) and np.median(moved) <= 3.0
    assert 0.5 < np.std([after[i].height_m - before[i].height_m for i in after]) < 4


def test_shuffled_heights_are_the_same_heights_on_other_buildings(easy, tmp_path):
    recipe = dataclasses.replace(SMALL, faults=Faults(shuffled_heights=True))
    write_dataset(recipe, {"train": 5, "val": 2}, tmp_path / "control")
    before, after = labels_of(easy[0]), labels_of(tmp_path / "control")
    assert [b.polygon.wkb for b in before] == [b.polygon.wkb for b in after]
    assert sorted(b.height_m for b in before) == sorted(b.height_m for b in after)
    assert np.mean([x.height_m == y.height_m for x, y in zip(before, after, strict=True)]) < 0.2
    clean, control = (labels_of(folder, "val") for folder in (easy[0], tmp_path / "control"))
    assert [b.height_m for b in clean] == [b.height_m for b in control]


def test_shuffled_angles_are_those_of_other_acquisitions(tmp_path):
    recipe = dataclasses.replace(SMALL, strip_tiles=2)
    for name, shuffled in (("clean", False), ("control", True)):
        write_dataset(dataclasses.replace(recipe, shuffled_angles=shuffled), {"test": 6}, tmp_path / name)
    clean, control = files_of(tmp_path / "clean"), files_of(tmp_path / "control")
    assert all(control[k] == clean[k] for k in clean if k.endswith(".tif"))
    before, after = (
        [t.sensor for t in read_coco(tmp_path / name / "annotations" / "test.json").tiles]
        for name in ("clean", "control")
    )
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert sorted(map(str, before)) == sorted(map(str, after)) and after[0] == after[1]


def test_angles_of_a_single_acquisition_cannot_be_shuffled(tmp_path):
    recipe = dataclasses.replace(SMALL, strip_tiles=2, shuffled_angles=True)
    with raises_naming("val", "2 tiles", "acquisition"):
        write_dataset(recipe, {"test": 3, "val": 2}, tmp_path / "city")
    assert not (tmp_path / "city").exists()


def test_extra_labels_and_sar_shift(easy, tmp_path):
    faults = Faults(extra_labels=0.5, sar_shift_px=6.0)
    write_dataset(dataclasses.replace(SMALL, faults=faults), {"train": 5}, tmp_path / "bad")
    labels = labels_of(tmp_path / "bad")
    assert sum(b.id is None for b in labels) > 0.2 * len(labels_of(easy[0]))
    clean, bad = files_of(easy[0]), files_of(tmp_path / "bad")
    assert all((bad[k] == clean[k]) == ("/sar/" not in k) for k in bad if k.endswith(".tif"))


def test_an_existing_directory_is_refused_and_kept_unless_overwrite(easy, tmp_path):
    out = tmp_path / "city"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with raises_naming("overwrite"):
        write_dataset(SMALL, {"train": 1}, out)
    with pytest.raises(InputError, match="not made by this tool"):
        write_dataset(SMALL, {"train": 1}, out, overwrite=True)
    assert (out / "mine.txt").read_text() == "keep"
    (out / "annotations").mkdir()
    write_dataset(SMALL, {"train": 1}, out, overwrite=True)
    assert not (out / "mine.txt").exists() and len(list((out / "train" / "rgb").iterdir())) == 1


@pytest.mark.parametrize("option", ["--sun-azimuth", "--look-azimuth", "--sun-elevation", "--incidence"])
def test_angles_that_are_none_are_refused(tmp_path, option):
    parser = argparse.ArgumentParser()
    synthetic.add_arguments(parser)
    with raises_naming(option[2:].replace("-", "_"), "nan", "degrees"):
        synthetic.main(parser.parse_args(["--out", str(tmp_path / "a"), option, "nan", "nan"]))


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "render_sar", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_dataset(SMALL, {"train": 1}, tmp_path / "city")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "rgb_mean", "sar_mean"), [("easy", 101.359, -9.979), ("realistic", 124.860, -12.345)]
)
def test_the_presets_are_frozen(name, rgb_mean, sar_mean, easy, realistic):
    """Options that came later must not touch them; a preset that does change needs a new version."""
    folder = easy[0] if name == "easy" else realistic
    for kind, mean in (("rgb", rgb_mean), ("sar", sar_mean)):
        with rasterio.open(folder / "train" / kind / "train_0000_00.tif") as raster:
            assert raster.read().mean(dtype=float) == pytest.approx(mean, abs=0.01)
    assert "cloud" not in (folder / "annotations" / "train.json").read_text()
    options = read_coco(folder / "annotations" / "train.json").info["options"]
    assert not {"clouds", "off_nadir_deg", "view_azimuth_deg", "outline"} & options.keys()
    assert PRESETS[name].version == 1


def test_clouds_change_the_optical_picture_alone(easy, tmp_path):
    write_dataset(dataclasses.replace(SMALL, clouds=0.2), {"train": 5, "val": 2}, tmp_path / "cloudy")
    clear, cloudy = files_of(easy[0]), files_of(tmp_path / "cloudy")
    assert not (easy[0] / "train" / "cloud").exists()
    for kind in ("sar", "ndsm", "building_height"):
        same = [name for name in clear if f"/{kind}/" in name]
        assert same and all(clear[name] == cloudy[name] for name in same)
    hidden = []
    for split in ("train", "val"):
        a, b = (read_coco(f / "annotations" / f"{split}.json") for f in (easy[0], tmp_path / "cloudy"))
        assert "clouds" not in a.info["options"] and b.info["options"]["clouds"] == 0.2
        for before, after in zip(a.tiles, b.tiles, strict=True):
            assert before.cloud_file_name is None
            assert dataclasses.replace(after, cloud_file_name=None) == before
            with rasterio.open(b.root / after.cloud_file_name) as raster:
                cloud = raster.read(1)
            assert cloud.dtype == np.uint8 and cloud.shape == (128, 128)
            hidden.append(cloud.mean() / 255)
            assert cloud.max() == 0 or clear[before.file_name] != cloudy[after.file_name]
    assert min(hidden) == 0.0 and max(hidden) > 0.5  # a clear tile has a raster, too


@pytest.mark.parametrize("outline", ["footprint", "roof"])
def test_lean_changes_the_optical_picture_and_the_roofs_outlines_alone(easy, tmp_path, outline):
    recipe = dataclasses.replace(SMALL, off_nadir_deg=(20.0, 30.0), outline=outline)
    write_dataset(recipe, {"train": 5, "val": 2}, tmp_path / "lean")
    before, after = files_of(easy[0]), files_of(tmp_path / "lean")
    kept = ("sar", "ndsm", "building_height") if outline == "footprint" else ("sar", "ndsm")
    assert {k for k in before if before[k] == after[k]} == {k for k in before if k.split("/")[1] in kept}
    a, b = (read_coco(f / "annotations" / "train.json") for f in (easy[0], tmp_path / "lean"))
    assert (a.tiles[0].sensor.view_off_nadir_deg, a.tiles[0].sensor.view_azimuth_deg) == (None, None)
    distances = []
    for straight, leaning in zip(a.tiles, b.tiles, strict=True):
        sensor, known = leaning.sensor, {x.id: x for x in leaning.buildings}
        assert 20 <= sensor.view_off_nadir_deg <= 30 and 0 <= sensor.view_azimuth_deg < 360
        assert sensor.sar_look_azimuth_deg == straight.sensor.sar_look_azimuth_deg
        assert {x.outline for x in leaning.buildings} <= {outline}
        if outline == "footprint":
            assert leaning.buildings == straight.buildings
        frame = shapely.box(1, 1, 127, 127)
        for x in straight.buildings:
            if x.id in known and frame.contains(x.polygon) and frame.contains(known[x.id].polygon):
                lean_px = x.height_m * math.tan(math.radians(sensor.view_off_nadir_deg)) / 0.5
                distances.append(x.polygon.centroid.distance(known[x.id].polygon.centroid) / lean_px)
    assert len(distances) > 3
    assert np.median(distances) == pytest.approx(1.0 if outline == "roof" else 0.0, abs=0.05)


def test_roofs_lean_into_a_tile_from_beyond_it(tmp_path):
    recipe = dataclasses.replace(
        SMALL,
        preset=preset("realistic"),
        off_nadir_deg=(40.0, 40.0),
        view_azimuth_deg=(0.0, 0.0),
        outline="roof",
    )
    write_dataset(
        recipe, {"train": 8}, tmp_path / "city"
    )  # sensor in the north, far beyond any other margin there
    labels = labels_of(tmp_path / "city")
    assert any(str(b.id).startswith("around") for b in labels)
    for tile in read_coco(tmp_path / "city" / "annotations" / "train.json").tiles:
        with rasterio.open(tmp_path / "city" / tile.building_height_file_name) as raster:
            heights = raster.read(1)
        for b in tile.buildings:
            assert (
                heights[polygon_to_mask(b.polygon.buffer(-1), 128, 128)].min(initial=99) >= b.height_m - 1e-3
            )


@pytest.mark.parametrize("shift", [3.0, (3.0, 3.0)], ids=["at most 3", "exactly 3"])
def test_a_sar_shift_moves_the_sar_alone_as_far_as_said(easy, tmp_path, shift):
    recipe = dataclasses.replace(SMALL, faults=Faults(sar_shift_px=shift))
    write_dataset(recipe, {"train": 5, "val": 2}, tmp_path / "shifted")
    before, after = files_of(easy[0]), files_of(tmp_path / "shifted")
    assert {k for k in before if before[k] != after[k] and k.endswith(".tif")} == {
        k for k in before if "/sar/" in k
    }
    assert (
        read_coco(tmp_path / "shifted" / "annotations" / "val.json").tiles
        == read_coco(easy[0] / "annotations" / "val.json").tiles
    )
    pictures = []
    for folder in (easy[0], tmp_path / "shifted"):
        with rasterio.open(folder / "val" / "sar" / "val_0000_00.tif") as raster:
            pictures.append(raster.read(1))
    (dx, dy), _ = cv2.phaseCorrelate(
        *(10 ** (p / 20) for p in pictures), np.outer(*[np.hanning(128)] * 2).astype("f4")
    )
    low, high = shift if isinstance(shift, tuple) else (0.1, shift)
    assert low - 0.1 <= math.hypot(dx, dy) <= high + 0.1


def test_geometry_is_drawn_within_the_ranges():
    realistic = preset("realistic")
    drawn = [draw_sensor(realistic, np.random.default_rng(i)) for i in range(60)]
    for s in drawn:
        assert (
            120 <= s.sun_azimuth_deg <= 240
            and 35 <= s.sun_elevation_deg <= 60
            and 30 <= s.sar_incidence_deg <= 45
        )
        assert 72 <= s.sar_look_azimuth_deg <= 92 or 268 <= s.sar_look_azimuth_deg <= 288
    assert 0.2 < np.mean([s.sar_look_azimuth_deg < 180 for s in drawn]) < 0.8


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_pictures_use_their_range(name, easy, realistic):
    out = easy[0] if name == "easy" else realistic
    tile = read_coco(out / "annotations" / "train.json").tiles[0]
    with rasterio.open(out / tile.file_name) as raster:
        rgb = raster.read()
    with rasterio.open(out / tile.sar_file_name) as raster:
        sar = raster.read(1)
    assert 50 < rgb.mean() < 180 and rgb.std() > 15 and (rgb == 255).mean() < 0.05
    assert -25 < sar.mean() < -5 and sar.std() > 3 and np.isfinite(sar).all()


def test_realistic_renders_at_least_four_tiles_per_second_and_core(tmp_path):
    write_dataset(Recipe(preset("realistic"), seed=2), {"train": 1}, tmp_path / "warm")
    start = time.process_time()
    write_dataset(Recipe(preset("realistic"), seed=2), {"train": 10}, tmp_path / "city")
    assert 10 / (time.process_time() - start) >= 4


# --- real buildings ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limburg(shared_data):
    return shared_data("3dbag-b3-limburg") / "limburg.city.json"


def test_rendered_3dbag_roofs_agree_with_3dbags_own_heights(limburg):
    from fusiondet.io.cityjson_reader import read_cityjson
    from fusiondet.synthetic.footprints import read_city

    city = read_city(limburg)
    given = {
        b.id: b.attributes["b3_h_dak_70p"] - b.attributes["b3_h_maaiveld"]
        for b in read_cityjson(limburg).buildings
    }
    errors = np.array([b.height_m - given[b.id] for b in city.buildings])
    assert len(errors) == 840 and np.abs(errors).mean() < 0.1 and abs(np.median(errors)) < 0.02
    assert np.mean([len(b.roof) > 1 for b in city.buildings]) > 0.7  # real roofs, not blocks


def test_a_real_city_is_split_by_ground_and_seen_more_than_once(limburg, tmp_path):
    recipe = Recipe(preset("realistic"), seed=1, footprints=limburg)
    write_dataset(recipe, {"train": 12, "val": 3}, tmp_path / "city")
    boxes = {}
    for split in ("train", "val"):
        dataset = read_coco(tmp_path / "city" / "annotations" / f"{split}.json")
        assert dataset.info["footprints"] == "limburg.city.json"
        assert {t.crs for t in dataset.tiles} == {"EPSG:28992"} and all(t.buildings for t in dataset.tiles)
        boxes[split] = [
            shapely.box(t.transform[2], t.transform[5] - 128, t.transform[2] + 128, t.transform[5])
            for t in dataset.tiles
        ]
    assert shapely.union_all(boxes["train"]).intersection(shapely.union_all(boxes["val"])).area == 0
    whole = [
        b for b in labels_of(tmp_path / "city") if math.dist(b.polygon.bounds[:2], b.polygon.bounds[2:]) > 10
    ]
    assert all(b.id.startswith("NL.IMBAG.Pand.") and 1 < b.height_m < 10 for b in whole)


def test_more_tiles_than_ground_means_more_acquisitions_of_the_same_ground(limburg, tmp_path):
    recipe = Recipe(preset("easy"), size_px=96, gsd_m=5.0, seed=1, footprints=limburg, strip_tiles=4)
    write_dataset(recipe, {"train": 30, "val": 1}, tmp_path / "city")
    tiles = read_coco(tmp_path / "city" / "annotations" / "train.json").tiles
    seen = {}
    for t in tiles:
        seen.setdefault(t.transform, []).append(t.sensor)
    assert len(seen) < 30
    assert all(len({str(s) for s in sensors}) == len(sensors) for sensors in seen.values())


def test_footprints_that_cannot_be_rendered_are_refused(tmp_path):
    from fusiondet.synthetic.footprints import read_city

    document = """{"type": "CityJSON", "version": "2.0", "CityObjects": {}, "vertices": [],
                   "metadata": {"referenceSystem": "%s"}}"""
    for code, message in (("EPSG:28992", "no building"), ("EPSG:4326", "not in metres")):
        path = tmp_path / f"{code[-4:]}.city.json"
        path.write_text(document % code)
        with pytest.raises(InputError, match=message):
            read_city(path)
    with pytest.raises(InputError, match="no such file"):
        read_city(tmp_path / "missing.city.json")


# --- command line --------------------------------------------------------------------------------------------------


def call(load_tool, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["prepare_dataset.py", "synthetic", *map(str, arguments)])
    load_tool("prepare_dataset").main()


def test_the_command_writes_and_says_so_in_one_line(load_tool, monkeypatch, capsys, tmp_path):
    out = tmp_path / "city"
    options = ["--looks", 2, "--incidence", 50, 52, "--no-double-bounce", "--workers", 1, "--seed", 5]
    call(load_tool, monkeypatch, "--out", out, "--split", "train=2", "test=1", "--size", 64, *options)
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 1
        and lines[0].startswith(f"wrote {out}: train 2 tiles with ")
        and "test 1 tiles" in lines[0]
    )
    dataset = read_coco(out / "annotations" / "train.json")
    assert 50 <= dataset.tiles[0].sensor.sar_incidence_deg <= 52
    assert dataset.info["settings"]["sar_looks"] == 2 and dataset.info["options"]["double_bounce"] is False
    with raises_naming("overwrite"):
        call(load_tool, monkeypatch, "--out", out, "--split", "train=1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "hard"], "unknown preset 'hard'"),
        (["--split", "train"], "expected NAME=TILES"),
        (["--split", "train=0"], "expected NAME=TILES"),
        (["--split", "../x=3"], "expected NAME=TILES"),
        (["--split", "train=1", "train=2"], "once per name"),
        (["--size", "8"], "--size 8: expected 16 to 4096"),
        (["--gsd", "nan"], "--gsd nan"),
        (["--clouds", "1.5"], "--clouds 1.5: expected 0 to 1"),
        (["--clouds", "nan"], "--clouds nan: expected 0 to 1"),
        (["--sar-shift-px", "3", "25"], "--sar-shift-px 25.0: expected 0 to 20"),
        (["--sar-shift-px", "3", "2"], "expected one number, or two as LOW <= HIGH"),
        (["--sar-shift-px", "1", "2", "3"], "expected one number, or two as LOW <= HIGH"),
        (["--off-nadir", "10", "50"], "--off-nadir 50.0: expected 0 to 45 degrees"),
        (["--off-nadir", "20", "10"], "--off-nadir 20.0 10.0: expected LOW <= HIGH"),
        (
            ["--off-nadir", "0", "9", "--view-azimuth", "0", "400"],
            "--view-azimuth 400.0: expected -360 to 360",
        ),
        (["--view-azimuth", "0", "90"], "give --off-nadir, too"),
        (["--outline", "roof"], "give --off-nadir, too"),
        (["--missing-labels", "1.5"], "--missing-labels 1.5: expected 0 to 1"),
        (["--incidence", "40", "30"], "expected LOW <= HIGH"),
        (["--incidence", "40", "89"], "10 to 75 degrees"),
        (["--seed", "-1"], "--seed -1"),
        (["--footprints", "x.city.json", "--height-seed", "1"], "Drop one"),
        (["--footprints", "x.city.json"], "no such file"),
    ],
)
def test_bad_options_are_named_and_nothing_is_written(load_tool, monkeypatch, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        call(load_tool, monkeypatch, "--out", tmp_path / "city", *arguments)
    assert not (tmp_path / "city").exists()


# Two processes render 12 strips.
LONG = Recipe(preset("easy"), size_px=64, seed=3, strip_tiles=1)
KILLED = """
import sys
from pathlib import Path
from fusiondet.synthetic.dataset import write_dataset
from tests.synthetic.test_dataset import LONG
write_dataset(LONG, {"train": 9, "val": 3}, Path(sys.argv[1]), workers=2)
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The files of a data set that nobody disturbs."""
    out = tmp_path_factory.mktemp("straight") / "city"
    write_dataset(LONG, {"train": 9, "val": 3}, out)
    return files_of(out)


class TestKilled:
    @pytest.fixture
    def program(self, tmp_path):
        """A program that has finished some strips, and its two processes."""
        program = start_program(KILLED, tmp_path / "city")
        wait_for(lambda: len(self.pieces(tmp_path)) >= 2 or program.poll() is not None)
        yield program, wait_for(lambda: workers_of(program.pid))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)

    def pieces(self, folder):
        return [
            (path, path.stat().st_mtime_ns) for path in (folder / ".city.parts" / "pieces").glob("*.jsonl")
        ]

    def test_a_worker(self, program, straight, tmp_path):
        process, workers = program
        os.kill(workers[0], signal.SIGKILL)
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors
        assert files_of(tmp_path / "city") == straight and [p.name for p in tmp_path.iterdir()] == ["city"]

    @pytest.mark.parametrize("with_worker", [False, True])
    def test_the_program_and_a_worker(self, program, straight, tmp_path, monkeypatch, with_worker):
        process, workers = program
        with pytest.raises(InputError, match=f"city: another run .*{process.pid}"):
            write_dataset(LONG, {"train": 9, "val": 3}, tmp_path / "city")
        kill(process, *workers[:with_worker])
        finished = len(self.pieces(tmp_path))
        assert 2 <= finished < 12 and not (tmp_path / "city").exists()
        made, render = [], dataset._render_strip
        monkeypatch.setattr(dataset, "_render_strip", lambda *args: made.append(args) or render(*args))
        write_dataset(LONG, {"train": 9, "val": 3}, tmp_path / "city")
        assert len(made) == 12 - finished, "what is finished is not made again"
        assert files_of(tmp_path / "city") == straight and [p.name for p in tmp_path.iterdir()] == ["city"]

    def test_another_recipe_begins_again(self, program, straight, tmp_path):
        kill(program[0])
        write_dataset(dataclasses.replace(LONG, seed=4), {"train": 1}, tmp_path / "city")
        assert files_of(tmp_path / "city").keys() < straight.keys()
        assert [p.name for p in tmp_path.iterdir()] == ["city"]
