"""Tiles to draw, and the words in a figure."""

from fusiondet.buildings import SensorGeometry, Tile
from fusiondet.io.bands import BandSpec
from fusiondet.visualization import TileView

import numpy as np

RGB_SAR = BandSpec(sar=("VV",), sar_scale="db")


def view(bands=RGB_SAR, size=(32, 48), sensor=None, buildings=(), **kwargs):
    """A tile of noise, `size` (height, width)."""
    image = np.random.default_rng(0).uniform(1, 200, (len(bands), *size)).astype(np.float32)
    tile = Tile(
        "rgb/a.tif", size[1], size[0], 0.5, sensor=sensor or SensorGeometry(), buildings=list(buildings)
    )
    return TileView(tile, image, bands, **kwargs)


def headings(figure):
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def texts(figure):
    return [t.get_text() for t in figure.texts]


def keys(figure):
    return [t.get_text() for legend in figure.legends for t in legend.get_texts()]


def colourbars(figure):
    return [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()]
