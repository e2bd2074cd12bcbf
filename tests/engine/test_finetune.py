"""A trained network goes on with other bands: RGB weights start an RGB + SAR training."""

from fusiondet.engine.checkpoint import stored_config
from fusiondet.engine.complete_config import complete_config
from fusiondet.engine.trainer import FusionTrainer
from tests.support.tiny_city import tiny_config, write_split

import pytest
import torch


@pytest.fixture(scope="module")
def rgb_checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("rgb")
    write_split(root)
    trainer = trained(tiny_config(root, "INPUT.MODALITIES", "['optical']", *ONE_STEP))
    return root, root / "out" / "model_final.pth", trainer.model


ONE_STEP = ("SOLVER.MAX_ITER", "1", "SOLVER.CHECKPOINT_PERIOD", "9", "DATASETS.TEST", "()")


def trained(cfg, stored=None):
    complete_config(cfg, stored)
    trainer = FusionTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def test_rgb_weights_start_rgb_and_sar(rgb_checkpoint):
    root, path, rgb = rgb_checkpoint
    overrides = ("MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(root / "fusion"), "SOLVER.BASE_LR", "1e-9")
    cfg = tiny_config(root, *ONE_STEP, *overrides)
    fusion = trained(cfg, stored_config(path)).model
    assert len(cfg.MODEL.PIXEL_MEAN) == 4 and cfg.MODEL.PIXEL_MEAN[3] < 0, "statistics of the new bands too"
    ours, theirs = (m.backbone.bottom_up.resnet.stem.conv1.weight for m in (fusion, rgb))
    assert torch.allclose(ours[:, :3], theirs, atol=1e-6) and ours[:, 3].abs().max() < 1e-6


def test_same_bands_inherit_the_statistics(rgb_checkpoint):
    root, path, _ = rgb_checkpoint
    cfg = tiny_config(root, "INPUT.MODALITIES", "['optical']", *ONE_STEP)
    stored = stored_config(path)
    stored.MODEL.PIXEL_MEAN = [1.0, 2.0, 3.0]
    complete_config(cfg, stored)
    assert cfg.MODEL.PIXEL_MEAN == [1.0, 2.0, 3.0]
