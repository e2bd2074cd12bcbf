"""Pictures of datasets and predictions: image panels, outlines coloured by height, and the height scatter.

Everything takes plain records (`Tile`, `Building`, (C, H, W) arrays) and returns an RGB array or a matplotlib `Figure`
made without pyplot, so nothing is global and nothing needs a display. Only `dataset_overview` and `prediction_overview`
(they read rasters) and `save_figure` touch files.

    panels.py    optical_panel, sar_panel: bands -> (H, W, 3) uint8
    outlines.py  draw_buildings, draw_matches, height_colours: on any axes in pixels
    tiles.py     TileView, tile_figure, overview_figure: panels, arrows, scale bar and legend of some tiles
    datasets.py  dataset_overview, prediction_overview: of COCO files and their rasters
    heights.py   height_scatter: truth against prediction
    confusion.py confusion_figure: which class was taken for which
    gallery.py   gallery_figure: what several networks say of the same tiles
    intervals.py interval_figure: estimates with their intervals, in panels side by side
    tile_map.py  tile_map_figure: a score of every tile at its place on the map
    canvas.py    save_figure, figure_array
"""

from fusiondet.visualization.building_overlays import draw_buildings, draw_matches, height_colours
from fusiondet.visualization.canvas import figure_array, save_figure
from fusiondet.visualization.confusion import confusion_figure
from fusiondet.visualization.datasets import (
    MAX_TILES,
    building_from_prediction,
    dataset_overview,
    match_tile,
    prediction_overview,
)
from fusiondet.visualization.height_figures import height_scatter
from fusiondet.visualization.intervals import IntervalPanel, interval_figure
from fusiondet.visualization.panels import optical_panel, sar_panel
from fusiondet.visualization.tile_figures import TileView, overview_figure, tile_figure
from fusiondet.visualization.tile_map import tile_map_figure

__all__ = [
    "MAX_TILES",
    "IntervalPanel",
    "TileView",
    "building_from_prediction",
    "confusion_figure",
    "dataset_overview",
    "draw_buildings",
    "draw_matches",
    "figure_array",
    "height_colours",
    "height_scatter",
    "interval_figure",
    "match_tile",
    "optical_panel",
    "overview_figure",
    "prediction_overview",
    "sar_panel",
    "save_figure",
    "tile_figure",
    "tile_map_figure",
]
