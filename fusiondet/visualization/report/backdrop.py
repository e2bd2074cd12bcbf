"""The picture under the buildings: the part of a raster around them, read no finer than it is shown."""

import base64
import math
from dataclasses import dataclass
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.io.crs import parse_crs
from fusiondet.io.rasters import GDAL_OPTIONS, open_raster
from fusiondet.visualization.panels import optical_panel

import cv2
import numpy as np
import rasterio
from affine import Affine
from pyproj import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window

MAX_SIDE_PX = 1600
# Ground around the outermost buildings, as a share of their extent.
_MARGIN = 0.05
_QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 85)
_COLOURS = {ColorInterp.red: "red", ColorInterp.green: "green", ColorInterp.blue: "blue"}


@dataclass
class Backdrop:
    """A picture and where it lies.

    Attributes:
        pixels: (H, W, 3) uint8; without data hatched grey.
        transform: pixel of `pixels` -> CRS.
        bounds: left, bottom, right, top in the CRS.
    """

    pixels: np.ndarray
    transform: Affine

    @property
    def corners(self) -> list[tuple[float, float]]:
        """Upper left, upper right, lower left and lower right corner in the CRS."""
        height, width = self.pixels.shape[:2]
        return [self.transform * corner for corner in ((0, 0), (width, 0), (0, height), (width, height))]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in the CRS."""
        x, y = zip(*self.corners)
        return min(x), min(y), max(x), max(y)

    def data_url(self) -> str:
        """The picture as a JPEG that a page holds in itself."""
        _, data = cv2.imencode(".jpg", self.pixels[:, :, ::-1], _QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode('ascii')}"


def picture_crs(path: Path) -> CRS | None:
    """CRS of a raster; None where it has none."""
    with open_raster(path, allow_vrt=True) as source:
        return None if source.crs is None else parse_crs(source.crs, f"{source.name}: CRS")


def read_picture(path: Path, bounds: tuple[float, float, float, float] | None) -> Backdrop:
    """The part of a raster around `bounds`, at most 1600 pixels wide and high.

    GDAL reads an overview where there is one, and block by block where there is none: memory does not grow with the
    raster.

    Args:
        path: optical raster or any other with one band or more; of more than three, red, green and blue where the
            file names them, else the first three.
        bounds: left, bottom, right, top in the raster's CRS; None: all of the raster.

    Raises:
        InputError: not a raster, damaged, or none of it lies within `bounds`.
    """
    with open_raster(path, allow_vrt=True) as source:
        window = _window(source, bounds)
        if window is None:
            raise InputError(
                f"{path}: lies elsewhere than the buildings: it covers {_text(source.bounds)}, they cover "
                f"{_text(bounds)}, both in its CRS {source.crs}. Is it the right picture?"
            )
        shrink = max(1.0, window.width / MAX_SIDE_PX, window.height / MAX_SIDE_PX)
        shape = max(1, round(window.height / shrink)), max(1, round(window.width / shrink))
        indexes = _indexes(source)
        try:
            with rasterio.Env(**GDAL_OPTIONS):
                values = source.read(
                    indexes, window=window, out_shape=(len(indexes), *shape), resampling=Resampling.average,
                    masked=True,
                )  # fmt: skip
        except RasterioError as error:
            raise InputError(
                f"{path}: cannot be read to the end ({error}). Copy or download it again."
            ) from None
        scale = Affine.scale(window.width / shape[1], window.height / shape[0])
        transform = source.transform * Affine.translation(window.col_off, window.row_off) * scale
    if np.iscomplexobj(values):
        values = np.ma.abs(values)
    return Backdrop(optical_panel(values.astype(np.float32).filled(np.nan)), transform)


def _window(source, bounds) -> Window | None:
    whole = Window(0, 0, source.width, source.height)
    if bounds is None:
        return whole
    left, bottom, right, top = bounds
    to_pixels = ~source.transform
    corners = [to_pixels * corner for corner in ((left, bottom), (left, top), (right, bottom), (right, top))]
    columns, rows = zip(*corners)
    margin = _MARGIN * max(max(columns) - min(columns), max(rows) - min(rows))
    x0, y0 = max(0, math.floor(min(columns) - margin)), max(0, math.floor(min(rows) - margin))
    x1 = min(source.width, math.ceil(max(columns) + margin))
    y1 = min(source.height, math.ceil(max(rows) + margin))
    return Window(x0, y0, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 else None


def _indexes(source) -> list[int]:
    named = {_COLOURS[kind]: i for i, kind in enumerate(source.colorinterp, 1) if kind in _COLOURS}
    if len(named) == 3:
        return [named["red"], named["green"], named["blue"]]
    shown = [i for i, kind in enumerate(source.colorinterp, 1) if kind != ColorInterp.alpha] or [1]
    return shown[:3] if len(shown) >= 3 else shown[:1]


def _text(bounds) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in bounds) + ")"
