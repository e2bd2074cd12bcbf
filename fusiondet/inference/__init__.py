"""From a checkpoint and rasters to buildings with heights in map coordinates, and to rasters of heights.

A checkpoint is enough: it carries the config, the bands with their statistics, and the range of ground sampling
distances seen in training.

    predictor   a network, and what it says about one image
    plan        what is decided about a scene before it is predicted: grid, windows, area of interest
    pipeline    windows through the network, read ahead
    parts       finished blocks on disk, for runs that are stopped
    scene       the whole way to a file: merged across windows, in constant memory; several: for many scenes
    api         the same to GeoDataFrames, from Python
    workers     blocks of windows on several processes; cluster: on the machines of a dask cluster
"""

from fusiondet.inference.api import ScenePredictor, buildings_frame
from fusiondet.inference.checks import SENSOR_OPTIONS
from fusiondet.inference.predictor import ImagePrediction, Predictor, buildings_from_instances, device_name
from fusiondet.inference.scene import ScenePrediction, predict_scene, predict_to_file
from fusiondet.inference.several import SceneFiles, predict_scenes, read_scenes
from fusiondet.inference.windows import scene_windows

__all__ = [
    "SENSOR_OPTIONS",
    "ImagePrediction",
    "Predictor",
    "SceneFiles",
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
