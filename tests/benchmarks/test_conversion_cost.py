"""The cost of a conversion: what is measured, that both sides do the same work, and that killed runs are taken up."""

import json
import os
import signal
import subprocess
import sys
import time

from benchmarks import conversion_cost as convert
from benchmarks.conversion_cost import ConversionSettings, Cost, run_fresh
from fusiondet.converters.prepare import prepare
from fusiondet.errors import InputError
from fusiondet.io.vectors import read_layer

import pytest
import rasterio
import shapely

TINY = ConversionSettings(
    mosaic_px=300, tile_px=128, buildings=20, city=12, tiles=4, grown_buildings=20, rounds=1
)


class TestInputs:
    def test_outlines_stand_apart_on_the_mosaic(self):
        made = convert.outlines(50, 1000, seed=3)
        left, top = convert.ORIGIN
        ground = shapely.box(left, top - 500, left + 500, top)
        assert len(made) == 50 and all(ground.contains(o) and o.is_valid and o.area > 0 for o in made)
        assert shapely.union_all(made).area == pytest.approx(sum(o.area for o in made))
        assert {len(o.exterior.coords) for o in made} == {5, 7}
        assert made == convert.outlines(50, 1000, seed=3) != convert.outlines(50, 1000, seed=4)

    def test_a_city_is_read_as_its_outlines(self, tmp_path):
        layer = read_layer(convert.write_city(tmp_path / "a.city.json", 9, 500, seed=1))
        assert layer.crs == convert.CRS and layer.height_field == "b3_h_dak_70p"
        for building, outline in zip(layer.buildings, convert.outlines(9, 500, seed=1), strict=True):
            assert building.polygon.symmetric_difference(outline).area < 0.1
            assert 3 <= building.height_m <= 30

    def test_a_sparse_mosaic_takes_no_space(self, tmp_path):
        path = convert.write_mosaic(tmp_path / "a.tif", 20_000, 10_000, sparse=True)
        assert path.stat().st_size < 100_000
        with rasterio.open(path) as raster:
            assert raster.shape == (10_000, 20_000) and not raster.read(1, window=((0, 9), (0, 9))).any()

    def test_a_mosaic_has_pixels_everywhere(self, tmp_path):
        with rasterio.open(convert.write_mosaic(tmp_path / "a.tif", 700, 600, nodata=0)) as raster:
            assert raster.read().min() >= 30 and raster.nodata == 0


class TestRunFresh:
    def test_what_it_costs(self, tmp_path):
        out = tmp_path / "out"
        code = "import pathlib; block = b'1' * 50_000_000; pathlib.Path(words[0]).mkdir()\nsum(range(3_000_000))\n"
        code += "pathlib.Path(words[0], 'a').write_bytes(b'abc'); pathlib.Path(words[0], 'b').symlink_to(words[1])"
        (tmp_path / "large").write_bytes(b"0" * 1000)
        cost = run_fresh(code, [str(out), str(tmp_path / "large")], out)
        assert cost.written_bytes == 3
        assert 0 < cost.cpu_s < 60 and cost.wall_s > 0
        assert 50e6 < cost.peak_bytes < 50e6 + 30e6, "not the memory of this process"

    def test_processes_of_a_run_count(self, tmp_path):
        work = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(10_000_000))'])"
        alone = run_fresh("pass", [], tmp_path / "out")
        assert alone.worker_bytes == 0
        both = run_fresh(work, [], tmp_path / "out")
        assert both.cpu_s > alone.cpu_s + 0.05 and both.worker_bytes > 1e6

    def test_failure_is_told(self, tmp_path):
        with pytest.raises(InputError, match="failed.*no such luck"):
            run_fresh("raise ValueError('no such luck')", [], tmp_path / "out")


class TestFigures:
    def costs(self, **seconds):
        return {name: [Cost(s, s, 100, 0, 0) for s in of] for name, of in seconds.items()}

    def test_growth_leaves_out_the_start(self):
        s = ConversionSettings(tiles=4, grown_buildings=10, rounds=2)
        runs = {
            convert._tiles_name(1): [1, 1], convert._tiles_name(4): [2, 3], convert._tiles_name(40): [11, 21],
            convert._buildings_name(1): [1, 1], convert._buildings_name(10): [2, 2],
            convert._buildings_name(100): [16, 16],
        }  # fmt: skip
        growth = convert._growth(self.costs(**runs), s)
        tiles, buildings = (growth[f"time without start-up, 10x the {n}"] for n in ("tiles", "buildings"))
        assert (tiles["median"], tiles["verdict"]) == (10, "met")
        assert (buildings["median"], buildings["verdict"]) == (15, "MISSED")
        assert growth["time, 10x the buildings"]["median"] == 8
        assert growth["peak memory, 10x the tiles"]["verdict"] == "met" and growth["bytes_per_tile"] == 0

    def test_ratios_are_of_what_ran_in_one_round(self):
        names = {name for pair in convert.PAIRS for name in pair[:2]}
        ratios = convert._ratios(self.costs(**{name: [1, 10, 1] for name in names}))
        assert all((r["low"], r["high"], r["verdict"]) == (1, 1, "MISSED") for r in ratios)


@pytest.mark.parametrize(("options", "message"), [
    ({"rounds": 0}, "rounds is 0"),
    ({"tiles": 3}, "tiles is 3, expected at least 4"),
    ({"mosaic_px": 100}, "tiles of 512 px in a mosaic of 100"),
])  # fmt: skip
def test_bad_settings(options, message):
    with pytest.raises(InputError, match=message):
        ConversionSettings(**options)


