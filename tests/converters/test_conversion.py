"""The engine of all converters: processes, resuming, splits, problems, and that nothing is half-written."""

import contextlib
import json
import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.buildings import Building, Tile
from fusiondet.converters.conversion import Options, convert
from fusiondet.converters.source import Made, Place
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import read_coco
from fusiondet.jobs.executors import REQUIREMENT
from fusiondet.jobs.store import Store
from tests.support.dask_workers import start_workers
from tests.support.messages import raises_naming
from tests.support.processes import kill, start_program, wait_for, workers_of

import pytest
import shapely

SIZE = 100


@dataclass
class Grid:
    """Tiles of 100 px in a row or a square, 1 m per pixel, each with one building and a file of its own."""

    count: int = 40
    columns: int = 1000
    step: int = SIZE
    crs: str | None = "EPSG:32631"
    splits: tuple = ()
    bad: tuple = ()
    empty: tuple = ()
    log: Path | None = None
    stop_at: int | None = None
    bands: BandSpec = field(default_factory=BandSpec)
    nodata: float | None = None

    def files(self):
        return [] if self.log is None else [self.log]

    def places(self, problems):
        grid = (1.0, 0, 5e5, 0, -1.0, 5.7e6) if self.crs else None
        return [
            Place(
                f"t{i:03d}",
                i,
                (self.step * (i % self.columns), self.step * (i // self.columns), SIZE, SIZE),
                grid,
                self.crs,
                self.splits[i % len(self.splits)] if self.splits else None,
            )
            for i in range(self.count)
        ]

    def make(self, place, out, problems):
        if place.image == self.stop_at and not (out.parent / "go").exists():
            raise KeyboardInterrupt
        if place.image in self.bad:
            raise InputError(f"{place.name}: damaged.")
        if place.image in self.empty:
            return Made(None, {"tiles": Counter({"left out as no data": 1})})
        if place.image == 3:
            problems.add("odd heights", f"{place.name}: height 7 m is odd.")
        x0, y0, width, height = place.window
        path = out / "rgb" / f"{place.name}_{width}x{height}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(place.image))
        with open(out.parent / "made.log", "a") as log:
            log.write(f"{place.image}\n")
        transform = None
        if place.transform:
            a, b, c, d, e, f = place.transform
            transform = (a, b, c + x0, d, e, f - y0)
        house = Building(shapely.box(5, 5, 15, 15), height_m=5.0 + place.image)
        tile = Tile(
            f"rgb/{path.name}", width, height, 1.0, crs=place.crs, transform=transform, buildings=[house]
        )
        return Made(tile, {"labels": Counter(kept=1)}, ["seen"])

    def finish(self, sample, report):
        report.notes.append(f"{len(sample.tiles) > 0} tiles looked at")

    def info(self):
        return {"licence": "none"}


class SlowGrid(Grid):
    """Takes 5 ms for a tile, and reads a file for it."""

    def make(self, place, out, problems):
        time.sleep(0.005)
        if self.log is not None and self.log.read_text() != "labels":
            raise InputError(f"{self.log}: no labels.")
        return super().make(place, out, problems)


def run(tmp_path, source=None, out="out", **options):
    return convert(source or Grid(), tmp_path / out, Options(**options), {"source": "grid"})


def names(tmp_path, split="train", out="out"):
    return [t.file_name for t in read_coco(tmp_path / out / "annotations" / f"{split}.json").tiles]


def leftovers(tmp_path):
    return [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


class TestResult:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_tiles_come_in_the_order_of_their_places(self, tmp_path, workers):
        report = run(tmp_path, workers=workers)
        assert names(tmp_path) == [f"rgb/t{i:03d}_100x100.txt" for i in range(40)]
        dataset = read_coco(tmp_path / "out" / "annotations" / "train.json")
        assert [t.id for t in dataset.tiles] == list(range(1, 41))
        assert [t.buildings[0].height_m for t in dataset.tiles] == [5.0 + i for i in range(40)]
        assert dataset.info["licence"] == "none" and dataset.info["tiles"] == {"written": 40}
        assert report.tiles == {"written": 40} and report.heights == {"known": 40}
        assert report.splits == {"train": {"tiles": 40, "buildings": 40, "known heights": 40}}
        assert report.notes == ["seen", "True tiles looked at"] and leftovers(tmp_path) == []

    def test_the_record_says_what_was_asked_and_what_happened(self, tmp_path):
        run(tmp_path, seed=3)
        record = json.loads((tmp_path / "out" / "conversion.json").read_text())
        assert record["recipe"]["source"] == "grid" and record["recipe"]["seed"] == 3
        assert record["report"]["tiles"] == {"written": 40}

    def test_left_out_tiles_are_counted(self, tmp_path):
        report = run(tmp_path, Grid(empty=(0, 39)))
        assert report.tiles == {"written": 38, "left out as no data": 2}
        assert names(tmp_path)[0].startswith("rgb/t001")

    def test_nothing_left(self, tmp_path):
        message = "no tile is left of 3 tiles .3 left out as no data."
        with pytest.raises(InputError, match=message):
            run(tmp_path, Grid(3, empty=(0, 1, 2)))
        with pytest.raises(InputError, match="no tile is found"):
            run(tmp_path, Grid(0))
        assert list(tmp_path.iterdir()) == []

    def test_no_place_at_all_names_the_first_problem_or_file(self, tmp_path):
        class Unpaired(Grid):
            def places(self, problems):
                for name in "ab":
                    problems.add("images without a label", f"{name}.tif: has no label.")
                return []

        with raises_naming("no tile is found", "2 problems", "a.tif: has no label."):
            run(tmp_path, Unpaired())
        (tmp_path / "log").write_text("")
        with raises_naming(str(tmp_path / "log"), "no tile is found"):
            run(tmp_path, Grid(0, log=tmp_path / "log"))


@pytest.fixture
def distributed():
    module = pytest.importorskip("distributed", reason=f"needs {REQUIREMENT}")
    import dask

    with dask.config.set({"distributed.admin.tick.limit": "60s"}):
        yield module


@pytest.fixture
def start(distributed):
    """Starts a scheduler with a worker in this process."""

    def start():
        return distributed.LocalCluster(
            n_workers=1, processes=False, threads_per_worker=2, dashboard_address=None, memory_limit=0
        )

    return start


@pytest.fixture
def two_workers(distributed):
    with distributed.LocalCluster(n_workers=0, processes=True, dashboard_address=None) as running:
        context = multiprocessing.get_context("spawn")
        processes = start_workers(context, running.scheduler_address, 2, threads=2)
        with distributed.Client(running, set_as_default=False) as client:
            client.wait_for_workers(2)
        yield running
        for process in processes:
            process.kill()
            process.join()


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestCluster:
    def test_the_bytes_are_those_of_one_process_even_if_a_worker_is_killed(
        self, distributed, two_workers, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)  # where the workers are not
        Path("labels.json").write_text("labels")
        grid = SlowGrid(200, columns=20, step=90, log=Path("labels.json"), bad=(5,), empty=(7,))
        options = {"split": ["train=60", "val=40"], "skip_invalid": True}
        run(tmp_path, grid, out="one", **options)
        real, killed = Store.save, []

        def kill_a_worker(*args):
            real(*args)
            if not killed:
                with distributed.Client(two_workers, set_as_default=False) as client:
                    pids = client.run(os.getpid)
                    busy = [worker for worker, keys in client.processing().items() if keys]
                killed.append(pids[busy[0]])
                os.kill(killed[0], signal.SIGKILL)

        monkeypatch.setattr(Store, "save", kill_a_worker)
        report = run(tmp_path, grid, out="two", scheduler=two_workers.scheduler_address, **options)
        assert killed and report.tiles["written"] > 100 and report.tiles["cut back at another split"] > 5
        assert contents(tmp_path / "two") == contents(tmp_path / "one") and leftovers(tmp_path) == []

    def test_a_scheduler_that_goes_away_costs_nothing_that_is_finished(self, start, tmp_path, monkeypatch):
        monkeypatch.setattr("fusiondet.jobs.executors._CONNECT_S", 2)
        running, real = start(), Store.save

        def close_the_cluster(*args):
            real(*args)
            running.close()

        monkeypatch.setattr(Store, "save", close_the_cluster)
        address = running.scheduler_address
        for message in ("is gone .*repeat the command", "no scheduler of dask.distributed answers"):
            with pytest.raises(InputError, match=f"`scheduler` {address}: {message}"):
                run(tmp_path, SlowGrid(100), scheduler=address)
            assert len(list((tmp_path / ".out.parts" / "pieces").glob("*.jsonl"))) == 1
        monkeypatch.undo()
        assert run(tmp_path, SlowGrid(100)).tiles == {"written": 100}
        assert leftovers(tmp_path) == []

    def test_the_first_problem_stops_everything_where_asked(self, start, tmp_path):
        with start() as running:
            with pytest.raises(InputError, match="t003: height 7 m is odd"):
                run(tmp_path, SlowGrid(100), scheduler=running.scheduler_address, strict=True)
        assert leftovers(tmp_path) == []

    def test_it_is_no_part_of_the_recipe(self, start, tmp_path):
        run(tmp_path)
        assert run(tmp_path, scheduler="tcp://127.0.0.1:9").unchanged
        with pytest.raises(InputError, match="pass one of them"):
            run(tmp_path, scheduler="tcp://127.0.0.1:9", workers=2)


class TestSecondRun:
    def test_changes_nothing(self, tmp_path):
        first = run(tmp_path, overwrite=True)
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
        again = run(tmp_path, workers=2)
        assert again.unchanged and again.lines() == first.lines() and again.tiles == first.tiles
        assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}

    def test_other_options_are_another_data_set(self, tmp_path):
        run(tmp_path)
        with raises_naming("seed", "overwrite"):
            run(tmp_path, seed=1)
        assert not run(tmp_path, seed=1, overwrite=True).unchanged

    def test_a_changed_file_is_noticed(self, tmp_path):
        log = tmp_path / "labels.json"
        log.write_text("1")
        run(tmp_path, Grid(log=log))
        assert run(tmp_path, Grid(log=log)).unchanged
        log.write_text("22")
        with pytest.raises(InputError, match="already exists, and its files or this program changed"):
            run(tmp_path, Grid(log=log))

    def test_a_path_may_be_spelled_in_another_way(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        convert(Grid(), tmp_path / "out", Options(), {"root": Path("data")})
        assert convert(Grid(), Path("out"), Options(), {"root": tmp_path / "data"}).unchanged

    def test_a_folder_without_a_name(self, tmp_path, monkeypatch):
        (tmp_path / "here" / "below").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "here" / "below")
        for out in (Path("."), Path("x/..")):
            with pytest.raises(InputError, match="is the folder in which this runs"):
                convert(Grid(), out, Options(), {})
        convert(Grid(), Path("../new/../newer"), Options(), {})
        assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["below", "newer"]

    @pytest.mark.parametrize("made", [True, False])
    def test_the_data_themselves_are_never_replaced(self, tmp_path, made):
        out = tmp_path / "out"
        if made:
            run(tmp_path)
        (out / "annotations").mkdir(parents=True, exist_ok=True)
        log = out / "annotations" / "train_labels.json"
        log.write_text("1")
        message = (
            "holds .*train_labels.json, which is to be converted" if made else "was not made by this tool"
        )
        with pytest.raises(InputError, match=message):
            run(tmp_path, Grid(log=log), overwrite=True)
        assert log.read_text() == "1"


class TestStopped:
    def made(self, tmp_path):
        return Counter((tmp_path / ".out.parts" / "made.log").read_text().split())

    def test_goes_on_where_it_was(self, tmp_path):
        source = Grid(stop_at=35)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, source)
        assert not (tmp_path / "out").exists() and len(self.made(tmp_path)) == 35
        (tmp_path / ".out.parts" / "go").touch()
        made = []
        source.finish = lambda sample, report: made.append(self.made(tmp_path))
        run(tmp_path, source)
        # Two parts of 16 tiles were finished: the others are made again.
        assert [made[0][str(i)] for i in range(40)] == [1] * 32 + [2] * 3 + [1] * 5
        run(tmp_path, Grid(), out="straight")
        for name in ("out", "straight"):
            assert names(tmp_path, out=name) == [f"rgb/t{i:03d}_100x100.txt" for i in range(40)]
        files = [
            json.loads((tmp_path / o / "annotations/train.json").read_text()) for o in ("out", "straight")
        ]
        assert all(files[0][key] == files[1][key] for key in ("images", "annotations"))
        assert leftovers(tmp_path) == []

    def test_another_recipe_begins_anew(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Grid(stop_at=35))
        report = run(tmp_path, Grid(), seed=9)
        assert report.tiles["written"] == 40 and leftovers(tmp_path) == []

    def test_the_old_result_stays_until_the_new_one_is_there(self, tmp_path):
        run(tmp_path, Grid(5))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Grid(stop_at=35), seed=1, overwrite=True)
        assert len(names(tmp_path)) == 5
        with pytest.raises(InputError):
            run(tmp_path, Grid(bad=(1,)), seed=2, overwrite=True)
        assert len(names(tmp_path)) == 5 and leftovers(tmp_path) == []


