"""The dual U-Net of SAR and optical images (P3), and its data set, SEN12 Global Urban Mapping."""

from fusiondet.plugins import Project

_HERE = "fusiondet.projects.dual_unet"

PROJECT = Project(
    add_config=f"{_HERE}.dual_unet_config:add_dual_unet_config",
    dense_networks={"DualUNet": f"{_HERE}.dual_unet"},
    networks_with_branches=("DualUNet",),
    converters={
        "sen12gum": (
            f"{_HERE}.sen12gum",
            "SEN12 Global Urban Mapping: Sentinel-1, Sentinel-2, built-up areas",
        ),
    },
    shaping_keys=("MODEL.DENSE_NET.DUAL_UNET.MULTIPLES",),
)
