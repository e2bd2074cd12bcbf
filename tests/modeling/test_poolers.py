"""Pooled features are float32 and the same in every precision."""

import fusiondet.compat  # noqa: F401
from fusiondet.modeling.poolers import Float32Pooler

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_ramp_is_read_at_the_centres_of_the_boxes(dtype):
    ramp = (torch.arange(16.0).expand(1, 1, 16, 16) + 0.5).to(dtype)  # the value is x
    boxes = [Boxes(torch.tensor([[2.0, 2.0, 6.0, 6.0], [3.3, 1.0, 11.7, 9.0]]))]
    pooler = Float32Pooler(ROIPooler(1, [1.0], 4, "ROIAlignV2"))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        pooled = pooler([ramp], boxes)
    assert pooled.dtype == torch.float32
    assert pooled.flatten().tolist() == pytest.approx([4.0, 7.5], abs=1e-4)


def test_no_box_gives_no_feature():
    pooler = Float32Pooler(ROIPooler(7, [0.25], 2, "ROIAlignV2"))
    assert pooler([torch.rand(1, 3, 8, 8)], [Boxes(torch.zeros(0, 4))]).shape == (0, 3, 7, 7)


def test_bfloat16_leaves_boxes_where_they_are():
    ramp = torch.arange(300.0).repeat(300, 1)[None, None]
    boxes = [Boxes(torch.tensor([[201.3, 10.0, 210.7, 20.0]]))]
    pooler = Float32Pooler(ROIPooler(1, (1.0,), 2, "ROIAlignV2"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pooler([ramp], boxes)
    assert pooled.dtype == torch.float32
    assert pooled.item() == pytest.approx(206.0 - 0.5, abs=1e-3)
