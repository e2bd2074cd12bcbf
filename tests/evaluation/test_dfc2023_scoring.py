"""Track 2 of DFC2023: the numbers of the published scorer, honest ones beside them, and zips of every kind."""

import json
import struct
import zipfile
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.evaluation.dfc2023_scoring import (
    contest_heights,
    dfc2023_table,
    read_truth,
    scores_txt,
)
from tests.support.contest_cases import CASES, SIZE, Contest, contest, result, write_tif
from tests.support.contest_zips import POLYGON, record_changed, scored, zipped
from tests.support.messages import raises_naming

import numpy as np
import pytest

PUBLISHED = json.loads(Path(__file__).with_name("published_scores.json").read_text())["dfc2023"]["cases"]


# ---- The published program -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_the_published_program(name, tmp_path):
    contest(name).write(tmp_path)
    truth = read_truth(tmp_path / "ref/buildings_only_val.json", tmp_path / "ref/height")
    numbers, _ = scored(truth, zipped(tmp_path / "res", tmp_path / "s.zip"))
    published = dict(PUBLISHED[name])
    assert scores_txt(numbers) == published.pop("scores.txt")
    for key, value in published.items():
        # Errors in metres are sums of float32, whose order is numpy's own affair.
        close = pytest.approx(value, rel=1e-6) if key.startswith("labelled") and value is not None else value
        assert numbers[f"dfc2023/{key}"] == close, key
    assert numbers["dfc2023/labelled_mae"] == numbers["dfc2023/rmse_m"]
    assert numbers["dfc2023/labelled_rmse"] == numbers["dfc2023/mse_m2"]
    json.dumps(numbers, allow_nan=False)


def test_every_published_number_is_compared():
    assert set(PUBLISHED) == set(CASES) and len(CASES) >= 20


# ---- Rules one can draw ----------------------------------------------------------------------------------


def tile(*values) -> np.ndarray:
    return np.array([values], np.float32)


