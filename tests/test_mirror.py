"""Every module has a test file of its own where one looks for it, and every test file has a module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Tests of several modules together. Everything else mirrors one module.
END_TO_END = {
    "tests/test_bad_fusion_input.py": "wrong inputs of fusion networks, from the config to the scene",
    "fusiondet/projects/u_rec/tests/test_end_to_end.py": "class rasters from the converter to the scores",
    "tests/engine/test_distributed.py": "two processes train and score one network",
    "tests/engine/test_finetune.py": "a trained network goes on with other bands, from its checkpoint",
    "tests/inference/test_class_raster.py": "classes of a scene, from the checkpoint to the file",
    "tests/inference/test_height_rasters_of_scenes.py": "heights of a scene, from the checkpoint to the file",
    "tests/inference/test_orientation.py": "mirrored rasters, from the reader to the layer",
    "tests/inference/test_resume.py": "predictions that are killed and resumed",
    "tests/visualization/report/test_in_browser.py": "a whole report, in a browser",
    "tests/test_configs.py": "every file in configs/ is loaded and its network built",
    "tests/test_fuzz.py": "what runs on bad inputs end with, as `make fuzz` counts it",
    "tests/test_end_to_end.py": "a synthetic city is made, learned and predicted",
    "tests/test_layering.py": "imports of all modules",
    "tests/test_learning.py": "a small network learns",
    "tests/test_checkpoint_of_0_5.py": "a checkpoint of 0.5 gives the layer that 0.5 wrote with it",
    "tests/test_messages.py": "messages of the library, as library and tools give them",
    "tests/test_mirror.py": "this file",
    "tests/test_projects.py": "the package works without any one of its projects",
}


def mirror(module: Path) -> Path:
    """Path of the test file of `module`, both relative to the root of the repository."""
    parts = module.parts[1:]
    if parts[0] == "projects" and len(parts) > 2:
        return Path(*module.parts[:3], "tests", *parts[2:-1], f"test_{module.name}")
    return Path("tests", *parts[:-1], f"test_{module.name}")


def python_files(folder: str, pattern: str = "*.py") -> list[Path]:
    """Files below `folder`, relative to the root of the repository."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob(pattern))


MODULES = [
    path for path in python_files("fusiondet") if path.name != "__init__.py" and "tests" not in path.parts
]
TEST_FILES = python_files("tests", "test_*.py") + python_files("fusiondet/projects", "test_*.py")
# Code outside the package has its tests below tests/, too.
SCRIPTS = {
    Path("tests", *path.parts[:-1], f"test_{path.name}")
    for path in python_files("tools") + python_files("benchmarks")
}


def of_an_absent_project(name: str) -> bool:
    """Whether `name` lies in the folder of a project that was deleted."""
    parts = Path(name).parts
    return parts[:2] == ("fusiondet", "projects") and not (ROOT / Path(*parts[:3])).is_dir()


def test_every_module_has_a_test_file():
    missing = {str(module) for module in MODULES if mirror(module) not in TEST_FILES}
    assert missing == set(), f"write {[str(mirror(Path(module))) for module in sorted(missing)]}"


def test_every_test_file_has_a_module():
    known = {mirror(module) for module in MODULES} | SCRIPTS | {Path(name) for name in END_TO_END}
    orphans = {str(path) for path in TEST_FILES if path not in known}
    assert orphans == set(), "rename these after the module that they test"


@pytest.mark.parametrize("name", END_TO_END)
def test_end_to_end_tests_exist(name):
    assert (ROOT / name).is_file() or of_an_absent_project(name)


@pytest.mark.parametrize("path", [str(path) for path in TEST_FILES + python_files("tests", "conftest.py")])
def test_nothing_is_imported_from_a_test_module(path):
    """Helpers live in tests/support, or beside the tests of a project in a file of their own."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    last = {name: name.rpartition(".")[2] for name in imported if name.startswith(("tests.", "fusiondet."))}
    borrowed = {name for name, file in last.items() if file == "conftest" or file.startswith("test_")}
    assert borrowed == set(), "move what it needs to tests/support"
