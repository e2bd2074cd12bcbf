"""A config whose networks are small in all but their number of layers."""

import pytest

SMALL = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: FusionRCNN
  BACKBONE: {NAME: build_early_fusion_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6], PRE_NMS_TOPK_TRAIN: 50, POST_NMS_TOPK_TRAIN: 30, PRE_NMS_TOPK_TEST: 50,
    POST_NMS_TOPK_TEST: 30}
  ROI_HEADS: {NAME: FusionROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 1, BATCH_SIZE_PER_IMAGE: 16}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 16, POOLER_RESOLUTION: 14}
  ROI_HEIGHT_HEAD: {CONV_DIM: 32, FC_DIM: 16}
TEST: {DETECTIONS_PER_IMAGE: 10}
"""


@pytest.fixture
def small_yaml(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path / "small.yaml"


@pytest.fixture
def cfg(small_yaml):
    from fusiondet.config_loading import load_config

    return load_config(small_yaml)
