"""Scenes whose bright blocks are buildings, and a stand-in network that finds them."""

import fusiondet.compat  # noqa: F401
from fusiondet.config_loading import load_config
from fusiondet.engine.checkpoint import FusionCheckpointer
from fusiondet.inference import Predictor
from tests.support.scene_cases import TRANSFORM, BlockFinder
from tests.support.tiny_city import GSD_M, ROOT

import numpy as np
import pytest
import rasterio
import torch
from detectron2.modeling import build_model

GROUND = 100


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A checkpoint of an untrained, shrunken RGB network for 0.5 m."""
    cfg = load_config(ROOT / "configs/synthetic/rgb_r18_small.yaml")
    cfg.INPUT.OPTICAL_BANDS, cfg.INPUT.GSD_RANGE_M = ["red", "green", "blue"], [GSD_M, GSD_M]
    cfg.INPUT.MODALITIES = ["optical"]
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0] * 3, [50.0] * 3
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16, 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 20, 5
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    FusionCheckpointer(build_model(cfg), str(folder), config_yaml=cfg.dump()).save("model")
    return folder / "model.pth"


@pytest.fixture
def finder(weights):
    """A Predictor of `weights` with a `BlockFinder` in place of its network."""
    predictor = Predictor(weights, "cpu", build=False)
    predictor.model = BlockFinder()
    return predictor


@pytest.fixture
def write_scene(tmp_path):
    """write_scene({(x0, y0, x1, y1): brightness}) -> RGB raster in EPSG:32631 with these blocks."""

    def write(blocks=None, height=400, width=500, name="rgb.tif", transform=TRANSFORM, **options):
        image = np.full((3, height, width), GROUND, np.uint8)
        for (x0, y0, x1, y1), value in (blocks or {}).items():
            image[:, y0:y1, x0:x1] = value
        profile = {"driver": "GTiff", "count": 3, "height": height, "width": width, "dtype": "uint8"}
        profile |= {"photometric": "RGB", "crs": "EPSG:32631", "transform": transform, **options}
        with rasterio.open(tmp_path / name, "w", **profile) as file:
            file.write(image)
        return tmp_path / name

    return write


@pytest.fixture
def city():
    """Blocks on a grid, some of them across the borders of any windows."""
    rng = np.random.default_rng(0)
    corners = [(x, y) for x in range(5, 450, 50) for y in range(5, 350, 50)]
    return {
        (x, y, x + 36, y + 28): int(v) for (x, y), v in zip(corners, rng.integers(160, 255, len(corners)))
    }
