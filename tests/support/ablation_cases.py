"""Rows and conditions of a small ablation, as a specification has them."""

ROWS = """
  rgb: {label: RGB only, overrides: {INPUT.MODALITIES: [optical]}}
  early: {}
"""
CONDITIONS = """
  clear: {dataset: TEST}
  no_sar: {dataset: TEST, overrides: {MODEL.FUSION.DISABLED: sar}}
"""
NARROW = (
    *(
        "MODEL.RESNETS.DEPTH",
        "50",
        "MODEL.RESNETS.STEM_OUT_CHANNELS",
        "8",
        "MODEL.RESNETS.WIDTH_PER_GROUP",
        "4",
    ),
    *(
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        "16",
        "SOLVER.CHECKPOINT_PERIOD",
        "1",
        "TEST.BEST_METRIC",
        "segm/AP50",
    ),
)
