"""Shared by all tests: one thread, no display, and the place of the real data."""

import importlib.util
import os
import sys
from pathlib import Path

# Before anything imports numpy, torch or matplotlib. One thread: the tests are small, and bitwise the same everywhere.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ["MPLBACKEND"] = "Agg"

from fusiondet import cli  # noqa: E402

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

# No deadline: the machine may be shared. Derandomised: a red run can be repeated.
settings.register_profile(
    "fusiondet",
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fusiondet")


def _shared_data_folders() -> list[Path]:
    given = os.environ.get("FUSIONDET_SHARED_DATA")
    return [Path(given)] if given else [ROOT.parent / "shared" / "data"]


@pytest.fixture(scope="session")
def shared_data():
    """`shared_data(name)`: folder of real data, in $FUSIONDET_SHARED_DATA or beside the checkout; skips without it."""

    def find(name: str) -> Path:
        folders = _shared_data_folders()
        for folder in folders:
            if (folder / name).exists():
                return folder / name
        pytest.skip(
            f"real data {name!r} not in {folders[0]}; set FUSIONDET_SHARED_DATA to the folder that holds it"
        )

    return find


@pytest.fixture(scope="session")
def load_tool():
    """`load_tool("evaluate")`: tools/evaluate.py as a module, so that a test can call its `main`."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    """No test writes beside the sources, data sets and outputs default to its own folder; no tool is running."""
    monkeypatch.setattr(cli, "_tool", cli._Tool())
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
