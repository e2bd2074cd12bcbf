"""Every config of the core loads, builds its network, and takes two steps on the CPU, shrunk; none is left out."""

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import load_config
from tests.support.config_checks import (
    check_leaf_is_short,
    check_says_only_what_differs,
    check_two_steps,
    leaves,
)
from tests.support.tiny_city import ROOT, write_split

import pytest
import yaml

# A specification of an ablation names configs and is none; tests/analysis/ablation reads it.
CONFIGS = sorted(
    p for p in (ROOT / "configs").rglob("*.yaml") if "rows" not in yaml.safe_load(p.read_text("utf-8"))
)
# Names a network of a project, whose tests take its steps.
OF_A_PROJECT = ROOT / "configs" / "ablation" / "Base-Dense.yaml"


def config_id(path):
    return str(path.relative_to(ROOT / "configs"))


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("tiny_city"), counts=(3, 2, 0, 4))


@pytest.mark.parametrize("path", [path for path in CONFIGS if path != OF_A_PROJECT], ids=config_id)
def test_loads_builds_and_takes_two_steps(path, annotations, tmp_path, monkeypatch):
    check_two_steps(path, annotations, tmp_path, monkeypatch)


@pytest.mark.parametrize("path", leaves(CONFIGS), ids=config_id)
def test_leaf_is_short_and_says_what_it_is(path):
    check_leaf_is_short(path)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path != OF_A_PROJECT], ids=config_id)
def test_says_only_what_differs(path):
    check_says_only_what_differs(path)


def test_published_networks_are_there():
    """R-50 and R-101, RGB alone and RGB + SAR stacked, at the depth and with the bands that the name says."""
    for depth in (50, 101):
        for start, modalities in (("rgb", ["optical"]), ("early_fusion", ["optical", "sar"])):
            cfg = load_config(ROOT / "configs" / "dfc2023" / f"{start}_r{depth}.yaml")
            assert cfg.MODEL.RESNETS.DEPTH == depth and cfg.INPUT.MODALITIES == modalities
            assert cfg.MODEL.WEIGHTS.endswith(f"R-{depth}.pkl")
