"""FusionHeightNet (P2) and the networks that it was compared with."""

from fusiondet.plugins import Project

_HERE = "fusiondet.projects.fusion_height_net"

PROJECT = Project(
    add_config=f"{_HERE}.fusion_height_net_config:add_fusion_height_net_config",
    dense_networks={
        "FusionHeightNet": f"{_HERE}.fusion_height_net",
        "SegNet": f"{_HERE}.segnet",
        "DUCHDC": f"{_HERE}.duc_hdc",
        **dict.fromkeys(("DeepLabV3Plus", "ResUNet", "UPerNet", "PSPNet"), f"{_HERE}.smp_nets"),
    },
    shaping_keys=("MODEL.DENSE_NET.FUSION_HEIGHT_NET", "MODEL.DENSE_NET.SMP"),
    renamed_keys={
        "MODEL.DENSE_NET.FUSION_HEIGHT_NET.SHARED_ENCODER": "MODEL.DENSE_NET.FUSION_HEIGHT_NET.SHARE_WEIGHTS",
    },
    packages={"segmentation_models_pytorch": "segmentation-models-pytorch"},
)
