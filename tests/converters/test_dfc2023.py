"""The contest's archive in its spellings: labels, pixels and heights in their places, splits, and what goes wrong."""

import argparse
import json
import pickle
import shutil

from fusiondet import cli
from fusiondet.converters.dfc2023 import Dfc2023, add_arguments, find_parts, main, sensor_and_city
from fusiondet.converters.prepare import prepare as run_words
from fusiondet.converters.reports import Problems
from fusiondet.errors import InputError
from fusiondet.evaluation.dfc2023_scoring import evaluate_dfc2023, read_truth
from fusiondet.evaluation.dfc2023_submission import Findings, PaintedSubmission
from fusiondet.files import safe_join
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.coco import encode_rle, read_coco
from fusiondet.io.labels import read_heights, tile_height_label
from fusiondet.io.tile_rasters import read_tile
from tests.support.dfc2023_replica import (
    BRIGHT,
    GROUND,
    HOUSES,
    NAMES,
    ROOFS,
    SIZE,
    document,
    houses,
    pictures,
    write_archive,
    write_tif,
)
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
from affine import Affine

TRAIN = NAMES["train"]


def prepare(root, *words, out="out"):
    """Run the command; `root`'s sibling `out`."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = root.parent / out
    main(parser.parse_args(["--root", str(root), "--out", str(out), *map(str, words)]))
    return out


def split(out, name="train"):
    return read_coco(out / "annotations" / f"{name}.json")


def stem(tile):
    return tile.file_name.rpartition("/")[2].removesuffix(".tif")


def misplaced(dataset):
    """Pixels in which labels, picture, SAR and heights do not say the same of any tile."""
    wrong = 0
    for tile in dataset.tiles:
        image = read_tile(dataset, tile)
        label, heights_m = np.zeros((tile.height, tile.width), bool), np.zeros((tile.height, tile.width))
        for building in tile.buildings:
            mask = polygon_to_mask(building.polygon, tile.height, tile.width)
            label |= mask
            heights_m[mask] = building.height_m or 0
        raster_m = read_heights(safe_join(dataset.root, tile.ndsm_file_name), label.shape)
        wrong += sum(int((label != (band > 100)).sum()) for band in image) + int(
            (raster_m != heights_m).sum()
        )
    return wrong


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "DFC_Track_2")


def edit(root, change, name="buildings_only_train.json"):
    """Change the labels of `root` in place."""
    path = root / "annotations" / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ---- What comes out --------------------------------------------------------------------------------------


def test_labels_pixels_and_heights_are_where_the_archive_has_them(archive, capsys):
    out = prepare(archive)
    dataset = split(out)
    assert misplaced(dataset) == 0
    assert [stem(t) for t in dataset.tiles] == TRAIN
    assert [t.id for t in dataset.tiles] == [3, 2, 1, 0], (
        "the contest's numbers are kept, so a submission is scored"
    )
    assert dataset.bands.optical == ("red", "green", "blue") and dataset.bands.sar_scale == "stretched_uint8"
    np.testing.assert_array_equal(
        read_tile(dataset, dataset.tiles[0])[:, 10, 50], [BRIGHT, BRIGHT + 1, BRIGHT + 2, 220]
    )
    np.testing.assert_array_equal(
        read_tile(dataset, dataset.tiles[0])[:, 0, 0], [GROUND, GROUND + 1, GROUND + 2, GROUND]
    )
    for number, tile in enumerate(dataset.tiles):
        assert [b.height_m for b in tile.buildings] == [h.height_m or None for h in houses(number)]
        for building, house in zip(tile.buildings, houses(number), strict=True):
            assert building.polygon.equals(house.polygon) and building.outline == "roof"
        assert (tile.gsd_m, tile.crs, tile.transform) == (0.5, None, None)
        assert not {b.height_datum for b in tile.buildings} - {"ground", None}
    assert dataset.tiles[2].buildings == [], "an image without annotations is a negative"
    text = capsys.readouterr().out
    assert (
        "cities: 2 Brasilia, 1 NewYork, 1 Copenhagen, 3 unknown" in text and "unknown heights: 5 zero" in text
    )
    assert "17 RLE" not in text and "12 RLE, 5 in several parts, 25 kept" in text


@pytest.mark.parametrize("fault", ["shifted heights", "flipped heights", "shifted picture", "turned labels"])
def test_what_is_out_of_place_would_be_seen(archive, fault):
    """The tests above mean something: each of these faults makes `misplaced` large."""
    for name in TRAIN:
        path = archive / "train" / ("height" if "heights" in fault else "rgb") / f"{name}.tif"
        with rasterio.open(path) as f:
            image = f.read()
        if fault.startswith("shifted"):
            write_tif(path, np.roll(image, 2, axis=2))
        elif fault.startswith("flipped"):
            write_tif(path, image[:, ::-1])

    def turned(content):
        for a in content["annotations"]:
            if isinstance(a["segmentation"], list) and isinstance(a["segmentation"][0], list):
                a["segmentation"] = [
                    [v for x, y in zip(r[::2], r[1::2]) for v in (y, x)] for r in a["segmentation"]
                ]

    if fault.startswith("turned"):
        edit(archive, turned)
    assert misplaced(split(prepare(archive))) > 100


@pytest.mark.parametrize(
    "layout",
    [
        {"spelling": {"height": "dsm"}, "labels": "JSON"},
        {"spelling": {"height": "dsmnpy"}},
        {"products": ("merge", "height")},
        {"products": ("rgb", "merge", "height"), "spelling": {"rgb": "RGB", "height": "Height"}},
        {"flat": True, "spelling": {"height": "dsm"}},
    ],
    ids=["dsm and JSON", "dsmnpy", "merge alone", "SAR of merge", "flat"],
)
def test_spellings_of_folders(tmp_path, layout):
    out = prepare(write_archive(tmp_path / "a", **layout))
    for name in ("train", "val"):
        dataset = split(out, name)
        assert misplaced(dataset) == 0 and len(dataset.tiles) == len(NAMES[name])
    assert split(out, "test").tiles[0].id == 0
    written = [p for p in out.rglob("*.tif") if not p.is_symlink() and "images" not in p.parts]
    assert bool(written) == ("dsmnpy" in str(layout)), "only what no reader of rasters knows is written anew"


def test_a_list_of_images_needs_no_list_of_labels(tmp_path):
    root = write_archive(tmp_path / "a", labels="image_ids")
    listed = json.loads((root / "image_ids" / "image_id_test.json").read_text())
    (root / "image_ids" / "image_id_test.json").write_text(json.dumps({"images": listed["images"]}))
    (root / "image_ids" / "buildings_only_train.json").rename(root / "buildings_only_train.json")
    out = prepare(root)
    assert [t.id for t in split(out, "test").tiles] == [i["id"] for i in listed["images"]]
    assert split(out, "test").info["splits_without_labels"] == ["test"]
    (root / "buildings_only_train.json").write_text(json.dumps({"images": listed["images"]}))
    with raises_naming("buildings_only_train.json", "'annotations'"):
        prepare(root, out="other")


def test_numbers_with_and_without_an_underscore_are_one_image(tmp_path):
    root = write_archive(tmp_path / "a", names={"train": ["P_0000", "P_0001"]}, labelled=("train",))
    edit(root, lambda d: [i.update(file_name=i["file_name"].replace("_", "")) for i in d["images"]])
    assert misplaced(split(prepare(root))) == 0


def test_track_1_counts_its_roofs_and_makes_all_of_them_buildings(tmp_path, capsys):
    root = write_archive(tmp_path / "DFC_Track_1", track=1, products=("rgb", "sar"), labelled=("train",))
    dataset = split(prepare(root))
    assert sum(len(t.buildings) for t in dataset.tiles) == 15
    assert all(b.height_m is None for t in dataset.tiles for b in t.buildings)
    assert dataset.tiles[0].ndsm_file_name is None
    text = capsys.readouterr().out
    assert "roofs: 4 flat_roof, 4 gable_roof, 4 hipped_roof_v1, 3 other" in text
    assert "15 no height raster" in text
    track, parts = find_parts(root, None)
    source = Dfc2023(root, track, parts)
    problems = Problems()
    first = source.make(source.places(problems)[0], tmp_path / "made", problems).tile
    assert [b.attributes["category"] for b in first.buildings] == [ROOFS[i % 4] for i in range(5)]


def test_both_tracks_in_one_folder(archive):
    (archive / "annotations" / "roof_fine_train.json").write_text(json.dumps(document(TRAIN, track=1)))
    assert find_parts(archive, None)[0] == 2
    assert "Track 1" in split(prepare(archive, "--track", 1)).info["description"]


def test_cut_copies_the_pixels_of_every_raster(archive):
    for root, words in (
        (archive, ()),
        (write_archive(archive.parent / "merged", products=("merge", "height")), ()),
    ):
        out = prepare(root, "--cut", *words, out=f"cut_{root.name}")
        moved = root.with_name("gone")
        shutil.move(root, moved)
        assert misplaced(split(out)) == 0, "nothing refers to the archive"
        assert not any(p.is_symlink() for p in out.rglob("*"))
        shutil.move(moved, root)


def test_second_run_changes_nothing_until_a_file_does(archive, capsys):
    out = prepare(archive)
    before = (out / "annotations" / "train.json").stat().st_mtime_ns
    prepare(archive)
    assert (out / "annotations" / "train.json").stat().st_mtime_ns == before
    assert "up to date" in capsys.readouterr().out
    edit(archive, lambda d: d["annotations"].pop())
    with pytest.raises(InputError, match="already exists"):
        prepare(archive)


@pytest.mark.parametrize("zonal, height_m", [("median", 4.0), ("mean", 5.0), ("max", 10.0), ("p90", 10.0)])
def test_statistic_of_the_ndsm(archive, zonal, height_m):
    """The first house of the second tile: 20 x 12 px, of which the left quarter is 10 m, half 4 m and the rest 2 m."""
    path = archive / "train" / "height" / f"{TRAIN[1]}.tif"
    heights_m = pictures(1)["height"]
    heights_m[0, 6:18, 8:13], heights_m[0, 6:18, 13:23], heights_m[0, 6:18, 23:28] = 10, 4, 2
    write_tif(path, heights_m)
    building = split(prepare(archive, "--zonal", zonal)).tiles[1].buildings[0]
    assert building.height_m == pytest.approx(height_m) and building.height_stat == zonal


def test_a_building_that_the_ndsm_does_not_know_has_no_height_and_stays(archive):
    tile = split(prepare(archive)).tiles[0]
    assert (tile.buildings[-1].height_m, tile.buildings[-1].height_source) == (None, None)
    assert tile.buildings[-1].polygon.equals(HOUSES[-1].polygon)


def test_pixel_sizes(archive):
    root = archive
    placed = {"crs": "EPSG:32618", "transform": Affine(0.7, 0, 583_000, 0, -0.7, 4_510_000)}
    for product in ("rgb", "sar", "height"):
        write_tif(root / "train" / product / f"{TRAIN[2]}.tif", pictures(2)[product], **placed)
    tiles = split(prepare(root, "--gsd", "0.6", "GF2=0.8")).tiles
    assert [round(t.gsd_m, 3) for t in tiles] == [0.8, 0.8, 0.7, 0.6], (
        "a georeference says more than an option"
    )
    assert tiles[2].crs == "EPSG:32618"
    for word in ("0", "GF2=", "x"):
        with pytest.raises(InputError, match="metres per pixel"):
            prepare(root, "--gsd", word)


def test_heights_per_pixel_are_those_of_the_raster(archive):
    dataset = split(prepare(archive))
    np.testing.assert_array_equal(tile_height_label(dataset, dataset.tiles[0]), pictures(0)["height"][0])


def test_perfect_answers_to_the_tiles_are_perfect_to_the_contest(archive):
    """Predictions by our ids and file names, scored against the archive's own labels and heights."""
    dataset = split(prepare(archive), "val")
    records = [
        {
            "image_id": tile.id,
            "category_id": 1,
            "score": 0.9,
            "segmentation": encode_rle(polygon_to_mask(building.polygon, SIZE, SIZE)),
            "height_m": building.height_m,
        }
        for tile in dataset.tiles
        for building in tile.buildings
    ]
    truth = read_truth(archive / "annotations" / "buildings_only_val.json", archive / "val" / "height")
    names = {tile.id: f"{stem(tile)}.tif" for tile in dataset.tiles}
    document = json.loads((dataset.root / "annotations" / "val.json").read_text())
    submission = PaintedSubmission(document, records, names, Findings("submission", strict=True))
    numbers = evaluate_dfc2023(truth, submission)
    assert numbers["dfc2023/ap50"] == numbers["dfc2023/delta1"] == 1
    assert numbers["dfc2023_strict/score"] == 1


