"""Imports run downwards through the package, without cycles; geo runs without torch, modeling without GDAL."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

LEARNING = ("torch", "torchvision", "detectron2", "fvcore")
GEO = ("rasterio", "shapely", "geopandas", "pyogrio", "pyproj", "osgeo", "fiona")

# From the bottom to the top. A module imports from its own row and from rows below it, never from one above.
ORDER = [
    ["fusiondet", "errors", "compat", "plugins"],
    ["files", "cli", "locks"],
    ["buildings"],
    ["geometry"],
    ["io"],
    ["jobs"],
    ["converters", "synthetic"],
    ["config", "config_text", "config_ranges"],
    ["modeling"],
    ["config_loading"],
    ["data"],
    ["evaluation"],
    ["engine"],
    ["inference"],
    ["analysis", "doctor", "visualization"],
    ["projects"],
    ["tools", "benchmarks"],
]
RANK = {room: rank for rank, row in enumerate(ORDER) for room in row}

# Converters and the synthetic city write data sets; these read data sets and train. Neither side imports the other.
WRITERS = {"converters", "synthetic"}
TRAINING = {
    "config",
    "config_text",
    "config_ranges",
    "modeling",
    "config_loading",
    "data",
    "evaluation",
    "engine",
    "inference",
}

# Imports of our own modules inside functions, "importer -> imported", each with the heavy library that it avoids.
IN_FUNCTIONS = {
    "fusiondet.doctor.environment -> fusiondet": "the check of the environment imports nothing until a check runs",
    "fusiondet.doctor.environment -> fusiondet.compat": "torch: its absence is to be reported",
    "fusiondet.synthetic -> fusiondet.synthetic.dataset": "OpenCV and rasterio: options are shown without them",
}

# Modules of doctor/ that look at data; the others look at the environment.
DATA_CHECKS = sorted(
    path.stem for path in (ROOT / "fusiondet" / "doctor").glob("[a-z]*.py") if path.stem != "environment"
)
# Modules and packages of visualization/ that draw plain records; the other one draws what a training hands to it.
DRAWING = [
    "fusiondet.visualization",
    *sorted(
        f"fusiondet.visualization.{path.stem}{'' if path.suffix else '.*'}"
        for path in (ROOT / "fusiondet" / "visualization").glob("[a-z]*")
        if path.stem != "training"
    ),
]

PROJECTS = sorted(
    f"fusiondet.projects.{path.parent.name}"
    for path in (ROOT / "fusiondet" / "projects").glob("*/__init__.py")
)

# What a layer may not import, and its modules; `.*` takes in a package and everything below, `.?*` what is below alone.
LAYERS = {
    "base": (
        LEARNING + GEO,
        [
            "fusiondet",
            "fusiondet.cli",
            "fusiondet.data",
            "fusiondet.analysis",
            "fusiondet.doctor",
            "fusiondet.errors",
            "fusiondet.files",
            "fusiondet.locks",
            "fusiondet.jobs.*",
            "fusiondet.plugins",
            "fusiondet.projects",
            # Each project's description of itself; its other modules are glue.
            *PROJECTS,
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
            "fusiondet.evaluation.scoring",
            "fusiondet.evaluation.spacenet_f1",
            "fusiondet.evaluation.table",
            "fusiondet.evaluation.layer_scores",
            "fusiondet.geometry.*",
            "fusiondet.io.*",
            "fusiondet.synthetic.*",
            *DRAWING,
        ],
    ),
    "modeling": (
        GEO,
        [
            "fusiondet.compat",
            "fusiondet.config",
            "fusiondet.config_loading",
            "fusiondet.config_ranges",
            "fusiondet.config_text",
            "fusiondet.modeling.*",
        ],
    ),
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
            "fusiondet.doctor.environment",
            "fusiondet.engine.*",
            "fusiondet.evaluation.evaluator",
            "fusiondet.inference.*",
            "fusiondet.visualization.training",
            *(f"{name}.?*" for name in PROJECTS),
        ],
    ),
}


def modules() -> dict[str, Path]:
    """Name -> file of every module of the package."""
    found = {}
    for path in sorted((ROOT / "fusiondet").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "tests" in parts:
            continue
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def in_layer(layer: str) -> list[str]:
    """Modules of the package that `LAYERS` puts into `layer`."""
    return [name for name in modules() if any(_matches(name, pattern) for pattern in LAYERS[layer][1])]


def _matches(name: str, pattern: str) -> bool:
    if pattern.endswith(".?*"):
        return name.startswith(pattern[:-2])
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


class Import(NamedTuple):
    """One import of a module of the package by another."""

    importer: str
    imported: str
    in_function: bool

    def __str__(self):
        return f"{self.importer} -> {self.imported}"


@functools.cache
def first_party_imports() -> list[Import]:
    """Every import of ours in the package, at the top of files and inside functions."""
    files = modules()
    found = {
        Import(name, _known_module(imported, files), in_function)
        for name, path in files.items()
        for imported, in_function in _imports(ast.parse(path.read_text(encoding="utf-8")))
        if imported.partition(".")[0] in ("fusiondet", "tools", "benchmarks")
    }
    return sorted(found)


def _imports(node: ast.AST, in_function: bool = False) -> Iterator[tuple[str, bool]]:
    """(dotted name, inside a function) of everything imported below `node`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, in_function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((f"{child.module}.{alias.name}", in_function) for alias in child.names)
        else:
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, inside)


