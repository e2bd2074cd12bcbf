"""The doctor finds this environment healthy, and says what to do about one that is not."""

import subprocess
import sys
from pathlib import Path

from fusiondet.doctor import environment as diagnostics
from fusiondet.doctor.environment import Check, diagnose, report
from fusiondet.errors import InputError

import pytest

DOCTOR = Path(__file__).resolve().parents[2] / "tools" / "doctor.py"


def test_everything_works_here():
    checks = diagnose()
    assert [check for check in checks if not check.ok] == []
    names = {check.name for check in checks}
    assert {"nms", "roi_align", "4-channel backbone, forward and backward", "GPKG", "device"} <= names


def test_report_shows_remedies_and_counts():
    checks = [
        Check("nms", True, "works on cpu"),
        Check("GPKG", False, "DriverError: no driver", "Install GDAL."),
    ]
    assert report(checks).splitlines() == [
        "ok    nms: works on cpu",
        "FAIL  GPKG: DriverError: no driver",
        "      -> Install GDAL.",
        "1 of 2 checks failed.",
    ]
    assert report(checks[:1]).endswith("All 1 checks passed.")


def _raise(error):
    raise error


@pytest.mark.parametrize(
    "error, detail, remedy",
    [
        (
            RuntimeError("operator torchvision::nms\n does not exist"),
            "RuntimeError: operator torchvision::nms does",
            "Fit.",
        ),
        (ModuleNotFoundError("No module named 'cv2'", name="cv2"), "cv2 is not installed", "`make setup`"),
        (InputError("detectron2 is not installed. Run this."), "detectron2 is not installed. Run this.", ""),
    ],
)
def test_failure_of_one_check_is_reported_and_the_next_runs(monkeypatch, error, detail, remedy):
    table = [("first", lambda: _raise(error), "Fit."), ("second", lambda: "fine", "")]
    monkeypatch.setattr(diagnostics, "_CHECKS", table)
    first, second = diagnose()
    assert not first.ok and first.detail.startswith(detail) and remedy in first.remedy
    assert second == Check("second", True, "fine")


@pytest.mark.parametrize(
    "missing, remedy, still_works",
    [
        ("torch", "make setup", "GPKG"),
        ("detectron2", "tools/install_detectron2.py", "GPKG"),
        ("rasterio", "make setup", "nms"),
        ("numpy", "make setup", "map projection"),
    ],
)
def test_doctor_runs_without(missing, remedy, still_works):
    code = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; sys.argv = ['doctor.py']; "
        f"runpy.run_path({str(DOCTOR)!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    failures = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert any(missing in line for line in failures) and remedy in result.stdout
    assert f"ok    {still_works}" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_the_package_and_the_check_of_the_environment_import_no_other_library():
    heavy = {"numpy", "torch", "rasterio", "shapely", "pyproj", "cv2", "scipy", "matplotlib", "detectron2"}
    code = f"import sys, fusiondet.doctor.environment; print(sorted({heavy} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
