"""What a user of fusion can get wrong, by the command line: one line that helps, exit status 2, and no results."""

import json
import logging
import sys

import fusiondet.compat  # noqa: F401
from fusiondet import cli
from fusiondet.io.bands import BandSpec
from tests.support.scene_cases import checkpoint
from tests.support.tiny_city import SMALL_CONFIG, write_raster, write_split

import numpy as np
import pytest

BACKBONE = "MODEL.BACKBONE.NAME"
INTERMEDIATE = (BACKBONE, "build_intermediate_fusion_resnet_fpn_backbone")
PYRAMIDS = (BACKBONE, "build_two_pyramids_resnet_fpn_backbone")
LATE = ("MODEL.META_ARCHITECTURE", "LateFusionRCNN")
RGB = ("INPUT.MODALITIES", "['optical']")
CPU = ("--device", "cpu")
FUSION, HEAD = "MODEL.FUSION.", "MODEL.ROI_HEIGHT_HEAD."


@pytest.fixture
def refused(load_tool, monkeypatch, capsys):
    """refused(tool, *words): run as a user does; returns the one line on stderr."""

    def run(tool, *words):
        monkeypatch.setattr(sys, "argv", [f"{tool}.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.run(load_tool(tool).main)
        for name in ("fusiondet", "detectron2"):  # which would go on writing to the stream of this test
            logging.getLogger(name).handlers.clear()
        lines = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and len(lines) == 1, lines
        return lines[0]

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Checkpoint of an untrained network of early fusion."""
    return checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # Names
        ((*INTERMEDIATE, FUSION + "EXCHANGE.res3", "MTMM"), ["EXCHANGE.res3 'MTMM'", "CrossAttention", "'MMTM'"]),
        ((*INTERMEDIATE, FUSION + "EXCHANGE.res6", "MMTM"), ["EXCHANGE.res6", "EXCHANGE.res2", "EXCHANGE.res5"]),
        ((*INTERMEDIATE, FUSION + "JOIN", "SumJon"), ["ConcatJoin, GatedJoin, SumJoin"]),
        (("INPUT.MODALITIES", "['optical', 'radar']"), ["'radar'", "optical, sar"]),
        ((FUSION + "DISABLED", "radar"), ["'radar'", "Known: optical, sar"]),
        ((FUSION + "MODALITY_DROPOUT.radar", "0.2"), ["MODALITY_DROPOUT.sar"]),
        ((HEAD + "GEOMETRY", "['sun']"), ["'sun'", "sun_azimuth, sun_elevation"]),
        # Values
        ((FUSION + "MODALITY_DROPOUT.optical", "0.6", FUSION + "MODALITY_DROPOUT.sar", "0.6"), ["add up to 1"]),
        ((FUSION + "MODALITY_DROPOUT", "{'sar': 0.2}"), ["is a section", "MODALITY_DROPOUT.sar"]),
        ((FUSION + "MODALITY_DROPOUT.sar", "-0.1"), ["at least 0"]),
        ((*INTERMEDIATE, FUSION + "CROSS_ATTENTION.HEADS", "3"), ["DIM is 128", "12"]),
        ((*INTERMEDIATE, FUSION + "SAR_RESNETS.DEPTH", "19"), ["DEPTH is 19", "18, 34, 50, 101"]),
        # What would be ignored
        ((FUSION + "EXCHANGE.res3", "MMTM"), ["EXCHANGE", "'res3': 'MMTM'", "build_early", INTERMEDIATE[1]]),
        ((FUSION + "SAR_RESNETS.DEPTH", "34"), ["SAR_RESNETS", "has no use"]),
        ((FUSION + "SHARE_WEIGHTS", "True"), ["SHARE_WEIGHTS", "Leave it at False"]),
        ((FUSION + "JOIN", "ConcatJoin"), ["JOIN is 'ConcatJoin'", "Leave it at 'SumJoin'"]),
        ((*LATE, *PYRAMIDS, FUSION + "JOIN", "ConcatJoin"), ["JOIN is 'ConcatJoin'", "two_pyramids"]),
        ((FUSION + "DISABLED", "sar"), ["DISABLED sar is for --eval-only", "MODALITY_DROPOUT"]),
        # What needs two modalities
        ((*RGB, FUSION + "DISABLED", "sar"), ["DISABLED needs both modalities", "['optical']"]),
        ((*RGB, FUSION + "MODALITY_DROPOUT.sar", "0.2"), ["MODALITY_DROPOUT needs both modalities"]),
        ((*RGB, *INTERMEDIATE), ["needs both modalities", "build_early_fusion_resnet_fpn_backbone"]),
        ((*RGB, HEAD + "GEOMETRY", "['gsd', 'incidence']"), ["incidence", "shows nothing of it", "['gsd']"]),
        # What goes together
        ((*LATE, BACKBONE, "build_early_fusion_resnet_fpn_backbone"), ["LateFusionRCNN", PYRAMIDS[1]]),
        (PYRAMIDS, ["LateFusionRCNN", PYRAMIDS[1]]),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_config(refused, tmp_path, words, said):
    out = tmp_path / "out"
    line = refused("train_net", "--config-file", SMALL_CONFIG, "OUTPUT_DIR", out, *words)
    assert all(part in line for part in said), line
    assert not out.exists()


OTHER_POLARISATION = BandSpec(("red", "green", "blue"), ("VV",), "db")
STRETCHED = BandSpec(("red", "green", "blue"), ("HH",), "stretched_uint8")
NO_SAR = BandSpec(("red", "green", "blue"), (), "")


@pytest.mark.parametrize(
    ("bands", "said"),
    [
        (OTHER_POLARISATION, ["HH", "VV"]),
        (STRETCHED, ["SAR as stretched_uint8", "set up for db"]),
        (NO_SAR, ["other"]),
    ],
    ids=["polarisation", "scale", "none"],
)
def test_sar_of_another_kind_than_trained(refused, weights, tmp_path, bands, said):
    annotations = write_split(tmp_path / "other", "val", (1,), bands=bands)
    config, out, use = (tmp_path / name for name in ("config.yaml", "out", "use"))
    config.write_text(f"_BASE_: {SMALL_CONFIG}\nDATASETS:\n  TRAIN: []\n  TEST: ['{annotations}']\n")
    words = ("--config-file", config, "--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", out)
    line = refused("train_net", *words)
    assert all(part in line for part in said), line
    assert not list(out.rglob("*.json"))
    line = refused("analyze_modalities", "--weights", weights, "--dataset", annotations, "--out", use, *CPU)
    assert all(part in line for part in said), line
    assert not use.exists()


@pytest.mark.parametrize(
    ("sensor", "said"),
    [
        ({"sun_elevation_deg": 120.0}, "sun_elevation_deg is 120"),
        ({"sar_incidence_deg": -5.0}, "sar_incidence_deg is -5"),
        ({"sun_azimuth_deg": float("nan")}, "expected degrees by name, or null"),
        ({"sun_azimuth_deg": "north"}, "expected degrees by name, or null"),
    ],
    ids=["elevation", "incidence", "NaN", "text"],
)
def test_angles_of_a_data_set_that_cannot_be(refused, tmp_path, sensor, said):
    annotations = write_split(tmp_path, "train", (1,))
    tree = json.loads(annotations.read_text())
    tree["images"][0]["sensor"].update(sensor)
    annotations.write_text(json.dumps(tree))
    words = ("DATASETS.TRAIN", f"['{annotations}']", "DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "out")
    line = refused("train_net", "--config-file", SMALL_CONFIG, *words)
    assert said in line and str(annotations) in line and "image 1" in line
    assert not list((tmp_path / "out").rglob("*.pth"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no raster given"),
        (("--rgb", "rgb.tif", "--sar", "none.tif"), "none.tif: no such file"),
        (("--rgb", "rgb.tif", "--sar", "power.tif"), "not the dB that model.pth was trained on"),
        (
            ("--rgb", "rgb.tif", "--sar", "power.tif", "--sar-scale", "decibel"),
            "Known: amplitude, complex, db, linear_power",
        ),
        (("--rgb", "rgb.tif", "--sar", "power.tif", "--sar-scale", "stretched_uint8"), "trained on db"),
        (("--rgb", "rgb.tif", "--sun-elevation", "nan"), "--sun-elevation is nan"),
        (("--rgb", "rgb.tif", "--incidence", "90"), "--incidence is 90"),
        (("--rgb", "rgb.tif", "--look-azimuth", "-1"), "--look-azimuth is -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_scene(refused, weights, tmp_path, monkeypatch, words, said):
    rng = np.random.default_rng(0)
    write_raster(tmp_path / "rgb.tif", rng.integers(1, 255, (3, 128, 128)).astype(np.uint8))
    write_raster(tmp_path / "power.tif", rng.uniform(0.01, 0.5, (1, 128, 128)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "buildings.gpkg"
    assert said in refused("predict_scene", "--weights", weights, "--out", out, *CPU, *words)
    assert not out.exists()


def test_utilisation_of_a_network_with_one_modality(refused, tmp_path):
    rgb = checkpoint(tmp_path, *RGB, modalities=("optical",))
    annotations = write_split(tmp_path, "val", (1,))
    words = ("--weights", rgb, "--dataset", annotations, "--out", tmp_path / "use", *CPU)
    assert "takes optical alone" in refused("analyze_modalities", *words)
    assert not (tmp_path / "use").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("MODEL.FUSION.JOIN: SumJon", "SumJoin"),
        ("MODEL.FUSION.EXCHANGE.res3: MMTM", "has no use for it"),
        ("MODEL.FUSION.MODALITY_DROPOUT.radar: 0.1", "MODALITY_DROPOUT.sar"),
    ],
)
def test_ablation_finds_a_bad_row_before_it_trains_another(refused, tmp_path, override, said):
    spec = tmp_path / "spec.yaml"
    data = write_split(tmp_path, "train", (1,))
    spec.write_text(
        f"base: {SMALL_CONFIG}\ntrain: ['{data}']\nval: ['{data}']\nsteps: 1\nseeds: [1]\ncompare_to: good\n"
        f"rows:\n  good: {{label: Good}}\n  bad: {{label: Bad, overrides: {{{override}}}}}\n"
        f"conditions:\n  clear: {{dataset: '{data}'}}\n"
    )
    line = refused("ablate", spec, "--out", tmp_path / "out")
    assert said in line and "row 'bad'" in line and str(spec) in line
    assert not (tmp_path / "out").exists()