@pytest.mark.parametrize(
    ("predicted", "truth", "delta1"),
    [
        (tile(0, 0), tile(0, -3), 1.0),  # ground found
        (tile(0, 0), tile(0.01, 0.01), 0.0),  # a ground of 1 cm
        (tile(0.01, 0.1), tile(0, 0), 0.0),  # as little as 1 cm on true ground
        (tile(10, 12.4, 12.5, 8.1, 8.0), tile(10, 10, 10, 10, 10), 3 / 5),  # 1.25 itself is wrong
        (tile(-1, -1), tile(999, 0), 1 / 2),  # negative is 999 m
        (tile(np.nan, 5), tile(5, 5), 1 / 2),
        (np.array([[0, 5]], np.int16), tile(0, 5), 1 / 2),  # a whole 0 stays 0
        (np.array([[0, 5]], np.uint8), tile(0, 5), 1 / 2),
    ],
)
def test_delta1_by_the_rules_of_the_contest(predicted, truth, delta1):
    before = predicted.copy(), truth.copy()
    assert contest_heights(predicted, truth)["delta1"] == pytest.approx(delta1)
    for now, then in zip((predicted, truth), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_tile_of_which_nothing_is_known_has_no_delta():
    scores = contest_heights(tile(np.nan), tile(np.nan))
    assert np.isnan(scores["delta1"]) and scores["background_share"] == 0


def test_a_map_of_zeros_scores_the_background_and_nothing_on_buildings(small):
    truth, folder = small
    for path in (folder / "height").iterdir():
        write_tif(path, np.zeros((SIZE, SIZE), np.float32))
    numbers, _ = scored(truth, zipped(folder, folder.parent / "s.zip"))
    assert numbers["dfc2023/delta1"] == numbers["dfc2023/background_share"] > 0.7
    assert numbers["dfc2023/delta1_background"] == numbers["dfc2023/delta1"]
    assert numbers["dfc2023_strict/delta1"] == 0


def test_tiles_left_out_cost_nothing_in_the_contest_and_their_buildings_here(small):
    truth, folder = small
    whole, _ = scored(truth, zipped(folder, folder.parent / "whole.zip"))
    best = max((contest_heights(*pair_of(folder, name))["delta1"], name) for name in truth.images)
    for path in (folder / "height").iterdir():
        if path.name != best[1]:
            path.unlink()
    part, findings = scored(truth, zipped(folder, folder.parent / "part.zip"))
    assert part["dfc2023/delta1"] == best[0] > whole["dfc2023/delta1"]
    assert part["dfc2023_strict/delta1"] < whole["dfc2023_strict/delta1"]
    assert part["dfc2023_strict/n_building_pixels"] == whole["dfc2023_strict/n_building_pixels"]
    assert findings.counts == {"missing_tile": 3} and not findings.stops_scorer
    assert part["dfc2023/found_missing_tile"] == 3 and part["dfc2023/n_tiles_scored"] == 1


def pair_of(folder: Path, name: str):
    import rasterio

    with (
        rasterio.open(folder / "height" / name) as p,
        rasterio.open(folder.parent / "ref/height" / name) as t,
    ):
        return p.read(1), t.read(1)


def test_strict_delta1_is_of_building_pixels_of_known_height_pooled(tmp_path):
    case = Contest(0, tiles=2)
    case.document["annotations"] = [
        case._annotation(1, 1, (0, 0, 10, 10)),
        case._annotation(2, 2, (0, 0, 20, 20)),
    ]
    for name, side in (("P_0001.tif", 10), ("P_0002.tif", 20)):
        case.truth[name] = np.zeros((SIZE, SIZE), np.float32)
        case.truth[name][:side, :side] = 10
        case.heights[name] = np.full((SIZE, SIZE), 10, np.float32)
    case.truth["P_0002.tif"][:, :10] = 0  # half of the second house has no height: unknown, not 0
    case.heights["P_0001.tif"][:] = 20
    case.results = [result(1, (0, 0, 10, 10), 0.9), result(2, (0, 0, 20, 20), 0.9)]
    case.write(tmp_path)
    truth = read_truth(tmp_path / "ref/buildings_only_val.json", tmp_path / "ref/height")
    numbers, _ = scored(truth, zipped(tmp_path / "res", tmp_path / "s.zip"))
    # 100 wrong pixels of the first house, 200 right ones of the second.
    assert numbers["dfc2023_strict/n_building_pixels"] == 300
    assert numbers["dfc2023_strict/delta1"] == pytest.approx(2 / 3)
    assert numbers["dfc2023_strict/mae_m"] == pytest.approx(10 / 3)
    assert numbers["dfc2023_strict/score"] == pytest.approx((1 + 2 / 3) / 2)


def test_strict_ap50_finds_the_annotation_of_id_0(tmp_path):
    case = Contest(0, tiles=1)
    case.document["annotations"] = [case._annotation(0, 1, (2, 2, 10, 10))]
    case.results = [result(1, (2, 2, 10, 10), 0.9)]
    case.write(tmp_path)
    truth = read_truth(tmp_path / "ref/buildings_only_val.json", tmp_path / "ref/height")
    numbers, _ = scored(truth, zipped(tmp_path / "res", tmp_path / "s.zip"))
    assert numbers["dfc2023/ap50"] == 0 and numbers["dfc2023_strict/ap50"] == pytest.approx(1)


# ---- Zips ------------------------------------------------------------------------------------------------


def _misnamed(folder):
    (folder / "height/P_0002.tif").rename(folder / "height/P_0002.tiff")


def test_a_submission_without_fault_has_no_findings(small):
    truth, folder = small
    numbers, findings = scored(truth, zipped(folder, folder.parent / "s.zip"), strict=True)
    assert not findings.lines() and not any("found_" in key for key in numbers)
    text = dfc2023_table(numbers, findings)
    assert "contest, 4 of 4 tiles: mAP:0.085, AP_50:0.412, Delta_1:0.7953" in text and "Score:0.6036" in text


def test_a_wrong_name_is_both_an_unknown_and_a_missing_tile(small):
    truth, folder = small
    _misnamed(folder)
    _, findings = scored(truth, zipped(folder, folder.parent / "s.zip"))
    assert findings.counts == {"unknown_tile": 1, "missing_tile": 1} and findings.stops_scorer


def test_breaking_a_mask_does_not_raise_the_score(small):
    truth, folder = small
    record_changed(segmentation=POLYGON, score=1.0, image_id=1)(folder)
    as_polygon, _ = scored(truth, zipped(folder, folder.parent / "a.zip"))
    record_changed(segmentation={"size": [SIZE, SIZE], "counts": "zzz"})(folder)
    broken, _ = scored(truth, zipped(folder, folder.parent / "b.zip"))
    assert broken["dfc2023/n_instances"] == as_polygon["dfc2023/n_instances"]
    assert broken["dfc2023_strict/ap50"] <= as_polygon["dfc2023_strict/ap50"]


@pytest.mark.parametrize(
    ("rename", "kind", "stops"),
    [
        (lambda name: f"results/{name}", "nested_folder", True),
        (lambda name: f"a/b/{name}", "nested_folder", True),
        (lambda name: name.replace("/", "\\"), "backslash", True),
    ],
)
def test_zips_of_folders_and_of_windows_are_read_all_the_same(small, rename, kind, stops):
    truth, folder = small
    right, _ = scored(truth, zipped(folder, folder.parent / "right.zip"))
    numbers, findings = scored(truth, zipped(folder, folder.parent / "s.zip", rename))
    assert list(findings.counts) == [kind] and findings.stops_scorer == stops
    assert numbers["dfc2023/score"] == right["dfc2023/score"] and numbers["dfc2023/n_tiles_scored"] == 4


def test_what_a_mac_adds_beside_the_content_is_no_fault(small):
    truth, folder = small
    path = zipped(folder, folder.parent / "s.zip")
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("__MACOSX/._seg_results.json", "__MACOSX/height/._P_0001.tif", ".DS_Store", "height/"):
            archive.writestr(name, b"x" if not name.endswith("/") else b"")
    assert not scored(truth, path)[1].lines()


def test_names_that_lead_out_of_the_zip_are_not_followed(small, tmp_path):
    truth, folder = small
    path = zipped(
        folder, tmp_path / "s.zip", lambda name: name.replace("height/P_0002", "height/../../P_0002")
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("/etc/passwd", b"x")
        archive.writestr("C:/height/P_0002.tif", b"x")
    before = sorted(tmp_path.rglob("*"))
    _, findings = scored(truth, path)
    assert findings.counts == {"unsafe_name": 3, "missing_tile": 1} and sorted(tmp_path.rglob("*")) == before


def test_a_member_that_is_there_twice_counts_once(small):
    truth, folder = small
    path = zipped(folder, folder.parent / "s.zip")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.write(folder / "height/P_0001.tif", "height/P_0002.tif")
    numbers, findings = scored(truth, path)
    assert findings.counts == {"twice": 1} and numbers["dfc2023/n_tiles_scored"] == 4


def test_a_bomb_is_not_unpacked(small):
    truth, folder = small
    (folder / "height/P_0002.tif").write_bytes(bytes(64 << 20))
    path = folder.parent / "s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
    assert path.stat().st_size < 1 << 20
    _, findings = scored(truth, path)
    assert findings.counts == {"unreadable_tile": 1} and "67108864 bytes unpacked" in findings.lines()[0]


def test_a_bomb_that_lies_about_its_size_is_cut_off(small):
    truth, folder = small
    (folder / "height/P_0002.tif").write_bytes(bytes(32 << 20))
    path = folder.parent / "s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
    data = path.read_bytes().replace(struct.pack("<L", 32 << 20), struct.pack("<L", 4000))
    path.write_bytes(data)
    _, findings = scored(truth, path)
    assert findings.counts == {"unreadable_tile": 1} and "damaged" in findings.lines()[0]


def test_a_damaged_member_is_named(small):
    truth, folder = small
    path = zipped(folder, folder.parent / "s.zip")
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("height/P_0002.tif").header_offset
    data = bytearray(path.read_bytes())
    data[offset + 1000] ^= 0xFF
    path.write_bytes(data)
    _, findings = scored(truth, path)
    assert findings.counts == {"unreadable_tile": 1} and "P_0002.tif (damaged" in findings.lines()[0]


def test_an_encrypted_member_is_named(small):
    truth, folder = small
    path = zipped(folder, folder.parent / "s.zip")
    data = bytearray(path.read_bytes())
    at = data.rindex(
        b"height/P_0002.tif"
    )  # in the central directory, whose flags lie 38 bytes before the name
    data[at - 38] |= 1
    path.write_bytes(data)
    _, findings = scored(truth, path)
    assert findings.counts == {"unreadable_tile": 1} and "encrypted" in findings.lines()[0]


# ---- Truth -----------------------------------------------------------------------------------------------


def rewritten(tmp_path: Path, change) -> Path:
    path = tmp_path / "ref/buildings_only_val.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["categories"][0].update(name="gable_roof"),
            "no category is called 'building'.*gable_roof",
        ),
        (
            lambda d: d["images"][1].update(file_name="a/P_0001.png"),
            "images 1 and 2 are both called P_0001.tif",
        ),
        (
            lambda d: (d["images"][1].update(id="two"), d.update(annotations=[])),
            "some ids of images are numbers",
        ),
        (
            lambda d: d["annotations"][1].update(id=1),
            "annotation 1: expected ids that are whole numbers, each",
        ),
        (
            lambda d: d["annotations"][0].update(segmentation={"size": [3, 3], "counts": "09"}),
            "annotation 1: RLE of size",
        ),
        (
            lambda d: (d["images"][0].update(width=SIZE + 1), d.update(annotations=[])),
            "P_0001.tif: 1 x 40 x 40 .*expected 1 x 40 x 41",
        ),
    ],
)
def test_truth_that_cannot_be_scored_against_is_refused(small, tmp_path, change, message):
    path = rewritten(tmp_path, change)
    zipped(tmp_path / "res", tmp_path / "s.zip")
    with pytest.raises(InputError, match=message):
        scored(read_truth(path, tmp_path / "ref/height"), tmp_path / "s.zip")


