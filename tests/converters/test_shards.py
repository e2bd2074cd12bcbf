"""Pieces of a conversion: which tiles are in them, what is made again, and what is removed."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from fusiondet.buildings import Building, Tile
from fusiondet.converters.shards import CHUNK, Shards, _make_piece_on_cluster, remove_own
from fusiondet.converters.source import Made, Place
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.jobs.store import Store

import pytest
import shapely

COUNT = 2 * CHUNK + 3
PLACES = [Place(f"t{i}", i, (0, 0, 100, 100)) for i in range(COUNT)]


@dataclass
class Squares:
    """A tile with one building at each place, and a file that says its size; notes what it is asked for in `log`."""

    log: Path
    bands: BandSpec = BandSpec()
    nodata: float | None = None

    def make(self, place, out, problems):
        with open(self.log, "a") as log:
            log.write(f"{place.image} ")
        if place.image == 1:
            raise InputError("t1: damaged.")
        if place.image == 2:
            problems.add("odd heights", "t2: odd.")
            return Made(None, {"tiles": Counter(empty=1)})
        _, _, width, height = place.window
        path = out / f"{place.name}_{width}.txt"
        path.write_text(f"{width} {height}")
        house = Building(shapely.box(5, 5, 15, 15), height_m=5.0)
        return Made(
            Tile(path.name, width, height, 1.0, buildings=[house]), {"labels": Counter(kept=1)}, ["seen"]
        )


@pytest.fixture
def source(tmp_path):
    return Squares(tmp_path / "log")


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "out", {}) as store:
        yield store


def asked(source):
    """Numbers of the places that `source` was asked for since the last call."""
    numbers = [int(word) for word in source.log.read_text().split()] if source.log.exists() else []
    source.log.unlink(missing_ok=True)
    return numbers


def made(store, source, strict=False):
    shards = Shards(store, PLACES)
    shards.make(source, strict)
    return shards


def test_lines_are_all_places_in_their_order(store, source):
    shards = made(store, source)
    lines = list(shards.lines())
    assert [line["i"] for line in lines] == list(range(COUNT))
    assert store.finished() == {"000000000.jsonl", f"{CHUNK:09d}.jsonl", f"{2 * CHUNK:09d}.jsonl"}
    assert list(shards.remade()) == []


def test_a_line_is_a_tile_or_why_there_is_none(store, source):
    tile, damaged, empty, *_ = made(store, source).lines()
    assert tile["image"]["file_name"] == "t0_100.txt" and len(tile["annotations"]) == 1
    assert tile["counts"] == {"labels": {"kept": 1}} and tile["notes"] == ["seen"] and tile["problems"] == []
    assert damaged == {"i": 1, "unusable": "t1: damaged."}
    assert empty["image"] is None and empty["annotations"] == []
    assert empty["problems"] == [["odd heights", "t2: odd."]] and empty["problem_counts"] == {
        "odd heights": 1
    }


def test_where_strict_a_damaged_tile_stops_all(store, source):
    with pytest.raises(InputError, match="^t1: damaged.$"):
        made(store, source, strict=True)
    assert asked(source) == [0, 1] and store.finished() == set()


def test_only_pieces_that_are_not_there_are_made(store, source):
    before = list(made(store, source).lines())
    assert asked(source) == list(range(COUNT))
    made(store, source)
    assert asked(source) == []
    [piece] = (store.folder / "pieces").glob(f"{CHUNK:09d}*")
    piece.unlink()
    assert list(made(store, source).lines()) == before
    assert asked(source) == list(range(CHUNK, 2 * CHUNK))


def test_tiles_made_anew_take_the_place_of_their_rasters(store, source):
    shards = made(store, source)
    asked(source)
    smaller = {i: replace(PLACES[i], window=(0, 0, 60, 100)) for i in (20, 5)}
    shards.remake(source, False, smaller)
    assert asked(source) == [5, 20]
    assert [(line["i"], line["image"]["width"]) for line in shards.remade()] == [(5, 60), (20, 60)]
    # What was made first is still told as it was; its rasters are gone.
    assert [line["image"]["width"] for line in shards.lines() if line["i"] in smaller] == [100, 100]
    there = {path.name for path in store.made.iterdir()}
    assert {"t5_60.txt", "t20_60.txt"} <= there and not {"t5_100.txt", "t20_100.txt"} & there
    assert len(there) == COUNT - 2


def test_only_files_of_the_data_set_itself_are_removed(tmp_path):
    out, archive = tmp_path / "out", tmp_path / "archive"
    for folder in (out, archive):
        folder.mkdir()
    for path in (out / "own.tif", out / "other.tif", archive / "a.tif", archive / "b.tif"):
        path.touch()
    (out / "linked.tif").symlink_to(archive / "a.tif")
    (out / "alias.tif").symlink_to(out / "other.tif")
    (out / "images").symlink_to(archive)
    image = {"file_name": "own.tif", "sar_file_name": "linked.tif", "truth_file_name": "images/b.tif"}
    remove_own(
        out,
        {
            **image,
            "cloud_file_name": None,
            "alias_file_name": "alias.tif",
            "up_file_name": "../archive/b.tif",
            "id": "other.tif",
        },
    )
    assert sorted(path.name for path in out.iterdir()) == ["alias.tif", "images", "linked.tif", "other.tif"]
    assert sorted(path.name for path in archive.iterdir()) == ["a.tif", "b.tif"]


def test_a_worker_that_does_not_see_the_folder(tmp_path, source):
    away = tmp_path / "elsewhere" / ".out.parts"
    arguments = (source, away / "made", False, "a.jsonl", [(0, PLACES[0])])
    with pytest.raises(InputError, match="elsewhere.*does not see this folder.*share under the same paths"):
        _make_piece_on_cluster(tmp_path, away / "a.mark", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_of_a_cluster_works_in_the_users_folder_and_goes_back(tmp_path, source, store, monkeypatch):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    monkeypatch.chdir(theirs)
    mark = tmp_path / "a.mark"
    mark.touch()
    relative = replace(source, log=Path("relative.log"))
    name, content = _make_piece_on_cluster(
        tmp_path, mark, relative, store.made, False, "a.jsonl", [(3, PLACES[3])]
    )
    assert name == "a.jsonl" and b"t3_100.txt" in content
    assert (tmp_path / "relative.log").read_text() == "3 " and Path.cwd() == theirs
