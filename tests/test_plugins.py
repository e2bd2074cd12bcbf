"""Projects: found by their folder, loaded when asked for, and named when a library of theirs is missing."""

import sys

from fusiondet import plugins
from fusiondet.errors import InputError
from fusiondet.plugins import Project

import pytest


@pytest.fixture
def project(monkeypatch, tmp_path):
    """A project in the place of the real ones, whose network needs a library that is not installed."""
    (tmp_path / "toy_network.py").write_text("import library_that_is_not_there")
    (tmp_path / "toy_trainer.py").write_text("class Trainer: pass")
    monkeypatch.syspath_prepend(tmp_path)
    toy = Project(
        name="toy",
        architectures={"ToyNet": "toy_network"},
        trainers={"ToyNet": "toy_trainer:Trainer"},
        converters={"toys": ("toy_trainer", "toys")},
        shaping_keys=("MODEL.TOY",),
        packages={"library_that_is_not_there": "the-library"},
    )
    monkeypatch.setattr(plugins, "projects", lambda: (toy,))
    return toy


def test_folders_are_found_in_order():
    names = [project.name for project in plugins.projects()]
    assert names == sorted(names) and all(names)


def test_no_name_is_taken_twice():
    for attribute in ("architectures", "dense_networks", "trainers", "converters", "renamed_keys"):
        entries = [key for project in plugins.projects() for key in getattr(project, attribute)]
        assert len(entries) == len({*entries}), attribute


def test_what_all_of_them_have(project):
    assert plugins.merged("architectures") == {"ToyNet": "toy_network"}
    assert plugins.listed("shaping_keys") == ("MODEL.TOY",)
    assert plugins.owner("converters", "toys") is project and plugins.owner("converters", "tiles") is None


def test_references_are_imported_when_asked_for(project):
    assert "toy_trainer" not in sys.modules
    assert plugins.load("trainers", "ToyNet").__name__ == "Trainer"
    assert plugins.load("converters", "toys").__name__ == "toy_trainer"
    assert plugins.load("architectures", "FusionRCNN") is None


def test_a_missing_library_is_named_with_what_to_install(project):
    message = (
        "MODEL.META_ARCHITECTURE ToyNet .*project toy, .*'library_that_is_not_there'.*pip install the-library"
    )
    with pytest.raises(InputError, match=message):
        plugins.load("architectures", "ToyNet", "MODEL.META_ARCHITECTURE")


def test_a_project_that_misspells_a_module_of_ours_is_a_fault_of_its_own(project, tmp_path):
    (tmp_path / "toy_network.py").write_text("import fusiondet.nothing_of_this_name")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        plugins.load("architectures", "ToyNet")


def test_a_project_that_cannot_be_imported_is_named_where_one_of_its_names_is_asked_for(
    monkeypatch, tmp_path
):
    toy = Project(name="toy", add_config="toy_config:add_toy_config")
    (tmp_path / "toy_config.py").write_text("import library_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "projects", lambda: (toy,))
    monkeypatch.setattr(plugins, "_UNAVAILABLE", {})
    assert plugins.config_functions("add_config") == [] and plugins.config_functions("check_config") == []
    assert "toy" in plugins.unavailable() and "library_that_is_not_there" in plugins.unavailable()


def test_a_folder_whose_import_fails_leaves_the_others(monkeypatch):
    real, before = plugins.importlib.import_module, [project.name for project in plugins.projects()]
    lost = before[0]

    def import_module(name):
        if name == f"fusiondet.projects.{lost}":
            raise ModuleNotFoundError("No module named 'nolib'", name="nolib")
        return real(name)

    monkeypatch.setattr(plugins, "_UNAVAILABLE", {})
    monkeypatch.setattr(plugins.importlib, "import_module", import_module)
    plugins.projects.cache_clear()
    try:
        assert [p.name for p in plugins.projects()] == [name for name in before if name != lost]
        assert lost in plugins.unavailable() and "nolib" in plugins.unavailable()
    finally:
        plugins.projects.cache_clear()
