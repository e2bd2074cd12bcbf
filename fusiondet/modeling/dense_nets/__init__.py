"""Whole networks for maps, as the papers describe them: one file per system, registered by being imported.

`base` is what they have in common, `heads` the head of FusionHeightNet and of its baselines, `unet` the parts
of a U-Net.
"""

from fusiondet.modeling.dense_nets import base, dual_unet, hse_lcz, u_rec  # noqa: F401