def _known_module(name: str, files: dict[str, Path]) -> str:
    """`fusiondet.files` for `fusiondet.files.read_json`; scripts outside the package by their folder."""
    if name.partition(".")[0] != "fusiondet":
        return name.partition(".")[0]
    while name not in files:
        name = name.rpartition(".")[0]
    return name


def room(module: str) -> str:
    """Package or top-level module below `fusiondet` that `module` belongs to; each project is a room of its own."""
    parts = module.split(".")
    if len(parts) > 2 and parts[1] == "projects":
        return ".".join(parts[1:3])
    return parts[1] if len(parts) > 1 else parts[0]


def rank(module: str) -> int:
    """Row of `ORDER` that `module` belongs to."""
    return RANK[room(module).partition(".")[0]]


def cycles(edges) -> list[list[str]]:
    """Groups of names that import each other, directly or by a detour."""
    graph = {}
    for importer, imported in edges:
        if importer != imported:
            graph.setdefault(importer, set()).add(imported)

    def reachable(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    reach = {name: reachable(name) for name in graph}
    found = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in graph if a in reach[a]}
    return sorted(sorted(group) for group in found)


def test_every_room_has_its_row():
    rooms = {room(name).partition(".")[0] for name in modules()}
    assert rooms - RANK.keys() == set(), "put these into ORDER"


def test_imports_run_downwards():
    upward = {str(i) for i in first_party_imports() if rank(i.imported) > rank(i.importer)}
    assert upward == set()


def test_data_set_writers_and_training_do_not_import_each_other():
    across = {
        str(i)
        for i in first_party_imports()
        if (room(i.importer) in TRAINING and room(i.imported) in WRITERS)
        or (room(i.importer) in WRITERS and room(i.imported) in TRAINING)
    }
    assert across == set()


def test_projects_are_not_imported_from_outside_nor_by_each_other():
    wrong = {
        str(i)
        for i in first_party_imports()
        if room(i.imported).startswith("projects.") and room(i.importer) != room(i.imported)
    }
    assert wrong == set()


def test_no_cycle_between_files():
    assert cycles((i.importer, i.imported) for i in first_party_imports()) == []


def test_no_cycle_between_packages():
    edges = ((room(i.importer), room(i.imported)) for i in first_party_imports())
    assert cycles(edges) == []


def test_own_modules_are_imported_at_the_top_of_files():
    inside = {str(i) for i in first_party_imports() if i.in_function}
    assert inside - IN_FUNCTIONS.keys() == set()


def test_cycles_are_found():
    assert cycles([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "a")]) == [["a", "b", "c"]]
    assert cycles([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "d")]) == []


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
