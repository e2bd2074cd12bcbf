"""Which tiles are read, and how much of a large one."""

from fusiondet.doctor.samples import chosen_tiles, read_samples
from fusiondet.doctor.split_source import read_splits
from fusiondet.geometry.painting import footprint_label
from fusiondet.io.tile_rasters import read_tile
from tests.support.doctor_cases import squares, tile
from tests.support.messages import missing_facts
from tests.support.tiny_city import write_raster, write_split, write_tiles

import numpy as np


def test_samples_are_spread_and_tiles_with_buildings_go_first(tmp_path):
    tiles = [tile(f"{i}.tif", buildings=squares(2 if i % 4 == 0 else 0)) for i in range(80)]
    write_tiles(tmp_path, "train", tiles)
    write_tiles(tmp_path, "val", [tile("v.tif", buildings=squares(2))])
    chosen = [t.file_name for _, t in chosen_tiles(read_splits(tmp_path), 10)]
    assert chosen[-1] == "v.tif" and len(chosen) == 11
    assert all(int(name[:-4]) % 4 == 0 for name in chosen[:-1])
    assert chosen[0] == "0.tif" and chosen[9] == "76.tif"


def test_of_a_mosaic_the_middle_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("fusiondet.doctor.samples.MAX_SIDE_PX", 32)
    write_split(tmp_path, "train", (9,))
    ((split, tile),) = chosen_tiles(read_splits(tmp_path), 1)
    (sample,) = read_samples([(split, tile)])
    whole = read_tile(split.dataset, tile)
    assert np.array_equal(sample.image, whole[:, 16:48, 16:48])
    assert np.array_equal(sample.footprint, footprint_label(tile)[16:48, 16:48]) and sample.footprint.any()


def test_a_small_split_has_its_share_of_the_samples(tmp_path):
    write_tiles(tmp_path, "train", [tile(f"{i}.tif", buildings=squares(1)) for i in range(60)])
    write_tiles(tmp_path, "val", [tile(f"v{i}.tif") for i in range(4)])
    splits = [split.name for split, _ in chosen_tiles(read_splits(tmp_path), 16)]
    assert splits.count("train") == 15 and splits.count("val") == 2  # an eighth of 16


def test_a_tile_that_cannot_be_read_is_a_sample_with_an_error(tmp_path):
    write_split(tmp_path, "train", (3, 2, 1))
    (tmp_path / "images/train_0_rgb.tif").unlink()
    write_raster(tmp_path / "images/train_1_rgb.tif", np.ones((3, 32, 48), np.uint8))
    write_raster(tmp_path / "images/train_1_sar.tif", np.ones((1, 32, 48), np.float32))
    missing, other_size, sound = read_samples(chosen_tiles(read_splits(tmp_path), 3))
    assert missing.image is None and missing_facts(missing.error, "train_0_rgb.tif") == []
    assert other_size.image is None and missing_facts(other_size.error, "48 x 32", "64 x 64") == []
    assert sound.error is None and sound.optical.shape == (3, 64, 64) and sound.sar.shape == (1, 64, 64)
