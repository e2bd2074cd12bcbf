"""From a checkpoint and rasters to buildings with heights in map coordinates, and to rasters of heights or classes.

A checkpoint is enough: it holds the config, the bands with their statistics, and the range of ground sampling distances
of the training.

    api          the entries: predict_scene, predict_to_file, ScenePredictor
    scene_table  many scenes with one network
    options      SceneOptions: every option of a scene
    run          SceneRun: the way from open rasters to finished buildings, in constant memory
    plan         what is decided before: grid, windows, area of interest; checks: notes and refusals
    blocks       blocks of windows by this process, by others or by a cluster; pieces: finished blocks on disk
    pipeline     windows through the network, read ahead
    outlines     duplicates suppressed and walls set straight while buildings come in
    strips       buildings that wait to be painted on a raster
    outputs      outputs that are refused before anything is computed
    predictor    a network, and what it predicts for one image
"""

from fusiondet.inference.api import ScenePredictor, buildings_frame, predict_scene, predict_to_file
from fusiondet.inference.options import SceneOptions
from fusiondet.inference.predictor import ImagePrediction, Predictor, buildings_from_instances, device_name
from fusiondet.inference.run import ScenePrediction
from fusiondet.inference.scene_table import SceneFiles, predict_scenes, read_scenes
from fusiondet.inference.windows import scene_windows

__all__ = [
    "ImagePrediction",
    "Predictor",
    "SceneFiles",
    "SceneOptions",
    "ScenePrediction",
    "ScenePredictor",
    "buildings_frame",
    "buildings_from_instances",
    "device_name",
    "predict_scene",
    "predict_scenes",
    "predict_to_file",
    "read_scenes",
    "scene_windows",
]
