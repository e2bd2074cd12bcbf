"""Configs of the project: they load, say only what differs, and take two steps on the CPU, shrunk."""

from pathlib import Path

import fusiondet.compat  # noqa: F401
from tests.support.config_checks import (
    check_leaf_is_short,
    check_says_only_what_differs,
    check_stored_config_of_0_5,
    check_two_steps,
    leaves,
)
from tests.support.tiny_city import ROOT, write_split

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
WITH_SMP_ENCODER = ("DeepLabV3Plus", "ResUNet", "UPerNet", "PSPNet")  # smp


def narrow(path):
    """Overrides for a narrow network."""
    tree = yaml.safe_load(path.read_text("utf-8"))
    if tree.get("MODEL", {}).get("DENSE_NET", {}).get("NAME") in WITH_SMP_ENCODER:
        return {"MODEL.DENSE_NET.WIDTH": 8, "MODEL.DENSE_NET.SMP.ENCODER": "resnet18"}
    return {"MODEL.DENSE_NET.WIDTH": 4}


def config_id(path):
    return path.name


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("tiny_city"), counts=(3, 2, 0, 4))


@pytest.mark.parametrize("path", [*CONFIGS, ROOT / "configs" / "ablation" / "Base-Dense.yaml"], ids=config_id)
def test_loads_builds_and_takes_two_steps(path, annotations, tmp_path, monkeypatch):
    check_two_steps(path, annotations, tmp_path, monkeypatch, narrow(path))


@pytest.mark.parametrize("path", leaves(CONFIGS), ids=config_id)
def test_leaf_is_short_and_says_what_it_is(path):
    check_leaf_is_short(path)


@pytest.mark.parametrize("path", CONFIGS, ids=config_id)
def test_says_only_what_differs(path):
    check_says_only_what_differs(path)


def test_a_stored_config_of_0_5_arrives():
    cfg = check_stored_config_of_0_5(Path(__file__).with_name("fusion_height_net_0_5.yaml"))
    net = cfg.MODEL.DENSE_NET
    assert (net.HEIGHT.LOSS_WEIGHT, net.FOOTPRINT.LOSS_WEIGHT, net.HEIGHT.REFINE) == (0.7, 1.5, False)
    assert net.FUSION_HEIGHT_NET.SHARE_WEIGHTS
