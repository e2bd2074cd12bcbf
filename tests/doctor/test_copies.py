"""A copied image is found by its pixels."""

import shutil

from fusiondet.doctor.copies import check_copies
from tests.support.doctor_cases import found
from tests.support.tiny_city import write_raster, write_split

import numpy as np
import rasterio


def test_copies_are_found_after_lossy_compression_and_brightening(tmp_path):
    write_split(tmp_path, "train", (3, 4, 2), seed=1)
    write_split(tmp_path, "val", (2, 3), seed=2)
    assert found(check_copies, tmp_path)["copies of tiles"].verdict == "ok"
    with rasterio.open(tmp_path / "images/train_1_rgb.tif") as source:
        image = np.clip(source.read() * 1.2 + 10, 0, 255).astype(np.uint8)
    options = {"driver": "JPEG", "width": 64, "height": 64, "count": 3, "dtype": "uint8", "QUALITY": 80}
    with rasterio.open(tmp_path / "copy.jpg", "w", **options) as target:
        target.write(image)
    shutil.move(tmp_path / "copy.jpg", tmp_path / "images/val_0_rgb.tif")
    copies = found(check_copies, tmp_path)["copies of tiles"]
    assert copies.verdict == "FAIL" and copies.numbers["pairs"] == 1
    assert copies.cases[0].image == "images/train_1_rgb.tif"


def test_one_split_has_nothing_to_compare_with(tmp_path):
    write_split(tmp_path, "train", (3, 3))
    assert found(check_copies, tmp_path)["copies of tiles"].verdict == "n/a"


def test_images_without_detail_are_not_compared(tmp_path):
    """Water and clouds look alike everywhere."""
    for split in ("train", "val"):
        write_split(tmp_path, split, (2,))
        write_raster(tmp_path / f"images/{split}_0_rgb.tif", np.full((3, 64, 64), 200, np.uint8))
    finding = found(check_copies, tmp_path)["copies of tiles"]
    assert finding.verdict == "n/a" and finding.numbers == {"compared": 0, "tiles": 2}


def test_of_many_tiles_some_are_compared(tmp_path):
    write_split(tmp_path, "train", (3, 4, 2, 5), seed=1)
    write_split(tmp_path, "val", (2, 3), seed=2)
    finding = found(check_copies, tmp_path, 3)["copies of tiles"]
    assert finding.numbers["tiles"] == 6 and finding.numbers["compared"] == 3