# ---- Splits ----------------------------------------------------------------------------------------------


def test_held_out_cities_are_the_validation(archive, capsys):
    out = prepare(archive, "--holdout-city", "new york", "Copenhagen")
    assert [stem(t) for t in split(out).tiles] == TRAIN[:2]
    assert [stem(t) for t in split(out, "val").tiles] == TRAIN[2:]
    text = capsys.readouterr().out
    assert "2 tiles are left out: their names do not say of which city" in text
    assert not (out / "annotations" / "test.json").exists()
    with raises_naming("'Brasil'", "'Brasilia'"):
        prepare(archive, "--holdout-city", "Brasil", out="b")
    with pytest.raises(InputError, match="all cities"):
        prepare(archive, "--holdout-city", *("Brasilia", "NewYork", "Copenhagen"), out="b")
    with pytest.raises(InputError, match="pass one of them"):
        prepare(archive, "--holdout-city", "NewYork", "--split", "train=1", "val=1", out="b")


def test_new_splits_keep_cities_whole(tmp_path):
    cities = ("Rio", "Berlin", "Jaipur", "Sydney")
    names = {"train": [f"SV_{city}_{i}.5_{i}.25" for i in range(3) for city in cities]}
    out = prepare(
        write_archive(tmp_path / "a", names=names, labelled=("train",)),
        "--split",
        "train=2",
        "val=1",
        "test=1",
    )
    found = {
        name: {sensor_and_city(t.file_name)[1] for t in split(out, name).tiles}
        for name in ("train", "val", "test")
    }
    assert set.union(*found.values()) == set(cities) and sum(map(len, found.values())) == 4
    assert len(found["train"]) == 2
    ids = [t.id for name in found for t in split(out, name).tiles]
    assert sorted(ids) == list(range(12)), "one file of labels: its numbers are kept"


