"""Missing, damaged and moved files; constant, clipped and black bands; labels on no data."""

import json
from dataclasses import replace

from fusiondet.doctor.pixel_values import PixelCheck, check_files
from fusiondet.files import write_json
from tests.support.doctor_cases import UTM, by_name, found, looked
from tests.support.tiny_city import write_split

import numpy as np
import pytest
import rasterio


def test_missing_damaged_moved_and_wrongly_sized_files(tmp_path):
    write_split(tmp_path, "train", (3, 2, 1, 4, 2))
    names = [tmp_path / f"images/train_{i}_rgb.tif" for i in range(5)]
    assert {f.verdict for f in found(check_files, tmp_path).values()} == {"ok"}
    names[0].unlink()
    names[1].write_bytes(b"no raster")
    with rasterio.open(names[2], "w", driver="GTiff", width=63, height=64, count=3, dtype="uint16") as f:
        f.write(np.ones((3, 64, 63), np.uint16))
    result = found(check_files, tmp_path)
    files = result["raster files"]
    assert files.verdict == "FAIL" and files.numbers["files"] == 10
    assert (files.numbers["missing"], files.numbers["unreadable"], files.numbers["other_size"]) == (1, 1, 1)
    assert result["data types"].verdict == "FAIL"


def test_annotations_that_place_a_tile_elsewhere_than_its_file(tmp_path):
    path = write_split(tmp_path, "train", (3, 2))
    document = json.loads(path.read_text())
    for image in document["images"]:
        image["crs"], image["transform"] = UTM, [0.5, 0, 600000, 0, -0.5, 5800000]
    write_json(document, path)
    assert found(check_files, tmp_path)["georeference of the files"].verdict == "ok"
    document["images"][0]["transform"][4] = 0.5  # y grows upwards
    write_json(document, path)
    place = found(check_files, tmp_path)["georeference of the files"]
    assert place.verdict == "FAIL" and place.numbers == {"other_transform": 2}  # optical and SAR


def pixel_findings(samples):
    return by_name(looked(PixelCheck(), samples).findings([], 10))


def test_pixels_of_a_clean_city(samples):
    assert {finding.verdict for finding in pixel_findings(samples).values()} == {"ok"}


def test_holes_under_footprints(samples):
    def hide(sample):
        image = np.where(sample.footprint, np.nan, sample.image).astype(np.float32)
        image[3:] = sample.image[3:]
        return replace(sample, image=image)

    found = pixel_findings([hide(s) if i < 5 else s for i, s in enumerate(samples)])["no data under labels"]
    shares = [len(s.tile.buildings) for s in samples]
    assert found.verdict == "FAIL"
    assert found.numbers["optical_share"] == pytest.approx(sum(shares[:5]) / sum(shares))
    assert found.numbers["SAR_share"] == 0


def test_black_borders_constant_and_clipped_bands(samples):
    image = samples[0].image.copy()
    image[:3, :40] = 0
    found = pixel_findings([replace(samples[0], image=image)])["undeclared borders"]
    assert found.verdict == "warn" and found.cases[0].note == "25 % exactly 0"
    image = samples[0].image.copy()
    image[1] = 7
    found = pixel_findings([replace(samples[0], image=image)])["ranges of the bands"]
    assert found.verdict == "FAIL" and found.detail.startswith("Constant: green of train")
    image = np.minimum(samples[0].image, np.percentile(samples[0].image[0], 80))
    found = pixel_findings([replace(samples[0], image=image)])["ranges of the bands"]
    assert found.verdict == "warn" and "clipped" in found.detail


def test_unreadable_tiles_are_named(samples):
    broken = replace(samples[0], image=None, error="damaged")
    found = pixel_findings([broken, *samples[1:]])["pixels"]
    assert found.verdict == "FAIL" and found.cases[0].note == "damaged"