def test_tool_prints_figures_and_writes_json(load_tool, tmp_path, capsys, monkeypatch):
    # Growth has tests of its own; here each contestant of a comparison runs once.
    few = (convert.RECORDS, convert.CUT, convert.LOOP)
    whole = convert._on_mosaic
    monkeypatch.setattr(convert, "_on_mosaic", lambda *a: {k: v for k, v in whole(*a).items() if k in few})
    monkeypatch.setattr(convert, "PAIRS", [p for p in convert.PAIRS if {*p[:2]} <= {*few}])
    monkeypatch.setattr(convert, "_growing_buildings", lambda *a: {})
    monkeypatch.setattr(convert, "_growing_tiles", lambda *a: {})
    monkeypatch.setattr(convert, "_growth", lambda *a: {"bytes_per_tile": 1})
    words = "convert --size 300 --tile-size 128 --buildings 20 --city 5 --rounds 1".split()
    out = tmp_path / "convert.json"
    load_tool("benchmark").main([*words, "--folder", str(tmp_path / "rasters"), "--out", str(out)])
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    runs = result["runs"]
    assert result["same"] == {"tiles": 9, "outlines": result["same"]["outlines"]}
    assert result["same"]["outlines"] >= 20
    # A tile's pixels are in the copies only.
    assert runs["records"]["written_bytes"] < 60_000 < 9 * 128 * 128 * 3 < runs["plain loop"]["written_bytes"]
    assert [(r["theirs"], r["ours"]) for r in result["ratios"]] == [
        ("plain loop", "records"),
        ("plain loop", "cut"),
    ]
    assert "plain loop / records: " in printed and printed.endswith(f"wrote {out}\n")
    assert list((tmp_path / "rasters").iterdir()) == []


def test_another_result_is_no_comparison(tmp_path):
    contestants = convert._on_mosaic(tmp_path, TINY)
    for name in (convert.RECORDS, convert.CUT, convert.LOOP):
        contestants[name]()
    assert convert.compare_results(tmp_path)["tiles"] == 9
    path = tmp_path / "cut" / "rgb" / "mosaic_x00128_y00000.tif"
    with rasterio.open(path, "r+") as tile:
        tile.write(tile.read() + 1)
    with pytest.raises(RuntimeError, match="mosaic_x00128_y00000.tif: the copies differ"):
        convert.compare_results(tmp_path)
    path = tmp_path / "records" / "annotations" / "train.json"
    document = json.loads(path.read_text())
    document["annotations"][3]["segmentation"][0][0] += 2
    path.write_text(json.dumps(document))
    with pytest.raises(RuntimeError, match="records: outlines differ by"):
        convert.compare_results(tmp_path)
    document["annotations"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(RuntimeError, match="records: 1 outlines are in one result only"):
        convert.compare_results(tmp_path)


# Dies on its own, as of kill -9, in the middle of a file of tiles.
DYING = """
import os, signal
from fusiondet.converters.cutting import Mosaic
make, calls = Mosaic.make, []
def dying(*args):
    calls.append(args)
    if len(calls) == 77:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(*args)
Mosaic.make = dying
"""


class TestKilled:
    """400 tiles in 25 files; two processes are killed from outside, one kills itself."""

    @pytest.mark.parametrize("workers", [1, 2])
    def test_goes_on_to_the_same_bytes(self, tmp_path, capsys, workers):
        side = 20 * 64
        mosaic = convert.write_mosaic(tmp_path / "a.tif", side, side, nodata=0)
        footprints = convert.write_footprints(tmp_path / "a.gpkg", 200, side, seed=0)
        words = ["tiles", "--rgb", mosaic, "--footprints", footprints, "--tile-size", 64]
        words += ["--split", "train=80", "val=20", *(["--cut"] if workers > 1 else []), "--out"]
        straight, killed = tmp_path / "straight", tmp_path / "killed"
        prepare([*map(str, words), str(straight)])

        code = (DYING if workers == 1 else "") + "from fusiondet.converters.prepare import prepare\nprepare()"
        command = [sys.executable, "-W", "ignore", "-c", code, *words, killed, "--workers", workers]
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, start_new_session=True)
        work = tmp_path / ".killed.parts"
        if workers > 1:
            self.kill(process, lambda: len(list((work / "pieces").glob("*.jsonl"))) >= 3)
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not killed.exists()
        lines = [line for p in (work / "pieces").glob("*.jsonl") for line in p.read_text().splitlines()]
        assert len(lines) == 64 if workers == 1 else 48 <= len(lines) < 400
        names = [json.loads(line)["image"]["file_name"] for line in lines]
        done = {name: (work / "made" / name).stat().st_mtime_ns for name in names}

        capsys.readouterr()
        prepare([*map(str, words), str(killed)])
        assert f"wrote {killed}" in capsys.readouterr().out
        for name in ("train", "val"):
            a, b = (folder / "annotations" / f"{name}.json" for folder in (straight, killed))
            assert a.read_bytes() == b.read_bytes(), name
        files = {path.relative_to(killed) for path in killed.rglob("*")}
        assert files == {path.relative_to(straight) for path in straight.rglob("*")}
        # What was finished is not made again.
        assert done == {name: (killed / name).stat().st_mtime_ns for name in done}

        before = {path: path.lstat().st_mtime_ns for path in killed.rglob("*")}
        prepare([*map(str, words), str(killed)])
        assert f"{killed} is up to date" in capsys.readouterr().out
        assert before == {path: path.lstat().st_mtime_ns for path in killed.rglob("*")}

    def kill(self, process, ready):
        deadline = time.monotonic() + 60
        while not ready():
            assert process.poll() is None and time.monotonic() < deadline, "it was to be killed midway"
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