# Two processes make 25 pieces of tiles, in about a second.
KILLED = """
import sys
from pathlib import Path
from tests.converters.test_conversion import SlowGrid, run
run(Path(sys.argv[1]), SlowGrid(400, columns=20, step=90), split=["train=60", "val=40"], workers=2)
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The files of one that nobody disturbs."""
    folder = tmp_path_factory.mktemp("straight")
    run(folder, Grid(400, columns=20, step=90), split=["train=60", "val=40"])
    return contents(folder / "out")


class TestKilled:
    @pytest.fixture
    def program(self, tmp_path):
        """A conversion that has finished some pieces, and its two processes."""
        program = start_program(KILLED, tmp_path)
        pieces = tmp_path / ".out.parts" / "pieces"
        wait_for(lambda: len(list(pieces.glob("*.jsonl"))) >= 3 or program.poll() is not None)
        yield program, wait_for(lambda: workers_of(program.pid))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)

    def test_a_worker(self, program, straight, tmp_path):
        process, workers = program
        os.kill(workers[0], signal.SIGKILL)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors
        assert contents(tmp_path / "out") == straight and leftovers(tmp_path) == []

    @pytest.mark.parametrize("with_worker", [False, True])
    def test_the_program_and_a_worker(self, program, straight, tmp_path, with_worker):
        process, workers = program
        kill(process, *workers[:with_worker])
        finished = len(list((tmp_path / ".out.parts" / "pieces").glob("*.jsonl")))
        half = tmp_path / ".out.parts" / "made" / "rgb" / ".t399_100x100.txt.left"
        half.mkdir()
        assert 3 <= finished < 25 and not (tmp_path / "out").exists()
        run(tmp_path, Grid(400, columns=20, step=90), split=["train=60", "val=40"])
        assert contents(tmp_path / "out") == straight and leftovers(tmp_path) == []

    def test_as_the_result_got_its_place(self, tmp_path):
        """The folder of the store is left, whose work is done."""
        run(tmp_path)
        with Store(tmp_path / "out", {}) as store:
            store.save("000000000.jsonl", b"")
            store.made.rmdir()
        assert leftovers(tmp_path) == [".out.parts"]
        assert run(tmp_path).unchanged and leftovers(tmp_path) == []

    def test_a_damaged_piece_is_made_again(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Grid(stop_at=35))
        first, second = sorted((tmp_path / ".out.parts" / "pieces").glob("*.jsonl"))
        first.write_text("")
        second.write_bytes(second.read_bytes()[:-50])
        run(tmp_path, Grid())
        run(tmp_path, Grid(), out="straight")
        assert contents(tmp_path / "out") == contents(tmp_path / "straight")

    def test_what_version_0_5_had_finished_is_removed(self, tmp_path):
        old = tmp_path / ".out.unfinished"
        (old / "shards").mkdir(parents=True)
        (old / "fingerprint").write_text("0")
        run(tmp_path)
        assert leftovers(tmp_path) == []

    def test_a_second_run_meanwhile_is_refused(self, program, tmp_path):
        process, _ = program
        with pytest.raises(InputError, match=f"out: another run .*{process.pid}"):
            run(tmp_path)


