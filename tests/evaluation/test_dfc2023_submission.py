"""Submissions to Track 2 of DFC2023: written, read back, and what is wrong with them."""

import json
import zipfile
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.evaluation.dfc2023_scoring import (
    dfc2023_table,
    evaluate_dfc2023,
    read_truth,
)
from fusiondet.evaluation.dfc2023_submission import (
    FINDINGS,
    Findings,
    PaintedSubmission,
    ZippedSubmission,
    write_submission,
)
from fusiondet.io.coco import encode_rle
from tests.support.contest_cases import SIZE, result, write_tif
from tests.support.contest_zips import POLYGON, record_changed, scored, zipped
from tests.support.messages import raises_naming

import numpy as np
import pytest


def _unlink(folder):
    (folder / "height/P_0002.tif").unlink()


def _of_shape(*shape):
    return lambda folder: write_tif(folder / "height/P_0002.tif", np.zeros(shape, np.float32))


def _with_nan(folder):
    write_tif(folder / "height/P_0002.tif", np.full((SIZE, SIZE), np.nan, np.float32))


def _truncated(folder):
    data = (folder / "height/P_0002.tif").read_bytes()
    (folder / "height/P_0002.tif").write_bytes(data[: len(data) // 3])


def _vrt(folder):
    other = folder.parent / "ref/height/P_0002.tif"
    text = (
        f'<VRTDataset rasterXSize="{SIZE}" rasterYSize="{SIZE}"><VRTRasterBand dataType="Float32" band="1"><Simple'
        f"Source><SourceFilename>{other}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (folder / "height/P_0002.tif").write_text(text)


def _as_text(text):
    return lambda folder: (folder / "seg_results.json").write_text(text)


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        (_unlink, "missing_tile", "P_0002.tif"),
        (_of_shape(SIZE, SIZE + 1), "wrong_shape", "P_0002.tif (1 x 40 x 41"),
        (_with_nan, "nan_height", "P_0002.tif (1600 px)"),
        (_truncated, "unreadable_tile", "P_0002.tif"),
        (_vrt, "unreadable_tile", "P_0002.tif"),
        (lambda f: (f / "seg_results.json").unlink(), "no_instances", "seg_results.json is missing"),
        (_as_text("[]"), "no_instances", "seg_results.json is empty"),
        (_as_text('{"a": 1}'), "no_instances", "holds dict, not a list"),
        (_as_text("[{"), "no_instances", "not valid JSON"),
        (_as_text("[" * 100_000), "no_instances", "not valid JSON"),
        (record_changed(image_id=99), "unknown_image", "record 0 (image 99)"),
        (record_changed(image_id=[1]), "broken_record", "record 0"),
        (record_changed(score=...), "broken_record", "record 0"),
        (record_changed(score="high"), "broken_record", "record 0"),
        (record_changed(score=10**4000), "broken_record", "record 0"),
        (record_changed(category_id=3), "other_category", "record 0 (category 3)"),
        (record_changed(segmentation=POLYGON), "uncompressed_mask", "record 0"),
        (record_changed(segmentation={"size": [SIZE, SIZE], "counts": "zzz"}), "broken_mask", "record 0"),
        (record_changed(segmentation={"size": [SIZE, SIZE], "counts": [5, 3]}), "broken_mask", "record 0"),
        (
            record_changed(segmentation={"size": [9, 9], "counts": "Q3"}),
            "mask_size",
            "record 0 ([9, 9], expected",
        ),
        (record_changed(segmentation={"size": 9, "counts": "Q3"}), "mask_size", "record 0 (9, expected"),
        (lambda f: (f / "notes.txt").write_text("hi"), "unexpected_member", "notes.txt"),
        (lambda f: (f / "height/.DS_Store").write_text("x"), "unknown_tile", ".DS_Store"),
    ],
)
def test_what_is_wrong_is_counted_named_and_with_strict_refused(small, change, kind, named):
    truth, folder = small
    change(folder)
    path = zipped(folder, folder.parent / "s.zip")
    numbers, findings = scored(truth, path)
    assert findings.counts[kind] >= 1 and numbers[f"dfc2023/found_{kind}"] == findings.counts[kind]
    (line,) = [line for line in findings.lines() if FINDINGS[kind][0] in line]
    assert named in line and ("scorer stops" in line) == FINDINGS[kind][1]
    assert named in dfc2023_table(numbers, findings)
    assert 0 <= numbers["dfc2023_strict/score"] <= 1
    with raises_naming("s.zip", "strict"):
        scored(truth, path, strict=True)


def _of_version_20_8(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("seg_results.json", "[]")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 6] = 208
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory; expected a zip"),
        (lambda path: path.write_text("no"), "not a zip"),
        (_of_version_20_8, "not a zip, or a damaged one.*version 20.8"),
    ],
)
def test_what_is_no_zip_is_refused(small, tmp_path, make, message):
    make(tmp_path / "s.zip")
    with pytest.raises(InputError, match=message):
        scored(small[0], tmp_path / "s.zip")


