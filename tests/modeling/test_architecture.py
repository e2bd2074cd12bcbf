"""What architectures declare about themselves."""

import fusiondet.compat
import fusiondet.modeling  # noqa: F401  (registers the architectures)
from fusiondet.modeling.architecture import Architecture, architecture_of

import pytest


@pytest.mark.parametrize(
    ("name", "true", "detectors"),
    [
        ("GeneralizedRCNN", {"finds_instances", "predicts_scenes"}, 1),
        ("FusionRCNN", {"finds_instances", "predicts_scenes", "has_modalities", "reads_dense_heads"}, 1),
        ("FusionDense", {"predicts_scenes", "has_modalities", "reads_dense_heads", "may_skip_parameters"}, 1),
        ("FusionDenseNet", {"predicts_scenes", "has_modalities", "reads_dense_net"}, 1),
        (
            "LateFusionRCNN",
            {
                "finds_instances",
                "predicts_scenes",
                "has_modalities",
                "separate_pyramids",
                "reads_dense_heads",
            },
            2,
        ),
        (
            "LateFusionDense",
            {
                "predicts_scenes",
                "has_modalities",
                "separate_pyramids",
                "reads_dense_heads",
                "may_skip_parameters",
            },
            1,
        ),
    ],
)
def test_declarations_of_an_architecture(small_cfg, name, true, detectors):
    small_cfg.MODEL.META_ARCHITECTURE = name
    architecture = architecture_of(small_cfg)
    flags = {
        key
        for key in Architecture.__annotations__
        if key not in ("detectors", "has_branches", "shares_stages", "interval_width")
        and getattr(architecture, key)
    }
    assert flags == true and architecture.detectors == detectors


def test_tasks_follow_the_config(small_cfg):
    small_cfg.MODEL.DENSE_HEADS.NAMES = ["Footprint", "DenseHeight", "Reconstruction"]
    architecture = architecture_of(small_cfg)
    assert architecture.pixel_tasks(small_cfg) == ("footprint", "height", "reconstruction")
    assert architecture.tasks(small_cfg) == [
        "instances",
        "height",
        "footprint",
        "dense_height",
        "reconstruction",
    ]
    small_cfg.MODEL.META_ARCHITECTURE = "FusionDense"
    assert architecture_of(small_cfg).tasks(small_cfg) == ["footprint", "dense_height", "reconstruction"]