def test_a_folder_of_heights_one_level_off_is_named(small, tmp_path):
    path = tmp_path / "ref/buildings_only_val.json"
    with raises_naming("4 of 4", "ref/height?"):
        read_truth(path, tmp_path / "ref")
    (tmp_path / "ref/height/deeper").mkdir()
    with pytest.raises(InputError, match=r"Did you mean .*ref/height\?"):
        read_truth(path, tmp_path / "ref/height/deeper")
    (tmp_path / "ref/height/P_0003.tif").unlink()
    with raises_naming("1 of 4", "P_0003.tif"):
        read_truth(path, tmp_path / "ref/height")
    with pytest.raises(InputError, match="no such folder"):
        read_truth(path, tmp_path / "elsewhere")
    with raises_naming("ndsm_file_name", "heights"):
        read_truth(path)


def test_true_heights_are_found_through_our_own_annotations(small, tmp_path):
    def add(document):
        for image in document["images"]:
            image["ndsm_file_name"] = f"height/{image['file_name']}"
            image["file_name"] = f"rgb/{image['file_name']}"

    path = zipped(tmp_path / "res", tmp_path / "s.zip")
    expected, _ = scored(small[0], path)
    numbers, findings = scored(read_truth(rewritten(tmp_path, add)), path)
    assert numbers == expected and not findings.lines()


def test_names_keep_their_coordinates(tmp_path):
    images = [
        {"id": n, "file_name": name, "width": 8, "height": 8}
        for n, name in enumerate(
            ("GF2_Rio_-22.88_-43.21", "GF2_Rio_-22.88_-43.25.tif", "SV_Rio_-22.9_-43.1.png")
        )
    ]
    (tmp_path / "test.json").write_text(json.dumps({"images": images}))
    truth = read_truth(tmp_path / "test.json", scored=False)
    assert list(truth.images) == [
        "GF2_Rio_-22.88_-43.21",
        "GF2_Rio_-22.88_-43.25.tif",
        "SV_Rio_-22.9_-43.1.tif",
    ]


# ---- Writing ---------------------------------------------------------------------------------------------