def predictions() -> list[dict]:
    """Three houses of the first tile, two of which overlap, and one of the last."""
    return [
        {**result(1, (2, 2, 10, 10), 0.6), "height_m": 5.0},
        {**result(1, (8, 2, 10, 10), 0.9), "height_m": 7.25},
        {**result(1, (30, 30, 5, 5), 0.9), "height_m": None},
        {**result(4, (0, 0, 4, 4), 0.2), "height_m": 3.0},
    ]


def test_a_written_submission_reads_back_as_painted(small, tmp_path):
    truth, _ = small
    painted = PaintedSubmission(truth.document, predictions(), truth.names, Findings("p"), category_id=1)
    assert painted.without_height == 1
    for path in (tmp_path / "a.zip", tmp_path / "b.zip"):
        write_submission(painted, truth.shapes, path)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    expected = np.zeros((SIZE, SIZE), np.float32)
    expected[2:12, 2:12] = 5
    expected[2:12, 8:18] = 7.25  # the better score is on top
    with ZippedSubmission(tmp_path / "a.zip", Findings("a", strict=True)) as read:
        assert read.height_names == ["P_0001.tif", "P_0002.tif", "P_0003.tif", "P_0004.tif"]
        first = read.read_height("P_0001.tif", (SIZE, SIZE))
        np.testing.assert_array_equal(first, expected)
        assert first.dtype == np.float32
        assert not read.read_height(
            "P_0004.tif", (SIZE, SIZE)
        ).any()  # listed, but below the score of the map
        assert [r["image_id"] for r in read.records] == [1, 1, 1, 4]
        assert read.records[0]["segmentation"] == encode_rle(
            np.pad(np.ones((10, 10), bool), ((2, 28), (8, 22)))
        )
    numbers, findings = scored(truth, tmp_path / "a.zip", strict=True)
    assert numbers == evaluate_dfc2023(truth, painted) and not findings.lines()


def test_ids_and_category_are_those_of_the_contest(tmp_path):
    images = [{"id": 417, "file_name": "P_0417.tif", "width": SIZE, "height": SIZE}]
    document = {"images": images, "categories": [{"id": 5, "name": "building"}]}
    (tmp_path / "test.json").write_text(json.dumps(document))
    truth = read_truth(tmp_path / "test.json", scored=False)
    records = [{**result(417, (0, 0, 4, 4), 0.9), "height_m": 3.0}]
    painted = PaintedSubmission(
        truth.document, records, truth.names, Findings("p"), truth.category_ids[0], score_threshold=0.95
    )
    write_submission(painted, truth.shapes, tmp_path / "s.zip")
    with ZippedSubmission(tmp_path / "s.zip", Findings("s", strict=True)) as read:
        assert (read.records[0]["image_id"], read.records[0]["category_id"]) == (417, 5)
        assert read.height_names == ["P_0417.tif"]
        assert not read.read_height("P_0417.tif", (SIZE, SIZE)).any()


def test_predictions_of_other_images_are_refused_and_nothing_is_written(small, tmp_path):
    truth, _ = small
    with raises_naming("image 9"):
        PaintedSubmission(truth.document, [result(9, (0, 0, 4, 4), 0.9)], truth.names, Findings("p"))
    assert not list(tmp_path.glob("*.zip"))
