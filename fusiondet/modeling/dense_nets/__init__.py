"""Whole networks for maps, as the papers describe them: one file per system, registered by being imported.

`base` is what they have in common, `heads` the head of FusionHeightNet and of its baselines, `unet` the parts
of a U-Net.
"""

from fusiondet.modeling.dense_nets import (  # noqa: F401
    base,
    dual_unet,
    duc_hdc,
    fusion_height_net,
    hse_lcz,
    segnet,
    smp_nets,
    u_rec,
)
