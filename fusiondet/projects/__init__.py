"""One folder per system of the papers that is not the detector: its networks, config keys, data reader and tests."""

from fusiondet.projects.dual_unet import dual_unet  # noqa: F401
from fusiondet.projects.fusion_height_net import duc_hdc, fusion_height_net, segnet, smp_nets  # noqa: F401
from fusiondet.projects.hse_lcz import hse_lcz_net  # noqa: F401
from fusiondet.projects.u_rec import u_rec  # noqa: F401