def test_names_without_a_city_cannot_be_split_by_city(tmp_path):
    root = write_archive(tmp_path / "a", names={"train": ["P_0000", "P_0001"]}, labelled=("train",))
    with pytest.raises(InputError, match="none has one"):
        prepare(root, "--split", "train=1", "val=1")


@pytest.mark.parametrize(
    "name, known",
    [
        ("GF2_Brasilia_-15.8652_-47.9337.tif", ("GF2", "Brasilia")),
        ("SV_New_York_40.7387_-73.9989.tif", ("SV", "New_York")),
        ("P_0000.tif", (None, None)),
        ("P0001.tif", (None, None)),
        ("SV_12_13.tif", (None, None)),
    ],
)
def test_what_a_name_says(name, known):
    assert sensor_and_city(name) == known


def test_splits_that_share_ground_are_told_by_the_names(tmp_path, capsys):
    """96 px of 0.5 m are 48 m; 0.0003 degrees north are 33 m, 0.0005 are 56 m, and east half of that at 60 degrees."""
    near, far = ("60.0003_10.0000", "60.0000_10.0007"), ("60.0005_10.0000", "60.0000_10.0010")
    names = {"train": ["SV_Oslo_60.0000_10.0000"], "val": [f"SV_Oslo_{place}" for place in (*near, *far)]}
    root = write_archive(tmp_path / "a", names=names)
    prepare(root)
    text = capsys.readouterr().out
    assert "problem: 2 tiles on the ground of another split" in text
    assert "val/SV_Oslo_60.0003_10.0000: shares ground with train/SV_Oslo_60.0000_10.0000" in text
    assert "val/SV_Oslo_60.0000_10.0007: shares" in text
    with raises_naming("holdout_city"):
        prepare(root, "--strict", out="strict")


