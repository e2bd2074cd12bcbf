"""Nothing outside the folder of a project names it, and without any of them all else works."""

import ast
import os
import re
import shutil
import subprocess
import sys

from fusiondet import plugins
from tests.support.tiny_city import ROOT

import pytest

PROJECTS = [project.name for project in plugins.projects()]
CORE = sorted(
    path
    for folder in ("fusiondet", "tools", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if ROOT / "fusiondet" / "projects" not in path.parents
)


def names_of(project):
    """Words that belong to a project: its folder, networks, trainers, subcommands, and sections of the config."""
    words = {project.name, *project.architectures, *project.dense_networks, *project.converters}
    words |= {reference.partition(":")[2] for reference in project.trainers.values()}
    folder = ROOT / "fusiondet" / "projects" / project.name
    sources = "".join(path.read_text("utf-8") for path in folder.glob("*_config.py"))
    return words | {*re.findall(r"cfg\.MODEL\.(?:DENSE_NET\.)?(\w+) = CN\(\)", sources)}


def said(path):
    """Identifiers, imported names and texts of a module, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owners = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    documented = [node.body[0] for node in ast.walk(tree) if isinstance(node, owners) and node.body]
    docstrings = {
        id(first.value)
        for first in documented
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_every_project_has_what_it_needs():
    assert PROJECTS
    for name in PROJECTS:
        folder = ROOT / "fusiondet" / "projects" / name
        assert (folder / "README.md").is_file(), f"{name}: what the paper says, what was assumed, how to run"
        assert list((folder / "configs").rglob("*.yaml")) and list((folder / "tests").glob("test_*.py"))


@pytest.mark.parametrize("project", plugins.projects(), ids=PROJECTS)
def test_nothing_outside_names_a_project(project):
    words = names_of(project)
    pattern = re.compile(rf"(?<![A-Za-z0-9_])({'|'.join(map(re.escape, sorted(words)))})(?![A-Za-z0-9_])")
    found = {
        f"{path.relative_to(ROOT)}: {match[1]}"
        for path in CORE
        for text in said(path)
        for match in pattern.finditer(text)
    }
    assert found == set()


# Tests of the core that are quick, and that would notice a project that is missing.
QUICK = (
    "tests/test_plugins.py", "tests/test_config.py", "tests/test_config_text.py", "tests/test_config_loading.py",
    "tests/test_layering.py", "tests/converters/test_prepare.py", "tests/data/test_catalog.py",
    "tests/analysis/ablation/test_spec.py", "tests/modeling/test_architecture.py", "tests/test_projects.py",
    "tests/test_mirror.py", "tests/io/test_pixel_classes.py", "tests/modeling/test_dense_nets.py",
    "tests/inference/test_class_raster.py", "tests/analysis/utilization/test_measurement.py",
)  # fmt: skip

LOAD = """
import importlib, pkgutil
import fusiondet
from fusiondet.config import config_file, config_names
from fusiondet.config_loading import load_config
from fusiondet.config_text import safe_yaml

for info in pkgutil.walk_packages(fusiondet.__path__, "fusiondet."):
    if ".tests" not in info.name:
        importlib.import_module(info.name)
absent = []
for name in config_names():
    if "rows" not in safe_yaml(config_file(name).read_text("utf-8"), name):
        try:
            load_config(name)
        except ValueError as error:
            absent.append(f"{name}: {error}")
print("ABSENT", absent)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PROJECTS)
def test_all_else_works_without_one_of_them(name, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "output", "__pycache__", "datasets", ".*")
    )
    shutil.rmtree(tree / "fusiondet" / "projects" / name)

    def run(*words):
        result = subprocess.run(
            [sys.executable, "-W", "ignore", *words], cwd=tree, capture_output=True, text=True, timeout=1200,
            env={**os.environ, "PYTHONPATH": str(tree)},
        )  # fmt: skip
        assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
        return result.stdout

    # The ablation of several projects' networks stays, and names the one that it lacks.
    absent = run("-c", LOAD).rpartition("ABSENT")[2].strip()
    (own,) = [{*project.dense_networks} for project in plugins.projects() if project.name == name]
    if absent != "[]":
        assert "Base-Dense.yaml" in absent and "unknown MODEL.DENSE_NET.NAME" in absent, absent
        assert any(network in absent for network in own), absent
    quick = [path for path in QUICK if (tree / path).is_file()]
    run("-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *quick)
    run("-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider")
