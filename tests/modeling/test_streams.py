"""Which parameters belong to one modality, in every kind of network."""

import fusiondet.compat  # noqa: F401
from fusiondet.modeling.streams import PerModality, modality_of_parameters

import pytest
from detectron2.modeling import build_model
from torch import nn


def test_entries_of_other_names_are_shared():
    parts = PerModality({"optical": nn.Linear(1, 1), "both": nn.Linear(1, 1)})
    of_one = modality_of_parameters(nn.Sequential(parts, nn.Linear(1, 1)))
    assert of_one == dict.fromkeys(parts["optical"].parameters(), "optical")
    assert parts.parts_of("sar") == []


def names(model):
    of_one = modality_of_parameters(model)
    return {name: of_one.get(parameter) for name, parameter in model.named_parameters()}


def test_one_stream_belongs_to_none(small_cfg):
    assert set(names(build_model(small_cfg)).values()) == {None}


@pytest.mark.parametrize("shared", [False, True])
def test_streams_and_branches_belong_to_their_modality_and_what_is_between_them_to_none(small_cfg, shared):
    small_cfg.MODEL.META_ARCHITECTURE = "LateFusionRCNN"
    small_cfg.MODEL.BACKBONE.NAME = "build_two_pyramids_resnet_fpn_backbone"
    small_cfg.MODEL.FUSION.OPTICAL_CHANNELS, small_cfg.MODEL.FUSION.EXCHANGE.res5 = 3, "MMTM"
    small_cfg.MODEL.FUSION.SHARE_WEIGHTS = shared
    for name, modality in names(build_model(small_cfg)).items():
        parts = name.split(".")
        if "exchanges" in parts or (shared and {"res2", "res3", "res4", "res5"} & {*parts}):
            assert modality is None, name
        else:
            assert modality in parts, name