# ---- What goes wrong -------------------------------------------------------------------------------------


def test_the_right_root_is_suggested(archive):
    for wrong in (archive.parent, archive / "train", archive / "train" / "rgb", archive / "annotations"):
        with pytest.raises(InputError, match=f"Did you mean {archive}"):
            prepare(wrong)
    with pytest.raises(InputError, match="is no folder"):
        prepare(archive / "nothing")


def test_labels_that_are_not_there(archive):
    with raises_naming("annotations/roof_fine_train.json", "track=2"):
        prepare(archive, "--track", 1)
    (archive / "annotations" / "buildings_only_val.json").unlink()
    out = prepare(archive)
    assert not (out / "annotations" / "val.json").exists()
    assert any(
        note.startswith("val: left out. There is no buildings_only_val.json")
        for note in split(out).info["notes"]
    )


def _resize(root):
    write_tif(root / "train" / "rgb" / f"{TRAIN[0]}.tif", np.zeros((3, SIZE, SIZE + 4), np.uint8))


def _twin(content):
    content["annotations"][1]["id"] = content["annotations"][0]["id"]


def _break_rle(content):
    next(a for a in content["annotations"] if isinstance(a["segmentation"], dict))["segmentation"][
        "counts"
    ] = "zz"


def _holes(root):
    heights_m = pictures(0)["height"]
    heights_m[0, 6:18, 8:28] = np.nan
    write_tif(root / "train" / "height" / f"{TRAIN[0]}.tif", heights_m)


