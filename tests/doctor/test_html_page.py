"""The page of findings stands alone, shows the worst tiles, and escapes all text from the data."""

import html
import re
from dataclasses import replace
from pathlib import Path

from fusiondet.doctor.examination import examine
from fusiondet.doctor.findings import Case, Finding
from fusiondet.doctor.html_page import CASES_PER_FINDING, page, write_page
from fusiondet.doctor.split_source import read_splits
from fusiondet.io.coco import read_coco
from tests.support.doctor_cases import edit
from tests.support.tiny_city import write_split

import pytest

IMAGE_DATA = "data:image/jpeg;base64,"


def test_the_page_is_self_contained_and_escaped(copy_of_city, tmp_path):
    evil = '<script>alert("x")</script>.tif'
    tile = read_coco(copy_of_city / "annotations" / "val.json").tiles[0]
    edit(copy_of_city, "val", lambda tiles: [*tiles[1:], replace(tile, file_name=evil, id=None)])
    splits, findings = examine(copy_of_city, max_detections=5)
    text = page(Path(evil), splits, findings)
    assert "<script" not in text and html.escape(evil) in text
    assert text.count("data:image/jpeg;base64,") >= 6  # three dense tiles, optical and SAR
    links = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^"\s>)]+)', text)
    assert links and all(link.startswith("data:image/jpeg") for link in links)
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", text)


@pytest.fixture
def splits(tmp_path):
    """One split of three readable tiles with an optical and a SAR image each."""
    write_split(tmp_path, "train", (3, 2, 4))
    return read_splits(tmp_path)


def test_only_what_needs_attention_shows_images(splits):
    cases = tuple(Case("train", f"images/train_{i}_rgb.tif", f"note {i}") for i in range(3))
    findings = [
        Finding("sound", "ok", "fine", cases=cases),
        Finding("broken", "FAIL", "two are bad", "Mend them.", {"bad": 2}, cases[:2]),
    ]
    text = page(Path("city"), splits, findings)
    assert text.count(IMAGE_DATA) == 2 * 2  # two tiles, optical and SAR
    assert text.index("broken") < text.index("sound")
    for words in ("two are bad", "Mend them.", "note 0", "note 1", "&quot;bad&quot;: 2"):
        assert words in text
    assert "note 2" not in text


def test_of_many_tiles_the_first_are_shown_and_the_others_named(splits):
    cases = tuple(Case("train", f"images/train_{i % 3}_rgb.tif", f"note {i}") for i in range(5))
    text = page(Path("city"), splits, [Finding("a", "warn", "many", "", {}, cases)])
    assert text.count("<figure>") == CASES_PER_FINDING < 5
    assert "note 4" in text


def test_a_tile_that_cannot_be_read_or_is_unknown_has_no_image(splits, tmp_path):
    (tmp_path / "images/train_0_rgb.tif").write_bytes(b"no raster")
    cases = (Case("train", "images/train_0_rgb.tif"), Case("train", "elsewhere.tif"))
    text = page(Path("city"), splits, [Finding("a", "FAIL", "bad", "", {}, cases)])
    assert IMAGE_DATA not in text and "elsewhere.tif" in text


def test_a_split_that_cannot_be_read_stands_in_the_overview(tmp_path):
    write_split(tmp_path, "train", (2,))
    (tmp_path / "annotations/val.json").write_text("{")
    out = tmp_path / "report.html"
    write_page(out, tmp_path, read_splits(tmp_path), [Finding("a", "ok", "fine")])
    rows = re.findall(r"<tr><td>(\w+)</td>(.*?)</tr>", out.read_text(encoding="utf-8"))
    assert [name for name, _ in rows] == ["train", "val"]
    assert re.findall(r"<td>(\d+)</td>", rows[0][1]) == [
        "1",
        "0",
        "2",
        "2",
    ]  # images, empty, buildings, with height
    assert not re.findall(r"<td>(\d+)</td>", rows[1][1])
