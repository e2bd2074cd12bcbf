"""Blocks of ground: shares, and no ground in two splits."""

from fusiondet.converters.splits import assign_blocks, conflicts, leaked_area, parse_split
from tests.support.messages import raises_naming

import numpy as np
import pytest
from shapely.geometry import box

THREE = parse_split(["train=8", "val=1", "test=1"])


def grid(columns, rows, side=100, step=100):
    return np.array(
        [
            box(x * step, y * step, x * step + side, y * step + side)
            for y in range(rows)
            for x in range(columns)
        ]
    )


def test_shares():
    assert THREE == {"train": 0.8, "val": 0.1, "test": 0.1}
    assert parse_split(None) == {"train": 1.0}


@pytest.mark.parametrize(
    "word", ["train", "train=", "train=x", "train=0", "train=-1", "train=inf", "../x=1", "=1"]
)
def test_bad_shares(word):
    with raises_naming("NAME=SHARE"):
        parse_split([word])
    with raises_naming("NAME=SHARE"):
        parse_split(["val=1", "val=1"])


def test_shares_are_met_in_whole_blocks():
    grounds = grid(20, 20)
    split = assign_blocks(grounds, THREE, 100, None, seed=1)
    counts = np.bincount(split)
    assert counts.sum() == 400 and abs(counts[0] - 320) <= 16 and min(counts[1:]) >= 16
    blocks = split.reshape(5, 4, 5, 4)
    assert all(len(np.unique(blocks[i, :, j])) == 1 for i in range(5) for j in range(5))
    assert leaked_area(grounds, split) == 0 and conflicts(grounds, split) == {}


def test_same_seed_same_split_other_seed_another():
    grounds = grid(12, 12)
    first, again, other = (assign_blocks(grounds, THREE, 100, None, seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_few_tiles_get_small_blocks():
    split = assign_blocks(grid(3, 3), THREE, 100, None, seed=0)
    assert set(split) == {0, 1, 2}


def test_block_side_is_the_users():
    split = assign_blocks(grid(4, 1), parse_split(["a=1", "b=1"]), 100, 200, seed=0)
    assert split[0] == split[1] != split[2] == split[3]


def test_overlapping_tiles_of_the_earlier_split_give_way():
    grounds = grid(4, 1, side=120)
    split = np.array([0, 0, 1, 2])
    assert conflicts(grounds, split) == {1: [2], 2: [3]}
    assert leaked_area(grounds, split) == 2 * 20 * 120
    split[1:3] = -1  # left out: they share nothing
    assert conflicts(grounds, split) == {} and leaked_area(grounds, split) == 0
