"""Config keys: every one is documented, and survives YAML. Configs are found by name."""

import inspect
import re
from pathlib import Path

import fusiondet.compat  # noqa: F401
from fusiondet import plugins
from fusiondet.config import add_fusiondet_config, config_file, config_folders, config_names, find_config
from fusiondet.config_loading import config_from_yaml_text, load_config
from fusiondet.errors import InputError
from tests.support.tiny_city import ROOT

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg


def leaves(cfg, prefix=""):
    for key, value in cfg.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]


def test_every_key_of_ours_has_a_comment_above():
    cfg = get_cfg()
    theirs = set(leaves(cfg))
    add_fusiondet_config(cfg)
    ours = set(leaves(cfg)) - theirs
    functions = [add_fusiondet_config, *plugins.config_functions("add_config")]
    files = [Path(inspect.getsourcefile(function)) for function in functions]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    documented, commented = set(), False
    for line in lines:
        text = line.strip()
        if text.startswith("# ") and not text.startswith("# ----"):
            commented = True
        elif match := re.match(r"cfg\.([A-Za-z0-9_.]+) = (?!CN)", text):
            assert commented, f"{match[1]} has no comment above it"
            documented.add(match[1])
        elif not text.startswith("cfg."):
            commented = False
    assert ours == documented and len(ours) > 30


def test_defaults_are_plain_values():
    """Everything survives YAML, so that a checkpoint can hold it as text."""
    cfg = get_cfg()
    add_fusiondet_config(cfg)
    again = config_from_yaml_text(cfg.dump(), "dump")
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


# ---- Files -----------------------------------------------------------------------------------------------

SMALL = "synthetic/fusion_r18_small.yaml"


def test_a_config_is_found_by_its_name_with_or_without_the_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    expected = ROOT / "configs" / SMALL
    assert config_file(SMALL) == expected
    assert find_config(SMALL) == find_config(f"configs/{SMALL}") == find_config(expected) == expected
    assert SMALL in config_names() and "ablation/dense.yaml" in config_names()


def test_configs_that_moved_to_projects_are_found_by_any_path_into_a_folder_of_configs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    moved = next(name for name in config_names() if not (ROOT / "configs" / name).exists())
    there = config_file(moved)
    for path in (f"../checkout/configs/{moved}", tmp_path / "0.5" / "configs" / moved):
        assert find_config(path) == there
    (tmp_path / "own.yaml").write_text(f"_BASE_: ../checkout/configs/{moved}\nSEED: 7\n")
    assert load_config("own.yaml").SEED == 7


def test_a_file_comes_before_a_config_of_that_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    own = Path("configs") / SMALL
    own.parent.mkdir(parents=True)
    own.write_text("SEED: 7")
    assert find_config(own) == own


@pytest.mark.parametrize(
    "name", ["synthetic/nothing.yaml", "../README.md", "", "synthetic", "/etc/passwd/x.yaml"]
)
def test_names_that_are_none(name):
    assert find_config(name) is None
    with pytest.raises(InputError, match="no such config file"):
        config_file(name)


def test_no_two_configs_have_one_name():
    names = config_names()
    assert len(names) == len({*names}) > 50
    assert all(find_config(name).is_file() for name in names)
    # Also where it lay before it moved beside its project.
    assert all(find_config(config_folders()[0] / name).is_file() for name in names)
