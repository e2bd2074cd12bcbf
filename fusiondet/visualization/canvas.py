"""Figures without pyplot: placed in inches, saved whole or not at all, turned into arrays."""

import io
import math
from pathlib import Path

from fusiondet.files import atomic_path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, FAINT = "#222222", "#666666"


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty white figure of 120 dots per inch with its own Agg canvas."""
    figure = Figure(figsize=(width_in, height_in), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def axes_in(figure: Figure, x_in: float, y_in: float, width_in: float, height_in: float) -> Axes:
    """New axes of that size with the lower left corner at (x_in, y_in), all in inches from the figure's corner."""
    width, height = figure.get_size_inches()
    return figure.add_axes((x_in / width, y_in / height, width_in / width, height_in / height))


def figure_array(figure: Figure) -> np.ndarray:
    """`figure` as (H, W, 3) uint8, for TensorBoard."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` as `path`, a PNG, whole or not at all; the same figure gives the same bytes."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(figure_png(figure))


def figure_png(figure: Figure) -> bytes:
    """`figure` as the content of a PNG; the same figure gives the same bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=figure.dpi, metadata={"Software": None})
    return content.getvalue()


def round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8, 10 times a power of ten; at least 3."""
    value = max(value, 3.0)
    scale = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * scale >= value * (1 - 1e-9))


def round_down(value: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `value` > 0."""
    scale = 10.0 ** math.floor(math.log10(value))
    return max(step * scale for step in (1, 2, 5) if step * scale <= value * (1 + 1e-9))
