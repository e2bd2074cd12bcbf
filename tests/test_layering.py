"""Three layers: geo runs without torch, modeling without GDAL, and importing the package itself loads neither."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LEARNING = ("torch", "torchvision", "detectron2", "fvcore")
GEO = ("rasterio", "shapely", "geopandas", "pyogrio", "pyproj", "osgeo", "fiona")

# Modules of doctor/ that look at data; the others look at the environment.
DATA_CHECKS = sorted(
    path.stem for path in (ROOT / "fusiondet" / "doctor").glob("[a-z]*.py") if path.stem != "environment"
)

# What a layer may not import, and its modules; `.*` takes in everything below a package.
LAYERS = {
    "base": (
        LEARNING + GEO,
        [
            "fusiondet",
            "fusiondet.cli",
            "fusiondet.data",
            "fusiondet.analysis",
            "fusiondet.errors",
            "fusiondet.files",
            "fusiondet.jobs.*",
        ],
    ),
    "geo": (
        LEARNING,
        [
            "fusiondet.buildings",
            "fusiondet.converters.*",
            *(f"fusiondet.doctor.{name}" for name in DATA_CHECKS),
            "fusiondet.evaluation",
            "fusiondet.evaluation.average_precision",
            "fusiondet.evaluation.classification",
            "fusiondet.evaluation.dense",
            "fusiondet.evaluation.dfc2023_scoring",
            "fusiondet.evaluation.dfc2023_submission",
            "fusiondet.evaluation.height_metrics",
            "fusiondet.evaluation.instances",
            "fusiondet.evaluation.matching",
            "fusiondet.evaluation.regions",
            "fusiondet.evaluation.resampling",
            "fusiondet.evaluation.spacenet_f1",
            "fusiondet.evaluation.table",
            "fusiondet.evaluation.vectors",
            "fusiondet.geometry.*",
            "fusiondet.io.*",
            "fusiondet.synthetic.*",
            "fusiondet.visualization.*",
        ],
    ),
    "modeling": (GEO, ["fusiondet.compat", "fusiondet.config", "fusiondet.modeling.*"]),
    "glue": (
        (),
        [
            "fusiondet.analysis.ablation.*",
            "fusiondet.analysis.timing",
            "fusiondet.analysis.utilization.*",
            "fusiondet.data.augmentations",
            "fusiondet.data.catalog",
            "fusiondet.data.mapper",
            "fusiondet.data.sampler",
            "fusiondet.doctor",
            "fusiondet.doctor.environment",
            "fusiondet.engine.*",
            "fusiondet.evaluation.evaluator",
            "fusiondet.inference.*",
            "fusiondet.projects.*",
        ],
    ),
}


def modules() -> dict[str, Path]:
    """Name -> file of every module of the package."""
    found = {}
    for path in sorted((ROOT / "fusiondet").rglob("*.py")):
        if "tests" in path.parts:
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def in_layer(layer: str) -> list[str]:
    """Modules of the package that `LAYERS` puts into `layer`."""
    return [name for name in modules() if any(_matches(name, pattern) for pattern in LAYERS[layer][1])]


def _matches(name: str, pattern: str) -> bool:
    return f"{name}.".startswith(pattern[:-1]) if pattern.endswith(".*") else name == pattern


def run_without(packages, code: str) -> subprocess.CompletedProcess:
    """Run `code` in a new Python in which importing any of `packages` fails as if they were not installed."""
    block = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {tuple(packages)!r}:
            raise ModuleNotFoundError(f"{{name}} does not belong here", name=name)

sys.meta_path.insert(0, Block())
"""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", block + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", modules())
def test_every_module_belongs_to_one_layer(name):
    layers = [layer for layer in LAYERS if name in in_layer(layer)]
    assert len(layers) == 1, f"{name} is in layers {layers}: put it into one, in LAYERS of {__file__}"


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if LAYERS[layer][0]])
def test_layer_imports_without_what_it_may_not_use(layer):
    imports = "".join(f"import {name}\n" for name in in_layer(layer))
    result = run_without(LAYERS[layer][0], imports)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if LAYERS[layer][0]])
def test_no_function_of_a_layer_imports_what_it_may_not_use(layer):
    forbidden, files = LAYERS[layer][0], modules()
    wrong = [
        f"{name}: {package}" for name in in_layer(layer) for package in _imported(files[name]) & {*forbidden}
    ]
    assert wrong == []


def _imported(path: Path) -> set[str]:
    """Top-level packages that the file imports, inside functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module)
    return {name.partition(".")[0] for name in names}


def test_importing_the_package_loads_neither_torch_nor_rasterio():
    result = run_without((), f"import fusiondet\nprint(sys.modules.keys() & set({LEARNING + GEO!r}))")
    assert result.stdout.strip() == "set()", result.stdout + result.stderr