FAULTS = {
    "labels without an image": (lambda r: (r / "train" / "rgb" / f"{TRAIN[0]}.tif").unlink(), "train/rgb", (-1, -5)),
    "images without labels": (
        lambda r: shutil.copy(r / "train" / "rgb" / f"{TRAIN[0]}.tif", r / "train" / "rgb" / "SV_Rio_1.5_2.5.tif"),
        "SV_Rio_1.5_2.5.tif: no labels list it",
        (0, 0),
    ),
    "tiles without SAR": (
        lambda r: (r / "train" / "sar" / f"{TRAIN[0]}.tif").unlink(), f"sar: has no {TRAIN[0]}", (0, 0),
    ),
    "tiles without a height raster": (
        lambda r: (r / "train" / "height" / f"{TRAIN[0]}.tif").unlink(),
        f"height: has no {TRAIN[0]}",
        (0, 0),
    ),
    "unusable images": (_resize, "100 x 96 px, but buildings_only_train.json says 96 x 96 px", (-1, -5)),
    "broken outlines": (lambda r: edit(r, _break_rle), "annotation 1 of GF2_Brasilia.*damaged RLE", (0, -1)),
    "annotation ids that occur twice": (lambda r: edit(r, _twin), "annotation id 1 occurs again", (0, 0)),
    "height rasters with holes": (_holes, f"{TRAIN[0]}.tif: no height in 240 of {SIZE * SIZE} pixels", (0, 0)),
    "unusable SAR rasters": (
        lambda r: write_tif(r / "train" / "sar" / f"{TRAIN[0]}.tif", np.zeros((1, SIZE, SIZE), np.uint16)),
        "is uint16, expected uint8",
        (0, 0),
    ),
    "unusable height rasters": (
        lambda r: write_tif(r / "train" / "height" / f"{TRAIN[0]}.tif", np.zeros((1, 9, 9), np.float32)),
        "9 x 9 px, but its tile has",
        (0, 0),
    ),
    "images that have annotations and are not listed": (
        lambda r: edit(r, lambda d: d["annotations"][0].update(image_id=99)),
        "1 annotations belong to image 99",
        (0, -1),
    ),
    "records that are no images": (
        lambda r: edit(r, lambda d: d["images"].append({"id": 7})), "expected id, file_name", (0, 0),
    ),
    "images listed twice": (
        lambda r: edit(r, lambda d: d["images"].append(d["images"][0])),
        "image id 3 .* occurs twice",
        (0, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_counted_and_named_and_stop_a_strict_run(archive, kind, capsys):
    whole = split(prepare(archive, out="whole"))
    fault, message, (tiles, buildings) = FAULTS[kind]
    fault(archive)
    dataset = split(prepare(archive))
    text = capsys.readouterr().out
    assert f"problem: 1 {kind}" in text
    assert len(dataset.tiles) == len(whole.tiles) + tiles
    assert (
        sum(len(t.buildings) for t in dataset.tiles) == sum(len(t.buildings) for t in whole.tiles) + buildings
    )
    with pytest.raises(InputError, match=message):
        prepare(archive, "--strict", out="strict")
    assert not (archive.parent / "strict").exists()


def test_rasters_that_end_early_are_not_referred_to(archive, capsys):
    for number, product in enumerate(("rgb", "sar")):
        path = archive / "train" / product / f"{TRAIN[number]}.tif"
        path.write_bytes(path.read_bytes()[:-200])
    dataset = split(prepare(archive))
    assert [stem(t) for t in dataset.tiles] == TRAIN[1:] and dataset.tiles[0].sar_file_name is None
    text = capsys.readouterr().out
    assert "problem: 1 unusable images" in text and "problem: 1 unusable SAR rasters" in text
    assert text.count("damaged or truncated") == 2


def test_the_same_building_once_more_is_dropped(archive, capsys):
    edit(archive, lambda d: d["annotations"].append(d["annotations"][0]))
    assert sum(len(t.buildings) for t in split(prepare(archive)).tiles) == 15
    assert "1 the same once more" in capsys.readouterr().out


def test_lists_of_rle_are_one_building(archive):
    """Not COCO, but seen: the parts of a building as an RLE each."""

    def in_parts(content):
        masks = [polygon_to_mask(part, SIZE, SIZE) for part in HOUSES[2].polygon.geoms]
        parts = [a for a in content["annotations"] if isinstance(a["segmentation"], list)]
        parts = next(a for a in parts if len(a["segmentation"]) == 2)
        parts["segmentation"] = [encode_rle(mask) for mask in masks]

    edit(archive, in_parts)
    assert misplaced(split(prepare(archive))) == 0


def test_strict_is_exit_code_2(archive, capsys):
    (archive / "train" / "sar" / f"{TRAIN[0]}.tif").unlink()
    words = ["dfc2023", "--root", str(archive), "--out", str(archive.parent / "out"), "--strict"]
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: run_words(words))
    assert stop.value.code == 2 and "sar: has no" in capsys.readouterr().err


def test_elevations_are_refused_by_the_name_of_their_file(archive):
    for part in ("train", "val"):
        for number, name in enumerate(NAMES[part]):
            write_tif(archive / part / "height" / f"{name}.tif", pictures(number)["height"] + 120)
    with pytest.raises(InputError, match=f"{archive}/train/height/.*elevations"):
        prepare(archive)
    assert not (archive.parent / "out").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        ("[]", "holds a list"),
        ("no JSON", "none of 'images'"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [{"id": 1}, ', "ends too early"),
        ('{"images": [{"id": }], "annotations": []}', "not valid JSON at byte 12"),
        ('{"images": []}]', "too many"),
    ],
)
def test_what_is_not_coco_is_refused(archive, text, message):
    (archive / "annotations" / "buildings_only_train.json").write_text(text)
    with pytest.raises(InputError, match=f"buildings_only_train.json: .*{message}"):
        prepare(archive)


def test_a_pickle_in_a_height_file_is_not_opened(tmp_path, capsys):
    root = write_archive(tmp_path / "a", spelling={"height": "dsmnpy"})
    np.save(root / "train" / "dsmnpy" / f"{TRAIN[0]}.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert split(prepare(root)).tiles[0].ndsm_file_name is None
    assert "not a NumPy file of numbers" in capsys.readouterr().out


def test_names_in_labels_do_not_leave_the_archive(archive, capsys):
    write_tif(archive.parent / "secret.tif", pictures(0)["rgb"])
    edit(archive, lambda d: d["images"][0].update(file_name="../../secret.tif"))
    assert len(split(prepare(archive)).tiles) == 3
    assert "lists ../../secret.tif, but there is no such image" in capsys.readouterr().out


def test_the_source_goes_to_other_processes(archive, tmp_path):
    track, parts = find_parts(archive, None)
    source = Dfc2023(archive, track, parts)
    places = source.places(Problems())
    there = pickle.loads(pickle.dumps(source))
    for place in places[:2]:
        here, made = (s.make(place, tmp_path / "o", Problems()).tile for s in (source, there))
        assert made == here
