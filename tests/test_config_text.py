"""Texts of configs: names of the previous version, sections of projects that are not there."""

import logging

import fusiondet.compat  # noqa: F401
from fusiondet import config_text
from fusiondet.config import defaults
from fusiondet.config_loading import config_from_yaml_text, load_config
from fusiondet.config_text import (
    flat,
    get_key,
    parse_stored,
    rename_keys,
    rename_words,
    renamed_keys,
    set_key,
)
from fusiondet.errors import InputError
from tests.support.config_checks import check_stored_config_of_0_5
from tests.support.tiny_city import ROOT

import pytest
import yaml

BASE = ROOT / "configs" / "Base-FusionRCNN-FPN.yaml"


@pytest.fixture(autouse=True)
def nothing_noted(monkeypatch):
    monkeypatch.setattr(config_text, "_NOTED", set())


# ---- Names of the previous version -----------------------------------------------------------------------


def test_every_old_name_has_a_key_of_today_and_is_none_itself():
    keys = flat(defaults())
    names = renamed_keys()
    assert names and {*names.values()} <= keys.keys()
    assert not {*names} & keys.keys()


@pytest.mark.parametrize("old", sorted(renamed_keys()))
def test_an_old_name_in_a_file_is_read_under_its_new_one_with_a_note(tmp_path, caplog, old):
    new = renamed_keys()[old]
    usual = get_key(defaults(), new)
    value = (not usual) if isinstance(usual, bool) else usual * 2
    tree = {}
    section = tree
    *path, name = old.split(".")
    for part in path:
        section = section.setdefault(part, {})
    section[name] = value
    rename_keys(tree, "my.yaml")
    cfg = defaults()
    cfg.merge_from_other_cfg(type(cfg)(tree))
    assert get_key(cfg, new) == value
    assert f"my.yaml: {old} is now {new}" in caplog.text
    assert rename_words([old, value, "SEED", 1]) == [new, value, "SEED", 1]


def test_old_names_go_through_files_bases_and_the_command_line(tmp_path, caplog):
    (tmp_path / "base.yaml").write_text(f"_BASE_: {BASE}\nMODEL: {{DENSE_HEADS: {{DIM: 32}}}}")
    (tmp_path / "leaf.yaml").write_text("_BASE_: base.yaml\nSEED: 3")
    assert load_config(tmp_path / "leaf.yaml").MODEL.DENSE_HEADS.CONV_DIM == 32
    assert load_config(BASE, ["MODEL.DENSE_HEADS.DIM", "16"]).MODEL.DENSE_HEADS.CONV_DIM == 16
    assert caplog.text.count("MODEL.DENSE_HEADS.DIM is now MODEL.DENSE_HEADS.CONV_DIM") == 1, "one note"


def test_both_names_at_once_are_refused(tmp_path):
    both = "MODEL: {DENSE_HEADS: {DIM: 32, CONV_DIM: 16}}"
    (tmp_path / "my.yaml").write_text(both)
    with pytest.raises(
        InputError, match="my.yaml: MODEL.DENSE_HEADS.DIM is now .*CONV_DIM, and both are there"
    ):
        load_config(tmp_path / "my.yaml")
    words = ["MODEL.DENSE_HEADS.DIM", "32", "MODEL.DENSE_HEADS.CONV_DIM", "16"]
    with pytest.raises(InputError, match="command line: .*both are there"):
        load_config(BASE, words)


def test_a_stored_config_says_it_quietly(caplog):
    """Nobody can change a checkpoint."""
    cfg = config_from_yaml_text("MODEL: {DENSE_HEADS: {DIM: 32}}", "model.pth")
    assert cfg.MODEL.DENSE_HEADS.CONV_DIM == 32
    assert all(record.levelno < logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("name", ["detector", "two_detectors", "dense_heads"])
def test_stored_configs_of_0_5_arrive(name):
    check_stored_config_of_0_5(ROOT / "tests" / "support" / "configs_of_0_5" / f"{name}.yaml")


# ---- Projects that are not there -------------------------------------------------------------------------


@pytest.fixture
def with_more():
    """Text of a complete config with sections that no project here has."""

    def text(**keys):
        tree = yaml.safe_load(load_config(BASE).dump())
        tree["MODEL"]["GONE"] = {"WIDTH": 3}
        tree["MODEL"]["DENSE_NET"]["GONE_NET"] = {"DEPTH": {"A": 1}}
        for key, value in keys.items():
            set_key(tree, key.replace("__", "."), value)
        return yaml.safe_dump(tree)

    return text


def test_their_sections_are_dropped_from_a_stored_config_with_a_note(with_more, tmp_path, caplog):
    cfg, dropped = parse_stored(with_more(), "model.pth")
    assert dropped == ["MODEL.GONE", "MODEL.DENSE_NET.GONE_NET"]
    assert "model.pth: left out the config sections MODEL.GONE, MODEL.DENSE_NET.GONE_NET" in caplog.text
    assert config_from_yaml_text(with_more(), "model.pth") == cfg
    (tmp_path / "config.yaml").write_text(with_more())
    assert load_config(tmp_path / "config.yaml") == cfg, "config.yaml of a run, for --resume"


def test_a_network_of_theirs_is_named(with_more):
    message = r"model.pth: MODEL.META_ARCHITECTURE is GoneNet, .*not in fusiondet/projects.*MODEL.GONE"
    with pytest.raises(InputError, match=message):
        config_from_yaml_text(with_more(MODEL__META_ARCHITECTURE="GoneNet"), "model.pth")
    keys = {"MODEL__META_ARCHITECTURE": "FusionDenseNet", "MODEL__DENSE_NET__NAME": "GoneNet"}
    with pytest.raises(InputError, match="MODEL.DENSE_NET.NAME is GoneNet, .*MODEL.DENSE_NET.GONE_NET"):
        config_from_yaml_text(with_more(**keys), "model.pth")


def test_what_someone_wrote_is_misspelt_instead(tmp_path):
    (tmp_path / "my.yaml").write_text("MODEL: {GONE: {WIDTH: 3}}")
    with pytest.raises(InputError, match="unknown config key 'MODEL.GONE'"):
        load_config(tmp_path / "my.yaml")


@pytest.mark.parametrize("name", ["ROI_HEIGHT_HAED", "FUSION2", "DENSE_NET.HIGHT"])
def test_a_section_that_is_nearly_one_of_ours_is_misspelt_in_a_complete_config_too(with_more, name):
    with pytest.raises(InputError, match=f"unknown config key 'MODEL.{name}'"):
        config_from_yaml_text(
            with_more(**{f"MODEL__{name.replace('.', '__')}": {"LOSS_WEIGHT": 5.0}}), "model.pth"
        )


def test_a_value_is_never_dropped(with_more):
    with pytest.raises(InputError, match="unknown config key 'MODEL.GONE_TOO'"):
        config_from_yaml_text(with_more(MODEL__GONE_TOO=1), "model.pth")
