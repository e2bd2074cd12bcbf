"""A config of a whole network for maps, without its name."""

import pytest


@pytest.fixture
def dense_cfg(small_cfg):
    """`small_cfg` of a FusionDenseNet for 3 optical and 1 SAR band, heights in units of 50 m."""
    model = small_cfg.MODEL
    model.META_ARCHITECTURE, model.MASK_ON, model.HEIGHT_ON = "FusionDenseNet", False, False
    model.FUSION.OPTICAL_CHANNELS, model.DENSE_NET.HEIGHT_SCALE_M = 3, 50.0
    small_cfg.TEST.BEST_METRIC = "dense/dice"
    return small_cfg
