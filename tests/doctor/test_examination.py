"""Planted faults are found on disk, and a city without any raises none; the tool says so and exits as it promises."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from fusiondet.doctor.examination import examine
from fusiondet.io.coco import read_coco
from tests.support.doctor_cases import by_name, edit

import numpy as np
import pytest
import rasterio

ROOT = Path(__file__).resolve().parents[2]


def verdicts(root, **options) -> dict[str, str]:
    """Name -> verdict of all findings that are not ok."""
    return {f.name: f.verdict for f in examine(root, **options)[1] if f.verdict != "ok"}


def test_a_clean_city_raises_nothing(city):
    assert verdicts(city) == {}


def test_a_sar_shift_of_6_px_is_found_and_nothing_else(shifted_city):
    assert verdicts(shifted_city) == {"SAR against pictures": "FAIL"}


def test_a_tile_of_train_in_val_is_found_by_name_ground_and_picture(copy_of_city):
    leaked = read_coco(copy_of_city / "annotations" / "train.json").tiles[3]
    edit(copy_of_city, "val", lambda tiles: [*tiles, replace(leaked, id=None)])
    found = verdicts(copy_of_city)
    assert {"file names", "ground shared between splits", "copies of tiles"} == {*found}
    assert {*found.values()} == {"FAIL"}


def test_a_copy_under_another_name_without_georeference_is_found_by_its_picture(copy_of_city):
    tile = read_coco(copy_of_city / "annotations" / "train.json").tiles[3]
    shutil.copy(copy_of_city / tile.file_name, copy_of_city / "val" / "rgb" / "other.tif")
    shutil.copy(copy_of_city / tile.sar_file_name, copy_of_city / "val" / "sar" / "other.tif")
    copied = replace(
        tile,
        id=None,
        file_name="val/rgb/other.tif",
        sar_file_name="val/sar/other.tif",
        crs=None,
        transform=None,
    )
    edit(copy_of_city, "val", lambda tiles: [*tiles, copied])
    found = verdicts(copy_of_city)
    assert [name for name, verdict in found.items() if verdict == "FAIL"] == ["copies of tiles"]


def test_elevations_instead_of_heights_are_found(copy_of_city):
    def lift(tiles):
        return [
            replace(t, buildings=[replace(b, height_m=b.height_m + 25) for b in t.buildings]) for t in tiles
        ]

    edit(copy_of_city, "val", lift)
    assert verdicts(copy_of_city) == {"heights, not elevations": "FAIL", "height rasters": "warn"}


def test_a_damaged_split_fails_and_the_others_are_looked_at(copy_of_city):
    path = copy_of_city / "annotations" / "val.json"
    path.write_text(path.read_text()[:500])
    found = verdicts(copy_of_city)
    assert found.pop("annotation files") == "FAIL"
    assert {*found.values()} <= {"n/a"}  # no second split to compare with


def run_tool(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "doctor.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_tool_prints_writes_and_exits_with_1_for_a_fault(shifted_city, tmp_path):
    out, page_path = tmp_path / "report.json", tmp_path / "report.html"
    result = run_tool("data", shifted_city, "--out", out, "--html", page_path, "--samples", 15)
    assert result.returncode == 1, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("FAIL  SAR against pictures: ") and lines[1].startswith("      -> Register")
    assert lines[-1].startswith("30 checks: 1 failed")
    first = json.loads(out.read_text())["findings"][0]
    assert first["verdict"] == "FAIL" and first["numbers"]["acquisitions_off"] == 3
    assert 5 <= first["numbers"]["worst_px"] <= 7.5
    assert page_path.read_text().count("<article") == 30


def test_the_tool_says_what_is_wrong_with_its_input(city, tmp_path, load_tool, monkeypatch, capsys):
    tool = load_tool("doctor")

    def refused(*words) -> str:
        monkeypatch.setattr(sys, "argv", ["doctor.py", "data", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            tool.run(tool.main)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert f"Did you mean {city}?" in refused(city.parent)
    assert f"Did you mean {city}?" in refused(city / "train")
    assert f"Did you mean {city}?" in refused(city / "annotations")
    assert "no such folder" in refused(tmp_path / "nowhere")
    (tmp_path / "report.json").write_text("{}")
    assert "--overwrite" in refused(city, "--out", tmp_path / "report.json")
    (tmp_path / "list.json").write_text("[]")
    assert "expected a COCO file" in refused(tmp_path / "list.json")


def test_without_packages_the_tool_says_how_to_get_them(city):
    code = (
        "import runpy, sys; sys.modules['rasterio'] = None; "
        f"sys.argv = ['doctor.py', 'data', {str(city)!r}]; "
        f"runpy.run_path({str(ROOT / 'tools' / 'doctor.py')!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: rasterio is not installed") and "make setup" in result.stderr


def test_a_height_raster_that_is_off_its_outlines_is_named(copy_of_city):
    dataset = read_coco(copy_of_city / "annotations" / "train.json")
    tile = dataset.tiles[3]
    with rasterio.open(dataset.root / tile.ndsm_file_name, "r+") as file:
        file.write(np.roll(file.read(), 18, 1))
    findings = by_name(examine(copy_of_city)[1])
    finding = findings["outlines against height rasters"]
    assert (
        finding.verdict == "FAIL"
        and f"in {tile.file_name}: what is seen lies +0 px right and +18 px" in finding.detail
    )
    assert findings["outlines against pictures"].verdict == "ok"
