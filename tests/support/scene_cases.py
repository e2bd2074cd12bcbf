"""Scenes, checkpoints of shrunken networks, and stand-ins whose buildings are known."""

import contextlib

import fusiondet.compat  # noqa: F401
from fusiondet.buildings import map_to_pixel
from fusiondet.config_loading import load_config
from fusiondet.engine.checkpoint import FusionCheckpointer
from fusiondet.files import atomic_path, require_new
from fusiondet.inference.options import SceneOptions
from fusiondet.inference.pipeline import predict_windows
from fusiondet.inference.plan import plan_scene
from fusiondet.io.scene_reader import SceneRasters
from tests.support.tiny_city import GSD_M, ROOT, write_raster

import numpy as np
import rasterio
import torch
from affine import Affine
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from scipy import ndimage

LEFT, TOP = 600_000, 5_750_000
TRANSFORM = Affine(GSD_M, 0, LEFT, 0, -GSD_M, TOP)
# Of the scenes that `write_scene` makes: many windows.
WINDOWS = {"window_px": 160, "overlap_px": 48}


def raw_output(boxes, scores=None, heights_m=None, side=28):
    """Network output whose masks fill their boxes."""
    n = len(boxes)
    instances = Instances(
        (512, 512), pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(n, 4))
    )
    instances.scores = torch.tensor(scores if scores is not None else [0.9] * n)
    instances.pred_masks = torch.ones(n, 1, side, side)
    heights = torch.tensor(heights_m if heights_m is not None else [10.0] * n)
    instances.pred_heights = heights
    instances.pred_height_p16, instances.pred_height_p84 = heights * 0.8, heights * 1.25
    return instances


class BlockFinder:
    """A network that finds the connected blocks brighter than 150; their height is their brightness / 10."""

    def __init__(self):
        self.batches = []

    def outputs(self, inputs, do_postprocess):
        self.batches.append(len(inputs))
        return [{"instances": self.instances(x["image"].numpy()[0])} for x in inputs]

    @staticmethod
    def instances(image):
        image = np.nan_to_num(image)
        labels, _ = ndimage.label(image > 150)
        found = ndimage.find_objects(labels)
        boxes = [[x.start, y.start, x.stop, y.stop] for y, x in found]
        return raw_output(boxes, heights_m=[float(image[s].max()) / 10 for s in found] or None)


def checkpoint(folder, *overrides, modalities=("optical", "sar")):
    """A file of an untrained, shrunken network for red, green, blue and HH in dB, at 0.5 m."""
    small = (
        "MODEL.FPN.OUT_CHANNELS",
        "16",
        "MODEL.ROI_BOX_HEAD.FC_DIM",
        "16",
        "MODEL.RPN.POST_NMS_TOPK_TEST",
        "20",
    )
    cfg = load_config(ROOT / "configs" / "synthetic" / "fusion_r18_small.yaml", [*small, *overrides])
    optical, sar = "optical" in modalities, "sar" in modalities
    cfg.INPUT.MODALITIES, cfg.INPUT.GSD_RANGE_M = list(modalities), [0.5, 0.5]
    cfg.INPUT.OPTICAL_BANDS = ["red", "green", "blue"] if optical else []
    cfg.INPUT.SAR_BANDS, cfg.INPUT.SAR_SCALE = (["HH"], "db") if sar else ([], "")
    cfg.MODEL.FUSION.OPTICAL_CHANNELS = 3 if optical else 0
    cfg.MODEL.PIXEL_MEAN = [100.0] * 3 * optical + [-10.0] * sar
    cfg.MODEL.PIXEL_STD = [50.0] * 3 * optical + [5.0] * sar
    torch.manual_seed(0)
    FusionCheckpointer(build_model(cfg), str(folder), config_yaml=cfg.dump()).save("model")
    return folder / "model.pth"


def boxes_px(result, transform):
    """(n, 5) rounded outlines in pixels with heights, sorted."""
    rows = [(*map_to_pixel(b.polygon, transform).bounds, b.height_m) for b in result.buildings]
    return sorted([tuple(round(v) for v in row) for row in rows])


def expected(blocks):
    """`boxes_px` of blocks that a `BlockFinder` finds."""
    return sorted((*block, round(value / 10)) for block, value in blocks.items())


def plan_of(predictor, rgb, sar=None, sources=(), **options):
    """The plan of a scene, whose rasters are closed again."""
    with SceneRasters(rgb, sar) as rasters:
        return plan_scene(predictor, rasters, SceneOptions(**options), sources)[0]


def windows_of(predictor, plan, indices=None):
    """Results of windows of a plan, all of them if not told otherwise."""
    indices = range(len(plan.windows)) if indices is None else indices
    with plan.open(predictor.bands) as reader:
        with contextlib.closing(predict_windows(predictor, plan, reader, indices)) as results:
            yield from results


def number_scene(tmp_path, shape=(150, 211), unseen=None, gsd_m=GSD_M, **options):
    """A raster whose pixels are numbered, without data where `unseen`; and these numbers."""
    numbers = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    if unseen is not None:
        numbers[unseen] = np.nan
    place = {"transform": Affine(gsd_m, 0, 600000, 0, -gsd_m, 5800000), "nodata": np.nan}
    write_raster(tmp_path / "pan.tif", numbers[None], **{**place, **options})
    return tmp_path / "pan.tif", numbers


def bands_of(path):
    """(C, H, W) values of a raster."""
    with rasterio.open(path) as file:
        return file.read()


def plain_report(layer, path, image, overwrite):
    """Stand in for `write_report` of `predict_to_file`: a file that follows from the layer."""
    require_new(path, overwrite)
    with atomic_path(path) as temporary:
        temporary.write_bytes(layer.read_bytes()[::-1])
