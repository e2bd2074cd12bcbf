"""Settlement extent and local climate zone of patches (P4), and their data set, So2Sat LCZ42."""

from fusiondet.plugins import Project

_HERE = "fusiondet.projects.hse_lcz"

PROJECT = Project(
    add_config=f"{_HERE}.hse_lcz_config:add_hse_lcz_config",
    check_config=f"{_HERE}.hse_lcz_config:check_hse_lcz",
    architectures={"HseLczNet": f"{_HERE}.hse_lcz_net"},
    trainers={"HseLczNet": f"{_HERE}.patch_trainer:PatchTrainer"},
    converters={
        "so2sat": (
            f"{_HERE}.so2sat",
            "So2Sat LCZ42: patches with local climate zones, and settlement extents; or invented ones",
        ),
    },
    annotation_kinds={
        "patches": "patches with one label each; networks of patches are those of configs/so2sat",
    },
    shaping_keys=tuple(
        f"MODEL.HSE_LCZ.{key}" for key in ("TASKS", "WIDTHS", "NUM_CONV", "CONV_DIM", "PRIOR")
    ),
    renamed_keys={
        "MODEL.HSE_LCZ.CONVS": "MODEL.HSE_LCZ.NUM_CONV",
        "MODEL.HSE_LCZ.HEAD_DIM": "MODEL.HSE_LCZ.CONV_DIM",
        "MODEL.HSE_LCZ.HSE_WEIGHT": "MODEL.HSE_LCZ.HSE.LOSS_WEIGHT",
        "MODEL.HSE_LCZ.LCZ_WEIGHT": "MODEL.HSE_LCZ.LCZ.LOSS_WEIGHT",
    },
    headlines=("hse/mae", "hse/rmse", "hse/r2", "lcz/oa", "lcz/aa", "lcz/kappa", "lcz/mean_f1"),
)
