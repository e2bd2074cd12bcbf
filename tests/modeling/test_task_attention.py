"""Attention of a task: what it starts as, and what it can hide."""

import fusiondet.compat  # noqa: F401
from fusiondet.modeling.task_attention import InstanceAttention, TaskAttention

import torch
from detectron2.layers import ShapeSpec
from torch import nn


def test_an_untrained_attention_hands_on_what_it_gets():
    features = torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(TaskAttention(16)(features, torch.ones(2, 1, 40, 56)), features)


def test_an_attention_can_shut_out_a_channel_and_a_cell():
    attention = TaskAttention(16)
    features = torch.ones(1, 16, 4, 4)
    features[0, 0, 3, 3] = -1
    with torch.no_grad():
        attention.excite.bias[5] = -50.0
        attention.spatial.weight[0, 0, 1, 1] = 50.0
    seen = attention(features, torch.ones(1, 1, 4, 4))[0]
    assert max(seen[5].abs().max(), seen[:, 3, 3].abs().max()) < 1e-6
    torch.testing.assert_close(seen[7, :3], torch.full((3, 4), 2.0))


def test_the_channels_are_chosen_by_cells_with_data():
    attention = TaskAttention(16)
    nn.init.normal_(attention.excite.weight)
    nn.init.zeros_(attention.spatial.weight)
    features, valid = torch.randn(1, 16, 4, 8), torch.ones(1, 1, 16, 32)
    valid[..., 16:] = 0
    other = features.clone()
    other[..., 4:] += 10
    torch.testing.assert_close(attention(features, valid)[..., :4], attention(other, valid)[..., :4])


def test_instances_look_at_the_maps_that_their_heads_read(small_cfg):
    shapes = {name: ShapeSpec(channels=8, stride=4) for name in ("p2", "p3", "p7")}
    small_cfg.MODEL.RPN.IN_FEATURES, small_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2"], ["p2"]
    small_cfg.MODEL.ROI_HEIGHT_HEAD.IN_FEATURES = ["p3"]
    attention = InstanceAttention.of_config(small_cfg, shapes)
    assert set(attention.levels) == {"p2", "p3"}
    features = {name: torch.randn(1, 8, 4, 4) for name in shapes}
    nn.init.constant_(attention.levels["p2"].excite.bias, 1.0)
    gated = attention(features, torch.zeros(1, 3, 16, 16))
    assert not torch.allclose(gated["p2"], features["p2"])
    torch.testing.assert_close(gated["p3"], features["p3"])
    assert gated["p7"] is features["p7"]
    small_cfg.MODEL.HEIGHT_ON = False
    assert set(InstanceAttention.of_config(small_cfg, shapes).levels) == {"p2"}