class TestProblems:
    def test_counted_and_named(self, tmp_path):
        report = run(tmp_path)
        assert report.problems == {"odd heights": 1}
        lines = report.lines()
        assert lines[-2:] == ["problem: 1 odd heights", "  t003: height 7 m is odd."]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_strict_stops_at_the_first(self, tmp_path, workers):
        with pytest.raises(InputError, match="^t003: height 7 m is odd.$"):
            run(tmp_path, strict=True, workers=workers)
        assert list(tmp_path.iterdir()) == []

    def test_unusable_images_stop_all_of_them_named(self, tmp_path):
        with pytest.raises(InputError, match=r"(?s)2 images .*`skip_invalid`.*t001: damaged.*t020: damaged"):
            run(tmp_path, Grid(bad=(1, 20)))
        with pytest.raises(InputError, match="^t020: damaged.$"):
            run(tmp_path, Grid(bad=(20,)))
        report = run(tmp_path, Grid(bad=(1, 20)), skip_invalid=True)
        assert report.problems["unusable images"] == 2 and report.tiles["written"] == 38
        with pytest.raises(InputError, match="^t001: damaged.$"):
            run(tmp_path, Grid(bad=(1, 20)), skip_invalid=True, strict=True, seed=1, overwrite=True)


class TestSplits:
    def test_overlapping_tiles_are_cut_back_until_no_ground_is_shared(self, tmp_path):
        report = run(tmp_path, Grid(100, columns=10, step=80), split=["train=6", "val=2", "test=2"])
        assert report.leaked_m2 == 0 and "ground in two splits: 0.0 m2" in report.lines()
        grounds = {}
        for name in ("train", "val", "test"):
            tiles = read_coco(tmp_path / "out" / "annotations" / f"{name}.json").tiles
            places = [
                Place("t", 0, (0, 0, t.width, t.height), t.transform, t.crs).ground(None) for t in tiles
            ]
            grounds[name] = shapely.unary_union(places)
            assert all((tmp_path / "out" / t.file_name).is_file() for t in tiles)
        assert all(
            grounds[a].intersection(grounds[b]).area < 1e-6
            for a, b in (("train", "val"), ("train", "test"), ("val", "test"))
        )
        on_disk = list((tmp_path / "out" / "rgb").iterdir())
        assert len(on_disk) == report.tiles["written"] and report.tiles["cut back at another split"] > 5

    def test_prescribed_splits_are_taken_and_their_leak_is_told(self, tmp_path):
        report = run(tmp_path, Grid(4, step=50, splits=("train", "val")))
        assert list(report.splits) == ["train", "val"]
        assert report.leaked_m2 == 3 * 50 * 100 and "ground in two splits: 15000.0 m2" in report.lines()
        with pytest.raises(InputError, match="prescribe their splits"):
            run(tmp_path, Grid(4, splits=("train", "val")), split=["a=1", "b=1"], out="b")

    def test_without_georeference_images_are_dealt_out(self, tmp_path):
        report = run(tmp_path, Grid(40, crs=None), split=["train=3", "val=1"])
        assert report.splits["train"]["tiles"] == 30 and report.splits["val"]["tiles"] == 10
        assert "ground in two splits: not measured, no georeference" in report.lines()

    def test_too_few_tiles(self, tmp_path):
        with raises_naming("tile", "1 tiles"):
            run(tmp_path, Grid(1), split=["train=1", "val=1"])

    @pytest.mark.parametrize("block_m", [0.0, math.nan])
    def test_blocks_have_a_size(self, tmp_path, block_m):
        with raises_naming("block_m"):
            run(tmp_path, block_m=block_m)
