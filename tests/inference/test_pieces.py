"""Pieces of finished blocks keep every bit, and damaged ones do not count."""

from fusiondet.inference.pieces import block_bytes, finished_blocks, load_block, save_block
from fusiondet.jobs.store import Store
from tests.support.scene_cases import plan_of, windows_of

import numpy as np
import pytest

OPTIONS = {"window_px": 100, "overlap_px": 40}


@pytest.fixture
def results(finder, write_scene, city):
    """Of four windows, with what a raster of heights needs of them."""
    plan = plan_of(finder, write_scene(city), sources=("instances",), **OPTIONS)
    found = list(windows_of(finder, plan, range(4)))
    found[2].unreadable_px = 7
    return found


def test_they_keep_every_bit(results, tmp_path):
    with Store(tmp_path / "b.gpkg", {"a": 1}) as store:
        save_block(store, 3, *block_bytes(results))
        assert finished_blocks(store) == {3}
        for kept, was in zip(load_block(store, 3), results, strict=True):
            facts = [(r.index, r.data_px, r.seen_px, r.unreadable_px) for r in (kept, was)]
            assert facts[0] == facts[1] and kept.seen_px > 0
            assert kept.buildings == was.buildings
            np.testing.assert_array_equal(kept.layers["instances"], was.layers["instances"])
        assert load_block(store, 2) is None
        store.remove()


def test_without_rasters_there_is_one_file(results, tmp_path):
    for result in results:
        result.layers = {}
    with Store(tmp_path / "b.gpkg", {}) as store:
        save_block(store, 0, *block_bytes(results))
        assert store.finished() == {"block-000000.parquet"}
        assert [r.layers for r in load_block(store, 0)] == [{}] * 4
        store.remove()


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(p.read_bytes()[:-20]), lambda p: p.unlink()])
def test_a_block_with_a_damaged_or_missing_file_is_not_there(results, tmp_path, suffix, damage):
    with Store(tmp_path / "b.gpkg", {}) as store:
        save_block(store, 0, *block_bytes(results))
        (path,) = store.folder.glob(f"pieces/*{suffix}")
        damage(path)
        assert load_block(store, 0) is None
        store.remove()


def test_what_is_no_piece_is_not_there(tmp_path):
    with Store(tmp_path / "b.gpkg", {}) as store:
        save_block(store, 0, b"of another kind", None)
        assert load_block(store, 0) is None
        store.remove()
